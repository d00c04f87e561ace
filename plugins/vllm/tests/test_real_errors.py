"""What goes wrong with vLLM is told by name, and nothing is left behind."""

import asyncio
import os
import signal

import pytest
from anyengine import Engine, SamplingParams
from anyengine.errors import (
    EngineDied,
    EngineStartupError,
    InvalidConfig,
    ModelNotFound,
    Overloaded,
    UnsupportedParameter,
)

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]


def _descendants():
    """Commands of all processes below this one."""
    import psutil

    return [child.name() for child in psutil.Process().children(recursive=True) if child.status() != "zombie"]


@pytest.fixture
def nothing_left():
    """Fails if a process of the engine survives the test."""
    before = sorted(_descendants())
    yield
    left = [name for name in _descendants() if name not in before and "resource_tracker" not in name]
    # Python's own tracker of shared memory is one process more, once.
    assert len(left) <= 1, left


@pytest.mark.usefixtures("nothing_left")
async def test_an_unsupported_architecture_is_named(small, storyteller, changed):
    folder = changed(storyteller, architectures=["NobodyKnowsForCausalLM"], model_type="nobody_knows")
    with pytest.raises(UnsupportedParameter) as caught:
        await Engine.load("vllm", folder, **small)
    assert caught.value.field == "model"
    assert caught.value.__cause__ is not None


async def test_a_proposer_is_not_replaced_by_the_model_that_it_is_for(small, storyteller, changed):
    folder = changed(storyteller, speculators_config={"verifier": {"name_or_path": str(storyteller)}})
    with pytest.raises(UnsupportedParameter, match="speculators_config") as caught:
        await Engine.load("vllm", folder, **small)
    assert caught.value.field == "model"


@pytest.mark.usefixtures("nothing_left")
async def test_a_context_longer_than_the_models_is_refused(small, storyteller):
    with pytest.raises(InvalidConfig) as caught:
        await Engine.load("vllm", str(storyteller), **small | {"kv_cache": {}}, max_model_len=100_000)
    assert caught.value.field == "max_model_len"


@pytest.mark.usefixtures("nothing_left")
async def test_a_checkpoint_without_its_weights_fails_with_the_cause(small, storyteller, changed):
    folder = changed(storyteller, hidden_size=128)
    with pytest.raises((EngineStartupError, ModelNotFound)) as caught:
        await Engine.load("vllm", folder, **small)
    # Not just "see the log": vLLM's process says what was wrong with a size.
    assert "See root cause" not in caught.value.message
    assert "size" in caught.value.message or "shape" in caught.value.message


@pytest.mark.parametrize(
    ("native", "words"),
    [
        ({"logits_processors": []}, "semantics"),
        ({"model_weights": "elsewhere"}, "use model"),
        ({"max_model_len": 3}, "use max_model_len"),
        ({"no_such_thing": 1}, "no engine argument"),
        ({"seed": 3}, "seed"),
    ],
)
async def test_native_options_that_clash_or_do_not_exist_are_refused(small, storyteller, native, words):
    with pytest.raises(InvalidConfig) as caught:
        await Engine.load("vllm", str(storyteller), **small, native=native)
    assert words in caught.value.message
    assert caught.value.field == f"native.{next(iter(native))}"


@pytest.mark.usefixtures("nothing_left")
async def test_a_full_queue_of_vllms_own_is_told_as_that(small, storyteller, all_running):
    try:
        loaded = await Engine.load("vllm", str(storyteller), **small, native={"max_num_queued_reqs": 1})
    except InvalidConfig:
        pytest.skip("this vLLM has no bound of its own")
    async with loaded as engine:
        first = asyncio.create_task(engine.generate([9] * 10, ignore_eos=True, max_tokens=900))
        await all_running(engine, [first])
        with pytest.raises(Overloaded):
            await engine.generate([9] * 10, max_tokens=4)
        assert len((await first).token_ids) == 900
        await engine.generate([9] * 10, max_tokens=4)


@pytest.mark.usefixtures("nothing_left")
async def test_a_load_that_is_cancelled_leaves_nothing(small, storyteller):
    task = asyncio.ensure_future(Engine.load("vllm", str(storyteller), **small)._load())
    await asyncio.sleep(12)  # in the middle of it: the engine core is coming up
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.usefixtures("nothing_left")
async def test_a_killed_core_fails_every_request_and_the_health_check(small, storyteller, all_running, make_adapter):
    import psutil

    async with Engine.load(
        "vllm",
        str(storyteller),
        **small | {"kv_cache": {"capacity_tokens": 4096}},
        native={"stream_interval": 1},
        lora={"max_rank": 4, "max_loras": 2, "adapters": {"one": str(make_adapter(1))}},
    ) as engine:

        async def call():
            """Requests, one after the other, until the engine ends one."""
            while True:
                await engine.generate([9] * 10, ignore_eos=True, max_tokens=900, sampling=SamplingParams(temperature=0))

        calls = [asyncio.create_task(call()) for _ in range(3)]
        await all_running(engine, calls)
        below = psutil.Process().children(recursive=True)
        for core in [child for child in below if "EngineCore" in child.name()]:
            os.kill(core.pid, signal.SIGKILL)
        failures = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(failure) for failure in failures] == [EngineDied] * 3
        with pytest.raises(EngineDied):
            await engine.health()
        # Of the engine, not of the adapter.
        with pytest.raises(EngineDied):
            await engine.load_lora("two", make_adapter(2))
        with pytest.raises(EngineDied):
            await engine.unload_lora("one")
