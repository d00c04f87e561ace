"""Prometheus' text format as numbers and histograms of anyengine."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from anyengine.stats import Histogram
from prometheus_client.parser import text_string_to_metric_families

from anyengine_server.errors import MalformedAnswer

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Metrics"]


class Metrics:
    """One scrape.

    Args:
        text: as ``/metrics`` answers.

    Raises:
        MalformedAnswer: it is no such text.
    """

    def __init__(self, text: str) -> None:
        self._samples: defaultdict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    self._samples[sample.name].append((sample.labels, sample.value))
        except (ValueError, KeyError, IndexError) as error:
            raise MalformedAnswer(f"the server's metrics cannot be read: {error}") from error

    def number(self, name: str, **labels: str) -> float | None:
        """The sum of a metric's samples with these labels; None if there is none."""
        found = [value for own, value in self._samples.get(name, ()) if labels.items() <= own.items()]
        return math.fsum(found) if found else None

    def count(self, name: str, **labels: str) -> int | None:
        """The same as a whole number."""
        value = self.number(name, **labels)
        return None if value is None or not math.isfinite(value) else round(value)

    def by_label(self, name: str, label: str) -> dict[str, int]:
        """The samples of a metric by the value of a label."""
        found: defaultdict[str, float] = defaultdict(float)
        for own, value in self._samples.get(name, ()):
            found[own.get(label, "")] += value
        return {key: round(value) for key, value in found.items()}

    def labels(self, name: str) -> Mapping[str, str]:
        """The labels of a metric's first sample; none if there is none."""
        found = self._samples.get(name)
        return found[0][0] if found else {}

    def histogram(self, name: str) -> Histogram | None:
        """A histogram, all label sets together; None where there are no buckets."""
        cumulative: defaultdict[float, float] = defaultdict(float)
        for own, value in self._samples.get(f"{name}_bucket", ()):
            cumulative[float(own["le"])] += value
        bounds = sorted(cumulative)
        if not bounds or not math.isinf(bounds[-1]):
            return None
        totals = [round(cumulative[bound]) for bound in bounds]
        counts = [total - before for total, before in zip(totals, [0, *totals], strict=False)]
        return Histogram(bounds=tuple(bounds[:-1]), counts=counts, sum=self.number(f"{name}_sum") or 0.0)

    def native(self, prefix: str) -> dict[str, Any]:
        """Every metric whose name begins so, without buckets: a number, or one by its labels."""
        found: dict[str, Any] = {}
        for name, samples in self._samples.items():
            if not name.startswith(prefix) or name.endswith(("_bucket", "_created")):
                continue
            if len(samples) == 1 and not samples[0][0]:
                found[name] = samples[0][1]
            else:
                found[name] = {",".join(f"{k}={v}" for k, v in sorted(own.items())): value for own, value in samples}
        return found
