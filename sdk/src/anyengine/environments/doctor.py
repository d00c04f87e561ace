"""Examining an environment: does it work, is it what was tested, can it use the machine's GPUs."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from anyengine.environments import there
from anyengine.environments.probe import ask, probe
from anyengine.errors import EnvironmentFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anyengine.backend import EnvironmentVariant
    from anyengine.environments.description import DescribedEngine, EnvironmentDescription
    from anyengine.environments.store import Environment

__all__ = ["Finding", "Report", "examine"]

Level = Literal["ok", "note", "problem"]


class Finding(Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        level: ``problem``: does not work, or is not what was tested to; ``note``: worth knowing.
        about: what was looked at.
        text: what it is, or what is wrong.
        mend: the command that mends it, where one does.
    """

    level: Level
    about: str
    text: str
    mend: str | None = None


class Report(Struct, frozen=True):
    """Everything that was found.

    Attributes:
        environment: its name.
        python: its interpreter.
        findings: in the order in which they depend on each other.
    """

    environment: str
    python: str
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether there is no problem."""
        return all(finding.level != "problem" for finding in self.findings)


class _Facts(Struct):
    version: str
    platform: str
    libc: str
    distributions: dict[str, str]


class _Torch(Struct):
    version: str
    cuda: str | None = None
    driver_cuda: int | None = None
    devices: int = 0
    error: str | None = None


def examine(environment: Environment) -> Report:
    """Look at everything that an environment needs. Starts its interpreter, and imports torch there if it has it."""
    return Report(environment.name, environment.python, tuple(_Examination(environment).findings()))


class _Examination:
    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._python = environment.python
        # For one that we made: the whole of it can be made again. One that was added is its owner's to mend.
        self._again = _recreate(environment)

    def findings(self) -> Iterator[Finding]:
        try:
            facts = msgspec.json.decode(self._run("facts"), type=_Facts)
        except EnvironmentFailed as error:
            yield Finding("problem", "interpreter", error.message, self._again)
            return
        libc = f", {facts.libc}" if facts.libc else ""
        yield Finding("ok", "interpreter", f"Python {facts.version}, {facts.platform}{libc}")
        try:
            described = probe(self._python)
        except EnvironmentFailed as error:
            yield Finding("problem", "anyengine", error.message.partition("; run: ")[0], _line(error) or self._again)
            return
        yield self._sdk(described)
        yield from self._engines(described)
        variant = self._variant(described)
        if variant is not None:
            yield from _python_fits(variant, facts.version, self._again)
            yield from self._pins(variant, facts.distributions)
        yield from self._conflicts(variant, facts.distributions)
        yield from self._gpus(facts.distributions)

    def _run(self, what: str) -> str:
        done = ask(self._python, ["-P", str(Path(there.__file__).absolute()), what], seconds=300)
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            how = f"exit status {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
            raise EnvironmentFailed(f"{self._python} fails ({how}): {said[-1] if said else 'it says nothing'}")
        # Other lines are of what runs when an interpreter starts or ends.
        answer = next((line for line in done.stdout.splitlines() if line.startswith('{"version"')), None)
        if answer is None:
            raise EnvironmentFailed(f"{self._python} does not answer as a Python interpreter does")
        return answer

    def _sdk(self, described: EnvironmentDescription) -> Finding:
        from importlib.metadata import version  # noqa: PLC0415 next to its use

        here, theirs = version("anyengine"), described.sdk_version
        spoken = ".".join(map(str, described.protocol))
        if here == theirs:
            return Finding("ok", "anyengine", f"{theirs}, worker protocol {spoken}")
        return Finding("note", "anyengine", f"{theirs} there, {here} here; both speak worker protocol {spoken}")

    def _engines(self, described: EnvironmentDescription) -> Iterator[Finding]:
        wanted = self._environment.engine
        none = wanted is None and all(engine.reason is not None for engine in described.engines)
        for engine in described.engines:
            text = f"{engine.distribution}, engine {engine.engine_version or 'not installed'}"
            if engine.reason is None:
                yield Finding("ok", engine.name, text)
            else:
                level = "problem" if none or wanted == engine.name or engine.broken else "note"
                mend = self._again if wanted == engine.name else None
                yield Finding(level, engine.name, f"{text}; cannot run: {engine.reason}", mend)
        if wanted is not None and described.find(wanted) is None:
            yield Finding("problem", wanted, "its plugin is not installed there", self._again)
        elif not described.engines:
            yield Finding("problem", "engines", "no engine's plugin is installed there", None)

    def _variant(self, described: EnvironmentDescription) -> EnvironmentVariant | None:
        engine: DescribedEngine | None = described.find(self._environment.engine or "")
        return engine.environments.get(self._environment.variant or "") if engine else None

    def _pins(self, variant: EnvironmentVariant, installed: dict[str, str]) -> Iterator[Finding]:
        from packaging.requirements import InvalidRequirement, Requirement  # noqa: PLC0415 only the doctor needs it

        versions = {_canonical(name): version for name, version in installed.items()}
        different: list[str] = []
        mend: list[str] = []
        for text in (requirement for step in variant.steps for requirement in step.requirements):
            try:
                wanted = Requirement(text)
            except InvalidRequirement:  # a path or a bare URL, which has no version to compare
                continue
            found = versions.get(_canonical(wanted.name))
            if found is None or not wanted.specifier.contains(found, prereleases=True):
                different.append(f"{wanted.name} {found or 'is missing'} (tested: {wanted.specifier})")
                mend.append(text)
        if different:
            line = shlex.join([self._python, "-m", "pip", "install", "--no-deps", *mend])
            yield Finding("problem", "packages", f"not those of the tested set: {', '.join(different)}", line)
        else:
            yield Finding("ok", "packages", f"those of {self._environment.variant}: {variant.tested or 'untested'}")

    def _conflicts(self, variant: EnvironmentVariant | None, installed: dict[str, str]) -> Iterator[Finding]:
        if "pip" not in installed:
            yield Finding("note", "conflicts", "pip is not installed there, which would know")
            return
        try:
            done = ask(self._python, ["-P", "-m", "pip", "--disable-pip-version-check", "check"])
        except EnvironmentFailed as error:
            yield Finding("note", "conflicts", error.message)
            return
        steps = variant.steps if variant else ()
        # What is installed without its dependencies is meant to differ from them.
        meant = {_canonical(_name(text)) for step in steps if step.no_deps for text in step.requirements}
        lines = [line for line in done.stdout.splitlines() if line.strip() and done.returncode != 0]
        if done.returncode != 0 and not lines:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            text = f"pip check fails: {said[-1] if said else 'it says nothing'}"
            yield Finding("note", "conflicts", text)
            return
        for line in lines:
            known = _canonical(line.split()[0]) in meant
            text = f"{line}{' (so in the tested set)' if known else ''}"
            yield Finding("note" if known else "problem", "conflicts", text, None if known else self._again)
        if not lines:
            yield Finding("ok", "conflicts", "none")

    def _gpus(self, installed: dict[str, str]) -> Iterator[Finding]:
        gpus = _gpus()
        meant = (self._environment.variant or "").startswith("cuda")
        if gpus:
            yield from (Finding("ok", "GPU", gpu) for gpu in gpus)
        else:
            yield Finding("problem" if meant else "note", "GPU", "there is no NVIDIA driver here")
        if not any(_canonical(name) == "torch" for name in installed):
            return
        try:
            seen = msgspec.json.decode(self._run("torch"), type=_Torch)
        except EnvironmentFailed as error:
            yield Finding("problem", "torch", error.message, self._again)
            return
        yield from self._torch(seen, gpus)

    def _torch(self, seen: _Torch, gpus: list[str]) -> Iterator[Finding]:
        build = f"{seen.version}, {f'for CUDA {seen.cuda}' if seen.cuda else 'without CUDA'}"
        driver = None if seen.driver_cuda is None else (seen.driver_cuda // 1000, seen.driver_cuda % 1000 // 10)
        if not seen.cuda or not gpus:
            unused = "; the GPUs are not used by it" if gpus else ""
            yield Finding("note" if unused else "ok", "torch", build + unused)
        elif driver is not None and driver[0] < int(seen.cuda.split(".")[0]):
            text = f"{build}, but the driver supports CUDA {driver[0]}.{driver[1]} at most: it has to be updated"
            yield Finding("problem", "torch", text)
        elif seen.error or not seen.devices:
            reason = seen.error or "it sees none of the GPUs; CUDA_VISIBLE_DEVICES may hide them"
            yield Finding("problem", "torch", f"{build}: {reason}")
        else:
            yield Finding("ok", "torch", f"{build}, sees {seen.devices} of {len(gpus)} GPUs")


def _python_fits(variant: EnvironmentVariant, version: str, again: str | None) -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet  # noqa: PLC0415 only the doctor needs it

    if not SpecifierSet(variant.python).contains(version, prereleases=True):
        text = f"Python {version} is none of those that the packages were tested on: {variant.python}"
        yield Finding("problem", "python", text, again)


def _recreate(environment: Environment) -> str | None:
    if not environment.created or environment.engine is None:
        return None
    variant = f" --variant {environment.variant}" if environment.variant else ""
    name = environment.name
    return f"anyengine env remove --yes {name} && anyengine env create {environment.engine}{variant} --name {name}"


def _line(error: EnvironmentFailed) -> str | None:
    """The command that an error's message names."""
    return error.message.partition("; run: ")[2] or None


def _name(requirement: str) -> str:
    matched = re.match(r"[A-Za-z0-9._-]+", requirement)
    return matched.group() if matched else ""


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _gpus() -> list[str]:
    """A line for each GPU; empty without NVIDIA's driver."""
    query = "name,driver_version,memory.total,memory.used,compute_cap"
    try:
        done = subprocess.run(  # noqa: S603 no more than this
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],  # noqa: S607 wherever it is installed
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [_gpu(line) for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _gpu(line: str) -> str:
    name, driver, total, used, capability = ([part.strip() for part in line.split(",")] + [""] * 5)[:5]
    return f"{name}, compute capability {capability}, {total} ({used} used), driver {driver}"


def document(report: Report) -> dict[str, Any]:
    """The report as JSON-able data."""
    return {**msgspec.to_builtins(report), "healthy": report.healthy}
