"""Which detection stands beside which box: all pairs of a table in pieces of bounded size, and the best of each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# About 150 bytes a pair with its boxes and overlaps: tens of MB at a time, however large the tables are.
_PAIRS = 1 << 18


def pairs(keys: np.ndarray, box_keys: np.ndarray, limit: int = _PAIRS) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every detection with every box of the same key, for instance of the same image.

    Args:
        keys: [n] int64, of the detections.
        box_keys: [m] int64, of the boxes.
        limit: a piece holds about so many pairs, and always all of each detection in it.

    Yields:
        [p] rows of `keys` ascending, and [p] rows of `box_keys` ascending within a detection. Detections without a box
        of their key appear nowhere.
    """
    by_key = np.argsort(box_keys, kind="stable")
    low = np.searchsorted(box_keys[by_key], keys, side="left")
    counts = np.searchsorted(box_keys[by_key], keys, side="right") - low
    ends = np.cumsum(counts)
    start = 0
    while start < len(keys):
        done = ends[start] - counts[start]
        stop = max(int(np.searchsorted(ends, done + limit, side="right")), start + 1)
        piece = counts[start:stop]
        if piece.any():
            first = np.cumsum(piece) - piece
            steps = np.arange(piece.sum()) + np.repeat(low[start:stop] - first, piece)
            yield np.repeat(np.arange(start, stop), piece), by_key[steps]
        start = stop


def best(group: np.ndarray, value: np.ndarray) -> np.ndarray:
    """[g] the place of the largest value in each group, the first of equal ones.

    Args:
        group: [p] whole numbers from 0, equal ones side by side.
        value: [p].
    """
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    if not len(starts):
        return starts
    lengths = np.diff(np.append(starts, len(group)))
    largest = np.repeat(np.maximum.reduceat(value, starts), lengths)
    return np.minimum.reduceat(np.where(value == largest, np.arange(len(group)), len(group)), starts)
