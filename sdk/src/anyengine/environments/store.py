"""Where environments are kept: a folder for each, its record, and its lock.

An environment is there when its record is: that is written last, and goes first. A folder without one is half made, or
half removed; nobody uses it, and whoever holds the lock next deletes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from anyengine.environments.description import EnvironmentDescription
from anyengine.errors import EnvironmentFailed, InvalidConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__ = ["Environment", "discard", "folder_of", "home", "locked", "log_of", "read", "stored", "valid_name", "write"]

#: One path component that is no other file of ours, and nothing that a shell or an option parser would take for more.
_NAME = re.compile(r"(?!.*\.(?:lock|log)\Z)[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_RECORD = "environment.json"


class Environment(Struct, frozen=True, kw_only=True):
    """An interpreter for engines.

    Attributes:
        name: as users write it.
        python: path of the interpreter.
        created: whether it was made by us; else it is an interpreter that was added, whose files are not ours.
        engine: what it was created for; None for an added one.
        variant: which of the engine's sets of packages it was made of.
        installed: what pip was given for the SDK and the plugin; None for an added one, and where it was not recorded.
        described: what it has, as of ``fingerprint``; None if that was never known.
        fingerprint: of what the description depends on.
    """

    name: str
    python: str
    created: bool
    engine: str | None = None
    variant: str | None = None
    installed: tuple[str, ...] | None = None
    described: EnvironmentDescription | None = None
    fingerprint: str = ""


def home() -> Path:
    """The folder of all environments: below ``ANYENGINE_HOME``, else in the user's data folder."""
    given = os.environ.get("ANYENGINE_HOME")
    if given:
        # Not Path's expanduser, which raises where there is no such user.
        path = os.path.expanduser(given)  # noqa: PTH111
        try:
            path.encode()
        except UnicodeEncodeError as error:  # records are UTF-8, and have paths in this folder
            raise InvalidConfig(f"ANYENGINE_HOME: the path {given!r} is not UTF-8", field="environment") from error
        return Path(path).absolute() / "environments"
    from platformdirs import user_data_path  # noqa: PLC0415 only where it is needed

    return user_data_path("anyengine") / "environments"


def valid_name(name: str) -> str:
    """The name, which can be a folder's.

    Raises:
        InvalidConfig: it cannot.
    """
    if not _NAME.match(name):
        raise InvalidConfig(
            f"environment: {name!r} is no name; a name is up to 64 letters, digits, '-', '_' and '.', begins with a "
            "letter or digit and does not end in .lock or .log",
            field="environment",
        )
    return name


def folder_of(name: str) -> Path:
    """The folder of an environment, whether it is there or not."""
    return home() / valid_name(name)


def log_of(name: str) -> Path:
    """What pip said when the environment could not be made."""
    return home() / f"{valid_name(name)}.log"


def stored() -> list[Environment]:
    """Every environment, sorted by name."""
    try:
        names = sorted(entry.name for entry in os.scandir(home()) if _NAME.match(entry.name) and entry.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unusable(error) from error
    return [found for name in names if (found := read(name)) is not None]


def read(name: str) -> Environment | None:
    """The environment of that name; None if there is none, or its record is unreadable."""
    try:
        return msgspec.json.decode((folder_of(name) / _RECORD).read_bytes(), type=Environment)
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError):
        return None
    except OSError as error:
        raise _unusable(error) from error


def write(environment: Environment) -> None:
    """Write the record, whole or not at all. The caller holds the lock."""
    folder = folder_of(environment.name)
    temporary = folder / f"{_RECORD}.new"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(environment)))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / _RECORD)
    except OSError as error:
        raise _unusable(error) from error


def discard(name: str) -> bool:
    """Delete an environment's folder, the record first. The caller holds the lock.

    Returns:
        Whether there was anything.
    """
    folder = folder_of(name)
    try:
        log_of(name).unlink(missing_ok=True)
        if not os.path.lexists(folder):
            return False
        (folder / _RECORD).unlink(missing_ok=True)
        shutil.rmtree(folder)
    except OSError as error:
        raise EnvironmentFailed(f"{folder} cannot be deleted: {error}", field="environment") from error
    return True


@contextmanager
def locked(name: str, *, waiting: Callable[[], None] | None = None) -> Generator[int | None]:
    """Hold the lock of a name.

    Args:
        name: of the environment.
        waiting: called before waiting for another process that holds it. None: do not wait.

    Yields:
        A descriptor of the lock, which a child may inherit to hold it longer than we live; None if another process
        has it and we do not wait.
    """
    path = home() / f"{valid_name(name)}.lock"
    descriptor = _take(path, waiting)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            if not os.path.lexists(folder_of(name)):
                with contextlib.suppress(OSError):
                    path.unlink()  # while it is held: whoever waits for it sees that it is not the file any more
            os.close(descriptor)


def _take(path: Path, waiting: Callable[[], None] | None) -> int | None:
    import fcntl  # noqa: PLC0415 POSIX only, as workers are; listing what is there works anywhere

    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                os.close(descriptor)
                return None
            waiting()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except BaseException:
                os.close(descriptor)
                raise
        if _is_file(descriptor, path):
            return descriptor
        os.close(descriptor)


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether the path still leads to the file that was opened, not to another's or nowhere."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _unusable(error: OSError) -> EnvironmentFailed:
    full = " (the disk is full)" if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
    return EnvironmentFailed(
        f"the folder of the environments, {home()}, cannot be used{full}: {error}; ANYENGINE_HOME can name another",
        field="environment",
    )
