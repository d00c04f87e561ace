"""Whatever an engine or a check does becomes one result, and the run goes on."""

import asyncio
import dataclasses
import os
import threading
import time

import pytest
from anyengine import Capabilities, EngineDied, InvalidConfig, InvalidRequest, UnsupportedParameter
from anyengine.backend import TokenDelta
from anyengine.environments import DescribedEngine
from anyengine_conformance.badge import badge
from anyengine_conformance.bench import Bench
from anyengine_conformance.broken import BrokenBackend, BrokenPlugin
from anyengine_conformance.capture import Capture
from anyengine_conformance.check import Check
from anyengine_conformance.html import render
from anyengine_conformance.oracle import EngineOracle
from anyengine_conformance.progress import summary
from anyengine_conformance.report import BadReport
from anyengine_conformance.runner import select
from anyengine_conformance.settings import ExpectedFailure, Settings
from anyengine_conformance.simulated import SimulatedPlugin, simulated_folder
from anyengine_conformance.subject import PluginTarget
from msgspec.structs import replace


async def good(t):
    t.equal((await t.generate(max_tokens=2)).usage.completion_tokens, 2, "tokens")


async def bad(t):
    t.equal((await t.generate(max_tokens=2)).usage.completion_tokens, 3, "tokens")


def test_a_check_that_holds_passes(make_runner, make_check):
    result = make_runner().run_check(make_check(good))
    assert (result.outcome, result.good, result.expectation) == ("passed", True, "pass")


def test_a_failure_says_what_was_asked_expected_and_seen_and_what_to_do(make_runner, make_check):
    result = make_runner(base=["anyengine", "conformance", "run", "mine"]).run_check(make_check(bad))
    assert result.outcome == "failed"
    assert "engine.generate(" in result.asked
    assert "max_tokens=2" in result.asked
    assert (result.expected, result.seen) == ("tokens: 3", "tokens: 2")
    assert result.advice == "do it"
    assert result.command == "anyengine conformance run mine --only tests.made"


async def bad_in_the_end(t):
    for count in range(1, 9):
        await t.generate(max_tokens=count)
    raise t.fail(expected="this", seen="that")


def test_of_many_calls_the_last_are_said_and_how_many_came_before(make_runner, make_check):
    asked = make_runner().run_check(make_check(bad_in_the_end)).asked.splitlines()
    assert (asked[0], len(asked)) == ("… and 2 before:", 7)
    assert "max_tokens=3" in asked[1]


def test_a_failure_is_repeated_with_the_file_that_the_run_had(make_runner, make_check, tmp_path):
    file = tmp_path / "conformance.toml"
    runner = make_runner(settings=Settings(engine="simulated", oracle="simulated", file=file))
    command = f"anyengine conformance run --config {os.path.relpath(file)} --only tests.made"
    assert runner.run_check(make_check(bad)).command == command


def test_an_error_of_the_engine_where_none_was_expected_is_a_failure(make_runner, make_check):
    async def refuses(t):
        await t.generate(max_tokens=-1)

    result = make_runner().run_check(make_check(refuses))
    assert (result.outcome, result.expected) == ("failed", "no error")
    assert "InvalidRequest" in result.seen


def test_a_mistake_of_the_suite_is_an_error_not_a_failure(make_runner, make_check):
    async def mistaken(t):
        raise KeyError("oops")

    result = make_runner().run_check(make_check(mistaken))
    assert result.outcome == "error"
    assert "the suite's own mistake: KeyError" in result.reason


def test_a_dead_engine_is_an_error_and_the_next_check_gets_another(make_runner, make_check):
    async def dies(t):
        raise EngineDied("gone")

    runner = make_runner()
    assert runner.run_check(make_check(dies)).outcome == "error"
    assert runner.run_check(make_check(good)).outcome == "passed"


class DiesOfSchemas(BrokenBackend):
    """A malformed schema ends the engine, and it stays dead; the next one works."""

    dead = False

    def stream(self, request):
        schema = request.structured and request.structured.json_schema
        self.dead = self.dead or schema == {"type": "wat"}
        return self._dead() if self.dead else self.inner.stream(request)

    async def _dead(self):
        raise EngineDied("the worker died of a schema", log_tail=("terminate called without an active exception",))
        yield

    async def health(self):
        if self.dead:
            raise EngineDied("the worker died of a schema", log_tail=("terminate called without an active exception",))


class DiesOfSchemasPlugin(BrokenPlugin):
    inner = SimulatedPlugin()
    backend = DiesOfSchemas


def test_an_engine_that_a_check_took_for_a_wrong_refusal_is_replaced_all_the_same(make_runner):
    ids = ("structured.malformed-schema-is-refused", "structured.malformed-regex-is-refused")
    runner = make_runner(PluginTarget(DiesOfSchemasPlugin()))
    first, then = (runner.run_check(made) for made in select(ids))
    assert (first.outcome, then.outcome) == ("failed", "passed")
    assert first.seen.endswith("the worker died of a schema; the engine is gone with it")
    assert first.log == "terminate called without an active exception"


