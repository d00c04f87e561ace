"""On what everything runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parents[2]
#: Packages that decide about numbers and speed.
PACKAGES = ("anyengine", "llmcompressor", "lmdeploy", "numpy", "tokenizers", "torch", "transformers", "triton", "vllm")
_TOPOLOGY = Path("/sys/devices/system/cpu")
_VERSIONS = "import json, importlib.metadata as m; print(json.dumps({d.name: d.version for d in m.distributions()}))"


def machine(pythons: dict[str, str], commit: str | None) -> dict[str, Any]:
    """Commit, GPUs, driver, and the packages of each interpreter."""
    described = _output("git", "describe", "--always", "--dirty")
    found: dict[str, Any] = {
        "commit": commit or described.strip() or None,
        "gpus": _output(
            "nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"
        ).splitlines(),
        "cores": len(cores(os.sched_getaffinity(0))),
        "threads": len(os.sched_getaffinity(0)),
        "packages": {},
    }
    for name, python in {"this": sys.executable, **pythons}.items():
        versions: dict[str, str] = json.loads(_output(python, "-c", _VERSIONS) or "{}")
        found["packages"][name] = {
            package: version
            for package, version in sorted(versions.items())
            if package.startswith(PACKAGES) or "cuda" in package
        }
    return found


def cores(processors: Iterable[int]) -> list[list[int]]:
    """The threads of each core, by what the kernel says of them; each is a core where it says nothing."""
    found: dict[str, list[int]] = {}
    for number in sorted(processors):
        siblings = _TOPOLOGY / f"cpu{number}" / "topology" / "thread_siblings_list"
        found.setdefault(siblings.read_text("ascii").strip() if siblings.exists() else str(number), []).append(number)
    return list(found.values())


def _output(*command: str) -> str:
    """What a program says; nothing where it is missing or fails."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
