import pytest
from anyengine.errors import (
    AnyEngineError,
    EngineDied,
    EngineStartupError,
    Failure,
    InvalidConfig,
    InvalidRequest,
    OutOfMemory,
    Overloaded,
    UnsupportedParameter,
)
from anyengine_vllm.errors import REQUEST_ERRORS, load_error, request_error


def _foreign(name, *bases):
    """An exception class as vLLM has it, by its full name."""
    module, _, short = name.rpartition(".")
    return type(short, bases or (Exception,), {"__module__": module})


def test_every_exception_of_every_version_is_in_the_map(contracts):
    for version, facts in contracts.items():
        assert set(facts["exceptions"]) - set(REQUEST_ERRORS) == set(), version


def test_the_map_names_no_exception_of_vllm_that_no_version_has(contracts):
    known = set().union(*(facts["exceptions"] for facts in contracts.values()))
    assert {name for name in REQUEST_ERRORS if name.startswith("vllm.")} - known == set()


@pytest.mark.parametrize("name", sorted(REQUEST_ERRORS))
def test_each_becomes_one_of_ours_with_its_words(name):
    error = request_error(_foreign(name)("what happened"))
    assert isinstance(error, AnyEngineError)
    assert "what happened" in error.message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vllm.v1.engine.exceptions.EngineDeadError", EngineDied),
        ("vllm.exceptions.VLLMValidationError", InvalidRequest),
        ("vllm.exceptions.QueueOverflowError", Overloaded),
        ("vllm.exceptions.GenerationError", Failure),
        ("torch.OutOfMemoryError", OutOfMemory),
    ],
)
def test_the_kind_of_some(name, expected):
    assert type(request_error(_foreign(name)("x"))) is expected


def test_the_most_specific_entry_wins():
    client = _foreign("vllm.exceptions.VLLMClientError")
    adapter = _foreign("vllm.exceptions.LoRAAdapterNotFoundError", client)
    assert request_error(adapter("x")).field == "lora"


def test_a_new_subclass_is_taken_for_its_nearest_base():
    client = _foreign("vllm.exceptions.VLLMClientError")
    assert type(request_error(_foreign("vllm.exceptions.BrandNewError", client)("x"))) is InvalidRequest


def test_a_validation_error_names_our_field():
    error = _foreign("vllm.exceptions.VLLMValidationError")("x")
    error.parameter = "top_p"
    assert request_error(error).field == "sampling.top_p"


def test_an_error_that_says_nothing_is_its_cause():
    outer = _foreign("vllm.v1.engine.exceptions.EngineGenerateError")()
    outer.__cause__ = ValueError("Grammar error: x")
    mapped = request_error(outer)
    assert (type(mapped), mapped.field) == (InvalidRequest, "structured")


@pytest.mark.parametrize(
    ("words", "expected"),
    [("CUDA out of memory. Tried to allocate 2 GiB", OutOfMemory), ("something nobody foresaw", Failure)],
)
def test_what_failed_in_the_core_is_told_by_its_words(words, expected):
    assert type(request_error(Exception(f"Call to add_lora method failed: {words}"))) is expected


def test_a_bug_is_not_mapped():
    assert request_error(KeyError("x")) is None


FAILED = RuntimeError("Engine core initialization failed. See root cause above.")


@pytest.mark.parametrize(
    ("line", "expected", "field"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", OutOfMemory, None),
        ("ValueError: Free memory on device cuda:0 (1/80 GiB) on startup is less than desired", OutOfMemory, None),
        ("ValueError: No available memory for the cache blocks. Try increasing", OutOfMemory, None),
        ("ValueError: Model architectures ['X'] are not supported for now", UnsupportedParameter, "model"),
        ("ValueError: User-specified max_model_len (9) is greater than the derived max_model_len", InvalidConfig,
         "max_model_len"),
        ("ValueError: torch.float32 is not supported for quantization method awq. Supported dtypes: [torch.float16]",
         UnsupportedParameter, "dtype"),
        ("ValueError: The model type 'gemma2' does not support float16. Reason: x", UnsupportedParameter, "dtype"),
        ("ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0.",
         UnsupportedParameter, "dtype"),
        ("ValueError: something nobody foresaw", EngineStartupError, None),
    ],
)  # fmt: skip
def test_the_cause_of_a_failed_load_is_found_in_the_log(line, expected, field):
    log = ["EngineCore failed to start.", "Traceback (most recent call last):", '  File "x.py", line 1, in y', line]
    error = load_error(FAILED, log)
    assert (type(error), error.field) == (expected, field)
    assert line.split(": ", 1)[1][:20] in error.message


def test_without_a_log_the_exception_itself_is_told():
    assert "Engine core initialization failed" in load_error(FAILED, []).message


def test_an_interruption_is_no_failure_of_a_load():
    assert load_error(KeyboardInterrupt(), []) is None
