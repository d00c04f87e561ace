"""Asking an interpreter what it has."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import signal
import subprocess
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from anyengine.environments.description import EnvironmentDescription
from anyengine.errors import AnyEngineError, EnvironmentFailed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "ask",
    "clean_variables",
    "fingerprint",
    "interpreter",
    "probe",
    "require_protocol",
]

#: Plugins import quickly, but a cold disk and a first compilation of everything to bytecode take their time.
_SECONDS = 120.0
_TAIL = 20
#: The same in every Python since 2.6, so that one that is too old can say so.
_WHO = (
    "import sys, json; print('anyengine ' + json.dumps("
    "{'python': sys.executable, 'version': '.'.join(map(str, sys.version_info[:3])), 'platform': sys.platform}))"
)
_MARK = "anyengine "
#: Variables that would change which packages an interpreter finds. Of pip's, those that would install elsewhere.
_FOREIGN = frozenset({
    "PIP_DRY_RUN",
    "PIP_PREFIX",
    "PIP_PYTHON",
    "PIP_ROOT",
    "PIP_TARGET",
    "PYTHONEXECUTABLE",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSAFEPATH",
    "PYTHONSTARTUP",
    "VIRTUAL_ENV",
    "__PYVENV_LAUNCHER__",
})  # fmt: skip
OLDEST_PYTHON = (3, 11)


class Interpreter(Struct, frozen=True):
    """A Python.

    Attributes:
        python: path of the executable itself, behind a version manager's shims.
        version: such as ``3.12.1``.
        platform: ``sys.platform``.
    """

    python: str
    version: str
    platform: str


class _Protocol(Struct):
    protocol: tuple[int, int]


def probe(python: str) -> EnvironmentDescription:
    """What that interpreter has.

    Args:
        python: path of it.

    Raises:
        EnvironmentFailed: it is none, or too old, lacks anyengine, has one that our workers' protocol does not
            fit, or fails; says what mends it.
    """
    done = ask(python, ["-P", "-m", "anyengine.worker", "--describe"])
    if done.returncode != 0:
        raise _explained(python, done)
    # The last line: a .pth file of a foreign package may print before we can turn its output away.
    answer = done.stdout.strip().rpartition("\n")[2]
    try:
        spoken = msgspec.json.decode(answer, type=_Protocol).protocol
        require_protocol(EnvironmentDescription(protocol=spoken, sdk_version=_sdk_version(answer)), python)
        return msgspec.json.decode(answer, type=EnvironmentDescription)
    except msgspec.MsgspecError as error:
        interpreter(python)  # raises if it is none
        raise EnvironmentFailed(
            f"{python} does not describe itself as expected: {error}; {_mend(python)}",
            field="environment",
            log_tail=_tail(done),
        ) from error


def _sdk_version(answer: str) -> str:
    with contextlib.suppress(msgspec.MsgspecError):
        found = msgspec.json.decode(answer, type=dict[str, object]).get("sdk_version")
        return found if isinstance(found, str) else ""
    return ""


def require_protocol(described: EnvironmentDescription, python: str) -> None:
    """Refuse a worker that speaks another major version.

    Raises:
        EnvironmentFailed: it does.
    """
    from anyengine.worker.protocol import PROTOCOL  # noqa: PLC0415 brings more than a listing needs

    theirs, ours = described.protocol, PROTOCOL
    if theirs[0] != ours[0]:
        raise EnvironmentFailed(
            f"the anyengine of {python} ({described.sdk_version or 'unknown version'}) speaks worker protocol "
            f"{theirs[0]}.{theirs[1]}, the one here {ours[0]}.{ours[1]}; {_mend(python)}",
            field="environment",
        )


def interpreter(python: str) -> Interpreter:
    """What kind of Python that is.

    Raises:
        EnvironmentFailed: it is none.
    """
    done = ask(python, ["-c", _WHO])
    for line in done.stdout.splitlines():
        with contextlib.suppress(msgspec.MsgspecError):
            if line.startswith(_MARK):
                return msgspec.json.decode(line.removeprefix(_MARK), type=Interpreter)
    raise EnvironmentFailed(f"{python} is not a Python interpreter", field="environment", log_tail=_tail(done))


def ask(python: str, arguments: Sequence[str], *, seconds: float = _SECONDS) -> subprocess.CompletedProcess[str]:
    """Run an interpreter and read what it prints; it is killed, with what it started, where we give up.

    Raises:
        EnvironmentFailed: it cannot be started, or does not end in time.
    """
    if not os.path.lexists(python):
        raise EnvironmentFailed(f"there is no interpreter {python}", field="environment")
    try:
        process = subprocess.Popen(  # noqa: S603 the user's own interpreter
            [python, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            cwd=os.sep,
            env=clean_variables(),
            start_new_session=True,
        )
    except OSError as error:
        raise _not_started(python, error) from error
    try:
        output, log = process.communicate(timeout=seconds)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise EnvironmentFailed(
                f"{python} did not answer within {seconds:g} s", field="environment", log_tail=_lines(error.stderr)
            ) from error
        raise
    finally:
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
    return subprocess.CompletedProcess([python, *arguments], process.returncode, output, log)


def clean_variables() -> dict[str, str]:
    """Our environment variables without those that would lead another interpreter to our packages, or pip astray."""
    return {name: value for name, value in os.environ.items() if name not in _FOREIGN}


def _not_started(python: str, error: OSError) -> EnvironmentFailed:
    if os.path.isdir(python):  # noqa: PTH112 a string, as everywhere here
        reason = f"{python} is a folder, not an interpreter; give the file in it"
    elif isinstance(error, PermissionError):
        reason = f"{python} is not executable"
    elif isinstance(error, FileNotFoundError):
        reason = f"{python} leads to an interpreter that is gone: {os.path.realpath(python)}"
    else:
        reason = f"{python} is not a Python interpreter: {error.strerror or error}"
    return EnvironmentFailed(reason, field="environment")


def _explained(python: str, done: subprocess.CompletedProcess[str]) -> EnvironmentFailed:
    """Why it could not describe itself."""
    try:
        found = interpreter(python)
    except EnvironmentFailed as error:
        return error
    version, tail = found.version, _tail(done)
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        reason = f"{python} is Python {version}, and anyengine needs {oldest} or newer"
    elif "No module named" in done.stderr and "anyengine" in done.stderr.rpartition("No module named")[2]:
        reason = f"anyengine is not installed in {python}, or too old to run workers; {_mend(python)}"
    else:
        how = f"exit status {done.returncode}" if done.returncode >= 0 else f"signal {-done.returncode}"
        reason = f"anyengine in {python} fails ({how}): {tail[-1] if tail else 'it says nothing'}"
    return EnvironmentFailed(reason, field="environment", log_tail=tail)


def _mend(python: str) -> str:
    """What installs our anyengine there."""
    from anyengine.environments.sources import own_source  # noqa: PLC0415 only to explain a failure

    try:
        arguments = own_source("anyengine")
    except AnyEngineError:
        return "install the version there that is installed here"
    return f"run: {shlex.join([python, '-m', 'pip', 'install', *arguments])}"


def _tail(done: subprocess.CompletedProcess[str]) -> tuple[str, ...]:
    return _lines(done.stderr) or _lines(done.stdout)


def _lines(text: str | bytes | None) -> tuple[str, ...]:
    decoded = text.decode(errors="replace") if isinstance(text, bytes) else text or ""
    return tuple(line for line in decoded.splitlines() if line.strip())[-_TAIL:]


def fingerprint(python: str, described: EnvironmentDescription) -> str:
    """Of everything that a description depends on: the interpreter, which packages it finds, the plugins' code."""
    digest = hashlib.sha256()
    for line in _facts(python, described):
        digest.update(line.encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()


def _facts(python: str, described: EnvironmentDescription) -> Iterable[str]:
    for path in (python, *described.files):
        with contextlib.suppress(OSError):
            status = os.stat(path)  # noqa: PTH116 thousands of these in a listing
            yield f"{path} {status.st_mtime_ns} {status.st_size}"
    for folder in described.folders:
        with contextlib.suppress(OSError):
            yield f"{folder} {os.stat(folder).st_mtime_ns}"  # noqa: PTH116
            # An installer changes the folder too, but one that replaces a package at once may not.
            with os.scandir(folder) as entries:
                packages = [entry for entry in entries if entry.name.endswith((".dist-info", ".egg-info", ".pth"))]
            yield from sorted(f"{entry.name} {entry.stat().st_mtime_ns}" for entry in packages)
