"""What a request gets does not depend on what else is in the engine, bit for bit."""

import importlib.util
from pathlib import Path

import pytest
from anyengine.backend import DeltaCollector, TokenRequest
from anyengine.outputs import TokenLogprobs
from anyengine.request import SamplingParams
from anyengine_reference.blocks import BlockPool
from anyengine_reference.core import Core
from anyengine_reference.model import KVCache, load_model
from anyengine_reference.sampling import Sampler
from anyengine_reference.scheduler import Limits, Scheduler
from anyengine_reference.sequence import Sequence
from anyengine_reference.speculation import DraftModel, NGram
from hypothesis import given, settings
from hypothesis import strategies as st

BLOCK = 4
EOS = frozenset({0})
VOCAB = 24


def _random_model(folder, seed, **overrides):
    path = Path(__file__).with_name("model") / "checkpoints.py"
    spec = importlib.util.spec_from_file_location("schedules_checkpoints", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return load_model(module.random_checkpoint(folder, seed=seed, vocab_size=VOCAB, **overrides))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return _random_model(folder / "main", 3), _random_model(folder / "draft", 4, num_hidden_layers=1)


def _proposer(kind, models, num_blocks):
    if kind == "ngram":
        return NGram(1, 3)
    return DraftModel(models[1], KVCache(models[1].config, num_blocks, BLOCK)) if kind == "draft" else None


def _core(models, *, num_blocks=64, seqs=8, tokens=512, prefix=False, kind=None, drafted=3, chunked=True):
    limits = Limits(
        seqs, tokens, chunked_prefill=chunked, prefix_caching=prefix, num_speculative_tokens=drafted if kind else 0
    )
    scheduler = Scheduler(BlockPool(num_blocks), BLOCK, limits)
    model = models[0]
    return Core(model, KVCache(model.config, num_blocks, BLOCK), scheduler, _proposer(kind, models, num_blocks))


class _Run:
    """Requests in a core, stepped by hand."""

    def __init__(self, core):
        self.core = core
        self.tokens, self.entries, self.finish = {}, {}, {}
        self._ids = {}

    def add(self, request):
        collector = DeltaCollector()
        self._ids[id(collector)] = request.id
        self.tokens[request.id], self.entries[request.id] = [], []
        self._keep = [*getattr(self, "_keep", []), collector]
        self.core.add(Sequence(request, collector, Sampler(request, VOCAB), None))

    def take(self, deliveries):
        for collector, delta in deliveries:
            name = self._ids[id(collector)]
            self.tokens[name] += delta.token_ids
            self.entries[name] += delta.logprobs or []
            if delta.finish is not None:
                self.finish[name] = delta.finish

    def drain(self):
        for _ in range(2000):
            if not self.core.busy:
                return
            self.take(self.core.step())
        raise AssertionError("the engine does not come to an end")


def _alone(models, request, kind=None):
    run = _Run(_core(models, kind=kind))
    run.add(request)
    run.drain()
    return run.tokens[request.id], run.entries[request.id], run.finish[request.id]


REQUESTS = st.builds(
    lambda prefix, tail, most, temperature, seed, priority, penalty, top, prompt_top: {
        "prompt_token_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9][:prefix] + tail,
        "max_tokens": most,
        "sampling": SamplingParams(temperature=temperature, seed=seed, presence_penalty=penalty, top_p=0.95),
        "priority": priority,
        "logprobs": top,
        "prompt_logprobs": prompt_top,
    },
    st.integers(1, 9),
    st.lists(st.integers(1, VOCAB - 1), max_size=4),
    st.integers(1, 14),
    st.sampled_from([0.0, 0.7, 1.5]),
    st.integers(0, 5),
    st.integers(-1, 1),
    st.sampled_from([0.0, 0.5]),
    st.sampled_from([None, 0, 3]),
    st.sampled_from([None, None, None, 1]),
)


def _request(name, fields):
    return TokenRequest(id=name, eos_token_ids=EOS, **fields)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.tuples(REQUESTS, st.integers(0, 6), st.none() | st.integers(1, 12)), min_size=1, max_size=7),
    spare=st.integers(0, 6),
    seqs=st.integers(1, 4),
    tokens=st.sampled_from([1, 2, 3, 5, 8, 64]),
    prefix=st.booleans(),
    chunked=st.booleans(),
)
def test_any_schedule_gives_what_each_request_gets_alone(models, requests, spare, seqs, tokens, prefix, chunked):
    """Arrivals, priorities, aborts, chunks, prefix reuse, eviction and preemption in a cache that is nearly too small."""
    built = [_request(f"r{i}", fields) for i, (fields, _, _) in enumerate(requests)]
    needed = max(-(-(len(r.prompt_token_ids) + r.max_tokens) // BLOCK) for r in built)
    core = _core(models, num_blocks=needed + spare, seqs=seqs, tokens=tokens, prefix=prefix, chunked=chunked)
    run = _Run(core)
    aborted = set()
    for step in range(14):
        for request, (_, arrives, leaves) in zip(built, requests, strict=True):
            if arrives == step:
                run.add(request)
            if leaves is not None and arrives + leaves == step and request.id not in run.finish:
                run.take(core.abort(request.id))
                aborted.add(request.id)
        if core.busy:
            run.take(core.step())
    run.drain()
    for request in built:
        expected_tokens, expected_entries, expected_finish = _alone(models, request)
        got = run.tokens[request.id]
        if request.id in aborted:
            assert run.finish[request.id].reason == "abort"
            assert got == expected_tokens[: len(got)]
            assert run.entries[request.id] == expected_entries[: len(got)]
        else:
            assert (got, run.entries[request.id]) == (expected_tokens, expected_entries)
            assert run.finish[request.id].reason == expected_finish.reason
            assert run.finish[request.id].prompt_logprobs == expected_finish.prompt_logprobs
    stats = core.stats()
    assert (stats.kv_cache.used_tokens, stats.running, stats.waiting) == (0, 0, 0)
    assert stats.requests["abort"] == len(aborted)


@settings(max_examples=30, deadline=None)
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=4),
    kind=st.sampled_from(["ngram", "draft"]),
    spare=st.integers(0, 4),
    tokens=st.sampled_from([2, 5, 64]),
    drafted=st.integers(1, 5),
)
def test_greedy_output_with_speculation_is_that_without(models, requests, kind, spare, tokens, drafted):
    greedy = {"sampling": SamplingParams(temperature=0, presence_penalty=0.5, repetition_penalty=1.2), "min_tokens": 0}
    built = [
        _request(f"r{i}", fields | greedy | {"min_tokens": min(2, fields["max_tokens"])})
        for i, fields in enumerate(requests)
    ]
    needed = max(-(-(len(r.prompt_token_ids) + r.max_tokens) // BLOCK) for r in built)
    core = _core(models, num_blocks=needed + spare, tokens=tokens, kind=kind, drafted=drafted, prefix=True)
    run = _Run(core)
    for request in built:
        run.add(request)
    run.drain()
    for request in built:
        tokens_alone, entries_alone, finish = _alone(models, request)
        assert (run.tokens[request.id], run.entries[request.id]) == (tokens_alone, entries_alone)
        assert run.finish[request.id].reason == finish.reason
    stats = core.stats()
    assert stats.kv_cache.used_tokens == 0
    assert stats.speculative.accepted_tokens == sum(stats.speculative.accepted_per_position)
    assert stats.speculative.accepted_tokens <= stats.speculative.drafted_tokens


@settings(max_examples=20, deadline=None)
@given(requests=st.lists(REQUESTS, min_size=2, max_size=4), kind=st.sampled_from(["ngram", "draft"]))
def test_sampled_output_with_speculation_does_not_depend_on_the_batch(models, requests, kind):
    built = [_request(f"r{i}", fields) for i, fields in enumerate(requests)]
    run = _Run(_core(models, kind=kind))
    for request in built:
        run.add(request)
    run.drain()
    for request in built:
        assert run.tokens[request.id] == _alone(models, request, kind)[0]


def test_a_small_cache_forces_preemption_and_a_shared_prefix_is_found(models):
    """The schedules above do exercise what they are about."""
    core = _core(models, num_blocks=6, seqs=4, tokens=8, prefix=True)
    run = _Run(core)
    fields = {
        "prompt_token_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9],
        "max_tokens": 12,
        "sampling": SamplingParams(temperature=0),
    }
    for index in range(3):
        run.add(_request(f"r{index}", fields | {"min_tokens": 12}))
    run.drain()
    stats = core.stats()
    assert stats.preemptions > 0
    assert (stats.kv_cache.prefix_queries, stats.kv_cache.prefix_hits > 0) == (27, True)
    assert len({tuple(tokens) for tokens in run.tokens.values()}) == 1


def test_a_salt_keeps_prefixes_apart(models):
    core = _core(models, prefix=True)
    run = _Run(core)
    fields = {
        "prompt_token_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9],
        "max_tokens": 1,
        "sampling": SamplingParams(temperature=0),
    }
    for name, salt in [("a", None), ("b", None), ("c", "x"), ("d", "x"), ("e", "y")]:
        run.add(_request(name, fields | {"cache_salt": salt}))
        run.drain()
    assert {name: finish.cached_tokens for name, finish in run.finish.items()} == {
        "a": 0,
        "b": 8,
        "c": 0,
        "d": 8,
        "e": 0,
    }


def test_lower_priority_numbers_run_first(models):
    run = _Run(_core(models, seqs=1))
    order = []
    for name, priority in [("a", 1), ("b", 0), ("c", -1)]:
        fields = {
            "prompt_token_ids": [1, 2],
            "max_tokens": 2,
            "sampling": SamplingParams(temperature=0),
            "min_tokens": 2,
        }
        run.add(_request(name, fields | {"priority": priority}))
    while run.core.busy:
        run.take(run.core.step())
        order += [name for name in run.finish if name not in order]
    assert order == ["c", "b", "a"]


def test_log_probabilities_are_normalised_and_hold_the_chosen_token(models):
    import math

    request = _request(
        "r",
        {
            "prompt_token_ids": [1, 2, 3],
            "max_tokens": 6,
            "sampling": SamplingParams(seed=1, temperature=2.0),
            "logprobs": VOCAB,
            "prompt_logprobs": VOCAB,
            "min_tokens": 6,
        },
    )
    tokens, entries, finish = _alone(models, request)
    assert [entry.token_id for entry in entries] == tokens
    assert [entry and entry.token_id for entry in finish.prompt_logprobs] == [None, 2, 3]
    for entry in [*entries, *finish.prompt_logprobs[1:]]:
        assert isinstance(entry, TokenLogprobs)
        assert entry.top[entry.token_id] == entry.logprob
        assert sum(math.exp(value) for value in entry.top.values()) == pytest.approx(1.0, abs=1e-12)
        assert list(entry.top.values()) == sorted(entry.top.values(), reverse=True)
