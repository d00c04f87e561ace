"""Proof that the server makes the same tokens of a prompt as the SDK.

TGI takes text, and adds special tokens to every one. So for a prompt that the SDK encoded without them (a rendered chat
template) another text has to be found: the same without the beginning-of-sequence token that TGI will add.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from anyengine.errors import EngineStartupError, UnsupportedParameter
from anyengine_server import PROBES, MalformedAnswer

from anyengine_tgi.wire import SimpleToken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anyengine.backend import TokenRequest
    from anyengine_server import ServerClient
    from tokenizers import Tokenizer

__all__ = ["Prompts"]

#: What the router of TGI takes for a picture (``router/src/validation.rs``, ``prepare_input``).
_PICTURE = re.compile(r"!\[\]\([^)]*\)")
#: Proven prompts that are remembered.
_REMEMBERED = 512
#: Characters of a prompt that is remembered.
_MOST_CHARACTERS = 20_000


class Prompts:
    """Finds and proves texts.

    Args:
        tokenizer: the SDK's, of the same files.
        client: to the server.
        pictures: whether the server takes parts of a text for pictures, and fetches them.
    """

    def __init__(self, tokenizer: Tokenizer, client: ServerClient, *, pictures: bool = False) -> None:
        self._tokenizer = tokenizer
        self._client = client
        self._pictures = pictures
        self._proven: dict[str, tuple[int, ...]] = {}

    def text(self, request: TokenRequest) -> str:
        """The text that gives the request's tokens when special ones are added to it.

        Raises:
            UnsupportedParameter: there is none.
        """
        return self.text_of(request.prompt_token_ids, request.prompt_text)

    def text_of(self, token_ids: list[int], text: str | None) -> str:
        """The same, of tokens and of what is known of their text."""
        for candidate in self._candidates(token_ids, text):
            if self._encode(candidate) != token_ids:
                continue
            if self._pictures and (found := _PICTURE.search(candidate)):
                raise UnsupportedParameter(
                    f"prompt: TGI takes {found[0][:80]!r} for a picture, and would fetch it", field="prompt"
                )
            return candidate
        raise UnsupportedParameter(
            f"prompt: TGI takes text only and adds special tokens to it, and no text gives these {len(token_ids)} "
            "tokens then",
            field="prompt",
        )

    def _candidates(self, token_ids: list[int], text: str | None) -> Iterator[str]:
        if text is not None:
            yield text
        added = self._encode("")
        lead = 0
        while lead < len(added) and token_ids[: lead + 1] == added[: lead + 1]:
            lead += 1
        # What TGI adds in front is left out of the text.
        first = self._tokenizer.decode(token_ids[:lead], skip_special_tokens=False)
        if text is not None and first and text.startswith(first):
            yield text[len(first) :]
        yield self._tokenizer.decode(token_ids[lead:], skip_special_tokens=False)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=True).ids

    async def probe(self, name: str) -> None:
        """Compare the server's tokens of some texts with ours, before the first request.

        Raises:
            EngineStartupError: the server has another model, or adds other special tokens.
        """
        for text in PROBES:
            try:
                await self.prove(text, self._encode(text))
            except UnsupportedParameter as error:
                raise EngineStartupError(
                    f"the server has another tokenizer than {name}: {error.message}", field="model"
                ) from error

    async def prove(self, text: str, token_ids: list[int]) -> None:
        """Ask the server what it makes of the text.

        Raises:
            UnsupportedParameter: other tokens.
        """
        if self._proven.get(text) == tuple(token_ids):
            return
        tokens = await self._client.post_json("/tokenize", {"inputs": text}, list[SimpleToken])
        self.check(token_ids, [token.id for token in tokens])
        if len(text) <= _MOST_CHARACTERS:
            if len(self._proven) >= _REMEMBERED:
                del self._proven[next(iter(self._proven))]
            self._proven[text] = tuple(token_ids)

    @staticmethod
    def check(ours: list[int], theirs: list[int]) -> None:
        """Compare tokens that the server reports, before or after it computed them.

        Raises:
            UnsupportedParameter: they differ.
        """
        if theirs == ours:
            return
        place = next((place for place, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        where = "one is the beginning of the other" if place is None else f"they differ from token {place} on"
        raise UnsupportedParameter(
            f"prompt: the server makes {len(theirs)} other tokens of this text where {len(ours)} were due ({where}); "
            "name the model and tokenizer that it was started with",
            field="prompt",
        )

    @staticmethod
    def check_length(due: int, length: int) -> None:
        """Hold the number of tokens that the server counted against the prompt's.

        Raises:
            MalformedAnswer: they differ.
        """
        if length != due:
            raise MalformedAnswer(f"TGI computed a prompt of {length} tokens where {due} were due")

    def continuation(self, text: str, token_ids: list[int], new: int) -> str:
        """The text that gives the tokens of a prompt and of what was generated behind it.

        Args:
            text: gives all of the tokens but the new ones.
            token_ids: all of them.
            new: how many were generated.

        Raises:
            UnsupportedParameter: there is none.
        """
        # A decoder may treat what comes first otherwise (the space before it): then all are decoded together.
        return self.text_of(token_ids, text + self._tokenizer.decode(token_ids[-new:], skip_special_tokens=False))
