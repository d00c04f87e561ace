import json

import pytest
from anyengine import EngineConfig
from anyengine.errors import InvalidConfig, ModelNotFound, OutOfMemory, UnsupportedParameter
from anyengine_lmdeploy.checkpoints import vocab_size
from anyengine_lmdeploy.checks import check_config
from anyengine_lmdeploy.config import engine_arguments
from anyengine_lmdeploy.options import needs_pytorch, parse_options
from msgspec.structs import replace

GIB = 2**30


@pytest.fixture
def arguments(model):
    """``arguments(backend, config fields)``: what the engine is made with."""

    def make(backend, files=model, memory=(70 * GIB, 80 * GIB), **fields):
        config = EngineConfig(**fields)
        return engine_arguments(config, files, parse_options(config), backend, lambda: memory)

    return make


BOTH = ("turbomind", "pytorch")


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({}, "dtype", "auto"),
        ({"dtype": "float16"}, "dtype", "float16"),
        ({}, "session_len", 1024),
        ({"max_model_len": 100}, "session_len", 100),
        # Off by default in LMDeploy, and said all the same.
        ({}, "enable_prefix_caching", False),
        ({"kv_cache": {"prefix_caching": True}}, "enable_prefix_caching", True),
        ({}, "quant_policy", 0),
        ({"kv_cache": {"dtype": "int8"}}, "quant_policy", 8),
        ({"kv_cache": {"dtype": "int4"}}, "quant_policy", 4),
        ({}, "enable_metrics", True),
        ({"parallel": {"tensor": 2}}, "tp", 2),
        ({"scheduling": {"max_num_seqs": 7}}, "max_batch_size", 7),
        ({"scheduling": {"max_num_batched_tokens": 700}}, "max_prefill_token_num", 700),
        ({"native": {"hf_overrides": {"a": 1}}}, "hf_overrides", {"a": 1}),
    ],
)
def test_a_field_is_carried_by_its_argument(arguments, backend, fields, name, value):
    assert arguments(backend, **fields).config[name] == value


@pytest.mark.parametrize(
    ("backend", "fields", "name", "value"),
    [
        ("turbomind", {"kv_cache": {"block_size": 32}}, "cache_block_seq_len", 32),
        ("pytorch", {"kv_cache": {"block_size": 32}}, "block_size", 32),
        ("pytorch", {"kv_cache": {"dtype": "fp8"}}, "quant_policy", 16),
        ("pytorch", {"kv_cache": {"dtype": "fp8_e5m2"}}, "quant_policy", 17),
        ("pytorch", {"execution": "eager"}, "eager_mode", True),
        ("pytorch", {"execution": "graph"}, "eager_mode", False),
        ("pytorch", {"quantization": "fp8"}, "model_format", "fp8"),
        ("pytorch", {}, "logprobs_mode", "raw_logprobs"),
        ("pytorch", {"native": {"prefill_interval": 4}}, "prefill_interval", 4),
    ],
)
def test_a_field_of_one_backend_is_carried_too(arguments, backend, fields, name, value):
    assert arguments(backend, **fields).config[name] == value


@pytest.mark.parametrize("backend", BOTH)
def test_what_is_not_asked_for_is_left_to_lmdeploy(arguments, backend):
    left = {"max_batch_size", "max_prefill_token_num", "cache_max_entry_count", "eager_mode", "num_gpu_blocks"}
    assert left.isdisjoint(arguments(backend).config)
    assert arguments(backend).speculative is None


@pytest.mark.parametrize("backend", BOTH)
def test_a_share_of_the_device_becomes_a_share_of_what_the_weights_leave(arguments, backend, model):
    with (model.path / "a.safetensors").open("wb") as file:
        file.truncate(10 * GIB)  # a file with a hole
    share = arguments(backend, kv_cache={"gpu_memory_fraction": 0.5}).config["cache_max_entry_count"]
    # Half of 80 is 40, of which 10 are weights: 30 of the 60 that they leave of the 70.
    assert share == pytest.approx(0.5)
    with pytest.raises(OutOfMemory) as caught:
        arguments(backend, memory=(30 * GIB, 80 * GIB), kv_cache={"gpu_memory_fraction": 0.5})
    assert caught.value.field == "kv_cache.gpu_memory_fraction"


