"""What the uniform API costs on top of an engine's own, for engines that can be driven both ways in one process.

Runs under an interpreter that has the engine and its plugin, because two of the three subjects live in this process:

* ``native``: the engine's own asynchronous API used directly, detokenising, as its own server uses it
* ``here``: ``Engine`` with ``isolation="none"``
* ``worker``: ``Engine`` with ``isolation="process"``

All three are loaded side by side, each with its own small cache, and take turns; what waits costs nothing. Requests
are token ids, sampled at ``--temperature`` without a seed (0 is greedy), and end after exactly ``--tokens`` tokens.
Speed alone varies by several percent between runs, so every figure is a ratio, or a difference, within a pair: of
differences the median over pairs, of ratios the pseudomedian, see ``intervals.py``, both with a 95% interval. Beside
them stands the processor time that this process spends a token, with each subject: that of its threads too, in which
some engines compute. It scatters less, and says what of a difference is the API's own work.

What is cut off goes on from what ``--json`` has: with the same settings, of the same committed code, packages and kind
of machine. The environments of the earlier runs stay in the file. Single pairs scatter by tens of percent, so hundreds
are needed: ``--part`` measures some of them, on a GPU of its own, and ``pooled.py`` judges all parts together.

Bars (on a GPU, 256 requests of 128 tokens): throughput here at least 0.99 of native (lower bound 0.97), through the
worker 0.97 (0.95), for ``generate`` and for ``stream``; time to first token at most 1 ms more at the median.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import statistics
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, Protocol

from anyengine import Engine, EngineConfig, SamplingParams, SchedulingConfig
from environment import environment, write
from intervals import interval, pseudomedian

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BARS = {"here": (0.99, 0.97), "worker": (0.97, 0.95)}
SUBJECTS = ("native", *BARS)
HOWS = ("generate", "stream")
FIRST_TOKEN_MS = 1.0
PROMPT_TOKENS = 32


class Subject(Protocol):
    """One way to drive the engine."""

    async def generate(self, prompt: list[int], tokens: int) -> int:
        """The final result only: the number of its tokens."""
        ...

    async def stream(self, prompt: list[int], tokens: int) -> tuple[int, float | None]:
        """Number of tokens, and seconds to the first."""
        ...

    async def close(self) -> None:
        """End it."""
        ...


class Uniform:
    """Through the uniform API."""

    def __init__(self, engine: Engine, temperature: float) -> None:
        self.engine = engine
        self.sampling = SamplingParams(temperature=temperature)

    async def generate(self, prompt: list[int], tokens: int) -> int:
        """See :class:`Subject`."""
        answer = await self.engine.generate(prompt, sampling=self.sampling, max_tokens=tokens, ignore_eos=True)
        return len(answer.token_ids)

    async def stream(self, prompt: list[int], tokens: int) -> tuple[int, float | None]:
        """See :class:`Subject`."""
        started, first, count = perf_counter(), None, 0
        stream = self.engine.stream(prompt, sampling=self.sampling, max_tokens=tokens, ignore_eos=True)
        async with stream as chunks:
            async for chunk in chunks:
                first = first or perf_counter() - started
                count += len(chunk.token_ids)
        return count, first

    async def close(self) -> None:
        """See :class:`Subject`."""
        await self.engine.close()


def capacity(options: argparse.Namespace) -> int:
    """Tokens of a cache in which all requests have room: small, so that three share a device."""
    return options.concurrency * options.context


async def uniform(engine: str, options: argparse.Namespace, **fields: Any) -> dict[str, Subject]:
    """``here`` and ``worker``, loaded at the same time; `fields` are further ones of EngineConfig."""
    config = EngineConfig(
        model=options.model,
        max_model_len=options.context,
        dtype="bfloat16",
        scheduling=SchedulingConfig(max_num_seqs=options.concurrency),
        **fields,
    )

    async def load(isolation: str) -> Uniform:
        changed = config.model_copy(update={"isolation": isolation})
        return Uniform(await Engine.load(engine, config=changed), options.temperature)

    here, worker = await asyncio.gather(load("none"), load("process"))
    return {"here": here, "worker": worker}


def prompts(count: int, salt: int) -> list[list[int]]:
    """Prompts that share no prefix, with each other or with earlier ones."""
    return [[100 + (salt * 977 + i * 31 + j * (salt + 7)) % 3_900 for j in range(PROMPT_TOKENS)] for i in range(count)]


async def seconds(call: Callable[..., Awaitable[Any]], options: argparse.Namespace, salt: int) -> tuple[float, float]:
    """How long so many concurrent requests take, and what processor time this process spends on them."""
    given = prompts(options.concurrency, salt)
    gc.collect()
    started, used = perf_counter(), process_time()
    done = await asyncio.gather(*(call(prompt, options.tokens) for prompt in given))
    spent, used = perf_counter() - started, process_time() - used
    assert {count if isinstance(count, int) else count[0] for count in done} == {options.tokens}
    return spent, used


async def first_token(subject: Subject, salt: int) -> float:
    """Seconds to the first token of one request on an idle engine."""
    _, first = await subject.stream(prompts(1, salt)[0], 1)
    assert first is not None
    return first


class Samples:
    """What was measured, a value a pair."""

    def __init__(self, pairs: dict[str, Any] | None = None) -> None:
        """Go on from the values of earlier pairs."""
        none: dict[str, Any] = {
            "throughput_ratio": {f"{name}.{how}": [] for name in BARS for how in HOWS},
            "added_ms_to_first_token": {name: [] for name in BARS},
            "native_tokens_per_second": {"native": []},
            "processor_us_per_token": {f"{name}.{how}": [] for name in SUBJECTS for how in HOWS},
        }
        pairs = pairs or none
        self.ratios: dict[str, list[float]] = pairs["throughput_ratio"]
        self.added: dict[str, list[float]] = pairs["added_ms_to_first_token"]
        self.speeds: list[float] = pairs["native_tokens_per_second"]["native"]
        self.processor: dict[str, list[float]] = pairs["processor_us_per_token"]

    def __len__(self) -> int:
        return len(self.added["here"])

    def extend(self, more: Samples) -> None:
        """Add the values of others."""
        for name, values in more.ratios.items():
            self.ratios[name] += values
        for name, values in more.added.items():
            self.added[name] += values
        for name, values in more.processor.items():
            self.processor[name] += values
        self.speeds += more.speeds

    def figures(self) -> dict[str, Any]:
        """Medians with their intervals, and the values of all pairs."""
        return {
            "native_tokens_per_second": interval(self.speeds),
            "throughput_ratio": {
                name: pseudomedian(values) | dict(zip(("bar", "bar_low"), BARS[name.split(".")[0]], strict=True))
                for name, values in self.ratios.items()
            },
            "added_ms_to_first_token": {
                name: interval(values) | {"bar": FIRST_TOKEN_MS} for name, values in self.added.items()
            },
            "processor_us_per_token": {name: interval(values) for name, values in self.processor.items()},
            "pairs": {
                "throughput_ratio": self.ratios,
                "added_ms_to_first_token": self.added,
                "native_tokens_per_second": {"native": self.speeds},
                "processor_us_per_token": self.processor,
            },
        }


async def measure(
    subjects: dict[str, Subject],
    options: argparse.Namespace,
    samples: Samples,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Every figure, of what is there and the pairs that are missing; `keep` gets those so far after each pair."""
    salts = itertools.count(1)
    for subject in subjects.values():
        await seconds(subject.generate, options, next(salts))
        await seconds(subject.stream, options, next(salts))
    gc.freeze()
    for pair in range(len(samples), options.pairs):
        order = list(subjects) if pair % 2 == 0 else list(reversed(subjects))
        tokens = options.rounds * options.concurrency * options.tokens
        for how in HOWS:
            spent = dict.fromkeys(subjects, 0.0)
            used = dict.fromkeys(subjects, 0.0)
            # Turn by turn, so that what changes the machine's speed meanwhile meets all of them.
            for name in order * options.rounds:
                wall, processor = await seconds(getattr(subjects[name], how), options, next(salts))
                spent[name] += wall
                used[name] += processor
            samples.speeds.append(tokens / spent["native"])
            for name in subjects:
                samples.processor[f"{name}.{how}"].append(used[name] / tokens * 1e6)
            for name in BARS:
                samples.ratios[f"{name}.{how}"].append(spent["native"] / spent[name])
        firsts: dict[str, list[float]] = {}
        for name in order:
            # In blocks: engines of two processes share the device, and handing it over costs milliseconds that no
            # application pays that has one engine. So the first probe of a block does not count.
            block = [await first_token(subjects[name], next(salts)) for _ in range(options.probes + 1)]
            firsts[name] = block[1:]
        for name in BARS:
            samples.added[name].append((statistics.median(firsts[name]) - statistics.median(firsts["native"])) * 1e3)
        keep(samples.figures())
    return samples.figures()


