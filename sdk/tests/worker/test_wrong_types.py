"""What a plugin gives that its reader would not take fails its own request, in the same words as without a worker."""

import asyncio

import pytest
from anyengine import EngineDied, PluginError

GIVEN = {
    101: r"mistyped gave 71\.0 as token_ids\[0\]: expected int, got float",
    102: r"mistyped gave True as token_ids\[0\]: expected int, got bool",
    103: r"mistyped gave 'G(H' as token_ids: expected array, got str|' as token_ids\[0\]: expected int, got str)",
    104: r"mistyped gave '4' as cached_tokens: expected int \| null, got str",
    105: r"token_ids\.0: the engine's plugin gave what cannot be sent",
    106: "mistyped cancelled its own",
    109: "raised Speechless, which its plugin does not map",
}


async def failing(engine, max_tokens, kind):
    if kind == "generate":
        return await engine.generate("hi", max_tokens=max_tokens)
    async with engine.stream("hi", max_tokens=max_tokens) as stream:
        return [chunk async for chunk in stream]


@pytest.mark.parametrize("kind", ["generate", "stream"])
async def test_each_harms_its_own_request_only(worker, kind):
    async with worker("mistyped") as engine, engine.stream("hi", max_tokens=4000) as other:
        others = aiter(other)
        await anext(others)
        for max_tokens, message in GIVEN.items():
            with pytest.raises(PluginError, match=message):
                await failing(engine, max_tokens, kind)
            await anext(others)
        assert (await engine.generate("hi", max_tokens=3)).token_ids == [71, 68, 75]


@pytest.mark.parametrize("kind", ["generate", "stream"])
async def test_an_error_arrives_whatever_facts_it_has(worker, kind):
    async with worker("mistyped") as engine:
        for max_tokens in (107, 108):
            with pytest.raises(EngineDied) as caught:
                await failing(engine, max_tokens, kind)
            assert caught.value.message == "gone"
            assert not caught.value.log_tail
        assert (await engine.generate("hi", max_tokens=3)).token_ids == [71, 68, 75]


async def test_other_answers_of_the_wrong_types_are_plugin_errors(worker):
    async with worker("mistyped") as engine:
        with pytest.raises(PluginError, match="as a key of native: expected str, got int"):
            await engine.stats()
        with pytest.raises(PluginError, match=r"gave 'entry' as entries\[1\]: expected object"):
            await engine.score([1, 2, 3])
        await asyncio.wait_for(engine.generate("hi", max_tokens=3), 60)
