"""Which environments there are, and which of them has an engine."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

import msgspec

from anyengine.environments.probe import fingerprint, probe, require_protocol
from anyengine.environments.store import Environment, discard, home, locked, read, stored, valid_name, write
from anyengine.errors import EnvironmentFailed, InvalidConfig

if TYPE_CHECKING:
    from anyengine.environments.description import DescribedEngine

__all__ = [
    "Environment",
    "add_environment",
    "choose_environment",
    "environments",
    "find_environment",
    "find_record",
    "refreshed",
    "remove_environment",
    "suitable_environments",
]


def environments() -> list[Environment]:
    """Every environment, sorted by name, as it was described last."""
    return stored()


def find_record(name: str) -> Environment:
    """The environment of that name, whether it works or not.

    Raises:
        InvalidConfig: there is none; says which there are, and how one is made.
    """
    found = read(name)
    if found is None:
        names = ", ".join(environment.name for environment in stored())
        raise InvalidConfig(
            f"environment: there is no environment {name!r}; there {f'are: {names}' if names else 'are none'}. "
            f"`anyengine env create ENGINE --name {name}` makes it",
            field="environment",
        )
    return found


def find_environment(name: str) -> Environment:
    """The environment of that name, whose interpreter is there.

    Raises:
        InvalidConfig: there is none.
        EnvironmentFailed: its interpreter is gone.
    """
    found = find_record(name)
    if not os.access(found.python, os.X_OK):
        mend = f"`anyengine env doctor {name}` says what to do"
        raise EnvironmentFailed(
            f"environment {name}: its interpreter {found.python} is gone or not executable; {mend}", field="environment"
        )
    return found


def refreshed(environment: Environment) -> Environment:
    """The environment with what it has now; nothing is started unless something has changed there.

    Raises:
        EnvironmentFailed: the interpreter does not work, or its worker speaks another protocol.
    """
    described = environment.described
    if described is not None and fingerprint(environment.python, described) == environment.fingerprint:
        require_protocol(described, environment.python)
        return environment
    return described_anew(environment)


def described_anew(environment: Environment) -> Environment:
    """The environment with what it says when asked now, which is kept in its record if it can be.

    Raises:
        EnvironmentFailed: as by :func:`refreshed`.
    """
    described = probe(environment.python)
    fresh = msgspec.structs.replace(
        environment, described=described, fingerprint=fingerprint(environment.python, described)
    )
    if read(environment.name) is not None:
        # Where nothing can be written, as in an image or on a full disk, the environment works nevertheless.
        with contextlib.suppress(EnvironmentFailed), locked(environment.name) as lock:
            # Who holds it is removing the environment or making it again, and our record would be in the way.
            if lock is not None and read(environment.name) == environment:
                write(fresh)
    return fresh


def suitable_environments(engine: str) -> list[Environment]:
    """The environments in which that engine can run; those that do not work are left out."""
    return [environment for environment, reason in _offers(engine) if reason is None]


def choose_environment(engine: str) -> Environment | None:
    """The only environment in which that engine can run; None if no environment has it.

    Raises:
        InvalidConfig: there are several, of which the caller must name one.
        EnvironmentFailed: there is one that has it or was made for it, but it cannot run there.
    """
    offers = _offers(engine)
    suitable = [environment for environment, reason in offers if reason is None]
    if len(suitable) > 1:
        names = ", ".join(environment.name for environment in suitable)
        raise InvalidConfig(
            f"environment: {engine} can run in several: {names}; name one, as in environment={suitable[0].name!r}",
            engine=engine,
            field="environment",
        )
    if not suitable and offers:
        environment, reason = offers[0]
        raise EnvironmentFailed(
            f"environment {environment.name} is there for {engine}, which cannot run in it: {reason}; "
            f"`anyengine env doctor {environment.name}` says more",
            engine=engine,
            field="environment",
        )
    return suitable[0] if suitable else None


def _offers(engine: str) -> list[tuple[Environment, str | None]]:
    """Environments that have the engine, or should have it, and why it cannot run there (None: it can)."""
    offers: list[tuple[Environment, str | None]] = []
    for environment in stored():
        try:
            there = refreshed(environment)
            found = _offered(there, engine)
            if found is not None and found.reason is not None:
                # What stands in its way may lie outside of what the fingerprint covers, a driver for one.
                there = described_anew(environment)
                found = _offered(there, engine)
        except EnvironmentFailed as error:
            known = environment.described.find(engine) if environment.described else None
            if environment.engine == engine or known is not None:
                offers.append((environment, error.message))
            continue
        if found is not None:
            offers.append((there, found.reason))
    return offers


def _offered(environment: Environment, engine: str) -> DescribedEngine | None:
    return environment.described.find(engine) if environment.described else None


def add_environment(name: str, python: str) -> Environment:
    """Give an existing interpreter a name.

    Args:
        name: for the environment.
        python: the interpreter: a path, or a command that is on the path. It stays its owner's.

    Raises:
        InvalidConfig: the name is taken, or none.
        EnvironmentFailed: the interpreter does not work, or lacks anyengine; says what mends it.
    """
    valid_name(name)
    path = resolved(python)
    described = probe(path)
    environment = Environment(
        name=name, python=path, created=False, described=described, fingerprint=fingerprint(path, described)
    )
    with locked(name) as lock:
        if lock is None:
            raise _busy(name)
        if read(name) is not None:
            raise taken(name)
        discard(name)
        write(environment)
    return environment


def remove_environment(name: str) -> bool:
    """Forget an environment, and delete its files if they are ours; of an added interpreter nothing is touched.

    Returns:
        Whether it was whole; what is left of a half-made one is deleted too.

    Raises:
        InvalidConfig: there is none of that name.
        EnvironmentFailed: another process is making it, or its files cannot be deleted.
    """
    if not os.path.lexists(home() / valid_name(name)):
        find_record(name)
    with locked(name) as lock:
        if lock is None:
            raise _busy(name)
        whole = read(name) is not None
        if not discard(name):
            find_record(name)
    return whole


def resolved(python: str) -> str:
    """The absolute path of an interpreter; links are kept, for a virtual environment's interpreter is one.

    Raises:
        InvalidConfig: it is empty, or cannot be written into a record, which is UTF-8.
    """
    found = shutil.which(python) if os.sep not in python else None
    # Not Path's expanduser, which raises where there is no such user.
    path = os.path.abspath(found or os.path.expanduser(python))  # noqa: PTH100, PTH111 `resolve` would follow links
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise InvalidConfig(f"python: the path {python!r} is not UTF-8", field="python") from error
    if not python:
        raise InvalidConfig("python: the path of an interpreter is empty", field="python")
    return path


def taken(name: str) -> InvalidConfig:
    """The error for a name that is in use."""
    return InvalidConfig(
        f"environment: there is an environment {name!r} already; choose another name, or remove it first: "
        f"anyengine env remove {name}",
        field="environment",
    )


def _busy(name: str) -> EnvironmentFailed:
    return EnvironmentFailed(
        f"environment {name}: another process is making or removing it just now", field="environment"
    )
