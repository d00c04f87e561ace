"""A *simulated* TGI 3.3: its routes, its validation, its errors, its metrics, and the reference engine's tokens.

Nothing here is TGI. It stands in tests only, made from the facts in ``contract/``: what it takes and refuses, and
how it answers, is what TGI's router does; what it computes is the reference engine's. As a program it is a simulated
``text-generation-launcher``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyengine.backend import TokenRequest
from anyengine.config import EngineConfig
from anyengine.errors import AnyEngineError, InvalidRequest
from anyengine.hub import resolve_model
from anyengine.request import SamplingParams, Structured
from anyengine_reference import plugin as reference
from anyengine_server.testing import Exchange, SimulatedServer
from msgspec import DecodeError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from anyengine.backend import Backend
    from anyengine.hub import ModelFiles

CONTRACT: dict[str, Any] = json.loads((Path(__file__).parent / "contract" / "tgi-3.3.7.json").read_bytes())
PARAMETERS = CONTRACT["schemas"]["GenerateParameters"]
#: Tokens after which the router starts a long request anew (``DEFAULT_GENERATION_LENGTH``).
PIECE = 1024


@dataclass
class Limits:
    """What the router is started with, by its own names and defaults."""

    max_concurrent_requests: int = 128
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_input_tokens: int = 1023
    max_total_tokens: int = 1024
    validation_workers: int = 2
    max_client_batch_size: int = 4
    disable_grammar_support: bool = False
    enable_prefill_logprobs: bool = False
    api_key: str | None = None
    adapters: tuple[str, ...] = ()


class Refused(Exception):
    """An answer of the router that is an error: its type, and words in which names stand as TGI writes them."""

    def __init__(self, error_type: str, words: str) -> None:
        super().__init__(words)
        self.error_type = error_type
        self.body = {"error": words, "error_type": error_type}

    @property
    def status(self) -> int:
        return CONTRACT["errors"][self.error_type]


def invalid(words: str) -> Refused:
    return Refused("validation", f"Input validation error: {words}")


@dataclass
class Valid:
    """A request that passed the validation."""

    inputs: str
    ids: list[int]
    parameters: dict[str, Any]
    seed: int
    max_new_tokens: int
    details: bool = False
    stop: list[str] = field(default_factory=list)


class Metrics:
    """The metrics that the contract names, of the kinds that it says."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        kinds = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
        self.by_name: dict[str, Any] = {
            name: kinds[each["type"]](name, "simulated", each["labels"], registry=self.registry)
            for name, each in CONTRACT["metrics"].items()
        }

    def __getitem__(self, name: str) -> Any:
        return self.by_name[name]

    def text(self) -> str:
        # TGI's exporter writes counters without the ending that this library adds.
        return re.sub(r"\b(tgi_\w+)_total\b", r"\1", generate_latest(self.registry).decode())


