"""From the token ids of one stream to the text that its caller sees: decoding, and stopping at stop strings."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

from anyengine.text.stopping import StopMatch, StopMatcher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyengine.text.decoding import DecoderTable

__all__ = ["Detokenizer"]


class Detokenizer:
    """Decodes one stream and ends it at the first stop string.

    What comes out, text, `stopped` and `num_tokens`, is a function of the token ids, of whether the last of them
    terminated the generation, and of the options; never of how the ids were divided among calls:

    * A stop string is completed by the token after which its text is final. That is the token with its last character,
      except where a decoder has to wait: for the end of a run of byte tokens (ByteFallback), or for the byte that shows
      an incomplete character to be invalid. What is final only at the end of the stream is completed by the last token.
    * It counts only if at least `min_tokens` tokens come before the token that completes it, the same as for an
      end-of-sequence token. It may begin in the text of tokens that came earlier.
    * Tokens after the completing one are not part of the result, though an engine may have produced them.
    * A token that terminated the generation (end of sequence, or a stop token) counts as a token. It is no part of the
      text, unless with `include_stop`: then it is text like any other, subject to `skip_special_tokens` and to stop
      strings.

    Attributes:
        num_tokens: tokens so far, up to and including the one that completed the stop.
        stopped: the stop string that ended the stream, and where in its text; None as long as there is none.
    """

    __slots__ = ("_decoder", "_include_stop", "_matcher", "_min_tokens", "num_tokens", "stopped")

    def __init__(
        self,
        table: DecoderTable,
        *,
        stops: tuple[str, ...] = (),
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
        include_stop: bool = False,
    ) -> None:
        self._decoder = table.stream(skip_special_tokens=skip_special_tokens)
        self._matcher = StopMatcher(stops) if stops else None
        self._min_tokens = min_tokens
        self._include_stop = include_stop
        self.num_tokens = 0
        self.stopped: StopMatch | None = None

    def feed(self, token_ids: Sequence[int], *, terminated: bool = False) -> str:
        """Go on with `token_ids`.

        Args:
            token_ids: the next tokens of the stream.
            terminated: the last of them ended the generation; nothing may be fed afterwards.

        Returns:
            The text that can be released now: it is final, and no stop string can begin in it any more. After a stop
            string, which `stopped` shows, all further tokens are discarded and give "".
        """
        if self.stopped is not None:
            return ""
        body = token_ids[:-1] if terminated and not self._include_stop else token_ids
        matcher = self._matcher
        if matcher is None:
            self.num_tokens += len(token_ids)
            return self._decoder.feed(body)
        if len(body) != 1:
            return self._feed_many(matcher, body, num_tokens=len(token_ids))
        armed = self.num_tokens >= self._min_tokens
        text, match = matcher.feed(self._decoder.feed(body), armed=armed)
        if match is None:
            self.num_tokens += len(token_ids)
            return text
        return self._stop(text, match, num_tokens=1)

    def _feed_many(self, matcher: StopMatcher, body: Sequence[int], *, num_tokens: int) -> str:
        decode = self._decoder.feed
        texts = [decode([token_id]) for token_id in body]
        unarmed = max(self._min_tokens - self.num_tokens, 0)
        early, _ = matcher.feed("".join(texts[:unarmed]), armed=False)
        text, match = matcher.feed("".join(texts[unarmed:]))
        if match is None:
            self.num_tokens += num_tokens
            return early + text
        ends = accumulate((len(piece) for piece in texts[unarmed:]), initial=matcher.position)
        before = sum(1 for end in ends if end < match.end)  # the start, and the end of each token before completion
        return self._stop(early + text, match, num_tokens=unarmed + before)

    def finish(self) -> str:
        """The rest of the text at the end of the stream; a stop string may still be completed by it."""
        if self.stopped is not None:
            return ""
        text = self._decoder.flush()
        if self._matcher is None:
            return text
        released, match = self._matcher.feed(text, armed=self.num_tokens > self._min_tokens)
        if match is None:
            return released + self._matcher.flush()
        return self._stop(released, match, num_tokens=0)

    def _stop(self, text: str, match: StopMatch, *, num_tokens: int) -> str:
        self.stopped = match
        self.num_tokens += num_tokens
        return text + match.stop if self._include_stop else text
