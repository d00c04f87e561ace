"""Where our own packages are installed from: where the caller's copies came from, or where the caller says.

Never from an index by their bare names, unless asked to: what has our name there need not be ours.
"""

from __future__ import annotations

import os
import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import msgspec

from anyengine.errors import EnvironmentFailed, InvalidConfig
from anyengine.plugins import ENGINES

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["INDEX", "install_arguments", "own_source", "plugin_package"]

#: The word for "by name and version, from the index that pip is configured for".
INDEX = "index"
SDK = "anyengine"
_ENGINE = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?\Z")


def install_arguments(engine: str, source: str | None = None) -> tuple[str, ...]:
    """What pip installs the SDK and an engine's plugin from.

    Args:
        engine: its name.
        source: a folder, :data:`INDEX`, or None for where the caller's copies came from.

    Returns:
        Arguments of ``pip install``.

    Raises:
        InvalidConfig: the packages are not there, or it cannot be told where the caller's copies came from.
        EnvironmentFailed: that place is gone.
    """
    if not _ENGINE.match(engine):
        raise InvalidConfig(
            f"engine: {engine!r} is no engine's name; those are lower case, digits and hyphens", field="engine"
        )
    _require_utf8(source or "", engine)
    found = _all_of(engine, source)
    for argument in found:
        _require_utf8(argument, engine)
    return found


def _require_utf8(place: str, engine: str) -> None:
    """An environment's record is UTF-8, and says what the environment was installed from."""
    try:
        place.encode()
    except UnicodeEncodeError as error:
        raise InvalidConfig(f"source: the path {place!r} is not UTF-8", engine=engine, field="source") from error


def _all_of(engine: str, source: str | None) -> tuple[str, ...]:
    package = plugin_package(engine)
    names = (SDK, *_ours_among(_requirements(package)), package)
    if source is None:
        return tuple(argument for name in names for argument in own_source(name, engine=engine))
    if source == INDEX:
        return tuple(f"{name}=={found.version}" if (found := _own(name)) else name for name in names)
    # Not Path's expanduser, which raises where there is no such user.
    folder = Path(os.path.expanduser(source))  # noqa: PTH111
    if not folder.is_dir():
        raise InvalidConfig(
            f"source: {source!r} is neither a folder nor the word {INDEX}", engine=engine, field="source"
        )
    folder = folder.resolve()  # the same one by whatever way it is named
    found = {name: _in_folder(folder, name) for name in (SDK, package)}
    project = found[package]
    if project is not None and not project.endswith(".whl"):
        names = (SDK, *_ours_among(_project(Path(project)).get("dependencies", ())), package)
    found = {name: found.get(name) or _in_folder(folder, name) for name in names}
    if not any(found.values()):
        raise InvalidConfig(
            f"source: {folder} has neither {SDK} nor {package}; it should be a checkout with sdk/ and plugins/, or "
            "have their wheels",
            engine=engine,
            field="source",
        )
    return tuple(argument for name, path in found.items() for argument in ([path] if path else own_source(name)))


def plugin_package(engine: str) -> str:
    """The package that brings an engine: the one that does so here, else the one that is named after it."""
    points = entry_points(group=ENGINES)
    found = next((point.dist.name for point in points if point.name == engine and point.dist is not None), None)
    return found or f"{SDK}-{engine}"


def own_source(package: str, *, engine: str | None = None) -> Sequence[str]:
    """Where the caller's own copy of a package came from (PEP 610), as arguments of ``pip install``.

    Raises:
        InvalidConfig: the package is not installed here, or came from an index.
        EnvironmentFailed: it came from a place that is gone.
    """
    found = _own(package)
    if found is None:
        raise InvalidConfig(
            f"source: {package} is not installed here, so it is not known where to install it from; install it here, "
            f"or say --from FOLDER (a checkout, or a folder of wheels) or --from {INDEX} (by its name, from the index "
            "that pip is configured for)",
            engine=engine,
            field="source",
        )
    text = found.read_text("direct_url.json")
    if text is None:
        raise InvalidConfig(
            f"source: {package} {found.version} was installed here from a package index; nothing is installed from "
            f"there by a bare name unless you ask for it with --from {INDEX}; or name a folder (a checkout, or one of "
            "wheels) with --from",
            engine=engine,
            field="source",
        )
    return _arguments(package, msgspec.json.decode(text, type=dict[str, Any]))


def _own(package: str) -> Distribution | None:
    try:
        return distribution(package)
    except PackageNotFoundError:
        return None


def _arguments(package: str, origin: dict[str, Any]) -> Sequence[str]:
    """Of the fields of ``direct_url.json``:
    https://packaging.python.org/en/latest/specifications/direct-url-data-structure/.
    """
    url, part = str(origin["url"]), origin.get("subdirectory")
    if "vcs_info" in origin:
        vcs = origin["vcs_info"]
        return (f"{package} @ {vcs['vcs']}+{url}@{vcs['commit_id']}" + (f"#subdirectory={part}" if part else ""),)
    if not url.startswith("file:"):
        marks = [f"subdirectory={part}"] if part else []
        hashes = origin.get("archive_info", {}).get("hashes", {})
        marks += [f"{kind}={value}" for kind, value in hashes.items()][:1]
        return (f"{package} @ {url}" + ("#" + "&".join(marks) if marks else ""),)
    path = Path(url2pathname(urlsplit(url).path)) / (part or "")
    if not path.exists():
        raise EnvironmentFailed(
            f"{package} was installed here from {path}, which is gone; say --from FOLDER or --from {INDEX}",
            field="source",
        )
    return ("-e", str(path)) if origin.get("dir_info", {}).get("editable") else (str(path),)


def _in_folder(folder: Path, package: str) -> str | None:
    """The package's project in a checkout, or its newest wheel; None if there is neither."""
    from packaging.utils import canonicalize_name  # noqa: PLC0415 only who makes environments needs it

    for project in (folder, folder / "sdk", *sorted(folder.glob("plugins/*"))):
        if canonicalize_name(_project(project).get("name", "")) == canonicalize_name(package):
            return str(project)
    return _newest_wheel(folder, package)


def _project(folder: Path) -> dict[str, Any]:
    """The table ``project`` of a folder's ``pyproject.toml``; empty where there is none."""
    try:
        return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        return {}


def _requirements(package: str) -> Sequence[str]:
    """What the caller's copy of a package needs."""
    found = _own(package)
    return () if found is None else found.requires or ()


def _ours_among(requirements: Sequence[str]) -> list[str]:
    """Those that are packages of this project: like a plugin, they come from where the caller's copies came from."""
    from packaging.requirements import Requirement  # noqa: PLC0415 only who makes environments needs it

    parsed = [Requirement(text) for text in requirements]
    return [need.name for need in parsed if need.name.startswith(f"{SDK}-") and need.marker is None]


def _newest_wheel(folder: Path, package: str) -> str | None:
    from packaging.utils import (  # noqa: PLC0415 see above
        InvalidWheelFilename,
        canonicalize_name,
        parse_wheel_filename,
    )

    wheels: list[tuple[Any, str]] = []
    for file in folder.glob("*.whl"):
        try:
            name, version, *_ = parse_wheel_filename(file.name)
        except InvalidWheelFilename:
            continue
        if name == canonicalize_name(package):
            wheels.append((version, str(file)))
    return max(wheels)[1] if wheels else None
