"""What a type checker sees of the public API; checked by pyright, never run."""

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

from anyengine import AnyEngineError, Chunk, Completion, Engine, EngineStats, SamplingParams, Score, Stream
from anyengine.sync import Engine as SyncEngine
from anyengine.sync import Stream as SyncStream


async def asynchronous() -> None:
    async with Engine.load("reference", "model", dtype="float32") as engine:
        assert_type(engine, Engine)
        sampling = SamplingParams(temperature=0)
        assert_type(await engine.generate("text", sampling=sampling, max_tokens=16), Completion)
        assert_type(await engine.generate([1, 2, 3]), Completion)
        assert_type(await engine.generate([{"role": "user", "content": "hi"}]), Completion)
        assert_type(await engine.generate(messages=[{"role": "user", "content": "hi"}], stop=["x"]), Completion)
        assert_type(await engine.generate(["one", "two"]), list[Completion])
        assert_type(await engine.generate([[1, 2], [3]]), list[Completion])
        assert_type(await engine.generate(["one", [1, 2], [{"role": "user", "content": "hi"}]]), list[Completion])
        many = await engine.generate(["one", "two"], return_exceptions=True)
        assert_type(many, list[Completion | AnyEngineError])
        async with engine.stream("text", n=2) as stream:
            assert_type(stream, Stream)
            assert_type(stream.__aiter__(), AsyncIterator[Chunk])
        assert_type(await engine.score([1, 2]), Score)
        assert_type(await engine.tokenize("text"), list[int])
        assert_type(await engine.stats(), EngineStats)
    loaded = await Engine.load("reference")
    assert_type(loaded, Engine)
    await engine.generate("text", temperature=1)  # pyright: ignore[reportCallIssue, reportArgumentType] no such option


def synchronous() -> None:
    with SyncEngine.load("reference") as engine:
        assert_type(engine.generate("text"), Completion)
        assert_type(engine.generate(["one", "two"]), list[Completion])
        with engine.stream("text") as stream:
            assert_type(stream, SyncStream)
            assert_type(iter(stream), Iterator[Chunk])
        assert_type(engine.score("some text"), Score)
