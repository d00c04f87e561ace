"""What a run found: one :class:`Result` a check, one :class:`Report` a run. The JSON schema beside it says the same."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

__all__ = ["OUTCOMES", "Environment", "Outcome", "Report", "Result", "SubjectFacts", "Suite"]

Outcome = Literal["passed", "failed", "unsupported", "xfailed", "xpassed", "error", "not-run"]
#: Every outcome: what people call it, and whether a run with it is as expected.
OUTCOMES: dict[Outcome, tuple[str, bool]] = {
    "failed": ("failed", False),
    "error": ("error", False),
    "xpassed": ("passed, though a failure was expected", False),
    "xfailed": ("failed as expected", True),
    "not-run": ("not run", True),
    "unsupported": ("unsupported and refused", True),
    "passed": ("passed", True),
}


class Result(Struct, kw_only=True):
    """What one check found.

    Attributes:
        id: of the check.
        family: the first part of it.
        must: the requirement.
        tier: ``core`` or ``extension``.
        variant: configuration that it ran on.
        outcome: see :data:`OUTCOMES`.
        expectation: what would have been as expected: ``pass``, ``refuse`` (something is not declared), ``fail``.
        reason: why it ended so, in a sentence; empty for ``passed``.
        asked: the calls, one a line.
        expected: what the engine should have done.
        seen: what it did.
        advice: what to do about it.
        example: smallest input that fails, of a check that tries many.
        log: last lines that were written to stdout or stderr meanwhile.
        duration: seconds.
        seed: of what the check drew.
        command: repeats just this check.
    """

    id: str
    family: str
    must: str
    tier: str
    variant: str
    outcome: Outcome
    expectation: Literal["pass", "refuse", "fail"] = "pass"
    reason: str = ""
    asked: str = ""
    expected: str = ""
    seen: str = ""
    advice: str = ""
    example: str = ""
    log: str = ""
    duration: float = 0.0
    seed: int = 0
    command: str = ""

    @property
    def good(self) -> bool:
        """Whether this is as expected."""
        return OUTCOMES[self.outcome][1]


class Suite(Struct, kw_only=True):
    """Which suite ran, and how.

    Attributes:
        version: of the distribution.
        profile: ``certify`` or ``explore``.
        seed: that all others come from.
        complete: whether every check of the suite was asked for, and has its result.
        oracle: engine that exact scores come from.
    """

    version: str
    profile: str
    seed: int
    complete: bool
    oracle: str


class SubjectFacts(Struct, kw_only=True):
    """What was tested; None for what could not be learnt.

    Attributes:
        engine: its name.
        engine_version: of the engine library.
        plugin_version: of the plugin.
        model: as it was named.
        revision: commit of a hub model.
        dtype: of the weights.
        device: in the engine's words.
        max_model_len: context in tokens.
        config: fields of EngineConfig for every load.
        capabilities: as declared after the load.
        simulated: whether it was a simulation of the engine; says nothing of the real one then.
    """

    engine: str
    engine_version: str | None = None
    plugin_version: str | None = None
    model: str | None = None
    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    max_model_len: int | None = None
    config: dict[str, object] = field(default_factory=dict[str, object])
    capabilities: dict[str, object] | None = None
    simulated: bool = False


class Environment(Struct, kw_only=True):
    """Where it ran.

    Attributes:
        platform: operating system and machine.
        python: version.
        cpus: logical processors.
        accelerators: name of each.
        packages: distribution → version, of what takes part.
        commit: of the checkout that the suite runs from, as ``git describe`` says it; several, with commas, where
            parts of a run had several; None for an installed one.
    """

    platform: str
    python: str
    cpus: int | None
    accelerators: list[str]
    packages: dict[str, str]
    commit: str | None = None


class Report(Struct, kw_only=True):
    """A run.

    Attributes:
        schema: version of the JSON schema.
        started: time in UTC, ISO 8601.
        duration: seconds.
        suite: which checks.
        subject: which engine.
        environment: where.
        results: one a check, in the suite's order.
        stopped: why the run ended before all its checks had, in words; the others have no result. Empty if it did not.
        checksum: of everything else; a report that was edited does not fit it.
    """

    schema: str = "1"
    started: str
    duration: float
    suite: Suite
    subject: SubjectFacts
    environment: Environment
    results: list[Result]
    stopped: str = ""
    checksum: str = ""

    def counts(self) -> dict[Outcome, int]:
        """Number of results by outcome, in the order of :data:`OUTCOMES`; only those that occur."""
        every = [result.outcome for result in self.results]
        return {outcome: every.count(outcome) for outcome in OUTCOMES if outcome in every}

    @property
    def good(self) -> bool:
        """Whether everything was as expected, and all that was asked for ran, and anything at all."""
        return bool(self.results) and not self.stopped and all(result.good for result in self.results)
