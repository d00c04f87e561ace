"""No step of the proof meets a refusal that it does not expect: minutes of a GPU are scarce, and this costs none.

Every configuration that a step loads vLLM or LMDeploy with goes through all that refuses it, on two GPUs like an H200
that are told of here: what the plugin declares, its mapping, and its look at what the engine made of that. The engines
are not there; what they make of such a model is told after their sources.
"""

import json
import sys
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from anyengine import EngineConfig
from anyengine.backend.model_config import text_config
from anyengine.cli.options import Assignment, merged
from anyengine.errors import UnsupportedParameter
from anyengine.hub import ModelFiles
from anyengine.plugins import find_engines
from anyengine.quantization import why_not
from anyengine.runtime.checks import check_config
from anyengine_conformance.adapters import make_adapter
from anyengine_conformance.check import OWN, all_checks, variants
from anyengine_conformance.cli import _settings, conformance
from anyengine_conformance.needs import declared, parse
from anyengine_conformance.refusals import config_of
from anyengine_conformance.subject import Garage, laid_over, target_of
from anyengine_lmdeploy import capabilities as lmdeploy_capabilities
from anyengine_lmdeploy import checks as lmdeploy_checks
from anyengine_lmdeploy import config as lmdeploy_config
from anyengine_lmdeploy import options as lmdeploy_options
from anyengine_lmdeploy import startup as lmdeploy_startup
from anyengine_vllm import capabilities as vllm_capabilities
from anyengine_vllm import config as vllm_config
from anyengine_vllm import taken as vllm_taken

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tools.gpu_proof.plan import Plan  # noqa: E402 the repository is no package
from tools.gpu_proof.step import Step  # noqa: E402

STORYTELLER = "plugins/reference/src/anyengine_reference/models/storyteller"
ENGINES = ("vllm", "lmdeploy")
PYTHONS = dict.fromkeys((*ENGINES, "compressor"), sys.executable)
GIB = 2**30
#: What of SmolLM2-135M-Instruct's ``config.json`` plugins look at.
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "dtype": "bfloat16",
    "head_dim": 64,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}
TORCH: Any = SimpleNamespace(cuda=SimpleNamespace(device_count=lambda: 2, get_device_capability=lambda: (9, 0)))


@dataclass(frozen=True)
class Load:
    """An engine that somebody loads."""

    who: str
    engine: str
    fields: dict[str, Any]


# -- what is loaded ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """The proof, of a checkpoint without weights."""
    folder = tmp_path_factory.mktemp("models")
    for name, changes in {"SmolLM2-135M-Instruct": {}, "draft": {"num_hidden_layers": 4}}.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(SMOLLM2 | changes))
    return Plan(str(folder / "SmolLM2-135M-Instruct"), folder / "results", PYTHONS, made=folder)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Those with which the suite loads an engine."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("first", "second")):
        make_adapter(ROOT / STORYTELLER, folder / name, seed)
    return {"adapters": {path.name: str(path) for path in folder.iterdir()}, "max_rank": 8, "max_loras": 2}


def of_step(step: Step, plan: Plan, adapters: dict[str, Any]) -> list[Load]:
    """What a step loads."""
    kind, _, rest = step.name.partition("/")
    command = step.command
    words = [Assignment().convert(word, None, None) for flag, word in pairwise(command) if flag == "-o"]
    fields = merged({"model": plan.model}, words)
    name = command[command.index("answer") + 1] if kind == "answers" else command[2]
    made = [fields]
    if kind in ("conformance", "conformance-smollm2", "determinism"):
        return of_suite(step, adapters)
    if kind in ("draft", "quantize", "tests", "two-gpus"):  # no engine, or tests of their own
        return []
    if kind == "speculation":
        made.append(fields | {"speculative": json.loads(command[command.index("--speculative") + 1])})
    elif kind == "side-by-side":
        fields["kv_cache"] = {"gpu_memory_fraction": float(command[command.index("--memory") + 1])}
        return [Load(step.name, each.partition("@")[0], fields) for each in plan.side_by_side[:2]]
    elif kind == "overhead":  # as `uniform` of benchmarks/against_native.py is called
        fields |= {"dtype": "bfloat16", "max_model_len": 512, "scheduling": {"max_num_seqs": 256}}
        vllm = {"kv_cache": {"capacity_tokens": 256 * 512}}
        turbomind = {"kv_cache": {"gpu_memory_fraction": 0.05}, "native": {"backend": "turbomind"}}
        name, settings = ("vllm", vllm) if rest.startswith("vllm/") else ("lmdeploy", turbomind)
        fields |= settings
    else:
        assert kind in ("answers", "quantized", "concurrency")
    return [Load(step.name, name, fields) for fields in made]


