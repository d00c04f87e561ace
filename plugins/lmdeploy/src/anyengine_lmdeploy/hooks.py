"""What is done to the logits on the PyTorch backend, where LMDeploy has no parameter for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anyengine.request import SamplingParams

__all__ = ["LogitsHook", "logits_hook"]


class LogitsHook:
    """Adds a bias, then rules out what is not allowed; one of LMDeploy's ``logits_processors``.

    LMDeploy calls it before its own steps, with a row of logits [vocab] on the device. The tokens so far, which come
    with it, are not used: where requests join a batch LMDeploy pads them in places that cannot be told.

    Args:
        torch: the module.
        bias: token id → number that is added to its logit.
        allowed: the only tokens that may be drawn; None for all.
    """

    def __init__(self, torch: Any, bias: dict[int, float] | None, allowed: tuple[int, ...] | None) -> None:
        self._torch = torch
        self._bias = bias
        self._allowed = allowed
        self._tensors: tuple[Any, Any, Any] | None = None

    def __call__(self, token_ids: Any, logits: Any) -> Any:
        """Edit one row; returns it."""
        del token_ids
        if self._tensors is None:
            self._tensors = self._made(logits)
        biased, bias, ruled_out = self._tensors
        if biased is not None:
            logits = logits.index_add(0, biased, bias)
        if ruled_out is not None:
            logits = logits.masked_fill(ruled_out, float("-inf"))
        return logits

    def _made(self, logits: Any) -> tuple[Any, Any, Any]:
        torch, device = self._torch, logits.device
        biased = bias = ruled_out = None
        if self._bias:
            biased = torch.tensor(list(self._bias), device=device)
            bias = torch.tensor(list(self._bias.values()), dtype=logits.dtype, device=device)
        if self._allowed is not None:
            ruled_out = torch.ones(logits.shape[-1], dtype=torch.bool, device=device)
            ruled_out[torch.tensor(self._allowed, device=device)] = False
        return biased, bias, ruled_out


def logits_hook(torch: Any, sampling: SamplingParams) -> LogitsHook | None:
    """What a request needs, None for nothing."""
    if not sampling.logit_bias and sampling.allowed_token_ids is None:
        return None
    allowed = None if sampling.allowed_token_ids is None else tuple(sampling.allowed_token_ids)
    return LogitsHook(torch, dict(sampling.logit_bias or {}), allowed)
