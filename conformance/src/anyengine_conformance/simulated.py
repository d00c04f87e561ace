"""The healthy engine of the selftest: the reference engine's machinery round a model that costs nothing.

Its tokens are bytes; the model is the frequency of each byte after the two before it, in a page of English. Everything
else is the reference engine: batching, the paged cache, every sampling parameter, log-probabilities, structured output,
statistics. So each check runs in milliseconds, and the engine is healthy for real, not by a script.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter, defaultdict
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anyengine.backend import BackendInfo, EngineDescription, EnginePlugin
from anyengine.errors import InvalidConfig, UnsupportedParameter
from anyengine.testing import EOS, make_model_folder
from anyengine_reference.backend import ReferenceBackend
from anyengine_reference.blocks import BlockPool
from anyengine_reference.core import Core
from anyengine_reference.model import KVCache, ModelConfig
from anyengine_reference.plugin import CAPABILITIES
from anyengine_reference.scheduler import Limits, Scheduler
from anyengine_reference.speculation import NGram
from anyengine_reference.structured import ConstraintCompiler
from msgspec.structs import replace
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyengine.backend import Backend
    from anyengine.capabilities import Capabilities
    from anyengine.config import EngineConfig
    from anyengine.hub import ModelFiles
    from anyengine_reference.model import Segment

__all__ = ["SimulatedPlugin", "simulated_folder"]

NAME = "simulated"
VOCABULARY = 259
CONTEXT = 1024
BLOCK = 16
#: Seconds of a step: a reader keeps up, as with a real engine.
_STEP = 0.0005
#: Weights of the longest context, of shorter ones, and of no knowledge at all, so that every token can be drawn.
_MIXTURE = (0.80, 0.15, 0.04, 0.01)
_CORPUS = """\
Once upon a time there was a little girl who lived near the sea. One day she went to the beach and found a big shell.
The old man opened the door and looked into the garden. There he saw a small cat that sat under the tree and slept.
It was raining, so the children stayed at home and played. After a while the sun came out and they ran into the street.
My friend has a brown dog. Every morning the dog runs to the park, and every evening it comes home and eats its dinner.
The teacher said that the test was easy, but the boys and the girls did not think so. They read their books again.
In the café at the corner you can eat crêpes and drink tea. The owner, José, is always happy 🙂 and sings naïve songs.
She asked him what time it was, and he told her that it was ten. Then they took the train to the city and met Zoë.
"""


@cache
def simulated_folder() -> str:
    """A checkpoint folder for it, made once a process."""
    return str(make_model_folder(Path(tempfile.mkdtemp(prefix="anyengine-simulated-")) / NAME))


class FrequencyModel:
    """Stands in for the reference engine's model.

    Its "keys" are the tokens themselves, kept in the paged cache, so that a cache that is wrong gives wrong text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.config = ModelConfig.from_dict(_SHAPE)
        self._counts: list[defaultdict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(3)]
        self._rows: dict[tuple[int, ...], np.ndarray[Any, np.dtype[np.float32]]] = {}
        for line in _CORPUS.splitlines():
            tokens = [*tokenizer.encode(line, add_special_tokens=False).ids, EOS]
            for place, token in enumerate(tokens):
                for length in range(min(place, 2) + 1):
                    self._counts[length][tuple(tokens[place - length : place])][token] += 1

    def forward(self, segments: Sequence[Segment], cache: KVCache) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        """Store the tokens, and return for each position the token before it and its own."""
        time.sleep(_STEP)
        found: list[np.ndarray[Any, np.dtype[np.float32]]] = []
        keys, size = cache.keys[0, 0, :, :, 0], cache.block_size
        # Without NumPy's calls on arrays: most segments are of one token.
        for segment in segments:
            table, start, end = segment.block_table, segment.start, segment.start + len(segment.token_ids)
            for place, token in enumerate(segment.token_ids, start):
                keys[table[place // size], place % size] = token
            cached = [keys[table[at // size], at % size] if at >= 0 else -1 for at in range(start - 1, end)]
            found.append(np.array(list(pairwise(cached)), np.float32))
        return found

    def logits(self, hidden: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The logarithm of a mixture of frequencies."""
        return np.stack([self._row(tuple(int(token) for token in pair if token >= 0)) for pair in hidden])

    def _row(self, context: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
        row = self._rows.get(context)
        if row is None:
            mixed = np.full(VOCABULARY, _MIXTURE[3] / VOCABULARY)
            for length, weight in zip((2, 1, 0), _MIXTURE[:3], strict=True):
                counts = self._counts[length].get(context[len(context) - length :]) if length <= len(context) else None
                if counts:
                    ids = np.fromiter(counts, np.int64)
                    mixed[ids] += weight * np.fromiter(counts.values(), np.float64) / counts.total()
            row = self._rows[context] = np.log(mixed / mixed.sum()).astype(np.float32)
        return row


_SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 2,
    "intermediate_size": 2,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 2,
    "max_position_embeddings": CONTEXT,
}


@cache
def _model(tokenizer: Path) -> FrequencyModel:
    return FrequencyModel(Tokenizer.from_file(str(tokenizer)))


class SimulatedPlugin(EnginePlugin):
    """The plugin; made where it is needed, not installed.

    Args:
        capabilities: to declare, instead of all that the engine has.
    """

    def __init__(self, capabilities: Capabilities | None = None) -> None:
        self.capabilities = capabilities or replace(
            CAPABILITIES,
            quantization=frozenset(),
            quantize=frozenset(),
            speculative=frozenset({"ngram"}),
            unseeded="fixed",
            max_logprobs=20,
        )

    def describe(self) -> EngineDescription:
        return EngineDescription(
            name=NAME,
            plugin_version="0",
            engine_version="1.0",
            in_process=True,
            capabilities=self.capabilities,
            models={NAME: simulated_folder()},
            default_model=NAME,
        )

    async def load(self, config: EngineConfig, model: ModelFiles) -> Backend:
        if config.execution == "graph":
            raise UnsupportedParameter("simulated has no graphs; it supports auto, eager", field="execution")
        context = config.max_model_len or CONTEXT
        capacity = config.kv_cache.capacity_tokens or 64 * CONTEXT
        if context > CONTEXT or capacity < context:
            raise InvalidConfig(
                f"max_model_len: {context} is more than {min(CONTEXT, capacity)}", field="max_model_len"
            )
        return ReferenceBackend(*await asyncio.to_thread(self._prepare, config, model, context, capacity))

    def _prepare(
        self, config: EngineConfig, files: ModelFiles, context: int, capacity: int
    ) -> tuple[BackendInfo, Core, ConstraintCompiler]:
        file = files.tokenizer_path / "tokenizer.json"
        model = _model(file)
        size = config.kv_cache.block_size or BLOCK
        blocks = -(-capacity // size)
        limits = Limits(
            max_num_seqs=config.scheduling.max_num_seqs or 64,
            max_num_batched_tokens=config.scheduling.max_num_batched_tokens or 512,
            chunked_prefill=config.scheduling.chunked_prefill is not False,
            prefix_caching=config.kv_cache.prefix_caching is not False,
            num_speculative_tokens=config.speculative.num_speculative_tokens if config.speculative else 0,
        )
        speculative = config.speculative
        proposer = NGram(speculative.ngram_min, speculative.ngram_max) if speculative else None
        info = BackendInfo(
            capabilities=self.capabilities,
            max_model_len=context,
            vocab_size=VOCABULARY,
            max_num_seqs=limits.max_num_seqs,
            dtype="float32",
            device="cpu",
        )
        scheduler = Scheduler(BlockPool(blocks), size, limits)
        # What the core asks of a model are these two methods, and no more.
        stand_in: Any = model
        core = Core(stand_in, KVCache(model.config, blocks, size), scheduler, proposer)
        return info, core, _compiler(file, files.eos_token_ids)


@cache
def _compiler(file: Path, ends: frozenset[int]) -> ConstraintCompiler:
    return ConstraintCompiler(file, VOCABULARY, ends)
