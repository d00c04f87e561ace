"""The reports under ``results/``: recognised by what they say, not by their names, and refused if they do not fit."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
from anyengine_conformance.parity_table.judging import Report as Parity
from anyengine_conformance.report import read_report
from anyengine_conformance.results import Report as Conformance
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "ApiOverhead",
    "BadResult",
    "Concurrency",
    "Conformance",
    "File",
    "Found",
    "Interval",
    "Machine",
    "Overhead",
    "Parity",
    "Quantized",
    "Speculation",
    "Step",
    "find",
]


Content = TypeVar("Content")
Kind = TypeVar("Kind")


class BadResult(Exception):
    """A file under ``results/`` is none of the reports that it looks like."""


class Interval(Struct, kw_only=True):
    """A median with its 95% interval, and what it has to keep: the median ``bar``, the lower bound ``bar_low``."""

    median: float
    low: float
    high: float
    bar: float | None = None
    bar_low: float | None = None


class Environment(Struct, kw_only=True):
    """What every benchmark says of where it ran; see ``benchmarks/environment.py``."""

    date: str
    commit: str
    packages: dict[str, str]


class Throughput(Struct, kw_only=True):
    """With one number of concurrent requests."""

    tokens_per_second: Interval
    times_one: Interval


class Concurrency(Struct, kw_only=True):
    """Written by ``benchmarks/concurrency.py``: number of requests → throughput."""

    environment: Environment
    engine: str
    model: str
    dtype: str
    device: str
    settings: dict[str, Any]
    figures: dict[int, Throughput]


class Gain(Struct, kw_only=True):
    """Of speculation."""

    speed_up: dict[str, Interval]
    drafted: int | None
    accepted: int | None
    acceptance: float | None


class Speculation(Struct, kw_only=True):
    """Written by ``benchmarks/speculation.py``."""

    environment: Environment
    engine: str
    model: str
    dtype: str
    device: str
    settings: dict[str, Any]
    figures: Gain


class Added(Struct, kw_only=True):
    """What the uniform API adds to an engine's own; the first reports do not say what each pair gave."""

    native_tokens_per_second: Interval
    throughput_ratio: dict[str, Interval]
    added_ms_to_first_token: dict[str, Interval]
    pairs: dict[str, dict[str, list[float]]] | None = None


class Overhead(Struct, kw_only=True):
    """Written by ``benchmarks/against_native.py``, or by ``pooled.py`` of its parts.

    Reports of before 2026-11-29 do not name engine and model.
    """

    environment: Environment
    settings: dict[str, Any]
    figures: Added
    engine: str | None = None
    model: str | None = None
    parts: list[dict[str, Any]] = []

    @property
    def planned(self) -> int:
        """Pairs that were to be measured, of each part as many."""
        return self.settings["pairs"] * max(1, len(self.parts))


class ApiOverhead(Struct, kw_only=True):
    """Written by ``benchmarks/overhead.py``, about a simulated source of tokens."""

    environment: Environment
    figures: dict[str, Interval]


class Drift(Struct, kw_only=True):
    """See ``anyengine.quantization``."""

    perplexity_ratio: float
    mean_kl: float
    top1_agreement: float
    tokens: int


class Quantized(Struct, kw_only=True):
    """One entry of ``quantization.json``; ``drift`` is None where the engine gives no log-probabilities."""

    engine: str
    device: str
    dtype: str
    model: str
    made_by: str
    made_as: str
    against: str
    drift: Drift | None
    date: str
    label: str | None = None
    engine_version: str | None = None
    speed: dict[str, Interval] | None = None


class Machine(Struct, kw_only=True):
    """Written by the proof on GPUs, for all reports beside it: environment → package → version."""

    commit: str | None
    packages: dict[str, dict[str, str]]


class Step(Struct, kw_only=True):
    """Written by the proof on GPUs: how one of its programs ended."""

    step: str
    outcome: str
    date: str


def _figures(content: dict[str, Any]) -> dict[str, Any]:
    found = content.get("figures")
    return found if isinstance(found, dict) else {}


#: Kind → how its reports are told from others.
_KINDS: dict[Any, Callable[[dict[str, Any]], bool]] = {
    Conformance: lambda content: bool(content.keys() & {"suite", "subject", "checksum"}),
    Parity: lambda content: content.keys() >= {"oracle", "rows"},
    Step: lambda content: content.keys() >= {"step", "outcome", "command"},
    Machine: lambda content: content.keys() >= {"gpus", "packages"},
    Speculation: lambda content: "speed_up" in _figures(content),
    Overhead: lambda content: "native_tokens_per_second" in _figures(content),
    ApiOverhead: lambda content: "cost_32000_over_1000" in _figures(content),
    Concurrency: lambda content: any(
        isinstance(each, dict) and "times_one" in each for each in _figures(content).values()
    ),
}


@dataclass(frozen=True)
class File(Generic[Content]):
    """A report.

    Attributes:
        name: from the repository's root on, with slashes.
        content: what it says.
        machine: what it ran on, where ``machine.json`` lies beside it.
    """

    name: str
    content: Content
    machine: Machine | None


class Found:
    """All reports, by kind; within a kind in the order of their names."""

    def __init__(self) -> None:
        self._files: defaultdict[Any, list[File[Any]]] = defaultdict(list)
        #: Names of those that this scoreboard does not show.
        self.others: list[str] = []

    def add(self, kind: Any, file: File[Any]) -> None:
        """One more."""
        self._files[kind].append(file)

    def of(self, kind: type[Kind]) -> list[File[Kind]]:
        """Those of a kind."""
        return self._files[kind]


def find(root: Path) -> Found:
    """Read every JSON file under ``results/`` but those in folders of parts, which a proof makes one report of.

    Args:
        root: of the repository.

    Raises:
        BadReport: a conformance report does not fit its schema, or its checksum: it was edited.
        BadResult: another report is not as its benchmark writes it.
    """
    found = Found()
    machines: dict[Path, Machine] = {}
    files = sorted(file for file in (root / "results").rglob("*.json") if file.parent.name != "parts")
    read = [(file, *_read(file)) for file in files]
    for file, kind, content in read:
        if kind is Machine:
            machines[file.parent] = content
    for file, kind, content in read:
        name = file.relative_to(root).as_posix()
        if kind is None:
            found.others.append(name)
        elif kind is not Machine:
            found.add(kind, File(name, content, machines.get(file.parent)))
    return found


def _read(file: Path) -> tuple[Any, Any]:
    """Kind and content; None for what is none of those known here."""
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise BadResult(f"{file} is no JSON: {error}") from error
    kind: Any = None
    if isinstance(content, dict):
        kind = next((kind for kind, fits in _KINDS.items() if fits(content)), None)
    elif isinstance(content, list) and any("drift" in each for each in content):
        kind = list[Quantized]
    if kind is None:
        return None, content
    if kind is Conformance:
        return kind, read_report(file)
    try:
        # Numbers of requests are keys, which JSON has as texts only.
        return kind, msgspec.convert(content, kind, strict=kind is not Concurrency)
    except msgspec.ValidationError as error:
        raise BadResult(f"{file} looks like a report of the kind {kind.__name__}, but is none: {error}") from error
