"""Bad input: a typed error that names the field, at once, and the engine goes on. Unsupported input likewise."""

import itertools
import json
import math
import types
from array import array
from typing import get_type_hints

import pydantic
import pytest
from anyengine import (
    AnyEngineError,
    EngineConfig,
    GenerateRequest,
    InvalidConfig,
    InvalidRequest,
    ModelNotFound,
    SamplingParams,
    Structured,
    UnknownEngine,
    UnsupportedCapability,
    UnsupportedParameter,
)
from anyengine.capabilities import Capabilities, Conflict
from anyengine.config import KVCacheConfig, LoRAConfig, ParallelConfig, SchedulingConfig, SpeculativeConfig
from anyengine.request import RequestOptions
from anyengine.runtime.checks import ENGINE_REQUEST, SDK_CONFIG, check_config
from anyengine.testing import ScriptedPlugin, all_capabilities, make_model_folder
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace


def nested(depth, make=lambda inner: {"items": inner}):
    value = {}
    for _ in range(depth):
        value = make(value)
    return value


def sampling(**fields):
    return {"sampling": fields}


BAD = {
    "no prompt": ({"prompt": None}, "prompt"),
    "an empty prompt": ({"prompt": ""}, "prompt"),
    "both prompt and messages": ({"messages": [{"role": "user", "content": "x"}]}, "prompt"),
    "a prompt beyond the context": ({"prompt": [1] * 5000}, "prompt"),
    "a prompt that fills the context": ({"prompt": [1] * 4096}, "prompt"),
    "negative ids": ({"prompt": [1, -1]}, "prompt.1"),
    "ids beyond the vocabulary": ({"prompt": [1, 259]}, "prompt"),
    "ids beyond all bounds": ({"prompt": [10**5000]}, "prompt.0"),
    "ids and text mixed": ({"prompt": [1, "a"]}, "prompt.1"),
    "ids and messages mixed": ({"prompt": [1, {"role": "user"}]}, "prompt.1"),
    "a list in a list": ({"prompt": ([1, [2]])}, "prompt.1"),
    "bool for ids": ({"prompt": [1, True]}, "prompt.1"),
    "float for ids": ({"prompt": [1.0]}, "prompt.0"),
    "bytes": ({"prompt": b"hi"}, "prompt"),
    "a bytearray": ({"prompt": bytearray(b"hi")}, "prompt"),
    "a number": ({"prompt": 5}, "prompt"),
    "a lone surrogate": ({"prompt": "a\ud800"}, "prompt"),
    "a lone surrogate in a stop string": ({"stop": ["\udc00"]}, "stop.0"),
    "a lone surrogate in a salt": ({"cache_salt": "\udc00"}, "cache_salt"),
    "no messages": ({"prompt": None, "messages": []}, "messages"),
    "messages that are none": ({"prompt": None, "messages": 5}, "messages"),
    "a message that is text": ({"prompt": None, "messages": ["hi"]}, "messages.0"),
    "a message without a role": ({"prompt": None, "messages": [{"content": "x"}]}, "messages[0].role"),
    "a message without content": ({"prompt": None, "messages": [{"role": "user"}]}, "messages[0].content"),
    "a deep message": ({"prompt": None, "messages": [{"role": "user", "content": "x", "y": nested(10_000)}]}, None),
    "variables without a template": ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
    "a reserved variable": (
        {"prompt": None, "messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"messages": []}},
        "chat_template_kwargs.messages",
    ),
    "negative temperature": (sampling(temperature=-0.1), "sampling.temperature"),
    "nan": (sampling(temperature=math.nan), "sampling.temperature"),
    "inf": (sampling(temperature=math.inf), "sampling.temperature"),
    "bool for float": (sampling(temperature=True), "sampling.temperature"),
    "str for float": (sampling(temperature="1"), "sampling.temperature"),
    "top_k -1": (sampling(top_k=-1), "sampling.top_k"),
    "bool for int": (sampling(top_k=True), "sampling.top_k"),
    "float for int": (sampling(top_k=1.0), "sampling.top_k"),
    "top_p 0": (sampling(top_p=0.0), "sampling.top_p"),
    "top_p above 1": (sampling(top_p=1.01), "sampling.top_p"),
    "min_p above 1": (sampling(min_p=1.01), "sampling.min_p"),
    "repetition_penalty 0": (sampling(repetition_penalty=0), "sampling.repetition_penalty"),
    "presence_penalty 3": (sampling(presence_penalty=3), "sampling.presence_penalty"),
    "frequency_penalty -3": (sampling(frequency_penalty=-3), "sampling.frequency_penalty"),
    "negative seed": (sampling(seed=-1), "sampling.seed"),
    "huge seed": (sampling(seed=2**63), "sampling.seed"),
    "bias of a token that does not exist": (sampling(logit_bias={259: 1.0}), "sampling.logit_bias"),
    "bias of a negative token": (sampling(logit_bias={-1: 1.0}), "sampling.logit_bias.-1"),
    "infinite bias": (sampling(logit_bias={1: -math.inf}), "sampling.logit_bias.1"),
    "nothing allowed": (sampling(allowed_token_ids=[]), "sampling.allowed_token_ids"),
    "allowed tokens that do not exist": (sampling(allowed_token_ids=[1000]), "sampling.allowed_token_ids"),
    "an empty bad word": (sampling(bad_words=["a", ""]), "sampling.bad_words.1"),
    "an unknown sampling field": (sampling(top_q=1), "sampling.top_q"),
    "sampling that is none": ({"sampling": 5}, "sampling"),
    "an unknown field": ({"max_new_tokens": 5}, "max_new_tokens"),
    "an unknown field with spaces": ({"max tokens": 5}, "max tokens"),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens"),
    "max_tokens beyond the context": ({"max_tokens": 4095}, "max_tokens"),
    "max_tokens beyond all bounds": ({"max_tokens": 10**5000}, "max_tokens"),
    "str for int": ({"max_tokens": "5"}, "max_tokens"),
    "min_tokens above max_tokens": ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
    "min_tokens beyond the context": ({"min_tokens": 5000}, "min_tokens"),
    "negative min_tokens": ({"min_tokens": -1}, "min_tokens"),
    "n 0": ({"n": 0}, "n"),
    "n too large": ({"n": 1025}, "n"),
    "an empty stop string": ({"stop": ["a", ""]}, "stop.1"),
    "a stop string that is none": ({"stop": 5}, "stop"),
    "too many stop strings": ({"stop": ["a"] * 65}, "stop"),
    "a stop string too long": ({"stop": "a" * 4097}, "stop"),
    "stop tokens that do not exist": ({"stop_token_ids": [259]}, "stop_token_ids"),
    "negative logprobs": ({"logprobs": -1}, "logprobs"),
    "bool for logprobs": ({"logprobs": True}, "logprobs"),
    "a priority beyond 64 bits": ({"priority": 2**64}, "priority"),
    "timeout 0": ({"timeout": 0}, "timeout"),
    "a negative timeout": ({"timeout": -1.0}, "timeout"),
    "an endless timeout": ({"timeout": math.inf}, "timeout"),
    "an adapter that is not loaded": ({"lora": "none"}, "lora"),
    "no constraint": ({"structured": {}}, "structured"),
    "two constraints": ({"structured": {"regex": "a", "choice": ["b"]}}, "structured"),
    "a deep schema": ({"structured": {"json_schema": nested(10_000)}}, "structured.json_schema"),
    "a deep schema of lists": (
        {"structured": {"json_schema": {"a": nested(10_000, lambda inner: [inner])}}},
        "structured.json_schema",
    ),
    "a deep schema of tuples": (
        {"structured": {"json_schema": {"a": nested(10_000, lambda inner: (inner,))}}},
        "structured.json_schema",
    ),
    "a deep schema as text": (
        {"structured": {"json_schema": '{"a":' * 10_000 + "1" + "}" * 10_000}},
        "structured.json_schema",
    ),
    "a huge schema": ({"structured": {"json_schema": {"enum": ["x" * 300_000]}}}, "structured.json_schema"),
    "a wide schema": ({"structured": {"json_schema": {"enum": [1] * 100_000}}}, "structured.json_schema"),
    "a schema that explodes": (
        {"structured": {"json_schema": nested(60, lambda inner: {"a": inner, "b": inner})}},
        "structured.json_schema",
    ),
    "a huge schema as text": ({"structured": {"json_schema": '"' + "x" * 300_000 + '"'}}, "structured.json_schema"),
    "a schema that is no JSON": ({"structured": {"json_schema": "{"}}, "structured.json_schema"),
    "a schema that is no data": ({"structured": {"json_schema": {"a": object()}}}, "structured.json_schema"),
    "a schema with nan": ({"structured": {"json_schema": {"a": math.nan}}}, "structured.json_schema"),
    "a schema with numbers as keys": ({"structured": {"json_schema": {1: 2}}}, "structured.json_schema"),
    "a schema that is a list": ({"structured": {"json_schema": [1]}}, "structured.json_schema"),
    "an empty regex": ({"structured": {"regex": ""}}, "structured.regex"),
    "a huge grammar": ({"structured": {"grammar": "x" * 300_000}}, "structured.grammar"),
    "no choice": ({"structured": {"choice": []}}, "structured.choice"),
    "an empty choice": ({"structured": {"choice": ["a", ""]}}, "structured.choice.1"),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_input_is_named_and_the_engine_goes_on(scripted, load, case):
    fields, field = BAD[case]
    capabilities = replace(all_capabilities(), request=all_capabilities().request | {"lora"})
    async with load(scripted(capabilities=capabilities)) as (engine, backend):
        for call in (engine.generate, entered(engine)):
            with pytest.raises(InvalidRequest) as caught:
                await call(**{"prompt": "hi", **fields})
            assert field is None or caught.value.field == field
            assert len(caught.value.message) < 700
            assert backend.requests == []
        assert (await engine.generate("hi", max_tokens=1)).token_ids == [71]


@pytest.mark.parametrize(
    ("config", "own", "advice"),
    [
        ({}, 4096, "shorten it"),
        ({"max_model_len": 8}, 4096, "shorten it, or load with a larger max_model_len (the model has 4096)"),
        ({"max_model_len": 8}, None, "shorten it, or load with a larger max_model_len"),
        ({"max_model_len": 8}, 8, "shorten it"),
        (
            {"max_model_len": 8, "kv_cache": {"capacity_tokens": 8}},
            4096,
            "shorten it, or load with a larger max_model_len and kv_cache.capacity_tokens (the model has 4096)",
        ),
        (
            {"max_model_len": 8, "kv_cache": {"capacity_tokens": 800}},
            4096,
            "shorten it, or load with a larger max_model_len (the model has 4096)",
        ),
    ],
)
async def test_a_prompt_beyond_the_context_is_told_what_to_do(tmp_path, load, config, own, advice):
    folder = make_model_folder(tmp_path / "model")
    file = folder / "config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | ({} if own is None else {"max_position_embeddings": own}))
    )
    every = all_capabilities()
    capabilities = replace(every, config=every.config | {"kv_cache.capacity_tokens"})
    async with load(ScriptedPlugin(None, str(folder), capabilities=capabilities), **config) as (engine, _):
        context = engine.info.max_model_len
        for call, needs in (
            (engine.generate, f"the context holds {context}, and one must be left for the answer"),
            (engine.score, f"scoring needs 2 to {context}"),
        ):
            with pytest.raises(InvalidRequest) as caught:
                await call([1] * 5000)
            assert caught.value.message == f"prompt: has 5000 tokens; {needs}; {advice}"


def entered(engine):
    async def enter(prompt, **options):
        async with engine.stream(prompt, **options):
            pass

    return enter


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: SamplingParams(temprature=0),
            "unknown field 'temprature'; did you mean 'temperature'? The fields of SamplingParams are temperature, ",
        ),
        (
            lambda: EngineConfig(max_model_length=64),
            "unknown field 'max_model_length'; did you mean 'max_model_len'? The fields of EngineConfig are model, ",
        ),
        (
            lambda: EngineConfig(kv_cache={"capacity_token": 64}),
            "unknown field 'kv_cache.capacity_token'; did you mean 'kv_cache.capacity_tokens'? The fields of ",
        ),
        (
            lambda: EngineConfig(nonsense=1),
            "unknown field 'nonsense'; the fields of EngineConfig are model, ",
        ),
    ],
)
def test_a_misspelt_field_is_told_which_was_meant_and_which_there_are(make, message):
    with pytest.raises((InvalidRequest, InvalidConfig)) as caught:
        make()
    assert caught.value.message[: len(message)] == message


