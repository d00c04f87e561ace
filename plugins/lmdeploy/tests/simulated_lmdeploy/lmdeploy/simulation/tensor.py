"""What is used of torch's tensors, on NumPy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

__all__ = ["Tensor", "make_torch", "tensor"]


class Tensor(np.ndarray):
    """An array that also has torch's methods."""

    @property
    def device(self) -> str:
        """Where it is."""
        return "cpu"

    def numpy(self) -> Any:
        """The array itself."""
        return np.asarray(self)

    def cpu(self) -> Tensor:
        """On the host, where it is anyway."""
        return self

    def detach(self) -> Tensor:
        """There is no graph."""
        return self

    def float(self) -> Tensor:
        """As float32."""
        return self.astype(np.float32).view(Tensor)

    def double(self) -> Tensor:
        """As float64."""
        return self.astype(np.float64).view(Tensor)

    def clone(self) -> Tensor:
        """A copy."""
        return self.copy().view(Tensor)

    def numel(self) -> int:
        """How many elements."""
        return self.size

    def index_add(self, dim: int, index: Tensor, source: Tensor) -> Tensor:
        """A copy with values added at some places; places may come twice."""
        changed = self.clone()
        np.add.at(changed, (*[slice(None)] * dim, np.asarray(index)), np.asarray(source))
        return changed

    def masked_fill(self, mask: Tensor, value: float) -> Tensor:
        """A copy with a value where the mask is true."""
        return np.where(mask, np.asarray(value, self.dtype), self).view(Tensor)

    def log_softmax(self, dim: int = -1) -> Tensor:
        """Logarithms of the distribution along an axis."""
        values = np.asarray(self) - np.asarray(self).max(axis=dim, keepdims=True)
        return tensor(values - np.log(np.exp(values).sum(axis=dim, keepdims=True)))

    def topk(self, k: int, dim: int = -1) -> tuple[Tensor, Tensor]:
        """The largest values and where they are."""
        values = np.asarray(self)
        order = np.flip(np.argsort(values, axis=dim, kind="stable"), dim)[..., :k]
        return tensor(np.take_along_axis(values, order, dim)), tensor(order)


def tensor(values: Any) -> Tensor:
    """An array, seen as a tensor."""
    return np.asarray(values).view(Tensor)


def make_torch(*, free: int, total: int) -> Any:
    """The module, with one device of so many bytes that can do what an H100 can."""
    return SimpleNamespace(
        bool=np.bool_,
        tensor=lambda values, dtype=None, device=None: np.array(values, dtype).view(Tensor),
        ones=lambda *shape, dtype=np.float32, device=None: np.ones(shape, dtype).view(Tensor),
        cuda=SimpleNamespace(
            mem_get_info=lambda: (free, total),
            device_count=lambda: 1,
            empty_cache=lambda: None,
            get_device_capability=lambda: (9, 0),
            get_device_name=lambda index: "simulated",
        ),
    )