def test_all_of_it_is_no_number_of_blocks(arguments):
    made = arguments("turbomind", memory=(80 * GIB, 80 * GIB), kv_cache={"gpu_memory_fraction": 1.0})
    assert 0.9 < made.config["cache_max_entry_count"] < 1


@pytest.mark.parametrize(
    ("kv_cache", "blocks", "size", "length"),
    [
        # Beside those that are asked for there is one that LMDeploy keeps back, and one is left out of the context.
        ({"capacity_tokens": 2048}, 33, 64, 1024),
        ({"capacity_tokens": 1024}, 17, 64, 960),
        ({"capacity_tokens": 600}, 20, 32, 576),
        ({"capacity_tokens": 256}, 17, 16, 240),
        ({"capacity_tokens": 512, "block_size": 16}, 33, 16, 496),
    ],
)
def test_a_capacity_is_blocks(arguments, kv_cache, blocks, size, length):
    made = arguments("pytorch", kv_cache=kv_cache).config
    assert (made["num_gpu_blocks"], made["block_size"], made["session_len"]) == (blocks, size, length)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"kv_cache": {"capacity_tokens": 100}}, "kv_cache.capacity_tokens"),
        ({"kv_cache": {"capacity_tokens": 500, "block_size": 64}}, "kv_cache.capacity_tokens"),
        ({"kv_cache": {"capacity_tokens": 512}, "max_model_len": 1000}, "kv_cache.capacity_tokens"),
        ({"max_model_len": 2000}, "max_model_len"),
        ({"lora": {}}, "lora.adapters"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments, fields, field):
    with pytest.raises(InvalidConfig) as caught:
        arguments("pytorch", **fields)
    assert caught.value.field == field


def test_a_model_that_does_not_say_its_context_needs_one(arguments, model):
    files = replace(model, config={"vocab_size": 8})
    with pytest.raises(InvalidConfig) as caught:
        arguments("pytorch", files)
    assert caught.value.field == "max_model_len"
    assert arguments("pytorch", files, max_model_len=64).config["session_len"] == 64


@pytest.fixture
def adapted(model, tmp_path):
    """``adapted(ranks)``: the checkpoint with an adapter of each rank, named a, b, c."""

    def make(*ranks):
        folders = {name: tmp_path / name for name, _ in zip("abc", ranks, strict=False)}
        for folder, rank in zip(folders.values(), ranks, strict=True):
            folder.mkdir()
            (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
        return replace(model, loras=folders)

    return make


@pytest.mark.parametrize("limits", [{}, {"max_loras": 2}, {"max_loras": 8}, {"max_rank": 8, "max_loras": 2}])
def test_adapters_are_named_with_their_folders(arguments, adapted, limits):
    files = adapted(8, 4)
    made = arguments("pytorch", files, lora={"adapters": dict.fromkeys("ab", "x"), **limits})
    assert made.config["adapters"] == {name: str(folder) for name, folder in files.loras.items()}


@pytest.mark.parametrize(("limits", "ranks"), [({"max_rank": 8}, (8, 9)), ({}, (16, 17))])
def test_an_adapter_of_a_higher_rank_than_asked_for_is_refused(arguments, adapted, limits, ranks):
    with pytest.raises(UnsupportedParameter) as caught:
        arguments("pytorch", adapted(*ranks), lora={"adapters": dict.fromkeys("ab", "x"), **limits})
    assert caught.value.field == "lora.adapters.b"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"use_rslora": True}, "use_rslora"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"exclude_modules": ["v_proj"]}, "exclude_modules"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"target_modules": "all-linear"}, "plain names"),
        ({"target_modules": r".*\.q_proj"}, "plain names"),
        ({"target_modules": ["v_proj", "model.layers.0.self_attn.q_proj"]}, "plain names"),
    ],
)
def test_a_setting_of_an_adapter_that_lmdeploy_does_not_honour_is_refused(arguments, adapted, setting, said):
    files = adapted(8)
    (files.loras["a"] / "adapter_config.json").write_text(json.dumps({"r": 8} | setting))
    with pytest.raises(UnsupportedParameter, match=said) as caught:
        arguments("pytorch", files, lora={"adapters": {"a": "x"}})
    assert caught.value.field == "lora.adapters.a"


