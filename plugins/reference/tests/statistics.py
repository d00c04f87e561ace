"""Pearson's chi-square test, without SciPy."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

#: A cell that expects less is pooled with the next: the approximation needs it (Cochran 1954).
LEAST_EXPECTED = 5.0


def p_value(draws: Iterable[Hashable], probabilities: Mapping[Hashable, float]) -> float:
    """The probability of a deviation at least as large, if the draws come from the distribution; 0 outside its support.

    Upper tail of chi-square by Wilson and Hilferty (1931): the cube root of chi-square over its degrees of freedom is
    nearly normal. Good to a few per cent in the tails that are asked for here.
    """
    counts = Counter(draws)
    total = sum(counts.values())
    if any(probabilities.get(outcome, 0.0) <= 0 for outcome in counts):
        return 0.0
    cells: list[tuple[float, float]] = []
    pooled_seen = pooled_expected = 0.0
    for outcome, probability in sorted(probabilities.items(), key=lambda item: item[1]):
        pooled_seen += counts[outcome]
        pooled_expected += total * probability
        if pooled_expected >= LEAST_EXPECTED:
            cells.append((pooled_seen, pooled_expected))
            pooled_seen = pooled_expected = 0.0
    if len(cells) < 2:
        return 1.0
    last_seen, last_expected = cells.pop()
    cells.append((last_seen + pooled_seen, last_expected + pooled_expected))
    freedom = len(cells) - 1
    chi_square = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    spread = 2 / (9 * freedom)
    z = ((chi_square / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return 0.5 * math.erfc(z / math.sqrt(2))
