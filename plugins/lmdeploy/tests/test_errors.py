import pytest
from anyengine import SamplingParams, Structured
from anyengine.backend import TokenRequest
from anyengine.errors import (
    AnyEngineError,
    EngineDied,
    EngineStartupError,
    Failure,
    InvalidConfig,
    InvalidRequest,
    OutOfMemory,
    UnsupportedParameter,
)
from anyengine_lmdeploy.errors import REQUEST_ERRORS, STATUS_ERRORS, load_error, request_error, status_error


def _foreign(name, *bases, **attributes):
    """An exception class as LMDeploy has it, by its full name."""
    module, _, short = name.rpartition(".")
    return type(short, bases or (Exception,), {"__module__": module, **attributes})


def _request(**fields):
    return TokenRequest(
        **{"id": "r", "prompt_token_ids": [1, 2], "sampling": SamplingParams(), "max_tokens": 8, **fields}
    )


@pytest.mark.parametrize(
    ("name", "expected", "field"),
    [
        ("ENGINE_STOP_ERROR", EngineDied, None),
        ("HANDLER_NOT_EXIST", EngineDied, None),
        ("INPUT_LENGTH_ERROR", InvalidRequest, "prompt"),
        ("INTERNAL_ENGINE_ERROR", Failure, None),
        ("NOT_SUPPORTED", Failure, None),
        ("NO_QUEUE", EngineDied, None),
        ("OUT_OF_MEMORY", OutOfMemory, None),
        ("PREFIX_CACHE_CONFLICT", Failure, None),
        ("SESSION_NOT_EXIST", Failure, None),
        ("SESSION_REPEAT", Failure, None),
    ],
)
def test_each_status_becomes_one_of_ours_and_is_named(simulated, name, expected, field):
    error = status_error(simulated.ResponseType[name], _request())
    assert (type(error), error.field) == (expected, field)
    assert name in error.message


def test_no_status_is_left_out(facts):
    ends = {"SUCCESS", "FINISH", "CANCEL"}
    assert set(STATUS_ERRORS) == set(facts["enums"]["ResponseType"]) - ends


def test_an_internal_error_is_the_engines_with_a_constraint_too_and_says_what_may_help(simulated):
    error = status_error(simulated.ResponseType.INTERNAL_ENGINE_ERROR, _request(structured=Structured(regex="a")))
    assert type(error) is Failure
    assert "a simpler one may help" in error.message


@pytest.mark.parametrize("name", sorted(REQUEST_ERRORS))
def test_each_exception_becomes_one_of_ours_with_its_words(name):
    error = request_error(_foreign(name)("what happened"))
    assert isinstance(error, AnyEngineError)
    assert "what happened" in error.message


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("builtins.RuntimeError", "CUDA error: out of memory", OutOfMemory),
        ("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB", OutOfMemory),
        ("builtins.RuntimeError", "std::bad_alloc", OutOfMemory),
        ("builtins.RuntimeError", "something nobody foresaw", Failure),
        ("builtins.ValueError", "top_p", InvalidRequest),
    ],
)
def test_the_kind_is_told_by_class_and_words(name, text, expected):
    assert type(request_error(_foreign(name)(text))) is expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("invalid_request", InvalidRequest),
        ("context_length_exceeded", InvalidRequest),
        ("engine_unavailable", EngineDied),
        ("internal_error", Failure),
    ],
)
def test_a_request_error_is_told_by_its_code(code, expected):
    made = _foreign("lmdeploy.serve.core.exceptions.RequestError", RuntimeError, code=type("C", (), {"value": code}))
    assert type(request_error(made("x"))) is expected


def test_a_new_subclass_is_taken_for_its_nearest_base():
    base = _foreign("torch.OutOfMemoryError", RuntimeError)
    assert type(request_error(_foreign("torch.Brandnew", base)("CUDA out of memory"))) is OutOfMemory


def test_ours_stay_as_they_are_and_what_is_unknown_is_not_mapped():
    own = InvalidRequest("x")
    assert request_error(own) is own
    assert request_error(_foreign("somewhere.Unknown")("x")) is None


@pytest.mark.parametrize(
    ("text", "log", "expected", "field"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", (), OutOfMemory, None),
        ("turbomind does not support m. Plz try pytorch engine instead.", (), UnsupportedParameter, "model"),
        ("unknown model_format: 'x'", (), UnsupportedParameter, "model"),
        ("something nobody foresaw", (), EngineStartupError, None),
        ("x", ("num_gpu_blocks should be greater than 16",), OutOfMemory, None),
        ("x", ("the last words",), EngineStartupError, None),
    ],
)
def test_the_cause_of_a_failed_load(text, log, expected, field):
    error = load_error(RuntimeError(text), log)
    assert (type(error), error.field) == (expected, field)
    assert (log[-1] if log else text[:20]) in error.message


def test_checks_that_end_the_process_are_a_failed_load():
    error = load_error(SystemExit(1), ["please pass trust_remote_code=True"])
    assert (type(error), error.field) == (InvalidConfig, "trust_remote_code")
    assert type(load_error(SystemExit(1), [])) is EngineStartupError


def test_an_interruption_is_no_failure_of_a_load():
    assert load_error(KeyboardInterrupt(), []) is None
    assert type(load_error(MemoryError(), [])) is OutOfMemory
