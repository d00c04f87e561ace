"""LMDeploy as an engine of anyengine; imports without LMDeploy."""

from anyengine_lmdeploy.plugin import LMDeployPlugin, plugin

__all__ = ["LMDeployPlugin", "plugin"]
