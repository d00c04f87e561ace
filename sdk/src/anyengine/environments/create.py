"""Making an environment: a virtual environment with the SDK, an engine's plugin, and packages that the engine was
tested with.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from typing import TYPE_CHECKING

from anyengine.environments.probe import Interpreter, fingerprint, interpreter, probe
from anyengine.environments.registry import described_anew, resolved, taken
from anyengine.environments.sources import install_arguments
from anyengine.environments.steps import Steps, is_full
from anyengine.environments.store import Environment, discard, folder_of, locked, log_of, read, valid_name, write
from anyengine.errors import EnvironmentFailed, InvalidConfig
from anyengine.plugins import find_engines

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from packaging.specifiers import SpecifierSet

    from anyengine.backend import EnvironmentVariant

__all__ = ["create_environment"]


def _silent(line: str) -> None:
    pass


def create_environment(
    engine: str,
    *,
    name: str | None = None,
    variant: str | None = None,
    python: str | None = None,
    source: str | None = None,
    progress: Callable[[str], None] = _silent,
) -> Environment:
    """Make an environment for an engine; where it is there already, for the same engine and variant, return that.

    Nothing is left behind when it fails or is interrupted, but for a log beside it when it fails. A process that is
    killed leaves a folder that is never used, and that the next creation or removal of the name deletes.

    Args:
        engine: its name.
        name: for the environment. None: the engine's, with the variant's if one is given.
        variant: one of the plugin's sets of packages. None: its first.
        python: the interpreter to make it of: a path or a command. None: this one.
        source: what the SDK and the plugin are installed from: see :mod:`anyengine.environments.sources`.
        progress: called with lines that say what happens.

    Raises:
        InvalidConfig: an argument is wrong, or the name is taken by something else, as by one of another interpreter or
            one that was installed from elsewhere.
        EnvironmentFailed: it cannot be made; says why, with pip's last lines.
    """
    name = valid_name((f"{engine}-{variant}" if variant else engine) if name is None else name)
    if (found := _existing(name, engine, variant, python, source, progress)) is not None:
        return found
    base = interpreter(resolved(sys.executable if python is None else python))
    arguments = install_arguments(engine, source)
    known = find_engines().get(engine)
    if source is None and known is not None and known.description is not None:
        # Before anything is made: the plugin will be the same there.
        _choose(known.description.environments, variant, base, engine)
    with locked(name, waiting=lambda: progress(f"another process is making {name}; waiting for it")) as lock:
        assert lock is not None  # noqa: S101 it waits
        if (found := _existing(name, engine, variant, python, source, progress)) is not None:
            return found
        if discard(name):
            progress(f"deleted what was left of {name}, which was never finished")
        try:
            return _Creation(name, engine, base, lock, progress).run(variant, arguments)
        except EnvironmentFailed as error:
            _keep_log(name, error)
            raise
        except OSError as error:
            full = "its disk is full: " if is_full(error) else ""
            raise EnvironmentFailed(
                f"{folder_of(name)} cannot be made: {full}{error}", engine=engine, field="environment"
            ) from error
        finally:
            if read(name) is None:
                shutil.rmtree(folder_of(name), ignore_errors=True)


def _existing(
    name: str,
    engine: str,
    variant: str | None,
    python: str | None,
    source: str | None,
    progress: Callable[[str], None],
) -> Environment | None:
    """The environment that is there already, if it is what is wanted."""
    found = read(name)
    if found is None:
        return None
    if not found.created or found.engine != engine or variant not in {None, found.variant}:
        raise taken(name)
    found = described_anew(found)
    _require(found, engine)
    _require_made_so(found, engine, python, source)
    progress(f"{name} is there already")
    return found


def _require_made_so(found: Environment, engine: str, python: str | None, source: str | None) -> None:
    """Refuse an environment that is made of another interpreter, or installed from elsewhere, than was asked for."""
    instead = f"choose another name, or remove it first: anyengine env remove {found.name}"
    if python is not None:
        base = interpreter(resolved(python))
        # A virtual environment's interpreter is a link to what it was made of.
        if os.path.realpath(base.python) != os.path.realpath(found.python):
            raise InvalidConfig(
                f"python: the environment {found.name!r} is there already, made of {os.path.realpath(found.python)} "
                f"and not of {base.python}; {instead}",
                engine=engine,
                field="python",
            )
    if source is not None and found.installed != (wanted := install_arguments(engine, source)):
        # Where it is not known it may be the same, but that would be a guess.
        known = (
            "and its record does not say what it was installed from (an earlier anyengine wrote it)"
            if found.installed is None
            else f"installed from {' '.join(found.installed)} and not from {' '.join(wanted)}"
        )
        raise InvalidConfig(
            f"source: the environment {found.name!r} is there already, {known}; {instead}",
            engine=engine,
            field="source",
        )


def _require(environment: Environment, engine: str) -> None:
    """Refuse an environment in which the engine can neither run nor quantise."""
    there = environment.described.find(engine) if environment.described else None
    reason = "its plugin is not installed there" if there is None else there.reason
    if there is not None and there.broken is None and there.capabilities.get("quantize"):
        return
    if reason is not None:
        raise EnvironmentFailed(
            f"environment {environment.name}: {engine} cannot run in it: {reason}", engine=engine, field="environment"
        )


def _keep_log(name: str, error: EnvironmentFailed) -> None:
    """Move the log out of the folder that is about to be deleted."""
    with contextlib.suppress(OSError):
        (folder_of(name) / "create.log").replace(log_of(name))
        error.message += f"; all that was said is in {log_of(name)}"
        error.args = (error.message,)


class _Creation:
    """One environment on its way; the lock is held."""

    def __init__(self, name: str, engine: str, base: Interpreter, lock: int, progress: Callable[[str], None]) -> None:
        self._name = name
        self._engine = engine
        self._base = base
        self._progress = progress
        self._folder = folder_of(name)
        self._steps = Steps(self._folder, lock, progress, engine=engine)
        self._python = str(self._folder / "venv" / "bin" / "python")

    def run(self, variant: str | None, arguments: tuple[str, ...]) -> Environment:
        """Make it, and write its record when it works."""
        self._folder.mkdir(parents=True)
        base = self._base
        self._progress(f"making {self._folder / 'venv'} of {base.python}, Python {base.version}")
        # -I: nothing of the current folder or of our variables has a say in it. pip apart, for venv would not repeat
        # what it says when it fails.
        self._steps.run("venv", [base.python, "-I", "-m", "venv", "--without-pip", str(self._folder / "venv")])
        self._steps.run("ensurepip", [self._python, "-I", "-m", "ensurepip", "--upgrade", "--default-pip"])
        self._pip(*arguments)
        there = probe(self._python).find(self._engine)
        if there is None or there.broken is not None:
            reason = there.broken if there else f"none of what was installed brings it: {' '.join(arguments)}"
            raise self._failed(f"the plugin of {self._engine} does not work there: {reason}")
        chosen = _choose(there.environments, variant, base, self._engine)
        if chosen is not None:
            others = ", ".join(sorted(set(there.environments) - {chosen[0]}))
            self._progress(f"variant {chosen[0]}" + (f"; others are: {others}" if others else ""))
            for step in chosen[1].steps:
                self._pip(*(["--no-deps"] if step.no_deps else []), "--", *step.requirements)
        described = probe(self._python)
        environment = Environment(
            name=self._name,
            python=self._python,
            created=True,
            engine=self._engine,
            variant=chosen[0] if chosen else None,
            installed=arguments,
            described=described,
            fingerprint=fingerprint(self._python, described),
        )
        _require(environment, self._engine)
        write(environment)
        return environment

    def _pip(self, *arguments: str) -> None:
        # The user's own configuration of pip decides on indexes, certificates and caches.
        options = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
        self._steps.run("pip install", [self._python, "-P", "-m", "pip", "install", *options, *arguments])

    def _failed(self, reason: str) -> EnvironmentFailed:
        return EnvironmentFailed(reason, engine=self._engine, field="environment")


def _choose(
    variants: Mapping[str, EnvironmentVariant], variant: str | None, base: Interpreter, engine: str
) -> tuple[str, EnvironmentVariant] | None:
    """The variant to make, which fits the interpreter; None where the plugin's own dependencies are all it needs.

    Raises:
        InvalidConfig: there is no such variant, or it does not fit.
    """
    if not variants and variant is None:
        return None
    if variant is not None and variant not in variants:
        known = ", ".join(variants) or "none"
        raise InvalidConfig(
            f"variant: {engine} has no variant {variant!r}; it has: {known}", engine=engine, field="variant"
        )
    name = variant or next(iter(variants))
    chosen = variants[name]
    if chosen.platform not in {None, base.platform}:
        raise InvalidConfig(
            f"variant: {engine}'s {name} is for {chosen.platform}, and this is {base.platform}",
            engine=engine,
            field="variant",
        )
    from packaging.specifiers import SpecifierSet  # noqa: PLC0415 only who makes environments needs it

    wanted = SpecifierSet(chosen.python)
    if not wanted.contains(base.version, prereleases=True):
        raise InvalidConfig(
            f"python: {engine}'s {name} was tested on Python {chosen.python}, and {base.python} is {base.version}; "
            + _hint(wanted),
            engine=engine,
            field="python",
        )
    return name, chosen


def _hint(wanted: SpecifierSet) -> str:
    """An interpreter on the path that fits."""
    for minor in range(14, 10, -1):
        path = shutil.which(f"python3.{minor}")
        if path is None:
            continue
        with contextlib.suppress(EnvironmentFailed):  # a version manager's shim for one that is not installed
            if wanted.contains(interpreter(os.path.abspath(path)).version, prereleases=True):  # noqa: PTH100 keep links
                return f"add --python python3.{minor}"
    return "name one that fits with --python"
