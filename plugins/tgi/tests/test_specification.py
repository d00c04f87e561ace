"""The simulation answers each operation that the plugin uses as TGI's own specification says.

The specification is another project's file and stays outside of this repository: the test runs where it is present.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2 as httpx
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FILE = Path(__file__).parents[4] / "shared" / "contracts" / "tgi-openapi.json"


@pytest.fixture(scope="module")
def specification() -> dict[str, Any]:
    if not FILE.exists():
        pytest.skip("tgi-openapi.json is not beside this checkout")
    return json.loads(FILE.read_bytes())


@pytest.fixture(scope="module")
def validator(specification: dict[str, Any]):
    """Checks a value against a schema of the specification, by its name or its place."""

    def check(value: Any, schema: dict[str, Any]) -> None:
        whole = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "components": _modern(specification["components"]),
            "allOf": [_modern(schema)],
        }
        jsonschema.Draft202012Validator(whole).validate(value)

    return check


def _modern(schema: Any) -> Any:
    """OpenAPI 3.0's ``nullable`` and boolean ``exclusiveMinimum`` as JSON Schema has them."""
    if isinstance(schema, list):
        return [_modern(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: _modern(value) for name, value in schema.items()}
    if made.pop("nullable", False):
        if "type" in made:
            made["type"] = [made["type"], "null"]
        else:
            made = {"anyOf": [made, {"type": "null"}]}
    return made


def answer_schema(specification: dict[str, Any], path: str, method: str, status: int, kind: str) -> dict[str, Any]:
    return specification["paths"][path][method]["responses"][str(status)]["content"][kind]["schema"]


def events(text: str) -> list[Any]:
    return [json.loads(block.removeprefix("data:")) for block in text.split("\n\n") if block]


PARAMETERS = st.fixed_dictionaries(
    {"max_new_tokens": st.integers(1, 4)},
    optional={
        "details": st.booleans(),
        "do_sample": st.booleans(),
        "seed": st.integers(1, 2**64 - 1),
        "temperature": st.floats(0.1, 2, exclude_min=True),
        "top_k": st.integers(1, 50),
        "top_p": st.floats(0.1, 0.9),
        "repetition_penalty": st.floats(0.5, 2),
        "top_n_tokens": st.integers(1, 5),
        "stop": st.lists(st.sampled_from(["a", "the", "."]), max_size=4),
        "grammar": st.sampled_from([None, {"type": "regex", "value": "[a-z ]+"}]),
        "truncate": st.integers(1, 10),
        "return_full_text": st.none(),
        "watermark": st.just(False),  # noqa: FBT003 hypothesis's own signature
    },
)
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
    {"inputs": "a", "parameters": {"grammar": {"type": "lark", "value": ""}}},
]  # fmt: skip


async def test_each_operation_answers_as_specified(serve: Any, specification: Any, validator: Any):
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(st.lists(PARAMETERS, min_size=60, max_size=60))
    def drawn(found: list[dict[str, Any]]) -> None:
        samples[:] = found

    samples: list[dict[str, Any]] = []
    drawn()
    async with serve(enable_prefill_logprobs=True) as (server, _), httpx.AsyncClient(base_url=server.url) as client:
        info = await client.get("/info")
        validator(info.json(), answer_schema(specification, "/info", "get", 200, "application/json"))
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/metrics")).headers["content-type"].startswith("text/plain")
        for parameters in samples:
            body = {"inputs": "Once upon a time", "parameters": parameters}
            validator(body, specification["components"]["schemas"]["GenerateRequest"])
            answer = await client.post(
                "/generate", json=body | {"parameters": parameters | {"decoder_input_details": True}}
            )
            assert answer.status_code in (200, 424)
            validator(
                answer.json(), answer_schema(specification, "/generate", "post", answer.status_code, "application/json")
            )
            streamed = await client.post("/generate_stream", json=body)
            assert streamed.status_code == 200
            *rest, last = events(streamed.text)
            schema = answer_schema(specification, "/generate_stream", "post", 200, "text/event-stream")
            error = answer_schema(specification, "/generate_stream", "post", 424, "text/event-stream")
            for event in rest:
                validator(event, schema)
            validator(last, error if "error" in last else schema)
            tokens = await client.post("/tokenize", json=body)
            validator(tokens.json(), answer_schema(specification, "/tokenize", "post", 200, "application/json"))


@pytest.mark.parametrize("parameters", WRONG, ids=str)
async def test_wrong_values_are_refused_as_specified(parameters: Any, serve: Any, specification: Any, validator: Any):
    async with serve() as (server, _), httpx.AsyncClient(base_url=server.url) as client:
        body = {"inputs": "Once upon a time", "parameters": parameters}
        answer = await client.post("/generate", json=body)
        assert answer.status_code == 422
        validator(answer.json(), answer_schema(specification, "/generate", "post", 422, "application/json"))
        assert answer.json()["error_type"] == "validation"
        # Within a stream the same comes with status 200.
        streamed = await client.post("/generate_stream", json=body)
        assert streamed.status_code == 200
        validator(
            events(streamed.text)[0], answer_schema(specification, "/generate_stream", "post", 422, "text/event-stream")
        )


@pytest.mark.parametrize("body", MISSHAPED, ids=str)
async def test_misshaped_bodies_are_refused(body: Any, serve: Any):
    async with serve() as (server, _), httpx.AsyncClient(base_url=server.url) as client:
        for path in ("/generate", "/generate_stream", "/tokenize"):
            assert (await client.post(path, json=body)).status_code == 422
        assert (await client.post("/generate", content=b"{")).status_code == 400
        assert (await client.get("/generate")).status_code == 405


async def test_too_many_at_once_and_an_unhealthy_server(serve: Any, specification: Any, validator: Any):
    async with serve(max_concurrent_requests=0) as (server, tgi), httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.post("/generate", json={"inputs": "a"})
        assert answer.status_code == 429
        validator(answer.json(), answer_schema(specification, "/generate", "post", 429, "application/json"))
        tgi.healthy = False
        answer = await client.get("/health")
        assert answer.status_code == 503
        validator(answer.json(), answer_schema(specification, "/health", "get", 503, "application/json"))


async def test_what_the_plugin_sends_is_as_specified(specification: Any, validator: Any):
    import importlib.util

    place = importlib.util.spec_from_file_location("anyengine_tgi_holding", Path(__file__).parent / "holding.py")
    assert place is not None
    assert place.loader is not None
    holding = importlib.util.module_from_spec(place)
    place.loader.exec_module(holding)
    for request in holding.requests():
        body = {"inputs": "text", "parameters": holding.parameters(request)}
        validator(body, specification["components"]["schemas"]["GenerateRequest"])
