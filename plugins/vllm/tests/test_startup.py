"""What vLLM is asked for when it is brought up; its classes are scripted."""

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


def made(dtype="torch.bfloat16"):
    """A ``VllmConfig``."""
    return SimpleNamespace(model_config=SimpleNamespace(dtype=dtype))


async def test_sizes_that_are_left_out_are_those_of_vllms_server(load):
    values, usage = await load(made())
    assert ("max_num_seqs" in values, "max_num_batched_tokens" in values, usage) == (False, False, "server")


async def test_a_type_that_vllm_falls_back_from_is_refused(load):
    with pytest.raises(UnsupportedParameter, match="bfloat16 here, not in float32") as caught:
        await load(made(), checkpoint={"dtype": "float32"})
    assert (caught.value.field, caught.value.supported) == ("dtype", ["bfloat16"])
    await load(made("torch.float32"), checkpoint={"dtype": "float32"})
    # Where the checkpoint names none, whatever vLLM took is right.
    await load(made("torch.float16"))
