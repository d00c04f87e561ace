"""``anyengine quantize``: a checkpoint with smaller weights."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anyengine.cli.output import Output, common_options

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from anyengine.quantization import Calibration, Manifest

__all__ = ["quantize"]


@click.command()
@click.option("--engine", default="reference", show_default=True, help="Whose toolchain does it.")
@click.option("--model", required=True, help="A folder, a Hugging Face hub id, or a name that the engine brings.")
@click.option("--revision", help="Of a hub model: branch, tag or commit.")
@click.option("--scheme", required=True, help="One of the engine's schemes: see `anyengine engines NAME`, quantize.")
@click.option("--output", "folder", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--calibration", help="Text or JSONL file that the scheme is fitted to.  [default: a small built-in set]")
@click.option("--sequence-length", type=int, help="Tokens of a calibration sequence.  [default: 256]")
@click.option("--count", type=int, help="Calibration sequences.  [default: as many as there are, at most 512]")
@click.option("--seed", type=int, help="Of the order of the calibration text.  [default: 0]")
@click.option(
    "--oracle", default="auto", show_default=True, help="Engine that measures the drift; 'none' not to measure it."
)
@click.option("--environment", help="Whose interpreter runs the toolchain; see `anyengine env list`.")
@common_options
@click.pass_obj
def quantize(
    output: Output,
    /,
    engine: str,
    model: str,
    revision: str | None,
    scheme: str,
    folder: Path,
    calibration: str | None,
    oracle: str,
    environment: str | None,
    **drawn: int | None,
) -> None:
    """Write a checkpoint with quantised weights, and how far it is from the float model.

    When it fails or is interrupted, nothing is left behind.
    """
    import anyio  # noqa: PLC0415 heavy for `--help`

    from anyengine.engine import Engine  # noqa: PLC0415
    from anyengine.quantization import read_manifest  # noqa: PLC0415

    text = _calibration(calibration, {name: value for name, value in drawn.items() if value is not None})

    async def run() -> Path:
        with _bar(output) as progress:
            return await Engine.quantize(
                engine,
                model=model,
                revision=revision,
                scheme=scheme,
                output=folder,
                calibration=text,
                oracle=None if oracle == "none" else oracle,
                environment=environment,
                progress=progress,
            )

    made = anyio.run(run)
    manifest = read_manifest(made)
    assert manifest is not None  # noqa: S101 it has just been written
    if output.json:
        output.document(
            {
                "engine": engine,
                "model": model,
                "scheme": scheme,
                "output": str(made),
                "drift": manifest.drift,
                "drift_unmeasured": manifest.drift_unmeasured,
            }
        )
    else:
        _show(output, made, manifest, asked=oracle != "none")


def _calibration(file: str | None, drawn: dict[str, Any]) -> Calibration | None:
    """None unless something was said of it: then a scheme that takes no text refuses it."""
    if file is None and not drawn:
        return None
    from anyengine.quantization import Calibration  # noqa: PLC0415 heavy for `--help`

    return Calibration(file=file, **drawn)


def _show(output: Output, folder: Path, manifest: Manifest, *, asked: bool) -> None:
    """Where it is, and what it cost."""
    drift = manifest.drift
    if drift is None:
        output.table(("CHECKPOINT", str(folder)), [("drift", f"not measured: {manifest.drift_unmeasured}")])
        how = (
            "name an engine that loads it and the float model, and scores texts, with --oracle; `anyengine engines "
            f"--model {folder}` says which load it"
        )
        output.text(f"to measure it: {how if asked else 'leave --oracle none out'}")
        return
    rows = [
        ("perplexity", f"{drift.perplexity_ratio:.4f} times the float model's"),
        ("mean KL divergence", f"{drift.mean_kl:.4f} nats"),
        ("top-1 agreement", f"{drift.top1_agreement:.1%} of {drift.tokens} positions"),
        ("measured by", drift.oracle),
    ]
    output.table(("CHECKPOINT", str(folder)), rows)


@contextmanager
def _bar(output: Output) -> Generator[Callable[[int, int], None] | None]:
    """A progress bar on a terminal; elsewhere nothing."""
    if output.json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 heavy for `--help`
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("quantizing", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
