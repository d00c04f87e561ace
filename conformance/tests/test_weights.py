"""The suite certifies an engine whose weights are no safetensors: it takes, breaks and leaves out what is declared."""

import shutil
from pathlib import Path

import pytest
from anyengine import ModelNotFound
from anyengine.environments import DescribedEngine
from anyengine_conformance.check import all_checks
from anyengine_conformance.settings import Settings
from anyengine_conformance.simulated import SimulatedPlugin, simulated_folder
from anyengine_conformance.subject import PluginTarget
from anyengine_conformance.weights import copy_cut_short, copy_without_weights
from msgspec.structs import replace

WEIGHTS = b"GGUF" + b"w" * 100


class Reads(SimulatedPlugin):
    """The simulated engine with weights of its own format, all of which have to be there."""

    def __init__(self, folder, pattern="*.gguf", *, careful=True):
        super().__init__()
        self.folder = folder
        self.pattern = pattern
        self.careful = careful

    def describe(self):
        return replace(super().describe(), weights=(self.pattern,), models={"simulated": str(self.folder)})

    async def load(self, config, model):
        if self.careful and [file.read_bytes() for file in model.path.glob(self.pattern)] != [WEIGHTS]:
            raise ModelNotFound("the weights are cut short")
        return await super().load(config, model)


@pytest.fixture
def make_folder(tmp_path):
    def make(name="model.gguf"):
        folder = Path(shutil.copytree(simulated_folder(), tmp_path / "subject"))
        (folder / "model.safetensors").unlink()
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(WEIGHTS)
        return folder

    return make


def _run(make_runner, plugin, id_, **options):
    runner = make_runner(PluginTarget(plugin), **options)
    runner.open()
    return runner.run_check(next(made for made in all_checks() if made.id == id_))


@pytest.mark.parametrize(("name", "pattern"), [("model.gguf", "*.gguf"), ("onnx/model.onnx", "onnx/*.onnx")])
@pytest.mark.parametrize(
    "id_",
    [
        "lifecycle.broken-model",
        "security.no-pickle",
        "security.checkpoint-code-is-not-run",
        "templates.model-without-one-refuses-chats",
    ],
)
def test_an_engine_of_other_weights_keeps_what_is_asked_of_copies_of_its_checkpoint(
    make_runner, make_folder, name, pattern, id_
):
    result = _run(make_runner, Reads(make_folder(name), pattern), id_)
    assert (result.outcome, result.seen) == ("passed", "")


def test_one_that_loads_weights_cut_short_is_found(make_runner, make_folder):
    result = _run(make_runner, Reads(make_folder(), careful=False), "lifecycle.broken-model")
    assert (result.outcome, result.seen) == ("failed", "it was loaded")


def test_of_an_engine_in_an_environment_the_weights_are_those_that_its_plugin_there_declares(
    make_runner, make_folder, monkeypatch
):
    class NotHere(PluginTarget):
        async def describe(self):
            return None

    monkeypatch.setattr(
        "anyengine_conformance.environment.described_there",
        lambda engine, config: DescribedEngine(name=engine, weights=("*.gguf",)),
    )
    runner = make_runner(NotHere(Reads(make_folder())))
    runner.open()
    result = runner.run_check(next(made for made in all_checks() if made.id == "security.no-pickle"))
    assert (result.outcome, result.seen) == ("passed", "")


def test_adapters_are_not_run_and_it_says_why(make_runner, make_folder):
    plugin = Reads(make_folder())
    plugin.capabilities = replace(plugin.capabilities, config=plugin.capabilities.config | {"lora"})
    result = _run(make_runner, plugin, "adapters.side-by-side")
    assert (result.outcome, result.reason) == (
        "not-run",
        "the suite makes adapters in safetensors, and the engine reads *.gguf",
    )


def test_an_oracle_that_reads_safetensors_says_that_there_are_none(make_runner, make_folder):
    settings = Settings(engine="simulated", oracle="reference", load_timeout=60.0)
    result = _run(make_runner, Reads(make_folder()), "logprobs.are-the-models", settings=settings)
    assert result.outcome == "error"
    assert "no *.safetensors file, but model.gguf" in result.reason


def test_a_folder_with_both_serves_the_engine_and_the_oracle(make_runner, make_folder):
    folder = make_folder()
    shutil.copy(Path(simulated_folder()) / "model.safetensors", folder)
    assert _run(make_runner, Reads(folder), "logprobs.are-the-models").outcome == "passed"


def test_a_copy_without_weights_has_all_else(make_folder, tmp_path):
    folder = make_folder("onnx/model.onnx")
    for name in ("model.safetensors", "model.safetensors.index.json", "model.onnx"):
        (folder / name).write_bytes(b"{}")
    copy_without_weights(folder, tmp_path / "copy", ("onnx/*.onnx",))
    kept = {file.name for file in folder.iterdir()} - {"model.safetensors", "model.safetensors.index.json"}
    assert {file.name for file in (tmp_path / "copy").iterdir()} == kept
    assert list((tmp_path / "copy" / "onnx").iterdir()) == []


def test_of_what_is_not_there_nothing_can_be_cut_short(make_folder, tmp_path):
    folder = make_folder()
    assert not copy_cut_short(folder, tmp_path / "copy", ("*.onnx",))
    assert copy_cut_short(folder, tmp_path / "copy", ("*.gguf",))
    assert (tmp_path / "copy" / "model.gguf").read_bytes() == WEIGHTS[: len(WEIGHTS) // 2]
