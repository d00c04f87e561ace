"""What a caller asks for: :class:`SamplingParams`, :class:`Structured`, :class:`GenerateRequest`.

Each field's exact meaning, and where engines differ from it, stands in ``docs/semantics.md``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict, cast

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from anyengine._model import StrictModel, TokenIds, Words
from anyengine.errors import InvalidRequest, ModelNotFound
from anyengine.plain import plain_data

__all__ = ["GenerateRequest", "Message", "Prompt", "RequestOptions", "SamplingParams", "Structured"]

#: One chat message: ``role``, ``content`` and whatever else the chat template reads.
Message = Mapping[str, Any]
#: Text, token ids, or chat messages. Never guessed: the type decides.
Prompt = str | Sequence[int] | Sequence[Message]

#: Bounds that keep a hostile request from harming others; larger than any real use that we know of.
MAX_N = 1024
MAX_LOGPROBS = 1000
MAX_STOP_STRINGS = 64
MAX_STOP_LENGTH = 4096
MAX_STRUCTURED_LENGTH = 256 * 1024
MAX_SCHEMA_DEPTH = 64


class SamplingParams(StrictModel):
    """How the next token is drawn. The defaults are neutral: plain sampling from the model's distribution.

    The order is fixed: penalties and bias on the logits, allowed and banned tokens, temperature, then ``top_k``,
    ``top_p``, ``min_p`` on what is left, then the draw.

    Attributes:
        temperature: divides the logits; 0 is greedy (the most likely token, lowest id on a tie).
        top_p: keep the smallest set of most likely tokens whose probabilities reach this sum (nucleus sampling,
            Holtzman et al. 2019, arXiv:1904.09751). In (0, 1].
        top_k: keep this many most likely tokens; 0 keeps all.
        min_p: keep tokens at least this fraction as likely as the most likely (arXiv:2407.01082). In [0, 1].
        repetition_penalty: divides positive and multiplies negative logits of the tokens in prompt and completion
            so far (CTRL, Keskar et al. 2019, arXiv:1909.05858). Above 0.
        presence_penalty: subtracted once from the logit of each token in the completion so far. In [-2, 2].
        frequency_penalty: subtracted for each occurrence in the completion so far. In [-2, 2].
        seed: of this request's random stream. None varies between calls, on every engine.
        logit_bias: token id → number added to its logit.
        allowed_token_ids: only these can be drawn.
        bad_words: strings that must not appear as tokens, each with and without a leading space.
    """

    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    logit_bias: dict[Annotated[int, Field(ge=0)], float] | None = None
    allowed_token_ids: Annotated[TokenIds, Field(min_length=1)] | None = None
    bad_words: Words = ()

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken each time."""
        return self.temperature == 0

    @classmethod
    def from_model(cls, model: str | Path, **overrides: Any) -> SamplingParams:
        """The sampling defaults that a model's authors recommend, from its ``generation_config.json``.

        Only on request: the uniform defaults never depend on the model.

        Args:
            model: the checkpoint's folder (``engine.model.path`` after a load).
            overrides: fields that win over the model's.

        Raises:
            ModelNotFound: the folder has no readable ``generation_config.json``.
            InvalidRequest: a value there is out of range.
        """
        file = Path(model) / "generation_config.json"
        try:
            recommended = cast("dict[str, Any]", _json_object(file.read_bytes()))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelNotFound(f"no readable generation_config.json in {model}; give the values yourself") from error
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        values = {name: recommended[name] for name in names if recommended.get(name) is not None}
        if recommended.get("do_sample") is False:
            values["temperature"] = 0.0
        return cls(**values | overrides)


def _json_object(source: bytes) -> object:
    content = json.loads(source)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 unreadable in the same way as broken JSON
    return content  # pyright: ignore[reportUnknownVariableType] any JSON


def _bounded(source: str) -> str:
    if len(source) > MAX_STRUCTURED_LENGTH:
        raise ValueError(f"has {len(source)} characters; at most {MAX_STRUCTURED_LENGTH} are allowed")
    return source


def _schema(value: Any) -> Any:
    """Take a schema as data or as JSON text; bound its size and depth before anything recursive sees it.

    What is kept is a copy, so that a caller's later changes do not reach what was checked.
    """
    if isinstance(value, str):
        try:
            value = json.loads(_bounded(value))
        except RecursionError:
            raise ValueError(f"nested deeper than {MAX_SCHEMA_DEPTH} levels") from None
    if not isinstance(value, (dict, bool)):
        raise ValueError("a schema is an object or a boolean")  # noqa: TRY004 pydantic reports it with the field's name
    level: list[Any] = [value]
    seen = 0
    for _ in range(MAX_SCHEMA_DEPTH):
        children: list[Any] = []
        for node in level:
            inside = _children(node)
            seen += len(inside)
            if seen * 4 > MAX_STRUCTURED_LENGTH:
                raise ValueError(f"has more than {MAX_STRUCTURED_LENGTH // 4} nodes")
            children += inside
        level = children
        if not level:
            break
    else:
        raise ValueError(f"nested deeper than {MAX_SCHEMA_DEPTH} levels")
    try:
        return json.loads(_bounded(json.dumps(value, allow_nan=False)))
    except TypeError as error:
        raise ValueError(f"is not JSON data: {error}") from None


def _children(node: object) -> list[Any]:
    if isinstance(node, dict):
        entries = cast("dict[object, object]", node)
        if not all(isinstance(key, str) for key in entries):
            raise ValueError("is not JSON data: keys must be text")
        return list(entries.values())
    return list(cast("Sequence[object]", node)) if isinstance(node, (list, tuple)) else []


