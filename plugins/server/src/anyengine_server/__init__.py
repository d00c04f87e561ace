"""What plugins share for engines that are HTTP servers."""

from anyengine_server.attach import AttachedBackend, attach, check_attached, drain
from anyengine_server.child import ServerProcess, free_port
from anyengine_server.client import EventStream, ServerClient
from anyengine_server.dialects import LMDEPLOY, TRTLLM, VLLM, Dialect, Piece, ServerFacts
from anyengine_server.errors import (
    Answer,
    ErrorMap,
    MalformedAnswer,
    ServerRefused,
    answer_error,
    message_of,
    retry_after,
    transport_error,
)
from anyengine_server.metrics import Metrics
from anyengine_server.options import ServerOptions, is_attached, server_options
from anyengine_server.running import RunningRequests
from anyengine_server.sequence import Reason, Sequence
from anyengine_server.sse import Event, EventParser
from anyengine_server.tokens import PROBES, load_tokenizer, prove_tokenizer, vocabulary_size

__all__ = [
    "LMDEPLOY",
    "PROBES",
    "TRTLLM",
    "VLLM",
    "Answer",
    "AttachedBackend",
    "Dialect",
    "ErrorMap",
    "Event",
    "EventParser",
    "EventStream",
    "MalformedAnswer",
    "Metrics",
    "Piece",
    "Reason",
    "RunningRequests",
    "Sequence",
    "ServerClient",
    "ServerFacts",
    "ServerOptions",
    "ServerProcess",
    "ServerRefused",
    "answer_error",
    "attach",
    "check_attached",
    "drain",
    "free_port",
    "is_attached",
    "load_tokenizer",
    "message_of",
    "prove_tokenizer",
    "retry_after",
    "server_options",
    "transport_error",
    "vocabulary_size",
]
