"""Signals that end a run early, but not before what was found is written down."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType, TracebackType
    from typing import Self

__all__ = ["Interrupted", "Interrupts", "accepted", "held"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal came."""

    def __init__(self, source: Interrupts) -> None:
        super().__init__()
        self.source = source


class Interrupts:
    """Inside it, Ctrl-C, SIGTERM and SIGHUP raise :class:`Interrupted`, until somebody has accepted it.

    What is left to do then (closing the engine, writing the report) is not interrupted again; it ends by itself.
    Signals that were ignored stay ignored, and in another thread than the main one, which gets no signals, nothing
    changes.

    Attributes:
        received: the first signal; None while there was none.
        accepted: whether the run is ending because of it.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.accepted = False
        self._before: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that ended because of the signal; 0 if there was none."""
        return 0 if self.received is None else 128 + self.received

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._came)
        return self

    def _came(self, number: int, _frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number)
        if not self.accepted:
            raise Interrupted(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def accepted(error: KeyboardInterrupt) -> str:
    """End because of it: later signals change nothing any more. Returns the signal's name."""
    if not isinstance(error, Interrupted):
        return signal.SIGINT.name
    error.source.accepted = True
    return (error.source.received or signal.SIGINT).name


@contextmanager
def held() -> Generator[None]:
    """Inside it no signal interrupts; one that came does at its end. For what would be lost if it were done by half."""
    before: dict[int, Any] = {}
    came: list[int] = []
    try:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):  # else it ends the process, or nothing
                    before[number] = handler
                    signal.signal(number, lambda number, _frame: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)
