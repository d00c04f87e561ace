"""Low-rank adapters against the limits in ``lora``, for engines whose own limits are others, or none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from anyengine.errors import ModelNotFound, UnsupportedParameter

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from anyengine.config import LoRAConfig

__all__ = ["check_adapter_rank", "check_adapter_settings", "check_adapters_in_one_batch", "read_adapter"]


def read_adapter(name: str, folder: Path) -> dict[str, Any]:
    """What PEFT wrote of an adapter into its ``adapter_config.json``.

    Args:
        name: what requests call it.
        folder: of the adapter.

    Raises:
        ModelNotFound: it cannot be read; names ``lora.adapters.NAME``.
    """
    file = folder / "adapter_config.json"
    try:
        said: Any = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(name, folder, error) from error
    if not isinstance(said, dict):
        raise _unreadable(name, folder, TypeError(f"a {type(said).__name__} where an object should be"))
    return cast("dict[str, Any]", said)


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
    said = read_adapter(name, folder)
    try:
        others: dict[str, Any] = said.get("rank_pattern") or {}
        rank = max(map(int, [said["r"], *others.values()]))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise _unreadable(name, folder, error) from error
    if rank > most:
        raise _refused(name, f"its rank is {rank}, and lora.max_rank is {most}; load with a larger one")


def check_adapter_settings(engine: str, name: str, folder: Path, ignored: Iterable[str]) -> None:
    """Refuse an adapter that was trained with a setting without which the engine would compute something else.

    Args:
        engine: as it is called in messages.
        name: what requests call the adapter.
        folder: of the adapter.
        ignored: settings in ``adapter_config.json`` that the engine does not look at, or does not get through. One that
            is left out, or says no (null, false, empty, ``"none"``), changes nothing.

    Raises:
        UnsupportedParameter: it has one of them, or is no low-rank adapter at all; names ``lora.adapters.NAME``.
        ModelNotFound: its settings cannot be read; names the same.
    """
    said = read_adapter(name, folder)
    kind = said.get("peft_type")
    if kind not in {None, "LORA"}:
        raise _refused(name, f"it is of peft_type {kind!r}, and {engine} has low-rank adapters only")
    for setting in ignored:
        value = said.get(setting)
        # By kind: layer 0 is a setting, and equals False.
        if not (value is None or value is False or value in ("", "none", [], {})):
            raise _refused(name, f"{engine} does not honour its {setting} ({json.dumps(value)[:80]})")


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


def _refused(name: str, message: str) -> UnsupportedParameter:
    field = f"lora.adapters.{name}"
    return UnsupportedParameter(f"{field}: {message}", field=field)


def _unreadable(name: str, folder: Path, error: Exception) -> ModelNotFound:
    file = folder / "adapter_config.json"
    return ModelNotFound(f"{file} cannot be read: {type(error).__name__}: {error}", field=f"lora.adapters.{name}")
