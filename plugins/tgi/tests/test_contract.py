"""Field by field: what is sent and read exists in TGI, and what TGI has is mapped, refused or listed as unused."""

from __future__ import annotations

import copy
import difflib
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

HERE = Path(__file__).parent
SHARED = HERE.parents[3] / "shared" / "contracts"


def module(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"anyengine_tgi_tests_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    made = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(made)
    return made


holding = module(HERE / "holding.py")


def test_everything_fits(contract: dict[str, Any]):
    assert holding.problems(contract) == []


@pytest.mark.parametrize(
    ("path", "change", "line"),
    [
        (
            ("schemas", "GenerateParameters"),
            {"seed": None},
            "GenerateParameters.seed: is sent, and TGI has no such field",
        ),
        (
            ("schemas", "GenerateParameters"),
            {"min_p": {"type": "number(float) | null", "required": False}},
            "GenerateParameters.min_p: TGI has it, and it is neither sent nor listed as unused",
        ),
        (
            ("schemas", "GenerateParameters", "top_k"),
            {"type": "string"},
            "GenerateParameters.top_k: 3 is sent where string is due",
        ),
        (
            ("schemas", "GenerateParameters", "temperature"),
            {"maximum": 0.25},
            "GenerateParameters.temperature: 0.5 is sent, maximum 0.25",
        ),
        (("schemas", "Token"), {"logprob": None}, "Token.logprob: is read, and TGI does not send it"),
        (
            ("schemas", "StreamDetails", "input_length"),
            {"required": False},
            "StreamDetails.input_length: is needed here, and TGI may leave it out",
        ),
        (("launcher",), {"speculate": None}, "--speculate: is taken, and the launcher has no such argument"),
        (
            ("launcher", "num_shard"),
            {"type": "Option<bool>"},
            "--num_shard: is written as int, and the launcher takes Option<bool>",
        ),
        (("errors",), {"overheated": 500}, "error_type 'overheated': is known on one side only"),
        (("metrics",), {"tgi_queue_size": None}, "metric tgi_queue_size: is read, and TGI does not have it"),
        (("operations",), {"/tokenize": None}, "/tokenize: is asked, and TGI has no such route"),
    ],
)
def test_a_changed_contract_shows_as_a_line(contract: dict[str, Any], path, change, line: str):
    changed = copy.deepcopy(contract)
    place = changed
    for name in path:
        place = place[name]
    for name, value in change.items():
        if value is None:
            del place[name]
        else:
            place[name] = value
    assert line in holding.problems(changed)


def test_the_facts_are_those_of_the_shared_contract():
    if not SHARED.is_dir():
        pytest.skip("the shared contracts are not beside this checkout; the facts that are carried here are tested")
    maker = module(HERE.parent / "tools" / "make_tgi_contract.py")
    sources = [json.loads((SHARED / name).read_bytes()) for name in ("tgi-3.3.7.json", "tgi-openapi.json")]
    due = json.dumps(maker.facts(*sources), indent=1, sort_keys=True).splitlines()
    ours = maker.TARGET.read_text().splitlines()
    assert list(difflib.unified_diff(ours, due, "tests/contract", "shared", n=1, lineterm="")) == []
