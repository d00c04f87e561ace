"""What vLLM is asked for when it is brought up; its classes are scripted."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
from anyengine import EngineConfig
from anyengine.errors import InvalidConfig, UnsupportedParameter
from anyengine.hub import ModelFiles
from anyengine_vllm import startup
from anyengine_vllm.library import Library


@pytest.fixture
def load(monkeypatch, tmp_path):
    """``load(made, config fields)``: what is asked of vLLM, whose configuration comes out as ``made``."""

    async def run(made, /, checkpoint=None, **fields):
        asked = []

        class Arguments:
            def __init__(self, **values):
                self.values = values

            def create_engine_config(self, usage_context):
                asked.append((self.values, usage_context))
                return made

        class Engine:
            @staticmethod
            def from_vllm_config(*_, **__):
                raise InvalidConfig("far enough")

        named = ("sampling_params", "structured", "delta", "final_only", "pooling_params", "lora_request")
        library = Library(
            engine_args=Arguments,
            argument_names=frozenset(),
            async_llm=Engine,
            platform=SimpleNamespace(device_type="cpu"),
            amx=False,
            serving="server",
            logging=None,
            stat_logger=object,
            **dict.fromkeys(named),
        )
        monkeypatch.setattr(startup, "load_library", lambda: library)
        files = ModelFiles(
            name="m", path=tmp_path, tokenizer_path=tmp_path, config=checkpoint or {}, eos_token_ids=frozenset()
        )
        with pytest.raises(InvalidConfig, match="far enough"):
            await startup.start(EngineConfig(model="m", **fields), files)
        return asked[0]

    return run


def made(dtype="torch.bfloat16", **fields):
    """A ``VllmConfig``."""
    fields = {
        "block_size": 16,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 128,
    } | fields
    of_both = SimpleNamespace(**fields)
    return SimpleNamespace(model_config=SimpleNamespace(dtype=dtype), cache_config=of_both, scheduler_config=of_both)


async def test_sizes_that_are_left_out_are_those_of_vllms_server(load):
    values, usage = await load(made())
    assert ("max_num_seqs" in values, "max_num_batched_tokens" in values, usage) == (False, False, "server")


async def test_a_type_that_vllm_falls_back_from_is_refused(load):
    with pytest.raises(UnsupportedParameter, match="of float32 vLLM makes bfloat16") as caught:
        await load(made(), checkpoint={"dtype": "float32"})
    assert (caught.value.field, caught.value.supported) == ("dtype", ["bfloat16"])
    await load(made("torch.float32"), checkpoint={"dtype": "float32"})
    # Where the checkpoint names none, whatever vLLM took is right.
    await load(made("torch.float16"))


@pytest.mark.parametrize(
    ("part", "name", "value", "argument", "other"),
    [
        ("kv_cache", "block_size", 64, "block_size", 16),
        ("kv_cache", "prefix_caching", True, "enable_prefix_caching", False),
        ("kv_cache", "prefix_caching", False, "enable_prefix_caching", True),
        ("scheduling", "chunked_prefill", True, "enable_chunked_prefill", False),
        ("scheduling", "max_num_batched_tokens", 4096, "max_num_batched_tokens", 2048),
        ("scheduling", "max_num_seqs", 64, "max_num_seqs", 8),
    ],
)
async def test_what_vllm_overrides_is_refused_by_name(load, part, name, value, argument, other):
    asked = {part: {name: value}}
    with pytest.raises(UnsupportedParameter, match=f"of {value} vLLM makes {other}") as caught:
        await load(made(**{argument: other}), **asked)
    assert (caught.value.field, caught.value.supported) == (f"{part}.{name}", [str(other)])
    values, _ = await load(made(**{argument: value}), **asked)
    assert values[argument] == value
    # What nobody asked for, vLLM decides.
    await load(made(**{argument: other}))


# -- what is cancelled --------------------------------------------------------------------------------


async def test_a_load_that_is_given_up_leaves_no_process_whatever_is_cancelled(
    monkeypatch, tmp_path, survives_cancellation
):
    loading, go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def build(*_):
        loop.call_soon_threadsafe(loading.set)
        go.wait(20)
        raise InvalidConfig("too late")

    monkeypatch.setattr(startup, "_build", build)
    starting = asyncio.create_task(startup.start(EngineConfig(model="m"), None))
    await loading.wait()
    starting.cancel()
    go.set()
    assert await survives_cancellation(startup, "_abandon", starting)


async def test_the_processes_of_a_load_that_failed_are_ended_whatever_is_cancelled(monkeypatch):
    ending, go, ended = asyncio.Event(), threading.Event(), []
    loop = asyncio.get_running_loop()

    def build(*_):
        raise InvalidConfig("cannot be")

    def end(processes):
        loop.call_soon_threadsafe(ending.set)
        go.wait(20)
        ended.append(processes)

    monkeypatch.setattr(startup, "_build", build)
    monkeypatch.setattr(startup, "_end", end)
    starting = asyncio.create_task(startup.start(EngineConfig(model="m"), None))
    await ending.wait()
    for _ in range(3):
        starting.cancel()
        await asyncio.sleep(0)
    assert not starting.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert ended == [[]]
