"""The one place that imports LMDeploy: what the rest of the package uses of it, under plain names.

LMDeploy is not there when this package is type-checked; so its classes are ``Any`` here, and nowhere else is there an
import of it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from typing import Any

from anyengine.errors import EngineStartupError

from anyengine_lmdeploy import versions

__all__ = ["Library", "load_library"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """LMDeploy's classes, and what it is built on.

    Attributes:
        async_engine: ``AsyncEngine``.
        generation_config: ``GenerationConfig``.
        configurations: backend → its configuration class.
        argument_names: backend → names of the fields of that class.
        speculative_config: ``SpeculativeConfig``.
        statuses: ``ResponseType``.
        scheduled: ``EventType.SCHEDULED``.
        queued: ``EventType.QUEUED``.
        check_format: raises ``ValueError`` for a ``response_format`` that cannot be compiled.
        grammar: xgrammar's ``Grammar``.
        turbomind_runs: whether TurboMind has the architecture of a checkpoint.
        torch: the module.
    """

    async_engine: Any
    generation_config: Any
    configurations: dict[str, Any]
    argument_names: dict[str, frozenset[str]]
    speculative_config: Any
    statuses: Any
    scheduled: Any
    queued: Any
    check_format: Any
    grammar: Any
    turbomind_runs: Any
    torch: Any

    def device_memory(self) -> tuple[int, int]:
        """Bytes of the first device: (free, total)."""
        free, total = self.torch.cuda.mem_get_info()
        return int(free), int(total)


@cache
def load_library() -> Library:
    """Import LMDeploy; takes many seconds.

    Raises:
        EngineStartupError: it cannot be imported, or lacks a part that the mapping needs.
    """
    # LMDeploy would look at the environment in a process of its own, which imports the application's main module again;
    # what it finds there, this package asks itself, or a load says.
    os.environ.setdefault("LMDEPLOY_ENABLE_CHECK_ENV", "0")
    try:
        messages = import_module("lmdeploy.messages")
        configurations = {"turbomind": messages.TurbomindEngineConfig, "pytorch": messages.PytorchEngineConfig}
        return Library(
            async_engine=import_module("lmdeploy.serve.core").AsyncEngine,
            generation_config=messages.GenerationConfig,
            configurations=configurations,
            argument_names={
                name: frozenset(field.name for field in fields(each)) for name, each in configurations.items()
            },
            speculative_config=messages.SpeculativeConfig,
            statuses=messages.ResponseType,
            scheduled=messages.EventType.SCHEDULED,
            queued=messages.EventType.QUEUED,
            check_format=import_module("lmdeploy._guided_decoding").ensure_response_format_compilable,
            grammar=import_module("xgrammar").Grammar,
            turbomind_runs=import_module("lmdeploy.turbomind.supported_models").is_supported,
            torch=import_module("torch"),
        )
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineStartupError(f"LMDeploy cannot be imported: {error}") from error
    except AttributeError as error:
        raise EngineStartupError(
            f"LMDeploy {versions.installed()} lacks a part that this plugin needs ({error}); it is written for "
            f"{'.'.join(map(str, versions.MAPPED))}"
        ) from error
