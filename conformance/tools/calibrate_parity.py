# ruff: noqa: INP001, T201
"""Measure how far a data type moves log-probabilities: the near-tie gap of the parity checks comes from this.

    python conformance/tools/calibrate_parity.py [MODEL_FOLDER ...]

For each model, data type and prompt: transformers in that data type decodes greedily, transformers in float32 scores
the same tokens, and at each step we note

- *shift*: by how much the data type changed the difference between the two tokens that it may confuse (the oracle's
  best and the chosen one, or where these are the same the oracle's second). A greedy engine can choose a token other
  than the oracle's best only where the oracle's difference is below the shift.
- *lost*: by how much the chosen token is less likely than the best one by the oracle; 0 where it is the best.
- *error*: of the chosen token's log-probability.

Written to `anyengine_conformance/calibration.json`: the quantiles, and with what they were measured.
"""

from __future__ import annotations

import datetime as dt
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anyengine_conformance.families import _kinds as kinds
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "conformance/src/anyengine_conformance/calibration.json"
MODELS = (
    ROOT / "plugins/reference/src/anyengine_reference/models/storyteller",
    ROOT / ".cache/SmolLM2-135M-Instruct",
)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
STEPS = 32
QUANTILE = 0.999
#: Other kernels round in other places than transformers on a CPU.
MARGIN = 2.0
CAP = 0.25


def prompts(tokenizer: Any) -> list[list[int]]:
    """All kinds, as token ids."""
    ids = [tokenizer(text)["input_ids"] for text in kinds.CALIBRATION]
    for chat in kinds.CHATS:
        rendered = tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True)
        ids.append(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    return [*ids, ids[0][:1], ids[0][1:2]]


@torch.inference_mode()
def measure(exact: Any, coarse: Any, ids: list[int], ends: set[int]) -> tuple[list[float], list[float], list[float]]:
    """Shift, lost and error at each step behind one prompt."""
    tokens, past = list(ids), None
    rows: list[torch.Tensor] = []
    given = tokens
    for _ in range(STEPS):
        out = coarse(input_ids=torch.tensor([given]), cache=past, use_cache=True)
        past = out.cache
        rows.append(out.logits[0, -1].float().log_softmax(-1))
        chosen = int(rows[-1].argmax())
        tokens.append(chosen)
        given = [chosen]
        if chosen in ends:
            break
    wanted = exact(input_ids=torch.tensor([tokens])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    shift, lost, error = [], [], []
    for row, true, chosen in zip(rows, wanted, tokens[len(ids) :], strict=True):
        best, second = (int(token) for token in true.topk(2).indices)
        other = second if chosen == best else chosen
        shift.append(abs(float((row[best] - row[other]) - (true[best] - true[other]))))
        lost.append(float(true[best] - true[chosen]))
        error.append(abs(float(row[chosen] - true[chosen])))
    return shift, lost, error


def calibrate(folder: Path) -> dict[str, Any]:
    """One model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ends = exact.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    found: dict[str, Any] = {}
    for name, dtype in DTYPES.items():
        coarse = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        shift, lost, error = [], [], []
        for ids in prompts(tokenizer):
            one = measure(exact, coarse, ids, ends)
            shift += one[0]
            lost += one[1]
            error += one[2]
        found[name] = {
            "steps": len(shift),
            "shift": {str(q): round(float(np.quantile(shift, q)), 5) for q in (0.5, 0.99, QUANTILE, 1)},
            "shift_rms": round(float(np.sqrt(np.mean(np.square(shift)))), 5),
            "lost_max": round(max(lost), 5),
            "not_the_best": sum(value > 0 for value in lost),
            "error_mean": round(float(np.mean(error)), 5),
            "error_max": round(max(error), 5),
        }
        print(folder.name, name, found[name], flush=True)
    return found


def main(folders: list[Path]) -> None:
    """Measure, and write what was found."""
    models = {folder.name: calibrate(folder) for folder in folders}
    gaps = {
        name: round(min(CAP, MARGIN * max(model[name]["shift"][str(QUANTILE)] for model in models.values())), 4)
        for name in DTYPES
    }
    content = {
        "measured": dt.datetime.now(dt.UTC).date().isoformat(),
        "with": {name: version(name) for name in ("torch", "transformers")}
        | {"python": platform.python_version(), "machine": platform.machine(), "device": "cpu"},
        "quantile": QUANTILE,
        "margin": MARGIN,
        "cap": CAP,
        "gap": {"float32": 0.001} | gaps,
        "models": models,
    }
    OUTPUT.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(content["gap"]))


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]] or list(MODELS))
