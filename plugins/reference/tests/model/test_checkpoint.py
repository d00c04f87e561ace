import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anyengine_reference.model import BadCheckpoint, KVCache, ModelConfig, Segment, UnsupportedModel, load_model
from anyengine_reference.model.checkpoint import Checkpoint, write_safetensors
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def logits(folder: Path, **options: Any) -> list[Any]:
    model = load_model(folder, **options)
    return model.logits(model.forward([Segment(TOKENS, 0, [0])], KVCache(model.config, 1))[0]).tolist()


def edit(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> Path:
    """Load the tensors of a float32 checkpoint, change them and save them again."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def edit_config(folder: Path, **fields: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_shards_are_the_same_model_as_one_file(dtype: str, random_checkpoint: Callable[..., Path]) -> None:
    one, three = (random_checkpoint("qwen3", dtype=dtype, shards=shards) for shards in (1, 3))
    assert logits(one) == logits(three)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_half_precision_is_read_exactly(dtype: str, random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = Checkpoint(random_checkpoint("llama", dtype=dtype))
    halves = {"F16": lambda x: x.view(np.float16).astype(float), "BF16": lambda x: np.array(x, float)}
    tensor = source["model.norm.weight"]
    stored = np.array(tensor.data())
    if dtype == "BF16":  # sign, 8 bits of exponent, 7 of mantissa
        sign, exponent, mantissa = stored >> 15, (stored >> 7) & 0xFF, stored & 0x7F
        expected = (1 - 2.0 * sign) * 2.0 ** (exponent.astype(float) - 127) * (1 + mantissa / 128)
    else:
        expected = halves[dtype](stored)
    assert tensor.float32().tolist() == expected.tolist()


def test_what_is_written_is_read_by_the_safetensors_package(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "empty": np.zeros((0, 4), np.float32)}
    layout = {"a": ("I32", (2, 3)), "empty": ("F32", (0, 4))}
    assert write_safetensors(tmp_path / "x.safetensors", layout, arrays.values()) == 24
    with safe_open(tmp_path / "x.safetensors", "np") as file:
        assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {  # noqa: SIM118 - not a mapping
            name: array.tolist() for name, array in arrays.items()
        }


def test_a_missing_tensor_is_named(random_checkpoint: Callable[..., Path]) -> None:
    folder = edit(random_checkpoint(dtype="F32"), lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(BadCheckpoint, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' is missing"):
        load_model(folder)


def test_a_tensor_of_another_shape_is_named(random_checkpoint: Callable[..., Path]) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.norm.weight"] = np.ones(35, np.float32)

    with pytest.raises(BadCheckpoint, match=r"'model\.norm\.weight' has the shape \[35\]; .* should be \[36\]"):
        load_model(edit(random_checkpoint(dtype="F32"), change))


def test_a_tensor_of_another_dtype_is_named(random_checkpoint: Callable[..., Path]) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.norm.weight"] = np.ones(36, np.int8)

    with pytest.raises(BadCheckpoint, match=r"'model\.norm\.weight' is I8; it should be F32, F16 or BF16"):
        load_model(edit(random_checkpoint(dtype="F32"), change))


@pytest.mark.parametrize("kept", [0, 5, 8, 100, 0.5, 0.999])
def test_a_truncated_file_is_named(kept: float, random_checkpoint: Callable[..., Path]) -> None:
    file = random_checkpoint() / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors: is cut off"):
        load_model(file.parent)


def _file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (_file(b"{not json"), "header is not JSON"),
        (_file(b"\xff\xfe"), "header is not JSON"),
        (_file([1]), "header is not a JSON object"),
        (_file({"x": {"dtype": "F32", "shape": [2]}}), "'x' has an entry without .*data_offsets"),
        (_file({"x": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}), "'x' has an entry .*F99"),
        (_file({"x": {"dtype": "F32", "shape": "wide", "data_offsets": [0, 8]}}), "'x' has an entry that cannot"),
        (_file({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(12)), "do not go together"),
        (_file({"x": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}, bytes(8)), "do not go together"),
        (_file({"x": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, bytes(8)), "do not go together"),
        (_file({"x": 5}), "'x' has an entry that cannot"),
    ],
)
def test_a_corrupt_header_is_named(content: bytes, named: str, random_checkpoint: Callable[..., Path]) -> None:
    file = random_checkpoint() / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(BadCheckpoint, match=rf"model\.safetensors: .*{named}"):
        load_model(file.parent)


def test_pickled_weights_are_never_read(random_checkpoint: Callable[..., Path]) -> None:
    folder = random_checkpoint()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(BadCheckpoint, match=r"pickled \(pytorch_model\.bin\)"):
        load_model(folder)


def test_a_folder_without_weights_says_what_is_missing(random_checkpoint: Callable[..., Path]) -> None:
    folder = random_checkpoint()
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        load_model(folder)


def test_a_missing_shard_is_named(random_checkpoint: Callable[..., Path]) -> None:
    folder = random_checkpoint(shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"model-00002-of-00002\.safetensors: not readable"):
        load_model(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": {"x": "../x"}}, {"weight_map": {"x": 1}}])
def test_an_index_that_names_no_files_of_the_folder_is_refused(
    index: Any, random_checkpoint: Callable[..., Path]
) -> None:
    folder = random_checkpoint(shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BadCheckpoint, match=r"weight_map should name a file of this folder"):
        load_model(folder)


@pytest.mark.parametrize(
    ("content", "named"), [(None, "not found"), ("{", "not readable as JSON"), ("[]", "JSON object")]
)
def test_a_bad_config_file_is_named(content: str | None, named: str, random_checkpoint: Callable[..., Path]) -> None:
    folder = random_checkpoint()
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    with pytest.raises(BadCheckpoint, match=rf"config\.json: .*{named}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (
            {"architectures": ["GemmaForCausalLM"], "model_type": "gemma"},
            "'GemmaForCausalLM'.*LlamaForCausalLM, Mistral",
        ),
        ({"architectures": None, "model_type": "mamba"}, "'mamba'"),
        ({"model_type": "mistral"}, "'LlamaForCausalLM'.*model_type 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"head_dim": 13}, "head_dim is 13"),
        ({"layer_types": ["full_attention"]}, "layer_types is"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "has no sliding_window"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method is 'gptq'"),
    ],
)
def test_another_kind_of_model_is_refused_by_name(
    fields: dict[str, Any], named: str, random_checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        load_model(edit_config(random_checkpoint(), **fields))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"vocab_size": None}, "'vocab_size' is missing"),
        ({"hidden_size": "wide"}, "'hidden_size' is 'wide'"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' is 0"),
        ({"num_hidden_layers": 2.5}, "'num_hidden_layers' is 2.5"),
        ({"rms_norm_eps": True}, "'rms_norm_eps' is True"),
        ({"num_key_value_heads": 2}, "3 attention heads do not divide among 2"),
        ({"tie_word_embeddings": "no"}, "'tie_word_embeddings' is 'no'"),
        ({"rope_parameters": "yarn"}, "rope parameters are 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "'factor' is None"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 1}},
            "not above",
        ),
    ],
)
def test_a_field_that_makes_no_sense_is_named(
    fields: dict[str, Any], named: str, random_checkpoint: Callable[..., Path]
) -> None:
    with pytest.raises(BadCheckpoint, match=named):
        load_model(edit_config(random_checkpoint(), **fields))


def test_an_unknown_quantization_is_refused_by_name(random_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedModel, match="quantization is 'int3'"):
        load_model(random_checkpoint(), quantization="int3")


def test_a_mistral_config_that_leaves_the_window_out_has_that_of_the_family(checkpoints: Any) -> None:
    config = checkpoints.random_config("mistral")
    del config["sliding_window"]
    assert ModelConfig.from_dict(config).sliding_windows == (4096, 4096)


def test_the_model_needs_no_torch(random_checkpoint: Callable[..., Path]) -> None:
    program = (
        "import sys; from pathlib import Path; import anyengine_reference.quantize;"
        "from anyengine_reference.model import load_model;"
        "load_model(Path(sys.argv[1])); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(random_checkpoint())]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
