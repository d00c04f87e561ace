"""Facts about LMDeploy's interface that the tests hold the mapping against: names, types, defaults, no sentences.

    python tools/make_lmdeploy_contract.py FOLDER

FOLDER has ``lmdeploy-VERSION.json``, made from LMDeploy's source; ``tests/contract/VERSION.json`` is written. Each
class keeps its provenance: the file and line of that release.
"""
# ruff: noqa: INP001, T201 a script

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[3] / "tools"))
from contract_facts import difference, field, parameters

OUTPUT = Path(__file__).parents[1] / "tests" / "contract"

#: Classes that the plugin makes, calls or reads.
CLASSES = (
    "lmdeploy.messages.EngineEvent",
    "lmdeploy.messages.EngineOutput",
    "lmdeploy.messages.GenerationConfig",
    "lmdeploy.messages.KVTransferConfig",
    "lmdeploy.messages.PytorchEngineConfig",
    "lmdeploy.messages.RequestMetrics",
    "lmdeploy.messages.ScheduleMetrics",
    "lmdeploy.messages.SpeculativeConfig",
    "lmdeploy.messages.TurbomindEngineConfig",
    "lmdeploy.pytorch.engine.engine.Engine",
    "lmdeploy.pytorch.engine.engine_instance.EngineInstance",
    "lmdeploy.serve.core.async_engine.AsyncEngine",
    "lmdeploy.serve.managers.session_manager.RequestHandlePool",
    "lmdeploy.serve.managers.session_manager.SessionManager",
    "lmdeploy.turbomind.turbomind.TurboMind",
    "lmdeploy.turbomind.turbomind.TurboMindInstance",
)
ENUMS = ("lmdeploy.messages.EventType", "lmdeploy.messages.QuantPolicy", "lmdeploy.messages.ResponseType")
METHODS = "speculative_methods (lmdeploy.pytorch.spec_decode SPEC_PROPOSERS)"

#: Read in the source of a release; the contract file has no constants of functions and of validation.
#: Name → (value, where).
READ: dict[str, dict[str, tuple[Any, str]]] = {
    "0.18.0": {
        "dtypes": (["auto", "bfloat16", "float16"], "lmdeploy/messages.py:425"),
        "highest_temperature": (2, "lmdeploy/messages.py:264"),
        "most_logprobs_turbomind": (1024, "lmdeploy/turbomind/turbomind.py:30"),
        "seed_bits_pytorch": (32, "lmdeploy/pytorch/strategies/ar/sampling.py:94"),
        "smallest_block_pytorch": (16, "lmdeploy/messages.py:623"),
        "reserved_blocks_pytorch": (1, "lmdeploy/pytorch/engine/config_builder.py:92"),
        "logprobs_modes": (["raw_logits", "raw_logprobs"], "lmdeploy/pytorch/engine/logits_process.py:438"),
        "model_formats_turbomind": (
            ["awq", "compressed-tensors", "fp8", "gptq", "hf", "mxfp4"],
            "lmdeploy/turbomind/converter.py:30",
        ),
        "group_sizes_turbomind": (
            {"awq": [128], "compressed-tensors": [32, 128], "fp8": [128], "gptq": [128], "mxfp4": [32]},
            "lmdeploy/turbomind/converter.py:98",
        ),
        # Without compressed-tensors, which pytorch/nn/linear/__init__.py:136 refuses where a matrix is no expert's.
        "quant_methods_pytorch": (["awq", "fp8", "smooth_quant"], "lmdeploy/pytorch/config.py:857"),
        # Each with its parameters, in order; those of methods without self.
        "lite": (
            {
                "lmdeploy.lite.quantization.CalibrationContext": [
                    "model",
                    "tokenizer",
                    "layer_type",
                    "norm_type",
                    "batch_size",
                    "device",
                    "kwargs",
                ],
                "lmdeploy.lite.quantization.CalibrationContext.calibrate": ["data"],
                "lmdeploy.lite.quantization.CalibrationContext.collect_inputs_stats": [],
                "lmdeploy.lite.quantization.ActivationObserver.instances": [],
                "lmdeploy.lite.quantization.awq.quant_weights": [
                    "model",
                    "fcs",
                    "bits",
                    "symmetry",
                    "arch",
                    "group_size",
                    "device",
                ],
                "lmdeploy.lite.quantization.awq.smooth_layers": [
                    "layers",
                    "fc2fcs",
                    "norm2fcs",
                    "a_scales",
                    "group_size",
                    "device",
                ],
                "lmdeploy.lite.utils.collect_target_modules": ["model", "target", "skip_names", "prefix"],
                "lmdeploy.pytorch.models.QLinear.from_float": ["mod", "initialization", "quant_dtype"],
            },
            "lmdeploy/lite",
        ),
        "lite_tables": (
            {
                "lmdeploy.lite.apis.calibrate": ["LAYER_TYPE_MAP", "NORM_TYPE_MAP"],
                "lmdeploy.lite.quantization.awq": ["FC_FCS_MAP", "NORM_FCS_MAP"],
            },
            "lmdeploy/lite",
        ),
        "not_for_turbomind": (["FP8", "FP8_E5M2"], "lmdeploy/messages.py:435"),
        "response_formats": (
            ["json_object", "json_schema", "regex_schema", "structural_tag", "text"],
            "lmdeploy/_guided_decoding.py:48",
        ),
        "functions": (
            {"lmdeploy._guided_decoding.ensure_response_format_compilable": {"response_format": "dict[str, Any]"}},
            "lmdeploy/_guided_decoding.py:82",
        ),
    }
}


def make_class(entry: dict[str, Any], name: str) -> dict[str, Any]:
    """Facts of one class."""
    methods = entry.get("methods") or {}
    attributes = set(entry.get("properties") or {}) | set(entry.get("instance_attributes") or {})
    facts: dict[str, Any] = {
        "module": name.rpartition(".")[0],
        "source": entry["defined_in"],
        "kind": entry["kind"],
        "fields": {item["name"]: field(item) for item in entry.get("fields") or []},
        "methods": {
            method: {"parameters": parameters(found), "async": bool(found.get("async"))}
            for method, found in methods.items()
            if not method.startswith("_")
        },
        "attributes": sorted(attributes),
    }
    if entry.get("init"):
        facts["init"] = parameters({"params": entry["init"]})
    return facts


def make(contract: dict[str, Any]) -> dict[str, Any]:
    """The facts of one version."""
    return {
        "version": contract["version"],
        "classes": {name.rpartition(".")[2]: make_class(contract["classes"][name], name) for name in CLASSES},
        # Values where they are written down, else names alone.
        "enums": {
            name.rpartition(".")[2]: {
                member: None if isinstance(value, str) else value for member, value in contract["enums"][name].items()
            }
            for name in ENUMS
        },
        "speculative_methods": sorted(contract["constants"][METHODS]),
        "read": {
            name: {"value": value, "source": source}
            for name, (value, source) in READ.get(contract["version"], {}).items()
        },
    }


def main() -> None:
    """Write the facts of every version that is there, fields in order, and say what changed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    for source in sorted(parser.parse_args().folder.glob("lmdeploy-*.json")):
        facts = make(json.loads(source.read_bytes()))
        target = OUTPUT / f"{facts['version']}.json"
        if target.exists():
            print(*difference(json.loads(target.read_bytes()), facts), sep="\n")
        target.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        print(f"{target}: {len(facts['classes'])} classes")


if __name__ == "__main__":
    main()