async def asks_for_a_list(t):
    """The error stands in the list, and no check raises it."""
    options = {"structured": {"json_schema": {"type": "wat"}}, "return_exceptions": True, "max_tokens": 2}
    answers = await t.generate(["a", "b"], **options)
    if t.check.id == "tests.fails":
        raise t.fail(expected="two completions", seen=f"{len(answers)} of something else")
    if t.check.id == "tests.lacks":
        raise t.skip("the model has none")


@pytest.mark.parametrize(
    ("name", "outcome", "told"),
    [
        ("fails", "failed", "expected two completions; seen: 2 of something else; the engine is gone with it"),
        ("lacks", "error", "the engine is gone"),
        ("passes", "error", "the engine is gone"),
    ],
)
def test_an_engine_that_died_unseen_is_told_by_the_check_that_lost_it(make_runner, make_check, name, outcome, told):
    runner = make_runner(PluginTarget(DiesOfSchemasPlugin()))
    result = runner.run_check(make_check(asks_for_a_list, id=f"tests.{name}"))
    assert (result.outcome, result.reason) == (outcome, f"{told}: EngineDied: the worker died of a schema")
    assert runner.run_check(make_check(good)).outcome == "passed"


def test_an_engine_whose_health_hangs_after_a_failure_keeps_the_failure(make_runner, make_check):
    class Stuck(BrokenBackend):
        async def health(self):
            await asyncio.Event().wait()

    class Plugin(BrokenPlugin):
        inner = SimulatedPlugin()
        backend = Stuck

    runner = make_runner(PluginTarget(Plugin()), grace=60.0)
    result = runner.run_check(make_check(bad_without_engine, deadline=0.3))
    assert (result.outcome, result.expected) == ("failed", "this")
    assert result.seen == "that; the engine is gone with it: its health had not ended after 0.3 s"


async def bad_without_engine(t):
    raise t.fail(expected="this", seen="that")


@pytest.mark.parametrize("sleep", ["asyncio", "blocking", "stubborn"])
def test_a_check_that_overruns_its_deadline_fails_and_the_run_goes_on(make_runner, make_check, sleep: str):
    over = threading.Event()

    async def slow(t):
        t.asked("something slow")
        if sleep == "asyncio":
            await asyncio.sleep(3600)
        elif sleep == "blocking":
            over.wait(100)  # an engine that blocks the loop
        else:
            for _ in range(100):  # swallows its cancellation
                try:
                    await asyncio.sleep(1)
                except asyncio.CancelledError:
                    continue

    runner = make_runner(grace=2.0)
    assert runner.run_check(make_check(good)).outcome == "passed"  # it is loaded
    started = time.monotonic()
    result = runner.run_check(make_check(slow, deadline=0.2))
    seconds = time.monotonic() - started
    over.set()
    assert seconds < 30
    assert (result.outcome, result.asked) == ("failed", "something slow")
    assert "0.2 s" in result.expected
    assert runner.run_check(make_check(good)).outcome == "passed"


def test_a_loop_that_is_blocked_in_the_end_is_left_to_itself():
    bench, go_on = Bench(grace=0.2), threading.Event()
    bench._loop.call_soon_threadsafe(go_on.wait)
    bench.close()  # raises nothing
    assert bench._thread.is_alive()
    go_on.set()
    bench._thread.join(60)
    assert not bench._thread.is_alive()


@pytest.mark.parametrize(("how", "words"), [("raises", "no such device"), ("hangs", "loading"), ("blocks", "loading")])
def test_a_load_that_goes_wrong_is_an_error_of_each_check_and_tried_once(
    make_runner, make_check, misbehaving, how: str, words: str
):
    target = misbehaving(how)
    limit = 60.0 if how == "raises" else 0.3
    runner = make_runner(target, settings=Settings(engine="simulated", load_timeout=limit))
    results = [runner.run_check(make_check(good)) for _ in range(3)]
    assert {result.outcome for result in results} == {"error"}
    assert words in results[0].reason
    assert target.loads == 1


def test_an_engine_in_an_environment_has_the_version_that_it_has_there(make_runner, monkeypatch):
    class NotHere(PluginTarget):
        async def describe(self):
            return replace(await super().describe(), engine_version=None)

    monkeypatch.setattr(
        "anyengine_conformance.environment.described_there",
        lambda engine, config: DescribedEngine(name=engine, engine_version="0.33.1"),
    )
    expected = {"a.b": ExpectedFailure(id="a.b", reason="r", link="l", until_version="0.33")}
    runner = make_runner(NotHere(SimulatedPlugin()), expected=expected)
    with pytest.raises(InvalidConfig, match=r"expired with version 0.33; this is 0.33.1"):
        runner.open()


