"""Anchors that fit the boxes better: a deterministic search on the best overlap of each box."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from retina import config
from retina.data.dataset import DetectionDataset
from retina.doctor.coverage import Placed, overlaps, place

# This many boxes give a share to within a percent or two, and keep the search to a few seconds.
_BOXES = 3000
_ROUNDS = 3
_SIZES = tuple(float(f"{2 ** (step / 6):.2g}") for step in range(-6, 37))  # 0.5 to 64 times the stride
# A setting is changed only for this gain of the score: a smaller gain may be chance.
_WORTH = 0.002
_WORTH_A_LEVEL = 0.01
_HIGHEST_LEVEL, _LOWEST_LEVEL, _LAST_LOWEST_LEVEL = 7, 3, 5


@dataclass(frozen=True)
class Proposal:
    """Anchors and pyramid levels in place of a configuration's, and the overrides that set them."""

    anchors: config.Anchors
    fpn: config.Fpn
    overrides: tuple[str, ...]

    def to_yaml(self) -> str:
        """Return the sections to paste, with only the changed keys."""
        tree: dict[str, Any] = {}
        for override in self.overrides:
            path, _, value = override.partition("=")
            *parents, last = path.split(".")
            node = tree
            for name in parents:
                node = node.setdefault(name, {})
            node[last] = value
        return "\n".join(_yaml(tree)) + "\n"


def propose(dataset: DetectionDataset, settings: config.Config, seed: int = 0) -> Proposal | None:
    """Return the anchors that leave the fewest boxes below `assignment.positive_iou`; None if those of `settings` do.

    The search goes along the coordinates in turn (size, ratios, scales, levels), as long as that helps. It
    keeps the number of scales and ratios, and so, unless levels come or go, the cost of a step. The score is half the
    share of boxes with an overlap of at least `positive_iou`, half the mean of this share over classes, plus a fifth of
    the mean overlap, which decides between settings of equal coverage. A set of candidate ratios comes from k-means on
    the logarithms of height / width. The search ignores that boxes compete for anchors:
    `retina.doctor.ceiling.report` judges its result. Multi-scale training is fitted at all of its sizes, with equal
    weights.

    Args:
        seed: of the sample where there are more than a few thousand boxes.
    """
    placed = _trained(dataset, settings.data.resize, seed)
    if not len(placed.rows):
        return None
    labels = dataset.labels[placed.rows]
    weights = 1 / np.bincount(labels)[labels]
    weights = (weights / weights.sum() + 1 / len(labels)) / 2

    def score(anchors: config.Anchors, fpn: config.Fpn) -> float:
        best = overlaps(placed.boxes, placed.canvas, anchors, fpn)
        return float((weights * (best >= settings.assignment.positive_iou)).sum() + 0.2 * best.mean())

    start = settings.anchors, settings.model.fpn
    current, best = (start, score(*start))
    if settings.anchors.sizes is not None:
        plain = _changed(settings.anchors, sizes=None, scales=_octave(len(settings.anchors.sizes[0])))
        current, best = (plain, start[1]), score(plain, start[1])
    aspects = (placed.boxes[:, 3] - placed.boxes[:, 1]) / (placed.boxes[:, 2] - placed.boxes[:, 0])
    for _ in range(_ROUNDS):
        before = best
        for coordinate in (_size_moves, _ratio_moves, _scale_moves, _level_moves):
            worth = _WORTH_A_LEVEL if coordinate is _level_moves else _WORTH
            scored = [(score(*move), place_, move) for place_, move in enumerate(coordinate(*current, aspects))]
            # The first of equals, so that the result depends on nothing but the boxes.
            highest, _, move = max(scored, key=lambda entry: (entry[0], -entry[1]))
            if highest > best + worth:
                current, best = move, highest
        if best <= before + _WORTH:
            break
    overrides = _overrides(start, current)
    return Proposal(*current, overrides) if overrides and best > score(*start) + _WORTH else None


def cluster_ratios(aspects: np.ndarray, clusters: int) -> tuple[float, ...]:
    """Return ascending centres of `clusters` groups of height / width [m], by k-means on logarithms (Lloyd).

    For boxes of equal area the IoU depends on that logarithm's difference alone, so this is k-means on 1 - IoU of
    centred boxes with the size taken out. It starts from quantiles and is deterministic.
    """
    logs = np.sort(np.log2(aspects))
    centres = np.quantile(logs, (np.arange(clusters) + 0.5) / clusters)
    for _ in range(50):
        nearest = np.abs(logs[:, None] - centres[None]).argmin(axis=1)
        moved = np.array([logs[nearest == k].mean() if (nearest == k).any() else centres[k] for k in range(clusters)])
        if np.allclose(moved, centres, atol=1e-4):
            break
        centres = moved
    return tuple(float(f"{2**centre:.2g}") for centre in np.sort(centres))


