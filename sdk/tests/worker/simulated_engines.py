# ruff: noqa: T201 engines print
"""Simulated engines, good and bad, that run in a worker: each an entry point of the package that conftest.py makes."""

import asyncio
import ctypes
import gc
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from anyengine.backend import EnvironmentVariant, QuantizeReport, TokenDelta, TokenFinish
from anyengine.errors import EngineDied
from anyengine.outputs import Score
from anyengine.runtime import choice
from anyengine.stats import EngineStats
from anyengine.testing import ScriptedPlugin, all_capabilities, make_model_folder
from msgspec.structs import replace

HELLO = [71, 68, 75, 75, 78, 220, 86, 78, 81, 75, 67, 13, 220]
MODEL = Path(__file__).parent / "model"
if not MODEL.exists():
    make_model_folder(MODEL)


class Simulated(ScriptedPlugin):
    """A scripted engine whose backend is changed after its load."""

    change = None

    def describe(self):
        variant = EnvironmentVariant(python=">=3.11", steps=())
        return replace(super().describe(), in_process=False, environments={"cpu": variant})

    async def load(self, config, model):
        backend = await super().load(config, model)
        if self.change:
            self.change(backend)
        return backend


def engine(name, script=HELLO, change=None, **options):
    plugin = Simulated(script if callable(script) else lambda _: script, str(MODEL), name=name, **options)
    plugin.change = staticmethod(change) if change else None
    return plugin


def endless(_request):
    return itertools.cycle(HELLO)


capabilities = all_capabilities()
hello = engine("hello")
lora = engine("lora", capabilities=replace(capabilities, request=capabilities.request | {"lora"}))


def sometimes_late(request):
    """Endless; with this ``max_tokens`` the time of every request is up after "hello", whatever the clock says."""
    if request.max_tokens == 4001:
        yield from HELLO[:5]
        choice.monotonic = lambda: time.monotonic() + 3600
        yield from HELLO[5:]
    yield from itertools.cycle(HELLO)


slow = engine("slow", sometimes_late, step_seconds=0.005)
fast = engine("fast", endless)


def dying(how):
    def script(request):
        yield from HELLO[:4]
        print("the last words of the engine", flush=True)
        time.sleep(0.1)
        how()
        yield 1

    return script


exits = engine("exits", dying(lambda: os._exit(7)))
crashes = engine("crashes", dying(lambda: os.kill(os.getpid(), signal.SIGSEGV)))


def raising(backend):
    stream = backend.stream

    async def faulty(request):
        async for delta in stream(request):
            yield delta
            if request.max_tokens == 13:
                raise LookupError("an engine's own error")

    backend.stream = faulty
    backend.generate = lambda request: type(backend).generate(backend, request)


raises = engine("raises", HELLO, raising)


def of_numpy(backend):
    """What forgets to make Python's own numbers of NumPy's, where five tokens or more are asked for."""
    stream = backend.stream

    async def foreign_numbers(request):
        async for delta in stream(request):
            if request.max_tokens >= 5:
                delta.token_ids = list(np.array(delta.token_ids))
            yield delta

    backend.stream = foreign_numbers
    backend.generate = lambda request: type(backend).generate(backend, request)


foreign = engine("foreign", endless, of_numpy)


#: What each request is answered with, by the tokens that it asks for at most.
WRONG = {
    101: TokenDelta([71.0]),
    102: TokenDelta([True]),
    103: TokenDelta("GH"),
    104: TokenDelta([256], None, TokenFinish("stop", "4")),
    105: TokenDelta([2**70, 256], None, TokenFinish("stop")),
}


def of_wrong_types(backend):  # noqa: C901 one branch a mistake
    stream, score = backend.stream, backend.score

    async def mistaken(request):
        if request.max_tokens == 106:
            raise asyncio.CancelledError
        if request.max_tokens == 107:
            raise EngineDied("gone", log_tail=None)
        if request.max_tokens == 108:
            error = EngineDied("gone")
            error.facts = {(1, (2, object())): [error]}
            error.facts["itself"] = error.facts
            raise error
        if request.max_tokens == 109:
            raise Speechless
        if request.max_tokens in WRONG:
            yield WRONG[request.max_tokens]
            if request.max_tokens >= 104:
                return
        async for delta in stream(request):
            yield delta

    async def stats():
        return EngineStats(native={"tokens": {7: 1}, 8: 2})

    async def scored(token_ids, logprobs):
        entries = (await score(token_ids, logprobs)).entries
        return Score(token_ids, [None, "entry", *entries[2:]])

    backend.stream, backend.stats, backend.score = mistaken, stats, scored
    backend.generate = lambda request: type(backend).generate(backend, request)


class Speechless(Exception):
    """As those are whose arguments its own text needs, and who made it forgot."""

    def __str__(self):
        return self.args[3]


mistyped = engine("mistyped", endless, of_wrong_types, step_seconds=0.02)


