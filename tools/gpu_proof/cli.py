"""The command line."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import click
from anyengine.environments import find_environment
from anyengine.environments.registry import add_environment
from anyengine.errors import AnyEngineError
from anyengine_conformance.report import read_report, write_report
from anyengine_conformance.shards import merged

from .machine import ROOT, machine
from .plan import Plan, within
from .rehearsal import environments, rehearsal
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
    pythons = environments() if rehearse else dict(each.partition("=")[::2] for each in named)
    _register(pythons)
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
    results.mkdir(parents=True, exist_ok=True)
    (results / "machine.json").write_text(json.dumps(machine(pythons, commit), indent=1) + "\n", encoding="utf-8")
    ends = None if budget is None else time.monotonic() + budget
    left = _left(chosen, failed=failed, again=again)
    asyncio.run(Runner(left, gpus, at_once, ends, again=again).run())
    met = _merge(plan, every, left)
    if not wanted or "parity".startswith(wanted):
        last = _left([plan.judging(every)], failed=failed, again=again)
        asyncio.run(Runner(last, gpus[:1], 1, ends, again=again).run())
        left += last
    raise SystemExit(0 if met and all(step.outcome() == "passed" for step in left if step.gpus <= len(gpus)) else 1)


def _register(pythons: dict[str, str]) -> None:
    for name, python in pythons.items():
        try:
            find_environment(name)
        except AnyEngineError:
            add_environment(name, python)


def _plan(model: str, results: Path, pythons: dict[str, str]) -> Plan:
    name = Path(model).name
    return Plan(_near(Path(model).absolute()), results, pythons, made=Path(".cache/gpu-proof") / name)


def _near(model: Path) -> str:
    """The checkpoint by a name within the repository, so that reports name no place of this machine."""
    near = ROOT / ".cache" / model.name
    if not model.is_relative_to(ROOT) and not near.exists():
        near.parent.mkdir(exist_ok=True)
        near.unlink(missing_ok=True)
        near.symlink_to(model, target_is_directory=True)
    return within(near if near.exists() and near.samefile(model) else model)


def _merge(plan: Plan, every: list[Step], ran: list[Step]) -> bool:
    """One report of each whole of which all parts are there; of pairs also of some. False if what ran misses a bar."""
    met = True
    for file, parts in plan.wholes(every).items():
        pairs = parts[0].name.startswith("overhead/")
        enough = ("passed", "failed", CUT_OFF) if pairs else ("passed", "failed")
        there = [part.report for part in parts if part.outcome() in enough and part.report.exists()]
        if pairs and there:
            judged = subprocess.run([sys.executable, POOLED, *there, "--json", file], check=False)
            met &= judged.returncode == 0 or not any(part in ran for part in parts)
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
