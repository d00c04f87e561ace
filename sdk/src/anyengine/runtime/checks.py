"""Honoured or refused: holding configurations and requests against declared capabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from anyengine.errors import InvalidRequest, UnsupportedCapability, UnsupportedParameter

if TYPE_CHECKING:
    from collections.abc import Collection

    from anyengine._model import StrictModel
    from anyengine.backend import BackendInfo, TokenRequest
    from anyengine.capabilities import Capabilities, LogprobsLevel
    from anyengine.config import EngineConfig
    from anyengine.request import GenerateRequest

__all__ = ["check_config", "check_request", "check_vocabulary", "switched_on"]

#: Fields of a configuration that the SDK honours itself, on every engine.
SDK_CONFIG = frozenset({
    "chat_template",
    "env",
    "environment",
    "health_timeout",
    "isolation",
    "model",
    "revision",
    "scheduling.max_queued_requests",
    "startup_timeout",
    "tokenizer",
    "tokenizer_revision",
})  # fmt: skip
#: Fields of a request that an engine has to honour itself, by a name in ``capabilities.request``.
ENGINE_REQUEST = frozenset({"cache_salt", "ignore_eos", "lora", "min_tokens", "priority", "stop_token_ids"})


def check_config(engine: str, capabilities: Capabilities, config: EngineConfig) -> None:
    """Refuse what the engine does not declare.

    Raises:
        UnsupportedParameter: names the first field that cannot be honoured.
    """
    active = [name for name in config.changed() if name not in SDK_CONFIG]
    for name in active:
        if name == "native":
            _require_field(engine, name, {name} if capabilities.native else ())
        elif name.split(".")[0] not in _BY_VALUE:
            _require_field(engine, name, capabilities.config)
    _require(engine, "task", config.task, {"generate", "embed"} if capabilities.embed else {"generate"})
    _require(engine, "dtype", config.dtype, capabilities.dtypes | {"auto"})
    _require(engine, "device", config.device, capabilities.devices | {"auto"})
    if config.quantization is not None:
        _require(engine, "quantization", config.quantization, capabilities.quantization)
    if config.speculative is not None:
        _require(engine, "speculative.method", config.speculative.method, capabilities.speculative)
    _require(engine, "determinism", config.determinism, capabilities.determinism | {"none"})
    _check_conflicts(engine, capabilities, switched_on("config.", config))


#: Configuration fields whose values, not names, are declared.
_BY_VALUE = frozenset({"dtype", "device", "quantization", "speculative", "determinism", "task"})


def _require(engine: str, field: str, value: str, supported: Collection[str]) -> None:
    if value not in supported:
        raise _unsupported(engine, field, f"{field}={value!r}", supported)


def _require_field(engine: str, field: str, supported: Collection[str]) -> None:
    if field.removeprefix("sampling.") not in supported:
        raise _unsupported(engine, field, field, supported)


def _unsupported(engine: str, field: str, what: str, supported: Collection[str]) -> UnsupportedParameter:
    choices = ", ".join(sorted(supported)) or "nothing here"
    return UnsupportedParameter(
        f"{engine} cannot honour {what}; it supports {choices}", engine=engine, field=field, supported=supported
    )


def switched_on(prefix: str, model: StrictModel) -> set[str]:
    """Dotted names of the fields that ask for something, and of what they are in. What is off excludes nothing.

    Args:
        prefix: of the names.
        model: a configuration or a request.
    """
    return _with_outer({prefix + name for name in model.changed() if _value(model, name) is not False})


def _with_outer(names: set[str]) -> set[str]:
    """Those names, and each dotted beginning of one: what excludes the whole excludes its fields."""
    outer = {name.rpartition(".")[0] for name in names} - names - {""}
    return names | _with_outer(outer) if outer else names


def _value(model: StrictModel, name: str) -> object:
    found: object = model
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _check_conflicts(engine: str, capabilities: Capabilities, active: set[str]) -> None:
    for conflict in capabilities.conflicts:
        if conflict.first in active and conflict.second in active:
            # The error is about what the caller can still change: the request's field, if one of them is.
            other, named = sorted((conflict.first, conflict.second), key=lambda name: not name.startswith("config."))
            other, named = (name.removeprefix("config.").removeprefix("request.") for name in (other, named))
            raise UnsupportedParameter(
                f"{engine} cannot combine {named} with {other}: {conflict.reason}", engine=engine, field=named
            )


def check_request(engine: str, info: BackendInfo, configured: set[str], request: GenerateRequest) -> None:
    """Refuse what the loaded engine does not declare.

    Args:
        engine: its name.
        info: what was loaded.
        configured: what its configuration has :func:`switched_on`.
        request: what is asked.

    Raises:
        UnsupportedParameter: names the first field that cannot be honoured.
        UnsupportedCapability: log-probabilities or structured output that the engine does not have.
    """
    capabilities = info.capabilities
    changed = set(request.changed())
    for name in sorted(changed):
        if name.startswith("sampling."):
            _require_field(engine, name, capabilities.sampling)
    for name in sorted(changed & ENGINE_REQUEST):
        _require_field(engine, name, capabilities.request)
    if request.structured is not None and request.structured.kind not in capabilities.structured:
        kind = request.structured.kind
        raise UnsupportedCapability(
            f"{engine} has no structured output by {kind}; it has "
            f"{', '.join(sorted(capabilities.structured)) or 'none'}",
            capability=f"structured.{kind}",
            engine=engine,
            field="structured",
        )
    _check_logprobs(engine, "logprobs", capabilities.logprobs, capabilities.max_logprobs, request)
    _check_logprobs(engine, "prompt_logprobs", capabilities.prompt_logprobs, capabilities.most_prompt_logprobs, request)
    if request.lora is not None and request.lora not in info.loras:
        raise InvalidRequest(
            f"lora: no adapter is named {request.lora!r}; loaded are: {', '.join(info.loras) or 'none'}",
            engine=engine,
            field="lora",
        )
    if capabilities.conflicts:
        asked = [name for name in changed if _value(request, name) is not False]
        active = {name if name.startswith("sampling.") else f"request.{name}" for name in asked}
        _check_conflicts(engine, capabilities, _with_outer(active) | configured)


def _check_logprobs(
    engine: str,
    field: Literal["logprobs", "prompt_logprobs"],
    level: LogprobsLevel,
    most: int,
    request: GenerateRequest,
) -> None:
    wanted = getattr(request, field)
    if wanted is None:
        return
    if level == "none":
        raise UnsupportedCapability(f"{engine} gives no {field}", capability=field, engine=engine, field=field)
    if wanted > most:
        raise UnsupportedParameter(
            f"{field}: {engine} gives at most {most} alternatives, not {wanted}",
            engine=engine,
            field=field,
        )
    neutral = not set(request.sampling.changed()) - {"seed"}
    if (level == "neutral-only" and not (neutral and request.structured is None)) or (
        level == "raw-unless-structured" and request.structured is not None
    ):
        reason = (
            "with structured output" if request.structured is not None else "unless the sampling parameters are neutral"
        )
        raise UnsupportedParameter(
            f"{field}: {engine} cannot give those of the model's own distribution {reason}", engine=engine, field=field
        )


def check_vocabulary(engine: str, vocab_size: int, request: TokenRequest) -> None:
    """Refuse token ids that the model does not have.

    Raises:
        InvalidRequest: names the field.
    """
    sampling = request.sampling
    fields = {
        "prompt": request.prompt_token_ids,
        "stop_token_ids": request.stop_token_ids,
        "sampling.allowed_token_ids": sampling.allowed_token_ids or (),
        "sampling.logit_bias": sampling.logit_bias or (),
    }
    for field, ids in fields.items():
        if ids and max(ids) >= vocab_size:
            raise InvalidRequest(
                f"{field}: token {max(ids)} does not exist; the model's vocabulary has the ids 0 to {vocab_size - 1}",
                engine=engine,
                field=field,
            )
