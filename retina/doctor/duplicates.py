"""Equal and nearly equal images: equal bytes, and perceptual hashes that differ in a few bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

# 128 bits in 12 chunks: two hashes that differ in at most 11 bits have an equal chunk. On BCCD, COCO and VOC
# photographs the nearest unrelated images differed in 25 bits or more, and the same photograph at JPEG quality 40 or at
# 0.5 or 1.37 times the size in 10 at most.
MOST_BITS = 11
_CHUNKS = 12
_GRID, THUMBNAIL = 9, 16
# Nearly uniform images have no differences to compare; their thumbnails decide.
_UNIFORM = 2.0
_SAME_PATTERN = 0.95
_AT_ONCE = 1_000_000
_PATTERNS_AT_ONCE = 4096
# Of rows with an equal chunk up to `_FEW` are compared directly; of more, `_LEADERS` are first compared with all.
_FEW, _LEADERS = 256, 64
# This many rows with an equal chunk are compared pair by pair in a second or two.
MOST_AT_ONCE = 20_000
# An image is first thinned out to about this many pixels a side: means of cells don't need more.
_THINNED = 288


class Groups(NamedTuple):
    """Groups of at least two ascending rows, in the order of their first row; `capped`: more rows were similar than are
    compared pair by pair, so that some may be missing."""

    rows: list[list[int]]
    capped: bool


class _Table(NamedTuple):
    """Columns of n rows: hashes [n,2] uint64, thumbnails [n,256] uint8 and the `parents` [n] int64 of their groups,
    which are changed in place; `keys` [c,n] are the chunks by which rows were compared before."""

    words: np.ndarray
    thumbnails: np.ndarray
    parents: np.ndarray
    keys: np.ndarray


def fingerprint(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the fingerprint of an image, which survives recompression and resizing.

    The hash is dHash (Krawetz 2013, "Kind of Like That"), along rows and along columns: whether each of 8 x 8 cells is
    brighter than its neighbour.

    Args:
        image: uint8 [H,W,3].

    Returns:
        hash bits [128] bool, and the thumbnail [256] uint8 (16 x 16 mean greys).
    """
    image = image[tuple(slice(None, None, max(1, side // _THINNED)) for side in image.shape[:2])]
    grey = image[..., 0].astype(np.uint16) + 2 * image[..., 1].astype(np.uint16) + image[..., 2]
    cells = _means(grey, _GRID)
    bits = np.concatenate([(cells[:-1, 1:] > cells[:-1, :-1]).ravel(), (cells[1:, :-1] > cells[:-1, :-1]).ravel()])
    return bits, np.round(_means(grey, THUMBNAIL) / 4).astype(np.uint8).ravel()


def equal_groups(digests: Sequence[bytes | None]) -> list[list[int]]:
    """Return groups of at least two rows with equal digests, in the order of their first row; None equals nothing."""
    groups: dict[bytes, list[int]] = {}
    for row, digest in enumerate(digests):
        if digest is not None:
            groups.setdefault(digest, []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def near_groups(bits: np.ndarray, thumbnails: np.ndarray, most: int = MOST_AT_ONCE) -> Groups:
    """Return groups of rows that are nearly the same picture: the hashes of two such rows differ in at most `MOST_BITS`
    and their thumbnails agree; such pairs connect a group, as the frames of a film are connected by their neighbours.

    Rows are compared if a chunk of their hashes is equal. A few rows are compared with all others first, which joins
    large groups; then all pairs that are not in the same group yet.

    Args:
        bits: [n,128] bool.
        thumbnails: [n,256] uint8.
        most: where a chunk is equal in more rows than this, one row of each group so far represents its group, and at
            most this many of these are compared; `Groups.capped` says that this happened.
    """
    words = np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint64)
    chunks = np.array_split(np.arange(bits.shape[1]), _CHUNKS)
    keys = np.array([bits[:, chunk] @ (1 << np.arange(len(chunk))) for chunk in chunks], np.int16)
    parents, capped = np.arange(len(words)), False
    for number, key in enumerate(keys):
        table = _Table(words, thumbnails, parents, keys[:number])
        for rows in _buckets(key):
            if len(rows) > _FEW:
                _join_by_leaders(table, rows)
            if len(rows) > most:
                rows = rows[np.unique(_roots(parents, rows), return_index=True)[1]]
                capped = capped or len(rows) > 1
            _join_all(table, rows[:most])
    roots = _roots(parents, np.arange(len(words)))
    order = np.argsort(roots, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(roots[order])) + 1)
    return Groups([part.tolist() for part in parts if len(part) > 1], capped)


def _means(grey: np.ndarray, cells: int) -> np.ndarray:
    """[cells, cells] float64 means of a [H,W] image, whose sides may be smaller than `cells`."""
    edges = [np.linspace(0, side, cells + 1) for side in grey.shape]
    starts = [np.minimum(edge[:-1].astype(int), side - 1) for edge, side in zip(edges, grey.shape, strict=True)]
    stops = [np.maximum(edge[1:].astype(int), start + 1) for edge, start in zip(edges, starts, strict=True)]
    whole = np.zeros((grey.shape[0], grey.shape[1] + 1), np.int64)
    np.cumsum(grey, axis=1, out=whole[:, 1:])
    columns = whole[:, stops[1]] - whole[:, starts[1]]
    above = np.zeros((grey.shape[0] + 1, cells), np.int64)
    np.cumsum(columns, axis=0, out=above[1:])
    sums = above[stops[0]] - above[starts[0]]
    return sums / ((stops[0] - starts[0])[:, None] * (stops[1] - starts[1])[None])


def _buckets(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows that share a key, at least two at a time."""
    order = np.argsort(keys, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
        if len(rows) > 1:
            yield rows


def _join_by_leaders(table: _Table, rows: np.ndarray) -> None:
    """Join to each of a few rows all rows near it: this connects large groups in time that is linear in `rows`."""
    rest = rows
    for _ in range(_LEADERS):
        leader = rest[:1]
        _join(table, leader, rows)
        rest = rest[_roots(table.parents, rest) != _roots(table.parents, leader)]
        if not len(rest):
            return


def _join_all(table: _Table, rows: np.ndarray) -> None:
    """Join all pairs of `rows` that are near."""
    start = 0
    while start < len(rows) - 1:
        step = max(1, _AT_ONCE // (len(rows) - start))
        _join(table, rows[start : start + step], rows[start:])
        start += step


def _join(table: _Table, first: np.ndarray, second: np.ndarray) -> None:
    """Join each row of `first` to those of `second` that are near and in another group."""
    ours, theirs = _roots(table.parents, first), _roots(table.parents, second)
    if (ours[0] == ours).all() and (ours[0] == theirs).all():
        return
    different = np.bitwise_count(table.words[first, None, 0] ^ table.words[None, second, 0])
    different += np.bitwise_count(table.words[first, None, 1] ^ table.words[None, second, 1])
    candidate = (different <= MOST_BITS) & (ours[:, None] != theirs[None])
    across, down = candidate.any(axis=0), candidate.any(axis=1)
    if not across.any():
        return
    first, second, candidate = first[down], second[across], candidate[np.ix_(down, across)]
    for key in table.keys:
        candidate &= key[first, None] != key[None, second]
    near = _same_pattern(table.thumbnails[first], table.thumbnails[second], candidate)
    left, right = np.nonzero(near)
    _unite(table.parents, first[left], second[right])


def _same_pattern(first: np.ndarray, second: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """[a,b] bool: the candidates [a,b] whose thumbnails [a,256] and [b,256] correlate or, where one is nearly uniform,
    are equally grey."""
    if not candidate.any():
        return candidate
    first, second = first.astype(np.float32), second.astype(np.float32)
    means, spreads = (first.mean(axis=1), second.mean(axis=1)), (first.std(axis=1), second.std(axis=1))
    products = (first - means[0][:, None]) @ (second - means[1][:, None]).T / first.shape[1]
    same = candidate & (products >= _SAME_PATTERN * spreads[0][:, None] * spreads[1][None])
    uniform = candidate & ((spreads[0] < _UNIFORM)[:, None] | (spreads[1] < _UNIFORM)[None])
    same &= ~uniform
    # The mean difference is at least the difference of the means, which spares most comparisons.
    uniform &= np.abs(means[0][:, None] - means[1][None]) < _UNIFORM
    left, right = np.nonzero(uniform)
    for start in range(0, len(left), _PATTERNS_AT_ONCE):
        a, b = left[start : start + _PATTERNS_AT_ONCE], right[start : start + _PATTERNS_AT_ONCE]
        same[a, b] = np.abs(first[a] - second[b]).mean(axis=1) < _UNIFORM
    return same


# ------------------------------------------------------------------------- union-find: a parent is never a later row


def _roots(parents: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """First row of each row's group [m]; shortens the paths to it for the next call."""
    roots = parents[rows]
    while ((higher := parents[roots]) != roots).any():
        roots = higher
    parents[rows] = roots
    return roots


def _unite(parents: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
    """Unite the groups of first[i] and second[i]."""
    while True:
        left, right = _roots(parents, first), _roots(parents, second)
        apart = left != right
        if not apart.any():
            return
        first, second = left[apart], right[apart]
        np.minimum.at(parents, np.maximum(first, second), np.minimum(first, second))
