"""Engines that trust too much, or leave traces."""

from __future__ import annotations

import os
import runpy
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyengine_conformance.broken import BrokenBackend, BrokenEngine, BrokenPlugin, fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from anyengine import EngineConfig
    from anyengine.backend import Backend, TokenDelta, TokenRequest
    from anyengine.hub import ModelFiles


@fault("security.no-remote-code-by-default", "remote code is trusted by default")
class TrustsByDefault(BrokenEngine):
    @property
    def config(self) -> Any:
        trusting = self.inner.config.model_copy(update={"trust_remote_code": True})
        trusting.model_fields_set.discard("trust_remote_code")
        return trusting


@fault("security.checkpoint-code-is-not-run", "Python files of a checkpoint are run when it is loaded")
class RunsCode(BrokenPlugin):
    async def load(self, config: EngineConfig, model: ModelFiles) -> Backend:
        for file in model.path.glob("*.py"):
            runpy.run_path(str(file))
        return await super().load(config, model)


@fault("security.no-pickle", "a pickle of weights is taken")
class TakesPickle(BrokenEngine):
    @classmethod
    def configured(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        folder = Path(str(config.get("model", "/nowhere")))
        if not (folder / "pytorch_model.bin").exists():
            return config
        copy = Path(tempfile.mkdtemp()) / "model"
        shutil.copytree(folder, copy)
        (copy / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        return {**config, "model": str(copy)}


@fault("security.templates-are-sandboxed", "a template reaches Python")
class Unsandboxed(BrokenEngine):
    async def apply_chat_template(self, messages: Any, **options: Any) -> str:
        if (self.inner.config.chat_template or "").startswith("{{ ''.__class__"):
            return str(object.__subclasses__())
        return await self.inner.apply_chat_template(messages, **options)


@fault("security.templates-are-bounded", "a template that never ends is cut")
class CutTemplate(BrokenEngine):
    async def apply_chat_template(self, messages: Any, **options: Any) -> str:
        if (self.inner.config.chat_template or "").startswith("{% for a in range(99999999)"):
            return "0123456789"
        return await self.inner.apply_chat_template(messages, **options)


@fault("security.no-open-ports", "the engine listens on all interfaces")
class Listens(BrokenBackend):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._socket = socket.create_server(("0.0.0.0", 0))  # noqa: S104 that is the fault

    async def close(self) -> None:
        self._socket.close()
        await self.inner.close()


class OnRequest(BrokenBackend):
    """Does something beside each request."""

    def act(self) -> None:
        """What."""

    def stream(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        self.act()
        return self.inner.stream(request)


@fault("security.nothing-in-the-working-folder", "a log file is written where the application happens to be")
class WritesLog(OnRequest):
    def act(self) -> None:
        self.files = getattr(self, "files", list[Path]())
        self.files.append(Path(f"anyengine-conformance-{os.getpid()}-{len(self.files)}.log"))
        self.files[-1].touch()

    async def close(self) -> None:
        for file in getattr(self, "files", []):
            file.unlink(missing_ok=True)
        await self.inner.close()


@fault("security.environment-is-left-alone", "environment variables of the application are set")
class SetsVariables(OnRequest):
    def act(self) -> None:
        os.environ["ANYENGINE_CONFORMANCE_FAULT"] = str(int(os.environ.get("ANYENGINE_CONFORMANCE_FAULT", "0")) + 1)

    async def close(self) -> None:
        os.environ.pop("ANYENGINE_CONFORMANCE_FAULT", None)
        await self.inner.close()


@fault("security.stdout-is-the-applications", "a banner goes to stdout")
class Banner(OnRequest):
    def act(self) -> None:
        os.write(1, b"*** the fastest engine ***\n")