class SimulatedTgi:
    """The server. ``before_event`` is called before each event of a stream, with the exchange and its number."""

    def __init__(
        self,
        backend: Backend,
        model: ModelFiles,
        limits: Limits,
        *,
        model_id: str = "simulated",
        piece: int = PIECE,
        tokenizer: Path | None = None,
    ) -> None:
        self.backend = backend
        self.model = model
        self.limits = limits
        self.model_id = model_id
        self.piece = piece
        self.tokenizer = Tokenizer.from_file(str(tokenizer or model.tokenizer_path / "tokenizer.json"))
        self.special = {token for token, added in self.tokenizer.get_added_tokens_decoder().items() if added.special}
        self.metrics = Metrics()
        self.active = 0
        self.served = 0
        self.compress = False
        self.compressed = 0
        self.healthy = True
        self.before_event: Callable[[Exchange, int], Awaitable[None]] | None = None
        self.seen: list[dict[str, Any]] = []
        self._ids = 0

    # -- routes -----------------------------------------------------------------------------------

    async def handle(self, exchange: Exchange) -> None:
        exchange.compress = self.compress and "gzip" in exchange.headers.get("accept-encoding", "")
        self.compressed += exchange.compress
        routes = {
            ("GET", "/health"): self.health,
            ("GET", "/info"): self.info,
            ("GET", "/metrics"): self.show_metrics,
            ("POST", "/tokenize"): self.tokenize,
            ("POST", "/generate"): self.generate,
            ("POST", "/generate_stream"): self.generate_stream,
        }
        route = routes.get((exchange.method, exchange.path))
        if route is None:
            known = {path for _, path in routes}
            await exchange.reply(405 if exchange.path in known else 404)
        elif exchange.method == "POST" and not self.authorized(exchange):
            await exchange.reply(401)
        else:
            await route(exchange)

    def authorized(self, exchange: Exchange) -> bool:
        key = self.limits.api_key
        # TGI compares in lower case.
        return key is None or exchange.headers.get("authorization", "").lower() == f"bearer {key}".lower()

    async def health(self, exchange: Exchange) -> None:
        if self.healthy:
            await exchange.reply(200)
        else:
            await exchange.reply(503, {"error": "unhealthy", "error_type": "healthcheck"})

    async def info(self, exchange: Exchange) -> None:
        names = CONTRACT["schemas"]["Info"].keys() & vars(self.limits).keys()
        own = {"model_id": self.model_id, "router": "simulated", "version": "3.3.7-simulated"}
        await exchange.reply(200, own | {name: getattr(self.limits, name) for name in names})

    async def show_metrics(self, exchange: Exchange) -> None:
        self.metrics["tgi_batch_current_size"].set(self.active)
        self.metrics["tgi_queue_size"].set((await self.backend.stats()).waiting or 0)
        await exchange.text(200, self.metrics.text())

    async def tokenize(self, exchange: Exchange) -> None:
        body = await self.body(exchange)
        if body is None:
            return
        encoding = self.tokenizer.encode(body["inputs"], add_special_tokens=True)
        tokens = [
            {"id": token, "text": body["inputs"][start:stop], "start": start, "stop": stop}
            for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]
        await exchange.reply(200, tokens)

    async def body(self, exchange: Exchange) -> dict[str, Any] | None:
        """The body, as serde reads it; None where it was refused (which TGI does in plain text)."""
        try:
            body = exchange.json()
        except DecodeError as error:
            await exchange.text(400, f"Failed to parse the request body as JSON: {error}")
            return None
        problem = shape(body)
        if problem:
            await exchange.text(422, f"Failed to deserialize the JSON body into the target type: {problem}")
            return None
        return body

    # -- validation -------------------------------------------------------------------------------

    def validated(self, body: dict[str, Any], *, stream: bool) -> Valid:  # noqa: C901, PLR0912 as many rules as TGI has
        p = {name: value for name, value in (body.get("parameters") or {}).items() if value is not None}
        limits = self.limits
        best_of = p.get("best_of", 1)
        if stream and best_of != 1:
            raise invalid("`best_of` != 1 while streaming")
        if stream and p.get("decoder_input_details"):
            raise invalid("`decoder_input_details` while streaming")
        sampling = p.get("do_sample") or any(name in p for name in ("temperature", "top_k", "top_p", "typical_p"))
        if best_of < 1 or best_of > limits.max_best_of:
            raise invalid(f"`best_of` {best_of}")
        if best_of > 1 and (not sampling or "seed" in p):
            raise invalid("`best_of` without sampling, or with a `seed`")
        for name in ("temperature", "repetition_penalty", "top_k"):
            if p.get(name, 1) <= 0:
                raise invalid(f"`{name}` must be above 0")
        for name in ("top_p", "typical_p"):
            if not 0 < p.get(name, 0.5) < 1:
                raise invalid(f"`{name}` must lie between 0 and 1")
        if not -2 <= p.get("frequency_penalty", 0) <= 2:
            raise invalid("`frequency_penalty` is out of range")
        if p.get("max_new_tokens") == 0:
            raise invalid("`max_new_tokens` must be above 0")
        if len(p.get("stop", ())) > limits.max_stop_sequences:
            raise invalid("`stop` has too many members")
        if p.get("top_n_tokens", 0) > limits.max_top_n_tokens:
            raise invalid("`top_n_tokens` is too large")
        if not body["inputs"]:
            raise invalid("`inputs` is empty")
        if not 0 < p.get("truncate", 1) <= limits.max_input_tokens:
            raise invalid("`truncate` is out of range")
        if "adapter_id" in p and p["adapter_id"] not in limits.adapters:
            raise Refused("generation", "no adapter of that name")
        ids = self.tokenizer.encode(body["inputs"], add_special_tokens=True).ids
        if "truncate" in p:
            ids = ids[-p["truncate"] :]
        most = p.get("max_new_tokens", limits.max_total_tokens - len(ids))
        # The router holds the first piece of a long request against its limits, and no more.
        if len(ids) + min(most, self.piece) > limits.max_total_tokens:
            raise invalid(f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}")
        if len(ids) > limits.max_input_tokens:
            raise invalid(f"`inputs` must have less than {limits.max_input_tokens} tokens")
        if "grammar" in p:
            self.check_grammar(p["grammar"])
        self.metrics["tgi_request_input_length"].observe(len(ids))
        self.metrics["tgi_request_max_new_tokens"].observe(most)
        seed = p.get("seed", random.getrandbits(64))
        return Valid(body["inputs"], ids, p, seed, most, bool(p.get("details")), list(p.get("stop", ())))

    def check_grammar(self, grammar: dict[str, Any]) -> None:
        if self.limits.disable_grammar_support:
            raise invalid("`grammar` is switched off")
        value = grammar["value"]
        if grammar["type"] == "json_schema":
            value = value.get("schema")
        if grammar["type"] != "regex" and not (isinstance(value, dict) and "properties" in value):
            raise invalid("`grammar` has no properties")

    # -- generation -------------------------------------------------------------------------------

    async def events(self, body: dict[str, Any], *, stream: bool) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream; the last has text and details."""
        started = time.monotonic()
        self.metrics["tgi_request_count"].inc()
        if self.active >= self.limits.max_concurrent_requests:
            self.metrics["tgi_request_failure"].labels(err="overloaded").inc()
            raise Refused("overloaded", "Model is overloaded")
        self.active += 1
        try:
            try:
                valid = self.validated(body, stream=stream)
            except Refused:
                self.metrics["tgi_request_failure"].labels(err="validation").inc()
                raise
            self.seen.append(valid.parameters | {"inputs": valid.inputs})
            generated: list[int] = []
            index = 0
            async for event, reason in self.tokens(valid, generated):
                index += 1
                event["index"] = index
                if reason is not None:
                    self.finished(started, len(generated))
                    event["generated_text"] = self.tokenizer.decode(generated)
                    event["details"] = {
                        "finish_reason": reason,
                        "generated_tokens": len(generated),
                        "seed": valid.seed,
                        "input_length": len(valid.ids),
                    }
                yield event
        finally:
            self.active -= 1

    def finished(self, started: float, tokens: int) -> None:
        seconds = time.monotonic() - started
        self.metrics["tgi_request_success"].inc()
        self.metrics["tgi_request_duration"].observe(seconds)
        self.metrics["tgi_request_queue_duration"].observe(0.0)
        self.metrics["tgi_request_inference_duration"].observe(seconds)
        self.metrics["tgi_request_mean_time_per_token_duration"].observe(seconds / max(tokens, 1))
        self.metrics["tgi_request_generated_tokens"].observe(tokens)
        self.metrics["tgi_request_skipped_tokens"].observe(0)

    async def tokens(self, valid: Valid, generated: list[int]) -> AsyncIterator[tuple[dict[str, Any], str | None]]:
        """Events with why the request ends there; one that asks for more than a piece is worked off in pieces.

        Each is the whole request again behind the text so far (``infer/mod.rs``, ``generate_stream``): the last goes
        on to its own end, and one that does not fit the limits is not begun.
        """
        text, ids = valid.inputs, valid.ids
        while True:
            before, ended = len(generated), None
            async for event, reason in self.piece_of(valid, ids, generated):
                ended = reason
                if reason == "length" and len(generated) < valid.max_new_tokens:
                    text += self.tokenizer.decode(generated[before:])
                    ids = self.tokenizer.encode(text, add_special_tokens=True).ids
                    fits = len(ids) + min(valid.max_new_tokens, self.piece) <= self.limits.max_total_tokens
                    ended = None if fits and len(ids) <= self.limits.max_input_tokens else "length"
                yield event, ended
            if ended is not None:
                return

    async def piece_of(
        self, valid: Valid, ids: list[int], generated: list[int]
    ) -> AsyncIterator[tuple[dict[str, Any], str | None]]:
        """One piece: the whole request, or as much as the router lets go at once."""
        most = min(valid.max_new_tokens, self.piece)
        request = self.request(valid, ids, most)
        done = 0
        try:
            async for delta in self.backend.stream(request):
                for place, token in enumerate(delta.token_ids):
                    generated.append(token)
                    done += 1
                    entry = (delta.logprobs or [])[place]
                    yield self.event(valid, token, entry), self.reason(valid, generated, done, most)
        except InvalidRequest as error:
            raise Refused("generation", f"Request failed during generation: {error}") from error
        finally:
            await self.backend.abort(request.id)

    def reason(self, valid: Valid, generated: list[int], done: int, most: int) -> str | None:
        if done == most:  # looked at first
            return "length"
        if generated[-1] in self.model.eos_token_ids:
            return "eos_token"
        text = self.tokenizer.decode(generated)
        return "stop_sequence" if any(text.endswith(stop) for stop in valid.stop) else None

    def event(self, valid: Valid, token: int, entry: Any) -> dict[str, Any]:
        top = [self.token(other, value) for other, value in entry.top.items()]
        event: dict[str, Any] = {"token": self.token(token, entry.logprob), "generated_text": None, "details": None}
        if valid.parameters.get("top_n_tokens"):
            event["top_tokens"] = top[: valid.parameters["top_n_tokens"]]
        return event

    def token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.tokenizer.decode([token], skip_special_tokens=False)
        return {"id": token, "text": text, "logprob": logprob, "special": token in self.special}

    def request(self, valid: Valid, ids: list[int], most: int) -> TokenRequest:
        p = valid.parameters
        for name, neutral in (("frequency_penalty", 0), ("typical_p", 1), ("watermark", False), ("best_of", 1)):
            if p.get(name, neutral) != neutral:
                raise Refused("generation", f"Request failed during generation: {name} is not simulated")
        if p.get("top_k", 0) > self.backend.info.vocab_size:  # ``HeterogeneousTopKLogitsWarper``
            self.healthy = False
            raise Refused("generation", "Request failed during generation: CUDA error: device-side assert triggered")
        warped = p.get("temperature", 1) != 1 or "top_k" in p or p.get("top_p", 1) < 1
        sampling = SamplingParams(
            temperature=p.get("temperature", 1.0) if p.get("do_sample") or warped else 0.0,
            top_p=p.get("top_p", 1.0),
            top_k=p.get("top_k", 0),
            repetition_penalty=p.get("repetition_penalty", 1.0),
            seed=valid.seed % 2**63,
        )
        structured = None
        if "grammar" in p:
            value = p["grammar"]["value"]
            structured = Structured(regex=value) if p["grammar"]["type"] == "regex" else Structured(json_schema=value)
        self._ids += 1
        return TokenRequest(
            id=str(self._ids),
            prompt_token_ids=ids,
            sampling=sampling,
            max_tokens=most,
            eos_token_ids=self.model.eos_token_ids,
            logprobs=p.get("top_n_tokens", 0),
            structured=structured,
        )

    async def generate_stream(self, exchange: Exchange) -> None:
        body = await self.body(exchange)
        if body is None:
            return
        # Whatever goes wrong from here on, the status is 200.
        await exchange.events()
        number = 0
        try:
            async for event in self.events(body, stream=True):
                if self.before_event is not None:
                    await self.before_event(exchange, number)
                if not (body.get("parameters") or {}).get("details"):
                    event["details"] = None
                await exchange.event(event)
                number += 1
        except Refused as error:
            await exchange.event(error.body)
        await exchange.end()
        self.served += 1

    async def generate(self, exchange: Exchange) -> None:
        body = await self.body(exchange)
        if body is None:
            return
        events: list[dict[str, Any]] = []
        try:
            events = [event async for event in self.events(body, stream=False)]
            prefill = await self.prefill(body)
        except Refused as error:
            await exchange.reply(error.status, error.body)
            return
        last, parameters = events[-1], body.get("parameters") or {}
        answer: dict[str, Any] = {"generated_text": last["generated_text"], "details": None}
        if parameters.get("details") or parameters.get("decoder_input_details"):
            ended = last["details"]
            answer["details"] = {
                "finish_reason": ended["finish_reason"],
                "generated_tokens": ended["generated_tokens"],
                "seed": ended["seed"],
                "prefill": prefill,
                "tokens": [event["token"] for event in events],
            }
            if parameters.get("top_n_tokens"):
                answer["details"]["top_tokens"] = [event["top_tokens"] for event in events]
        await exchange.reply(200, answer, {"x-generated-tokens": str(last["details"]["generated_tokens"])})
        self.served += 1

    async def prefill(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The prompt's tokens, where they are asked for and the server was started for it."""
        if not (body.get("parameters") or {}).get("decoder_input_details") or not self.limits.enable_prefill_logprobs:
            return []
        ids = self.tokenizer.encode(body["inputs"], add_special_tokens=True).ids
        score = await self.backend.score(ids, 0) if len(ids) > 1 else None
        values = [None] if score is None else [None if entry is None else entry.logprob for entry in score.entries]
        return [
            {"id": token, "text": self.tokenizer.decode([token], skip_special_tokens=False), "logprob": value}
            for token, value in zip(ids, values, strict=True)
        ]


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "boolean": (bool,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "list": (list,),
    "GrammarType": (dict,),
}


