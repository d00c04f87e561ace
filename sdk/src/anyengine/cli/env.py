"""``anyengine env``: environments, each an interpreter with the packages of an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from anyengine.cli.output import Output, common_options

if TYPE_CHECKING:
    from anyengine.environments import Environment
    from anyengine.environments.doctor import Report

__all__ = ["env"]


@click.group(no_args_is_help=True)
def env() -> None:
    """Environments: interpreters with an engine's own packages, which need not fit the application's."""


@env.command()
@click.argument("engine")
@click.option(
    "--variant", help="One of the plugin's tested sets of packages, such as cpu or cuda.  [default: its first]"
)
@click.option("--python", help="Interpreter to make it of: a path or a command.  [default: this one]")
@click.option("--name", help="Of the environment.  [default: ENGINE, or ENGINE-VARIANT]")
@click.option(
    "--from",
    "source",
    metavar="FOLDER|index",
    help="What anyengine and the plugin are installed from: a checkout, a folder of wheels, or the word index for "
    "pip's configured index.  [default: where the copies here came from]",
)
@common_options
@click.pass_obj
def create(
    output: Output,
    /,
    engine: str,
    variant: str | None,
    python: str | None,
    name: str | None,
    source: str | None,
) -> None:
    """Make an environment for ENGINE, with packages that it was tested with.

    pip installs them, by your own configuration of it. When that fails or is interrupted, nothing is left behind.
    """
    from anyengine.environments.create import create_environment  # noqa: PLC0415 heavy for `--help`

    made = create_environment(engine, name=name, variant=variant, python=python, source=source, progress=output.note)
    _print(output, made)


@env.command()
@click.argument("name")
@click.option(
    "--python", required=True, help="The interpreter: a path or a command. anyengine must be installed there."
)
@common_options
@click.pass_obj
def add(output: Output, /, name: str, python: str) -> None:
    """Give an interpreter that is there already the name NAME."""
    from anyengine.environments import add_environment  # noqa: PLC0415 heavy for `--help`

    _print(output, add_environment(name, python))


@env.command(name="list")
@common_options
@click.pass_obj
def list_(output: Output, /) -> None:
    """List the environments, and the engines in each."""
    from anyengine.environments import environments  # noqa: PLC0415 heavy for `--help`

    listed = [_document(environment) for environment in environments()]
    if output.json:
        output.document(listed)
    elif listed:
        output.table(
            ("NAME", "STATUS", "ENGINES", "PYTHON", "INTERPRETER"),
            [
                (one["name"], one["reason"] or "ready", _engines(one), one["python_version"] or "", one["python"])
                for one in listed
            ],
        )
    else:
        output.text("there is no environment; `anyengine env create ENGINE` makes one")


@env.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@common_options
@click.pass_obj
def remove(output: Output, /, name: str, *, yes: bool) -> None:
    """Delete the environment NAME. An interpreter that was added stays; only its name is forgotten."""
    from anyengine.environments import remove_environment  # noqa: PLC0415 heavy for `--help`
    from anyengine.environments.store import folder_of, read  # noqa: PLC0415

    folder = folder_of(name)
    found = read(name)
    added = found is not None and not found.created
    if folder.exists() and not yes:
        what = f"Forget {name}? {found.python} stays" if found and added else f"Delete {folder}?"
        click.confirm(what, abort=True, err=True)
    remove_environment(name)
    if output.json:
        output.document({"name": name, "removed": None if added else str(folder)})
    else:
        output.text(f"{name} is forgotten" if added else f"{name} is deleted")


@env.command()
@click.argument("name", required=False)
@common_options
@click.pass_context
def doctor(context: click.Context, /, name: str | None) -> None:
    """Examine the environment NAME, or all: interpreter, packages, conflicts, GPUs.

    Exits with 1 where one has a problem.
    """
    from anyengine.environments.doctor import document, examine  # noqa: PLC0415 heavy for `--help`
    from anyengine.environments.registry import environments, find_record  # noqa: PLC0415

    output: Output = context.obj
    chosen = environments() if name is None else [find_record(name)]
    reports: list[Report] = []
    for environment in chosen:
        with output.working(f"examining {environment.name}"):
            reports.append(examine(environment))
        if not output.json:
            _show(output, reports[-1])
    if output.json:
        output.document([document(report) for report in reports])
    elif not reports:
        output.text("there is no environment; `anyengine env create ENGINE` makes one")
    context.exit(0 if all(report.healthy for report in reports) else 1)


def _show(output: Output, report: Report) -> None:
    rows = [(finding.about, finding.level, finding.text) for finding in report.findings]
    output.table((report.environment, "", report.python), rows)
    for finding in report.findings:
        if finding.mend is not None and finding.level == "problem":
            output.text(f"to mend {finding.about}: {finding.mend}")


def _document(environment: Environment) -> dict[str, Any]:
    """What is known of it, as JSON-able data; asks its interpreter where something has changed there."""
    from anyengine.environments.registry import refreshed  # noqa: PLC0415 heavy for `--help`
    from anyengine.errors import EnvironmentFailed  # noqa: PLC0415

    reason = None
    try:
        environment = refreshed(environment)
    except EnvironmentFailed as error:
        reason = error.message
    described = environment.described
    return {
        "name": environment.name,
        "status": "ready" if reason is None else "broken",
        "reason": reason,
        "python": environment.python,
        "python_version": described.python_version if described else None,
        "created": environment.created,
        "engine": environment.engine,
        "variant": environment.variant,
        "engines": [
            {"name": engine.name, "engine_version": engine.engine_version, "reason": engine.reason}
            for engine in (described.engines if described else ())
        ],
    }


def _engines(document: dict[str, Any]) -> str:
    parts = [
        f"{engine['name']} {engine['engine_version'] or ''}".rstrip() + (" (cannot run)" if engine["reason"] else "")
        for engine in document["engines"]
    ]
    return ", ".join(parts) or "none"


def _print(output: Output, environment: Environment) -> None:
    document = _document(environment)
    if output.json:
        output.document(document)
    else:
        output.text(
            f"{environment.name}: {_engines(document)}; Python {document['python_version']}, {environment.python}"
        )
