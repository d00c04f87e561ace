"""``anyengine quantize``."""

import json
import signal
import subprocess
import time

import pytest


def test_a_quantised_model_is_written_and_can_be_loaded(anyengine, tmp_path):
    folder = tmp_path / "smaller"
    arguments = ["--model", "storyteller", "--scheme", "int8-w8a16", "--output", str(folder)]
    document = anyengine.json("quantize", *arguments, "--oracle", "none")
    assert document == {
        "engine": "reference",
        "model": "storyteller",
        "scheme": "int8-w8a16",
        "output": str(folder),
        "drift": None,
        "drift_unmeasured": "it was not asked for",
    }
    done = anyengine("generate", "Once", "--model", str(folder), "--max-tokens", "4", "--json")
    assert (done.exit_code, len(json.loads(done.stdout)["token_ids"])) == (0, 4)


def test_the_folder_and_what_it_cost_are_printed(anyengine, tmp_path):
    folder = tmp_path / "smaller"
    arguments = ["--model", "storyteller-draft", "--scheme", "int8-w8a16", "--output", str(folder)]
    done = anyengine("quantize", *arguments)
    assert (done.exit_code, done.stderr) == (0, "")
    drift = json.loads((folder / "anyengine.json").read_text())["drift"]
    assert [line.split(maxsplit=1)[0] for line in done.stdout.splitlines()] == [
        *("CHECKPOINT", "perplexity", "mean", "top-1", "measured"),
    ]
    for words in (
        str(folder),
        f"{drift['perplexity_ratio']:.4f} times the float model's",
        f"{drift['mean_kl']:.4f} nats",
        f"{drift['top1_agreement']:.1%} of {drift['tokens']} positions",
        drift["oracle"],
    ):
        assert words in done.stdout


def test_drift_that_nobody_asked_for_is_said_to_be_missing(anyengine, tmp_path):
    arguments = ["--model", "storyteller-draft", "--scheme", "int8-w8a16", "--output", str(tmp_path / "smaller")]
    done = anyengine("quantize", *arguments, "--oracle", "none")
    _, drift, advice = done.stdout.splitlines()
    assert (done.exit_code, drift.split(maxsplit=1)[1]) == (0, "not measured: it was not asked for")
    assert advice == "to measure it: leave --oracle none out"


def test_drift_that_no_oracle_could_measure_says_why_and_how(anyengine, tmp_path, monkeypatch):
    monkeypatch.setattr("anyengine.quantization.oracle._LARGE", 0)
    monkeypatch.setattr("anyengine.quantization.oracle.ORACLES", ("reference",))
    folder = tmp_path / "smaller"
    arguments = ["--model", "storyteller-draft", "--scheme", "int8-w8a16", "--output", str(folder)]
    done = anyengine("quantize", *arguments)
    _, drift, advice = done.stdout.splitlines()
    assert (done.exit_code, drift.split(maxsplit=1)[1]) == (
        0,
        "not measured: reference: takes too long for 0 GiB of weights",
    )
    assert advice.startswith("to measure it: name an engine")
    assert f"`anyengine engines --model {folder}`" in advice


def test_an_unknown_scheme_is_refused_with_those_that_exist(anyengine, tmp_path):
    done = anyengine("quantize", "--model", "storyteller", "--scheme", "int3", "--output", str(tmp_path / "x"))
    assert (done.exit_code, "int8-w8a16" in done.stderr, (tmp_path / "x").exists()) == (2, True, False)


def test_the_drift_is_part_of_the_document(anyengine, tmp_path):
    arguments = ["--model", "storyteller-draft", "--scheme", "int8-w8a16", "--output", str(tmp_path / "made")]
    document = anyengine.json("quantize", *arguments)
    assert document["drift"]["oracle"].startswith("reference ")
    assert document["drift"]["perplexity_ratio"] < 1.02
    assert document["drift_unmeasured"] is None


def test_calibration_is_told_by_options(anyengine, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a small dog. " * 40)
    options = ["--calibration", str(text), "--sequence-length", "32", "--count", "3", "--seed", "9", "--oracle", "none"]
    made = tmp_path / "made"
    base = ["--model", "storyteller-draft", "--scheme", "int8-w8a8", "--output", str(made)]
    assert anyengine.json("quantize", *base, *options)["drift_unmeasured"] == "it was not asked for"
    drawn = json.loads((made / "anyengine.json").read_text())["calibration"]
    assert {name: drawn[name] for name in ("source", "sequence_length", "count", "seed")} == {
        "source": "text.txt",
        "sequence_length": 32,
        "count": 3,
        "seed": 9,
    }


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--scheme", "int8-w8a16", "--seed", "1"], "calibration"),
        (["--scheme", "int8-w8a8", "--sequence-length", "4"], "sequence_length"),
        (["--scheme", "int8-w8a8", "--sequence-length", "900", "--count", "99"], "calibration.count"),
        (["--scheme", "int8-w8a8", "--calibration", "/nowhere.txt"], "calibration.file"),
    ],
)
def test_calibration_that_does_not_do_is_refused_by_name(options, field, anyengine, tmp_path):
    done = anyengine("quantize", "--model", "storyteller-draft", "--output", str(tmp_path / "x"), *options, "--json")
    assert (done.exit_code, json.loads(done.stdout)["error"]["field"]) == (2, field)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_leaves_nothing(anyengine, tmp_path):
    """Ctrl-C while it works: exit status 130, no output, and no hidden folder."""
    command, variables = anyengine.program
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a small dog. " * 4000)
    folder = tmp_path / "where"
    folder.mkdir()
    arguments = ["quantize", "--model", "storyteller", "--scheme", "int8-w8a8", "--calibration", str(text)]
    process = subprocess.Popen([*command, *arguments, "--output", str(folder / "made")], env=variables)
    while not list(folder.glob(".made-*/tokenizer.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert list(folder.iterdir()) == []
