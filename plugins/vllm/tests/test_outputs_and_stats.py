import asyncio
from types import SimpleNamespace

import pytest
from anyengine import Structured
from anyengine.errors import Failure, InvalidRequest
from anyengine_vllm import outputs
from anyengine_vllm.barrier import Barrier
from anyengine_vllm.logs import ErrorLog, variables
from anyengine_vllm.stats import StatsRecorder, make_stat_logger

REQUEST = SimpleNamespace(prompt_token_ids=[1], structured=None)


def _logprob(value):
    return SimpleNamespace(logprob=value)


def _output(token_ids, finish_reason=None, logprobs=None, cached=0):
    sequence = SimpleNamespace(token_ids=token_ids, finish_reason=finish_reason, logprobs=logprobs)
    return SimpleNamespace(outputs=[sequence], num_cached_tokens=cached)


def test_alternatives_are_sorted_and_the_chosen_one_is_among_them():
    entry = outputs.token_logprobs(7, {7: _logprob(-3.0), 1: _logprob(-2.0), 5: _logprob(-0.5), 4: _logprob(-2.0)})
    assert (entry.token_id, entry.logprob, list(entry.top)) == (7, -3.0, [5, 1, 4, 7])


def test_a_certainty_is_never_above_zero():
    assert outputs.token_logprobs(7, {7: _logprob(1e-7)}).logprob == 0.0


def test_an_abort_comes_without_the_logprobs_of_earlier_tokens():
    delta = outputs.delta(_output([], "abort", [{1: _logprob(-1.0)}] * 3), REQUEST, None)
    assert (delta.token_ids, delta.logprobs, delta.finish.reason) == ([], [], "abort")


def test_a_delta_has_no_finish_and_the_last_one_has():
    assert outputs.delta(_output([1]), REQUEST, None).finish is None
    finish = outputs.delta(_output([2], "stop", cached=16), REQUEST, [None]).finish
    assert (finish.reason, finish.cached_tokens, finish.prompt_logprobs) == ("stop", 16, [None])


@pytest.mark.parametrize("reason", ["error", "repetition"])
def test_other_reasons_are_failures(reason):
    with pytest.raises(Failure):
        outputs.delta(_output([], reason), REQUEST, None)


def test_a_constraint_that_is_given_up_is_named():
    request = SimpleNamespace(prompt_token_ids=[1], structured=Structured(regex="(a{1,100}){1,100}"))
    with pytest.raises(InvalidRequest) as caught:
        outputs.delta(_output([], "error"), request, None)
    assert caught.value.field == "structured.regex"


def test_every_reason_of_every_version_is_known(contracts):
    for facts in contracts.values():
        assert facts["finish_reasons"] == ["stop", "length", "abort", "error", "repetition"]


def test_what_is_read_of_vllms_statistics_exists_in_every_version(contracts):
    for facts in contracts.values():
        fields = facts["fields"]
        read = {"num_running_reqs", "num_waiting_reqs", "num_skipped_waiting_reqs", "kv_cache_usage"}
        assert read | {"prefix_cache_stats", "spec_decoding_stats", "running_lora_adapters"} <= set(
            fields["SchedulerStats"]
        )
        assert {"queries", "hits"} <= set(fields["PrefixCacheStats"])
        assert {"finish_reason", "queued_time"} <= set(fields["FinishedRequestStats"])
        assert {"queued_ts", "scheduled_ts"} <= set(fields["RequestStateStats"])
        assert {"outputs", "finished", "metrics", "num_cached_tokens", "prompt_logprobs"} <= set(
            facts["request_output"]
        )
        assert {"num_drafts", "num_draft_tokens", "num_accepted_tokens", "num_accepted_tokens_per_pos"} <= set(
            fields["SpecDecodingStats"]
        )
        assert {
            "num_generation_tokens",
            "num_preempted_reqs",
            "prompt_token_stats",
            "time_to_first_tokens_iter",
            "inter_token_latencies_iter",
            "finished_requests",
        } <= set(facts["iteration_stats"])
        assert facts["stat_logger"]["record"][:2] == ["scheduler_stats", "iteration_stats"]


def test_what_is_called_of_vllms_engine_exists_in_every_version(contracts):
    called = {
        "abort": ["request_id"],
        "add_lora": [],
        "check_health": [],
        "collective_rpc": ["method"],
        "encode": ["prompt", "pooling_params", "request_id"],
        "from_vllm_config": ["vllm_config", "stat_loggers", "disable_log_stats"],
        "generate": ["prompt", "sampling_params", "request_id", "lora_request", "priority"],
        "get_supported_tasks": [],
        "is_sleeping": [],
        "remove_lora": [],
        "reset_prefix_cache": ["reset_running_requests"],
        "shutdown": [],
        "sleep": ["level"],
        "wake_up": [],
    }
    for facts in contracts.values():
        for method, parameters in called.items():
            assert set(parameters) <= set(facts["methods"][method]), method


def _scheduler(**fields):
    defaults = {
        "num_running_reqs": 0,
        "num_waiting_reqs": 0,
        "num_skipped_waiting_reqs": 0,
        "kv_cache_usage": 0.0,
        "prefix_cache_stats": SimpleNamespace(queries=0, hits=0),
        "spec_decoding_stats": None,
        "running_lora_adapters": {},
    }
    return SimpleNamespace(**defaults | fields)


def _snapshot(recorder):
    return recorder.snapshot(capacity_tokens=1600, block_size=16, speculative=True, prefix_caching=True)


