"""Bounds that keep one request from harming others."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from anyengine import InvalidRequest, Overloaded, UnsupportedParameter

from anyengine_conformance.at_once import begun
from anyengine_conformance.check import check, family, variant

if TYPE_CHECKING:
    from anyengine_conformance.context import Context

family("limits", "Limits")

#: One sequence runs, one more is handed over, two may wait.
NARROW = variant(
    "narrow-queue",
    needs=("config.scheduling.max_num_seqs",),
    scheduling={"max_num_seqs": 1, "max_queued_requests": 2},
)
_SDK = "the SDK refuses it before the backend sees the request; do not go round it"


def _anything(t: Context) -> Any:
    """``engine.generate``, for values that a type checker would refuse."""
    return t.engine.generate


@check("limits.n-is-bounded", must="An `n` above 1,024 is refused as InvalidRequest.", advice=_SDK)
async def n_is_bounded(t: Context) -> None:
    with t.refused(InvalidRequest, field="n"):
        await t.generate(n=1025, max_tokens=1)


@check(
    "limits.stop-strings-are-bounded",
    must="More than 64 stop strings, or one above 4,096 characters, are refused.",
    advice=_SDK,
)
async def stop_strings_are_bounded(t: Context) -> None:
    for stop in ([f"stop {number}" for number in range(65)], ["x" * 4097]):
        with t.refused(InvalidRequest, field="stop"):
            await t.generate(stop=stop, max_tokens=1)


@check("limits.logprobs-are-bounded", must="More than 1,000 alternatives a token are refused.", advice=_SDK)
async def logprobs_are_bounded(t: Context) -> None:
    for name in ("logprobs", "prompt_logprobs"):
        with t.refused(InvalidRequest, field=name):
            await t.generate(**{name: 1001, "max_tokens": 1})


@check(
    "limits.declared-logprobs-hold",
    must="More alternatives than the engine declares in `max_logprobs` are refused, never fewer given.",
    advice="declare max_logprobs truly; the SDK refuses what is above it",
    needs=("logprobs",),
    tier="extension",
)
async def declared_logprobs_hold(t: Context) -> None:
    most = t.capabilities.max_logprobs
    if most >= 1000:
        raise t.skip("the engine gives as many as any request may ask for")
    with t.refused(UnsupportedParameter, field="logprobs"):
        await t.generate(logprobs=most + 1, max_tokens=1)


@check(
    "limits.constraints-are-bounded",
    must="A schema, regex or grammar above 262,144 characters is refused.",
    advice=_SDK,
)
async def constraints_are_bounded(t: Context) -> None:
    long = "x" * 262_145
    wrong: tuple[dict[str, Any], ...] = (
        {"regex": long},
        {"grammar": long},
        {"json_schema": {"const": long}},
        {"choice": ["a"] * 10_001},
    )
    for fields in wrong:
        t.asked(f"engine.generate(…, structured={next(iter(fields))} of {len(long)} characters)")
        with t.refused(InvalidRequest):
            await _anything(t)(t.prompt, max_tokens=1, structured=fields)


@check("limits.schemas-are-shallow", must="A schema nested deeper than 64 levels is refused.", advice=_SDK)
async def schemas_are_shallow(t: Context) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(70):
        schema = {"items": schema}
    t.asked("engine.generate(…, structured=a schema of 70 levels)")
    with t.refused(InvalidRequest):
        await _anything(t)(t.prompt, max_tokens=1, structured={"json_schema": schema})


@check("limits.huge-numbers-are-refused", must="Numbers beyond 64 bits are refused, not passed on.", advice=_SDK)
async def huge_numbers_are_refused(t: Context) -> None:
    for name in ("max_tokens", "min_tokens", "priority"):
        with t.refused(InvalidRequest, field=name):
            await t.generate(**{"max_tokens": 1, name: 2**64})


async def _fill(t: Context, stack: AsyncExitStack) -> None:
    """Take every place: those that are handed over, and those that wait."""
    config = t.engine.config.scheduling
    places = 2 * (config.max_num_seqs or 1) + config.max_queued_requests
    long = {"max_tokens": t.engine.info.max_model_len - 100, **t.unending}
    streams = [await stack.enter_async_context(t.open(**long)) for _ in range(places)]
    await stack.enter_async_context(begun(map(_read, streams)))
    for _ in range(200):
        await asyncio.sleep(0.01)
        if ((await t.engine.stats()).queued or 0) >= config.max_queued_requests:
            return


async def _read(stream: Any) -> None:
    async for _ in stream:
        await asyncio.sleep(0.01)


@check(
    "limits.full-queue-refuses",
    must="A call beyond `max_queued_requests` is refused with Overloaded, whose `retry_after` is above 0.",
    advice="leave admission to the SDK, and report the true max_num_seqs in BackendInfo",
    variant=NARROW,
    needs=("request.ignore_eos",),
)
async def full_queue_refuses(t: Context) -> None:
    async with AsyncExitStack() as stack:
        await _fill(t, stack)
        try:
            await t.generate(max_tokens=1)
        except Overloaded as error:
            t.expect(error.retry_after > 0, expected="retry_after above 0", seen=error.retry_after)
        else:
            raise t.fail(expected="Overloaded, as every place is taken", seen="the call was served")


@check(
    "limits.refused-does-not-stay",
    must="After the queue was full the engine serves again.",
    advice="release a request's place when it ends, however it ends",
    variant=NARROW,
    needs=("request.ignore_eos",),
)
async def refused_does_not_stay(t: Context) -> None:
    async with AsyncExitStack() as stack:
        await _fill(t, stack)
    answer = await t.generate(max_tokens=1)
    t.equal(len(answer.token_ids), 1, "number of tokens")


@check(
    "limits.too-many-choices-for-the-queue",
    must="An `n` for which there will never be room is refused as UnsupportedParameter.",
    advice="leave admission to the SDK",
    variant=NARROW,
)
async def too_many_choices_for_the_queue(t: Context) -> None:
    with t.refused(UnsupportedParameter, field="n"):
        await t.generate(n=100, max_tokens=1)
