"""``Engine.quantize`` from the outside: what it makes, what it refuses, and that nothing half-written is left."""

import asyncio
import errno
import json
import shutil
import threading
from collections import namedtuple

import anyengine.sync
import pytest
from anyengine import (
    Calibration,
    Engine,
    InvalidConfig,
    ModelNotFound,
    OutOfSpace,
    PluginError,
    UnsupportedCapability,
    UnsupportedParameter,
)
from anyengine.backend import CheckpointSupport
from anyengine.quantization import check_manifest, read_manifest, run
from msgspec.structs import replace


def left(folder):
    """What is in a folder, hidden files too."""
    return sorted(file.name for file in folder.iterdir())


async def made(plugin, folder, **options):
    """The manifest of a checkpoint that is made there."""
    options = {"model": "scripted", "scheme": "int8-w8a16", "output": folder / "made", **options}
    return check_manifest(await Engine.quantize(plugin, **options))


async def test_a_checkpoint_is_made_with_a_manifest(copies, tmp_path, model_folder):
    seen = []
    manifest = await made(copies, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert (manifest.engine, manifest.scheme, manifest.recipe) == ("copies", "int8-w8a16", {"method": "copy"})
    assert (manifest.tools["copier"], "anyengine" in manifest.tools) == ("1.0", True)
    assert (manifest.source.model, manifest.source.revision, manifest.calibration) == ("scripted", None, None)
    assert sorted(manifest.source.files) == left(model_folder)
    assert (seen, left(tmp_path)) == ([(1, 2), (2, 2)], ["made"])


async def test_a_model_that_no_oracle_runs_says_why_its_drift_was_not_measured(copies, tmp_path):
    manifest = await made(copies, tmp_path)
    assert manifest.drift is None
    assert manifest.drift_unmeasured.startswith("reference: its architecture is None; the engine has llama")
    manifest = await made(copies, tmp_path, output=tmp_path / "other", oracle=None)
    assert manifest.drift_unmeasured == "it was not asked for"


async def test_an_oracle_that_is_named_and_cannot_run_it_is_an_error(copies, tmp_path):
    with pytest.raises(UnsupportedParameter, match="its architecture is None"):
        await made(copies, tmp_path, oracle="reference")
    assert left(tmp_path) == []


async def test_the_reference_engine_measures_what_it_makes(tmp_path):
    output = await Engine.quantize(model="storyteller-draft", scheme="int8-w8a16", output=tmp_path / "made")
    manifest = check_manifest(output)
    assert manifest.drift.oracle.startswith("reference ")
    assert manifest.drift.perplexity_ratio == pytest.approx(1, abs=0.02)
    assert manifest.drift.mean_kl < 0.01
    assert manifest.drift.top1_agreement > 0.9
    assert manifest.recipe["method"] == "round-to-nearest"
    async with Engine.load("reference", model=str(output)) as engine:
        assert (await engine.generate("Once", max_tokens=4)).token_ids


def test_without_await_it_is_the_same(copies, tmp_path):
    output = anyengine.sync.Engine.quantize(
        copies, model="scripted", scheme="int8-w8a16", output=tmp_path / "made", oracle=None
    )
    assert read_manifest(output).scheme == "int8-w8a16"


async def test_a_calibrated_scheme_gets_sequences_and_the_manifest_says_of_what(copies, tmp_path):
    text = Calibration(texts=["abcdefgh" * 10], sequence_length=16, count=3, seed=5)
    manifest = await made(copies, tmp_path, scheme="int8-w8a8", calibration=text)
    (job,) = copies.jobs
    assert ([len(sequence) for sequence in job.calibration], job.seed) == ([16, 16, 16], 5)
    drawn = manifest.calibration
    assert (drawn.source, drawn.count, drawn.sequence_length, drawn.seed) == ("texts", 3, 16, 5)


async def test_without_text_a_calibrated_scheme_gets_the_built_in_set(copies, tmp_path):
    manifest = await made(copies, tmp_path, scheme="int8-w8a8")
    assert (manifest.calibration.source, manifest.calibration.licence) == ("builtin", "Apache-2.0")
    assert {len(sequence) for sequence in copies.jobs[0].calibration} == {256}


async def test_text_for_a_scheme_that_takes_none_is_refused(copies, tmp_path):
    with pytest.raises(UnsupportedParameter, match="it is for int8-w8a8") as caught:
        await made(copies, tmp_path, calibration="builtin")
    assert (caught.value.field, left(tmp_path)) == ("calibration", [])


async def test_text_that_is_shorter_than_one_sequence_is_refused(copies, tmp_path):
    with pytest.raises(InvalidConfig, match="5 tokens, less than one sequence of 256"):
        await made(copies, tmp_path, scheme="int8-w8a8", calibration=["short"])
    assert (copies.jobs, left(tmp_path)) == ([], [])


async def test_a_scheme_that_the_engine_does_not_offer_is_refused(copies, tmp_path):
    with pytest.raises(UnsupportedParameter) as caught:
        await made(copies, tmp_path, scheme="int3")
    assert (caught.value.field, caught.value.supported) == ("scheme", ["int8-w8a16", "int8-w8a8"])
    assert left(tmp_path) == []


async def test_an_engine_that_does_not_quantise_says_so(scripted, tmp_path):
    described = scripted().describe()
    plugin = scripted(capabilities=replace(described.capabilities, quantize=frozenset()))
    with pytest.raises(UnsupportedCapability) as caught:
        await made(plugin, tmp_path)
    assert (caught.value.capability, left(tmp_path)) == ("quantize", [])


async def test_a_source_that_is_quantised_already_is_refused(copies, tmp_path):
    await made(copies, tmp_path)
    with pytest.raises(UnsupportedParameter, match=r"is quantised already .*int8-w8a16") as caught:
        await made(copies, tmp_path, model=str(tmp_path / "made"), output=tmp_path / "again")
    assert (caught.value.field, left(tmp_path)) == ("model", ["made"])


async def test_a_model_that_is_not_there_is_refused(copies, tmp_path):
    with pytest.raises(ModelNotFound):
        await made(copies, tmp_path, model="./nowhere")
    assert left(tmp_path) == []


async def test_an_output_that_has_files_is_refused_and_kept(copies, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "mine").write_text("kept")
    with pytest.raises(InvalidConfig, match="not an empty folder"):
        await made(copies, tmp_path)
    assert (left(tmp_path), left(tmp_path / "made")) == (["made"], ["mine"])


async def test_an_output_that_cannot_be_made_is_refused(copies, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidConfig, match="cannot be made"):
        await made(copies, tmp_path, output=tmp_path / "file" / "made")


async def test_an_empty_output_folder_is_filled(copies, tmp_path):
    (tmp_path / "made").mkdir()
    assert await made(copies, tmp_path) is not None


async def test_a_disk_that_is_too_small_is_refused_before_the_work(copies, tmp_path, monkeypatch):
    from anyengine.quantization import make

    usage = namedtuple("usage", "free")  # noqa: PYI024 what shutil gives
    monkeypatch.setattr(make.shutil, "disk_usage", lambda _folder: usage(-1))
    with pytest.raises(OutOfSpace, match="MB free") as caught:
        await made(copies, tmp_path)
    assert (caught.value.field, copies.jobs, left(tmp_path)) == ("output", [], [])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_a_disk_that_fills_up_is_a_typed_error_and_leaves_nothing(number, copies, tmp_path):
    def full(_job):
        raise OSError(number, "full")

    copies.after = full
    with pytest.raises(OutOfSpace, match="the disk is full"):
        await made(copies, tmp_path)
    assert left(tmp_path) == []


async def test_an_error_that_the_plugin_does_not_map_is_one_of_the_plugin_and_leaves_nothing(copies, tmp_path):
    def fail(_job):
        raise LookupError("an engine's own")

    copies.after = fail
    with pytest.raises(PluginError, match="LookupError"):
        await made(copies, tmp_path)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda job: (job.output / "config.json").unlink(), "wrote no whole checkpoint"),
        (lambda job: (job.output / "config.json").write_text("{}"), "does not say how it is quantised"),
        (lambda job: (job.output / "model.safetensors").unlink(), "wrote no whole checkpoint"),
    ],
    ids=["no configuration", "float", "no weights"],
)
async def test_a_plugin_that_writes_no_quantised_checkpoint_breaks_the_contract(spoil, said, copies, tmp_path):
    copies.after = spoil
    with pytest.raises(PluginError, match=said):
        await made(copies, tmp_path)
    assert left(tmp_path) == []


