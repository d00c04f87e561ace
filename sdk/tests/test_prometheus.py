"""Prometheus text says what the statistics say, and nothing that the engine did not."""

import pytest
from anyengine.errors import InvalidRequest
from anyengine.stats import EngineStats, Histogram, KVCacheStats, SpeculativeStats
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

COUNT = st.none() | st.integers(0, 2**40)
RATIO = st.none() | st.floats(0, 1)


@st.composite
def _histograms(draw):
    histogram = Histogram()
    for seconds in draw(st.lists(st.floats(0, 1000), max_size=20)):
        histogram.observe(seconds)
    return histogram


STATS = st.builds(
    EngineStats,
    running=COUNT,
    waiting=COUNT,
    queued=COUNT,
    requests=st.none() | st.dictionaries(st.sampled_from(["stop", "length", "abort"]), st.integers(0, 99)),
    prompt_tokens=COUNT,
    generated_tokens=COUNT,
    preemptions=COUNT,
    kv_cache=st.builds(
        KVCacheStats, capacity_tokens=COUNT, used_tokens=COUNT, usage=RATIO, prefix_queries=COUNT, prefix_hits=COUNT
    ),
    speculative=st.none()
    | st.builds(
        SpeculativeStats,
        drafts=COUNT,
        drafted_tokens=COUNT,
        accepted_tokens=COUNT,
        accepted_per_position=st.none() | st.lists(st.integers(0, 99)).map(tuple),
    ),
    time_to_first_token=st.none() | _histograms(),
    inter_token_latency=st.none() | _histograms(),
    queue_time=st.none() | _histograms(),
)
LABELS = st.dictionaries(st.from_regex(r"[a-z]{3,8}", fullmatch=True).filter(lambda n: n != "position"), st.text())


def _samples(text):
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@given(STATS, LABELS)
def test_every_reported_number_comes_back_and_no_other(stats, labels):
    cache, spec = stats.kv_cache, stats.speculative or SpeculativeStats()
    common = frozenset(labels.items())
    plain = {
        "requests_running": stats.running,
        "requests_waiting": stats.waiting,
        "requests_queued": stats.queued,
        "prompt_tokens_total": stats.prompt_tokens,
        "generated_tokens_total": stats.generated_tokens,
        "preemptions_total": stats.preemptions,
        "kv_cache_usage_ratio": cache.usage,
        "kv_cache_capacity_tokens": cache.capacity_tokens,
        "kv_cache_used_tokens": cache.used_tokens,
        "prefix_cache_queries_tokens_total": cache.prefix_queries,
        "prefix_cache_hits_tokens_total": cache.prefix_hits,
        "speculative_drafts_total": spec.drafts,
        "speculative_drafted_tokens_total": spec.drafted_tokens,
        "speculative_accepted_tokens_total": spec.accepted_tokens,
    }
    expected = {(f"anyengine_{name}", common): value for name, value in plain.items() if value is not None}
    for reason, value in (stats.requests or {}).items():
        expected["anyengine_requests_finished_total", common | {("finish_reason", reason)}] = value
    for position, value in enumerate(spec.accepted_per_position or ()):
        name = "anyengine_speculative_accepted_position_tokens_total"
        expected[name, common | {("position", str(position))}] = value
    for name in ("time_to_first_token", "inter_token_latency", "queue_time"):
        histogram = getattr(stats, name)
        if histogram is None:
            continue
        below = 0
        for bound, count in zip([*map(str, histogram.bounds), "+Inf"], histogram.counts, strict=True):
            below += count
            expected[f"anyengine_{name}_seconds_bucket", common | {("le", bound)}] = below
        expected[f"anyengine_{name}_seconds_count", common] = histogram.count
        expected[f"anyengine_{name}_seconds_sum", common] = histogram.sum
    assert _samples(stats.to_prometheus(**labels)) == expected


@pytest.mark.parametrize("name", ["le", "finish_reason", "__own", "a-b", "1a", ""])
def test_a_label_that_prometheus_forbids_is_refused(name):
    with pytest.raises(InvalidRequest, match="label") as caught:
        EngineStats().to_prometheus(**{name: "x"})
    assert caught.value.field == "labels"


def test_a_histogram_counts_each_duration_in_the_first_bucket_that_holds_it():
    histogram = Histogram(bounds=(1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 2.5):
        histogram.observe(seconds)
    histogram.observe(3.0, times=2)
    assert (histogram.counts, histogram.count, histogram.sum) == ([2, 1, 3], 6, 11.5)


def test_a_label_whose_value_is_no_text_is_refused():
    with pytest.raises(InvalidRequest, match="not text") as caught:
        EngineStats().to_prometheus(gpu=0)
    assert caught.value.field == "labels"
