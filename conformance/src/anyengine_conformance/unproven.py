"""What an engine declares and a run could not show, and why: its checks want an oracle, or what is not declared."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec
from anyengine import Capabilities

from anyengine_conformance.check import all_checks, variants
from anyengine_conformance.families.knobs_fields import ALSO, COVERED
from anyengine_conformance.needs import declared, parse
from anyengine_conformance.oracle import NEEDS_ORACLE
from anyengine_conformance.report import BadReport

if TYPE_CHECKING:
    from anyengine_conformance.check import Check
    from anyengine_conformance.results import Report, Result

__all__ = ["NAME_ONE", "reason", "unproven", "without_oracle"]

#: What to do where an oracle lacked.
NAME_ONE = (
    "to prove it, load a real checkpoint and name what computes it exactly, as `oracle` in conformance.toml or with "
    "--oracle: `reference`, or `transformers` for other architectures"
)

#: Other checks of such a field may have run, and failed even: they look at form, at neighbours, or at one value.
_SHORT = "the full effect of these declared fields is not shown"


def without_oracle(report: Report) -> int:
    """Number of checks that did not run for want of an oracle."""
    return sum(_wants_oracle(result) for result in report.results)


def unproven(report: Report) -> list[str]:
    """Capabilities that the engine declares, whose checks of this run did not show their full effect, by name.

    What no check is about (tensor parallelism, say, which needs devices) is not among them.

    A field of a request, of sampling or of the configuration has *the* check of its effect (``COVERED``, which every
    field must be in). Where that one needs something else that is not declared, the other checks of it speak for the
    field (``ALSO``); what only uses it as a tool does not, for that passes without it. For what is no field, it is the
    checks whose first need it is. One of those that lacked an oracle leaves it unproven, whatever the others found.

    Raises:
        BadReport: it declares what this version does not know.
    """
    capabilities = _capabilities(report)
    return [] if capabilities is None else [name for name, _ in _idle(report, capabilities)]


def _idle(report: Report, capabilities: Capabilities) -> list[tuple[str, list[Result]]]:
    """What is unproven, each with the results that leave it so."""
    results = {result.id: result for result in report.results}
    about = _about()
    found: list[tuple[str, list[Result]]] = []
    for name in dict.fromkeys((*COVERED, *about)):
        if not declared(name, capabilities):
            continue
        the = COVERED.get(name, "reason: it is no field")
        ids = about[name] if the.startswith("reason: ") else (the, *ALSO.get(name, ()))
        shown = [results[made] for made in ids if made in results]
        if shown and shown[0].id == the and shown[0].outcome != "unsupported":
            shown = shown[:1]
        idle = [result for result in shown if result.outcome in ("not-run", "unsupported")]
        if shown and (len(idle) == len(shown) or any(_wants_oracle(result) for result in idle)):
            found.append((name, idle))
    return found


def _capabilities(report: Report) -> Capabilities | None:
    """As declared after the load, if the engine loaded."""
    if report.subject.capabilities is None:
        return None
    try:
        return msgspec.convert(report.subject.capabilities, Capabilities)
    except msgspec.ValidationError as error:
        message = f"subject.capabilities: not as this version of anyengine writes them: {error}"
        raise BadReport(message, field="subject.capabilities") from error


def reason(report: Report, mark: str = "") -> str:
    """What went unproven, and why, in a sentence without its full stop; empty where nothing did.

    Args:
        report: of the run.
        mark: what stands on both sides of a field's name.
    """
    names, left = _told(report, mark), without_oracle(report)
    if not left:
        return f"{_SHORT}, for the checks of it did not run: {names}" if names else ""
    lacking = f"{left} check{'s' if left > 1 else ''} did not run for want of an oracle"
    lacking += ": nothing was compared with exact scores"
    return f"{lacking}, and {_SHORT}, whatever else was checked of them: {names}" if names else lacking


def _told(report: Report, mark: str) -> str:
    """The unproven names; those of one cause together, with it in parentheses, but where that is the oracle."""
    capabilities = _capabilities(report)
    if capabilities is None:
        return ""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name, idle in _idle(report, capabilities):
        groups[_why(idle, capabilities, mark)].append(f"{mark}{name}{mark}")
    return "; ".join(", ".join(names) + (f" ({why})" if why else "") for why, names in groups.items())


def _why(idle: list[Result], capabilities: Capabilities, mark: str) -> str:
    """What the engine would have to declare for these checks, or why else they did not run; empty for the oracle."""
    if any(_wants_oracle(result) for result in idle):
        return ""
    checks = {made.id: made for made in all_checks()}
    lacking: list[list[str]] = []
    others: list[str] = []
    for result in idle:
        missing = [need for need in _needs(checks[result.id]) if not declared(need, capabilities)]
        if result.outcome == "unsupported" and missing:
            lacking.append(missing)
        else:
            others.append(result.reason)
    # What asks for more than another check does is no way to prove it.
    least = [these for these in lacking if not any(set(those) < set(these) for those in lacking)]
    ways = dict.fromkeys(" and ".join(f"{mark}{need}{mark}" for need in these) for these in least)
    return "; ".join([*([f"the checks need {' or '.join(ways)}"] if ways else []), *dict.fromkeys(others)])


def _wants_oracle(result: Result) -> bool:
    return result.outcome == "not-run" and result.reason.startswith(NEEDS_ORACLE)


def _needs(made: Check) -> tuple[str, ...]:
    return (*variants()[made.variant].needs, *made.needs)


def _about() -> defaultdict[str, list[str]]:
    """Capability → ids of the checks whose first need it is; that of their configuration comes before their own."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for made in all_checks():
        needs = _needs(made)
        if needs and parse(needs[0]).kind != "stats":  # these are not declared
            found[needs[0].removesuffix(".raw")].append(made.id)
    return found
