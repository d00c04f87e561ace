"""What speculation brings: an engine with it and without it, side by side, through the uniform API.

    python benchmarks/speculation.py ENGINE --model MODEL --speculative '{"method": "ngram"}' [-o FIELD=VALUE]...

Both are loaded side by side, each with its own cache, and take turns with the same texts, greedy: the prompts of the
parity table, of all kinds. Each figure is the median over rounds of the ratio within a round, with a 95% interval,
for one request at a time and for 64 together. Acceptance is what the engine counts. Whether the tokens are the model's
is not judged here: `anyengine conformance parity` does, with a row for the engine with speculation.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from time import perf_counter
from typing import Any

import click
from anyengine import Engine, EngineConfig, SamplingParams
from anyengine.cli.options import Assignment, merged
from anyengine_conformance.parity_table.prompts import prompts
from environment import write
from intervals import interval

GREEDY = SamplingParams(temperature=0)
ALONE, TOGETHER = 8, 64


async def spent(engine: Engine, texts: list[list[int]], tokens: int, at_once: int) -> tuple[float, int]:
    """Seconds for all of them, so many at once, and the number of tokens."""
    turns = asyncio.Semaphore(at_once)

    async def one(ids: list[int]) -> int:
        async with turns:
            return len((await engine.generate(ids, sampling=GREEDY, max_tokens=tokens)).token_ids)

    started = perf_counter()
    counts = await asyncio.gather(*(one(ids) for ids in texts))
    return perf_counter() - started, sum(counts)


async def measure(
    engine: str, config: EngineConfig, speculative: dict[str, Any], rounds: int, tokens: int, keep: Any
) -> dict[str, Any]:
    """Every figure; `keep` gets those so far after each round."""
    speculating = EngineConfig(**config.model_dump(exclude_unset=True) | {"speculative": speculative})
    figures: dict[str, Any] = {}
    async with Engine.load(engine, config=config) as plain, Engine.load(engine, config=speculating) as fast:
        given: list[Any] = [prompt.content for prompt in prompts()]
        ids = [await plain.tokenize(content) for content in given]
        # Every kind among the few as among the many.
        texts = {"alone": ids[:: len(ids) // ALONE][:ALONE], "together": (ids[::2] + ids[1::2])[:TOGETHER]}
        ratios: dict[str, list[float]] = {name: [] for name in texts}
        for number in range(-1, rounds):  # the first one warms up
            for name, chosen in texts.items():
                at_once = 1 if name == "alone" else TOGETHER
                order = (plain, fast) if number % 2 == 0 else (fast, plain)
                speeds: dict[int, float] = {}
                for each in order:
                    seconds, count = await spent(each, chosen, tokens, at_once)
                    speeds[id(each)] = count / seconds
                if number >= 0:
                    ratios[name].append(speeds[id(fast)] / speeds[id(plain)])
            if number >= 0:
                found = (await fast.stats()).speculative
                drafted, accepted = (found.drafted_tokens, found.accepted_tokens) if found is not None else (None, None)
                figures = {
                    "speed_up": {name: interval(values) | {"values": values} for name, values in ratios.items()},
                    "drafted": drafted,
                    "accepted": accepted,
                    "acceptance": accepted / drafted if accepted is not None and drafted else None,
                }
                keep(figures, {"dtype": fast.info.dtype, "device": fast.info.device})
    return figures


@click.command(help=__doc__)
@click.argument("engine")
@click.option("--model", required=True)
@click.option("--speculative", required=True, help="Fields of SpeculativeConfig, as JSON.")
@click.option("-o", "assignments", type=Assignment(), multiple=True, help="A field of EngineConfig, dotted.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--tokens", default=64, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path))
def main(
    engine: str,
    model: str,
    speculative: str,
    assignments: tuple[tuple[str, Any], ...],
    rounds: int,
    tokens: int,
    file: Path | None,
) -> None:
    """Measure, and print."""
    fields = merged({"model": model}, assignments)
    wanted: dict[str, Any] = json.loads(speculative)

    def keep(figures: dict[str, Any], loaded: dict[str, Any]) -> None:
        shown = {key: value for key, value in fields.items() if key not in ("model", "environment")}
        settings = {"rounds": rounds, "tokens": tokens, "config": shown, "speculative": wanted}
        write(file, engine=engine, model=Path(model).name, **loaded, settings=settings, figures=figures)

    figures = asyncio.run(measure(engine, EngineConfig(**fields), wanted, rounds, tokens, keep))
    for name, figure in figures["speed_up"].items():
        print(f"speed-up {name}: {figure['median']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]")
    print(f"drafted {figures['drafted']}, accepted {figures['accepted']}")


if __name__ == "__main__":
    main()
