"""The sets of packages that LMDeploy is run with, for ``anyengine env create lmdeploy``."""

from __future__ import annotations

from anyengine.backend import EnvironmentVariant, PipStep

__all__ = ["variants"]


def variants() -> dict[str, EnvironmentVariant]:
    """Variant → its packages."""
    return {
        "cuda": EnvironmentVariant(
            python=">=3.11,<3.14",
            # torch first, in the version that it was seen to run with: else pip takes a newer one.
            steps=(PipStep(("torch==2.11.0",)), PipStep(("lmdeploy==0.18.0", "xgrammar==0.2.8"))),
            platform="linux",
            tested="LMDeploy 0.18.0 with Python 3.12, CUDA 13, torch 2.11 and xgrammar 0.2.8 on an H200; these "
            "packages as they are, not installed through this package",
        ),
    }
