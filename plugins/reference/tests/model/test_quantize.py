import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anyengine_reference.model import (
    BadCheckpoint,
    KVCache,
    ModelConfig,
    Segment,
    UnsupportedModel,
    compressed,
    integers,
    load_model,
    ops,
)
from anyengine_reference.model.checkpoint import Checkpoint, as_stored
from anyengine_reference.quantize import QuantizationCancelled, quantize_checkpoint, smooth
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
    scale = integers.scale_float32(integers.rounded_scale(weight, dtype))
    values = integers.quantize(weight, scale)
    error = np.abs(values * scale.astype(np.float64) - weight)
    assert (error <= scale * (0.5 + 1e-5)).all()
    assert np.abs(values.astype(int)).max() <= 127


@given(weight=st.floats(2.0**-24, 6e4, width=32), dtype=st.sampled_from(DTYPES))
def test_a_scale_is_the_least_of_its_dtype_that_covers_the_row(weight: float, dtype: str) -> None:
    stored = integers.rounded_scale(np.array([[weight]], np.float32), dtype)
    below = np.nextafter(stored, stored.dtype.type(0)) if dtype != "BF16" else stored - np.uint16(1)
    exact = np.float32(weight) / np.float32(127)
    assert integers.scale_float32(stored) >= exact > integers.scale_float32(below)


@given(
    numpy_strategies.arrays(
        np.int8, numpy_strategies.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-128, 127)
    )
)
def test_packing_is_undone_by_unpacking(values: np.ndarray) -> None:
    assert integers.unpack(integers.pack(values), values.shape[1]).tolist() == values.tolist()


@given(
    numpy_strategies.arrays(
        np.int8, numpy_strategies.array_shapes(min_dims=2, max_dims=2, max_side=19), elements=st.integers(-8, 7)
    )
)
def test_packing_four_bits_is_undone_by_unpacking(values: np.ndarray) -> None:
    assert integers.unpack(integers.pack(values, bits=4), values.shape[1], bits=4).tolist() == values.tolist()


def test_eight_values_plus_8_stand_in_a_word_from_its_lowest_bits_on() -> None:
    packed = integers.pack(np.array([[-8, -7, 0, 7, 1, 2, 3, 4, 5]], np.int8), bits=4)
    assert packed.view(np.uint32).tolist() == [[0xCBA9F810, 0xD]]


@given(
    weight=numpy_strategies.arrays(np.float32, (3, 8), elements=st.floats(-6e4, 6e4, width=16)),
    dtype=st.sampled_from(DTYPES),
)
def test_a_weight_of_a_group_is_off_by_at_most_half_a_step_of_its_group(weight: np.ndarray, dtype: str) -> None:
    scale = integers.scale_float32(integers.rounded_scale(weight, dtype, bits=4, group_size=4))
    assert scale.shape == (3, 2)
    values = integers.quantize(weight, scale, bits=4)
    step = np.repeat(scale.astype(np.float64), 4, axis=1)
    assert (np.abs(values * step - weight) <= step * (0.5 + 1e-5)).all()
    assert ((values >= -8) & (values <= 7)).all()


def test_four_values_plus_128_stand_in_a_word_from_its_lowest_byte_on() -> None:
    packed = integers.pack(np.array([[-128, -127, 0, 127, 1]], np.int8))
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


