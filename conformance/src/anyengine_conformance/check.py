"""What a check is, and the register of all of them."""

from __future__ import annotations

import importlib
import pkgutil
import re
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from anyengine_conformance.needs import parse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from anyengine_conformance.context import Context

__all__ = ["OWN", "Check", "Tier", "Variant", "all_checks", "check", "family", "variant", "variants"]

Tier = Literal["core", "extension"]
Function = "Callable[[Context], Awaitable[None]]"

#: The configuration variant of checks that load engines of their own.
OWN = "own"
#: Seconds that a check may take, where it does not say.
DEADLINE = 30.0
#: The variant without changes.
DEFAULT = "default"
_ID = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*\.[a-z0-9]+(-[a-z0-9]+)*")
_MOST_MUST = 200


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to load the engine under test; checks of one variant share an engine.

    Attributes:
        name: short, and unique.
        config: fields of :class:`anyengine.EngineConfig` beside those of the subject; parts as nested dictionaries.
        needs: capabilities without which this variant must be refused.
        only_for: the built-in model that ``config`` goes with; for another one the subject's ``[variants.NAME]`` says
            what does, or the checks are not run.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    needs: tuple[str, ...] = ()
    only_for: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that every engine must do.

    Attributes:
        id: ``family.what-it-says``; never changes its meaning, never comes back for another one.
        must: the requirement, in one sentence.
        advice: what a backend's author does when it fails.
        tier: ``core`` if every engine owes it, ``extension`` if it belongs to something that an engine may declare.
        needs: capability expressions (see :mod:`anyengine_conformance.needs`); where one is not declared, the negative
            check runs instead.
        variant: name of the configuration that it runs on.
        deadline: seconds, for an engine like the reference engine; a subject's ``time_factor`` stretches it.
        since: version of the suite that brought it.
        tolerance: what is allowed between engines, in words; empty where nothing is.
        function: the test.
    """

    id: str
    must: str
    advice: str
    tier: Tier
    needs: tuple[str, ...]
    variant: str
    deadline: float
    since: str
    tolerance: str
    function: Callable[[Context], Awaitable[None]]

    @property
    def family(self) -> str:
        """The part of the id before the point."""
        return self.id.partition(".")[0]


_checks: dict[str, Check] = {}
_variants: dict[str, Variant] = {DEFAULT: Variant(DEFAULT), OWN: Variant(OWN)}
_families: dict[str, str] = {}


def family(name: str, title: str) -> None:
    """Name a family; its module calls this once, before its checks.

    Args:
        name: the first part of its checks' ids.
        title: for people, in the report and the documentation.
    """
    if _families.setdefault(name, title) != title:
        raise ValueError(f"the family {name} has two titles: {_families[name]!r} and {title!r}")


def variant(name: str, *, needs: tuple[str, ...] = (), only_for: str = "", **config: Any) -> str:
    """Register a configuration variant.

    Args:
        name: short, and unique.
        needs: capabilities without which it must be refused.
        only_for: see :class:`Variant`.
        config: fields of :class:`anyengine.EngineConfig`; parts as dictionaries.

    Returns:
        The name, for ``@check(variant=…)``.
    """
    made = Variant(name, config, needs, only_for)
    if _variants.setdefault(name, made) != made:
        raise ValueError(f"there are two different variants of the name {name}")
    for need in needs:
        parse(need)
    return name


def check(
    id: str,  # noqa: A002 it is what everybody calls it
    *,
    must: str,
    advice: str,
    tier: Tier = "core",
    needs: tuple[str, ...] = (),
    variant: str = DEFAULT,
    deadline: float = DEADLINE,
    since: str = "0.1",
    tolerance: str = "",
) -> Callable[[Callable[[Context], Awaitable[None]]], Callable[[Context], Awaitable[None]]]:
    """Register an asynchronous function as a check; see :class:`Check` for the arguments.

    Raises:
        ValueError: the id is malformed, taken or of no family, or a need is not understood.
    """

    def register(function: Callable[[Context], Awaitable[None]]) -> Callable[[Context], Awaitable[None]]:
        _refuse_malformed(id, must, variant)
        for need in needs:
            parse(need)
        _checks[id] = Check(
            id=id,
            must=must,
            advice=advice,
            tier=tier,
            needs=needs,
            variant=variant,
            deadline=deadline,
            since=since,
            tolerance=tolerance,
            function=function,
        )
        return function

    return register


def _refuse_malformed(identity: str, must: str, name: str) -> None:
    if not _ID.fullmatch(identity):
        raise ValueError(f"{identity!r} is no id; write family.what-it-says in lower case")
    if identity in _checks:
        raise ValueError(f"there are two checks with the id {identity}")
    if identity.partition(".")[0] not in _families:
        raise ValueError(f"{identity}: its module has to call family({identity.partition('.')[0]!r}, …) first")
    if not must.endswith(".") or len(must) > _MOST_MUST:
        raise ValueError(f"{identity}: must is one sentence of at most {_MOST_MUST} characters, with its full stop")
    if name not in _variants:
        raise ValueError(f"{identity}: no variant is named {name!r}; there are {', '.join(_variants)}")


@cache
def _import_families() -> None:
    from anyengine_conformance import families  # noqa: PLC0415 they import this module

    for module in sorted(info.name for info in pkgutil.iter_modules(families.__path__)):
        importlib.import_module(f"{families.__name__}.{module}")


def all_checks() -> list[Check]:
    """Every check of the suite, by family and, within one, as they are written: whichever was imported first."""
    _import_families()
    return sorted(_checks.values(), key=_place)


def _place(made: Check) -> tuple[str, str, int]:
    code = made.function.__code__
    return made.family, made.function.__module__, code.co_firstlineno


def variants() -> dict[str, Variant]:
    """Every configuration variant by name, the default first."""
    _import_families()
    return dict(sorted(_variants.items(), key=lambda item: (item[0] != DEFAULT, item[0])))


def family_title(name: str) -> str:
    """What people call a family."""
    _import_families()
    return _families.get(name, name)