@pytest.mark.parametrize(
    ("make", "meant"),
    [
        (
            lambda: GenerateRequest(prompt="hi", temperature=0),
            "'sampling.temperature' (in Python sampling=SamplingParams(temperature=…))? The fields of GenerateRequest ",
        ),
        (
            lambda: GenerateRequest(prompt="hi", json_schma={}),
            "'structured.json_schema' (in Python structured=Structured(json_schema=…))? The fields of GenerateRequest ",
        ),
        (
            lambda: GenerateRequest(prompt="hi", sampling={"max_tokens": 1}),
            "'max_tokens' (in Python max_tokens=…)? The fields of SamplingParams ",
        ),
        (
            lambda: EngineConfig(capacity_tokens=64),
            "'kv_cache.capacity_tokens' (in Python kv_cache=KVCacheConfig(capacity_tokens=…))? The fields of ",
        ),
        (
            lambda: EngineConfig(num_speculative_tokens=2),
            "'speculative.num_speculative_tokens' (in Python speculative=SpeculativeConfig(num_speculative_tokens=…))",
        ),
    ],
)
def test_a_field_in_the_wrong_place_is_told_its_place_and_how_it_is_written(make, meant):
    with pytest.raises((InvalidRequest, InvalidConfig)) as caught:
        make()
    assert caught.value.message.partition("did you mean ")[2][: len(meant)] == meant


