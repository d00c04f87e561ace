"""``EngineConfig.devices``, for engines that take the GPUs which their process sees."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from anyengine.errors import InvalidConfig

if TYPE_CHECKING:
    from anyengine.config import EngineConfig

__all__ = ["check_visible_devices"]


def check_visible_devices(config: EngineConfig) -> None:
    """What has to be true of this process before an engine starts its own: it sees the devices that were asked for.

    A worker process does: it is started with ``CUDA_VISIBLE_DEVICES``.

    Raises:
        InvalidConfig: it sees others, and it is too late to change that.
    """
    if config.devices is None:
        return
    wanted = ",".join(map(str, config.devices))
    if os.environ.get("CUDA_VISIBLE_DEVICES") != wanted:
        raise InvalidConfig(
            f"devices: this process does not run with CUDA_VISIBLE_DEVICES={wanted}; load in a worker process "
            "(isolation='process'), which does",
            field="devices",
        )
