"""The sync facade: the same API, the same guarantees, from any thread."""

import asyncio
import importlib.util
import inspect
import itertools
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from anyengine import Engine as AsyncEngine
from anyengine import EngineClosed, InvalidConfig, InvalidRequest, PluginError, RequestTimeout, hookimpl
from anyengine import Stream as AsyncStream
from anyengine.backend import TokenDelta
from anyengine.errors import Misuse
from anyengine.sync import Engine, Stream
from anyengine.sync import stream as module
from anyengine.sync.loop import Loop, Outcome
from anyengine.sync.portal import Portal

ROOT = Path(__file__).parents[2]
SLOW = {"step_seconds": 0.001}


def public(cls):
    return {name for name in vars(cls) if not name.startswith("_")}


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert [thread for thread in threading.enumerate() if thread.name == "anyengine"] == []


# -- parity ------------------------------------------------------------------------------------------------


def test_the_generated_file_is_current():
    spec = importlib.util.spec_from_file_location("make_sync", ROOT / "tools" / "make_sync.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.make() == (tool.PACKAGE / "sync" / "engine.py").read_text()


def test_both_engines_have_the_same_names():
    assert public(Engine) == public(AsyncEngine)
    assert public(Stream) == public(AsyncStream) == set()
    assert {"__enter__", "__exit__", "__iter__", "__next__"} <= set(dir(Stream))


@pytest.mark.parametrize("name", sorted(public(AsyncEngine)))
def test_both_engines_have_the_same_signatures_and_words(name):
    ours, theirs = inspect.getattr_static(Engine, name), inspect.getattr_static(AsyncEngine, name)
    assert type(ours) is type(theirs)
    if isinstance(ours, property):
        ours, theirs = ours.fget, theirs.fget
    ours, theirs = getattr(ours, "__func__", ours), getattr(theirs, "__func__", theirs)
    assert not inspect.iscoroutinefunction(ours)
    mine, other = inspect.signature(ours), inspect.signature(theirs)
    assert mine.parameters == other.parameters
    if name != "load":
        assert mine.return_annotation == other.return_annotation
    assert ours.__doc__ is not None
    if name != "load":
        assert ours.__doc__ == theirs.__doc__.replace("await ", "")
    assert "await" not in ours.__doc__.replace("awaited", "")


# -- use -----------------------------------------------------------------------------------------------------


def test_everything_works_without_await(scripted):
    with Engine.load(scripted([71, 72])) as engine:
        assert engine.generate("hi").text == "hi"
        assert [a.text for a in engine.generate(["a", "b"])] == ["hi", "hi"]
        with engine.stream("hi", n=2) as stream:
            chunks = list(stream)
        assert sorted(c.index for c in chunks if c.finish) == [0, 1]
        assert engine.tokenize("hi") == [71, 72]
        assert (engine.count_tokens("hi"), engine.detokenize([71, 72])) == (2, "hi")
        assert len(engine.score("hi").entries) == 2
        assert engine.apply_chat_template([{"role": "user", "content": "x"}]).startswith("<|im_start|>user")
        assert engine.stats().running == 0
        engine.health()
        assert (engine.name, engine.model.name, engine.config.model) == ("scripted", "scripted", None)
        assert engine.info.capabilities == engine.capabilities


def test_errors_are_the_same(scripted, endless, out_of_time):
    out_of_time()
    with pytest.raises(InvalidConfig):
        Engine.load(scripted(), no_such_option=1)
    with Engine.load(endless(**SLOW)) as engine:
        with pytest.raises(InvalidRequest):
            engine.generate("")
        with pytest.raises(InvalidRequest), engine.stream(""):
            pass
        with pytest.raises(InvalidRequest):
            engine.stream(["a", "b"])
        with pytest.raises(RequestTimeout) as caught:
            engine.generate("hi", timeout=60)
        assert caught.value.partial.token_ids
        with pytest.raises(RequestTimeout), engine.stream("hi", timeout=60) as stream:
            list(stream)


def test_leaving_a_stream_early_aborts_before_the_exit_returns(endless):
    plugin = endless(**SLOW)
    with Engine.load(plugin) as engine:
        (backend,) = plugin.loaded
        for error in (None, KeyError, KeyboardInterrupt):
            try:
                with engine.stream("hi", n=2) as stream:
                    for _ in stream:
                        if error is not None:
                            raise error
                        break
            except (KeyError, KeyboardInterrupt) as caught:
                assert type(caught) is error  # noqa: PT017 any other outcome is fine
            assert (backend._running, len(backend.aborted)) == ({}, len(backend.requests))


def test_an_abort_that_fails_is_raised_at_the_exit(faulty):
    async def stream(request):
        while True:
            await asyncio.sleep(0)
            yield TokenDelta([71])

    async def abort(request_id):
        raise OSError("no")

    with Engine.load(faulty(stream=stream, abort=abort)) as engine:
        with pytest.raises(PluginError, match="OSError"), engine.stream("hi") as reader:
            next(iter(reader))
        with pytest.raises(KeyError) as caught, engine.stream("hi"), engine.stream("hi") as reader:
            raise KeyError(next(iter(reader)).token_ids[0])
        assert "OSError" in caught.value.__notes__[0]


def test_a_stream_is_read_inside_its_context_only_and_once(scripted):
    with Engine.load(scripted()) as engine:
        stream = engine.stream("hi")
        with pytest.raises(Misuse):
            iter(stream)
        with stream:
            assert next(iter(stream)).token_ids
        with pytest.raises(Misuse):
            iter(stream)
        with pytest.raises(Misuse), stream:
            pass


def waited_for(condition, seconds=60.0):
    """Whether it held in that time."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()


def test_a_reader_that_never_comes_costs_bounded_memory(endless, monkeypatch):
    monkeypatch.setattr(module, "_MAX_READY", 8)
    plugin = endless(**SLOW)
    with Engine.load(plugin) as engine, engine.stream("hi", max_tokens=100) as stream:
        assert waited_for(lambda: stream._room is not None)
        assert stream._ready.qsize() == 8
        chunks = list(stream)
        assert [t for c in chunks for t in c.token_ids] == list(
            itertools.islice(itertools.cycle([71, 68, 75, 75, 78, 220, 86, 78, 81, 75, 67, 13, 220]), 100)
        )


@pytest.mark.parametrize("unread", [False, True])
def test_closing_with_an_open_stream_does_not_hang(endless, monkeypatch, unread):
    monkeypatch.setattr(module, "_MAX_READY", 4)
    engine = Engine.load(endless(**SLOW))
    with engine.stream("hi") as stream:
        if unread:
            assert waited_for(lambda: stream._room is not None)
        else:
            next(iter(stream))
        engine.close()
        assert list(stream)[-1].finish.reason == "abort"
    engine.close()


def test_after_the_close_every_call_says_so(scripted):
    with Engine.load(scripted()) as engine:
        unopened = engine.stream("hi")
    calls = [
        lambda: engine.generate("hi"),
        lambda: engine.tokenize("hi"),
        engine.stats,
        engine.health,
        unopened.__enter__,
        engine.stream("hi").__enter__,
    ]
    for call in calls:
        with pytest.raises(EngineClosed):
            call()
    engine.close()


def test_many_threads_share_an_engine(endless):
    plugin = endless()

    def work(number):
        if number % 2:
            return len(engine.generate("hi", max_tokens=number).token_ids)
        with engine.stream("hi", max_tokens=number) as stream:
            return sum(len(chunk.token_ids) for chunk in stream)

    with Engine.load(plugin) as engine, ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(1, 101))) == list(range(1, 101))


def test_closing_from_many_threads_at_once_while_others_generate(endless):
    for _ in range(5):
        engine = Engine.load(endless(**SLOW))
        begun = threading.Barrier(9)

        def work(close, engine=engine, begun=begun):
            begun.wait()
            try:
                return engine.close() if close else engine.generate("hi", max_tokens=2000).finish_reason
            except EngineClosed:
                return "closed"

        with ThreadPoolExecutor(9) as pool:
            results = list(pool.map(work, [True, False, False] * 3))
        assert set(results) <= {None, "abort", "closed"}


def test_an_interrupted_call_is_cancelled(endless, until):
    interrupt = partial(signal.pthread_kill, threading.main_thread().ident, signal.SIGINT)  # as Ctrl+C does
    plugin = endless(**SLOW)
    with Engine.load(plugin) as engine:
        (backend,) = plugin.loaded
        engine._portal.call(lambda: _when(backend, interrupt, until))
        with pytest.raises(KeyboardInterrupt):
            engine.generate("hi", max_tokens=4000)
        while backend._running:
            engine.health()
        assert backend.aborted == [request.id for request in backend.requests]


async def _when(backend, action, until):
    async def wait():
        await until(lambda: backend._running)
        action()

    _when.task = asyncio.ensure_future(wait())


def test_a_failing_stream_raises_its_error_once(faulty):
    async def stream(request):
        yield 5

    with Engine.load(faulty(stream=stream)) as engine, engine.stream("hi") as reader:
        with pytest.raises(PluginError):
            next(iter(reader))
        assert list(reader) == []


# -- the end of the program, forks, and what nobody closes -----------------------------------------------------


PROGRAM = """
import os, sys
from pathlib import Path
from anyengine import AnyEngineError
from anyengine.sync import Engine
from anyengine.testing import ScriptedPlugin

class Plugin(ScriptedPlugin):
    async def load(self, config, model):
        backend = await super().load(config, model)
        close = backend.close

        async def told():
            await close()
            print("closed", flush=True)

        backend.close = told
        return backend

engine = Engine.load(Plugin(lambda request: [71, 72] * 2000, sys.argv[1]))
"""


def run_program(model_folder, rest):
    """What a program prints that is this, after an engine is loaded; it hangs for ever where it fails."""
    command = [sys.executable, "-c", PROGRAM + rest, str(model_folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split("\n")[:-1]


def test_a_program_that_closes_nothing_ends_and_the_engine_is_closed(model_folder):
    assert run_program(model_folder, "print(engine.generate('hi', max_tokens=2).text)") == ["hi", "closed"]


def test_an_engine_that_nobody_has_any_more_is_closed(model_folder):
    rest = "thread = engine._portal._loop._thread\ndel engine\nthread.join()\nprint('end')"
    assert run_program(model_folder, rest) == ["closed", "end"]


def test_in_a_fork_every_call_is_refused_and_the_close_leaves_the_engine_to_its_owner(model_folder):
    rest = """
with engine, engine.stream("hi") as stream:
    child = os.fork()
    if child == 0:
        for call in (lambda: engine.generate("hi"), lambda: [next(stream) for _ in range(5000)]):
            try:
                call()
            except AnyEngineError as error:
                print(type(error).__name__, "is a fork" in str(error), flush=True)
    else:
        print(os.waitpid(child, 0)[1], engine.generate("hi", max_tokens=2).text, flush=True)
if child == 0:
    sys.exit()
"""
    assert run_program(model_folder, rest) == ["Misuse True", "Misuse True", "0 hi", "closed"]


def test_a_load_that_is_interrupted_when_it_is_done_leaves_no_engine(faulty, monkeypatch):
    call, closed = Portal.call, []

    async def close():
        closed.append(True)

    def interrupted(self, work):
        call(self, work)
        monkeypatch.setattr(Portal, "call", call)
        raise KeyboardInterrupt

    monkeypatch.setattr(Portal, "call", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Engine.load(faulty(close=close))
    assert closed == [True]


def test_a_signal_handler_may_close_what_is_being_closed(faulty):
    async def close():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    engine = Engine.load(faulty(close=close))
    handled = []
    previous = signal.signal(signal.SIGUSR1, lambda *_: handled.append(engine.close()))
    try:
        engine.close()
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert handled == [None]


def test_from_the_engines_own_thread_calls_and_the_close_are_refused(scripted):
    with Engine.load(scripted([71, 72])) as engine:

        async def own(call):
            call()

        for call in (engine.health, engine.close):
            with pytest.raises(Misuse, match="own thread"):
                engine._portal.call(partial(own, call))
        assert engine.generate("hi").text == "hi"


def test_next_before_the_context_is_refused(scripted):
    with Engine.load(scripted()) as engine, pytest.raises(Misuse):
        next(engine.stream("hi"))


def test_two_threads_that_read_one_stream_share_it_and_both_see_its_end(endless):
    with Engine.load(endless(**SLOW)) as engine, engine.stream("hi", max_tokens=200) as stream:
        with ThreadPoolExecutor(2) as pool:
            lots = list(pool.map(lambda _: list(stream), range(2)))
        assert list(stream) == []
    assert sum(len(chunk.token_ids) for lot in lots for chunk in lot) == 200
    assert [sum(chunk.finish is not None for lot in lots for chunk in lot)] == [1]


def test_what_the_loop_no_longer_came_to_is_told_so():
    loop, outcome = Loop("anyengine"), Outcome()
    loop._asyncio.call_soon_threadsafe = lambda *_, **__: None  # it comes too late
    loop.start(lambda: 3, outcome.tell)
    del loop._asyncio.call_soon_threadsafe
    loop.stop()
    loop.join()
    with pytest.raises(EngineClosed):
        outcome.result()
    with pytest.raises(EngineClosed):
        loop.start(lambda: 3, outcome.tell)


class Cancels:
    """An extension that waits for something of its own that is cancelled."""

    def __init__(self):
        self.on = True

    async def _wait(self):
        if self.on:
            own = asyncio.ensure_future(asyncio.sleep(60))
            await asyncio.sleep(0)
            own.cancel()
            await own

    @hookimpl(wrapper=True)
    def generate(self):
        inner = yield

        async def answer():
            await self._wait()
            return await inner

        return answer()

    @hookimpl(wrapper=True)
    def stream(self):
        inner = yield

        async def chunks():
            await self._wait()
            async for chunk in inner:
                yield chunk

        return chunks()


def test_a_call_that_is_cancelled_on_the_loop_ends_and_no_other(endless):
    extension = Cancels()
    with Engine.load(endless(**SLOW), extensions=[extension]) as engine, ThreadPoolExecutor(1) as pool:
        extension.on = False
        other = pool.submit(lambda: len(engine.generate("hi", max_tokens=200).token_ids))
        assert waited_for(lambda: engine.stats().running == 1)
        extension.on = True
        with pytest.raises(CancelledError, match="own loop"):
            engine.generate("hi", max_tokens=2)
        with pytest.raises(CancelledError, match="own loop"), engine.stream("hi", max_tokens=2) as stream:
            list(stream)
        extension.on = False
        assert other.result() == 200
        assert len(engine.generate("hi", max_tokens=2).token_ids) == 2


def test_a_stream_that_the_engines_own_thread_leaves_is_not_waited_for(endless):
    with Engine.load(endless(**SLOW)) as engine:
        stream = engine.stream("hi", max_tokens=2000).__enter__()

        async def leave():
            stream.__exit__(None, None, None)

        engine._portal.call(leave)
        assert waited_for(lambda: engine.stats().running == 0)


def test_a_stream_that_was_refused_is_not_read(endless):
    engine = Engine.load(endless())
    stream = engine.stream("hi")
    engine.close()
    with pytest.raises(EngineClosed):
        stream.__enter__()
    with pytest.raises(Misuse):
        next(stream)


def test_work_of_the_loop_is_of_asyncio_whatever_the_caller_runs_in(scripted, monkeypatch):
    library = ContextVar("library")
    monkeypatch.setitem(sys.modules, "sniffio", SimpleNamespace(current_async_library_cvar=library))
    library.set("trio")
    other = ContextVar("other")
    other.set("the caller's")

    async def seen():
        return library.get(), other.get()

    with Engine.load(scripted()) as engine:
        assert engine._portal.call(seen) == ("asyncio", "the caller's")
    assert library.get() == "trio"


class InterruptedAt:
    """Inside it, this thread is interrupted after so many instructions, as by a signal whose handler raises.

    Attributes:
        came: whether it was.
    """

    def __init__(self, count):
        self._left = count
        self.came = False

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_):
        sys.settrace(self._before)

    def _trace(self, frame, event, _arg):
        frame.f_trace_opcodes = True
        if event == "opcode":
            self._left -= 1
            if self._left == 0:
                self.came = True
                raise KeyboardInterrupt
        return self._trace


def _read_stream(engine):
    with engine.stream("hi", max_tokens=3) as stream:
        return list(stream)


@pytest.mark.parametrize(
    "use",
    [lambda engine: engine.generate("hi", max_tokens=3), lambda engine: engine.health(), _read_stream],
    ids=["generate", "health", "stream"],
)
def test_interrupted_at_any_instruction_a_call_ends_and_the_engine_goes_on(endless, use):
    with Engine.load(endless(**SLOW)) as engine:
        for count in itertools.count(1):
            interrupted = InterruptedAt(count)
            try:
                with interrupted:
                    use(engine)
            except KeyboardInterrupt:
                assert interrupted.came
            engine.health()
            if not interrupted.came:
                break
        assert count > 100
        assert waited_for(lambda: engine.stats().running == 0)
        assert len(engine.generate("hi", max_tokens=2).token_ids) == 2


def test_interrupted_at_any_instruction_a_close_is_finished_by_the_next(faulty):
    for count in itertools.count(1):
        closed = []

        async def close(closed=closed):
            closed.append(True)

        engine = Engine.load(faulty(close=close))
        interrupted = InterruptedAt(count)
        try:
            with interrupted:
                engine.close()
        except KeyboardInterrupt:
            assert interrupted.came
        engine.close()
        assert closed == [True]
        assert not engine._portal._loop._thread.is_alive()
        if not interrupted.came:
            break
    assert count > 100
