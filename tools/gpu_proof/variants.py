"""What is proven: engines in their configurations, and who quantises by what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Tokens of each engine's cache, so that several share a device.
CACHE = "kv_cache.capacity_tokens=65536"
#: Steps that the pairs of a benchmark against a native API are shared out to, so that several GPUs measure at once.
OVERHEAD_PARTS = 4
OVERHEAD = ("--part", "--rounds", "1", "--probes", "20")
#: Places that a draft model comes from, see :class:`Speculation`.
DRAFT, ITSELF = "draft", "itself"


@dataclass(frozen=True)
class Speculation:
    """A way to speculate.

    Attributes:
        name: of its steps.
        label: in the parity table, behind that of the engine.
        fields: of SpeculativeConfig; `model` is :data:`DRAFT`, the checkpoint's first layers, or :data:`ITSELF`.
    """

    name: str
    label: str
    fields: dict[str, Any]


#: A draft that is cut from its target is often wrong, and the target as its own draft hardly ever: between the two,
#: tokens that are kept without verification, or thrown away for nothing, would show.
SPECULATION = (
    Speculation("ngram", "n-gram speculation", {"method": "ngram", "num_speculative_tokens": 4}),
    Speculation(
        "draft",
        "draft of its own first layers",
        {"method": "draft_model", "model": DRAFT, "num_speculative_tokens": 4},
    ),
    Speculation(
        "itself",
        "itself as the draft",
        {"method": "draft_model", "model": ITSELF, "num_speculative_tokens": 4},
    ),
)


@dataclass(frozen=True)
class Variant:
    """An engine in one configuration.

    Attributes:
        name: of its steps.
        label: in the parity table.
        engine: name of the plugin.
        environment: that it runs in; None for this one.
        options: fields of EngineConfig.
        suite: arguments of its conformance run; none where that would say nothing more.
        checkpoint: whether the suite is run on the checkpoint too, beside its own model.
        parts: steps that this run is cut into, so that each takes a few minutes.
        overhead: benchmark against its native API, and its options; a part of :data:`OVERHEAD_PARTS`.
        speculation: ways to speculate that it has.
        concurrency: whether its throughput is worth measuring.
        quantized: whether quantised checkpoints are measured in it.
        rounds: that these speeds are measured over; fewer where a round takes long.
        determinism: whether it promises some.
    """

    name: str
    label: str
    engine: str
    environment: str | None = None
    options: tuple[str, ...] = ()
    suite: tuple[str, ...] = ()
    checkpoint: bool = True
    parts: int = 4
    overhead: tuple[str, ...] = ()
    speculation: tuple[Speculation, ...] = ()
    concurrency: bool = True
    quantized: bool = True
    rounds: int = 16
    determinism: bool = False


VARIANTS = (
    Variant(
        "vllm",
        "vLLM",
        "vllm",
        "vllm",
        ("dtype=bfloat16", "max_model_len=2048", CACHE),
        ("--config", "plugins/vllm/conformance-gpu.toml"),
        parts=24,
        # Single pairs differ by tens of percent; so many bring the interval below the bar's width.
        overhead=("benchmarks/vllm_overhead.py", *OVERHEAD, "--pairs", "150"),
        speculation=SPECULATION,
        determinism=True,
    ),
    Variant(
        "turbomind",
        "LMDeploy, TurboMind",
        "lmdeploy",
        "lmdeploy",
        ("dtype=bfloat16", "max_model_len=2048", "kv_cache.gpu_memory_fraction=0.05", "native.backend=turbomind"),
        ("--config", "plugins/lmdeploy/conformance-turbomind.toml"),
        parts=8,
        overhead=("benchmarks/lmdeploy_overhead.py", *OVERHEAD, "--pairs", "50"),
    ),
    Variant(
        "lmdeploy-pytorch",
        "LMDeploy, PyTorch eager",
        "lmdeploy",
        "lmdeploy",
        ("dtype=bfloat16", "max_model_len=2048", CACHE, "native.backend=pytorch", "execution=eager"),
        ("--config", "plugins/lmdeploy/conformance-pytorch.toml"),
        parts=12,
        rounds=6,
    ),
    # What its kernels for 4-bit weights compute in.
    Variant(
        "lmdeploy-pytorch-float16",
        "LMDeploy, PyTorch eager, float16",
        "lmdeploy",
        "lmdeploy",
        ("dtype=float16", "max_model_len=2048", CACHE, "native.backend=pytorch", "execution=eager"),
        concurrency=False,
        rounds=6,
    ),
    # The control: what the data type alone does.
    Variant(
        "transformers",
        "transformers",
        "transformers",
        options=("dtype=bfloat16", "device=cuda"),
        suite=("--config", "plugins/transformers/conformance.toml", "-o", "device=cuda"),
        parts=6,
        concurrency=False,
        quantized=False,
    ),
    Variant(
        "transformers-float32",
        "transformers, float32",
        "transformers",
        options=("dtype=float32", "device=cuda"),
        concurrency=False,
        quantized=False,
    ),
    # On the processor, where its speed says nothing beside those of a GPU; `benchmarks/quantized.py` runs anywhere. On
    # the checkpoint it would miss the suite's deadlines there, and keep the processors from the others.
    Variant(
        "reference",
        "reference",
        "reference",
        suite=("reference",),
        checkpoint=False,
        concurrency=False,
        quantized=False,
    ),
)


@dataclass(frozen=True)
class Quantizer:
    """A toolchain that quantises.

    Attributes:
        name: of its steps and folders.
        engine: whose it is.
        environment: that it runs in; None for this one.
        schemes: name of the scheme in the step and its folder → as it is asked for.
    """

    name: str
    engine: str
    environment: str | None
    schemes: dict[str, str]


def _as_named(*schemes: str) -> dict[str, str]:
    return {scheme: scheme for scheme in schemes}


QUANTIZERS = (
    Quantizer("reference", "reference", None, _as_named("int8-w8a16", "int8-w8a8", "int4-w4a16")),
    Quantizer(
        "vllm", "vllm", "compressor", _as_named("fp8-dynamic", "fp8-static", "int8-w8a8", "int4-gptq", "int4-awq")
    ),
    Quantizer("lmdeploy", "lmdeploy", "lmdeploy", _as_named("int4-awq", "int8-w8a8", "fp8-dynamic")),
)


@dataclass(frozen=True)
class Tests:
    """Tests of an engine itself, on a GPU.

    Attributes:
        engine: its name.
        file: that has them.
        words: arguments of pytest.
    """

    engine: str
    file: str
    words: tuple[str, ...]


TESTS = (
    Tests("vllm", "plugins/vllm/tests/test_real_gpu.py", ("--vllm=vllm",)),
    Tests("lmdeploy", "plugins/lmdeploy/tests/test_real_gpu.py", ("--lmdeploy=lmdeploy",)),
)

#: As ``examples/side_by_side.py`` takes them.
SIDE_BY_SIDE = ("vllm@vllm", "lmdeploy@lmdeploy", "--memory", "0.2")