def test_numbers_of_numpy_are_no_numbers_here():
    import numpy as np

    for bad in (np.array([1, 2]), [np.int64(1)], (np.int32(1),)):
        with pytest.raises(InvalidRequest) as caught:
            GenerateRequest(prompt=bad)
        assert caught.value.field.startswith("prompt")
    assert GenerateRequest(prompt=np.array([1, 2]).tolist()).prompt == (1, 2)


@pytest.mark.parametrize(
    "prompt", [[1, 2], (1, 2), range(1, 3), array("i", [1, 2])], ids=["list", "tuple", "range", "array"]
)
def test_any_sequence_of_ints_is_token_ids(prompt):
    assert GenerateRequest(prompt=prompt).prompt == (1, 2)


async def test_no_tokens_are_no_prompt_and_no_prompts_are_no_completions(scripted, load):
    with pytest.raises(InvalidRequest, match="is empty"):
        GenerateRequest(prompt=[])
    async with load(scripted()) as (engine, _):
        assert await engine.generate([]) == []
        with pytest.raises(InvalidRequest):
            await engine.generate([[]])


def test_any_mapping_is_a_message():
    message = types.MappingProxyType({"role": "user", "content": "x"})
    assert GenerateRequest(messages=[message]).messages == ({"role": "user", "content": "x"},)


