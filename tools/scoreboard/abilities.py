"""What each engine can do: the capabilities that it declared when it was loaded for a conformance run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scoreboard import conformance
from scoreboard.reports import Conformance

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scoreboard.reports import Found

__all__ = ["columns", "lines"]

Declared = dict[str, Any]
YES, NO = "yes", "no"
#: No asterisk: two of them in a line of Markdown are emphasis.
MARK = "†"


def columns(found: Found) -> dict[str, Declared]:
    """Heading → what was declared: of each configuration that of its first report in the scoreboard's order."""
    files = {file.name: file.content for file in found.of(Conformance)}
    made: dict[str, Declared] = {}
    for row in conformance.rows(found):
        declared = files[row.report].subject.capabilities
        if declared is not None and row.label not in made:
            made[row.label if row.place != "simulated" else f"{row.label}, simulated"] = declared
    return made


def lines(found: Found) -> list[tuple[str, ...]]:
    """A line each ability: what it is, and what each column has of it."""
    declared = list(columns(found).values())
    return [(name, *(of(each) for each in declared)) for name, of in _ROWS.items()]


def _has(kind: str, *names: str) -> Callable[[Declared], str]:
    """All of them, or which."""

    def of(declared: Declared) -> str:
        there = [name for name in names if name in declared.get(kind, ())]
        if len(there) == len(names):
            return YES + _mark(declared, *there)
        return ", ".join(f"`{name.split('.')[-1]}`" for name in there) or NO

    return of


def _values(kind: str) -> Callable[[Declared], str]:
    """What is listed there."""

    def of(declared: Declared) -> str:
        return ", ".join(f"`{value}`{_mark(declared, value)}" for value in sorted(declared.get(kind, ()))) or NO

    return of


def _mark(declared: Declared, *names: str) -> str:
    """Of what the plugin's authors never ran."""
    return MARK if set(names) & set(declared.get("unproven", ())) else ""


def _flag(name: str) -> Callable[[Declared], str]:
    return lambda declared: YES if declared.get(name) else NO


def _level(name: str) -> Callable[[Declared], str]:
    levels = {
        "raw": YES,
        "raw-unless-structured": "not of constrained answers",
        "neutral-only": "with neutral sampling",
        "none": NO,
    }
    return lambda declared: levels.get(declared.get(name, "none"), str(declared.get(name)))


_ROWS: Mapping[str, Callable[[Declared], str]] = {
    "temperature, top-p, top-k": _has("sampling", "temperature", "top_p", "top_k"),
    "min-p": _has("sampling", "min_p"),
    "repetition penalty, counting the prompt": _has("sampling", "repetition_penalty"),
    "presence and frequency penalty": _has("sampling", "presence_penalty", "frequency_penalty"),
    "logit bias": _has("sampling", "logit_bias"),
    "allowed tokens, bad words": _has("sampling", "allowed_token_ids", "bad_words"),
    "a seed for each request": _has("sampling", "seed"),
    "minimum length": _has("request", "min_tokens"),
    "going on after the end (`ignore_eos`)": _has("request", "ignore_eos"),
    "priority": _has("request", "priority"),
    "log-probabilities of the model": _level("logprobs"),
    "those of the prompt": _level("prompt_logprobs"),
    "scores of given texts": _flag("score"),
    "structured output": _values("structured"),
    "adapters": _has("config", "lora"),
    "speculation": _values("speculative"),
    "determinism": _values("determinism"),
    "prefix caching, switched": _has("config", "kv_cache.prefix_caching"),
    "element type of the cache": _has("config", "kv_cache.dtype"),
    "quantised while loading": _values("quantization"),
    "makes quantised checkpoints, in its own environment": _values("quantize"),
    "tensor parallel": _has("config", "parallel.tensor"),
    "sleeps and wakes": _flag("sleep"),
}
