"""The steps of a proof."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .machine import ROOT
from .step import Step, Turn
from .variants import DRAFT, ITSELF, QUANTIZERS, SIDE_BY_SIDE, TESTS, VARIANTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .variants import Quantizer, Speculation, Tests, Variant

ANYENGINE = (sys.executable, "-m", "anyengine")
PARITY = (*ANYENGINE, "conformance", "parity")
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
        jobs: processes of a conformance run.
        made: folder of the checkpoints that are made of the model.
        variants: engines.
        quantizers: toolchains.
        tests: of engines.
        side_by_side: arguments of that example.
        extra: kind of step → further arguments; `parity` is one.
    """

    model: str
    results: Path
    pythons: dict[str, str]
    jobs: int
    made: Path = Path(".cache/gpu-proof")
    variants: Sequence[Variant] = VARIANTS
    quantizers: Sequence[Quantizer] = QUANTIZERS
    tests: Sequence[Tests] = TESTS
    side_by_side: tuple[str, ...] = SIDE_BY_SIDE
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
        return made + [self._tests(tests) for tests in self.tests]

    def judging(self, every: list[Step]) -> Step:
        """The parity table, of the answers that are there."""
        files = [str(step.report) for step in every if step.name.startswith("answers/") and step.outcome() == "passed"]
        words = ("--model", self.model, "--oracle", "transformers", "-o", "device=cuda")
        return self._step("parity", (*PARITY, "judge", *files, *words), "--output", limit=470)

    def _step(
        self,
        name: str,
        command: tuple[str, ...],
        option: str | None,
        *,
        limit: float,
        file: str | None = None,
        turn: Turn = "shared",
        makes: Path | None = None,
    ) -> Step:
        """A step whose report is given by that option, or is what it prints."""
        report = self.results / (file or f"{name.replace('/', '-')}.json")
        words = () if option is None else (option, str(report))
        extra = self.extra.get(name.partition("/")[0], ())
        return Step(name, (*command, *words, *extra), report, limit, turn, prints=option is None, makes=makes)

    def _options(self, variant: Variant) -> tuple[str, ...]:
        there = () if variant.environment is None else (f"environment={variant.environment}",)
        return tuple(word for option in (*variant.options, *there) for word in ("-o", option))

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _draft(self) -> Step:
        folder = self.made / "draft"
        command = (sys.executable, "tools/cut_draft.py", self.model, str(folder))
        return self._step("draft", command, None, limit=60, turn="first", makes=ROOT / folder)

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
            made.append(self._step(f"answers/{name}", command, "--output", limit=400, file=f"answers-{name}.jsonl"))
        return made

    def _conformance(self, variant: Variant) -> list[Step]:
        """The suite on its own model, and on the checkpoint."""
        if not variant.suite:
            return []
        command = (*ANYENGINE, "conformance", "run", *variant.suite, "--jobs", str(self.jobs))
        other = (*command, "--model", self.model, "--oracle", "transformers")
        file = f"conformance-{variant.name}-smollm2.json"
        return [
            self._step(f"conformance/{variant.name}", command, "--report", limit=900),
            self._step(f"conformance-smollm2/{variant.name}", other, "--report", limit=900, file=file),
        ]

    def _determinism(self, variant: Variant) -> list[Step]:
        """The checks of that alone, on the checkpoint: the suite has them, among hundreds of others."""
        if not variant.determinism:
            return []
        only = tuple(word for check in DETERMINISM for word in ("--only", check))
        command = (*ANYENGINE, "conformance", "run", *variant.suite, "--model", self.model, *only)
        command += ("--oracle", "transformers", "--jobs", "2")
        return [self._step(f"determinism/{variant.name}", command, "--report", limit=400)]

    def _tests(self, tests: Tests) -> Step:
        """Some of them measure the memory of the GPU."""
        command = (sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", "--gpu", *tests.words)
        return self._step(
            f"tests/{tests.engine}", command, None, limit=900, file=f"tests-{tests.engine}.txt", turn="alone"
        )

    def _side_by_side(self) -> Step:
        command = (sys.executable, "examples/side_by_side.py", "--model", self.model, *self.side_by_side)
        return self._step("side-by-side", command, None, limit=400, file="side-by-side.txt", turn="alone")

    # -- how fast -----------------------------------------------------------------------------------------------------

    def _speed(self, variant: Variant) -> list[Step]:
        programs: dict[str, tuple[str, ...]] = {}
        ours = (variant.engine, "--model", self.model, *self._options(variant))
        if variant.quantized:
            folders = [self._checkpoint(each, scheme) for each in self.quantizers for scheme in each.schemes]
            given = (*map(str, folders), "--label", variant.label)
            programs[f"quantized/{variant.name}"] = (sys.executable, "benchmarks/quantized.py", *ours, *given)
        if variant.concurrency:
            programs[f"concurrency/{variant.name}"] = (sys.executable, "benchmarks/concurrency.py", *ours)
        for each in variant.speculation:
            command = (sys.executable, "benchmarks/speculation.py", *ours, "--speculative", self._speculative(each))
            programs[f"speculation/{variant.name}-{each.name}"] = command
        if variant.overhead and variant.environment in self.pythons:
            command = (self.pythons[variant.environment], *variant.overhead, self.model)
            programs[f"overhead/{variant.name}"] = command
        return [self._step(name, command, "--json", limit=560, turn="alone") for name, command in programs.items()]
