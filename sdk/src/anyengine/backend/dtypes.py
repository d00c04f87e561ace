"""The type that a checkpoint says its weights are in, for engines that would choose another by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["own_dtype"]


def own_dtype(config: Mapping[str, Any]) -> str | None:
    """What ``dtype="auto"`` stands for.

    Args:
        config: the contents of config.json. transformers wrote ``torch_dtype`` before version 4.56 and writes ``dtype``
            since; models with several parts may say it of the language model only, in ``text_config``.

    Returns:
        Its name in torch, such as ``bfloat16``; None where it is not said.
    """
    inner: object = config.get("text_config")
    parts = [config, cast("Mapping[str, Any]", inner)] if isinstance(inner, dict) else [config]
    for part in parts:
        said: object = part.get("dtype") or part.get("torch_dtype")
        if isinstance(said, str):
            return said.removeprefix("torch.")
    return None
