"""Encoded documents, packed into rows of one length."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np


class Documents:
    """Token ids of many documents, one after another, and where each begins."""

    def __init__(self, path: Path) -> None:
        """Load what tokenizer.py wrote."""
        stored = np.load(path)
        self.ids: np.ndarray = stored["ids"]
        self.starts: np.ndarray = stored["starts"]
        self.lengths = np.diff(np.append(self.starts, len(self.ids)))

    def rows(self, length: int, seed: int | None = None) -> np.ndarray:
        """Pack the documents into rows of `length` + 1 ids, in an order drawn from the seed.

        Every row begins with the beginning of a document, as texts do when the model is used; its last document is
        cut off at the end of the row.
        """
        count = len(self.starts)
        order = np.arange(count) if seed is None else np.random.default_rng(seed).permutation(count)
        lengths = self.lengths[order]
        begins = np.cumsum(lengths) - lengths
        stream = self.ids[np.repeat(self.starts[order] - begins, lengths) + np.arange(len(self.ids))]
        first, firsts = 0, []
        while first + length < len(stream):
            firsts.append(first)
            following = int(np.searchsorted(begins, first + length))
            if following == count:
                break
            first = int(begins[following])
        return stream[np.asarray(firsts)[:, None] + np.arange(length + 1)]

    def batches(self, rows: int, length: int, seed: int) -> Iterator[np.ndarray]:
        """Yield batches of rows without end: all documents again and again, in a new order each time."""
        epoch = 0
        while True:
            packed = self.rows(length, seed + epoch)
            for first in range(0, len(packed) - rows + 1, rows):
                yield packed[first : first + rows]
            epoch += 1