# ------------------------------------------------------------------------------------------------ moves of the search

_Move = tuple[config.Anchors, config.Fpn]


def _size_moves(anchors: config.Anchors, fpn: config.Fpn, aspects: np.ndarray) -> Iterator[_Move]:
    for size in _SIZES:
        yield _changed(anchors, size=size), fpn


def _ratio_moves(anchors: config.Anchors, fpn: config.Fpn, aspects: np.ndarray) -> Iterator[_Move]:
    ratios = np.array(anchors.ratios)
    middle = float(np.exp(np.log(ratios).mean()))
    sets = [cluster_ratios(aspects, len(ratios))]
    sets += [tuple(middle * (ratios / middle) ** power) for power in (0.5, 0.7, 1.4, 2.0)]  # closer, wider
    sets += [tuple(ratios * factor) for factor in (0.71, 0.84, 1.19, 1.41)]
    for index in range(len(ratios)):
        sets += [tuple(np.where(np.arange(len(ratios)) == index, ratios * factor, ratios)) for factor in (0.8, 1.25)]
    for made in sets:
        rounded = tuple(sorted({float(f"{ratio:.2g}") for ratio in made}))
        if len(rounded) == len(ratios):
            yield _changed(anchors, ratios=rounded), fpn


def _scale_moves(anchors: config.Anchors, fpn: config.Fpn, aspects: np.ndarray) -> Iterator[_Move]:
    count = len(anchors.scales)
    yield _changed(anchors, scales=_octave(count)), fpn
    if count > 1:
        for octaves in (0.5, 0.75, 1.25, 1.5, 2.0):  # from the first scale to the last
            steps = np.arange(count) / (count - 1) * octaves
            yield _changed(anchors, scales=tuple(float(f"{2**step:.3g}") for step in steps)), fpn


def _level_moves(anchors: config.Anchors, fpn: config.Fpn, aspects: np.ndarray) -> Iterator[_Move]:
    for low in (fpn.min_level - 1, fpn.min_level, fpn.min_level + 1):
        for high in (fpn.max_level - 1, fpn.max_level, fpn.max_level + 1):
            if _LOWEST_LEVEL <= low <= _LAST_LOWEST_LEVEL and low <= high <= _HIGHEST_LEVEL:
                yield anchors, config.Fpn(**{**fpn.model_dump(), "min_level": low, "max_level": high})


def _octave(count: int) -> tuple[float, ...]:
    """Scales that divide the octave between two levels evenly, as the three of the paper do."""
    return tuple(float(f"{2 ** (step / count):.4g}") for step in range(count))


def _changed(anchors: config.Anchors, **values: Any) -> config.Anchors:
    return config.Anchors(**{**anchors.model_dump(), **values})


def _trained(dataset: DetectionDataset, resize: config.Resize, seed: int) -> Placed:
    """Boxes at every size of training, a sample where there are many."""
    shorts = resize.train_short or (resize.short,)
    sizes = (resize.model_copy(update={"short": short, "train_short": ()}) for short in shorts)
    parts = [_chosen(place(dataset, size), _BOXES // len(shorts), seed) for size in sizes]
    fields = ("rows", "image", "boxes", "canvas", "trained")
    return Placed(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


def _chosen(placed: Placed, most: int, seed: int) -> Placed:
    rows = np.flatnonzero(placed.trained)
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    return Placed(placed.rows[rows], placed.image[rows], placed.boxes[rows], placed.canvas[rows], placed.trained[rows])


def _overrides(before: _Move, after: _Move) -> tuple[str, ...]:
    changes = []
    for section, old, new in (("anchors", before[0], after[0]), ("model.fpn", before[1], after[1])):
        for name in type(old).model_fields:
            value = getattr(new, name)
            if value != getattr(old, name):
                changes.append(f"{section}.{name}={_text(value)}")
    return tuple(changes)


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_text(part) for part in value)}]"
    return "null" if value is None else repr(value)


def _yaml(tree: dict[str, Any], indent: int = 0) -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield f"{' ' * indent}{name}:"
            yield from _yaml(value, indent + 2)
        else:
            yield f"{' ' * indent}{name}: {value}"
