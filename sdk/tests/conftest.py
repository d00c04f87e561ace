"""Shared by the SDK's tests."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from anyengine import Engine
from anyengine.runtime import local
from anyengine.runtime.choice import ChoiceStream
from anyengine.testing import ScriptedBackend, ScriptedPlugin, make_model_folder

#: "hello world. " in the single-byte tokens of the test model.
HELLO = [71, 68, 75, 75, 78, 220, 86, 78, 81, 75, 67, 13, 220]


def pytest_collection_modifyitems(items):
    """Every asynchronous test here is checked for tasks that it leaves behind."""
    here = Path(__file__).parent
    for item in items:
        if inspect.iscoroutinefunction(getattr(item, "function", None)) and item.path.is_relative_to(here):
            item.fixturenames.append("no_task_is_left")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def no_environment_of_the_user(tmp_path_factory, monkeypatch):
    """What the user has installed elsewhere decides nothing here."""
    monkeypatch.setenv("ANYENGINE_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture
async def no_task_is_left():
    yield
    await asyncio.sleep(0)  # a task that is done but for its last turn
    assert [task for task in asyncio.all_tasks() if "TestRunner" not in repr(task.get_coro())] == []


@pytest.fixture(autouse=True)
def nothing_is_held(monkeypatch):
    """After each test no simulated engine runs a sequence, and no queue holds a place."""
    backends, admissions = [], []
    begin = ScriptedBackend.__init__

    def remember(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        backends.append(self)

    class Remembered(local.Admission):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            admissions.append(self)

    monkeypatch.setattr(ScriptedBackend, "__init__", remember)
    monkeypatch.setattr(local, "Admission", Remembered)
    yield
    assert [list(backend._running) for backend in backends] == [[] for _ in backends]
    assert [(a.running, a.queued, a.reserved) for a in admissions] == [(0, 0, 0)] * len(admissions)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    return make_model_folder(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def scripted(model_folder):
    """``scripted(script, **options)``: a plugin of the simulated engine; the script is ids, or takes the request."""

    def make(script=HELLO, **options):
        answer = script if callable(script) else lambda _request: script
        return ScriptedPlugin(answer, str(model_folder), **options)

    return make


@pytest.fixture
def endless(scripted):
    """The same with an engine that says "hello world. " for ever."""
    return lambda **options: scripted(lambda _request: itertools.cycle(HELLO), **options)


@pytest.fixture
def faulty(model_folder):
    """``faulty(**methods)``: a plugin whose backend has these functions in place of its methods."""

    class Plugin(ScriptedPlugin):
        methods: dict

        async def load(self, config, model):
            backend = await super().load(config, model)
            for name, method in self.methods.items():
                setattr(backend, name, method)
            return backend

    def make(script=HELLO, *, capabilities=None, **methods):
        plugin = Plugin(lambda _request: script, str(model_folder), capabilities=capabilities)
        plugin.methods = methods
        return plugin

    return make


@pytest.fixture
def load():
    """``async with load(plugin, **config) as (engine, backend)``."""

    @asynccontextmanager
    async def loaded(plugin, extensions=(), **config):
        async with Engine.load(plugin, extensions=extensions, **config) as engine:
            yield engine, plugin.loaded[-1]

    return loaded


@pytest.fixture
def until():
    """``await until(condition)``: give the other tasks turns until it holds."""

    async def wait(condition, turns=20_000):
        for _ in range(turns):
            if condition():
                return
            await asyncio.sleep(0)
        raise AssertionError("it never came to hold")

    return wait


@pytest.fixture
def out_of_time(monkeypatch):
    """``out_of_time(tokens, sequences)``: the time of requests that have a timeout, say 60 s, is up while they wait for
    the next token, once so many of their sequences have given so many. A clock would say so earlier on a busy machine.
    """

    def make(tokens=5, sequences=1):
        given = {}
        in_time = ChoiceStream._next_in_time

        async def next_in_time(self, deadline):
            given[self.tokens.id] = self._transcript.count
            over = sum(count >= tokens for count in given.values()) >= sequences
            return await in_time(self, 0.0 if over else deadline)

        monkeypatch.setattr(ChoiceStream, "_next_in_time", next_in_time)

    return make
