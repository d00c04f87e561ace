"""The engine as its users have it: together and alone, stopping, cancelling, failing, statistics."""

from __future__ import annotations

import asyncio
import gc
import math
import subprocess
import sys
import threading
import weakref
from collections import Counter
from typing import Any

import pytest
from anyengine import Engine, EngineClosed, EngineDied, InvalidRequest, OutOfMemory, SamplingParams, Structured
from anyengine.backend import TokenRequest
from anyengine_transformers import model as computing
from anyengine_transformers.thread import EngineThread

pytestmark = pytest.mark.oracle

GREEDY = SamplingParams(temperature=0)
PROMPT = [10, 20, 30, 40, 50]


@pytest.fixture
async def engine(load) -> Any:
    async with load() as loaded:
        yield loaded


async def held(engine: Engine) -> tuple[int | None, int | None, int | None]:
    stats = await engine.stats()
    return stats.kv_cache.used_tokens, stats.running, stats.waiting


@pytest.mark.parametrize("determinism", ["none", "batch-invariant"])
async def test_eight_together_are_each_as_alone_to_the_bit(determinism, load):
    requests = [
        {
            "prompt": [number, *PROMPT * (number + 1)],
            "sampling": SamplingParams(seed=number, top_p=0.95, repetition_penalty=1.1),
            "max_tokens": 20 + number,
            "ignore_eos": True,
            "logprobs": 2,
            "prompt_logprobs": 2 if number % 2 else None,
        }
        for number in range(8)
    ]
    async with load(determinism=determinism, scheduling={"max_num_seqs": 5}) as engine:
        alone = [await engine.generate(**each) for each in requests]
        together = await asyncio.gather(*(engine.generate(**each) for each in requests), engine.score(PROMPT * 9))
        for one, other in zip(alone, together[:-1], strict=True):
            assert (one.token_ids, one.logprobs, one.prompt_logprobs) == (
                other.token_ids,
                other.logprobs,
                other.prompt_logprobs,
            )
        assert together[-1] == await engine.score(PROMPT * 9)


async def test_a_short_request_overtakes_a_long_one(engine):
    async with engine.stream(PROMPT, max_tokens=200, ignore_eos=True) as long:
        chunks = aiter(long)
        await anext(chunks)
        short = await engine.generate(PROMPT, max_tokens=3, ignore_eos=True)
        assert len(short.token_ids) == 3
        assert (await engine.stats()).running == 1
        assert sum([len(chunk.token_ids) async for chunk in chunks]) > 100


async def test_waiting_requests_begin_by_priority(load):
    async with load(scheduling={"max_num_seqs": 1}) as engine:
        ended = []

        async def ask(name: str, priority: int) -> None:
            await engine.generate(PROMPT, max_tokens=10, ignore_eos=True, priority=priority)
            ended.append(name)

        # Handed over while the first one runs, the SDK keeps no more than two at the engine.
        await asyncio.gather(ask("first", 0), ask("later", 5))
        assert ended == ["first", "later"]
        backend = engine._runtime._hooks.stats.get_hookimpls()[-1].plugin

        async def submit(name: str, priority: int) -> None:
            wanted = TokenRequest(id=name, prompt_token_ids=PROMPT, sampling=GREEDY, max_tokens=10, priority=priority)
            await backend.generate(wanted)
            ended.append(name)

        ended.clear()
        await asyncio.gather(submit("first", 0), submit("last", 9), submit("third", 1), submit("second", 0))
        assert ended == ["first", "second", "third", "last"]


async def test_logprobs_of_the_whole_vocabulary_are_the_raw_distribution(engine, checkpoint, direct):
    bent = SamplingParams(temperature=0.3, top_k=3, frequency_penalty=1.0, logit_bias={7: 50.0}, seed=1)
    answer = await engine.generate(
        PROMPT, max_tokens=4, ignore_eos=True, sampling=bent, logprobs=259, prompt_logprobs=259
    )
    rows = direct(checkpoint())(PROMPT + answer.token_ids).log_softmax(-1)
    assert answer.prompt_logprobs[0] is None
    entries = [*answer.prompt_logprobs[1:], *answer.logprobs]
    assert [entry.token_id for entry in entries] == [*PROMPT, *answer.token_ids][1:]
    for entry, row in zip(entries, rows, strict=False):
        assert [entry.top[token] for token in range(259)] == pytest.approx(row.tolist(), abs=1e-4)
        assert list(entry.top.values()) == sorted(entry.top.values(), reverse=True)
        assert math.fsum(map(math.exp, entry.top.values())) == pytest.approx(1, abs=1e-12)


