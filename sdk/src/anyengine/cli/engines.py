"""``anyengine engines``: what is installed, what is not and why, what each can do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from anyengine.cli.output import Output, common_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anyengine.environments import DescribedEngine
    from anyengine.plugins import InstalledEngine

__all__ = ["engines"]


@dataclass(frozen=True, slots=True)
class _Place:
    """An engine in an interpreter.

    Attributes:
        engine: as it is there.
        environment: name of the environment; None for this interpreter.
        elsewhere: of an engine that cannot run there: names of the environments in which it can.
    """

    engine: DescribedEngine
    environment: str | None
    elsewhere: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """``ready``, ``not available`` or ``broken``."""
        if self.engine.broken is not None:
            return "broken"
        return "ready" if self.engine.unavailable is None else "not available"

    @property
    def reason(self) -> str | None:
        """Why it cannot run there, and where it can or which commands make a place for it; None if it can."""
        from anyengine.environments.description import why_unavailable  # noqa: PLC0415 heavy for `--help`

        if self.elsewhere:
            where = "the environment" if len(self.elsewhere) == 1 else "the environments"
            have = "has it" if len(self.elsewhere) == 1 else "have it"
            return f"{self.engine.reason}; {where} {', '.join(self.elsewhere)} {have}"
        return self.engine.broken or why_unavailable(self.engine)


@click.command()
@click.argument("name", required=False)
@click.option("--model", help="A folder or a hub id: say which engines can run it, and why the others cannot.")
@click.option("--revision", help="Of a hub model: branch, tag or commit.")
@common_options
@click.pass_obj
def engines(output: Output, /, name: str | None, model: str | None, revision: str | None) -> None:
    """List the engines, here and in environments, or all that NAME can do."""
    from anyengine.plugins import find_engine, find_engines  # noqa: PLC0415 heavy for `--help`

    if revision is not None and model is None:
        raise click.UsageError("--revision is of a --model")
    here = find_engines()
    places = [_Place(_described(engine), None) for engine in here.values()]
    ready = {place.engine.name for place in places if place.engine.reason is None}
    if name is None or name not in ready:
        # What can run in this interpreter needs no other.
        elsewhere = [place for place in _in_environments() if place.engine.name not in ready]
        places = _where_else(sorted([*places, *elsewhere], key=lambda place: place.engine.name))
    if model is not None:
        if name is not None and all(place.engine.name != name for place in places):
            find_engine(name)
        _for_model(output, [place for place in places if name in {None, place.engine.name}], model, revision)
    elif name is not None:
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
        reasons = [(place.engine.name, _where(place), place.reason) for place in places if place.reason is not None]
        if reasons:
            output.text("")
            output.table(("ENGINE", "RUNS IN", "WHY NOT"), reasons)
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


def _where_else(places: Sequence[_Place]) -> list[_Place]:
    """The same places; those where an engine cannot run know where it can."""
    able = [(place.engine.name, place.environment) for place in places if place.engine.reason is None]
    return [
        place
        if place.engine.reason is None
        else replace(place, elsewhere=tuple(where for name, where in able if name == place.engine.name and where))
        for place in places
    ]


def _where(place: _Place) -> str:
    return place.environment or "here"


def _row(place: _Place) -> tuple[str, ...]:
    engine = place.engine
    models = ", ".join(f"{name} (default)" if name == engine.default_model else name for name in engine.models)
    return (
        engine.name,
        place.status,
        engine.distribution,
        engine.engine_version or "",
        _where(place),
        models,
    )


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What an engine makes of a checkpoint.

    Attributes:
        loads: ``yes``, ``no`` or ``not declared``, by what its plugin says, also where the engine cannot run.
        ready: whether the engine can run in that place.
        reason: why it does not load it, or cannot run.
    """

    place: _Place
    loads: str
    ready: bool
    reason: str | None

    @property
    def runs(self) -> str:
        return self.loads if self.loads == "no" or self.ready else "not here"

    @property
    def where(self) -> str:
        return _where(self.place) if self.ready else "not here"


def _for_model(output: Output, places: Sequence[_Place], model: str, revision: str | None) -> None:
    """Which engines can run a checkpoint, by what they declare; those that are not installed as well."""
    from anyengine.hub import locate_config  # noqa: PLC0415 heavy for `--help`
    from anyengine.quantization import read_stored  # noqa: PLC0415 so is this

    builtin = {name: folder for place in places for name, folder in _builtin(place).items()}
    folder, config = locate_config(model, revision, builtin)
    # Of a model on the hub no weights are fetched for this, so what it has of them is not known.
    weights = folder if model in builtin or Path(model).expanduser().is_dir() else None
    stored = read_stored(folder, config)
    # Of an engine that runs somewhere, the places where it does not need no explanation.
    ready = {place.engine.name for place in places if place.engine.reason is None}
    shown = [place for place in places if place.engine.reason is None or place.engine.name not in ready]
    verdicts = [_verdict(place, folder, config, weights) for place in shown]
    if output.json:
        output.document(
            {
                "model": model,
                "architecture": config.get("model_type"),
                "quantization": stored,
                "engines": [
                    {
                        "name": each.place.engine.name,
                        "environment": each.place.environment,
                        "runs": each.runs,
                        "loads": each.loads,
                        "reason": each.reason,
                    }
                    for each in verdicts
                ],
            }
        )
        return
    output.table(("MODEL", model), [
        ("architecture", str(config.get("model_type"))),
        ("quantised", "no" if stored is None else str(stored)),
    ])  # fmt: skip
    output.text("")
    rows = [(each.place.engine.name, each.loads, each.where, each.reason or "") for each in verdicts]
    output.table(("ENGINE", "LOADS IT", "RUNS IN", "WHY NOT"), rows)


def _verdict(place: _Place, folder: Path, config: Mapping[str, Any], weights: Path | None) -> _Verdict:
    from anyengine.hub.weights import missing_weights  # noqa: PLC0415 heavy for `--help`
    from anyengine.quantization import why_not  # noqa: PLC0415 so is this
    from anyengine.quantization.support import gpu_capability  # noqa: PLC0415 so is this

    engine = place.engine
    ready = engine.reason is None
    reason = why_not(engine.checkpoints, folder, config, capability=gpu_capability)
    if reason is None and weights is not None and engine.broken is None:
        reason = missing_weights(weights, engine.weights)
    if reason is not None:
        return _Verdict(place, "no", ready, reason)
    if engine.checkpoints is None:
        silent = "its plugin does not say what it loads; a load tells"
        return _Verdict(place, "not declared", ready, silent if ready else place.reason)
    return _Verdict(place, "yes", ready, place.reason)


def _builtin(place: _Place) -> dict[str, str]:
    """Name → folder of the models that an engine of this interpreter brings."""
    from anyengine.plugins import find_engines  # noqa: PLC0415 heavy for `--help`

    found = find_engines().get(place.engine.name) if place.environment is None else None
    return {} if found is None or found.description is None else dict(found.description.models)


def _document(place: _Place) -> dict[str, Any]:
    engine = place.engine
    document: dict[str, Any] = {
        "name": engine.name,
        "status": place.status,
        "reason": place.reason,
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
            *([("why not", place.reason)] if place.reason is not None else ()),
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
