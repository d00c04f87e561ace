"""How an engine's throughput grows with the number of concurrent requests, through the uniform API.

    python benchmarks/concurrency.py ENGINE --model MODEL [-o FIELD=VALUE]... [--json out]

One engine is loaded once. Requests are token ids that share no prefix, greedy, and end after exactly ``--tokens``
tokens. The numbers of requests take turns, so that what changes the machine's speed meanwhile meets all of them; each
figure is the median over rounds with a 95% interval, beside the speed-up over one request at a time in the same round.
Bar: with every number of requests at least as many tokens a second as with the one before it.
"""

from __future__ import annotations

import asyncio
from itertools import count, pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import click
from against_native import prompts
from anyengine import Engine, EngineConfig, SamplingParams
from anyengine.cli.options import Assignment, merged
from environment import write
from intervals import interval

GREEDY = SamplingParams(temperature=0)


async def speed(engine: Engine, requests: int, tokens: int, salt: int) -> float:
    """Tokens a second."""
    started = perf_counter()
    answers = await asyncio.gather(
        *(
            engine.generate(prompt, sampling=GREEDY, max_tokens=tokens, ignore_eos=True)
            for prompt in prompts(requests, salt)
        )
    )
    spent = perf_counter() - started
    assert {len(answer.token_ids) for answer in answers} == {tokens}
    return requests * tokens / spent


async def measure(
    engine: str, config: EngineConfig, numbers: tuple[int, ...], rounds: int, tokens: int, keep: Any
) -> dict[str, Any]:
    """Every figure; `keep` gets those so far after each round."""
    salts = count(1)
    figures: dict[str, Any] = {}
    async with Engine.load(engine, config=config) as loaded:
        for number in numbers:
            await speed(loaded, number, min(tokens, 16), next(salts))
        samples: dict[int, list[float]] = {number: [] for number in numbers}
        for _ in range(rounds):
            for number in numbers:
                samples[number].append(await speed(loaded, number, tokens, next(salts)))
            alone = samples[numbers[0]]
            figures = {
                str(number): {
                    "tokens_per_second": interval(values),
                    "times_one": interval([value / one for value, one in zip(values, alone, strict=True)]),
                    "values": values,
                }
                for number, values in samples.items()
            }
            keep(figures, {"dtype": loaded.info.dtype, "device": loaded.info.device})
    return figures


@click.command(help=__doc__)
@click.argument("engine")
@click.option("--model", required=True)
@click.option("-o", "assignments", type=Assignment(), multiple=True, help="A field of EngineConfig, dotted.")
@click.option("--numbers", default="1,4,16,64,256", show_default=True, help="Numbers of concurrent requests.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--tokens", default=128, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path))
def main(
    engine: str,
    model: str,
    assignments: tuple[tuple[str, Any], ...],
    numbers: str,
    rounds: int,
    tokens: int,
    file: Path | None,
) -> None:
    """Measure, print, and exit with 1 if the bar is missed."""
    wanted = tuple(int(number) for number in numbers.split(","))
    fields = merged({"model": model}, assignments)

    def keep(figures: dict[str, Any], loaded: dict[str, Any]) -> None:
        shown = {key: value for key, value in fields.items() if key not in ("model", "environment")}
        settings = {"rounds": rounds, "tokens": tokens, "config": shown}
        write(file, engine=engine, model=Path(model).name, **loaded, settings=settings, figures=figures)

    figures = asyncio.run(measure(engine, EngineConfig(**fields), wanted, rounds, tokens, keep))
    medians = [figure["tokens_per_second"]["median"] for figure in figures.values()]
    for number, figure in figures.items():
        found, times = figure["tokens_per_second"], figure["times_one"]
        print(
            f"{number:>4} at once: {found['median']:.0f} tokens/s [{found['low']:.0f}, {found['high']:.0f}], "
            f"{times['median']:.1f} times one"
        )
    met = all(before <= after for before, after in pairwise(medians))
    print(f"throughput grows with every step: {'met' if met else 'MISSED'}")
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
