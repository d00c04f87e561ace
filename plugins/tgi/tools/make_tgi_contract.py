"""Makes ``tests/contract/tgi-3.3.7.json``: the facts about TGI that the plugin's tests hold its mapping against.

Names, types, defaults, limits and where they come from; no sentence of TGI's. Run from the repository's root::

    python plugins/tgi/tools/make_tgi_contract.py ../shared/contracts
"""

# ruff: noqa: INP001, T201 a program, in no package
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parents[1] / "tests" / "contract" / "tgi-3.3.7.json"
#: Schemas that the plugin sends or reads.
SCHEMAS = (
    "Details",
    "ErrorResponse",
    "GenerateParameters",
    "GenerateRequest",
    "GenerateResponse",
    "Info",
    "PrefillToken",
    "SimpleToken",
    "StreamDetails",
    "StreamResponse",
    "Token",
)
#: Operations that the plugin uses.
OPERATIONS = ("/generate", "/generate_stream", "/health", "/info", "/metrics", "/tokenize")


def field(found: dict[str, Any]) -> dict[str, Any]:
    """A field's type, whether it is needed, its default and its limits."""
    kept = {"type": found["annotation"], "required": found["required"]}
    if found.get("default_value") is not None:
        kept["default"] = found["default_value"]
    return kept | found.get("constraints", {})


def facts(contract: dict[str, Any], specification: dict[str, Any]) -> dict[str, Any]:
    """All of them, sorted, so that a change of TGI is a change of lines."""
    schemas = {
        name: {each["name"]: field(each) for each in contract["classes"][f"openapi.{name}"]["fields"]}
        for name in SCHEMAS
    }
    grammars = specification["components"]["schemas"]["GrammarType"]["oneOf"]
    launcher = {name: values for name, values in contract["launcher_enums"].items() if isinstance(values, list)}
    return {
        "engine": contract["engine"],
        "version": contract["version"],
        "source": contract["source"],
        "specification": specification["info"]["version"],
        "schemas": schemas,
        "grammar_types": sorted(each["properties"]["type"]["enum"][0] for each in grammars),
        "enums": {
            "FinishReason": sorted(contract["enums"]["openapi.FinishReason"].values()),
            **{name: sorted(each["cli"] for each in values) for name, values in launcher.items()},
        },
        "launcher": {
            each["name"]: {"flag": each["flag"], "env": each["env"], "type": each["type"], "default": each["default"]}
            for each in contract["launcher_args"]
        },
        "environment": sorted(contract["env"]),
        "errors": {
            each["error_type"]: each["http_status"]
            for each in (*contract["errors"]["InferError"], *contract["errors"]["other"])
            # The OpenAI-style routes have sentences in the place of types.
            if each.get("error_type", "").isidentifier()
        },
        "metrics": {
            name: {"type": each["type"], "labels": sorted(each["labels"])} for name, each in contract["metrics"].items()
        },
        "operations": {
            each["path"]: {"method": each["method"], "statuses": sorted(map(int, each["responses"]))}
            for each in contract["endpoints"]
            if each["path"] in OPERATIONS
        },
    }


def main(folder: Path) -> None:
    """Write the file."""
    contract = json.loads((folder / "tgi-3.3.7.json").read_bytes())
    specification = json.loads((folder / "tgi-openapi.json").read_bytes())
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(facts(contract, specification), indent=1, sort_keys=True) + "\n")
    print(TARGET)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