async def test_score_of_a_long_text_is_made_in_pieces(load, checkpoint, direct, monkeypatch):
    made = []
    numbers = computing.CausalLM.numbers

    def spy(self, logits):
        made.append(logits.numel())
        return numbers(self, logits)

    monkeypatch.setattr(computing.CausalLM, "numbers", spy)
    text = [token % 250 for token in range(3, 250)]
    async with load() as engine:
        made.clear()
        score = await engine.score(text, logprobs=0)
    assert max(made) == 64 * 259
    expected = direct(checkpoint())(text).log_softmax(-1)
    assert score.logprobs == pytest.approx([expected[i, token].item() for i, token in enumerate(text[1:])], abs=1e-4)


async def test_draws_through_the_engine_follow_the_models_distribution(engine, checkpoint, direct):
    count = 600
    allowed = list(range(40, 48))
    params = {"temperature": 1.5, "allowed_token_ids": allowed}
    prompts = [PROMPT] * count
    answers = await asyncio.gather(
        *(
            engine.generate(prompt, max_tokens=1, sampling=SamplingParams(seed=seed, **params))
            for seed, prompt in enumerate(prompts)
        )
    )
    logits = direct(checkpoint())(PROMPT)[-1]
    weights = {token: math.exp(logits[token].item() / 1.5) for token in allowed}
    total = sum(weights.values())
    seen = Counter(answer.token_ids[0] for answer in answers)
    due = {token: count * weight / total for token, weight in weights.items()}
    # 7 degrees of freedom: above 40 once in a million.
    assert sum((seen[token] - due[token]) ** 2 / due[token] for token in allowed) < 40
    assert set(seen) <= set(allowed)


async def test_seeds_repeat_and_differ(engine):
    async def draw(seed: int | None) -> list[int]:
        sampling = SamplingParams(seed=seed, temperature=2.0)
        return (await engine.generate(PROMPT, max_tokens=8, sampling=sampling, ignore_eos=True)).token_ids

    assert await draw(3) == await draw(3)
    assert await draw(3) != await draw(4)
    assert await draw(None) != await draw(None)


async def test_an_engine_with_a_seed_repeats_requests_without_one(load):
    async def answers() -> list[list[int]]:
        async with load(seed=7) as engine:
            hot = SamplingParams(temperature=2.0)
            return [
                (await engine.generate(PROMPT, max_tokens=8, sampling=hot, ignore_eos=True)).token_ids for _ in range(3)
            ]

    first = await answers()
    assert first == await answers()
    assert len(set(map(tuple, first))) == 3


async def test_stop_tokens_and_min_tokens(engine):
    plain = await engine.generate(PROMPT, max_tokens=30, sampling=GREEDY, ignore_eos=True)
    stop = plain.token_ids[9]
    first = plain.token_ids.index(stop)
    options: dict[str, Any] = {"max_tokens": 30, "sampling": GREEDY, "ignore_eos": True, "stop_token_ids": [stop]}
    stopped = await engine.generate(PROMPT, **options)
    assert (stopped.token_ids, stopped.finish_reason, stopped.stop_reason) == (
        plain.token_ids[: first + 1],
        "stop",
        stop,
    )
    later = await engine.generate(PROMPT, min_tokens=first + 1, **options)
    assert stop not in later.token_ids[: first + 1]
    eos = SamplingParams(allowed_token_ids=[256])
    ended = await engine.generate(PROMPT, max_tokens=5, sampling=eos)
    ignored = await engine.generate(PROMPT, max_tokens=5, sampling=eos, ignore_eos=True)
    assert (ended.token_ids, ended.stop_reason) == ([256], 256)
    assert (ignored.token_ids, ignored.finish_reason) == ([256] * 5, "length")


async def test_bad_words_do_not_appear(engine):
    letters = await engine.tokenize("ab")
    free = SamplingParams(seed=1, allowed_token_ids=letters)
    assert "ab" in (await engine.generate(PROMPT, max_tokens=30, sampling=free, ignore_eos=True)).text
    bound = SamplingParams(seed=1, allowed_token_ids=letters, bad_words=["ab"])
    answer = await engine.generate(PROMPT, max_tokens=30, sampling=bound, ignore_eos=True)
    assert len(answer.text) == 30
    assert "ab" not in answer.text


async def test_the_context_is_filled_to_its_end_and_no_further(load):
    async with load(max_model_len=20) as engine:
        answer = await engine.generate(PROMPT, ignore_eos=True, sampling=GREEDY)
        assert (len(answer.token_ids), answer.finish_reason) == (15, "length")
        with pytest.raises(InvalidRequest) as caught:
            await engine.generate(PROMPT, max_tokens=16)
        assert caught.value.field == "max_tokens"
        with pytest.raises(InvalidRequest):
            await engine.generate(list(range(20)))
        assert len((await engine.score(list(range(20)))).logprobs) == 19


