"""A folder that looks like a checkpoint to the SDK: configuration, tokenizer, chat template, and empty weights."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["EOS", "make_model_folder"]

#: Id of the end-of-sequence token ``<|end|>``. The ids 0 to 255 are bytes, in the order of the byte-level alphabet.
EOS = 256
_IM_START, _IM_END = 257, 258
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_model_folder(folder: Path, *, chat_template: str | None = _TEMPLATE) -> Path:
    """Write a checkpoint folder whose tokens are single bytes.

    Args:
        folder: made if it does not exist.
        chat_template: Jinja source, or None for a model without one.

    Returns:
        The folder.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415 heavy, tests only

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue] the stubs lack the setter
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue] as above
    specials = [AddedToken(name, special=True) for name in ("<|end|>", "<|im_start|>", "<|im_end|>")]
    tokenizer.add_special_tokens(specials)  # pyright: ignore[reportUnknownMemberType] the stubs are partial
    tokenizer.save(str(folder / "tokenizer.json"))
    texts = {
        "config.json": {"architectures": ["Simulated"], "eos_token_id": EOS, "vocab_size": 259},
        "generation_config.json": {"eos_token_id": [EOS, _IM_END], "temperature": 0.6, "top_p": 0.9},
        "tokenizer_config.json": {"eos_token": "<|end|>"}
        | ({} if chat_template is None else {"chat_template": chat_template}),
    }
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content))
    # A safetensors file: length of the header, the header, no tensors (https://huggingface.co/docs/safetensors).
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder
