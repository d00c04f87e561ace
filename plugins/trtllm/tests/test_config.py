import json

import pytest
from anyengine import EngineConfig
from anyengine.backend.devices import check_visible_devices
from anyengine.backend.memory import free_fraction, weight_bytes
from anyengine.errors import InvalidConfig, OutOfMemory, UnsupportedParameter
from anyengine_trtllm.checkpoint import own_quantization
from anyengine_trtllm.options import parse_options
from msgspec.structs import replace

GIB = 2**30

#: Fields of a configuration → the argument that carries each, with its value; dotted where it is within an object.
MAPPED = [
    ({}, "sampler_type", "TRTLLMSampler"),
    ({}, "enable_iter_perf_stats", True),
    ({}, "guided_decoding_backend", "llguidance"),
    ({}, "max_seq_len", 1024),
    ({}, "max_num_tokens", 8192),
    ({}, "enable_chunked_prefill", False),
    ({}, "kv_cache_config.enable_block_reuse", True),
    ({}, "kv_cache_config.tokens_per_block", 32),
    ({}, "stream_interval", 1),
    ({"dtype": "bfloat16"}, "dtype", "bfloat16"),
    ({"max_model_len": 100}, "max_seq_len", 100),
    ({"trust_remote_code": True}, "trust_remote_code", True),
    ({"kv_cache": {"dtype": "fp8"}}, "kv_cache_config.dtype", "fp8"),
    ({"kv_cache": {"block_size": 64}}, "kv_cache_config.tokens_per_block", 64),
    ({"kv_cache": {"prefix_caching": False}}, "kv_cache_config.enable_block_reuse", False),
    ({"kv_cache": {"capacity_tokens": 500}}, "kv_cache_config.max_tokens", 500),
    ({"kv_cache": {"capacity_tokens": 500}}, "max_seq_len", 500),
    ({"parallel": {"tensor": 2}}, "tensor_parallel_size", 2),
    ({"parallel": {"pipeline": 2}}, "pipeline_parallel_size", 2),
    ({"parallel": {"tensor": 4, "expert": True}}, "moe_expert_parallel_size", 4),
    ({"scheduling": {"max_num_seqs": 7}}, "max_batch_size", 7),
    ({"scheduling": {"max_num_batched_tokens": 700}}, "max_num_tokens", 700),
    # A prompt may be longer than a step: TensorRT-LLM would refuse it.
    ({"scheduling": {"max_num_batched_tokens": 700}}, "enable_chunked_prefill", True),
    ({"scheduling": {"max_num_batched_tokens": 700, "chunked_prefill": False}}, "enable_chunked_prefill", False),
    ({"execution": "eager"}, "cuda_graph_config", None),
    ({"execution": "graph"}, "cuda_graph_config.batch_sizes", None),
    ({"speculative": {"method": "ngram"}}, "sampler_type", "TorchSampler"),
    ({"speculative": {"method": "ngram", "ngram_max": 3}}, "speculative_config.max_matching_ngram_size", 3),
    ({"speculative": {"method": "ngram", "num_speculative_tokens": 6}}, "speculative_config.max_draft_len", 6),
    ({"speculative": {"method": "ngram"}}, "speculative_config.is_public_pool", False),
    ({"speculative": {"method": "ngram"}}, "disable_overlap_scheduler", True),
    ({"speculative": {"method": "mtp", "num_speculative_tokens": 2}}, "speculative_config.num_nextn_predict_layers", 2),
    ({"native": {"attn_backend": "FLASHINFER"}}, "attn_backend", "FLASHINFER"),
    # It goes without, and says so in its log.
    ({"native": {"attn_backend": "FLASHINFER"}}, "kv_cache_config.enable_block_reuse", False),
    ({"native": {"sampler_type": "TorchSampler"}}, "sampler_type", "TorchSampler"),
    (
        {"native": {"scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"}}},
        "scheduler_config.capacity_scheduler_policy",
        "MAX_UTILIZATION",
    ),
    (
        {"native": {"kv_cache_config": {"event_buffer_max_size": 64}}},
        "kv_cache_config.event_buffer_max_size",
        64,
    ),
    ({"native": {"backend": "tensorrt"}}, "guided_decoding_backend", "xgrammar"),
    ({"native": {"backend": "tensorrt"}}, "build_config.max_seq_len", 1024),
    ({"native": {"backend": "tensorrt", "build_config": {"use_refit": True}}}, "build_config.use_refit", True),
    ({"native": {"backend": "tensorrt"}, "quantization": "w4a16_awq"}, "quant_config.quant_algo", "W4A16_AWQ"),
    (
        {"native": {"backend": "tensorrt", "speculative_config": {"decoding_type": "Lookahead", "max_ngram_size": 3}}},
        "speculative_config.max_ngram_size",
        3,
    ),
    (
        {"native": {"backend": "tensorrt", "speculative_config": {"decoding_type": "Medusa", "max_draft_len": 4}}},
        "build_config.max_draft_len",
        4,
    ),
]


