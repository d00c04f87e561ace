"""An engine gets the weights that its plugin declares: from folders, from the hub, and by their names in messages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from anyengine import Engine, EngineConfig
from anyengine.errors import ModelNotFound, PluginError
from anyengine.hub import resolve_model
from anyengine.hub.resolve import resolve_adapter
from anyengine.testing import ScriptedPlugin, make_model_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GGUF = ("*.gguf",)
IR = ("*.xml", "openvino_*.bin")
BOTH = ("*.safetensors", "*.gguf")


class Declares(ScriptedPlugin):
    """The simulated engine, which reads other weights."""

    weights: object = GGUF

    def describe(self):
        return msgspec.structs.replace(super().describe(), weights=self.weights)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint with no weights but GGUF."""
    made = make_model_folder(tmp_path / "model")
    (made / "model.safetensors").unlink()
    (made / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    return made


def _refused(folder: Path, weights: tuple[str, ...] | None = None) -> str:
    with pytest.raises(ModelNotFound) as caught:
        resolve_model(str(folder), builtin={}, **({} if weights is None else {"weights": weights}))
    return caught.value.message


async def test_an_engine_that_declares_gguf_loads_a_folder_that_has_nothing_else(folder):
    async with Engine.load(Declares(lambda _: [72], str(folder)), str(folder)) as engine:
        assert (await engine.generate("hello")).token_ids[0] == 72
        assert engine.model.path == folder


async def test_an_engine_that_does_not_is_told_what_is_there_instead(folder):
    plugin = ScriptedPlugin(lambda _: [72], str(folder))
    with pytest.raises(ModelNotFound) as caught:
        await Engine.load(plugin, str(folder))
    message = f"{folder} has no weights that the engine reads: no *.safetensors file, but model-Q4_K_M.gguf"
    assert caught.value.message == message


def test_the_message_names_what_the_engine_declares(tmp_path):
    made = make_model_folder(tmp_path / "model")
    assert _refused(made, IR) == (
        f"{made} has no weights that the engine reads: no *.xml or openvino_*.bin file, but model.safetensors"
    )
    (made / "model.safetensors").unlink()
    assert _refused(made, GGUF) == (
        f"{made} has no weights: no *.gguf file (pickled weights are never fetched from a hub)"
    )


def test_pickled_weights_are_refused_with_a_remedy_that_the_engine_reads(folder):
    (folder / "model-Q4_K_M.gguf").rename(folder / "pytorch_model.bin")
    message = _refused(folder, GGUF)
    assert "has only pickled weights (pytorch_model.bin)" in message
    assert message.endswith("convert them where you trust them: to *.gguf, which the engine reads")


def test_weights_in_a_folder_of_their_own_are_found(folder):
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"onnx")
    assert resolve_model(str(folder), builtin={}, weights=("onnx/*.onnx",)).path == folder
    assert "no *.onnx file" in _refused(folder, ("*.onnx",))


def test_a_folder_of_that_name_is_no_weights(folder):
    (folder / "model-Q4_K_M.gguf").unlink()
    (folder / "model-Q4_K_M.gguf").mkdir()
    assert "has no weights" in _refused(folder, GGUF)


def test_safetensors_beside_them_are_looked_over_only_for_an_engine_that_reads_them(folder):
    """Of a model on the hub the index comes with the other texts, and its shards do not."""
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert resolve_model(str(folder), builtin={}, weights=GGUF).path == folder
    assert resolve_model(str(folder), builtin={}, weights=BOTH).path == folder
    assert "model-1.safetensors" in _refused(folder)
    (folder / "model-1.safetensors").write_bytes(b"")
    assert resolve_model(str(folder), builtin={}, weights=GGUF).path == folder
    assert "model-1.safetensors is truncated" in _refused(folder, BOTH)


def test_a_draft_needs_weights_that_the_engine_reads(folder, tmp_path):
    draft = make_model_folder(tmp_path / "draft")
    with pytest.raises(ModelNotFound, match=r"no \*\.gguf file, but model\.safetensors"):
        resolve_model(str(folder), builtin={}, draft=str(draft), weights=GGUF)


@pytest.mark.parametrize("name", ["adapter.gguf", "adapter_model.safetensors"])
def test_an_adapter_has_them_or_safetensors(folder, tmp_path, name):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / name).write_bytes((2).to_bytes(8, "little") + b"{}")
    assert resolve_model(str(folder), builtin={}, loras={"x": str(adapter)}, weights=GGUF).loras == {"x": adapter}


def test_an_adapter_of_an_engine_that_reads_safetensors_has_those(tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelNotFound, match=r"no \*\.safetensors file, but adapter\.gguf"):
        resolve_adapter("x", str(adapter))


def test_a_weights_file_in_place_of_its_folder_is_refused_with_what_belongs_beside_it(folder):
    name = folder / "model-Q4_K_M.gguf"
    assert _refused(name, GGUF) == (
        f"model: {name} is a file; name the folder that holds the checkpoint: its config.json and tokenizer.json "
        "belong beside its weights"
    )


@pytest.mark.parametrize("weights", [GGUF, IR, None])
def test_from_the_hub_the_declared_weights_are_fetched_and_no_others(monkeypatch, folder, weights):
    import huggingface_hub

    fetched = []
    (folder / "openvino_model.xml").write_text("<net/>")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: type("Info", (), {"sha": COMMIT}))
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *_, allow_patterns, **__: fetched.append(allow_patterns) or str(folder),
    )
    given = {} if weights is None else {"weights": weights}
    resolve_model("someone/something", builtin={}, loras={}, **given)
    texts = ["*.json", "*.jinja", "*.model", "*.txt"]
    assert fetched[0] == [*texts, *(weights or ("*.safetensors",))]


def test_a_cached_hub_model_of_gguf_is_used_offline_by_the_real_client(folder, tmp_path):
    """In a fresh interpreter: huggingface_hub reads its environment when it is imported."""
    repository = tmp_path / "hub" / "models--someone--something"
    (repository / "snapshots").mkdir(parents=True)
    folder.rename(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    program = (
        "from anyengine.hub import resolve_model\n"
        "print(resolve_model('someone/something', builtin={}, weights=('*.gguf',)).revision)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [COMMIT]


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        (("*.gguf", "*.bin"), "gave '*.bin' as weights: names pickled weights as well"),
        ((), "gave () as weights: name at least one pattern"),
        ("*.gguf", "gave '*.gguf' as weights: expected array, got str"),
        ((1,), "gave 1 as weights[0]: expected str, got int"),
        (None, "gave None as weights: expected array, got None"),
    ],
)
async def test_a_plugin_that_declares_no_sensible_weights_is_in_error(folder, weights, why):
    plugin = Declares(lambda _: [72], str(folder))
    plugin.weights = weights
    with pytest.raises(PluginError) as caught:
        await Engine.load(plugin, config=EngineConfig(model=str(folder)))
    assert why in caught.value.message