def with_children(backend):
    """Two processes: one like an engine's core, one that has left the group."""
    code = "import time; time.sleep(1000)"
    backend.children = [
        subprocess.Popen([sys.executable, "-c", code]),
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True),
    ]
    stats = backend.stats

    async def told():
        return replace(await stats(), native={"pid": os.getpid(), "children": [c.pid for c in backend.children]})

    backend.stats = told


children = engine("children", endless, with_children, step_seconds=0.005)


def silent(backend):
    async def health():
        await asyncio.sleep(1000)

    backend.health = health


hangs = engine("hangs", endless, silent, step_seconds=0.005)


def blocked(request):
    yield from HELLO[:4]
    time.sleep(1000)
    yield 1


blocks = engine("blocks", blocked)


def dead(backend):
    async def health():
        raise EngineDied("the core of the simulated engine is gone")

    backend.health = health


core_dies = engine("core-dies", endless, dead, step_seconds=0.005)


def flooding(request):
    for token in HELLO:
        for _ in range(2000):
            print("noise " * 20)
            logging.getLogger("engine").warning("noise %s", token)
        yield token


floods = engine("floods", flooding)


def unclosable(backend):
    async def close():
        await asyncio.sleep(1000)

    backend.close = close


unclosed = engine("unclosed", HELLO, unclosable)


def leaves_a_thread(backend):
    backend.left = asyncio.create_task(asyncio.to_thread(time.sleep, 1000))


def leaves_a_task(backend):
    async def deaf():
        while True:
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                print("no", flush=True)

    backend.left = asyncio.create_task(deaf())


leaves_thread = engine("leaves-thread", HELLO, leaves_a_thread)
leaves_task = engine("leaves-task", HELLO, leaves_a_task)


def quits(request):
    yield from HELLO[:4]
    sys.exit(5)


exits_itself = engine("exits-itself", quits)


def tells_of_its_memory(backend):
    async def stats():
        return EngineStats(native={"frozen": gc.get_freeze_count()})

    backend.stats = stats


settled = engine("settled", change=tells_of_its_memory)


class NeverLoads(Simulated):
    async def load(self, config, model):
        print("loading the weights", flush=True)
        await asyncio.sleep(1000)


never = NeverLoads(lambda _: HELLO, str(MODEL), name="never")


class DiesInLoad(Simulated):
    async def load(self, config, model):
        print("no kernel image is available", flush=True)
        os._exit(3)


dies_in_load = DiesInLoad(lambda _: HELLO, str(MODEL), name="dies-in-load")


class DeafInLoad(Simulated):
    """Holds the interpreter's lock while it loads, as libraries do, for longer than a heartbeat may be missing."""

    async def load(self, config, model):
        ctypes.PyDLL(None).sleep(8)
        return await super().load(config, model)


deaf_in_load = DeafInLoad(lambda _: HELLO, str(MODEL), name="deaf-in-load")


class BlocksInLoad(Simulated):
    """Never comes back from its load, and never lets go of the event loop."""

    async def load(self, config, model):
        print("loading the weights", flush=True)
        time.sleep(1000)  # noqa: ASYNC251 that is its fault


blocks_in_load = BlocksInLoad(lambda _: HELLO, str(MODEL), name="blocks-in-load")


class Reports(Simulated):
    """Refuses to load, with what it found in its process."""

    async def load(self, config, model):
        raise EngineDied(repr({name: os.environ.get(name) for name in ("MINE", "CUDA_VISIBLE_DEVICES", "PYTHONPATH")}))


reports = Reports(
    lambda _: HELLO,
    str(MODEL),
    name="reports",
    capabilities=replace(capabilities, config=capabilities.config | {"devices"}),
)


class Quantises(Simulated):
    """Copies the source, after what ``work`` does in a thread."""

    work = None

    def describe(self):
        described = super().describe()
        return replace(described, capabilities=replace(described.capabilities, quantize=frozenset({"int8-w8a16"})))

    async def quantize(self, job):
        return await asyncio.to_thread(self.copy, job)

    def copy(self, job):
        shutil.copytree(job.model.path, job.output, dirs_exist_ok=True)
        job.progress(1, 2)
        type(self).work(job)
        config = json.loads((job.output / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "simulated"}
        (job.output / "config.json").write_text(json.dumps(config))
        job.progress(2, 2)
        return QuantizeReport(recipe={"pid": os.getpid()})


def quantiser(name, work):
    kind = type("Quantiser", (Quantises,), {"work": staticmethod(work)})
    return kind(lambda _: HELLO, str(MODEL), name=name)


def stall(job):
    """A toolchain that never asks whether it was cancelled."""
    (job.output / "begun").write_text(str(os.getpid()))
    time.sleep(1000)


def die(_job):
    print("no kernel image is available", flush=True)
    os._exit(3)


copies = quantiser("copies", lambda _job: None)
stalls = quantiser("stalls", stall)
dies_in_quantize = quantiser("dies-in-quantize", die)
