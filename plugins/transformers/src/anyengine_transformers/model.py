"""A causal language model of transformers: token ids in, rows of logits out. Only this module computes with torch.

Each text is computed alone, as a batch of one without padding. So what a model makes of a text depends on nothing that
is computed beside it, and no architecture has to get padding or batching right.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anyengine.errors import UnsupportedParameter

from anyengine_transformers import libraries

if TYPE_CHECKING:
    from collections.abc import Generator

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CausalLM", "Text"]

#: Tokens of the trial at load; the last one is exchanged to see whether those before it notice.
_TRIAL, _OTHER = [0, 1, 2, 3, 4, 5], 6
#: How far two computations of the same logits may be apart, as a share of the largest: rounding, in each type.
_ROUNDING = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}


class CausalLM:
    """A loaded model. Used by one thread at a time.

    Args:
        module: ``transformers.PreTrainedModel``, on its device, in evaluation mode.
        device: ``cpu`` or ``cuda``.
        dtype: of its weights.

    Attributes:
        vocab_size: length of a row of logits.
        keeps_cache: whether keys and values are kept between tokens. If not, everything is computed again for each.

    Raises:
        UnsupportedParameter: its tokens depend on later ones, so it is no causal language model.
    """

    def __init__(self, module: Any, device: str, dtype: str) -> None:
        self._torch = libraries.torch()
        self._module = module
        self._device = device
        self._tolerance = _ROUNDING[dtype]
        self._body = module.base_model
        parameters = inspect.signature(module.forward).parameters
        # Logits of chosen positions only, from a body that ran once: what both need, most architectures have.
        self._selects = "logits_to_keep" in parameters and self._body is not module
        self._takes_mask = "attention_mask" in parameters
        # transformers 5.24 renamed what it takes and gives, architecture by architecture.
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self.keeps_cache = False
        self.vocab_size = self._try_out()
        self.keeps_cache = self._proves_cache()

    def text(self) -> Text:
        """An empty text, to be fed."""
        return Text(self)

    def release(self) -> None:
        """Give memory that no text holds any more back to the device."""
        if self._device == "cuda":
            self._torch.cuda.empty_cache()

    def run(
        self, token_ids: list[int], *, length: int, cache: Any = None, keep: Any = None, body: list[Any] | None = None
    ) -> Any:
        """One forward pass; the module's own output.

        Args:
            token_ids: what is new.
            length: of the whole text, ``token_ids`` included.
            cache: of what stands before them.
            keep: which logits are wanted: the last so many, or a tensor of positions. None: of all positions.
            body: takes the output of the model's body, without the layer that makes logits.
        """
        torch = self._torch
        options: dict[str, Any] = {"use_cache": self.keeps_cache}
        if cache is not None:
            options[self._cache_name] = cache
        if self._takes_mask:
            options["attention_mask"] = torch.ones((1, length), dtype=torch.long, device=self._device)
        if keep is not None and self._selects:
            options["logits_to_keep"] = keep
        hook: Any = None
        if body is not None:

            def take(_module: Any, _inputs: Any, output: Any) -> None:
                body.append(output)

            hook = self._body.register_forward_hook(take)
        try:
            with torch.inference_mode():
                return self._module(input_ids=torch.tensor([token_ids], device=self._device), **options)
        finally:
            if hook is not None:
                hook.remove()

    def rows(self, token_ids: list[int], body: Any, first: int, last: int) -> NDArray[np.float32]:
        """Logits at the positions ``first`` to ``last`` of a text whose body was computed before."""
        keep = self._torch.arange(first, last, device=self._device)
        with self._standing_in(body):
            return self.numbers(self.run(token_ids, length=len(token_ids), keep=keep).logits[0])

    @contextmanager
    def _standing_in(self, output: Any) -> Generator[None]:
        """Let the body answer with what it computed before.

        What lies behind it differs by architecture (scales, caps, a layer with or without a bias), so the module's own
        ``forward`` runs, not a copy of its last lines.
        """
        attributes: dict[str, Any] = self._body.__dict__
        own = attributes.get("forward")

        def answer(*_: Any, **__: Any) -> Any:
            return output

        attributes["forward"] = answer
        try:
            yield
        finally:
            del attributes["forward"]
            if own is not None:
                attributes["forward"] = own

    def cache_of(self, output: Any) -> Any:
        """The keys and values that a pass has left; None where the architecture has none."""
        return getattr(output, self._cache_name, None)

    def numbers(self, logits: Any) -> NDArray[np.float32]:
        """Logits as float32, on the host."""
        return logits.float().cpu().numpy()

    @property
    def selects(self) -> bool:
        """Whether :meth:`rows` works; if not, a pass makes the logits of all its positions."""
        return self._selects

    def _try_out(self) -> int:
        """Run once: proves that the model runs and is causal; returns the length of a row."""
        logits = self.run(_TRIAL, length=len(_TRIAL)).logits[0]
        other = self.run([*_TRIAL[:-1], _OTHER], length=len(_TRIAL)).logits[0]
        if self._apart(logits[:-1], other[:-1]):
            raise UnsupportedParameter(
                "model: its tokens depend on those that come after them; it is no causal language model", field="model"
            )
        return int(logits.shape[-1])

    def _proves_cache(self) -> bool:
        """Whether a text continued from kept keys and values gets the logits that it gets as a whole."""
        whole = self.run(_TRIAL, length=len(_TRIAL)).logits[0]
        self.keeps_cache = True
        half = len(_TRIAL) // 2
        begun = self.run(_TRIAL[:half], length=half)
        cache = self.cache_of(begun)
        if cache is None:
            return False  # an architecture with a state of another kind
        for position in range(half, len(_TRIAL)):
            step = self.run([_TRIAL[position]], length=position + 1, cache=cache)
            if self._apart(step.logits[0, -1], whole[position]):
                return False
        return True

    def _apart(self, one: Any, other: Any) -> bool:
        # Not a number is no proof of anything: the request that meets it says so.
        return bool(((one - other).abs().max() > self._tolerance * other.abs().max()).item())


class Text:
    """What the model remembers of one text.

    Attributes:
        held: tokens whose keys and values are kept.
    """

    def __init__(self, model: CausalLM) -> None:
        self._model = model
        self._cache: Any = None
        self._body: Any = None
        self._tokens: list[int] = []
        self.held = 0

    def feed(self, token_ids: list[int], *, all_rows: bool = False) -> NDArray[np.float32]:
        """Go on by some tokens.

        Args:
            token_ids: at least one.
            all_rows: keep what :meth:`rows` needs; at the beginning of a text only.

        Returns:
            float32 [vocab]: logits of the token that comes next.
        """
        self._tokens += token_ids
        body: list[Any] | None = [] if all_rows and self._model.selects else None
        new = token_ids if self._model.keeps_cache else self._tokens
        keep = None if all_rows and body is None else 1
        output = self._model.run(new, length=len(self._tokens), cache=self._cache, keep=keep, body=body)
        if self._model.keeps_cache:
            self._cache = self._model.cache_of(output)
            self.held = len(self._tokens)
        if all_rows:
            self._body = body[0] if body else output.logits[0]
        return self._model.numbers(output.logits[0, -1])

    def rows(self, first: int, last: int) -> NDArray[np.float32]:
        """Logits after each of the tokens ``first`` to ``last``, float32 [last - first, vocab]."""
        if self._model.selects:
            return self._model.rows(self._tokens, self._body, first, last)
        return self._model.numbers(self._body[first:last])

    def forget_rows(self) -> None:
        """Let go of what :meth:`rows` needs."""
        self._body = None
