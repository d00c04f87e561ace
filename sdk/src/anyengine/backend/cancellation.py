"""What a cancellation must not cut short: the end of a process, the release of a device.

For plugins whose engine has something of its own to end.
"""

from anyengine._concurrency import despite_cancellation

__all__ = ["despite_cancellation"]
