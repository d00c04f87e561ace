"""Quantised checkpoints in an engine: what each costs there, and how fast it is.

    python benchmarks/quantized.py ENGINE CHECKPOINT… --model SOURCE [-o FIELD=VALUE]… [--json out] [--write]

The float source and, side by side with it, up to ``--at-once`` checkpoints are loaded. The drift is that of a
checkpoint's scores in this engine from those of the float source, on the built-in held-out texts. Then they take turns,
the first one to warm up: some requests one at a time, and ``--requests`` together, greedy, of exactly ``--tokens``
tokens. Each speed is the median over rounds of the ratio to the float source within a round, with a 95% interval.

A checkpoint that the engine refuses, or that fails, is a row as well, with its error. Rows are written as they come;
with the same ``--json`` a second call measures what is left. It exits with 1 if a checkpoint failed. ``--write`` puts
what was measured into ``results/quantization.json``, of which ``docs/quantization.md`` is made; ``quantized_rows.py``
does it later, from the files.
"""

from __future__ import annotations

import asyncio
import json
import platform
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click
import msgspec
from against_native import prompts
from anyengine import AnyEngineError, Engine, EngineConfig, ModelNotFound, SamplingParams
from anyengine.cli.options import Assignment, merged
from anyengine.errors import Misuse, UnsupportedCapability
from anyengine.hub import read_config
from anyengine.quantization import compare, held_out_texts, read_manifest, read_stored, scores_of
from anyengine_conformance.environment import engine_version
from environment import write
from intervals import interval
from quantized_rows import write_rows

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyengine import TokenLogprobs

GREEDY = SamplingParams(temperature=0)
#: Requests of a round that are sent one after the other.
ALONE = 4
#: Seconds for a load, and for one measurement of one engine.
LOADING, MEASURING = 400, 150

Scores = list[list["TokenLogprobs"]]


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        engine: its name.
        fields: of EngineConfig, without the model.
        label: of the configuration.
        model: the float source.
        against: engine whose float scores are the measure; None for its own.
    """

    engine: str
    fields: dict[str, Any]
    label: str
    model: str
    against: str | None

    def load(self, model: str) -> Awaitable[Engine]:
        """Bring it up with that checkpoint."""
        return Engine.load(self.engine, config=EngineConfig(**{**self.fields, "model": model}))


@dataclass(frozen=True)
class Effort:
    """How much is measured: see the options."""

    rounds: int
    tokens: int
    requests: int
    at_once: int


@dataclass
class Candidate:
    """A checkpoint, and the row that it becomes.

    Attributes:
        folder: of the checkpoint.
        row: so far.
        live: engine that has it; None before it is loaded and once it has failed.
        ratios: ``alone`` and ``together`` → speed by that of the float source, a value a round.
    """

    folder: Path
    row: dict[str, Any]
    live: Engine | None = None
    ratios: dict[str, list[float]] = field(default_factory=lambda: {"alone": [], "together": []})

    async def attempt(self, call: Callable[[], Awaitable[None]], seconds: float) -> None:
        """Do that; what goes wrong becomes the row's."""
        try:
            async with asyncio.timeout(seconds):
                await call()
        except (AnyEngineError, TimeoutError, ValueError, AssertionError, OSError) as error:
            known = error.as_dict() if isinstance(error, AnyEngineError) else {}
            said = {"type": type(error).__name__, "message": str(error) or f"not done within {seconds} s", **known}
            self.row |= {"outcome": "refused" if isinstance(error, Misuse) else "failed", "error": said}
            self.live = None
            print(f"{self.folder.name}: {self.row['outcome']}: {said['type']}: {said['message']}", flush=True)


def described(subject: Subject, folder: Path) -> dict[str, Any]:
    """What the checkpoint says of itself.

    Raises:
        ModelNotFound: there is none, or it is not quantised.
    """
    stored, manifest = read_stored(folder, read_config(folder)), read_manifest(folder)
    if stored is None:
        raise ModelNotFound(f"{folder.name}: nothing in it says that it is quantised", field="model")
    source = Path(subject.model).name if manifest is None else manifest.source.model
    scheme = ", ".join(stored.schemes)
    return {
        "made_by": "others" if manifest is None else manifest.engine,
        "made_as": scheme if manifest is None else manifest.scheme,
        "model": source,
        "against": subject.against or subject.engine,
        "method": stored.method,
        "format": stored.format,
        "scheme": scheme,
        "manifest": None if manifest is None else manifest.sha256,
    }


