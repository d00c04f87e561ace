"""The page and the tables for the README, made of what was found."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from scoreboard import abilities, conformance, quality, speed
from scoreboard.reports import Step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scoreboard.reports import Found

__all__ = ["can_do", "markdown", "page"]

#: Folder of the page, from the repository's root.
PAGE = "docs/scoreboard.html"


def page(found: Found) -> str:
    """HTML with everything in it; it names no day of its own, so that it follows from the reports alone."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"link": _link, "code": _code, "whole_dates": _dates}
    sections = (
        ("parity", "Parity", quality.parity(found)),
        ("drift", "Drift of quantised checkpoints", quality.drift(found)),
        ("concurrency", "Throughput against concurrency", speed.concurrency(found)),
        ("speculation", "Speculation", speed.speculation(found)),
        ("overhead", "Overhead over the engines' own API", speed.overhead(found)),
        ("api", "The API by itself", speed.own_overhead(found)),
    )
    return environment.get_template("page.html").render(
        rows=conformance.rows(found),
        families=conformance.families(),
        failures=conformance.told(found, expected=False),
        expected=conformance.told(found, expected=True),
        sections=sections,
        unfinished=[file for file in found.of(Step) if file.content.outcome not in ("passed", "failed")],
        others=found.others,
    )


def _link(target: str) -> str:
    """From the page to a file of the repository, or as it is to another site."""
    return target if target.startswith("https://") else f"../{target}"


def _code(text: str) -> Markup:
    """What stands between backticks, as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 escaped


def _dates(text: str) -> Markup:
    """Days as elements, which no line breaks within."""
    return Markup(re.sub(r"\d{4}-\d\d-\d\d", r"<time>\g<0></time>", str(escape(text))))  # noqa: S704 escaped


def markdown(found: Found) -> str:
    """What was run on what, a row each; what came of each family of checks is on the page."""
    rows = conformance.rows(found)
    if not rows:
        return "Not measured."
    facts = [
        (
            f"**{row.label}**",
            row.device if row.place == "GPU" else row.place,
            row.version,
            f"{row.model}, {row.dtype}",
            f"{row.date}, {_commit(row.commit)}",
            f"{row.total.short}, of {row.suite}",
            f"[report]({row.report})",
        )
        for row in rows
    ]
    titles = ("configuration", "on", "engine's version", "model", "date, commit", "all checks", "from")
    stars = "; * also fails as expected" if any(row.total.expected for row in rows) else ""
    basis = (
        f"Numbers of checks: *passed / failed / unsupported and refused*{stars}. What is **simulated** (*sim.*) says\n"
        "that the plugin keeps the contract as far as its simulation goes, and nothing about the engine; such rows\n"
        f"come last and are never mixed with what ran on hardware. [The page]({PAGE}) has the families of checks,\n"
        "the reasons, parity and speed: open it from a checkout."
    )
    return f"{basis}\n\n{_table(titles, facts)}"


def can_do(found: Found) -> str:
    """A table: what each configuration can do."""
    if not abilities.columns(found):
        return "Not measured."
    return _table(("", *abilities.columns(found)), abilities.lines(found))


def _commit(commit: str) -> str:
    return commit if commit == conformance.NOT_RECORDED else f"`{commit}`"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