def test_a_cancelled_quantization_ends_between_tensors(source: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(len(asked))
        return len(asked) == 6

    done: list[int] = []
    with pytest.raises(QuantizationCancelled):
        quantize_checkpoint(
            source, tmp_path / "out", SCHEME, progress=lambda count, _total: done.append(count), cancelled=cancelled
        )
    assert (len(asked), done) == (6, [1, 2, 3, 4, 5])


def test_a_weight_that_is_not_finite_is_named(
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


GROUP = compressed.quantization_config(compressed.Stored(8))["config_groups"]["group_0"]
ROWS = compressed.quantization_config(compressed.Stored(8, packed=False, rows="int8"))["config_groups"]["group_0"][
    "input_activations"
]


def weights(**changes: Any) -> dict[str, Any]:
    return {**GROUP, "weights": {**GROUP["weights"], **changes}}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"quant_method": "gptq"}, "quant_method is 'gptq'"),
        ({"format": "naive-quantized"}, "format is 'naive-quantized'"),
        ({"format": "float-quantized"}, "group_0 has weights of type 'int'"),
        ({"format": "int-quantized"}, "input_activations of num_bits None"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme is set"),
        ({"config_groups": {}}, "there are no config_groups"),
        ({"config_groups": {"g": weights(num_bits=3)}}, "g has weights of num_bits 3"),
        ({"config_groups": {"g": weights(type="float")}}, "g has weights of type 'float'"),
        ({"config_groups": {"g": weights(strategy="block")}}, "g has weights of strategy 'block'"),
        ({"config_groups": {"g": GROUP | {"input_activations": ROWS}}}, "g has input_activations"),
        ({"config_groups": {"g": GROUP | {"output_activations": ROWS}}}, "g has output_activations"),
        ({"config_groups": {"g": GROUP, "h": weights(num_bits=4)}}, "the layers differ: int4-w4a16, int8-w8a16"),
        (
            {
                "format": "int-quantized",
                "config_groups": {"g": GROUP | {"input_activations": ROWS | {"dynamic": False}}},
            },
            "g has input_activations of dynamic False",
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
    weights = compressed.QuantizedWeights(Checkpoint(tmp_path / "out"), compressed.Stored(8))
    assert weights.read(name, (50, 36)).tolist() == Checkpoint(source)[name].float32().tolist()


SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}


def planted(folder: Path, checkpoints: Any, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Rewrite the weights of a checkpoint with some of them changed."""
    tensors = {name: np.array(tensor.data()) for name, tensor in Checkpoint(folder).items()}
    change(tensors)
    checkpoints.write_file(folder / "model.safetensors", tensors)


@pytest.mark.parametrize("scheme", ["int8-w8a8", "int4-w4a16"])
def test_every_scheme_is_read_as_it_was_written(
    scheme: str, random_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = random_checkpoint("llama", dtype="BF16", **SIZES)
    made = quantize_checkpoint(source, tmp_path / "out", scheme)
    assert compressed.read_config(json.loads((tmp_path / "out" / "config.json").read_text())) == made.stored
    assert made.stored.scheme == scheme
    weights = compressed.QuantizedWeights(Checkpoint(tmp_path / "out"), made.stored)
    for name in made.quantized:
        exact = Checkpoint(source)[name].float32()
        stored = Checkpoint(tmp_path / "out")[f"{name}_scale"]
        step = np.repeat(stored.float32(), exact.shape[1] // stored.shape[1], axis=1)
        assert (np.abs(weights.read(name, exact.shape) - exact) <= step * (0.5 + 1e-5)).all()


def test_group_sizes_that_fit_no_matrix_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"inputs cannot be cut into groups of \(128, 64, 32\)"):
        quantize_checkpoint(source, tmp_path / "out", "int4-w4a16")


def test_rows_are_rounded_before_a_product_with_8_bit_activations() -> None:
    rows = ops.aligned(2, 16)
    rows[...] = np.linspace(-3, 3, 32).reshape(2, 16)
    expected = [np.rint(row * np.float32(127) / np.abs(row).max()) * np.abs(row).max() / 127 for row in rows]
    np.testing.assert_allclose(ops.int8_rows(rows), expected, rtol=1e-6)
    weight = np.eye(16, dtype=np.float32)
    assert ops.Linear(weight, rounded="int8")(rows)[0][:, :16].tolist() == ops.int8_rows(rows).tolist()


def test_zero_points_and_grouped_columns_are_read(
    random_checkpoint: Callable[..., Path], checkpoints: Any, tmp_path: Path
) -> None:
    quantize_checkpoint(random_checkpoint("llama", dtype="F32", **SIZES), tmp_path / "out", "int4-w4a16")
    name = "model.layers.0.mlp.down_proj.weight"
    stored = compressed.Stored(4, group_size=32)
    plain = compressed.QuantizedWeights(Checkpoint(tmp_path / "out"), stored).read(name, (64, 96))
    scale = Checkpoint(tmp_path / "out")[f"{name}_scale"].float32()
    zero = np.random.default_rng(0).integers(-8, 8, (64, 3), np.int8)
    columns = np.arange(96) % 3

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{name}_zero_point"] = np.ascontiguousarray(integers.pack(np.ascontiguousarray(zero.T), bits=4).T)

    planted(tmp_path / "out", checkpoints, change)
    weights = compressed.QuantizedWeights(Checkpoint(tmp_path / "out"), compressed.Stored(4, 32, symmetric=False))
    expected = plain - np.repeat(zero * scale, 32, axis=1)
    np.testing.assert_allclose(weights.read(name, (64, 96)), expected, rtol=1e-5, atol=1e-6)

    def regroup(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{name}_g_idx"] = columns.astype(np.int32)

    planted(tmp_path / "out", checkpoints, regroup)
    regrouped = compressed.QuantizedWeights(Checkpoint(tmp_path / "out"), stored).read(name, (64, 96))
    values = plain / np.repeat(scale, 32, axis=1)
    np.testing.assert_allclose(regrouped, values * scale[:, columns], rtol=1e-5, atol=1e-6)


def test_rounding_on_load_is_refused_for_another_scheme(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    quantize_checkpoint(random_checkpoint("llama", **SIZES), tmp_path / "out", "int4-w4a16")
    with pytest.raises(UnsupportedModel, match="the checkpoint is int4-w4a16 already"):
        load_model(tmp_path / "out", quantization="int8")


def test_projections_that_share_a_product_are_quantized_alike(
    random_checkpoint: Callable[..., Path], checkpoints: Any, tmp_path: Path
) -> None:
    source = random_checkpoint("llama", **SIZES)
    quantize_checkpoint(source, tmp_path / "out", "int8-w8a8")
    name = "model.layers.0.self_attn.k_proj.weight"

    def leave(tensors: dict[str, np.ndarray]) -> None:
        del tensors[f"{name}_scale"]
        tensors[name] = np.array(Checkpoint(source)[name].data())

    planted(tmp_path / "out", checkpoints, leave)
    with pytest.raises(UnsupportedModel, match="some are quantized with their activations and some are not"):
        load_model(tmp_path / "out")


def test_a_group_outside_of_those_there_are_is_a_damaged_checkpoint(
    random_checkpoint: Callable[..., Path], checkpoints: Any, tmp_path: Path
) -> None:
    quantize_checkpoint(random_checkpoint("llama", **SIZES), tmp_path / "out", "int4-w4a16")

    def regroup(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.mlp.down_proj.weight_g_idx"] = np.full(96, 3, np.int32)

    planted(tmp_path / "out", checkpoints, regroup)
    with pytest.raises(BadCheckpoint, match="names a group outside 0 to 2"):
        load_model(tmp_path / "out")


def logits_of(folder: Path, ids: list[int]) -> np.ndarray:
    model = load_model(folder)
    return model.logits(model.forward([Segment(ids, 0, [0, 1])], KVCache(model.config, 2))[0])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_smoothing_changes_no_bit_of_the_float_model(
    family: str, random_checkpoint: Callable[..., Path], checkpoints: Any, tmp_path: Path
) -> None:
    source = random_checkpoint(family, dtype="BF16", mlp_bias=family == "llama", **SIZES)
    config = ModelConfig.from_dict(json.loads((source / "config.json").read_text()))
    steps: list[int] = []
    factors = smooth.smoothing_factors(config, Checkpoint(source), [[1, 2, 3], [4, 5]], lambda: steps.append(1))
    assert len(steps) == 2
    factor_values = np.concatenate([factor.columns for factor in factors.values() if factor.columns is not None])
    assert len(set(factor_values.tolist())) > 2
    assert (np.exp2(np.rint(np.log2(factor_values))) == factor_values).all()
    smoothed = tmp_path / "smoothed"
    smoothed.mkdir()
    (smoothed / "config.json").write_text((source / "config.json").read_text())
    tensors = {
        name: as_stored(factors[name](tensor.float32()) if name in factors else tensor.float32(), "BF16")
        for name, tensor in Checkpoint(source).items()
    }
    checkpoints.write_file(smoothed / "model.safetensors", tensors)
    assert logits_of(smoothed, [3, 1, 4, 1, 5]).tolist() == logits_of(source, [3, 1, 4, 1, 5]).tolist()


def test_smoothing_helps_where_one_channel_is_much_larger(
    random_checkpoint: Callable[..., Path], checkpoints: Any, tmp_path: Path
) -> None:
    source = random_checkpoint("llama", dtype="F32", **SIZES)

    def outlier(tensors: dict[str, np.ndarray]) -> None:
        for layer in range(2):
            for norm, names in {
                "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
            }.items():
                tensors[f"model.layers.{layer}.{norm}.weight"][7] *= 64
                for name in names:
                    tensors[f"model.layers.{layer}.{name}.weight"][:, 7] /= 64

    planted(source, checkpoints, outlier)
    ids = list(range(1, 30))
    errors = {}
    for name, calibration in (("rounded", []), ("smoothed", [ids])):
        made = quantize_checkpoint(source, tmp_path / name, "int8-w8a8", calibration=calibration)
        assert (made.smoothing is not None) == bool(calibration)
        errors[name] = np.abs(logits_of(tmp_path / name, ids) - logits_of(source, ids)).mean()
    assert errors["smoothed"] < errors["rounded"] / 2


def test_a_cancelled_calibration_ends_between_sequences(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    done: list[int] = []
    with pytest.raises(QuantizationCancelled):
        quantize_checkpoint(
            random_checkpoint("llama", **SIZES),
            tmp_path / "out",
            "int8-w8a8",
            calibration=[[1, 2], [3, 4], [5, 6]],
            progress=lambda count, _total: done.append(count),
            cancelled=lambda: len(done) == 2,
        )
    assert done == [1, 2]


def test_bytes_of_8_bit_floats_have_the_values_of_e4m3() -> None:
    assert integers.E4M3[[0x00, 0x01, 0x08, 0x38, 0x7E, 0x80, 0xC0]].tolist() == [0, 2**-9, 2**-6, 1, 448, 0, -2]
    assert np.isnan(integers.E4M3).nonzero()[0].tolist() == [0x7F, 0xFF]
    assert sorted(integers.E4M3[:0x7F].tolist()) == integers.E4M3[:0x7F].tolist()


@given(numpy_strategies.arrays(np.float32, (2, 16), elements=st.floats(-1e4, 1e4, width=32)))
def test_rows_are_rounded_to_the_nearest_8_bit_float(values: np.ndarray) -> None:
    rows = ops.aligned(2, 16)
    rows[...] = values
    rounded = ops.fp8_rows(rows)
    grid = integers.E4M3[~np.isnan(integers.E4M3)].astype(np.float64)
    scale = np.maximum(np.abs(values).max(1, keepdims=True) / np.float32(448), np.float32(2.0**-126)).astype(np.float64)
    nearest = np.abs(values[:, :, None] / scale[:, :, None] - grid).min(2)
    # Beside the rounding that is meant there is that of float32, of values up to 448.
    assert (np.abs(rounded / scale - values / scale) <= nearest + 448 * 2.0**-22).all()


def test_a_checkpoint_of_8_bit_floats_is_read(
    random_checkpoint: Callable[..., Path], checkpoints: Any, tmp_path: Path
) -> None:
    source = random_checkpoint("llama", dtype="F32", **SIZES)
    quantize_checkpoint(source, tmp_path / "out", "int8-w8a8")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    part = config["quantization_config"]["config_groups"]["group_0"]
    config["quantization_config"]["format"] = "float-quantized"
    part["weights"]["type"] = part["input_activations"]["type"] = "float"
    stored = compressed.read_config(config)
    assert stored is not None
    assert (stored.scheme, stored.rows) == ("fp8-dynamic", "fp8")
    name = "model.layers.0.mlp.down_proj.weight"
    checkpoint = Checkpoint(tmp_path / "out")
    with pytest.raises(BadCheckpoint, match=r"is I8 .* it should be F8_E4M3"):
        compressed.QuantizedWeights(checkpoint, stored).read(name, (64, 96))
    # The same bytes, named otherwise.
    file = tmp_path / "out" / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].replace(b'"I8"', b'"F8_E4M3"').rstrip()
    header += b" " * (-len(header) % 8)
    file.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
    checkpoint = Checkpoint(tmp_path / "out")
    weight = compressed.QuantizedWeights(checkpoint, stored).read(name, (64, 96))
    expected = integers.E4M3[checkpoint[name].data()] * checkpoint[f"{name}_scale"].float32()
    np.testing.assert_array_equal(weight, expected)
    assert compressed.QuantizedWeights(checkpoint, stored).rounded(name) == "fp8"
