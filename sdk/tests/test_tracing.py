"""The tracing extension, against OpenTelemetry's own SDK."""

import asyncio
import sys

import pytest
from anyengine import Engine, SamplingParams, hookimpl
from anyengine.errors import InvalidConfig, InvalidRequest, PluginError
from anyengine.testing import ScriptedPlugin, make_model_folder
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode


@pytest.fixture(scope="module")
def provider():
    provider = TracerProvider()
    trace.set_tracer_provider(provider)  # can be set once in a process
    return provider


@pytest.fixture
def spans(provider):
    exporter = InMemorySpanExporter()
    processor = SimpleSpanProcessor(exporter)
    provider.add_span_processor(processor)
    yield exporter.get_finished_spans
    processor.shutdown()


@pytest.fixture
def plugin(tmp_path):
    return ScriptedPlugin(lambda request: [40, 41, 42], str(make_model_folder(tmp_path / "model")))


async def test_loading_and_generating_leave_a_span_each(plugin, spans):
    async with Engine.load(plugin, extensions=["tracing"]) as engine:
        await engine.generate("hi", sampling=SamplingParams(temperature=0.5, top_k=4), max_tokens=9, n=2, stop="zz")
    load, generate = spans()
    assert (load.name, load.attributes["gen_ai.provider.name"]) == ("load", "scripted")
    assert (generate.name, generate.kind, generate.status.status_code) == (
        "text_completion scripted",
        SpanKind.CLIENT,
        StatusCode.UNSET,
    )
    assert dict(generate.attributes) == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "scripted",
        "gen_ai.request.model": "scripted",
        "gen_ai.request.stream": False,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 4,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.stop_sequences": ("zz",),
        "gen_ai.response.finish_reasons": ("stop", "stop"),
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.usage.cache_read.input_tokens": 0,
    }


async def test_a_stream_has_its_time_to_first_chunk_and_its_usage(plugin, spans):
    async with Engine.load(plugin, extensions=["tracing"]) as engine:
        async with engine.stream(messages=[{"role": "user", "content": "hi"}]) as stream:
            assert [chunk.text async for chunk in stream]
        span = spans()[-1]
    assert span.name == "chat scripted"
    assert span.attributes["gen_ai.request.stream"] is True
    assert span.attributes["gen_ai.response.time_to_first_chunk"] >= 0
    assert span.attributes["gen_ai.usage.output_tokens"] == 4


async def test_a_stream_that_is_left_early_ends_its_span_without_an_error(plugin, spans):
    async with Engine.load(plugin, extensions=["tracing"]) as engine:
        async with engine.stream("hi") as stream:
            async for _ in stream:
                break
        span = spans()[-1]
    assert (span.status.status_code, span.attributes["gen_ai.response.finish_reasons"]) == (StatusCode.UNSET, ())


async def test_a_failure_is_recorded_on_the_span(plugin, spans):
    def fail(request):
        raise OSError("gone")

    plugin.script = fail
    async with Engine.load(plugin, extensions=["tracing"]) as engine:
        with pytest.raises(PluginError):
            await engine.generate("hi")
        span = spans()[-1]
    assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, "PluginError")
    assert [event.name for event in span.events] == ["exception"]


async def test_a_refused_request_leaves_no_span(plugin, spans):
    async with Engine.load(plugin, extensions=["tracing"]) as engine:
        with pytest.raises(InvalidRequest):
            await engine.generate("")
    assert [span.name for span in spans()] == ["load"]


async def test_spans_are_children_of_the_callers_span_also_side_by_side(plugin, spans, provider):
    tracer = provider.get_tracer("test")
    async with Engine.load(plugin, extensions=["tracing"]) as engine:

        async def call(name: str) -> None:
            with tracer.start_as_current_span(name):
                async with engine.stream("hi") as stream:
                    async for _ in stream:
                        await asyncio.sleep(0)
                    assert trace.get_current_span().name == name

        await asyncio.gather(*(call(f"caller-{i}") for i in range(5)))
    callers = {span.context.span_id: span.name for span in spans() if span.name.startswith("caller")}
    parents = [callers[span.parent.span_id] for span in spans() if span.name.startswith("text")]
    assert sorted(parents) == [f"caller-{i}" for i in range(5)]


class Inner:
    """An extension inside the tracing one: says which span it runs in, and that its streams are closed in time."""

    def __init__(self):
        self.parents = []
        self.closed = []

    @hookimpl(wrapper=True)
    def generate(self):
        inner = yield

        async def seen():
            self.parents.append(trace.get_current_span().name)
            return await inner

        return seen()

    @hookimpl(wrapper=True)
    def stream(self):
        inner = yield

        async def seen():
            try:
                async for chunk in inner:
                    yield chunk
            finally:
                self.closed.append(True)

        return seen()


async def test_what_runs_inside_a_generation_is_a_child_of_its_span(plugin, spans):
    inner = Inner()
    async with Engine.load(plugin, extensions=["tracing", inner]) as engine:
        await engine.generate("hi")
    assert inner.parents == ["text_completion scripted"]


async def test_leaving_a_stream_closes_the_extensions_inside_at_once(plugin, spans):
    inner = Inner()
    async with Engine.load(plugin, extensions=["tracing", inner]) as engine:
        async with engine.stream("hi") as stream:
            async for _ in stream:
                break
        assert inner.closed == [True]


async def test_a_cancelled_generation_ends_its_span_without_an_error(plugin, spans):
    started = asyncio.Event()

    def endless(request):
        started.set()
        return []

    plugin.script = endless
    async with Engine.load(plugin, extensions=["tracing"]) as engine:
        task = asyncio.create_task(engine.generate("hi", ignore_eos=True))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        span = spans()[-1]
    assert (span.name, span.status.status_code) == ("text_completion scripted", StatusCode.UNSET)


async def test_without_opentelemetry_the_load_says_what_to_install(plugin, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "opentelemetry"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(InvalidConfig, match=r"anyengine\[tracing\]"):
        await Engine.load(plugin, extensions=["tracing"])
