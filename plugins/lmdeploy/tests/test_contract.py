"""The mapping against the facts of the contract, field by field."""

import copy
import json
import os
from pathlib import Path

import pytest

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
