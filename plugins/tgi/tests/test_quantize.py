"""Quantising with TGI's own command: what it is called with, and what becomes of its endings, on a *scripted* one."""

import json
import stat
import sys
from pathlib import Path

import pytest
from anyengine import Engine
from anyengine.backend import QuantizeJob
from anyengine.errors import Failure, OutOfMemory, UnsupportedParameter
from anyengine.hub import resolve_model
from anyengine.quantization import check_manifest
from anyengine_tgi import plugin, quantize
from anyengine_tgi.capabilities import declared

#: In the place of ``text-generation-server``: takes the contract's options alone, and does no arithmetic.
SCRIPT = """#!{python}
import json, os, pathlib, shutil, sys, time
options = json.loads({options!r})
assert sys.argv[1] == "quantize", sys.argv
given, places, rest = {{}}, [], sys.argv[2:]
while rest:
    word = rest.pop(0)
    if not word.startswith("--"):
        places.append(pathlib.Path(word))
    elif word not in options:
        sys.exit("No such option: " + word)
    else:
        given[word] = True if options[word] is False else rest.pop(0)
source, output = places
watched = pathlib.Path({watched!r})
(pathlib.Path({notes!r})).write_text(json.dumps([given, dict(os.environ)]))
for layer in (1, 2):
    print("Quantizing layer %d/2.." % layer)
    while watched.exists() and not (watched / str(layer - 1)).exists():
        time.sleep(0.01)
{ending}
config = json.loads((source / "config.json").read_text())
config["quantization_config"] = {{**json.loads({writes!r}), "group_size": int(given["--groupsize"])}}
(output / "config.json").write_text(json.dumps(config))
shutil.copy(source / "model.safetensors", output / "model.safetensors")
"""


@pytest.fixture(scope="module")
def commands():
    return json.loads((Path(__file__).parent / "contract" / "quantization.json").read_bytes())["commands"]["value"]


@pytest.fixture
def command(commands, tmp_path, monkeypatch):
    """``command("raise SystemExit(1)")``: on the path, and ends like that; ``command.notes`` has what it was given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(ending=""):
        make.notes = tmp_path / "notes"
        program = folder / quantize.PROGRAM
        program.write_text(
            SCRIPT.format(
                python=sys.executable,
                options=json.dumps(commands["quantize"]["options"]),
                writes=json.dumps(commands["writes"]),
                notes=str(make.notes),
                watched=str(tmp_path / "watched"),
                ending=ending,
            )
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return make


@pytest.fixture
def job(storyteller, tmp_path):
    """``job()``: with steps that are written down in ``job.steps``; the command goes on once a step was told."""
    (tmp_path / "out").mkdir()
    (tmp_path / "watched").mkdir()
    model = resolve_model(str(storyteller), builtin={})

    def progress(done, total):
        make.steps.append((done, total))
        (tmp_path / "watched" / str(done)).touch()

    def make(cancelled=lambda: False):
        make.steps = []
        return QuantizeJob(
            model=model,
            scheme="int4-gptq",
            output=tmp_path / "out",
            progress=progress,
            cancelled=cancelled,
        )

    return make


def test_the_scheme_is_declared_where_the_command_is(command, monkeypatch):
    assert declared().quantize == frozenset()
    command()
    assert (declared().quantize, declared().calibrated) == ({"int4-gptq"}, frozenset())


def test_the_arguments_are_those_of_the_contract(commands):
    verb, *places = quantize.arguments(Path("a"), Path("b"), 64)
    assert (verb, places[:2]) == ("quantize", ["a", "b"])
    assert len(commands["quantize"]["arguments"]) == 2
    assert set(places[2::2]) <= set(commands["quantize"]["options"])


async def test_the_command_writes_into_the_jobs_folder(command, job, tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTS_CACHE_OVERRIDE", "/elsewhere")
    command()
    report = await quantize.quantize(job())
    given, variables = json.loads(command.notes.read_text())
    assert given == {"--groupsize": "64"}  # of the matrices one has 704 inputs
    assert "WEIGHTS_CACHE_OVERRIDE" not in variables
    assert job.steps[0] == (0, 2)
    assert (1, 2) in job.steps
    (recipe,) = report.recipe.values()
    assert recipe["groupsize"] == 64
    assert "without a seed" in recipe["dataset"]
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("ending", "kind", "said"),
    [
        ("sys.exit('torch.OutOfMemoryError: CUDA out of memory. Tried …')", OutOfMemory, "Tried"),
        ("sys.exit('RuntimeError: No CUDA GPUs are available')", Failure, "failed with .*No CUDA GPUs"),
        ("sys.exit('OSError: [Errno 28] No space left on device')", OSError, "No space left"),
        ("sys.exit(3)", Failure, "Quantizing layer 2/2"),
    ],
)
async def test_a_command_that_fails_has_a_typed_error(ending, kind, said, command, job, tmp_path):
    command(ending)
    with pytest.raises(kind, match=said):
        await quantize.quantize(job())
    assert list((tmp_path / "out").iterdir()) == []


async def test_it_ends_soon_when_it_is_cancelled(command, job, tmp_path):
    command("time.sleep(300)")
    making = job(cancelled=lambda: bool(job.steps))
    with pytest.raises(Failure, match="cancelled"):
        await quantize.quantize(making)
    assert list((tmp_path / "out").iterdir()) == []


async def test_matrices_that_no_group_divides_are_refused_before_it_starts(command, job, monkeypatch):
    command()
    monkeypatch.setattr(quantize, "_inputs", lambda _folder: [48])
    with pytest.raises(UnsupportedParameter, match="do not divide matrices of 48 inputs"):
        await quantize.quantize(job())
    assert not command.notes.exists()


# -- through the SDK ---------------------------------------------------------------------------------------------------


async def test_text_of_the_callers_is_refused(command, storyteller, tmp_path):
    command()
    with pytest.raises(UnsupportedParameter, match="tgi takes no text for int4-gptq") as caught:
        await Engine.quantize(
            plugin, model=str(storyteller), scheme="int4-gptq", output=tmp_path / "made", calibration=["text"]
        )
    assert caught.value.field == "calibration"


async def test_the_manifest_says_what_it_was_fitted_to(command, storyteller, tmp_path):
    command()
    made = await Engine.quantize(plugin, model=str(storyteller), scheme="int4-gptq", output=tmp_path / "made")
    manifest = check_manifest(made)
    assert (manifest.engine, manifest.scheme, manifest.calibration) == ("tgi", "int4-gptq", None)
    assert "wikitext2" in json.dumps(manifest.recipe)
    assert manifest.drift is None  # no oracle reads it
