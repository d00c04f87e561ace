"""Capability expressions: what a check needs, whether an engine declares it, and how to ask for it.

====================  =========================================================================
``sampling.top_k``    a field of SamplingParams
``request.priority``  a field of GenerateRequest that the engine has to honour itself
``structured.regex``  a kind of constraint
``config.NAME``       a dotted field of EngineConfig
``dtype.V``, ``device.V``, ``quantization.V``, ``quantize.V``, ``speculative.V``, ``determinism.V``
                      one of the values that are declared there
``logprobs``, ``prompt_logprobs``
                      on any level; ``logprobs.raw`` for a level that holds with any sampling
``score``, ``embed``, ``sleep``, ``native``, ``token_prompts``, ``dynamic_lora``, ``reset_prefix_cache``
                      switches
``stats.NAME``        a dotted field of EngineStats that is not None once something was generated
====================  =========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyengine import GenerateRequest, SamplingParams

if TYPE_CHECKING:
    from anyengine import Capabilities, EngineStats

__all__ = ["Need", "conflicting", "declared", "greedy", "parse", "reported", "spoken_of"]

_SWITCHES = ("score", "embed", "sleep", "native", "token_prompts", "dynamic_lora", "reset_prefix_cache")
_LEVELS = ("logprobs", "prompt_logprobs")
_LISTED = {
    "sampling": "sampling",
    "request": "request",
    "structured": "structured",
    "config": "config",
    "dtype": "dtypes",
    "device": "devices",
    "quantization": "quantization",
    "quantize": "quantize",
    "speculative": "speculative",
    "determinism": "determinism",
}
#: Needs that a loaded engine was asked for already; where they are missing it is the load that is refused.
AT_LOAD = ("config", "dtype", "device", "quantization", "speculative", "determinism", "native")


@dataclass(frozen=True, slots=True)
class Need:
    """A parsed expression: ``kind`` and, behind the point, ``name``."""

    kind: str
    name: str = ""

    @property
    def at_load(self) -> bool:
        """Whether it is asked for when the engine is loaded."""
        return self.kind in AT_LOAD


def parse(expression: str) -> Need:
    """Take an expression apart.

    Raises:
        ValueError: it is none.
    """
    kind, _, name = expression.partition(".")
    known = {"sampling": SamplingParams.model_fields, "request": GenerateRequest.model_fields}
    good = (
        (kind in _SWITCHES and not name)
        or (kind in _LEVELS and name in ("", "raw"))
        or (kind in (*_LISTED, "stats") and name and name in known.get(kind, (name,)))
    )
    if not good:
        raise ValueError(f"{expression!r} is no capability expression; see anyengine_conformance.needs")
    return Need(kind, name)


def declared(expression: str, capabilities: Capabilities) -> bool:
    """Whether an engine declares it. ``stats`` are not declared but :func:`reported`."""
    need = parse(expression)
    if need.kind in _SWITCHES:
        return bool(getattr(capabilities, need.kind))
    if need.kind in _LEVELS:
        level = getattr(capabilities, need.kind)
        return level != "none" and (not need.name or level.startswith("raw"))
    if need.kind == "stats":
        return True
    return need.name in getattr(capabilities, _LISTED[need.kind])


def reported(expression: str, stats: EngineStats) -> bool:
    """Whether ``stats.NAME`` has a value."""
    value: object = stats
    for part in parse(expression).name.split("."):
        value = getattr(value, part)
        if value is None:
            return False
    return True


def spoken_of(expression: str) -> str | None:
    """The name by which a declared conflict speaks of it; None if none can."""
    need = parse(expression)
    if need.kind in ("sampling", "request"):
        return expression
    if need.kind == "structured":
        return "request.structured"
    if need.kind in _LEVELS:
        return f"request.{need.kind}"
    if need.kind in ("speculative", "quantization", "determinism", "dtype", "device"):
        return f"config.{need.kind}"
    return expression if need.kind == "config" else None


def conflicting(needs: tuple[str, ...], capabilities: Capabilities) -> tuple[str, str, str] | None:
    """Two of the needs that the engine declares possible, but not together, and its reason."""
    names = {spoken_of(need): need for need in needs}
    for conflict in capabilities.conflicts:
        sides = [
            next((need for name, need in names.items() if name is not None and _within(name, side)), None)
            for side in (conflict.first, conflict.second)
        ]
        if sides[0] is not None and sides[1] is not None:
            return sides[0], sides[1], conflict.reason
    return None


def _within(name: str, side: str) -> bool:
    return name == side or name.startswith(f"{side}.")


def greedy(capabilities: Capabilities) -> SamplingParams:
    """Temperature 0 where the engine has it, else its neutral sampling."""
    return SamplingParams(temperature=0) if "temperature" in capabilities.sampling else SamplingParams()
