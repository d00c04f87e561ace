"""benchmarks/against_native.py goes on from the pairs that it has, and only from those of the same thing."""

import argparse
import asyncio
import importlib
import json
import re
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("against_native")
    # The checkout of whoever runs this may have changes.
    made = importlib.import_module("environment").environment() | {"commit": "abcdef1"}
    for name in ("against_native", "environment"):
        monkeypatch.setattr(sys.modules[name], "environment", lambda: dict(made))
    yield module
    for name in ("pooled", "against_native", "intervals", "environment"):
        sys.modules.pop(name, None)


class Simulated:
    """A subject that answers at once."""

    async def generate(self, prompt, tokens):
        await asyncio.sleep(0)
        return tokens

    async def stream(self, prompt, tokens):
        await asyncio.sleep(0)
        return tokens, 1e-6

    async def close(self):
        pass


def run(benchmark, file, **changed):
    fields = {"model": "a/model", "pairs": 2, "rounds": 1, "concurrency": 2, "tokens": 3, "probes": 2, "part": False}
    options = argparse.Namespace(**fields | {"json": file} | changed)

    async def load(_):
        return {name: Simulated() for name in ("native", "here", "worker")}

    with pytest.raises(SystemExit) as ended:
        benchmark.main("simulated", options, load)
    assert ended.value.code == 0 or not options.part  # a part fails at no bar
    return json.loads(file.read_text())


def values(report):
    return report["figures"]["pairs"]["throughput_ratio"]["here.generate"]


def test_it_goes_on_from_what_was_cut_off(benchmark, tmp_path, capsys):
    whole = run(benchmark, tmp_path / "report.json")
    assert (len(values(whole)), whole["earlier"]) == (2, [])
    cut_off = {**whole, "settings": {**whole["settings"], "pairs": 5}}
    (tmp_path / "report.json").write_text(json.dumps(cut_off))
    capsys.readouterr()
    more = run(benchmark, tmp_path / "report.json", pairs=5)
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("pair")] == [
        "pair 3",
        "pair 4",
        "pair 5",
    ]
    assert values(more)[:2] == values(whole)
    assert len(values(more)) == 5
    assert more["earlier"] == [whole["environment"]]
    assert len(more["figures"]["pairs"]["native_tokens_per_second"]["native"]) == 2 * 5  # generate and stream
    processor = more["figures"]["pairs"]["processor_us_per_token"]
    assert {name: len(found) for name, found in processor.items()} == {
        f"{subject}.{how}": 5 for subject in ("native", "here", "worker") for how in ("generate", "stream")
    }


@pytest.mark.parametrize("change", ["settings", "commit", "engine", "packages"])
def test_what_is_another_measurement_is_begun_anew(benchmark, tmp_path, capsys, change):
    report = run(benchmark, tmp_path / "report.json")
    other = {
        "settings": {**report, "settings": {**report["settings"], "rounds": 7}},
        "commit": {**report, "environment": {**report["environment"], "commit": "0000000"}},
        "engine": {**report, "engine": "another"},
        "packages": {**report, "environment": {**report["environment"], "packages": {"vllm": "0"}}},
    }[change]
    (tmp_path / "report.json").write_text(json.dumps(other))
    again = run(benchmark, tmp_path / "report.json")
    assert (len(values(again)), again["earlier"]) == (2, [])
    assert re.search(rf"begun anew: it has another [a-z.]*{change}", capsys.readouterr().out)


def test_changed_files_are_the_same_code_never(benchmark, monkeypatch, tmp_path):
    made = benchmark.environment() | {"commit": "abcdef1-dirty"}
    for name in ("against_native", "environment"):
        monkeypatch.setattr(sys.modules[name], "environment", lambda: dict(made))
    run(benchmark, tmp_path / "report.json")
    assert run(benchmark, tmp_path / "report.json")["earlier"] == []


def pool(monkeypatch, *files, to):
    monkeypatch.setattr(sys, "argv", ["pooled.py", *map(str, files), "--json", str(to)])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("pooled").main()
    return ended.value.code


def test_parts_are_judged_together(benchmark, monkeypatch, tmp_path, capsys):
    files = [tmp_path / "1.json", tmp_path / "2.json"]
    parts = [run(benchmark, file, part=True, pairs=3) for file in files]
    for low, high, code in ((1.0, 1.01, 0), (0.9, 1.1, 1)):  # of the second the interval is too wide
        for file, part, ratio in zip(files, parts, (low, high), strict=True):
            pairs = part["figures"]["pairs"]
            pairs["throughput_ratio"] = {name: [ratio] * 3 for name in pairs["throughput_ratio"]}
            pairs["added_ms_to_first_token"] = {"here": [0.1] * 3, "worker": [0.2] * 3}
            file.write_text(json.dumps(part))
        assert pool(monkeypatch, *files, to=tmp_path / "whole.json") == code
    whole = json.loads((tmp_path / "whole.json").read_text())
    assert values(whole) == [0.9] * 3 + [1.1] * 3
    figure = whole["figures"]["throughput_ratio"]["here.generate"]
    assert (figure["low"], figure["high"]) == (pytest.approx(0.9), pytest.approx(1.1))
    assert [part["pairs"] for part in whole["parts"]] == [3, 3]
    assert len(whole["figures"]["pairs"]["native_tokens_per_second"]["native"]) == 2 * 6
    assert "MISSED" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["settings", "environment", "engine"])
def test_what_was_measured_otherwise_is_not_pooled(benchmark, monkeypatch, tmp_path, capsys, change):
    part = run(benchmark, tmp_path / "1.json", part=True)
    other = {
        "settings": {**part, "settings": {**part["settings"], "rounds": 7}},
        "environment": {**part, "environment": {**part["environment"], "commit": "0000000"}},
        "engine": {**part, "engine": "another"},
    }[change]
    (tmp_path / "2.json").write_text(json.dumps(other))
    assert pool(monkeypatch, tmp_path / "1.json", tmp_path / "2.json", to=tmp_path / "whole.json") == 2
    assert f"they have different {change}" in capsys.readouterr().err
    assert not (tmp_path / "whole.json").exists()


def test_a_part_counts_once_and_changed_files_are_not_pooled(benchmark, monkeypatch, tmp_path, capsys):
    part = run(benchmark, tmp_path / "1.json", part=True)
    assert pool(monkeypatch, tmp_path / "1.json", tmp_path / "1.json", to=tmp_path / "whole.json") == 2
    assert "given twice" in capsys.readouterr().err
    assert pool(monkeypatch, tmp_path / "1.json", to=tmp_path / "whole.json") in (0, 1)
    assert pool(monkeypatch, tmp_path / "whole.json", to=tmp_path / "again.json") == 2
    assert "a whole already" in capsys.readouterr().err
    dirty = json.dumps({**part, "environment": {**part["environment"], "commit": "abcdef1-dirty"}})
    for name in ("1.json", "2.json"):
        (tmp_path / name).write_text(dirty)
    assert pool(monkeypatch, tmp_path / "1.json", tmp_path / "2.json", to=tmp_path / "whole.json") == 2
    assert "changed files ('abcdef1-dirty')" in capsys.readouterr().err
