"""``conformance.toml``: which engine is tested, and how. ``xfails.toml``: what is expected to fail.

Both are read strictly: an unknown key, a wrong type, an expired entry is an error that names the file and the key.
"""

from __future__ import annotations

import datetime as dt
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, cast

from anyengine import EngineConfig, InvalidConfig
from packaging.version import InvalidVersion, Version

from anyengine_conformance.check import all_checks, variants

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["ExpectedFailure", "Settings", "read_expected_failures", "read_settings"]

_TOP = ("subject", "config", "variants", "tolerances")
_SUBJECT = {
    "engine": str,
    "factory": str,
    "model": str,
    "environment": str,
    "oracle": str,
    "time_factor": float,
    "load_timeout": float,
    "xfails": str,
    "simulated": bool,
}
_ENTRY = {"id": str, "reason": str, "link": str, "until": dt.date, "until_version": str, "model": str}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is tested.

    Attributes:
        engine: its name, also where a factory makes it.
        factory: ``module:name``, see :class:`anyengine_conformance.subject.FactoryTarget`.
        config: fields of EngineConfig for every load.
        variants: name of a variant → fields for it alone.
        oracle: name of the engine that exact scores come from.
        time_factor: how much slower than the reference engine this one may be; stretches every deadline.
        load_timeout: seconds for a load.
        tolerances: dtype → nats that a log-probability may be off; None takes the suite's own.
        xfails: file of expected failures.
        simulated: whether the engine is a simulation of it; the report says so.
        file: where this comes from.
    """

    engine: str
    factory: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, "Mapping[str, Any]"])
    oracle: str = "reference"
    time_factor: float = 1.0
    load_timeout: float = 600.0
    tolerances: Mapping[str, float] = field(default_factory=dict[str, float])
    xfails: Path | None = None
    simulated: bool = False
    file: Path | None = None

    def with_config(self, config: Mapping[str, Any]) -> Settings:
        """The same with other fields. A variant that goes with a model (its draft, say) goes with that one alone."""
        known, before, after = variants(), self.config.get("model"), config.get("model")
        given = self.variants
        if PurePath(before or "").name != PurePath(after or "").name:
            given = {name: fields for name, fields in given.items() if not known[name].only_for}
        return replace(self, config=config, variants=given)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedFailure:
    """One entry of ``xfails.toml``; it fails the run as soon as the check passes.

    Attributes:
        id: of the check.
        reason: why the engine fails it.
        link: the engine's own issue, or its source line.
        until: the day from which the entry is an error.
        until_version: the engine's version from which it is one.
        model: the last part of the only checkpoint that it is about; None for any.
    """

    id: str
    reason: str
    link: str
    until: dt.date | None = None
    until_version: str | None = None
    model: str | None = None

    def is_about(self, model: str | None) -> bool:
        """Whether it holds for a run on that checkpoint, a folder or a hub id."""
        return self.model is None or (model is not None and PurePath(model).name == self.model)

    def expired(self, today: dt.date, engine_version: str | None) -> str | None:
        """Why the entry no longer holds; None while it does."""
        if self.until is not None and today >= self.until:
            return f"expired on {self.until}"
        if self.until_version is not None and engine_version is not None:
            try:
                reached = Version(engine_version) >= Version(self.until_version)
            except InvalidVersion:
                return f"cannot be held against the engine's version, {engine_version!r}"
            return f"expired with version {self.until_version}; this is {engine_version}" if reached else None
        return None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"{file} cannot be read: {error.strerror or error}", field=str(file)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{file} is no TOML: {error}", field=str(file)) from error


def _strict(file: Path, place: str, table: object, allowed: Mapping[str, type]) -> dict[str, Any]:
    """A table with no other keys than those, each of its type."""
    if not isinstance(table, dict):
        raise InvalidConfig(f"{file}: {place} must be a table, not {table!r}", field=place)
    entries = cast("dict[str, Any]", table)
    for key, value in entries.items():
        if key not in allowed:
            raise InvalidConfig(
                f"{file}: {place}.{key} is unknown; allowed are {', '.join(allowed)}", field=f"{place}.{key}"
            )
        kind = allowed[key]
        fits = isinstance(value, kind) or (kind is float and isinstance(value, int) and not isinstance(value, bool))
        if not fits or isinstance(value, dt.datetime) or value == "" or (kind is float and value <= 0):
            wanted = {
                str: "a text",
                float: "a number above 0",
                bool: "true or false",
                dt.date: "a date like 2027-01-31",
            }[kind]
            raise InvalidConfig(f"{file}: {place}.{key} must be {wanted}, not {value!r}", field=f"{place}.{key}")
    return entries


def read_settings(file: Path) -> Settings:
    """Read a ``conformance.toml``.

    Raises:
        InvalidConfig: names the file, the key and what is allowed.
    """
    content = _read(file)
    for key in content:
        if key not in _TOP:
            raise InvalidConfig(f"{file}: [{key}] is unknown; allowed are {', '.join(_TOP)}", field=key)
    subject = _strict(file, "subject", content.get("subject", {}), _SUBJECT)
    if not subject.keys() & {"engine", "factory"}:
        raise InvalidConfig(f"{file}: subject.engine or subject.factory is needed", field="subject.engine")
    if ":" not in subject.get("factory", ":"):
        raise InvalidConfig(
            f"{file}: subject.factory must be module:name, not {subject['factory']!r}", field="subject.factory"
        )
    config = _config(file, "config", content.get("config", {}))
    config |= {key: subject[key] for key in ("model", "environment") if key in subject}
    tolerances = content.get("tolerances", {})
    _strict(file, "tolerances", tolerances, dict.fromkeys(("float32", "bfloat16", "float16"), float))
    return Settings(
        engine=subject.get("engine") or subject["factory"],
        factory=subject.get("factory"),
        config=config,
        variants=_variants(file, content.get("variants", {})),
        oracle=subject.get("oracle", "reference"),
        time_factor=float(subject.get("time_factor", 1.0)),
        load_timeout=float(subject.get("load_timeout", 600.0)),
        tolerances=tolerances,
        xfails=file.parent / subject["xfails"] if "xfails" in subject else None,
        simulated=subject.get("simulated", False),
        file=file,
    )


def _variants(file: Path, given: object) -> dict[str, dict[str, Any]]:
    known = variants()
    tables = _strict(file, "variants", given, dict.fromkeys(known, dict))
    return {name: _config(file, f"variants.{name}", table, known[name].config) for name, table in tables.items()}


def _config(file: Path, place: str, table: object, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    fields = _strict(file, place, table, _AnyKeys())
    try:
        EngineConfig(**{**(base or {}), **fields})
    except InvalidConfig as error:
        raise InvalidConfig(f"{file}: [{place}] {error.message}", field=f"{place}.{error.field}") from error
    return dict(fields)


class _AnyKeys(dict[str, type]):
    """Every key is allowed, with any value: EngineConfig itself says what is wrong."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> type:
        return object


