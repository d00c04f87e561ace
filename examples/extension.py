"""An extension that counts the tokens of an application, and refuses requests once they are spent."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from anyengine import Engine, Failure, hookimpl

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Generator

    from anyengine import Chunk, Completion


class Spent(Failure):
    """The budget is used up."""


class Budget:
    """Refuses requests once all together have had ``limit`` tokens; what runs by then is not cut short."""

    def __init__(self, limit: int) -> None:
        self.left = limit

    def _check(self) -> None:
        if self.left <= 0:
            raise Spent("the token budget is used up")

    @hookimpl(wrapper=True)
    def generate(self) -> Generator[None, Coroutine[None, None, Completion], Coroutine[None, None, Completion]]:
        """Count a completion, and its alternatives."""
        inner = yield

        async def counted() -> Completion:
            self._check()
            answer = await inner
            self.left -= sum(choice.usage.completion_tokens for choice in answer.choices)
            return answer

        return counted()

    @hookimpl(wrapper=True)
    def stream(self) -> Generator[None, AsyncGenerator[Chunk], AsyncGenerator[Chunk]]:
        """Count a stream's tokens as they come, also those of a stream that is left early."""
        inner = yield

        async def counted() -> AsyncGenerator[Chunk]:
            self._check()
            async with aclosing(inner):
                async for chunk in inner:
                    self.left -= len(chunk.token_ids)
                    yield chunk

        return counted()


async def main() -> None:
    """Ask until the budget is used up."""
    budget = Budget(40)
    async with Engine.load("reference", extensions=[budget]) as engine:
        try:
            while True:
                answer = await engine.generate("Once upon a time", max_tokens=16)
                print(answer.usage.completion_tokens, "tokens, left:", budget.left)
        except Spent as error:
            print(error)


if __name__ == "__main__":
    asyncio.run(main())
