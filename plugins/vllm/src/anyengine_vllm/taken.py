"""What vLLM made of what was asked for: some of it it overrides, with no more than a line in its log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anyengine_vllm.checks import unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["check_taken", "dtype_of"]


def dtype_of(vllm_config: Any) -> str:
    """What the model is computed in, by its name."""
    return str(vllm_config.model_config.dtype).removeprefix("torch.")


def check_taken(sent: Mapping[str, Any], vllm_config: Any) -> None:
    """Refuse what vLLM would compute otherwise than it was told.

    Args:
        sent: the arguments that it was given.
        vllm_config: what it made of them.

    Raises:
        UnsupportedParameter: names the field, and says what vLLM would do.
    """
    wanted, given = sent["dtype"], dtype_of(vllm_config)
    if wanted not in {"auto", given}:
        raise unsupported("dtype", f"vLLM computes this model in {given} here, not in {wanted}", {given})
