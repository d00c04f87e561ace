"""Whatever the schedule, a request gets the bits that it gets alone: prefix reuse, preemption, chunks, aborts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

VOCAB = 12
PROPERTY = settings(max_examples=120, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def arrivals(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Requests that share prefixes, with the step at which they come and perhaps the one at which they are aborted."""
    stem = draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=10))
    return [
        {
            "at": draw(st.integers(0, 12)),
            "abort_after": draw(st.none() | st.none() | st.integers(0, 8)),
            "prompt": stem[: draw(st.integers(1, len(stem)))] + draw(st.lists(st.integers(0, VOCAB - 1), max_size=5)),
            "max_tokens": draw(st.integers(1, 8)),
            "temperature": draw(st.sampled_from([0.0, 1.0])),
            "priority": draw(st.integers(-1, 1)),
            "prompt_logprobs": draw(st.sampled_from([None, None, 2])),
            "cache_salt": draw(st.sampled_from([None, None, "salt"])),
            "repetition_penalty": draw(st.sampled_from([1.0, 1.3])),
        }
        for _ in range(draw(st.integers(1, 6)))
    ]


def _replay(driver: Any, requests: list[Any], schedule: list[dict[str, Any]]) -> set[int]:
    """Play a schedule; returns which requests were still running when they were aborted."""
    aborted: set[int] = set()
    step = 0
    while driver.core.busy or step <= max(each["at"] for each in schedule):
        for number, each in enumerate(schedule):
            if each["at"] == step:
                driver.add(requests[number])
            if each["abort_after"] is not None and each["at"] + each["abort_after"] == step:
                if not driver.results[f"r{number}"].ended:
                    aborted.add(number)
                driver.abort(f"r{number}")
        if driver.core.busy:
            driver.step()
        step += 1
        assert step < 5_000, "no progress"
    return aborted


def _requests(driving: Any, schedule: list[dict[str, Any]]) -> list[Any]:
    private = {"at", "abort_after", "prompt"}
    return [
        driving.request(
            each["prompt"], number, logprobs=3, **{name: value for name, value in each.items() if name not in private}
        )
        for number, each in enumerate(schedule)
    ]


def _check(driving: Any, model: Any, schedule: list[dict[str, Any]], driver: Any, **alone: Any) -> None:
    requests = _requests(driving, schedule)
    aborted = _replay(driver, requests, schedule)
    for number, wanted in enumerate(requests):
        got, expected = driver.results[wanted.id], driving.alone(model, wanted, **alone)
        if number in aborted:
            assert got.reason == "abort"
            assert got.token_ids == expected.token_ids[: len(got.token_ids)]
            assert got.logprobs == expected.logprobs[: len(got.token_ids)]
        else:
            assert (got.token_ids, got.reason) == (expected.token_ids, expected.reason)
            assert got.logprobs == expected.logprobs
            assert got.finish.prompt_logprobs == expected.finish.prompt_logprobs
    assert driver.pool.used == 0
    assert (driver.core.stats().running, driver.core.stats().waiting) == (0, 0)


