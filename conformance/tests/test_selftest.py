"""The tests of the tests. All of them are `anyengine conformance selftest`; here is what that command rests on."""

import json
from dataclasses import replace

import pytest
from anyengine_conformance import selftest
from anyengine_conformance.broken import BrokenEngine, Fault, all_faults, declared_file
from anyengine_conformance.check import all_checks
from msgspec.structs import replace as replace_struct

EVERY = {made.id for made in all_checks()}
CORE = {made.id for made in all_checks() if made.tier == "core"}


def test_every_check_has_a_fault_and_every_fault_a_check():
    assert {made.check for made in all_faults()} == {made.id for made in all_checks()}


def test_what_also_fails_is_of_faults_that_are_there_and_of_checks_that_they_are_held_against():
    faults = {f"{made.check}/{made.name}": made for made in all_faults()}
    for family in {made.check.partition(".")[0] for made in all_faults()}:
        file = declared_file(family)
        declared = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        assert declared.keys() <= faults.keys(), family
        for name, ids in declared.items():
            against = EVERY if faults[name].wide else CORE
            assert set(ids) <= against - {faults[name].check}, name


@pytest.fixture
def one_core_check(monkeypatch: pytest.MonkeyPatch):
    """The cross-product with these checks only."""

    def narrow(*ids: str) -> None:
        chosen = [made for made in all_checks() if made.id in ids]
        monkeypatch.setattr(selftest, "all_checks", lambda: chosen)

    return narrow


class Harmless(BrokenEngine):
    """Breaks nothing."""


def test_a_fault_that_its_check_does_not_see_is_told(one_core_check):
    one_core_check("streaming.texts-join")
    found = selftest.hold(Fault("streaming.texts-join", "nothing", (), "simulated", Harmless), cross=True)
    assert (found.caught, found.good, found.outcome) == (False, False, "passed")


def test_what_a_fault_trips_and_nobody_declared_is_told_with_its_reason(one_core_check):
    one_core_check("streaming.texts-join", "streaming.tokens-only-once")
    real = next(made for made in all_faults() if made.name == "CumulativeTokens")
    found = selftest.hold(replace(real, also_fails=()), cross=True)
    assert (found.caught, found.good, list(found.undeclared)) == (True, False, ["streaming.texts-join"])
    assert "expected" in found.undeclared["streaming.texts-join"]


def test_what_is_declared_and_does_not_fail_is_told(one_core_check):
    one_core_check("streaming.first-token-is-timed", "streaming.texts-join")
    real = next(made for made in all_faults() if made.name == "FirstTokenAfterEnd")
    found = selftest.hold(replace(real, also_fails=("streaming.texts-join",)), cross=True)
    assert (found.caught, found.good, found.stale) == (True, False, ["streaming.texts-join"])


def test_a_wide_fault_is_held_against_extensions_too(one_core_check):
    one_core_check("seeds.seeds-differ", "knobs.seed-is-used")
    real = next(made for made in all_faults() if made.name == "SameForAll")
    found = [selftest.hold(replace(real, also_fails=(), wide=wide), cross=True) for wide in (True, False)]
    assert [list(each.undeclared) for each in found] == [["knobs.seed-is-used"], []]


def test_a_part_of_it_holds_and_says_so_for_each_fault():
    lines: list[str] = []
    outcome = selftest.selftest(["seeds.seed-is-reported", "seeds.unseeded-varies"], cross=False, say=lines.append)
    assert outcome.good
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["caught", "seeds.unseeded-varies:"],
        ["caught", "seeds.seed-is-reported:"],
    ]
    assert lines[-1].startswith("good: 2 of 2 faults as declared, 2 checks")


@pytest.mark.parametrize(("second", "good"), [({}, True), ({"stats.add-up": "seen"}, False)], ids=["timing", "lasting"])
def test_what_was_not_as_declared_is_held_again_alone_and_both_are_told(monkeypatch, second, good):
    real, outcomes, lines = selftest.hold, iter([{"errors.serves-on": "slow"}, second]), []
    monkeypatch.setattr(
        selftest, "hold", lambda fault, cross: replace_struct(real(fault, cross=False), undeclared=next(outcomes))
    )
    outcome = selftest.selftest(["seeds.seed-is-reported"], say=lines.append)
    assert outcome.good is good
    assert outcome.faults[0].first == ["also fails, undeclared: errors.serves-on: slow"]
    assert "held again" in lines[0]
    assert ("stats.add-up" in lines[1]) is not good


def test_a_fault_that_was_not_caught_is_not_held_again(monkeypatch):
    real, calls = selftest.hold, []
    monkeypatch.setattr(
        selftest,
        "hold",
        lambda fault, cross: calls.append(fault) or replace_struct(real(fault, cross=False), caught=False),
    )
    outcome = selftest.selftest(["seeds.seed-is-reported"])
    assert (outcome.good, len(calls)) == (False, 1)
