import numpy as np
import pytest
from anyengine import SamplingParams, Structured
from anyengine.backend import TokenRequest
from anyengine.errors import InvalidRequest, UnsupportedParameter
from anyengine_trtllm import request as requests
from anyengine_trtllm.library import load_library
from anyengine_trtllm.options import Options

CPP, TORCH = Options(), Options(sampler="TorchSampler")


def _request(**fields):
    return TokenRequest(
        **{"id": "r", "prompt_token_ids": [1, 2, 3], "sampling": SamplingParams(), "max_tokens": 8, **fields}
    )


@pytest.fixture
def params(simulated):
    """``params(request fields)``: TensorRT-LLM's ``SamplingParams``, simulated."""

    def make(options=CPP, **fields):
        return requests.sampling_params(load_library(tensorrt=False), _request(**fields), options, vocab_size=8)

    return make


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"top_p": 0.9}, {"top_p": 0.9}),
        ({"top_k": 7}, {"top_k": 7}),
        ({"min_p": 0.1}, {"min_p": 0.1}),
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"seed": 5}, {"seed": 5}),
        # Subtracted after the division, so divided as well.
        ({"presence_penalty": 0.2, "temperature": 0.5}, {"presence_penalty": 0.4}),
        ({"frequency_penalty": 0.3, "temperature": 2}, {"frequency_penalty": 0.15}),
        ({"presence_penalty": 0.2, "temperature": 0}, {"presence_penalty": 0.2, "temperature": 1.0, "top_k": 1}),
    ],
)
def test_every_sampling_field_arrives(params, fields, expected):
    found = params(sampling=SamplingParams(**fields))
    assert {name: getattr(found, name) for name in expected} == pytest.approx(expected)


def test_plain_sampling_is_not_greedy_and_greedy_is(params):
    assert not params().greedy
    assert params(sampling=SamplingParams(temperature=0)).greedy


def test_penalties_count_the_completion_only(params):
    assert params().prompt_ignore_length == 3


def test_what_the_sampler_in_pytorch_ignores_is_not_sent_to_it(params):
    found = params(TORCH, sampling=SamplingParams(seed=3))
    assert (found.seed, found.repetition_penalty, found.min_p, found.presence_penalty) == (None, None, None, None)


def test_a_bias_is_a_number_for_each_token(params):
    found = params(sampling=SamplingParams(logit_bias={3: 2.0})).embedding_bias
    assert found.tolist() == [0, 0, 0, 2, 0, 0, 0, 0]


def test_tokens_that_are_not_allowed_have_no_probability_and_are_finite(params):
    bias = np.array(
        params(sampling=SamplingParams(allowed_token_ids=[1, 2], logit_bias={2: 1.0})).embedding_bias.values
    )
    assert np.isfinite(bias).all()
    weights = np.exp(bias - bias.max())
    assert (weights > 0).tolist() == [False, True, True, False, False, False, False, False]
    assert bias[2] == 1


def test_every_terminator_is_a_stop_token_that_is_kept(params):
    found = params(eos_token_ids=frozenset({5, 2}), stop_token_ids=frozenset({7}))
    assert (found.stop_token_ids, found.end_id, found.include_stop_str_in_output) == ([2, 5, 7], -1, True)
    # Another release takes ignore_eos for the stop tokens as well.
    assert found.ignore_eos is False
    assert found.min_tokens == 0


def test_the_one_end_that_is_held_back_is_the_engines_own(params):
    found = params(eos_token_ids=frozenset({5}), min_tokens=3)
    assert (found.end_id, found.stop_token_ids, found.min_tokens) == (5, None, 3)
    # Where nothing can end the text there is nothing to hold back.
    assert params(min_tokens=3).min_tokens == 0


def test_bad_words_are_token_ids(params):
    found = params(sampling=SamplingParams(bad_words=["a", "b"]), bad_word_ids=((1,), (2, 3)))
    assert found.bad_words == [[1], [2, 3]]


def test_logits_are_returned_only_where_they_are_wanted(params):
    assert (params().return_generation_logits, params().return_context_logits) == (False, False)
    assert params(logprobs=0).return_generation_logits
    assert params(prompt_logprobs=0).return_context_logits


@pytest.mark.parametrize(
    ("wanted", "field", "value"),
    [
        ({"regex": "a+"}, "regex", "a+"),
        ({"choice": ["a", "b.c"]}, "regex", "a|b\\.c"),
        ({"grammar": 'start: "a"'}, "grammar", 'start: "a"'),
    ],
)
def test_each_kind_of_constraint(params, wanted, field, value):
    assert getattr(params(structured=Structured(**wanted)).guided_decoding, field) == value


@pytest.mark.parametrize("schema", [True, {"type": "object"}])
def test_white_space_in_json_is_bounded(params, schema):
    assert '"whitespace_flexible": false' in params(structured=Structured(json_schema=schema)).guided_decoding.json


def _refusal(options=CPP, longest=None, **fields):
    with pytest.raises((UnsupportedParameter, InvalidRequest)) as caught:
        requests.check(_request(**fields), options, longest_prompt=longest)
    return type(caught.value), caught.value.field


ONLY = SamplingParams(allowed_token_ids=[5, 6])


@pytest.mark.parametrize(
    ("options", "fields", "expected"),
    [
        (CPP, {"sampling": SamplingParams(temperature=0.001)}, (UnsupportedParameter, "sampling.temperature")),
        (CPP, {"sampling": SamplingParams(top_k=1025)}, (UnsupportedParameter, "sampling.top_k")),
        (
            Options(speculates=True, greedy_only=True),
            {"sampling": SamplingParams(temperature=0.5)},
            (UnsupportedParameter, "sampling.temperature"),
        ),
        (CPP, {"min_tokens": 2, "stop_token_ids": frozenset({1, 2})}, (UnsupportedParameter, "min_tokens")),
        (CPP, {"bad_word_ids": ((2, 3, 4),)}, (UnsupportedParameter, "sampling.bad_words")),
        (CPP, {"sampling": ONLY, "bad_word_ids": ((5,), (6,))}, (InvalidRequest, "sampling.allowed_token_ids")),
        (CPP, {"sampling": ONLY, "bad_word_ids": ((5,), (1, 6))}, (UnsupportedParameter, "sampling.allowed_token_ids")),
        (
            CPP,
            {"sampling": ONLY, "bad_word_ids": ((5,),), "eos_token_ids": frozenset({6}), "min_tokens": 1},
            (InvalidRequest, "sampling.allowed_token_ids"),
        ),
    ],
)
def test_what_would_be_altered_is_refused(options, fields, expected):
    assert _refusal(options, **fields) == expected


def test_a_prompt_that_no_step_holds_is_refused_where_prompts_are_not_cut():
    assert _refusal(longest=2) == (InvalidRequest, "prompt")
    requests.check(_request(), CPP, longest_prompt=3)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.01}, {"temperature": 9}, {"top_k": 1024}])
def test_other_values_are_taken(sampling):
    requests.check(_request(sampling=SamplingParams(**sampling)), CPP, longest_prompt=None)
    requests.check(_request(sampling=SamplingParams(top_k=5000)), TORCH, longest_prompt=None)