async def test_a_plugin_that_reports_nothing_breaks_the_contract(copies, tmp_path):
    async def silent(job):
        await asyncio.to_thread(copies.copy, job)

    copies.quantize = silent
    with pytest.raises(PluginError, match="not a QuantizeReport"):
        await made(copies, tmp_path)
    assert left(tmp_path) == []


async def test_a_cancelled_job_has_ended_and_leaves_nothing(copies, tmp_path):
    begun, ended = threading.Event(), threading.Event()

    def wait(job):
        begun.set()
        while not job.cancelled():
            threading.Event().wait(0.01)
        (job.output / "half").write_text("written")
        ended.set()

    copies.after = wait
    task = asyncio.create_task(made(copies, tmp_path))
    await asyncio.to_thread(begun.wait)
    assert [name[:6] for name in left(tmp_path)] == [".made-"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (ended.is_set(), left(tmp_path)) == (True, [])


@pytest.fixture
def slow(monkeypatch):
    """Makes a function of a module slow; gives what says that it has begun, and that it has ended."""

    def change(module, name):
        function, begun, ended = getattr(module, name), threading.Event(), threading.Event()

        def slowly(*arguments, **options):
            begun.set()
            threading.Event().wait(0.2)
            try:
                return function(*arguments, **options)
            finally:
                ended.set()

        monkeypatch.setattr(module, name, slowly)
        return begun, ended

    return change


async def test_what_is_cancelled_twice_has_deleted_what_it_wrote(copies, slow, tmp_path):
    copied = threading.Event()
    copies.after = lambda _job: copied.set()
    begun, ended = slow(shutil, "rmtree")
    task = asyncio.create_task(made(copies, tmp_path))
    await asyncio.to_thread(copied.wait)
    task.cancel()
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (ended.is_set(), left(tmp_path)) == (True, [])


@pytest.mark.parametrize("step", ["_begin", "write_manifest"])
async def test_what_is_cancelled_while_it_writes_a_file_or_folder_writes_nothing_more(copies, slow, tmp_path, step):
    begun, ended = slow(run, step)
    task = asyncio.create_task(made(copies, tmp_path, oracle=None))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (ended.is_set(), left(tmp_path)) == (True, [])


async def test_a_checkpoint_that_an_engine_does_not_declare_is_refused_before_it_is_loaded(copies, scripted, tmp_path):
    await made(copies, tmp_path)
    plugin, seen = scripted(), []
    described = replace(plugin.describe(), checkpoints=CheckpointSupport())
    plugin.describe = lambda: described
    plugin.load = lambda config, model: seen.append(model)
    with pytest.raises(UnsupportedParameter, match="no quantised checkpoints") as caught:
        await Engine.load(plugin, model=str(tmp_path / "made"))
    assert (caught.value.field, seen) == ("model", [])


async def test_the_output_says_where_it_comes_from_without_a_path_of_this_machine(copies, tmp_path, model_folder):
    manifest = await made(copies, tmp_path, model=str(model_folder))
    assert manifest.source.model == model_folder.name
    assert str(model_folder.parent) not in (tmp_path / "made" / "anyengine.json").read_text()
    assert json.loads((tmp_path / "made" / "anyengine.json").read_text())["format"] == "anyengine-checkpoint/1"
