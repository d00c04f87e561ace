"""Lifecycle: loading, what was loaded, closing."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

from anyengine import (
    AnyEngineError,
    EngineClosed,
    EngineConfig,
    EngineStartupError,
    InvalidConfig,
    ModelNotFound,
    SamplingParams,
    UnsupportedParameter,
)
from anyengine.backend.weights import reads_safetensors
from anyengine.config import DType

from anyengine_conformance.at_once import begun, together
from anyengine_conformance.check import OWN, check, family
from anyengine_conformance.context import PROMPTS
from anyengine_conformance.refusals import REQUEST, STRUCTURED
from anyengine_conformance.weights import copy_cut_short

if TYPE_CHECKING:
    from anyengine_conformance.context import Context

family("lifecycle", "Lifecycle")

_CLOSE = "close ends every open request with reason abort, releases all, and may be called again"


@check(
    "lifecycle.info-is-plausible",
    must="A loaded engine says how long its context and how large its vocabulary is, and both hold a prompt.",
    advice="fill BackendInfo from what was loaded, not from what was asked for",
)
async def info_is_plausible(t: Context) -> None:
    info, ids = t.engine.info, await t.engine.tokenize(t.prompt)
    t.expect(info.max_model_len > len(ids), expected=f"a context above {len(ids)} tokens", seen=info.max_model_len)
    t.expect(info.vocab_size > max(ids), expected=f"a vocabulary above {max(ids)}", seen=info.vocab_size)
    good = info.max_num_seqs is None or info.max_num_seqs >= 1
    t.expect(good, expected="max_num_seqs None or at least 1", seen=info.max_num_seqs)


@check(
    "lifecycle.capabilities-are-known",
    must="Every declared name is one that the API has.",
    advice="see docs/semantics.md, Capabilities: a name with a mistake in it declares nothing",
)
async def capabilities_are_known(t: Context) -> None:
    declared, known = t.capabilities, _config_names(EngineConfig, "")
    unknown = {
        "sampling": declared.sampling - set(SamplingParams.model_fields),
        "request": declared.request - set(REQUEST),
        "structured": declared.structured - set(STRUCTURED),
        "config": declared.config - known,
        "dtypes": declared.dtypes - set(get_args(DType)),
        "determinism": declared.determinism - {"run", "batch-invariant"},
    }
    wrong = {name: sorted(names) for name, names in unknown.items() if names}
    t.expect(not wrong, expected="known names only", seen=wrong)
    sides = [side for conflict in declared.conflicts for side in (conflict.first, conflict.second)]
    bad = [side for side in sides if side.partition(".")[0] not in ("config", "request", "sampling")]
    t.expect(not bad, expected="conflicts between config.…, request.… and sampling.…", seen=bad)


def _config_names(model: Any, prefix: str) -> set[str]:
    found: set[str] = set()
    for name, info in model.model_fields.items():
        found.add(prefix + name)
        for kind in (info.annotation, *get_args(info.annotation)):
            if hasattr(kind, "model_fields"):
                found |= _config_names(kind, f"{prefix}{name}.")
    return found


@check(
    "lifecycle.logprobs-are-declared-whole",
    must="Who declares log-probabilities declares how many alternatives, and the reverse.",
    advice="set max_logprobs beside logprobs or prompt_logprobs",
)
async def logprobs_are_declared_whole(t: Context) -> None:
    has = t.capabilities.logprobs != "none" or t.capabilities.prompt_logprobs != "none"
    t.equal(t.capabilities.max_logprobs > 0, has, "whether max_logprobs is above 0")


@check(
    "lifecycle.loaded-within-described",
    must="A load narrows what the plugin declares; it adds nothing.",
    advice="declare in describe() all that the engine can do in general, and narrow it in BackendInfo",
)
async def loaded_within_described(t: Context) -> None:
    if t.described is None:
        raise t.skip("the plugin is not installed in this interpreter, so what it declares is not known")
    more: dict[str, object] = {}
    for name in ("config", "sampling", "request", "structured", "dtypes", "devices", "quantization", "speculative"):
        added = getattr(t.capabilities, name) - getattr(t.described, name)
        more |= {name: sorted(added)} if added else {}
    for name in ("score", "sleep", "native", "token_prompts", "dynamic_lora", "reset_prefix_cache"):
        more |= {name: True} if getattr(t.capabilities, name) and not getattr(t.described, name) else {}
    t.expect(not more, expected="nothing that describe() does not declare", seen=more)


@check(
    "lifecycle.healthy-after-load",
    must="`health` returns on a loaded engine.",
    advice="raise only where the engine is gone or hung",
)
async def healthy_after_load(t: Context) -> None:
    t.asked("engine.health()")
    await t.engine.health()


@check(
    "lifecycle.serves-many-at-once",
    must="Any number of calls may run at the same time, and each gets its own answer.",
    advice="keep what belongs to a request under its id; never in the backend itself",
)
async def serves_many_at_once(t: Context) -> None:
    answers = await together(t.generate(PROMPTS[number % 4], max_tokens=4) for number in range(32))
    for number, answer in enumerate(answers):
        t.equal(answer.prompt_token_ids, await t.engine.tokenize(PROMPTS[number % 4]), f"prompt of answer {number}")
        t.expect(1 <= len(answer.token_ids) <= 4, expected="1 to 4 tokens", seen=answer.token_ids)


@check(
    "lifecycle.idle-after-load",
    must="An engine that nobody asks runs nothing.",
    advice="count only requests of callers in running and waiting; warm up before load returns",
    needs=("stats.running",),
)
async def idle_after_load(t: Context) -> None:
    stats = await t.settled(lambda stats: not stats.running and not stats.waiting)
    t.equal((stats.running, stats.waiting or 0, stats.queued or 0), (0, 0, 0), "(running, waiting, queued)")


@dataclass(slots=True)
class _Closing:
    """What happened round a close."""

    stream: object = None
    waiting: object = None
    second: object = None
    after: dict[str, object] = field(default_factory=dict[str, object])
    again: object = None


async def _outcome(work: Any) -> object:
    try:
        return await work
    except AnyEngineError as error:
        return error


async def _close(t: Context) -> _Closing:
    """One load for all that is about closing: it costs a minute on a large engine."""
    seen = _Closing()

    reading = asyncio.Event()

    async def read(stream: Any) -> object:
        chunks: list[Any] = []
        try:
            async for chunk in stream:
                chunks.append(chunk)
                reading.set()
        finally:
            reading.set()
        return chunks[-1].finish

    async with t.load() as engine:
        options: dict[str, Any] = {"ignore_eos": True} if "ignore_eos" in engine.capabilities.request else {}
        t.asked("engine.stream(…), engine.generate(…), and engine.close() while they run")
        async with engine.stream(t.prompt, max_tokens=engine.info.max_model_len - 100, **options) as stream:
            room = engine.info.max_model_len - 100
            calls = [_outcome(read(stream)), _outcome(engine.generate(PROMPTS[1], max_tokens=room, **options))]
            async with begun(calls) as (reader, waiter):
                await reading.wait()
                await asyncio.sleep(0.05)  # and the other one has been handed over
                await engine.close()
                seen.stream, seen.waiting = await reader, await waiter
        t.asked("engine.close() again")
        seen.second = await _outcome(engine.close())
        t.asked("engine.generate(…), stream, stats, score, health, tokenize after the close")
        for name in ("stats", "health"):
            seen.after[name] = await _outcome(getattr(engine, name)())
        seen.after["generate"] = await _outcome(engine.generate(t.prompt, max_tokens=1))
        seen.after["score"] = await _outcome(engine.score(t.prompt))
        seen.after["stream"] = await _outcome(engine.stream(t.prompt, max_tokens=1).__aenter__())
    async with t.load() as engine:
        t.asked("engine.generate(…) in another load")
        seen.again = await _outcome(engine.generate(t.prompt, max_tokens=2))
    return seen


@check(
    "lifecycle.close-ends-streams",
    must="Closing the engine ends open streams with reason `abort` (or by their own end, if that was there).",
    advice=_CLOSE,
    variant=OWN,
    deadline=600,
)
async def close_ends_streams(t: Context) -> None:
    seen = (await t.once("lifecycle.close", lambda: _close(t))).stream
    reason = getattr(seen, "reason", None)
    t.expect(reason in ("abort", "length", "stop"), expected="a terminal chunk, with reason abort", seen=seen)


@check(
    "lifecycle.close-ends-calls",
    must="Closing the engine ends waiting calls: with reason `abort`, or EngineClosed for what had not begun.",
    advice=_CLOSE,
    variant=OWN,
    deadline=600,
)
async def close_ends_calls(t: Context) -> None:
    seen = (await t.once("lifecycle.close", lambda: _close(t))).waiting
    good = isinstance(seen, EngineClosed) or getattr(seen, "finish_reason", None) in ("abort", "length", "stop")
    t.expect(good, expected="a completion with reason abort, or EngineClosed", seen=seen)


@check("lifecycle.close-is-idempotent", must="Closing twice is fine.", advice=_CLOSE, variant=OWN, deadline=600)
async def close_is_idempotent(t: Context) -> None:
    t.equal((await t.once("lifecycle.close", lambda: _close(t))).second, None, "outcome of the second close")


@check(
    "lifecycle.closed-refuses",
    must="After close every call raises EngineClosed.",
    advice=_CLOSE,
    variant=OWN,
    deadline=600,
)
async def closed_refuses(t: Context) -> None:
    after = (await t.once("lifecycle.close", lambda: _close(t))).after
    for name, seen in after.items():
        t.expect(isinstance(seen, EngineClosed), expected=f"EngineClosed from {name}", seen=seen)


@check(
    "lifecycle.loads-again",
    must="After a close the same model loads again and generates: nothing of the first load is in the way.",
    advice="release devices, threads, processes and ports in close",
    variant=OWN,
    deadline=600,
)
async def loads_again(t: Context) -> None:
    again = (await t.once("lifecycle.close", lambda: _close(t))).again
    t.expect(bool(getattr(again, "token_ids", None)), expected="a completion with tokens", seen=again)


@check(
    "lifecycle.missing-model",
    must="A model that is not there is refused as ModelNotFound.",
    advice="leave resolving to the SDK, which does it before load",
    variant=OWN,
    deadline=120,
)
async def missing_model(t: Context) -> None:
    with t.refused(ModelNotFound):
        async with t.load(model="/nowhere/anyengine-conformance/no-such-model"):
            pass


@check(
    "lifecycle.broken-model",
    must="A checkpoint whose weights are cut short is refused with an error of the API, and nothing hangs.",
    advice="map what the loader raises to ModelNotFound, and release what was taken",
    variant=OWN,
    deadline=300,
)
async def broken_model(t: Context) -> None:
    with TemporaryDirectory() as place:
        folder = Path(place) / "broken"
        if reads_safetensors(t.weights):
            _write_broken(folder)
        elif not copy_cut_short(await t.source(), folder, t.weights):
            raise t.skip(f"the subject's folder has no {' or '.join(t.weights)} to cut short")
        try:
            async with t.load(model=str(folder)):
                pass
        except (ModelNotFound, EngineStartupError, UnsupportedParameter, InvalidConfig):
            return
        raise t.fail(expected="ModelNotFound", seen="it was loaded")


def _write_broken(folder: Path) -> None:
    """Of no model at all: the SDK looks safetensors over, and nothing else has to be there."""
    folder.mkdir()
    shape = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8}
    (folder / "config.json").write_text(json.dumps(shape))
    (folder / "tokenizer.json").write_text("{")
    (folder / "model.safetensors").write_bytes(b"\x10")


@check(
    "lifecycle.unknown-config-field",
    must="A configuration field that does not exist is refused by its name.",
    advice="leave EngineConfig as it is",
    variant=OWN,
)
async def unknown_config_field(t: Context) -> None:
    with t.refused(InvalidConfig, field="max_model_length"):
        async with t.load(max_model_length=128):
            pass
