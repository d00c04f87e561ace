"""``anyengine engines``: what is installed, what is not and why, what each can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import click

from anyengine.cli.output import Output, common_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anyengine.environments import DescribedEngine
    from anyengine.plugins import InstalledEngine

__all__ = ["engines"]


@dataclass(frozen=True, slots=True)
class _Place:
    """An engine, and where it runs: an environment's name, None for this interpreter."""

    engine: DescribedEngine
    environment: str | None


@click.command()
@click.argument("name", required=False)
@common_options
@click.pass_obj
def engines(output: Output, /, name: str | None) -> None:
    """List the engines, here and in environments, or all that NAME can do."""
    from anyengine.plugins import find_engine, find_engines  # noqa: PLC0415 heavy for `--help`

    here = find_engines()
    places = [_Place(_described(engine), None) for engine in here.values()]
    ready = {place.engine.name for place in places if place.engine.reason is None}
    if name is None or name not in ready:
        # What can run in this interpreter needs no other.
        elsewhere = [place for place in _in_environments() if place.engine.name not in ready]
        places = sorted([*places, *elsewhere], key=lambda place: place.engine.name)
    if name is not None:
        places = [place for place in places if place.engine.name == name]
        if name not in here and places:
            _show(output, places[0])
            return
        find_engine(name)  # raises what a load of it would raise
        _show(output, next((place for place in places if place.engine.reason is None), places[0]))
    elif output.json:
        output.document([_document(place) for place in places])
    elif places:
        output.table(_HEADINGS, [_row(place) for place in places])
    else:
        output.text("no engine is installed; the reference engine comes with the package anyengine-reference")


_HEADINGS = ("ENGINE", "STATUS", "PACKAGE", "VERSION", "RUNS IN", "MODELS")


def _described(engine: InstalledEngine) -> DescribedEngine:
    """An engine of this interpreter in the words of another's."""
    from anyengine.worker.describe import describe_engine  # noqa: PLC0415 heavy for `--help`

    return describe_engine(engine)


def _in_environments() -> Iterator[_Place]:
    """The engines of environments that work; `anyengine env list` shows those that do not."""
    from anyengine.environments.registry import environments, refreshed  # noqa: PLC0415 heavy for `--help`
    from anyengine.errors import EnvironmentFailed  # noqa: PLC0415

    for environment in environments():
        try:
            described = refreshed(environment).described
        except EnvironmentFailed:
            continue
        for engine in described.engines if described else ():
            yield _Place(engine, environment.name)


def _status(engine: DescribedEngine) -> str:
    if engine.broken is not None:
        return f"broken: {engine.broken}"
    return "ready" if engine.unavailable is None else f"not available: {engine.unavailable}"


def _row(place: _Place) -> tuple[str, ...]:
    engine = place.engine
    models = ", ".join(f"{name} (default)" if name == engine.default_model else name for name in engine.models)
    return (
        engine.name,
        _status(engine),
        engine.distribution,
        engine.engine_version or "",
        place.environment or "here",
        models,
    )


def _document(place: _Place) -> dict[str, Any]:
    engine = place.engine
    document: dict[str, Any] = {
        "name": engine.name,
        "status": _status(engine).partition(":")[0],
        "reason": engine.reason,
        "package": engine.distribution,
        "environment": place.environment,
    }
    if engine.broken is None:
        document |= {
            "engine_version": engine.engine_version,
            "in_process": engine.in_process,
            "models": sorted(engine.models),
            "default_model": engine.default_model,
            "capabilities": engine.capabilities,
        }
    return document


def _show(output: Output, place: _Place) -> None:
    if output.json:
        output.document(_document(place))
        return
    output.table(
        ("ENGINE", place.engine.name),
        [
            *((heading.lower(), value) for heading, value in list(zip(_HEADINGS, _row(place), strict=True))[1:]),
            *((name, _readable(value)) for name, value in place.engine.capabilities.items()),
        ],
    )


def _readable(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (list, tuple)):
        return str(value)
    parts = [
        f"{part['first']} with {part['second']} ({part['reason']})" if isinstance(part, dict) else str(part)
        for part in cast("Sequence[Any]", value)
    ]
    return ", ".join(parts) or "none"
