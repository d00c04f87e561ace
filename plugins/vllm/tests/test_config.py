import pytest
from anyengine import EngineConfig
from anyengine.backend.dtypes import own_dtype
from anyengine.errors import InvalidConfig, UnsupportedParameter
from anyengine.hub import ModelFiles
from anyengine_vllm.checks import OWNED, check_native
from anyengine_vllm.config import engine_arguments
from msgspec.structs import replace

VOCABULARY = {"vocab_size": 4096, "max_position_embeddings": 1024}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_WORKER_MULTIPROC_METHOD", "VLLM_NO_USAGE_STATS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def model(tmp_path):
    return ModelFiles(
        name="m", path=tmp_path / "m", tokenizer_path=tmp_path / "t", config=VOCABULARY, eos_token_ids=frozenset({2})
    )


@pytest.fixture
def arguments(model):
    """``arguments(device, config fields)``: what vLLM is started with."""

    def make(computes_on="cuda", /, **fields):
        return engine_arguments(EngineConfig(**fields), model, computes_on)

    return make


#: Fields of a configuration → the argument that carries each, with its value.
MAPPED = [
    ({"dtype": "bfloat16"}, "dtype", "bfloat16"),
    ({"max_model_len": 100}, "max_model_len", 100),
    ({"trust_remote_code": True}, "trust_remote_code", True),
    ({"quantization": "fp8"}, "quantization", "fp8"),
    ({"kv_cache": {"dtype": "fp8"}}, "kv_cache_dtype", "fp8"),
    ({"kv_cache": {"block_size": 32}}, "block_size", 32),
    ({"kv_cache": {"prefix_caching": False}}, "enable_prefix_caching", False),
    ({"kv_cache": {"gpu_memory_fraction": 0.5}}, "gpu_memory_utilization", 0.5),
    ({"kv_cache": {"capacity_tokens": 2048}}, "num_gpu_blocks_override", 129),
    ({"kv_cache": {"capacity_tokens": 2048, "block_size": 32}}, "num_gpu_blocks_override", 65),
    ({"kv_cache": {"capacity_tokens": 2048}, "parallel": {"data": 2}}, "num_gpu_blocks_override", 65),
    ({"kv_cache": {"capacity_tokens": 500}}, "max_model_len", 500),
    # So that a device that others use too is not asked for nine tenths of it.
    ({"kv_cache": {"capacity_tokens": 2048}}, "gpu_memory_utilization", 0.001),
    ({"parallel": {"tensor": 2}}, "tensor_parallel_size", 2),
    ({"parallel": {"pipeline": 2}}, "pipeline_parallel_size", 2),
    ({"parallel": {"data": 2}}, "data_parallel_size", 2),
    ({"parallel": {"expert": True}}, "enable_expert_parallel", True),
    ({"scheduling": {"max_num_seqs": 7}}, "max_num_seqs", 7),
    # vLLM counts sequences of each copy, and tokens of a step, which is a copy's.
    ({"scheduling": {"max_num_seqs": 8}, "parallel": {"data": 2}}, "max_num_seqs", 4),
    ({"scheduling": {"max_num_batched_tokens": 700}, "parallel": {"data": 2}}, "max_num_batched_tokens", 700),
    ({"scheduling": {"max_num_batched_tokens": 700}}, "max_num_batched_tokens", 700),
    ({"scheduling": {"chunked_prefill": False}}, "enable_chunked_prefill", False),
    ({"execution": "eager"}, "enforce_eager", True),
    ({"execution": "graph"}, "enforce_eager", False),
    ({"seed": 5}, "seed", 5),
    ({"determinism": "run"}, "seed", 0),
    ({"task": "embed"}, "convert", "embed"),
    ({"task": "embed"}, "runner", "pooling"),
    ({"native": {"swap_space": 1}}, "swap_space", 1),
    ({}, "generation_config", "vllm"),
    ({}, "scheduling_policy", "priority"),
    ({}, "structured_outputs_config", {"backend": "guidance", "enable_in_reasoning": True}),
    ({}, "enable_sleep_mode", True),
]


@pytest.mark.parametrize(("fields", "name", "value"), MAPPED)
def test_a_field_is_carried_by_its_argument(arguments, fields, name, value):
    assert arguments(**fields).values[name] == value


def test_every_argument_exists_in_every_version(arguments, contracts, tmp_path):
    names = set(OWNED)
    for fields, _, _ in MAPPED:
        names |= set(arguments(**{**fields, "native": {}}).values)
    names |= set(arguments(lora={}).values)
    newer = {"0.25.1": {"watermark_config"}}
    for version, facts in contracts.items():
        assert names - set(facts["fields"]["AsyncEngineArgs"]) == newer.get(version, set()), version
        assert {"backend", "enable_in_reasoning"} <= set(facts["fields"]["StructuredOutputsConfig"])