def of_suite(step: Step, adapters: dict[str, Any]) -> list[Load]:
    """What the checks of a run load, as far as the loaded engine declares it; the rest is refused, as it should be."""
    context = conformance.commands["run"].make_context("run", [*step.command[step.command.index("run") + 1 :]])
    given = dict(context.params)
    only = set(given.pop("only"))
    settings = _settings(given.pop("engine"), given)
    if settings.engine not in ENGINES:
        return []
    garage = Garage(target_of(settings), settings)
    loaded = narrowed(settings.engine, EngineConfig(**garage.config("default")))
    found: dict[str, Load] = {}
    for made in all_checks():
        needs = [need for need in (*variants()[made.variant].needs, *made.needs) if parse(need).at_load]
        lacking = garage.lacks(made.variant) or not all(declared(need, loaded) for need in needs)
        if made.id not in only or lacking:
            continue
        fields = garage.config(made.variant)
        for need in needs if made.variant == OWN else ():
            fields = laid_over(fields, {"lora": adapters} if need == "config.lora" else config_of(parse(need)))
        found.setdefault(json.dumps(fields), Load(f"{step.name}: {made.id}", settings.engine, fields))
    return list(found.values())


# -- whether it is taken ----------------------------------------------------------------------------------------------


@cache
def described(engine: str):
    """What the plugin declares."""
    return find_engines()[engine].description


def files_of(config: EngineConfig) -> ModelFiles:
    """As the hub resolves them, but for weights and tokenizers."""
    folder = Path(config.model or "")
    draft = config.speculative.model if config.speculative else None
    return ModelFiles(
        name=folder.name,
        path=folder,
        tokenizer_path=folder,
        config=json.loads((folder / "config.json").read_bytes()),
        eos_token_ids=frozenset({2}),
        draft=None if draft is None else files_of(EngineConfig(model=draft)),
        loras={name: Path(place) for name, place in (config.lora.adapters if config.lora else {}).items()},
    )


def narrowed(engine: str, config: EngineConfig):
    """What the loaded engine declares."""
    if engine == "vllm":
        known = {"vocab_size": 4096, "prefix_caching": True, "chunked_prefill": True}
        return vllm_capabilities.narrowed(config, device="cuda", **known)
    backend = config.native["backend"]
    return lmdeploy_capabilities.narrowed(config, files_of(config), backend, vocab_size=4096, speculates=False)


def take(load: Load) -> None:
    """Load it, as far as that goes here."""
    config = EngineConfig(**load.fields)
    check_config(load.engine, described(load.engine).capabilities, config)
    model = files_of(config)
    reason = why_not(described(load.engine).checkpoints, model.path, model.config, lambda: (9, 0))
    if reason is not None:
        raise UnsupportedParameter(reason)
    (take_vllm if load.engine == "vllm" else take_lmdeploy)(config, model)