def test_an_undeclared_need_is_tested_as_a_refusal_and_never_passes(make_runner, make_check):
    narrow = SimulatedPlugin(Capabilities(token_prompts=True))
    result = make_runner(PluginTarget(narrow)).run_check(make_check(bad, needs=("sampling.top_k", "logprobs")))
    assert (result.outcome, result.expectation) == ("unsupported", "refuse")
    assert result.reason == "not declared: sampling.top_k, logprobs"


def test_what_is_not_declared_and_not_refused_fails(make_runner, make_check):
    class Swallowing:
        async def describe(self):
            return SimulatedPlugin().describe()

        async def load(self, config):
            engine = await PluginTarget(SimulatedPlugin()).load(config)
            narrow = Capabilities(token_prompts=True)

            class Engine:
                capabilities = narrow

                def __getattr__(self, name):
                    return getattr(engine, name)

            return Engine()

    result = make_runner(Swallowing()).run_check(make_check(good, needs=("sampling.top_k",)))
    assert (result.outcome, result.expectation, result.seen) == ("failed", "refuse", "no error")
    assert result.expected == "UnsupportedParameter with field 'sampling.top_k'"


def test_a_declared_conflict_is_tested_as_a_refusal(make_runner, make_check):
    needs = ("structured.regex", "request.ignore_eos")
    result = make_runner().run_check(make_check(bad, needs=needs))
    assert (result.outcome, result.expectation) == ("unsupported", "refuse")
    assert "declared conflict" in result.reason


def test_a_statistic_that_is_none_is_unsupported(make_runner, make_check):
    class Silent(BrokenBackend):
        async def stats(self):
            return replace(await self.inner.stats(), preemptions=None)

    class Plugin(BrokenPlugin):
        inner = SimulatedPlugin()
        backend = Silent

    result = make_runner(PluginTarget(Plugin())).run_check(make_check(bad, needs=("stats.preemptions",)))
    assert result.outcome == "unsupported"


def test_whether_a_statistic_is_there_is_asked_without_sampling(make_runner, make_check):
    class Greedy(BrokenBackend):
        def validate(self, request):
            if not request.sampling.greedy:
                raise UnsupportedParameter("sampling.temperature: 0 only here", field="sampling.temperature")

    class Plugin(BrokenPlugin):
        inner = SimulatedPlugin()
        backend = Greedy

    result = make_runner(PluginTarget(Plugin())).run_check(make_check(good, needs=("stats.generated_tokens",)))
    assert result.outcome == "passed"


def test_what_the_model_lacks_is_not_run(make_runner, make_check):
    async def lacking(t):
        raise t.skip("the model has no chat template")

    result = make_runner().run_check(make_check(lacking))
    assert (result.outcome, result.reason, result.good) == ("not-run", "the model has no chat template", True)


EXPECTED = {
    "tests.made": ExpectedFailure(id="tests.made", reason="a bug", link="https://x.invalid/1", until_version="2")
}


@pytest.mark.parametrize(("function", "outcome", "fine"), [(bad, "xfailed", True), (good, "xpassed", False)])
def test_expected_failures_are_strict(make_runner, make_check, function, outcome: str, *, fine: bool):
    result = make_runner(expected=EXPECTED).run_check(make_check(function))
    assert (result.outcome, result.good, result.expectation) == (outcome, fine, "fail")
    assert "https://x.invalid/1" in result.reason


@pytest.mark.parametrize(("folder", "outcome"), [("mine", "xfailed"), ("other", "failed")])
def test_an_expected_failure_may_be_of_one_model(make_runner, make_check, tmp_path, folder, outcome):
    (tmp_path / folder).symlink_to(simulated_folder(), target_is_directory=True)
    expected = {"tests.made": dataclasses.replace(EXPECTED["tests.made"], model="mine")}
    settings = Settings(engine="simulated", oracle="simulated", config={"model": str(tmp_path / folder)})
    assert make_runner(settings=settings, expected=expected).run_check(make_check(bad)).outcome == outcome


def test_an_expected_failure_of_something_unsupported_is_unmatched(make_runner, make_check):
    result = make_runner(expected=EXPECTED).run_check(make_check(bad, needs=("request.lora",)))
    assert result.outcome == "error"
    assert "unmatched" in result.reason


def test_the_smallest_input_that_fails_is_reported_and_the_same_in_every_run(make_runner, make_check):
    from hypothesis import strategies as st

    async def holds_up_to_ten(t):
        async def holds(number: int) -> None:
            t.expect(number <= 10, expected="at most 10", seen=number)

        await t.given(st.integers(0, 1000), holds, examples=50)

    results = [make_runner().run_check(make_check(holds_up_to_ten)) for _ in range(2)]
    assert [result.example for result in results] == ["11", "11"]
    assert results[0].seed == results[1].seed


