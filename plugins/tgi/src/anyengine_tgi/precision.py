"""TGI keeps the numbers of sampling in the type of the weights, 16 bits: one next to its neutral value becomes that.

After ``server/text_generation_server/utils/logits_process.py``: temperature, ``top_p`` (1 minus it) and
``repetition_penalty`` are tensors of that type, as the logits are.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from anyengine.errors import UnsupportedParameter

if TYPE_CHECKING:
    from anyengine.request import SamplingParams

__all__ = ["check_precision", "rounded"]

#: Below this a division in 16 bits overflows.
_LOWEST_TEMPERATURE = 0.001
#: Numbers that do nothing when they are 1.
_NEUTRAL_AT_1 = ("temperature", "top_p", "repetition_penalty")


def rounded(value: float, dtype: str) -> float:
    """A number as ``bfloat16`` or ``float16`` has it: the nearest, an even one of two."""
    if dtype == "float16":
        return float(struct.unpack("<e", struct.pack("<e", value))[0])
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    even = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return float(struct.unpack("<f", struct.pack("<I", even))[0])


def check_precision(sampling: SamplingParams, dtype: str | None) -> None:
    """Refuse numbers of which 16 bits leave nothing.

    Args:
        sampling: of a request.
        dtype: that TGI computes in; where it is not known, the coarser is meant.

    Raises:
        UnsupportedParameter: names the field.
    """
    if 0 < sampling.temperature < _LOWEST_TEMPERATURE:
        raise UnsupportedParameter(
            f"sampling.temperature: {sampling.temperature} is too small for TGI's 16 bits; give 0, or at least "
            f"{_LOWEST_TEMPERATURE}",
            field="sampling.temperature",
        )
    kind = dtype or "bfloat16"
    for name in _NEUTRAL_AT_1:
        value: float = getattr(sampling, name)
        # Beyond 2 nothing is near 1, and float16 has no room for every number.
        if value != 1 and value < 2 and rounded(value, kind) == 1:  # noqa: PLR2004 as the comment says
            raise UnsupportedParameter(
                f"sampling.{name}: {value} is 1 in {kind}, in which TGI keeps it, and would do nothing; give 1, or one "
                "further from it",
                field=f"sampling.{name}",
            )
