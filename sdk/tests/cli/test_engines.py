"""``anyengine engines``."""

import json
import sys

import pytest
from anyengine import Capabilities


def test_every_engine_is_listed_with_its_state(anyengine):
    listed = {engine["name"]: engine for engine in anyengine.json("engines")}
    assert list(listed) == sorted(listed)
    assert {name: listed[name]["status"] for name in ("broken", "reference", "scripted", "slow")} == {
        "broken": "broken",
        "reference": "ready",
        "scripted": "ready",
        "slow": "ready",
    }
    assert "has no attribute 'no'" in listed["broken"]["reason"]
    assert listed["scripted"]["package"] == "some-engine 1.0"
    assert (listed["scripted"]["in_process"], listed["scripted"]["default_model"]) == (True, "scripted")


def test_the_table_has_a_short_line_for_each_and_the_reasons_follow_it(anyengine):
    done = anyengine("engines")
    table, reasons = (part.splitlines() for part in done.stdout.split("\n\n"))
    assert (done.exit_code, table[0].split()) == (0, ["ENGINE", "STATUS", "PACKAGE", "VERSION", "RUNS", "IN", "MODELS"])
    shown = [line.split()[:2] for line in table[1:]]
    assert shown == sorted(shown)
    for line in (["broken", "broken"], ["reference", "ready"], ["scripted", "ready"], ["slow", "ready"]):
        assert line in shown
    assert reasons[0].split() == ["ENGINE", "RUNS", "IN", "WHY", "NOT"]
    assert [line.split()[0] for line in reasons[1:]] == [name for name, status in shown if status != "ready"]


def test_where_every_engine_runs_there_are_no_reasons(anyengine, monkeypatch):
    from anyengine.plugins import find_engines

    able = {name: found for name, found in find_engines().items() if name in {"reference", "scripted"}}
    monkeypatch.setattr("anyengine.plugins.find_engines", lambda: able)
    assert [line.split()[0] for line in anyengine("engines").stdout.splitlines()] == ["ENGINE", *able]


def test_on_a_terminal_of_100_columns_no_word_of_a_reason_is_cut(anyengine, not_installed, monkeypatch):
    monkeypatch.setattr("anyengine.cli.output.is_terminal", lambda _stream: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    lines = anyengine("engines").stdout.splitlines()
    assert not_installed in " ".join(" ".join(lines).split())
    assert max(map(len, lines)) <= 100


def test_an_engine_that_is_not_available_says_why(anyengine, monkeypatch):
    import msgspec
    from anyengine.testing import ScriptedPlugin

    describe = ScriptedPlugin.describe
    monkeypatch.setattr(
        ScriptedPlugin, "describe", lambda self: msgspec.structs.replace(describe(self), unavailable="no torch here")
    )
    assert lines_of(anyengine, "scripted") == [
        "not available some-engine 1.0 here scripted (default)",
        "here no torch here",
    ]


def lines_of(anyengine, engine):
    """What the tables say of an engine, in words."""
    lines = anyengine("engines").stdout.splitlines()
    return [" ".join(line.split()[1:]) for line in lines if line.split()[:1] == [engine]]


@pytest.fixture
def not_installed(monkeypatch):
    """The engine `scripted` is not installed here, and its plugin lists packages for this platform, another, and a
    toolchain.
    """
    import msgspec
    from anyengine.backend import CheckpointSupport, EnvironmentVariant
    from anyengine.testing import ScriptedPlugin

    describe = ScriptedPlugin.describe
    fields = {
        "cpu": {},
        "cuda": {"platform": sys.platform},
        "mars": {"platform": "mars"},
        "tools": {"quantize": True},
    }
    variants = {name: EnvironmentVariant(python=">=3.11", steps=(), **field) for name, field in fields.items()}
    changes = {
        "unavailable": "it is not installed here",
        "environments": variants,
        "checkpoints": CheckpointSupport(architectures=("llama",)),
    }
    monkeypatch.setattr(ScriptedPlugin, "describe", lambda self: msgspec.structs.replace(describe(self), **changes))
    return (
        "it is not installed here; `anyengine env create scripted --variant cpu` (or `--variant cuda`) makes an "
        "environment for it"
    )


def test_an_engine_that_is_not_installed_says_which_command_brings_it(anyengine, not_installed):
    assert lines_of(anyengine, "scripted")[1] == f"here {not_installed}"
    shown = " ".join(anyengine("engines", "scripted").stdout.split())
    assert f" why not {not_installed} " in shown
    listed = {engine["name"]: engine for engine in anyengine.json("engines")}
    assert listed["scripted"]["reason"] == not_installed


def test_an_engine_that_is_not_installed_says_whether_it_would_load_a_model(anyengine, not_installed, tmp_path):
    _, engines = for_model(anyengine, "--model", "storyteller")
    assert engines["scripted"] == {
        "name": "scripted",
        "environment": None,
        "runs": "not here",
        "loads": "yes",
        "reason": not_installed,
    }
    lines = anyengine("engines", "--model", "storyteller").stdout.splitlines()
    assert [line.split(maxsplit=4) for line in lines if line.startswith("scripted")] == [
        ["scripted", "yes", "not", "here", not_installed]
    ]
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "other"}')
    _, engines = for_model(anyengine, "--model", str(folder))
    assert (engines["scripted"]["loads"], engines["scripted"]["runs"]) == ("no", "no")
    assert engines["scripted"]["reason"].startswith("its architecture is 'other'")


