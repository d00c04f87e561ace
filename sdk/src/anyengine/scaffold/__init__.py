"""What ``anyengine plugin new`` writes."""

from __future__ import annotations

from anyengine.scaffold.plugin import write_plugin

__all__ = ["write_plugin"]