def test_an_adapter_as_peft_writes_it_by_default_is_taken(arguments, adapted):
    files = adapted(8)
    said = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", "target_modules": ["q_proj", "v_proj"]}
    said |= {"use_dora": False, "rank_pattern": {}, "modules_to_save": None, "layers_to_transform": None}
    (files.loras["a"] / "adapter_config.json").write_text(json.dumps(said))
    made = arguments("pytorch", files, lora={"adapters": {"a": "x"}})
    assert made.config["adapters"] == {"a": str(files.loras["a"])}


def test_fewer_adapters_in_a_batch_than_are_loaded_are_refused(arguments, adapted):
    with pytest.raises(UnsupportedParameter, match="all 3 adapters") as caught:
        arguments("pytorch", adapted(8, 8, 8), lora={"adapters": dict.fromkeys("abc", "x"), "max_loras": 2})
    assert caught.value.field == "lora.max_loras"


@pytest.mark.parametrize(
    ("asked", "model_type", "expected"),
    [
        ({"method": "eagle", "model": "d", "num_speculative_tokens": 3}, "llama", {"method": "eagle"}),
        ({"method": "eagle3", "model": "d"}, "llama", {"method": "eagle3"}),
        ({"method": "mtp"}, "deepseek_v3", {"method": "deepseek_mtp"}),
        ({"method": "mtp"}, "qwen3_5_moe", {"method": "qwen3_5_mtp"}),
    ],
)
def test_a_method_of_speculation_has_its_name(arguments, model, tmp_path, asked, model_type, expected):
    draft = replace(model, path=tmp_path / "draft")
    files = replace(model, draft=draft, config=model.config | {"model_type": model_type})
    made = arguments("pytorch", files, speculative=asked).speculative
    assert made["method"] == expected["method"]
    assert made["model"] == str(model.path if asked["method"] == "mtp" else draft.path)
    assert made["num_speculative_tokens"] == EngineConfig(speculative=asked).speculative.num_speculative_tokens


def test_multi_token_prediction_of_another_family_is_refused(arguments):
    with pytest.raises(UnsupportedParameter) as caught:
        arguments("pytorch", speculative={"method": "mtp"})
    assert caught.value.field == "speculative.method"


# -- which backend ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"kv_cache": {"dtype": "int8"}}, None),
        ({"kv_cache": {"dtype": "fp8"}}, "kv_cache.dtype"),
        ({"kv_cache": {"capacity_tokens": 2048}}, "kv_cache.capacity_tokens"),
        ({"execution": "eager"}, "execution"),
        ({"quantization": "fp8"}, "quantization"),
        ({"speculative": {"method": "eagle", "model": "d"}}, "speculative"),
        ({"lora": {"adapters": {"a": "x"}}}, "lora"),
    ],
)
def test_what_turbomind_lacks_chooses_pytorch(simulated, model, fields, expected):
    config = EngineConfig(**fields)
    assert needs_pytorch(config) == expected
    if expected is not None:
        with pytest.raises(UnsupportedParameter) as caught:
            check_config(config, model, "turbomind", _torch())
        assert caught.value.field == expected
        assert "native.backend='pytorch'" in caught.value.message


def _torch():
    from anyengine_lmdeploy.library import load_library

    return load_library().torch


@pytest.mark.parametrize("native", [{"backend": "tensorrt"}, {"dtype": "float16"}, {"role": 1}])
def test_options_that_are_decided_otherwise_are_refused(native):
    with pytest.raises(InvalidConfig) as caught:
        parse_options(EngineConfig(native=native))
    assert caught.value.field == f"native.{next(iter(native))}"


