"""The hundred prompts of the parity table: 25 each of four kinds, from prompts.toml."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("prompts.toml")
KINDS = ("chat", "code", "multilingual", "long")
#: Which passages a long prompt is made of, counted from its own number: no two begin alike.
PASSAGES = (0, 7, 13, 18)


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        id: kind and number.
        kind: one of :data:`KINDS`.
        content: text, or the messages of a chat.
    """

    id: str
    kind: str
    content: str | list[dict[str, str]]


def prompts() -> list[Prompt]:
    """All of them, kind by kind."""
    given: dict[str, list[Any]] = tomllib.loads(FILE.read_text(encoding="utf-8"))
    passages, questions = given["passages"], given["questions"]
    given["long"] = [
        "\n\n".join([*(passages[(number + ahead) % len(passages)] for ahead in PASSAGES), question])
        for number, question in enumerate(questions)
    ]
    return [
        Prompt(f"{kind}-{number:02}", kind, content)
        for kind in KINDS
        for number, content in enumerate(given[kind], start=1)
    ]


def fingerprint() -> str:
    """Of the prompts' file: answers to other prompts are not compared with these."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest()[:16]
