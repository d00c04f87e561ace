"""What the uniform API costs on top of LMDeploy: the same requests through its ``AsyncEngine`` and through ``Engine``.

    ENVIRONMENT/bin/python benchmarks/lmdeploy_overhead.py MODEL [--pairs 10] [--rounds 3] [--json out]

How, and which bars: see ``against_native.py``. TurboMind. The native side calls ``preprocess`` and ``generate`` as
LMDeploy's own server and pipeline do; what only the server adds (HTTP, a task that collects metrics) is left out, so
the native side is as fast as LMDeploy can be used. Where only the result is wanted it asks for that alone
(``stream_response=False``), as the pipeline does.
"""

from __future__ import annotations

import asyncio
import os
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

from against_native import main, parser, uniform
from anyengine import KVCacheConfig

if TYPE_CHECKING:
    import argparse

    from against_native import Subject


class Native:
    """LMDeploy's own engine."""

    def __init__(self, engine: Any, sampling: Any) -> None:
        self.engine = engine
        self.sampling = sampling

    async def _run(self, prompt: list[int], tokens: int, *, streaming: bool) -> tuple[int, float | None]:
        started, first, count = perf_counter(), None, 0
        request = await self.engine.preprocess(
            None,
            session_id=self.engine.session_mgr.get(),
            input_ids=list(prompt),
            gen_config=self.sampling(max_new_tokens=tokens),
        )
        async for output in self.engine.generate(request, stream_response=streaming):
            first = first or perf_counter() - started
            count = output.generate_token_len  # of all so far
            assert isinstance(output.response, str)
        return count, first

    async def generate(self, prompt: list[int], tokens: int) -> int:
        """See :class:`against_native.Subject`."""
        return (await self._run(prompt, tokens, streaming=False))[0]

    async def stream(self, prompt: list[int], tokens: int) -> tuple[int, float | None]:
        """See :class:`against_native.Subject`."""
        return await self._run(prompt, tokens, streaming=True)

    async def close(self) -> None:
        """See :class:`against_native.Subject`."""
        await asyncio.to_thread(self.engine.close)


async def load(options: argparse.Namespace) -> dict[str, Subject]:
    """The three subjects, side by side."""
    # As LMDeploy's pipeline and server do: its library alone writes two lines a request.
    os.environ.setdefault("TM_LOG_LEVEL", "WARNING")

    import torch  # noqa: PLC0415 after the arguments were read
    from lmdeploy.messages import GenerationConfig, TurbomindEngineConfig  # noqa: PLC0415
    from lmdeploy.serve.core import AsyncEngine  # noqa: PLC0415
    from lmdeploy.utils import get_logger  # noqa: PLC0415

    get_logger("lmdeploy").setLevel("WARNING")
    ours = await uniform(
        "lmdeploy",
        options,
        kv_cache=KVCacheConfig(gpu_memory_fraction=options.memory),
        native={"backend": "turbomind"},
    )
    free, total = torch.cuda.mem_get_info()
    settings = TurbomindEngineConfig(
        dtype="bfloat16",
        session_len=options.context,
        max_batch_size=options.concurrency,
        # TurboMind takes a share of the memory that is free once the weights are there.
        cache_max_entry_count=options.memory * total / free,
    )
    engine = await asyncio.to_thread(AsyncEngine, options.model, backend="turbomind", backend_config=settings)
    engine.start_loop(asyncio.get_running_loop(), use_async_api=True)
    # Neutral, as the uniform API's defaults are: LMDeploy's own cut at 50 tokens.
    greedy = options.temperature == 0
    sampling = partial(
        GenerationConfig,
        ignore_eos=True,
        do_sample=not greedy,
        temperature=1.0 if greedy else options.temperature,
        top_k=1 if greedy else 0,
        top_p=1.0,
    )
    return {"native": Native(engine, sampling), **ours}


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--memory", type=float, default=0.05, help="share of the GPU's memory for each of the three")
    main("lmdeploy", arguments.parse_args(), load)
