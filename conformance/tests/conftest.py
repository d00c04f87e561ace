"""What several tests need: the simulated engine, and checks of their own making."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from anyengine_conformance.bench import Bench
from anyengine_conformance.check import Check
from anyengine_conformance.runner import Runner
from anyengine_conformance.settings import Settings
from anyengine_conformance.simulated import SimulatedPlugin
from anyengine_conformance.subject import PluginTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def make_check() -> Callable[..., Check]:
    """A check that is not registered: the function, and what differs from the defaults."""

    def make(function: Any, **options: Any) -> Check:
        defaults: dict[str, Any] = {
            "id": "tests.made",
            "must": "It does.",
            "advice": "do it",
            "tier": "core",
            "needs": (),
            "variant": "default",
            "deadline": 60.0,
            "since": "0.1",
            "tolerance": "",
        }
        return Check(function=function, **defaults | options)

    return make


@pytest.fixture
def make_runner() -> Iterator[Callable[..., Runner]]:
    """A runner on the simulated engine, or on another target; closed in the end."""
    made: list[Runner] = []

    def make(target: Any = None, *, settings: Settings | None = None, grace: float = 0.5, **options: Any) -> Runner:
        runner = Runner(
            settings or Settings(engine="simulated", oracle="simulated", load_timeout=60.0),
            target=target or PluginTarget(SimulatedPlugin()),
            bench=Bench(grace=grace),
            **options,
        )
        made.append(runner)
        return runner

    yield make
    for runner in made:
        runner.close()


class Misbehaving:
    """A target that does one thing wrong while it loads."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.loads = 0

    async def describe(self) -> Any:
        return SimulatedPlugin().describe()

    async def load(self, config: Any) -> Any:
        self.loads += 1
        if self.how == "raises":
            raise RuntimeError("no such device")
        if self.how == "hangs":
            await asyncio.sleep(3600)
        if self.how == "blocks":
            time.sleep(20)  # noqa: ASYNC251 that is what it does wrong
        if self.how == "floods":
            os.write(1, b"x" * 5_000_000 + b"\nthe last line\n")
            raise RuntimeError("flooded")
        return await PluginTarget(SimulatedPlugin()).load(config)


@pytest.fixture
def misbehaving() -> type[Misbehaving]:
    return Misbehaving
