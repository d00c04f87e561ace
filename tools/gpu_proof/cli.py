"""The command line."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import click
from anyengine.environments import find_environment
from anyengine.environments.registry import add_environment
from anyengine.errors import AnyEngineError

from .machine import machine
from .plan import Plan, within
from .rehearsal import environments, rehearsal
from .runner import Runner
from .step import CUT_OFF, Step


@click.command()
@click.option("--model", help="Folder of the checkpoint.")
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of reports.")
@click.option("--environment", "named", multiple=True, metavar="NAME=PYTHON", help="Interpreter of an engine.")
@click.option("--steps", "wanted", multiple=True, metavar="PREFIX", help="Only steps that begin so; may be repeated.")
@click.option("--list", "listing", is_flag=True, help="Show the steps, and run nothing.")
@click.option("--gpu", "gpus", type=int, multiple=True, default=(0,), show_default=True)
@click.option("--at-once", default=3, show_default=True, help="Steps that share a GPU.")
@click.option("--jobs", default=6, show_default=True, help="Processes of a conformance run.")
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
    jobs: int,
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
    plan = rehearsal(folder, pythons, jobs) if rehearse else _plan(str(model), folder, pythons, jobs)
    every = plan.steps()
    chosen = [step for step in every if not wanted or step.name.startswith(wanted)]
    if wanted and not chosen and not "parity".startswith(wanted):
        raise click.UsageError(f"--steps: no step begins with {', '.join(wanted)}; --list shows them")
    if listing:
        for step in [*chosen, plan.judging(every)]:
            click.echo(f"{step.name:36} {step.outcome() or '-'}")
        return
    results.mkdir(parents=True, exist_ok=True)
    (results / "machine.json").write_text(json.dumps(machine(pythons, commit), indent=1) + "\n", encoding="utf-8")
    ends = None if budget is None else time.monotonic() + budget
    left = _left(chosen, failed=failed, again=again)
    asyncio.run(Runner(left, gpus, at_once, ends, again=again).run())
    if not wanted or "parity".startswith(wanted):
        last = _left([plan.judging(every)], failed=failed, again=again)
        asyncio.run(Runner(last, gpus[:1], 1, ends, again=again).run())
        left += last
    raise SystemExit(0 if all(step.outcome() == "passed" for step in left) else 1)


def _register(pythons: dict[str, str]) -> None:
    for name, python in pythons.items():
        try:
            find_environment(name)
        except AnyEngineError:
            add_environment(name, python)


def _plan(model: str, results: Path, pythons: dict[str, str], jobs: int) -> Plan:
    name = Path(model).name
    return Plan(within(model), results, pythons, jobs, made=Path(".cache/gpu-proof") / name)


def _left(chosen: list[Step], *, failed: bool, again: bool) -> list[Step]:
    def left(step: Step) -> bool:
        outcome = step.outcome()
        return again or outcome in (None, CUT_OFF) or (failed and outcome != "passed")

    return [step for step in chosen if left(step)]
