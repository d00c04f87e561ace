"""From a model's name to a checkpoint on disk that is safe to load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from anyengine.backend.model_config import whole_model
from anyengine.backend.weights import SAFETENSORS
from anyengine.errors import InvalidConfig, ModelNotFound
from anyengine.hub.files import ModelFiles
from anyengine.hub.weights import check_weights
from anyengine.suggestions import suggested

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["locate_config", "read_config", "resolve_adapter", "resolve_model"]

#: What is fetched from the hub beside the weights that the engine reads: never pickled weights, never code.
TEXTS = ["*.json", "*.jinja", "*.model", "*.txt"]


def resolve_model(
    model: str,
    *,
    builtin: Mapping[str, str],
    revision: str | None = None,
    tokenizer: str | None = None,
    tokenizer_revision: str | None = None,
    draft: str | None = None,
    loras: Mapping[str, str] | None = None,
    weights: Sequence[str] = SAFETENSORS,
) -> ModelFiles:
    """Find a checkpoint, fetch it if it is on the hub, and look it over before any engine does.

    A name is, in this order: a model that comes with the plugin, a folder, a Hugging Face hub id.

    Args:
        model: the name.
        builtin: name → folder of the models that come with the plugin.
        revision: of a hub model: branch, tag or commit; resolved once to a commit, which is what is loaded.
        tokenizer: where the tokenizer comes from, if not from the model.
        tokenizer_revision: like ``revision``.
        draft: the checkpoint that proposes tokens in speculative decoding.
        loras: adapters, name → folder or hub id.
        weights: patterns of the files that the engine reads weights from (``EngineDescription.weights``); none where
            it runs elsewhere, and needs no weights here.

    Raises:
        ModelNotFound: there is none, or it is unusable; says what to do.
        InvalidConfig: a revision of something that has none.
    """
    path, commit = _locate(model, revision, builtin, field="model", weights=weights)
    config = read_config(path)
    if weights:
        check_weights(path, weights)
    if tokenizer is None and tokenizer_revision is not None:
        raise InvalidConfig(
            "tokenizer_revision: there is no `tokenizer` that it belongs to; the model's own comes with `revision`",
            field="tokenizer_revision",
        )
    tokenizer_path = (
        path if tokenizer is None else _locate(tokenizer, tokenizer_revision, builtin, field="tokenizer", weights=())[0]
    )
    if not (tokenizer_path / "tokenizer.json").is_file():
        raise ModelNotFound(
            f"{tokenizer_path} has no tokenizer.json; make one with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder), or name another `tokenizer`",
            field="tokenizer",
        )
    return ModelFiles(
        name=model,
        path=path,
        tokenizer_path=tokenizer_path,
        revision=commit,
        config=config,
        eos_token_ids=_eos_token_ids(path, tokenizer_path, config),
        draft=None
        if draft is None
        else resolve_model(draft, builtin=builtin, tokenizer=str(tokenizer_path), weights=weights or SAFETENSORS),
        loras={name: resolve_adapter(name, source, weights) for name, source in (loras or {}).items()},
    )


def locate_config(model: str, revision: str | None, builtin: Mapping[str, str]) -> tuple[Path, dict[str, Any]]:
    """Folder and config.json of a checkpoint; of one on the hub no weights are fetched.

    Raises:
        ModelNotFound, InvalidConfig: as by :func:`resolve_model`.
    """
    folder = _locate(model, revision, builtin, field="model", weights=())[0]
    return folder, read_config(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """Contents of a checkpoint's config.json.

    Raises:
        ModelNotFound: there is none, or it cannot be read.
    """
    return _read_object(folder / "config.json", needed="every checkpoint has one")


def resolve_adapter(name: str, source: str, weights: Sequence[str] = SAFETENSORS) -> Path:
    """Folder of a low-rank adapter, fetched if it is on the hub, and looked over.

    Args:
        name: of the adapter.
        source: folder or hub id.
        weights: patterns of the files that the engine reads the model's weights from. Adapters are read from those, or
            from safetensors: engines that convert models often take adapters as they are.

    Raises:
        ModelNotFound: there is none, or it is unusable.
    """
    patterns = tuple(dict.fromkeys((*weights, *SAFETENSORS)))
    folder = _locate(source, None, {}, field=f"lora.adapters.{name}", weights=patterns)[0]
    check_weights(folder, patterns)
    return folder


def _locate(
    name: str, revision: str | None, builtin: Mapping[str, str], *, field: str, weights: Sequence[str]
) -> tuple[Path, str | None]:
    """Folder, and the commit of a hub model."""
    path = Path(builtin[name]) if name in builtin else Path(name).expanduser()
    if path.is_dir():
        if revision is not None:
            prefix = "tokenizer_" if field == "tokenizer" else ""
            raise InvalidConfig(
                f"{prefix}revision: {name} is a local folder, which has no revision {revision!r}",
                field=f"{prefix}revision",
            )
        return path.resolve(), None
    if path.is_file():
        raise ModelNotFound(
            f"{field}: {name} is a file; name the folder that holds the checkpoint: its config.json and tokenizer.json "
            "belong beside its weights",
            field=field,
        )
    if name.startswith((".", "/", "~", "\\")) or name.count("/") > 1:
        raise ModelNotFound(f"{field}: there is no folder {name}", field=field)
    missing = f"{field}: {_not_here(name, builtin)}"
    return _download(name, revision, field=field, patterns=[*TEXTS, *weights], missing=missing)


def _not_here(name: str, builtin: Mapping[str, str]) -> str:
    """What a name, which may yet be one of the hub, is not."""
    if "/" in name or not builtin:
        return f"{name} is no folder here"
    there_are = suggested(name, builtin, f"there are: {', '.join(builtin)}")
    return f"{name} is no model that comes with the engine ({there_are}), no folder here"


def _download(
    name: str, revision: str | None, *, field: str, patterns: Sequence[str], missing: str
) -> tuple[Path, str]:
    """Snapshot of a hub model, pinned to one commit before anything is fetched.

    Args:
        name: of the model.
        revision: branch, tag or commit.
        field: that the name stands in.
        patterns: of the files that are fetched.
        missing: how an error begins if the hub does not have it either.
    """
    from huggingface_hub import (  # noqa: PLC0415 heavy, and only for hub models
        HfApi,
        constants,
        snapshot_download,  # pyright: ignore[reportUnknownVariableType] its overloads are not fully typed
    )
    from huggingface_hub.errors import (  # noqa: PLC0415
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    fetch = cast("Callable[..., str]", snapshot_download)
    try:
        if constants.HF_HUB_OFFLINE:
            folder = Path(fetch(name, revision=revision, allow_patterns=patterns, local_files_only=True))
            # The cache keeps each snapshot in a folder named by its commit.
            return folder, folder.name
        # Asked for first, so that without a network nothing old comes out of the cache unnoticed.
        commit = HfApi().model_info(name, revision=revision).sha
        if commit is None:
            raise ModelNotFound(f"{field}: the hub gives no commit for {name}", field=field)
        # Fetched by the name that was given: then the cache knows it too, and finds it offline.
        folder = Path(fetch(name, revision=revision, allow_patterns=patterns))
        if folder.name != commit:  # the branch moved in between
            folder = Path(fetch(name, revision=commit, allow_patterns=patterns))
    except ModelNotFound:
        raise
    except RevisionNotFoundError as error:
        raise ModelNotFound(f"revision: {name} has no revision {revision!r} on the hub", field="revision") from error
    except GatedRepoError as error:
        message = f"{field}: {name} is gated: accept its conditions on the hub, and log in with `hf auth login`"
        raise ModelNotFound(message, field=field) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        message = f"{missing}, and no model on the hub that you may read (a private one needs `hf auth login`)"
        raise ModelNotFound(message, field=field) from error
    except LocalEntryNotFoundError as error:
        message = (
            f"{missing}, the hub is not reached (HF_HUB_OFFLINE is set, or there is no network), "
            "and its cache does not hold all of it"
        )
        raise ModelNotFound(message, field=field) from error
    except Exception as error:
        # Its own errors, and those of its HTTP client (which changes with its versions), have no common root.
        message = (
            f"{missing}, and could not be fetched from the hub: {type(error).__name__}: {error}; "
            "with HF_HUB_OFFLINE=1 only its cache is looked at"
        )
        raise ModelNotFound(message, field=field) from error
    return folder, commit


def _read_object(file: Path, *, needed: str | None = None) -> dict[str, Any]:
    """A JSON object; an absent file that is not needed is an empty one."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        if needed is None:
            return {}
        raise ModelNotFound(f"{file.parent} has no {file.name}; {needed}", field="model") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelNotFound(f"{file} cannot be read: {error}", field="model") from error
    if not isinstance(content, dict):
        raise ModelNotFound(f"{file} does not hold a JSON object", field="model")
    return cast("dict[str, Any]", content)