def _fits(name: str, kind: str, value: int) -> bool:
    """Whether a whole number fits Rust's type: its format says how wide that is, a minimum of 0 that it has no sign."""
    bits = 32 if "int32" in kind else 64
    return (
        0 <= value < 2**bits if PARAMETERS[name].get("minimum") == 0 else -(2 ** (bits - 1)) <= value < 2 ** (bits - 1)
    )


def shape(body: Any) -> str | None:
    """What is wrong with the types of a body, by the contract; unknown members are left out, as serde does."""
    if not isinstance(body, dict) or not isinstance(body.get("inputs"), str):
        return "missing field `inputs`"
    parameters = body.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        return "`parameters` is no object"
    for name, value in (parameters or {}).items():
        if name not in PARAMETERS:
            continue
        kind = PARAMETERS[name]["type"]
        if value is None and "null" in kind:
            continue
        wanted = _JSON_TYPES[re.split(r"[(\[ ]", kind)[0]]
        wrong = not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted)
        if wrong or (kind.startswith("integer") and not _fits(name, kind, value)):
            return f"`{name}` is {value!r}, where {kind} is due"
    grammar = (parameters or {}).get("grammar")
    if grammar is not None and (grammar.get("type") not in CONTRACT["grammar_types"] or "value" not in grammar):
        return "`grammar` is of no known type"
    return None


