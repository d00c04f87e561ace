"""Every field of a configuration is honoured or refused; what is declared is exercised."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from anyengine import Engine, SamplingParams, Structured
from anyengine.errors import (
    AnyEngineError,
    InvalidConfig,
    ModelNotFound,
    OutOfMemory,
    UnsupportedCapability,
    UnsupportedParameter,
)
from anyengine_reference.plugin import CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROMPT = [10, 20, 30, 10, 20]

#: Each declared configuration field with a value, and what it must change.
CONFIG: dict[str, tuple[dict[str, Any], Callable[[Any, Any], Any], Any]] = {
    "execution": ({"execution": "eager"}, lambda engine, stats: engine.info.device, "cpu"),
    "kv_cache.block_size": ({"kv_cache": {"block_size": 7}}, lambda engine, stats: stats.kv_cache.used_tokens % 7, 0),
    "kv_cache.capacity_tokens": (
        {"kv_cache": {"capacity_tokens": 96}},
        lambda engine, stats: (stats.kv_cache.capacity_tokens, engine.info.max_model_len),
        (96, 96),
    ),
    "kv_cache.prefix_caching": (
        {"kv_cache": {"prefix_caching": False}},
        lambda engine, stats: stats.kv_cache.prefix_queries,
        0,
    ),
    "max_model_len": ({"max_model_len": 50}, lambda engine, stats: engine.info.max_model_len, 50),
    "scheduling.chunked_prefill": ({"scheduling": {"chunked_prefill": False}}, lambda engine, stats: None, None),
    "scheduling.max_num_batched_tokens": ({"scheduling": {"max_num_batched_tokens": 2}}, lambda e, s: None, None),
    "scheduling.max_num_seqs": ({"scheduling": {"max_num_seqs": 3}}, lambda e, s: e.info.max_num_seqs, 3),
}


async def answer(engine: Engine, **options: Any) -> list[int]:
    got = await engine.generate(
        PROMPT, **{"max_tokens": 12, "ignore_eos": True, "sampling": SamplingParams(temperature=0), **options}
    )
    return got.token_ids


@pytest.fixture
async def plain(bytes_folder: Path) -> list[int]:
    async with Engine.load("reference", model=str(bytes_folder)) as engine:
        return await answer(engine)


def test_every_declared_configuration_field_is_exercised_here() -> None:
    assert set(CONFIG) == CAPABILITIES.config


@pytest.mark.parametrize("field", CONFIG)
async def test_a_configuration_field_is_honoured_and_changes_no_token(
    field: str, bytes_folder: Path, plain: list[int]
) -> None:
    config, look, expected = CONFIG[field]
    async with Engine.load("reference", model=str(bytes_folder), **config) as engine:
        assert await answer(engine) == plain
        assert look(engine, await engine.stats()) == expected


DECLARED_VALUES = [
    *({"dtype": value} for value in sorted(CAPABILITIES.dtypes)),
    *({"device": value} for value in sorted(CAPABILITIES.devices)),
    *({"determinism": value} for value in sorted(CAPABILITIES.determinism)),
    {"speculative": {"method": "ngram", "ngram_min": 1}},
]


@pytest.mark.parametrize("config", DECLARED_VALUES, ids=str)
async def test_a_declared_value_loads_and_changes_no_greedy_token(
    config: dict[str, Any], bytes_folder: Path, plain: list[int]
) -> None:
    async with Engine.load("reference", model=str(bytes_folder), **config) as engine:
        assert await answer(engine) == plain


async def test_int8_changes_logits_and_draft_models_do_not(bytes_folder: Path, plain: list[int]) -> None:
    async with Engine.load("reference", model=str(bytes_folder)) as engine:
        exact = await engine.score(PROMPT)
    async with Engine.load("reference", model=str(bytes_folder), quantization="int8") as engine:
        rounded = await engine.score(PROMPT)
    assert exact.total != rounded.total
    assert rounded.total == pytest.approx(exact.total, rel=0.05)
    speculative = {"method": "draft_model", "model": str(bytes_folder)}
    async with Engine.load("reference", model=str(bytes_folder), speculative=speculative) as engine:
        assert await answer(engine) == plain
        stats = (await engine.stats()).speculative
        assert stats is not None
        assert stats.accepted_tokens == stats.drafted_tokens


@pytest.mark.parametrize(
    ("config", "error", "field"),
    [
        ({"dtype": "bfloat16"}, UnsupportedParameter, "dtype"),
        ({"dtype": "float16"}, UnsupportedParameter, "dtype"),
        ({"device": "cuda"}, UnsupportedParameter, "device"),
        ({"devices": [0]}, UnsupportedParameter, "devices"),
        ({"execution": "graph"}, UnsupportedParameter, "execution"),
        ({"quantization": "fp8"}, UnsupportedParameter, "quantization"),
        ({"native": {"x": 1}}, UnsupportedParameter, "native"),
        ({"lora": {"adapters": {"a": "somewhere"}}}, UnsupportedParameter, "lora"),
        ({"seed": 3}, UnsupportedParameter, "seed"),
        ({"trust_remote_code": True}, UnsupportedParameter, "trust_remote_code"),
        ({"parallel": {"tensor": 2}}, UnsupportedParameter, "parallel.tensor"),
        ({"kv_cache": {"dtype": "fp8"}}, UnsupportedParameter, "kv_cache.dtype"),
        ({"kv_cache": {"gpu_memory_fraction": 0.5}}, UnsupportedParameter, "kv_cache.gpu_memory_fraction"),
        ({"max_model_len": 257}, InvalidConfig, "max_model_len"),
        ({"max_model_len": 64, "kv_cache": {"capacity_tokens": 63}}, InvalidConfig, "kv_cache.capacity_tokens"),
        ({"kv_cache": {"capacity_tokens": 10**12}}, OutOfMemory, "kv_cache.capacity_tokens"),
        ({"speculative": {"method": "eagle", "model": "x"}}, UnsupportedParameter, "speculative.method"),
        ({"speculative": {"method": "draft_model", "model": "storyteller-draft"}}, InvalidConfig, "speculative.model"),
    ],
    ids=str,
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    config: dict[str, Any], error: type[AnyEngineError], field: str, bytes_folder: Path
) -> None:
    with pytest.raises(error) as caught:
        await Engine.load("reference", model=str(bytes_folder), **config)
    assert (caught.value.field or "").startswith(field)
    assert caught.value.engine == "reference"


@pytest.mark.parametrize(
    "speculative",
    [
        {"method": "draft_model"},
        {"method": "ngram", "model": "storyteller-draft"},
        {"method": "ngram", "ngram_min": 4, "ngram_max": 2},
    ],
    ids=str,
)
async def test_a_speculation_that_cannot_be_meant_is_refused(speculative: dict[str, Any], bytes_folder: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"speculative|ngram_min"):
        await Engine.load("reference", model=str(bytes_folder), speculative=speculative)


async def test_an_unknown_architecture_is_refused_by_name(model_folder: Callable[..., Path]) -> None:
    folder = model_folder()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "architectures": ["MambaForCausalLM"], "model_type": "mamba"})
    )
    with pytest.raises(UnsupportedParameter, match="mamba") as caught:
        await Engine.load("reference", model=str(folder))
    assert caught.value.field == "model"


async def test_truncated_weights_are_an_unusable_model(model_folder: Callable[..., Path]) -> None:
    folder = model_folder()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelNotFound):
        await Engine.load("reference", model=str(folder))


async def test_a_small_cache_narrows_the_context_and_never_hangs(bytes_folder: Path) -> None:
    async with Engine.load("reference", model=str(bytes_folder), kv_cache={"capacity_tokens": 20}) as engine:
        assert len((await engine.generate([1], ignore_eos=True)).token_ids) == 19
        assert len((await engine.score([1] * 20)).entries) == 20
        with pytest.raises(AnyEngineError) as caught:
            await engine.score([1] * 21)
        assert caught.value.field == "prompt"


#: Each sampling field with a value under which the completion of one prompt differs from the neutral one.
SAMPLING: dict[str, Any] = {
    "temperature": 5.0,
    "top_p": 0.001,
    "top_k": 1,
    "min_p": 1.0,
    "repetition_penalty": 50.0,
    "presence_penalty": 2.0,
    "frequency_penalty": 2.0,
    "seed": 8,
    "logit_bias": {65: 100.0},
    "allowed_token_ids": [65],
    "bad_words": [chr(letter) for letter in range(33, 127)],
}


async def test_every_declared_sampling_field_has_an_effect(bytes_folder: Path) -> None:
    assert set(SAMPLING) == CAPABILITIES.sampling
    async with Engine.load("reference", model=str(bytes_folder)) as engine:
        few = {"allowed_token_ids": [65, 66, 67, 256]}
        for field, value in SAMPLING.items():
            base = {"seed": 7} if field in {"allowed_token_ids", "bad_words", "logit_bias"} else {"seed": 7, **few}
            neutral = await answer(engine, sampling=SamplingParams(**base), max_tokens=40)
            bent = await answer(engine, sampling=SamplingParams(**{**base, field: value}), max_tokens=40)
            assert bent != neutral, field


def test_every_declared_request_field_is_exercised_somewhere() -> None:
    """In test_engine.py and test_schedules.py; a new one has to be added there first."""
    assert CAPABILITIES.request == {"cache_salt", "ignore_eos", "min_tokens", "priority", "stop_token_ids"}
    assert CAPABILITIES.structured == {"choice", "grammar", "json_schema", "regex"}
    assert CAPABILITIES.quantization == {"int8"}
    assert CAPABILITIES.speculative == {"draft_model", "ngram"}
    assert not CAPABILITIES.sleep


async def test_what_is_not_declared_of_a_request_is_refused(bytes_folder: Path) -> None:
    async with Engine.load("reference", model=str(bytes_folder)) as engine:
        with pytest.raises(UnsupportedParameter) as caught:
            await engine.generate(PROMPT, lora="a")
        assert caught.value.field == "lora"
        with pytest.raises(UnsupportedParameter) as caught:
            await engine.generate(PROMPT, structured=Structured(choice=["a"]), ignore_eos=True)
        assert caught.value.field == "ignore_eos"
        with pytest.raises(UnsupportedCapability):
            await engine.sleep()


async def test_the_built_in_models_tell_a_story() -> None:
    speculative = {"method": "draft_model", "model": "storyteller-draft"}
    greedy = {"sampling": SamplingParams(temperature=0), "max_tokens": 40}
    async with Engine.load("reference") as engine:
        story = await engine.generate("Once upon a time", **greedy)  # type: ignore[arg-type]
    async with Engine.load("reference", speculative=speculative) as engine:
        same = await engine.generate("Once upon a time", **greedy)  # type: ignore[arg-type]
        stats = (await engine.stats()).speculative
    assert same.token_ids == story.token_ids
    assert stats is not None
    assert stats.accepted_tokens is not None
    assert stats.accepted_tokens > 0
