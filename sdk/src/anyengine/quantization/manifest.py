"""The passport of a quantised checkpoint: ``anyengine.json`` in its folder.

It says what the checkpoint was made of, how, with what, and what that cost, and has the hashes of all its files. A load
of a checkpoint that has one checks it. ``manifest.schema.json`` beside this module is its JSON Schema.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct, field

from anyengine.errors import ModelNotFound
from anyengine.quantization.calibration import Drawn
from anyengine.quantization.drift import Drift

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = [
    "MANIFEST",
    "Manifest",
    "MeasuredDrift",
    "Source",
    "check_manifest",
    "hashes",
    "read_manifest",
    "write_manifest",
]

MANIFEST = "anyengine.json"
_CHUNK = 1 << 22


class Source(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The float checkpoint.

    Attributes:
        model: as the caller wrote it; of a local folder the last part of its path.
        revision: commit of a hub model; None for a local folder.
        files: name → SHA-256 of configuration, weights and tokenizer.
    """

    model: str
    revision: str | None = None
    files: dict[str, str]


class MeasuredDrift(Drift, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See :class:`~anyengine.quantization.Drift`.

    Attributes:
        oracle: name and version of the engine that scored both.
        texts_sha256: of the texts.
    """

    oracle: str
    texts_sha256: str


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``anyengine.json`` holds.

    Attributes:
        format: of this file.
        engine: whose toolchain made the checkpoint.
        scheme: as it was asked for.
        source: what it was made of.
        recipe: how, in the toolchain's own words.
        calibration: what the scheme was fitted to; None for one that takes no text.
        tools: name → version.
        drift: from the float model; None where it was not measured.
        drift_unmeasured: why it was not; None where it was.
        files: name → SHA-256 of every other file of the checkpoint.
        sha256: of this file's content without this field, as JSON in UTF-8 with sorted keys and no spaces.
    """

    format: Literal["anyengine-checkpoint/1"] = "anyengine-checkpoint/1"
    engine: str
    scheme: str
    source: Source
    recipe: dict[str, Any] = field(default_factory=dict[str, Any])
    calibration: Drawn | None = None
    tools: dict[str, str] = field(default_factory=dict[str, str])
    drift: MeasuredDrift | None = None
    drift_unmeasured: str | None = None
    files: dict[str, str]
    sha256: str = ""


def hashes(files: Iterable[Path]) -> dict[str, str]:
    """Name → SHA-256 of each file, several at once."""
    wanted = sorted(files)
    with ThreadPoolExecutor() as pool:
        return dict(zip((file.name for file in wanted), pool.map(_sha256, wanted), strict=True))


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Sign a manifest and put it into the folder."""
    signed = msgspec.structs.replace(manifest, sha256=_signature(msgspec.to_builtins(manifest)))
    text = json.dumps(msgspec.to_builtins(signed), indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", "utf-8")
    return signed


def _signature(content: dict[str, Any]) -> str:
    signed = {name: value for name, value in content.items() if name != "sha256"}
    text = json.dumps(signed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a checkpoint; None if it has none. The files that it speaks of are not looked at.

    Raises:
        ModelNotFound: it is no manifest, or was edited after it was written.
    """
    file = folder / MANIFEST
    try:
        raw = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelNotFound(f"{file} cannot be read: {error}", field="model") from error
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
        signature = _signature(json.loads(raw))
    except (ValueError, RecursionError) as error:
        raise ModelNotFound(
            f"{file} is no manifest of a quantised checkpoint: {error}; {_ADVICE}", field="model"
        ) from error
    if signature != manifest.sha256:
        raise ModelNotFound(f"{file} was edited after it was written; {_ADVICE}", field="model")
    return manifest


_ADVICE = "quantise the source again, or delete the file to load the checkpoint as one that nobody vouches for"


def check_manifest(folder: Path) -> Manifest | None:
    """The manifest of a checkpoint, if it has one, after its files were hashed and found to be those that it names.

    Raises:
        ModelNotFound: it was edited, or a file is missing, was added, or differs; names the file.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    there = {file.name: file for file in folder.iterdir() if file.is_file() and file.name != MANIFEST}
    missing = sorted(manifest.files.keys() - there.keys())
    # What a loader would read: a note or a licence beside them does no harm.
    added = sorted(
        name for name in there.keys() - manifest.files.keys() if name.endswith((".json", ".safetensors", ".jinja"))
    )
    found = hashes(there[name] for name in manifest.files if name in there)
    changed = [name for name, digest in found.items() if digest != manifest.files[name]]
    for names, what in ((missing, "missing"), (changed, "not as it was made"), (added, "not in its manifest")):
        if names:
            raise ModelNotFound(
                f"{folder}: {', '.join(names)}: {what} (by the hashes in {MANIFEST}); {_ADVICE}", field="model"
            )
    return manifest
