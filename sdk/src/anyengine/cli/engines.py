"""``anyengine engines``: what is installed, what is not and why, what each can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import click

from anyengine.cli.output import Output, common_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyengine.capabilities import Capabilities
    from anyengine.plugins import InstalledEngine

__all__ = ["engines"]


@click.command()
@click.argument("name", required=False)
@common_options
@click.pass_obj
def engines(output: Output, /, name: str | None) -> None:
    """List the installed engines, or all that NAME can do."""
    from anyengine.plugins import find_engine, find_engines  # noqa: PLC0415 heavy for `--help`

    installed = find_engines()
    if name is not None:
        find_engine(name)  # raises what a load of it would raise
        _show(output, installed[name])
    elif output.json:
        output.document([_document(engine) for engine in installed.values()])
    elif installed:
        headings = ("ENGINE", "STATUS", "PACKAGE", "VERSION", "RUNS IN", "MODELS")
        output.table(headings, [_row(engine) for engine in installed.values()])
    else:
        output.text("no engine is installed; the reference engine comes with the package anyengine-reference")


def _status(engine: InstalledEngine) -> str:
    if engine.description is None:
        return f"broken: {engine.broken}"
    unavailable = engine.description.unavailable
    return "ready" if unavailable is None else f"not available: {unavailable}"


def _row(engine: InstalledEngine) -> tuple[str, ...]:
    about = engine.description
    if about is None:
        return engine.name, _status(engine), engine.distribution, "", "", ""
    place = "this process" if about.in_process else "environment"
    models = ", ".join(f"{name} (default)" if name == about.default_model else name for name in about.models)
    return engine.name, _status(engine), engine.distribution, about.engine_version or "", place, models


def _document(engine: InstalledEngine) -> dict[str, Any]:
    about = engine.description
    document: dict[str, Any] = {
        "name": engine.name,
        "status": _status(engine).partition(":")[0],
        "reason": engine.broken if about is None else about.unavailable,
        "package": engine.distribution,
    }
    if about is not None:
        document |= {
            "engine_version": about.engine_version,
            "in_process": about.in_process,
            "models": sorted(about.models),
            "default_model": about.default_model,
            "capabilities": _capabilities(about.capabilities),
        }
    return document


def _capabilities(capabilities: Capabilities) -> dict[str, Any]:
    """Every field as JSON-able data, sets in order."""
    import msgspec  # noqa: PLC0415 heavy for `--help`

    fields = {field.name: getattr(capabilities, field.name) for field in msgspec.structs.fields(capabilities)}
    # Sets in order: the same engine prints the same each time.
    return {
        name: sorted(cast("frozenset[str]", value)) if isinstance(value, frozenset) else msgspec.to_builtins(value)
        for name, value in fields.items()
    }


def _show(output: Output, engine: InstalledEngine) -> None:
    if output.json:
        output.document(_document(engine))
        return
    headings = ("ENGINE", "STATUS", "PACKAGE", "VERSION", "RUNS IN", "MODELS")
    facts = zip(headings, _row(engine), strict=True)
    capabilities = _capabilities(engine.description.capabilities) if engine.description else {}
    output.table(
        ("ENGINE", engine.name),
        [
            *((heading.lower(), value) for heading, value in list(facts)[1:]),
            *((name, _readable(value)) for name, value in capabilities.items()),
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
