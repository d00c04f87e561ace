"""The mapping against the facts of the contract, field by field.

What was read in the release itself (``A``) fails, what was read in one nearby (``B``) warns.
"""

import copy
import inspect
import json
import os
import warnings
from pathlib import Path

import pytest
from anyengine import EngineConfig, SamplingParams, Structured
from anyengine.backend import TokenRequest
from anyengine.errors import InvalidConfig
from anyengine_trtllm import options
from anyengine_trtllm.capabilities import QUANTIZATION
from anyengine_trtllm.library import CONFIGURATIONS, load_library
from anyengine_trtllm.options import check_arguments, parse_options
from anyengine_trtllm.request import sampling_params
from msgspec.structs import replace


class ContractWarning(UserWarning):
    """A fact of a nearby release does not hold."""


def judge(provenance, lines):
    """Fail for what was read in the release, warn for the rest."""
    if provenance == "A":
        assert lines == []
    elif lines:
        warnings.warn("; ".join(lines), ContractWarning, stacklevel=2)


CLASSES = [
    "CompletionOutput",
    "CudaGraphConfig",
    "DraftTargetDecodingConfig",
    "EagleDecodingConfig",
    "GuidedDecodingParams",
    "KvCacheConfig",
    "LoRARequest",
    "LookaheadDecodingConfig",
    "LoraConfig",
    "MTPDecodingConfig",
    "MedusaDecodingConfig",
    "NGramDecodingConfig",
    "QuantConfig",
    "SamplingParams",
    "SchedulerConfig",
    "TorchLlmArgs",
    "TrtLlmArgs",
]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.filterwarnings("default::UserWarning")
def test_every_field_is_decided_on(facts, decisions, name):
    entry, decided = facts["classes"][name], decisions.DECISIONS[name]
    fields = set(entry["fields"])
    new = [f"{name}.{field}: nobody has decided what becomes of it" for field in sorted(fields - set(decided))]
    gone = [f"{name}.{field}: TensorRT-LLM has no such field" for field in sorted(set(decided) - fields)]
    judge(entry["provenance"], new + gone)


def test_no_class_is_left_out(decisions):
    assert sorted(decisions.DECISIONS) == sorted(CLASSES)


@pytest.mark.filterwarnings("default::UserWarning")
def test_every_attribute_of_a_result_is_decided_on(facts, decisions):
    entry = facts["classes"]["RequestOutput"]
    judge(entry["provenance"], sorted(set(entry["attributes"]) ^ set(decisions.RESULT)))


def test_every_parameter_of_a_request_is_decided_on(facts, decisions):
    assert set(facts["classes"]["BaseLLM"]["methods"]["generate_async"]) == set(decisions.GENERATE)


@pytest.mark.filterwarnings("default::UserWarning")
def test_every_key_of_the_statistics_is_decided_on(facts, decisions):
    assert set(facts["iteration_stats"]) == set(decisions.ITERATION)
    for name, keys in facts["iteration_stats"].items():
        judge("B", sorted(set(keys) ^ set(decisions.ITERATION[name])))


# -- what is passed ---------------------------------------------------------------------------------------------------


class Recording:
    """Takes down the names of every argument that a class is made with."""

    def __init__(self, installed, monkeypatch):
        self.seen = {}
        for tensorrt in (False, True):
            library = load_library(tensorrt=tensorrt)
            wrapped = {name: self._wrap(name, made) for name, made in library.classes.items()}
            monkeypatch.setattr(
                "anyengine_trtllm.library.load_library", lambda *, tensorrt, found=library: found, raising=True
            )
            for name, made in wrapped.items():
                monkeypatch.setitem(library.classes, name, made)

    def _wrap(self, name, made):
        def make(**fields):
            self.seen.setdefault(name, set()).update(fields)
            return made(**fields)

        return make


CONFIGS = [
    {},
    {"execution": "eager"},
    {"execution": "graph"},
    {"kv_cache": {"capacity_tokens": 2048, "block_size": 64, "dtype": "fp8"}},
    {"kv_cache": {"gpu_memory_fraction": 0.5, "prefix_caching": False}},
    {"parallel": {"tensor": 2, "pipeline": 2, "expert": True}},
    {"scheduling": {"max_num_seqs": 4, "max_num_batched_tokens": 256, "chunked_prefill": True}},
    {"speculative": {"method": "ngram"}},
    {"speculative": {"method": "mtp"}},
    {"speculative": {"method": "draft_model", "model": "d"}},
    {"speculative": {"method": "eagle3", "model": "d"}},
    {"native": {"backend": "tensorrt"}, "quantization": "fp8"},
    {"native": {"backend": "tensorrt"}, "speculative": {"method": "eagle", "model": "d"}},
    {"lora": {"adapters": {"a": "x"}}},
]


