import numpy as np
import pytest
from anyengine import SamplingParams, Structured
from anyengine.backend import TokenRequest
from anyengine.backend.seeds import in_32_bits
from anyengine.errors import InvalidRequest, UnsupportedParameter
from anyengine_lmdeploy import request as requests
from anyengine_lmdeploy.library import load_library

COLD = {"sampling": SamplingParams(temperature=0.001)}
HOT = {"sampling": SamplingParams(temperature=2.5)}
FORMAT = {"type": "structural_tag", "format": {"type": "grammar", "grammar": 'root ::= "a"'}}


def _request(**fields):
    return TokenRequest(
        **{"id": "r", "prompt_token_ids": [1, 2, 3], "sampling": SamplingParams(), "max_tokens": 8, **fields}
    )


@pytest.fixture(params=["turbomind", "pytorch"])
def backend(request):
    return request.param


@pytest.fixture
def config(simulated):
    """``config(backend, request fields)``: LMDeploy's ``GenerationConfig``, simulated."""

    def make(backend, response_format=None, **fields):
        return requests.generation_config(load_library(), _request(**fields), backend, response_format)

    return make


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"top_p": 0.9}, {"top_p": 0.9}),
        ({"top_k": 7}, {"top_k": 7}),
        # 0 is every token, on both; LMDeploy's own default is 50.
        ({}, {"top_k": 0, "temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "do_sample": True}),
        ({"min_p": 0.1}, {"min_p": 0.1}),
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"seed": 5}, {"random_seed": 5}),
        # Penalties hold for greedy requests as well, which AsyncEngine.generate would reset.
        (
            {"temperature": 0, "repetition_penalty": 1.1, "top_k": 9, "top_p": 0.5, "min_p": 0.2},
            {"top_k": 1, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0, "repetition_penalty": 1.1},
        ),
    ],
)
def test_every_sampling_field_arrives(config, backend, fields, expected):
    found = config(backend, sampling=SamplingParams(**fields))
    assert {name: getattr(found, name) for name in expected} == expected


def test_a_large_seed_is_sent_whole_or_mixed_down(config):
    seed = 2**40 + 5
    assert config("turbomind", sampling=SamplingParams(seed=seed)).random_seed == seed
    mixed = config("pytorch", sampling=SamplingParams(seed=seed)).random_seed
    assert mixed == in_32_bits(seed)
    assert mixed & 0xFFFFFFFF == mixed != 5


def test_every_terminator_is_a_stop_token_and_none_is_ignored(config, backend):
    found = config(backend, eos_token_ids=frozenset({5, 2}), stop_token_ids=frozenset({7}))
    assert (found.stop_token_ids, found.ignore_eos) == ([2, 5, 7], False)
    assert (found.stop_words, found.bad_words, found.bad_token_ids) == (None, None, None)
    assert config(backend).stop_token_ids is None


def test_the_length_is_always_said(config, backend):
    assert config(backend, max_tokens=3).max_new_tokens == 3


def test_terminators_are_held_back_nowhere(config, backend):
    assert config(backend, eos_token_ids=frozenset({5}), min_tokens=3).min_new_tokens is None


def test_turbomind_gives_logits_and_pytorch_log_probabilities(config):
    assert [config("turbomind", logprobs=count).output_logits for count in (None, 0, 4)] == [
        None,
        "generation",
        "generation",
    ]
    assert config("turbomind", prompt_logprobs=0).output_logits == "all"
    assert config("turbomind", logprobs=4).logprobs is None
    # 0 is none at all there.
    assert [config("pytorch", logprobs=count).logprobs for count in (None, 0, 4)] == [None, 1, 4]
    assert config("pytorch", logprobs=4, prompt_logprobs=4).output_logits is None


def test_a_score_generates_nothing(simulated):
    found = requests.scoring_config(load_library(), 3)
    assert (found.max_new_tokens, found.logprobs, found.logprob_start_len) == (0, 3, 0)


def test_a_constraint_travels_as_it_is(config, backend):
    assert config(backend, FORMAT).response_format == FORMAT


# -- hooks on the logits ----------------------------------------------------------------------------------------------


def _hooked(config, sampling, width=6):
    from lmdeploy.simulation.tensor import tensor

    (hook,) = config("pytorch", sampling=SamplingParams(**sampling)).logits_processors
    row = tensor(np.zeros(width, np.float32))
    return [hook(None, row).tolist() for _ in range(2)]


def test_a_bias_is_added_once_a_step(config):
    assert _hooked(config, {"logit_bias": {3: 2.0, 5: -1.5}}) == [[0, 0, 0, 2.0, 0, -1.5]] * 2


def test_what_is_not_allowed_is_ruled_out_after_the_bias(config):
    lowest = -float("inf")
    sampling = {"allowed_token_ids": [1, 3], "logit_bias": {3: 2.0, 5: 9.0}}
    assert _hooked(config, sampling) == [[lowest, 0, lowest, 2.0, lowest, lowest]] * 2


def test_without_need_there_is_no_hook(config, backend):
    assert config(backend).logits_processors is None


def test_turbomind_has_no_hooks(config):
    assert config("turbomind", sampling=SamplingParams(logit_bias={3: 2.0})).logits_processors is None


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "backend", "greedy_only", "error", "field"),
    [
        (COLD, "pytorch", False, UnsupportedParameter, "sampling.temperature"),
        (HOT, "turbomind", False, UnsupportedParameter, "sampling.temperature"),
        ({}, "pytorch", True, UnsupportedParameter, "sampling.temperature"),
        ({"logprobs": 0, "max_tokens": 10**6}, "turbomind", False, UnsupportedParameter, "logprobs"),
        ({"prompt_logprobs": 0, "max_tokens": 10**6}, "turbomind", False, UnsupportedParameter, "prompt_logprobs"),
        (
            {"sampling": SamplingParams(allowed_token_ids=[1]), "structured": Structured(regex="a")},
            "pytorch",
            False,
            InvalidRequest,
            "sampling.allowed_token_ids",
        ),
    ],
)
def test_what_lmdeploy_would_alter_is_refused_by_name(fields, backend, greedy_only, error, field):
    with pytest.raises(error) as caught:
        requests.check(_request(**fields), backend, vocab_size=4096, greedy_only=greedy_only)
    assert caught.value.field == field
    assert field in caught.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"sampling": SamplingParams(temperature=0)},
        {"sampling": SamplingParams(temperature=0.01)},
        {"sampling": SamplingParams(temperature=2)},
        {"logprobs": 4, "prompt_logprobs": 4},
    ],
)
def test_what_it_takes_is_not(backend, fields):
    requests.check(_request(**fields), backend, vocab_size=4096, greedy_only=False)


def test_logits_of_a_long_text_are_no_matter_on_pytorch():
    requests.check(_request(logprobs=0, max_tokens=10**6), "pytorch", vocab_size=4096, greedy_only=False)
