"""What vLLM is asked for when it is brought up; its classes are scripted."""

from types import SimpleNamespace

import pytest
from anyengine import EngineConfig
from anyengine.errors import InvalidConfig
from anyengine.hub import ModelFiles
from anyengine_vllm import startup
from anyengine_vllm.library import Library


async def test_sizes_that_are_left_out_are_those_of_vllms_server(monkeypatch, tmp_path):
    files = ModelFiles(name="m", path=tmp_path, tokenizer_path=tmp_path, config={}, eos_token_ids=frozenset())
    asked = []

    class Arguments:
        def __init__(self, **values):
            self.values = values

        def create_engine_config(self, usage_context):
            asked.append((self.values.get("max_num_seqs"), self.values.get("max_num_batched_tokens"), usage_context))
            raise InvalidConfig("far enough")

    library = Library(
        engine_args=Arguments,
        argument_names=frozenset(),
        platform=SimpleNamespace(device_type="cpu"),
        amx=False,
        serving="server",
        logging=None,
        **dict.fromkeys(
            ("async_llm", "sampling_params", "structured", "delta", "final_only", "pooling_params", "lora_request"),
        ),
        stat_logger=None,
    )
    monkeypatch.setattr(startup, "load_library", lambda: library)
    with pytest.raises(InvalidConfig, match="far enough"):
        await startup.start(EngineConfig(model="m"), files)
    assert asked == [(None, None, "server")]
