"""An engine that does not answer is found out by one request, and not waited for in every check."""

import asyncio
import functools
from typing import Any

import pytest
from anyengine import EngineDied
from anyengine_conformance import bench, probe
from anyengine_conformance.broken import BrokenBackend, BrokenPlugin
from anyengine_conformance.progress import Progress, summary
from anyengine_conformance.settings import Settings
from anyengine_conformance.simulated import SimulatedPlugin
from anyengine_conformance.subject import PluginTarget
from msgspec.structs import replace


class Endless(BrokenBackend):
    """All tokens, and never a finish."""

    given = asyncio.Event()

    async def stream(self, request):
        async for delta in self.inner.stream(request):
            yield replace(delta, finish=None)
        self.given.set()
        await asyncio.Event().wait()


class Dying(BrokenBackend):
    """Gone with the first request."""

    async def stream(self, request):
        raise EngineDied("worker ended", log_tail=("CUDA error: an illegal memory access",))
        yield


class OnlySmallContexts(Endless):
    """It hangs in one variant only."""

    def stream(self, request):
        return self.inner.stream(request) if self.config.max_model_len is None else super().stream(request)


class Counting(PluginTarget):
    def __init__(self, backend: type[BrokenBackend]) -> None:
        class Plugin(BrokenPlugin):
            inner = SimulatedPlugin()

        Plugin.backend = backend
        super().__init__(Plugin())
        self.loads = 0

    async def load(self, config: Any) -> Any:
        self.loads += 1
        return await super().load(config)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch):
    """The probe waits for a moment only, but not before the engine has given the tokens that it will give."""
    limited = bench._limited

    async def after_the_tokens(work: Any, limit: float, ended: Any) -> Any:
        if work.__name__ == probe._answer.__name__:
            Endless.given.clear()
            work, given = asyncio.ensure_future(work), asyncio.ensure_future(Endless.given.wait())
            await asyncio.wait([work, given], return_when=asyncio.FIRST_COMPLETED)
            given.cancel()
        return await limited(work, limit, ended)

    monkeypatch.setattr(probe, "_LIMIT", 0.5)
    monkeypatch.setattr(bench, "_limited", after_the_tokens)
    monkeypatch.setattr(Endless, "given", asyncio.Event())  # belongs to the loop that first waits for it


@pytest.fixture
def make_runner(make_runner):
    """A runner that takes no engine here for one that blocks its loop: a busy machine might look like it."""
    return functools.partial(make_runner, grace=60.0)


@pytest.fixture
def checks(make_check):
    """Three that generate, and one that does not; each of an id of its own."""

    async def generates(t):
        await t.generate(max_tokens=2)

    async def tokenizes(t):
        await t.engine.tokenize("a")

    async def loads(t):
        async with t.load():
            pass

    def make(names: str, *, late: str = "") -> list[Any]:
        """``late`` are those that wait in vain: for a moment only."""
        kinds = {"g": (generates, "default"), "t": (tokenizes, "default"), "o": (loads, "own")}
        kinds["n"] = (generates, "small-context")
        return [
            make_check(
                kinds[name][0],
                id=f"tests.{name}{number}",
                variant=kinds[name][1],
                deadline=0.3 if name in late else 60.0,
            )
            for number, name in enumerate(names)
        ]

    return make


def test_an_engine_that_never_sends_a_finish_is_waited_for_once_and_asked_once(make_runner, checks):
    target = Counting(Endless)
    results = make_runner(target).run(checks("tggto", late="g")).results
    assert [result.outcome for result in results] == ["passed", "failed", "error", "error", "error"]
    assert target.loads == 2
    assert len({result.reason for result in results[2:]}) == 1
    assert results[2].reason.startswith(
        "not run: the engine does not answer: a request for 4 tokens behind 'Once upon a time', on a fresh engine of "
        "the variant 'default', gave 4 of 4 tokens in 0.5 s, and did not end."
    )


def test_an_engine_that_dies_of_every_request_is_loaded_twice(make_runner, checks):
    target = Counting(Dying)
    results = make_runner(target).run(checks("gggo")).results
    assert {result.outcome for result in results} == {"error"}
    assert target.loads == 2
    assert results[0].reason.startswith("the engine is gone: EngineDied")
    assert "on a fresh engine of the variant 'default', ended with EngineDied" in results[1].reason
    assert results[1].log == "CUDA error: an illegal memory access"


def test_without_the_probe_every_check_waits_for_itself(make_runner, checks):
    results = make_runner(Counting(Endless), probe=False).run(checks("ggg", late="g")).results
    assert [result.outcome for result in results] == ["failed"] * 3


def test_an_engine_that_hangs_in_one_check_only_goes_on(make_runner, checks, make_check):
    async def hangs(t):
        await asyncio.Event().wait()

    lost = make_check(hangs, id="tests.hangs", deadline=0.1)
    own = make_check(hangs, id="tests.hangs-alone", variant="own", deadline=0.1)
    results = make_runner().run([lost, *checks("ggt"), own, *checks("oo")]).results
    assert [result.outcome for result in results] == ["failed", *["passed"] * 3, "failed", *["passed"] * 2]


def test_a_variant_that_does_not_answer_takes_no_other_with_it(make_runner, checks):
    results = make_runner(Counting(OnlySmallContexts)).run(checks("gnnno", late="n")).results
    assert [result.outcome for result in results] == ["passed", "failed", "error", "error", "passed"]
    assert "of the variant 'small-context'" in results[2].reason


def test_an_engine_that_loses_no_check_is_asked_nothing(make_runner, checks, make_check, monkeypatch):
    asked: list[object] = []

    async def answer(*arguments: object) -> None:
        asked.append(arguments)

    async def refuted(t):
        t.equal("a", "b", "it")

    monkeypatch.setattr(probe, "_answer", answer)
    results = make_runner().run([*checks("gto"), make_check(refuted), *checks("g")]).results
    assert [result.outcome for result in results][-2:] == ["failed", "passed"]
    assert asked == []


def test_a_slow_engine_has_longer(make_runner, checks):
    settings = Settings(engine="simulated", oracle="simulated", load_timeout=60.0, time_factor=2.0)
    results = make_runner(Counting(Endless), settings=settings).run(checks("gg", late="g")).results
    assert "tokens in 1 s, and did not end" in results[1].reason


def test_who_wants_every_check_reads_of_it_when_it_begins(make_runner, make_check):
    import io

    stream = io.StringIO()
    said = []

    async def looks(t):
        said.append(stream.getvalue())

    made = make_check(looks, id="tests.looks")
    make_runner(listener=Progress(stream, None, verbose=True, live=False)).run([made])
    assert said == ["begins      tests.looks\n"]
    assert stream.getvalue().splitlines()[1].startswith("passed      tests.looks  ")


def test_the_summary_says_it_first_and_names_a_few_checks(make_runner, checks, capsys):
    import sys

    runner = make_runner(Counting(Endless), listener=Progress(sys.stdout, None, verbose=False, live=False))
    text = summary(runner.run(checks("t" + "g" * 20, late="g")))
    assert text.startswith("the engine does not answer, so 19 checks were not run\n\nERROR tests.g2: ")
    assert text.count("gave 4 of 4 tokens") == 1
    assert ", and 6 more\n" in text
    assert "FAILED tests.g1: " in text
    assert capsys.readouterr().out.count("gave 4 of 4 tokens") == 1
