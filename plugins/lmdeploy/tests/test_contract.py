"""The mapping against the facts of the contract, field by field."""

import copy
import json
import os
from pathlib import Path

import pytest
from anyengine import EngineConfig, SamplingParams
from anyengine.backend import TokenRequest
from anyengine.errors import InvalidConfig
from anyengine_lmdeploy import request as requests
from anyengine_lmdeploy.checks import KV_CACHE_DTYPES
from anyengine_lmdeploy.config import _MTP, engine_arguments
from anyengine_lmdeploy.errors import STATUS_ERRORS
from anyengine_lmdeploy.library import load_library
from anyengine_lmdeploy.options import OWNED, check_arguments, parse_options
from msgspec.structs import replace

CLASSES = [
    "EngineOutput",
    "GenerationConfig",
    "PytorchEngineConfig",
    "RequestMetrics",
    "ScheduleMetrics",
    "SpeculativeConfig",
    "TurbomindEngineConfig",
]


@pytest.mark.parametrize("name", CLASSES)
def test_every_field_is_decided_on(facts, decisions, name):
    fields, decided = set(facts["classes"][name]["fields"]), set(decisions.DECISIONS[name])
    new = [f"{name}.{field}: nobody has decided what becomes of it" for field in sorted(fields - decided)]
    gone = [f"{name}.{field}: LMDeploy has no such field" for field in sorted(decided - fields)]
    assert new + gone == []


def test_no_class_is_left_out(decisions):
    assert sorted(decisions.DECISIONS) == CLASSES


def test_every_parameter_of_what_is_called_is_decided_on(facts, decisions):
    assert set(decisions.CALLS["AsyncEngine"]) == set(facts["classes"]["AsyncEngine"]["init"])
    for name in ("EngineInstance", "TurboMindInstance"):
        known = facts["classes"][name]["methods"]["async_stream_infer"]["parameters"]
        assert set(decisions.CALLS[name]) == set(known), name


def test_every_method_and_attribute_that_is_used_exists(facts):
    classes = facts["classes"]
    engine = classes["AsyncEngine"]
    assert {"start_loop", "get_schedule_metrics", "health_probe", "sleep", "wakeup", "close"} <= set(engine["methods"])
    assert {"backend_config", "engine", "is_sleeping", "session_len", "session_mgr"} <= set(engine["attributes"])
    assert {"get", "put"} <= set(classes["RequestHandlePool"]["methods"])
    assert "request_handle_pool" in classes["SessionManager"]["attributes"]
    for name in ("EngineInstance", "TurboMindInstance"):
        assert {"async_cancel", "async_stream_infer"} <= set(classes[name]["methods"]), name
    # What is awaited, and what is not.
    awaited = {name for name, method in engine["methods"].items() if method["async"]}
    assert {"get_schedule_metrics", "health_probe", "sleep"} <= awaited
    assert awaited.isdisjoint({"close", "start_loop", "wakeup"})


# -- what is passed ---------------------------------------------------------------------------------------------------

CONFIGURATIONS = {"turbomind": "TurbomindEngineConfig", "pytorch": "PytorchEngineConfig"}
ASKED = {
    "turbomind": [
        {},
        {"kv_cache": {"gpu_memory_fraction": 0.5, "block_size": 64}},
        {"scheduling": {"max_num_seqs": 4, "max_num_batched_tokens": 256}},
    ],
    "pytorch": [
        {},
        {"execution": "eager", "quantization": "fp8"},
        {"kv_cache": {"gpu_memory_fraction": 0.5}},
        {"kv_cache": {"capacity_tokens": 2048, "block_size": 64}},
        {"scheduling": {"max_num_seqs": 4, "max_num_batched_tokens": 256}},
        {"lora": {"adapters": {"a": "x"}}},
        {"speculative": {"method": "eagle", "model": "d"}},
    ],
}


def _mapped(decided):
    return {name for name, what in decided.items() if what == "mapped"}


@pytest.mark.parametrize("backend", ["turbomind", "pytorch"])
def test_what_is_mapped_is_what_is_passed_and_has_its_type(simulated, decisions, model, backend):
    files, seen, speculative = replace(model, loras={"a": model.path}, draft=model), set(), set()
    (model.path / "adapter_config.json").write_text('{"r": 8}')
    for fields in ASKED[backend]:
        config = EngineConfig(**fields)
        made = engine_arguments(config, files, parse_options(config), backend, lambda: (70 * 2**30, 80 * 2**30))
        seen |= set(made.config)
        # Made of the facts, it refuses every other name and type.
        getattr(simulated, CONFIGURATIONS[backend])(**made.config)
        if made.speculative is not None:
            speculative |= set(made.speculative)
            simulated.SpeculativeConfig(**made.speculative)
    assert seen == _mapped(decisions.DECISIONS[CONFIGURATIONS[backend]])
    assert speculative == (_mapped(decisions.DECISIONS["SpeculativeConfig"]) if backend == "pytorch" else set())


