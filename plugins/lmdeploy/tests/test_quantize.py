"""Quantising with lmdeploy.lite: its steps and refusals on a *scripted* toolchain, and, with ``--lmdeploy``, itself."""

import json

import numpy as np
import pytest
from anyengine import Engine
from anyengine.backend import QuantizeJob, quantizing
from anyengine.backend.quantizing import Cancelled
from anyengine.errors import OutOfMemory, OutOfSpace, UnsupportedParameter
from anyengine.quantization import check_manifest, compare, held_out_texts, read_stored, scores_of
from anyengine_lmdeploy import plugin, quantize, versions
from anyengine_lmdeploy.capabilities import declared

SEQUENCES = [[1, 2, 3, 4], [5, 6, 7, 8]]
STEPS = {
    "int4-awq": ["CalibrationContext", "calibrate", *["smooth_layers"] * 2, *["quant_weights"] * 2],
    "int8-w8a8": ["CalibrationContext", "calibrate", *["smooth_layers"] * 2, *["from_float"] * 4],
    "fp8-dynamic": ["CalibrationContext", "calibrate", *["smooth_layers"] * 2, *["from_float"] * 4],
}
CONFIGS = {
    "int4-awq": {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128, "zero_point": True},
    "int8-w8a8": {"quant_method": "smooth_quant", "quant_dtype": "int8"},
    "fp8-dynamic": {"quant_method": "smooth_quant", "quant_dtype": "float8_e4m3fn"},
}


def test_schemes_are_declared_where_the_toolchain_is(monkeypatch, tmp_path):
    monkeypatch.setattr(versions, "unavailable", lambda: "no")
    assert (declared().quantize, declared().calibrated) == (frozenset(), frozenset())
    monkeypatch.setattr(versions, "unavailable", lambda: None)
    found = type("Found", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(quantize, "find_spec", lambda _name: found)
    assert declared().quantize == frozenset()
    (tmp_path / "lite").mkdir()
    assert declared().quantize == declared().calibrated == {"fp8-dynamic", "int4-awq", "int8-w8a8"}


async def test_without_lmdeploy_it_is_said_how_to_get_it(monkeypatch, storyteller, tmp_path):
    monkeypatch.setattr(versions, "installed", lambda: None)
    making = Engine.quantize(plugin, model=str(storyteller), scheme="int4-awq", output=tmp_path / "made")
    with pytest.raises(Exception, match="anyengine env create lmdeploy"):
        await making


# -- the steps ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def toolchain(facts, scripted, monkeypatch):
    """``toolchain(widths)``: a scripted one, which the plugin takes for LMDeploy's."""

    def make(**widths):
        made = scripted.Toolchain(facts, **widths)
        for module in (quantize, quantizing):
            monkeypatch.setattr(module, "import_module", made.modules().__getitem__)
        monkeypatch.setattr(quantizing, "installed_version", lambda _name: "5.17")
        return made

    return make


@pytest.fixture
def job(model, tmp_path):
    """``job(scheme)``: with a folder of its own and steps that are written down in ``job.steps``."""
    (model.path / "tokenizer.json").write_text("{}")
    (tmp_path / "out").mkdir()

    def make(scheme="int4-awq", cancelled=lambda: False):
        make.steps = []
        return QuantizeJob(
            model=model,
            scheme=scheme,
            output=tmp_path / "out",
            calibration=SEQUENCES,
            progress=lambda done, total: make.steps.append((done, total)),
            cancelled=cancelled,
        )

    return make


@pytest.mark.parametrize("scheme", sorted(STEPS))
def test_lite_is_called_layer_by_layer_on_the_jobs_own_text(toolchain, job, scheme, tmp_path):
    chain = toolchain()
    report = quantize.quantize(job(scheme))
    assert [name for name, _ in chain.calls] == STEPS[scheme]
    assert dict(chain.calls)["calibrate"] == {"data": SEQUENCES}
    smoothed = [set(given["layers"]) for name, given in chain.calls if name == "smooth_layers"]
    assert smoothed == [{"model.layers.0"}, {"model.layers.1"}]
    assert job.steps == [(done, 8) for done in range(1, 9)]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"] == CONFIGS[scheme]
    assert read_stored(tmp_path, config).schemes == (scheme,)
    assert report.recipe["lmdeploy.lite"]["quantization_config"] == CONFIGS[scheme]
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_sequences_do_not_see_each_other_through_a_cache(toolchain, job):
    chain = toolchain()
    quantize.quantize(job())
    assert (chain.model.used_cache, chain.model.config.use_cache) == (False, True)
    assert all(not part.hooks for _, part in chain.model.named_modules())


@pytest.mark.parametrize(("widths", "size"), [({}, 128), ({"inputs": 192}, 64), ({"inputs": 96}, 32)])
def test_the_largest_group_that_divides_every_matrix_is_taken(toolchain, job, widths, size):
    chain = toolchain(**widths)
    quantize.quantize(job())
    assert {given["group_size"] for name, given in chain.calls if name == "quant_weights"} == {size}


@pytest.mark.parametrize("after", range(8))
def test_it_ends_at_the_next_step_when_it_is_cancelled(toolchain, job, after, tmp_path):
    toolchain()
    making = job(cancelled=lambda: len(job.steps) >= after)
    with pytest.raises(Cancelled):
        quantize.quantize(making)
    assert len(job.steps) == after
    assert (list((tmp_path / "out").iterdir()) == []) is (after < 7)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "said"),
    [({"inputs": 48}, "groups of 128, 64 or 32"), ({"outputs": 12}, "a multiple of 8 outputs.* 12")],
)
def test_widths_that_do_not_fit_are_refused_before_any_work(toolchain, job, widths, said):
    chain = toolchain(**widths)
    with pytest.raises(UnsupportedParameter, match=said) as caught:
        quantize.quantize(job())
    assert (caught.value.field, chain.calls) == ("scheme", [])