def test_values_that_are_named_exist_in_every_version(contracts):
    from anyengine_vllm import versions
    from anyengine_vllm.config import _RANKS

    for version, facts in contracts.items():
        values = facts["values"]
        assert versions.kv_cache_dtypes() <= set(values["cache_dtypes"])
        assert versions.quantization(version) <= set(values["quantization"]) | {"awq", "gptq"}
        assert {"ngram", "draft_model", "eagle", "eagle3", "mtp"} <= set(values["speculative_methods"])
        assert list(_RANKS) == values["lora_ranks"]
        assert {"float32", "bfloat16", "float16", "auto"} <= set(values["dtypes"])
        assert ({"generate", "pooling"} <= set(values["runners"]), "embed" in values["converts"]) == (True, True)
        assert {"VLLM_BATCH_INVARIANT", "VLLM_LOGGING_CONFIG_PATH", "VLLM_NO_USAGE_STATS"} <= set(facts["environment"])


def test_what_is_compared_with_what_vllm_made_of_it_exists_in_every_version(contracts):
    for facts in contracts.values():
        cache, scheduler = (set(facts["fields"][name]) for name in ("CacheConfig", "SchedulerConfig"))
        assert {"block_size", "enable_prefix_caching", "kv_cache_size_tokens", "num_gpu_blocks"} <= cache
        assert {"enable_chunked_prefill", "max_num_batched_tokens", "max_num_seqs"} <= scheduler


def test_what_the_engine_decides_is_left_out(arguments):
    values = arguments().values
    for name in ("max_model_len", "gpu_memory_utilization", "enforce_eager", "enable_prefix_caching", "quantization"):
        assert name not in values


def test_on_a_cpu_prompts_are_computed_whole_unless_steps_are_asked_for(arguments):
    assert arguments("cpu").values["enable_chunked_prefill"] is False
    for scheduling in ({"max_num_batched_tokens": 64}, {"chunked_prefill": True}):
        assert arguments("cpu", scheduling=scheduling).values.get("enable_chunked_prefill") in {None, True}
    assert "enable_chunked_prefill" not in arguments("cuda").values


def test_without_a_seed_each_start_has_another(arguments):
    assert arguments().values["seed"] != arguments().values["seed"]


def test_a_promise_of_determinism_is_batch_invariance(arguments):
    for promise in ("run", "batch-invariant"):
        assert arguments(determinism=promise).environment["VLLM_BATCH_INVARIANT"] == "1"
    assert "VLLM_BATCH_INVARIANT" not in arguments().environment