def report(figures: dict[str, Any]) -> bool:
    """Print, and say whether the bars are met."""
    met = True
    speed = figures["native_tokens_per_second"]
    print(f"native {speed['median']:.0f} tokens/s [{speed['low']:.0f}, {speed['high']:.0f}]")
    for name, figure in figures["throughput_ratio"].items():
        good = figure["median"] >= figure["bar"] and figure["low"] >= figure["bar_low"]
        met &= good
        shown = f"{figure['median']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]"
        print(f"throughput {name:16} {shown}  bar {figure['bar']} [{figure['bar_low']}]  {'met' if good else 'MISSED'}")
    for name, figure in figures["processor_us_per_token"].items():
        print(f"processor {name:17} {figure['median']:.2f} us a token [{figure['low']:.2f}, {figure['high']:.2f}]")
    for name, figure in figures["added_ms_to_first_token"].items():
        good = figure["median"] <= figure["bar"]
        met &= good
        shown = f"{figure['median']:.3f} ms [{figure['low']:.3f}, {figure['high']:.3f}]"
        print(f"first token {name:15} {shown}  bar {figure['bar']}  {'met' if good else 'MISSED'}")
    return met


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all engines share."""
    parser = argparse.ArgumentParser(
        description=description, epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="folder or hub id")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="times that all requests are sent, for one figure")
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--probes", type=int, default=50, help="single requests a pair, for the first token")
    parser.add_argument("--part", action="store_true", help="of a whole that pooled.py judges: fail at no bar")
    parser.add_argument("--json", type=Path, help="write what was measured there, after each pair")
    return parser


def same(environment: dict[str, Any]) -> dict[str, Any]:
    """What two runs have in common whose pairs may stand together."""
    return {name: value for name, value in environment.items() if name != "date"}


def committed(environment: dict[str, Any]) -> bool:
    """Whether it is known which code ran: of changed files nobody can say that they are the same."""
    commit = str(environment["commit"])
    return bool(commit) and not commit.endswith("-dirty")


def earlier(file: Path | None, content: dict[str, Any]) -> dict[str, Any] | None:
    """A run of the same thing and settings, of the same code on the same kind of machine; None if there is none."""
    if file is None or not file.exists():
        return None
    found = json.loads(file.read_text("utf-8"))
    here, there = same(environment()), same(found["environment"])
    others = [name for name, value in content.items() if found.get(name) != value]
    others += [f"environment.{name}" for name in here if there.get(name) != here[name]]
    others += [] if committed(here) else ["environment.commit (of changed files)"]
    if others or "earlier" not in found:
        print(f"{file.name} is begun anew: it has another {', '.join(others) or 'form'}", flush=True)
        return None
    print(f"{file.name}: going on", flush=True)
    return found


def main(
    engine: str, options: argparse.Namespace, load: Callable[[argparse.Namespace], Awaitable[dict[str, Subject]]]
) -> None:
    """Load the subjects, measure, print, and exit with 1 if a bar is missed."""
    content: dict[str, Any] = {
        "engine": engine,
        "model": Path(options.model).name,
        "settings": {name: value for name, value in vars(options).items() if name not in ("json", "model")},
    }
    before = earlier(options.json, content)
    content["earlier"] = [] if before is None else [*before["earlier"], before["environment"]]
    samples = Samples(None if before is None else before["figures"]["pairs"])
    started = perf_counter()

    def keep(figures: dict[str, Any]) -> None:
        write(options.json, **content, figures=figures)
        print(f"pair {len(samples)}, {perf_counter() - started:.0f} s", flush=True)

    async def run() -> dict[str, Any]:
        subjects = await load(options)
        print(f"loaded after {perf_counter() - started:.0f} s", flush=True)
        try:
            return await measure(subjects, options, samples, keep)
        finally:
            for subject in subjects.values():
                await subject.close()

    raise SystemExit(0 if report(asyncio.run(run())) or options.part else 1)
