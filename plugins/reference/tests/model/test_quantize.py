import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anyengine_reference.model import BadCheckpoint, KVCache, Segment, UnsupportedModel, int8, load_model
from anyengine_reference.model.checkpoint import Checkpoint
from anyengine_reference.quantize import QuantizationCancelled, quantize_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from safetensors import safe_open

SCHEME = "int8-w8a16"
DTYPES = ("F32", "F16", "BF16")


def logits(folder: Path, **options: Any) -> list[Any]:
    model = load_model(folder, **options)
    return model.logits(model.forward([Segment([3, 1, 4, 1, 5], 0, [0])], KVCache(model.config, 1))[0]).tolist()


@pytest.fixture
def source(random_checkpoint: Callable[..., Path]) -> Path:
    folder = random_checkpoint("qwen2", seed=5, intermediate_size=50)
    (folder / "tokenizer.json").write_text('{"kept": true}')
    return folder


@given(
    weight=numpy_strategies.arrays(
        np.float32,
        numpy_strategies.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.floats(-6e4, 6e4, width=16),
    ),
    dtype=st.sampled_from(DTYPES),
)
def test_a_weight_is_off_by_at_most_half_a_step(weight: np.ndarray, dtype: str) -> None:
    scale = int8.scale_float32(int8.rounded_scale(weight, dtype))
    values = int8.quantize(weight, scale)
    error = np.abs(values * scale.astype(np.float64) - weight)
    assert (error <= scale * (0.5 + 1e-5)).all()
    assert np.abs(values.astype(int)).max() <= 127


@given(weight=st.floats(2.0**-24, 6e4, width=32), dtype=st.sampled_from(DTYPES))
def test_a_scale_is_the_least_of_its_dtype_that_covers_the_row(weight: float, dtype: str) -> None:
    stored = int8.rounded_scale(np.array([[weight]], np.float32), dtype)
    below = np.nextafter(stored, stored.dtype.type(0)) if dtype != "BF16" else stored - np.uint16(1)
    exact = np.float32(weight) / np.float32(127)
    assert int8.scale_float32(stored) >= exact > int8.scale_float32(below)


@given(
    numpy_strategies.arrays(
        np.int8, numpy_strategies.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-128, 127)
    )
)
def test_packing_is_undone_by_unpacking(values: np.ndarray) -> None:
    assert int8.unpack(int8.pack(values), values.shape[1]).tolist() == values.tolist()