def test_a_flood_on_stdout_blocks_nobody_and_its_end_is_kept(make_runner, make_check, misbehaving, capfd):
    with Capture() as capture:
        make_runner(misbehaving("floods")).run_check(make_check(good))
        written = capture.take()
    assert written.endswith("the last line")
    assert len(written) < 20_000
    assert capfd.readouterr().out == ""


def test_a_backend_that_breaks_its_contract_fails_the_check(make_runner, make_check):
    class TooMany(BrokenBackend):
        async def stream(self, request):
            async for delta in self.inner.stream(request):
                yield TokenDelta([*delta.token_ids, 1], delta.logprobs, delta.finish)

    class Plugin(BrokenPlugin):
        inner = SimulatedPlugin()
        backend = TooMany

    result = make_runner(PluginTarget(Plugin())).run_check(make_check(good))
    assert result.outcome == "failed"
    assert "PluginError" in result.seen


def test_refusals_of_another_type_or_field_are_told_apart(make_runner, make_check):
    async def wrong_field(t):
        with t.refused(InvalidRequest, field="n"):
            await t.generate(max_tokens=0)

    result = make_runner().run_check(make_check(wrong_field))
    assert result.expected == "InvalidRequest with field 'n'"
    assert result.seen.startswith("InvalidRequest with field 'max_tokens'")


def test_the_oracle_scores_the_subjects_model_and_leaves_its_engine_alone(make_runner, make_check):
    async def scored(t):
        oracle = await t.oracle()
        ids = await t.engine.tokenize(t.prompt)
        mine, exact = await t.engine.score(ids), await oracle.score(ids)
        off = max(abs(a - b) for a, b in zip(mine.logprobs, exact.logprobs, strict=True))
        t.expect(off < t.tolerance(1e-3), expected="the same log-probabilities", seen=off)

    runner = make_runner(PluginTarget("reference"), settings=Settings(engine="reference", load_timeout=60.0))
    result = runner.run_check(make_check(scored, variant="small-context"))
    assert (result.outcome, result.reason) == ("passed", "")


def test_many_who_ask_at_once_wait_for_one_oracle(make_runner, make_check, monkeypatch):
    loaded = []
    load = EngineOracle.load

    async def slowly(*given):
        loaded.append(given)
        await asyncio.sleep(0.05)
        return await load(*given)

    async def scored(t):
        oracles = await asyncio.gather(*(t.oracle() for _ in range(32)))
        t.equal([oracle is oracles[0] for oracle in oracles], [True] * 32, "one oracle")

    monkeypatch.setattr(EngineOracle, "load", slowly)
    runner = make_runner(settings=Settings(engine="simulated", oracle="simulated", load_timeout=60.0))
    assert [runner.run_check(make_check(scored)).outcome for _ in range(2)] == ["passed", "passed"]
    assert len(loaded) == 1


def test_an_oracle_that_cannot_compute_the_model_is_no_failure_of_the_engine(make_runner, make_check):
    async def scored(t):
        await (await t.oracle()).score([1, 2])

    runner = make_runner(settings=Settings(engine="simulated", oracle="reference", load_timeout=60.0))
    results = [runner.run_check(make_check(scored)) for _ in range(2)]
    assert [result.outcome for result in results] == ["error", "error"]
    assert "the oracle 'reference' gives no exact scores" in results[0].reason
    assert "transformers" in results[0].reason


def test_without_an_oracle_what_needs_exact_scores_is_not_run_and_there_is_no_badge(make_runner, make_check):
    async def scored(t):
        await t.oracle()

    runner = make_runner(settings=Settings(engine="simulated", oracle="none", load_timeout=60.0))
    result = runner.run_check(make_check(scored))
    assert (result.outcome, "no oracle" in result.reason) == ("not-run", True)
    report = runner.report([result], complete=True)
    told = "1 check did not run for want of an oracle: nothing was compared with exact scores"
    assert "as expected, but not all is proven: 1 not run" in summary(report)
    assert f"\nunproven: {told}\n" in summary(report)
    assert told in render(report)
    assert "keeps what was checked" in render(report)
    with pytest.raises(BadReport, match=f"a badge needs an oracle: {told}"):
        badge(report)


def test_a_check_with_engines_of_its_own_is_refused_by_a_loaded_one(make_runner, make_check):
    result = make_runner().run_check(make_check(bad, needs=("request.lora",), variant="own"))
    assert (result.outcome, result.reason) == ("unsupported", "not declared: request.lora")


def test_a_check_is_frozen(make_check):
    assert isinstance(make_check(good), Check)
    with pytest.raises(AttributeError):
        make_check(good).must = "changed"