@PROPERTY
@given(
    schedule=arrivals(),
    block_size=st.sampled_from([1, 3, 4, 16]),
    spare_blocks=st.integers(0, 4),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.sampled_from([1, 2, 5, 64]),
    chunked_prefill=st.booleans(),
    prefix_caching=st.booleans(),
)
def test_in_any_schedule_equals_alone_bitwise(
    tiny_model: Any, driving: Any, schedule: list[dict[str, Any]], block_size: int, spare_blocks: int, **limits: Any
) -> None:
    model = tiny_model(vocab_size=VOCAB, max_position_embeddings=64)
    longest = max(len(each["prompt"]) + each["max_tokens"] for each in schedule)
    num_blocks = -(-longest // block_size) + spare_blocks
    driver = driving.Driver(model, num_blocks=num_blocks, block_size=block_size, **limits)
    _check(driving, model, schedule, driver)


@PROPERTY
@given(
    schedule=arrivals(),
    draft=st.booleans(),
    block_size=st.sampled_from([1, 4]),
    spare_blocks=st.integers(0, 3),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.sampled_from([4, 7, 64]),
    chunked_prefill=st.booleans(),
)
def test_with_speculation_in_any_schedule_equals_alone_with_speculation_bitwise(
    tiny_model: Any,
    driving: Any,
    schedule: list[dict[str, Any]],
    draft: bool,  # noqa: FBT001
    block_size: int,
    spare_blocks: int,
    **limits: Any,
) -> None:
    """Which tokens are proposed depends on the sequence alone, so the draws do too."""
    from anyengine_reference.model import KVCache
    from anyengine_reference.speculation import DraftModel, NGram

    model = tiny_model(vocab_size=VOCAB, max_position_embeddings=64)
    smaller = tiny_model(vocab_size=VOCAB, max_position_embeddings=64, num_hidden_layers=1, seed=5)

    def proposer(num_blocks: int, size: int) -> Any:
        return DraftModel(smaller, KVCache(smaller.config, num_blocks, size)) if draft else NGram(1, 3)

    longest = max(len(each["prompt"]) + each["max_tokens"] for each in schedule)
    num_blocks = -(-longest // block_size) + spare_blocks
    driver = driving.Driver(
        model,
        num_blocks=num_blocks,
        block_size=block_size,
        num_speculative_tokens=3,
        proposer=proposer(num_blocks, block_size),
        **limits,
    )
    for each in schedule:  # one after the other, each against its own engine alone
        each["priority"] = 0
    requests = _requests(driving, schedule)
    aborted = _replay(driver, requests, schedule)
    for number, wanted in enumerate(requests):
        expected = driving.alone(model, wanted, num_speculative_tokens=3, proposer=proposer(driving.BIG_POOL, 4))
        got = driver.results[wanted.id]
        length = len(got.token_ids) if number in aborted else len(expected.token_ids)
        assert got.token_ids == expected.token_ids[:length]
        assert got.logprobs == expected.logprobs[:length]
    assert driver.pool.used == 0


def test_a_small_pool_preempts_and_loses_nothing(tiny_model: Any, driving: Any) -> None:
    model = tiny_model(vocab_size=VOCAB, max_position_embeddings=64)
    requests = [driving.request([number, 3, 4], number, max_tokens=20, logprobs=0) for number in range(5)]
    driver = driving.Driver(model, num_blocks=8, block_size=4)
    for wanted in requests:
        driver.add(wanted)
    driver.run()
    stats = driver.core.stats()
    assert stats.preemptions > 0
    assert stats.queue_time.count == 5
    assert stats.prompt_tokens == 15
    for wanted in requests:
        expected = driving.alone(model, wanted)
        assert driver.results[wanted.id].token_ids == expected.token_ids
        assert driver.results[wanted.id].logprobs == expected.logprobs


def test_eviction_forgets_the_end_of_a_chain_first(tiny_model: Any, driving: Any) -> None:
    model = tiny_model(vocab_size=VOCAB, max_position_embeddings=64)
    driver = driving.Driver(model, num_blocks=6, block_size=2)
    first = list(range(8))
    driver.add(driving.request(first, 0, max_tokens=1))
    driver.run()
    driver.add(driving.request([11] * 6, 1, max_tokens=1))
    driver.run()
    again = driver.add(driving.request(first, 2, max_tokens=1))
    driver.run()
    assert again.finish.cached_tokens in {4, 6}


def test_a_prefix_is_reused_up_to_the_last_full_block_before_the_last_token(tiny_model: Any, driving: Any) -> None:
    model = tiny_model(vocab_size=VOCAB, max_position_embeddings=64)
    driver = driving.Driver(model, block_size=4)
    cached = []
    for number, prompt in enumerate([[1] * 8, [1] * 8, [1] * 9, [1] * 4 + [2] * 5]):
        result = driver.add(driving.request(prompt, number, max_tokens=1))
        driver.run()
        cached.append(result.finish.cached_tokens)
    assert cached == [0, 4, 8, 4]
    stats = driver.core.stats().kv_cache
    assert (stats.prefix_queries, stats.prefix_hits) == (8 + 8 + 9 + 9, 16)


def test_salts_share_no_prefix(tiny_model: Any, driving: Any) -> None:
    model = tiny_model(vocab_size=VOCAB, max_position_embeddings=64)
    driver = driving.Driver(model)
    cached = []
    for number, salt in enumerate([None, "a", "b", "a", None]):
        result = driver.add(driving.request([1] * 9, number, max_tokens=1, cache_salt=salt))
        driver.run()
        cached.append(result.finish.cached_tokens)
    assert cached == [0, 0, 0, 8, 8]


def test_prompt_logprobs_use_no_cached_prefix_and_are_not_counted_as_looked_up(tiny_model: Any, driving: Any) -> None:
    model = tiny_model(vocab_size=VOCAB, max_position_embeddings=64)
    driver = driving.Driver(model)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    driver.add(driving.request(prompt, 0, max_tokens=1))
    driver.run()
    result = driver.add(driving.request(prompt, 1, max_tokens=1, prompt_logprobs=3))
    driver.run()
    expected = driving.alone(model, driving.request(prompt, 1, max_tokens=1, prompt_logprobs=3))
    assert result.finish.prompt_logprobs == expected.finish.prompt_logprobs
    assert result.finish.cached_tokens == 0
    stats = driver.core.stats().kv_cache
    assert (stats.prefix_queries, stats.prefix_hits) == (9, 0)


def test_lower_priority_numbers_start_earlier_and_equals_by_arrival(tiny_model: Any, driving: Any) -> None:
    model = tiny_model(vocab_size=VOCAB, max_position_embeddings=64)
    driver = driving.Driver(model, max_num_seqs=1)
    for number, priority in enumerate([1, 0, -5, 0]):
        driver.add(driving.request([1, 2], number, max_tokens=2, priority=priority))
    order: list[str] = []
    while driver.core.busy:
        driver.step()
        order += [name for name, result in driver.results.items() if result.ended and name not in order]
    assert order == ["r2", "r1", "r3", "r0"]


@pytest.mark.parametrize("chunked_prefill", [True, False])
def test_a_long_prompt_gets_its_turn_between_short_ones(
    tiny_model: Any,
    driving: Any,
    chunked_prefill: bool,  # noqa: FBT001
) -> None:
    model = tiny_model(vocab_size=VOCAB, max_position_embeddings=64)
    driver = driving.Driver(model, max_num_batched_tokens=4, chunked_prefill=chunked_prefill)
    for number in range(3):
        driver.add(driving.request([1, 2], number, max_tokens=6))
    long = driver.add(driving.request([3] * 30, 3, max_tokens=2))
    for number in range(4, 8):
        driver.add(driving.request([1, 2], number, max_tokens=6))
    steps = 0
    while not long.ended:
        driver.step()
        steps += 1
    assert steps < 40
    driver.run()
    assert {result.reason for result in driver.results.values()} == {"length"}


def test_abort_is_idempotent_and_frees_waiting_and_running(tiny_model: Any, driving: Any) -> None:
    model = tiny_model(vocab_size=VOCAB, max_position_embeddings=64)
    driver = driving.Driver(model, max_num_seqs=1)
    running = driver.add(driving.request([1, 2], 0, logprobs=0))
    waiting = driver.add(driving.request([1, 2], 1))
    driver.step()
    for name in ("r0", "r1", "r0", "r1", "unknown"):
        driver.abort(name)
    assert (running.reason, waiting.reason, len(running.token_ids), waiting.token_ids) == ("abort", "abort", 1, [])
    assert not driver.core.busy
    assert driver.pool.used == 0
    assert driver.core.stats().requests == {"stop": 0, "length": 0, "abort": 2, "error": 0}
