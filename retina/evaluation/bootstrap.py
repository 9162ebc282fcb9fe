"""Intervals for COCO's AP from resampled images, on matches made once (Efron 1979).

Whole images are drawn with replacement, because the objects and mistakes of one image are not independent. A detection
is matched within its image, so a replicate needs no new matching: it gives each image a whole number of copies, and AP
is the same function of the ranking with every detection and every box counted that often.

**Why weights equal copies.** Put the w copies of an image side by side; equal scores are ranked by image, so they stay
together. A right detection then becomes w right ones in a row: recall rises by w steps and precision only grows on the
way, so the envelope of precision, the largest value from there on, is the last copy's for all of them. A wrong one adds
w to the misses, and recall never stops there. With w = 0 a right detection adds no recall, so no recall is read off
at it, and its precision is at most that of the right one before it. (Recall 0 reads the largest precision of all,
which stands at a right one.) Hits, misses and boxes are whole numbers, exact in
float64, so precision and recall have the very bits that copying the images would give. One case needs more: right and
wrong detections of equal score in one image and class repeat as a block (right, wrong, right, wrong), not each for
itself; such blocks are laid out copy by copy, the c-th of them counting 1 where w >= c and 0 elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

from retina.errors import RetinaError
from retina.evaluation.matching import RECALLS, Matches

Method = Literal["percentile", "bias-corrected"]
NAMES = ("AP", "AP50", "AP75")
_IOU = {"AP50": 0.5, "AP75": 0.75}

# Numbers in the largest temporary array [n, b] and its columns: a few hundred MB in all, and wide enough for NumPy.
_CELLS = 4_000_000
_COLUMNS = 64


@dataclass(frozen=True, eq=False)
class Figures:
    """COCO's AP of b weightings of the images, in [0, 1]; NaN where nothing defines it.

    A class of which a weighting has no counted box has no AP there and is left out of the means, as COCO leaves it out.
    `AP50` and `AP75` are NaN if the matches were not made at that overlap.

    Attributes:
        AP, AP50, AP75: [b] float64, means over the defined classes (AP: and over the overlaps).
        per_class: of each of these names [b, K] float64.
    """

    AP: np.ndarray
    AP50: np.ndarray
    AP75: np.ndarray
    per_class: dict[str, np.ndarray]

    def __len__(self) -> int:
        """b."""
        return len(self.AP)

    def __getitem__(self, name: str) -> np.ndarray:
        """[b] by name."""
        return {"AP": self.AP, "AP50": self.AP50, "AP75": self.AP75}[name]


def bootstrap(matches: Matches, *, replicates: int = 1000, seed: int = 0) -> Figures:
    """Return the figures of `replicates` resamples of the images, N drawn from N with replacement.

    Two detectors on the same N images get the same draws from the same seed: their differences are paired.

    Args:
        replicates: B; 1000 place the ends of a 95 % interval well enough to be read to two digits.
        seed: replicate b depends on (seed, b) alone, so that more replicates add to those already made.

    Raises:
        RetinaError: fewer than one replicate, or a negative seed.
    """
    if replicates < 1:
        raise RetinaError(f"replicates: expected at least 1, got {replicates}; 1000 are usual")
    # Drawn in portions, so that 10,000 replicates of 100,000 images need no 8 GB.
    portion = max(1, _CELLS // max(1, matches.images))
    starts = range(0, replicates, portion)
    return concatenate(
        [
            weighted_ap(matches, image_weights(matches.images, range(start, min(start + portion, replicates)), seed))
            for start in starts
        ]
    )


def image_weights(images: int, replicates: range, seed: int) -> np.ndarray:
    """[b, N] int64: how often each of N images is drawn in the given replicates; each row sums to N.

    Philox (Salmon et al. 2011) counts: each replicate has a stretch of 2**192 numbers to itself.

    Raises:
        RetinaError: a seed outside 0 to 2**128 - 1.
    """
    if not 0 <= seed < 2**128:
        raise RetinaError(f"seed: expected a whole number from 0 to 2**128 - 1, got {seed}; 0 is usual")
    weights = np.zeros((len(replicates), images), np.int64)
    if images:
        for row, replicate in enumerate(replicates):
            generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, replicate]))
            weights[row] = np.bincount(generator.integers(images, size=images), minlength=images)
    return weights


def weighted_ap(matches: Matches, weights: np.ndarray) -> Figures:
    """Return the figures with each image counted as often as its weight says, as if evaluated in that many copies.

    Args:
        matches: made with any area range and limit.
        weights: [b, N] whole numbers, not negative; one row a weighting. All ones give the plain figures.

    Raises:
        RetinaError: weights of another shape or kind.
    """
    columns = _checked(weights, matches.images)
    copies = int(columns.max(initial=0))
    positives = _rows_by_class(matches)
    overlaps = _wanted(matches)
    values = np.full((len(overlaps), columns.shape[1], len(positives)), np.nan)
    for k, rows in enumerate(positives):
        if not len(rows):
            continue
        ranking = _ranking(matches, k, copies)
        for part in _parts(columns.shape[1], len(ranking.image)):
            block = np.ascontiguousarray(columns[:, part])
            boxes = block.take(rows, axis=0).sum(axis=0)
            by_overlap = _class_ap(ranking, block, boxes)
            for place, which in enumerate(overlaps.values()):
                values[place, part, k] = _sum(by_overlap[which]) / len(which) if which else np.nan
    return _figures(dict(zip(NAMES, map(_mean_defined, values), strict=True)), dict(zip(NAMES, values, strict=True)))


def concatenate(parts: list[Figures]) -> Figures:
    """Return all weightings of the parts, in order."""
    return _figures(
        {name: np.concatenate([part[name] for part in parts]) for name in NAMES},
        {name: np.concatenate([part.per_class[name] for part in parts]) for name in NAMES},
    )


def observed(matches: Matches) -> Figures:
    """Return the plain figures (b = 1): each image once."""
    return weighted_ap(matches, np.ones((1, matches.images), np.int64))


def resampled(matches: Matches) -> np.ndarray:
    """[1 + K] bool: whether counted boxes lie in at least two images, of any class and of each. Every resample of a
    single image that has boxes is that image again, so its spread says nothing."""
    classes = len(matches.offsets) - 1
    where = np.column_stack([matches.truth_labels, matches.truth_image])[matches.counted]
    each = np.bincount(np.unique(where, axis=0)[:, 0], minlength=classes)
    return np.append(len(np.unique(where[:, 1])), each) >= 2


def interval(
    values: np.ndarray,
    level: float = 0.95,
    *,
    method: Method = "percentile",
    estimate: np.ndarray | float | None = None,
) -> np.ndarray:
    """Return the interval of a figure from its replicates.

    COCO's envelope takes the largest of noisy precisions, so AP of few images is too high, and that of their resamples
    is higher still: the ends of a percentile interval of AP lie too high. In simulations with five classes of 0.1 to
    1.2 objects an image (`scripts/reproduce/interval_coverage.py --images 100 300 1000`, 1000 repetitions each,
    standard error 0.7 to 1 %, 2026-11-23) 95 % intervals of 100, 300 and 1000 images held the true value this often:

                                            percentile          bias-corrected
        AP, mean of the classes             89.4  90.7  90.5    92.4  93.7  92.9
        AP50, mean of the classes           94.8  94.3  94.1    94.5  94.4  93.7
        AP of a class, >= 0.2 objects       92.1 to 94.8        91.9 to 95.3
        AP of a class, 0.1 objects          89.2  92.1  94.3    90.5  93.2  94.7

    So: percentiles for AP50, and for the AP of a class with some 60 boxes in 300 images or more; the correction for the
    mean AP. With 100 images trust neither. Differences of two detectors have no such bias: percentiles.

    Args:
        values: [B] or [B, ...]; replicates that are NaN are left out.
        level: of confidence, above 0 and below 1.
        method: "percentile": the middle `level` of the replicates (Efron & Tibshirani 1993, chapter 13).
            "bias-corrected": the percentiles shifted by how far the replicates' median lies from `estimate` (chapter
            14, without acceleration).
        estimate: of shape [...], the figure of the images themselves; the bias correction needs it.

    Returns:
        [2] or [2, ...] low and high; NaN where no replicate is defined.

    Raises:
        RetinaError: a level outside (0, 1), or no estimate to correct by.
    """
    if not 0 < level < 1:
        raise RetinaError(f"level: expected a number between 0 and 1, got {level}; 0.95 is usual")
    if method == "bias-corrected" and estimate is None:
        raise RetinaError("interval: bias-corrected needs the estimate from the images themselves; hand it in")
    table = np.asarray(values, np.float64)
    flat = table.reshape(len(table), math.prod(table.shape[1:]))
    centre = np.broadcast_to(np.nan if estimate is None else np.asarray(estimate), table.shape[1:]).ravel()
    ends = [
        _ends(column[~np.isnan(column)], level, middle if method == "bias-corrected" else None)
        for column, middle in zip(flat.T, centre.tolist(), strict=True)
    ]
    return np.array(ends, np.float64).reshape(-1, 2).T.reshape(2, *table.shape[1:])


def _ends(values: np.ndarray, level: float, estimate: float | None) -> tuple[float, float]:
    if not len(values):
        return np.nan, np.nan
    tail = (1 - level) / 2
    tails = [tail, 1 - tail]
    if estimate is not None:
        normal = NormalDist()
        below = (np.mean(values < estimate) + np.mean(values <= estimate)) / 2
        # Beyond every replicate the shift would be infinite; B replicates resolve no more than half of one.
        shift = normal.inv_cdf(float(np.clip(below, 0.5 / len(values), 1 - 0.5 / len(values))))
        tails = [normal.cdf(2 * shift + normal.inv_cdf(end)) for end in tails]
    low, high = np.quantile(values, tails)
    return float(low), float(high)


class _Ranking(NamedTuple):
    """The m detections of a class up to its last hit, as ranked; for each overlap the places of hits and of ignored.

    `layer` [m] is -1 where a detection counts as often as its image, c where it is the copy that counts once if the
    image is there more than c times.
    """

    image: np.ndarray
    layer: np.ndarray
    hits: list[np.ndarray]
    ignored: list[np.ndarray]


def _ranking(matches: Matches, k: int, copies: int) -> _Ranking:
    places = slice(matches.offsets[k], matches.offsets[k + 1])
    ignored, image = matches.ignored[:, places], matches.image[places]
    right = (matches.truth[:, places] >= 0) & ~ignored
    source, layer = _laid_out(image, matches.scores[places], right, ~(right | ignored), copies)
    right, ignored = right[:, source], ignored[:, source]
    end = np.flatnonzero(right.any(axis=0)).max(initial=-1) + 1
    return _Ranking(
        image[source[:end]],
        layer[:end],
        [np.flatnonzero(row) for row in right],
        [np.flatnonzero(row[:end]) for row in ignored],
    )


def _laid_out(
    image: np.ndarray, scores: np.ndarray, right: np.ndarray, wrong: np.ndarray, copies: int
) -> tuple[np.ndarray, np.ndarray]:
    """[m] which of n detections, and its layer: blocks that repeat as a whole (see the module) are spelled out."""
    every = np.arange(len(image))
    plain = every, np.full(len(image), -1)
    first = np.ones(len(image), np.bool_)
    first[1:] = (image[1:] != image[:-1]) | (scores[1:] != scores[:-1])
    starts = np.flatnonzero(first)
    if len(starts) == len(image) or copies < 2:
        return plain
    mixed = np.logical_or.reduceat(right, starts, axis=1) & np.logical_or.reduceat(wrong, starts, axis=1)
    block = np.cumsum(first) - 1
    repeated = np.any(mixed, axis=0)[block]
    if not repeated.any():
        return plain
    counts = np.where(repeated, copies, 1)
    source = np.repeat(every, counts)
    copy = np.arange(len(source)) - np.repeat(np.cumsum(counts) - counts, counts)
    layer = np.where(repeated[source], copy, -1)
    order = np.lexsort((source, layer, block[source]))
    return source[order], layer[order]


def _class_ap(ranking: _Ranking, weights: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[T, b] AP of a class, from the weights [N, b] of the images and [b] of its boxes; NaN without boxes."""
    counts = weights.take(ranking.image, axis=0)
    layered = np.flatnonzero(ranking.layer >= 0)
    counts[layered] = counts[layered] > ranking.layer[layered, None]
    total = np.cumsum(counts, axis=0)
    values = np.zeros((len(ranking.hits), weights.shape[1]))
    for t, (hits, ignored) in enumerate(zip(ranking.hits, ranking.ignored, strict=True)):
        if not len(hits):
            continue
        right = np.cumsum(counts.take(hits, axis=0), axis=0)
        shown = total.take(hits, axis=0)
        if len(ignored):
            before = np.cumsum(counts.take(ignored, axis=0), axis=0)
            place = np.searchsorted(ignored, hits) - 1
            shown[place >= 0] -= before[place[place >= 0]]
        values[t] = _interpolated_mean(right, shown, np.maximum(boxes, 1))
    return np.where(boxes > 0, values, np.nan)


