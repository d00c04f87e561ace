"""The steps of a proof."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyengine_conformance.runner import select
from anyengine_conformance.shards import split

from .machine import ROOT
from .step import Step
from .variants import DRAFT, ITSELF, OVERHEAD_PARTS, QUANTIZERS, SIDE_BY_SIDE, TESTS, VARIANTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .variants import Quantizer, Speculation, Tests, Variant

ANYENGINE = (sys.executable, "-m", "anyengine")
PARITY = (*ANYENGINE, "conformance", "parity")
#: A test function, whether it is for two GPUs, and its fixtures.
_TEST = re.compile(
    r'^(@pytest\.mark\.usefixtures\("two_devices"\)\n)?(?:async )?def (test_\w+)\(([^)]*)\)', re.MULTILINE
)
#: Checks of what `determinism` promises.
DETERMINISM = (
    "batching.invariant-bit-for-bit",
    "knobs.determinism-batch-invariant-holds",
    "knobs.determinism-run-repeats",
    "seeds.run-repeats",
)


def within(path: Path | str) -> str:
    """As it is written in commands and reports: relative to the repository where it lies in it."""
    whole = Path(os.path.abspath(path))  # noqa: PTH100 a link stays what it is called
    return str(whole.relative_to(ROOT)) if whole.is_relative_to(ROOT) else str(whole)


@dataclass(frozen=True)
class Plan:
    """What all steps share.

    Attributes:
        model: folder of the checkpoint.
        results: folder of the reports.
        pythons: name of an environment → its interpreter.
        made: folder of the checkpoints that are made of the model.
        variants: engines.
        quantizers: toolchains.
        tests: of engines.
        side_by_side: arguments of that example.
        checks: families of the conformance suite; all without any.
        extra: kind of step → further arguments; `parity` is one.
    """

    model: str
    results: Path
    pythons: dict[str, str]
    made: Path = Path(".cache/gpu-proof")
    variants: Sequence[Variant] = VARIANTS
    quantizers: Sequence[Quantizer] = QUANTIZERS
    tests: Sequence[Tests] = TESTS
    side_by_side: tuple[str, ...] = SIDE_BY_SIDE
    checks: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def steps(self) -> list[Step]:
        """All of them but the last, in order: answers first, for the table needs them."""
        made = [self._draft()]
        made += [step for variant in self.variants for step in self._answers(variant)]
        made += [step for quantizer in self.quantizers for step in self._quantize(quantizer)]
        made += [step for variant in self.variants for step in self._conformance(variant)]
        made += [step for variant in self.variants for step in self._determinism(variant)]
        made += [self._side_by_side()]
        made += [step for variant in self.variants for step in self._speed(variant)]
        return made + [step for tests in self.tests for step in self._tests(tests)]

    def judging(self, every: list[Step]) -> Step:
        """The parity table, of the answers that are there."""
        files = [str(step.report) for step in every if step.name.startswith("answers/") and step.outcome() == "passed"]
        words = ("--model", self.model, "--oracle", "transformers", "-o", "device=cuda")
        return self._step("parity", (*PARITY, "judge", *files, *words), "--output", limit=470)

    def wholes(self, every: list[Step]) -> dict[Path, list[Step]]:
        """Report of a whole conformance run, of an engine's tests, or of its overhead → its parts."""
        found: dict[Path, list[Step]] = {}
        for step in every:
            if step.report.parent.name == "parts":
                whole = f"{step.report.stem.rpartition('-')[0]}{step.report.suffix}"
                found.setdefault(self.results / whole, []).append(step)
        return found

    def _step(
        self,
        name: str,
        command: tuple[str, ...],
        option: str | None,
        *,
        limit: float,
        file: str | None = None,
        alone: bool = False,
        gpus: int = 1,
        needs: tuple[str, ...] = (),
        makes: Path | None = None,
    ) -> Step:
        """A step whose report is given by that option, or is what it prints."""
        report = self.results / (file or f"{name.replace('/', '-')}.json")
        words = () if option is None else (option, str(report))
        extra = self.extra.get(name.partition("/")[0], ())
        return Step(name, (*command, *words, *extra), report, limit, alone, gpus, needs, option is None, makes)

    def _options(self, variant: Variant) -> tuple[str, ...]:
        there = () if variant.environment is None else (f"environment={variant.environment}",)
        return tuple(word for option in (*variant.options, *there) for word in ("-o", option))

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _draft(self) -> Step:
        folder = self.made / "draft"
        command = (sys.executable, "tools/cut_draft.py", self.model, str(folder))
        return self._step("draft", command, None, limit=60, makes=ROOT / folder)

    def _checkpoint(self, quantizer: Quantizer, scheme: str) -> Path:
        return self.made / f"{quantizer.name}-{scheme}"

    def _quantize(self, quantizer: Quantizer) -> list[Step]:
        made: list[Step] = []
        there = () if quantizer.environment is None else ("--environment", quantizer.environment)
        for name, scheme in quantizer.schemes.items():
            folder = self._checkpoint(quantizer, name)
            words = ("--engine", quantizer.engine, "--model", self.model, "--scheme", scheme, "--output", str(folder))
            command = (*ANYENGINE, "quantize", *words, *there, "--json")
            step = f"quantize/{quantizer.name}-{name}"
            made.append(self._step(step, command, None, limit=400, makes=ROOT / folder))
        return made

    # -- what is computed ---------------------------------------------------------------------------------------------

    def _speculative(self, speculation: Speculation) -> str:
        places = {DRAFT: str(self.made / "draft"), ITSELF: self.model}
        fields: dict[str, Any] = dict(speculation.fields)
        if "model" in fields:
            fields["model"] = places[fields["model"]]
        return json.dumps(fields)

    def _answers(self, variant: Variant) -> list[Step]:
        """Rows of the parity table: the engine, and with speculation also one request at a time."""
        rows: dict[str, tuple[str, tuple[str, ...]]] = {variant.name: (variant.label, ())}
        for each in variant.speculation:
            words = ("-o", f"speculative={self._speculative(each)}")
            label = f"{variant.label}, {each.label}"
            rows[f"{variant.name}-{each.name}"] = (label, words)
            rows[f"{variant.name}-{each.name}-alone"] = (f"{label}, one at a time", (*words, "--at-once", "1"))
        made: list[Step] = []
        for name, (label, words) in rows.items():
            base = ("answer", variant.engine, "--label", label, "--model", self.model)
            command = (*PARITY, *base, *self._options(variant), *words)
            file = f"answers-{name}.jsonl"
            made.append(self._step(f"answers/{name}", command, "--output", limit=400, file=file, needs=("draft",)))
        return made

    def _conformance(self, variant: Variant) -> list[Step]:
        """The suite on its own model, and on the checkpoint, both in parts."""
        if not variant.suite:
            return []
        command = (*ANYENGINE, "conformance", "run", *variant.suite)
        on = {
            ("conformance", ""): (),
            # Of the checkpoint's whole context the checks that fill it would be at it for minutes.
            ("conformance-smollm2", "-smollm2"): (
                *("--model", self.model, "--oracle", "transformers"),
                *("-o", "max_model_len=2048"),
            ),
        }
        made: list[Step] = []
        for (kind, suffix), words in on.items():
            if suffix and not variant.checkpoint:
                continue
            for number, checks in enumerate(split(select(self.checks), variant.parts), 1):
                only = tuple(word for check in checks for word in ("--only", check.id))
                name, file = (
                    f"{kind}/{variant.name}/{number}",
                    f"parts/conformance-{variant.name}{suffix}-{number}.json",
                )
                made.append(self._step(name, (*command, *words, *only), "--report", limit=560, file=file))
        return made

    def _determinism(self, variant: Variant) -> list[Step]:
        """The checks of that alone, on the checkpoint: the suite has them, among hundreds of others."""
        if not variant.determinism:
            return []
        only = tuple(word for check in DETERMINISM for word in ("--only", check))
        command = (*ANYENGINE, "conformance", "run", *variant.suite, "--model", self.model, *only)
        command += ("--oracle", "transformers")
        return [self._step(f"determinism/{variant.name}", command, "--report", limit=400)]

    def _tests(self, tests: Tests) -> list[Step]:
        """A step for each function: they load engines of their own. Those that ask for its memory have a GPU alone.

        What is for two GPUs is no part of the whole, which so is there after a run on one.
        """
        made: list[Step] = []
        for two, name, fixtures in _TEST.findall((ROOT / tests.file).read_text("utf-8")):
            what = (f"{tests.file}::{name}", *tests.words)
            command = (sys.executable, "-m", "pytest", "-rA", "--no-header", "-p", "no:cacheprovider", "--gpu", *what)
            alone = "gpu" in fixtures.replace(" ", "").split(",")
            kind, folder = ("two-gpus", "") if two else ("tests", "parts/")
            file = f"{folder}{kind}-{tests.engine}-{name.removeprefix('test_')}.txt"
            step = f"{kind}/{tests.engine}/{name.removeprefix('test_')}"
            gpus = 2 if two else 1
            made.append(self._step(step, command, None, limit=560, file=file, alone=alone, gpus=gpus))
        return made

    def _side_by_side(self) -> Step:
        command = (sys.executable, "examples/side_by_side.py", "--model", self.model, *self.side_by_side)
        return self._step("side-by-side", command, None, limit=400, file="side-by-side.txt", alone=True)

    # -- how fast -----------------------------------------------------------------------------------------------------

    def _speed(self, variant: Variant) -> list[Step]:
        programs: dict[str, tuple[str, ...]] = {}
        needs = {f"speculation/{variant.name}-{each.name}": ("draft",) for each in variant.speculation}
        ours = (variant.engine, "--model", self.model, *self._options(variant))
        for toolchain in self.quantizers if variant.quantized else ():
            folders = [str(self._checkpoint(toolchain, scheme)) for scheme in toolchain.schemes]
            given = (*folders, "--label", variant.label, "--rounds", str(variant.rounds))
            name = f"quantized/{variant.name}-by-{toolchain.name}"
            programs[name] = (sys.executable, "benchmarks/quantized.py", *ours, *given)
            needs[name] = (f"quantize/{toolchain.name}-",)
        if variant.concurrency:
            programs[f"concurrency/{variant.name}"] = (sys.executable, "benchmarks/concurrency.py", *ours)
        for each in variant.speculation:
            command = (sys.executable, "benchmarks/speculation.py", *ours, "--speculative", self._speculative(each))
            programs[f"speculation/{variant.name}-{each.name}"] = command
        made = [
            self._step(name, command, "--json", limit=560, alone=True, needs=needs.get(name, ()))
            for name, command in programs.items()
        ]
        if variant.overhead and variant.environment in self.pythons:
            command = (self.pythons[variant.environment], *variant.overhead, self.model)
            for number in range(1, OVERHEAD_PARTS + 1):
                # Loading takes two minutes: so as many pairs to a load as the budget allows. Cut off, it goes on.
                name, file = f"overhead/{variant.name}/{number}", f"parts/overhead-{variant.name}-{number}.json"
                made.append(self._step(name, command, "--json", limit=1_800, file=file, alone=True))
        return made
