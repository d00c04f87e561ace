"""Two engines that cannot share an environment, in one program: vLLM and the reference engine side by side.

    anyengine env create vllm --variant cpu      # or --variant cuda
    python examples/two_engines.py MODEL

Neither vLLM nor torch is installed where this program runs. Without a MODEL both load the reference engine, each in a
process of its own.
"""

from __future__ import annotations

import asyncio
import sys

from anyengine import Engine, SamplingParams

GREEDY = SamplingParams(temperature=0)
PROMPT = "Once upon a time"


async def main(model: str | None) -> None:
    """Let both go on with one prompt, and show where they part."""
    first = Engine.load("vllm", model, dtype="float32") if model else Engine.load("reference", isolation="process")
    async with first as one, Engine.load("reference", model, isolation="process") as other:
        answers = await asyncio.gather(
            *(engine.generate(PROMPT, sampling=GREEDY, max_tokens=24) for engine in (one, other))
        )
        for engine, answer in zip((one, other), answers, strict=True):
            print(f"{engine.name:10} {answer.text!r}")
        ids = [answer.token_ids for answer in answers]
        same = next((n for n, pair in enumerate(zip(*ids, strict=False)) if pair[0] != pair[1]), len(ids[0]))
        print(f"the first {same} tokens are the same; torch is imported here: {'torch' in sys.modules}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else None))