def read_expected_failures(file: Path) -> dict[str, ExpectedFailure]:
    """Read an ``xfails.toml``: ``[[xfail]]`` tables with id, reason, link, until or until_version, and perhaps model.

    Raises:
        InvalidConfig: names the file, the entry and what is allowed.
    """
    content = _read(file)
    entries = content.pop("xfail", [])
    if content or not isinstance(entries, list):
        raise InvalidConfig(
            f"{file}: only [[xfail]] tables are allowed, not {', '.join(content) or 'xfail'}", field="xfail"
        )
    known = {made.id for made in all_checks()}
    found: dict[str, ExpectedFailure] = {}
    for number, entry in enumerate(cast("list[object]", entries)):
        place = f"xfail[{number}]"
        fields = _strict(file, place, entry, _ENTRY)
        for key in ("id", "reason", "link"):
            if key not in fields:
                raise InvalidConfig(f"{file}: {place}.{key} is missing", field=f"{place}.{key}")
        if ("until" in fields) == ("until_version" in fields):
            raise InvalidConfig(f"{file}: {place} needs exactly one of until and until_version", field=f"{place}.until")
        if fields["id"] not in known:
            raise InvalidConfig(f"{file}: {place}.id: there is no check {fields['id']!r}", field=f"{place}.id")
        if fields["id"] in found:
            raise InvalidConfig(f"{file}: {place}.id: {fields['id']} stands there twice", field=f"{place}.id")
        if "until_version" in fields:
            _version(file, place, fields["until_version"])
        found[fields["id"]] = ExpectedFailure(**fields)
    return found


def _version(file: Path, place: str, text: str) -> None:
    try:
        Version(text)
    except InvalidVersion:
        raise InvalidConfig(
            f"{file}: {place}.until_version is no version: {text!r}", field=f"{place}.until_version"
        ) from None
