"""The text that a scheme is fitted to: where it comes from, and the sequences that are drawn of it."""

from __future__ import annotations

import hashlib
import json
import random
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from msgspec import Struct
from pydantic import Field, model_validator

from anyengine._model import AsTuple, StrictModel
from anyengine.errors import InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["BUILTIN", "Calibration", "Drawn", "builtin_texts", "calibration_of", "draw"]

BUILTIN = "builtin"
#: Sequences that are drawn if nobody says how many, if the text has so many.
_COUNT = 512


class Calibration(StrictModel):
    """The calibration part of a recipe.

    Attributes:
        file: ``.jsonl``: in each line a JSON string or an object with a ``text``; any other file is one text, in UTF-8.
        texts: the texts themselves. Without either it is the small built-in set: prose, code and other kinds, some
            2,500 tokens, written for anyengine and under its licence (Apache-2.0).
        sequence_length: tokens of a sequence.
        count: sequences that are drawn, without repetition. None: all that the text has, at most 512.
        seed: of the order in which texts are strung together and cut.
    """

    error: ClassVar = InvalidConfig

    file: Annotated[str, Field(min_length=1)] | None = None
    texts: Annotated[tuple[str, ...], AsTuple] | None = None
    sequence_length: Annotated[int, Field(ge=8)] = 256
    count: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @model_validator(mode="after")
    def _one_source(self) -> Calibration:
        if self.file is not None and self.texts is not None:
            raise ValueError("file and texts are two sources; give one")
        return self


class Drawn(Struct, frozen=True, kw_only=True):
    """What was drawn, for the manifest.

    Attributes:
        source: the file's name, ``texts`` or ``builtin``.
        licence: of the built-in set; None for text of the caller's.
        sha256: of all its texts.
        sequence_length: tokens of a sequence.
        count: sequences.
        seed: of their order.
    """

    source: str
    licence: str | None = None
    sha256: str
    sequence_length: int
    count: int
    seed: int


def calibration_of(value: object) -> Calibration | None:
    """What a caller may pass for one: a :class:`Calibration`, ``"builtin"``, a file, or texts.

    Raises:
        InvalidConfig: it is none of these.
    """
    if value is None or isinstance(value, Calibration):
        return value
    if value == BUILTIN:
        return Calibration()
    if isinstance(value, (str, Path)):
        return Calibration(file=str(value))
    if isinstance(value, (list, tuple)):
        return Calibration(texts=tuple(cast("Sequence[str]", value)))
    raise InvalidConfig(
        f"calibration: give a file, 'builtin', a list of texts or a Calibration, not a {type(value).__name__}",
        field="calibration",
    )


@cache
def builtin_texts(name: str) -> tuple[str, ...]:
    """The texts of a file of ``data/``: ``calibration`` or ``held-out``; no text is in both."""
    lines = files("anyengine.quantization").joinpath("data", f"{name}.jsonl").read_text("utf-8").splitlines()
    return tuple(json.loads(line)["text"] for line in lines)


def draw(
    calibration: Calibration, tokenize: Callable[[str], list[int]], context: int | None
) -> tuple[list[list[int]], Drawn]:
    """Cut the texts, strung together in a seeded order, into sequences.

    Args:
        calibration: the recipe.
        tokenize: the ids of a text, without special tokens.
        context: most tokens that the model takes; None where it does not say.

    Raises:
        InvalidConfig: the text does not give a sequence, or not as many as are wanted, or they are longer than the
            model's context.
    """
    length = calibration.sequence_length
    if context is not None and length > context:
        raise InvalidConfig(
            f"calibration.sequence_length: {length} is more than the model's context of {context} tokens",
            field="calibration.sequence_length",
        )
    texts = _texts(calibration)
    order = list(range(len(texts)))
    random.Random(calibration.seed).shuffle(order)  # noqa: S311 an order, no secret
    ids = [token for index in order for token in tokenize(texts[index])]
    whole = len(ids) // length
    if not whole:
        raise InvalidConfig(
            f"calibration: the text has {len(ids)} tokens, less than one sequence of {length}; give more text, or a "
            "smaller calibration.sequence_length",
            field="calibration",
        )
    if calibration.count is not None and calibration.count > whole:
        raise InvalidConfig(
            f"calibration.count: the text gives {whole} sequences of {length} tokens, not {calibration.count}",
            field="calibration.count",
        )
    count = calibration.count or min(whole, _COUNT)
    builtin = calibration.file is None and calibration.texts is None
    drawn = Drawn(
        source=Path(calibration.file).name if calibration.file else BUILTIN if builtin else "texts",
        licence="Apache-2.0" if builtin else None,
        sha256=sha256_of(texts),
        sequence_length=length,
        count=count,
        seed=calibration.seed,
    )
    return [ids[start * length : (start + 1) * length] for start in range(count)], drawn


def sha256_of(texts: Sequence[str]) -> str:
    """Of texts in their order, as a JSON array in UTF-8 without spaces."""
    return hashlib.sha256(json.dumps(texts, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def _texts(calibration: Calibration) -> Sequence[str]:
    if calibration.texts is not None:
        return calibration.texts
    if calibration.file is None:
        return builtin_texts("calibration")
    file = Path(calibration.file).expanduser()
    try:
        content = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"calibration.file: {file} cannot be read: {error}", field="calibration.file") from error
    if file.suffix != ".jsonl":
        return (content,)
    return tuple(_text(file, number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip())


def _text(file: Path, number: int, line: str) -> str:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(
            f"calibration.file: line {number} of {file} is not JSON: {error}", field="calibration.file"
        ) from error
    text: object = cast("dict[str, Any]", value).get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise InvalidConfig(
            f"calibration.file: line {number} of {file} is neither a JSON string nor an object with a text",
            field="calibration.file",
        )
    return text
