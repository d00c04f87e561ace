"""What an oracle says of the answers of any number of configurations: the numbers of the table."""

from __future__ import annotations

import asyncio
import hashlib
import statistics
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from anyengine import Engine, InvalidConfig
from msgspec import Struct

from anyengine_conformance import environment
from anyengine_conformance.oracle import EngineOracle
from anyengine_conformance.parity_table.answers import Configuration, read
from anyengine_conformance.parity_table.prompts import KINDS, fingerprint, prompts
from anyengine_conformance.teacher_forcing import calibration, ending, near_tie_gap, steps_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from anyengine_conformance.oracle import Oracle
    from anyengine_conformance.parity_table.answers import Answer
    from anyengine_conformance.parity_table.prompts import Prompt

__all__ = ["Defect", "Figures", "Report", "Row", "judge", "judged"]

#: Answers that the oracle scores at once.
_AT_ONCE = 8


class Defect(Struct):
    """A token that rounding does not explain, or an answer that ended where its tokens do not say so.

    Attributes:
        prompt: id.
        step: number of the token, from 0.
        behind: nats by which it is less likely than the oracle's best; None where the ending is what is wrong.
        seen: what the engine chose, or how it ended.
        expected: the oracle's best token, or how it should have ended.
    """

    prompt: str
    step: int
    behind: float | None
    seen: str
    expected: str


class Figures(Struct, kw_only=True):
    """Of a number of answers.

    Attributes:
        prompts: number of answers.
        tokens: generated, all of them judged.
        parted: prompts whose answer is not the oracle's own greedy one.
        first_divergence: of these: the first token (counted from 0) that is not the oracle's; earliest and median.
        not_best: tokens that are not the oracle's best behind the tokens before them.
        near_ties: of these, those within the gap of the engine's data type.
        largest_loss: nats by which the worst token is less likely than the best.
        defects: the other ones, and wrong endings.
        error_mean: mean absolute error of the engine's log-probabilities, in nats; None if it gives none.
        error_max: the largest of these.
    """

    prompts: int
    tokens: int
    parted: int
    first_divergence: tuple[int, float] | None
    not_best: int
    near_ties: int
    largest_loss: float
    defects: int
    error_mean: float | None
    error_max: float | None


class Row(Struct, kw_only=True):
    """One configuration of an engine.

    Attributes:
        configuration: who answered.
        answers: fingerprint of the file with the answers.
        gap: nats within which two tokens are a near-tie in its data type.
        all: figures of all prompts.
        kinds: figures of each kind of prompts.
        defects: each of them.
        divergences: prompt id → first token that is not the oracle's; prompts that never part are left out.
    """

    configuration: Configuration
    answers: str
    gap: float
    all: Figures
    kinds: dict[str, Figures]
    defects: list[Defect]
    divergences: dict[str, int]


class Report(Struct, kw_only=True):
    """What the table is made of.

    Attributes:
        model: name of the checkpoint.
        prompts: fingerprint of the prompts.
        oracle: name, version, data type and device of the engine that scored.
        gaps: nats within which two tokens are a near-tie, for each data type.
        environment: of the program that judged.
        rows: in the order of the table.
    """

    model: str
    prompts: str
    oracle: dict[str, str | None]
    gaps: dict[str, float]
    environment: dict[str, Any]
    rows: list[Row]


@dataclass(slots=True)
class _Judged:
    """One answer."""

    kind: str
    tokens: int = 0
    first: int | None = None
    losses: list[float] = field(default_factory=list[float])
    defects: list[Defect] = field(default_factory=list[Defect])
    errors: list[float] = field(default_factory=list[float])


