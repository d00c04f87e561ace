"""Engines in processes of their own.

An engine runs in its own interpreter, perhaps of another environment, with the text layer beside it; the application
talks to it over a pair of sockets. ``client`` and ``process`` are the application's side; ``serve``, ``server`` and
``heartbeat`` the worker's; ``supervisor`` is the small process between them that leaves nothing behind. What they say
to each other is in ``protocol``.
"""