@pytest.mark.parametrize(
    ("device", "fields", "error", "named"),
    [
        ("cpu", {"device": "cuda"}, UnsupportedParameter, "device"),
        ("cuda", {"device": "cpu"}, UnsupportedParameter, "device"),
        ("cpu", {"execution": "graph"}, UnsupportedParameter, "execution"),
        ("cpu", {"determinism": "run"}, UnsupportedParameter, "determinism"),
        ("cpu", {"quantization": "fp8"}, UnsupportedParameter, "quantization"),
        ("cpu", {"kv_cache": {"dtype": "fp8"}}, UnsupportedParameter, "kv_cache.dtype"),
        ("cpu", {"devices": [0]}, UnsupportedParameter, "devices"),
        ("cuda", {"devices": [0], "parallel": {"tensor": 2}}, InvalidConfig, "devices"),
        ("cuda", {"kv_cache": {"dtype": "fp3"}}, UnsupportedParameter, "kv_cache.dtype"),
        (
            "cuda",
            {"scheduling": {"max_num_seqs": 7}, "parallel": {"data": 2}},
            UnsupportedParameter,
            "scheduling.max_num_seqs",
        ),
        ("cuda", {"seed": 2**40}, UnsupportedParameter, "seed"),
        ("cuda", {"lora": {"max_rank": 1000}}, UnsupportedParameter, "lora.max_rank"),
        (
            "cuda",
            {"kv_cache": {"capacity_tokens": 1000, "gpu_memory_fraction": 0.5}},
            InvalidConfig,
            "kv_cache.capacity_tokens",
        ),
        (
            "cuda",
            {"kv_cache": {"capacity_tokens": 1000}, "max_model_len": 1001},
            InvalidConfig,
            "kv_cache.capacity_tokens",
        ),
        (
            "cuda",
            {"kv_cache": {"capacity_tokens": 1000}, "native": {"kv_cache_memory_bytes": 5}},
            InvalidConfig,
            "native.kv_cache_memory_bytes",
        ),
        ("cuda", {"task": "embed", "speculative": {"method": "ngram"}}, UnsupportedParameter, "speculative"),
        ("cuda", {"task": "embed", "lora": {}}, UnsupportedParameter, "lora"),
        ("cuda", {"speculative": {"method": "eagle"}}, InvalidConfig, "speculative.model"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(arguments, device, fields, error, named):
    with pytest.raises(error) as caught:
        arguments(device, **fields)
    assert caught.value.field == named
    assert caught.value.message.startswith(named)


def test_the_variable_that_would_win_over_a_share_of_memory_is_refused(arguments, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    with pytest.raises(InvalidConfig) as caught:
        arguments("cpu", kv_cache={"gpu_memory_fraction": 0.5})
    assert caught.value.field == "kv_cache.gpu_memory_fraction"


def test_four_bit_weights_on_a_cpu_are_not_computed_in_float32(model):
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64}
    groups = {"group_0": {"weights": weights}}
    stated = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    quantised = replace(model, config={**VOCABULARY, "quantization_config": stated})
    with pytest.raises(UnsupportedParameter) as caught:
        engine_arguments(EngineConfig(dtype="float32"), quantised, "cpu")
    assert (caught.value.field, caught.value.supported) == ("dtype", ["auto", "bfloat16"])
    for device, dtype in (("cpu", "bfloat16"), ("cuda", "float32")):
        assert engine_arguments(EngineConfig(dtype=dtype), quantised, device).values["dtype"] == dtype
    assert engine_arguments(EngineConfig(dtype="float32"), model, "cpu").values["dtype"] == "float32"


def test_a_proposer_in_whose_place_vllm_would_load_another_model_is_refused(model, tmp_path):
    proposer = replace(model, config=VOCABULARY | {"speculators_config": {"verifier": {"name_or_path": "other"}}})
    with pytest.raises(UnsupportedParameter, match=r"speculative\.model") as caught:
        engine_arguments(EngineConfig(), proposer, "cuda")
    assert caught.value.field == "model"
    config = EngineConfig(speculative={"method": "eagle3", "model": "d"})
    assert engine_arguments(config, replace(model, draft=proposer), "cuda").values["speculative_config"]


@pytest.mark.parametrize("place", ["text_config", "llm_config"])
def test_the_context_of_a_nested_text_model_is_held_against_the_cache(model, place):
    nested = replace(model, config={place: VOCABULARY})
    config = EngineConfig(kv_cache={"capacity_tokens": 500})
    assert engine_arguments(config, nested, "cuda").values["max_model_len"] == 500


@pytest.mark.parametrize(
    ("own", "task"),
    [({"dtype": "float32"}, "generate"), ({"torch_dtype": "float32"}, "embed"), ({"dtype": "bfloat16"}, "embed"),
     ({"text_config": {"dtype": "float16"}}, "generate")],
)  # fmt: skip
def test_the_checkpoints_own_type_is_asked_for(model, own, task):
    stated = replace(model, config=VOCABULARY | own)
    values = engine_arguments(EngineConfig(task=task), stated, "cuda").values
    assert values["dtype"] == own_dtype(own)
    assert engine_arguments(EngineConfig(dtype="float16"), stated, "cuda").values["dtype"] == "float16"


def test_where_a_checkpoint_names_no_type_vllm_reads_it_off_the_weights(arguments):
    assert arguments().values["dtype"] == "auto"


def test_a_checkpoint_in_a_type_that_vllm_does_not_compute_in_is_refused(model):
    stated = replace(model, config=VOCABULARY | {"dtype": "float64"})
    with pytest.raises(UnsupportedParameter, match="float64") as caught:
        engine_arguments(EngineConfig(), stated, "cuda")
    assert (caught.value.field, caught.value.supported) == ("dtype", ["bfloat16", "float16", "float32"])
    assert engine_arguments(EngineConfig(dtype="float32"), stated, "cuda").values["dtype"] == "float32"


def test_a_four_bit_checkpoint_in_float32_says_which_type_to_give_on_a_cpu(model):
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64}
    groups = {"group_0": {"weights": weights}}
    stated = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    quantised = replace(model, config={**VOCABULARY, "quantization_config": stated, "dtype": "float32"})
    with pytest.raises(UnsupportedParameter, match="give dtype='bfloat16'") as caught:
        engine_arguments(EngineConfig(), quantised, "cpu")
    assert (caught.value.field, caught.value.supported) == ("dtype", ["bfloat16"])


def test_eight_bit_activations_on_a_cpu_with_amx_are_not_computed_in_float32(model):
    bits = {"num_bits": 8, "type": "int", "strategy": "channel"}
    activations = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    groups = {"group_0": {"weights": bits, "input_activations": activations}}
    stated = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": groups}
    quantised = replace(model, config={**VOCABULARY, "quantization_config": stated})
    with pytest.raises(UnsupportedParameter) as caught:
        engine_arguments(EngineConfig(dtype="float32"), quantised, "cpu", amx=True)
    assert (caught.value.field, caught.value.supported) == ("dtype", ["auto", "bfloat16", "float16"])
    for dtype, amx in (("float32", False), ("bfloat16", True)):
        assert engine_arguments(EngineConfig(dtype=dtype), quantised, "cpu", amx=amx).values["dtype"] == dtype


def test_speculation_by_ngrams(arguments, contracts):
    wanted = {"method": "ngram", "num_speculative_tokens": 5, "ngram_min": 2, "ngram_max": 3}
    values = arguments(speculative=wanted).values["speculative_config"]
    assert values == {
        "method": "ngram",
        "num_speculative_tokens": 5,
        "prompt_lookup_min": 2,
        "prompt_lookup_max": 3,
    }
    for facts in contracts.values():
        assert set(values) <= set(facts["fields"]["SpeculativeConfig"])


@pytest.mark.parametrize("method", ["draft_model", "eagle", "eagle3"])
def test_speculation_by_a_network_names_its_checkpoint(model, tmp_path, method):
    from msgspec.structs import replace

    drafted = replace(model, draft=replace(model, path=tmp_path / "draft"))
    config = EngineConfig(speculative={"method": method, "model": "d", "num_speculative_tokens": 2})
    values = engine_arguments(config, drafted, "cuda").values["speculative_config"]
    assert values == {"method": method, "num_speculative_tokens": 2, "model": str(tmp_path / "draft")}


def test_a_draft_model_of_another_vocabulary_is_refused(model):
    from msgspec.structs import replace

    drafted = replace(model, draft=replace(model, config={"vocab_size": 99}))
    with pytest.raises(InvalidConfig) as caught:
        engine_arguments(EngineConfig(speculative={"method": "draft_model", "model": "d"}), drafted, "cuda")
    assert caught.value.field == "speculative.model"


@pytest.mark.parametrize(
    ("device", "fields", "expected"),
    [
        ("cuda", {"max_rank": 4}, {"max_lora_rank": 8, "max_loras": 1, "max_cpu_loras": 1}),
        ("cuda", {"max_rank": 16, "max_loras": 3}, {"max_lora_rank": 16, "max_loras": 3, "max_cpu_loras": 3}),
        # One slot stays empty on a CPU: requests without an adapter compute with the last one there.
        ("cpu", {"max_rank": 16, "max_loras": 3}, {"max_lora_rank": 16, "max_loras": 4, "max_cpu_loras": 4}),
    ],
)
def test_adapters(arguments, device, fields, expected):
    values = arguments(device, lora=fields).values
    assert values["enable_lora"] is True
    assert {name: values[name] for name in expected} == expected


def test_an_adapter_of_a_higher_rank_than_asked_for_is_refused(model, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 9}')
    adapted = replace(model, loras={"a": tmp_path})
    with pytest.raises(UnsupportedParameter) as caught:
        # vLLM's own limit is the next larger one that it knows, 16.
        engine_arguments(EngineConfig(lora={"adapters": {"a": "x"}, "max_rank": 8}), adapted, "cuda")
    assert caught.value.field == "lora.adapters.a"


@pytest.mark.parametrize("name", sorted(OWNED))
def test_a_native_option_that_clashes_names_the_field_to_use(name):
    with pytest.raises(InvalidConfig) as caught:
        check_native({name: 1}, set(OWNED))
    assert caught.value.field == f"native.{name}"
    assert OWNED[name] in caught.value.message


def test_an_unknown_native_option_is_refused():
    with pytest.raises(InvalidConfig) as caught:
        check_native({"colour": "red"}, {"swap_space"})
    assert caught.value.field == "native.colour"


def test_every_field_of_a_configuration_is_declared_or_the_sdks():
    from anyengine.runtime.checks import SDK_CONFIG
    from anyengine_vllm.capabilities import CONFIG

    by_value = {"dtype", "device", "quantization", "speculative", "determinism", "native"}

    def leaves(config, prefix=""):
        for name in type(config).model_fields:
            value = getattr(config, name)
            if hasattr(type(value), "model_fields"):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    assert set(leaves(EngineConfig())) - set(SDK_CONFIG) - CONFIG == by_value