def test_a_message_of_pydantic_or_a_nested_model_is_the_same_as_the_model():
    assert GenerateRequest(prompt="x", sampling={"top_k": 3}).sampling == SamplingParams(top_k=3)
    with pytest.raises(InvalidRequest) as caught:
        GenerateRequest.model_validate({"prompt": "x", "sampling": {"top_k": -1}})
    assert caught.value.field == "sampling.top_k"


def test_a_model_of_ones_own_kind_is_the_model():
    class Mine(SamplingParams):
        """The same under another name."""

    plain, warm = (GenerateRequest(prompt="a", sampling=mine) for mine in (Mine(), Mine(temperature=0.5)))
    assert (list(plain.changed()), plain.to_dict()) == (["prompt"], {"prompt": "a"})
    assert list(warm.changed()) == ["prompt", "sampling.temperature"]
    assert warm.to_dict() == {"prompt": "a", "sampling": {"temperature": 0.5}}


def test_models_are_frozen_and_keep_copies():
    schema, stop, bias = {"type": "object", "properties": {}}, ["a"], {1: 1.0}
    request = GenerateRequest(
        prompt="x", stop=stop, structured=Structured(json_schema=schema), sampling=SamplingParams(logit_bias=bias)
    )
    schema["properties"]["x"], bias[2] = {}, 2.0
    stop.append("b")
    assert request.structured.json_schema == {"type": "object", "properties": {}}
    assert (request.stop, request.sampling.logit_bias) == (("a",), {1: 1.0})
    for model, field in (
        (request, "n"),
        (request.sampling, "top_k"),
        (request.structured, "regex"),
        (EngineConfig(), "model"),
    ):
        with pytest.raises(pydantic.ValidationError):
            setattr(model, field, None)
    assert hash(SamplingParams(bad_words=["a"], allowed_token_ids=[1])) == hash(
        SamplingParams(bad_words=("a",), allowed_token_ids=(1,))
    )


