"""What the wheels hold, built as a release would build them."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MIB = 2**20
PACKAGES = {
    "anyengine": "sdk",
    "anyengine_conformance": "conformance",
    "anyengine_reference": "plugins/reference",
    "anyengine_transformers": "plugins/transformers",
    "anyengine_vllm": "plugins/vllm",
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheels")
    for package in PACKAGES.values():
        command = [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", ROOT / package, "--out-dir", folder]
        subprocess.run(command, check=True, cwd=ROOT)
    return {wheel.name.split("-")[0]: zipfile.ZipFile(wheel) for wheel in folder.glob("*.whl")}


def _text(wheel: zipfile.ZipFile, ending: str) -> str:
    return wheel.read(next(name for name in wheel.namelist() if name.endswith(ending))).decode()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_is_typed_and_licensed_and_brings_no_tests(wheels, package: str):
    names = wheels[package].namelist()
    assert f"{package}/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert [name for name in names if "/tests/" in name or name.startswith("tests/")] == []
    assert "License-Expression: Apache-2.0" in _text(wheels[package], "METADATA")


def test_the_sdk_brings_the_command_and_its_templates(wheels):
    assert "anyengine = anyengine.cli:main" in _text(wheels["anyengine"], "entry_points.txt")
    sources = {str(p.relative_to(ROOT / "sdk/src")) for p in (ROOT / "sdk/src").rglob("*") if p.is_file()}
    missing = {name for name in sources if "__pycache__" not in name} - set(wheels["anyengine"].namelist())
    assert missing == set()


def test_the_sdk_depends_on_no_engine_and_not_on_torch(wheels):
    requirements = [line for line in _text(wheels["anyengine"], "METADATA").splitlines() if "Requires-Dist" in line]
    for name in ("torch", "transformers", "numpy", "vllm", "lmdeploy"):
        assert [line for line in requirements if line.split()[1].startswith(name)] == []


def test_the_built_in_models_are_in_the_wheel_and_small(wheels):
    sizes = {info.filename: info.file_size for info in wheels["anyengine_reference"].infolist()}
    models = "anyengine_reference/models"
    assert sizes[f"{models}/storyteller/model.safetensors"] <= 8 * MIB
    assert sizes[f"{models}/storyteller-draft/model.safetensors"] <= 4_000_000
    for model in ("storyteller", "storyteller-draft"):
        for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"):
            assert f"{models}/{model}/{name}" in sizes


@pytest.mark.parametrize("engine", ["reference", "transformers", "vllm"])
def test_an_engine_plugin_registers_itself(wheels, engine):
    package = f"anyengine_{engine}"
    assert f"[anyengine.engines]\n{engine} = {package}:plugin" in _text(wheels[package], "entry_points.txt")


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_an_engines_library_is_an_extra_of_its_plugin(wheels, engine):
    metadata = _text(wheels[f"anyengine_{engine}"], "METADATA")
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert [line for line in needed if line.split()[1].startswith(("torch", "transformers", "vllm"))] == []
    assert "Provides-Extra: engine" in metadata
