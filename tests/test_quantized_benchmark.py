"""``benchmarks/quantized.py``: every checkpoint becomes a row, whatever becomes of the checkpoint."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from anyengine import Engine
from anyengine.quantization import MANIFEST

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "plugins" / "reference" / "src" / "anyengine_reference" / "models" / "storyteller"
QUICK = ("--rounds", "1", "--tokens", "2", "--requests", "2", "--at-once", "2")


@pytest.fixture(scope="module")
async def checkpoints(tmp_path_factory):
    """One that is good, one that others made, one that the engine does not have, one that was changed, and none."""
    folder = tmp_path_factory.mktemp("checkpoints")
    good = await Engine.quantize("reference", model=MODEL, scheme="int8-w8a16", output=folder / "good", oracle=None)
    for name in ("others", "foreign", "changed"):
        shutil.copytree(good, folder / name)
    (folder / "others" / MANIFEST).unlink()
    (folder / "foreign" / MANIFEST).unlink()
    config = json.loads((folder / "foreign" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 64}
    (folder / "foreign" / "config.json").write_text(json.dumps(config))
    (folder / "changed" / "tokenizer.json").write_text("{}")
    return [str(folder / name) for name in ("good", "others", "foreign", "changed", "none")]


def measure(checkpoints, file):
    program = (sys.executable, "benchmarks/quantized.py", "reference", "--model", str(MODEL))
    words = ("--label", "reference, tried", *QUICK, "--json", str(file))
    done = subprocess.run([*program, *words, *checkpoints], cwd=ROOT, capture_output=True, text=True, check=False)
    return done, {row["checkpoint"]: row for row in json.loads(file.read_text())["rows"]}


async def test_each_checkpoint_is_a_row_with_its_figures_or_its_error(checkpoints, tmp_path):
    done, rows = measure(checkpoints, tmp_path / "rows.json")
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "good": "measured",
        "others": "measured",
        "foreign": "refused",
        "changed": "failed",
        "none": "failed",
    }
    errors = {name: row["error"]["type"] for name, row in rows.items() if "error" in row}
    assert errors == {"foreign": "UnsupportedParameter", "changed": "ModelNotFound", "none": "ModelNotFound"}
    assert [(rows[name]["made_by"], rows[name]["made_as"]) for name in ("good", "others")] == [
        ("reference", "int8-w8a16"),
        ("others", "int8-w8a16"),
    ]
    assert rows["good"]["drift"] == rows["others"]["drift"]
    assert set(rows["good"]["speed"]) == {"alone", "together"}
    assert done.returncode == 1


async def test_a_second_call_measures_what_is_left(checkpoints, tmp_path):
    first = measure(checkpoints[:1], tmp_path / "rows.json")[1]
    done, rows = measure(checkpoints[:2], tmp_path / "rows.json")
    assert rows["good"] == first["good"]
    assert (rows["others"]["outcome"], done.returncode) == ("measured", 0)
