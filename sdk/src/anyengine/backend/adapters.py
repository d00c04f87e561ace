"""Low-rank adapters against the limits in ``lora``, for engines whose own limits are others, or none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from anyengine.errors import ModelNotFound, UnsupportedParameter

if TYPE_CHECKING:
    from pathlib import Path

    from anyengine.config import LoRAConfig

__all__ = ["check_adapter_rank", "check_adapters_in_one_batch"]


def check_adapter_rank(name: str, folder: Path, most: int) -> None:
    """Hold an adapter, before its weights are read, against the largest rank that is to be loaded.

    Args:
        name: what requests call it.
        folder: of the adapter. PEFT writes the rank into ``adapter_config.json``, as ``r``, and those of layers that
            have another as ``rank_pattern``.
        most: ``lora.max_rank``.

    Raises:
        UnsupportedParameter: its rank is larger; names ``lora.adapters.NAME``.
        ModelNotFound: its rank cannot be read; names the same.
    """
    field, file = f"lora.adapters.{name}", folder / "adapter_config.json"
    try:
        said: dict[str, Any] = json.loads(file.read_bytes())
        others: dict[str, Any] = said.get("rank_pattern") or {}
        rank = max(map(int, [said["r"], *others.values()]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ModelNotFound(f"{file} cannot be read: {type(error).__name__}: {error}", field=field) from error
    if rank > most:
        raise UnsupportedParameter(
            f"{field}: its rank is {rank}, and lora.max_rank is {most}; load with a larger one", field=field
        )


def check_adapters_in_one_batch(engine: str, wanted: LoRAConfig) -> None:
    """For engines that have all adapters in one batch, and know no bound: a smaller ``max_loras`` is refused.

    Args:
        engine: as it is called in messages.
        wanted: what was asked for.

    Raises:
        UnsupportedParameter: names ``lora.max_loras``.
    """
    loaded = len(wanted.adapters)
    if wanted.most_in_a_batch < loaded:
        raise UnsupportedParameter(
            f"lora.max_loras: {engine} has all {loaded} adapters that it is loaded with in one batch, and no bound of "
            f"{wanted.max_loras}; give {loaded} or more, or leave it out, or load fewer adapters",
            field="lora.max_loras",
        )
