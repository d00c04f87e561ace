"""An HTTP server for *simulated* engines in tests: real sockets, and everything that a server can do wrong."""

from anyengine_server.testing.http import Exchange, SimulatedServer

__all__ = ["Exchange", "SimulatedServer"]
