"""Quantised checkpoints: those that are declared are computed as they say, to the last bit; others are refused."""

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
from anyengine import Engine
from anyengine.errors import UnsupportedParameter
from anyengine.quantization import read_stored, why_not
from anyengine_transformers.checkpoints import FORMATS, checkpoints

# The warning is of torch.jit, in what compressed-tensors imports.
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

PROMPT = "Once upon a time there was a little cat who wanted to play"
IDS = [72, 101, 108, 108, 111, 32, 99, 97, 116]


def part(bits, kind="int", strategy="channel", **more):
    return {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": False, **more}


TOKEN = {"strategy": "token", "dynamic": True}
#: Scheme → format, weights, activations, and the largest value of each.
ROWS = {
    "int8-w8a8": ("int-quantized", part(8), part(8) | TOKEN, 127, 127.5),
    "fp8-dynamic": ("float-quantized", part(8, "float"), part(8, "float") | TOKEN, 448, 448),
    "fp8-static": ("float-quantized", part(8, "float"), part(8, "float", "tensor"), 448, 0.02),
}


@pytest.fixture
def written(checkpoint, tmp_path):
    """``written(scheme)``: a checkpoint made by hand, and the same weights in float."""
    import torch
    from safetensors.torch import load_file, save_file

    def make(scheme):
        form, weights, rows, largest, _ = ROWS[scheme]
        element = torch.int8 if "int8" in scheme else torch.float8_e4m3fn
        stored, plain = {}, {}
        for name, tensor in load_file(checkpoint() / "model.safetensors").items():
            if not name.endswith("proj.weight"):
                stored[name] = plain[name] = tensor
                continue
            scale = tensor.abs().amax(1, keepdim=True) / largest
            numbers = tensor / scale
            stored[name] = (numbers.round() if element == torch.int8 else numbers).to(element)
            stored[f"{name}_scale"] = scale
            plain[name] = stored[name].float() * scale
            if scheme == "fp8-static":
                stored[name.replace("weight", "input_scale")] = torch.tensor([0.02])
        groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": rows}}
        config = json.loads((checkpoint() / "config.json").read_text())
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": form,
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": groups,
        }
        for folder, tensors in (("quantised", stored), ("plain", plain)):
            shutil.copytree(checkpoint(), tmp_path / folder)
            save_file(tensors, tmp_path / folder / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / "quantised" / "config.json").write_text(json.dumps(config))
        return tmp_path / "quantised", tmp_path / "plain"

    return make


def rounded(rows, scheme):
    """Activations as the scheme has them."""
    import torch

    largest = ROWS[scheme][-1]
    scale = largest if scheme == "fp8-static" else rows.abs().amax(-1, keepdim=True) / largest
    if scheme == "int8-w8a8":
        return (rows / scale).round().clamp(-128, 127) * scale
    return (rows / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


@pytest.mark.parametrize("scheme", sorted(ROWS))
async def test_activations_are_rounded_as_the_checkpoint_says(scheme, load, written):
    import torch
    from transformers import AutoModelForCausalLM

    quantised, plain = written(scheme)
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()

    def logprobs():
        with torch.inference_mode():
            rows = model(torch.tensor([IDS])).logits[0].double().log_softmax(-1)
        return [row[after].item() for row, after in zip(rows, IDS[1:], strict=False)]

    in_float = logprobs()
    for name, matrix in model.named_modules():
        if name.endswith("_proj"):
            matrix.register_forward_pre_hook(lambda _, given: (rounded(given[0], scheme),))
    expected = logprobs()
    assert expected != pytest.approx(in_float, abs=1e-3)
    async with load(quantised) as engine:
        assert list((await engine.score(IDS)).logprobs)[-len(expected) :] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("scheme", ["int4-w4a16", "int8-w8a16"])
async def test_weights_alone_give_the_scores_of_the_reference_engine(scheme, load, tmp_path):
    made = await Engine.quantize("reference", model="storyteller", scheme=scheme, output=tmp_path / "made", oracle=None)
    async with Engine.load("reference", str(made)) as reference:
        expected = (await reference.score(PROMPT)).logprobs
    async with load(made) as engine:
        assert (await engine.score(PROMPT)).logprobs == pytest.approx(expected, abs=1e-3)


def test_every_declared_scheme_is_held_against_its_arithmetic():
    assert {one.scheme for one in FORMATS} == {*ROWS, "int4-w4a16", "int8-w8a16"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "the engine reads compressed-tensors"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "the engine reads compressed-tensors"),
        ({"quant_method": "from_the_future"}, "the engine reads compressed-tensors"),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "int-quantized",
                "config_groups": {"group_0": {"weights": part(8), "input_activations": part(8, strategy="tensor")}},
            },
            "no int8-w8a8-static there",
        ),
    ],
)
async def test_others_are_refused_by_name(config, said, load, checkpoint, tmp_path):
    shutil.copytree(checkpoint(), tmp_path, dirs_exist_ok=True)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": config}))
    with pytest.raises(UnsupportedParameter, match=said) as caught:
        await load(tmp_path)
    assert caught.value.field == "model"


def test_without_the_package_nothing_is_declared(monkeypatch):
    module = import_module("anyengine_transformers.checkpoints")
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    config = {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}
    assert read_stored(Path(), config) is not None
    assert "no quantised checkpoints" in why_not(checkpoints(), Path(), config)
