"""The engine that both backends are reached through."""

from lmdeploy.simulation.engine import AsyncEngine

__all__ = ["AsyncEngine"]
