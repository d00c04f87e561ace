"""Reads the ``decoder`` of a tokenizer: which of the supported kinds it is, and the steps around it.

The meaning of each step is that of the `tokenizers` library (``tokenizers/src/decoders`` and
``tokenizers/src/pre_tokenizers/{byte_level,metaspace}.rs``); a test compares every one with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, cast

from anyengine.errors import InvalidConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Kind", "Pipeline", "Step", "read_pipeline", "token_bytes"]

Kind = Literal["ByteLevel", "ByteFallback", "Metaspace"]
Step = Callable[[str, bool], str]
"""One token's string, and whether it is the first of the text, to what it decodes to."""

SUPPORTED = "ByteLevel, ByteFallback, Metaspace, and Sequences of these with Replace, Fuse and Strip"
BYTE_TOKEN_LENGTH = len("<0x00>")


@dataclass(slots=True)
class Pipeline:
    """A decoder, taken apart.

    Attributes:
        kind: how tokens become bytes or characters; ``Metaspace`` also stands for plain pieces.
        before: steps on each token's string before `kind` applies.
        after: steps on each resulting piece.
        positional: whether a step treats the first token differently.
        strip_content: the character stripped from the start of the whole text.
        strip_count: how many of it at most.
    """

    kind: Kind = "Metaspace"
    before: list[Step] = field(default_factory=list[Step])
    after: list[Step] = field(default_factory=list[Step])
    positional: bool = False
    strip_content: str = " "
    strip_count: int = 0
    fused: bool = False

    def add(self, spec: dict[str, Any]) -> None:
        """Append the decoder described by `spec` (the JSON of one decoder in ``tokenizer.json``)."""
        name = spec["type"]
        match name:
            case "Sequence":
                for inner in spec["decoders"]:
                    self.add(inner)
            case "Fuse":
                self.fused = True
            case "Strip" if self.fused and self.kind != "ByteLevel" and not self.strip_count and not spec["stop"]:
                self.strip_content, self.strip_count = spec["content"], spec["start"]
            case "Replace" if not self.fused:
                self._add_step(_replace(spec["pattern"], spec["content"]))
            case "Metaspace" if not self.fused:
                self._add_step(_metaspace(spec["replacement"], drops_first=spec["prepend_scheme"] != "never"))
                self.positional = self.positional or spec["prepend_scheme"] != "never"
            case "ByteFallback" if self.kind == "Metaspace" and not self.fused:
                self.kind = "ByteFallback"
            case "ByteLevel" if self.kind == "Metaspace" and not self.fused and not self.positional:
                self.kind = "ByteLevel"
                self.fused = True
            case "Strip" | "Replace" | "Metaspace" | "ByteFallback" | "ByteLevel":
                raise _unsupported(f"{name} in this place of a Sequence, or with these options: {json.dumps(spec)}")
            case _:
                raise _unsupported(str(name))

    def _add_step(self, step: Step) -> None:
        (self.after if self.kind == "ByteFallback" else self.before).append(step)


def read_pipeline(tokenizer: Tokenizer) -> Pipeline:
    """The decoder of `tokenizer`.

    Raises:
        InvalidConfig: (field ``tokenizer``) there is none, or it is not supported.
    """
    decoder = tokenizer.decoder
    if decoder is None:
        raise _unsupported("no decoder at all")
    pipeline = Pipeline()
    # A decoder's pickle state is its JSON; Tokenizer.to_str() would write out the whole vocabulary for it.
    state = cast("bytes", decoder.__getstate__())
    pipeline.add(json.loads(state))
    return pipeline


def token_bytes(kind: Kind, token: str) -> bytes | None:
    """The bytes that `token` stands for, or None where it stands for its own characters."""
    if kind == "ByteLevel":
        try:
            return bytes(map(_byte_level_alphabet().__getitem__, token))
        except KeyError:
            return token.encode()
    if kind == "ByteFallback" and token.startswith("<0x") and token.endswith(">"):
        digits = token[3:-1]
        # Rust's from_str_radix takes a sign; "<0x+A>" is therefore byte 10 to `tokenizers`, and has to be here.
        if len(token.encode()) == BYTE_TOKEN_LENGTH and digits.isascii() and digits.removeprefix("+").isalnum():
            try:
                return bytes([int(digits, 16)])
            except ValueError:
                return None
    return None


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's one printable character for each byte (`bytes_to_unicode` in openai/gpt-2, ``src/encoder.py``).

    Printable Latin-1 stands for itself; the other bytes, in order, are the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _metaspace(replacement: str, *, drops_first: bool) -> Step:
    def step(token: str, first: bool) -> str:  # noqa: FBT001 (called positionally, once a token of the vocabulary)
        return token.replace(replacement, "" if first and drops_first else " ")

    return step


def _replace(pattern: dict[str, str], content: str) -> Step:
    literal = pattern.get("String")
    if literal:
        return lambda token, _first: token.replace(literal, content)
    if "Regex" not in pattern:
        raise _unsupported(f"Replace with the pattern {json.dumps(pattern)}")
    from tokenizers import Regex, decoders  # noqa: PLC0415 (heavy)

    # The library's regular expressions (Oniguruma) are not Python's; this runs once a token, when the table is built.
    replace = decoders.Replace(Regex(pattern["Regex"]), content)
    return lambda token, _first: replace.decode([token])


def _unsupported(what: str) -> InvalidConfig:
    return InvalidConfig(
        f"the tokenizer's decoder is not supported: {what}. Supported: {SUPPORTED}",
        field="tokenizer",
    )
