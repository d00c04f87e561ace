"""Random tiny checkpoints of every family, made with NumPy and safetensors alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import TensorSpec, serialize_file

_COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"]},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": None},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": False, "head_dim": 20},
}


def random_config(family: str, **overrides: Any) -> dict[str, Any]:
    return {**_COMMON, "model_type": family, **FAMILIES[family], **overrides}


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes that transformers gives the tensors of such a config."""
    family, hidden, inner = config["model_type"], config["hidden_size"], config["intermediate_size"]
    dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    qkv_bias, output_bias = (
        config.get("attention_bias", False) or family == "qwen2",
        config.get("attention_bias", False),
    )
    mlp_bias = config.get("mlp_bias", False)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, outputs, inputs, bias in (
            ("self_attn.q_proj", queries, hidden, qkv_bias),
            ("self_attn.k_proj", keys, hidden, qkv_bias),
            ("self_attn.v_proj", keys, hidden, qkv_bias),
            ("self_attn.o_proj", hidden, queries, output_bias),
            ("mlp.gate_proj", inner, hidden, mlp_bias),
            ("mlp.up_proj", inner, hidden, mlp_bias),
            ("mlp.down_proj", hidden, inner, mlp_bias),
        ):
            shapes[f"{prefix}{name}.weight"] = (outputs, inputs)
            if bias:
                shapes[f"{prefix}{name}.bias"] = (outputs,)
        shapes[f"{prefix}input_layernorm.weight"] = shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
        if family == "qwen3":
            shapes[f"{prefix}self_attn.q_norm.weight"] = shapes[f"{prefix}self_attn.k_norm.weight"] = (dim,)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def random_tensors(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Return float32 tensors that make a lively model: logits and attention are far from flat."""
    generator = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in tensor_shapes(config).items():
        noise = generator.standard_normal(shape, dtype=np.float32)
        if len(shape) == 2:
            tensors[name] = noise * np.float32(1.5 / shape[1] ** 0.5)
        else:
            tensors[name] = noise * np.float32(0.2) + np.float32("norm" in name)
    return tensors


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Return the upper 16 bits of float32, cut off: any bfloat16 will do for a random weight."""
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def write_file(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write safetensors; uint16 is taken for BF16."""
    names = {
        "float32": "float32",
        "float16": "float16",
        "uint16": "bfloat16",
        "int8": "int8",
        "int32": "int32",
        "int64": "int64",
    }
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    specs = {
        name: TensorSpec(dtype=names[str(a.dtype)], shape=list(a.shape), data_ptr=a.ctypes.data, data_len=a.nbytes)
        for name, a in whole.items()
    }
    serialize_file(specs, file, {"format": "pt"})


def random_checkpoint(
    folder: Path, family: str = "llama", *, seed: int = 0, dtype: str = "BF16", shards: int = 1, **overrides: Any
) -> Path:
    """Write a checkpoint to `folder` and return it; `overrides` are fields of config.json."""
    config = random_config(family, **overrides)
    convert = {"BF16": bfloat16, "F16": lambda x: x.astype(np.float16), "F32": lambda x: x}[dtype]
    tensors = {name: convert(array) for name, array in random_tensors(config, seed).items()}
    folder.mkdir(parents=True, exist_ok=True)
    torch_name = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype]
    (folder / "config.json").write_text(json.dumps({**config, "dtype": torch_name}))
    if shards == 1:
        write_file(folder / "model.safetensors", tensors)
        return folder
    places = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        write_file(folder / file, {name: tensors[name] for name, place in places.items() if place == file})
    total = sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
