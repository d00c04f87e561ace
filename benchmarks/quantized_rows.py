"""What ``quantized.py`` measured, put into ``results/quantization.json``, which ``docs/quantization.md`` is made of.

    python benchmarks/quantized_rows.py results/h200/quantized-*.json

Only what was measured gets there; what an engine refused, and what failed, stays in the files themselves. A newer row
takes the place of that of the same configuration.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

RESULTS = Path(__file__).parents[1] / "results" / "quantization.json"
_KEY = ("engine", "label", "device", "dtype", "model", "made_by", "made_as")


def key(row: dict[str, Any]) -> tuple[str, ...]:
    """What a newer row takes the place of."""
    return tuple(str(row.get(name, "")) for name in _KEY)


def write_rows(rows: list[dict[str, Any]], file: Path = RESULTS) -> int:
    """Put those that were measured into the file; the number of them."""
    measured = [
        {name: value for name, value in row.items() if name != "outcome"}
        for row in rows
        if row["outcome"] == "measured"
    ]
    old = json.loads(file.read_text("utf-8")) if file.exists() else []
    kept = {key(row): row for row in [*old, *measured]}
    file.write_text(json.dumps([kept[name] for name in sorted(kept)], indent=2) + "\n", "utf-8")
    return len(measured)


@click.command(help=__doc__)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(files: tuple[Path, ...]) -> None:
    """Put the rows of all files there."""
    reports = [file for file in files if not file.name.endswith(".step.json")]
    rows = [row for file in reports for row in json.loads(file.read_text("utf-8"))["rows"]]
    click.echo(f"{write_rows(rows)} of {len(rows)} rows were measured")


if __name__ == "__main__":
    main()
