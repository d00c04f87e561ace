"""Batch-invariant kernels of vLLM before 0.27 are so in small steps only."""

import pytest
from anyengine import EngineConfig
from anyengine.errors import UnsupportedParameter
from anyengine.hub import ModelFiles
from anyengine_vllm import versions
from anyengine_vllm.config import engine_arguments

WIDE = {"vocab_size": 4096, "hidden_size": 576, "max_position_embeddings": 8192}


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """``arguments(version, config fields)``: what that vLLM is started with on a GPU."""

    def make(version, model=WIDE, /, draft=None, **fields):
        monkeypatch.setattr(versions, "installed", lambda: version)
        place = {"path": tmp_path, "tokenizer_path": tmp_path, "eos_token_ids": frozenset({2})}
        proposer = ModelFiles(name="d", config=draft or model, **place)
        files = ModelFiles(name="m", config=model, draft=proposer if "speculative" in fields else None, **place)
        return engine_arguments(EngineConfig(**fields), files, "cuda").values

    return make


@pytest.mark.parametrize("promise", ["run", "batch-invariant"])
@pytest.mark.parametrize("version", ["0.25.1", "0.26.0"])
def test_steps_stay_below_the_size_at_which_sums_change(arguments, version, promise):
    values = arguments(version, determinism=promise)
    # And a graph's size is none beyond: the ones that vLLM captures are multiples of 8 up to 256.
    assert (values["max_num_batched_tokens"], values["max_num_seqs"]) == (248, 248)


def test_smaller_sizes_that_were_asked_for_stay(arguments):
    scheduling = {"max_num_batched_tokens": 64, "max_num_seqs": 16}
    values = arguments("0.25.1", determinism="run", scheduling=scheduling)
    assert (values["max_num_batched_tokens"], values["max_num_seqs"]) == (64, 16)
    values = arguments("0.25.1", determinism="run", scheduling={"max_num_batched_tokens": 64})
    assert values["max_num_seqs"] == 64  # vLLM refuses more sequences than a step has tokens
    copies = {"scheduling": {"max_num_seqs": 400}, "parallel": {"data": 2}}
    assert arguments("0.25.1", determinism="run", **copies)["max_num_seqs"] == 200


def test_a_draft_model_leaves_tokens_for_the_model_itself(arguments):
    speculative = {"method": "draft_model", "model": "d", "num_speculative_tokens": 4}
    values = arguments("0.25.1", determinism="run", speculative=speculative)
    # vLLM (`_set_max_num_scheduled_tokens`) takes one off for each sequence, and refuses where none is left.
    assert values["max_num_batched_tokens"] - values["max_num_seqs"] == 124
    speculative = {"method": "ngram", "num_speculative_tokens": 4}
    assert arguments("0.25.1", determinism="run", speculative=speculative)["max_num_seqs"] == 248


def test_the_draft_may_be_the_wide_one(arguments):
    narrow, speculative = WIDE | {"hidden_size": 256}, {"method": "draft_model", "model": "d"}
    values = arguments("0.25.1", narrow, draft=WIDE, determinism="run", speculative=speculative)
    assert values["max_num_batched_tokens"] == 248


@pytest.mark.parametrize(
    ("version", "promise", "model"),
    [
        ("0.25.1", "none", WIDE),
        ("0.27.0", "batch-invariant", WIDE),
        ("0.33.0", "run", WIDE),
        # A row of 256 has 256 threads either way.
        ("0.25.1", "run", WIDE | {"hidden_size": 256}),
        ("0.25.1", "run", {"text_config": WIDE | {"hidden_size": 256}}),
    ],
)
def test_elsewhere_sizes_are_vllms(arguments, version, promise, model):
    values = arguments(version, model, determinism=promise)
    assert not {"max_num_batched_tokens", "max_num_seqs"} & values.keys()


def test_the_width_is_that_of_the_text_part(arguments):
    model = {"hidden_size": 64, "text_config": WIDE}
    assert arguments("0.25.1", model, determinism="run")["max_num_batched_tokens"] == 248


def test_prompts_that_fit_into_a_step_need_no_chunks(arguments):
    values = arguments("0.25.1", determinism="run", max_model_len=248, scheduling={"chunked_prefill": False})
    assert (values["max_num_batched_tokens"], values["enable_chunked_prefill"]) == (248, False)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"scheduling": {"max_num_batched_tokens": 249}}, "scheduling.max_num_batched_tokens"),
        ({"scheduling": {"max_num_seqs": 249}}, "scheduling.max_num_seqs"),
        ({"scheduling": {"max_num_seqs": 498}, "parallel": {"data": 2}}, "scheduling.max_num_seqs"),
        (
            {"scheduling": {"max_num_seqs": 248}, "speculative": {"method": "draft_model", "model": "d"}},
            "scheduling.max_num_seqs",
        ),
        (
            {"scheduling": {"max_num_batched_tokens": 1}, "speculative": {"method": "draft_model", "model": "d"}},
            "scheduling.max_num_seqs",
        ),
        ({"scheduling": {"chunked_prefill": False}, "max_model_len": 249}, "scheduling.chunked_prefill"),
        ({"scheduling": {"chunked_prefill": False}}, "scheduling.chunked_prefill"),
        ({"task": "embed"}, "determinism"),
    ],
)
def test_what_needs_larger_steps_is_refused_by_name(arguments, fields, named):
    with pytest.raises(UnsupportedParameter, match=r"before 0\.27 .* at most 248 tokens") as refused:
        arguments("0.25.1", determinism="batch-invariant", **fields)
    assert refused.value.field == named
