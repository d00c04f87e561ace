"""The errors that the processes of an engine log: vLLM tells why it failed nowhere else.

A process of vLLM configures its logging when it starts, from a file named by an environment variable. For as long as
an engine is started that file is vLLM's own configuration and, beside it, a file that errors go to.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

__all__ = ["ErrorLog", "variables"]

_VARIABLE = "VLLM_LOGGING_CONFIG_PATH"


class ErrorLog:
    """A file in a folder of its own; nothing is written to it while all is well."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="anyengine-vllm-"))
        self._file = self._folder / "errors.log"

    def configuration(self, default: Mapping[str, Any] | None) -> dict[str, str]:
        """The variable that brings the errors here.

        Args:
            default: vLLM's own configuration of ``logging``. Where there is none, or the caller has one of theirs, it
                is left alone, and errors carry no cause but what vLLM raises.
        """
        if default is None or os.environ.get(_VARIABLE) or os.environ.get("VLLM_CONFIGURE_LOGGING") == "0":
            return {}
        configuration: dict[str, Any] = copy.deepcopy(dict(default))
        configuration["formatters"]["anyengine"] = {"format": "%(message)s"}
        configuration["handlers"]["anyengine"] = {
            "class": "logging.FileHandler",
            "filename": str(self._file),
            "level": "ERROR",
            "formatter": "anyengine",
            "delay": True,
        }
        configuration["loggers"]["vllm"]["handlers"].append("anyengine")
        file = self._folder / "logging.json"
        file.write_text(json.dumps(configuration), encoding="utf-8")
        return {_VARIABLE: str(file)}

    def lines(self) -> list[str]:
        """What was logged so far."""
        try:
            return self._file.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []

    def close(self) -> None:
        """Forget it. Idempotent."""
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def variables(values: Mapping[str, str]) -> Generator[None]:
    """Environment variables for as long as processes are started, which inherit them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
