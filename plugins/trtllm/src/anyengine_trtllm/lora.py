"""Adapters by name: TensorRT-LLM knows them by number, and reads each with the first request that uses it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from anyengine.errors import InvalidRequest, UnsupportedParameter

from anyengine_trtllm.adapter import check_adapter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anyengine.config import LoRAConfig

__all__ = ["Adapters"]


@dataclass(slots=True)
class Adapters:
    """The adapters that requests may name.

    Numbers, and the names that TensorRT-LLM is given, are never used twice: an adapter under the name of an earlier one
    shares nothing with it.

    Attributes:
        lora_request: TensorRT-LLM's class.
        config: what the engine was loaded with.
        modules: those that adapters may change.
    """

    lora_request: Any
    config: LoRAConfig | None
    modules: frozenset[str] = frozenset()
    _loaded: dict[str, Any] = field(default_factory=dict[str, Any])
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    @property
    def names(self) -> tuple[str, ...]:
        """What requests may name, in the order of loading."""
        return tuple(self._loaded)

    def find(self, name: str | None) -> Any | None:
        """The ``LoRARequest`` to generate with.

        Raises:
            InvalidRequest: there is no such adapter.
        """
        if name is None:
            return None
        if name not in self._loaded:
            raise InvalidRequest(f"lora: no adapter is named {name!r}", field="lora")
        return self._loaded[name]

    def load(self, name: str, path: Path) -> None:
        """Take an adapter in.

        Raises:
            UnsupportedParameter: it does not fit the limits.
        """
        if self.config is None:
            raise UnsupportedParameter("lora: the engine was not loaded for adapters", field="lora")
        check_adapter(name, path, self.config.max_rank, self.modules)
        number = next(self._numbers)
        try:
            self._loaded[name] = self.lora_request(
                lora_name=f"{name}#{number}", lora_int_id=number, lora_path=str(path)
            )
        except (ValueError, OSError) as error:
            place = f"lora.adapters.{name}"
            raise UnsupportedParameter(f"{place}: TensorRT-LLM does not take {path}: {error}", field=place) from error

    def unload(self, name: str) -> None:
        """Forget an adapter; TensorRT-LLM's cache drops it when it needs the room."""
        self._loaded.pop(name, None)
