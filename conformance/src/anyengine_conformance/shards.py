"""One run in several processes at once: each loads engines of its own, and their reports become one.

Most of a run against a real engine is loading, some fifty times; a device has room for several small engines.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from anyengine import AnyEngineError
from msgspec.structs import replace

from anyengine_conformance.check import DEADLINE, DEFAULT, OWN, all_checks
from anyengine_conformance.interrupts import accepted, held
from anyengine_conformance.report import read_report, signed
from anyengine_conformance.results import OUTCOMES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyengine_conformance.check import Check
    from anyengine_conformance.results import Report

__all__ = ["ShardFailed", "merged", "run_shards", "split"]

#: Seconds for a process that was told to end; it gives up an engine that does not close in half of that.
_CLOSING = 60.0
#: Seconds for the rest of what a process wrote that has ended: one of its children may keep the pipe open for ever.
_READING = 10.0
#: A load takes about as long as so many checks.
_LOAD = 12


class ShardFailed(AnyEngineError):
    """A process of a run ended without a report."""


def split(checks: Sequence[Check], jobs: int) -> list[list[Check]]:
    """Checks for each process, about as much work for each: the largest pieces first, each to who has least.

    A piece is what shares a load: the checks of a variant; each that loads for itself; and of the default variant,
    which every process has, a family, and each that may take longer than most.
    """
    pieces: dict[tuple[str, str], list[Check]] = {}
    for made in checks:
        by_default = made.id if made.deadline > DEADLINE else made.family
        within = {OWN: made.id, DEFAULT: by_default}.get(made.variant, "")
        pieces.setdefault((made.variant, within), []).append(made)
    weights = {
        key: sum(made.deadline / DEADLINE for made in piece) if key[0] == DEFAULT else len(piece) + _LOAD
        for key, piece in pieces.items()
    }
    shards: list[list[Check]] = [[] for _ in range(jobs)]
    loads = [0.0] * jobs
    for key in sorted(pieces, key=lambda key: (-weights[key], key)):
        least = loads.index(min(loads))
        shards[least] += pieces[key]
        loads[least] += weights[key]
    return [shard for shard in shards if shard]


def merged(reports: Sequence[Report], duration: float, *, stopped: str = "") -> Report:
    """One report of several that are about the same engine, in the suite's order. Of several commits it names all.

    Args:
        reports: at least one.
        duration: seconds.
        stopped: why the run ended early; without it what the reports say.

    Raises:
        ShardFailed: they are not of the same run, or have a check twice.
    """
    first = reports[0]
    every = [made.id for made in all_checks()]
    results = {result.id: result for report in reports for result in report.results}
    if len(results) != sum(len(report.results) for report in reports):
        raise ShardFailed("the reports to merge have a check in common")
    for report in reports:
        if replace(report.suite, complete=False) != replace(first.suite, complete=False):
            raise ShardFailed(f"the reports to merge are of different suites: {report.suite} and {first.suite}")
    commits = dict.fromkeys(report.environment.commit for report in reports if report.environment.commit)
    stopped = stopped or next((report.stopped for report in reports if report.stopped), "")
    known = next((report.subject for report in reports if report.subject.capabilities is not None), first.subject)
    return signed(
        replace(
            first,
            started=min(report.started for report in reports),
            duration=round(duration, 3),
            suite=replace(first.suite, complete=not stopped and len(results) == len(every)),
            stopped=stopped,
            subject=known,
            results=[results[name] for name in every if name in results],
            environment=replace(first.environment, commit=", ".join(commits) or None),
        )
    )


def run_shards(base: Sequence[str], checks: Sequence[Check], jobs: int, say: Callable[[str], None]) -> Report:
    """Run them in so many processes, and say what each writes, line by line.

    Args:
        base: the command line of ``anyengine conformance run …`` without ``--only`` and ``--report``.
        checks: which.
        jobs: processes at once, at most.
        say: hears every line.

    Raises:
        ShardFailed: a process ended without a report; says its last lines.
        KeyboardInterrupt: before any check had ended.
    """
    began = time.monotonic()
    with TemporaryDirectory(prefix="anyengine-conformance-") as folder:
        shards: list[_Shard] = []
        stopped = ""
        try:
            for number, shard in enumerate(split(checks, jobs)):
                with held():  # a process that is not in the list would be ended by nobody
                    shards.append(_Shard(base, shard, Path(folder) / f"{number}.json", say))
            reports = [shard.report() for shard in shards]
        except KeyboardInterrupt as error:
            name = accepted(error)
            _end(shards)
            reports = [shard.report() for shard in shards if shard.reported]
            if not reports:
                raise
            ended = sum(len(report.results) for report in reports)
            stopped = f"interrupted by {name} after {ended} of {len(checks)} checks"
        finally:
            _end(shards)
        return merged(reports, time.monotonic() - began, stopped=stopped)


def _end(shards: Sequence[_Shard]) -> None:
    """End them all at once, then wait for each."""
    for shard in shards:
        shard.terminate()
    for shard in shards:
        shard.end()


class _Shard:
    """A process, and a thread that reads what it writes."""

    def __init__(self, base: Sequence[str], checks: Sequence[Check], file: Path, say: Callable[[str], None]) -> None:
        only = [word for made in checks for word in ("--only", made.id)]
        command = [sys.executable, "-m", *base, *only, "--report", str(file)]
        self._file = file
        self._say = say
        self._tail: deque[str] = deque(maxlen=20)
        self._process = subprocess.Popen(  # noqa: S603 this very program
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            process_group=0,  # a terminal's Ctrl-C is for the one that waits for all of them
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 it was asked for
        with self._process.stdout as lines:  # closed here: another thread would wait until nobody reads
            for line in lines:
                # Its summary is of a part; the one that matters comes at the end.
                if line.split(" ", 1)[0] in OUTCOMES:
                    self._say(line.rstrip("\n"))
                self._tail.append(line)

    def report(self) -> Report:
        status = self._process.wait()
        self._reader.join(_READING)
        if not self._file.exists():
            raise ShardFailed(f"a process of the run ended with status {status} and no report:\n{''.join(self._tail)}")
        return read_report(self._file)

    @property
    def reported(self) -> bool:
        """Whether it has written its report, if only of the checks that had ended."""
        return self._file.exists()

    def terminate(self) -> None:
        """Interrupt it as a person would, so that it closes its engine and writes its report."""
        if self._process.poll() is None:
            self._process.terminate()

    def end(self) -> None:
        """Wait for it, after :meth:`terminate`, as long as an engine needs to be closed."""
        if self._process.poll() is None:
            try:
                self._process.wait(_CLOSING)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(_READING)