@pytest.fixture
def whole(model, tmp_path):
    """A checkpoint with a draft model and an adapter."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 8}')
    return replace(model, draft=model, loras={"a": adapter})


def test_what_is_mapped_is_what_is_passed(arguments, decisions, simulated, whole, monkeypatch):
    recording = Recording(simulated, monkeypatch)
    arguments_seen = {False: set(), True: set()}
    for fields in CONFIGS:
        arguments_seen["native" in fields] |= set(arguments(whole, **fields))
    # The backend is not an argument but another class; nothing else that is mapped may be missing.
    expected = {
        False: _mapped(decisions.TORCH_ARGUMENTS) - {"backend"},
        # Not built: its cache and its adapters are mapped alike on both.
        True: _mapped(decisions.TENSORRT_ARGUMENTS)
        - {"backend", "enable_lora", "lora_config", "max_batch_size", "max_num_tokens", "max_seq_len"}
        - {"moe_expert_parallel_size"},
    }
    assert arguments_seen == expected
    for name in ("KvCacheConfig", "LoraConfig", "QuantConfig", "NGramDecodingConfig", "DraftTargetDecodingConfig",
                 "EagleDecodingConfig", "MTPDecodingConfig"):  # fmt: skip
        assert (name, recording.seen[name]) == (name, _mapped(decisions.DECISIONS[name])), name
    assert recording.seen["BuildConfig"] == {"max_seq_len", "max_num_tokens", "max_draft_len"}


def _mapped(decided):
    return {name for name, what in decided.items() if what == "mapped"}


def test_the_fields_of_a_request_that_are_mapped_are_passed(simulated, decisions):
    library, seen = load_library(tensorrt=False), {}

    def make(**fields):
        seen.update(fields)
        return simulated.classes["SamplingParams"](**fields)

    request = TokenRequest(
        id="r",
        prompt_token_ids=[1, 2],
        sampling=SamplingParams(logit_bias={3: 1.0}, bad_words=["x"]),
        bad_word_ids=((5,),),
        max_tokens=4,
        structured=Structured(regex="a"),
    )
    import dataclasses

    params = sampling_params(
        dataclasses.replace(library, sampling_params=make), request, options.Options(), vocab_size=8
    )
    # Set on the object: no constructor takes the second, and without the first it is not read.
    assert (params.bad, params._bad_word_ids) == (["x"], [[5]])
    assert set(seen) | {"bad", "_bad_word_ids"} == _mapped(decisions.DECISIONS["SamplingParams"])


def test_every_argument_that_is_refused_is_refused_by_name(facts, decisions):
    for name in ("TorchLlmArgs", "TrtLlmArgs"):
        known = set(facts["classes"][name]["fields"])
        for field, what in decisions.DECISIONS[name].items():
            if what == "refused":
                with pytest.raises(InvalidConfig) as caught:
                    check_arguments({field: 1}, known)
                assert caught.value.field == f"native.{field}"
            elif what == "native":
                check_arguments({field: 1}, known)


def test_no_argument_that_is_mapped_can_be_given_in_two_ways(facts, decisions):
    own = {"kv_cache_config", "speculative_config", "backend", "sampler_type", "build_config", "model"}
    for name in ("TorchLlmArgs", "TrtLlmArgs"):
        for field in _mapped(decisions.DECISIONS[name]) - own:
            with pytest.raises(InvalidConfig):
                check_arguments({field: 1}, set(facts["classes"][name]["fields"]))


def test_every_field_within_an_object_is_refused_or_taken(facts, decisions):
    for name, what in decisions.DECISIONS["KvCacheConfig"].items():
        config = EngineConfig(native={"kv_cache_config": {name: 1}})
        if what == "native":
            assert parse_options(config).kv_cache == {name: 1}
        else:
            with pytest.raises(InvalidConfig, match=name):
                parse_options(config)
    known = set(facts["classes"]["BuildConfig"]["fields"])
    assert set(options._OWNED_WITHIN["build_config"]) <= known


def test_every_object_and_every_value_that_is_named_exists(facts):
    for name, module in CONFIGURATIONS.items():
        assert facts["classes"][name]["module"] == module
    assert set(options.NESTED.values()) | set(options.SPECULATION.values()) <= set(CONFIGURATIONS)
    assert set(options.OWNED) <= set(facts["classes"]["TorchLlmArgs"]["fields"]) | set(
        facts["classes"]["TrtLlmArgs"]["fields"]
    )
    assert set(QUANTIZATION.values()) <= set(facts["enums"]["QuantAlgo"])
    assert {"TRTLLMSampler", "TorchSampler"} <= set(facts["enums"]["SamplerType"])


def test_every_method_that_is_called_exists(facts):
    llm, result = facts["classes"]["LLM"]["methods"], facts["classes"]["RequestOutput"]["methods"]
    for name in ("generate_async", "get_stats_async", "get_kv_cache_events_async", "shutdown"):
        assert name in llm
    assert "timeout" in llm["get_stats_async"]
    assert "save" in facts["classes"]["_TrtLLM"]["methods"]
    assert {"abort", "aresult", "__aiter__", "__anext__"} <= set(result)
    assert facts["classes"]["RequestError"]["bases"] == ["RuntimeError"]


def test_the_reasons_are_those_that_are_known(facts):
    from anyengine_trtllm.outputs import _REASONS

    kind = facts["classes"]["CompletionOutput"]["fields"]["finish_reason"]["type"]
    for reason in (*_REASONS, "timeout"):
        assert f"'{reason}'" in kind


# -- the simulation ---------------------------------------------------------------------------------------------------


def test_the_simulation_has_no_method_and_no_parameter_of_its_own(simulation, facts):
    from_llm = facts["classes"]["LLM"]["methods"] | facts["classes"]["_TrtLLM"]["methods"]
    for name, method in inspect.getmembers(simulation.SimulatedLLM, inspect.isfunction):
        # The health check is private in TensorRT-LLM as well, and not among the facts.
        if name.startswith("_"):
            continue
        assert set(inspect.signature(method).parameters) - {"self"} <= set(from_llm[name]), name


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("SamplingParams", {"temperature": "hot"}),
        ("SamplingParams", {"top_k": 2.5}),
        ("SamplingParams", {"temprature": 1.0}),
        ("KvCacheConfig", {"tokens_per_block": "32"}),
        ("KvCacheConfig", {"colour": 1}),
        ("TorchLlmArgs", {"model": "m", "max_seq_len": "long"}),
        ("TorchLlmArgs", {"model": "m", "guided_decoding_backend": "outlines"}),
    ],
)
def test_the_simulation_refuses_wrong_names_and_types(simulated, name, fields):
    with pytest.raises((TypeError, ValueError)):
        simulated.classes[name](**fields)


@pytest.mark.parametrize(
    "fields", [{"top_k": -1}, {"top_p": 1.5}, {"temperature": -1.0}, {"n": 2}, {"n": 2, "best_of": 1}]
)
def test_the_simulation_refuses_wrong_values(simulated, fields):
    with pytest.raises(ValueError, match=r"require|greedy|best_of"):
        simulated.classes["SamplingParams"](**fields)


def test_what_is_for_built_engines_only_is_refused_by_the_other_backend(simulated, storyteller):
    with pytest.raises(ValueError, match="specific to TensorRT backend"):
        simulated.module("tensorrt_llm").LLM(str(storyteller), build_config=None)


# -- a changed contract -----------------------------------------------------------------------------------------------


def test_a_changed_contract_shows_as_a_readable_difference(facts, contract_tool):
    facts = facts | {"enums": {"SamplerType": ["TRTLLMSampler", "auto"]}}
    changed = copy.deepcopy(facts)
    changed["classes"]["SamplingParams"]["fields"]["top_k"]["type"] = "int"
    changed["classes"]["KvCacheConfig"]["fields"]["tokens_per_block"]["default"] = 64
    del changed["classes"]["LoraConfig"]["fields"]["max_loras"]
    changed["classes"]["CudaGraphConfig"]["fields"]["colour"] = {"type": "str", "default": "red"}
    changed["enums"]["SamplerType"].append("Other")
    assert contract_tool.difference(facts, changed) == [
        ("A", 'CudaGraphConfig.colour: absent → {"default": "red", "type": "str"}'),
        ("A", "KvCacheConfig.tokens_per_block.default: 32 → 64"),
        ("B", 'LoraConfig.max_loras: {"default": null, "type": "Optional[int]"} → absent'),
        ("A", 'SamplingParams.top_k.type: "Optional[int]" → "int"'),
        ("B", 'enums.SamplerType: ["TRTLLMSampler", "auto"] → ["TRTLLMSampler", "auto", "Other"]'),
    ]
    assert contract_tool.difference(facts, facts) == []


@pytest.mark.filterwarnings("default::UserWarning")
def test_the_facts_are_those_of_the_contract_file(facts, contract_tool):
    """Where the file that they were made from is: its folder, or the variable ANYENGINE_CONTRACTS."""
    folder = Path(os.environ.get("ANYENGINE_CONTRACTS", Path(__file__).parents[4] / "shared" / "contracts"))
    file = folder / f"tensorrt_llm-{facts['version']}.json"
    if not file.is_file():
        pytest.skip("the contract file that the facts were made from is not here; set ANYENGINE_CONTRACTS")
    lines = contract_tool.difference(facts, contract_tool.make(json.loads(file.read_bytes())))
    for provenance in "AB":
        judge(provenance, [line for letter, line in lines if letter == provenance])
