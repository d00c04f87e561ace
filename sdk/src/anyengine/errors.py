"""Every error that anyengine raises, in one tree.

::

    AnyEngineError
     ├── Misuse                      the caller can mend it; nothing was started
     │    ├── InvalidRequest         a request field has a value that no engine accepts
     │    ├── InvalidConfig          a configuration field has a value that no engine accepts
     │    ├── UnsupportedParameter   the field is valid, this engine cannot honour it
     │    ├── UnsupportedCapability  the operation is valid, this engine does not have it
     │    ├── UnknownEngine          no installed engine has that name
     │    └── EngineClosed           the engine was closed before the call
     └── Failure                     the engine or its surroundings failed
          ├── ModelNotFound          no checkpoint at that path or hub id, or an unusable one
          ├── OutOfMemory            device or host memory did not suffice
          ├── OutOfSpace             a disk did not suffice
          ├── EnvironmentFailed      an environment cannot be made, or does not work
          ├── EngineStartupError     the engine did not come up
          ├── EngineDied             the engine is gone; every open request fails with this
          ├── EngineUnresponsive     the engine exists but does not answer in time
          ├── RequestTimeout         a request ran past its ``timeout``; carries the partial completion
          ├── Overloaded             the queue is full; carries ``retry_after``
          └── PluginError            a plugin broke the contract, or raised what it did not map

Each error carries its facts as attributes, so that a program never parses a message. The message
says what was wrong, what is allowed, and what to do. Foreign exceptions are chained as ``__cause__``.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Collection

    from anyengine.outputs import Completion

__all__ = [
    "AnyEngineError",
    "EngineClosed",
    "EngineDied",
    "EngineStartupError",
    "EngineUnresponsive",
    "EnvironmentFailed",
    "Failure",
    "InvalidConfig",
    "InvalidRequest",
    "Misuse",
    "ModelNotFound",
    "OutOfMemory",
    "OutOfSpace",
    "Overloaded",
    "PluginError",
    "RequestTimeout",
    "UnknownEngine",
    "UnsupportedCapability",
    "UnsupportedParameter",
]


class AnyEngineError(Exception):
    """Root of the tree.

    Attributes:
        message: what happened and what to do, without prefixes.
        engine: name of the engine concerned, if one is.
        field: dotted name of the request or configuration field concerned, such as ``sampling.top_k``.
        exit_code: what the command line exits with: 2 for misuse, 1 for failure.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, engine: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.engine = engine
        self.field = field

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments would be lost by Exception.__reduce__.
        return _rebuild, (type(self), self.message, self.__dict__)

    def as_dict(self) -> dict[str, Any]:
        """The error as JSON-able data: ``type`` (the class), ``message`` and every attribute that has a value."""
        import msgspec  # noqa: PLC0415 errors are caught by programs that never make one

        kind = {"type": type(self).__name__, "message": self.message}
        facts = {name: value for name, value in vars(self).items() if value is not None and name not in kind}
        return {**kind, **msgspec.to_builtins(facts, enc_hook=_builtin)}


def _builtin(value: object) -> int | float | str:
    """What an attribute is in JSON that is of no type of ours: a number of NumPy's, or its text."""
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else str(value)


def _rebuild(cls: type[AnyEngineError], message: str, facts: dict[str, Any]) -> AnyEngineError:
    error = cls.__new__(cls, message)
    Exception.__init__(error, message)
    error.__dict__.update(facts)
    return error


class Misuse(AnyEngineError):
    """The call cannot be right as it stands; nothing was started and nothing else is affected."""

    exit_code = 2


class InvalidRequest(Misuse):
    """A request field has a value that no engine accepts."""


class InvalidConfig(Misuse):
    """A configuration field has a value that no engine accepts."""


class UnsupportedParameter(Misuse):
    """The field is valid, but this engine cannot honour it, and nothing is ever ignored.

    Attributes:
        supported: the names or values that the engine does support in this place, if they can be listed.
    """

    def __init__(
        self,
        message: str,
        *,
        engine: str | None = None,
        field: str | None = None,
        supported: Collection[str] = (),
    ) -> None:
        super().__init__(message, engine=engine, field=field)
        self.supported = sorted(supported)


class UnsupportedCapability(Misuse):
    """The operation is valid, but this engine does not have it.

    Attributes:
        capability: name of the missing capability, as in :class:`anyengine.Capabilities`.
    """

    def __init__(self, message: str, *, capability: str, engine: str | None = None, field: str | None = None) -> None:
        super().__init__(message, engine=engine, field=field)
        self.capability = capability


class UnknownEngine(Misuse):
    """No installed, working engine has that name.

    Attributes:
        available: names of the engines that would work.
    """

    def __init__(self, message: str, *, engine: str | None = None, available: Collection[str] = ()) -> None:
        super().__init__(message, engine=engine)
        self.available = sorted(available)


class EngineClosed(Misuse):
    """The engine was closed before the call; load a new one."""


class Failure(AnyEngineError):
    """The call was right; the engine or its surroundings failed."""


class ModelNotFound(Failure):
    """There is no usable checkpoint at that path or hub id."""


class OutOfMemory(Failure):
    """Device or host memory did not suffice; the message says which share was asked for and what is free."""


class OutOfSpace(Failure):
    """A disk did not suffice; the message says which, and what is free. Nothing half-written is left."""


class EnvironmentFailed(Failure):
    """An environment cannot be made, or its interpreter does not work; the message says what mends it.

    Attributes:
        log_tail: the last lines of what failed: pip, or the interpreter.
    """

    def __init__(
        self,
        message: str,
        *,
        engine: str | None = None,
        field: str | None = None,
        log_tail: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, engine=engine, field=field)
        self.log_tail = log_tail


class EngineStartupError(Failure):
    """The engine did not come up; whatever it had taken is released."""


class EngineDied(Failure):
    """The engine is gone. Every open request fails with this; load a new engine.

    Attributes:
        exit_status: of the process: an exit code, minus a signal's number, or None in-process.
        log_tail: the last lines that the engine logged.
    """

    def __init__(
        self,
        message: str,
        *,
        engine: str | None = None,
        exit_status: int | None = None,
        log_tail: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message, engine=engine)
        self.exit_status = exit_status
        self.log_tail = log_tail


class EngineUnresponsive(Failure):
    """The engine exists but gave no sign of life within its time."""


class RequestTimeout(Failure):
    """The request ran past its ``timeout``. It was aborted in the engine.

    Attributes:
        partial: what had been generated by then; None if no token had come.
    """

    def __init__(self, message: str, *, engine: str | None = None, partial: Completion | None = None) -> None:
        super().__init__(message, engine=engine, field="timeout")
        self.partial = partial


class Overloaded(Failure):
    """The queue is full, and nothing was queued.

    Attributes:
        retry_after: seconds after which a place is likely, estimated from recent requests.
    """

    def __init__(self, message: str, *, engine: str | None = None, retry_after: float) -> None:
        super().__init__(message, engine=engine)
        self.retry_after = retry_after


class PluginError(Failure):
    """A plugin broke the contract or raised something that it did not map; a bug to report to its author."""
