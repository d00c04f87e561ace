"""What one rendering of a chat template may use: steps, processor time, and the size of what it makes.

A template comes with a model, from wherever the model came, and Jinja's sandbox stops it from reaching Python, not
from looping for ever. Every step of :mod:`anyengine.text.sandbox` draws on the budget of the rendering in this context
and raises when it is used up, in the thread that renders: nothing is left running, and no thread has to be killed.
"""

from __future__ import annotations

from collections.abc import ItemsView, KeysView, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from time import thread_time
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping

__all__ = ["Budget", "BudgetExceededError", "active"]

SECONDS = 2.0
"""Processor time of the rendering thread, so that a loaded machine refuses nothing that an idle one renders."""

STEPS = 1_000_000
"""Loop iterations, calls, filters, tests, operators and outputs."""

NODE = 8
"""What an element of a container counts, in characters: the size of a reference."""

CLOCK_EVERY = 32
"""Steps between two looks at the clock, which costs more than most steps."""

LARGE = 10_000
"""Size from which on working out the size of a container is itself worth a look at the clock."""

VALUE_BASE, VALUE_PER_INPUT = 4_000_000, 8
"""Size of a single value, in characters: a constant, and so many times the input's size."""

TOTAL_BASE, TOTAL_PER_INPUT = 64_000_000, 64
"""Size of all values ever made, likewise; this bounds the memory."""


class BudgetExceededError(Exception):
    """The template asked for more than a rendering may use. No base class that a Jinja filter would swallow."""


class Budget:
    """Counts down while one template is compiled or rendered.

    Args:
        input_size: characters (and `NODE` an element) of messages and other variables, for which there is room beyond
            the constants.
    """

    __slots__ = ("_deadline", "_steps", "_total", "value_limit")

    def __init__(self, input_size: int = 0) -> None:
        self._deadline = thread_time() + SECONDS
        self._steps = STEPS
        self._total = TOTAL_BASE + TOTAL_PER_INPUT * input_size
        self.value_limit = VALUE_BASE + VALUE_PER_INPUT * input_size

    @contextmanager
    def activate(self) -> Generator[None]:
        """Make this the budget of the context."""
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)

    def step(self) -> None:
        """Count one step."""
        self._steps -= 1
        if self._steps < 0:
            raise BudgetExceededError(f"it takes more than {STEPS} steps")
        if self._steps % CLOCK_EVERY == 0:
            self._check_clock()

    def _check_clock(self) -> None:
        if thread_time() > self._deadline:
            raise BudgetExceededError(f"it takes more than {SECONDS:g} seconds")

    def require(self, size: int) -> None:
        """Refuse a value of `size` characters before it is made, if it is too large."""
        if size > self.value_limit:
            raise BudgetExceededError(f"it makes a value of more than {self.value_limit} characters")

    def spend(self, size: int) -> None:
        """Count `size` characters as made."""
        self._total -= size
        if self._total < 0:
            raise BudgetExceededError("it makes too much text")

    def charge(self, value: object) -> None:
        """Count `value` as made."""
        self.spend(self.size(value))

    def size(self, value: object) -> int:
        """The size of `value` in characters, were it printed: what is referred to twice counts twice.

        That makes lists of lists of lists, which cost nothing to make but everything to print, as large as they print.
        """
        if type(value) is str:
            self.require(len(value))
            return len(value)
        total = 0
        stack: list[Any] = [value]
        while stack:
            item = stack.pop()
            if isinstance(item, str):
                total += len(item)
            elif isinstance(item, int):
                total += item.bit_length() // 3 + 1
            else:
                parts = _parts(item)
                total += NODE * (len(parts) + 1)
                if set(map(type, parts)) == {str}:  # most lists; the general way is ten times slower
                    total += sum(map(len, parts))
                else:
                    self.require(total)
                    stack.extend(parts)
            self.require(total)
        if total > LARGE:
            self._check_clock()
        return total

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """`items`, each of which takes a step."""
        for item in items:
            self.step()
            yield item


def active() -> Budget:
    """The budget of the rendering in this context."""
    return _active.get()


_active: ContextVar[Budget] = ContextVar("anyengine_template_budget")


def _parts(value: object) -> list[Any]:
    if isinstance(value, (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)):
        return list(cast("Iterable[Any]", value))
    if isinstance(value, dict):
        return list(chain.from_iterable(cast("Mapping[Any, Any]", value).items()))
    return []
