"""The error tree is as drawn, survives pickling, and becomes JSON."""

import json
import pickle
import re

import pytest
from anyengine import errors
from anyengine.outputs import Completion, Timings, Usage

CLASSES = [getattr(errors, name) for name in errors.__all__]
PARTIAL = Completion(
    text="a",
    token_ids=[1],
    prompt_token_ids=[2],
    finish_reason="abort",
    stop_reason=None,
    usage=Usage(1, 1),
    timings=Timings(queue=0.0, time_to_first_token=None, total=1.0),
)


def _make(cls):
    extra = {"capability": "score"} if cls is errors.UnsupportedCapability else {}
    extra |= {"retry_after": 0.5} if cls is errors.Overloaded else {}
    extra |= {"partial": PARTIAL} if cls is errors.RequestTimeout else {}
    extra |= {"available": ["b", "a"]} if cls is errors.UnknownEngine else {}
    extra |= {"exit_status": -9, "log_tail": ("x",)} if cls is errors.EngineDied else {}
    return cls("what happened", engine="e", **extra)


def test_the_tree_in_the_docstring_is_the_tree_of_classes():
    drawn = {}
    stack = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"    (\W*)([A-Z]\w+)", line)
        if match is None or match[2] not in errors.__all__:
            continue
        depth = len(match[1])
        stack = [(d, name) for d, name in stack if d < depth]
        drawn[match[2]] = stack[-1][1] if stack else "Exception"
        stack.append((depth, match[2]))
    assert drawn == {cls.__name__: cls.__base__.__name__ for cls in CLASSES}


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_survives_pickling(cls):
    error = _make(cls)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 our own bytes
    assert (type(copy), str(copy), vars(copy)) == (cls, "what happened", vars(error))


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_becomes_json(cls):
    facts = json.loads(json.dumps(_make(cls).as_dict()))
    assert (facts["type"], facts["message"], facts["engine"]) == (cls.__name__, "what happened", "e")


def test_no_attribute_takes_the_place_of_the_type_or_the_message():
    error = errors.PluginError("what happened", engine="e")
    error.__dict__["type"] = "another"
    assert error.as_dict() == {"type": "PluginError", "message": "what happened", "engine": "e"}


def test_json_of_a_timeout_holds_the_partial_completion():
    assert _make(errors.RequestTimeout).as_dict()["partial"]["token_ids"] == [1]


@pytest.mark.parametrize("cls", CLASSES)
def test_misuse_exits_with_2_and_failure_with_1(cls):
    assert cls.exit_code == (2 if issubclass(cls, errors.Misuse) else 1)
