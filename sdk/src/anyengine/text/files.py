"""What the files beside ``tokenizer.json`` say about a tokenizer, read as `transformers` 5 reads them.

``tokenizer_config.json`` and ``special_tokens_map.json`` name special tokens; chat templates stand in
``chat_template.jinja`` and ``additional_chat_templates/*.jinja``, or, in older checkpoints, in
``tokenizer_config.json`` or ``chat_template.json``. Every file may be missing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from anyengine.errors import InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tokenizers import AddedToken, Tokenizer

__all__ = ["apply_declared_tokens", "chat_templates", "named_special_tokens", "read_configuration"]

NAMED_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_configuration(folder: Path) -> dict[str, Any]:
    """``tokenizer_config.json``, completed by ``special_tokens_map.json``.

    Raises:
        InvalidConfig: (field ``tokenizer``) a file is not a JSON object.
    """
    return _read_json(folder / "special_tokens_map.json") | _read_json(folder / "tokenizer_config.json")


def named_special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Name (``eos_token``) to spelling of the special tokens that have one."""
    # extra_special_tokens as a mapping names tokens of one model's own, such as image_token; a list has no names.
    extra = config.get("extra_special_tokens")
    tokens = {name: config.get(name) for name in NAMED_SPECIAL_TOKENS}
    if isinstance(extra, dict):
        tokens |= cast("dict[str, object]", extra)
    return {name: spelling for name, token in tokens.items() if (spelling := _spelling(token))}


def apply_declared_tokens(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """Make special what the configuration declares so, as `transformers` does when it loads a tokenizer.

    Differs in one thing: a declared token that the vocabulary does not have is left out. `transformers` gives it a new
    id, which no embedding of the model stands behind.

    Raises:
        InvalidConfig: (field ``tokenizer``) the declaration is malformed.
    """
    from tokenizers import AddedToken  # noqa: PLC0415 (heavy)

    tokenizer.encode_special_tokens = bool(config.get("split_special_tokens"))
    known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    special = set(named_special_tokens(config).values())
    for key in ("additional_special_tokens", "extra_special_tokens"):
        tokens = config.get(key)
        if isinstance(tokens, list):
            special.update(filter(None, map(_spelling, cast("list[object]", tokens))))
    declared = {spelling: AddedToken(spelling, special=True, normalized=False) for spelling in special - known.keys()}
    for entry in _mapping(config.get("added_tokens_decoder") or {}, "added_tokens_decoder").values():
        token = _added_token(entry, special)
        if token.content not in known or repr(token) != repr(known[token.content]):
            declared[token.content] = token
    present = [token for token in declared.values() if tokenizer.token_to_id(token.content) is not None]
    tokenizer.add_tokens(present)  # pyright: ignore[reportUnknownMemberType] (partly untyped stub)


def chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Name to Jinja source; a single template is ``default``.

    Raises:
        InvalidConfig: (field ``chat_template``) the templates are not text.
    """
    single, named = folder / "chat_template.jinja", folder / "additional_chat_templates"
    files = {"default": single} if single.is_file() else {}
    files |= {path.stem: path for path in sorted(named.glob("*.jinja"))}
    if files:  # Files take the place of what the configuration has, all of it.
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    declared = config.get("chat_template") or _read_json(folder / "chat_template.json").get("chat_template")
    if declared is None:
        return {}
    if isinstance(declared, str):
        return {"default": declared}
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in declared}
    except (TypeError, KeyError) as error:
        raise InvalidConfig(
            f"the chat_template of {folder} is neither text nor a list of objects with name and template",
            field="chat_template",
        ) from error


def _added_token(entry: object, special: set[str]) -> AddedToken:
    from tokenizers import AddedToken  # noqa: PLC0415 (heavy)

    fields = _mapping(entry, "added_tokens_decoder")
    spelling = _spelling(fields)
    if spelling is None:
        raise InvalidConfig(
            "an entry of added_tokens_decoder in tokenizer_config.json lacks content", field="tokenizer"
        )
    flags = {flag: bool(fields[flag]) for flag in ("single_word", "lstrip", "rstrip", "normalized") if flag in fields}
    return AddedToken(spelling, **flags, special=bool(fields.get("special")) or spelling in special)


def _spelling(token: object) -> str | None:
    """A token in a configuration is its spelling, or an object with that as ``content``."""
    if isinstance(token, dict):
        token = cast("dict[str, object]", token).get("content")
    return token if isinstance(token, str) else None


def _mapping(value: object, name: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InvalidConfig(f"{name} in tokenizer_config.json is not an object", field="tokenizer")
    return cast("dict[str, object]", value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"{path} cannot be read: {error}", field="tokenizer") from error
    if not isinstance(content, dict):
        raise InvalidConfig(f"{path} does not hold a JSON object", field="tokenizer")
    return cast("dict[str, Any]", content)
