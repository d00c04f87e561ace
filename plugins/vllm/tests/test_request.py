from types import SimpleNamespace

import pytest
from anyengine import SamplingParams, Structured
from anyengine.backend import TokenRequest
from anyengine.errors import InvalidRequest, UnsupportedParameter
from anyengine_vllm import request as requests


@pytest.fixture(scope="module")
def library():
    """vLLM's classes as what they are given."""
    return SimpleNamespace(sampling_params=dict, structured=dict, delta="delta", final_only="final")


def _request(**fields):
    return TokenRequest(**{
        "id": "r",
        "prompt_token_ids": [1, 2],
        "sampling": SamplingParams(),
        "max_tokens": 8,
        **fields,
    })  # fmt: skip


SAMPLING = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 7,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.2,
    "frequency_penalty": 0.3,
    "seed": 5,
    "logit_bias": {3: 200.0},
    "allowed_token_ids": [3, 4],
}


def test_every_sampling_field_is_passed_on_as_it_is(library):
    given = requests.sampling_params(library, _request(sampling=SamplingParams(**SAMPLING)), streaming=True)
    assert {name: given[name] for name in SAMPLING} == SAMPLING
    assert set(SAMPLING) | {"bad_words"} == set(SamplingParams.model_fields)


def test_every_parameter_exists_in_every_version(library, contracts):
    given = requests.sampling_params(library, _request(structured=Structured(regex="a")), streaming=True)
    for version, facts in contracts.items():
        assert set(given) - set(facts["fields"]["SamplingParams"]) == set(), version
        assert {"update_from_generation_config", "update_from_tokenizer", "verify"} <= set(facts["sampling_methods"])
        assert set(requests.prompt(_request(cache_salt="s"))) <= set(facts["fields"]["TokensInput"])
        assert {"json", "regex", "choice", "grammar"} <= set(facts["fields"]["StructuredOutputsParams"])
        assert facts["lowest_temperature"] == requests.LOWEST_TEMPERATURE


def test_every_terminator_is_a_stop_token_and_vllm_knows_no_other(library):
    given = requests.sampling_params(
        library, _request(eos_token_ids=frozenset({9, 2}), stop_token_ids=frozenset({5})), streaming=True
    )
    assert (given["stop_token_ids"], given["ignore_eos"]) == ([2, 5, 9], True)


def test_streams_get_deltas_and_whole_answers_come_once(library):
    kinds = [requests.sampling_params(library, _request(), streaming=s)["output_kind"] for s in (True, False)]
    assert kinds == ["delta", "final"]


def test_bad_words_are_token_ids(library):
    given = requests.sampling_params(library, _request(bad_word_ids=((1,), (2, 3))), streaming=True)
    assert given["_bad_words_token_ids"] == [[1], [2, 3]]


def test_a_salt_is_part_of_the_prompt():
    assert requests.prompt(_request(cache_salt="s")) == {
        "type": "token",
        "prompt_token_ids": [1, 2],
        "cache_salt": "s",
    }
    assert "cache_salt" not in requests.prompt(_request())


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"choice": ["a", "b"]}, {"choice": ["a", "b"]}),
        ({"grammar": 'start: "a"'}, {"grammar": 'start: "a"'}),
        ({"grammar": 'start: "a"~1..3 b~ 2 ..4'}, {"grammar": 'start: "a"~1 .. 3 b~2 .. 4'}),
        # In a string, a regular expression or a comment it is no range.
        ({"grammar": 'start: "~1..3" /~1..3/ // ~1..3'}, {"grammar": 'start: "~1..3" /~1..3/ // ~1..3'}),
        ({"json_schema": False}, {"json": "false"}),
    ],
)
def test_each_kind_of_constraint(library, wanted, given):
    assert requests.structured(library, Structured(**wanted)) == given


@pytest.mark.parametrize("schema", [True, {"type": "object"}])
def test_white_space_in_json_is_bounded(library, schema):
    assert '"whitespace_flexible": false' in requests.structured(library, Structured(json_schema=schema))["json"]


@pytest.mark.parametrize("temperature", [0.001, 0.0099, 2.01])
def test_a_temperature_that_would_be_altered_is_refused(temperature):
    with pytest.raises(UnsupportedParameter) as caught:
        requests.check(_request(sampling=SamplingParams(temperature=temperature)))
    assert caught.value.field == "sampling.temperature"


@pytest.mark.parametrize("temperature", [0, 0.01, 1, 2])
def test_other_temperatures_are_taken(temperature):
    requests.check(_request(sampling=SamplingParams(temperature=temperature)))


def test_nothing_left_to_draw_is_refused():
    only = SamplingParams(allowed_token_ids=[5, 6])
    requests.check(_request(sampling=only, bad_word_ids=((5,),)))
    with pytest.raises(InvalidRequest):
        requests.check(_request(sampling=only, bad_word_ids=((5,), (6,))))
    with pytest.raises(InvalidRequest):
        requests.check(_request(sampling=only, bad_word_ids=((5,),), stop_token_ids=frozenset({6}), min_tokens=1))
    with pytest.raises(UnsupportedParameter):
        requests.check(_request(sampling=only, bad_word_ids=((5,), (1, 6))))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"sampling": SamplingParams(allowed_token_ids=range(1025))}, "sampling.allowed_token_ids"),
        ({"sampling": SamplingParams(logit_bias=dict.fromkeys(range(1025), 1.0))}, "sampling.logit_bias"),
        ({"stop_token_ids": frozenset(range(129)), "min_tokens": 1}, "stop_token_ids"),
        ({"bad_word_ids": ((1,),) * 129}, "sampling.bad_words"),
        ({"bad_word_ids": ((1,) * 1025,)}, "sampling.bad_words"),
    ],
)
def test_what_does_not_fit_into_a_table_is_refused(fields, named):
    with pytest.raises(UnsupportedParameter) as caught:
        requests.check_tables(_request(**fields))
    assert caught.value.field == named


def test_seeds_that_share_their_lower_bits_stay_apart(library):
    seeds = [7, *(7 + (n << 32) for n in range(1, 200)), 2**63 - 1]
    given = [
        requests.sampling_params(library, _request(sampling=SamplingParams(seed=seed)), streaming=True)["seed"]
        for seed in seeds
    ]
    assert given[0] == 7
    assert len(set(given)) == len(seeds)
    assert max(given) < 2**32