def _interpolated_mean(right: np.ndarray, shown: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[b] the mean over `RECALLS` of the envelope of precision, from the counts [J, b] of hits and of all detections up
    to each hit. Each recall takes the first hit that reaches it, so a hit counts as often as it is the first."""
    precision = right / (shown + np.spacing(1))
    np.maximum.accumulate(precision[::-1], axis=0, out=precision[::-1])
    reached = _recalls_reached(right / boxes)
    gained = np.diff(reached, axis=0, prepend=np.zeros((1, reached.shape[1]), reached.dtype))
    return _sum(precision * gained) / len(RECALLS)


def _recalls_reached(recall: np.ndarray) -> np.ndarray:
    """Number of `RECALLS` that are <= each recall: all below the nearest, and the nearest if it is; compared as floats,
    because 0.07 and RECALLS[7] differ in the last bit, and pycocotools' search does see it."""
    nearest = np.rint(recall * (len(RECALLS) - 1)).astype(np.int64)
    count: np.ndarray = nearest + (RECALLS.take(nearest) <= recall)
    return count


def _wanted(matches: Matches) -> dict[str, list[int]]:
    """Indices in the matches of the overlaps of each figure."""
    thresholds = matches.iou_thresholds
    single = {name: np.flatnonzero(np.isclose(thresholds, iou)).tolist() for name, iou in _IOU.items()}
    return {"AP": list(range(len(thresholds))), **single}


def _rows_by_class(matches: Matches) -> list[np.ndarray]:
    """Images [P] of the counted boxes of each class, an entry for each box."""
    classes = len(matches.offsets) - 1
    labels, images = matches.truth_labels[matches.counted], matches.truth_image[matches.counted]
    order = np.argsort(labels, kind="stable")
    return np.split(images[order], np.searchsorted(labels[order], np.arange(1, classes)))[:classes]


def _figures(means: dict[str, np.ndarray], per_class: dict[str, np.ndarray]) -> Figures:
    return Figures(means["AP"], means["AP50"], means["AP75"], per_class)


def _sum(values: np.ndarray) -> np.ndarray:
    """[b] the sum of [J, b], J >= 1, term by term: NumPy's own grouping follows the shape, and the last bit follows it,
    so that a replicate would depend on its neighbours."""
    running: np.ndarray = np.cumsum(values, axis=0)
    return running[-1]


def _mean_defined(values: np.ndarray) -> np.ndarray:
    """[b] the mean of [b, K] over what is not NaN; NaN where all is."""
    defined = ~np.isnan(values)
    sums, counts = np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1)
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def _parts(columns: int, rows: int) -> Iterator[slice]:
    """Slices of the columns, so that no array of this many rows grows beyond a few tens of MB."""
    width = max(1, min(_COLUMNS, _CELLS // max(1, rows)))
    for start in range(0, columns, width):
        yield slice(start, min(start + width, columns))


def _checked(weights: np.ndarray, images: int) -> np.ndarray:
    """[N, b] int64."""
    given = np.asarray(weights)
    if given.ndim != 2 or given.shape[1] != images:
        raise RetinaError(f"weights: expected [b, {images}], one for each image, got shape {given.shape}; reshape them")
    if given.dtype.kind not in "iu" or (given < 0).any():
        raise RetinaError(
            f"weights: expected whole numbers of at least 0, got {given.dtype} with a minimum of "
            f"{given.min(initial=0)}; give the number of copies of each image"
        )
    return np.ascontiguousarray(given.T, np.int64)
