"""A checkpoint on disk, and what the SDK reads of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import Struct, field

__all__ = ["ModelFiles"]


class ModelFiles(Struct, frozen=True, kw_only=True):
    """A resolved checkpoint: everything is on disk, nothing is downloaded later.

    Attributes:
        name: as the caller wrote it.
        path: folder with ``config.json`` and weights, as :attr:`EngineDescription.weights` names them.
        tokenizer_path: folder with ``tokenizer.json``.
        revision: commit of a hub model; None for a local folder.
        config: contents of ``config.json``.
        eos_token_ids: end-of-sequence tokens from config, generation config and tokenizer together.
        draft: the proposer's checkpoint with ``speculative.model``.
        loras: folders of the adapters by name.
    """

    name: str
    path: Path
    tokenizer_path: Path
    revision: str | None = None
    config: dict[str, Any]
    eos_token_ids: frozenset[int]
    draft: ModelFiles | None = None
    loras: dict[str, Path] = field(default_factory=dict[str, Path])
