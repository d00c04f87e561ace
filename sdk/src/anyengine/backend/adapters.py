"""The rank of a low-rank adapter against ``lora.max_rank``, for engines whose own limit is another or none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from anyengine.errors import ModelNotFound, UnsupportedParameter

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_adapter_rank"]


def check_adapter_rank(name: str, folder: Path, most: int) -> None:
    """Hold an adapter, before its weights are read, against the largest rank that is to be loaded.

    Args:
        name: what requests call it.
        folder: of the adapter; PEFT writes the rank into ``adapter_config.json``, as ``r``.
        most: ``lora.max_rank``.

    Raises:
        UnsupportedParameter: its rank is larger; names ``lora.adapters.NAME``.
        ModelNotFound: its rank cannot be read; names the same.
    """
    field, file = f"lora.adapters.{name}", folder / "adapter_config.json"
    try:
        rank = int(json.loads(file.read_bytes())["r"])
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise ModelNotFound(f"{file} cannot be read: {type(error).__name__}: {error}", field=field) from error
    if rank > most:
        raise UnsupportedParameter(
            f"{field}: its rank is {rank}, and lora.max_rank is {most}; load with a larger one", field=field
        )
