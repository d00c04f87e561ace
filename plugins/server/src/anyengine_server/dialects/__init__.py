"""How the servers of different engines want to be asked, and what they answer."""

from anyengine_server.dialects.base import Dialect, Piece, ServerFacts
from anyengine_server.dialects.lmdeploy import LMDEPLOY
from anyengine_server.dialects.trtllm import TRTLLM
from anyengine_server.dialects.vllm import VLLM

__all__ = ["LMDEPLOY", "TRTLLM", "VLLM", "Dialect", "Piece", "ServerFacts"]
