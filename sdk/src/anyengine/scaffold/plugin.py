"""From a name to a plugin package that works."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from importlib.metadata import distributions, entry_points, version
from importlib.resources import files
from pathlib import Path, PurePosixPath
from string import Template
from typing import TYPE_CHECKING

from anyengine.environments.sources import own_source
from anyengine.errors import EnvironmentFailed, InvalidConfig
from anyengine.testing import make_model_folder

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["write_plugin"]

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
#: Ending of the templates, so that no tool takes them for what they are not yet.
_ENDING = ".template"


def write_plugin(name: str, directory: Path | None = None) -> tuple[Path, list[str]]:
    """Write the package of an engine's plugin.

    Args:
        name: of the engine, as users will write it.
        directory: must not exist, or be empty. None: ``anyengine-NAME`` here.

    Returns:
        The folder, and the files in it, relative, in order.

    Raises:
        InvalidConfig: the name is not allowed or taken, or the folder is not empty.
    """
    if not _NAME.fullmatch(name):
        raise InvalidConfig(
            f"name: {name!r} is no name of an engine: lower case letters, digits and single hyphens, beginning with a "
            "letter, such as my-engine",
            field="name",
        )
    _refuse_taken(name)
    folder = directory or Path(f"anyengine-{name}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidConfig(f"directory: {folder} exists already and is not empty", field="directory")
    words = "".join(part.capitalize() for part in name.split("-"))
    module = f"anyengine_{name.replace('-', '_')}"
    values = {"name": name, "module": module, "cls": words, "sdk": version("anyengine"), "install": _install()}
    # Folders that have other names here: one is only known now, and packagers leave folders of tests out.
    places = {"PACKAGE": module, "TESTS": "tests"}
    written: list[str] = []
    for path, template in sorted(_templates(files("anyengine.scaffold") / "templates", PurePosixPath())):
        relative = "/".join(places.get(part, part) for part in path.parts).removesuffix(_ENDING)
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(Template(template.read_text(encoding="utf-8")).substitute(values), encoding="utf-8")
        written.append(relative)
    model = make_model_folder(folder / "src" / module / "model")
    written += [file.relative_to(folder).as_posix() for file in model.iterdir()]
    return folder, sorted(written)


def _install() -> str:
    """How pip installs the written package beside copies of ours from where those here came from.

    What is not here, or came from an index, is left to pip.
    """
    arguments: list[str] = []
    for package in ("anyengine", "anyengine-reference", "anyengine-conformance"):
        with suppress(InvalidConfig, EnvironmentFailed):
            arguments += own_source(package)
    return shlex.join(["pip", "install", *arguments, "-e", ".[dev]"])


def _refuse_taken(name: str) -> None:
    taken = [point for point in entry_points(group="anyengine.engines") if point.name == name]
    if taken:
        owner = taken[0].dist.name if taken[0].dist else taken[0].value
        raise InvalidConfig(f"name: {owner} brings an engine of the name {name!r} already", field="name")
    if list(distributions(name=f"anyengine-{name}")):
        raise InvalidConfig(f"name: a package anyengine-{name} is installed already", field="name")


def _templates(folder: Traversable, path: PurePosixPath) -> list[tuple[PurePosixPath, Traversable]]:
    found: list[tuple[PurePosixPath, Traversable]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _templates(entry, path / entry.name)
        elif entry.name.endswith(_ENDING):
            found.append((path / entry.name, entry))
    return found