async def scored(engine: Engine) -> Scores | str:
    """Scores of the held-out texts; a reason where the engine gives none."""
    try:
        return await scores_of(engine, held_out_texts())
    except UnsupportedCapability as error:
        return error.message


async def speeds(engine: Engine, effort: Effort, salts: count[int]) -> dict[str, float]:
    """Tokens a second, one request at a time and many together."""

    async def answer(prompt: list[int]) -> None:
        found = await engine.generate(prompt, sampling=GREEDY, max_tokens=effort.tokens, ignore_eos=True)
        assert len(found.token_ids) == effort.tokens, "an answer has another length than was asked for"

    started = perf_counter()
    for prompt in prompts(ALONE, next(salts)):
        await answer(prompt)
    alone = perf_counter() - started
    given = prompts(effort.requests, next(salts))
    started = perf_counter()
    await asyncio.gather(*(answer(prompt) for prompt in given))
    together = perf_counter() - started
    return {"alone": ALONE * effort.tokens / alone, "together": effort.requests * effort.tokens / together}


class Measurement:
    """All checkpoints in one engine; `keep` is told whenever a row has changed."""

    def __init__(self, subject: Subject, effort: Effort, keep: Callable[[], None]) -> None:
        self.subject = subject
        self.effort = effort
        self.keep = keep
        self.salts = count(1)
        self.exact: Scores | str = ""
        self.base: dict[str, list[float]] = {"alone": [], "together": []}

    async def run(self, candidates: list[Candidate]) -> None:
        """Measure them, group by group."""
        for each in candidates:
            await each.attempt(lambda each=each: self._describe(each), MEASURING)
        left = [each for each in candidates if "outcome" not in each.row]
        self.keep()
        if self.subject.against is not None:
            async with Engine.load(self.subject.against, model=self.subject.model) as other:
                self.exact = await scored(other)
        async with asyncio.timeout(LOADING):
            whole = await self.subject.load(self.subject.model)
        async with whole:
            if self.subject.against is None:
                self.exact = await scored(whole)
            for start in range(0, len(left), self.effort.at_once):
                await self._group(whole, left[start : start + self.effort.at_once])

    async def _describe(self, each: Candidate) -> None:
        each.row |= described(self.subject, each.folder)

    async def _group(self, whole: Engine, group: list[Candidate]) -> None:
        async with AsyncExitStack() as stack:
            loads = (each.attempt(lambda each=each: self._load(each, stack), LOADING) for each in group)
            await asyncio.gather(*loads)
            for each in group:
                if each.live is not None:
                    await each.attempt(lambda each=each: self._drift(each), MEASURING)
            self.keep()
            for number in range(-1, self.effort.rounds):  # the first one warms up
                await self._round(whole, group, number)
                self.keep()

    async def _load(self, each: Candidate, stack: AsyncExitStack) -> None:
        live = await self.subject.load(str(each.folder))
        stack.push_async_callback(live.close)
        each.live = live
        version = engine_version(self.subject.engine, live.config)
        each.row |= {"device": live.info.device, "dtype": live.info.dtype, "engine_version": version}

    async def _drift(self, each: Candidate) -> None:
        assert each.live is not None
        found = await scored(each.live) if not isinstance(self.exact, str) else self.exact
        if isinstance(found, str) or isinstance(self.exact, str):
            each.row |= {"drift": None, "drift_unmeasured": found}
        else:
            each.row["drift"] = msgspec.to_builtins(compare(self.exact, found))
        each.row["outcome"] = "measured"
        print(f"{each.folder.name}: {each.row['drift']}", flush=True)

    async def _round(self, whole: Engine, group: list[Candidate], number: int) -> None:
        """One turn of each; what failed has none."""
        found: dict[int, dict[str, float]] = {}

        async def turn(engine: Engine) -> None:
            found[id(engine)] = await speeds(engine, self.effort, self.salts)

        waiting: list[Candidate | None] = [None, *(each for each in group if each.live is not None)]
        for each in waiting if number % 2 == 0 else reversed(waiting):
            if each is None:
                async with asyncio.timeout(MEASURING):
                    await turn(whole)
            elif (live := each.live) is not None:
                await each.attempt(lambda live=live: turn(live), MEASURING)
        if number < 0:
            return
        for how, values in self.base.items():
            values.append(found[id(whole)][how])
        for each in group:
            if each.live is not None:
                self._note(each, found[id(each.live)], found[id(whole)])

    def _note(self, each: Candidate, found: dict[str, float], base: dict[str, float]) -> None:
        for how, values in each.ratios.items():
            values.append(found[how] / base[how])
        each.row["speed"] = {how: interval(values) | {"values": values} for how, values in each.ratios.items()}
        each.row["float_tokens_per_second"] = {how: interval(values)["median"] for how, values in self.base.items()}


