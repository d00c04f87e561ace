"""The command line."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
from anyengine.environments.registry import add_environment, resolved
from anyengine.environments.store import stored
from anyengine.errors import AnyEngineError
from anyengine_conformance.report import read_report, write_report
from anyengine_conformance.shards import merged

from .machine import ROOT, machine
from .plan import Plan, within
from .rehearsal import environments, own_home, rehearsal
from .runner import Runner
from .step import CUT_OFF, Step

#: What makes one report of the pairs of several.
POOLED = ROOT / "benchmarks/pooled.py"


@click.command()
@click.option("--model", help="Folder of the checkpoint.")
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of reports.")
@click.option("--environment", "named", multiple=True, metavar="NAME=PYTHON", help="Interpreter of an engine.")
@click.option(
    "--steps",
    "wanted",
    multiple=True,
    metavar="PREFIX",
    help="Only steps that begin so, in that order; may be repeated.",
)
@click.option("--list", "listing", is_flag=True, help="Show the steps, and run nothing.")
@click.option("--gpu", "gpus", type=int, multiple=True, default=(0,), show_default=True)
@click.option("--measure-on", "measuring", type=int, multiple=True, help="GPU that takes first what measures.")
@click.option("--at-once", default=8, show_default=True, help="Steps that share a GPU and its share of the processors.")
@click.option("--budget", type=float, help="Seconds after which everything ends.")
@click.option("--commit", help="Of this checkout, where git cannot say.")
@click.option("--failed", is_flag=True, help="Also the steps that did not pass; they go on from what they wrote.")
@click.option("--again", is_flag=True, help="All of them, from the beginning.")
@click.option("--rehearse", is_flag=True, help="Everything with the reference engine, to try this program itself.")
def main(
    model: str | None,
    results: Path,
    named: tuple[str, ...],
    wanted: tuple[str, ...],
    *,
    listing: bool,
    gpus: tuple[int, ...],
    measuring: tuple[int, ...],
    at_once: int,
    budget: float | None,
    commit: str | None,
    failed: bool,
    again: bool,
    rehearse: bool,
) -> None:
    """Run what is left to run; exits with 1 if a step that ran did not pass."""
    if (model is None) != rehearse:
        raise click.UsageError("give --model, or --rehearse, which has one")
    if not set(measuring) < set(gpus):
        raise click.UsageError("--measure-on: name GPUs of --gpu, and leave one that makes what is measured")
    if rehearse and named:
        raise click.UsageError("--environment: a rehearsal has its own, of this interpreter; leave it out")
    pythons = environments() if rehearse else _interpreters(named)
    folder = results.absolute()
    plan = rehearsal(folder, pythons) if rehearse else _plan(str(model), folder, pythons)
    every = plan.steps()
    # Each once, by the first prefix that it has.
    named_so = {step.name: step for prefix in wanted or ("",) for step in every if step.name.startswith(prefix)}
    chosen = list(named_so.values())
    unknown = [each for each in wanted if not any(step.name.startswith(each) for step in (*every, plan.judging(every)))]
    if unknown:
        raise click.UsageError(f"--steps: no step begins with {', '.join(unknown)}; --list shows them")
    if listing:
        for step in [*chosen, plan.judging(every)]:
            click.echo(f"{step.name:36} {step.outcome() or '-'}")
        return
    # Only now is anything made.
    if rehearse:
        own_home()
    _register(pythons)
    if model is not None:
        _link(Path(model).absolute())
    results.mkdir(parents=True, exist_ok=True)
    (results / "machine.json").write_text(json.dumps(machine(pythons, commit), indent=1) + "\n", encoding="utf-8")
    ends = None if budget is None else time.monotonic() + budget
    left = _left(chosen, failed=failed, again=again)
    asyncio.run(Runner(left, gpus, at_once, ends, again=again, measuring=measuring).run())
    met = _merge(plan, every, left)
    if not wanted or "parity".startswith(wanted):
        last = _left([plan.judging(every)], failed=failed, again=again)
        asyncio.run(Runner(last, gpus[:1], 1, ends, again=again).run())
        left += last
    raise SystemExit(0 if met and all(step.outcome() == "passed" for step in left if step.gpus <= len(gpus)) else 1)


def _interpreters(named: tuple[str, ...]) -> dict[str, str]:
    """Name of each environment → the path of its interpreter, which may be named by a command.

    Raises:
        UsageError: there is none, or an environment is named twice.
    """
    found: dict[str, str] = {}
    for each in named:
        name, _, python = each.partition("=")
        if not name or not python:
            raise click.UsageError(f"--environment {each}: say NAME=PYTHON")
        if name in found:
            raise click.UsageError(f"--environment {each}: {name} is named twice")
        path = resolved(python)
        if shutil.which(path) is None:
            raise click.UsageError(
                f"--environment {each}: there is no interpreter {path}; name its path, or a command on PATH"
            )
        found[name] = path
    return found


def _register(pythons: dict[str, str]) -> None:
    """Have an environment of each name, of that interpreter.

    Raises:
        UsageError: it cannot be one, or the name is another's.
    """
    there = {each.name: each.python for each in stored()}
    for name, python in pythons.items():
        if name not in there:
            try:
                add_environment(name, python)
            except AnyEngineError as error:
                raise click.UsageError(f"--environment {name}={python}: {error.message}") from error
        elif there[name] != python:
            raise click.UsageError(
                f"--environment {name}={python}: there is an environment {name} already, of {there[name]}; name that "
                f"interpreter, or: anyengine env remove {name}"
            )


def _plan(model: str, results: Path, pythons: dict[str, str]) -> Plan:
    name = Path(model).name
    return Plan(_near(Path(model).absolute()), results, pythons, made=Path(".cache/gpu-proof") / name)


def _near(model: Path) -> str:
    """The checkpoint by a name within the repository, so that reports name no place of this machine; see `_link`."""
    near = ROOT / ".cache" / model.name
    if not near.exists():
        return within(model if model.is_relative_to(ROOT) else near)
    return within(near if near.samefile(model) else model)


def _link(model: Path) -> None:
    """Let that name lead to the checkpoint, where it leads nowhere."""
    near = ROOT / ".cache" / model.name
    if not model.is_relative_to(ROOT) and not near.exists():
        near.parent.mkdir(exist_ok=True)
        near.unlink(missing_ok=True)
        near.symlink_to(model, target_is_directory=True)


def _merge(plan: Plan, every: list[Step], ran: list[Step]) -> bool:
    """One report of each whole of which all parts are there; of pairs also of some.

    False if pairs of what ran miss a bar, or cannot stand together.
    """
    met = True
    for file, parts in plan.wholes(every).items():
        pairs = parts[0].name.startswith("overhead/")
        enough = ("passed", "failed", CUT_OFF) if pairs else ("passed", "failed")
        there = [part.report for part in parts if part.outcome() in enough and part.report.exists()]
        if pairs and there:
            code = subprocess.run([sys.executable, POOLED, *there, "--json", file], check=False).returncode
            met &= code == 0 or not any(part in ran for part in parts)
            if code not in (0, 1):
                click.echo(f"{file.name}: left as it was, or not made")
                continue
        elif there and len(there) == len(parts):
            if file.suffix == ".txt":
                file.write_text("\n".join(report.read_text("utf-8") for report in there), "utf-8")
            else:
                reports = [read_report(report) for report in there]
                write_report(merged(reports, sum(report.duration for report in reports)), file)
        if there:
            click.echo(f"{file.name}: {len(there)} of {len(parts)} parts are there")
    return met


def _left(chosen: list[Step], *, failed: bool, again: bool) -> list[Step]:
    def left(step: Step) -> bool:
        outcome = step.outcome()
        return again or outcome in (None, CUT_OFF) or (failed and outcome != "passed")

    return [step for step in chosen if left(step)]
