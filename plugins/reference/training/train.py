"""Train the storyteller, or its draft model as the storyteller's student.

python train.py --data data --out storyteller.pt --tokens 600e6
python train.py --data data --out draft.pt --tokens 400e6 --layers 1 --teacher storyteller.pt
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from data import Documents
from model import Llama, Shape
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of predicting the targets."""
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence of a student's predictions from its teacher's."""
    student = functional.log_softmax(logits.float(), dim=-1)
    teacher = functional.log_softmax(wanted.float(), dim=-1)
    return (teacher.exp() * (teacher - student)).sum(-1).mean()


def rate(progress: float, warmup: float = 0.02) -> float:
    """Return the learning rate's factor: a short linear rise, then half a cosine down to zero."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


@torch.no_grad()
def evaluate(model: Llama, documents: Documents, device: str, rows: int = 64) -> float:
    """Return the mean loss on held-out documents."""
    packed = torch.from_numpy(documents.rows(model.shape.context).astype("int64"))
    total = 0.0
    for first in range(0, len(packed), rows):
        batch = packed[first : first + rows].to(device)
        with torch.autocast(device, torch.bfloat16):
            logits = model(batch[:, :-1])
        total += cross_entropy(logits, batch[:, 1:]).item() * len(batch)
    return total / len(packed)


def optimizer_of(model: Llama, rate_: float, decay: float, *, fused: bool) -> torch.optim.Optimizer:
    """Make AdamW; norms and the embedding do not decay."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate_, betas=(0.9, 0.95), fused=fused)


def train(options: argparse.Namespace) -> None:
    """Train one model and save its float32 weights."""
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    device = options.device
    model = Llama(Shape(layers=options.layers)).to(device)
    teacher = load(options.teacher, device) if options.teacher else None
    optimizer = optimizer_of(model, options.rate, options.decay, fused=device == "cuda")
    length = model.shape.context

    def loss_of(batch: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            logits = model(batch[:, :-1])
            if teacher is None:
                return cross_entropy(logits, batch[:, 1:])
            with torch.no_grad():
                wanted = teacher(batch[:, :-1])
        return divergence(logits, wanted)

    step_loss = torch.compile(loss_of) if device == "cuda" else loss_of
    held_out = {kind: Documents(options.data / f"heldout-{kind}.npz") for kind in ("story", "chat")}
    steps = int(options.tokens // (options.rows * length))
    batches = Documents(options.data / "train.npz").batches(options.rows, length, options.seed)
    log, started, total = [], time.perf_counter(), 0.0
    for step in range(steps):
        # A time limit shortens the schedule instead of cutting it off.
        limit = (time.perf_counter() - started) / options.seconds if options.seconds and step > 50 else 0.0
        progress = max(step / steps, limit)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = options.rate * rate(progress)
        batch = torch.from_numpy(next(batches).astype("int64")).to(device, non_blocking=True)
        loss = step_loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 200 == 0:
            total = loss.item()
            seconds = time.perf_counter() - started
            log.append({"step": step, "loss": total, "seconds": seconds, "progress": progress})
            print(
                f"step {step}/{steps}: loss {total:.3f}, {(step + 1) * options.rows * length / seconds:.0f} tokens/s",
                f"progress {progress:.2f}",
                flush=True,
            )
    losses = {kind: evaluate(model, documents, device) for kind, documents in held_out.items()}
    numbers = {
        "steps": step + 1,
        "tokens": (step + 1) * options.rows * length,
        "seconds": time.perf_counter() - started,
        "held-out loss": losses,
        "parameters": sum(p.numel() for p in model.parameters()),
        "options": {key: str(value) for key, value in vars(options).items()},
        "log": log,
    }
    torch.save({"layers": options.layers, "weights": model.state_dict()}, options.out)
    options.out.with_suffix(".json").write_text(json.dumps(numbers, indent=1) + "\n")
    print({key: value for key, value in numbers.items() if key != "log"}, flush=True)


def load(path: Path, device: str) -> Llama:
    """Load a model that train() saved."""
    saved = torch.load(path, map_location=device)
    model = Llama(Shape(layers=saved["layers"])).to(device)
    model.load_state_dict(saved["weights"])
    return model.eval().requires_grad_(requires_grad=False)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--tokens", type=float, default=600e6, help="how many tokens to see, repetitions counted")
    parser.add_argument("--seconds", type=float, help="stop after this time, with the schedule shortened to fit")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--teacher", type=Path, help="learn from this model's predictions instead of the text")
    parser.add_argument("--rows", type=int, default=64, help="rows of 1024 tokens in a step")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--decay", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--device", default="cuda")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
