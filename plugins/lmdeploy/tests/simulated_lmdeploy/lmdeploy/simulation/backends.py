"""What the engines of both backends have in common: configuration, cache, failures that a test orders."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyengine_reference.scheduler import Limits

from lmdeploy.messages import ScheduleMetrics

from .facts import SimulationError
from .grammar import Compiler

if TYPE_CHECKING:
    from .executor import Executor

__all__ = ["BackendEngine"]

#: Requests at once on a device that LMDeploy's table does not name.
_BATCH = 128


class BackendEngine:
    """An engine of one backend.

    Attributes:
        engine_config: a copy, completed.
        failures: statuses that the next requests end with, at once.
    """

    handle: Any

    def __init__(self, model_path: str, engine_config: Any) -> None:
        self.folder = Path(model_path)
        if not (self.folder / "config.json").is_file():
            raise OSError(f"{model_path} is no folder of a checkpoint")
        self.hf_config = json.loads((self.folder / "config.json").read_bytes())
        self.engine_config = copy.deepcopy(engine_config)
        if self.engine_config.max_batch_size is None:
            self.engine_config.max_batch_size = _BATCH
        own = str(self.hf_config.get("torch_dtype") or self.hf_config.get("dtype"))
        own = own if own in {"bfloat16", "float16"} else "float16"
        #: What is computed in; here it is float32 all the same.
        self.dtype = own if self.engine_config.dtype == "auto" else self.engine_config.dtype
        self.failures: deque[Any] = deque()
        self.live: dict[int, Any] = {}
        self.closed = False
        self.executor = self._make_executor()
        self.compiler = Compiler(self.folder, self.executor.vocab_size)

    def _make_executor(self) -> Executor:
        raise NotImplementedError

    def _limits(self, speculative_tokens: int = 0) -> Limits:
        config = self.engine_config
        return Limits(
            max_num_seqs=config.max_batch_size,
            max_num_batched_tokens=config.max_prefill_token_num,
            chunked_prefill=True,
            prefix_caching=config.enable_prefix_caching,
            num_speculative_tokens=speculative_tokens,
        )

    def create_instance(self, cuda_stream_id: int = 0) -> Any:
        """A handle."""
        return self.handle(self)

    def begin(self, session_id: int, running: Any) -> None:
        """Take note of a request."""
        if session_id in self.live:
            raise SimulationError(f"session {session_id} is in use: LMDeploy would go on with its tokens")
        self.live[session_id] = running

    def get_schedule_metrics(self) -> Any:
        """Now."""
        return ScheduleMetrics(**self.executor.schedule)

    async def get_health_status(self) -> dict[str, Any]:
        """Whether it lives."""
        await asyncio.sleep(0)
        alive = not self.closed
        return {
            "alive": alive,
            "message": "" if alive else "the engine is gone",
            "schedule_metrics": self.get_schedule_metrics() if alive else None,
        }
