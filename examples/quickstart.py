"""Load the built-in model, ask it for a few tokens, and print what came back."""

import asyncio

from anyengine import Engine, SamplingParams


async def main() -> None:
    """Generate once."""
    async with Engine.load("reference") as engine:
        answer = await engine.generate("Once upon a time", sampling=SamplingParams(temperature=0), max_tokens=32)
        print(answer.text)
        print(answer.finish_reason, answer.usage)


asyncio.run(main())