def test_the_fields_of_a_request_that_are_mapped_are_passed(simulated, decisions):
    from dataclasses import replace as changed

    library, seen = load_library(), set()

    def make(**fields):
        seen.update(fields)
        return simulated.GenerationConfig(**fields)

    library = changed(library, generation_config=make)
    request = TokenRequest(
        id="r",
        prompt_token_ids=[1, 2],
        sampling=SamplingParams(logit_bias={3: 1.0}),
        max_tokens=4,
        logprobs=1,
    )
    for backend in ("turbomind", "pytorch"):
        requests.generation_config(library, request, backend, None)
    requests.scoring_config(library, 1)
    assert seen == _mapped(decisions.DECISIONS["GenerationConfig"])


@pytest.mark.parametrize("backend", ["turbomind", "pytorch"])
def test_every_option_is_refused_by_name_or_taken(facts, decisions, backend):
    name = CONFIGURATIONS[backend]
    known = set(facts["classes"][name]["fields"])
    for field, what in decisions.DECISIONS[name].items():
        config = EngineConfig(native={"backend": backend, field: 1})
        if what == "native":
            check_arguments(parse_options(config).arguments, known, backend)
        else:
            with pytest.raises(InvalidConfig) as caught:
                parse_options(config)
            assert caught.value.field == f"native.{field}"
    with pytest.raises(InvalidConfig, match="colour"):
        check_arguments({"colour": 1}, known, backend)


def test_every_name_and_value_that_is_written_down_exists(facts):
    fields = {name for kind in CONFIGURATIONS.values() for name in facts["classes"][kind]["fields"]}
    assert set(OWNED) <= fields
    policies = facts["enums"]["QuantPolicy"]
    refused = {policies[name] for name in facts["read"]["not_for_turbomind"]["value"]}
    assert set(KV_CACHE_DTYPES["turbomind"].values()) == set(policies.values()) - refused - {policies["TURBO_QUANT"]}
    assert set(KV_CACHE_DTYPES["pytorch"].values()) == set(policies.values()) - {policies["TURBO_QUANT"]}
    assert {"eagle", "eagle3", *_MTP.values()} <= set(facts["speculative_methods"])
    assert facts["read"]["highest_temperature"]["value"] == requests.HIGHEST_TEMPERATURE
    assert "raw_logprobs" in facts["read"]["logprobs_modes"]["value"]


def test_every_status_is_an_end_or_an_error(facts):
    assert set(facts["enums"]["ResponseType"]) == {"SUCCESS", "FINISH", "CANCEL", *STATUS_ERRORS}


# -- a changed contract -----------------------------------------------------------------------------------------------


def test_a_changed_contract_shows_as_a_readable_difference(facts, contract_tool):
    changed = copy.deepcopy(facts)
    changed["classes"]["GenerationConfig"]["fields"]["top_k"]["default"] = 0
    changed["classes"]["TurbomindEngineConfig"]["fields"]["tp"]["type"] = "int | None"
    del changed["classes"]["SpeculativeConfig"]["fields"]["dflash_block_size"]
    changed["classes"]["PytorchEngineConfig"]["fields"]["colour"] = {"type": "str", "default": "red"}
    changed["enums"]["QuantPolicy"]["FP4"] = 18
    assert contract_tool.difference(facts, changed) == [
        "classes.GenerationConfig.top_k.default: 50 → 0",
        'classes.PytorchEngineConfig.colour: absent → {"default": "red", "type": "str"}',
        'classes.SpeculativeConfig.dflash_block_size: {"default": null, "type": "int | None"} → absent',
        'classes.TurbomindEngineConfig.tp.type: "int" → "int | None"',
        "enums.QuantPolicy.FP4: absent → 18",
    ]
    assert contract_tool.difference(facts, facts) == []


def test_the_facts_are_those_of_the_contract_file(facts, contract_tool):
    """Where the file that they were made from is: its folder, or the variable ANYENGINE_CONTRACTS."""
    folder = Path(os.environ.get("ANYENGINE_CONTRACTS", Path(__file__).parents[4] / "shared" / "contracts"))
    file = folder / f"lmdeploy-{facts['version']}.json"
    if not file.is_file():
        pytest.skip("the contract file that the facts were made from is not here; set ANYENGINE_CONTRACTS")
    assert contract_tool.difference(facts, contract_tool.make(json.loads(file.read_bytes()))) == []
