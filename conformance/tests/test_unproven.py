"""A field that is declared, and whose check did not run, is named wherever a report is shown."""

import re
from pathlib import Path

import pytest
from anyengine import Capabilities
from anyengine_conformance.badge import badge
from anyengine_conformance.check import all_checks
from anyengine_conformance.families.knobs_fields import ALSO, COVERED
from anyengine_conformance.html import render
from anyengine_conformance.progress import summary
from anyengine_conformance.report import BadReport, read_report
from anyengine_conformance.results import Outcome, Report, Result
from anyengine_conformance.unproven import reason, unproven
from msgspec.structs import asdict, replace

WHOLE = read_report(Path(__file__).parents[2] / "results" / "h200" / "conformance-reference.json")
NO_ORACLE = "it needs exact scores, and the subject has no oracle ('none')"
CHECKS = {made.id: made for made in all_checks()}


def _report(declared: Capabilities, *outcomes: tuple[str, Outcome, str]) -> Report:
    results = [
        Result(id=id_, family="f", must="It must.", tier="core", variant="default", outcome=outcome, reason=why)
        for id_, outcome, why in outcomes
    ]
    return replace(WHOLE, subject=replace(WHOLE.subject, capabilities=asdict(declared)), results=results)


TEMPERATURE = Capabilities(sampling=frozenset({"temperature"}))
TOKENS = Capabilities(request=frozenset({"stop_token_ids"}))
NO_EOS = Capabilities(request=frozenset({"ignore_eos", "min_tokens"}))
BATCHED = Capabilities(config=frozenset({"scheduling.max_num_batched_tokens", "kv_cache.prefix_caching"}))
FP8 = Capabilities(quantization=frozenset({"fp8"}))
SCORES = Capabilities(score=True)


@pytest.mark.parametrize(
    ("declared", "outcomes", "names"),
    [
        (TEMPERATURE, [("knobs.temperature-below-one-sharpens", "not-run", NO_ORACLE)], ["sampling.temperature"]),
        (TEMPERATURE, [("knobs.temperature-below-one-sharpens", "passed", "")], []),
        (TEMPERATURE, [("knobs.temperature-below-one-sharpens", "failed", "")], []),  # it is told as a failure
        # Another check, for which it is a tool, proves nothing of it, and does not take its proof away.
        (
            TEMPERATURE,
            [("knobs.temperature-below-one-sharpens", "not-run", NO_ORACLE), ("parity.code", "passed", "")],
            ["sampling.temperature"],
        ),
        (
            TEMPERATURE,
            [("knobs.temperature-below-one-sharpens", "passed", ""), ("parity.code", "not-run", "the model lacks it")],
            [],
        ),
        (Capabilities(), [("knobs.temperature-below-one-sharpens", "not-run", NO_ORACLE)], []),
        # The check of its effect needs another field, that is not declared: the others about it speak for it.
        (
            TOKENS,
            [
                ("knobs.stop-token-ids-change-the-end", "unsupported", "not declared: sampling.logit_bias"),
                ("stopping.stop-token-ends-it", "passed", ""),
            ],
            [],
        ),
        (TOKENS, [("knobs.stop-token-ids-change-the-end", "unsupported", "not declared")], ["request.stop_token_ids"]),
        # What only uses a field says nothing of its effect: these pass where the model goes on by itself.
        (
            NO_EOS,
            [
                ("knobs.ignore-eos-changes-the-end", "unsupported", "not declared: sampling.logit_bias"),
                ("stopping.ignore-eos-goes-on", "unsupported", "not declared: sampling.allowed_token_ids"),
                ("stopping.length-is-exact", "passed", ""),
                ("knobs.min-tokens-holds-the-end", "unsupported", "not declared: sampling.logit_bias"),
                ("stopping.min-tokens-holds-strings", "passed", ""),
            ],
            ["request.min_tokens", "request.ignore_eos"],
        ),
        # What is no field.
        (FP8, [("quantisation.load-fp8", "not-run", "its drift cannot be measured")], ["quantization.fp8"]),
        (
            SCORES,
            [
                ("logprobs.score-is-the-models", "not-run", NO_ORACLE),
                ("logprobs.score-agrees-with-generate", "passed", ""),
            ],
            ["score"],
        ),
    ],
)
def test_a_declared_field_is_unproven_where_the_checks_of_it_did_not_run(declared, outcomes, names):
    assert set(CHECKS) >= {id_ for id_, _, _ in outcomes}
    assert unproven(_report(declared, *outcomes)) == names


