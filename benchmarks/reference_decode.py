"""Single-stream decoding: the reference engine's mathematics against transformers in float32, interleaved in one run.

    python benchmarks/reference_decode.py FOLDER [--threads 2] [--rounds 10] [--tokens 16] [--without-transformers]

FOLDER is a checkpoint (SmolLM2-135M-Instruct is what the figures in the documentation are of). The two take turns, so a
machine that is busy for a while slows both; the ratio is of neighbours, its interval from a bootstrap over the rounds.
torch is needed unless --without-transformers.
"""

import argparse
import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from anyengine_reference.model import KVCache, Model, Segment, load_model
from environment import environment

PROMPT = 32


def reference(model: Model, context: int) -> Callable[[int], None]:
    """Return a function that decodes so many tokens greedily after `context` prompt tokens."""
    cache = KVCache(model.config, -(-(context + 4096) // 16))
    table = range(cache.num_blocks)
    hidden = model.forward([Segment([index % 100 + 1 for index in range(context)], 0, table)], cache)[0]
    state = [int(model.logits(hidden[-1:]).argmax()), context]

    def decode(tokens: int) -> None:
        for _ in range(tokens):
            rows = model.forward([Segment([state[0]], state[1], table)], cache)[0]
            state[:] = int(model.logits(rows).argmax()), state[1] + 1

    return decode


def transformers(folder: Path, context: int, threads: int) -> Callable[[int], None]:
    """Return the same of transformers, with its dynamic cache and the attention that it chooses."""
    import torch  # noqa: PLC0415 - not needed without it
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - not needed without it

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # Renamed in transformers 5.24.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    with torch.inference_mode():
        prompt = torch.tensor([[index % 100 + 1 for index in range(context)]])
        state = [model(prompt, use_cache=True)]

    def decode(tokens: int) -> None:
        with torch.inference_mode():
            for _ in range(tokens):
                token = state[0].logits[:, -1:].argmax(-1)
                state[0] = model(token, **{name: state[0][name]}, use_cache=True)

    return decode


def rate(decode: Callable[[int], None], tokens: int) -> float:
    """Return tokens a second."""
    start = time.perf_counter()
    decode(tokens)
    return tokens / (time.perf_counter() - start)


def interval(values: np.ndarray) -> str:
    """Return the median and the middle 95% of the medians of resampled rounds."""
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(values, (2000, len(values))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return f"{np.median(values):.2f} (95%: {low:.2f} to {high:.2f})"


def others(model: Model) -> None:
    """Print the speed of a prompt of 500 tokens, of 16 sequences together and of one after 2,000 tokens."""
    cache = KVCache(model.config, 400)
    start = time.perf_counter()
    model.forward([Segment([index % 100 + 1 for index in range(500)], 0, range(32))], cache)
    print(f"reference, prompt of 500 tokens: {500 / (time.perf_counter() - start):.0f} tokens/s")
    tables = [range(16 * number, 16 * number + 16) for number in range(16)]
    model.forward([Segment([1] * PROMPT, 0, table) for table in tables], cache)
    start = time.perf_counter()
    for step in range(8):
        rows = model.forward([Segment([2], PROMPT + step, table) for table in tables], cache)
        model.logits(np.concatenate(rows))
    print(f"reference, 16 sequences together: {16 * 8 / (time.perf_counter() - start):.0f} tokens/s")
    print(f"reference, after 2,000 tokens: {rate(reference(model, 2000), 16):.1f} tokens/s")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=16, help="tokens a round")
    parser.add_argument("--without-transformers", action="store_true")
    parser.add_argument("--json", type=Path, help="write what was measured there, too")
    arguments = parser.parse_args()
    model = load_model(arguments.folder)
    contenders = {"reference": reference(model, PROMPT)}
    if not arguments.without_transformers:
        contenders["transformers"] = transformers(arguments.folder, PROMPT, arguments.threads)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for decode in contenders.values():
        decode(4)
    for _ in range(arguments.rounds):
        for name, decode in contenders.items():
            rates[name].append(rate(decode, arguments.tokens))
    figures = {f"{name}, single stream, tokens/s": interval(np.array(values)) for name, values in rates.items()}
    if "transformers" in rates:
        ratios = np.array(rates["reference"]) / np.array(rates["transformers"])
        figures["reference / transformers"] = interval(ratios)
    for name, figure in figures.items():
        print(f"{name}: {figure}")
    if arguments.json:
        content = {"environment": environment(), "model": arguments.folder.name, "figures": figures}
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    others(model)


if __name__ == "__main__":
    main()
