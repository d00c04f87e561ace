r"""Prove engines on a machine with GPUs: everything that is claimed of them, step by step, resumable.

    python tools/gpu_proof.py --model MODEL --results results/h200 \
        --environment vllm=PYTHON --environment lmdeploy=PYTHON [--steps parity] [--gpu 0 --gpu 1] [--budget 450]

A step is a program of its own with a time limit and a report in the results folder; beside each report is a record of
the command, how it ended, on which GPU and when. A step that ended, well or not, is not run again unless its command
changes or `--again` is given; one that was cut off is, and goes on from what it wrote where it can. `--budget` ends
everything after so many seconds, for machines that are lent. `--list` shows the steps and what became of them.

Steps that measure speed have a GPU to themselves, and run after the others, whose engines keep to small caches: so
many of them as `--at-once` says share a GPU. `machine.json` in the results folder says what it all ran on: commit,
GPUs, driver, and the packages of each interpreter.

This program runs in an environment that has anyengine, its conformance suite and the reference engine, and, for the
oracle, torch and transformers. The environments that are named must have anyengine and the engine's plugin.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from anyengine.environments import find_environment
from anyengine.environments.registry import add_environment
from anyengine.errors import AnyEngineError

ROOT = Path(__file__).resolve().parents[1]
#: Tokens of each engine's cache, so that several share a device.
CACHE = "kv_cache.capacity_tokens=65536"
ANYENGINE = (sys.executable, "-m", "anyengine")
PARITY = (*ANYENGINE, "conformance", "parity")


@dataclass(frozen=True)
class Variant:
    """An engine in one configuration.

    Attributes:
        name: of its steps.
        label: in the parity table.
        engine: name of the plugin.
        environment: that it runs in; None for this one.
        options: fields of EngineConfig.
        suite: arguments of its conformance run; none where that would say nothing more.
        overhead: benchmark against its native API, and its options.
        speculative: method → fields of SpeculativeConfig.
        concurrency: whether its throughput is worth measuring.
    """

    name: str
    label: str
    engine: str
    environment: str | None = None
    options: tuple[str, ...] = ()
    suite: tuple[str, ...] = ()
    overhead: tuple[str, ...] = ()
    speculative: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    concurrency: bool = True


VARIANTS = (
    Variant(
        "vllm",
        "vLLM",
        "vllm",
        "vllm",
        ("dtype=bfloat16", "max_model_len=2048", CACHE),
        ("--config", "plugins/vllm/conformance-gpu.toml"),
        # Loading three of them takes most of the time there is.
        ("benchmarks/vllm_overhead.py", "--rounds", "2"),
        {"ngram": {"method": "ngram", "num_speculative_tokens": 4}},
    ),
    Variant(
        "turbomind",
        "LMDeploy, TurboMind",
        "lmdeploy",
        "lmdeploy",
        ("dtype=bfloat16", "max_model_len=2048", "kv_cache.gpu_memory_fraction=0.05", "native.backend=turbomind"),
        ("--config", "plugins/lmdeploy/conformance-turbomind.toml"),
        ("benchmarks/lmdeploy_overhead.py",),
    ),
    Variant(
        "lmdeploy-pytorch",
        "LMDeploy, PyTorch eager",
        "lmdeploy",
        "lmdeploy",
        ("dtype=bfloat16", "max_model_len=2048", CACHE, "native.backend=pytorch", "execution=eager"),
        ("--config", "plugins/lmdeploy/conformance-pytorch.toml"),
    ),
    # The control: what the data type alone does.
    Variant(
        "transformers",
        "transformers",
        "transformers",
        options=("dtype=bfloat16", "device=cuda"),
        suite=("--config", "plugins/transformers/conformance.toml", "-o", "device=cuda"),
        concurrency=False,
    ),
    Variant(
        "transformers-float32",
        "transformers, float32",
        "transformers",
        options=("dtype=float32", "device=cuda"),
        concurrency=False,
    ),
    Variant("reference", "reference", "reference", suite=("reference",), concurrency=False),
)


@dataclass(frozen=True)
class Step:
    """One program.

    Attributes:
        name: ``kind/variant``.
        command: arguments.
        report: that it writes; in the results folder.
        limit: seconds.
        alone: on its GPU, because it measures speed.
    """

    name: str
    command: tuple[str, ...]
    report: Path
    limit: float
    alone: bool = False

    @property
    def record(self) -> Path:
        """What became of it."""
        return self.report.with_suffix(".step.json")

    def outcome(self) -> str | None:
        """How it ended; None if it has not, or was another command."""
        if not self.record.exists():
            return None
        found = json.loads(self.record.read_text(encoding="utf-8"))
        return found["outcome"] if found["command"] == self._shown() else None

    def _shown(self) -> list[str]:
        """The command as it is written down: without the places of this machine."""
        return [Path(part).name if Path(part).is_absolute() else part for part in self.command]

    def write(self, outcome: str, seconds: float, gpu: int) -> None:
        """Write down how it ended."""
        content = {
            "step": self.name,
            "outcome": outcome,
            "command": self._shown(),
            "seconds": round(seconds, 1),
            "gpu": gpu,
            "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        }
        self.record.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Plan:
    """What all steps share.

    Attributes:
        model: folder of the checkpoint.
        results: folder of the reports.
        pythons: name of an environment → its interpreter.
        jobs: processes of a conformance run.
    """

    model: str
    results: Path
    pythons: dict[str, str]
    jobs: int

    def steps(self) -> list[Step]:
        """All of them but the last, in order: answers first, for the table needs them."""
        made = [step for variant in VARIANTS for step in self._answers(variant)]
        for variant in VARIANTS:
            made += [*self._conformance(variant), *self._speed(variant)]
        return made

    def judging(self, every: list[Step]) -> Step:
        """The parity table, of the answers that are there."""
        files = [str(step.report) for step in every if step.name.startswith("answers/") and step.outcome() == "passed"]
        report = self.results / "parity.json"
        words = ("--model", self.model, "--oracle", "transformers", "-o", "device=cuda", "--output", str(report))
        return Step("parity", (*PARITY, "judge", *files, *words), report, 470)

    def _options(self, variant: Variant) -> tuple[str, ...]:
        there = () if variant.environment is None else (f"environment={variant.environment}",)
        return tuple(word for option in (*variant.options, *there) for word in ("-o", option))

    def _answers(self, variant: Variant) -> list[Step]:
        """Rows of the parity table: the engine, and with speculation also one request at a time."""
        rows: dict[str, tuple[str, tuple[str, ...]]] = {variant.name: (variant.label, ())}
        for method, fields in variant.speculative.items():
            words = ("-o", f"speculative={json.dumps(fields)}")
            label = f"{variant.label}, {method} speculation"
            rows[f"{variant.name}-{method}"] = (label, words)
            rows[f"{variant.name}-{method}-alone"] = (f"{label}, one at a time", (*words, "--at-once", "1"))
        made: list[Step] = []
        for name, (label, words) in rows.items():
            file = self.results / f"answers-{name}.jsonl"
            base = ("answer", variant.engine, "--label", label, "--model", self.model, "--output", str(file))
            made.append(Step(f"answers/{name}", (*PARITY, *base, *self._options(variant), *words), file, 400))
        return made

    def _conformance(self, variant: Variant) -> list[Step]:
        if not variant.suite:
            return []
        report = self.results / f"conformance-{variant.name}.json"
        words = (*variant.suite, "--jobs", str(self.jobs), "--report", str(report))
        return [Step(f"conformance/{variant.name}", (*ANYENGINE, "conformance", "run", *words), report, 900)]

    def _speed(self, variant: Variant) -> list[Step]:
        programs: dict[str, tuple[str, ...]] = {}
        ours = (variant.engine, "--model", self.model, *self._options(variant))
        if variant.concurrency:
            programs[f"concurrency/{variant.name}"] = (sys.executable, "benchmarks/concurrency.py", *ours)
        for method, fields in variant.speculative.items():
            command = (sys.executable, "benchmarks/speculation.py", *ours, "--speculative", json.dumps(fields))
            programs[f"speculation/{variant.name}-{method}"] = command
        if variant.overhead and variant.environment in self.pythons:
            command = (self.pythons[variant.environment], *variant.overhead, self.model)
            programs[f"overhead/{variant.name}"] = command
        made: list[Step] = []
        for name, command in programs.items():
            file = self.results / f"{name.replace('/', '-')}.json"
            made.append(Step(name, (*command, "--json", str(file)), file, 470, alone=True))
        return made


#: Packages that decide about numbers and speed.
PACKAGES = ("anyengine", "lmdeploy", "numpy", "tokenizers", "torch", "transformers", "triton", "vllm")
_VERSIONS = "import json, importlib.metadata as m; print(json.dumps({d.name: d.version for d in m.distributions()}))"


def machine(pythons: dict[str, str], commit: str | None) -> dict[str, Any]:
    """What everything runs on."""
    described = _output("git", "describe", "--always", "--dirty")
    found: dict[str, Any] = {
        "commit": commit or described.strip() or None,
        "gpus": _output(
            "nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"
        ).splitlines(),
        "packages": {},
    }
    for name, python in {"this": sys.executable, **pythons}.items():
        versions: dict[str, str] = json.loads(_output(python, "-c", _VERSIONS) or "{}")
        found["packages"][name] = {
            package: version
            for package, version in sorted(versions.items())
            if package.startswith(PACKAGES) or "cuda" in package
        }
    return found


def _output(*command: str) -> str:
    """What a program says; nothing where it is missing or fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


