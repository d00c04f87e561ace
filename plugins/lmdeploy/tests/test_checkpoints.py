"""Which quantised checkpoints each backend loads, and which backend a checkpoint chooses."""

import json
from pathlib import Path

import pytest
from anyengine import Engine, EngineConfig
from anyengine.errors import UnsupportedParameter
from anyengine.quantization import why_not
from anyengine_lmdeploy import plugin
from anyengine_lmdeploy.checkpoints import CHECKPOINTS, checkpoints
from anyengine_lmdeploy.checks import check_config
from anyengine_lmdeploy.library import load_library
from anyengine_lmdeploy.options import Options
from anyengine_lmdeploy.startup import _chosen
from msgspec.structs import replace

AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
BLOCKS = {"weight_block_size": [128, 128]}


def compressed(form="pack-quantized", group=128, name="group_0", **fields):
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group}
    groups = {name: {"targets": ["Linear"], "weights": weights | fields, "format": form}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}


#: Name → quantization_config, and whether TurboMind and the engine in PyTorch load it.
KINDS = {
    "awq": (AWQ, True, True),
    "awq, groups of 64": (AWQ | {"group_size": 64}, False, True),
    "awq, gemv": (AWQ | {"version": "gemv"}, False, False),
    "awq, 8 bits": (AWQ | {"bits": 8}, False, False),
    "gptq": (GPTQ, True, False),
    "gptq, groups of 64": (GPTQ | {"group_size": 64}, False, False),
    "gptq, reordered": (GPTQ | {"desc_act": True}, False, False),
    "gptq, zero points": (GPTQ | {"sym": False}, False, False),
    "gptq, 8 bits": (GPTQ | {"bits": 8}, False, False),
    "compressed": (compressed(), True, False),
    "compressed, groups of 32": (compressed(group=32), True, False),
    "compressed, groups of 64": (compressed(group=64), False, False),
    "compressed, reordered": (compressed(actorder="group"), False, False),
    "fp8 of blocks": (FP8 | BLOCKS, True, True),
    "fp8 of matrices": (FP8, False, False),
    "fp8 of matrices, static": (FP8 | {"activation_scheme": "static"}, False, True),
    "mxfp4": ({"quant_method": "mxfp4"}, True, False),
    "smooth_quant": ({"quant_method": "smooth_quant"}, False, True),
    "smooth_quant, fp8": ({"quant_method": "smooth_quant", "quant_dtype": "float8_e4m3fn"}, False, True),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, False, False),
}


def verdict(support, config, capability=(9, 0)):
    return why_not(support, Path(), {"quantization_config": config}, capability=lambda: capability)


@pytest.mark.parametrize("name", KINDS)
def test_each_backend_loads_its_own(name):
    config, *expected = KINDS[name]
    assert [verdict(CHECKPOINTS[backend], config) is None for backend in ("turbomind", "pytorch")] == expected
    assert (verdict(checkpoints(), config) is None) is any(expected)


def test_they_are_those_of_the_facts(facts):
    read = {name: fact["value"] for name, fact in facts["read"].items()}
    formats = {backend: CHECKPOINTS[backend].formats for backend in ("turbomind", "pytorch")}
    assert sorted({one.method for one in formats["turbomind"]} | {"hf"}) == read["model_formats_turbomind"]
    assert sorted({one.method for one in formats["pytorch"]}) == read["quant_methods_pytorch"]
    for one in formats["turbomind"]:
        assert one.group_sizes is None or list(one.group_sizes) == read["group_sizes_turbomind"][one.method]


@pytest.mark.parametrize(
    ("backend", "name", "oldest"),
    [
        ("turbomind", "awq", (7, 0)),
        ("pytorch", "awq", (8, 0)),
        ("pytorch", "smooth_quant", (8, 0)),
        ("pytorch", "smooth_quant, fp8", (8, 9)),
    ],
)
def test_older_gpus_have_no_kernels(backend, name, oldest):
    assert verdict(CHECKPOINTS[backend], KINDS[name][0], oldest) is None
    assert "compute capability" in verdict(CHECKPOINTS[backend], KINDS[name][0], (6, 1))


# -- the choice --------------------------------------------------------------------------------------------------------


