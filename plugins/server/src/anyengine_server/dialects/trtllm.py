"""TensorRT-LLM's server (``trtllm-serve``), 1.2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine.capabilities import Capabilities
from anyengine.errors import UnsupportedParameter
from anyengine.stats import EngineStats, KVCacheStats
from msgspec.structs import replace

from anyengine_server.dialects import openai
from anyengine_server.dialects.base import Dialect, Piece, ServerFacts, check_temperature

if TYPE_CHECKING:
    from anyengine.backend import TokenRequest

    from anyengine_server.client import EventStream, ServerClient
    from anyengine_server.sse import Event

__all__ = ["TRTLLM"]

#: The sampler in C++ keeps at most this many tokens, and takes a larger number for it.
_MAX_TOP_K = 1024

# Which sampler a server was started with it does not say, and the one in PyTorch ignores penalties, min_p and seeds
# without a word: so they are refused. Log-probabilities are after the sampling parameters in one, before in the other.
_CAPABILITIES = Capabilities(
    config=frozenset({"max_model_len"}),
    native=True,
    sampling=frozenset({"temperature", "top_k", "top_p"}),
    request=frozenset({"ignore_eos", "stop_token_ids"}),
    token_prompts=True,
    # Without a seed every request draws from seed 0.
    unseeded="fixed",
)


class TRTLLMDialect(Dialect):
    """``/v1/completions`` with ``detokenize=false``, whose choices have token ids. Never run on the real server."""

    name = "trtllm"
    path = "/v1/completions"

    def capabilities(self, facts: ServerFacts | None = None) -> Capabilities:  # noqa: ARG002 all are alike
        names = _CAPABILITIES.sampling | _CAPABILITIES.request | {"max_model_len", "native", "token_prompts"}
        return replace(_CAPABILITIES, unproven=names)

    def check(self, request: TokenRequest) -> None:
        # TensorRT-LLM divides by the temperature plus a millionth.
        check_temperature("TensorRT-LLM", request.sampling.temperature, 0.01, 1e6)
        if request.sampling.top_k > _MAX_TOP_K:
            raise UnsupportedParameter(
                f"sampling.top_k: TensorRT-LLM keeps at most {_MAX_TOP_K} tokens, not "
                f"{request.sampling.top_k}; 0 keeps all",
                field="sampling.top_k",
            )

    def body(self, request: TokenRequest, facts: ServerFacts, *, stream: bool) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": facts.model,
            "prompt": request.prompt_token_ids,
            "max_tokens": request.max_tokens,
            "temperature": sampling.temperature,
            "top_p": 1.0 if sampling.greedy else sampling.top_p,
            "top_k": 0 if sampling.greedy else sampling.top_k,
            "stop_token_ids": sorted(request.terminators),
            # The engine's own end: its token would be missing, and which it was is not said. Ours travel as stop
            # tokens. A version that drops those with it goes on until it sees the connection closed: that a sequence
            # ends at its first terminator is our own doing (Sequence), whatever the server makes of these two.
            "ignore_eos": True,
            # Else the token that ended it is cut off.
            "include_stop_str_in_output": True,
            "detokenize": False,
            "stream": stream,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        return body

    def piece(self, events: EventStream, event: Event, request: TokenRequest) -> Piece | None:
        found = openai.event_piece(events, event, request)
        if found is None:
            return None
        choice, piece = found
        named = choice.stop_reason
        cut = piece.reason == "stop" and not (piece.token_ids and piece.token_ids[-1] in request.terminators)
        if cut and isinstance(named, int) and named in request.terminators:
            piece.token_ids = [*piece.token_ids, named]
        return piece

    async def stats(self, client: ServerClient) -> EngineStats:
        # JSON, one entry an iteration since it was asked last; empty without `enable_iter_perf_stats`, or while idle.
        entries = await client.get_json("/metrics", list[dict[str, Any]])
        if not entries:
            return EngineStats()
        last = entries[-1]
        cache: dict[str, Any] = last.get("kvCacheStats") or {}
        size = cache.get("tokensPerBlock")
        capacity = cache["maxNumBlocks"] * size if size and "maxNumBlocks" in cache else None
        used = cache["usedNumBlocks"] * size if size and "usedNumBlocks" in cache else None
        return EngineStats(
            running=last.get("numActiveRequests"),
            waiting=last.get("numQueuedRequests"),
            kv_cache=KVCacheStats(
                capacity_tokens=capacity,
                used_tokens=used,
                usage=used / capacity if used is not None and capacity else None,
            ),
            native=last,
        )


TRTLLM = TRTLLMDialect()
