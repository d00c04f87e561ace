"""Checkpoints of many kinds: computed as transformers computes them when it is called directly, or refused by name."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from anyengine import InvalidConfig, ModelNotFound, OutOfMemory, SamplingParams, UnsupportedParameter

pytestmark = pytest.mark.oracle

GREEDY = SamplingParams(temperature=0)
TEXT = list(range(5, 45))
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "GPT2Config": {},
    "Gemma2Config": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6},
    "Gemma3TextConfig": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6},
    "PhiConfig": {},
    "Qwen2MoeConfig": {**EXPERTS, "num_key_value_heads": 2, "shared_expert_intermediate_size": 16},
    "OlmoConfig": {},
    "OPTConfig": {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1},
    "BloomConfig": {"n_layer": 2, "n_head": 4},
    "GraniteConfig": {"logits_scaling": 3.0},
    "MambaConfig": {"state_size": 4},
}
#: Architectures without the name of a context's length in their configuration.
ENDLESS = {"BloomConfig", "MambaConfig"}


@pytest.mark.parametrize("kind", ARCHITECTURES)
async def test_scores_and_greedy_tokens_are_those_of_transformers(kind, load, checkpoint, direct):
    folder = checkpoint(kind, **ARCHITECTURES[kind])
    logits = direct(folder)
    async with load(folder, **({"max_model_len": 256} if kind in ENDLESS else {})) as engine:
        score = await engine.score(TEXT)
        answer = await engine.generate(TEXT, sampling=GREEDY, max_tokens=16, ignore_eos=True, logprobs=0)
        stats = await engine.stats()
    expected = logits(TEXT).log_softmax(-1)
    assert score.logprobs == pytest.approx([expected[i, token].item() for i, token in enumerate(TEXT[1:])], abs=1e-4)
    rows = logits(TEXT + answer.token_ids).log_softmax(-1)[len(TEXT) - 1 : -1]
    assert answer.token_ids == rows.argmax(-1).tolist()
    assert [entry.logprob for entry in answer.logprobs] == pytest.approx(rows.max(-1).values.tolist(), abs=1e-4)
    # What keeps a state of another kind than keys and values is computed anew for each token.
    assert stats.native["keeps_cache"] == (kind != "MambaConfig")


async def test_a_model_that_looks_ahead_is_refused(load, checkpoint):
    with pytest.raises(UnsupportedParameter, match="no causal language model") as caught:
        await load(checkpoint("BertConfig"))
    assert caught.value.field == "model"


@pytest.mark.parametrize(
    ("change", "says"),
    [({"model_type": "from_the_future"}, "does not know"), ({"model_type": "vit"}, "no causal language model")],
)
async def test_what_transformers_has_no_language_model_for_is_refused_by_name(change, says, load, checkpoint, tmp_path):
    with pytest.raises(UnsupportedParameter, match=says) as caught:
        await load(_changed(checkpoint(), tmp_path, **change))
    assert caught.value.field == "model"


async def test_missing_weights_are_refused_and_never_made_up(load, checkpoint, tmp_path):
    with pytest.raises(ModelNotFound, match=r"layers\.2\."):
        await load(_changed(checkpoint(), tmp_path / "a", num_hidden_layers=3))
    with pytest.raises(ModelNotFound, match="other shapes"):
        await load(_changed(checkpoint(), tmp_path / "b", intermediate_size=40))


async def test_code_of_a_checkpoint_runs_only_if_asked_for(load, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    folder = _changed(checkpoint(), tmp_path / "model", model_type="own", auto_map=own)
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(UnsupportedParameter, match="Python code of its own") as caught:
        await load(folder)
    assert caught.value.field == "trust_remote_code"
    async with load(folder, trust_remote_code=True) as engine, load() as plain:
        assert (await engine.score(TEXT)).logprobs == (await plain.score(TEXT)).logprobs


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 0.2), ("float16", 0.03)])
async def test_each_dtype_is_that_of_transformers(dtype, error, load, checkpoint, direct):
    import torch

    async with load(dtype=dtype) as engine:
        assert engine.info.dtype == dtype
        score = await engine.score(TEXT)
    expected = direct(checkpoint(), dtype=getattr(torch, dtype))(TEXT).log_softmax(-1)
    assert score.logprobs == pytest.approx([expected[i, token].item() for i, token in enumerate(TEXT[1:])], abs=1e-6)
    exact = direct(checkpoint())(TEXT).log_softmax(-1)
    assert score.logprobs == pytest.approx([exact[i, token].item() for i, token in enumerate(TEXT[1:])], abs=error)


async def test_auto_is_float32_whatever_the_checkpoint_is(load, checkpoint, tmp_path):
    async with load(_changed(checkpoint(), tmp_path, dtype="bfloat16")) as engine, load() as plain:
        assert engine.info.dtype == "float32"
        assert (await engine.score(TEXT)).logprobs == (await plain.score(TEXT)).logprobs


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
async def test_attention_is_as_asked(attention, load, monkeypatch):
    from anyengine_transformers import model

    seen = []
    begin = model.CausalLM.__init__

    def spy(self, module, *rest):
        seen.append(module.config._attn_implementation)
        begin(self, module, *rest)

    monkeypatch.setattr(model.CausalLM, "__init__", spy)
    async with load(native={"attn_implementation": attention}):
        assert seen == [attention]


async def test_attention_that_an_architecture_lacks_is_refused(load, checkpoint):
    folder = checkpoint("BloomConfig", **ARCHITECTURES["BloomConfig"])
    with pytest.raises(UnsupportedParameter) as caught:
        await load(folder, max_model_len=64, native={"attn_implementation": "sdpa"})
    assert (caught.value.field, caught.value.supported) == ("native.attn_implementation", ["eager"])


async def test_the_context_is_the_models_or_a_smaller_one(load, checkpoint):
    async with load() as engine:
        assert engine.info.max_model_len == 256
    async with load(max_model_len=99) as engine:
        assert engine.info.max_model_len == 99
    with pytest.raises(InvalidConfig) as caught:
        await load(max_model_len=257)
    assert caught.value.field == "max_model_len"
    with pytest.raises(InvalidConfig, match="does not say"):
        await load(checkpoint("BloomConfig", **ARCHITECTURES["BloomConfig"]))


async def test_float32_that_is_less_in_this_process_is_refused(load, monkeypatch):
    monkeypatch.setattr("torch.get_float32_matmul_precision", lambda: "high")
    with pytest.raises(UnsupportedParameter, match="worker") as caught:
        await load()
    assert caught.value.field == "dtype"
    async with load(dtype="bfloat16") as engine:
        assert engine.info.dtype == "bfloat16"


async def test_a_missing_gpu_is_named(load, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UnsupportedParameter) as caught:
        await load(device="cuda")
    assert (caught.value.field, caught.value.supported) == ("device", ["cpu"])


async def test_batch_invariance_is_not_promised_where_earlier_texts_leave_traces(load, checkpoint):
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    folder = checkpoint("LlamaConfig", rope_parameters=rope)
    async with load(folder) as engine:
        assert engine.capabilities.determinism == {"run"}
    with pytest.raises(UnsupportedParameter) as caught:
        await load(folder, determinism="batch-invariant")
    assert caught.value.field == "determinism"


async def test_memory_that_does_not_suffice_is_named(load, monkeypatch):
    import torch

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", full)
    with pytest.raises(OutOfMemory, match=r"2\.00 GiB"):
        await load()


def _changed(folder, copy, **config):
    """A copy with another config.json."""
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    file = copy / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return copy
