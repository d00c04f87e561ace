"""``anyengine explain``: why two engines answer differently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from anyengine.cli.options import Assignment, merged, require_fields
from anyengine.cli.output import Output, common_options

if TYPE_CHECKING:
    from anyengine.explain import Explanation

__all__ = ["explain"]


@click.command()
@click.argument("first")
@click.argument("second")
@click.argument("prompt")
@click.option("--model", help="For both: a folder, a Hugging Face hub id, or a name that the engines bring.")
@click.option("--chat", is_flag=True, help="Send the prompt as a chat message, through the model's template.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="How far to compare.")
@click.option(
    "-o",
    "--option",
    "both",
    type=Assignment(),
    multiple=True,
    help="A field of EngineConfig for both: -o dtype=float32.",
)
@click.option("--first", "one", type=Assignment(), multiple=True, help="A field of EngineConfig for the first engine.")
@click.option("--second", "other", type=Assignment(), multiple=True, help="The same for the second.")
@common_options
@click.pass_obj
def explain(
    output: Output,
    /,
    first: str,
    second: str,
    prompt: str,
    *,
    model: str | None,
    chat: bool,
    max_tokens: int,
    both: tuple[tuple[str, Any], ...],
    one: tuple[tuple[str, Any], ...],
    other: tuple[tuple[str, Any], ...],
) -> None:
    """Say why the engines FIRST and SECOND answer PROMPT differently, if they do.

    Both decode greedily. Compared are the model, the chat template, the prompt's tokens, the tokens that end a text,
    and then the first token at which the texts part, with both engines' scores there: a near-tie, or a defect.
    """
    import anyio  # noqa: PLC0415 heavy for `--help`

    from anyengine.engine import Engine  # noqa: PLC0415
    from anyengine.explain import explain as explanation  # noqa: PLC0415

    base = {} if model is None else {"model": model}
    content: Any = [{"role": "user", "content": prompt}] if chat else prompt

    fields, others = (require_fields(merged(dict(base), [*both, *own])) for own in (one, other))

    async def run() -> Explanation:
        with output.working(f"loading {first} and {second}"):
            async with (
                Engine.load(first, **fields) as engine,
                Engine.load(second, **others) as against,
            ):
                return await explanation(engine, against, content, max_tokens=max_tokens)

    found = anyio.run(run)
    if output.json:
        output.document(found)
        return
    rows = [[f.topic, {True: "same", False: "differs", None: "unknown"}[f.same], f.detail] for f in found.findings]
    output.table(("COMPARED", "", "WHAT"), rows)
    for name, text in zip(found.engines, found.texts, strict=True):
        output.text(f"{name}: {text!r}")
    output.text(f"{found.verdict}: {found.summary}")
