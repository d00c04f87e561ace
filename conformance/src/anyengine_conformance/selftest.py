"""The tests of the tests: every check catches its fault, and only what is declared fails with it."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import chdir
from multiprocessing import get_context
from random import Random
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest.mock import patch

from msgspec import Struct, field
from msgspec.structs import replace

from anyengine_conformance.bench import Bench
from anyengine_conformance.broken import Healthy, all_faults, declared_file
from anyengine_conformance.capture import Capture
from anyengine_conformance.check import all_checks
from anyengine_conformance.runner import Listener, Runner, select
from anyengine_conformance.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from anyengine_conformance.broken import Fault
    from anyengine_conformance.check import Check
    from anyengine_conformance.results import Report
    from anyengine_conformance.subject import Target

__all__ = ["FaultFound", "SelfTest", "hold", "selftest", "write_declared"]

_BAD = ("failed", "error")
#: Processes for each processor: two thirds of what a check takes is waiting.
_PROCESSES = 2
#: The simulated engine answers at once, so deadlines can be short, and a fault that hangs costs little.
_TIME_FACTOR = 0.4


class FaultFound(Struct, kw_only=True):
    """What the suite said about one broken engine.

    Attributes:
        name: of the fault's class.
        check: that must catch it.
        what: the fault, in words.
        caught: whether that check failed.
        outcome: of that check, with its reason.
        undeclared: checks it was held against that failed too, and are not in ``also_fails``, with their reasons.
        stale: entries of ``also_fails`` that did not fail.
        first: what was not as declared when it was held the first time, beside others; empty where all was.
        duration: seconds.
    """

    name: str
    check: str
    what: str
    caught: bool
    outcome: str
    undeclared: dict[str, str] = field(default_factory=dict[str, str])
    stale: list[str] = field(default_factory=list[str])
    first: list[str] = field(default_factory=list[str])
    duration: float = 0.0

    @property
    def good(self) -> bool:
        """Caught, and nothing else but what is declared."""
        return self.caught and not self.undeclared and not self.stale


class SelfTest(Struct, kw_only=True):
    """The whole proof.

    Attributes:
        healthy: checks that fail on the healthy engine, with reasons; must be empty.
        without_fault: checks that no fault belongs to; must be empty.
        unknown: faults that name no check; must be empty.
        faults: one a fault.
        duration: seconds.
    """

    healthy: list[str]
    without_fault: list[str]
    unknown: list[str]
    faults: list[FaultFound]
    duration: float = 0.0

    @property
    def good(self) -> bool:
        """Whether nothing is missing."""
        return not (self.healthy or self.without_fault or self.unknown) and all(found.good for found in self.faults)


def _settings(base: str) -> Settings:
    factor, oracle = (_TIME_FACTOR, "simulated") if base in ("simulated", "worker") else (1.0, "reference")
    return Settings(engine=base, oracle=oracle, time_factor=factor, load_timeout=30.0)


class _Repeatable(Listener):
    """What nobody gave a seed is drawn the same in every run: else what a fault trips would be a matter of luck."""

    def __init__(self) -> None:
        self.random = Random()  # noqa: S311 nothing secret

    def began(self, check: Check, number: int, total: int) -> None:  # noqa: ARG002 one seed a check, whatever ran before
        self.random.seed(check.id)


def _run(target: Target, base: str, checks: list[Check]) -> Report:
    listener = _Repeatable()
    drawn = SimpleNamespace(randbits=listener.random.getrandbits)
    # A folder of its own, for one of the faults writes into the one that it works in.
    with TemporaryDirectory() as folder, chdir(folder), Capture(), patch("anyengine.runtime.resolve.secrets", drawn):
        # A fault that hangs is not waited for as long as an engine may need to clean up; and it is held against every
        # check, for what each makes of it is what is proved.
        runner = Runner(_settings(base), target=target, bench=Bench(grace=1.0), listener=listener, probe=False)
        try:
            runner.open()
            return runner.run(checks)
        finally:
            runner.close()


def hold(fault: Fault, *, cross: bool) -> FaultFound:
    """Run the check of a fault against it, and with ``cross`` every core check; all checks if it is ``wide``."""
    started = time.monotonic()
    tiers = {"core", "extension"} if fault.wide else {"core"}
    checks = [made for made in all_checks() if made.id == fault.check or (cross and made.tier in tiers)]
    report = _run(fault, fault.base, checks)
    failed = {result.id: result for result in report.results if result.outcome in _BAD}
    own = next(result for result in report.results if result.id == fault.check)
    others = set(failed) - {fault.check}
    stale = sorted(set(fault.also_fails) - others)
    return FaultFound(
        name=fault.name,
        check=fault.check,
        what=fault.what,
        caught=own.outcome in _BAD,
        outcome=f"{own.outcome}: {own.reason}" if own.reason else own.outcome,
        undeclared={name: failed[name].reason for name in sorted(others - set(fault.also_fails))},
        stale=stale if cross else [],
        duration=round(time.monotonic() - started, 3),
    )


def write_declared(outcome: SelfTest) -> None:
    """Take what was found as what is declared; for authors, whose diff is then reviewed."""
    known = {f"{one.check}/{one.name}": one for one in all_faults()}
    for family in {found.check.partition(".")[0] for found in outcome.faults}:
        file = declared_file(family)
        declared: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        for found in outcome.faults:
            name = f"{found.check}/{found.name}"
            if found.check.startswith(f"{family}."):
                declared[name] = sorted({*found.undeclared, *(set(known[name].also_fails) - set(found.stale))})
        kept = {name: also for name, also in sorted(declared.items()) if also and name in known}
        file.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _hold_by_name(number: int, cross: bool) -> FaultFound:  # noqa: FBT001 positional through the pool
    return hold(all_faults()[number], cross=cross)


def selftest(
    only: Collection[str] = (),
    *,
    cross: bool = True,
    say: Callable[[str], None] | None = None,
    processes: int | None = None,
) -> SelfTest:
    """Hold every check against a healthy engine, and every broken engine against its check.

    Args:
        only: families or checks whose faults are tried; all without any.
        cross: hold each fault against every core check too, and wide ones against every check.
        say: hears a line for each fault.
        processes: that work at once; without it, twice the number of processors.
    """
    started = time.monotonic()
    tell = say or _silent
    checks = select(only)
    ids = {made.id for made in checks}
    every = all_faults()
    known = {made.id for made in all_checks()}
    chosen = [number for number, made in enumerate(every) if made.check in ids]
    bases = sorted({"simulated", *(every[number].base for number in chosen)})
    healthy = [line for base in bases for line in _healthy(base, _of_base(base, checks, every))]
    for line in healthy:
        tell(f"HEALTHY ENGINE FAILS {line}")
    found: list[FaultFound] = []
    for result in _all(chosen, cross=cross, processes=processes or _PROCESSES * (os.cpu_count() or 1)):
        again = cross and result.caught and not result.good
        tell(_line(result) + ("\n           held again, alone, in the end" if again else ""))
        found.append(result)
    found = [_settled(one, every) if cross and one.caught and not one.good else one for one in found]
    for one in found:  # what is not as declared stands at the end, where a log that is cut still has it
        if one.first or not one.good:
            tell(_line(one))
    outcome = SelfTest(
        healthy=healthy,
        without_fault=sorted(ids - {made.check for made in every}),
        unknown=sorted({made.check for made in every} - known),
        faults=sorted(found, key=lambda one: (one.check, one.name)),
        duration=round(time.monotonic() - started, 3),
    )
    for name in outcome.without_fault:
        tell(f"NO FAULT FOR {name}")
    for name in outcome.unknown:
        tell(f"NO CHECK {name}, WHICH A FAULT NAMES")
    caught = sum(one.good for one in found)
    tell(
        f"{'good' if outcome.good else 'NOT good'}: {caught} of {len(found)} faults as declared, {len(checks)} checks, "
        f"{outcome.duration:.0f} s"
    )
    return outcome


def _silent(_: str) -> None:
    pass


def _of_base(base: str, checks: list[Check], faults: list[Fault]) -> list[Check]:
    """The simulated engine passes everything; another base only what is held against it."""
    wanted = {made.check for made in faults if made.base == base}
    return [made for made in checks if base == "simulated" or made.id in wanted]


def _healthy(base: str, checks: list[Check]) -> list[str]:
    report = _run(Healthy(base), base, checks)
    return [f"{base}: {result.id}: {result.outcome}: {result.reason}" for result in report.results if not result.good]


def _all(numbers: list[int], *, cross: bool, processes: int) -> Iterable[FaultFound]:
    if processes == 1 or len(numbers) < processes:
        for number in numbers:
            yield _hold_by_name(number, cross)
        return
    # Spawned: a fork would copy the threads' locks as they happen to be.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_hold_by_name, numbers, [cross] * len(numbers))


def _settled(found: FaultFound, every: Sequence[Fault]) -> FaultFound:
    """What comes of a fault that is held a second time, alone.

    What the other checks make of a broken engine hangs on its timing too, and beside other processes that is another
    one. Whether its own check catches it does not, so that has to be right the first time.
    """
    fault = next(one for one in every if (one.name, one.check) == (found.name, found.check))
    return replace(hold(fault, cross=True), first=_deviations(found))


def _deviations(found: FaultFound) -> list[str]:
    parts = [f"also fails, undeclared: {name}: {reason}" for name, reason in found.undeclared.items()]
    return parts + ([f"declared to fail too, and does not: {', '.join(found.stale)}"] if found.stale else [])


def _line(found: FaultFound) -> str:
    told = "caught" if found.caught else "NOT CAUGHT"
    parts = [f"{told:<10} {found.check}: {found.what} ({found.name}, {found.duration:.1f} s)"]
    if not found.caught:
        parts.append(f"           outcome {found.outcome}")
    parts += [f"           {deviation}" for deviation in _deviations(found)]
    return "\n".join(parts)
