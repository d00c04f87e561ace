"""The sets of packages that TensorRT-LLM is run with, for ``anyengine env create trtllm``."""

from __future__ import annotations

from anyengine.backend import EnvironmentVariant, PipStep

__all__ = ["variants"]


def variants() -> dict[str, EnvironmentVariant]:
    """Variant → its packages."""
    return {
        "cuda": EnvironmentVariant(
            # The wheels of the release are built for these two interpreters.
            python=">=3.11,<3.13",
            # torch first, in the version that the release is built with: else pip takes a newer one.
            steps=(PipStep(("torch==2.9.1",)), PipStep(("tensorrt-llm==1.2.1",))),
            platform="linux",
            tested="never: these pins come from the release's own installation guide, and nobody has run them here",
        ),
        # For `quantize` alone: what TensorRT-LLM brings for it, without TensorRT-LLM, and without a GPU.
        "modelopt": EnvironmentVariant(
            python=">=3.11,<3.13",
            steps=(
                PipStep(("torch==2.13.0", "nvidia-modelopt==0.37.0", "transformers==4.57.1", "accelerate==1.15.0")),
            ),
            platform="linux",
            tested="nvidia-modelopt 0.37.0 with torch 2.13.0+cpu, Python 3.11, on two x86-64 cores; no GPU was there",
            quantize=True,
        ),
    }
