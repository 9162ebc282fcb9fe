"""Images that are the same, or nearly: equal bytes, and perceptual hashes that differ in a few bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

# 128 bits in 12 chunks: of two hashes that differ in at most 11 bits, one chunk is equal. On BCCD, COCO and VOC
# photographs the nearest unrelated images differed in 25 bits or more, and the same photograph at JPEG quality 40 or at
# 0.5 or 1.37 times the size in 10 at most.
MOST_BITS = 11
_CHUNKS = 12
_GRID, THUMBNAIL = 9, 16
# Nearly uniform images have no differences to compare; their thumbnails decide.
_UNIFORM = 2.0
_SAME_PATTERN = 0.95
_AT_ONCE = 1_000_000
# An image is thinned out to about so many pixels a side first: means of cells don't need more.
_THINNED = 288


def fingerprint(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What of an image survives recompression and resizing.

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
    """Rows with equal digests, in groups of at least two, in the order of their first row; None equals nothing."""
    groups: dict[bytes, list[int]] = {}
    for row, digest in enumerate(digests):
        if digest is not None:
            groups.setdefault(digest, []).append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def near_pairs(bits: np.ndarray, thumbnails: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows (first < second), rising, whose hashes differ in at most `MOST_BITS` and whose thumbnails agree.

    Args:
        bits: [n,128] bool.
        thumbnails: [n,256] uint8.
    """
    words = np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint64)
    pairs = {
        (min(a, b), max(a, b))
        for chunk in np.array_split(np.arange(bits.shape[1]), _CHUNKS)
        for rows in _buckets(bits[:, chunk] @ (1 << np.arange(len(chunk))))
        for a, b in _close(words, rows)
    }
    return sorted(pair for pair in pairs if _same_pattern(*thumbnails[list(pair)].astype(np.float64)))


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
    """Rows that share a key, at least two at a time."""
    order = np.argsort(keys, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
        if len(rows) > 1:
            yield rows


def _close(words: np.ndarray, rows: np.ndarray) -> Iterator[tuple[int, int]]:
    own = words[rows]
    step = max(1, _AT_ONCE // len(rows))
    for start in range(0, len(rows) - 1, step):
        block, rest = own[start : start + step], own[start + 1 :]
        different = np.bitwise_count(block[:, None, 0] ^ rest[None, :, 0])
        different += np.bitwise_count(block[:, None, 1] ^ rest[None, :, 1])
        first, second = np.nonzero(different <= MOST_BITS)
        later = second >= first
        yield from zip(rows[start + first[later]].tolist(), rows[start + 1 + second[later]].tolist(), strict=True)


def _same_pattern(first: np.ndarray, second: np.ndarray) -> bool:
    spread = first.std() * second.std()
    if min(first.std(), second.std()) < _UNIFORM:
        return bool(np.abs(first - second).mean() < _UNIFORM)
    return bool(((first - first.mean()) * (second - second.mean())).mean() >= _SAME_PATTERN * spread)