# -- checks before a load ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "change", "error", "field"),
    [
        ({}, {"tokenizer_path": "elsewhere"}, UnsupportedParameter, "tokenizer"),
        ({}, {"config": {"dtype": "float32"}}, UnsupportedParameter, "dtype"),
        ({}, {"config": {}}, UnsupportedParameter, "dtype"),
        ({"parallel": {"tensor": 2}}, {}, InvalidConfig, "parallel.tensor"),
        ({"devices": [0], "parallel": {"tensor": 2}}, {}, InvalidConfig, "devices"),
        ({"kv_cache": {"dtype": "nvfp4"}}, {}, UnsupportedParameter, "kv_cache.dtype"),
        ({"kv_cache": {"block_size": 24}}, {}, UnsupportedParameter, "kv_cache.block_size"),
        ({"kv_cache": {"block_size": 8}}, {}, UnsupportedParameter, "kv_cache.block_size"),
        (
            {"kv_cache": {"capacity_tokens": 2048, "gpu_memory_fraction": 0.5}},
            {},
            InvalidConfig,
            "kv_cache.capacity_tokens",
        ),
        ({"quantization": "fp8"}, {"config": {"intermediate_size": 704}}, UnsupportedParameter, "quantization"),
        (
            {"quantization": "fp8"},
            {"config": {"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}}},
            UnsupportedParameter,
            "quantization",
        ),
        ({"speculative": {"method": "eagle", "model": "d"}}, {}, InvalidConfig, "speculative.model"),
        ({"speculative": {"method": "mtp", "model": "d"}}, {}, InvalidConfig, "speculative.model"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(simulated, model, tmp_path, fields, change, error, field):
    if "config" in change:
        own = {} if change["config"] == {} else model.config | change["config"]
        change = {"config": own}
    if "tokenizer_path" in change:
        change = {"tokenizer_path": tmp_path / "t"}
    with pytest.raises(error) as caught:
        check_config(EngineConfig(**fields), replace(model, **change), "pytorch", _torch())
    assert caught.value.field == field


def test_a_plain_configuration_passes(simulated, model):
    check_config(EngineConfig(), model, "turbomind", _torch())
    check_config(EngineConfig(quantization="fp8"), model, "pytorch", _torch())


def test_an_older_gpu_has_no_fp8(simulated, model, monkeypatch):
    torch = _torch()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(UnsupportedParameter, match=r"9\.0"):
        check_config(EngineConfig(quantization="fp8"), model, "pytorch", torch)


@pytest.mark.parametrize(
    ("dtype", "capability", "refused"),
    [
        ("fp8", (8, 6), True),
        ("fp8_e4m3", (8, 0), True),
        ("fp8_e5m2", (8, 0), False),
        ("int8", (8, 0), False),
        ("fp8", (8, 9), False),
    ],
)
def test_a_cache_in_e4m3_needs_a_gpu_that_has_it(simulated, model, monkeypatch, dtype, capability, refused):
    torch, config = _torch(), EngineConfig(kv_cache={"dtype": dtype})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    if not refused:
        check_config(config, model, "pytorch", torch)
        return
    with pytest.raises(UnsupportedParameter, match=r"8\.9") as caught:
        check_config(config, model, "pytorch", torch)
    assert caught.value.field == "kv_cache.dtype"
    assert "fp8_e5m2" in caught.value.supported


# -- models with more than text ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["text_config", "llm_config", "thinker_config"])
def test_what_is_said_of_the_text_is_read_wherever_it_is(simulated, arguments, model, place):
    inner = {"text_config": model.config} if place == "thinker_config" else model.config
    files = replace(model, config={"model_type": "with_images", place: inner})
    check_config(EngineConfig(quantization="fp8"), files, "pytorch", _torch())
    assert arguments("pytorch", files).config["session_len"] == 1024
    assert vocab_size(files) == 4096
    stored = {**inner, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
    with pytest.raises(UnsupportedParameter, match="gptq") as caught:
        check_config(EngineConfig(), replace(model, config={place: stored}), "pytorch", _torch())
    assert caught.value.field == "model"


def test_a_model_that_does_not_say_its_vocabulary_is_refused_before_a_load(simulated, model):
    config = {name: value for name, value in model.config.items() if name != "vocab_size"}
    with pytest.raises(ModelNotFound, match="vocab_size") as caught:
        check_config(EngineConfig(), replace(model, config={"text_config": config}), "turbomind", _torch())
    assert caught.value.field == "model"
