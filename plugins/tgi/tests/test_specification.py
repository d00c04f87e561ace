"""The simulation answers each operation that the plugin uses as TGI's own specification says, by schemathesis.

The specification is another project's file and stays outside of this repository: the test runs where it is present.
"""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2 as httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FILE = Path(__file__).parents[4] / "shared" / "contracts" / "tgi-openapi.json"
OPERATIONS = [
    ("GET", "/health"), ("GET", "/info"), ("GET", "/metrics"),
    ("POST", "/tokenize"), ("POST", "/generate"), ("POST", "/generate_stream"),
]  # fmt: skip
POSTS = [path for method, path in OPERATIONS if method == "POST"]
AS_SPECIFIED = [status_code_conformance, content_type_conformance, response_schema_conformance]
DRAWN = settings(max_examples=100, suppress_health_check=list(HealthCheck), derandomize=True, database=None)


@schemathesis.deserializer("text/event-stream")
def _events(_context: Any, response: Any) -> list[Any]:
    """Each event's data; the library's own reader gives the frame round it."""
    return [json.loads(block.removeprefix("data:")) for block in response.text.split("\n\n") if block]


def refused(context: Any, response: Any, case: Any) -> bool | None:
    """What the specification forbids is refused: by its status, or where that was said already by the only event."""
    if response.status_code == 200 and case.operation.path == "/generate_stream":
        assert [list(event) for event in _events(None, response)] == [["error", "error_type"]]
        return None
    return negative_data_rejection(context, response, case)


