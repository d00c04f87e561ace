"""A span for each load, generation and stream, by OpenTelemetry's conventions for generative AI.

Needs ``opentelemetry-api`` (``pip install anyengine[tracing]``), and an SDK of the application's choice to export.
Attributes follow the GenAI semantic conventions (https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/);
prompts and answers are not recorded.
"""

from __future__ import annotations

from contextlib import aclosing, contextmanager, nullcontext
from time import monotonic
from typing import TYPE_CHECKING, Any

from anyengine.errors import InvalidConfig
from anyengine.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Generator

    from opentelemetry.trace import Span, Tracer

    from anyengine.config import EngineConfig
    from anyengine.outputs import Chunk, Completion, Usage
    from anyengine.request import GenerateRequest

__all__ = ["Tracing", "extension"]


class Tracing:
    """The extension. Spans are children of the span that is current where the call is made."""

    @hookimpl(wrapper=True)
    def load(self, engine: str, config: EngineConfig) -> Generator[None, Awaitable[None], Awaitable[None]]:
        """A span named ``load``."""
        inner = yield
        attributes = {"gen_ai.provider.name": engine}
        if config.model is not None:
            attributes["gen_ai.request.model"] = config.model

        async def traced() -> None:
            with _span("load", attributes, current=True):
                await inner

        return traced()

    @hookimpl(wrapper=True)
    def generate(
        self, engine: str, model: str, request: GenerateRequest
    ) -> Generator[None, Awaitable[Completion], Awaitable[Completion]]:
        """A span named after operation and model, with usage and finish reasons."""
        inner = yield

        async def traced() -> Completion:
            with _span(*_described(engine, model, request, stream=False), current=True) as span:
                answer = await inner
                span.set_attribute("gen_ai.response.finish_reasons", [c.finish_reason for c in answer.choices])
                _record_usage(span, [choice.usage for choice in answer.choices])
                return answer

        return traced()

    @hookimpl(wrapper=True)
    def stream(
        self, engine: str, model: str, request: GenerateRequest
    ) -> Generator[None, AsyncGenerator[Chunk], AsyncGenerator[Chunk]]:
        """The same for a stream, and the time to its first chunk."""
        inner = yield

        async def traced() -> AsyncGenerator[Chunk]:
            started = monotonic()
            usages: list[Usage] = []
            reasons: list[str] = []
            first = True
            # Current nowhere: a generator is suspended in between, in its reader's context.
            with _span(*_described(engine, model, request, stream=True), current=False) as span:
                try:
                    async with aclosing(inner):
                        async for chunk in inner:
                            if first:
                                span.set_attribute("gen_ai.response.time_to_first_chunk", monotonic() - started)
                                first = False
                            if chunk.finish is not None:
                                usages.append(chunk.finish.usage)
                                reasons.append(chunk.finish.reason)
                            yield chunk
                finally:
                    span.set_attribute("gen_ai.response.finish_reasons", reasons)
                    _record_usage(span, usages)

        return traced()


extension = Tracing()


def _tracer() -> Tracer:
    try:
        from opentelemetry import trace  # noqa: PLC0415 an extra, and only for those who trace
    except ImportError as error:
        message = "extensions: tracing needs opentelemetry-api; install anyengine[tracing]"
        raise InvalidConfig(message, field="extensions") from error
    return trace.get_tracer("anyengine")


@contextmanager
def _span(name: str, attributes: dict[str, Any], *, current: bool) -> Generator[Span]:
    """A span that ends with the block; a failure sets its status and ``error.type``, being left early does not.

    Where it is ``current``, what starts a span inside the block (other extensions, an engine's client) starts a child.
    """
    tracer = _tracer()
    from opentelemetry.trace import SpanKind, Status, StatusCode, use_span  # noqa: PLC0415

    span = tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
    try:
        with use_span(span, record_exception=False, set_status_on_exception=False) if current else nullcontext():
            yield span
    except Exception as error:
        span.record_exception(error)
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(Status(StatusCode.ERROR, str(error)))
        raise
    finally:
        span.end()


def _described(engine: str, model: str, request: GenerateRequest, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """Name and attributes of a request's span; what the caller left out is left out."""
    operation = "chat" if request.messages is not None else "text_completion"
    sampling = request.sampling
    changed = set(request.changed())
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": engine,
        "gen_ai.request.model": model,
        "gen_ai.request.stream": stream,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
    }
    optional = {
        "max_tokens": ("gen_ai.request.max_tokens", request.max_tokens),
        "n": ("gen_ai.request.choice.count", request.n),
        "stop": ("gen_ai.request.stop_sequences", list(request.stop)),
        "sampling.top_k": ("gen_ai.request.top_k", sampling.top_k),
        "sampling.seed": ("gen_ai.request.seed", sampling.seed),
        "sampling.frequency_penalty": ("gen_ai.request.frequency_penalty", sampling.frequency_penalty),
        "sampling.presence_penalty": ("gen_ai.request.presence_penalty", sampling.presence_penalty),
    }
    attributes |= {name: value for field, (name, value) in optional.items() if field in changed}
    return f"{operation} {model}", attributes


def _record_usage(span: Span, usages: list[Usage]) -> None:
    if not usages:
        return
    span.set_attribute("gen_ai.usage.input_tokens", usages[0].prompt_tokens)  # one prompt, however many completions
    span.set_attribute("gen_ai.usage.output_tokens", sum(usage.completion_tokens for usage in usages))
    cached = usages[0].cached_tokens
    if cached is not None:
        span.set_attribute("gen_ai.usage.cache_read.input_tokens", cached)
