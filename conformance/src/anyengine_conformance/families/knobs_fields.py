"""No field without a check: whoever adds one adds a check of its effect, or says here why there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyengine import EngineConfig, GenerateRequest, SamplingParams
from pydantic import BaseModel

from anyengine_conformance.check import all_checks, check, family

if TYPE_CHECKING:
    from anyengine import Capabilities

    from anyengine_conformance.context import Context

family("knobs", "Knobs")

#: Field → the check of its effect, or the reason why no check can see one.
COVERED: dict[str, str] = {
    "sampling.temperature": "knobs.temperature-below-one-sharpens",
    "sampling.top_p": "knobs.top-p-bounds-the-mass",
    "sampling.top_k": "knobs.top-k-bounds-the-support",
    "sampling.min_p": "knobs.min-p-bounds-the-ratio",
    "sampling.repetition_penalty": "knobs.repetition-penalty-discourages",
    "sampling.presence_penalty": "knobs.presence-penalty-counts-once",
    "sampling.frequency_penalty": "knobs.frequency-penalty-counts-each",
    "sampling.seed": "knobs.seed-is-used",
    "sampling.logit_bias": "knobs.logit-bias-forces",
    "sampling.allowed_token_ids": "knobs.allowed-token-ids-only",
    "sampling.bad_words": "knobs.bad-words-of-one-token",
    "request.prompt": "tokens.prompt-decides",
    "request.messages": "templates.messages-are-the-rendered-text",
    "request.sampling": "knobs.temperature-zero-is-greedy",
    "request.max_tokens": "knobs.max-tokens-bounds",
    "request.min_tokens": "knobs.min-tokens-holds-the-end",
    "request.n": "knobs.n-gives-so-many",
    "request.stop": "stopping.string-ends-the-text",
    "request.stop_token_ids": "knobs.stop-token-ids-change-the-end",
    "request.include_stop": "stopping.include-stop-keeps-it",
    "request.ignore_eos": "knobs.ignore-eos-changes-the-end",
    "request.skip_special_tokens": "tokens.special-tokens-on-request",
    "request.logprobs": "knobs.logprobs-on-request",
    "request.prompt_logprobs": "knobs.prompt-logprobs-on-request",
    "request.structured": "structured.schema-sampled",
    "request.lora": "adapters.side-by-side",
    "request.priority": "knobs.priority-decides-who-is-next",
    "request.cache_salt": "knobs.cache-salt-parts-the-cache",
    "request.timeout": "knobs.timeout-ends-it",
    "request.chat_template_kwargs": "templates.kwargs-arrive",
    "config.model": "reason: it is what is tested; another model is another run",
    "config.revision": "reason: of the hub, resolved by the SDK before any engine is loaded",
    "config.tokenizer": "reason: files of the SDK; the engine sees token ids",
    "config.tokenizer_revision": "reason: of the hub, resolved by the SDK",
    "config.task": "reason: `embed` is another load of another model",
    "config.trust_remote_code": "reason: needs a checkpoint with code, which the suite does not run",
    "config.dtype": "knobs.dtype-float32",
    "config.max_model_len": "stopping.context-is-as-asked",
    "config.quantization": "reason: the family quantization measures its effect",
    "config.kv_cache.dtype": "reason: what it changes is the drift, which the family quantization measures",
    "config.kv_cache.block_size": "knobs.block-size-is-the-caches-unit",
    "config.kv_cache.prefix_caching": "knobs.prefix-caching-off-computes",
    "config.kv_cache.gpu_memory_fraction": "reason: memory of a device cannot be seen through the API",
    "config.kv_cache.capacity_tokens": "knobs.capacity-tokens-is-the-caches-size",
    "config.parallel.tensor": "reason: needs several devices",
    "config.parallel.pipeline": "reason: needs several devices",
    "config.parallel.data": "reason: needs several devices",
    "config.parallel.expert": "reason: needs several devices and a mixture of experts",
    "config.scheduling.max_num_seqs": "knobs.max-num-seqs-bounds-what-runs",
    "config.scheduling.max_num_batched_tokens": "knobs.batched-tokens-cut-prompts",
    "config.scheduling.chunked_prefill": "knobs.batched-tokens-cut-prompts",
    "config.scheduling.max_queued_requests": "limits.full-queue-refuses",
    "config.execution": "knobs.device-and-execution-are-as-asked",
    "config.speculative": "reason: the family speculative holds its output against the model's own",
    "config.lora": "adapters.side-by-side",
    "config.lora.adapters": "adapters.side-by-side",
    "config.lora.max_rank": "reason: a bound on memory, which cannot be seen through the API",
    "config.lora.max_loras": "adapters.side-by-side",
    "config.determinism": "knobs.determinism-run-repeats",
    "config.seed": "knobs.engine-seed-leaves-requests-free",
    "config.device": "knobs.device-and-execution-are-as-asked",
    "config.devices": "reason: needs several devices",
    "config.isolation": "reason: of the SDK; the families faults and lifecycle load workers",
    "config.environment": "reason: of the SDK",
    "config.env": "reason: of the SDK; what a variable does is the engine's",
    "config.startup_timeout": "reason: of the SDK; a load that is slow enough is not at hand",
    "config.health_timeout": "reason: of the SDK; the family faults hangs an engine",
    "config.chat_template": "templates.own-template-replaces",
    "config.native": "reason: the engine's own options have no meaning that the suite knows",
}

#: Field → other checks of its whole effect, for engines that do not declare what the one above needs beside the field.
#: Not here is what only uses the field: that `ignore_eos` keeps a length proves nothing where the model would go on.
ALSO: dict[str, tuple[str, ...]] = {
    "sampling.top_k": ("sampling.top-k-is-exact",),
    "sampling.presence_penalty": ("sampling.penalties-follow-the-formula",),
    "sampling.frequency_penalty": ("sampling.penalties-follow-the-formula",),
    "request.min_tokens": ("stopping.min-tokens-holds-tokens",),
    "request.stop_token_ids": ("stopping.stop-token-ends-it",),
    "request.ignore_eos": ("stopping.ignore-eos-goes-on",),
    "config.dtype": ("knobs.dtype-bfloat16", "knobs.dtype-float16"),
    "config.scheduling.max_num_seqs": ("knobs.priority-decides-who-is-next",),
    "config.determinism": ("knobs.determinism-batch-invariant-holds",),
}


def _fields(model: type[BaseModel], prefix: str) -> list[str]:
    """Dotted names; parts by their own fields."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        part = field.annotation
        if isinstance(part, type) and issubclass(part, BaseModel) and f"{prefix}.{name}" not in COVERED:
            names += _fields(part, f"{prefix}.{name}")
        else:
            names.append(f"{prefix}.{name}")
    return names