def _modern(schema: Any) -> Any:
    """``nullable`` and numeric bounds, which the file mixes, as OpenAPI 3.1 has them; formats of numbers as bounds."""
    if isinstance(schema, list):
        return [_modern(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _modern(value) for name, value in schema.items()}
    if made.get("type") == "integer":
        bits = 32 if made.get("format") == "int32" else 64
        made.setdefault("maximum", 2 ** (bits if made.get("minimum") == 0 else bits - 1) - 1)
    if made.pop("nullable", False) is True:
        if "type" in made:
            made["type"] = [made["type"], "null"]
        else:
            made = {"anyOf": [made, {"type": "null"}]}
    return made


@pytest.fixture(scope="module")
def specification() -> dict[str, Any]:
    if not FILE.exists():
        pytest.skip("tgi-openapi.json is not beside this checkout")
    made = _modern(json.loads(FILE.read_bytes())) | {"openapi": "3.1.0"}
    # A stream that has begun tells of an error within it: its status is 200 by then.
    answers = made["paths"]["/generate_stream"]["post"]["responses"]
    schemas = [answers[status]["content"]["text/event-stream"]["schema"] for status in ("200", "422")]
    answers["200"]["content"]["text/event-stream"]["schema"] = {"anyOf": schemas}
    # TGI looks at nothing but the text there, and the plugin sends nothing else.
    text = {"type": "object", "required": ["inputs"], "properties": {"inputs": {"type": "string"}}}
    made["paths"]["/tokenize"]["post"]["requestBody"]["content"]["application/json"]["schema"] = text
    return made


@pytest.fixture(scope="module")
def operation(specification: dict[str, Any]) -> Callable[..., Any]:
    """``operation(method, path)``; with ``closed`` its bodies have the members that the specification names alone."""
    closed = copy.deepcopy(specification)
    for name in ("GenerateRequest", "GenerateParameters"):
        closed["components"]["schemas"][name]["additionalProperties"] = False
    schemas = {one: schemathesis.openapi.from_dict(made) for one, made in ((False, specification), (True, closed))}
    return lambda method, path, *, closed=False: schemas[closed][path][method]


def _as_serde_reads(value: Any) -> Any:
    """Whole numbers without a point: to JSON Schema 1.0 is an integer, to serde it is none."""
    if isinstance(value, dict):
        return {name: _as_serde_reads(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_as_serde_reads(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


async def drawn(server: Any, operation: Any, mode: GenerationMode, checks: list[Any]) -> list[Any]:
    """The answers to bodies that the specification allows, or forbids."""
    answers: list[Any] = []

    @DRAWN
    @given(operation.as_strategy(generation_mode=mode))
    def each(case: Any) -> None:
        read = _as_serde_reads(case.body)
        # A whole number with a point may be all that was wrong with it.
        assume(mode is not GenerationMode.NEGATIVE or repr(read) == repr(case.body))
        case.body = read
        answers.append(case.call_and_validate(base_url=server.url, checks=checks, timeout=60))

    await asyncio.to_thread(each)
    return answers


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
async def test_each_operation_answers_as_specified(method: str, path: str, serve: Any, operation: Any):
    async with serve(max_total_tokens=32, max_input_tokens=24, enable_prefill_logprobs=True) as (server, _):
        checks = [not_a_server_error, *AS_SPECIFIED]
        found = await drawn(server, operation(method, path, closed=True), GenerationMode.POSITIVE, checks)
    # Some are refused by what the specification does not say, such as an empty text; an error ends a stream.
    ends = Counter("error" if '{"error":' in answer.text else answer.status_code for answer in found)
    assert ends[200] >= (20 if method == "POST" else 1), ends


@pytest.mark.parametrize("path", POSTS)
async def test_what_the_specification_forbids_is_refused(path: str, serve: Any, operation: Any):
    async with serve(max_total_tokens=32, max_input_tokens=24) as (server, _):
        # axum refuses what it cannot read before TGI sees it: in plain text, and with 400 where it is no JSON.
        checks = [not_a_server_error, refused]
        found = await drawn(server, operation("POST", path), GenerationMode.NEGATIVE, checks)
    assert len(found) >= 50


#: Values that TGI refuses in its validation, and shapes that it cannot read.
WRONG: list[dict[str, Any]] = [
    {"temperature": 0}, {"temperature": -1.5}, {"top_p": 1.0}, {"top_p": 0}, {"top_k": 0}, {"top_k": -1},
    {"typical_p": 1.0}, {"repetition_penalty": 0}, {"frequency_penalty": 3}, {"max_new_tokens": 0},
    {"max_new_tokens": 5000}, {"stop": ["a"] * 5}, {"top_n_tokens": 6}, {"best_of": 3}, {"best_of": 2},
    {"truncate": 0}, {"grammar": {"type": "json", "value": {"type": "object"}}},
]  # fmt: skip
MISSHAPED: list[Any] = [
    {}, {"inputs": 7}, {"inputs": "a", "parameters": []}, {"inputs": "a", "parameters": {"seed": -1}},
    {"inputs": "a", "parameters": {"top_k": "5"}}, {"inputs": "a", "parameters": {"do_sample": 1}},
    {"inputs": "a", "parameters": {"top_k": 2**31}}, {"inputs": "a", "parameters": {"seed": 2**64}},
    {"inputs": "a", "parameters": {"grammar": {"type": "lark", "value": ""}}},
]  # fmt: skip


@pytest.fixture
def ask(operation: Callable[..., Any]):
    """``await ask(server, method, path, body)``: the answer, held against the specification."""

    async def made(server: Any, method: str, path: str, body: Any = None) -> Any:
        sent = {} if body is None else {"body": body, "media_type": "application/json"}
        case = operation(method, path).Case(**sent)
        return await asyncio.to_thread(case.call_and_validate, base_url=server.url, checks=AS_SPECIFIED, timeout=60)

    return made


@pytest.mark.parametrize("parameters", WRONG, ids=str)
async def test_wrong_values_are_refused_as_specified(parameters: Any, serve: Any, ask: Any):
    async with serve() as (server, _):
        body = {"inputs": "Once upon a time", "parameters": parameters}
        answer = await ask(server, "POST", "/generate", body)
        assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
        streamed = await ask(server, "POST", "/generate_stream", body)
        (event,) = _events(None, streamed)
        assert (streamed.status_code, event["error_type"]) == (200, "validation")


@pytest.mark.parametrize("body", MISSHAPED, ids=str)
async def test_misshaped_bodies_are_refused(body: Any, serve: Any):
    async with serve() as (server, _), httpx.AsyncClient(base_url=server.url) as client:
        for path in POSTS:
            assert (await client.post(path, json=body)).status_code == 422
        assert (await client.post("/generate", content=b"{")).status_code == 400
        assert (await client.get("/generate")).status_code == 405


async def test_too_many_at_once_and_an_unhealthy_server(serve: Any, ask: Any):
    async with serve(max_concurrent_requests=0) as (server, tgi):
        answer = await ask(server, "POST", "/generate", {"inputs": "a"})
        assert (answer.status_code, answer.json()["error_type"]) == (429, "overloaded")
        tgi.healthy = False
        answer = await ask(server, "GET", "/health")
        assert (answer.status_code, answer.json()["error_type"]) == (503, "healthcheck")


async def test_an_answer_that_is_not_as_specified_is_found(serve: Any, ask: Any):
    async with serve() as (server, tgi):
        for path in ("/generate", "/generate_stream"):
            honest = tgi.token
            tgi.token = lambda token, logprob: {"id": str(token), "text": "", "logprob": logprob, "special": False}
            with pytest.raises(FailureGroup, match="violates schema"):
                await ask(server, "POST", path, {"inputs": "a", "parameters": {"max_new_tokens": 2, "details": True}})
            tgi.token = honest


@pytest.fixture(scope="module")
def holding() -> Any:
    """The module ``holding.py``."""
    place = importlib.util.spec_from_file_location("anyengine_tgi_holding", Path(__file__).parent / "holding.py")
    assert place is not None
    assert place.loader is not None
    made = importlib.util.module_from_spec(place)
    place.loader.exec_module(made)
    return made


async def test_what_the_plugin_sends_is_as_specified_and_answered(
    serve: Any, ask: Any, specification: Any, holding: Any
):
    schema = {"components": specification["components"], "$ref": "#/components/schemas/GenerateRequest"}
    validator = jsonschema.Draft202012Validator(schema)
    async with serve(adapters=("adapter",)) as (server, _):
        for request in holding.requests():
            body = {"inputs": "text", "parameters": holding.parameters(request, vocabulary=100)}
            validator.validate(body)
            for path in ("/generate", "/generate_stream"):
                answer = await ask(server, "POST", path, body)
                assert answer.status_code == 200
                assert "error" not in answer.text
