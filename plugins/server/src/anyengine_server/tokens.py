"""Proof that a server counts tokens as we do."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from anyengine.backend.model_config import text_config
from anyengine.errors import EngineStartupError, ModelNotFound
from tokenizers import Tokenizer

from anyengine_server.errors import ServerRefused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyengine.hub import ModelFiles

__all__ = ["PROBES", "load_tokenizer", "prove_tokenizer", "vocabulary_size"]

#: Texts that tokenizers differ on: case, digits, white space, contractions, accents, other scripts, code, emoji.
PROBES = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "  two spaces,\ttab\n\nlines; it's WELL-known (1234567890)",
    "naïve café — “quotes” … ½ €99",
    "日本語とРусский и العربية",
    "def f(x):\n    return {'a': x ** 2}  # 🙂👍🏽",
)


def load_tokenizer(model: ModelFiles) -> Tokenizer:
    """The checkpoint's tokenizer, for plain encoding.

    Raises:
        ModelNotFound: it cannot be read.
    """
    file = model.tokenizer_path / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ModelNotFound(f"{file} cannot be read: {error}", field="tokenizer") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


async def prove_tokenizer(model: ModelFiles, ask: Callable[[str], Awaitable[list[int] | None]]) -> bool:
    """Compare the server's tokens of some texts with ours. Whether it could be asked.

    Args:
        model: the checkpoint.
        ask: the server's tokens of a text without added ones, or None where it has no such call.

    Raises:
        EngineStartupError: they differ: the server has another model.
    """
    tokenizer = await asyncio.to_thread(load_tokenizer, model)
    for text in PROBES:
        try:
            theirs = await ask(text)
        except ServerRefused as error:
            if error.status in {404, 405}:
                return False  # started without it
            raise
        if theirs is None:
            return False
        ours = tokenizer.encode(text, add_special_tokens=False).ids
        if theirs != ours:
            raise EngineStartupError(
                f"the server has another tokenizer than {model.name}: of {text!r} it makes the tokens {theirs}, where "
                f"{ours} were due; name the model that the server was started with",
                field="model",
            )
    return True


def vocabulary_size(model: ModelFiles) -> int:
    """Token ids below this can be generated, by the checkpoint's configuration.

    Raises:
        ModelNotFound: it does not say.
    """
    size: Any = text_config(model.config).get("vocab_size")
    if isinstance(size, int) and size > 0:
        return size
    raise ModelNotFound(
        f"{model.path / 'config.json'} does not say how many tokens there are (vocab_size)", field="model"
    )