# -- the launcher -----------------------------------------------------------------------------------


def launcher_parser() -> argparse.ArgumentParser:
    """The launcher's arguments as the contract has them, with the variables that they are taken from."""
    parser = argparse.ArgumentParser("text-generation-launcher", allow_abbrev=False)
    enums = {"Quantization": "Quantization", "Dtype": "Dtype", "KVCacheDtype": "KVCacheDtype"}
    for name, each in CONTRACT["launcher"].items():
        kind = re.sub(r"^(Option|Vec)<(.*)>$", r"\2", each["type"])
        default = os.environ.get(each["env"]) if each["env"] else None
        if each["type"] == "bool":
            parser.add_argument(each["flag"], dest=name, action="store_true", default=default in {"true", "1"})
            continue
        choices = CONTRACT["enums"].get(enums.get(kind, ""), None)
        convert = {"usize": int, "u32": int, "u16": int, "u64": int, "f32": float}.get(kind, str)
        parser.add_argument(each["flag"], dest=name, type=convert, choices=choices, default=default or each["default"])
    return parser


async def launch(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM."""

    def number(name: str) -> int | None:
        value = getattr(arguments, name)
        return None if value is None else int(value)

    def stop(words: str) -> int:
        print(f"Error: {words}", flush=True)  # noqa: T201 what a launcher does
        return 1

    total, most = number("max_total_tokens"), number("max_input_tokens")
    if total is not None and most is not None and most >= total:
        return stop("ArgumentValidation: `max_input_tokens` must be < `max_total_tokens`")
    if (number("num_shard") or 1) > 1:
        return stop("NotEnoughCUDADevices: `num_shard` is more than the devices of this simulation")
    if arguments.dtype and arguments.quantize:
        return stop("dtype cannot be used with quantize")
    capacity = number("max_batch_total_tokens")
    if capacity is not None and total is not None and total > capacity:
        return stop("ArgumentValidation: `max_total_tokens` must be <= `max_batch_total_tokens`")
    try:
        model = resolve_model(arguments.model_id, builtin={})
        config = EngineConfig(
            model=arguments.model_id,
            max_model_len=min(total, int(model.config["max_position_embeddings"])) if total else None,
            kv_cache={
                # Of --max-batch-total-tokens a flash model hears nothing (``backends/v3/src/lib.rs``, connect_backend).
                "prefix_caching": os.environ.get("PREFIX_CACHING") not in {"0", "false"},
            },
            scheduling={
                "chunked_prefill": os.environ.get("PREFILL_CHUNKING", "1") == "1",
                "max_num_batched_tokens": number("max_batch_prefill_tokens"),
                "max_num_seqs": 64,
            },
            speculative={"method": "ngram", "num_speculative_tokens": number("speculate")}
            if number("speculate")
            else None,
        )
        backend = await reference.load(config, model)
    except AnyEngineError as error:
        return stop(f"ShardCannotStart: {error}")
    adapters = tuple(part.partition("=")[0] for part in (arguments.lora_adapters or "").split(",") if part)
    total = total or backend.info.max_model_len
    limits = Limits(
        max_concurrent_requests=int(arguments.max_concurrent_requests),
        max_best_of=int(arguments.max_best_of),
        max_stop_sequences=int(arguments.max_stop_sequences),
        max_top_n_tokens=int(arguments.max_top_n_tokens),
        max_input_tokens=most or total - 1,
        max_total_tokens=total,
        disable_grammar_support=arguments.disable_grammar_support,
        enable_prefill_logprobs=arguments.enable_prefill_logprobs,
        api_key=arguments.api_key,
        adapters=adapters,
    )
    # The router saves the tokenizer where it works, and reads what is there then.
    await asyncio.to_thread(os.makedirs, "out", exist_ok=True)
    written = await asyncio.to_thread(shutil.copy, model.tokenizer_path / "tokenizer.json", "out")
    simulated = SimulatedTgi(backend, model, limits, model_id=arguments.model_id, tokenizer=written)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with SimulatedServer(simulated.handle, port=int(arguments.port)) as server:
        print(f"simulated TGI at {server.url}", flush=True)  # noqa: T201 its log
        await ended.wait()
    await backend.close()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(launch(launcher_parser().parse_args())))
