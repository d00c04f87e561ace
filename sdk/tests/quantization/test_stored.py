"""How checkpoints say that they are quantised, and what an engine's declaration makes of it."""

import json
import os

import pytest
from anyengine import ModelNotFound
from anyengine.backend import CheckpointSupport, QuantizedFormat
from anyengine.quantization import StoredQuantization, read_stored, why_not
from anyengine.quantization.support import gpu_capability


def part(bits, kind="int", strategy="channel", **more):
    return {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": False, **more}


def compressed(form, weights=None, rows=None, **more):
    groups = {} if weights is None else {"group_0": {"weights": weights, "input_activations": rows}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, **more}


TOKEN = {"strategy": "token", "dynamic": True}
NVFP4 = {"strategy": "tensor_group", "group_size": 16}
CT = "compressed-tensors"
KNOWN = {
    "w8a16": (compressed("pack-quantized", part(8)), (CT, "pack-quantized", "int8-w8a16", 0, True, None)),
    "w4a16": (
        compressed("pack-quantized", part(4, strategy="group", group_size=128, symmetric=False)),
        (CT, "pack-quantized", "int4-w4a16", 128, False, None),
    ),
    "w8a8": (
        compressed("int-quantized", part(8), part(8) | TOKEN),
        (CT, "int-quantized", "int8-w8a8", 0, True, None),
    ),
    "w8a8 static": (
        compressed("int-quantized", part(8), part(8, strategy="tensor")),
        (CT, "int-quantized", "int8-w8a8-static", 0, True, None),
    ),
    "w4a8": (
        compressed("int-quantized", part(4), part(8) | TOKEN),
        (CT, "int-quantized", "int4-w4a8", 0, True, None),
    ),
    "fp8 dynamic": (
        compressed("float-quantized", part(8, "float"), part(8, "float") | TOKEN),
        (CT, "float-quantized", "fp8-dynamic", 0, True, None),
    ),
    "fp8 static": (
        compressed("float-quantized", part(8, "float", "tensor"), part(8, "float", "tensor")),
        (CT, "float-quantized", "fp8-static", 0, True, None),
    ),
    "nvfp4": (
        compressed("nvfp4-pack-quantized", part(4, "float", **NVFP4), part(4, "float", **NVFP4)),
        (CT, "nvfp4-pack-quantized", "nvfp4", 16, True, None),
    ),
    "nvfp4 weights": (
        compressed("nvfp4-pack-quantized", part(4, "float", **NVFP4)),
        (CT, "nvfp4-pack-quantized", "nvfp4-w4a16", 16, True, None),
    ),
    "mxfp4": (
        compressed("mxfp4-pack-quantized", part(4, "float", "group", group_size=32)),
        (CT, "mxfp4-pack-quantized", "unknown", 32, True, None),
    ),
    "fp8 blocks": (
        compressed("float-quantized", part(8, "float", "block"), part(8, "float") | TOKEN),
        (CT, "float-quantized", "unknown", 0, True, None),
    ),
    "fp8 weights, int rows": (
        compressed("float-quantized", part(8, "float"), part(8) | TOKEN),
        (CT, "float-quantized", "unknown", 0, True, None),
    ),
    "w8a16, fp8 cache": (
        compressed("pack-quantized", part(8), kv_cache_scheme=part(8, "float", "tensor")),
        (CT, "pack-quantized", "int8-w8a16", 0, True, "fp8"),
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"},
        ("awq", "gemm", "int4-awq", 64, False, None),
    ),
    "awq without a version": ({"quant_method": "awq", "w_bit": 4}, ("awq", "gemm", "int4-awq", 128, False, None)),
    "gptq": (
        {"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": True, "desc_act": False},
        ("gptq", None, "int8-gptq", 0, True, None),
    ),
    "smooth_quant": ({"quant_method": "smooth_quant"}, ("smooth_quant", None, "int8-w8a8", 0, True, None)),
    "smooth_quant, fp8": (
        {"quant_method": "smooth_quant", "quant_dtype": "float8_e4m3fn"},
        ("smooth_quant", None, "fp8-dynamic", 0, True, None),
    ),
    "smooth_quant, e5m2": (
        {"quant_method": "smooth_quant", "quant_dtype": "float8_e5m2"},
        ("smooth_quant", None, "unknown", 0, True, None),
    ),
    "mxfp4 of its own": ({"quant_method": "mxfp4"}, ("mxfp4", None, "mxfp4", 32, True, None)),
    "fp8": ({"quant_method": "fp8", "activation_scheme": "static"}, ("fp8", None, "fp8-static", None, True, None)),
    "fp8 of blocks": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        ("fp8", None, "fp8-dynamic-block", None, True, None),
    ),
    "modelopt": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "kv_cache_quant_algo": "FP8"},
        ("modelopt", None, "nvfp4", 16, True, "fp8"),
    ),
    "modelopt, as config.json has it": (
        {
            "quant_method": "modelopt",
            "quant_algo": "NVFP4",
            "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}},
            "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
        },
        ("modelopt", None, "nvfp4", 16, True, "fp8"),
    ),
    "modelopt, the cache alone": (
        {"quant_method": "modelopt", "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"}},
        ("modelopt", None, "kv-fp8", 0, True, "fp8"),
    ),
    "modelopt, awq with fp8": (
        {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ", "group_size": 128},
        ("modelopt", None, "int4-awq-fp8", 128, True, None),
    ),
    "modelopt, two schemes": (
        {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"},
        ("modelopt", None, "unknown", 0, True, None),
    ),
    "exl2": ({"quant_method": "exl2", "bits": 4.65}, ("exl2", None, "exl2", None, True, None)),
    "marlin": (
        {"quant_method": "marlin", "bits": 4, "group_size": -1},
        ("marlin", None, "int4-marlin", 0, True, None),
    ),
    "bitsandbytes": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        ("bitsandbytes", None, "bitsandbytes-4bit", None, True, None),
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_every_kind_has_a_name(name, tmp_path):
    config, (method, form, scheme, group, symmetric, cache) = KNOWN[name]
    assert read_stored(tmp_path, {"quantization_config": config}) == StoredQuantization(
        method=method,
        format=form,
        schemes=(scheme,),
        group_sizes=() if group is None else (group,),
        symmetric=symmetric,
        kv_cache=cache,
    )


def test_a_cache_alone_is_a_scheme_of_its_own(tmp_path):
    config = compressed("dense", kv_cache_scheme=part(8, "float", "tensor"))
    stored = read_stored(tmp_path, {"quantization_config": config})
    assert (stored.schemes, stored.kv_cache) == (("kv-fp8",), "fp8")


def test_layers_of_two_schemes_are_both_named(tmp_path):
    config = compressed("mixed-precision", part(8))
    config["config_groups"]["group_1"] = {"weights": part(4, strategy="group", group_size=64)}
    stored = read_stored(tmp_path, {"quantization_config": config})
    assert (stored.schemes, stored.group_sizes) == (("int4-w4a16", "int8-w8a16"), (0, 64))


def test_a_file_of_modelopt_is_read(tmp_path):
    content = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(content))
    stored = read_stored(tmp_path, {})
    assert (stored.method, stored.schemes, stored.kv_cache) == ("modelopt", ("fp8-static",), "fp8")


def test_the_file_of_modelopt_says_more_than_its_words_in_config(tmp_path):
    content = {"quantization": {"quant_algo": "W4A16_AWQ", "kv_cache_quant_algo": None, "group_size": 64}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(content))
    stated = {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}
    stored = read_stored(tmp_path, {"quantization_config": stated})
    assert (stored.schemes, stored.group_sizes) == (("int4-awq",), (64,))
    other = {"quant_method": "gptq", "bits": 4}
    assert read_stored(tmp_path, {"quantization_config": other}).method == "gptq"


def test_a_float_checkpoint_is_not_quantised(tmp_path):
    assert read_stored(tmp_path, {"model_type": "llama"}) is None


@pytest.mark.parametrize(
    "stated",
    [7, [], {"quant_method": "awq"}, {"quant_method": "compressed-tensors", "config_groups": {"g": 7}}],
)
def test_what_cannot_be_read_is_an_unusable_model(stated, tmp_path):
    with pytest.raises(ModelNotFound, match="how it is quantised cannot be read"):
        read_stored(tmp_path, {"quantization_config": stated})


SUPPORT = CheckpointSupport(
    architectures=("llama",),
    formats=(
        QuantizedFormat(method=CT, format="pack-quantized", scheme="int4-w4a16", group_sizes=(64, 128)),
        QuantizedFormat(method=CT, format="int-quantized", scheme="int8-w8a8", minimum_capability=(7, 5)),
        QuantizedFormat(method=CT, format="pack-quantized", scheme="int8-w8a16", kv_cache=("fp8",)),
    ),
)


def verdict(config, capability=None, kind="llama"):
    return why_not(SUPPORT, None, {"model_type": kind, "quantization_config": config}, capability=lambda: capability)


@pytest.mark.parametrize(
    ("name", "capability"), [("w8a16", None), ("w8a16, fp8 cache", None), ("w8a8", (7, 5)), ("w8a8", None)]
)
def test_what_is_declared_runs(name, capability):
    assert verdict(KNOWN[name][0], capability) is None


@pytest.mark.parametrize(
    ("name", "capability", "said"),
    [
        ("w8a8", (7, 0), "needs a GPU of compute capability 7.5; this one has 7.0"),
        ("w4a16", None, "without zero points only"),
        ("fp8 dynamic", None, "has no fp8-dynamic there; it has int4-w4a16, int8-w8a16, int8-w8a8"),
        ("awq", None, "the engine reads compressed-tensors"),
        ("bitsandbytes", None, "the engine reads compressed-tensors"),
    ],
)
def test_what_is_not_declared_has_its_reason(name, capability, said):
    assert said in verdict(KNOWN[name][0], capability)


def test_group_size_format_and_cache_have_theirs():
    grouped = compressed("pack-quantized", part(4, strategy="group", group_size=32))
    assert "with groups of 128, 64" in verdict(grouped)
    assert "reads int8-w8a16 in format pack-quantized" in verdict(compressed("naive-quantized", part(8)))
    cached = compressed("int-quantized", part(8), part(8) | TOKEN, kv_cache_scheme=part(8, "float"))
    assert "does not take the element type of the cache from a checkpoint (fp8)" in verdict(cached)


@pytest.mark.parametrize(
    ("config", "reordered"),
    [
        ({"quant_method": "gptq", "bits": 4, "desc_act": True}, True),
        ({"quant_method": "gptq", "bits": 4, "desc_act": False}, False),
        (compressed("pack-quantized", part(4, strategy="group", group_size=128, actorder="group")), True),
        (compressed("pack-quantized", part(4, strategy="group", group_size=128, actorder="static")), False),
        (compressed("pack-quantized", part(4, strategy="group", group_size=128, actorder=None)), False),
    ],
)
def test_inputs_that_are_no_neighbours_are_known(config, reordered, tmp_path):
    stored = read_stored(tmp_path, {"quantization_config": config})
    assert (stored.reordered, "reordered inputs" in str(stored)) == (reordered, reordered)


def test_reordered_inputs_have_to_be_declared():
    config = compressed("pack-quantized", part(4, strategy="group", group_size=128, actorder="group"))
    assert "without reordered inputs (desc_act) only" in verdict(config)


def test_an_architecture_that_is_not_declared_has_its_reason():
    assert verdict(None, kind="mamba") == "its architecture is 'mamba'; the engine has llama"


def test_who_declares_nothing_is_not_spoken_for():
    assert why_not(None, None, {"quantization_config": KNOWN["awq"][0]}) is None


def driver(folder, monkeypatch, said):
    """A simulated ``nvidia-smi``."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{said}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_gpu_is_asked_through_its_driver(tmp_path, monkeypatch):
    driver(tmp_path, monkeypatch, 'echo "9.0"')
    assert gpu_capability() == (9, 0)
    assert why_not(SUPPORT, None, {"model_type": "llama", "quantization_config": KNOWN["w8a8"][0]}) is None


def test_a_gpu_that_is_too_old_is_found_by_its_driver(tmp_path, monkeypatch):
    driver(tmp_path, monkeypatch, 'echo "7.0"')
    reason = why_not(SUPPORT, None, {"model_type": "llama", "quantization_config": KNOWN["w8a8"][0]})
    assert "this one has 7.0" in reason


@pytest.mark.parametrize(
    ("cpuinfo", "lacking"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2\n", "this one lacks avx512bw, avx512f"),
        ("flags\t\t: fpu avx2 avx512f\n", "this one lacks avx512bw"),
        ("flags\t\t: avx512f avx512bw avx2\nflags\t\t: fpu\n", None),
        ("processor\t: 0\nFeatures\t: fp asimd\n", None),  # of another kind: not known
        (None, None),
    ],
)
def test_a_processor_that_lacks_instructions_is_found(cpuinfo, lacking, tmp_path, monkeypatch):
    monkeypatch.setattr("anyengine.quantization.support._PROCESSOR", tmp_path / "cpuinfo")
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    four = QuantizedFormat(
        method=CT, format="pack-quantized", scheme="int4-w4a16", asymmetric=True, instructions=("avx512f", "avx512bw")
    )
    reason = why_not(CheckpointSupport(formats=(four,)), None, {"quantization_config": KNOWN["w4a16"][0]})
    said = None if lacking is None else f"int4-w4a16 needs a processor with avx512f, avx512bw; {lacking}"
    assert reason == said if said is None else reason.endswith(said)


@pytest.mark.parametrize("said", ["exit 9", "echo 'No devices were found'", "true"])
def test_a_gpu_that_does_not_say_is_not_known(said, tmp_path, monkeypatch):
    driver(tmp_path, monkeypatch, said)
    assert gpu_capability() is None
