"""The forward pass against a transcription of the formulas in float64, with loops where the engine has tiles."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from anyengine_reference.model import KVCache, Segment, load_model
from anyengine_reference.model.ops import silu_product

PLAIN: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied, all biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama, linear": ("llama", {"rope_parameters": {**PLAIN, "rope_type": "linear", "factor": 3.0}}),
    "mistral, window": ("mistral", {"sliding_window": 33}),
    "qwen2": ("qwen2", {"num_key_value_heads": 3}),
    "qwen2, window in the second layer": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3, bias, layer types": (
        "qwen3",
        {
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}


def norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weight


def turned(x: np.ndarray, theta: float, factor: float) -> np.ndarray:
    """Rotate [positions, heads, head_dim] one pair at a time, as complex numbers."""
    out = np.empty_like(x)
    half = x.shape[-1] // 2
    for position in range(len(x)):
        for i in range(half):
            angle = position / factor * theta ** (-i / half)
            pair = (x[position, :, i] + 1j * x[position, :, i + half]) * np.exp(1j * angle)
            out[position, :, i], out[position, :, i + half] = pair.real, pair.imag
    return out


def transcription(config: dict[str, Any], w: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """Logits of all positions in float64."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    rope, epsilon = config["rope_parameters"], config["rms_norm_eps"]
    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):

        def linear(name: str, rows: np.ndarray, prefix: str = f"model.layers.{layer}.") -> np.ndarray:
            return rows @ w[f"{prefix}{name}.weight"].T + w.get(f"{prefix}{name}.bias", 0)

        prefix = f"model.layers.{layer}."
        slides = config.get("use_sliding_window", config["model_type"] == "mistral")
        kinds = config.get("layer_types") or [
            "sliding_attention" if slides and i >= config.get("max_window_layers", 0) else "full_attention"
            for i in range(config["num_hidden_layers"])
        ]
        window = config.get("sliding_window") if kinds[layer] == "sliding_attention" else None
        y = norm(x, w[f"{prefix}input_layernorm.weight"], epsilon)
        q, k, v = (linear(f"self_attn.{n}_proj", y).reshape(len(tokens), -1, dim) for n in "qkv")
        if f"{prefix}self_attn.q_norm.weight" in w:
            q = norm(q, w[f"{prefix}self_attn.q_norm.weight"], epsilon)
            k = norm(k, w[f"{prefix}self_attn.k_norm.weight"], epsilon)
        q, k = (turned(z, rope["rope_theta"], rope.get("factor", 1.0)) for z in (q, k))
        mixed = np.zeros((len(tokens), heads, dim))
        for position in range(len(tokens)):
            first = 0 if window is None else max(0, position - window + 1)
            for head in range(heads):
                kv = head // (heads // kv_heads)
                scores = k[first : position + 1, kv] @ q[position, head] / math.sqrt(dim)
                weights = np.exp(scores - scores.max())
                mixed[position, head] = weights / weights.sum() @ v[first : position + 1, kv]
        x = x + linear("self_attn.o_proj", mixed.reshape(len(tokens), -1))
        y = norm(x, w[f"{prefix}post_attention_layernorm.weight"], epsilon)
        gate = linear("mlp.gate_proj", y)
        x = x + linear("mlp.down_proj", gate / (1 + np.exp(-gate)) * linear("mlp.up_proj", y))
    x = norm(x, w["model.norm.weight"], epsilon)
    return x @ w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"].T


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_the_formulas_in_float64(
    name: str, random_checkpoint: Callable[..., Path], checkpoints: ModuleType
) -> None:
    family, options = VARIANTS[name]
    folder = random_checkpoint(family, seed=3, dtype="F32", **options)
    config = json.loads((folder / "config.json").read_text())
    weights = {key: value.astype(np.float64) for key, value in checkpoints.random_tensors(config, 3).items()}
    tokens = np.random.default_rng(0).integers(0, config["vocab_size"], 100).tolist()
    model = load_model(folder)
    cache = KVCache(model.config, 8)
    actual = model.logits(model.forward([Segment(tokens, 0, range(8))], cache)[0])
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, transcription(config, weights, tokens), rtol=0, atol=3e-5)


def test_a_gate_beyond_the_range_of_the_exponential_is_closed(random_model: Callable[..., Any]) -> None:
    gate, out = np.array([[-1e4, -200.0, 0.0, 1e4]], np.float32), np.empty((1, 4), np.float32)
    with np.errstate(over="ignore"):
        silu_product(gate, np.full((1, 4), 2, np.float32), out)
    assert out.tolist() == [[0, 0, 0, 2e4]]


def test_a_step_without_segments_is_empty(random_model: Callable[..., Any]) -> None:
    model = random_model("llama")
    assert model.forward([], KVCache(model.config, 1)) == []


@pytest.mark.parametrize(
    ("tokens", "start", "table", "message"),
    [
        ([], 0, [0], "Segment 0 has 0 tokens from position 0."),
        ([1], -1, [0], "Segment 0 has 1 tokens from position -1."),
        ([97], 0, [0], "Segment 0 has a token id outside 0 to 96."),
        ([-1], 0, [0], "Segment 0 has a token id outside 0 to 96."),
        ([1], 16, [0], "Segment 0 ends after the 1 blocks of its table."),
        ([1], 0, [4], "Segment 0 names a block outside 0 to 3."),
        ([1], 0, [-1], "Segment 0 names a block outside 0 to 3."),
    ],
)
def test_a_segment_that_cannot_be_is_refused(
    tokens: list[int], start: int, table: list[int], message: str, random_model: Callable[..., Any]
) -> None:
    model = random_model("llama")
    with pytest.raises(ValueError, match=message):
        model.forward([Segment(tokens, start, table)], KVCache(model.config, 4))


def test_a_cache_says_how_many_bytes_it_has(random_model: Callable[..., Any]) -> None:
    cache = KVCache(random_model("llama").config, 3, 16)
    assert cache.nbytes == 2 * 2 * 1 * (3 + 1) * 16 * 12 * 4


def test_a_cache_without_room_is_refused(random_model: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        KVCache(random_model("llama").config, 0)
