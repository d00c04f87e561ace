"""The passport of a checkpoint, and what a load makes of one that does not fit."""

import json
import shutil
from pathlib import Path

import jsonschema
import pytest
from anyengine import Engine, ModelNotFound
from anyengine.quantization import MANIFEST, Manifest, check_manifest, read_manifest
from anyengine.quantization.manifest import Source, hashes, write_manifest

SCHEMA = Path(read_manifest.__code__.co_filename).with_name("manifest.schema.json")


@pytest.fixture
def checkpoint(model_folder, tmp_path):
    """A folder with a manifest."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(model_folder, folder)
    source = Source(model="some/model", revision="abc", files={"config.json": "0" * 64})
    manifest = Manifest(engine="copies", scheme="int8-w8a16", source=source, files=hashes(folder.iterdir()))
    write_manifest(folder, manifest)
    return folder


def edited(folder, change):
    content = json.loads((folder / MANIFEST).read_text())
    change(content)
    (folder / MANIFEST).write_text(json.dumps(content))


def test_what_was_written_is_read(checkpoint):
    manifest = check_manifest(checkpoint)
    assert (manifest.engine, manifest.scheme, manifest.source.model) == ("copies", "int8-w8a16", "some/model")
    assert sorted(manifest.files) == sorted(file.name for file in checkpoint.iterdir() if file.name != MANIFEST)


def test_spaces_and_the_order_of_keys_do_not_matter(checkpoint):
    content = json.loads((checkpoint / MANIFEST).read_text())
    (checkpoint / MANIFEST).write_text(json.dumps(dict(reversed(content.items())), indent=7))
    assert check_manifest(checkpoint) is not None


def test_a_checkpoint_without_one_is_nobodys(model_folder):
    assert check_manifest(model_folder) is None


def test_the_schema_that_is_shipped_is_that_of_the_type(checkpoint):
    import importlib.util

    tool = Path(__file__).parents[3] / "tools" / "make_manifest_schema.py"
    specification = importlib.util.spec_from_file_location("make_manifest_schema", tool)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert SCHEMA.read_text("utf-8") == module.schema()


def test_a_manifest_is_valid_by_the_schema_and_an_unknown_field_is_not(checkpoint):
    content = json.loads((checkpoint / MANIFEST).read_text())
    schema = json.loads(SCHEMA.read_text("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(content)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({**content, "mine": 1})


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(scheme="int4-w4a16"),
        lambda content: content["source"].update(revision="def"),
        lambda content: content["files"].pop("config.json"),
        lambda content: content.update(sha256="0" * 64),
        lambda content: content.pop("sha256"),
        lambda content: content.pop("drift"),
    ],
    ids=["scheme", "revision", "files", "signature", "no signature", "no drift"],
)
def test_an_edited_manifest_is_refused(change, checkpoint):
    edited(checkpoint, change)
    with pytest.raises(ModelNotFound, match="was edited after it was written"):
        read_manifest(checkpoint)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no manifest"),
        ("[]", "is no manifest"),
        ('{"format": "anyengine-checkpoint/2"}', "is no manifest"),
        ("{}", "missing required field `engine`"),
        ("\N{LATIN SMALL LETTER E WITH ACUTE}", "is no manifest"),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(content, said, checkpoint):
    (checkpoint / MANIFEST).write_text(content)
    with pytest.raises(ModelNotFound, match=said):
        read_manifest(checkpoint)


def test_an_unknown_field_is_refused(checkpoint):
    edited(checkpoint, lambda content: content.update(mine=1))
    with pytest.raises(ModelNotFound, match="mine"):
        read_manifest(checkpoint)


def grown(file):
    file.write_bytes(file.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: grown(folder / "config.json"), r"config\.json: not as it was made"),
        (lambda folder: grown(folder / "tokenizer.json"), r"tokenizer\.json: not as it was made"),
        (lambda folder: (folder / "generation_config.json").unlink(), r"generation_config\.json: missing"),
        (lambda folder: (folder / "more.safetensors").write_bytes(b"x"), r"more\.safetensors: not in its manifest"),
    ],
    ids=["configuration", "tokenizer", "missing", "added"],
)
async def test_a_load_of_files_that_are_not_those_of_the_manifest_is_refused(change, said, checkpoint, scripted):
    change(checkpoint)
    with pytest.raises(ModelNotFound, match=said) as caught:
        check_manifest(checkpoint)
    assert caught.value.field == "model"


async def test_a_load_checks_the_manifest_before_the_engine_sees_the_model(checkpoint, scripted):
    plugin = scripted()
    async with Engine.load(plugin, model=str(checkpoint)) as engine:
        assert engine.model.path == checkpoint
    grown(checkpoint / "generation_config.json")
    seen = []
    plugin.load = lambda config, model: seen.append(model)
    with pytest.raises(ModelNotFound, match="not as it was made"):
        await Engine.load(plugin, model=str(checkpoint))
    assert seen == []


def test_a_note_beside_the_files_does_no_harm(checkpoint):
    (checkpoint / "NOTES.md").write_text("mine")
    assert check_manifest(checkpoint) is not None