def _eos_token_ids(path: Path, tokenizer_path: Path, config: dict[str, Any]) -> frozenset[int]:
    """Every end-of-sequence token that the model's files name; engines look in different ones."""
    ids = {*_ids(whole_model(config, "eos_token_id"))}
    ids |= {*_ids(_read_object(path / "generation_config.json").get("eos_token_id"))}
    token = _read_object(tokenizer_path / "tokenizer_config.json").get("eos_token")
    if isinstance(token, dict):
        token = cast("dict[str, Any]", token).get("content")
    if isinstance(token, str):
        ids |= {*_ids(_vocabulary(tokenizer_path / "tokenizer.json").get(token))}
    return frozenset(ids)


def _vocabulary(file: Path) -> dict[Any, Any]:
    """Token → id of a tokenizer.json, added tokens included. (Unigram's vocabulary is a list; its special tokens are
    added ones.)
    """
    tokenizer = _read_object(file)
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    vocabulary: Any = cast("dict[str, Any]", model).get("vocab") if isinstance(model, dict) else None
    known = cast("dict[Any, Any]", vocabulary) if isinstance(vocabulary, dict) else {}
    entries = cast("list[Any]", added) if isinstance(added, list) else []
    return known | {entry.get("content"): entry.get("id") for entry in entries if isinstance(entry, dict)}  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] any JSON


def _ids(value: object) -> Iterable[int]:
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, int) and not isinstance(item, bool) and item >= 0]
