"""Every bad request of ``test_requests.py`` is refused in the same words through a worker, and the worker goes on."""

import runpy
from pathlib import Path

import pytest
from anyengine import InvalidRequest

BAD = runpy.run_path(str(Path(__file__).parents[1] / "test_requests.py"))["BAD"]


async def test_bad_input_is_named_and_the_engine_goes_on(worker):
    async with worker("lora") as engine:
        for name, (fields, field) in BAD.items():
            for call in (engine.generate, entered(engine)):
                with pytest.raises(InvalidRequest) as caught:
                    await call(**{"prompt": "hi", **fields})
                assert field is None or caught.value.field == field, name
                assert len(caught.value.message) < 700
        assert (await engine.generate("hi", max_tokens=1)).token_ids == [71]
        stats = await engine.stats()
        assert (stats.running, stats.queued) == (0, 0)


def entered(engine):
    async def enter(prompt, **options):
        async with engine.stream(prompt, **options):
            pass

    return enter
