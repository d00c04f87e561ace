"""Write the JSON Schema of ``anyengine.json``, from its type.

    python tools/make_manifest_schema.py

A test fails while the committed file differs from what this makes.
"""

from __future__ import annotations

import json
from inspect import cleandoc
from pathlib import Path
from typing import Any

import msgspec
from anyengine.quantization import Manifest

TARGET = Path(__file__).parents[1] / "sdk" / "src" / "anyengine" / "quantization" / "manifest.schema.json"


def schema() -> str:
    """The schema as the file has it."""
    made: dict[str, Any] = msgspec.json.schema(Manifest)
    for part in made["$defs"].values():  # which releases of msgspec and of Python indent, and which do not
        if "description" in part:
            part["description"] = cleandoc(part["description"])
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **made}, indent=2) + "\n"


if __name__ == "__main__":
    TARGET.write_text(schema(), "utf-8")
    print(f"wrote {TARGET.name}")
