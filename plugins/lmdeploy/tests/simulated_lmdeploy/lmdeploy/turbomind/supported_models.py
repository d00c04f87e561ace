"""What TurboMind runs."""

import json
from pathlib import Path

__all__ = ["is_supported"]

#: Of the release's table those that the reference engine computes.
_ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def is_supported(model_path: str, trust_remote_code: bool = False) -> bool:  # noqa: FBT001, FBT002 as LMDeploy has it
    """Whether TurboMind has the architecture of a checkpoint."""
    return json.loads((Path(model_path) / "config.json").read_bytes())["architectures"][0] in _ARCHITECTURES
