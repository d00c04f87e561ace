"""Engines side by side on one GPU, each in an environment and a process of its own, answering the same prompts.

    anyengine env create vllm --variant cuda
    anyengine env create lmdeploy --variant cuda
    python examples/side_by_side.py --model MODEL --memory 0.3 vllm@vllm-cuda lmdeploy@lmdeploy-cuda

Each engine is given as ENGINE or ENGINE@ENVIRONMENT. Nothing of them is installed where this program runs, and each
keeps to that share of the GPU's memory, so that all fit. Without arguments the reference engine answers twice,
in two processes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import textwrap
from contextlib import AsyncExitStack
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from anyengine import Engine, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterable

PROMPTS = ("Once upon a time", "It was a cold day, and Tom", "The best thing about spring is", "She opened the box and")
WIDTH = 44


def columns(parts: Iterable[str]) -> str:
    """One line of several texts side by side."""
    return "  ".join(part.ljust(WIDTH) for part in parts).rstrip()


async def main(engines: list[str], model: str | None, memory: float | None, max_tokens: int) -> None:
    """Load the engines one after the other, ask them all at once, and print their answers in columns."""
    async with AsyncExitStack() as stack:
        loaded: list[Engine] = []
        for each in engines:
            name, _, environment = each.partition("@")
            options: dict[str, Any] = {"environment": environment} if environment else {}
            if memory is not None:
                options["kv_cache"] = {"gpu_memory_fraction": memory}
            loaded.append(await stack.enter_async_context(Engine.load(name, model, isolation="process", **options)))
        answers = await asyncio.gather(
            *(
                engine.generate(PROMPTS, sampling=SamplingParams(temperature=0), max_tokens=max_tokens)
                for engine in loaded
            )
        )
        print(columns([f"{given}, process {engine.pid}" for given, engine in zip(engines, loaded, strict=True)]))
        for prompt, row in zip(PROMPTS, zip(*answers, strict=True), strict=True):
            print(f"\n> {prompt}")
            for line in zip_longest(*(textwrap.wrap(answer.text, WIDTH) for answer in row), fillvalue=""):
                print(columns(line))
    imported = {"lmdeploy", "torch", "vllm"} & sys.modules.keys()
    print(f"\nimported in this process of torch, vllm and lmdeploy: {', '.join(sorted(imported)) or 'none'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", default=["reference", "reference"], metavar="ENGINE[@ENVIRONMENT]")
    parser.add_argument("--model", help="folder or hub id; each engine's own without it")
    parser.add_argument("--memory", type=float, help="share of the GPU's memory for each engine")
    parser.add_argument("--max-tokens", type=int, default=32)
    given = parser.parse_args()
    asyncio.run(main(given.engines, given.model, given.memory, given.max_tokens))
