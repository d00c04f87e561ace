"""Answers that fit a JSON schema, a choice, a regular expression."""

import asyncio
import json

from anyengine import Engine, SamplingParams, Structured

SCHEMA = {
    "type": "object",
    "properties": {"animal": {"enum": ["cat", "dog", "bird"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 8}},
    "required": ["animal", "legs"],
    "additionalProperties": False,
}


async def main() -> None:
    """Ask for the three kinds; a small model has no good answers, but all of them fit."""
    async with Engine.load("reference") as engine:
        sampling = SamplingParams(seed=2)
        answer = await engine.generate(
            "An animal:", sampling=sampling, max_tokens=200, structured=Structured(json_schema=SCHEMA)
        )
        print(json.loads(answer.text))
        answer = await engine.generate(
            "Is the sun warm?", sampling=sampling, max_tokens=10, structured=Structured(choice=("yes", "no"))
        )
        print(answer.text)
        answer = await engine.generate(
            "A date:", sampling=sampling, max_tokens=20, structured=Structured(regex=r"20\d\d-[01]\d-[0-3]\d")
        )
        print(answer.text)


asyncio.run(main())
