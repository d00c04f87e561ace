"""What the plugin uses of torch, on NumPy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

__all__ = ["Tensor", "make_torch"]


class Tensor:
    """An array with the methods that the plugin calls."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)

    def float(self) -> Tensor:
        return Tensor(self.values.astype(np.float32))

    def log_softmax(self, axis: int) -> Tensor:
        values = self.values - self.values.max(axis=axis, keepdims=True)
        return Tensor(values - np.log(np.exp(values).sum(axis=axis, keepdims=True)))

    def topk(self, count: int, axis: int) -> tuple[Tensor, Tensor]:
        order = np.flip(np.argsort(self.values, axis=axis), axis)[..., :count]
        return Tensor(np.take_along_axis(self.values, order, axis)), Tensor(order)

    def tolist(self) -> Any:
        return self.values.tolist()

    def __float__(self) -> Any:
        return float(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key: Any) -> Tensor:
        return Tensor(self.values[key.values if isinstance(key, Tensor) else key])


def make_torch(*, free: int, total: int) -> Any:
    """The module, with a device of so many bytes."""
    return SimpleNamespace(
        float32="float32",
        tensor=lambda values, dtype: Tensor(np.asarray(values, dtype)),
        cuda=SimpleNamespace(mem_get_info=lambda: (free, total), get_device_capability=lambda: (8, 9)),
    )