class Runner:
    """Runs steps on GPUs until they are through or the time is."""

    def __init__(self, chosen: list[Step], gpus: list[int], at_once: int, ends: float | None) -> None:
        self.chosen = chosen
        self.gpus = gpus
        self.at_once = at_once
        self.ends = ends

    async def run(self) -> None:
        """Those that share a GPU first, then the others; a GPU takes the next one when it has room."""
        for alone in (False, True):
            waiting = [step for step in self.chosen if step.alone == alone]
            slots = self.gpus * (1 if alone else self.at_once)
            await asyncio.gather(*(self._slot(waiting, gpu) for gpu in slots))

    async def _slot(self, waiting: list[Step], gpu: int) -> None:
        while waiting:
            await self._step(waiting.pop(0), gpu)

    async def _step(self, step: Step, gpu: int) -> None:
        limit = step.limit if self.ends is None else min(step.limit, self.ends - time.monotonic())
        if limit <= 0:
            print(f"{step.name}: no time left", flush=True)
            return
        step.report.parent.mkdir(parents=True, exist_ok=True)
        log = step.report.with_suffix(".log")
        variables = os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu), "PYTHONUNBUFFERED": "1"}
        started = time.monotonic()
        print(f"{step.name}: on GPU {gpu}, at most {limit:.0f} s", flush=True)
        with log.open("wb") as stream:
            process = await asyncio.create_subprocess_exec(
                *step.command,
                cwd=ROOT,
                env=variables,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = await asyncio.wait_for(process.wait(), limit)
                outcome = {0: "passed", 1: "failed"}.get(code, f"exit {code}")
            except TimeoutError:
                outcome = "cut off"
            finally:
                # Engines' workers are of other sessions and end with their parent; whatever else is left goes here.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if outcome != "cut off" and not step.report.exists():
            outcome = "no report"
        seconds = time.monotonic() - started
        step.write(outcome, seconds, gpu)
        print(f"{step.name}: {outcome} after {seconds:.0f} s", flush=True)
        if outcome not in ("passed", "cut off"):
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
            print("\n".join(f"    {line}" for line in tail), flush=True)


@click.command(help=__doc__)
@click.option("--model", required=True, help="Folder of the checkpoint.")
@click.option("--results", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of reports.")
@click.option("--environment", "named", multiple=True, metavar="NAME=PYTHON", help="Interpreter of an engine.")
@click.option("--steps", "wanted", multiple=True, metavar="PREFIX", help="Only steps that begin so; may be repeated.")
@click.option("--list", "listing", is_flag=True, help="Show the steps, and run nothing.")
@click.option("--gpu", "gpus", type=int, multiple=True, default=(0,), show_default=True)
@click.option("--at-once", default=3, show_default=True, help="Steps that share a GPU.")
@click.option("--jobs", default=6, show_default=True, help="Processes of a conformance run.")
@click.option("--budget", type=float, help="Seconds after which everything ends.")
@click.option("--commit", help="Of this checkout, where git cannot say.")
@click.option("--again", is_flag=True, help="Also the steps that ended.")
def main(
    model: str,
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
    again: bool,
) -> None:
    """Run what is left to run; exits with 1 if a step that ran did not pass."""
    pythons = dict(each.partition("=")[::2] for each in named)
    for name, python in pythons.items():
        try:
            find_environment(name)
        except AnyEngineError:
            add_environment(name, python)
    plan = Plan(model, results.absolute(), pythons, jobs)
    every = plan.steps()
    chosen = [step for step in every if not wanted or step.name.startswith(wanted)]
    if listing:
        for step in [*chosen, plan.judging(every)]:
            print(f"{step.name:32} {step.outcome() or '-'}")
        return
    results.mkdir(parents=True, exist_ok=True)
    (results / "machine.json").write_text(json.dumps(machine(pythons, commit), indent=1) + "\n", encoding="utf-8")
    ends = None if budget is None else time.monotonic() + budget
    left = _left(chosen, again=again)
    asyncio.run(Runner(left, list(gpus), at_once, ends).run())
    if not wanted or "parity".startswith(wanted):
        last = _left([plan.judging(every)], again=again)
        asyncio.run(Runner(last, list(gpus[:1]), 1, ends).run())
        left += last
    raise SystemExit(0 if all(step.outcome() == "passed" for step in left) else 1)


def _left(chosen: list[Step], *, again: bool) -> list[Step]:
    return [step for step in chosen if again or step.outcome() in (None, "cut off")]


if __name__ == "__main__":
    main()
