"""What an engine raises, as errors of ours."""

from __future__ import annotations

import pytest
from anyengine.backend.failures import LoadCause, load_failure, request_failure
from anyengine.backend.releases import installed_version, release, unmapped
from anyengine.errors import (
    EngineDied,
    EngineStartupError,
    Failure,
    InvalidConfig,
    InvalidRequest,
    OutOfMemory,
    UnsupportedParameter,
)


class Refused(ValueError):
    pass


KNOWN = {
    f"{__name__}.Refused": lambda error: InvalidRequest(str(error)),
    "builtins.ValueError": lambda error: Failure(str(error)),
}


def test_the_most_specific_class_that_is_known_counts():
    class New(Refused):
        pass

    assert type(request_failure(Refused("x"), KNOWN)) is InvalidRequest
    assert type(request_failure(New("x"), KNOWN)) is InvalidRequest
    assert type(request_failure(UnicodeError("x"), KNOWN)) is Failure


def test_ours_stay_and_what_nobody_knows_is_none():
    own = EngineDied("x")
    assert request_failure(own, KNOWN) is own
    assert request_failure(KeyError("x"), KNOWN) is None


CAUSES = (
    LoadCause(r"(?i)[^\n]*out of memory[^\n]*", OutOfMemory, "ask for less"),
    LoadCause(r"context[^\n]*too long", InvalidConfig, "it is shorter", field="max_model_len"),
    LoadCause(r"[^\n]*architecture[^\n]*", UnsupportedParameter, "there is none", field="model"),
)


@pytest.mark.parametrize(
    ("said", "expected", "message"),
    [
        (["RuntimeError: no", "GPU out of memory, 3 GiB"], OutOfMemory, "GPU out of memory, 3 GiB; ask for less"),
        (["context 9 is too long"], InvalidConfig, "max_model_len: context 9 is too long; it is shorter"),
        (["an architecture out of memory"], OutOfMemory, "an architecture out of memory; ask for less"),
        (["what nobody foresaw", "a longer account"], EngineStartupError, "Toy did not come up: what nobody foresaw"),
    ],
)
def test_the_first_cause_that_is_found_is_quoted_with_its_field_and_advice(said, expected, message):
    error = load_failure(RuntimeError("no"), "Toy", said, CAUSES)
    assert (type(error), error.message) == (expected, message)
    assert error.field == next((cause.field for cause in CAUSES if cause.error is expected), None)


def test_a_load_s_own_errors_stay_and_memory_needs_no_words():
    own = InvalidConfig("x", field="dtype")
    assert load_failure(own, "Toy", ["out of memory"], CAUSES) is own
    assert type(load_failure(MemoryError(), "Toy", ["x"], ())) is OutOfMemory


def test_releases():
    assert release("1.2.1rc0+cu130") == (1, 2, 1)
    assert release("unknown") == ()
    assert unmapped("Toy", "1.2.9+cpu", (1, 2)) is None
    assert unmapped("Toy", "1.3.0", (1, 2)) == (
        "Toy 1.3.0 is not mapped, this plugin is written for 1.2; install that release"
    )
    assert installed_version("no-such-package", "pytest") == pytest.__version__
    assert installed_version("no-such-package") is None


def test_a_summary_is_told_and_not_searched():
    error = load_failure(RuntimeError("no"), "Toy", ["no"], CAUSES, summary="out of memory, perhaps")
    assert (type(error), error.message) == (EngineStartupError, "Toy did not come up: out of memory, perhaps")
