"""Environments: interpreters with packages of their own, each for an engine whose packages an application cannot share.

``registry`` knows them, ``probe`` asks an interpreter what it has, ``create`` makes one (``sources`` says where our
own packages come from, ``pip`` runs pip), ``doctor`` examines one.
"""

from __future__ import annotations

from anyengine.environments.description import DescribedEngine, EnvironmentDescription
from anyengine.environments.registry import (
    Environment,
    add_environment,
    choose_environment,
    environments,
    find_environment,
    remove_environment,
    suitable_environments,
)

__all__ = [
    "DescribedEngine",
    "Environment",
    "EnvironmentDescription",
    "add_environment",
    "choose_environment",
    "environments",
    "find_environment",
    "remove_environment",
    "suitable_environments",
]