@pytest.mark.parametrize(("fields", "name", "value"), MAPPED)
def test_a_field_is_carried_by_its_argument(arguments, fields, name, value):
    found = arguments(**fields)
    first, *inner = name.split(".")
    assert first in found
    found = found[first]
    for part in inner:
        found = getattr(found, part)
    assert found == value


def test_a_share_of_all_memory_becomes_one_of_what_is_free_after_the_weights(arguments, model):
    model.path.mkdir()
    (model.path / "model.safetensors").write_bytes(b"0" * 4096)
    # The simulated device has 80 GiB, 70 of them free.
    found = arguments(kv_cache={"gpu_memory_fraction": 0.5})["kv_cache_config"].free_gpu_memory_fraction
    assert found == pytest.approx((40 * GIB - 4096) / (70 * GIB - 4096), rel=1e-9)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.85])
def test_weights_and_cache_together_take_the_share(share):
    total, free, weights = 80 * GIB, 70 * GIB, 16 * GIB
    cache = free_fraction(share, total=total, free=free, weights=weights) * (free - weights)
    assert weights + cache == pytest.approx(share * total)


@pytest.mark.parametrize(("share", "weights"), [(0.1, 16 * GIB), (0.95, 1 * GIB)])
def test_a_share_that_is_not_there_is_an_error_that_says_so(share, weights):
    with pytest.raises(OutOfMemory) as caught:
        free_fraction(share, total=80 * GIB, free=70 * GIB, weights=weights)
    assert caught.value.field == "kv_cache.gpu_memory_fraction"


