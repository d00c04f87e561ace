"""Runs checks against an engine, and makes of whatever happens one result each."""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec
from anyengine import AnyEngineError, EngineConfig, EngineDied, EngineUnresponsive, InvalidConfig
from anyengine.suggestions import suggested

from anyengine_conformance import environment
from anyengine_conformance.bench import Bench, Hung, Overran
from anyengine_conformance.check import OWN, all_checks, variants
from anyengine_conformance.interrupts import accepted
from anyengine_conformance.oracle import NEEDS_ORACLE, NO_ORACLE, EngineOracle, OracleFailed
from anyengine_conformance.probe import Probe, Silent
from anyengine_conformance.report import signed
from anyengine_conformance.results import Report, Result, SubjectFacts, Suite
from anyengine_conformance.session import Session, Verdict
from anyengine_conformance.subject import Garage, LoadFailed, Target, target_of
from anyengine_conformance.violation import NotApplicable, logged

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from anyengine import Engine
    from anyengine.backend import EngineDescription
    from anyengine.environments import DescribedEngine

    from anyengine_conformance.check import Check
    from anyengine_conformance.oracle import Oracle
    from anyengine_conformance.settings import ExpectedFailure, Settings

__all__ = ["Listener", "Runner", "in_order", "select"]

#: Seconds for closing an engine; and if somebody waits for the end.
_CLOSING, _HURRY = 60.0, 5.0


class Listener:
    """Hears how a run goes on; the default says nothing."""

    def began(self, check: Check, number: int, total: int) -> None:
        """A check starts; the engine may have to be loaded for it first."""

    def ended(self, result: Result) -> None:
        """A check has its result."""

    def written(self) -> str:
        """What was written to stdout and stderr since this was asked last."""
        return ""


def select(only: Collection[str]) -> list[Check]:
    """Checks by family, id, or the beginning of an id; all without any.

    Raises:
        InvalidConfig: a name fits none.
    """
    every = all_checks()
    for name in only:
        if not any(_fits(made, name) for made in every):
            families = list(dict.fromkeys(made.family for made in every))
            known = [*families, *(made.id for made in every)]
            there_are = f"the families are {', '.join(families)}; `anyengine conformance list` shows the checks"
            raise InvalidConfig(
                f"--only: there is no family or check {name!r}; {suggested(name, known, there_are)}", field="only"
            )
    return [made for made in every if not only or any(_fits(made, name) for name in only)]


def _fits(made: Check, name: str) -> bool:
    return name in (made.family, made.id) or made.id == name.replace("/", ".")


def in_order(checks: Sequence[Check]) -> list[Check]:
    """The default variant first, checks with engines of their own last: each variant is loaded once."""
    names = [*(name for name in variants() if name != OWN), OWN]
    return sorted(checks, key=lambda made: names.index(made.variant))


