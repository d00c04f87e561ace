"""What happens on the engine's event loop for one check: whether it applies, and the check itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from anyengine import AnyEngineError, EngineDied, EngineUnresponsive, PluginError

from anyengine_conformance.check import DEFAULT, OWN, variants
from anyengine_conformance.context import Context
from anyengine_conformance.needs import conflicting, declared, parse, reported
from anyengine_conformance.refusals import negative, refuse_together
from anyengine_conformance.violation import NotApplicable, Violation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyengine import Capabilities, Engine

    from anyengine_conformance.bench import Hung, Overran
    from anyengine_conformance.check import Check
    from anyengine_conformance.oracle import Oracle
    from anyengine_conformance.results import Outcome
    from anyengine_conformance.subject import Garage

__all__ = ["Session", "Verdict"]


@dataclass(slots=True)
class Verdict:
    """How a check ended, before expected failures are looked at."""

    outcome: Outcome
    expectation: Literal["pass", "refuse"] = "pass"
    reason: str = ""
    violation: Violation | None = None
    seed: int = 0
    log: str = ""


class Session:
    """Plans and judges checks."""

    def __init__(self, garage: Garage, oracle: Callable[[], Awaitable[Oracle]], profile: str, base_seed: int) -> None:
        self._garage = garage
        self._oracle = oracle
        self._profile = profile
        self._base_seed = base_seed
        self._context: Context | None = None
        self._loaded: Capabilities | None = None

    async def plan(self, made: Check) -> Engine | Verdict:
        """The engine that a check runs on; or, where that must not load, what became of the refusal.

        Raises:
            LoadFailed: it does not load.
        """
        needs = (*variants()[made.variant].needs, *made.needs)
        missing = [need for need in needs if parse(need).at_load and not declared(need, await self._before_load())]
        if missing:
            return await self._negative(made, None, missing)
        lacking = self._garage.lacks(made.variant)
        if lacking:
            return Verdict("not-run", reason=lacking)
        engine = await self._garage.engine(made.variant)
        if made.variant == DEFAULT:
            self._loaded = engine.capabilities
        return engine

    async def _before_load(self) -> Capabilities:
        """What is declared for configurations: by the engine as it is loaded, for a plugin in general, and one in an
        interpreter without its engine, declare what this model, device or environment cannot do.
        """
        if self._loaded is None:
            self._loaded = (await self._garage.engine(DEFAULT)).capabilities
        return self._loaded

    async def judge(self, made: Check, engine: Engine | None) -> Verdict:  # noqa: PLR0911 one for each way to end
        """Run a check, or its negative where the engine does not declare what it needs."""
        needs = (*variants()[made.variant].needs, *made.needs)
        capabilities = await self._before_load() if engine is None else engine.capabilities
        missing = [need for need in needs if not declared(need, capabilities)]
        if missing:
            return await self._negative(made, engine, missing)
        conflict = conflicting(needs, capabilities)
        context = self._new_context(made, engine)
        try:
            if conflict is not None:
                await refuse_together(context, conflict[:2], conflict[2])
                reason = f"declared conflict of {conflict[0]} and {conflict[1]}: {conflict[2]}"
                return self._verdict("unsupported", "refuse", reason)
            silent = [need for need in needs if parse(need).kind == "stats" and not await self._reports(context, need)]
            if silent:
                return self._verdict(
                    "unsupported", "refuse", f"the engine reports no {', '.join(silent)}: it says None"
                )
            await made.function(context)
        except NotApplicable as error:
            return self._verdict("not-run", "pass", str(error))
        except Violation as violation:
            return self._failed(violation, "pass" if conflict is None else "refuse")
        except (EngineDied, EngineUnresponsive):
            raise
        except AnyEngineError as error:
            return self._failed(_unexpected(context, error), "pass")
        return self._verdict("passed", "pass", "")

    async def _reports(self, context: Context, need: str) -> bool:
        """Some engines know a number only once they have worked."""

        async def warm() -> None:
            await context.generate(max_tokens=4)  # greedy, for which all have what they declare
            await context.engine.stats()

        await context.once("warm", warm)
        return reported(need, await context.engine.stats())

    async def _negative(self, made: Check, engine: Engine | None, missing: list[str]) -> Verdict:
        if engine is None and made.variant == OWN and not all(parse(need).at_load for need in missing):
            engine = await self._garage.engine(DEFAULT)  # requests are refused by a loaded engine
        context = self._new_context(made, engine)
        context.notes.setdefault("refused", set())
        told = f"not declared: {', '.join(missing)}"
        try:
            for need in missing:
                if need not in context.notes["refused"]:
                    await negative(context, need)
                    context.notes["refused"].add(need)
        except NotApplicable as error:
            return self._verdict("unsupported", "refuse", f"{told} ({error})")
        except Violation as violation:
            return self._failed(violation, "refuse")
        return self._verdict("unsupported", "refuse", told)

    def late(self, made: Check, error: Overran | Hung, *, loading: bool) -> Verdict:
        """What it means that something did not end."""
        if loading:
            return Verdict("error", reason=f"loading the variant {made.variant!r} {error}")
        return self._failed(
            Violation(
                expected=f"an end within {made.deadline * self._garage.settings.time_factor:g} s, the check's deadline",
                seen=f"the check {error}",
                asked="" if self._context is None else self._context.calls,
                advice="the last call in `asked` did not come back; see what it waits for. If the engine is only slow, "
                "stretch the deadlines with subject.time_factor in conformance.toml",
            ),
            "pass",
        )

    def _new_context(self, made: Check, engine: Engine | None) -> Context:
        self._context = Context(
            made,
            engine,
            self._garage,
            self._oracle,
            profile=self._profile,
            base_seed=self._base_seed,
        )
        return self._context

    def _verdict(self, outcome: Outcome, expectation: Literal["pass", "refuse"], reason: str) -> Verdict:
        return Verdict(outcome, expectation, reason, seed=self._context.seed if self._context else 0)

    def _failed(self, violation: Violation, expectation: Literal["pass", "refuse"]) -> Verdict:
        if self._context is not None:
            violation.asked = violation.asked or self._context.calls
            violation.example = violation.example or self._context.example
        verdict = self._verdict("failed", expectation, f"expected {violation.expected}; seen: {violation.seen}")
        verdict.violation = violation
        return verdict


def _unexpected(context: Context, error: AnyEngineError) -> Violation:
    """An error where none was expected is the engine's answer, and it is wrong."""
    field = f" with field {error.field!r}" if error.field else ""
    return context.fail(
        expected="no error",
        seen=f"{type(error).__name__}{field}: {error}",
        advice=_BUG if isinstance(error, PluginError) else _HONOUR,
    )


_HONOUR = (
    "what is declared must be honoured for every valid value; see what raised it, and mend that, or do not declare the "
    "capability"
)
_BUG = (
    "a bug in the plugin, which the SDK stopped before the caller saw its output: `seen` says what the plugin did; the "
    "rules stand with Backend.stream and TokenDelta in docs/api/backend.md. An exception of the engine belongs in the "
    "plugin's map of errors"
)
