"""Write the tables of ``docs/quantization.md``: from what plugins declare, and from what was measured.

    python tools/make_quantization_docs.py

A test fails while the committed file differs from what this makes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyengine_lmdeploy import quantize as lmdeploy_quantize
from anyengine_lmdeploy.checkpoints import CHECKPOINTS as LMDEPLOY_CHECKPOINTS
from anyengine_reference.plugin import CAPABILITIES, CHECKPOINTS
from anyengine_tgi import quantize as tgi_quantize
from anyengine_tgi.checkpoints import CHECKPOINTS as TGI_CHECKPOINTS
from anyengine_transformers.checkpoints import FORMATS as TRANSFORMERS_FORMATS
from anyengine_trtllm import quantize as trtllm_quantize
from anyengine_trtllm.checkpoints import CHECKPOINTS as TRTLLM_CHECKPOINTS
from anyengine_vllm import quantize
from anyengine_vllm.checkpoints import on_cpu, on_gpu

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anyengine.backend import QuantizedFormat

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "quantization.md"
RESULTS = ROOT / "results" / "quantization.json"

#: Heading → engine and which of its backends, whether on a GPU, and what it declares.
COLUMNS = {
    "reference": ("reference", None, False, CHECKPOINTS.formats),
    "vllm, CPU": ("vllm", None, False, on_cpu()),
    "vllm, GPU": ("vllm", None, True, on_gpu()),
    "lmdeploy, TurboMind": ("lmdeploy", "turbomind", True, LMDEPLOY_CHECKPOINTS["turbomind"].formats),
    "lmdeploy, PyTorch": ("lmdeploy", "pytorch", True, LMDEPLOY_CHECKPOINTS["pytorch"].formats),
    "transformers": ("transformers", None, False, TRANSFORMERS_FORMATS),
    "trtllm": ("trtllm", None, True, TRTLLM_CHECKPOINTS.formats),
    "tgi": ("tgi", None, True, TGI_CHECKPOINTS.formats),
}
#: Those whose declarations were read in the engine's source and documentation, and nothing else.
NEVER_RUN = frozenset({"trtllm", "tgi"})
#: Who makes what: name → schemes, and those of them that are calibrated.
MAKERS = {
    "reference": (CAPABILITIES.quantize, CAPABILITIES.calibrated),
    "vllm": (quantize.SCHEMES, quantize.CALIBRATED),
    "lmdeploy": (lmdeploy_quantize.SCHEMES, lmdeploy_quantize.SCHEMES),
    "trtllm": (trtllm_quantize.SCHEMES, trtllm_quantize.SCHEMES),
    "tgi": (tgi_quantize.SCHEMES, frozenset[str]()),
}
#: Those that fit schemes to a data set of theirs, and take no other text.
OWN_TEXT = frozenset({"tgi"})


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def schemes() -> str:
    """Which engine's toolchain makes what."""
    names = sorted(set().union(*(made for made, _ in MAKERS.values())))

    def how(maker: str, name: str) -> str:
        made, fitted = MAKERS[maker]
        words = "to its own text" if maker in OWN_TEXT else "yes"
        return "no" if name not in made else "calibrated" if name in fitted else words

    rows = [[f"`{name}`", *(how(maker, name) for maker in MAKERS)] for name in names]
    return table(["scheme", *(f"made by `{maker}`" for maker in MAKERS)], rows)


def results() -> list[dict[str, Any]]:
    """What was measured."""
    return json.loads(RESULTS.read_text("utf-8"))


def cell(column: str, method: str, form: str | None, scheme: str) -> str:
    """Declared or measured, and with what limits."""
    engine, backend, gpu, formats = COLUMNS[column]
    known: list[QuantizedFormat] = [f for f in formats if (f.method, f.format, f.scheme) == (method, form, scheme)]
    if not known:
        return "no"
    seen = any(
        (row["engine"], row.get("backend"), row.get("method"), row.get("scheme")) == (engine, backend, method, scheme)
        and form in {None, row["format"]}
        and ("cpu" not in str(row["device"]).lower()) == gpu
        for row in results()
    )
    (one,) = known
    limits = ["zero points"] if one.asymmetric else []
    if one.group_sizes is not None and one.group_sizes != (0,):
        limits.append("groups of " + ", ".join(str(size) for size in one.group_sizes if size))
    if one.minimum_capability is not None:
        limits.append("from " + ".".join(map(str, one.minimum_capability)))
    if one.instructions:
        limits.append("with " + ", ".join(one.instructions))
    word = "**measured**" if seen else "by contract" if engine in NEVER_RUN else "declared"
    return word + (f" ({'; '.join(limits)})" if limits else "")


def matrix() -> str:
    """What loads where."""
    kinds = sorted({(f.scheme, f.method, f.format or "") for *_, formats in COLUMNS.values() for f in formats})
    rows = [
        [
            f"`{scheme}`",
            method + (f", {form}" if form else ""),
            *(cell(c, method, form or None, scheme) for c in COLUMNS),
        ]
        for scheme, method, form in kinds
    ]
    note = (
        "\n\nNumbers after *from* are compute capabilities, names after *with* instruction sets of the processor.\n"
        "*By contract*: as the sources and the documentation of TensorRT-LLM 1.2 and TGI 3.3.7 have it; neither was\n"
        "ever run with a quantised checkpoint here."
    )
    return table(["scheme", "stored as", *COLUMNS], rows) + note


def drift(found: dict[str, float] | None) -> tuple[str, str, str]:
    """How far from the float model."""
    if found is None:
        return "not measured", "", ""
    return f"{found['perplexity_ratio']:.4f}", f"{found['mean_kl']:.4f}", f"{found['top1_agreement']:.1%}"


def speed(row: dict[str, Any], how: str) -> str:
    """By that of the float model: the median over rounds, and its interval."""
    if "speed" not in row:
        return "not timed"
    found = row["speed"][how]
    return f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def measured() -> str:
    """The rows of the results."""
    rows = [
        [
            row.get("label", row["engine"]),
            f"{row['device']}, {row['dtype']}",
            row["model"],
            f"`{row['made_as']}` by {row['made_by']}",
            row["against"],
            *drift(row["drift"]),
            speed(row, "alone"),
            speed(row, "together"),
        ]
        for row in results()
    ]
    headings = (
        "engine",
        "on",
        "model",
        "scheme",
        "float scores of",
        "perplexity ratio",
        "mean KL, nats",
        "same best token",
        "speed, one request at a time",
        "speed, many together",
    )
    return table(headings, rows)


def page(text: str) -> str:
    """The page with its tables made anew."""
    for name, make in {"schemes": schemes, "matrix": matrix, "measured": measured}.items():
        pattern = re.compile(rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        made = make()
        text, count = pattern.subn(lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text)
        if count != 1:
            raise SystemExit(f"{TARGET.name} has {count} places for the table {name!r}")
    return text


if __name__ == "__main__":
    TARGET.write_text(page(TARGET.read_text("utf-8")), "utf-8")
    print(f"wrote {TARGET.name}")