def _declared(capabilities: Capabilities) -> list[str]:
    return sorted(
        f"{kind}.{name}" for kind in ("sampling", "request", "config") for name in getattr(capabilities, kind)
    )


@check(
    "knobs.every-field-has-a-check",
    must="Every field that the engine declares is one of the API, and the suite has a check of its effect.",
    advice="declare fields by the names of the API in capabilities.sampling, request, config; the rest goes in native",
)
async def every_field_has_a_check(t: Context) -> None:
    fields = [
        *_fields(SamplingParams, "sampling"),
        *_fields(GenerateRequest, "request"),
        *_fields(EngineConfig, "config"),
    ]
    ids = {made.id for made in all_checks()}
    missing = [name for name in fields if name not in COVERED]
    wrong = [f"{name}: {told}" for name, told in COVERED.items() if told not in ids and not told.startswith("reason: ")]
    wrong += [f"{name}: {told}" for name, others in ALSO.items() for told in others if told not in ids]
    mend = "this is the suite's own to mend: complete COVERED and ALSO in families/knobs_fields.py"
    t.equal(missing, [], "fields of the API without a check or a reason", advice=mend)
    t.equal(wrong, [], "entries that name no check", advice=mend)
    unknown = [name for name in _declared(t.capabilities) if name not in COVERED]
    t.equal(unknown, [], "declared names that are no fields of the API")