def test_a_load_of_an_engine_that_is_not_installed_says_the_same(anyengine, not_installed):
    done = anyengine("generate", "--engine", "scripted", "hello")
    assert (done.exit_code, not_installed in done.stderr) == (1, True)


def test_one_engine_is_shown_with_every_capability(anyengine):
    shown = anyengine.json("engines", "reference")["capabilities"]
    assert list(shown) == list(Capabilities.__struct_fields__)
    assert shown["quantize"] == ["int4-w4a16", "int8-w8a16", "int8-w8a8"]
    lines = anyengine("engines", "reference").stdout.splitlines()
    assert {line.split()[0] for line in lines} >= set(Capabilities.__struct_fields__)
    assert any(line.startswith("conflicts") and "request.structured with request.ignore_eos" in line for line in lines)


def test_a_broken_engine_fails_with_its_reason(anyengine):
    done = anyengine("engines", "broken")
    assert (done.exit_code, "has no attribute 'no'" in done.stderr) == (1, True)


def for_model(anyengine, *arguments):
    document = anyengine.json("engines", *arguments)
    return document, {engine["name"]: engine for engine in document["engines"]}


def test_every_engine_says_whether_it_runs_a_model(anyengine, tmp_path):
    folder = tmp_path / "made"
    anyengine("quantize", "--model", "storyteller-draft", "--scheme", "int8-w8a8", "--output", str(folder))
    document, engines = for_model(anyengine, "--model", str(folder))
    assert (document["architecture"], document["quantization"]["schemes"]) == ("llama", ["int8-w8a8"])
    assert (engines["reference"]["runs"], engines["reference"]["reason"]) == ("yes", None)
    assert engines["scripted"]["runs"] == "not declared"
    assert (engines["broken"]["runs"], "has no attribute" in engines["broken"]["reason"]) == ("not here", True)


def test_an_engine_that_cannot_run_a_model_says_why(anyengine, tmp_path):
    folder = tmp_path / "made"
    anyengine("quantize", "--model", "storyteller-draft", "--scheme", "int8-w8a16", "--output", str(folder))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
    (folder / "config.json").write_text(json.dumps(config))
    _, engines = for_model(anyengine, "reference", "--model", str(folder))
    assert list(engines) == ["reference"]
    assert (engines["reference"]["runs"], engines["reference"]["reason"]) == (
        "no",
        "it is quantised (awq gemm, int4-awq, groups of 128, zero points), and the engine reads compressed-tensors",
    )
    lines = anyengine("engines", "reference", "--model", str(folder)).stdout.splitlines()
    assert any(line.startswith("reference  no") and "the engine reads compressed-tensors" in line for line in lines)


def test_a_model_in_float_runs_by_its_architecture(anyengine):
    document, engines = for_model(anyengine, "--model", "storyteller")
    assert (document["quantization"], engines["reference"]["runs"]) == (None, "yes")


def test_a_folder_without_weights_that_an_engine_reads_says_what_it_has(anyengine, monkeypatch, tmp_path):
    import msgspec
    from anyengine.testing import ScriptedPlugin, make_model_folder

    folder = make_model_folder(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model.gguf")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    describe = ScriptedPlugin.describe
    monkeypatch.setattr(
        ScriptedPlugin, "describe", lambda self: msgspec.structs.replace(describe(self), weights=("*.gguf",))
    )
    _, engines = for_model(anyengine, "--model", str(folder))
    assert engines["scripted"]["loads"] == "not declared"
    assert (engines["reference"]["loads"], engines["reference"]["reason"]) == (
        "no",
        "has no weights that the engine reads: no *.safetensors file, but model.gguf",
    )


def test_a_model_that_is_not_there_is_refused(anyengine):
    done = anyengine("engines", "--model", "./nowhere")
    assert (done.exit_code, "there is no folder ./nowhere" in done.stderr) == (1, True)
