"""What an engine can do, declared by its plugin, never found out by trying.

The default of every field is "no". A plugin declares for its engine in general; after a load the backend declares
again, narrowed to what that model, device and configuration allow. The SDK refuses what is not declared, and the
conformance suite holds an engine to both sides: what it declares works, and what it does not declare is refused.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

__all__ = ["Capabilities", "Conflict", "LogprobsLevel"]

#: ``raw``: of the model's own distribution, always. ``raw-unless-structured``: the grammar's mask is applied first.
#: ``neutral-only``: true only while sampling parameters are neutral. ``none``: not available.
LogprobsLevel = Literal["none", "neutral-only", "raw-unless-structured", "raw"]


class Conflict(Struct, frozen=True):
    """Two things that an engine can do, but not together.

    Attributes:
        first: dotted field name, such as ``config.speculative`` or ``sampling.min_p``.
        second: the other one.
        reason: why, in the engine's terms.
    """

    first: str
    second: str
    reason: str


class Capabilities(Struct, frozen=True, kw_only=True):
    """Each field names what is honoured; what is not named is refused.

    Attributes:
        config: dotted names of the :class:`~anyengine.EngineConfig` fields that the plugin maps, such as
            ``kv_cache.prefix_caching``.
        native: whether ``EngineConfig.native`` is taken.
        sampling: names of the :class:`~anyengine.SamplingParams` fields.
        request: names of the :class:`~anyengine.GenerateRequest` fields that an engine has to honour itself:
            ``min_tokens``, ``stop_token_ids``, ``ignore_eos``, ``priority``, ``cache_salt``, ``lora``.
        token_prompts: prompts can be token ids. Where not, the SDK sends text, and the plugin proves that the
            engine made the same ids.
        logprobs: level of the log-probabilities of generated tokens.
        prompt_logprobs: level of those of the prompt.
        max_logprobs: most alternatives a token; above 0 where either level is declared.
        max_prompt_logprobs: most alternatives a token of a prompt, or of a text that is scored; None for as many as
            ``max_logprobs``. 0 for engines that give the text's own tokens only (TGI).
        score: teacher-forced scoring of a given text.
        embed: embeddings, with ``EngineConfig.task="embed"``.
        structured: kinds of constraint: ``json_schema``, ``regex``, ``grammar``, ``choice``.
        dtypes: values of ``dtype`` beside ``auto``.
        devices: values of ``device`` beside ``auto``.
        quantization: schemes that can be applied while loading.
        quantize: schemes that ``quantize`` can write here: its toolchain is installed.
        calibrated: those of them that are fitted to calibration text; the others take none.
        speculative: methods of :class:`~anyengine.SpeculativeConfig`.
        determinism: the promises that can be kept, beside ``none``.
        sleep: weights can leave the device and come back.
        dynamic_lora: adapters can be loaded and unloaded while the engine runs.
        reset_prefix_cache: the prefix cache can be emptied.
        unseeded: what the engine does without a seed: ``varies`` between calls, or ``fixed``; where it is fixed the
            SDK draws a seed for every request.
        conflicts: what is possible, but not together.
        unproven: names from above that are mapped but were never run on the real engine, for want of a checkpoint or
            of hardware.
    """

    config: frozenset[str] = frozenset()
    native: bool = False
    sampling: frozenset[str] = frozenset()
    request: frozenset[str] = frozenset()
    token_prompts: bool = False
    logprobs: LogprobsLevel = "none"
    prompt_logprobs: LogprobsLevel = "none"
    max_logprobs: int = 0
    max_prompt_logprobs: int | None = None
    score: bool = False
    embed: bool = False
    structured: frozenset[str] = frozenset()
    dtypes: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()
    quantization: frozenset[str] = frozenset()
    quantize: frozenset[str] = frozenset()
    calibrated: frozenset[str] = frozenset()
    speculative: frozenset[str] = frozenset()
    determinism: frozenset[str] = frozenset()
    sleep: bool = False
    dynamic_lora: bool = False
    reset_prefix_cache: bool = False
    unseeded: Literal["varies", "fixed"] = "fixed"
    conflicts: tuple[Conflict, ...] = ()
    unproven: frozenset[str] = frozenset()

    @property
    def most_prompt_logprobs(self) -> int:
        """``max_prompt_logprobs``, or what it is without a value of its own."""
        return self.max_logprobs if self.max_prompt_logprobs is None else self.max_prompt_logprobs