def test_weights_are_spread_over_the_devices(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.safetensors").write_bytes(b"0" * 1000)
    assert weight_bytes(tmp_path, devices=2) == 1500


DRAFTED = {"method": "draft_model", "model": "d", "num_speculative_tokens": 3}


@pytest.mark.parametrize(
    ("method", "kind", "native"),
    [
        ("draft_model", "DraftTargetDecodingConfig", {}),
        ("eagle3", "EagleDecodingConfig", {}),
        ("eagle", "EagleDecodingConfig", {"backend": "tensorrt"}),
    ],
)
def test_speculation_by_a_network_names_its_checkpoint(arguments, model, tmp_path, method, kind, native):
    drafted = replace(model, draft=replace(model, path=tmp_path / "draft"))
    found = arguments(drafted, speculative=DRAFTED | {"method": method}, native=native)["speculative_config"]
    assert type(found).__name__ == kind
    assert (found.max_draft_len, str(found.speculative_model)) == (3, str(tmp_path / "draft"))


def test_a_draft_model_of_another_vocabulary_is_refused(arguments, model):
    drafted = replace(model, draft=replace(model, config={"vocab_size": 99}))
    with pytest.raises(InvalidConfig) as caught:
        arguments(drafted, speculative=DRAFTED)
    assert caught.value.field == "speculative.model"


TENSORRT = {"backend": "tensorrt"}


@pytest.mark.parametrize(
    ("fields", "error", "named"),
    [
        ({"devices": [0], "parallel": {"tensor": 2}}, InvalidConfig, "devices"),
        ({"kv_cache": {"dtype": "fp3"}}, UnsupportedParameter, "kv_cache.dtype"),
        ({"kv_cache": {"dtype": "fp8"}, "native": TENSORRT}, UnsupportedParameter, "kv_cache.dtype"),
        ({"kv_cache": {"block_size": 48}}, UnsupportedParameter, "kv_cache.block_size"),
        ({"kv_cache": {"block_size": 64}, "native": TENSORRT}, UnsupportedParameter, "kv_cache.block_size"),
        (
            {"kv_cache": {"capacity_tokens": 1000, "gpu_memory_fraction": 0.5}},
            InvalidConfig,
            "kv_cache.capacity_tokens",
        ),
        ({"kv_cache": {"capacity_tokens": 100}, "max_model_len": 101}, InvalidConfig, "kv_cache.capacity_tokens"),
        ({"max_model_len": 2000}, InvalidConfig, "max_model_len"),
        ({"quantization": "fp8"}, UnsupportedParameter, "quantization"),
        # The PyTorch backend takes the argument, and computes in what the checkpoint says: bfloat16, if nothing.
        ({"dtype": "float16"}, UnsupportedParameter, "dtype"),
        ({"kv_cache": {"prefix_caching": True}, "native": {"attn_backend": "FLASHINFER"}}, UnsupportedParameter,
         "kv_cache.prefix_caching"),
        (
            {"scheduling": {"chunked_prefill": True}, "native": {"attn_backend": "FLASHINFER_STAR_ATTENTION"}},
            UnsupportedParameter,
            "scheduling.chunked_prefill",
        ),
        ({"execution": "eager", "native": TENSORRT}, UnsupportedParameter, "execution"),
        ({"speculative": {"method": "eagle", "model": "d"}}, UnsupportedParameter, "speculative.method"),
        ({"speculative": {"method": "ngram"}, "native": TENSORRT}, UnsupportedParameter, "speculative.method"),
        ({"speculative": {"method": "eagle3"}}, InvalidConfig, "speculative.model"),
        ({"speculative": {"method": "mtp", "model": "d"}}, InvalidConfig, "speculative.model"),
        ({"speculative": {"method": "ngram", "ngram_min": 1}}, UnsupportedParameter, "speculative.ngram_min"),
        ({"speculative": {"method": "ngram"}, "lora": {}}, UnsupportedParameter, "lora"),
        ({"lora": {}}, InvalidConfig, "lora.adapters"),
        ({"native": {"backend": "onnx"}}, InvalidConfig, "native.backend"),
        ({"native": {"engine_dir": "x"}}, InvalidConfig, "native.engine_dir"),
        ({"native": {"sampler_type": "auto"}}, InvalidConfig, "native.sampler_type"),
        ({"native": {"sampler_type": "TorchSampler", **TENSORRT}}, InvalidConfig, "native.sampler_type"),
        (
            {"native": {"sampler_type": "TRTLLMSampler"}, "speculative": {"method": "ngram"}},
            InvalidConfig,
            "native.sampler_type",
        ),
        ({"native": {"speculative_config": {"decoding_type": "NGram"}}}, InvalidConfig,
         "native.speculative_config.decoding_type"),
        ({"native": {"speculative_config": {"decoding_type": "Medusa"}}}, InvalidConfig, "native.speculative_config"),
        (
            {"native": {"scheduler_config": {"capacity_scheduler_policy": "GREEDY"}}},
            InvalidConfig,
            "native.scheduler_config.capacity_scheduler_policy",
        ),
        ({"native": {"kv_cache_config": {"colour": 1}}}, InvalidConfig, "native.kv_cache_config"),
        ({"native": {"moe_config": {"backend": "FAST"}}}, InvalidConfig, "native.moe_config"),
        ({"native": {"build_config": {"colour": 1}, **TENSORRT}}, InvalidConfig, "native.build_config"),
        ({"native": {"kv_cache_config": 5}}, InvalidConfig, "native.kv_cache_config"),
        ({"native": {"kv_cache_config": {"max_tokens": 5}}}, InvalidConfig, "native.kv_cache_config.max_tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(arguments, fields, error, named):
    with pytest.raises(error) as caught:
        arguments(**fields)
    assert caught.value.field == named
    assert caught.value.message.startswith(named)


def test_a_checkpoint_runs_in_its_own_type_only_and_a_built_engine_in_the_one_asked_for(arguments, model):
    half = replace(model, config=model.config | {"dtype": "float16"})
    assert arguments(half, dtype="float16")["dtype"] == "float16"
    assert arguments(half, dtype="bfloat16", native=TENSORRT)["dtype"] == "bfloat16"
    with pytest.raises(UnsupportedParameter) as caught:
        arguments(half, dtype="bfloat16")
    assert (caught.value.field, set(caught.value.supported)) == ("dtype", {"auto", "float16"})


@pytest.mark.parametrize("place", ["model", "draft"])
def test_code_of_a_checkpoint_is_run_only_if_it_is_trusted(arguments, model, place):
    # The PyTorch backend would run it all the same.
    bringing = replace(model, config=model.config | {"auto_map": {"AutoConfig": "configuration_x.XConfig"}})
    files = bringing if place == "model" else replace(model, draft=bringing)
    fields = {} if place == "model" else {"speculative": DRAFTED}
    with pytest.raises(UnsupportedParameter) as caught:
        arguments(files, **fields)
    assert caught.value.field == "trust_remote_code"
    assert arguments(files, trust_remote_code=True, **fields)["trust_remote_code"] is True
    if place == "model":
        assert arguments(files, native=TENSORRT)["trust_remote_code"] is False


def test_latent_attention_goes_without_what_its_kernels_do_not_have(arguments, model, simulated, monkeypatch):
    latent = replace(model, config=model.config | {"kv_lora_rank": 512, "qk_rope_head_dim": 64})
    steps = {"max_num_batched_tokens": 100}

    def found(**fields):
        made = arguments(latent, scheduling=steps, **fields)
        return made["kv_cache_config"].enable_block_reuse, made["enable_chunked_prefill"]

    for capability, expected in (((8, 9), (False, False)), ((9, 0), (True, True)), ((12, 1), (False, False))):
        monkeypatch.setattr(simulated.torch.cuda, "get_device_capability", lambda found=capability: found)
        assert found() == expected
    for fields, named in (
        ({"kv_cache": {"prefix_caching": True}}, "kv_cache.prefix_caching"),
        ({"scheduling": {"chunked_prefill": True}}, "scheduling.chunked_prefill"),
    ):
        with pytest.raises(UnsupportedParameter) as caught:
            arguments(latent, **fields)
        assert caught.value.field == named
    monkeypatch.setattr(simulated.torch.cuda, "get_device_capability", lambda: (10, 0))
    assert found(kv_cache={"dtype": "fp8"}) == (True, True)
    assert found(kv_cache={"dtype": "nvfp4"}) == (False, True)
    assert arguments(latent, native=TENSORRT)["kv_cache_config"].enable_block_reuse is True


def test_a_model_that_does_not_say_its_context_needs_one(arguments, model):
    silent = replace(model, config={"vocab_size": 4096})
    assert arguments(silent, max_model_len=64)["max_seq_len"] == 64
    with pytest.raises(InvalidConfig) as caught:
        arguments(silent)
    assert caught.value.field == "max_model_len"


def test_a_checkpoint_that_modelopt_has_quantised_may_be_named_again(arguments, model):
    model.path.mkdir()
    (model.path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    assert own_quantization(model) == "fp8"
    assert "quant_config" not in arguments(quantization="fp8")
    with pytest.raises(UnsupportedParameter) as caught:
        arguments(quantization="nvfp4")
    assert caught.value.supported == ["fp8"]


def test_adapters(arguments, model, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    adapted = replace(model, loras={"a": tmp_path})
    found = arguments(adapted, lora={"adapters": {"a": "x"}, "max_rank": 8, "max_loras": 2})
    config = found["lora_config"]
    assert found["enable_lora"] is True
    assert (config.lora_dir, config.max_lora_rank, config.max_loras, config.max_cpu_loras) == ([str(tmp_path)], 8, 2, 2)


def test_an_adapter_of_a_higher_rank_than_asked_for_is_refused(arguments, model, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 9}')
    with pytest.raises(UnsupportedParameter) as caught:
        arguments(replace(model, loras={"a": tmp_path}), lora={"adapters": {"a": "x"}, "max_rank": 8})
    assert caught.value.field == "lora.adapters.a"


def test_a_process_with_other_devices_is_refused(monkeypatch):
    config = EngineConfig(devices=[1])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(InvalidConfig):
        check_visible_devices(config)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    check_visible_devices(config)


def test_speculation_that_is_right_only_at_temperature_0_is_known():
    wanted = {"method": "eagle3", "model": "d"}
    assert parse_options(EngineConfig(speculative=wanted)).greedy_only
    assert not parse_options(EngineConfig(speculative={"method": "ngram"})).greedy_only


def test_every_field_of_a_configuration_is_declared_or_the_sdks():
    from anyengine.runtime.checks import SDK_CONFIG
    from anyengine_trtllm.capabilities import CONFIG

    by_value = {"dtype", "device", "quantization", "speculative", "determinism", "native", "task"}
    refused = {"parallel.data", "seed"}

    def leaves(config, prefix=""):
        for name in type(config).model_fields:
            value = getattr(config, name)
            if hasattr(type(value), "model_fields"):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    assert set(leaves(EngineConfig())) - set(SDK_CONFIG) - CONFIG == by_value | refused
