"""Spans of OpenTelemetry for loading and generating, printed to the terminal.

Needs ``anyengine[tracing]`` and, to print, ``opentelemetry-sdk``.
"""

import asyncio

from anyengine import Engine, SamplingParams
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
trace.set_tracer_provider(provider)


async def main() -> None:
    """Generate once, traced."""
    async with Engine.load("reference", extensions=["tracing"]) as engine:
        await engine.generate("Once upon a time", sampling=SamplingParams(temperature=0), max_tokens=16)


asyncio.run(main())