@pytest.mark.parametrize("kind", Structured.model_fields)
def test_structured_has_exactly_one_kind(kind):
    values = {"json_schema": '{"type": "object"}', "regex": "a+", "grammar": "start: A", "choice": "a"}
    assert set(values) == set(Structured.model_fields)
    assert Structured(**{kind: values[kind]}).kind == kind
    for other in set(values) - {kind}:
        with pytest.raises(InvalidRequest, match="exactly one"):
            Structured(**{kind: values[kind], other: values[other]})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), json_values, max_size=4))
def test_a_schema_is_kept_as_it_is(schema):
    assert Structured(json_schema=schema).json_schema == schema
    assert Structured(json_schema=json.dumps(schema)).json_schema == schema


@given(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(),
        st.binary(),
        st.lists(st.integers() | st.text()),
    )
)
def test_whatever_a_field_is_given_the_error_is_ours(value):
    for field in GenerateRequest.model_fields:
        try:
            GenerateRequest(**{"prompt": "x", field: value})
        except InvalidRequest as error:
            assert error.field.split(".")[0] in GenerateRequest.model_fields  # noqa: PT017 any other outcome is fine
    for field in EngineConfig.model_fields:
        try:
            EngineConfig(**{field: value})
        except InvalidConfig as error:
            assert error.field.split(".")[0] == field  # noqa: PT017 any other outcome is fine


def test_options_are_the_fields_of_the_request():
    assert set(get_type_hints(RequestOptions)) == set(GenerateRequest.model_fields) - {"prompt", "messages"}
    assert RequestOptions.__optional_keys__ == frozenset(get_type_hints(RequestOptions))


async def test_a_request_object_stands_alone(scripted, load):
    async with load(scripted()) as (engine, _):
        assert (await engine.generate(GenerateRequest(prompt="hi", max_tokens=1))).token_ids == [71]
        for options in ({"max_tokens": 1}, {"messages": [{"role": "user", "content": "x"}]}):
            with pytest.raises(InvalidRequest) as caught:
                await engine.generate(GenerateRequest(prompt="hi"), **options)
            assert caught.value.field == "prompt"


# -- what an engine does not declare -----------------------------------------------------------------------------

#: Fields that the SDK honours on every engine. A new field has to be put here, or among the engine's.
SDK_REQUEST = {
    "prompt", "messages", "sampling", "max_tokens", "n", "stop", "include_stop", "skip_special_tokens", "timeout",
    "chat_template_kwargs",
}  # fmt: skip
CAPABILITY_REQUEST = {"logprobs": 1, "prompt_logprobs": 1, "structured": Structured(regex="a")}
ENGINE_VALUES = {
    "cache_salt": "s", "ignore_eos": True, "lora": "a", "min_tokens": 1, "priority": 1, "stop_token_ids": [1],
}  # fmt: skip
SAMPLING_VALUES = {
    "temperature": 0.5, "top_p": 0.5, "top_k": 1, "min_p": 0.5, "repetition_penalty": 1.5, "presence_penalty": 1.0,
    "frequency_penalty": 1.0, "seed": 1, "logit_bias": {1: 1.0}, "allowed_token_ids": [1], "bad_words": ["a"],
}  # fmt: skip
CONFIG_VALUES = {
    "trust_remote_code": True, "dtype": "float16", "max_model_len": 8, "quantization": "int8",
    "kv_cache.dtype": "fp8", "kv_cache.block_size": 8, "kv_cache.prefix_caching": False,
    "kv_cache.gpu_memory_fraction": 0.5, "kv_cache.capacity_tokens": 8,
    "parallel.tensor": 2, "parallel.pipeline": 2, "parallel.data": 2, "parallel.expert": True,
    "scheduling.max_num_seqs": 2, "scheduling.max_num_batched_tokens": 8, "scheduling.chunked_prefill": True,
    "execution": "eager", "speculative": SpeculativeConfig(method="ngram"), "lora": LoRAConfig(),
    "determinism": "run", "seed": 1, "device": "cuda", "native": {"a": 1}, "task": "embed",
}  # fmt: skip
PARTS = {"kv_cache": KVCacheConfig, "parallel": ParallelConfig, "scheduling": SchedulingConfig}
NOTHING = Capabilities(token_prompts=True)


