"""Which quantised checkpoints TensorRT-LLM loads, held against the facts of its documentation."""

import json
from pathlib import Path

import pytest
from anyengine import Engine
from anyengine.errors import UnsupportedParameter
from anyengine.quantization import why_not
from anyengine_trtllm import plugin
from anyengine_trtllm.checkpoints import CHECKPOINTS

FP8_CACHE = {"kv_cache_quant_algo": "FP8"}
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def modelopt(algorithm, **fields):
    return {"quant_method": "modelopt", "quant_algo": algorithm, **fields}


#: Name → quantization_config, and the column of the documentation's hardware matrix; None: it is not loaded.
KINDS = {
    "fp8": (modelopt("FP8"), "FP8(per tensor)"),
    "fp8, fp8 cache": (modelopt("FP8", **FP8_CACHE), "FP8(per tensor)"),
    "fp8, nvfp4 cache": (modelopt("FP8", kv_cache_quant_algo="NVFP4"), None),
    "fp8 by rows": (modelopt("FP8_PER_CHANNEL_PER_TOKEN"), "FP8(rowwise)"),
    "fp8 in blocks": (modelopt("FP8_PB_WO"), "FP8(block scaling)"),
    "nvfp4": (modelopt("NVFP4", group_size=16), "NVFP4"),
    "awq": (modelopt("W4A16_AWQ", group_size=128), "W4A16 AWQ"),
    "awq, groups of 64": (modelopt("W4A16_AWQ", group_size=64), "W4A16 AWQ"),
    "awq, groups of 32": (modelopt("W4A16_AWQ", group_size=32), None),
    "awq with fp8": (modelopt("W4A8_AWQ", group_size=128), "W4A8 AWQ"),
    "the cache alone": (modelopt(None, **FP8_CACHE), "FP8 KV Cache"),
    "smooth quant": (modelopt("W8A8_SQ_PER_CHANNEL"), None),
    "two schemes": (modelopt("MIXED_PRECISION"), None),
    "DeepSeek's": (BLOCKS, "FP8(block scaling)"),
    "fp8 of matrices": ({"quant_method": "fp8", "activation_scheme": "dynamic"}, None),
    "mxfp4": ({"quant_method": "mxfp4"}, "MXFP4"),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, None),
    "AutoAWQ's": ({"quant_method": "awq", "bits": 4, "group_size": 128}, None),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, None),
}


@pytest.fixture(scope="module")
def read():
    """Facts of quantization, each with its source."""
    found = json.loads((Path(__file__).parent / "contract" / "quantization.json").read_bytes())
    return {name: fact["value"] for name, fact in found.items() if name != "version"}


def verdict(config, capability=(9, 0), folder=Path("/nowhere")):
    return why_not(CHECKPOINTS, folder, {"quantization_config": config}, capability=lambda: capability)


@pytest.mark.parametrize("name", KINDS)
def test_each_runs_from_the_oldest_gpu_of_the_matrix(name, read):
    config, column = KINDS[name]
    if column is None:
        assert verdict(config, (10, 0)) is not None
        return
    oldest = min(tuple(map(int, each.split("."))) for each in read["hardware"][column])
    assert verdict(config, oldest) is None
    assert "compute capability" in verdict(config, (7, 5))
    older = [(8, 0), (8, 9), (9, 0), (10, 0)]
    for capability in older[: older.index(oldest)]:
        assert "compute capability" in verdict(config, capability)


def test_methods_and_groups_are_those_of_the_facts(read):
    assert {one.method for one in CHECKPOINTS.formats} == {"modelopt", *read["quant_methods"]}
    sizes = {one.group_sizes for one in CHECKPOINTS.formats if "awq" in one.scheme}
    assert sizes == {tuple(read["awq_group_sizes"])}


async def test_a_load_refuses_by_name_before_it_starts_anything(simulated, storyteller, tmp_path):
    for file in storyteller.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((tmp_path / "config.json").read_text()) | {"quantization_config": KINDS["gptq"][0]}
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedParameter, match=r"gptq.*the engine reads fp8, modelopt, mxfp4") as caught:
        await Engine.load(plugin, str(tmp_path), isolation="none")
    assert caught.value.field == "model"
