"""The public surface is a decision: widening it shows in this file's diff."""

import inspect

import anyengine
import anyengine.backend
import anyengine.sync
import pytest

PUBLIC = {
    "anyengine": anyengine,
    "anyengine.backend": anyengine.backend,
    "anyengine.sync": anyengine.sync,
}
NAMES = {
    "anyengine": """
        AnyEngineError Calibration Capabilities Chunk Completion Embedding Engine EngineClosed EngineConfig EngineDied
        EngineStartupError EngineStats EngineUnresponsive EnvironmentFailed Failure Finish FinishReason GenerateRequest
        InvalidConfig InvalidRequest KVCacheConfig LoRAConfig Misuse ModelNotFound OutOfMemory OutOfSpace Overloaded
        ParallelConfig PluginError RequestTimeout SamplingParams SchedulingConfig Score SpeculativeConfig Stream
        Structured Timings TokenLogprobs UnknownEngine UnsupportedCapability UnsupportedParameter Usage find_engines
        hookimpl
    """,
    "anyengine.backend": """
        Backend BackendInfo CheckpointSupport DeltaCollector EngineDescription EnginePlugin EnvironmentVariant PipStep
        QuantizeJob QuantizeReport QuantizedFormat TokenDelta TokenFinish TokenRequest
    """,
    "anyengine.sync": "Engine Stream",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_exported_names_are_those_agreed(module: str):
    assert sorted(PUBLIC[module].__all__) == sorted(NAMES[module].split())


@pytest.mark.parametrize("module", PUBLIC)
def test_every_exported_name_exists_and_names_its_home(module: str):
    for name in PUBLIC[module].__all__:
        assert getattr(PUBLIC[module], name) is not None


def test_the_lazy_table_and_the_list_for_type_checkers_agree():
    assert sorted(anyengine._HOME) == sorted(anyengine.__all__)


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_class_and_method_has_a_docstring(module: str):
    undocumented = [
        f"{name}.{member}"
        for name in PUBLIC[module].__all__
        if inspect.isclass(thing := getattr(PUBLIC[module], name))
        for member, value in [("", thing), *vars(thing).items()]
        if not member.startswith("_") and (inspect.isroutine(value) or isinstance(value, property) or not member)
        if not inspect.getdoc(getattr(thing, member) if member else thing)
    ]
    assert undocumented == []
