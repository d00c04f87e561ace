"""The type that a checkpoint says its weights are in, for engines that would choose another by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine.backend.model_config import levels

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["own_dtype"]


def own_dtype(config: Mapping[str, Any]) -> str | None:
    """What ``dtype="auto"`` stands for.

    Args:
        config: the contents of config.json. transformers wrote ``torch_dtype`` before version 4.56 and writes ``dtype``
            since; models with several parts may say it of the one that writes text only.

    Returns:
        Its name in torch, such as ``bfloat16``; None where it is not said.
    """
    for part in levels(config):
        said: object = part.get("dtype") or part.get("torch_dtype")
        if isinstance(said, str):
            return said.removeprefix("torch.")
    return None
