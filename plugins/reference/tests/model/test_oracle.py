"""The same checkpoints in transformers, float32."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anyengine_reference.model import KVCache, Segment, integers, load_model, ops
from anyengine_reference.model.checkpoint import Checkpoint
from anyengine_reference.model.compressed import QuantizedWeights, read_config
from anyengine_reference.quantize import quantize_checkpoint

pytestmark = pytest.mark.oracle

STEPS = 32
NEAR_TIE = 1e-3
"""Nats: of two tokens that are nearer than this, either is right in float32."""

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama float16, biases": ("llama", {"dtype": "F16", "attention_bias": True, "mlp_bias": True}),
    "llama float32, tied, sharded": ("llama", {"dtype": "F32", "tie_word_embeddings": True, "shards": 2}),
    "llama, head_dim": ("llama", {"head_dim": 16}),
    "llama, transformers 4 config": (
        "llama",
        {"rope_parameters": None, "rope_theta": 5e3, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ),
    "llama, linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "llama, llama3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}),
    "llama, yarn, attention factor": ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.3}}),
    "llama, yarn, mscale": ("llama", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0}}),
    "llama, yarn, not truncated": ("llama", {"rope_parameters": {**YARN, "truncate": False}}),
    "mistral": ("mistral", {"num_attention_heads": 6, "num_key_value_heads": 3}),
    "mistral, window": ("mistral", {"sliding_window": 21}),
    "qwen2": ("qwen2", {"num_key_value_heads": 3}),
    "qwen2, window above the first layer": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 21, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
    "qwen3, tied, bias, layer types": (
        "qwen3",
        {
            "tie_word_embeddings": True,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 21,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}


#: compressed-tensors uses parts of torch that torch calls deprecated.
FOREIGN = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch", "ignore::DeprecationWarning:compressed_tensors"
)


def transformers_greedy(folder: Path, prompt: list[int], steps: int) -> tuple[list[int], np.ndarray]:
    """Greedy tokens and the logits of all positions but the last's successor, by full forward passes."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = list(prompt)
    with torch.inference_mode():
        output = model(torch.tensor([tokens]), use_cache=True)
        for _ in range(steps):
            tokens.append(int(output.logits[0, -1].argmax()))
            output = model(torch.tensor([tokens[-1:]]), cache=output.cache, use_cache=True)
        return tokens[len(prompt) :], model(torch.tensor([tokens])).logits[0].numpy()


def assert_same(folder: Path, prompt: list[int], steps: int, tolerance: float) -> None:
    """Our greedy choice after each of the oracle's tokens is the oracle's, and so are the logits."""
    expected, logits = transformers_greedy(folder, prompt, steps)
    model = load_model(folder)
    cache = KVCache(model.config, -(-(len(prompt) + steps) // 16))
    table = range(cache.num_blocks)
    rows = [model.logits(model.forward([Segment(prompt, 0, table)], cache)[0])]
    for step, token in enumerate(expected):
        rows.append(model.logits(model.forward([Segment([token], len(prompt) + step, table)], cache)[0]))
    ours = np.concatenate(rows)
    np.testing.assert_allclose(ours, logits, rtol=0, atol=tolerance)
    chosen = ours[len(prompt) - 1 : -1].argmax(-1)
    gaps = logits[len(prompt) - 1 : -1].max(-1) - logits[np.arange(len(prompt) - 1, len(logits) - 1), chosen]
    assert [(ours, theirs) for ours, theirs, gap in zip(chosen, expected, gaps, strict=True) if gap > NEAR_TIE] == [
        (theirs, theirs) for theirs, gap in zip(expected, gaps, strict=True) if gap > NEAR_TIE
    ]
    assert gaps.max() <= NEAR_TIE


@pytest.mark.parametrize("name", VARIANTS)
def test_greedy_tokens_and_logits_are_those_of_transformers(name: str, random_checkpoint: Callable[..., Path]) -> None:
    family, options = VARIANTS[name]
    folder = random_checkpoint(family, seed=11, **options)
    prompt = np.random.default_rng(1).integers(0, 97, 90).tolist()
    assert_same(folder, prompt, STEPS, 5e-5)


def test_smollm2_writes_the_tokens_of_transformers(smollm2: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    prompt = tokenizer.encode("The capital of France is Paris. The capital of Italy is").ids
    assert_same(smollm2, prompt, STEPS, 5e-3)


@FOREIGN
@pytest.mark.parametrize("scheme", ["int8-w8a16", "int8-w8a8", "int4-w4a16"])
def test_the_compressed_tensors_package_reads_the_same_weights(
    scheme: str, random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from compressed_tensors import quantization
    from compressed_tensors.compressors import naive_quantized, pack_quantized
    from safetensors.torch import load_file

    source = random_checkpoint("llama", dtype="F32", hidden_size=64, num_attention_heads=2, intermediate_size=96)
    quantize_checkpoint(source, tmp_path / "out", scheme)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    parsed = quantization.QuantizationConfig.model_validate(config["quantization_config"])
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    weights = QuantizedWeights(Checkpoint(tmp_path / "out"), read_config(config))
    theirs = {
        "pack-quantized": pack_quantized.PackedQuantizationCompressor,
        "int-quantized": naive_quantized.IntQuantizationCompressor,
    }[str(parsed.format)]
    for name, shape in {"self_attn.q_proj": (64, 64), "mlp.down_proj": (64, 96)}.items():
        prefix = f"model.layers.1.{name}."
        local = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        decompressed = theirs.decompress(local, parsed.config_groups["group_0"])["weight"]
        assert decompressed.dtype == torch.float32
        assert decompressed.tolist() == weights.read(f"{prefix}weight", shape).tolist()


@FOREIGN
@pytest.mark.parametrize("scheme", ["int8-w8a16", "int4-w4a16"])
def test_transformers_computes_the_same_from_the_quantized_checkpoint(
    scheme: str, random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    source = random_checkpoint("qwen3", dtype="F32", seed=2, head_dim=16, **sizes)
    quantize_checkpoint(source, tmp_path / "out", scheme)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = theirs(torch.tensor([list(range(40))]), use_cache=False).logits[0].numpy()
    ours = load_model(tmp_path / "out")
    found = ours.logits(ours.forward([Segment(range(40), 0, range(3))], KVCache(ours.config, 3))[0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5)


def test_8_bit_floats_are_those_of_torch() -> None:
    import torch

    kind = torch.float8_e4m3fn
    theirs = torch.arange(256, dtype=torch.uint8).view(kind).to(torch.float32).numpy()
    np.testing.assert_array_equal(integers.E4M3, theirs)
    rows = ops.aligned(64, 256)
    rows[...] = np.random.default_rng(0).standard_normal((64, 256)) ** 3
    scale = np.abs(rows).max(1, keepdims=True) / np.float32(448)
    expected = torch.from_numpy(rows / scale).to(kind).to(torch.float32).numpy() * scale
    np.testing.assert_array_equal(ops.fp8_rows(rows), expected)
