"""The decoder: Llama and its close relatives Mistral, Qwen2 and Qwen3."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .attention import TILE, attend
from .cache import KVCache
from .config import ModelConfig
from .errors import UnsupportedModel
from .ops import FloatArray, IntArray, Linear, aligned, padded, rms_norm, silu_product
from .rope import RotaryTable, rotate

__all__ = ["Model", "Segment", "Weights"]


@dataclass(slots=True)
class Segment:
    """The rows of one sequence in a step.

    `token_ids` are new tokens: one in decoding, many of a prompt, a draft's to verify. `start` is the position of the
    first one, which is how many tokens are in the cache already. `block_table` has the physical blocks of positions 0
    to ``start + len(token_ids) - 1``; entries beyond are not looked at.
    """

    token_ids: Sequence[int] | np.ndarray
    start: int
    block_table: Sequence[int]


class Weights(Protocol):
    """Where a model's tensors come from: `checkpoint.Checkpoint`, or a stand-in of a test."""

    def read(self, name: str, shape: tuple[int, ...]) -> FloatArray:
        """Return a tensor as float32. Raises `BadCheckpoint`, with its name, if it is missing or has another shape."""
        ...


class Product(Protocol):
    """One or more products of rows with matrices: `ops.Linear`, or who watches one."""

    def __call__(self, rows: FloatArray) -> list[FloatArray]:
        """Return ``W x + b`` for each W, [rows, padded outputs]."""
        ...


class _Layer:
    """The weights of one decoder layer."""

    def __init__(self, config: ModelConfig, index: int, weights: Weights, rounded: Callable[[str], str | None]) -> None:
        hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
        queries, keys = config.num_heads * dim, config.num_kv_heads * dim

        def read(name: str, *shape: int) -> FloatArray:
            return weights.read(f"model.layers.{index}.{name}", shape)

        def linear(inputs: int, *outputs: tuple[str, int], bias: bool) -> Linear:
            biases = [read(f"{name}.bias", size) for name, size in outputs] if bias else []
            matrices = (read(f"{name}.weight", size, inputs) for name, size in outputs)
            kinds = {rounded(f"model.layers.{index}.{name}.weight") for name, _ in outputs}
            if len(kinds) > 1:
                raise UnsupportedModel(
                    f"layer {index}: of {', '.join(name for name, _ in outputs)} some are quantized with their "
                    "activations and some are not; they share one product here."
                )
            return Linear(*matrices, biases=biases, rounded=kinds.pop())

        def norm(name: str, size: int, width: int) -> FloatArray:
            return np.pad(read(f"{name}.weight", size), (0, width - size))

        attention = ("self_attn.q_proj", queries), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)
        self.qkv: Product = linear(hidden, *attention, bias=config.attention_bias)
        self.output: Product = linear(queries, ("self_attn.o_proj", hidden), bias=config.attention_output_bias)
        self.gate_up: Product = linear(hidden, ("mlp.gate_proj", inner), ("mlp.up_proj", inner), bias=config.mlp_bias)
        self.down: Product = linear(inner, ("mlp.down_proj", hidden), bias=config.mlp_bias)
        self.attention_norm = norm("input_layernorm", hidden, padded(hidden))
        self.mlp_norm = norm("post_attention_layernorm", hidden, padded(hidden))
        self.qk_norms = [norm(f"self_attn.{x}_norm", dim, dim) for x in "qk"] if config.qk_norm else None
        self.window = config.sliding_windows[index]


