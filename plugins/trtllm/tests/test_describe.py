import re
import subprocess
import sys

import pytest
from anyengine import EngineConfig
from anyengine.plugins import find_engines
from anyengine.request import GenerateRequest, SamplingParams
from anyengine_trtllm import plugin, versions
from anyengine_trtllm.capabilities import NOT_IN_TORCH_SAMPLER, declared, narrowed
from anyengine_trtllm.environments import variants
from anyengine_trtllm.options import parse_options
from msgspec.structs import replace


def test_describing_imports_no_engine():
    program = (
        "import sys, anyengine_trtllm; anyengine_trtllm.plugin.describe(); "
        "print([name for name in ('tensorrt_llm', 'torch', 'mpi4py', 'llguidance', 'numpy') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_it_is_found_by_its_name():
    installed = find_engines()
    if "trtllm" not in installed:
        pytest.skip("anyengine-trtllm is not installed here, only on the path")
    assert installed["trtllm"].broken is None


def test_without_the_engine_it_says_where_to_read_on(monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda: None)
    assert "docs/engines/trtllm.md" in plugin.describe().unavailable


@pytest.mark.parametrize(
    ("found", "fits"), [("1.1.0", False), ("1.2.1", True), ("1.2.2+cu130", True), ("1.3.0", False)]
)
def test_only_the_release_that_is_mapped_runs(monkeypatch, found, fits):
    monkeypatch.setattr(versions, "installed", lambda: found)
    monkeypatch.setattr(versions, "find_spec", lambda _: object())
    unavailable = plugin.describe().unavailable
    assert (unavailable is None) is fits
    if not fits:
        assert found in unavailable


def test_it_wants_a_process_of_its_own():
    assert plugin.describe().in_process is False


def test_everything_that_is_declared_is_unproven():
    capabilities = declared()
    lists = (
        capabilities.config,
        capabilities.sampling,
        capabilities.request,
        capabilities.structured,
        capabilities.dtypes,
        capabilities.devices,
        capabilities.quantization,
        capabilities.speculative,
        {"native", "token_prompts", "score", "dynamic_lora", "logprobs", "prompt_logprobs"},
    )
    assert capabilities.unproven == frozenset().union(*lists)


def test_conflicts_name_fields_that_exist():
    roots = {
        "config": set(EngineConfig.model_fields),
        "request": set(GenerateRequest.model_fields),
        "sampling": set(SamplingParams.model_fields),
    }
    for conflict in declared().conflicts:
        for name in (conflict.first, conflict.second):
            root, _, field = name.partition(".")
            assert field in roots[root]


@pytest.fixture
def loaded(model):
    """``loaded(config fields)``: the capabilities of such an engine."""

    def make(files=model, /, **fields):
        config = EngineConfig(**fields)
        caching = config.kv_cache.prefix_caching is not False
        return narrowed(config, parse_options(config), files, vocab_size=300, prefix_caching=caching)

    return make


def test_a_loaded_engine_declares_less(loaded, model):
    every = declared()
    assert every.request - loaded().request == {"lora"}
    assert loaded().quantization == frozenset()
    assert loaded().dtypes == {"bfloat16"}
    assert loaded().max_logprobs == 300
    assert "cache_salt" not in loaded(kv_cache={"prefix_caching": False}).request
    assert "min_tokens" not in loaded(replace(model, eos_token_ids=frozenset({1, 2}))).request


@pytest.mark.parametrize(
    "fields", [{"speculative": {"method": "ngram"}}, {"native": {"sampler_type": "TorchSampler"}}], ids=str
)
def test_what_the_sampler_in_pytorch_ignores_is_not_declared(loaded, fields):
    found = loaded(**fields)
    assert found.sampling == frozenset(SamplingParams.model_fields) - NOT_IN_TORCH_SAMPLER
    assert "min_tokens" not in found.request
    assert found.unseeded == "varies"


@pytest.mark.parametrize("method", ["mtp", "eagle3"])
def test_where_the_model_takes_its_tokens_itself_logits_are_not_biased(loaded, method):
    fields = {"method": method, "model": None if method == "mtp" else "d"}
    assert loaded(speculative=fields).sampling.isdisjoint({"allowed_token_ids", "logit_bias"})
    assert {"allowed_token_ids", "logit_bias"} <= loaded(speculative={"method": "ngram"}).sampling


def test_drafts_have_no_logits_and_no_grammars(loaded):
    found = loaded(speculative={"method": "ngram"})
    assert (found.logprobs, found.prompt_logprobs, found.score, found.structured) == (
        "none",
        "none",
        False,
        frozenset(),
    )


def test_a_built_engine_has_no_logits_and_no_lark_grammars(loaded):
    found = loaded(native={"backend": "tensorrt"})
    assert (found.logprobs, found.max_logprobs, found.score) == ("none", 0, False)
    assert found.structured == {"choice", "json_schema", "regex"}
    assert (found.quantization, found.dtypes) == (declared().quantization, declared().dtypes)


def test_pins_are_exact_name_no_place_and_claim_nothing():
    for variant in variants().values():
        requirements = [requirement for step in variant.steps for requirement in step.requirements]
        assert all(re.fullmatch(r"[\w.\-\[\]]+==[\w.+!]+", requirement) for requirement in requirements)
        assert variant.tested.startswith("never") is not variant.quantize
