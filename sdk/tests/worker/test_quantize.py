"""Quantising in a worker: the same as here, and nothing outlives it."""

import asyncio
import os
import time

import pytest
from anyengine import Engine, EngineDied, UnsupportedParameter
from anyengine.place import Worker
from anyengine.quantization import read_manifest


@pytest.fixture
def quantised(python, monkeypatch, tmp_path):
    """``await quantised(engine, **options)``: in a worker of the interpreter that has the simulated engines."""

    def place(engine, *_arguments, **_options):
        return Worker(engine, python)

    monkeypatch.setattr("anyengine.quantization.run.choose_quantizer", place)

    def start(engine, **options):
        options = {"model": "scripted", "scheme": "int8-w8a16", "output": tmp_path / "made", **options}
        return Engine.quantize(engine, oracle=None, **options)

    return start


def written_pid(folder):
    """What the toolchain writes when it has begun, as soon as it is there."""
    while not (found := list(folder.glob(".made-*/begun"))) or not found[0].read_text():
        time.sleep(0.01)
    return int(found[0].read_text())


def left(folder):
    return sorted(file.name for file in folder.iterdir())


async def test_the_work_is_done_in_a_process_of_its_own_that_is_gone_afterwards(quantised, tmp_path, gone):
    seen = []
    output = await quantised("copies", progress=lambda done, total: seen.append((done, total)))
    manifest = read_manifest(output)
    pid = manifest.recipe["pid"]
    assert pid != os.getpid()
    assert (gone([pid]), left(tmp_path)) == ([], ["made"])
    assert seen[-1] == (2, 2)


async def test_a_refusal_in_the_worker_is_the_same_error_here(quantised, tmp_path):
    with pytest.raises(UnsupportedParameter) as caught:
        await quantised("copies", scheme="int3")
    assert (caught.value.field, caught.value.supported, left(tmp_path)) == ("scheme", ["int8-w8a16"], [])


async def test_a_worker_that_dies_is_an_error_with_its_last_words_and_leaves_nothing(quantised, tmp_path):
    with pytest.raises(EngineDied, match="no kernel image is available") as caught:
        await quantised("dies-in-quantize")
    assert (caught.value.exit_status, left(tmp_path)) == (3, [])


async def test_a_cancelled_job_that_does_not_end_is_killed_and_leaves_nothing(quantised, tmp_path, monkeypatch, gone):
    monkeypatch.setattr("anyengine.worker.client._GRACE", 0.2)
    task = asyncio.create_task(quantised("stalls"))
    pid = await asyncio.to_thread(written_pid, tmp_path)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (gone([pid]), left(tmp_path)) == ([], [])


async def test_the_reference_engine_makes_the_same_in_a_worker(tmp_path):
    manifests = []
    for isolation in ("none", "process"):
        output = await Engine.quantize(
            model="storyteller-draft", scheme="int8-w8a8", output=tmp_path / isolation, isolation=isolation, oracle=None
        )
        manifests.append(read_manifest(output))
    assert manifests[0] == manifests[1]
