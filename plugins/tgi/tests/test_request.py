"""What is sent for a request, and what is refused before anything is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from anyengine.backend import TokenRequest
from anyengine.config import EngineConfig
from anyengine.errors import (
    EngineDied,
    EngineStartupError,
    Failure,
    InvalidConfig,
    InvalidRequest,
    OutOfMemory,
    Overloaded,
    UnsupportedParameter,
)
from anyengine.hub import ModelFiles
from anyengine.request import SamplingParams, Structured
from anyengine_server import Answer
from anyengine_tgi.arguments import launcher_arguments
from anyengine_tgi.errors import tgi_error
from anyengine_tgi.launcher import flags
from anyengine_tgi.precision import rounded
from anyengine_tgi.request import check, grammar, parameters
from anyengine_tgi.startup import _startup_error


def request(**changes: Any) -> TokenRequest:
    return TokenRequest(
        **{"id": "1", "prompt_token_ids": [1], "sampling": SamplingParams(), "max_tokens": 5, **changes}
    )


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        ({}, {"do_sample": True}),
        ({"sampling": SamplingParams(temperature=0)}, {"do_sample": False}),
        # Greedy is greedy: what would make TGI sample is left out.
        ({"sampling": SamplingParams(temperature=0, top_k=5, top_p=0.5, seed=3)}, {"do_sample": False}),
        ({"sampling": SamplingParams(temperature=1.0, top_p=1.0, top_k=0)}, {"do_sample": True}),
        (
            {"sampling": SamplingParams(temperature=0.5, top_p=0.9, top_k=4, seed=7, repetition_penalty=1.2)},
            {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 7, "repetition_penalty": 1.2},
        ),
        # TGI's specification has no seed 0; no other seed becomes this one.
        ({"sampling": SamplingParams(seed=0)}, {"do_sample": True, "seed": 2**63}),
        # As many as there are, and more, is all.
        ({"sampling": SamplingParams(top_k=99)}, {"do_sample": True, "top_k": 99}),
        ({"sampling": SamplingParams(top_k=100)}, {"do_sample": True}),
        ({"sampling": SamplingParams(top_k=2**31)}, {"do_sample": True}),
        ({"logprobs": 0}, {"do_sample": True}),
        ({"logprobs": 5}, {"do_sample": True, "top_n_tokens": 5}),
        ({"lora": "a"}, {"do_sample": True, "adapter_id": "a"}),
        # Watched for here: TGI never hears of them.
        ({"stop_token_ids": frozenset({3})}, {"do_sample": True}),
    ],
)
def test_neutral_values_are_left_out(changes: dict[str, Any], due: dict[str, Any]):
    assert parameters(request(**changes), vocabulary=100) == {"max_new_tokens": 5, "details": True} | due


def test_a_choice_is_an_expression_of_its_literals():
    value = grammar(Structured(choice=["a.b", "(c)", "x|y", "d e\nf", "é"]))["value"]
    for text in ("a.b", "(c)", "x|y", "d e\nf", "é"):
        assert re.fullmatch(value, text)
    assert not re.fullmatch(value, "aXb")


@pytest.mark.parametrize(
    ("changes", "kind", "field"),
    [
        ({"sampling": SamplingParams(temperature=0.0005)}, UnsupportedParameter, "sampling.temperature"),
        ({"sampling": SamplingParams(temperature=1.003)}, UnsupportedParameter, "sampling.temperature"),
        ({"sampling": SamplingParams(top_p=0.999)}, UnsupportedParameter, "sampling.top_p"),
        ({"sampling": SamplingParams(repetition_penalty=0.999)}, UnsupportedParameter, "sampling.repetition_penalty"),
        ({"prompt_token_ids": [1] * 101}, InvalidRequest, "prompt"),
        ({"structured": Structured(regex="(a")}, InvalidRequest, "structured.regex"),
        ({"structured": Structured(regex="(?=a)a")}, InvalidRequest, "structured.regex"),
        ({"structured": Structured(regex=r"(?<!a)b")}, InvalidRequest, "structured.regex"),
        ({"structured": Structured(regex=r"(a)\1")}, InvalidRequest, "structured.regex"),
        ({"structured": Structured(regex=r"\bword\b")}, InvalidRequest, "structured.regex"),
        *(
            ({"structured": Structured(regex=pattern)}, UnsupportedParameter, "structured.regex")
            for pattern in (
                "^a",
                "a$",
                "a++",
                "(?>a)",
                "(?#c)a",
                "(?x: a)",
                "(?m:a)",
                "(?a:a)",
                "[]a]",
                "[^]a]",
                "a{",
                "a{}",
                r"\u0041",
                r"[\u0041]",
                r"\N{DIGIT ONE}",
                r"\0",
                r"\é",
            )
        ),
    ],
)
def test_what_tgi_would_alter_or_misread_is_refused(changes: dict[str, Any], kind: type[Exception], field: str):
    with pytest.raises(kind, match=rf"^{re.escape(field)}: ") as caught:
        check(request(**changes), max_input_tokens=100, dtype=None)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("value", "bfloat16", "float16"),
    [
        (1.0, 1.0, 1.0),
        (1.003, 1.0, 1.0029296875),
        (1.00390625, 1.0, 1.00390625),  # half way, to the even one
        (1.005, 1.0078125, 1.0048828125),
        (0.999, 1.0, 0.9990234375),
        (0.99, 0.98828125, 0.990234375),
        (0.7, 0.69921875, 0.7001953125),
    ],
)
def test_numbers_are_those_of_16_bits(value: float, bfloat16: float, float16: float):
    assert (rounded(value, "bfloat16"), rounded(value, "float16")) == (bfloat16, float16)


def test_a_number_that_is_there_in_float16_passes_where_that_is_known():
    near = SamplingParams(temperature=1.003, top_p=0.999, repetition_penalty=1.003)
    check(request(sampling=near), max_input_tokens=100, dtype="float16")
    with pytest.raises(UnsupportedParameter, match="1 in float16"):
        check(request(sampling=SamplingParams(top_p=0.9999)), max_input_tokens=100, dtype="float16")
    check(
        request(sampling=SamplingParams(temperature=1e5, repetition_penalty=1e5)), max_input_tokens=100, dtype="float16"
    )


@pytest.mark.parametrize("pattern", [r"[0-9]{3}", r"a\\1", r"[\b(?=]+", r"\(\?=", r"(?:a|b)+", r"\d\w\s", "é.*",
    "(?P<n>a)b*?", "(?i)a", "(?s-i:a)", "(?-s:.)", r"a{2}b{3,}c{,4}d{5,6}?", r"[^\d_-]", "[$^({]",
    r"\{\}\x41\101\-\_\/", "]}", "(a|)|()", "a\nb", r"[\1\b]",
])  # fmt: skip
def test_ordinary_expressions_pass(pattern: str):
    check(request(structured=Structured(regex=pattern)), max_input_tokens=100, dtype=None)


@pytest.mark.parametrize(
    ("status", "body", "kind", "facts"),
    [
        (
            422,
            {"error": "`temperature` is wrong", "error_type": "validation"},
            InvalidRequest,
            {"field": "sampling.temperature"},
        ),
        (422, {"error": "tool", "error_type": "tool_error"}, InvalidRequest, {"field": None}),
        (424, {"error": "it failed", "error_type": "generation"}, Failure, {}),
        (424, {"error": "CUDA out of memory. Tried", "error_type": "generation"}, OutOfMemory, {}),
        (429, {"error": "overloaded", "error_type": "overloaded"}, Overloaded, {"retry_after": 7.0}),
        (500, {"error": "incomplete", "error_type": "incomplete_generation"}, Failure, {}),
        (503, {"error": "unhealthy", "error_type": "healthcheck"}, EngineDied, {}),
        (500, {"error": "what", "error_type": "something new"}, Failure, {}),
    ],
)
def test_errors_are_mapped_by_type_whatever_the_status(
    status: int, body: dict[str, str], kind: type, facts: dict[str, Any]
):
    for at in (status, 200):  # outside of a stream, and within
        error = tgi_error(
            Answer(at, {"retry-after": "7"} if status == 429 else {}, json.dumps(body).encode(), "POST /x")
        )
        assert type(error) is kind, at
        assert body["error"] in str(error)
        assert {name: getattr(error, name) for name in facts} == facts


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", OutOfMemory),
        ('Error: Backend(Warmup(Generation("Not enough memory to handle 4096 prefill tokens.")))', OutOfMemory),
        ("Error: Backend(NotEnoughMemory(8192))", OutOfMemory),
        (
            'Error: ArgumentValidation("`max_batch_prefill_tokens` must be <= `max_batch_total_tokens`. Given: 9, 8")',
            OutOfMemory,
        ),
        ('Error: ArgumentValidation("`validation_workers` must be > 0")', EngineStartupError),
    ],
)
def test_a_launcher_that_ended_for_want_of_memory_is_told_so(line: str, kind: type):
    assert type(_startup_error(EngineDied("it ended", log_tail=("INFO begins", line, "Shutting down shards")))) is kind


def files(folder: Path, **changes: Any) -> ModelFiles:
    made: dict[str, Any] = {
        "name": "m",
        "path": folder,
        "tokenizer_path": folder,
        "config": {"dtype": "bfloat16", "model_type": "llama"},
        "eos_token_ids": frozenset({0}),
    }
    return ModelFiles(**made | changes)


ALWAYS = {
    "dtype": "bfloat16",
    "max_concurrent_requests": 1024,
    "max_top_n_tokens": 5,
    "num_shard": 1,
    "payload_limit": 2**28,
    "sharded": False,
    "trust_remote_code": False,
    "usage_stats": "off",
}


@pytest.mark.parametrize(
    ("config", "due", "variables"),
    [
        ({}, {}, {}),
        ({"dtype": "float16"}, {"dtype": "float16"}, {}),
        ({"quantization": "eetq"}, {"quantize": "eetq", "dtype": None}, {}),
        ({"quantization": "fp8"}, {"quantize": "fp8", "dtype": None}, {}),
        ({"max_model_len": 256}, {"max_total_tokens": 256, "max_input_tokens": 255}, {}),
        (
            {"max_model_len": 256, "native": {"enable_prefill_logprobs": True}},
            {"max_total_tokens": 257, "max_input_tokens": 256, "enable_prefill_logprobs": True},
            {},
        ),
        ({"parallel": {"tensor": 4}}, {"num_shard": 4, "sharded": True}, {}),
        ({"kv_cache": {"gpu_memory_fraction": 0.5}}, {"cuda_memory_fraction": 0.5}, {}),
        ({"kv_cache": {"dtype": "fp8_e5m2"}}, {"kv_cache_dtype": "fp8_e5m2"}, {}),
        ({"kv_cache": {"prefix_caching": False}}, {}, {"PREFIX_CACHING": "0"}),
        ({"kv_cache": {"prefix_caching": True}}, {}, {"PREFIX_CACHING": "true"}),
        ({"scheduling": {"chunked_prefill": False}}, {}, {"PREFILL_CHUNKING": "0"}),
        ({"scheduling": {"max_num_batched_tokens": 512}}, {"max_batch_prefill_tokens": 512}, {}),
        ({"scheduling": {"chunked_prefill": True}}, {}, {"PREFILL_CHUNKING": "1"}),
        # At once: as many as the longest prompt has.
        (
            {"scheduling": {"chunked_prefill": False}, "max_model_len": 9000},
            {"max_total_tokens": 9000, "max_input_tokens": 8999, "max_batch_prefill_tokens": 8999},
            {"PREFILL_CHUNKING": "0"},
        ),
        (
            {"speculative": {"method": "ngram", "num_speculative_tokens": 3}, "max_model_len": 9000},
            {"speculate": 3, "max_total_tokens": 9000, "max_input_tokens": 8999, "max_batch_prefill_tokens": 8999},
            {},
        ),
        ({"max_model_len": 9000}, {"max_total_tokens": 9000, "max_input_tokens": 8999}, {}),
        ({"scheduling": {"max_num_seqs": 2000}}, {"max_concurrent_requests": 4000}, {}),
        ({"execution": "eager"}, {"cuda_graphs": (0,)}, {}),
        ({"execution": "graph"}, {"cuda_graphs": (1, 2, 4, 8, 16, 32)}, {}),
        ({"speculative": {"method": "ngram", "num_speculative_tokens": 3}}, {"speculate": 3}, {}),
        ({"trust_remote_code": True}, {"trust_remote_code": True}, {}),
        ({"native": {"waiting_served_ratio": 1}}, {"waiting_served_ratio": 1}, {}),
        ({"native": {"payload_limit": 5}}, {"payload_limit": 5}, {}),
        # It works in a folder of its own.
        ({"native": {"tokenizer_config_path": "a"}}, {"tokenizer_config_path": str(Path("a").absolute())}, {}),
    ],
)  # fmt: skip
def test_each_field_becomes_an_argument_or_a_variable(config, due, variables, tmp_path: Path):
    found = launcher_arguments(EngineConfig(**config), files(tmp_path), {"HOSTNAME": "container", "PORT": "80"})
    expected = {
        name: value for name, value in ({"model_id": str(tmp_path)} | ALWAYS | due).items() if value is not None
    }
    assert found.values == expected
    assert found.environment == variables


def test_arguments_are_written_as_the_launcher_reads_them(simulated_tgi: Any, tmp_path: Path, monkeypatch: Any):
    monkeypatch.delenv("HOSTNAME", raising=False)
    config = EngineConfig(
        execution="graph", parallel={"tensor": 2}, native={"json_output": True, "cors_allow_origin": ["a", "b"]}
    )
    written = flags(launcher_arguments(config, files(tmp_path), {}).values)
    assert written[:4] == ["--cors-allow-origin", "a", "--cors-allow-origin", "b"]
    assert written[written.index("--cuda-graphs") + 1] == "1,2,4,8,16,32"
    assert written[written.index("--sharded") + 1] == "true"
    assert "--json-output" in written
    read = simulated_tgi.launcher_parser().parse_args(written)
    assert (read.num_shard, read.dtype, read.model_id, read.json_output) == (2, "bfloat16", str(tmp_path), True)


def test_a_variable_beside_an_argument_that_is_written_changes_nothing(tmp_path: Path):
    config = EngineConfig(trust_remote_code=True, execution="graph", native={"enable_prefill_logprobs": True})
    surroundings = {"TRUST_REMOTE_CODE": "true", "CUDA_GRAPHS": "1", "ENABLE_PREFILL_LOGPROBS": "0", "DTYPE": "float16"}
    assert launcher_arguments(config, files(tmp_path), surroundings).values["trust_remote_code"] is True


@pytest.mark.parametrize(
    ("config", "changes", "surroundings", "kind", "field"),
    [
        ({"quantization": "awq", "dtype": "float16"}, {}, {}, InvalidConfig, "dtype"),
        ({}, {"config": {"dtype": "float32"}}, {}, UnsupportedParameter, "dtype"),
        (
            {"dtype": "float16"},
            {"config": {"quantization_config": {"quant_method": "awq"}}}, {}, UnsupportedParameter, "dtype",
        ),
        ({}, {"config": {"model_type": "llama", "medusa_num_heads": 3}}, {}, UnsupportedParameter, "model"),
        ({}, {"config": {"model_type": "mlp_speculator"}}, {}, UnsupportedParameter, "model"),
        # What has no code of TGI's own runs by way of transformers.
        ({"quantization": "fp8"}, {"config": {"model_type": "qwen3"}}, {}, UnsupportedParameter, "quantization"),
        (
            {"kv_cache": {"dtype": "fp8_e5m2"}},
            {"config": {"model_type": "qwen3"}}, {}, UnsupportedParameter, "kv_cache.dtype",
        ),
        # What runs padded keeps no prefixes, drafts nothing, and captures nothing.
        *(
            (wanted, {"config": {"model_type": "opt"}}, {}, UnsupportedParameter, field)
            for wanted, field in (
                ({"speculative": {"method": "ngram"}}, "speculative"),
                ({"kv_cache": {"prefix_caching": True}}, "kv_cache.prefix_caching"),
                ({"execution": "graph"}, "execution"),
            )
        ),
        (
            {"scheduling": {"chunked_prefill": True}},
            {"config": {"model_type": "qwen3"}}, {}, UnsupportedParameter, "scheduling.chunked_prefill",
        ),
        (
            {"scheduling": {"chunked_prefill": True}, "speculative": {"method": "ngram", "num_speculative_tokens": 3}},
            {}, {}, UnsupportedParameter, "scheduling.chunked_prefill",
        ),
        (
            {"scheduling": {"chunked_prefill": False, "max_num_batched_tokens": 100}, "max_model_len": 256},
            {}, {}, InvalidConfig, "scheduling.max_num_batched_tokens",
        ),
        ({}, {"config": {}}, {}, UnsupportedParameter, "dtype"),
        ({}, {"tokenizer_path": Path("/elsewhere")}, {}, UnsupportedParameter, "tokenizer"),
        ({"kv_cache": {"dtype": "int4"}}, {}, {}, UnsupportedParameter, "kv_cache.dtype"),
        ({"native": {"max_batch_total_tokens": 4096}}, {}, {}, InvalidConfig, "native.max_batch_total_tokens"),
        ({"speculative": {"method": "ngram", "ngram_max": 9}}, {}, {}, UnsupportedParameter, "speculative.ngram_max"),
        ({"execution": "graph", "quantization": "exl2"}, {}, {}, UnsupportedParameter, "execution"),
        ({"native": {"max_total_tokens": 5}}, {}, {}, InvalidConfig, "native.max_total_tokens"),
        ({"native": {"port": 5}}, {}, {}, InvalidConfig, "native.port"),
        ({"native": {"no_such": 5}}, {}, {}, InvalidConfig, "native.no_such"),
        ({"native": {"payload_limit": "5"}}, {}, {}, InvalidConfig, "native.payload_limit"),
        ({"native": {"payload_limit": True}}, {}, {}, InvalidConfig, "native.payload_limit"),
        ({"native": {"json_output": 1}}, {}, {}, InvalidConfig, "native.json_output"),
        ({}, {}, {"QUANTIZE": "awq"}, InvalidConfig, "quantization"),
        ({}, {}, {"MAX_BATCH_SIZE": "4"}, InvalidConfig, "scheduling.max_num_seqs"),
        ({}, {}, {"PREFIX_CACHING": "0"}, InvalidConfig, "kv_cache.prefix_caching"),
        # A flag that is off is not written, so that its variable counts.
        ({}, {}, {"TRUST_REMOTE_CODE": "true"}, InvalidConfig, "trust_remote_code"),
        ({"native": {"json_output": False}}, {}, {"JSON_OUTPUT": "true"}, InvalidConfig, "native.json_output"),
        ({}, {}, {"DISABLE_GRAMMAR_SUPPORT": "true"}, InvalidConfig, "native.disable_grammar_support"),
        ({}, {}, {"ENABLE_PREFILL_LOGPROBS": "1"}, InvalidConfig, "native.enable_prefill_logprobs"),
        ({}, {}, {"NGROK": "true"}, InvalidConfig, "native.ngrok"),
        # The shards see it where the launcher was told to capture none.
        ({"execution": "eager"}, {}, {"CUDA_GRAPHS": "1,2"}, InvalidConfig, "execution"),
    ],
)  # fmt: skip
def test_what_cannot_be_or_would_be_decided_elsewhere_is_refused(
    config, changes, surroundings, kind, field, tmp_path: Path
):
    with pytest.raises(kind, match=rf"^{re.escape(field)}: ") as caught:
        launcher_arguments(EngineConfig(**config), files(tmp_path, **changes), surroundings)
    assert caught.value.field == field