class _Step:
    """Where the rows of a step stand: which segment, position, block and slot each has."""

    def __init__(self, segments: Sequence[Segment], cache: KVCache) -> None:
        self.ends = list(itertools.accumulate(len(segment.token_ids) for segment in segments))
        self.spans = [
            (slice(end - len(segment.token_ids), end), segment.start)
            for end, segment in zip(self.ends, segments, strict=True)
        ]
        self.tokens = np.concatenate([np.asarray(segment.token_ids, np.int64) for segment in segments])
        self.positions = np.concatenate([np.arange(s.start, s.start + len(s.token_ids)) for s in segments])
        lengths = [segment.start + len(segment.token_ids) for segment in segments]
        pairs = list(zip(segments, lengths, strict=True))
        self.tables = [cache.padded_table(segment.block_table, length, TILE) for segment, length in pairs]
        blocks = [
            table[self.positions[span] // cache.block_size]
            for table, (span, _) in zip(self.tables, self.spans, strict=True)
        ]
        self.blocks, self.offsets = np.concatenate(blocks), self.positions % cache.block_size
        for end in self.ends:
            cache.clear_after(int(self.blocks[end - 1]), int(self.offsets[end - 1]) + 1)


class Model:
    """A causal language model in float32.

    A row's result depends on the tokens of its sequence up to it and on nothing else, to the bit: not on the other
    segments of a step, on how its sequence was cut into steps, on later rows or on which blocks it has. `ops` says how.
    One step at a time: calls of `forward` must not overlap.
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, *, rounded: Callable[[str], str | None] = lambda _name: None
    ) -> None:
        """Read all tensors.

        Args:
            config: of the checkpoint.
            weights: its tensors.
            rounded: the element type that rows are rounded to before a product with the matrix of that name; None for
                none.

        Raises:
            BadCheckpoint: a tensor is missing or has another shape.
        """
        self.config = config
        vocabulary, hidden = config.vocab_size, config.hidden_size
        embedding = weights.read("model.embed_tokens.weight", (vocabulary, hidden))
        self._embedding = None if config.tie_word_embeddings else embedding
        self._head = Linear(
            embedding if config.tie_word_embeddings else weights.read("lm_head.weight", embedding.shape)
        )
        self.layers = [_Layer(config, index, weights, rounded) for index in range(config.num_layers)]
        self._norm = np.pad(weights.read("model.norm.weight", (hidden,)), (0, padded(hidden) - hidden))
        self._rope = RotaryTable(config.rope, config.head_dim)

    def forward(self, segments: Sequence[Segment], cache: KVCache) -> list[FloatArray]:
        """Run new tokens of some sequences through the layers and store their keys and values.

        Returns:
            For each segment the hidden states after the last norm, float32 [len(token_ids), hidden_size].

        Raises:
            ValueError: a segment without tokens, a token id outside the vocabulary, a block table that is too short or
                names a block that is not there.
        """
        self._check(segments, cache)
        if not segments:
            return []
        step = _Step(segments, cache)
        hidden = self._embed(step.tokens)
        cos, sin = self._rope.lookup(step.positions)
        # The exponential of a strongly negative gate overflows, as `silu_product` expects.
        with np.errstate(over="ignore"):
            for index, layer in enumerate(self.layers):
                normed = rms_norm(hidden, layer.attention_norm, self.config.hidden_size, self.config.rms_norm_eps)
                hidden += layer.output(self._attention(index, normed, step, cos, sin, cache))[0]
                normed = rms_norm(hidden, layer.mlp_norm, self.config.hidden_size, self.config.rms_norm_eps)
                gate, up = layer.gate_up(normed)
                inner = aligned(*gate.shape)
                silu_product(gate, up, inner)
                hidden += layer.down(inner)[0]
        normed = rms_norm(hidden, self._norm, self.config.hidden_size, self.config.rms_norm_eps)
        return [normed[span, : self.config.hidden_size].copy() for span, _ in step.spans]

    def logits(self, hidden: FloatArray) -> FloatArray:
        """Return the logits of hidden states from `forward`: float32 [rows, vocab_size] of [rows, hidden_size]."""
        rows = self._padded(hidden)
        return self._head(rows)[0][:, : self.config.vocab_size]

    def _attention(
        self, index: int, normed: FloatArray, step: _Step, cos: FloatArray, sin: FloatArray, cache: KVCache
    ) -> FloatArray:
        config, layer, rows = self.config, self.layers[index], len(normed)
        heads, kv_heads, dim = config.num_heads, config.num_kv_heads, config.head_dim
        q, k, v = layer.qkv(normed)
        queries = q[:, : heads * dim].reshape(rows, heads, dim)
        keys, values = (x[:, : kv_heads * dim].reshape(rows, kv_heads, dim) for x in (k, v))
        if layer.qk_norms is not None:
            queries[...] = rms_norm(queries, layer.qk_norms[0], dim, config.rms_norm_eps)
            keys[...] = rms_norm(keys, layer.qk_norms[1], dim, config.rms_norm_eps)
        rotate(queries, cos, sin)
        rotate(keys, cos, sin)
        queries *= np.float32(dim**-0.5)
        cache.write(index, step.blocks, step.offsets, keys, values)
        out = aligned(rows, padded(heads * dim))
        out[:, heads * dim :] = 0
        grouped = rows, kv_heads, heads // kv_heads, dim
        targets, queries = out[:, : heads * dim].reshape(grouped), queries.reshape(grouped)
        for (span, start), table in zip(step.spans, step.tables, strict=True):
            tiles = kv_heads, -1, TILE, dim
            past_keys, past_values = (x.reshape(tiles) for x in cache.gather(index, table))
            attend(queries[span], past_keys, past_values, start, layer.window, targets[span])
        return out

    def _embed(self, tokens: IntArray) -> FloatArray:
        if self._embedding is None:
            return self._head.weight_rows(tokens)
        return self._padded(self._embedding[tokens])

    def _padded(self, rows: FloatArray) -> FloatArray:
        out = aligned(len(rows), padded(self.config.hidden_size))
        out[:, : self.config.hidden_size] = rows
        out[:, self.config.hidden_size :] = 0
        return out

    def _check(self, segments: Sequence[Segment], cache: KVCache) -> None:
        for number, segment in enumerate(segments):
            tokens = np.asarray(segment.token_ids)
            if not tokens.size or segment.start < 0:
                raise ValueError(f"Segment {number} has {tokens.size} tokens from position {segment.start}.")
            if tokens.min() < 0 or tokens.max() >= self.config.vocab_size:
                raise ValueError(f"Segment {number} has a token id outside 0 to {self.config.vocab_size - 1}.")
            table = np.asarray(segment.block_table[: -(-(segment.start + tokens.size) // cache.block_size)])
            if table.size * cache.block_size < segment.start + tokens.size:
                raise ValueError(f"Segment {number} ends after the {table.size} blocks of its table.")
            if table.min() < 0 or table.max() >= cache.num_blocks:
                raise ValueError(f"Segment {number} names a block outside 0 to {cache.num_blocks - 1}.")
