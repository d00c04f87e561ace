"""Facts about vLLM's interface that the tests hold the mapping against: names, defaults and bases, no sentences.

    python tools/make_vllm_contract.py FOLDER

FOLDER has ``vllm-VERSION.json`` files, made from vLLM's source; ``tests/contract/VERSION.json`` are written.
"""

import argparse
import json
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).parents[1] / "tests" / "contract"

#: Short name → class whose fields the mapping fills or reads.
CLASSES = {
    "AsyncEngineArgs": "vllm.engine.arg_utils.AsyncEngineArgs",
    "SamplingParams": "vllm.sampling_params.SamplingParams",
    "StructuredOutputsParams": "vllm.sampling_params.StructuredOutputsParams",
    "StructuredOutputsConfig": "vllm.config.structured_outputs.StructuredOutputsConfig",
    "SpeculativeConfig": "vllm.config.speculative.SpeculativeConfig",
    "LoRARequest": "vllm.lora.request.LoRARequest",
    "PoolingParams": "vllm.pooling_params.PoolingParams",
    "TokensInput": "vllm.inputs.engine.TokensInput",
    "CompletionOutput": "vllm.outputs.CompletionOutput",
    "CacheConfig": "vllm.config.cache.CacheConfig",
    "SchedulerConfig": "vllm.config.scheduler.SchedulerConfig",
    "RequestStateStats": "vllm.v1.metrics.stats.RequestStateStats",
    "SchedulerStats": "vllm.v1.metrics.stats.SchedulerStats",
    "PrefixCacheStats": "vllm.v1.metrics.stats.PrefixCacheStats",
    "FinishedRequestStats": "vllm.v1.metrics.stats.FinishedRequestStats",
    "SpecDecodingStats": "vllm.v1.spec_decode.metrics.SpecDecodingStats",
}

#: Aliases of literals: values that a field may have.
ALIASES = {
    "cache_dtypes": "vllm.config.cache.CacheDType",
    "dtypes": "vllm.config.model.ModelDType",
    "lora_ranks": "vllm.config.lora.MaxLoRARanks",
    "quantization": "vllm.model_executor.layers.quantization.QuantizationMethods",
    "runners": "vllm.config.model.RunnerOption",
    "converts": "vllm.config.model.ConvertOption",
    "speculative_methods": "vllm.config.speculative.SpeculativeMethod",
}


def fields(contract: dict[str, Any], name: str) -> dict[str, Any]:
    """Fields of a class, those of its bases included, with their defaults."""
    found: dict[str, Any] = {}
    entry = contract["classes"].get(name, {})
    for base in entry.get("bases", []):
        full = next((key for key in contract["classes"] if key.endswith(f".{base}")), None)
        if full is not None and full != name:
            found |= fields(contract, full)
    return found | {item["name"]: item.get("default_value", item.get("default")) for item in entry.get("fields", [])}


def methods(contract: dict[str, Any], name: str) -> dict[str, list[str]]:
    """Methods of a class, with the names of their parameters."""
    entries = contract["classes"][name]["methods"]
    return {method: [parameter["name"] for parameter in facts.get("params", [])] for method, facts in entries.items()}


def exceptions(contract: dict[str, Any]) -> dict[str, list[str]]:
    """Full name of every exception class → its bases."""
    return {
        name: entry["bases"]
        for name, entry in contract["classes"].items()
        if name.endswith(("Error", "Exception")) and "outputs" not in name
    }


def make(contract: dict[str, Any]) -> dict[str, Any]:
    """The facts of one version."""
    return {
        "version": contract["version"],
        "fields": {short: fields(contract, name) for short, name in CLASSES.items()},
        "values": {short: contract["aliases"].get(name, []) for short, name in ALIASES.items()},
        "iteration_stats": sorted(contract["classes"]["vllm.v1.metrics.stats.IterationStats"]["instance_attributes"]),
        "methods": methods(contract, "vllm.v1.engine.async_llm.AsyncLLM"),
        "sampling_methods": sorted(contract["classes"]["vllm.sampling_params.SamplingParams"].get("methods", {})),
        "stat_logger": methods(contract, "vllm.v1.metrics.loggers.PrometheusStatLogger"),
        "request_output": [item["name"] for item in contract["classes"]["vllm.outputs.RequestOutput"]["init"]],
        "finish_reasons": contract["constants"]["vllm.v1.engine.FINISH_REASON_STRINGS"],
        "lowest_temperature": contract["constants"]["vllm.sampling_params._MAX_TEMP"],
        "exceptions": exceptions(contract),
        "environment": sorted(contract["env_all"]),
    }


def main() -> None:
    """Write the facts of every version that is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    for source in sorted(parser.parse_args().folder.glob("vllm-*.json")):
        facts = make(json.loads(source.read_bytes()))
        target = OUTPUT / f"{facts['version']}.json"
        target.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{target}: {len(facts['fields'])} classes, {len(facts['exceptions'])} exceptions")


if __name__ == "__main__":
    main()