def test_counters_add_up_over_steps_and_gauges_are_the_last_ones():
    recorder = StatsRecorder()
    drafts = SimpleNamespace(
        num_drafts=2, num_draft_tokens=6, num_accepted_tokens=3, num_accepted_tokens_per_pos=[2, 1, 0]
    )
    for running in (3, 2):
        recorder.record(
            _scheduler(
                num_running_reqs=running,
                num_waiting_reqs=1,
                num_skipped_waiting_reqs=1,
                kv_cache_usage=0.5,
                prefix_cache_stats=SimpleNamespace(queries=10, hits=4),
                spec_decoding_stats=drafts,
            ),
            SimpleNamespace(
                prompt_token_stats=SimpleNamespace(total=7),
                num_generation_tokens=5,
                num_preempted_reqs=1,
                time_to_first_tokens_iter=[0.02],
                inter_token_latencies_iter=[0.3, 0.3],
                finished_requests=[SimpleNamespace(finish_reason="stop", queued_time=0.001)],
            ),
        )
    recorder.aborted()
    stats = _snapshot(recorder)
    assert (stats.running, stats.waiting) == (2, 2)
    assert (stats.prompt_tokens, stats.generated_tokens, stats.preemptions) == (14, 10, 2)
    assert stats.requests == {"stop": 2, "length": 0, "abort": 1}
    assert (stats.kv_cache.usage, stats.kv_cache.used_tokens) == (0.5, 800)
    assert (stats.kv_cache.prefix_queries, stats.kv_cache.prefix_hits) == (20, 8)
    assert (stats.speculative.drafts, stats.speculative.accepted_per_position) == (4, (4, 2, 0))
    counts = (stats.time_to_first_token.count, stats.inter_token_latency.count, stats.queue_time.count)
    assert counts == (2, 4, 2)
    recorder.aborted()
    assert stats.requests["abort"] == 1


def test_what_is_aborted_has_waited_too_if_it_ever_began():
    recorder = StatsRecorder()
    recorder.aborted(SimpleNamespace(queued_ts=10.0, scheduled_ts=10.5))
    recorder.aborted()
    stats = _snapshot(recorder)
    assert (stats.requests["abort"], stats.queue_time.count, stats.queue_time.sum) == (2, 1, 0.5)


def test_the_stat_logger_says_nothing_and_needs_nothing_of_vllms_own(contracts):
    class Prometheus:
        """Whatever is not overridden fails: the metrics that it is for were never made."""

        def record(self, *_):
            raise AttributeError

        log = log_engine_initialized = record_sleep_state = record_admission_rejection = record

    recorder = StatsRecorder()
    logger = make_stat_logger(Prometheus, recorder)(None)
    logger.record(_scheduler(num_running_reqs=2), None, engine_idx=1)
    logger.log()
    logger.log_engine_initialized()
    logger.record_sleep_state(0, 0)
    logger.record_admission_rejection("max_num_queued_reqs")
    assert _snapshot(recorder).running == 2
    for facts in contracts.values():
        # The last is a part of log_engine_initialized.
        assert set(facts["stat_logger"]) - set(vars(type(logger))) <= {"log_metrics_info"}


def test_several_engine_cores_are_added_up():
    recorder = StatsRecorder()
    recorder.record(_scheduler(num_running_reqs=2, kv_cache_usage=1.0), None, 0)
    recorder.record(_scheduler(num_running_reqs=3, kv_cache_usage=0.0), None, 1)
    stats = _snapshot(recorder)
    assert (stats.running, stats.kv_cache.usage, recorder.busy) == (5, 0.5, True)


async def test_all_who_wait_at_once_share_a_question_that_was_asked_after_they_came():
    asked, gate = [], asyncio.Event()

    async def ask():
        asked.append(len(asked))
        await gate.wait()

    barrier = Barrier(ask)
    first = asyncio.create_task(barrier.wait())
    while not asked:  # noqa: ASYNC110 it is a turn of the loop away
        await asyncio.sleep(0)
    rest = [asyncio.create_task(barrier.wait()) for _ in range(50)]
    await asyncio.sleep(0)
    assert not first.done()
    gate.set()
    await asyncio.gather(first, *rest)
    assert asked == [0, 1]


async def test_a_failed_question_fails_those_who_wait_and_not_the_next():
    answers = iter([ValueError("dead"), None])

    async def ask():
        answer = next(answers)
        if answer:
            raise answer

    barrier = Barrier(ask)
    with pytest.raises(ValueError, match="dead"):
        await barrier.wait()
    await barrier.wait()


def test_errors_go_to_a_file_of_their_own_beside_vllms_log(tmp_path):
    import json
    import logging.config

    default = {
        "version": 1,
        "formatters": {},
        "handlers": {"vllm": {"class": "logging.NullHandler"}},
        "loggers": {"vllm": {"handlers": ["vllm"], "level": "INFO", "propagate": False}},
        "disable_existing_loggers": False,
    }
    log = ErrorLog()
    (file,) = log.configuration(default).values()
    with open(file) as stream:  # noqa: PTH123 as vLLM does
        logging.config.dictConfig(json.load(stream))
    logging.getLogger("vllm.x").info("all is well")
    assert log.lines() == []
    logging.getLogger("vllm.x").error("something broke")
    assert log.lines() == ["something broke"]
    for handler in list(logging.getLogger("vllm").handlers):
        logging.getLogger("vllm").removeHandler(handler)
        handler.close()
    log.close()
    assert default["loggers"]["vllm"]["handlers"] == ["vllm"]
    assert log.configuration(None) == {}


def test_variables_are_as_before_afterwards(monkeypatch):
    import os

    monkeypatch.setenv("ANYENGINE_A", "1")
    with variables({"ANYENGINE_A": "2", "ANYENGINE_B": "3"}):
        assert (os.environ["ANYENGINE_A"], os.environ["ANYENGINE_B"]) == ("2", "3")
    assert (os.environ["ANYENGINE_A"], "ANYENGINE_B" in os.environ) == ("1", False)