def test_no_field_is_forgotten():
    assert set(GenerateRequest.model_fields) == SDK_REQUEST | set(CAPABILITY_REQUEST) | ENGINE_REQUEST
    assert set(ENGINE_VALUES) == ENGINE_REQUEST
    assert set(SAMPLING_VALUES) == set(SamplingParams.model_fields)
    leaves = {
        f"{name}.{part}" if part else name
        for name in EngineConfig.model_fields
        for part in (PARTS[name].model_fields if name in PARTS else [""])
    }
    assert leaves == set(CONFIG_VALUES) | {"devices"} | SDK_CONFIG  # devices: see test_place


@pytest.mark.parametrize("field", SAMPLING_VALUES)
async def test_a_sampling_field_is_honoured_or_refused(scripted, load, field):
    async with load(scripted(capabilities=NOTHING)) as (engine, backend):
        with pytest.raises(UnsupportedParameter) as caught:
            await engine.generate("hi", sampling=SamplingParams(**{field: SAMPLING_VALUES[field]}))
        assert (caught.value.field, caught.value.engine, backend.requests) == (f"sampling.{field}", "scripted", [])
        assert caught.value.message == f"scripted cannot honour sampling.{field}; it supports nothing here"
        # A value that equals the default asks for nothing.
        default = SamplingParams.model_fields[field].get_default(call_default_factory=True)
        await engine.generate("hi", sampling=SamplingParams(**{field: default}), max_tokens=1)
    async with load(scripted(capabilities=replace(NOTHING, sampling=frozenset({field})))) as (engine, backend):
        await engine.generate("hi", sampling=SamplingParams(**{field: SAMPLING_VALUES[field]}), max_tokens=1)
        assert (
            getattr(backend.requests[0].sampling, field)
            == SamplingParams(**{field: SAMPLING_VALUES[field]}).__dict__[field]
        )


@pytest.mark.parametrize("field", ENGINE_VALUES)
async def test_a_request_field_of_the_engine_is_honoured_or_refused(scripted, load, field):
    async with load(scripted(capabilities=NOTHING)) as (engine, backend):
        with pytest.raises(UnsupportedParameter) as caught:
            await engine.generate("hi", **{field: ENGINE_VALUES[field]})
        assert (caught.value.field, backend.requests) == (field, [])


@pytest.mark.parametrize("field", CAPABILITY_REQUEST)
async def test_a_request_field_with_a_capability_is_honoured_or_refused(scripted, load, field):
    async with load(scripted(capabilities=NOTHING)) as (engine, backend):
        with pytest.raises(UnsupportedCapability) as caught:
            await engine.generate("hi", **{field: CAPABILITY_REQUEST[field]})
        assert (caught.value.field, caught.value.capability.split(".")[0], backend.requests) == (field, field, [])


@pytest.mark.parametrize("call", ["score", "sleep", "wake"])
async def test_an_operation_is_honoured_or_refused(scripted, load, call):
    async with load(scripted(capabilities=NOTHING)) as (engine, _):
        with pytest.raises(UnsupportedCapability) as caught:
            await (engine.score([1, 2]) if call == "score" else getattr(engine, call)())
        assert (caught.value.capability, caught.value.engine) == ("score" if call == "score" else "sleep", "scripted")


def config_with(field, value):
    name, _, part = field.partition(".")
    return EngineConfig(**{name: PARTS[name](**{part: value}) if part else value})


