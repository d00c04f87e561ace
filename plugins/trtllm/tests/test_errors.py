import pytest
from anyengine.errors import (
    AnyEngineError,
    EngineClosed,
    EngineDied,
    EngineStartupError,
    Failure,
    InvalidConfig,
    InvalidRequest,
    OutOfMemory,
    UnsupportedParameter,
)
from anyengine_trtllm.errors import REQUEST_ERRORS, load_error, request_error


def _foreign(name, *bases):
    """An exception class as TensorRT-LLM has it, by its full name."""
    module, _, short = name.rpartition(".")
    return type(short, bases or (Exception,), {"__module__": module})


REQUEST = "tensorrt_llm.executor.utils.RequestError"


def test_every_exception_of_the_contract_is_in_the_map(facts):
    known = {f"{entry['module']}.{name}" for name, entry in facts["classes"].items() if entry["kind"] == "exception"}
    assert known == {name for name in REQUEST_ERRORS if name.startswith("tensorrt_llm.")}


@pytest.mark.parametrize("name", sorted(REQUEST_ERRORS))
def test_each_becomes_one_of_ours_with_its_words(name):
    error = request_error(_foreign(name)("what happened"))
    assert isinstance(error, AnyEngineError)
    assert "what happened" in error.message


@pytest.mark.parametrize(
    ("name", "text", "expected", "field"),
    [
        (REQUEST, "The sum of prompt length (9) should not exceed max_num_tokens (8)", InvalidRequest, "prompt"),
        (REQUEST, "Grammar error: unexpected token", InvalidRequest, "structured"),
        (REQUEST, "CUDA out of memory", OutOfMemory, None),
        (REQUEST, "something nobody foresaw", Failure, None),
        ("builtins.RuntimeError", "LLM is shutting down", EngineClosed, None),
        ("builtins.RuntimeError", "Executor worker died", EngineDied, None),
        ("builtins.RuntimeError", "std::bad_alloc", OutOfMemory, None),
        ("builtins.ValueError", "require 0 <= top_p <= 1, got top_p=2", InvalidRequest, "sampling.top_p"),
        ("torch.OutOfMemoryError", "x", OutOfMemory, None),
    ],
)
def test_the_kind_is_told_by_class_and_words(name, text, expected, field):
    error = request_error(_foreign(name)(text))
    assert (type(error), error.field) == (expected, field)


def test_a_new_subclass_is_taken_for_its_nearest_base():
    base = _foreign(REQUEST, RuntimeError)
    assert type(request_error(_foreign("tensorrt_llm.executor.utils.BrandNew", base)("x"))) is Failure


def test_ours_stay_as_they_are_and_a_bug_is_not_mapped():
    own = InvalidRequest("x")
    assert request_error(own) is own
    assert request_error(KeyError("x")) is None


@pytest.mark.parametrize(
    ("text", "expected", "field"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", OutOfMemory, None),
        ("Unknown architecture for AutoModelForCausalLM: X", UnsupportedParameter, "model"),
        ("max_seq_len 9 is larger than the model's", InvalidConfig, "max_model_len"),
        ("quant_algo FP8 is not supported on this device", UnsupportedParameter, "quantization"),
        ('Attempting to override KV cache quantization "FP8" with another', UnsupportedParameter, "kv_cache.dtype"),
        ("something nobody foresaw", EngineStartupError, None),
    ],
)
def test_the_cause_of_a_failed_load(text, expected, field):
    error = load_error(RuntimeError(text))
    assert (type(error), error.field) == (expected, field)
    assert text[:20] in error.message


@pytest.mark.parametrize(
    ("inner", "expected", "field"),
    [
        (
            RuntimeError("Executor creation failed due to insufficient GPU memory.\n\nNo room for: KV cache"),
            OutOfMemory,
            None,
        ),
        (ValueError("Unknown architecture for AutoModelForCausalLM: X"), UnsupportedParameter, "model"),
        (ValueError("something nobody foresaw"), EngineStartupError, None),
    ],
)
def test_the_cause_of_a_load_that_failed_in_another_process_is_found_behind_the_error(inner, expected, field):
    outer = RuntimeError("Executor worker returned error")
    outer.__cause__ = inner
    error = load_error(outer)
    assert (type(error), error.field) == (expected, field)
    assert str(inner).splitlines()[0] in error.message


def test_an_interruption_is_no_failure_of_a_load():
    assert load_error(KeyboardInterrupt()) is None
    assert type(load_error(MemoryError())) is OutOfMemory