async def test_a_stream_that_is_left_frees_its_cache(engine):
    async with engine.stream(PROMPT, max_tokens=200, ignore_eos=True) as stream:
        async for _ in stream:
            break
        used, running, _ = await held(engine)
        assert used >= len(PROMPT)
        assert running == 1
    assert await held(engine) == (0, 0, 0)
    assert (await engine.stats()).requests["abort"] == 1


async def test_an_abort_computes_nothing_more_and_lets_go_of_the_cache(engine, monkeypatch):
    caches: list[Any] = []
    run = computing.CausalLM.run
    passes = 0

    def spy(self, *positional, **options):
        nonlocal passes
        passes += 1
        output = run(self, *positional, **options)
        if not caches:
            caches.append(weakref.ref(self.cache_of(output)))
        return output

    monkeypatch.setattr(computing.CausalLM, "run", spy)
    backend = engine._runtime._hooks.stats.get_hookimpls()[-1].plugin
    wanted = TokenRequest(id="x", prompt_token_ids=PROMPT, sampling=GREEDY, max_tokens=200, logprobs=0)
    stream = backend.stream(wanted)
    await anext(stream)
    assert caches[0]() is not None
    await backend.abort("x")
    after = passes
    assert caches[0]() is None
    rest = [delta async for delta in stream]
    assert rest[-1].finish.reason == "abort"
    assert passes == after
    await backend.abort("x")
    await backend.abort("unknown")


async def test_cancelling_frees_everything(engine):
    before = asyncio.all_tasks()
    tasks = [asyncio.create_task(engine.generate(PROMPT, max_tokens=200, ignore_eos=True)) for _ in range(30)]
    tasks.append(asyncio.create_task(engine.score(PROMPT * 20)))
    for _ in range(40):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await held(engine) == (0, 0, 0)
    assert asyncio.all_tasks() == before


async def test_close_ends_open_streams_by_abort_and_frees_thread_and_weights(load, monkeypatch):
    made: list[Any] = []
    begin = computing.CausalLM.__init__

    def spy(self, module, *rest):
        made.append(weakref.ref(module))
        begin(self, module, *rest)

    monkeypatch.setattr(computing.CausalLM, "__init__", spy)
    engine = await load(scheduling={"max_num_seqs": 3})
    tasks = [asyncio.create_task(engine.generate(PROMPT, max_tokens=200, ignore_eos=True)) for _ in range(4)]
    async with engine.stream(PROMPT, ignore_eos=True) as stream:
        await anext(aiter(stream))
        await asyncio.gather(engine.close(), engine.close())
        assert [chunk.finish.reason async for chunk in stream if chunk.finish] == ["abort"]
    assert {(await task).finish_reason for task in tasks} == {"abort"}
    await engine.close()
    with pytest.raises(EngineClosed):
        await engine.generate(PROMPT)
    assert [thread for thread in threading.enumerate() if thread.name == "anyengine-transformers"] == []
    gc.collect()
    assert made[0]() is None


async def test_one_failing_request_harms_no_other(engine):
    good, bad = await asyncio.gather(
        engine.generate(PROMPT, max_tokens=20, ignore_eos=True),
        engine.generate(PROMPT, max_tokens=20, sampling=SamplingParams(allowed_token_ids=[256]), min_tokens=3),
        return_exceptions=True,
    )
    assert isinstance(bad, InvalidRequest)
    assert bad.field == "sampling"
    assert good.finish_reason == "length"
    assert (await engine.stats()).requests == {"stop": 0, "length": 1, "abort": 0, "error": 1}
    assert await held(engine) == (0, 0, 0)


@pytest.mark.parametrize("host", [False, True])
async def test_memory_that_runs_out_fails_only_the_request_and_frees_what_it_held(host, engine, monkeypatch):
    import torch

    run, caches = computing.CausalLM.run, []

    def failing(self, token_ids, **options):
        output = run(self, token_ids, **options)
        if options["length"] > 12:
            caches.append(weakref.ref(self.cache_of(output)))
            if host:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return output

    monkeypatch.setattr(computing.CausalLM, "run", failing)
    long, short = await asyncio.gather(
        engine.generate(PROMPT, max_tokens=30, ignore_eos=True),
        engine.generate(PROMPT, max_tokens=6, ignore_eos=True),
        return_exceptions=True,
    )
    assert isinstance(long, OutOfMemory)
    assert caches[0]() is None
    assert short.finish_reason == "length"
    await engine.health()


