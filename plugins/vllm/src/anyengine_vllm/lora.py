"""Adapters by name: vLLM knows them by number."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from anyengine.backend.adapters import check_adapter_rank
from anyengine.errors import EngineDied, InvalidRequest, OutOfMemory, UnsupportedParameter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from anyengine.config import LoRAConfig

__all__ = ["Adapters"]


@dataclass(slots=True)
class Adapters:
    """The loaded adapters.

    Numbers, and the names that vLLM keeps its prefix cache by, are never given twice: an adapter that is loaded under
    the name of an earlier one shares nothing with it.

    Attributes:
        llm: ``AsyncLLM``.
        lora_request: vLLM's class.
        mapped: what is raised for what a call of vLLM raised.
        config: what the engine was loaded with.
        most: adapters that there can be at once, None for any number.
    """

    llm: Any
    lora_request: Any
    mapped: Callable[[Exception], Exception]
    config: LoRAConfig | None
    most: int | None = None
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

    async def load(self, name: str, path: Path) -> None:
        """Load an adapter now, so that one that does not fit is refused here and not in a request.

        Raises:
            UnsupportedParameter: it does not fit the model or the limits.
            EngineDied, OutOfMemory: of the engine, whatever the adapter.
        """
        if self.config is None:
            raise UnsupportedParameter("lora: the engine was not loaded for adapters", field="lora")
        if self.most is not None and len(self._loaded) >= self.most:
            raise UnsupportedParameter(
                f"lora: on this device vLLM keeps as many adapters as it was loaded for, {self.most} "
                "(lora.max_loras, or the adapters at start); unload one, or load with more",
                field="lora.max_loras",
            )
        check_adapter_rank(name, path, self.config.max_rank)
        number = next(self._numbers)
        request = self.lora_request(lora_name=f"{name}#{number}", lora_int_id=number, lora_path=str(path))
        try:
            await self.llm.add_lora(request)
        except Exception as error:
            mapped = self.mapped(error)
            if isinstance(mapped, EngineDied | OutOfMemory):
                raise mapped from error
            place = f"lora.adapters.{name}"
            raise UnsupportedParameter(f"{place}: vLLM cannot load {path}: {error}", field=place) from error
        self._loaded[name] = request

    async def unload(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            EngineDied, Failure: vLLM did not.
        """
        request = self._loaded.pop(name, None)
        if request is None:
            return
        try:
            await self.llm.remove_lora(request.lora_int_id)
        except Exception as error:
            raise self.mapped(error) from error