def test_widths_do_not_matter_to_eight_bits(toolchain, job):
    chain = toolchain(inputs=48, outputs=12)
    quantize.quantize(job("int8-w8a8"))
    assert chain.calls


def test_a_kind_of_model_that_lite_does_not_know_is_refused(toolchain, job):
    chain = toolchain()
    del chain.tables["LlamaForCausalLM"]
    chain.tables["Llama4ForCausalLM"] = "LlamaDecoderLayer"
    with pytest.raises(UnsupportedParameter, match=r"does not know a LlamaForCausalLM; it knows Llama4ForCausalLM$"):
        quantize.quantize(job())


def test_a_layer_of_another_shape_is_refused(toolchain, job):
    chain = toolchain()
    del chain.model.model.parts["layers"].parts["1"].parts["norm"]
    with pytest.raises(UnsupportedParameter, match=r"model.layers.1 has no norm, which lite looks for") as caught:
        quantize.quantize(job())
    assert (caught.value.field, chain.calls) == ("model", [])


@pytest.mark.parametrize(
    ("broken", "error", "expected", "said"),
    [
        ("lite.quantization.CalibrationContext.calibrate", AssertionError(), UnsupportedParameter, "are no numbers"),
        ("lite.quantization.awq.smooth_layers", AssertionError(), UnsupportedParameter, "are no numbers"),
        ("lite.quantization.awq.quant_weights", MemoryError("none left"), OutOfMemory, "none left"),
    ],
)
def test_what_goes_wrong_in_lite_is_typed(toolchain, job, broken, error, expected, said):
    toolchain().breaks[broken] = error
    with pytest.raises(expected, match=said):
        quantize.quantize(job())


@pytest.mark.parametrize("smallest", [0.0, float("nan")])
def test_outputs_without_a_scale_are_refused(toolchain, job, smallest):
    toolchain().smallest_scale = smallest
    with pytest.raises(UnsupportedParameter, match=r"layers.0.attention.q_proj has outputs whose weights are all 0"):
        quantize.quantize(job("fp8-dynamic"))


