"""The register of checks, and what is generated from it."""

import importlib.util
import itertools
from pathlib import Path

import pytest
from anyengine_conformance.broken import all_faults
from anyengine_conformance.check import all_checks, check, family, variant, variants
from anyengine_conformance.needs import parse
from anyengine_conformance.runner import in_order, select

ROOT = Path(__file__).parents[2]


def _tool():
    specification = importlib.util.spec_from_file_location("make_docs", ROOT / "tools" / "make_conformance_docs.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_golden_list_is_current():
    tool = _tool()
    assert tool.GOLDEN.read_text() == tool.golden(), "run python tools/make_conformance_docs.py, and review the diff"


def test_the_page_is_current():
    tool = _tool()
    assert tool.PAGE.read_text() == tool.page(), "run python tools/make_conformance_docs.py"


def test_every_check_has_a_fault_and_every_fault_a_check():
    assert {made.id for made in all_checks()} == {fault.check for fault in all_faults()}


@pytest.mark.parametrize(
    "expression", ["", "sampling", "sampling.top-k", "score.x", "logprobs.5", "nonsense.x", "stats"]
)
def test_what_is_no_capability_expression_is_refused(expression: str):
    with pytest.raises(ValueError, match="no capability expression"):
        parse(expression)


@pytest.mark.parametrize(
    ("identity", "must"),
    [
        ("NoPoint", "It is."),
        ("nofamily.x", "It is."),
        ("streaming.terminal-is-last", "It is."),
        ("streaming.x", "No stop"),
    ],
)
def test_malformed_checks_are_refused(identity: str, must: str):
    all_checks()
    with pytest.raises(ValueError, match=r"id|family|sentence"):
        check(identity, must=must, advice="")(lambda _: None)


def test_names_are_not_given_twice():
    all_checks()
    with pytest.raises(ValueError, match="two titles"):
        family("streaming", "Something else")
    with pytest.raises(ValueError, match="two different variants"):
        variant("small-context", max_model_len=3)


def test_checks_of_a_variant_run_one_after_the_other():
    names = [made.variant for made in in_order(all_checks())]
    changes = sum(first != second for first, second in itertools.pairwise(names))
    assert changes == len(set(names)) - 1
    assert names[0] == "default"
    assert names[-1] == "own"
    assert set(names) <= set(variants())


def test_a_selection_is_by_family_or_check():
    assert {made.family for made in select(["streaming"])} == {"streaming"}
    assert [made.id for made in select(["streaming/terminal-is-last"])] == ["streaming.terminal-is-last"]