def take_vllm(config: EngineConfig, model: ModelFiles) -> None:
    """Also what vLLM 0.25.1 makes of it: ``EngineArgs.create_engine_config``, ``EngineCore._initialize_kv_caches``."""
    sent = vllm_config.engine_arguments(config, model, "cuda").values
    context = sent.get("max_model_len", text_config(model.config)["max_position_embeddings"])
    sequences = sent.get("max_num_seqs", 1024)  # of vLLM's server on an H200
    tokens = sent.get("max_num_batched_tokens", min(8192, sequences * context))
    block, blocks = sent.get("block_size", 16), sent.get("num_gpu_blocks_override", 10_000)
    assert tokens >= sequences
    assert sent.get("enable_chunked_prefill", True) or tokens >= context
    if config.speculative is not None and config.speculative.method == "draft_model":
        assert tokens > sequences  # each sequence takes a place of a step more (``_set_max_num_scheduled_tokens``)
    came_out = SimpleNamespace(
        model_config=SimpleNamespace(dtype=f"torch.{sent['dtype']}", max_model_len=context),
        cache_config=SimpleNamespace(
            block_size=block,
            num_gpu_blocks=blocks,
            enable_prefix_caching=sent.get("enable_prefix_caching", True),
            kv_cache_size_tokens=int(blocks / -(-context // block) * context),
        ),
        scheduler_config=SimpleNamespace(
            enable_chunked_prefill=sent.get("enable_chunked_prefill", True),
            max_num_batched_tokens=tokens,
            max_num_seqs=sequences,
        ),
    )
    vllm_taken.check_taken(config, sent, came_out)
    vllm_taken.capacity_tokens(config, came_out)


def take_lmdeploy(config: EngineConfig, model: ModelFiles) -> None:
    """Also what LMDeploy 0.18.0 makes of it: ``get_tm_config``, ``ExecutorBase.update_configs``, ``Engine``."""
    options = lmdeploy_options.parse_options(config)
    backend = options.backend or "turbomind"
    lmdeploy_checks.check_config(config, model, backend, TORCH)
    made = lmdeploy_config.engine_arguments(config, model, options, backend, lambda: (130 * GIB, 140 * GIB))
    known = json.loads((ROOT / "plugins/lmdeploy/tests/contract/0.18.0.json").read_bytes())["classes"]
    assert made.config.keys() <= known[f"{backend.capitalize()}EngineConfig"]["fields"].keys()
    dtype = model.config["dtype"] if config.dtype == "auto" else config.dtype
    size, blocks = made.config.get("block_size", 64), made.config.get("num_gpu_blocks", 10_000)
    inner = SimpleNamespace(
        model_config=SimpleNamespace(dtype=f"torch.{dtype}"),
        cache_config=SimpleNamespace(
            block_size=size,
            num_gpu_blocks=blocks,
            enable_prefix_caching=made.config["enable_prefix_caching"],
            max_prefill_token_num=made.config.get("max_prefill_token_num", 8192),
        ),
        max_session_len=min((blocks - 2) * size, made.config["session_len"]),  # one kept back, and one left free
    )
    engine = SimpleNamespace(engine=inner, backend_config=SimpleNamespace(dtype=dtype))
    running = lmdeploy_startup.Running(engine=engine, library=SimpleNamespace(), arguments=made)
    lmdeploy_startup._check_came_out(config, model, running)


def test_every_step_loads_what_the_plugin_takes(plan, adapters, monkeypatch):
    monkeypatch.chdir(ROOT)
    asked: dict[tuple[str, str], Load] = {}
    for step in plan.steps():
        for load in of_step(step, plan, adapters):
            if load.engine in ENGINES:
                asked.setdefault((load.engine, json.dumps(load.fields, sort_keys=True)), load)
    wrong = []
    for load in asked.values():
        try:
            take(load)
        except Exception as error:  # noqa: BLE001 all of them are told
            wrong.append(f"{load.who}: {type(error).__name__}: {error}")
    assert wrong == []
    assert len(asked) > 50


# -- quantised checkpoints --------------------------------------------------------------------------------------------


def packed(bits: int, group: int | None, *, form: str = "pack-quantized", rows: dict[str, Any] | None = None, **more):
    """How compressed-tensors describes weights, and activations, in ``config.json``."""
    weights = {"num_bits": bits, "type": "int", "strategy": "group" if group else "channel", "group_size": group}
    groups = {"group_0": {"weights": weights | more, "input_activations": rows, "format": form}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


def rows(kind: str, *, dynamic: bool = True) -> dict[str, Any]:
    """Activations of 8 bits."""
    return {"num_bits": 8, "type": kind, "dynamic": dynamic, "symmetric": True}


#: As the toolchains describe what they make of SmolLM2, whose width of 576 has groups of 64 at most.
MADE = {
    "reference-int8-w8a16": packed(8, None),
    "reference-int8-w8a8": packed(8, None, form="int-quantized", rows=rows("int")),
    "reference-int4-w4a16": packed(4, 64),
    "vllm-fp8-dynamic": packed(8, None, form="float-quantized", rows=rows("float"), type="float"),
    "vllm-fp8-static": packed(8, None, form="float-quantized", rows=rows("float", dynamic=False), type="float"),
    "vllm-int8-w8a8": packed(8, None, form="int-quantized", rows=rows("int")),
    "vllm-int4-gptq": packed(4, 64, actorder="static"),
    "vllm-int4-awq": packed(4, 64, symmetric=False),
    "lmdeploy-int4-awq": {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 64, "zero_point": True},
    "lmdeploy-int8-w8a8": {"quant_method": "smooth_quant", "quant_dtype": "int8"},
    "lmdeploy-fp8-dynamic": {"quant_method": "smooth_quant", "quant_dtype": "float8_e4m3fn"},
}
LITE = {name for name in MADE if name.startswith("lmdeploy-")}
#: What the rest is refused for, none of which is a mistake of the proof.
MEASURED = {
    "vllm": MADE.keys() - LITE | {"lmdeploy-int4-awq"},
    "turbomind": set(),
    "lmdeploy-pytorch": LITE - {"lmdeploy-int4-awq"},
    "lmdeploy-pytorch-float16": LITE,
}


@pytest.mark.parametrize("variant", MEASURED)
def test_the_quantised_checkpoints_that_are_measured_are_those_that_the_engine_computes(plan, variant):
    found: dict[str, Exception | None] = {}
    for step in (step for step in plan.steps() if step.name.startswith(f"quantized/{variant}-by-")):
        (load,) = of_step(step, plan, {})
        for folder in (Path(word) for word in step.command if Path(word).name in MADE):
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text(json.dumps(SMOLLM2 | {"quantization_config": MADE[folder.name]}))
            try:
                take(Load(step.name, load.engine, load.fields | {"model": str(folder)}))
            except UnsupportedParameter as refusal:
                found[folder.name] = refusal
            else:
                found[folder.name] = None
    assert found.keys() == MADE.keys()
    assert {name for name, refusal in found.items() if refusal is None} == MEASURED[variant]
