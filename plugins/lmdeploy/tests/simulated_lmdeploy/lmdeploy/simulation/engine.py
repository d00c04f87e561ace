"""``AsyncEngine``, as far as it is used: without ``generate`` and ``preprocess``, which change what was asked for."""

from __future__ import annotations

import logging
from typing import Any, Literal

from lmdeploy.messages import PytorchEngineConfig, TurbomindEngineConfig

from .handles import SessionManager
from .pytorch import Engine
from .turbomind import TurboMind

__all__ = ["AsyncEngine"]

logger = logging.getLogger("lmdeploy")


class AsyncEngine:
    """The engine of either backend.

    Attributes:
        engine: the backend's.
    """

    def __init__(
        self,
        model_path: str,
        model_name: str | None = None,
        backend: Literal["turbomind", "pytorch"] = "turbomind",
        backend_config: Any = None,
        chat_template_config: Any = None,
        max_log_len: int | None = None,
        trust_remote_code: bool = False,  # noqa: FBT001, FBT002 as LMDeploy has it
        speculative_config: Any = None,
        allowed_media_domains: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs:
            raise TypeError(f"nothing reads {sorted(kwargs)}")
        kind = TurbomindEngineConfig if backend == "turbomind" else PytorchEngineConfig
        backend_config = backend_config or kind()
        if not isinstance(backend_config, kind):
            raise TypeError(f"{type(backend_config).__name__} is none of the {backend} backend")
        self.session_len = self._context(model_path, backend_config.session_len)
        backend_config.session_len = self.session_len
        if backend == "turbomind":
            if speculative_config is not None:
                logger.warning("speculative decoding is not supported by turbomind ")
            self.engine: Any = TurboMind(model_path, backend_config)
        elif backend == "pytorch":
            self.engine = Engine(model_path, backend_config, speculative_config)
        else:
            raise ValueError(f"unsupported backend {backend}")
        self.backend = backend
        self.backend_config = self.engine.engine_config
        self.speculative_config = speculative_config
        self.is_sleeping: bool = backend_config.empty_init
        self.sleeping_tags: set[str] = set()
        self.session_mgr = SessionManager()
        self.session_mgr.build_request_handle_pool(self.engine, self.backend_config.max_batch_size)

    def _context(self, model_path: str, wanted: int | None) -> int:
        import json
        from pathlib import Path

        if wanted is not None:
            return wanted
        return json.loads((Path(model_path) / "config.json").read_bytes())["max_position_embeddings"]

    def start_loop(self, loop: Any, use_async_api: bool = False) -> bool:  # noqa: FBT001, FBT002 as LMDeploy has it
        """Bind the engine to the loop that requests come from."""
        self.session_mgr.attach_event_loop(loop)
        if not hasattr(self.engine, "start_loop"):
            return True
        if not use_async_api:
            raise RuntimeError("on the loop itself this would wait for ever")
        return self.engine.start_loop()

    async def get_schedule_metrics(self) -> Any:
        """What the scheduler reports."""
        return self.engine.get_schedule_metrics()

    async def health_probe(self, scheduler_stall_timeout: float) -> dict[str, Any]:
        """``status`` is healthy, unhealthy or sleeping; ``message`` says more."""
        if self.is_sleeping:
            return {"status": "sleeping", "message": "Engine is sleeping."}
        found = await self.engine.get_health_status()
        if not found["alive"]:
            return {"status": "unhealthy", "message": found["message"]}
        return {"status": "healthy", "message": "Engine is healthy."}

    async def sleep(self, level: int = 1) -> None:
        """Free the device: level 1 keeps the weights on the host, level 2 keeps nothing."""
        self.is_sleeping = True
        self.sleeping_tags = {"weights", "kv_cache"}
        await self.engine.sleep(level)

    def wakeup(self, tags: list[str] | None = None) -> None:
        """Take the device back."""
        tags = tags or list(self.sleeping_tags)
        if any(tag not in self.sleeping_tags for tag in tags):
            logger.warning("some tag in %s not in sleeping tags %s", tags, self.sleeping_tags)
            return
        self.sleeping_tags -= set(tags)
        self.is_sleeping = bool(self.sleeping_tags)
        if not self.is_sleeping:
            self.engine.wakeup(tags)

    def close(self) -> None:
        """End it."""
        self.session_mgr.clear()
        self.engine.close()
