"""The tokenizer of a model: text to ids and back, its special tokens, its chat templates.

Which files of the model's folder are read is in :mod:`anyengine.text.files`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine.errors import InvalidConfig, InvalidRequest, ModelNotFound
from anyengine.text.decoding import DecoderTable
from anyengine.text.files import apply_declared_tokens, chat_templates, named_special_tokens, read_configuration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

__all__ = ["TextTokenizer"]


class TextTokenizer:
    """A `tokenizers.Tokenizer` with what a model's configuration adds to it. Never changes; safe to share.

    Which special tokens frame a plain prompt (a beginning-of-sequence token, usually) is decided by the post-processor
    in ``tokenizer.json`` alone. ``add_bos_token`` and ``add_eos_token`` in ``tokenizer_config.json`` are not read, as
    in transformers 5, which drops them when there is a ``tokenizer.json``.

    Text that spells a special token is encoded as that token, wherever it stands: prompts are trusted as the model's
    own text, as in `transformers`. Escape untrusted text before it goes into a prompt. (The exception: a
    ``tokenizer_config.json`` with ``split_special_tokens``.)

    Attributes:
        special_tokens: ``bos_token``, ``eos_token``, ``pad_token`` … to the token's spelling, those that the model has;
            chat templates see them by these names.
        chat_templates: name to Jinja source; ``default`` is the one used when none is named. Empty without any.
        table: what each id decodes to, for :class:`~anyengine.text.detokenizer.Detokenizer`.
        vocab_size: largest id plus one; an engine's own vocabulary may be padded beyond that.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        chat_templates: Mapping[str, str] | None = None,
    ) -> None:
        # A tokenizer.json may ask for truncation or padding, left over from training: a prompt is never cut silently.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.special_tokens = dict(special_tokens or {})
        self.chat_templates = dict(chat_templates or {})
        self.table = DecoderTable.from_tokenizer(tokenizer)
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @classmethod
    def load(cls, folder: Path) -> TextTokenizer:
        """Read the tokenizer of the checkpoint in `folder`.

        Raises:
            ModelNotFound: there is no such folder.
            InvalidConfig: (field ``tokenizer``) there is no ``tokenizer.json``, a file cannot be read, or its decoder
                is not supported.
        """
        from tokenizers import Tokenizer  # noqa: PLC0415 (heavy)

        if not folder.is_dir():
            raise ModelNotFound(f"{folder} is not a folder", field="tokenizer")
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise InvalidConfig(
                f"{folder} has no tokenizer.json. Convert its tokenizer once with transformers: "
                f"AutoTokenizer.from_pretrained(MODEL).save_pretrained({str(folder)!r}), "
                "or name a folder or model that has one in `tokenizer`",
                field="tokenizer",
            )
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing narrower
            raise InvalidConfig(f"{path} cannot be read: {error}", field="tokenizer") from error
        config = read_configuration(folder)
        apply_declared_tokens(tokenizer, config)
        return cls(
            tokenizer, special_tokens=named_special_tokens(config), chat_templates=chat_templates(folder, config)
        )

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that ``skip_special_tokens`` leaves out of the text."""
        return self.table.special_ids

    @property
    def bos_token(self) -> str | None:
        """The beginning-of-sequence token, if the model names one."""
        return self.special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """The end-of-sequence token, if the model names one."""
        return self.special_tokens.get("eos_token")

    @property
    def pad_token(self) -> str | None:
        """The padding token, if the model names one."""
        return self.special_tokens.get("pad_token")

    @property
    def bos_token_id(self) -> int | None:
        """The id of `bos_token`."""
        return self.token_id(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        """The id of `eos_token`: one of the tokens that end a sequence; the model's configuration may have more."""
        return self.token_id(self.eos_token)

    @property
    def pad_token_id(self) -> int | None:
        """The id of `pad_token`."""
        return self.token_id(self.pad_token)

    def token_id(self, token: str | None) -> int | None:
        """The id of the token spelt `token` in the vocabulary; None if there is none (or `token` is None)."""
        return None if token is None else self._tokenizer.token_to_id(token)

    def token(self, token_id: int) -> str | None:
        """The token's spelling in the vocabulary (``Ġhello``), None for an id that the tokenizer does not have."""
        return self._tokenizer.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`.

        Args:
            text: a prompt; spellings of special tokens in it become those tokens.
            add_special_tokens: frame it as the tokenizer's post-processor says (True for plain prompts); False for
                text that a chat template rendered, which has its own.

        Raises:
            InvalidRequest: (field ``prompt``) the text has half of a surrogate pair, so is not Unicode text.
        """
        try:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:
            surrogate = _lone_surrogate(text)
            if surrogate is None:
                raise
            raise InvalidRequest(
                f"the prompt has a lone surrogate (U+{ord(text[surrogate]):04X}) at character {surrogate}: it was "
                "decoded with errors='surrogateescape' or cut inside a UTF-16 pair; decode it again",
                field="prompt",
            ) from error

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`, as `tokenizers` decodes them; unknown ids decode to nothing."""
        stream = self.table.stream(skip_special_tokens=skip_special_tokens)
        return stream.feed(token_ids) + stream.flush()

    def count(self, text: str) -> int:
        """The number of tokens of `text` as a plain prompt, special tokens included."""
        return len(self.encode(text))

    def bad_word_sequences(self, words: Sequence[str]) -> list[list[int]]:
        """The id sequences that spell each of `words`, to be forbidden; without duplicates.

        A word is taken without its leading whitespace and encoded once as it stands at the start of a text, and once
        after a space, so that ``dog`` forbids ``dog`` and ``Ġdog``. The second is left out where it only puts a token
        before the first, which forbids it already. (vLLM's own, ``SamplingParams.update_from_tokenizer``, leaves it out
        where the two have different numbers of tokens as well.) Other ways to spell the word with smaller tokens are
        not forbidden. A word of whitespace only is forbidden as it stands.

        Raises:
            InvalidRequest: (field ``sampling.bad_words``) a word is empty, not Unicode text, or has no tokens.
        """
        sequences: list[list[int]] = []
        for word in words:
            bare = word.lstrip() or word
            if not bare or _lone_surrogate(bare) is not None or not (plain := self._plain_ids(bare)):
                raise InvalidRequest(f"cannot forbid the word {word!r}: it has no tokens", field="sampling.bad_words")
            spaced = self._plain_ids(bare if bare.isspace() else " " + bare)
            sequences.append(plain)
            if spaced[-len(plain) :] != plain:
                sequences.append(spaced)
        return [list(ids) for ids in dict.fromkeys(map(tuple, sequences))]

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Render `messages` to the text of a prompt; encode it with ``add_special_tokens=False``.

        Args:
            messages: see :func:`anyengine.text.messages.check_messages`.
            chat_template: Jinja source, or the name of one of `chat_templates`. None: ``tool_use`` if there are tools
                and the model has a template of that name, else ``default``.
            add_generation_prompt: end with the opening of the assistant's turn.
            continue_final_message: leave the last message open instead, for the model to go on with.
            tools: JSON schemas of the functions that the model may call.
            kwargs: further variables of the template, such as ``enable_thinking``; JSON data only.

        Raises:
            InvalidRequest: messages or kwargs are not valid, or the template rejects them or does not come to an end.
            InvalidConfig: (field ``chat_template``) there is no template, or it is not valid Jinja.
        """
        from anyengine.text.template import compile_template  # noqa: PLC0415 (needs jinja2)

        template = compile_template(self._select_template(chat_template, with_tools=tools is not None))
        return template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            kwargs=kwargs,
            special_tokens=self.special_tokens,
        )

    def _select_template(self, chat_template: str | None, *, with_tools: bool) -> str:
        templates = self.chat_templates
        if chat_template is not None:
            return templates.get(chat_template, chat_template)
        if with_tools and "tool_use" in templates:
            return templates["tool_use"]
        if "default" in templates:
            return templates["default"]
        names = f" by default (it has: {', '.join(sorted(templates))})" if templates else ""
        raise InvalidConfig(
            f"the model has no chat template{names}: pass `chat_template`, or a plain prompt instead of messages",
            field="chat_template",
        )

    def _plain_ids(self, text: str) -> list[int]:
        return self.encode(text, add_special_tokens=False)


def _lone_surrogate(text: str) -> int | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None
