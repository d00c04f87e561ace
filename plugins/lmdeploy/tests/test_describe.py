import re
import subprocess
import sys

import pytest
from anyengine import EngineConfig
from anyengine.plugins import find_engines
from anyengine.request import GenerateRequest, SamplingParams
from anyengine_lmdeploy import plugin, versions
from anyengine_lmdeploy.capabilities import declared, narrowed
from anyengine_lmdeploy.environments import variants
from msgspec.structs import replace


def test_describing_imports_no_engine():
    program = (
        "import sys, anyengine_lmdeploy; anyengine_lmdeploy.plugin.describe(); "
        "print([name for name in ('lmdeploy', 'torch', 'xgrammar', 'numpy') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_it_is_found_by_its_name():
    installed = find_engines()
    if "lmdeploy" not in installed:
        pytest.skip("anyengine-lmdeploy is not installed here, only on the path")
    assert installed["lmdeploy"].broken is None


def test_without_the_engine_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda: None)
    assert plugin.describe().unavailable == "LMDeploy is not installed here"


@pytest.mark.parametrize(
    ("found", "fits"), [("0.17.2", False), ("0.18.0", True), ("0.18.1+cu130", True), ("0.19.0", False), ("1.0", False)]
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


def test_conflicts_name_fields_that_exist():
    roots = {
        "config": set(EngineConfig.model_fields),
        "request": set(GenerateRequest.model_fields),
        "sampling": set(SamplingParams.model_fields),
    }
    for conflict in declared().conflicts:
        for name in (conflict.first, conflict.second):
            root, _, field = name.partition(".")
            assert field.partition(".")[0] in roots[root]


@pytest.fixture
def loaded(model):
    """``loaded(backend, config fields)``: the capabilities of such an engine."""

    def make(backend, files=model, *, vocab_size=300, speculates=False, **fields):
        return narrowed(EngineConfig(**fields), files, backend, vocab_size=vocab_size, speculates=speculates)

    return make


def test_each_backend_declares_what_it_has(loaded):
    turbomind, pytorch = loaded("turbomind"), loaded("pytorch")
    both = {"min_p", "seed", "temperature", "top_k", "top_p"}
    assert turbomind.sampling == both | {"repetition_penalty"}
    assert pytorch.sampling == both | {"allowed_token_ids", "logit_bias"}
    assert turbomind.request == pytorch.request == {"ignore_eos", "stop_token_ids"}
    assert (turbomind.sleep, pytorch.sleep) == (False, True)
    assert (turbomind.quantization, turbomind.speculative) == (frozenset(), frozenset())
    assert (pytorch.quantization, pytorch.speculative) == ({"fp8"}, {"eagle", "eagle3", "mtp"})
    assert pytorch.config - turbomind.config == {"execution", "kv_cache.capacity_tokens", "lora"}


@pytest.mark.parametrize("backend", ["turbomind", "pytorch"])
def test_a_loaded_engine_declares_no_more_than_was_said_before(loaded, backend):
    every, found = declared(), loaded(backend)
    for name in ("config", "sampling", "request", "structured", "dtypes", "devices", "quantization", "speculative"):
        assert getattr(found, name) <= getattr(every, name), name
    assert found.max_logprobs == 300


def test_everything_that_is_declared_one_of_the_two_has(loaded, model, tmp_path):
    every = declared()
    loras = replace(model, loras={"a": tmp_path})
    found = [loaded("turbomind"), loaded("pytorch", loras, lora={"adapters": {"a": "x"}})]
    for name in ("config", "sampling", "request", "structured", "quantization", "speculative"):
        assert getattr(found[0], name) | getattr(found[1], name) == getattr(every, name), name


def test_several_devices_have_no_hooks(loaded):
    assert loaded("pytorch", parallel={"tensor": 2}).sampling.isdisjoint({"allowed_token_ids", "logit_bias"})


def test_a_model_of_other_widths_has_no_fp8(loaded, model):
    assert loaded("pytorch", replace(model, config=model.config | {"intermediate_size": 704})).quantization == set()


def test_scores_and_the_prefix_cache_exclude_each_other_on_turbomind(loaded):
    cached = {"kv_cache": {"prefix_caching": True}}
    assert [loaded(backend, **cached).score for backend in ("turbomind", "pytorch")] == [False, True]
    assert [loaded(backend).score for backend in ("turbomind", "pytorch")] == [True, True]


def test_sleep_and_prefix_caching_exclude_each_other(loaded):
    """After it the cache is all zeros, and LMDeploy would answer from it."""
    cached = {"kv_cache": {"prefix_caching": True}}
    assert [loaded(backend).sleep for backend in ("turbomind", "pytorch")] == [False, True]
    assert [loaded(backend, **cached).sleep for backend in ("turbomind", "pytorch")] == [False, False]


def test_drafts_have_no_log_probabilities_and_no_grammars(loaded):
    found = loaded("pytorch", speculates=True)
    assert (found.logprobs, found.prompt_logprobs, found.max_logprobs, found.score, found.structured) == (
        "none",
        "none",
        0,
        False,
        frozenset(),
    )
    assert found.sampling == {"temperature"}


def test_pins_are_exact_and_name_no_place():
    for variant in variants().values():
        requirements = [requirement for step in variant.steps for requirement in step.requirements]
        assert all(re.fullmatch(r"[\w.\-\[\]]+==[\w.+!]+", requirement) for requirement in requirements)
        assert "LMDeploy 0.18.0" in variant.tested
