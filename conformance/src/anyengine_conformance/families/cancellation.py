"""Cancellation: who leaves frees what the request held, and harms no other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from anyengine import RequestTimeout

from anyengine_conformance.at_once import begun, together
from anyengine_conformance.check import check, family
from anyengine_conformance.context import PROMPTS

if TYPE_CHECKING:
    from anyengine import EngineStats

    from anyengine_conformance.context import Context

family("cancellation", "Cancellation")

_ABORT = "make abort(id) final: when it returns, the request computes nothing more and its cache is free"


def _long(t: Context) -> dict[str, Any]:
    """Options for more than anyone will wait for."""
    return {"max_tokens": t.engine.info.max_model_len - 100, **t.unending}


def _free(stats: EngineStats) -> bool:
    return not stats.running and not stats.waiting and not stats.queued and not stats.kv_cache.usage


async def _expect_free(t: Context, *, at_once: bool = False) -> None:
    """Nothing of what was left is in the engine any more; `None` proves nothing, and needs say what is reported."""
    stats = await (t.stats() if at_once else t.settled(_free))
    held = {"running": stats.running, "waiting": stats.waiting, "queued": stats.queued, "usage": stats.kv_cache.usage}
    t.expect(_free(stats), expected="nothing running, waiting, queued or in the cache", seen=held, advice=_ABORT)


async def _begun(t: Context, task: asyncio.Future[Any]) -> None:
    """Wait until the engine works on it."""
    stats = await t.settled(lambda stats: bool(stats.running) or task.done())
    if task.done():
        raise t.skip("the model ended its text before anyone could leave")
    t.expect(bool(stats.running), expected="a running request", seen=stats.running)


@check(
    "cancellation.leaving-a-stream",
    must="Leaving a stream's context ends its request: the engine computes and holds nothing of it.",
    advice=_ABORT,
    needs=("stats.running",),
)
async def leaving_a_stream(t: Context) -> None:
    async with t.open(**_long(t)) as stream:
        await anext(aiter(stream))
    await _expect_free(t)


@check(
    "cancellation.left-computes-no-more",
    must="After a stream was left the engine generates no more tokens of it.",
    advice=_ABORT,
    needs=("stats.generated_tokens",),
)
async def left_computes_no_more(t: Context) -> None:
    async with t.open(**_long(t)) as stream:
        await anext(aiter(stream))
    await asyncio.sleep(0.1)  # a step or two may be under way
    before = (await t.stats()).generated_tokens
    await asyncio.sleep(0.2)
    t.equal((await t.stats()).generated_tokens, before, "generated_tokens, 0.2 s later", advice=_ABORT)


@check(
    "cancellation.all-choices-of-a-stream",
    must="Leaving a stream of `n` completions ends all of them.",
    advice="abort each id that it is asked for; the SDK aborts every one of the n",
    needs=("stats.running",),
)
async def all_choices_of_a_stream(t: Context) -> None:
    async with t.open(n=4, **_long(t)) as stream:
        await anext(aiter(stream))
    await _expect_free(t)


@check(
    "cancellation.unread-stream",
    must="A stream that is entered and left without a read leaves nothing behind.",
    advice="do not start a request before its stream is read",
    needs=("stats.running",),
)
async def unread_stream(t: Context) -> None:
    for _ in range(3):
        async with t.open(**_long(t)):
            pass
    await _expect_free(t)


@check(
    "cancellation.cancelled-generate",
    must="Cancelling the task that waits for `generate` ends the request in the engine.",
    advice=_ABORT,
    needs=("stats.running",),
)
async def cancelled_generate(t: Context) -> None:
    async with begun([t.generate(**_long(t))]) as (task,):
        await _begun(t, task)
        task.cancel()
        await asyncio.wait([task])
    t.expect(task.cancelled(), expected="CancelledError in the cancelled task", seen=task)
    await _expect_free(t)


@check(
    "cancellation.timed-out-generate",
    must="A request that runs out of time is ended in the engine.",
    advice=_ABORT,
    needs=("stats.running",),
)
async def timed_out_generate(t: Context) -> None:
    try:
        await t.generate(timeout=0.05, **_long(t))
    except RequestTimeout:
        await _expect_free(t)
    else:
        raise t.skip("the engine fills its whole context in 0.05 s")


@check(
    "cancellation.cancelled-list",
    must="Cancelling a list of prompts ends every one of them.",
    advice=_ABORT,
    needs=("stats.running",),
)
async def cancelled_list(t: Context) -> None:
    async with begun([t.generate(list(PROMPTS), **_long(t))]) as (task,):
        await _begun(t, task)
        task.cancel()
        await asyncio.wait([task])
    await _expect_free(t)


@check(
    "cancellation.others-go-on",
    must="Ending one request leaves those beside it to their own end.",
    advice="abort the id that is asked for, and no other",
)
async def others_go_on(t: Context) -> None:
    async with begun(t.generate(prompt, max_tokens=40, **t.unending) for prompt in PROMPTS[1:]) as others:
        for _ in range(3):
            async with t.open(**_long(t)) as stream:
                await anext(aiter(stream))
        answers = await asyncio.gather(*others)
    for answer in answers:
        good = answer.finish_reason in ("stop", "length") and bool(answer.token_ids)
        t.expect(good, expected="an end by itself, with tokens", seen=(answer.finish_reason, len(answer.token_ids)))


@check(
    "cancellation.a-storm",
    must="Many requests that begin and are left at once leave nothing behind, and the engine serves on.",
    advice=_ABORT,
    needs=("stats.running",),
)
async def a_storm(t: Context) -> None:
    async def leave(number: int) -> None:
        async with t.open(PROMPTS[number % len(PROMPTS)], **_long(t)) as stream:
            if number % 3:
                await anext(aiter(stream))

    await together(map(leave, range(24)))
    await _expect_free(t)
    answer = await t.generate(max_tokens=2)
    t.expect(bool(answer.token_ids), expected="tokens", seen=answer.token_ids)


@check(
    "cancellation.error-in-the-body",
    must="An exception in the body of a stream ends the request, and comes out unchanged.",
    advice="leave the SDK's Stream as it is",
    needs=("stats.running",),
)
async def error_in_the_body(t: Context) -> None:
    caught: BaseException | None = None
    try:
        async with t.open(**_long(t)) as stream:
            await anext(aiter(stream))
            raise _OfTheCaller
    except Exception as error:  # noqa: BLE001 whatever comes out is what is judged
        caught = error
    t.expect(isinstance(caught, _OfTheCaller), expected="the caller's own exception", seen=caught)
    await _expect_free(t)


class _OfTheCaller(Exception):
    pass
