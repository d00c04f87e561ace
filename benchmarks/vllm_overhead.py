"""What the uniform API costs on top of vLLM: the same requests through its own ``AsyncLLM`` and through ``Engine``.

    ENVIRONMENT/bin/python benchmarks/vllm_overhead.py MODEL [--pairs 10] [--rounds 3] [--json out]

How, and which bars: see ``against_native.py``. Seeds change vLLM's sampler, so none is given. Both sides keep
statistics: vLLM's own engine those of its server, for Prometheus, and the plugin those of ``Engine.stats``.
"""

from __future__ import annotations

import itertools
from time import perf_counter
from typing import TYPE_CHECKING, Any

from against_native import capacity, main, parser, uniform
from anyengine import KVCacheConfig

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from against_native import Subject


class Native:
    """vLLM's own engine."""

    def __init__(self, llm: Any, params: Callable[..., Any], kinds: Any, temperature: float) -> None:
        self.llm = llm
        self.params = params
        self.kinds = kinds
        self.temperature = temperature
        self.ids = itertools.count()

    async def _run(self, prompt: list[int], tokens: int, kind: Any) -> tuple[int, float | None]:
        params = self.params(max_tokens=tokens, ignore_eos=True, temperature=self.temperature, output_kind=kind)
        started, first, count = perf_counter(), None, 0
        async for output in self.llm.generate({"prompt_token_ids": prompt}, params, f"native-{next(self.ids)}"):
            first = first or perf_counter() - started
            count += len(output.outputs[0].token_ids)
            assert isinstance(output.outputs[0].text, str)
        return count, first

    async def generate(self, prompt: list[int], tokens: int) -> int:
        """See :class:`against_native.Subject`."""
        return (await self._run(prompt, tokens, self.kinds.FINAL_ONLY))[0]

    async def stream(self, prompt: list[int], tokens: int) -> tuple[int, float | None]:
        """See :class:`against_native.Subject`."""
        return await self._run(prompt, tokens, self.kinds.DELTA)

    async def close(self) -> None:
        """See :class:`against_native.Subject`."""
        self.llm.shutdown()


def native(options: argparse.Namespace) -> Native:
    """The engine itself, loaded; within an event loop."""
    from vllm import AsyncEngineArgs, SamplingParams  # noqa: PLC0415 after the arguments were read
    from vllm.platforms import current_platform  # noqa: PLC0415
    from vllm.sampling_params import RequestOutputKind  # noqa: PLC0415
    from vllm.usage.usage_lib import UsageContext  # noqa: PLC0415
    from vllm.v1.engine.async_llm import AsyncLLM  # noqa: PLC0415

    cuda = current_platform.is_cuda()
    block_size = 16 if cuda else 128
    args = AsyncEngineArgs(
        model=options.model,
        max_model_len=options.context,
        dtype="bfloat16",
        max_num_seqs=options.concurrency,
        generation_config="vllm",
        enforce_eager=options.eager,
        block_size=block_size,
        num_gpu_blocks_override=-(-capacity(options) // block_size) + 1,
        kv_cache_memory_bytes=2**26,
        **({"gpu_memory_utilization": 0.001} if cuda else {}),
    )
    # With the sizes of its server, which the plugin asks for: by itself it takes a quarter as many tokens a step.
    llm = AsyncLLM.from_engine_args(args, usage_context=UsageContext.OPENAI_API_SERVER)
    return Native(llm, SamplingParams, RequestOutputKind, options.temperature)


async def load(options: argparse.Namespace) -> dict[str, Subject]:
    """The three subjects, side by side."""
    ours = await uniform(
        "vllm",
        options,
        kv_cache=KVCacheConfig(capacity_tokens=capacity(options)),
        execution="eager" if options.eager else "auto",
    )
    return {"native": native(options), **ours}


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--eager", action="store_true")
    main("vllm", arguments.parse_args(), load)
