"""Adapters: in one batch each request has its own, or none, and none of another's.

The suite draws two low-rank adapters of the subject's checkpoint, and merges each into a copy of the weights; the
oracle scores those. So answers are judged as in `parity`: each token against the model that the request named.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from anyengine.backend.weights import reads_safetensors

from anyengine_conformance import adapters
from anyengine_conformance.at_once import together
from anyengine_conformance.check import OWN, check, family
from anyengine_conformance.families import _kinds as kinds
from anyengine_conformance.families._forced import answer_of, forced

if TYPE_CHECKING:
    from anyengine import Completion

    from anyengine_conformance.context import Context

family("adapters", "Adapters")

_LENGTH = 12
_NAMES = ("first", "second")


@check(
    "adapters.side-by-side",
    must="Requests with an adapter, another one and none, side by side, each get their own model's best tokens.",
    advice="the adapter belongs to a row of the batch: a row without one adds nothing, whatever lies in the slots; and "
    "blocks of the prefix cache are of one adapter",
    needs=("config.lora", "sampling.temperature"),
    tolerance="near-ties of the data type, as in parity",
    variant=OWN,
    deadline=180,
    tier="extension",
)
async def side_by_side(t: Context) -> None:
    if not reads_safetensors(t.weights):
        raise t.skip(f"the suite makes adapters in safetensors, and the engine reads {' or '.join(t.weights)}")
    source = await t.source()
    with tempfile.TemporaryDirectory() as place:
        folders = {name: Path(place) / name for name in _NAMES}
        if not all(adapters.make_adapter(source, folder, seed) for seed, folder in enumerate(folders.values())):
            raise t.skip("the model has no q_proj and v_proj in safetensors, of which the suite makes adapters")
        lora = {
            "adapters": {name: str(folder) for name, folder in folders.items()},
            "max_rank": adapters.RANK,
            "max_loras": len(folders),
        }
        async with t.load(lora=lora):
            # Twice the same prompts, with another adapter each time: what is cached of the first time is of no use.
            for shift in range(2):
                await _judge(t, source, folders, shift)


async def _judge(t: Context, source: Path, folders: dict[str, Path], shift: int) -> None:
    names = [*folders, None]
    prompts = kinds.DISTINCT[:9]
    chosen = [names[(place + shift) % len(names)] for place in range(len(prompts))]
    t.asked(f"{len(prompts)} times engine.generate(…, max_tokens={_LENGTH}) at once, lora={chosen}")
    calls = (
        answer_of(t, prompt, max_tokens=_LENGTH, sampling=t.greedy, **({"lora": name} if name else {}))
        for prompt, name in zip(prompts, chosen, strict=True)
    )
    answers = list(zip(chosen, await together(calls), strict=True))
    for name in names:
        of_it = [answer for chose, answer in answers if chose == name]
        await _hold(t, source, None if name is None else folders[name], of_it)


async def _hold(t: Context, source: Path, adapter: Path | None, answers: list[Completion]) -> None:
    """Each token is the best one of the model with that adapter merged into its weights."""
    if adapter is None:
        for answer in answers:
            await forced(t, answer, what="of a request without adapter", max_tokens=_LENGTH)
        return
    merged = adapter.with_name(f"{adapter.name}-merged")
    if not merged.exists():
        adapters.merge(source, adapter, merged)
    async with t.oracle_of(merged) as oracle:
        for answer in answers:
            what = f"of a request with the adapter {adapter.name!r}"
            await forced(t, answer, what=what, max_tokens=_LENGTH, oracle=oracle)
