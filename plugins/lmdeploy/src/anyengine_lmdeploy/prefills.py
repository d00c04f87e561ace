"""Keeping scores and the beginnings of other requests apart, on the PyTorch backend.

One request for the log-probabilities of its prompt makes the step that computes it a scoring one, for the whole batch:
every request that begins in the same step is given token 0 and ended (``_get_outputs_with_logprobs`` in
``lmdeploy/pytorch/engine/model_agent/agent.py``, whose scheduler does not separate them). Requests that have begun are
computed in steps of their own.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

__all__ = ["Prefills"]


class Prefills:
    """Either requests begin, or texts are scored, many of a kind at once; whoever comes first goes first.

    A request that LMDeploy preempts begins a second time, which nobody is told: from that this does not protect.
    """

    def __init__(self) -> None:
        self._beginning = 0
        self._scoring = 0
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def beginning(self) -> AsyncGenerator[Callable[[], None]]:
        """No text is scored until what this gives is called: when the first output is there. Or until it is left."""
        async with self._turn:
            while self._scoring:
                await self._wait()
            self._beginning += 1
        begins = True

        def begun() -> None:
            nonlocal begins
            if begins:
                begins = False
                self._beginning -= 1
                self._changed.set()

        try:
            yield begun
        finally:
            begun()

    @asynccontextmanager
    async def scoring(self) -> AsyncGenerator[None]:
        """No request begins as long as this lasts."""
        async with self._turn:
            while self._beginning:
                await self._wait()
            self._scoring += 1
        try:
            yield
        finally:
            self._scoring -= 1
            self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()
