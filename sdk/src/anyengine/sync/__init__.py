"""The same API without ``await``, for programs that have no event loop::

    from anyengine.sync import Engine

    with Engine.load("reference") as engine:
        print(engine.generate("Once upon a time", max_tokens=16).text)

Each engine has an event loop in a thread of its own; Ctrl+C, at whatever moment, ends the call and not the engine.
``Engine`` is generated from :class:`anyengine.Engine` by ``tools/make_sync.py``; a test holds the two together.
"""

from anyengine.sync.engine import Engine
from anyengine.sync.stream import Stream

__all__ = ["Engine", "Stream"]
