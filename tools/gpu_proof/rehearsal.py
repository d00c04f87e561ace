"""The same plan for a machine without GPUs: mistakes of these programs show before a machine is lent.

Every step runs with the reference engine in place of the others, each in an environment of their names that is this
interpreter, and with little to do. What it writes says nothing about any engine. What drives an engine by its own API
is left out, and tests of an engine are only collected.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from . import variants
from .plan import Plan

MODEL = "plugins/reference/src/anyengine_reference/models/storyteller"
#: The last of several values of an option counts.
EXTRA = {
    "draft": ("--layers", "1"),
    "answers": ("--max-tokens", "4"),
    "conformance-smollm2": ("--oracle", "reference"),
    "determinism": ("--oracle", "reference"),
    "tests": ("--collect-only",),
    "two-gpus": ("--collect-only",),
    "side-by-side": ("--max-tokens", "4"),
    "quantized": ("--rounds", "1", "--tokens", "4", "--requests", "2"),
    "concurrency": ("--rounds", "1", "--tokens", "4", "--numbers", "1,2"),
    "speculation": ("--rounds", "1", "--tokens", "2"),
    "parity": ("--oracle", "reference", "-o", "device=cpu"),
}


def environments() -> dict[str, str]:
    """This interpreter under every name that the plan has."""
    every = [variant.environment for variant in variants.VARIANTS]
    every += [quantizer.environment for quantizer in variants.QUANTIZERS]
    return {name: sys.executable for name in every if name is not None}


def own_home() -> None:
    """Keep environments in a folder apart from the user's."""
    os.environ["ANYENGINE_HOME"] = tempfile.mkdtemp(prefix="anyengine-rehearsal-")


def rehearsal(results: Path, pythons: dict[str, str]) -> Plan:
    """The plan."""
    return Plan(
        MODEL,
        results,
        pythons,
        made=Path(".cache/gpu-proof-rehearsal"),
        variants=[
            replace(
                each,
                engine="reference",
                options=("kv_cache.capacity_tokens=16384",),
                suite=("reference",) if each.suite else (),
                parts=2,
                overhead=(),
            )
            for each in variants.VARIANTS
        ],
        quantizers=[
            replace(each, engine="reference", schemes=dict.fromkeys(each.schemes, "int8-w8a16"))
            for each in variants.QUANTIZERS
        ],
        side_by_side=("reference@vllm", "reference@lmdeploy"),
        checks=("lifecycle", "tokens"),
        extra=EXTRA,
    )