def test_a_model_that_transformers_does_not_load_is_refused(toolchain, job, monkeypatch):
    chain = toolchain()

    def fail(*_, **__):
        raise ValueError("no such architecture")

    modules = chain.modules()
    modules["transformers"].AutoModelForCausalLM.from_pretrained = fail
    for module in (quantize, quantizing):
        monkeypatch.setattr(module, "import_module", modules.__getitem__)
    with pytest.raises(UnsupportedParameter, match=r"transformers 5.17 cannot load it: no such architecture"):
        quantize.quantize(job())


async def test_a_full_disk_is_out_of_space_and_leaves_nothing(toolchain, storyteller, tmp_path, monkeypatch):
    chain = toolchain()

    def full(_folder):
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    chain.model.save_pretrained = full
    monkeypatch.setattr(versions, "installed", lambda: "0.18.0")
    monkeypatch.setattr(versions, "find_spec", lambda _name: object())
    monkeypatch.setattr(quantize, "installed", lambda: True)
    with pytest.raises(OutOfSpace):
        await Engine.quantize(
            plugin, model=str(storyteller), scheme="int4-awq", output=tmp_path / "made", isolation="none", oracle=None
        )
    assert [path.name for path in tmp_path.iterdir() if "made" in path.name] == []


# -- lite itself -------------------------------------------------------------------------------------------------------

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


def _floats(folder, target):
    """Write the weights that LMDeploy computes with as a float checkpoint, for the reference engine."""
    from anyengine_reference.model.checkpoint import Checkpoint, write_safetensors

    raw, found = {name: _numbers(tensor) for name, tensor in Checkpoint(folder).items()}, {}
    for name, value in raw.items():
        matrix = name.rpartition(".")[0]
        if name.endswith(".qweight"):
            zeros, scales = _words(raw[f"{matrix}.qzeros"]), raw[f"{matrix}.scales"]
            grouped = _words(value).reshape(len(scales), -1, scales.shape[1])
            weights = (grouped - zeros[:, None]) * scales[:, None]
            found[f"{matrix}.weight"] = np.ascontiguousarray(weights.reshape(-1, scales.shape[1]).T)
        elif name.endswith(".weight"):
            found[name] = value * raw.get(f"{matrix}.scale", np.float32(1))
    target.mkdir()
    for file in folder.glob("tokenizer*.json"):
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float32"}
    del config["quantization_config"]
    (target / "config.json").write_text(json.dumps(config))
    layout = {name: ("F32", value.shape) for name, value in found.items()}
    write_safetensors(target / "model.safetensors", layout, found.values())
    return target


def _words(packed):
    return np.stack([packed >> 4 * place & 15 for place in _AWQ_ORDER], -1).reshape(len(packed), -1).astype(np.float32)


def _numbers(tensor):
    from anyengine_reference.model.integers import E4M3

    if tensor.dtype == "F8_E4M3":
        return E4M3[tensor.data()]
    return tensor.data() if tensor.dtype in {"I8", "I32"} else tensor.float32()


@pytest.mark.lmdeploy
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "scheme", "most"),
    [
        ("storyteller", "fp8-dynamic", 0.03),
        ("storyteller", "int4-awq", 0.25),
        ("storyteller", "int8-w8a8", 0.005),
        ("wide", "int4-awq", 0.35),
    ],
    ids=str,
)
async def test_what_lite_makes_drifts_little(name, scheme, most, request, storyteller, tmp_path, place_of):
    model = str(request.getfixturevalue(name))
    made = await Engine.quantize(
        "lmdeploy", model=model, scheme=scheme, output=tmp_path / "made", **place_of("lmdeploy")
    )
    assert check_manifest(made).tools["lmdeploy"]
    scores = []
    for model in (storyteller, _floats(made, tmp_path / "floats")):
        async with Engine.load("reference", str(model)) as engine:
            scores.append(await scores_of(engine, held_out_texts()))
    drift = compare(*scores)
    assert drift.mean_kl <= most, drift
