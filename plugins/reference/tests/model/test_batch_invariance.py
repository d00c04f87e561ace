import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anyengine_reference.model import KVCache, Model, Segment, ops, workers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# Widths that are no multiple of a vector, groups of 1, 2 and 3 heads, a product in several chunks, windows.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, groups of 3": ("llama", {}),
    "llama, groups of 1, odd widths": (
        "llama",
        {"hidden_size": 30, "intermediate_size": 41, "num_attention_heads": 5, "num_key_value_heads": 5},
    ),
    "llama, several chunks": ("llama", {"hidden_size": 604, "num_attention_heads": 2, "intermediate_size": 1201}),
    "mistral, window": ("mistral", {"sliding_window": 21, "num_attention_heads": 6, "num_key_value_heads": 3}),
    "qwen2, window above the first layer": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 70, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen3": ("qwen3", {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10}),
}
VOCABULARY = 97
BLOCKS = 64


def bits(values: np.ndarray) -> list[Any]:
    return np.ascontiguousarray(values).view(np.uint32).tolist()


def alone(model: Model, tokens: list[int]) -> np.ndarray:
    """All rows of one sequence, in one go, in a cache of its own."""
    cache = KVCache(model.config, -(-len(tokens) // 16))
    return model.forward([Segment(tokens, 0, range(cache.num_blocks))], cache)[0]


@dataclass
class Sequence:
    """A sequence on its way through a random schedule."""

    tokens: list[int]
    table: list[int]
    done: int = 0
    rows: list[np.ndarray] = field(default_factory=list)


@st.composite
def sequences(draw: st.DrawFn) -> list[list[int]]:
    token = st.integers(0, VOCABULARY - 1)
    prefix = draw(st.lists(token, max_size=90))
    tails = draw(st.lists(st.lists(token, min_size=1, max_size=60), min_size=1, max_size=4))
    return [(prefix if draw(st.booleans()) else []) + tail for tail in tails]


@pytest.mark.parametrize("name", MODELS)
@given(data=st.data(), prompts=sequences(), block_size=st.sampled_from([16, 16, 8, 5, 64]), seed=st.integers(0, 999))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_row_has_the_same_bits_in_every_schedule(
    name: str,
    random_model: Callable[..., Model],
    data: st.DataObject,
    prompts: list[list[int]],
    block_size: int,
    seed: int,
) -> None:
    family, options = MODELS[name]
    model = random_model(family, **options)
    generator = np.random.default_rng(seed)
    needed = [-(-len(tokens) // block_size) + 2 for tokens in prompts]
    cache = KVCache(model.config, sum(needed), block_size)
    cache.keys[:, :, :-1] = cache.values[:, :, :-1] = np.nan  # what other sequences left
    free = iter(generator.permutation(sum(needed)).tolist())
    running = [Sequence(t, [next(free) for _ in range(n)]) for t, n in zip(prompts, needed, strict=True)]
    while any(s.done < len(s.tokens) for s in running):
        picked = [s for s in running if s.done < len(s.tokens) and generator.random() < 0.7]
        steps: list[tuple[Sequence, list[int], int]] = []
        for s in picked:
            kind = data.draw(st.sampled_from(["decode", "chunk", "verify", "all"]))
            left = len(s.tokens) - s.done
            count = {"decode": 1, "all": left}.get(kind, int(generator.integers(1, left + 1)))
            wrong = generator.integers(0, VOCABULARY, 3 if kind == "verify" else 0).tolist()
            steps.append((s, s.tokens[s.done : s.done + count] + wrong, count))
        results = model.forward([Segment(new, s.done, s.table) for s, new, _ in steps], cache)
        for (s, _, count), rows in zip(steps, results, strict=True):
            s.rows.append(rows[:count])
            s.done += count
    for s in running:
        assert bits(alone(model, s.tokens)) == bits(np.concatenate(s.rows))


@pytest.mark.parametrize("name", MODELS)
def test_a_sequence_that_reuses_the_blocks_of_a_prefix_gets_the_same_bits(
    name: str, random_model: Callable[..., Model]
) -> None:
    family, options = MODELS[name]
    model = random_model(family, **options)
    prefix, tails = list(range(80)), [[5, 6, 7], [8] * 40, [9]]
    cache = KVCache(model.config, BLOCKS)
    model.forward([Segment(prefix, 0, range(5))], cache)
    tables = [[0, 1, 2, 3, 4, *range(10 * i, 10 * i + 3)] for i in (1, 2, 3)]
    shared = model.forward([Segment(t, 80, table) for t, table in zip(tails, tables, strict=True)], cache)
    assert [bits(alone(model, prefix + tail)[80:]) for tail in tails] == [bits(rows) for rows in shared]


def test_a_copied_block_serves_a_sequence_that_goes_on_from_its_middle(random_model: Callable[..., Model]) -> None:
    model = random_model("llama")
    tokens = list(range(40))
    cache = KVCache(model.config, BLOCKS)
    model.forward([Segment(tokens, 0, [7, 8, 9])], cache)
    cache.copy_block(9, 3)
    cache.copy_block(8, 4)
    rows = model.forward([Segment([1, 2, 3], 34, [7, 4, 3])], cache)[0]
    assert bits(alone(model, [*tokens[:34], 1, 2, 3])[34:]) == bits(rows)


@given(
    seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 300), outputs=st.integers(1, 90), inputs=st.integers(1, 1300)
)
@settings(max_examples=40)
def test_a_product_gives_a_row_the_same_bits_among_any_others(seed: int, rows: int, outputs: int, inputs: int) -> None:
    generator = np.random.default_rng(seed)
    linear = ops.Linear(generator.standard_normal((outputs, inputs), dtype=np.float32))
    matrix = ops.aligned(rows, ops.padded(inputs))
    matrix[:, :inputs] = generator.standard_normal((rows, inputs), dtype=np.float32)
    matrix[:, inputs:] = 0
    together = linear(matrix)[0]
    for index in {0, rows // 2, rows - 1}:
        row = ops.aligned(1, ops.padded(inputs))
        row[0] = matrix[index]
        assert bits(linear(row)[0][0]) == bits(together[index])


def test_logits_of_a_row_do_not_depend_on_the_others(random_model: Callable[..., Model]) -> None:
    model = random_model("llama", hidden_size=604, num_attention_heads=2)
    hidden = alone(model, list(range(90)))
    whole = model.logits(hidden)
    assert bits(whole[17]) == bits(model.logits(hidden[17:18])[0])
    assert bits(whole[5:60:7]) == bits(model.logits(hidden[5:60:7]))


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_the_number_of_threads_does_not_change_the_bits(
    threads: int, random_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model("llama", hidden_size=604, num_attention_heads=2)
    expected = bits(alone(model, list(range(90))))
    monkeypatch.setattr(ops, "_SPLIT", 0)
    monkeypatch.setattr(workers, "thread_count", lambda: threads)
    assert expected == bits(alone(model, list(range(90))))


def test_the_number_of_threads_of_blas_does_not_change_the_bits(random_checkpoint: Callable[..., Path]) -> None:
    folder = random_checkpoint("llama", hidden_size=1200, num_attention_heads=2, intermediate_size=2000)
    program = (
        "import sys, hashlib; from pathlib import Path; from anyengine_reference.model import *;"
        "model = load_model(Path(sys.argv[1])); cache = KVCache(model.config, 8);"
        "rows = model.forward([Segment(list(range(90)), 0, range(8))], cache)[0];"
        "print(hashlib.sha256(model.logits(rows).tobytes()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program, str(folder)],
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "4")
    }
    assert len(digests) == 1
