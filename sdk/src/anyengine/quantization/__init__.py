"""Quantised checkpoints: making them, what they say of themselves, and where they run.

``stored`` reads how a checkpoint is quantised, ``support`` holds that against what an engine declares; ``calibration``
draws the text that a scheme is fitted to; ``run`` makes a checkpoint (``make`` is the part of it that runs where the
engine's toolchain is), ``drift`` measures what it costs, and ``manifest`` is the passport that it gets.
"""

from __future__ import annotations

from anyengine.quantization.calibration import Calibration
from anyengine.quantization.drift import Drift, compare, held_out_texts, scores_of
from anyengine.quantization.manifest import MANIFEST, Manifest, check_manifest, read_manifest
from anyengine.quantization.stored import StoredQuantization, read_stored
from anyengine.quantization.support import why_not

__all__ = [
    "MANIFEST",
    "Calibration",
    "Drift",
    "Manifest",
    "StoredQuantization",
    "check_manifest",
    "compare",
    "held_out_texts",
    "read_manifest",
    "read_stored",
    "scores_of",
    "why_not",
]
