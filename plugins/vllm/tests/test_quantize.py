"""Quantising with llmcompressor: which recipe a scheme is, what is refused, and, with ``--compressor``, itself."""

from pathlib import Path

import pytest
from anyengine import Engine, UnsupportedParameter
from anyengine.quantization import check_manifest, why_not
from anyengine_vllm import quantize, versions
from anyengine_vllm.capabilities import declared
from anyengine_vllm.checkpoints import checkpoints
from anyengine_vllm.environments import variants


@pytest.fixture
def anywhere(monkeypatch):
    """As if neither vLLM nor its toolchain were here."""
    monkeypatch.setattr(versions, "installed", lambda: None)
    monkeypatch.setattr(versions, "cpu_build", lambda: False)
    monkeypatch.setattr(quantize, "find_spec", lambda _name: None)


def test_schemes_are_declared_where_the_toolchain_is(anywhere, monkeypatch):
    assert (declared().quantize, declared().calibrated) == (frozenset(), frozenset())
    monkeypatch.setattr(quantize, "find_spec", lambda _name: object())
    assert declared().quantize == quantize.SCHEMES
    assert declared().calibrated == quantize.SCHEMES - {"fp8-dynamic", "int8-w8a16"}


def test_the_toolchain_has_an_environment_of_its_own():
    (step,) = variants()["compressor"].steps
    assert any(requirement.startswith("llmcompressor==") for requirement in step.requirements)
    assert next(iter(variants())) == "cpu"


@pytest.mark.parametrize("scheme", sorted(quantize.SCHEMES))
def test_every_scheme_has_a_recipe_of_modifiers_that_are_known(scheme):
    recipe = quantize.recipe_of(scheme, [256, 704])
    assert {one["modifier"] for one in recipe} <= set(quantize._MODULES)
    assert all(one.get("ignore", ["lm_head"]) == ["lm_head"] for one in recipe)


@pytest.mark.parametrize(("inputs", "group_size"), [([256, 512], 128), ([256, 704], 64), ([576, 96], 32)])
@pytest.mark.parametrize("scheme", ["int4-awq", "int4-gptq"])
def test_the_largest_group_that_divides_every_matrix_is_taken(scheme, inputs, group_size):
    (groups,) = [one["config_groups"] for one in quantize.recipe_of(scheme, inputs) if "config_groups" in one]
    weights = groups["group_0"]["weights"]
    assert (weights["group_size"], weights["symmetric"]) == (group_size, scheme == "int4-gptq")


def test_matrices_that_no_group_divides_are_refused_by_name():
    with pytest.raises(UnsupportedParameter, match="do not divide matrices of 36, 48 inputs") as caught:
        quantize.recipe_of("int4-gptq", [48, 36])
    assert caught.value.field == "scheme"


def checkpoint(form, bits, rows=None, group=None):
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, "group_size": group}
    weights["strategy"] = "group" if group else "channel"
    part = {"weights": weights, "input_activations": rows}
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": part}}
    return {"model_type": "llama", "quantization_config": config}


TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


@pytest.fixture
def processor(tmp_path, monkeypatch):
    """``processor(flags)``: what this machine's says of itself."""

    def has(flags):
        (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
        monkeypatch.setattr("anyengine.quantization.support._PROCESSOR", tmp_path / "cpuinfo")

    return has


@pytest.mark.parametrize(
    ("config", "on_cpu", "on_gpu"),
    [
        (checkpoint("int-quantized", 8, TOKEN), None, None),
        (checkpoint("pack-quantized", 4, group=64), None, None),
        (checkpoint("pack-quantized", 8), "the engine has no int8-w8a16 there", None),
        (checkpoint("pack-quantized", 4, group=16), "with groups of", "with groups of"),
    ],
    ids=["w8a8", "w4a16", "w8a16", "small groups"],
)
def test_what_loads_depends_on_the_build(config, on_cpu, on_gpu, anywhere, processor, monkeypatch):
    processor("avx512f avx512bw avx512dq avx512vl avx512_vnni")
    for cpu, expected in ((True, on_cpu), (False, on_gpu)):
        monkeypatch.setattr(versions, "cpu_build", lambda cpu=cpu: cpu)
        reason = why_not(checkpoints(), Path(), config, capability=lambda: (9, 0))
        assert (reason is None) == (expected is None)
        assert (expected or "") in (reason or "")


@pytest.mark.parametrize(
    ("flags", "config", "lacks"),
    [
        ("avx2 avx512f avx512bw avx512dq avx512vl", checkpoint("int-quantized", 8, TOKEN), "avx512_vnni"),
        ("avx2 avx512f avx512_vnni", checkpoint("pack-quantized", 4, group=64), "avx512bw, avx512dq, avx512vl"),
    ],
    ids=["w8a8", "w4a16"],
)
def test_what_a_cpu_has_no_instructions_for_is_not_loaded_there(flags, config, lacks, anywhere, processor, monkeypatch):
    processor(flags)
    for cpu, expected in ((True, f"this one lacks {lacks}"), (False, None)):
        monkeypatch.setattr(versions, "cpu_build", lambda cpu=cpu: cpu)
        reason = why_not(checkpoints(), Path(), config, capability=lambda: (9, 0))
        assert reason is None if expected is None else reason.endswith(expected)


def test_an_old_gpu_is_told_apart_from_a_newer_one(anywhere):
    config = checkpoint("int-quantized", 8, TOKEN)
    assert "compute capability 7.5" in why_not(checkpoints(), Path(), config, capability=lambda: (7, 0))
    assert why_not(checkpoints(), Path(), config, capability=lambda: (7, 5)) is None


@pytest.mark.compressor
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("scheme", "most"), [("int8-w8a16", 0.01), ("int8-w8a8", 0.04), ("int4-gptq", 0.30)], ids=str)
async def test_what_llmcompressor_makes_drifts_little(scheme, most, tmp_path, storyteller, request):
    calibration = ["Once upon a time there was a small dog. " * 60] if scheme in quantize.CALIBRATED else None
    output = await Engine.quantize(
        "vllm",
        model=storyteller,
        scheme=scheme,
        output=tmp_path / "made",
        calibration=calibration,
        environment=request.config.getoption("--compressor"),
    )
    manifest = check_manifest(output)
    assert manifest.tools["llmcompressor"]
    assert manifest.drift.mean_kl <= most
