"""Options and fixtures that every package's tests share."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from anyengine.environments import environments
from anyengine.worker.supervisor import is_running
from anyengine_conformance.report import write_report

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence

    from anyengine_conformance.results import Report

#: Before anything loads OpenMP, and for engines started from here: with `-n`, threads of several processes wait
#: for one another, and by default they wait busily, on the processor that the others need. It made tests that compare
#: with torch twice as slow beside two of their kind, and one of them twelve times as slow beside vLLM.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# An example that waits for a processor is no failure.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

ROOT = Path(__file__).parent

#: Engines whose own tests have an option and a marker of their name → the environment that the option means alone.
REAL = {"lmdeploy": "lmdeploy", "vllm": "vllm-cpu"}
#: The same of toolchains.
TOOLCHAINS = {"compressor": "vllm-compressor", "modelopt": "trtllm-modelopt"}
#: Of the tests of engines themselves, with `-n`: the group that one process runs.
ENGINES = "engines themselves"


def pytest_configure(config: pytest.Config) -> None:
    """Take interrupts as a program at a terminal does, also in a background job, whose children would ignore them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for option, meant in (REAL | TOOLCHAINS).items():
        name = config.getoption(f"--{option}")
        # Of the one that the option means alone, the tests say how it is made; the server's take an interpreter too.
        if name in (None, meant, "here") or (Path(name).is_file() and os.access(name, os.X_OK)):
            continue
        names = [environment.name for environment in environments()]
        if name not in names:
            raise pytest.UsageError(
                f"--{option}: there is no environment {name!r}; there are: {', '.join(names) or 'none'}. "
                f"Where tests are named too, write --{option}={meant} -- FILES"
            )


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the options of tests that need more than this package."""
    text = "also run the tests that compare with torch and transformers"
    parser.addoption("--oracle", action="store_true", help=text)
    for name, environment in REAL.items():
        text = f"also run the tests of {name} itself, in workers of this environment of `anyengine env` [{environment}]"
        parser.addoption(f"--{name}", nargs="?", const=environment, metavar="ENVIRONMENT", help=text)
        text = f"fields of EngineConfig, as JSON, that the tests of {name} load it with: dtype and execution, say"
        parser.addoption(f"--{name}-config", default="{}", metavar="JSON", help=text)
    for name, environment in TOOLCHAINS.items():
        text = f"also run the tests of the {name} itself, in this environment [{environment}]"
        parser.addoption(f"--{name}", nargs="?", const=environment, metavar="ENVIRONMENT", help=text)
    text = "where the suites on simulated engines write their reports"
    parser.addoption("--reports", type=Path, metavar="FOLDER", help=text)
    text = "also run the tests that open pages in Chromium"
    parser.addoption("--browser", action="store_true", help=text)
    parser.addoption("--gpu", action="store_true", help="also run the tests that need a GPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without their option these are deselected, and pytest says how many; with it what is missing is a failure."""
    optional = ("browser", "compressor", "gpu", "modelopt", "oracle", *REAL)
    off = {name for name in optional if not config.getoption(f"--{name}")}
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in off)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    if hasattr(config, "workerinput"):  # this is a process of pytest-xdist
        items[:] = _longest_first(items)


