"""Adapters, held against what TGI makes of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from anyengine.config import EngineConfig
from anyengine.errors import ModelNotFound, UnsupportedParameter
from anyengine.hub import ModelFiles
from anyengine_tgi.arguments import launcher_arguments

if TYPE_CHECKING:
    from pathlib import Path

ATTENTION = "self_attn.q_proj", "self_attn.v_proj"


def files(folder: Path, loras: dict[str, Path], **config: Any) -> ModelFiles:
    return ModelFiles(
        name="m",
        path=folder,
        tokenizer_path=folder,
        config={"dtype": "bfloat16", "model_type": "llama", "num_hidden_layers": 2, **config},
        eos_token_ids=frozenset({0}),
        loras=loras,
    )


def make(folder: Path, *, modules: tuple[str, ...] = ATTENTION, layers: int = 2, **settings: Any) -> Path:
    """An adapter of which nothing is there but its settings, and the header of its weights."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 8} | settings))
    names = [f"model.layers.{layer}.{module}" for layer in range(layers) for module in modules]
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = {f"base_model.model.{name}.lora_{side}.weight": entry for name in names for side in "AB"}
    written = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(written).to_bytes(8, "little") + written)
    return folder


def config(**more: Any) -> EngineConfig:
    return EngineConfig(**{"lora": {"adapters": {"a": "x"}, "max_rank": 64}, **more})


def test_they_are_a_list_of_names_and_folders(tmp_path: Path):
    adapter = make(tmp_path / "adapter")
    model = files(tmp_path, {"a": adapter})
    assert launcher_arguments(config(), model, {}).values["lora_adapters"] == f"a={adapter}"
    with pytest.raises(UnsupportedParameter, match="rank is 8"):
        launcher_arguments(EngineConfig(lora={"adapters": {"a": "x"}, "max_rank": 4}), model, {})
    three = files(tmp_path, dict.fromkeys("abc", adapter))
    bounds = {"adapters": dict.fromkeys("abc", "x"), "max_loras": 2}
    with pytest.raises(UnsupportedParameter) as caught:
        launcher_arguments(EngineConfig(lora=bounds), three, {})
    assert caught.value.field == "lora.max_loras"
    launcher_arguments(EngineConfig(lora=bounds | {"max_loras": 3}), three, {})
    with pytest.raises(UnsupportedParameter, match="characters"):
        launcher_arguments(config(), files(tmp_path, {"a=b": adapter}), {})


def test_no_graph_is_captured_and_no_prefix_kept_which_would_forget_them(tmp_path: Path):
    model = files(tmp_path, {"a": make(tmp_path / "adapter")})
    found = launcher_arguments(config(), model, {})
    assert (found.values["cuda_graphs"], found.environment) == ((0,), {"PREFIX_CACHING": "0"})
    for more, field in (
        ({"execution": "graph"}, "execution"),
        ({"kv_cache": {"prefix_caching": True}}, "kv_cache.prefix_caching"),
    ):
        with pytest.raises(UnsupportedParameter, match=rf"^{field}: .*adapters") as caught:
            launcher_arguments(config(**more), model, {})
        assert caught.value.field == field


@pytest.mark.parametrize(
    ("made", "of_model", "more", "words"),
    [
        ({}, {"model_type": "mixtral"}, {}, "no adapters for models of the type mixtral"),
        ({}, {"model_type": "qwen3"}, {}, "no adapters for models of the type qwen3"),
        ({"modules": ("mlp.gate_up_proj",)}, {"model_type": "phi3"}, {}, "leaves .*gate_up_proj.* out"),
        ({"modules": ("self_attn.qkv_proj",)}, {}, {}, "leaves .*qkv_proj.* out"),
        ({"layers": 1}, {}, {}, "q_proj of some layers only"),
        ({"use_dora": True}, {}, {}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, {}, {}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, {}, {}, "rank_pattern"),
        ({"r": 4}, {}, {}, "pads to 8"),
        ({"r": 24}, {}, {}, "pads to 32"),
        ({"r": 8}, {}, {"parallel": {"tensor": 2}}, "pads to 16"),
    ],
)
def test_what_tgi_would_leave_out_or_scale_otherwise_is_refused(made, of_model, more, words: str, tmp_path: Path):
    model = files(tmp_path, {"a": make(tmp_path / "adapter", **made)}, **of_model)
    with pytest.raises(UnsupportedParameter, match=words) as caught:
        launcher_arguments(config(**more), model, {})
    assert caught.value.field == "lora.adapters.a"


@pytest.mark.parametrize(
    ("made", "of_model"),
    [
        ({"r": 16}, {}),
        ({"r": 4, "modules": ("self_attn.q_proj",)}, {}),  # one kind alone is scaled before it is padded
        ({"use_rslora": True}, {"model_type": "mistral"}),
        ({"modules": ("self_attn.qkv_proj", "mlp.down_proj")}, {"model_type": "phi3"}),
        ({"modules": ("self_attn.o_proj", "mlp.c_fc", "mlp.c_proj")}, {"model_type": "starcoder2"}),
    ],
)
def test_others_are_taken(made, of_model, tmp_path: Path):
    model = files(tmp_path, {"a": make(tmp_path / "adapter", **made)}, **of_model)
    assert launcher_arguments(config(), model, {}).values["lora_adapters"]


def test_one_without_readable_weights_is_refused(tmp_path: Path):
    folder = make(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").write_bytes(b"\x09\0\0\0\0\0\0\0not JSON!")
    with pytest.raises(ModelNotFound, match="cannot be read"):
        launcher_arguments(config(), files(tmp_path, {"a": folder}), {})
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UnsupportedParameter, match="safetensors only"):
        launcher_arguments(config(), files(tmp_path, {"a": folder}), {})
