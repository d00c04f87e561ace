"""Quantised checkpoints in the engines that load them: what each costs there, and how fast it is.

    python benchmarks/quantized.py SOURCE CHECKPOINT… --engine reference --engine vllm@vllm-cpu --write

For each engine the float source is loaded first, and then every checkpoint that the engine declares: the drift is that
of the engine's quantised scores from its own float ones, on the built-in held-out texts; with ``--speed`` also how fast
one batch of greedy answers is, as a ratio to the float model in the same run. With ``--write`` the rows are put into
``results/quantization.json``, from which ``docs/quantization.md`` marks what was measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from anyengine import AnyEngineError, Engine, SamplingParams
from anyengine.hub import read_config
from anyengine.quantization import compare, held_out_texts, read_manifest, read_stored, scores_of

if TYPE_CHECKING:
    from anyengine import TokenLogprobs

RESULTS = Path(__file__).parents[1] / "results" / "quantization.json"
PROMPTS = [text[:80] for text in held_out_texts()]


async def measured(
    engine: str, model: str, config: dict[str, Any], tokens: int | None
) -> tuple[list[list[TokenLogprobs]], float, dict[str, Any]]:
    """Scores of the held-out texts, tokens a second of a batch (0 where none are asked for), and what was loaded."""
    name, _, environment = engine.partition("@")
    options = {"environment": environment, **config} if environment else config
    async with Engine.load(name, model=model, **options) as live:
        scores = await scores_of(live, held_out_texts())
        greedy = SamplingParams(temperature=0)
        await live.generate(PROMPTS[:1], sampling=greedy, max_tokens=8, ignore_eos=True)  # warm
        speed = 0.0
        if tokens is not None:
            begun = time.perf_counter()
            answers = await live.generate(PROMPTS, sampling=greedy, max_tokens=tokens, ignore_eos=True)
            speed = sum(len(answer.token_ids) for answer in answers) / (time.perf_counter() - begun)
        facts = {"engine": name, "device": live.info.device, "dtype": live.info.dtype}
        if "backend" in config.get("native", {}):  # of an engine that has several
            facts["backend"] = config["native"]["backend"]
    return scores, speed, facts


async def rows(
    engine: str, source: str, checkpoints: list[str], config: dict[str, Any], tokens: int | None, against: str | None
) -> list[dict[str, Any]]:
    """A row for each checkpoint that the engine takes; what it refuses is printed."""
    if against is None:
        exact, base, _ = await measured(engine, source, config, tokens)
    else:
        exact, base, _ = await measured(against, source, {}, None)
    found: list[dict[str, Any]] = []
    for checkpoint in checkpoints:
        folder = Path(checkpoint)
        stored, manifest = read_stored(folder, read_config(folder)), read_manifest(folder)
        assert stored is not None
        assert manifest is not None
        try:
            scores, speed, facts = await measured(engine, checkpoint, config, tokens)
        except AnyEngineError as error:
            print(f"{engine}: {folder.name}: {type(error).__name__}: {error.message}")
            continue
        drift = compare(exact, scores)
        timed = {} if tokens is None else {"speed": speed / base, "float_tokens_per_second": base}
        print(f"{engine}: {folder.name}: {drift} {timed}", flush=True)
        found.append({
            **facts,
            "made_by": manifest.engine,
            "made_as": manifest.scheme,
            "model": manifest.source.model,
            "against": against or facts["engine"],
            "method": stored.method,
            "format": stored.format,
            "scheme": ", ".join(stored.schemes),
            "drift": msgspec.to_builtins(drift),
            **timed,
            "machine": platform.machine(),
            "date": datetime.now(UTC).date().isoformat(),
        })  # fmt: skip
    return found


def key(row: dict[str, Any]) -> tuple[str, ...]:
    """What a newer row takes the place of."""
    return tuple(str(row.get(name)) for name in ("engine", "backend", "device", "dtype", "model", "made_by", "made_as"))


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="the float checkpoint")
    parser.add_argument("checkpoints", nargs="+", help="made of it by Engine.quantize")
    parser.add_argument("--engine", action="append", required=True, help="NAME, or NAME@ENVIRONMENT")
    parser.add_argument("--config", default="{}", help="fields of EngineConfig, as JSON")
    parser.add_argument("--speed", type=int, metavar="TOKENS", help="also time answers of so many tokens")
    parser.add_argument("--against", help="engine whose float scores are the measure, instead of each one's own")
    parser.add_argument("--write", action="store_true", help=f"put the rows into {RESULTS.name}")
    options = parser.parse_args()
    if options.against is not None and options.speed is not None:
        parser.error("--speed is relative to the engine's own float model; leave --against out")
    made: list[dict[str, Any]] = []
    for engine in options.engine:
        made += asyncio.run(
            rows(
                engine, options.source, options.checkpoints, json.loads(options.config), options.speed, options.against
            )
        )
    if options.write:
        old = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else []
        kept = {key(row): row for row in [*old, *made]}
        RESULTS.write_text(json.dumps([kept[name] for name in sorted(kept)], indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
