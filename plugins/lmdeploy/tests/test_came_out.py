"""What LMDeploy has no memory or no kernel for it changes, with a warning; here it is refused, and nothing stays."""

from __future__ import annotations

import json

import pytest
from anyengine import EngineConfig
from anyengine.errors import InvalidConfig, UnsupportedParameter
from anyengine.hub import ModelFiles
from anyengine_lmdeploy import plugin

pytestmark = pytest.mark.anyio

#: Of the simulated cache: 64 tokens of 4 layers, 2 heads for keys and values, 64 wide, in float32.
BLOCK = 2 * 4 * 2 * 64 * 4 * 64
GIB = 2**30


@pytest.fixture
def files(storyteller, tmp_path):
    """``files(changes)``: the checkpoint, with changes to its ``config.json``."""

    def make(**changes):
        config = json.loads((storyteller / "config.json").read_bytes()) | changes
        for file in storyteller.iterdir():
            if file.name != "config.json":
                (tmp_path / file.name).symlink_to(file)
        (tmp_path / "config.json").write_text(json.dumps(config))
        return ModelFiles(
            name="m", path=tmp_path, tokenizer_path=tmp_path, config=config, eos_token_ids=frozenset({0, 2})
        )

    return make


@pytest.fixture
def closed(simulated, monkeypatch):
    """How many engines were closed, as the length of this list."""
    from lmdeploy.serve.core import AsyncEngine

    ended, close = [], AsyncEngine.close
    monkeypatch.setattr(AsyncEngine, "close", lambda self: (ended.append(self), close(self))[1])
    return ended


@pytest.fixture
def large_heads(simulated, monkeypatch):
    """Those of the checkpoint are large to the simulation, which has blocks of 32 for such."""
    monkeypatch.setattr("lmdeploy.simulation.cache._LARGE_HEAD", 64)


def pytorch(**fields):
    return EngineConfig(native={"backend": "pytorch"}, **fields)


def holding(blocks, files):
    """The share of the device that leaves room for as many blocks."""
    weights = sum(file.stat().st_size for file in files.path.glob("*.safetensors"))
    return {"gpu_memory_fraction": (weights + (blocks + 0.5) * BLOCK) / (80 * GIB)}


async def refused(config, files, closed, error=UnsupportedParameter):
    with pytest.raises(error) as caught:
        await plugin.load(config, files)
    assert len(closed) == 1
    return caught.value


async def test_prefix_caching_that_a_sliding_window_switches_off(files, closed):
    model = files(sliding_window=512)
    error = await refused(pytorch(kv_cache={"prefix_caching": True}), model, closed)
    assert error.field == "kv_cache.prefix_caching"
    await (await plugin.load(pytorch(), model)).close()


async def test_a_window_that_is_not_used_leaves_prefix_caching_on(files, simulated):
    made = await plugin.load(
        pytorch(kv_cache={"prefix_caching": True}), files(sliding_window=512, use_sliding_window=False)
    )
    assert (await made.stats()).kv_cache.prefix_queries == 0
    await made.close()


async def test_a_context_that_the_cache_does_not_hold(files, closed):
    model = files()
    config = pytorch(max_model_len=1024, kv_cache=holding(16, model))
    error = await refused(config, model, closed, InvalidConfig)
    assert error.field == "max_model_len"
    assert "holds a context of 960" in error.message


@pytest.mark.parametrize("asked", [{}, {"max_model_len": 960}])
async def test_a_context_that_was_not_asked_for_is_as_long_as_the_cache_holds(files, simulated, asked):
    model = files()
    made = await plugin.load(pytorch(kv_cache=holding(16, model), **asked), model)
    assert made.info.max_model_len == 960
    await made.close()


@pytest.mark.parametrize(
    ("kv_cache", "field"),
    [
        ({"block_size": 64}, "kv_cache.block_size"),
        ({"capacity_tokens": 2048}, "kv_cache.capacity_tokens"),
    ],
)
async def test_blocks_of_another_size(files, closed, large_heads, kv_cache, field):
    error = await refused(pytorch(kv_cache=kv_cache), files(), closed)
    assert error.field == field


@pytest.mark.parametrize(
    ("kv_cache", "capacity"),
    [({"block_size": 32, "capacity_tokens": 2048}, 2048), ({"block_size": 32}, 32768), ({}, 32768)],
)
async def test_capacity_is_counted_in_the_blocks_that_there_are(files, simulated, large_heads, kv_cache, capacity):
    made = await plugin.load(pytorch(kv_cache=kv_cache), files())
    assert (await made.stats()).kv_cache.capacity_tokens == capacity
    await made.close()


async def test_tokens_of_a_step_that_memory_does_not_suffice_for(files, closed):
    # They leave room for 8 of the 16 blocks that there have to be.
    left = 8.5 * BLOCK / 0.8
    tokens = int((70 * GIB - left) / (4096 * 2)) - 2 * 128
    error = await refused(pytorch(scheduling={"max_num_batched_tokens": tokens}), files(), closed)
    assert error.field == "scheduling.max_num_batched_tokens"
    assert error.supported == [str(tokens // 2)]


@pytest.mark.parametrize("asked", ["auto", "bfloat16"])
async def test_another_dtype_on_turbomind(files, closed, monkeypatch, asked):
    from lmdeploy.simulation.turbomind import TurboMind

    begin = TurboMind.__init__

    def downgraded(self, *args):
        begin(self, *args)
        self.engine_config.dtype = "float16"

    monkeypatch.setattr(TurboMind, "__init__", downgraded)
    error = await refused(EngineConfig(native={"backend": "turbomind"}, dtype=asked), files(), closed)
    assert (error.field, error.supported) == ("dtype", ["float16"])
    assert "go on with float16" in error.message


async def test_another_dtype_than_the_checkpoints_own_in_pytorch(files, closed, monkeypatch):
    from lmdeploy.simulation.pytorch import Engine

    begin = Engine.__init__

    def downgraded(self, *args):
        begin(self, *args)
        self.model_config.dtype = "torch.float16"

    monkeypatch.setattr(Engine, "__init__", downgraded)
    error = await refused(pytorch(), files(), closed)
    assert (error.field, error.supported) == ("dtype", ["float16"])