def test_four_values_plus_128_stand_in_a_word_from_its_lowest_byte_on() -> None:
    packed = int8.pack(np.array([[-128, -127, 0, 127, 1]], np.int8))
    assert packed.tolist() == [[int.from_bytes(bytes([0, 1, 128, 255]), "little", signed=True), 129]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_rounding_on_load_gives_the_bits_of_the_quantized_checkpoint(
    family: str, dtype: str, random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = random_checkpoint(family, dtype=dtype, intermediate_size=50)
    quantize_checkpoint(folder, tmp_path / "out", SCHEME)
    assert logits(tmp_path / "out") == logits(folder, quantization="int8")
    assert logits(tmp_path / "out") == logits(tmp_path / "out", quantization="int8")
    assert logits(tmp_path / "out") != logits(folder)


def test_logits_stay_near_those_of_the_source(source: Path, tmp_path: Path) -> None:
    quantize_checkpoint(source, tmp_path / "out", SCHEME)
    np.testing.assert_allclose(logits(tmp_path / "out"), logits(source), rtol=0, atol=0.2)


def test_the_output_is_a_compressed_tensors_checkpoint(source: Path, tmp_path: Path) -> None:
    result = quantize_checkpoint(source, tmp_path / "out", SCHEME)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == json.loads((source / "config.json").read_text())
    assert quantization["quant_method"] == "compressed-tensors"
    assert quantization["format"] == "pack-quantized"
    assert quantization["ignore"] == ["lm_head"]
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as file:
        names = set(file.keys())
        packed = file.get_slice("model.layers.0.mlp.down_proj.weight_packed")
        scale = file.get_slice("model.layers.0.mlp.down_proj.weight_scale")
        assert (packed.get_dtype(), packed.get_shape()) == ("I32", [36, 13])
        assert (scale.get_dtype(), scale.get_shape()) == ("BF16", [36, 1])
        assert file.get_tensor("model.layers.0.mlp.down_proj.weight_shape").tolist() == [36, 50]
    untouched = {name for name in Checkpoint(source) if "_proj.weight" not in name}
    assert untouched < names
    assert len(names) == len(untouched) + 3 * 14
    assert len(result.quantized) == 14
    assert result.output_bytes < result.source_bytes


def test_other_files_are_copied(source: Path, tmp_path: Path) -> None:
    quantize_checkpoint(source, tmp_path / "out", SCHEME)
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"kept": true}'


def test_shards_stay_shards(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    quantize_checkpoint(random_checkpoint("llama", shards=3), tmp_path / "out", SCHEME)
    quantize_checkpoint(random_checkpoint("llama"), tmp_path / "one", SCHEME)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 3
    assert logits(tmp_path / "out") == logits(tmp_path / "one")


def test_progress_counts_every_tensor(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    quantize_checkpoint(source, tmp_path / "out", SCHEME, progress=lambda done, total: seen.append((done, total)))
    total = len(Checkpoint(source))
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_a_cancelled_quantization_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    answers = iter([False] * 5 + [True])
    with pytest.raises(QuantizationCancelled):
        quantize_checkpoint(source, tmp_path / "out", SCHEME, cancelled=lambda: next(answers))
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_not_finite_is_named_and_leaves_nothing_behind(
    random_checkpoint: Callable[..., Path], checkpoints: Any, tmp_path: Path
) -> None:
    folder = random_checkpoint(dtype="F32")
    tensors = checkpoints.random_tensors(checkpoints.random_config("llama"), 0)
    tensors["model.layers.1.self_attn.o_proj.weight"][2, 3] = np.nan
    checkpoints.write_file(folder / "model.safetensors", tensors)
    with pytest.raises(BadCheckpoint, match=r"layers\.1\.self_attn\.o_proj\.weight.* not finite"):
        quantize_checkpoint(folder, tmp_path / "out", SCHEME)
    with pytest.raises(BadCheckpoint, match=r"layers\.1\.self_attn\.o_proj\.weight.* not finite"):
        load_model(folder, quantization="int8")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_has_files_is_refused_and_kept(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        quantize_checkpoint(source, tmp_path, SCHEME)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


def test_an_empty_output_folder_is_filled(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    quantize_checkpoint(source, tmp_path / "out", SCHEME)
    assert (tmp_path / "out" / "config.json").exists()


def test_a_quantized_source_is_refused(source: Path, tmp_path: Path) -> None:
    quantize_checkpoint(source, tmp_path / "out", SCHEME)
    with pytest.raises(UnsupportedModel, match="is quantized already"):
        quantize_checkpoint(tmp_path / "out", tmp_path / "again", SCHEME)


def test_an_unknown_scheme_is_refused_by_name(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'int2'; the reference engine writes int8-w8a16"):
        quantize_checkpoint(source, tmp_path / "out", "int2")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"format": "int-quantized"}, "format is 'int-quantized'"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme is set"),
        (
            {
                "config_groups": {
                    "g": {"weights": {**int8.PACKED_CONFIG["config_groups"]["group_0"]["weights"], "num_bits": 4}}
                }
            },
            "num_bits 4",
        ),
    ],
)
def test_another_quantization_is_refused_by_name(
    change: dict[str, Any], named: str, source: Path, tmp_path: Path
) -> None:
    quantize_checkpoint(source, tmp_path / "out", SCHEME)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["quantization_config"] |= change
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match=named):
        load_model(tmp_path / "out")


def test_a_layer_that_a_quantizer_left_in_float_is_read_so(source: Path, tmp_path: Path, checkpoints: Any) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    quantize_checkpoint(source, tmp_path / "out", SCHEME)
    tensors = {key: np.array(tensor.data()) for key, tensor in Checkpoint(tmp_path / "out").items()}
    for suffix in ("_packed", "_scale", "_shape"):
        del tensors[name + suffix]
    tensors[name] = np.array(Checkpoint(source)[name].data())
    checkpoints.write_file(tmp_path / "out" / "model.safetensors", tensors)
    weights = int8.Int8Weights(Checkpoint(tmp_path / "out"), packed=True)
    assert weights.read(name, (50, 36)).tolist() == Checkpoint(source)[name].float32().tolist()
