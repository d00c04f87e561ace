"""Incremental decoding of token ids, from tables, for the three kinds of decoder that language models use.

``tokenizer.json`` names how token strings become text. Supported are `ByteLevel` (GPT-2, Llama 3, Qwen, SmolLM),
`ByteFallback` with its companions (Llama 2, Mistral, Gemma: ``Sequence[Replace, ByteFallback, Fuse, Strip]``) and
`Metaspace` (SentencePiece unigram models); every other decoder is refused by name. :mod:`anyengine.text.pipeline`
reads that description; this module applies it to a stream.

The promise, for any token ids and any chunking::

    "".join(stream.feed(chunk) for chunk in chunks) + stream.flush() == tokenizer.decode(ids, skip_special_tokens=...)

with `tokenizer` from the `tokenizers` library. `transformers` may tidy English spacing on top of that
(``clean_up_tokenization_spaces``); that is not a function of a prefix, and neither engines nor we do it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from codecs import utf_8_decode
from typing import TYPE_CHECKING, Self, cast

from anyengine.text.pipeline import Pipeline, read_pipeline, token_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenizers import Tokenizer

__all__ = ["DecoderTable", "IncrementalDecoder"]

REPLACEMENT = "\ufffd"


class DecoderTable:
    """What each token id of one tokenizer decodes to; built once, shared by all streams, never changed.

    An id is in `texts` when its token always stands for the same characters, in `raw` when it stands for bytes that
    need their neighbours to become characters, and in neither when the tokenizer has no such id: it then decodes to
    nothing, as in `tokenizers`.

    Attributes:
        texts: id to characters.
        raw: id to bytes: an incomplete piece of UTF-8 (ByteLevel), or the one byte of ``<0x..>`` (ByteFallback).
        first: ids whose token decodes otherwise at the very start of the text (Metaspace), to that decoding.
        special_ids: ids that ``skip_special_tokens`` leaves out. As in `tokenizers` it is the token's *spelling* that
            makes it special, so an ordinary id that is spelt like a special token is among them.
    """

    __slots__ = ("_visible", "first", "pipeline", "raw", "special_ids", "texts")

    def __init__(
        self,
        pipeline: Pipeline,
        tokens: Mapping[int, str],
        special_tokens: frozenset[str] = frozenset(),
    ) -> None:
        self.pipeline = pipeline
        self.texts: dict[int, str] = {}
        self.raw: dict[int, bytes] = {}
        self.first: dict[int, str | bytes] = {}
        self.special_ids = frozenset(token_id for token_id, token in tokens.items() if token in special_tokens)
        self._visible: dict[int, str] | None = None
        for token_id, token in tokens.items():
            entry = self._entry(token, first=False)
            if isinstance(entry, str):
                self.texts[token_id] = entry
            else:
                self.raw[token_id] = entry
            if pipeline.positional and (at_start := self._entry(token, first=True)) != entry:
                self.first[token_id] = at_start

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> DecoderTable:
        """Build the table; about a microsecond a token of the vocabulary.

        Raises:
            InvalidConfig: (field ``tokenizer``) the tokenizer has no decoder, or one that is not supported.
        """
        pipeline = read_pipeline(tokenizer)
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        tokens = {token_id: token for token, token_id in vocab.items()}
        added = tokenizer.get_added_tokens_decoder()
        # Ids that two tokens share, and added tokens (whose normalised spelling is what is decoded), are not what the
        # vocabulary says; asking for each token by its id would cost more than the rest.
        for token_id in tokens if len(tokens) != len(vocab) else added:
            tokens[token_id] = cast("str", tokenizer.id_to_token(token_id))
        special = (token.content for token in added.values() if token.special)
        return cls(pipeline, tokens, frozenset(special))

    def stream(self, *, skip_special_tokens: bool = True) -> IncrementalDecoder:
        """A decoder for one stream, at its start."""
        if self.pipeline.kind == "ByteLevel":
            return _ByteLevelDecoder(self, skip_special_tokens=skip_special_tokens)
        return _PieceDecoder(self, skip_special_tokens=skip_special_tokens)

    def visible(self, *, skip_special_tokens: bool) -> Mapping[int, str]:
        """`texts`, without the special tokens when those are skipped."""
        if not skip_special_tokens or not self.special_ids:
            return self.texts
        if self._visible is None:
            hidden = self.special_ids
            self._visible = {token_id: text for token_id, text in self.texts.items() if token_id not in hidden}
        return self._visible

    def _entry(self, token: str, *, first: bool) -> str | bytes:
        pipeline = self.pipeline
        for step in pipeline.before:
            token = step(token, first)
        raw = token_bytes(pipeline.kind, token)
        if raw is None:
            for step in pipeline.after:
                token = step(token, first)
            return token
        if pipeline.kind == "ByteLevel":
            try:
                return raw.decode()
            except UnicodeDecodeError:
                return raw
        return raw


class IncrementalDecoder(ABC):
    """Turns the token ids of one stream into text as they come, never splitting a character.

    The cost of a token does not depend on how many came before it. Not safe for use from two threads at once.
    """

    # _steady: no token so far can change what the next ordinary token decodes to, so a dictionary look-up is enough.
    __slots__ = ("_get", "_hidden", "_steady", "_table")

    def __init__(self, table: DecoderTable, *, skip_special_tokens: bool) -> None:
        self._table = table
        self._get = table.visible(skip_special_tokens=skip_special_tokens).get
        self._hidden: frozenset[int] = table.special_ids if skip_special_tokens else frozenset()
        self._steady = False

    def feed(self, token_ids: Sequence[int]) -> str:
        """The text that is final after these tokens: "" while a character is incomplete."""
        if len(token_ids) == 1:
            token_id = token_ids[0]
            if self._steady:
                text = self._get(token_id)
                if text is not None:
                    return text
            return self._feed_one(token_id)
        if self._steady:
            # A None among them, a token that is not plain text, makes join raise; a cast would cost a call.
            try:
                return "".join(map(self._get, token_ids))  # pyright: ignore[reportCallIssue, reportUnknownVariableType, reportArgumentType]
            except TypeError:
                pass
        feed_one = self._feed_one
        return "".join([feed_one(token_id) for token_id in token_ids])

    @abstractmethod
    def _feed_one(self, token_id: int) -> str:
        """`feed` for one token, in any state."""

    @abstractmethod
    def flush(self) -> str:
        """The rest at the end of the stream; incomplete bytes become U+FFFD exactly as in one decode of everything.

        The stream is over afterwards: a second flush gives "", and what a later `feed` gives is not defined.
        """

    @abstractmethod
    def copy(self) -> Self:
        """An independent decoder in the same state."""

    def _copy_shared(self) -> Self:
        other = object.__new__(type(self))
        other._table, other._get, other._hidden, other._steady = self._table, self._get, self._hidden, self._steady
        return other


class _ByteLevelDecoder(IncrementalDecoder):
    """All tokens' bytes are one byte string, decoded as UTF-8 with each maximal invalid part as one U+FFFD.

    Python's "replace" and Rust's `from_utf8_lossy` agree on that (Unicode 16, section 3.9, table 3-11).
    """

    __slots__ = ("_pending", "_raw_get")

    def __init__(self, table: DecoderTable, *, skip_special_tokens: bool) -> None:
        super().__init__(table, skip_special_tokens=skip_special_tokens)
        self._pending = b""
        self._raw_get = table.raw.get
        self._steady = True

    def _feed_one(self, token_id: int) -> str:
        text = self._get(token_id)
        if text is not None:
            if not self._pending:
                return text
            raw = self._pending + text.encode()
        else:
            raw = self._raw_get(token_id)
            if raw is None or token_id in self._hidden:
                return ""
            if self._pending:
                raw = self._pending + raw
        text, used = utf_8_decode(raw, "replace", False)  # noqa: FBT003 (positional only: more may follow)
        if used == len(raw):
            self._pending = b""
            self._steady = True
        else:
            self._pending = raw[used:]
            self._steady = False
        return text

    def flush(self) -> str:
        text = self._pending.decode(errors="replace")
        self._pending = b""
        self._steady = True
        return text

    def copy(self) -> Self:
        other = self._copy_shared()
        other._pending, other._raw_get = self._pending, self._raw_get  # noqa: SLF001 (our own class)
        return other


class _PieceDecoder(IncrementalDecoder):
    """Each token is a piece of text, or one byte of a run of bytes (ByteFallback).

    A run that as a whole is not UTF-8 becomes one U+FFFD for each of its bytes, so nothing of it is final before the
    token that ends it.
    """

    # _first: no token has come; _run_first: the run began with the first token; _strip: characters that may still be
    # stripped from the start of the text.
    __slots__ = ("_first", "_run", "_run_first", "_strip")

    def __init__(self, table: DecoderTable, *, skip_special_tokens: bool) -> None:
        super().__init__(table, skip_special_tokens=skip_special_tokens)
        self._first = table.pipeline.positional
        self._run = bytearray()
        self._run_first = False
        self._strip = table.pipeline.strip_count
        self._steady = not self._first and not self._strip

    def _feed_one(self, token_id: int) -> str:
        table = self._table
        entry: str | bytes | None = self._get(token_id)
        if entry is None:
            entry = table.raw.get(token_id)
            if entry is None or token_id in self._hidden:
                return ""
        first = self._first
        if first:
            self._first = False
            entry = table.first.get(token_id, entry)
        if isinstance(entry, bytes):
            if not self._run:
                self._run_first = first
            self._run += entry
            self._steady = False
            return ""
        text = self._end_run() if self._run else ""
        text += self._stripped(entry) if self._strip else entry
        self._steady = not self._strip
        return text

    def _end_run(self) -> str:
        run, first = self._run, self._run_first
        self._run = bytearray()
        try:
            pieces = [run.decode()]
        except UnicodeDecodeError:
            pieces = [REPLACEMENT] * len(run)
        for step in self._table.pipeline.after:
            pieces = [step(piece, first and index == 0) for index, piece in enumerate(pieces)]
        text = "".join(pieces)
        return self._stripped(text) if self._strip else text

    def _stripped(self, text: str) -> str:
        content = self._table.pipeline.strip_content
        cut = 0
        while cut < len(text) and cut < self._strip and text[cut] == content:
            cut += 1
        # Only a text that was stripped to its end leaves the start of the text still to come.
        self._strip = self._strip - cut if cut == len(text) else 0
        return text[cut:]

    def flush(self) -> str:
        return self._end_run() if self._run else ""

    def copy(self) -> Self:
        other = self._copy_shared()
        other._first, other._run_first = self._first, self._run_first  # noqa: SLF001 (our own class)
        other._strip, other._run = self._strip, self._run.copy()  # noqa: SLF001
        return other
