"""What was measured of quantised checkpoints, put into ``results/quantization.json``, of which ``docs/quantization.md``
is made.

    python benchmarks/quantized_rows.py results/h200/quantized-*.json results/h200/quantize-*.json

The files are those of ``quantized.py``, and what ``anyengine quantize --json`` says: there the oracle measured, on a
CPU in float32. Only what was measured gets there; what an engine refused, and what failed, stays in the files. A newer
row takes the place of that of the same configuration.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

RESULTS = Path(__file__).parents[1] / "results" / "quantization.json"
_DRIFT = ("perplexity_ratio", "mean_kl", "top1_agreement", "tokens")
_STORED = ("method", "format", "scheme")
_KEY = ("engine", "label", "device", "dtype", "model", "made_by", "made_as")


def key(row: dict[str, Any]) -> tuple[str, ...]:
    """What a newer row takes the place of."""
    return tuple(str(row.get(name, row["engine"] if name == "label" else "")) for name in _KEY)


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


def row_of(report: dict[str, Any], file: Path, stored: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Of a job, whose date is in what the proof says of its step."""
    if report["drift"] is None:
        return {"outcome": "not measured"}
    oracle = report["drift"]["oracle"].partition(" ")[0]
    return {
        "outcome": "measured",
        "engine": oracle,
        "label": oracle,
        "device": "cpu",
        "dtype": "float32",
        "model": Path(report["model"]).name,
        "made_by": report["engine"],
        "made_as": report["scheme"],
        "against": oracle,
        **stored[Path(report["output"]).name],
        "drift": {name: report["drift"][name] for name in _DRIFT},
        "date": json.loads(file.with_suffix(".step.json").read_text("utf-8"))["date"][:10],
    }


@click.command(help=__doc__)
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(files: tuple[Path, ...]) -> None:
    """Put the rows of all files there."""
    reports = [file for file in files if not file.name.endswith(".step.json")]
    every = [(file, json.loads(file.read_text("utf-8"))) for file in reports]
    rows = [row for _, report in every for row in report.get("rows", ())]
    # How a checkpoint is stored the benchmark has looked up, in every engine.
    stored = {row["checkpoint"]: {name: row[name] for name in _STORED} for row in rows if "method" in row}
    rows += [row_of(report, file, stored) for file, report in every if "rows" not in report]
    click.echo(f"{write_rows(rows)} of {len(rows)} rows were measured")


if __name__ == "__main__":
    main()
