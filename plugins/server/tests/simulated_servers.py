"""*Simulated* servers of vLLM, LMDeploy and TensorRT-LLM: routes, shapes, and the reference engine's tokens.

Nothing here is one of those engines. Each refuses what its real one refuses: names that it lacks (TensorRT-LLM),
values out of range, alternatives beyond its bound.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any, ClassVar

from anyengine.backend import TokenRequest
from anyengine.request import SamplingParams, Structured
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from anyengine.backend import Backend
    from anyengine.hub import ModelFiles
    from anyengine_server.testing import Exchange


class Wrong(Exception):
    """A request that the server refuses."""


class Simulated:
    """What the three have in common."""

    def __init__(self, backend: Backend, model: ModelFiles, **changes: Any) -> None:
        self.backend = backend
        self.model = model
        self.tokenizer = Tokenizer.from_file(str(model.tokenizer_path / "tokenizer.json"))
        self.bodies: list[dict[str, Any]] = []
        self.changes = changes
        self.aborted = 0
        self._ids = itertools.count()

    async def handle(self, exchange: Exchange) -> None:
        routes = {path: getattr(self, name) for path, name in self.routes.items()}
        if exchange.path not in routes or exchange.path in self.changes.get("without", ()):
            await exchange.reply(404, {"detail": "Not Found"})
            return
        try:
            await routes[exchange.path](exchange)
        except Wrong as error:
            await self.refuse(exchange, str(error))

    routes: ClassVar[dict[str, str]] = {}

    async def refuse(self, exchange: Exchange, words: str) -> None:
        await exchange.reply(400, {"object": "error", "message": words, "type": "BadRequestError", "code": 400})

    async def health(self, exchange: Exchange) -> None:
        await exchange.reply(self.changes.get("health", 200))

    def request(self, ids: list[int], body: dict[str, Any], **changes: Any) -> TokenRequest:
        if len(ids) + body["max_tokens"] > self.backend.info.max_model_len:
            raise Wrong("the context is too short")
        if not 0 <= body["temperature"] <= 2:
            raise Wrong("temperature is out of range")
        sampling = {name: body[name] for name in SamplingParams.model_fields if name in body and name != "logit_bias"}
        if body.get("logit_bias"):
            sampling["logit_bias"] = {int(name): value for name, value in body["logit_bias"].items()}
        return TokenRequest(
            id=str(next(self._ids)),
            prompt_token_ids=ids,
            sampling=SamplingParams(**sampling),
            max_tokens=body["max_tokens"],
            stop_token_ids=frozenset(body["stop_token_ids"]),
            **changes,
        )

    async def deltas(self, request: TokenRequest):
        ended = False
        try:
            async for delta in self.backend.stream(request):
                ended = delta.finish is not None
                yield delta
        finally:
            if not ended:
                self.aborted += 1
            await self.backend.abort(request.id)


class SimulatedVLLM(Simulated):
    """``vllm serve``."""

    routes: ClassVar = {
        "/v1/models": "models",
        "/v1/completions": "completions",
        "/tokenize": "tokenize",
        "/health": "health",
        "/metrics": "metrics",
    }

    async def refuse(self, exchange: Exchange, words: str) -> None:
        await exchange.reply(400, {"error": {"message": words, "type": "BadRequestError", "param": None, "code": 400}})

    async def models(self, exchange: Exchange) -> None:
        base = {"id": "base", "object": "model", "root": str(self.model.path), "max_model_len": 512}
        adapters = [{"id": "adapter", "root": "/adapter", "parent": "base"}] if self.changes.get("lora") else []
        others = [{"id": "other", "root": "/other"}] if self.changes.get("several") else []
        await exchange.reply(200, {"object": "list", "data": [base, *others, *adapters]})

    async def tokenize(self, exchange: Exchange) -> None:
        body = exchange.json()
        ids = self.tokenizer.encode(body["prompt"], add_special_tokens=body["add_special_tokens"]).ids
        if self.changes.get("other_tokenizer"):
            ids = ids[::-1]
        await exchange.reply(200, {"count": len(ids), "max_model_len": 512, "tokens": ids})

    async def metrics(self, exchange: Exchange) -> None:
        stats = await self.backend.stats()
        lines = [
            f'vllm:num_requests_running{{model_name="base"}} {stats.running}',
            f'vllm:num_requests_waiting{{model_name="base"}} {stats.waiting}',
            'vllm:cache_config_info{block_size="16",num_gpu_blocks="65"} 1',
            "vllm:kv_cache_usage_perc 0.25",
            f"# TYPE vllm:prompt_tokens_total counter\nvllm:prompt_tokens_total {stats.prompt_tokens}",
            f"# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total {stats.generated_tokens}",
            '# TYPE vllm:request_success_total counter\nvllm:request_success_total{finished_reason="length"} 3',
            "# TYPE vllm:time_to_first_token_seconds histogram",
            'vllm:time_to_first_token_seconds_bucket{le="0.1"} 2',
            'vllm:time_to_first_token_seconds_bucket{le="1"} 5',
            'vllm:time_to_first_token_seconds_bucket{le="+Inf"} 6',
            "vllm:time_to_first_token_seconds_sum 4.5",
            "vllm:time_to_first_token_seconds_count 6",
        ]
        await exchange.text(200, "\n".join(lines) + "\n")

    async def completions(self, exchange: Exchange) -> None:
        body = exchange.json()
        self.bodies.append(body)
        if (body.get("logprobs") or 0) > self.changes.get("max_logprobs", 20):
            raise Wrong("logprobs are more than max_logprobs")
        if body["model"] not in {"base", "adapter"}:
            raise Wrong("the model does not exist")
        wanted = body.get("structured_outputs") or {}
        structured = None
        if wanted:
            kind = {"json": "json_schema"}.get(next(iter(wanted)), next(iter(wanted)))
            structured = Structured(**{kind: next(iter(wanted.values()))})
        request = self.request(
            body["prompt"],
            {"stop_token_ids": [], **body},
            min_tokens=body.get("min_tokens", 0),
            logprobs=body.get("logprobs"),
            prompt_logprobs=body.get("prompt_logprobs"),
            structured=structured,
            cache_salt=body.get("cache_salt"),
        )
        if not body.get("stream"):
            choice: dict[str, Any] = {"index": 0, "text": "", "token_ids": [], "logprobs": None}
            entries: list[Any] = []
            async for delta in self.deltas(request):
                choice["token_ids"] += delta.token_ids
                entries += delta.logprobs or []
                if delta.finish is not None:
                    choice |= self.finish(delta)
                    choice["prompt_logprobs"] = self.prompt(delta.finish.prompt_logprobs)
            choice["logprobs"] = self.logprobs(entries, body)
            await exchange.reply(200, {"object": "text_completion", "choices": [choice]})
            return
        await exchange.events()
        fail_after = self.changes.get("fail_after")
        sent = 0
        async for delta in self.deltas(request):
            choice = {"index": 0, "text": "", "token_ids": delta.token_ids}
            choice["logprobs"] = self.logprobs(delta.logprobs or [], body)
            if delta.finish is not None:
                choice |= self.finish(delta)
            await exchange.event({"object": "text_completion", "choices": [choice]})
            sent += len(delta.token_ids)
            if fail_after is not None and sent >= fail_after:
                await exchange.event(
                    {"error": {"message": "the engine failed", "type": "InternalServerError", "code": 500}}
                )
                break
        await exchange.event({"object": "text_completion", "choices": [], "usage": {"total_tokens": sent}})
        await exchange.event(b"[DONE]")
        await exchange.end()

    @staticmethod
    def finish(delta: Any) -> dict[str, Any]:
        stopped = delta.finish.reason == "stop"
        return {"finish_reason": delta.finish.reason, "stop_reason": delta.token_ids[-1] if stopped else None}

    def logprobs(self, entries: list[Any], body: dict[str, Any]) -> dict[str, Any] | None:
        if body.get("logprobs") is None:
            return None
        assert body["return_tokens_as_token_ids"]
        scale = body["temperature"] if self.changes.get("processed") else 1.0
        return {
            "text_offset": [0] * len(entries),
            "tokens": [f"token_id:{entry.token_id}" for entry in entries],
            "token_logprobs": [entry.logprob / scale for entry in entries],
            "top_logprobs": [{f"token_id:{i}": v / scale for i, v in entry.top.items()} for entry in entries],
        }

    @staticmethod
    def prompt(entries: list[Any] | None) -> list[Any] | None:
        if entries is None:
            return None
        return [
            None
            if entry is None
            else {str(i): {"logprob": v, "rank": 1, "decoded_token": ""} for i, v in entry.top.items()}
            for entry in entries
        ]


class SimulatedLMDeploy(Simulated):
    """``lmdeploy serve api_server``."""

    routes: ClassVar = {
        "/v1/models": "models",
        "/generate": "generate",
        "/v1/encode": "encode",
        "/health": "health",
        "/metrics/": "metrics",
    }

    async def models(self, exchange: Exchange) -> None:
        names = ["base", *self.changes.get("adapters", ())]
        await exchange.reply(200, {"data": [{"id": name, "root": name, "owned_by": "lmdeploy"} for name in names]})

    async def encode(self, exchange: Exchange) -> None:
        body = exchange.json()
        assert body["add_bos"] is False
        behind = self.changes.get("adds_behind", [])  # by tokenizers that end a text with a special token
        texts = [self.tokenizer.encode(text, add_special_tokens=False).ids + behind for text in body["input"]]
        await exchange.reply(200, {"input_ids": texts, "length": [len(ids) for ids in texts]})

    async def metrics(self, exchange: Exchange) -> None:
        await exchange.text(200, "lmdeploy:num_requests_running 2\nlmdeploy:num_requests_waiting 1\n")

    async def generate(self, exchange: Exchange) -> None:
        body = exchange.json()
        self.bodies.append(body)
        # Beside the caller's stop tokens it has its own, and nobody can switch those off.
        own = self.changes.get("own_stops", self.model.eos_token_ids)
        request = self.request(body["input_ids"], body | {"stop_token_ids": [*body["stop_token_ids"], *own]})
        await exchange.events()
        total = 0
        async for delta in self.deltas(request):
            ids, last = delta.token_ids, delta.finish
            # The token that ended it comes by itself, and is not counted in the events before.
            end = [] if last is None or last.reason != "stop" else [ids[-1]]
            ids = ids[: len(ids) - len(end)]
            total += len(ids)
            await self.chunk(exchange, request, ids, None, total)
            if total >= self.changes.get("fail_after", math.inf):
                error = {"message": "in its own words", "type": "server_error", "code": self.changes["code"]}
                await exchange.event({"error": {"object": "error", "param": None, **error}})
                break
            if last is not None:
                await self.chunk(exchange, request, end, {"type": last.reason}, total + len(end))
        await exchange.event(b"[DONE]")
        await exchange.end()

    @staticmethod
    async def chunk(exchange: Exchange, request: TokenRequest, ids: list[int], reason: Any, total: int) -> None:
        meta = {"prompt_tokens": len(request.prompt_token_ids), "completion_tokens": total, "finish_reason": reason}
        await exchange.event({"text": "", "output_ids": ids, "meta_info": meta})


class SimulatedTRTLLM(Simulated):
    """``trtllm-serve``: it forbids members that it does not know."""

    routes: ClassVar = {
        "/v1/models": "models",
        "/v1/completions": "completions",
        "/metrics": "metrics",
        "/health": "health",
    }
    known = frozenset({
        "model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop_token_ids", "ignore_eos",
        "include_stop_str_in_output", "detokenize", "stream",
    })  # fmt: skip

    async def models(self, exchange: Exchange) -> None:
        await exchange.reply(200, {"object": "list", "data": [{"id": "base", "owned_by": "tensorrt_llm"}]})

    async def metrics(self, exchange: Exchange) -> None:
        cache = {"maxNumBlocks": 100, "usedNumBlocks": 25, "freeNumBlocks": 75, "tokensPerBlock": 32}
        await exchange.reply(200, [{"iter": 1, "numActiveRequests": 2, "numQueuedRequests": 1, "kvCacheStats": cache}])

    async def completions(self, exchange: Exchange) -> None:
        body = exchange.json()
        self.bodies.append(body)
        unknown = body.keys() - self.known
        if unknown:
            raise Wrong(f"extra inputs are not permitted: {sorted(unknown)}")
        assert body["detokenize"] is False
        assert body["stream"]
        stops = [] if self.changes.get("drops_stops") and body["ignore_eos"] else body["stop_token_ids"]
        request = self.request(body["prompt"], body | {"stop_token_ids": stops})
        await exchange.events()
        held: list[int] = []
        async for delta in self.deltas(request):
            held += delta.token_ids
            if len(held) < self.changes.get("at_once", 1) and delta.finish is None:
                continue
            delta.token_ids, held = held, []
            ids, stopped = delta.token_ids, delta.finish is not None and delta.finish.reason == "stop"
            if stopped and self.changes.get("cuts_stops"):
                ids = ids[:-1]
            choice = {
                "index": 0,
                "text": "",
                "token_ids": ids,
                "finish_reason": None if delta.finish is None else delta.finish.reason,
                "stop_reason": delta.token_ids[-1] if stopped else None,
            }
            await exchange.event({"object": "text_completion", "choices": [choice]})
        await exchange.event(b"[DONE]")
        await exchange.end()
