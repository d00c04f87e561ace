"""Where a scheme's toolchain is: in this process, in a worker of this interpreter, or in an environment."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from anyengine.errors import EnvironmentFailed, InvalidConfig, UnknownEngine
from anyengine.place import Here, Worker, describe
from anyengine.quantization.make import check_scheme

if TYPE_CHECKING:
    from anyengine.environments import Environment
    from anyengine.quantization.calibration import Calibration

__all__ = ["choose_quantizer"]


def choose_quantizer(
    engine: object, scheme: str, calibration: Calibration | None, *, isolation: str, environment: str | None
) -> Here | Worker:
    """Follow the caller's wish; without one: this interpreter if the toolchain is in it, else the only environment.

    An engine's toolchain may be where the engine itself cannot run, and the other way round: what counts is
    ``capabilities.quantize``.

    Raises:
        UnknownEngine, InvalidConfig: the wish cannot be met; says what to do.
        UnsupportedCapability, UnsupportedParameter: nowhere is a toolchain for that scheme.
    """
    if isolation == "none" and environment is not None:
        raise InvalidConfig("environment: belongs to a worker process; leave isolation='none' out", field="environment")
    if environment is not None:
        from anyengine.environments import find_environment  # noqa: PLC0415 few programs have environments

        return Worker(_named(engine), Path(find_environment(environment).python), environment)
    try:
        plugin, description = describe(engine)
    except UnknownEngine:
        found = _elsewhere(str(engine), scheme) if isolation != "none" else None
        if found is None:
            raise
        return found
    if scheme not in description.capabilities.quantize and isinstance(engine, str) and isolation != "none":
        found = _elsewhere(engine, scheme)
        if found is not None:
            return found
    check_scheme(description, scheme, calibration)
    if isolation == "none" or not isinstance(engine, str) or (isolation == "auto" and description.in_process):
        return Here(plugin, description)
    return Worker(engine, Path(sys.executable))


def _named(engine: object) -> str:
    if isinstance(engine, str):
        return engine
    raise InvalidConfig(
        "environment: a plugin object runs in this process only; install it under a name to run it in a worker",
        field="environment",
    )


def _elsewhere(engine: str, scheme: str) -> Worker | None:
    """The only environment that has the toolchain."""
    from anyengine.environments.registry import environments  # noqa: PLC0415 see above

    suitable = [environment for environment in environments() if scheme in _schemes(environment, engine)]
    if len(suitable) > 1:
        names = ", ".join(environment.name for environment in suitable)
        raise InvalidConfig(
            f"environment: {engine} can quantise in several: {names}; name one, as in environment={suitable[0].name!r}",
            engine=engine,
            field="environment",
        )
    return Worker(engine, Path(suitable[0].python), suitable[0].name) if suitable else None


def _schemes(environment: Environment, engine: str) -> list[str]:
    from anyengine.environments.registry import refreshed  # noqa: PLC0415 see above

    try:
        described = refreshed(environment).described
    except EnvironmentFailed:
        return []
    found = described.find(engine) if described else None
    return [] if found is None else list(found.capabilities.get("quantize", ()))