class Structured(StrictModel):
    """A constraint on the text; exactly one of the four.

    Attributes:
        json_schema: a JSON Schema (draft 2020-12), as data or as JSON text, that accepts the completion.
        regex: a regular expression (no look-around, no back-references) that the whole completion matches.
        grammar: a context-free grammar in Lark's notation.
        choice: the completion is one of these strings.
    """

    json_schema: Annotated[dict[str, Any] | bool, BeforeValidator(_schema)] | None = None
    regex: Annotated[str, Field(min_length=1), AfterValidator(_bounded)] | None = None
    grammar: Annotated[str, Field(min_length=1), AfterValidator(_bounded)] | None = None
    choice: Annotated[Words, Field(min_length=1, max_length=10_000)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Structured:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of json_schema, regex, grammar, choice, not {given or 'none'}")
        return self

    @property
    def kind(self) -> str:
        """Name of the one field that is given."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)


def _stops(stops: tuple[str, ...]) -> tuple[str, ...]:
    if len(stops) > MAX_STOP_STRINGS or any(len(stop) > MAX_STOP_LENGTH for stop in stops):
        raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings of at most {MAX_STOP_LENGTH} characters are allowed")
    return stops


def _kind_of_prompt(value: object) -> str | None:
    """Which member of the union a prompt is meant to be, so that an error speaks of that one only."""
    if isinstance(value, str):
        return "a text"
    return "token ids" if isinstance(value, Sequence) else None


def _plain_messages(value: object) -> object:
    """Any mapping is a message; what is kept is plain data. Anything else would reach a worker as something else."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    messages = cast("Sequence[object]", value)
    return tuple(
        plain_data(message, f"messages[{index}]") if isinstance(message, Mapping) else message
        for index, message in enumerate(messages)
    )


def _plain_variables(value: dict[str, Any]) -> dict[str, Any]:
    return plain_data(value, "chat_template_kwargs")


class RequestOptions(TypedDict, total=False):
    """Keyword arguments of ``generate`` and ``stream``: the fields of :class:`GenerateRequest` without the prompt."""

    sampling: SamplingParams
    max_tokens: int | None
    min_tokens: int
    n: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    include_stop: bool
    ignore_eos: bool
    skip_special_tokens: bool
    logprobs: int | None
    prompt_logprobs: int | None
    structured: Structured | None
    lora: str | None
    priority: int
    cache_salt: str | None
    timeout: float | None
    chat_template_kwargs: Mapping[str, Any]


class GenerateRequest(StrictModel):
    """One prompt and all that is asked about it.

    Attributes:
        prompt: text (special tokens are added as the model's tokenizer does) or token ids (taken as they are).
        messages: a chat, rendered by the model's chat template. Exactly one of ``prompt`` and ``messages``.
        sampling: see :class:`SamplingParams`.
        max_tokens: most tokens to generate. None: the rest of the context, worked out and sent.
        min_tokens: end-of-sequence tokens, ``stop_token_ids`` and stop strings count only after this many tokens.
        n: independent completions; seeds are ``seed``, ``seed + 1``, …
        stop: strings that end the completion, matched on the text.
        stop_token_ids: tokens that end the completion, beside the model's end-of-sequence tokens.
        include_stop: keep the stop string, or the stop token's text, in ``text``.
        ignore_eos: the model's end-of-sequence tokens do not end the completion; the caller's stops still do.
        skip_special_tokens: leave special tokens out of ``text``.
        logprobs: for each generated token its log-probability and those of this many most likely tokens.
        prompt_logprobs: the same for the tokens of the prompt.
        structured: see :class:`Structured`.
        lora: name of a loaded adapter.
        priority: lower runs earlier.
        cache_salt: prefixes are shared only between requests with the same salt.
        timeout: seconds from the call to the end, waiting included.
        chat_template_kwargs: extra variables of the chat template.
    """

    prompt: (
        Annotated[
            Annotated[str, Tag("a text")] | Annotated[TokenIds, Tag("token ids")],
            Discriminator(
                _kind_of_prompt,
                custom_error_type="prompt_type",
                custom_error_message="Input should be text or a list of token ids",
            ),
        ]
        | None
    ) = None
    messages: Annotated[tuple[dict[str, Any], ...], BeforeValidator(_plain_messages), Field(min_length=1)] | None = None
    sampling: SamplingParams = Field(default_factory=SamplingParams)
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] = 0
    n: Annotated[int, Field(ge=1, le=MAX_N)] = 1
    stop: Annotated[Words, AfterValidator(_stops)] = ()
    stop_token_ids: TokenIds = ()
    include_stop: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    structured: Structured | None = None
    lora: Annotated[str, Field(min_length=1)] | None = None
    priority: int = 0
    cache_salt: Annotated[str, Field(min_length=1)] | None = None
    timeout: Annotated[float, Field(gt=0)] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_plain_variables)] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> GenerateRequest:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("give exactly one of prompt and messages", field="prompt")
        if self.prompt is not None and not self.prompt:
            raise InvalidRequest("prompt: is empty; at least one character or token is needed", field="prompt")
        if self.messages is None and self.chat_template_kwargs:
            raise InvalidRequest(
                "chat_template_kwargs: only messages go through the chat template; this prompt is taken as it is",
                field="chat_template_kwargs",
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens: {self.min_tokens} is more than max_tokens, {self.max_tokens}", field="min_tokens"
            )
        return self
