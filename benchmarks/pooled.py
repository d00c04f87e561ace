"""All pairs that several parts of a benchmark of ``against_native.py`` have, as one report.

    python benchmarks/pooled.py PART.json ... --json out

Parts are of the same engine, model and settings, of the same code and packages, and of the same kind of machine; else
nothing is written. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from against_native import Samples, committed, report, same


def pooled(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One report of those.

    Raises:
        ValueError: one was measured otherwise than the first, or of code that is not committed.
    """
    if any("earlier" not in part or "processor_us_per_token" not in part["figures"]["pairs"] for part in parts):
        raise ValueError("parts cannot be pooled: one is a whole already, or of an older form")
    first = parts[0]
    for part in parts:
        here, there = ({**each, "environment": same(each["environment"])} for each in (first, part))
        others = [name for name in ("engine", "model", "settings", "environment") if here[name] != there[name]]
        if others:
            raise ValueError(f"parts cannot be pooled: they have different {', '.join(others)}")
    if len(parts) > 1 and not committed(first["environment"]):
        raise ValueError(f"parts cannot be pooled: of changed files ({first['environment']['commit']!r})")
    samples, every = Samples(), [Samples(part["figures"]["pairs"]) for part in parts]
    for each in every:
        samples.extend(each)
    latest = max(parts, key=lambda part: part["environment"]["date"])
    return {
        "environment": latest["environment"],
        **{name: first[name] for name in ("engine", "model", "settings")},
        "parts": [
            {"pairs": len(each), "dates": [run["date"] for run in (*part["earlier"], part["environment"])]}
            for part, each in zip(parts, every, strict=True)
        ],
        "figures": samples.figures(),
    }


def main() -> None:
    """Read, write, print, and exit with 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", type=Path)
    parser.add_argument("--json", type=Path, required=True, help="write the report there")
    options = parser.parse_args()
    if len({file.resolve() for file in options.parts}) < len(options.parts):
        parser.error("a part is given twice")
    try:
        whole = pooled([json.loads(file.read_text("utf-8")) for file in options.parts])
    except ValueError as error:
        parser.error(str(error))
    options.json.write_text(json.dumps(whole, indent=2) + "\n", "utf-8")
    raise SystemExit(0 if report(whole["figures"]) else 1)


if __name__ == "__main__":
    main()
