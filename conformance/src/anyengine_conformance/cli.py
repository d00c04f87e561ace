"""``anyengine conformance …``, found by the SDK's command line through an entry point."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from anyengine.cli.options import Assignment, merged
from anyengine.cli.output import Output, common_options
from click.exceptions import Exit

from anyengine_conformance.parity_table.cli import parity

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyengine_conformance.check import Check
    from anyengine_conformance.interrupts import Interrupts
    from anyengine_conformance.results import Report
    from anyengine_conformance.runner import Runner
    from anyengine_conformance.settings import ExpectedFailure, Settings

__all__ = ["conformance"]

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(
    epilog="Exit codes: 0 all as expected, 1 a check failed or something broke, 2 misuse, 130 interrupted, 143 ended "
    "by SIGTERM."
)
def conformance() -> None:
    """Prove that an engine keeps the uniform API."""


conformance.add_command(parity)


@conformance.command("list")
@click.option("--only", multiple=True, metavar="FAMILY|CHECK", help="Only these; may be repeated.")
@common_options
@click.pass_obj
def list_(output: Output, /, only: tuple[str, ...]) -> None:
    """List the checks."""
    from anyengine_conformance.runner import select  # noqa: PLC0415 heavy for `--help`

    checks = select(only)
    if output.json:
        fields = ("id", "must", "advice", "tier", "needs", "variant", "deadline", "since", "tolerance")
        output.document([{name: getattr(made, name) for name in fields} for made in checks])
        return
    rows = [(made.id, made.tier, ", ".join(made.needs), made.must) for made in checks]
    output.table(("CHECK", "TIER", "NEEDS", "MUST"), rows)
    output.note(f"{len(checks)} checks")


@conformance.command()
@click.argument("engine", required=False)
@click.option("--model", help="A folder, a Hugging Face hub id, or a name that the engine brings.")
@click.option(
    "-o", "--option", "assignments", type=Assignment(), multiple=True, help="A field of EngineConfig, dotted."
)
@click.option("--config", type=_FILE, help="conformance.toml: factory, model, variants, deadlines.")
@click.option("--xfails", type=_FILE, help="xfails.toml: failures that are expected, with reason, link and expiry.")
@click.option(
    "--profile",
    type=click.Choice(["certify", "explore"]),
    default="certify",
    show_default=True,
    help="certify repeats itself exactly; explore draws anew and tries more.",
)
@click.option("--seed", type=int, help="What explore starts from.")
@click.option("--oracle", help="Engine that exact scores come from.  [default: reference]")
@click.option("--only", multiple=True, metavar="FAMILY|CHECK", help="Only these; may be repeated.")
@click.option("--report", "report_file", type=_FILE, help="Write the report as JSON.")
@click.option("--html", "html_file", type=_FILE, help="Write the report as a page.")
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes at once, each with engines of its own.",
)
@click.option("--time-factor", type=click.FloatRange(min=0, min_open=True), help="Stretch every deadline by this.")
@click.option(
    "--probe/--no-probe",
    default=True,
    show_default=True,
    help="Once an engine hung or died in a check, see whether it answers at all; if not, run nothing more on it.",
)
@click.option("-v", "--verbose", is_flag=True, help="Every check with its reason; redirected, also when it begins.")
@common_options
@click.pass_obj
def run(output: Output, /, engine: str | None, only: tuple[str, ...], **options: Any) -> None:
    """Run the suite against ENGINE, or against what --config names."""
    from anyengine import EngineConfig  # noqa: PLC0415 heavy for `--help`

    from anyengine_conformance.environment import require_known  # noqa: PLC0415 so are these
    from anyengine_conformance.interrupts import Interrupts  # noqa: PLC0415
    from anyengine_conformance.progress import summary  # noqa: PLC0415
    from anyengine_conformance.runner import Runner, select  # noqa: PLC0415

    if options["seed"] is not None and options["profile"] == "certify":
        raise click.UsageError("--seed belongs to --profile explore; certify always draws the same")
    settings = _settings(engine, options)
    if settings.factory is None:
        require_known(settings.engine, EngineConfig(**settings.config))
    expected = _expected(settings, options["xfails"])
    checks = select(only)
    base = _repeat(engine, options)
    make = partial(
        Runner,
        settings,
        profile=options["profile"],
        seed=options["seed"],
        expected={name: entry for name, entry in expected.items() if name in {made.id for made in checks}},
        base=base,
        probe=options["probe"],
    )
    with Interrupts() as interrupts:
        try:
            if options["jobs"] > 1:
                report = _parallel(output, make, checks, base, options)
            else:
                report = _alone(output, make, checks, interrupts, verbose=options["verbose"])
        except KeyboardInterrupt as error:  # before there was anything to report
            click.echo("interrupted before any check had ended", err=True)
            raise Exit(interrupts.exit_code) from error
        interrupts.accepted = True  # what is left ends by itself: writing it down
        _write(report, options["report_file"], options["html_file"])
    if output.json:
        output.document(report)
    else:
        output.text("\n" + summary(report))
    if not report.good:
        raise Exit(interrupts.exit_code if report.stopped else 1)


def _alone(
    output: Output, make: Callable[..., Runner], checks: list[Check], interrupts: Interrupts, *, verbose: bool
) -> Report:
    """Run in this process."""
    from anyengine_conformance.capture import Capture  # noqa: PLC0415 heavy for `--help`
    from anyengine_conformance.progress import Progress  # noqa: PLC0415

    with Capture() as capture:
        live = capture.stderr.isatty() and not output.json
        stream = capture.stderr if output.json or live else capture.stdout
        progress = Progress(stream, capture, verbose=verbose, live=live)
        runner = make(listener=progress)
        try:
            runner.open()
            report = runner.run(checks)
            interrupts.accepted = True  # a signal while the engine closes takes nothing away from what was found
            return report
        finally:
            runner.close()
            progress.close()


def _parallel(
    output: Output, make: Callable[[], Runner], checks: list[Check], base: list[str], options: dict[str, Any]
) -> Report:
    """Run in several processes."""
    from anyengine_conformance.capture import Capture  # noqa: PLC0415 heavy for `--help`
    from anyengine_conformance.shards import run_shards  # noqa: PLC0415 heavy for `--help`

    with Capture():  # what the plugin prints has no place in a document
        runner = make()
        try:
            runner.open()  # what each of them would refuse is refused once
        finally:
            runner.close()
    words = [*base, *(["--verbose"] if options["verbose"] else [])]
    if options["profile"] == "explore":
        seed = options["seed"]
        words += ["--seed", str(time.time_ns() % 2**31 if seed is None else seed)]  # one for all of them
    return run_shards(words, checks, options["jobs"], lambda line: click.echo(line, err=output.json))


def _settings(engine: str | None, options: dict[str, Any]) -> Settings:
    from dataclasses import replace  # noqa: PLC0415

    from anyengine import EngineConfig  # noqa: PLC0415

    from anyengine_conformance.settings import Settings, read_settings  # noqa: PLC0415

    if options["config"] is not None:
        settings = read_settings(options["config"])
        if engine is not None and engine != settings.engine:
            raise click.UsageError(f"{options['config']} is about the engine {settings.engine!r}, not {engine!r}")
    elif engine is None:
        raise click.UsageError("name an ENGINE, or give --config conformance.toml")
    else:
        settings = Settings(engine=engine)
    config = merged(dict(settings.config), options["assignments"])
    if options["model"] is not None:
        config["model"] = options["model"]
    EngineConfig(**config)  # a mistake shows before anything is loaded
    changes = {name: options[name] for name in ("oracle", "time_factor") if options[name] is not None}
    return replace(settings.with_config(config), **changes)


def _expected(settings: Settings, given: Path | None) -> dict[str, ExpectedFailure]:
    from anyengine_conformance.settings import read_expected_failures  # noqa: PLC0415 heavy for `--help`

    file = given or settings.xfails
    return {} if file is None else read_expected_failures(file)


def _repeat(engine: str | None, options: dict[str, Any]) -> list[str]:
    """The command line without the selection and the reports."""
    words = ["anyengine", "conformance", "run", *([engine] if engine else [])]
    for name in ("model", "config", "xfails", "oracle", "time_factor"):
        if options[name] is not None:
            words += [f"--{name.replace('_', '-')}", str(options[name])]
    for key, value in options["assignments"]:
        words += ["-o", f"{key}={value}"]
    words += [] if options["probe"] else ["--no-probe"]
    return words + (["--profile", "explore"] if options["profile"] == "explore" else [])


def _write(report: Report, file: Path | None, page: Path | None) -> None:
    from anyengine_conformance.html import render  # noqa: PLC0415 heavy for `--help`
    from anyengine_conformance.report import write_report  # noqa: PLC0415

    if file is not None:
        write_report(report, file)
    if page is not None:
        page.write_text(render(report), encoding="utf-8")


@conformance.command()
@click.argument("file", type=_FILE)
@click.option("--html", "html_file", type=_FILE, help="Write it as a page.")
@common_options
@click.pass_obj
def report(output: Output, /, file: Path, html_file: Path | None) -> None:
    """Check a report, and show what it says."""
    from anyengine_conformance.progress import summary  # noqa: PLC0415 heavy for `--help`
    from anyengine_conformance.report import read_report  # noqa: PLC0415

    found = read_report(file)
    _write(found, None, html_file)
    if output.json:
        output.document(found)
    else:
        output.text(summary(found))
    if not found.good:
        raise Exit(1)


@conformance.command()
@click.argument("file", type=_FILE)
@click.option("--output", "target", type=_FILE, help="Where the SVG goes.  [default: stdout]")
@common_options
@click.pass_obj
def badge(output: Output, /, file: Path, target: Path | None) -> None:
    """Make a badge of a complete report."""
    from anyengine_conformance.badge import badge as draw  # noqa: PLC0415 heavy for `--help`
    from anyengine_conformance.badge import statement  # noqa: PLC0415
    from anyengine_conformance.report import read_report  # noqa: PLC0415

    found = read_report(file)
    svg = draw(found)
    if target is not None:
        target.write_text(svg, encoding="utf-8")
    if output.json:
        text, good = statement(found)
        output.document({"engine": found.subject.engine, "says": text, "good": good, "svg": svg})
    elif target is None:
        output.text(svg, end="")


@conformance.command()
@click.argument("old", type=_FILE)
@click.argument("new", type=_FILE)
@common_options
@click.pass_obj
def diff(output: Output, /, old: Path, new: Path) -> None:
    """Show what changed between two reports; exits 1 if something is worse."""
    from anyengine_conformance.diff import compare  # noqa: PLC0415 heavy for `--help`
    from anyengine_conformance.report import read_report  # noqa: PLC0415

    changes = compare(read_report(old), read_report(new))
    if output.json:
        output.document(changes)
    elif changes:
        rows = [(change.kind, change.id, change.old or "-", change.new or "-", change.reason) for change in changes]
        output.table(("", "CHECK", "OLD", "NEW", "REASON"), rows)
    else:
        output.text("every outcome is the same")
    if any(change.kind == "worse" for change in changes):
        raise Exit(1)


@conformance.command()
@click.option("--only", multiple=True, metavar="FAMILY|CHECK", help="Only the faults of these checks.")
@click.option(
    "--cross/--no-cross",
    default=True,
    show_default=True,
    help="Hold each fault against every core check, some against all.",
)
@click.option("--write", is_flag=True, help="Take which other checks each fault trips as declared; for authors.")
@common_options
@click.pass_obj
def selftest(output: Output, /, only: tuple[str, ...], cross: bool, write: bool) -> None:  # noqa: FBT001 click calls it
    """Prove that every check catches what it is there for."""
    from anyengine_conformance.selftest import selftest as prove  # noqa: PLC0415 heavy for `--help`
    from anyengine_conformance.selftest import write_declared  # noqa: PLC0415

    outcome = prove(only, cross=cross, say=None if output.json else output.text)
    if output.json:
        output.document(outcome)
    if write and cross:
        write_declared(outcome)
    if not outcome.good:
        raise Exit(1)
