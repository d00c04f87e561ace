import math
from typing import Any

import numpy as np
import pytest
from anyengine_reference.model import ModelConfig, UnsupportedModel
from anyengine_reference.model.config import RopeConfig
from anyengine_reference.model.rope import RotaryTable, inverse_frequencies, rotate

DIM = 64


def wavelengths(theta: float) -> list[float]:
    return [2 * math.pi * theta ** (2 * i / DIM) for i in range(DIM // 2)]


def test_default_frequencies_are_a_geometric_series() -> None:
    expected = [2 * math.pi / wave for wave in wavelengths(10000.0)]
    actual, factor = inverse_frequencies(RopeConfig(), DIM)
    np.testing.assert_allclose(actual, expected, rtol=1e-14)
    assert factor == 1.0


def test_linear_scaling_divides_every_frequency() -> None:
    expected = [2 * math.pi / wave / 8 for wave in wavelengths(500000.0)]
    actual, factor = inverse_frequencies(RopeConfig("linear", 500000.0, 8.0), DIM)
    np.testing.assert_allclose(actual, expected, rtol=1e-14)
    assert factor == 1.0


def test_llama3_scaling_leaves_short_waves_and_divides_long_ones() -> None:
    expected = []
    for wave in wavelengths(500000.0):
        if wave < 8192 / 4:
            expected.append(2 * math.pi / wave)
        elif wave > 8192 / 1:
            expected.append(2 * math.pi / wave / 32)
        else:
            smooth = (8192 / wave - 1) / (4 - 1)
            expected.append((1 - smooth) * 2 * math.pi / wave / 32 + smooth * 2 * math.pi / wave)
    actual, factor = inverse_frequencies(RopeConfig("llama3", 500000.0, 32.0, 8192, 1.0, 4.0), DIM)
    np.testing.assert_allclose(actual, expected, rtol=1e-14)
    assert factor == 1.0


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_interpolates_by_how_often_a_feature_turns(truncate: bool) -> None:  # noqa: FBT001 - a parameter
    def feature(turns: float) -> float:
        """The index, as a real number, of the feature that turns so often within the original context."""
        return DIM / 2 * math.log(4096 / (2 * math.pi * turns), 10000.0)

    low, high = feature(32), feature(1)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    expected = []
    for i, wave in enumerate(wavelengths(10000.0)):
        ramp = min(max((i - low) / (high - low), 0), 1)
        expected.append(2 * math.pi / wave * ((1 - ramp) + ramp / 16))
    actual, factor = inverse_frequencies(RopeConfig("yarn", 10000.0, 16.0, 4096, truncate=truncate), DIM)
    np.testing.assert_allclose(actual, expected, rtol=1e-13)
    assert factor == 0.1 * math.log(16) + 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"attention_factor": 1.25}, 1.25),
        ({"mscale": 0.5, "mscale_all_dim": 2.0}, (0.05 * math.log(16) + 1) / (0.2 * math.log(16) + 1)),
        ({"mscale": 0.5}, 0.1 * math.log(16) + 1),
    ],
)
def test_yarn_takes_the_attention_factor_that_a_checkpoint_states(fields: dict[str, float], expected: float) -> None:
    assert inverse_frequencies(RopeConfig("yarn", 10000.0, 16.0, 4096, **fields), DIM)[1] == pytest.approx(expected)


def test_a_rotation_is_right_to_float32_at_far_positions_too() -> None:
    positions = np.array([0, 1, 1023, 1024, 130000])
    heads = np.random.default_rng(0).standard_normal((5, 2, DIM)).astype(np.float32)
    frequencies = [10000.0 ** (-2 * i / DIM) for i in range(DIM // 2)]
    pairs = heads[..., : DIM // 2].astype(np.float64) + 1j * heads[..., DIM // 2 :]
    pairs *= np.exp(1j * positions[:, None] * frequencies)[:, None]
    rotate(heads, *RotaryTable(RopeConfig(), DIM).lookup(positions))
    np.testing.assert_allclose(heads, np.concatenate([pairs.real, pairs.imag], -1), rtol=0, atol=1e-6)


def read(checkpoints: Any, **fields: Any) -> RopeConfig:
    config = checkpoints.random_config("llama", **fields)
    return ModelConfig.from_dict({name: value for name, value in config.items() if value != "left out"}).rope


def test_parameters_are_read_as_transformers_5_writes_them(checkpoints: Any) -> None:
    stated = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 128}
    assert read(checkpoints, rope_parameters=stated) == RopeConfig("yarn", 5e5, 4.0, 128)


def test_parameters_are_read_as_transformers_4_wrote_them(checkpoints: Any) -> None:
    stated = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}, "rope_parameters": "left out"}
    assert read(checkpoints, **stated) == RopeConfig("linear", 5e5, 4.0)


def test_no_parameters_at_all_are_the_default_ones(checkpoints: Any) -> None:
    assert read(checkpoints, rope_parameters="left out") == RopeConfig("default", 10000.0)


def test_yarn_without_a_factor_takes_the_ratio_of_the_contexts(checkpoints: Any) -> None:
    stated = {"rope_type": "yarn", "original_max_position_embeddings": 128, "factor": None}
    assert read(checkpoints, rope_parameters=stated).factor == 4.0


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic' turns a key by an angle"),
        ({"rope_type": "longrope"}, "'longrope'; the reference engine computes default, linear, llama3, yarn"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"full_attention": {"rope_type": "default"}}, "differ by layer type"),
    ],
)
def test_other_rope_parameters_are_refused_by_name(parameters: dict[str, Any], named: str, checkpoints: Any) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        read(checkpoints, rope_parameters=parameters)