async def test_the_loss_of_the_device_fails_every_request(engine, monkeypatch):
    import torch

    def lost(*_, **__):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(computing.CausalLM, "run", lost)
    work = [engine.generate(PROMPT, max_tokens=20) for _ in range(3)]
    results = await asyncio.gather(*work, engine.score(PROMPT), return_exceptions=True)
    assert [type(result) for result in results] == [EngineDied] * 4
    assert len({id(result) for result in results}) == 4
    with pytest.raises(EngineDied, match="illegal memory access"):
        await engine.health()
    with pytest.raises(EngineDied):
        await engine.generate(PROMPT)
    assert await held(engine) == (0, 0, 0)


async def test_statistics_add_up_with_what_was_asked(load):
    async with load(scheduling={"max_num_seqs": 3}) as engine:
        await engine.generate([[number, *PROMPT] for number in range(6)], max_tokens=10, ignore_eos=True)
        await engine.score(PROMPT)
        stats = await engine.stats()
    assert (stats.prompt_tokens, stats.generated_tokens) == (6 * 6, 6 * 10)
    assert stats.requests == {"stop": 0, "length": 6, "abort": 0, "error": 0}
    histograms = stats.time_to_first_token, stats.inter_token_latency, stats.queue_time
    assert [histogram.count for histogram in histograms] == [6, 6 * 9, 6]
    assert (stats.kv_cache.used_tokens, stats.kv_cache.capacity_tokens) == (0, None)


@pytest.mark.parametrize(
    "structured",
    [
        {"choice": ["a|b", "(c", "yes"]},
        {"regex": "[a-c]{3,5}x"},
        {"json_schema": {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}},
        {"grammar": 'start: "<" /[0-9]{2}/ ">"'},
    ],
    ids=lambda each: next(iter(each)),
)
async def test_a_structure_holds_and_leaves_logprobs_raw(structured, engine):
    plain = await engine.generate(PROMPT, max_tokens=1, sampling=GREEDY, logprobs=3)
    answer = await engine.generate(
        PROMPT, max_tokens=80, sampling=SamplingParams(seed=1), structured=Structured(**structured), logprobs=3
    )
    assert answer.finish_reason == "stop"
    assert set(plain.logprobs[0].top) <= set(answer.logprobs[0].top)
    import json
    import re

    kind, value = next(iter(structured.items()))
    if kind == "choice":
        assert answer.text in value
    elif kind == "json_schema":
        assert json.loads(answer.text)["n"] in {1, 2}
    else:
        assert re.fullmatch(value if kind == "regex" else "<[0-9]{2}>", answer.text)


@pytest.mark.parametrize(
    "structured",
    [
        {"regex": "("},
        {"grammar": "start: missing"},
        {"grammar": 'start: "a" & "b"' + ' & "c"' * 20},
        {"grammar": "start: %json {}"},
        {"json_schema": {"allOf": [{"pattern": f"a{number}"} for number in range(30)]}},
        {"json_schema": False},
    ],
    ids=str,
)
async def test_a_structure_that_is_malformed_or_explodes_is_refused(structured, engine):
    with pytest.raises(InvalidRequest) as caught:
        await engine.generate(PROMPT, max_tokens=5, structured=Structured(**structured))
    assert caught.value.field == f"structured.{next(iter(structured))}"
    assert await held(engine) == (0, 0, 0)


async def test_an_engine_that_is_dropped_without_close_ends_its_thread(load):
    engine = await load()
    (thread,) = [each for each in threading.enumerate() if each.name == "anyengine-transformers"]
    del engine
    gc.collect()
    await asyncio.to_thread(thread.join)


SCRIPT = """
import asyncio, sys
from anyengine import Engine
from anyengine_transformers import plugin

async def begin():
    engine = await Engine.load(plugin, sys.argv[1], isolation="none")
    async def read():
        async with engine.stream([1, 2, 3], max_tokens=250, ignore_eos=True) as stream:
            async for chunk in stream:
                begun.set()
    begun = asyncio.Event()
    task = asyncio.ensure_future(read())
    await begun.wait()
    return engine, task

kept = asyncio.new_event_loop().run_until_complete(begin())
print("end", flush=True)
"""


def test_a_program_that_never_closes_its_engine_ends(checkpoint):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(checkpoint())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


def test_a_thread_whose_event_loop_was_closed_ends():
    class Endless:
        busy = True
        step = stats = end_all = lambda *_: None
        take = staticmethod(lambda: [(None, None)])

    loop = asyncio.new_event_loop()
    loop.close()
    thread = EngineThread(Endless(), loop)
    thread._thread.join(30)
    assert not thread._thread.is_alive()