@pytest.mark.parametrize("field", CONFIG_VALUES)
async def test_a_configuration_field_is_honoured_or_refused(scripted, load, field):
    from anyengine import Engine

    config = config_with(field, CONFIG_VALUES[field])
    plugin = scripted(capabilities=NOTHING)
    with pytest.raises(UnsupportedParameter) as caught:
        await Engine.load(plugin, config=config)
    assert caught.value.field in {field, f"{field}.method"}
    assert (caught.value.engine, plugin.loaded) == ("scripted", [])
    check_config("scripted", everything(), config)


def everything():
    return Capabilities(
        config=frozenset(CONFIG_VALUES),
        native=True,
        dtypes=frozenset({"float16"}),
        devices=frozenset({"cuda"}),
        quantization=frozenset({"int8"}),
        speculative=frozenset({"ngram"}),
        determinism=frozenset({"run"}),
        embed=True,
    )


def test_the_first_unsupported_field_is_the_same_in_every_process():
    config = EngineConfig(seed=1, env={"A": "1"}, max_model_len=5, trust_remote_code=True)
    assert list(config.changed()) == ["trust_remote_code", "max_model_len", "seed", "env"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "draft_model", "model": "m", "ngram_min": 1}, "ngram_min belongs to method 'ngram'"),
        ({"method": "ngram", "model": "m"}, "method 'ngram' has none"),
        ({"method": "draft_model"}, "needs model"),
        ({"method": "ngram", "ngram_min": 5}, "more than ngram_max"),
        ({"method": "magic"}, "speculative.method"),
        ({"method": "ngram", "num_speculative_tokens": 0}, "num_speculative_tokens"),
    ],
    ids=["other method", "ngram with model", "draft without", "order", "unknown", "none drafted"],
)
def test_a_speculative_field_that_nobody_would_read_is_refused(fields, message):
    with pytest.raises(InvalidConfig, match=message) as caught:
        EngineConfig(speculative=fields)
    assert caught.value.field.startswith("speculative")


async def test_unknown_names_are_misuse(scripted):
    from anyengine import Engine

    with pytest.raises(UnknownEngine):
        await Engine.load("no-such-engine")
    with pytest.raises(InvalidConfig) as caught:
        await Engine.load(scripted(), no_such_option=1)
    assert caught.value.field == "no_such_option"
    with pytest.raises(InvalidConfig) as caught:
        await Engine.load(scripted(), kv_cache={"no": 1})
    assert caught.value.field == "kv_cache.no"
    with pytest.raises(AnyEngineError):
        await Engine.load(scripted(), model="/no/such/folder")


# -- what excludes one another --------------------------------------------------------------------------------------

PAIRS = {
    ("sampling.min_p", "config.seed"): "sampling.min_p",
    ("request.prompt_logprobs", "config.max_model_len"): "prompt_logprobs",
    ("sampling.min_p", "sampling.top_k"): "sampling.top_k",
    ("request.priority", "sampling.top_k"): "sampling.top_k",
}
ASKED = {
    "sampling.min_p": sampling(min_p=0.5),
    "sampling.top_k": sampling(top_k=2),
    "request.prompt_logprobs": {"prompt_logprobs": 1},
    "request.priority": {"priority": 1},
    "config.seed": {"seed": 1},
    "config.max_model_len": {"max_model_len": 99},
}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
async def test_a_conflict_is_refused_in_either_order_and_each_alone_is_fine(scripted, load, pair, swapped):
    first, second = reversed(pair) if swapped else pair
    capabilities = replace(all_capabilities(), conflicts=(Conflict(first, second, "so it is"),))
    config = {k: v for name in pair if name.startswith("config") for k, v in ASKED[name].items()}
    options = {"sampling": {}}
    for name in pair:
        if not name.startswith("config"):
            options |= {k: v if k != "sampling" else options[k] | v for k, v in ASKED[name].items()}
    async with load(scripted(capabilities=capabilities), **config) as (engine, _):
        with pytest.raises(UnsupportedParameter, match="so it is") as caught:
            await engine.generate("hi", **options)
        assert not config or caught.value.field == PAIRS[pair]
        for name in pair:
            if not name.startswith("config"):
                await engine.generate("hi", **({} if config else ASKED[name]), max_tokens=1)