def _longest_first(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """So that no process waits for another in the end: engines themselves, then files by their longest timeout."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        groups.setdefault(_group(item.nodeid), []).append(item)

    def longest(tests: Iterable[pytest.Item]) -> float:
        return max(mark.args[0] if (mark := test.get_closest_marker("timeout")) else 0.0 for test in tests)

    names = sorted(groups, key=lambda name: (name == ENGINES, longest(groups[name])), reverse=True)
    return [item for name in names for item in groups[name]]


def _group(nodeid: str) -> str:
    """What stays in one process: a file, and all files of engines themselves, each of which takes every processor."""
    file = nodeid.partition("::")[0]
    return ENGINES if "/test_real_" in file else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``, of pytest-xdist: a file's tests share what is made for them, so they stay in one process."""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 it is there where this is asked for

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    config.option.loadscopereorder = False  # the order is that of `_longest_first`
    return ByFile(config, log)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of SmolLM2-135M-Instruct."""
    folder = Path(os.environ.get("ANYENGINE_TEST_SMOLLM2", ROOT / ".cache" / "SmolLM2-135M-Instruct"))
    if not (folder / "tokenizer.json").exists():
        pytest.fail("SmolLM2-135M-Instruct is missing: run `uv run python tools/fetch_smollm2.py`")
    return folder


@pytest.fixture(scope="session")
def keep_report(request: pytest.FixtureRequest) -> Callable[[Report], None]:
    """``keep_report(report)``: into the folder of ``--reports``, if there is one."""
    folder = request.config.getoption("--reports")

    def keep(report: Report) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_report(report, folder / f"conformance-{report.subject.engine}.json")

    return keep


@pytest.fixture
def survives_cancellation(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Awaitable[bool]]:
    """Whether a cleanup comes to its end although the work that it belongs to is cancelled meanwhile, again and again,
    as a task of asyncio. To be called with what has the cleanup, the cleanup's name there, and the work.
    """

    async def survives(owner: object, name: str, work: Coroutine[Any, Any, Any] | asyncio.Task[Any]) -> bool:
        begun, go = asyncio.Event(), asyncio.Event()
        ended: list[bool] = []
        cleanup = getattr(owner, name)

        async def slow(*args: Any, **kwargs: Any) -> None:
            begun.set()
            await go.wait()
            await cleanup(*args, **kwargs)
            ended.append(True)

        monkeypatch.setattr(owner, name, slow)
        task = asyncio.ensure_future(work)
        await begun.wait()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        waits = not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        return waits and ended == [True]

    return survives


# -- engines themselves -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def place_of(request: pytest.FixtureRequest) -> Callable[[str], dict[str, Any]]:
    """``place_of("vllm")``: in a worker of the environment that ``--vllm`` names, or for ``here`` in this process."""

    def place(name: str) -> dict[str, Any]:
        environment = request.config.getoption(f"--{name}")
        return {"isolation": "none"} if environment == "here" else {"environment": environment}

    return place


@pytest.fixture(scope="session")
def changes_of(request: pytest.FixtureRequest) -> Callable[[str], dict[str, Any]]:
    """``changes_of("vllm")``: the fields of ``--vllm-config``."""
    return lambda name: json.loads(request.config.getoption(f"--{name}-config"))


@pytest.fixture(scope="session")
def still_running() -> Callable[[Iterable[int]], list[int]]:
    """``still_running(pids)``: those processes that are still there, given a moment to end."""

    def running(pids: Iterable[int]) -> list[int]:
        deadline = time.monotonic() + 5
        while (left := list(filter(is_running, pids))) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    return running


@pytest.fixture(scope="session")
def all_running() -> Callable[..., Awaitable[None]]:
    """Waits until an engine computes as many requests as there are tasks; raises what ends one of them before."""

    async def wait(engine: Any, tasks: Sequence[asyncio.Task[Any]]) -> None:
        while (await engine.stats()).running != len(tasks):
            for task in tasks:
                if task.done():
                    raise AssertionError(f"ended before all were running: {task.result()}")
            await asyncio.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def drained() -> Callable[..., Coroutine[Any, Any, None]]:
    """Streams from an engine until it ends one: on a busy machine a whole answer may come at once, before any fault."""

    async def drain(engine: Any, **options: Any) -> None:
        while True:
            async with engine.stream("Once upon a time", ignore_eos=True, **options) as stream:
                async for _ in stream:
                    pass

    return drain


@pytest.fixture(scope="session")
def named() -> Callable[[Iterable[int], str], int]:
    """Finds the one process of those whose command has a word: ``--serve`` is in that of an engine's worker."""

    def command(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:  # it has ended meanwhile
            return ""

    def find(pids: Iterable[int], word: str) -> int:
        [found] = [pid for pid in pids if word in command(pid)]
        return found

    return find


class Gpu:
    """The GPUs that this process may use, as ``nvidia-smi`` tells. Of memory: nothing else may run on the first one."""

    def ids(self) -> list[str]:
        """Their names for ``nvidia-smi``."""
        if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
            return visible.split(",")
        query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()  # noqa: S603

    def count(self) -> int:
        """How many there are."""
        return len(self.ids())

    def used(self) -> int:
        """MiB in use on the first one."""
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--id={self.ids()[0]}"]
        return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout)  # noqa: S603

    async def back_to(self, level: int, seconds: int = 10) -> bool:
        """Whether no more than so many MiB are in use, after a while."""
        for _ in range(seconds * 10):
            if self.used() <= level + 64:
                return True
            await asyncio.sleep(0.1)
        return False


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    """The GPUs of this host."""
    return Gpu()


@pytest.fixture
def two_devices(gpu: Gpu) -> None:
    """Skip where there is one GPU."""
    if gpu.count() == 1:
        pytest.skip("this host has one GPU")
