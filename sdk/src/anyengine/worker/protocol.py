"""What passes between an application and a worker; ``docs/worker-protocol.md`` says it in words.

A frame is its length in bytes (4 bytes, big-endian, unsigned) and a msgpack array of messages. A message is a map with
a ``type``; fields that have their default value are left out, and a reader ignores fields that it does not know.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from msgspec import Raw, Struct

from anyengine.backend import BackendInfo
from anyengine.hub.files import ModelFiles
from anyengine.outputs import Finish, TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "MOST_WAITING",
    "PROTOCOL",
    "Call",
    "Cancel",
    "Cancelled",
    "ChunkItem",
    "Chunks",
    "Control",
    "End",
    "Error",
    "Failed",
    "FrameReader",
    "Heartbeat",
    "Hello",
    "Loaded",
    "Log",
    "Progress",
    "Result",
    "decode",
    "encode",
    "frame",
]

#: Major and minor version. Both sides must have the same major one; a minor one adds what may be ignored.
PROTOCOL = (2, 0)
#: A longer frame is a mistake, not a message.
MAX_FRAME = 2**30
#: Messages that wait to share a frame: of very many, the other side works on the first while the rest is made.
MOST_WAITING = 16
_LENGTH = struct.Struct(">I")


class _Message(Struct, frozen=True, omit_defaults=True, tag_field="type", tag=str.lower):
    pass


class Hello(_Message, frozen=True, tag="hello"):
    """The first message of either side.

    Attributes:
        protocol: major and minor version.
        sdk: version of anyengine.
        python: version of the interpreter; the worker's only.
        pid: of the worker; the worker's only.
    """

    protocol: tuple[int, int]
    sdk: str
    python: str = ""
    pid: int = 0


class Call(_Message, frozen=True, tag="call"):
    """To the worker: do something.

    Attributes:
        id: chosen by the caller, above 0, never used twice; the answer carries it. 0: no answer is wanted.
        method: see the table in ``docs/worker-protocol.md``.
        arguments: by name; those with default values are left out.
    """

    id: int
    method: str
    arguments: dict[str, Any] = {}


class Cancel(_Message, frozen=True, tag="cancel"):
    """To the worker: end the call or the stream of that id. Answered, unless it had ended, with :class:`Cancelled`."""

    id: int


class Result(_Message, frozen=True, tag="result"):
    """The answer to a call."""

    id: int
    value: Raw = Raw(b"\xc0")


class Error(_Message, frozen=True, tag="error"):
    """A call or a stream failed; see :mod:`anyengine.worker.errors`."""

    id: int
    error: dict[str, Any]


class Cancelled(_Message, frozen=True, tag="cancelled"):
    """A call or a stream was ended as asked; the engine holds nothing of it."""

    id: int


class ChunkItem(Struct, array_like=True):
    """New text and tokens of one sequence: an array in this order.

    Attributes:
        id: of the stream.
        index: which of the request's ``n`` sequences.
        text: what is new.
        token_ids: what is new.
        logprobs: one entry a token, if they were asked for.
        finish: with the last one of the sequence.
    """

    id: int
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    finish: Finish | None = None


class Chunks(_Message, frozen=True, tag="chunks"):
    """Whatever is new, of every stream; at most one item a sequence."""

    items: list[ChunkItem]


class End(_Message, frozen=True, tag="end"):
    """A stream has ended by itself; all its chunks were sent."""

    id: int


class Progress(_Message, frozen=True, tag="progress"):
    """How far a call has come that takes long; only for ``quantize``, and so never to who does not know it."""

    id: int
    done: int
    total: int


class Heartbeat(_Message, frozen=True, tag="heartbeat"):
    """On the control channel, once a second, from a thread of its own.

    Attributes:
        unanswered: seconds for which the engine, or the event loop, has owed an answer; 0 while it loads.
        stopped: processes of the engine that a signal has stopped.
    """

    unanswered: float = 0.0
    stopped: tuple[int, ...] = ()


class Log(_Message, frozen=True, tag="log"):
    """On the control channel: a record of the worker's logging.

    Attributes:
        level: as ``logging`` numbers them.
        logger: its name.
        message: formatted, with the traceback if there is one.
    """

    level: int
    logger: str
    message: str


class Failed(_Message, frozen=True, tag="failed"):
    """On the control channel: the engine as a whole has failed."""

    error: dict[str, Any]


class Loaded(Struct, frozen=True):
    """What ``load`` answers.

    Attributes:
        model: the checkpoint.
        info: what was loaded.
        concurrency: sequences that it pays to hand over at once.
    """

    model: ModelFiles
    info: BackendInfo
    concurrency: int


Answer = Hello | Result | Error | Cancelled | Chunks | End | Progress
Question = Hello | Call | Cancel
Control = Heartbeat | Log | Failed


def _enc_hook(value: Any) -> Any:
    from pathlib import PurePath  # noqa: PLC0415 rare

    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be sent to a worker")


def _dec_hook(kind: type, value: Any) -> Any:
    from pathlib import Path  # noqa: PLC0415 rare

    if issubclass(kind, Path):
        return Path(value)
    raise TypeError(f"a {kind.__name__} cannot be received from a worker")


_encoder = msgspec.msgpack.Encoder(enc_hook=_enc_hook)


def encode(value: object) -> bytes:
    """Msgpack of messages, or of a result's value."""
    return _encoder.encode(value)


def decode(data: bytes | memoryview | Raw, kind: Any) -> Any:
    """The value of that type in msgpack."""
    return msgspec.msgpack.decode(data, type=kind, dec_hook=_dec_hook)


def frame(messages: Sequence[object]) -> bytes:
    """Messages as they go over the wire.

    Raises:
        ValueError, TypeError, OverflowError, RecursionError: there is something in them that has no place in msgpack.
    """
    body = _encoder.encode(messages)
    if len(body) > MAX_FRAME:
        raise ValueError(f"{len(body)} bytes are more than the {MAX_FRAME} of a frame")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a stream of bytes into frames and decodes them."""

    QUESTIONS: ClassVar[Any] = list[Question]
    ANSWERS: ClassVar[Any] = list[Answer]
    CONTROL: ClassVar[Any] = list[Control]

    def __init__(self, kind: Any) -> None:
        self._decoder: msgspec.msgpack.Decoder[list[Any]] = msgspec.msgpack.Decoder(kind, dec_hook=_dec_hook)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yield the messages that are whole now.

        Raises:
            ValueError: this is not the protocol (``msgspec.DecodeError`` is one).
        """
        buffer = self._buffer
        buffer += data
        position = 0
        try:
            while len(buffer) - position >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(buffer, position)
                if length > MAX_FRAME:
                    raise ValueError(f"a frame of {length} bytes")
                end = position + _LENGTH.size + length
                if len(buffer) < end:
                    break
                # A copy: raw values in the messages keep it.
                body = bytes(buffer[position + _LENGTH.size : end])
                position = end
                yield from self._decoder.decode(body)
        finally:
            del buffer[:position]
