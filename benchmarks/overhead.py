"""What the uniform API costs on top of a bare backend iterator, measured on a simulated token source.

    uv run python benchmarks/overhead.py [--pairs 10] [--json out.json]

The source (``anyengine.testing.ScriptedBackend``) puts one token into each stream every millisecond, on a fixed
schedule; a reader that falls behind gets its tokens merged. ``bare`` iterates the backend's own stream of token ids;
``sdk`` iterates ``engine.stream``: admission, detokenisation, accounting, chunks. Pairs are interleaved, and each
figure is the median over pairs with a 95% interval (order statistics).

Four figures, each with its bar:

* throughput ratio sdk / bare at 256 concurrent streams, 1 ms a step: at least 0.99
* processor time added a token, in the same runs: at most 2 µs
* time to first token added, one stream at a time: at most 0.2 ms
* processor time a token at 32,000 tokens of output over that at 1,000: at most 1.2
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

from anyengine import Engine, EngineConfig, SamplingParams
from anyengine.backend import TokenRequest
from anyengine.testing import EOS, ScriptedPlugin, make_model_folder
from environment import environment
from intervals import interval

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from anyengine.testing import ScriptedBackend

STREAMS = 256
TOKENS = 2000
PROMPT = [72, 105]
TEXT = [71, 68, 75, 75, 78, 220, 86, 78, 81, 75, 67, 13, 220]  # "hello world. " in single-byte tokens
GREEDY = SamplingParams(temperature=0)


class Subject:
    """The scripted engine, read in both ways."""

    def __init__(self, engine: Engine, backend: ScriptedBackend) -> None:
        self.engine = engine
        self.backend = backend
        self.ids = itertools.count()

    def bare(self, tokens: int) -> AsyncIterator[Any]:
        """The backend's own iterator."""
        request = TokenRequest(
            id=f"bare-{next(self.ids)}",
            prompt_token_ids=PROMPT,
            sampling=GREEDY,
            max_tokens=tokens,
            eos_token_ids=frozenset({EOS}),
        )
        return self.backend.stream(request)

    async def read_bare(self, tokens: int) -> int:
        """Read one bare stream to its end."""
        return sum([len(delta.token_ids) async for delta in self.bare(tokens)])

    async def read_sdk(self, tokens: int) -> int:
        """Read one stream of the SDK to its end, and use its text."""
        count = characters = 0
        async with self.engine.stream(PROMPT, sampling=GREEDY, max_tokens=tokens) as stream:
            async for chunk in stream:
                count += len(chunk.token_ids)
                characters += len(chunk.text)
        assert characters == count, "every scripted token is one character"
        return count

    async def run(self, kind: str, streams: int, tokens: int) -> tuple[float, float]:
        """(seconds, processor seconds) of so many concurrent streams."""
        read = self.read_bare if kind == "bare" else self.read_sdk
        started, used = perf_counter(), process_time()
        counts = await asyncio.gather(*(read(tokens) for _ in range(streams)))
        seconds, used = perf_counter() - started, process_time() - used
        assert counts == [tokens] * streams, "no token is lost"
        return seconds, used

    async def first_token(self, kind: str) -> float:
        """Seconds from the call to the first token of one stream."""
        started = perf_counter()
        if kind == "bare":
            stream = self.bare(1)
            await anext(stream)
            return perf_counter() - started
        async with self.engine.stream(PROMPT, sampling=GREEDY, max_tokens=1) as stream:
            async for _ in stream:
                return perf_counter() - started
        raise AssertionError


async def subject(folder: Path, step_seconds: float) -> Subject:
    """A loaded scripted engine."""
    plugin = ScriptedPlugin(
        lambda _: itertools.cycle(TEXT), str(folder), step_seconds=step_seconds, max_model_len=100_000
    )
    engine = await Engine.load(plugin, config=EngineConfig())
    return Subject(engine, plugin.loaded[0])


async def measure(pairs: int) -> dict[str, dict[str, float]]:
    """All four figures."""
    folder = make_model_folder(Path(tempfile.mkdtemp()) / "model")
    paced, unpaced = await subject(folder, 0.001), await subject(folder, 0.0)
    for kind in ("bare", "sdk"):  # warm up
        await paced.run(kind, STREAMS, 100)
        await unpaced.run(kind, 1, 1000)
    ratios: list[float] = []
    added: list[float] = []
    first: list[float] = []
    growth: list[float] = []
    for pair in range(pairs):
        order = ("bare", "sdk") if pair % 2 == 0 else ("sdk", "bare")
        runs = {kind: await paced.run(kind, STREAMS, TOKENS) for kind in order}
        ratios.append(runs["bare"][0] / runs["sdk"][0])
        added.append((runs["sdk"][1] - runs["bare"][1]) / (STREAMS * TOKENS) * 1e6)
        times: dict[str, list[float]] = {"bare": [], "sdk": []}
        for kind in order * 200:
            times[kind].append(await unpaced.first_token(kind))
        first.append((statistics.median(times["sdk"]) - statistics.median(times["bare"])) * 1e3)
        short = [(await unpaced.run("sdk", 1, 1000))[1] for _ in range(32)]
        long = (await unpaced.run("sdk", 1, 32_000))[1]
        growth.append(long / sum(short))
    await paced.engine.close()
    await unpaced.engine.close()
    return {
        "throughput_ratio": interval(ratios) | {"bar": 0.99},
        "added_us_per_token": interval(added) | {"bar": 2.0},
        "added_ms_to_first_token": interval(first) | {"bar": 0.2},
        "cost_32000_over_1000": interval(growth) | {"bar": 1.2},
    }


def main() -> None:
    """Measure, print, and say whether the bars are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures = asyncio.run(measure(options.pairs))
    met = True
    for name, figure in figures.items():
        good = figure["median"] >= figure["bar"] if name == "throughput_ratio" else figure["median"] <= figure["bar"]
        met &= good
        print(
            f"{name:26} {figure['median']:8.4f}  [{figure['low']:.4f}, {figure['high']:.4f}]  "
            f"bar {figure['bar']}  {'met' if good else 'MISSED'}"
        )
    if options.json:
        options.json.write_text(json.dumps({"environment": environment(), "figures": figures}, indent=2) + "\n")
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
