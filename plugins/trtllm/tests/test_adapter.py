"""Adapters: what TensorRT-LLM's loader would leave out of them is refused by name."""

import json

import numpy as np
import pytest
from anyengine.config import LoRAConfig
from anyengine.errors import ModelNotFound, UnsupportedParameter
from anyengine_trtllm.adapter import check_adapter, widest
from anyengine_trtllm.lora import Adapters
from msgspec.structs import replace
from safetensors.numpy import save_file

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
UP, HEAD, EMBEDDING = "model.layers.0.mlp.up_proj", "lm_head", "model.embed_tokens"


@pytest.fixture
def make(tmp_path):
    """``make(name, modules, settings)``: the folder of an adapter."""

    def made(name, modules, **settings):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, **settings}))
        side = "_embedding_" if modules == [EMBEDDING] else "_"
        keys = [f"base_model.model.{module}.lora{side}{part}" for module in modules for part in "AB"]
        save_file({key: np.zeros((2, 2), np.float32) for key in keys}, folder / "adapter_model.safetensors")
        return folder

    return made


@pytest.mark.parametrize(
    "setting",
    [
        {"alpha_pattern": {"q_proj": 16}},
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [1]},
        {"peft_type": "IA3"},
    ],
    ids=str,
)
def test_a_setting_that_the_loader_passes_over_is_refused(make, setting):
    with pytest.raises(UnsupportedParameter) as caught:
        check_adapter("a", make("a", [Q], **setting), 8)
    assert caught.value.field == "lora.adapters.a"


def test_settings_that_it_honours_are_taken(make):
    check_adapter("a", make("a", [Q, V], use_rslora=True, rank_pattern={"q_proj": 8}, bias="none"), 8)


@pytest.mark.parametrize("module", [HEAD, EMBEDDING])
def test_matrices_of_the_vocabulary_are_refused(make, module):
    with pytest.raises(UnsupportedParameter, match=r"lm_head|embed_tokens"):
        check_adapter("a", make("a", [module]), 8)


def test_the_engine_is_loaded_with_the_adapter_that_changes_most(make, arguments, model):
    folders = {"a": make("a", [Q]), "b": make("b", [Q, UP]), "c": make("c", [UP])}
    assert widest(folders) == ("b", {"q_proj", "up_proj"})
    adapted = replace(model, loras=folders)
    found = arguments(adapted, lora={"adapters": dict.fromkeys(folders, "x")})["lora_config"]
    assert found.lora_dir == [str(folders["b"])]


def test_adapters_of_which_none_changes_all_are_refused(make):
    with pytest.raises(UnsupportedParameter) as caught:
        widest({"a": make("a", [Q]), "b": make("b", [UP])})
    assert caught.value.field == "lora.adapters"


def test_an_adapter_that_is_loaded_later_may_change_the_same_modules_only(make, simulated):
    adapters = Adapters(simulated.classes["LoRARequest"], LoRAConfig(max_rank=8), frozenset({"q_proj"}))
    adapters.load("a", make("a", [Q]))
    with pytest.raises(UnsupportedParameter, match="v_proj") as caught:
        adapters.load("b", make("b", [Q, V]))
    assert caught.value.field == "lora.adapters.b"
    assert adapters.names == ("a",)


def test_without_safetensors_the_settings_tell(make):
    folder = make("a", [Q], target_modules=["self_attn.v_proj", "q_proj"])
    (folder / "adapter_model.safetensors").unlink()
    assert widest({"a": folder}) == ("a", {"q_proj", "v_proj"})


def test_a_file_that_cannot_be_read_is_told(make):
    folder = make("a", [Q])
    (folder / "adapter_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0not json")
    with pytest.raises(ModelNotFound) as caught:
        widest({"a": folder})
    assert caught.value.field == "lora.adapters.a"