def test_conflicts_of_configuration_fields_are_found_at_load():
    for first, second in itertools.permutations(("config.speculative", "config.kv_cache.prefix_caching")):
        capabilities = replace(everything(), conflicts=(Conflict(first, second, "so it is"),))
        both = {"speculative": SpeculativeConfig(method="ngram")}
        with pytest.raises(UnsupportedParameter, match="so it is"):
            check_config("e", capabilities, EngineConfig(**both, kv_cache=KVCacheConfig(prefix_caching=True)))
        # What is switched off excludes nothing.
        check_config("e", capabilities, EngineConfig(**both, kv_cache=KVCacheConfig(prefix_caching=False)))


NEUTRAL, SHAPED = {}, sampling(top_k=2)
GRAMMAR = {"structured": {"regex": "a"}}
LEVELS = {
    ("raw", "neutral"): True, ("raw", "shaped"): True, ("raw", "grammar"): True,
    ("raw-unless-structured", "neutral"): True, ("raw-unless-structured", "shaped"): True,
    ("raw-unless-structured", "grammar"): False,
    ("neutral-only", "neutral"): True, ("neutral-only", "shaped"): False, ("neutral-only", "grammar"): False,
}  # fmt: skip


@pytest.mark.parametrize(("declared", "most"), [(None, 5), (0, 0), (2, 2), (7, 7)])
async def test_prompts_have_a_bound_of_alternatives_of_their_own(scripted, load, declared, most):
    capabilities = replace(all_capabilities(), max_logprobs=5, max_prompt_logprobs=declared)
    assert capabilities.most_prompt_logprobs == most
    async with load(scripted(capabilities=capabilities)) as (engine, _):
        answer = await engine.generate("hi", logprobs=5, prompt_logprobs=most, max_tokens=1)
        assert (len(answer.logprobs), len(answer.prompt_logprobs)) == (1, 2)
        assert len((await engine.score("hi", logprobs=most)).entries) == 2
        with pytest.raises(UnsupportedParameter, match=f"at most {most} alternatives, not {most + 1}") as caught:
            await engine.generate("hi", prompt_logprobs=most + 1, max_tokens=1)
        assert caught.value.field == "prompt_logprobs"
        with pytest.raises(InvalidRequest, match=f"must be 0 to {most}, not {most + 1}") as caught:
            await engine.score("hi", logprobs=most + 1)
        assert caught.value.field == "logprobs"


@pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
@pytest.mark.parametrize(("level", "kind"), LEVELS)
async def test_log_probabilities_come_up_to_the_level_declared(scripted, load, field, level, kind):
    options = {"neutral": sampling(seed=1), "shaped": SHAPED, "grammar": GRAMMAR}[kind]
    async with load(scripted(capabilities=replace(all_capabilities(), **{field: level}))) as (engine, _):
        if LEVELS[level, kind]:
            await engine.generate("hi", **options, **{field: 1}, max_tokens=1)
        else:
            with pytest.raises(UnsupportedParameter) as caught:
                await engine.generate("hi", **options, **{field: 1}, max_tokens=1)
            assert caught.value.field == field
        with pytest.raises(UnsupportedParameter, match="at most 5"):
            await engine.generate("hi", **{field: 6}, max_tokens=1)


# -- sampling defaults of a model -------------------------------------------------------------------------------------


def test_sampling_of_a_model_is_read_on_request(model_folder, tmp_path):
    assert SamplingParams.from_model(model_folder) == SamplingParams(temperature=0.6, top_p=0.9)
    assert SamplingParams.from_model(str(model_folder), top_p=0.5) == SamplingParams(temperature=0.6, top_p=0.5)
    file = tmp_path / "generation_config.json"
    for text in ("[1]", "{", "[" * 100_000):
        file.write_text(text)
        with pytest.raises(ModelNotFound, match=r"generation_config\.json"):
            SamplingParams.from_model(tmp_path)
    file.write_text('{"do_sample": false, "top_k": 5, "temperature": null}')
    assert SamplingParams.from_model(tmp_path) == SamplingParams(temperature=0, top_k=5)
    file.write_text('{"top_k": -1}')
    with pytest.raises(InvalidRequest):
        SamplingParams.from_model(tmp_path)
    with pytest.raises(ModelNotFound):
        SamplingParams.from_model(tmp_path / "nothing")
    with pytest.raises(InvalidRequest):
        SamplingParams.from_model(model_folder, top_q=1)
