"""Make a draft model of a Llama-type checkpoint: a truncated copy of its first layers, with everything around them.

    python tools/cut_draft.py MODEL OUTPUT [--layers 4]

Embeddings, the first layers, the last norm and the head are the model's own, to the bit; what was between is missing,
and nothing is trained to make up for it. So it speaks the model's tokens and is smaller, which is all that speculation
asks of a draft, and it is a poor one: few of its tokens are accepted. That is the point: an engine that keeps a drafted
token without verifying it shows at once.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import click

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
#: Files of a checkpoint that a copy of fewer layers shares with it.
_SHARED = (
    "tokenizer*",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template*",
    "vocab.json",
    "merges.txt",
)


def kept(name: str, layers: int) -> bool:
    """Whether a tensor is part of the draft."""
    found = _LAYER.match(name)
    return found is None or int(found[1]) < layers


def cut_tensors(source: Path, target: Path, layers: int) -> int:
    """Copy the tensors that are kept; the number of them.

    The format (https://huggingface.co/docs/safetensors): the header's length, 8 bytes, little-endian; the header, JSON
    of name → dtype, shape and place; the tensors' bytes. Copied as bytes, so that every dtype stays what it is.
    """
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    place = 0
    for file in sorted(source.glob("*.safetensors")):
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        tensors: dict[str, Any] = json.loads(content[8 : 8 + length])
        tensors.pop("__metadata__", None)
        for name, tensor in tensors.items():
            if not kept(name, layers):
                continue
            begin, end = tensor["data_offsets"]
            parts.append(content[8 + length + begin : 8 + length + end])
            header[name] = {**tensor, "data_offsets": [place, place + end - begin]}
            place += end - begin
    written = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    written += b" " * (-len(written) % 8)
    target.write_bytes(struct.pack("<Q", len(written)) + written + b"".join(parts))
    return len(header)


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--layers", type=click.IntRange(min=1), default=4, show_default=True)
def main(model: Path, output: Path, layers: int) -> None:
    """Cut, and print what was made as JSON."""
    config: dict[str, Any] = json.loads((model / "config.json").read_bytes())
    there = config.get("num_hidden_layers", 0)
    if "quantization_config" in config or layers >= there:
        raise click.UsageError(f"{model.name} is quantised, or has {there} layers, of which {layers} are no part")
    output.mkdir(parents=True)
    (output / "config.json").write_text(json.dumps({**config, **_fewer(config, layers)}, indent=2) + "\n")
    tensors = cut_tensors(model, output / "model.safetensors", layers)
    for pattern in _SHARED:
        for file in model.glob(pattern):
            shutil.copy2(file, output)
    facts = {"made_of": model.name, "what": "its first layers, untrained", "layers": layers, "of": there}
    click.echo(json.dumps({**facts, "tensors": tensors}))


def _fewer(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """The fields that say something of every layer."""
    kinds = {"layer_types": config["layer_types"][:layers]} if config.get("layer_types") else {}
    return {"num_hidden_layers": layers, **kinds}


if __name__ == "__main__":
    main()
