"""The summary names what is likely the cause, and tells an error that many checks met once."""

import re

import pytest
from anyengine_conformance.broken import all_faults
from anyengine_conformance.causes import by_cause, told
from anyengine_conformance.check import all_checks
from anyengine_conformance.html import render
from anyengine_conformance.progress import summary
from anyengine_conformance.results import Environment, Report, Result, SubjectFacts, Suite

TIERS = {made.id: made.tier for made in all_checks()}


def _result(identity: str, **fields: object) -> Result:
    family = identity.partition(".")[0]
    values = {"outcome": "failed", "expected": "no error", "seen": "SomeError: no", **fields}
    return Result(id=identity, family=family, must="It does.", tier=TIERS[identity], variant="default", **values)  # type: ignore[arg-type]


def _report(*results: Result) -> Report:
    return Report(
        started="2027-01-01T00:00:00+00:00",
        duration=1.0,
        suite=Suite(version="0", profile="certify", seed=0, complete=False, oracle="reference"),
        subject=SubjectFacts(engine="mine"),
        environment=Environment(platform="Linux", python="3.11", cpus=2, accelerators=[], packages={}),
        results=list(results),
    )


def _tripping(failed: list[str]) -> Report:
    """A whole run of core in which these fail."""
    core = [name for name, tier in TIERS.items() if tier == "core" or name in failed]
    passed = {"outcome": "passed", "expected": "", "seen": ""}
    return _report(*(_result(name, **({} if name in failed else passed)) for name in core))


BROAD = [made for made in all_faults() if len(made.also_fails) > 2]


@pytest.mark.parametrize("fault", BROAD, ids=lambda fault: f"{fault.check}-{fault.name}")
def test_the_check_whose_fault_trips_what_failed_comes_first(fault):
    failed = sorted({fault.check, *fault.also_fails})
    ordered = by_cause(_tripping(failed))
    same = {made.check for made in all_faults() if sorted({made.check, *made.also_fails}) == failed}
    assert ordered[0].id in same
    assert told(ordered).startswith(f"{ordered[0].id} is the likely cause")
    assert f"trip all the other {len(failed) - 1} " in told(ordered)


def _without_oracle(*failed: str) -> Report:
    """A whole run of an engine that declares little, in which most of what is about numbers could not be told."""
    passed = {"outcome": "passed", "expected": "", "seen": ""}
    idle = dict.fromkeys(("parity", "batching", "knobs", "sampling"), "not-run") | {"speculation": "unsupported"}
    outcomes = {name: passed | {"outcome": idle.get(name.partition(".")[0], "passed")} for name in TIERS}
    return _report(*(_result(name, **({} if name in failed else fields)) for name, fields in outcomes.items()))


@pytest.mark.parametrize(
    ("failed", "cause"),
    [
        # The temperature never arrives.
        (
            (
                "knobs.temperature-zero-is-greedy",
                "knobs.temperature-below-one-sharpens",
                "knobs.temperature-above-one-flattens",
                "logprobs.greedy-is-the-top",
            ),
            "knobs.temperature-zero-is-greedy is the likely cause: such a fault is known to trip all the other 3 ",
        ),
        # Temperature 0 does not.
        (
            ("knobs.temperature-zero-is-greedy", "logprobs.greedy-is-the-top"),
            "knobs.temperature-zero-is-greedy is the likely cause",
        ),
        # Seeds do not.
        (
            (
                "knobs.determinism-run-repeats",
                "knobs.determinism-batch-invariant-holds",
                "knobs.seed-is-used",
                "seeds.run-repeats",
            ),
            "knobs.seed-is-used is the likely cause: such a fault is known to trip all the other 3 ",
        ),
        # Every request has the same one, and so as many draws as one likes are one draw.
        (
            (
                "knobs.temperature-zero-is-greedy",
                "seeds.unseeded-varies",
                "seeds.unseeded-choices-vary",
                "seeds.seeds-differ",
            ),
            "seeds.seeds-differ is the likely cause",
        ),
        # The caller's stop tokens do not.
        (
            ("stopping.min-tokens-holds-tokens", "stopping.stop-token-ends-it"),
            "stopping.stop-token-ends-it is the likely",
        ),
    ],
    ids=["temperature", "temperature-0", "seed", "one-seed", "stop-tokens"],
)
def test_a_field_that_never_arrives_is_named_first_without_an_oracle_too(failed, cause):
    ordered = by_cause(_without_oracle(*failed))
    assert told(ordered).startswith(cause)
    assert ordered[0].id == cause.partition(" ")[0]


def test_failures_that_have_nothing_in_common_are_given_no_cause():
    ordered = by_cause(_report(_result("streaming.texts-join"), _result("security.no-pickle"), _result("parity.code")))
    assert told(ordered) == ""
    assert ordered[-1].id == "parity.code"  # core first


def test_an_engine_that_does_not_load_comes_before_all_else():
    lost = {"outcome": "error", "expected": "", "seen": ""}
    reason = "the variant 'default' did not load: EngineStartupError: no such device"
    other = reason.replace("default", "narrow-queue")
    report = _report(
        _result("lifecycle.close-ends-streams"),
        _result("limits.full-queue-refuses", reason=other, **lost),
        _result("streaming.texts-join", reason=reason, **lost),
        _result("tokens.usage-counts-them", reason=reason, **lost),
    )
    assert told(by_cause(report)) == "the engine did not load, so most checks could not run"
    text = summary(report)
    assert text.count("no such device") == 1
    assert "the same tokens.usage-counts-them, limits.full-queue-refuses" in text


@pytest.mark.parametrize(
    "seen",
    [
        "PluginError: mine gave 8 tokens where max_tokens is 7, which breaks the contract",
        "PluginError with field 'prompts[0]': mine gave 8 tokens where max_tokens is 7, which breaks the contract",
        "PluginError('mine gave 8 tokens where max_tokens is 7, which breaks the contract')",
    ],
)
def test_one_bug_of_the_plugin_is_told_once_however_it_was_met(seen):
    first = "PluginError: mine gave 3 tokens where max_tokens is 2, which breaks the contract"
    text = summary(_report(_result("streaming.texts-join", seen=first), _result("security.no-pickle", seen=seen)))
    assert text.count("mine gave") == 1
    assert "the same " in text


def test_the_page_tells_what_many_checks_met_once_and_has_them_all():
    lost = {"outcome": "error", "expected": "", "seen": "", "reason": "not run: the engine does not answer: 0 tokens"}
    ids = ["streaming.texts-join", "tokens.usage-counts-them", "stopping.length-is-exact"]
    page = render(_report(*(_result(name, duration=float(name == ids[1]), **lost) for name in ids)))
    assert "the engine does not answer, so 3 checks were not run." in page
    assert page.count("not run: the engine does not answer: 0 tokens") == 1
    assert f'<article id="{ids[1]}">' in page  # which found out
    assert "the same in 2 others" in page
    assert all(f" {name}\n" in re.sub("<[^>]*>", "", page) for name in ids)


def test_the_page_says_the_cause_too():
    fault = max(all_faults(), key=lambda made: len(made.also_fails))
    page = render(_tripping([fault.check, *fault.also_fails]))
    assert f"{fault.check} is the likely cause" in page
