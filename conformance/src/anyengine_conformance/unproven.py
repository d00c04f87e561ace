"""What an engine declares and a run could not show: the checks of it did not run, for want of an oracle or else."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec
from anyengine import Capabilities

from anyengine_conformance.check import all_checks, variants
from anyengine_conformance.families.knobs_fields import COVERED
from anyengine_conformance.needs import declared, parse
from anyengine_conformance.oracle import NEEDS_ORACLE
from anyengine_conformance.report import BadReport

if TYPE_CHECKING:
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
    field must be in); others use it as a tool, and pass without it. Where that check does not apply to the engine, and
    for what is no field, it is the checks whose first need it is. One of those that lacked an oracle leaves it
    unproven, whatever the others found.

    Raises:
        BadReport: it declares what this version does not know.
    """
    if report.subject.capabilities is None:
        return []
    try:
        capabilities = msgspec.convert(report.subject.capabilities, Capabilities)
    except msgspec.ValidationError as error:
        message = f"subject.capabilities: not as this version of anyengine writes them: {error}"
        raise BadReport(message, field="subject.capabilities") from error
    results = {result.id: result for result in report.results}
    about = _about()
    names = [name for name in dict.fromkeys((*COVERED, *about)) if declared(name, capabilities)]
    found: list[str] = []
    for name in names:
        own = results.get(COVERED.get(name, ""))
        others = [results[made] for made in about[name] if made in results]
        shown = [own] if own is not None and own.outcome != "unsupported" else others
        idle = [result for result in shown if result.outcome in ("not-run", "unsupported")]
        if shown and (len(idle) == len(shown) or any(_wants_oracle(result) for result in idle)):
            found.append(name)
    return found


def reason(report: Report, mark: str = "") -> str:
    """What went unproven, and why, in a sentence without its full stop; empty where nothing did.

    Args:
        report: of the run.
        mark: what stands on both sides of a field's name.
    """
    names, left = ", ".join(f"{mark}{name}{mark}" for name in unproven(report)), without_oracle(report)
    if not left:
        return f"{_SHORT}, for the checks of it did not run: {names}" if names else ""
    lacking = f"{left} check{'s' if left > 1 else ''} did not run for want of an oracle"
    lacking += ": nothing was compared with exact scores"
    return f"{lacking}, and {_SHORT}, whatever else was checked of them: {names}" if names else lacking


def _wants_oracle(result: Result) -> bool:
    return result.outcome == "not-run" and result.reason.startswith(NEEDS_ORACLE)


def _about() -> defaultdict[str, list[str]]:
    """Capability → ids of the checks whose first need it is; that of their configuration comes before their own."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for made in all_checks():
        needs = (*variants()[made.variant].needs, *made.needs)
        if needs and parse(needs[0]).kind != "stats":  # these are not declared
            found[needs[0].removesuffix(".raw")].append(made.id)
    return found