async def judge(
    files: Sequence[Path],
    output: Path,
    *,
    oracle: str,
    model: str,
    config: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> Report:
    """Score the answers of several files, and write a report; rows that it has already stay as they are.

    The report is written after each row, so that what was scored is kept if this ends early.

    Args:
        files: made by :func:`.answers.answer`, one a row.
        output: the report.
        oracle: engine that scores, in float32.
        model: folder or hub id of the checkpoint, for the oracle.
        config: further fields of EngineConfig for the oracle.
        say: is told what happens.

    Raises:
        InvalidConfig: a file is incomplete, or about other prompts or another model.
    """
    old = _read_old(output)
    async with AsyncExitStack() as stack:
        fields: dict[str, Any] = {"dtype": "float32", **config}
        engine = await stack.enter_async_context(Engine.load(oracle, model, **fields))
        report = _empty(oracle, engine)
        kept = {row.answers: row for row in old.rows} if old is not None and _basis(old) == _basis(report) else {}
        wanted = {prompt.id: await engine.tokenize(_content(prompt)) for prompt in prompts()}
        scorer = EngineOracle(oracle, engine, stack)
        for file in files:
            row = kept.get(_fingerprint(file)) or await judged(scorer, file, model=report.model, prompt_ids=wanted)
            report.rows.append(row)
            _write(output, report)
            told = row.all
            say(f"{row.configuration.label}: {told.parted} of {told.prompts} part, {told.defects} defects")
    return report


def _empty(oracle: str, engine: Engine) -> Report:
    """A report without rows.

    Raises:
        InvalidConfig: the oracle computes in another type than float32.
    """
    if engine.info.dtype != "float32":
        raise InvalidConfig(f"the oracle computes in {engine.info.dtype}; it has to be float32")
    return Report(
        model=engine.model.name.rstrip("/").rsplit("/", 1)[-1],
        prompts=fingerprint(),
        oracle={
            "engine": oracle,
            "engine_version": environment.engine_version(oracle, engine.config),
            "dtype": engine.info.dtype,
            "device": engine.info.device,
        },
        gaps=calibration()["gap"],
        environment=msgspec.to_builtins(environment.gather(oracle)),
        rows=[],
    )


def _read_old(file: Path) -> Report | None:
    return msgspec.json.decode(file.read_bytes(), type=Report) if file.exists() else None


def _write(file: Path, report: Report) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")


def _basis(report: Report) -> tuple[object, ...]:
    """What rows must have in common to stand in one report."""
    return report.model, report.prompts, report.oracle, report.gaps


def _content(prompt: Prompt) -> Any:
    return prompt.content


async def judged(oracle: Oracle, file: Path, *, model: str, prompt_ids: Mapping[str, list[int]]) -> Row:
    """One row.

    Args:
        oracle: scores in float32.
        file: with the answers.
        model: name of the oracle's checkpoint.
        prompt_ids: prompt id → the tokens that each engine must have been given.

    Raises:
        InvalidConfig: the file is incomplete, or about other prompts or another model.
    """
    given = read(file)
    configuration = given.configuration
    by_id = {found.id: found for found in given.answers}
    wanted = {prompt.id: prompt.kind for prompt in prompts()}
    if configuration.prompts != fingerprint() or by_id.keys() != wanted.keys():
        raise InvalidConfig(f"{file}: {len(by_id)} answers to {len(wanted)} prompts, or to other prompts than these")
    if configuration.model != model:
        raise InvalidConfig(f"{file}: answers of {configuration.model}, and the oracle has {model}")
    other = [name for name, found in by_id.items() if found.prompt_token_ids != prompt_ids[name]]
    if other:
        raise InvalidConfig(f"{file}: the engine was given other tokens than the oracle for {', '.join(other)}")
    gap = near_tie_gap(configuration.dtype)
    turns = asyncio.Semaphore(_AT_ONCE)

    async def one(name: str) -> _Judged:
        async with turns:
            return await _one(oracle, by_id[name], wanted[name], configuration, gap)

    found = dict(zip(wanted, await asyncio.gather(*(one(name) for name in wanted)), strict=True))
    return Row(
        configuration=configuration,
        answers=_fingerprint(file),
        gap=gap,
        all=_figures(list(found.values()), gap),
        kinds={kind: _figures([each for each in found.values() if each.kind == kind], gap) for kind in KINDS},
        defects=[defect for each in found.values() for defect in each.defects],
        divergences={name: each.first for name, each in found.items() if each.first is not None},
    )


async def _one(oracle: Oracle, answer: Answer, kind: str, configuration: Configuration, gap: float) -> _Judged:
    found = _Judged(kind, len(answer.token_ids))
    for number, step in enumerate(await steps_of(oracle, answer.prompt_token_ids, answer.token_ids)):
        if step.token != step.best:
            found.first = number if found.first is None else found.first
            found.losses.append(step.behind)
        if step.behind > gap:
            found.defects.append(Defect(answer.id, number, step.behind, str(step.token), str(step.best)))
        if answer.logprobs is not None:
            found.errors.append(abs(answer.logprobs[number] - step.logprob))
    wanted = ending(answer.token_ids, configuration.max_tokens, configuration.eos_token_ids)
    seen = (answer.finish_reason, len(answer.token_ids))
    if seen != wanted:
        found.defects.append(
            Defect(answer.id, seen[1], None, f"{seen[0]} after {seen[1]}", f"{wanted[0]} after {wanted[1]}")
        )
    return found


def _figures(found: list[_Judged], gap: float) -> Figures:
    losses = [loss for each in found for loss in each.losses]
    errors = [error for each in found for error in each.errors]
    first = [each.first for each in found if each.first is not None]
    return Figures(
        prompts=len(found),
        tokens=sum(each.tokens for each in found),
        parted=len(first),
        first_divergence=(min(first), statistics.median(first)) if first else None,
        not_best=len(losses),
        near_ties=sum(loss <= gap for loss in losses),
        largest_loss=max(losses, default=0.0),
        defects=sum(len(each.defects) for each in found),
        error_mean=statistics.fmean(errors) if errors else None,
        error_max=max(errors) if errors else None,
    )


def _fingerprint(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
