"""Quantising with ModelOpt: its calls and refusals on a *scripted* one, and, with ``--modelopt``, itself."""

import inspect
import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from anyengine import Engine
from anyengine.backend import QuantizeJob, quantizing
from anyengine.backend.quantizing import Cancelled
from anyengine.errors import OutOfMemory, UnsupportedParameter
from anyengine.quantization import check_manifest, read_stored, why_not
from anyengine_trtllm import quantize
from anyengine_trtllm.capabilities import declared
from anyengine_trtllm.checkpoints import CHECKPOINTS
from anyengine_trtllm.environments import variants

SEQUENCES = [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.fixture(scope="module")
def read():
    """Facts of ModelOpt."""
    return json.loads((Path(__file__).parent / "contract" / "quantization.json").read_bytes())["modelopt"]["value"]


@pytest.fixture
def toolchain(read, scripted_modelopt, monkeypatch):
    """``toolchain(inputs=192)``: a scripted one, which the plugin takes for ModelOpt."""

    def make(**options):
        made = scripted_modelopt.Toolchain(read, **options)
        for module in (quantize, quantizing):
            monkeypatch.setattr(module, "import_module", made.modules.__getitem__)
        monkeypatch.setattr(quantizing, "installed_version", lambda _name: "4.57.1")
        return made

    return make


@pytest.fixture
def job(model, tmp_path):
    """``job(scheme)``: with a folder of its own and steps that are written down in ``job.steps``."""
    model.path.mkdir()
    (tmp_path / "out").mkdir()

    def make(scheme="fp8-static", cancelled=lambda: False):
        make.steps = []
        return QuantizeJob(
            model=model,
            scheme=scheme,
            output=tmp_path / "out",
            calibration=SEQUENCES,
            seed=5,
            progress=lambda done, total: make.steps.append((done, total)),
            cancelled=cancelled,
        )

    return make


def test_schemes_are_declared_where_the_toolchain_is_in_the_release_that_is_pinned(monkeypatch, read):
    monkeypatch.setattr(quantize, "find_spec", lambda _name: None)
    assert (declared().quantize, declared().calibrated) == (frozenset(), frozenset())
    monkeypatch.setattr(quantize, "find_spec", lambda _name: object())
    for found, expected in (("0.37.0", quantize.SCHEMES), ("0.37.2", quantize.SCHEMES), ("0.47.0", frozenset())):
        monkeypatch.setattr(quantize, "installed_version", lambda _name, found=found: found)
        assert declared().quantize == declared().calibrated == expected
    (step,) = variants()["modelopt"].steps
    assert "nvidia-modelopt==0.37.0" in step.requirements
    assert read["pin"].endswith("~=0.37.0")


def test_presets_are_those_of_the_facts(read):
    assert sorted(quantize.PRESETS.values()) == read["presets"]


@pytest.mark.parametrize("scheme", sorted(quantize.SCHEMES))
def test_modelopt_is_fitted_to_the_jobs_own_text(scheme, toolchain, job, tmp_path):
    chain = toolchain(gpu=scheme == "nvfp4")
    report = quantize.quantize(job(scheme))
    assert [name for name, _ in chain.calls] == ["manual_seed", "quantize", "export_hf_checkpoint"]
    assert chain.calls[0] == ("manual_seed", 5)
    passes = 2 if scheme == "int4-awq" else 1
    assert chain.model.seen == SEQUENCES * passes
    assert chain.model.places == ["cuda" if scheme == "nvfp4" else "cpu"]
    total = 2 * passes + 2
    assert job.steps == [(done, total) for done in range(1, total + 1)]
    assert report.recipe["modelopt"]["preset"] == quantize.PRESETS[scheme]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert read_stored(tmp_path / "out", config).schemes == (scheme,)
    assert why_not(CHECKPOINTS, tmp_path / "out", config, capability=lambda: (10, 0)) is None


@pytest.mark.parametrize(("inputs", "size"), [(256, 128), (192, 64)])
def test_the_largest_group_that_divides_every_matrix_is_taken(inputs, size, toolchain, job):
    chain = toolchain(inputs=inputs)
    report = quantize.quantize(job("int4-awq"))
    assert chain.config["quant_cfg"]["*weight_quantizer"]["block_sizes"][-1] == size
    assert report.recipe["modelopt"]["group_size"] == size
    assert chain.presets["INT4_AWQ_CFG"]["quant_cfg"]["*weight_quantizer"]["block_sizes"][-1] == 128  # of the module


@pytest.mark.parametrize(
    ("scheme", "inputs", "said"),
    [("int4-awq", 96, "groups of 128 or 64, which"), ("nvfp4", 24, "groups of 16, which do not divide matrices of 24")],
)
def test_matrices_that_no_group_divides_are_refused_before_any_work(scheme, inputs, said, toolchain, job):
    chain = toolchain(inputs=inputs, gpu=True)
    with pytest.raises(UnsupportedParameter, match=said) as caught:
        quantize.quantize(job(scheme))
    assert (caught.value.field, chain.model.seen) == ("scheme", [])


def test_nvfp4_without_a_gpu_is_refused(toolchain, job):
    toolchain()
    with pytest.raises(UnsupportedParameter, match="packs nvfp4 on a GPU") as caught:
        quantize.quantize(job("nvfp4"))
    assert caught.value.field == "scheme"


def test_a_model_in_which_modelopt_finds_nothing_is_refused(toolchain, job):
    chain = toolchain()
    chain.writes["FP8_KV_CFG"] = {"quant_algo": None, "kv_cache_quant_algo": None}
    with pytest.raises(UnsupportedParameter, match="ModelOpt finds too little in it that kv-fp8 is for") as caught:
        quantize.quantize(job("kv-fp8"))
    assert caught.value.field == "model"


@pytest.mark.parametrize("after", range(3))
def test_it_ends_at_the_next_step_when_it_is_cancelled(after, toolchain, job, tmp_path):
    toolchain()
    making = job(cancelled=lambda: len(job.steps) >= after)
    with pytest.raises(Cancelled):
        quantize.quantize(making)
    assert len(job.steps) == after
    assert list((tmp_path / "out").iterdir()) == []


def test_too_little_memory_has_its_type(toolchain, job, scripted_modelopt, monkeypatch):
    chain = toolchain()

    def fail(**_values):
        raise scripted_modelopt.OutOfMemoryError("tried 3 GiB")

    monkeypatch.setattr(type(chain.model), "__call__", lambda _self, **values: fail(**values))
    with pytest.raises(OutOfMemory, match="tried 3 GiB"):
        quantize.quantize(job())


def test_a_model_that_transformers_does_not_know_is_refused(toolchain, job):
    chain = toolchain()

    def load(*_values, **_named):
        raise ValueError("no such model_type")

    chain.modules["transformers"].AutoModelForCausalLM.from_pretrained = load
    with pytest.raises(UnsupportedParameter, match=r"transformers 4\.57\.1 cannot load it: no such"):
        quantize.quantize(job())


# -- ModelOpt itself ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("modelopt") is None, reason="ModelOpt is not here")
def test_signatures_are_those_of_the_facts(read):
    for path, parameters in read["signatures"].items():
        module, _, name = path.rpartition(".")
        assert list(inspect.signature(getattr(import_module(module), name)).parameters) == parameters


@pytest.mark.modelopt
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scheme", ["fp8-static", "int4-awq", "kv-fp8"])
async def test_what_modelopt_makes_is_what_tensorrt_llm_declares(scheme, tmp_path, storyteller, request):
    output = await Engine.quantize(
        "trtllm",
        model=str(storyteller),
        scheme=scheme,
        output=tmp_path / "made",
        calibration=["Once upon a time there was a small dog. " * 60],
        environment=request.config.getoption("--modelopt"),
    )
    manifest = check_manifest(output)
    assert manifest.tools["nvidia-modelopt"].startswith("0.37.")
    assert manifest.calibration is not None
    config = json.loads((output / "config.json").read_text())
    assert read_stored(output, config).schemes == (scheme,)
    assert why_not(CHECKPOINTS, output, config, capability=lambda: (9, 0)) is None
