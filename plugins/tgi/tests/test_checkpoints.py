"""Which quantised checkpoints TGI loads, held against the facts read in its source."""

import json
import sys
from pathlib import Path

import pytest
from anyengine import Engine
from anyengine.errors import UnsupportedParameter
from anyengine.quantization import why_not
from anyengine_tgi import plugin
from anyengine_tgi.checkpoints import CHECKPOINTS

AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}


def part(bits, kind="int", strategy="channel", **more):
    return {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": False, **more}


def compressed(form, weights, rows=None, **more):
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": rows}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, **more}


TOKEN = {"strategy": "token", "dynamic": True}
GROUP = {"strategy": "group", "group_size": 128}
#: Name → quantization_config, and the oldest GPU; None: it is not loaded.
KINDS = {
    "awq": (AWQ, (8, 0)),
    "awq, gemv": (AWQ | {"version": "gemv"}, None),
    "awq, groups of 16": (AWQ | {"group_size": 16}, None),
    "gptq": (GPTQ, (7, 5)),
    "gptq, reordered": (GPTQ | {"desc_act": True}, (7, 5)),
    "gptq, zero points": (GPTQ | {"sym": False}, (7, 5)),
    "gptq, 8 bits": (GPTQ | {"bits": 8}, (8, 0)),
    "gptq, 8 bits, zero points": (GPTQ | {"bits": 8, "sym": False}, None),
    "gptq, 3 bits": (GPTQ | {"bits": 3}, None),
    "marlin": ({"quant_method": "marlin", "bits": 4, "group_size": 128}, (8, 0)),
    "marlin, groups of 64": ({"quant_method": "marlin", "bits": 4, "group_size": 64}, None),
    "exl2": ({"quant_method": "exl2", "bits": 4.0}, (7, 5)),
    "w4a16": (compressed("pack-quantized", part(4) | GROUP), (8, 0)),
    "w4a16, zero points": (compressed("pack-quantized", part(4, symmetric=False) | GROUP), None),
    "w8a16": (compressed("pack-quantized", part(8)), (8, 0)),
    "w8a16, fp8 cache": (compressed("pack-quantized", part(8), kv_cache_scheme=part(8, "float", "tensor")), None),
    "w8a8": (compressed("int-quantized", part(8), part(8) | TOKEN), (7, 5)),
    "fp8 by rows": (compressed("float-quantized", part(8, "float"), part(8, "float") | TOKEN), (8, 0)),
    "nvfp4": (
        compressed("nvfp4-pack-quantized", part(4, "float", "tensor_group"), part(4, "float", "tensor_group")),
        None,
    ),
    "fp8": (FP8, (8, 0)),
    "fp8 in blocks": (FP8 | {"weight_block_size": [128, 128]}, (9, 0)),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "FP8"}, None),
    "mxfp4": ({"quant_method": "mxfp4"}, None),
    # Done while loading, a checkpoint that was stored so is another matter.
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, None),
    "eetq": ({"quant_method": "eetq"}, None),
}
GPUS = [(7, 5), (8, 0), (8, 9), (9, 0)]


@pytest.fixture(scope="module")
def read():
    """Facts of quantization, each with its source."""
    found = json.loads((Path(__file__).parent / "contract" / "quantization.json").read_bytes())
    return {name: fact["value"] for name, fact in found.items() if name != "version"}


def verdict(config, capability=(9, 0)):
    return why_not(CHECKPOINTS, Path("/nowhere"), {"quantization_config": config}, capability=lambda: capability)


@pytest.mark.parametrize("name", KINDS)
def test_each_runs_from_its_oldest_gpu(name):
    config, oldest = KINDS[name]
    for capability in GPUS:
        reason = verdict(config, capability)
        assert (reason is None) is (oldest is not None and capability >= oldest), reason
    if oldest is not None:
        assert "compute capability" in verdict(config, (7, 0))


def test_methods_formats_and_groups_are_those_of_the_facts(read):
    formats = CHECKPOINTS.formats
    assert sorted({one.method for one in formats}) == read["quant_methods"]
    assert {one.format for one in formats if one.method == "compressed-tensors"} <= set(read["compressed_formats"])
    marlin = {-1 if size == 0 else size for one in formats for size in one.group_sizes or ()}
    assert marlin == set(read["marlin"]["group_sizes"])
    (own,) = [one for one in formats if one.method == "marlin"]
    assert own.group_sizes == tuple(max(0, size) for size in read["marlin"]["own_group_sizes"])


async def test_a_load_refuses_by_name_before_it_starts_anything(storyteller, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["anyengine_tgi.plugin"], "which", lambda _program: "/nowhere")
    for file in storyteller.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": KINDS["modelopt"][0]}
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedParameter, match=r"modelopt, fp8-static.* the engine reads awq") as caught:
        await Engine.load(plugin, str(tmp_path), isolation="none")
    assert caught.value.field == "model"