@pytest.mark.parametrize(
    ("declared", "outcomes", "told"),
    [
        (
            NO_EOS,
            [
                ("knobs.ignore-eos-changes-the-end", "unsupported", "not declared: sampling.logit_bias"),
                ("stopping.ignore-eos-goes-on", "not-run", "the model ends nothing"),
                ("knobs.min-tokens-holds-the-end", "unsupported", "not declared: sampling.logit_bias"),
                ("stopping.min-tokens-holds-tokens", "unsupported", "not declared: request.stop_token_ids"),
            ],
            (
                "`request.min_tokens` (the checks need `sampling.logit_bias` or `request.stop_token_ids`); "
                "`request.ignore_eos` (the checks need `sampling.logit_bias`; the model ends nothing)"
            ),
        ),
        # A variant that needs more than the field that it is for, and a check that needs another beside that.
        (
            BATCHED,
            [
                ("knobs.prefix-caching-off-computes", "unsupported", "not declared: token_prompts"),
                ("knobs.batched-tokens-cut-prompts", "unsupported", "not declared: config.scheduling.chunked_prefill"),
            ],
            (
                "`config.kv_cache.prefix_caching` (the checks need `token_prompts`); "
                "`config.scheduling.max_num_batched_tokens` (the checks need `config.scheduling.max_num_seqs` and "
                "`config.scheduling.chunked_prefill` and `token_prompts` and `request.ignore_eos`)"
            ),
        ),
        # Fields of one cause share it.
        (
            Capabilities(sampling=frozenset({"top_p", "min_p"})),
            [
                ("knobs.top-p-bounds-the-mass", "unsupported", "not declared: token_prompts"),
                ("knobs.min-p-bounds-the-ratio", "unsupported", "not declared: token_prompts"),
            ],
            "`sampling.top_p`, `sampling.min_p` (the checks need `token_prompts`)",
        ),
        # The beginning of the sentence says what an oracle would do.
        (TEMPERATURE, [("knobs.temperature-below-one-sharpens", "not-run", NO_ORACLE)], "`sampling.temperature`"),
    ],
)
def test_beside_what_is_unproven_stands_what_its_checks_need(declared, outcomes, told):
    assert reason(_report(declared, *outcomes), mark="`").endswith(f": {told}")


def test_of_an_engine_that_ran_whole_nothing_is_unproven():
    assert unproven(WHOLE) == []
    assert reason(WHOLE) == ""
    assert "reference 0.1.0: as expected: " in summary(WHOLE)


def test_without_an_oracle_every_field_whose_check_needs_one_is_named():
    needing = {id_ for id_ in CHECKS if id_.startswith(("knobs.temperature", "knobs.top-", "knobs.presence"))}
    needing -= {"knobs.top-k-one-is-greedy"}
    results = [
        replace(result, outcome="not-run", reason=NO_ORACLE) if result.id in needing else result
        for result in WHOLE.results
    ]
    made = replace(WHOLE, results=results)
    names = ["sampling.temperature", "sampling.top_p", "sampling.top_k", "sampling.presence_penalty"]
    assert unproven(made) == names
    told = "the full effect of these declared fields is not shown, whatever else was checked of them"
    assert f"{told}: {', '.join(names)}\n" in summary(made)
    assert all(f"<code>{name}</code>" in render(made) for name in names)
    assert "keeps what was checked</span>" in render(made)
    assert "4 declared fields unproven" in badge(made)


def test_the_page_groups_what_is_as_expected_and_did_not_pass_by_reason():
    wants = [result.id for result in WHOLE.results if result.id.startswith("parity.")]
    results = [
        replace(result, outcome="not-run", reason=NO_ORACLE) if result.id in wants else result
        for result in WHOLE.results
    ]
    page = render(replace(WHOLE, results=results))
    _, _, rest = page.partition("<h2>As expected, but not passed</h2>")
    section, _, _ = rest.partition("<h2>")
    text = re.sub("<[^>]*>", "", section)
    assert f"{len(wants) + 2} not run, for 3 reasons" in text
    assert f"{len(wants)} it needs exact scores" in text
    assert [name for name in wants if name not in text] == []
    # The most frequent reason comes first, and no outcome that passed or is told above is among them.
    assert text.index("it needs exact scores") < text.index("no sampling or request field is declared")
    assert "7 unsupported and refused" in text
    assert not re.search(r"\d passed", text)


def test_a_run_whose_engine_never_loaded_says_nothing_of_fields():
    assert reason(replace(WHOLE, subject=replace(WHOLE.subject, capabilities=None))) == ""


def test_the_check_of_a_fields_effect_needs_that_field():
    """So that it is not run, or refused, for that field; some fields are of the SDK, and every engine has them."""
    fields = {name: CHECKS[told] for name, told in COVERED.items() if told in CHECKS and name.startswith("sampling.")}
    assert [name for name, made in fields.items() if name not in made.needs] == []
    others = {name: [CHECKS[told] for told in told_by] for name, told_by in ALSO.items() if name in fields}
    assert [name for name, made_for in others.items() for made in made_for if name not in made.needs] == []


def test_a_report_of_another_version_is_told_so_and_shows_its_time_as_it_is():
    strange = replace(WHOLE, subject=replace(WHOLE.subject, capabilities={"logprobs": "weird"}))
    with pytest.raises(BadReport, match=r"subject\.capabilities: not as this version of anyengine writes them"):
        unproven(strange)
    assert "at some time" in render(replace(WHOLE, started="at some time"))
