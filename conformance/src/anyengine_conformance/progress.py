"""What a run shows while it goes on: a live line on a terminal, a plain line a check elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine_conformance.causes import by_cause, grouped, told
from anyengine_conformance.results import OUTCOMES
from anyengine_conformance.runner import Listener
from anyengine_conformance.unproven import NAME_ONE, reason, without_oracle

if TYPE_CHECKING:
    from typing import TextIO

    from anyengine_conformance.capture import Capture
    from anyengine_conformance.check import Check
    from anyengine_conformance.results import Report, Result

__all__ = ["COLOURS", "Progress", "details", "summary"]

#: Checks that met the same error are named up to so many; the report has them all.
_NAMED = 12
COLOURS = {
    "passed": "green",
    "failed": "red",
    "error": "magenta",
    "unsupported": "blue",
    "xfailed": "yellow",
    "xpassed": "red",
    "not-run": "bright_black",
}


class Progress(Listener):
    """Prints to ``stream``; only what is not as it should be, and with ``verbose`` everything."""

    def __init__(self, stream: TextIO, capture: Capture | None, *, verbose: bool, live: bool) -> None:
        from rich.console import Console  # noqa: PLC0415 heavy for `--help`

        self._capture = capture
        self._verbose = verbose
        self._told = ""
        self._console = Console(file=stream, highlight=False, soft_wrap=True)
        self._live: Any = None
        self._task: Any = None
        if live:
            from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415
            from rich.progress import Progress as Bar  # noqa: PLC0415

            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._live = Bar(*columns, console=self._console, transient=True)
            self._live.start()
            self._task = self._live.add_task("loading the engine", total=None)

    def began(self, check: Check, number: int, total: int) -> None:
        if self._live is not None:
            self._live.update(self._task, description=check.id, completed=number, total=total)
        elif self._verbose:  # some take minutes
            self._console.print(f"{'begins':<11} {check.id}")

    def ended(self, result: Result) -> None:
        if not (self._verbose or not result.good or (self._live is None and result.outcome != "unsupported")):
            return
        again = result.outcome == "error" and result.reason == self._told  # it did not load, or does not answer
        self._told = result.reason
        if again and not self._verbose:
            return
        from rich.text import Text  # noqa: PLC0415 heavy for `--help`

        line = Text.assemble(
            (f"{result.outcome:<11}", COLOURS[result.outcome]), f" {result.id}  {result.duration:.2f} s"
        )
        if result.reason and (self._verbose or not result.good):
            line.append(f"  {result.reason}", "dim")
        self._console.print(line)

    def written(self) -> str:
        return "" if self._capture is None else self._capture.take()

    def close(self) -> None:
        """Take the live line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def summary(report: Report) -> str:
    """The end of a run: what went wrong with what to do about it, causes before consequences, and then the counts."""
    bad = by_cause(report)
    parts = ["\n".join(details(group[0]) + _alike(group[1:])) for group in grouped(bad)]
    if note := told(bad):
        parts.insert(0, note)
    counts = ", ".join(f"{number} {OUTCOMES[outcome][0]}" for outcome, number in report.counts().items())
    subject = " ".join(filter(None, (report.subject.engine, report.subject.engine_version)))
    subject += " (simulated)" if report.subject.simulated else ""
    unproven = reason(report)
    verdict = "as expected" if report.good else "NOT as it should be"
    verdict += ", but not all is proven" if report.good and unproven else ""
    verdict = f"NOT FINISHED, {report.stopped}" if report.stopped else verdict
    parts.append(f"{subject}: {verdict}: {counts or 'nothing ran'}; {report.duration:.1f} s")
    if unproven:
        parts[-1] += f"\nunproven: {unproven}"
        parts[-1] += f"\n{NAME_ONE}" if without_oracle(report) else ""
    return "\n\n".join(parts)


def _alike(others: list[Result]) -> list[str]:
    if not others:
        return []
    more = f", and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return [f"  {'the same':<9}{', '.join(result.id for result in others[:_NAMED])}{more}"]


def details(result: Result) -> list[str]:
    """What was asked, expected and seen, what to do about it, and how to repeat it; one line each."""
    lines = [f"{result.outcome.upper()} {result.id}: {result.must}"]
    labels = ("asked", "expected", "seen", "example", "advice")
    found = {label: getattr(result, label) for label in labels}
    if not result.seen:
        found = {"reason": result.reason}
    if result.outcome == "error" and result.log:
        found["log"] = result.log
    for label, text in found.items():
        margins = (label, *[""] * text.count("\n"))
        lines += [f"  {margin:<9}{line}" for margin, line in zip(margins, text.splitlines(), strict=False)]
    return [*lines, f"  {'repeat':<9}{result.command}"]
