"""Variables of the environment that TGI reads: those that are set, and those that would decide instead of a field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine.errors import InvalidConfig, UnsupportedParameter

from anyengine_tgi.launcher import ARGUMENTS, OWNED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anyengine.config import EngineConfig

__all__ = ["check_surroundings", "variables"]

#: What TGI has variables for, and no arguments.
_WITHOUT_ARGUMENT = {
    "PREFILL_CHUNKING": "scheduling.chunked_prefill",
    "PREFIX_CACHING": "kv_cache.prefix_caching",
}
#: Arguments that no field decides, and that this package has to know of, or that open the server to others.
_KNOWN = frozenset({"disable_grammar_support", "enable_prefill_logprobs", "ngrok"})


def variables(config: EngineConfig) -> dict[str, str]:
    """What is set for a configuration.

    Raises:
        UnsupportedParameter: names the field.
    """
    found: dict[str, str] = {}
    if config.scheduling.chunked_prefill is not None:
        found["PREFILL_CHUNKING"] = "1" if config.scheduling.chunked_prefill else "0"
    if config.lora is not None:
        # A prefix is found again by its tokens alone, whichever adapter computed it (``backends/v3/src/radix.rs``).
        if config.kv_cache.prefix_caching:
            raise UnsupportedParameter(
                "kv_cache.prefix_caching: TGI's cache does not tell the adapters of lora apart; leave it out",
                field="kv_cache.prefix_caching",
            )
        found["PREFIX_CACHING"] = "0"
    elif config.kv_cache.prefix_caching is not None:
        found["PREFIX_CACHING"] = "true" if config.kv_cache.prefix_caching else "0"
    return found


def check_surroundings(surroundings: Mapping[str, str], values: Mapping[str, Any]) -> None:
    """An argument that is not written is taken from a variable of its name: not where something else decides it.

    Args:
        surroundings: variables that the launcher would inherit.
        values: the arguments that it is given.

    Raises:
        InvalidConfig: names the field that the variable would decide.
    """
    for name in ARGUMENTS:
        field = OWNED.get(name) or (f"native.{name}" if name in _KNOWN or name in values else None)
        if field and name.upper() in surroundings and not _decided(name, values):
            raise _decides(field, name.upper(), surroundings)
    for variable, field in _WITHOUT_ARGUMENT.items():
        if variable in surroundings:
            raise _decides(field, variable, surroundings)


def _decided(name: str, values: Mapping[str, Any]) -> bool:
    """Whether the command line leaves nothing to a variable."""
    if name not in values:
        return False
    if ARGUMENTS[name] == "flag":
        return bool(values[name])  # one that is off is not written
    # Where none are captured the launcher sets no variable for the shards, and they see the one that it has itself.
    return name != "cuda_graphs" or any(values[name])


def _decides(field: str, variable: str, surroundings: Mapping[str, str]) -> InvalidConfig:
    return InvalidConfig(
        f"{field}: the variable {variable}={surroundings[variable]} would decide it; unset it, and use the field",
        field=field,
    )
