"""The negative side: how to ask for each capability, and how an engine without it must refuse."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyengine import (
    AnyEngineError,
    SamplingParams,
    Structured,
    UnsupportedCapability,
    UnsupportedParameter,
)

from anyengine_conformance.needs import Need, parse
from anyengine_conformance.subject import laid_over

if TYPE_CHECKING:
    from anyengine_conformance.context import Context

__all__ = ["ask", "config_of", "negative", "refuse_together", "request_of"]

#: A value that asks for something, for each field that an engine may lack.
SAMPLING: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 1,
    "min_p": 0.5,
    "repetition_penalty": 1.5,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "seed": 1,
    "logit_bias": {1: 1.0},
    "allowed_token_ids": [1],
    "bad_words": ["bad"],
}
REQUEST: dict[str, Any] = {
    "min_tokens": 1,
    "stop_token_ids": [1],
    "ignore_eos": True,
    "priority": 1,
    "cache_salt": "salt",
    "lora": "adapter",
}
STRUCTURED: dict[str, Any] = {
    "json_schema": {"type": "boolean"},
    "regex": "[a-z]+",
    "grammar": 'start: "a"',
    "choice": ["yes", "no"],
}
CONFIG: dict[str, Any] = {
    "max_model_len": 64,
    "trust_remote_code": True,
    "kv_cache.dtype": "fp8",
    "kv_cache.block_size": 32,
    "kv_cache.prefix_caching": False,
    "kv_cache.gpu_memory_fraction": 0.5,
    "kv_cache.capacity_tokens": 4096,
    "parallel.tensor": 2,
    "parallel.pipeline": 2,
    "parallel.data": 2,
    "parallel.expert": True,
    "scheduling.max_num_seqs": 4,
    "scheduling.max_num_batched_tokens": 256,
    "scheduling.chunked_prefill": False,
    "execution": "eager",
    "seed": 1,
    "lora": {"max_rank": 8},
    "task": "embed",
}
#: Kinds whose name is the value of a configuration field.
_VALUED = {"dtype": "dtype", "device": "device", "quantization": "quantization", "determinism": "determinism"}


def request_of(need: Need) -> dict[str, Any]:
    """Options of ``generate`` that ask for it; empty if it is nothing that a request asks for."""
    if need.kind == "sampling":
        return {"sampling": {need.name: SAMPLING[need.name]}}
    if need.kind == "request":
        return {need.name: REQUEST[need.name]}
    if need.kind == "structured":
        return {"structured": Structured(**{need.name: STRUCTURED[need.name]})}
    if need.kind in ("logprobs", "prompt_logprobs"):
        return {need.kind: 0, "sampling": {"temperature": 0.5} if need.name else {}}
    return {}


def config_of(need: Need) -> dict[str, Any]:
    """Fields of EngineConfig that ask for it; empty if it is nothing that a load asks for."""
    if need.kind in _VALUED:
        return {_VALUED[need.kind]: need.name}
    if need.kind == "speculative":
        draft = {"model": "draft"} if need.name != "ngram" else {}
        return {"speculative": {"method": need.name, **draft}}
    if need.kind == "native":
        return {"native": {"anyengine_conformance": 1}}
    if need.kind != "config":
        return {}
    value = CONFIG[need.name]
    for part in reversed(need.name.split(".")):
        value = {part: value}
    return value


async def ask(context: Context, needs: tuple[str, ...]) -> None:
    """Make a request that asks for all of them at once."""
    options: dict[str, Any] = {"max_tokens": 4}
    for need in needs:
        options = laid_over(options, request_of(parse(need)))
    options["sampling"] = SamplingParams(**options.get("sampling", {}))
    await context.generate(**options)


def _error_of(need: Need) -> tuple[type[AnyEngineError], str | None]:
    """What an engine without it must raise, and with which field."""
    fields = {
        "sampling": f"sampling.{need.name}",
        "request": need.name,
        "token_prompts": "prompt",
        "speculative": "speculative.method",
        "config": need.name,
        "native": "native",
        **_VALUED,
    }
    if need.kind in fields:
        return UnsupportedParameter, fields[need.kind]
    return UnsupportedCapability, {"structured": "structured"}.get(need.kind, need.kind if request_of(need) else None)


_ADVICE = (
    "what is not declared must be refused before anything is computed, never tried and never ignored. Either declare "
    "it in Capabilities, and honour it, or let the SDK refuse it: do not override what it validates"
)


async def negative(context: Context, expression: str) -> None:
    """The engine must refuse what it does not declare, with the right error.

    Raises:
        Violation: it does not.
    """
    need = parse(expression)
    kind, field = _error_of(need)
    if need.name == "raw":  # below that level: the parameter goes, this combination does not
        level = getattr(context.capabilities, need.kind)
        kind = UnsupportedCapability if level == "none" else UnsupportedParameter
    if need.kind == "quantize" and context.capabilities.quantize:
        kind, field = UnsupportedParameter, "scheme"  # it can quantise, by other schemes
    with context.refused(kind, field=field, advice=_ADVICE):
        if need.at_load:
            async with context.load(**config_of(need)):
                return
        await _call(context, need, expression)


async def _call(context: Context, need: Need, expression: str) -> None:
    if need.kind == "quantize":
        await _quantize(context, need.name)
        return
    engine = context.engine
    if request_of(need):
        await ask(context, (expression,))
        return
    context.asked(f"engine.{need.kind}(…)")
    if need.kind == "token_prompts":
        await engine.generate([1, 2, 3], max_tokens=1)
    elif need.kind == "score":
        await engine.score(context.prompt)
    elif need.kind == "embed":
        await engine.embed(context.prompt)
    elif need.kind == "sleep":
        await engine.sleep()
    elif need.kind == "dynamic_lora":
        await engine.load_lora("adapter", "/nowhere")
    elif need.kind == "reset_prefix_cache":
        await engine.reset_prefix_cache()


async def _quantize(context: Context, scheme: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        await context.quantize(scheme, Path(folder) / "made")


async def refuse_together(context: Context, pair: tuple[str, str], reason: str) -> None:
    """A declared conflict is a refusal too.

    Raises:
        Violation: the engine takes both.
    """
    needs = tuple(map(parse, pair))
    advice = f"the plugin declares that these two exclude one another ({reason}): refuse them, or drop the conflict"
    config: dict[str, Any] = {}
    for need in needs:
        config = laid_over(config, config_of(need))
    with context.refused(UnsupportedParameter, advice=advice):
        if all(need.at_load for need in needs):
            async with context.load(**config):
                return
        # What of it belongs to the load is in the check's variant already.
        await ask(context, tuple(expression for expression in pair if not parse(expression).at_load))
