"""What can be known of the engine without torch."""

import subprocess
import sys

import pytest
from anyengine import Engine, InvalidConfig, UnsupportedParameter
from anyengine.backend import PipStep
from anyengine.testing import make_model_folder
from anyengine_transformers import libraries, plugin


def test_describing_imports_neither_torch_nor_transformers_nor_numpy():
    program = (
        "import sys; from anyengine_transformers import plugin; plugin.describe(); "
        "print(sorted({'torch', 'transformers', 'numpy', 'llguidance'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_engine_without_its_libraries_says_how_to_install_them(monkeypatch):
    monkeypatch.setattr(libraries, "find_spec", lambda name: None if name == "torch" else object())
    assert plugin.describe().unavailable == "torch is not installed here"


def test_every_package_of_an_environment_is_pinned():
    description = plugin.describe()
    assert list(description.environments) == ["cpu", "cuda"]
    for variant in description.environments.values():
        assert all(isinstance(step, PipStep) for step in variant.steps)
        assert all("==" in requirement for step in variant.steps for requirement in step.requirements)


@pytest.mark.parametrize(
    ("config", "error", "field"),
    [
        ({"execution": "graph"}, UnsupportedParameter, "execution"),
        ({"native": {"flash": True}}, InvalidConfig, "native.flash"),
        ({"native": {"attn_implementation": "flash_attention_2"}}, InvalidConfig, "native.attn_implementation"),
        ({"native": {"attn_implementation": ["eager"]}}, InvalidConfig, "native.attn_implementation"),
        ({"device": "tpu"}, UnsupportedParameter, "device"),
        ({"quantization": "int8"}, UnsupportedParameter, "quantization"),
        ({"kv_cache": {"prefix_caching": True}}, UnsupportedParameter, "kv_cache.prefix_caching"),
        ({"parallel": {"tensor": 2}}, UnsupportedParameter, "parallel.tensor"),
    ],
    ids=str,
)
async def test_what_cannot_be_honoured_is_refused_before_anything_is_read(config, error, field, tmp_path, monkeypatch):
    monkeypatch.setattr(libraries, "find_spec", lambda _: object())
    with pytest.raises(error) as caught:
        await Engine.load(plugin, str(make_model_folder(tmp_path)), isolation="none", **config)
    assert caught.value.field == field