class Runner:
    """One engine under test. Not for an event loop: it has its own, and outlives an engine that blocks it.

    Args:
        settings: of the subject.
        target: what loads it, instead of what the settings name.
        profile: ``certify`` repeats itself exactly, ``explore`` draws anew.
        seed: what ``explore`` starts from; None draws it.
        expected: failures that are expected, by id.
        listener: hears what happens.
        base: the command line that the command of a result begins with.
        probe: whether a check that lost its engine (it hung, or died) makes the next one ask first whether another
            answers at all; where it does not, nothing more is run on it. Else every check waits for its own deadline.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        target: Target | None = None,
        profile: str = "certify",
        seed: int | None = None,
        expected: Mapping[str, ExpectedFailure] | None = None,
        listener: Listener | None = None,
        base: Sequence[str] = (),
        bench: Bench | None = None,
        probe: bool = True,
    ) -> None:
        self.settings = settings
        self.profile = profile
        self.seed = 0 if profile == "certify" else time.time_ns() % 2**31 if seed is None else seed
        model = settings.config.get("model")
        about = {name: entry for name, entry in (expected or {}).items() if entry.is_about(model)}
        self._expected: Mapping[str, ExpectedFailure] = about
        self._listener = listener or Listener()
        subject = [settings.engine] if settings.file is None else ["--config", os.path.relpath(settings.file)]
        self._base = list(base) or ["anyengine", "conformance", "run", *subject]
        self._bench = bench or Bench()
        self._garage = Garage(target or target_of(settings), settings)
        self._probe = Probe(self._garage, self._bench, enabled=probe)
        self._session = Session(self._garage, self._open_oracle, profile, self.seed)
        self._oracle: Oracle | OracleFailed | None = None
        self._opening = asyncio.Lock()
        self._closing = _CLOSING
        self._facts = SubjectFacts(
            engine=settings.engine, model=settings.config.get("model"), simulated=settings.simulated
        )
        self._started = datetime.now(UTC)
        self._clock = time.monotonic()

    # -- the run ----------------------------------------------------------------------------------

    def open(self) -> None:
        """Learn what the plugin says about itself, and hold the expected failures against it.

        Raises:
            InvalidConfig: an expected failure has expired, or the factory raises or does not come back.
            AnyEngineError: as the plugin raised it.
        """
        try:
            description = self._bench.run(self._garage.target.describe(), self.settings.load_timeout)
        except AnyEngineError:
            raise
        except Exception as error:
            what = str(error) if isinstance(error, (Overran, Hung)) else f"raised {type(error).__name__}: {error}"
            place = f"subject.factory: {self.settings.factory}" if self.settings.factory else self.settings.engine
            raise InvalidConfig(
                f"{place} {what}, when it was asked for the plugin and its description; describe() must be quick, load "
                "nothing, and say in `unavailable` why an engine cannot run here",
                field="factory" if self.settings.factory else "engine",
            ) from error
        if description is not None:
            self._facts.engine_version = description.engine_version
            self._facts.plugin_version = description.plugin_version
            self._garage.described = description.capabilities
            self._garage.weights = description.weights
        elsewhere = self._facts.engine_version is None and self.settings.factory is None
        if elsewhere or "environment" in self.settings.config:
            there = self._bench.run(self._described_there(), self.settings.load_timeout)
            self._facts.engine_version = None if there is None else there.engine_version
            if there is not None:
                self._garage.weights = there.weights
        for entry in self._expected.values():
            reason = entry.expired(self._started.date(), self._facts.engine_version)
            if reason is not None:
                raise InvalidConfig(
                    f"xfails: the entry of {entry.id} {reason}; run the check, and renew the entry or delete it",
                    field=entry.id,
                )

    async def _described_there(self) -> EngineDescription | DescribedEngine | None:
        """Of an engine whose library is in an environment."""
        try:
            return environment.described_there(self.settings.engine, EngineConfig(**self.settings.config))
        except AnyEngineError:
            return None  # it has no place to run: the first load says so, and why

    def run(self, checks: Sequence[Check]) -> Report:
        """Run them, grouped by variant, and report in the suite's order; if interrupted, of those that have ended."""
        order = in_order(checks)
        found: dict[str, Result] = {}
        stopped, abandoned = "", self._bench.abandoned
        try:
            for number, made in enumerate(order):
                abandoned = self._bench.abandoned  # what an earlier check lost is lost already
                self._listener.began(made, number, len(order))
                found[made.id] = self.run_check(made)
                self._listener.ended(found[made.id])
        except KeyboardInterrupt as error:
            under_way = next((f", in {made.id}" for made in order if made.id not in found), "")
            stopped = f"interrupted by {accepted(error)} after {len(found)} of {len(order)} checks{under_way}"
            self._closing = _HURRY
            if self._bench.abandoned > abandoned:
                self._drop(lost=True)
        results = [found[made.id] for made in checks if made.id in found]
        complete = not stopped and len(checks) == len(all_checks())
        try:
            return self.report(results, complete=complete, stopped=stopped)
        except KeyboardInterrupt as error:  # all checks have ended: it takes nothing away
            accepted(error)
            return self.report(results, complete=complete, stopped=stopped)

    def report(self, results: list[Result], *, complete: bool, stopped: str = "") -> Report:
        """Put results together; see :class:`~anyengine_conformance.results.Report` for what is not one."""
        return signed(
            Report(
                started=self._started.isoformat(timespec="seconds"),
                duration=round(time.monotonic() - self._clock, 3),
                suite=Suite(
                    version=version("anyengine-conformance"),
                    profile=self.profile,
                    seed=self.seed,
                    complete=complete,
                    oracle=self.settings.oracle,
                ),
                subject=self._facts,
                environment=environment.gather(self.settings.engine),
                results=results,
                stopped=stopped,
            )
        )

    def close(self) -> None:
        """Close the engine and the oracle."""
        with suppress(Overran, Hung, Exception):
            self._bench.run(self._release(), self._closing)
        self._bench.close()

    async def _release(self) -> None:
        await self._garage.release()
        if self._oracle is not None and not isinstance(self._oracle, OracleFailed):
            await self._oracle.close()

    async def _open_oracle(self) -> Oracle:
        if self.settings.oracle == NO_ORACLE:
            raise NotApplicable(f"{NEEDS_ORACLE}, and the subject has no oracle ({NO_ORACLE!r})")
        async with self._opening:  # the answers of a batch are judged at once
            if self._oracle is None:
                try:
                    self._oracle = await EngineOracle.load(self.settings.oracle, await self._garage.checkpoint())
                except OracleFailed as error:  # not tried again for every check
                    self._oracle = error
        if isinstance(self._oracle, OracleFailed):
            raise self._oracle
        return self._oracle

    # -- one check --------------------------------------------------------------------------------

    def run_check(self, made: Check) -> Result:
        """Run one; nothing that an engine or a check does is raised."""
        self._listener.written()
        started = time.monotonic()
        verdict = self._verdict(made)
        entry = self._expected.get(made.id)
        result = Result(
            id=made.id,
            family=made.family,
            must=made.must,
            tier=made.tier,
            variant=made.variant,
            outcome=verdict.outcome,
            expectation=verdict.expectation,
            reason=logged(verdict.reason),
            duration=round(time.monotonic() - started, 3),
            seed=verdict.seed,
            command=shlex.join([*self._base, "--only", made.id]),
        )
        if verdict.violation is not None:
            violation = verdict.violation
            result.asked, result.expected, result.seen = violation.asked, violation.expected, violation.seen
            result.advice, result.example = violation.advice or made.advice, violation.example
        log = self._listener.written()
        if not result.good:
            result.log = logged("\n".join(filter(None, (verdict.log, log))))
        if entry is not None:
            _against(result, entry)
        return result

    def _verdict(self, made: Check) -> Verdict:  # noqa: PLR0911 one for each way to end
        try:
            self._probe.spare(made.variant)
            engine = None
            if made.variant != OWN:
                plan = self._bench.run(self._session.plan(made), self.settings.load_timeout)
                if isinstance(plan, Verdict):
                    return plan
                engine = plan
                self._learn(engine)
            self._probe.ask(made.variant, engine)
            limit = made.deadline * self.settings.time_factor
            return self._asked_after(self._bench.run(self._session.judge(made, engine), limit), limit)
        except (LoadFailed, OracleFailed) as error:
            return Verdict("error", reason=str(error))
        except Silent as silent:
            self._drop(lost=silent.hung)
            return Verdict("error", reason=str(silent), log=silent.log)
        except (Overran, Hung) as error:
            loading = made.variant != OWN and not self._garage.holds(made.variant)
            if loading:
                self._garage.failed(made.variant, error)
            verdict = self._session.late(made, error, loading=loading)
            self._drop(lost=isinstance(error, Hung))
            self._probe.doubt()
            return verdict
        except (EngineDied, EngineUnresponsive) as error:
            self._drop(lost=False)
            self._probe.doubt()
            reason = f"the engine is gone: {type(error).__name__}: {error}"
            lines = error.log_tail if isinstance(error, EngineDied) else ()
            return Verdict("error", reason=reason, log="\n".join(lines))
        except Exception as error:  # noqa: BLE001 a mistake of the suite is a result too, and the run goes on
            self._drop(lost=False)
            return Verdict("error", reason=f"the suite's own mistake: {type(error).__name__}: {error}")

    def _asked_after(self, verdict: Verdict, limit: float) -> Verdict:
        """The verdict, once it is known whether the engine outlived the check: which may have caught that it did not.

        A failure stays one, and says it too; after anything else the end of the engine is what there is to say.

        Raises:
            EngineDied, EngineUnresponsive, Overran, Hung: it did not, and the verdict is no failure.
        """
        violation = verdict.violation
        gone: BaseException | None = None if violation is None else violation.__cause__
        if not isinstance(gone, (EngineDied, EngineUnresponsive)):
            try:
                self._bench.run(self._garage.health(), limit)
            except (EngineDied, EngineUnresponsive, Overran, Hung) as error:
                gone = error
            except AnyEngineError:
                return verdict  # the checks of health() say what is wrong with it
            else:
                return verdict
        if violation is None:
            raise gone
        self._drop(lost=isinstance(gone, Hung))
        self._probe.doubt()
        told = "its health" if isinstance(gone, (Overran, Hung)) else f"{type(gone).__name__}:"
        # Most failures quote the error already.
        lost = "; the engine is gone with it" + ("" if str(gone) in violation.seen else f": {told} {gone}")
        violation.seen += lost
        verdict.reason += lost
        verdict.log = "\n".join(gone.log_tail) if isinstance(gone, EngineDied) else ""
        return verdict

    def _learn(self, engine: Engine) -> None:
        """Remember what the report says about the subject."""
        if self._facts.capabilities is not None:
            return
        info, facts = engine.info, self._facts
        facts.capabilities = _plain(info.capabilities)
        facts.dtype, facts.device, facts.max_model_len = info.dtype, info.device, info.max_model_len
        facts.model, facts.revision = engine.model.name, engine.model.revision
        facts.config = _plain(dict(self.settings.config))

    def _drop(self, *, lost: bool) -> None:
        """Let go of an engine that cannot be trusted any more; the next check loads another."""
        engine = self._garage.forget()
        if lost:
            self._oracle, self._opening = None, asyncio.Lock()  # they lived on the same loop
        elif engine is not None:
            with suppress(Overran, Hung, Exception):
                self._bench.run(engine.close(), self._closing)


def _plain(value: object) -> Any:
    """JSON data; sets become sorted lists."""
    return msgspec.json.decode(msgspec.json.encode(value, order="deterministic"))


def _against(result: Result, entry: ExpectedFailure) -> None:
    """Hold a result against the failure that was expected."""
    result.expectation = "fail"
    told = f"{entry.reason} ({entry.link})"
    if result.outcome == "failed":
        result.outcome, result.reason = "xfailed", told
    elif result.outcome == "passed":
        result.outcome = "xpassed"
        result.reason = f"expected to fail: {told}; it passes, so delete the entry"
    elif result.outcome != "error":
        reason = f"the entry is unmatched: the check is {result.outcome} ({result.reason}); delete it"
        result.outcome, result.reason = "error", reason
