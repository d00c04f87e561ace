"""Facts about TensorRT-LLM's interface that the tests hold the mapping against: names, types, defaults, no sentences.

    python tools/make_trtllm_contract.py FOLDER

FOLDER has ``tensorrt_llm-VERSION.json``, made from TensorRT-LLM's published documentation and source;
``tests/contract/VERSION.json`` is written. Each class keeps its provenance: ``A`` was read in that release, ``B`` in
one nearby.
"""
# ruff: noqa: INP001, T201 a script

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[3] / "tools"))
import contract_facts
from contract_facts import field, parameters

OUTPUT = Path(__file__).parents[1] / "tests" / "contract"

#: Classes that have no part in what this package does.
LEFT_OUT = {
    "AsyncLLM",
    "BatchedLogitsProcessor",
    "CancellingRequest",
    "DisaggregatedParams",
    "KvCacheRetentionConfig",
    "LogitsProcessor",
    "LogprobParams",
    "PromptAdapterRequest",
    "RayPlacementConfig",
    "SchedulingParams",
}


def make_class(entry: dict[str, Any], name: str) -> dict[str, Any]:
    """Facts of one class."""
    properties: dict[str, Any] = entry.get("properties") or {}
    attributes: dict[str, Any] = entry.get("instance_attributes") or {}
    return {
        "module": name.rpartition(".")[0],
        "provenance": entry["provenance"][0],
        "kind": entry["kind"],
        "bases": entry.get("bases") or [],
        "fields": {item["name"]: field(item) for item in entry.get("fields") or []},
        "methods": {method: parameters(facts) for method, facts in (entry.get("methods") or {}).items()},
        "attributes": sorted(set(properties) | set(attributes)),
    }


def make(contract: dict[str, Any]) -> dict[str, Any]:
    """The facts of one version."""
    keys = {name: value for name, value in contract["iteration_stats_keys"].items() if name != "source"}
    classes = {
        name.rpartition(".")[2]: make_class(entry, name)
        for name, entry in contract["classes"].items()
        if name.rpartition(".")[2] not in LEFT_OUT
    }
    return {
        "version": contract["version"],
        "classes": classes,
        "enums": {name.rpartition(".")[2]: sorted(members) for name, members in contract["enums"].items()},
        "iteration_stats": {name: sorted(value) for name, value in keys.items()},
        "endpoints": sorted(f"{item['method']} {item['path']}" for item in contract["endpoints"]),
    }


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, str]]:
    """What changed between two files of facts: (provenance, ``place: old → new``), by place.

    What stands outside of the classes is of a nearby release, so ``B``.
    """
    found: list[tuple[str, str]] = []
    for name in sorted(old["classes"].keys() | new["classes"].keys()):
        before, after = old["classes"].get(name, {}), new["classes"].get(name, {})
        provenance = (after or before)["provenance"]
        found += [(provenance, line) for line in contract_facts.difference(before, after, name)]
    rest = [{key: value for key, value in facts.items() if key != "classes"} for facts in (old, new)]
    return found + [("B", line) for line in contract_facts.difference(*rest)]


def main() -> None:
    """Write the facts of every version that is there, and say what changed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    for source in sorted(parser.parse_args().folder.glob("tensorrt_llm-*.json")):
        facts = make(json.loads(source.read_bytes()))
        target = OUTPUT / f"{facts['version']}.json"
        if target.exists():
            for provenance, line in difference(json.loads(target.read_bytes()), facts):
                print(f"{provenance} {line}")
        target.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{target}: {len(facts['classes'])} classes")


if __name__ == "__main__":
    main()
