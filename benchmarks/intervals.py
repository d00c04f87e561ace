"""What many noisy values say: an estimate, and the interval that holds it with 95% confidence."""

from __future__ import annotations

import math
import statistics

#: Two-sided 95% of a normal distribution.
_Z = 1.959964


def interval(values: list[float]) -> dict[str, float]:
    """Median with the order statistics that hold it with at least 95% confidence (binomial, n values).

    Of fewer than six values these are the lowest and the highest, which hold it less often: of four in 87.5%.
    """
    ordered = sorted(values)
    n = len(ordered)
    # Largest k with P(Binomial(n, 1/2) < k) <= 2.5%, counted in outcomes of 2^n: a float has no shares so small.
    outcomes, k, exactly, most = 0, 0, 1, 2**n // 40
    while k < n // 2 and outcomes + exactly <= most:
        outcomes += exactly
        k += 1
        exactly = exactly * (n - k + 1) // k
    low = max(0, k - 1)
    return {"median": statistics.median(ordered), "low": ordered[low], "high": ordered[n - 1 - low]}


def pseudomedian(ratios: list[float]) -> dict[str, float]:
    """Hodges and Lehmann's estimate of the median, with the interval of Wilcoxon's signed-rank test; all above 0.

    The median of the geometric means of all pairs of values, each with itself among them. It is that of the values
    where their logarithms scatter evenly to both sides, as those of two speeds taken in turn do, and then needs two
    thirds of the values that the median needs for an interval of the same width; single outliers move it little.

    Source: Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 3.1 to 3.3 (large-sample interval).
    """
    logs = [math.log(value) for value in ratios]
    n = len(logs)
    means = sorted((logs[i] + logs[j]) / 2 for i in range(n) for j in range(i, n))
    mean, deviation = n * (n + 1) / 4, math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    outside = max(0, int(mean - _Z * deviation) - 1)  # of fewer than seven values all are within
    found = (statistics.median(means), means[outside], means[-1 - outside])
    return dict(zip(("median", "low", "high"), map(math.exp, found), strict=True))