@pytest.fixture
def quantised(model):
    """``quantised(kind)``: a checkpoint of that kind."""

    def make(name):
        config = {"architectures": ["LlamaForCausalLM"], "quantization_config": KINDS[name][0]}
        (model.path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
        return replace(model, config=model.config | config)

    return make


@pytest.mark.parametrize("name", [name for name, (_, *loads) in KINDS.items() if any(loads)])
def test_without_a_choice_the_backend_that_loads_it_runs_it(simulated, quantised, name):
    expected = "turbomind" if KINDS[name][1] else "pytorch"
    assert _chosen(EngineConfig(), quantised(name), Options(), load_library()) == expected


def test_what_only_one_backend_has_decides_first(simulated, quantised):
    asked, model = EngineConfig(execution="eager"), quantised("gptq")
    backend = _chosen(asked, model, Options(), load_library())
    with pytest.raises(UnsupportedParameter, match="on LMDeploy's pytorch backend it cannot run") as caught:
        check_config(asked, model, backend, load_library().torch)
    assert caught.value.field == "model"


@pytest.mark.parametrize(
    ("backend", "name", "said"),
    [
        ("turbomind", "smooth_quant", "the engine reads .*; native.backend='pytorch' can"),
        ("turbomind", "awq, groups of 64", "has int4-awq with groups of 128; native.backend='pytorch' can"),
        ("pytorch", "gptq", "the engine reads awq, fp8, smooth_quant; native.backend='turbomind' can"),
        ("pytorch", "compressed", "native.backend='turbomind' can"),
    ],
)
def test_a_backend_that_was_chosen_refuses_by_name_and_names_the_other(simulated, quantised, backend, name, said):
    with pytest.raises(UnsupportedParameter, match=said) as caught:
        check_config(EngineConfig(), quantised(name), backend, load_library().torch)
    assert caught.value.field == "model"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (compressed(name="all"), "one group, config_groups.group_0"),
        (compressed(form=None), "which says its format"),
        ({**AWQ, "version": "GEMM"}, "says version 'gemm'"),
        ({name: value for name, value in AWQ.items() if name != "version"}, "says version 'gemm'"),
    ],
)
def test_words_that_turbomind_does_not_find_are_refused(simulated, model, config, said):
    files = replace(model, config=model.config | {"quantization_config": config})
    with pytest.raises(UnsupportedParameter, match=said):
        check_config(EngineConfig(), files, "turbomind", load_library().torch)


@pytest.mark.parametrize(("form", "loads"), [(None, True), ("gptq", True), ("gptq_v2", False), ("marlin", False)])
def test_gptq_of_another_format_is_refused(simulated, model, form, loads):
    stated = GPTQ if form is None else GPTQ | {"checkpoint_format": form}
    files = replace(model, config=model.config | {"quantization_config": stated})
    if loads:
        check_config(EngineConfig(), files, "turbomind", load_library().torch)
        return
    with pytest.raises(UnsupportedParameter, match=f"'gptq' only, and this is '{form}'") as caught:
        check_config(EngineConfig(), files, "turbomind", load_library().torch)
    assert caught.value.field == "model"


@pytest.mark.parametrize("stored", [FP8 | BLOCKS, FP8 | {"activation_scheme": "static"}])
@pytest.mark.parametrize("where", ["ignored_layers", "modules_to_not_convert"])
@pytest.mark.parametrize(
    "kept",
    [
        "model.layers.0.self_attn.q_proj",
        "model.layers.3.mlp.down_proj",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0",
        "mlp",
        "model.layers.0.mlp.experts",
    ],
)
def test_fp8_with_layers_that_are_none_is_not_for_pytorch(simulated, model, stored, where, kept):
    files = replace(model, config=model.config | {"quantization_config": stored | {where: ["lm_head", kept]}})
    with pytest.raises(UnsupportedParameter, match=f"would take {kept} for fp8") as caught:
        check_config(EngineConfig(), files, "pytorch", load_library().torch)
    assert caught.value.field == "model"
    if "weight_block_size" in stored:
        assert "native.backend='turbomind' can" in caught.value.message
        check_config(EngineConfig(), files, "turbomind", load_library().torch)


@pytest.mark.parametrize(
    "kept",
    [
        "lm_head",
        "re:.*lm_head",
        "model.embed_tokens",
        "model.norm",
        "model.layers.0.input_layernorm",
        "model.layers.0.self_attn.q_norm",
        "model.layers.0.mlp.gate",
        "model.layers.0.mlp.shared_expert_gate",
        "model.layers.0.linear_attn.conv1d",
        "model.layers.0.linear_attn.in_proj_a",
        "model.visual.blocks.0.attn.qkv",
        "visual",
    ],
)
def test_what_is_never_quantised_may_be_named(simulated, model, kept):
    stated = FP8 | BLOCKS | {"modules_to_not_convert": [kept]}
    files = replace(model, config=model.config | {"quantization_config": stated})
    check_config(EngineConfig(), files, "pytorch", load_library().torch)


def test_awq_in_another_dtype_than_it_is_computed_in_is_refused(simulated, quantised):
    torch, files = load_library().torch, quantised("awq")
    own = {dtype: replace(files, config=files.config | {"dtype": dtype}) for dtype in ("bfloat16", "float16")}
    for dtype in ("bfloat16", "auto"):
        with pytest.raises(UnsupportedParameter, match="float16 only; the checkpoint is in bfloat16") as caught:
            check_config(EngineConfig(dtype=dtype), own["bfloat16"], "pytorch", torch)
        assert (caught.value.field, caught.value.supported) == ("dtype", ["float16"])
    with pytest.raises(UnsupportedParameter) as caught:
        check_config(EngineConfig(dtype="bfloat16"), own["float16"], "pytorch", torch)
    assert caught.value.supported == ["auto", "float16"]
    check_config(EngineConfig(dtype="auto"), own["float16"], "pytorch", torch)
    for each in own.values():
        check_config(EngineConfig(dtype="float16"), each, "pytorch", torch)


async def test_a_load_refuses_before_it_starts_anything(simulated, storyteller, tmp_path):
    for file in storyteller.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": KINDS["awq, gemv"][0]}
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedParameter, match="int4-awq in format gemm") as caught:
        await Engine.load(plugin, str(tmp_path), isolation="none")
    assert caught.value.field == "model"
