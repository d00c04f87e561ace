"""Runs steps on GPUs until they are through or the time is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

from .machine import ROOT, cores
from .step import CUT_OFF

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from .step import Step


#: Cores that a GPU has which measures: a benchmark against a native API has three engines, of which two processes each
#: work at a time, with threads for their sockets and for the GPU.
MEASURED = 10


class Runner:
    """Runs steps.

    Args:
        chosen: in the order that they are taken in, as far as their needs allow.
        gpus: numbers.
        at_once: steps that share a GPU.
        ends: time on the monotonic clock at which everything ends; None for never.
        again: begin anew, also where a step could go on from what it wrote.
        measuring: of the GPUs, those that take first what measures, and share afterwards; not all of them, for what
            measures may need what the others make.

    Each GPU has a share of the processors, so that what runs on another one does not disturb what is measured; and what
    is measured has one thread of each core, so that none of its processes waits for another's. Shares are equal, but
    a GPU that measures first has no more cores than that takes, and so fewer steps at once afterwards.
    """

    def __init__(
        self,
        chosen: Sequence[Step],
        gpus: Sequence[int],
        at_once: int,
        ends: float | None,
        *,
        again: bool = False,
        measuring: Collection[int] = (),
    ) -> None:
        self.waiting = list(chosen)
        self.running: list[Step] = []
        self.changed = asyncio.Condition()
        self.gpus = gpus
        self.at_once = at_once
        self.ends = ends
        self.again = again
        self.measuring = measuring

    async def run(self) -> None:
        """Those that share a GPU first, and when these have ended the others; where a GPU measures the other way round.

        A GPU takes the next as it can. At last those that spread over several GPUs, for which all of them are free.
        """
        sharing = [gpu for gpu in self.gpus if gpu not in self.measuring]
        await asyncio.gather(self._on(sharing, (False, True)), self._on(self.measuring, (True, False)))
        for step in self.waiting:
            if step.gpus <= len(self.gpus):
                await self._step(step, *self.gpus[: step.gpus])
            else:
                print(f"{step.name}: needs {step.gpus} GPUs", flush=True)

    async def _on(self, gpus: Collection[int], order: Sequence[bool]) -> None:
        for alone in order:
            slots = [gpu for gpu in gpus for _ in range(1 if alone else self._slots(gpu))]
            await asyncio.gather(*(self._slot(gpu, alone=alone) for gpu in slots))

    def _slots(self, gpu: int) -> int:
        """Steps that share that GPU, which has as large a part of `at_once` as it has of the largest share."""
        sizes = {each: len(share) for each, share in self._shares().items()}
        return max(1, self.at_once * sizes[gpu] // max(sizes.values()))

    async def _slot(self, gpu: int, *, alone: bool) -> None:
        def none_left() -> bool:
            return all(step.alone != alone or step.gpus > 1 for step in self.waiting)

        while True:
            async with self.changed:
                await self.changed.wait_for(lambda: none_left() or self._ready(alone=alone) is not None)
                step = self._ready(alone=alone)
                if step is None:
                    return
                self.waiting.remove(step)
                self.running.append(step)
            try:
                await self._step(step, gpu)
            finally:
                async with self.changed:
                    self.running.remove(step)
                    self.changed.notify_all()

    def _ready(self, *, alone: bool) -> Step | None:
        """The first one that needs nothing that has not ended."""
        for step in self.waiting:
            open_ = any(other.name.startswith(step.needs) for other in (*self.waiting, *self.running))
            if step.alone == alone and step.gpus == 1 and not open_:
                return step
        return None

    async def _step(self, step: Step, *gpus: int) -> None:
        if not self.again and step.outcome() == "passed":
            print(f"{step.name}: has passed meanwhile, in another proof", flush=True)
            return
        limit = step.limit if self.ends is None else min(step.limit, self.ends - time.monotonic())
        if limit <= 0:
            print(f"{step.name}: no time left", flush=True)
            return
        step.report.parent.mkdir(parents=True, exist_ok=True)
        step.clear(again=self.again)
        step.write(CUT_OFF, 0.0, *gpus)  # that is what it is if this program is killed
        started = time.monotonic()
        visible = ",".join(map(str, gpus))
        print(f"{step.name}: on GPU {visible}, at most {limit:.0f} s", flush=True)
        outcome = await _outcome(step, visible, limit, self._processors(gpus, alone=step.alone))
        seconds = time.monotonic() - started
        step.write(outcome, seconds, *gpus)
        print(f"{step.name}: {outcome} after {seconds:.0f} s", flush=True)
        if outcome not in ("passed", CUT_OFF):
            for file in [_log(step), *([step.report] if step.prints else [])]:
                tail = file.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
                print("\n".join(f"    {line}" for line in tail), flush=True)

    def _processors(self, gpus: Sequence[int], *, alone: bool) -> set[int]:
        """Of those that this process may use, the shares of these GPUs."""
        shares = self._shares()
        return {thread for gpu in gpus for core in shares[gpu] for thread in (core[:1] if alone else core)}

    def _shares(self) -> dict[int, list[list[int]]]:
        """GPU → its cores, which are neighbours, for these share caches; all of them where there are too few."""
        every = cores(os.sched_getaffinity(0))
        equal = len(every) // len(self.gpus)
        left = len(every) - min(equal, MEASURED) * len(self.measuring)
        shares: dict[int, list[list[int]]] = {}
        begin = 0
        for gpu in self.gpus:
            size = min(equal, MEASURED) if gpu in self.measuring else left // (len(self.gpus) - len(self.measuring))
            shares[gpu] = every[begin : begin + size] or every
            begin += size
        return shares


def _log(step: Step) -> Path:
    return step.report.with_suffix(".log")


async def _outcome(step: Step, visible: str, limit: float, processors: set[int]) -> str:
    variables = os.environ | {"CUDA_VISIBLE_DEVICES": visible, "PYTHONUNBUFFERED": "1"}
    with contextlib.ExitStack() as files:
        log = files.enter_context(_log(step).open("wb"))
        process = await asyncio.create_subprocess_exec(
            *step.command,
            cwd=ROOT,
            env=variables,
            stdout=files.enter_context(step.report.open("wb")) if step.prints else log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, processors),
        )
        try:
            code = await asyncio.wait_for(process.wait(), limit)
            outcome = {0: "passed", 1: "failed"}.get(code, f"exit {code}")
        except TimeoutError:
            return CUT_OFF
        finally:
            # Engines' workers are of other sessions and end with their parent; whatever else is left goes here.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return outcome if step.report.exists() else "no report"