def kept(file: Path | None, head: dict[str, Any], rounds: int) -> dict[tuple[str, str | None], dict[str, Any]]:
    """Rows of an earlier call with the same settings that are whole: name and manifest's hash → row."""
    if file is None or not file.exists():
        return {}
    old = json.loads(file.read_text("utf-8"))
    if {name: old.get(name) for name in head} != head:
        return {}
    whole = [row for row in old["rows"] if row["outcome"] == "measured" and timed(row) == rounds]
    return {(row["checkpoint"], row["manifest"]): row for row in whole}


def hash_of(folder: Path) -> str | None:
    """Of its manifest; None if it has none, or one that an engine will refuse."""
    try:
        manifest = read_manifest(folder)
    except ModelNotFound:
        return None
    return None if manifest is None else manifest.sha256


def timed(row: dict[str, Any]) -> int:
    """How many rounds a row has."""
    return len(row["speed"]["alone"]["values"]) if "speed" in row else 0


@click.command(help=__doc__)
@click.argument("engine")
@click.argument("checkpoints", nargs=-1, required=True)
@click.option("--model", required=True, help="The float source.")
@click.option("-o", "assignments", type=Assignment(), multiple=True, help="A field of EngineConfig, dotted.")
@click.option("--label", help="Of this configuration, for the table.  [default: the engine's name]")
@click.option("--against", help="Engine whose float scores are the measure, instead of this one's own.")
@click.option("--at-once", default=4, show_default=True, help="Checkpoints that are loaded beside the float source.")
@click.option("--rounds", default=6, show_default=True, help="0 measures the drift alone.")
@click.option("--tokens", default=64, show_default=True)
@click.option("--requests", default=64, show_default=True, help="That are sent together.")
@click.option("--json", "file", type=click.Path(path_type=Path))
@click.option("--write", "writing", is_flag=True, help="Put what was measured into results/quantization.json.")
def main(
    engine: str,
    checkpoints: tuple[str, ...],
    model: str,
    assignments: tuple[tuple[str, Any], ...],
    label: str | None,
    against: str | None,
    *,
    at_once: int,
    rounds: int,
    tokens: int,
    requests: int,
    file: Path | None,
    writing: bool,
) -> None:
    """Measure, print, and write."""
    fields = merged({}, assignments)
    subject = Subject(engine, fields, label or engine, model, against)
    shown = {name: value for name, value in fields.items() if name != "environment"}
    settings = {"rounds": rounds, "tokens": tokens, "requests": requests, "config": shown, "against": against}
    head = {"engine": engine, "label": subject.label, "model": Path(model).name, "settings": settings}
    about = {"machine": platform.machine(), "date": datetime.now(UTC).date().isoformat()}
    if backend := fields.get("native", {}).get("backend"):  # of an engine that has several
        about["backend"] = backend
    candidates = [
        Candidate(Path(each), {"checkpoint": Path(each).name, "engine": engine, "label": subject.label, **about})
        for each in checkpoints
    ]
    there = kept(file, head, rounds)
    left: list[Candidate] = []
    for each in candidates:
        old = there.get((each.folder.name, hash_of(each.folder)))
        if old is None:
            left.append(each)
        else:
            each.row = old

    def rows() -> list[dict[str, Any]]:
        return [each.row for each in candidates if "outcome" in each.row]

    def keep() -> None:
        write(file, **head, rows=rows())

    if left:
        asyncio.run(Measurement(subject, Effort(rounds, tokens, requests, at_once), keep).run(left))
    keep()
    for row in rows():
        for how, found in row.get("speed", {}).items():
            print(f"{row['checkpoint']}: {how} {found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]")
    if writing:
        write_rows(rows())
    raise SystemExit(any(row["outcome"] == "failed" for row in rows()))


if __name__ == "__main__":
    main()
