"""Print two stories as they are written, a word at a time; leave one of them early."""

import asyncio

from anyengine import Engine, SamplingParams


async def main() -> None:
    """Stream to the end, and stream until enough was read."""
    async with Engine.load("reference") as engine:
        async with engine.stream("Once upon a time", sampling=SamplingParams(seed=1), max_tokens=40) as stream:
            async for chunk in stream:
                print(chunk.text, end="", flush=True)
                if chunk.finish is not None:
                    print(f"\n[{chunk.finish.reason}, {chunk.finish.usage.completion_tokens} tokens]")

        # Leaving the context ends the request in the engine: nothing runs on unread.
        text = ""
        async with engine.stream("The little dog", sampling=SamplingParams(seed=2)) as stream:
            async for chunk in stream:
                text += chunk.text
                if "." in text:
                    break
        print(text)
        print("still running:", (await engine.stats()).running)


asyncio.run(main())
