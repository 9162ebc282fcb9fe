"""Coverage in figures: by class, size and level, and the AP that a detector with these anchors can hope for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retina import config
from retina.data.dataset import DetectionDataset
from retina.data.ground_truth import Results, ground_truth
from retina.doctor.coverage import Coverage, coverage, resized_sides
from retina.doctor.statistics import SIDE_EDGES, SIZES, Histogram, histogram
from retina.evaluation.coco import evaluate_as
from retina.ops.anchors import base_anchors


@dataclass(frozen=True)
class Share:
    """`covered` of `boxes`; `share` is their quotient, 0 where there is no box."""

    covered: int
    boxes: int

    @property
    def share(self) -> float:
        return self.covered / self.boxes if self.boxes else 0.0


@dataclass(frozen=True)
class Level:
    """A pyramid level: its anchors' sides in canvas pixels (smallest, largest), the positive anchors on it, and the
    boxes with at least one of them."""

    level: int
    sides: tuple[float, float]
    positives: int
    boxes: int


@dataclass(frozen=True)
class AtSize:
    """What is trained with images at one of `data.resize.train_short`: boxes with a positive anchor, in all and by
    class, and those with a side below one canvas pixel."""

    short: int
    total: Share
    classes: dict[str, Share]
    vanished: int


@dataclass(frozen=True)
class AnchorReport:
    """What the anchors make of a split, after the resize of evaluation and without augmentation.

    Attributes:
        short: `data.resize.short`, for which all but `training` holds.
        training: of the training split under multi-scale training, at each size that batches are shown in; else empty.
        images: whose boxes were looked at; of `all_images` in the split.
        total: boxes with a positive anchor at the training assignment.
        classes, sizes, canvas_sizes: the same by class, by COCO's sizes in the stored image and on the canvas.
        canvas_side: boxes by the square root of their area on the canvas; `canvas_side_covered` those of each bin
            that have a positive anchor.
        levels: where the positives are.
        vanished: boxes with a side below one canvas pixel, which training drops.
        outbid: boxes that reach the overlap of a positive but lose every such anchor to a box that overlaps it more.
        forced_only: boxes without a positive that `assignment.force_match` would give one.
        ceilings: `{"assigned": …, "findable": …, "forced": …}`, each the figures AP, AP50, APs … of `ceiling`.
    """

    short: int
    training: tuple[AtSize, ...]
    images: int
    all_images: int
    total: Share
    classes: dict[str, Share]
    sizes: dict[str, Share]
    canvas_sizes: dict[str, Share]
    canvas_side: Histogram
    canvas_side_covered: tuple[int, ...]
    levels: tuple[Level, ...]
    vanished: int
    outbid: int
    forced_only: int
    ceilings: dict[str, dict[str, float]]


def report(
    dataset: DetectionDataset, settings: config.Config, all_images: int, *, training: bool = False
) -> AnchorReport:
    """Looks at a table through the anchors of a configuration.

    Args:
        all_images: of the split that `dataset` was sampled from.
        training: it is learned from, so that `data.resize.train_short` counts.
    """
    resize, anchors, fpn = settings.data.resize, settings.anchors, settings.model.fpn
    seen = coverage(dataset, resize, anchors, fpn, settings.assignment)
    forced_rules = settings.assignment.model_copy(update={"force_match": True})
    forced = coverage(dataset, resize, anchors, fpn, forced_rules)
    covered, placed = seen.covered, seen.placed
    areas = dataset.areas[placed.rows]
    canvas_areas = (placed.boxes[:, 2:] - placed.boxes[:, :2]).prod(axis=1)
    sides = resized_sides(placed)
    by_side = histogram(sides, SIDE_EDGES)
    findable = covered | ((seen.best >= settings.assignment.negative_iou) & placed.trained)
    return AnchorReport(
        short=resize.short,
        training=tuple(_at_size(dataset, settings, short) for short in resize.train_short if training),
        images=len(dataset),
        all_images=all_images,
        total=Share(int(covered.sum()), len(covered)),
        classes=_by_class(dataset, seen),
        sizes={name: _share(covered, (areas >= low) & (areas < high)) for name, (low, high) in SIZES.items()},
        canvas_sizes={
            name: _share(covered, (canvas_areas >= low) & (canvas_areas < high)) for name, (low, high) in SIZES.items()
        },
        canvas_side=by_side,
        canvas_side_covered=tuple(np.histogram(_inside(sides[covered], by_side), by_side.edges)[0].tolist()),
        levels=_levels(seen, anchors),
        vanished=int((~placed.trained).sum()),
        outbid=int((seen.reached & ~covered).sum()),
        forced_only=int((forced.covered & ~covered).sum()),
        ceilings={
            "assigned": ceiling(dataset, placed.rows[covered], settings.evaluation),
            "findable": ceiling(dataset, placed.rows[findable], settings.evaluation),
            "forced": ceiling(dataset, placed.rows[forced.covered], settings.evaluation),
        },
    )


def ceiling(dataset: DetectionDataset, rows: np.ndarray, settings: config.Evaluation) -> dict[str, float]:
    """COCO's figures, by our evaluator, of an oracle that finds the boxes in `rows` perfectly and nothing else.

    With `rows` the boxes that have a positive anchor ("assigned") this is what the anchors allow: it equals the recall
    of those boxes, averaged over classes and, for APs, APm and APl, within their sizes. A box without a positive has no
    anchor that is ever told to find it. Where its best anchors overlap it less than `assignment.negative_iou`, they are
    told the contrary: they count as background each time they lie so, and a detector that obeys leaves them below
    boxes that it was trained to find.

    It is a prediction and no theorem, in both directions. A trained detector stays below it because it also errs.
    It can exceed it, because its scores do not jump where the rule does: anchors that overlap a box between
    `negative_iou` and `positive_iou` are never trained on it at all and may well find it, as neighbours of positives
    do. "findable" counts these boxes as found, too, which makes it the more careful bound; what lies beyond even that
    would need anchors that score highly where they were trained as background. "forced" is the figure of the same
    anchors under `assignment.force_match`.
    """
    boxes = dataset.boxes[rows]
    image = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))[rows]
    found = Results(
        dataset.name,
        image,
        np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
        np.ones(len(boxes)),
        dataset.labels[rows].astype(np.int64),
    )
    return evaluate_as(settings, ground_truth(dataset), found).metrics


def _at_size(dataset: DetectionDataset, settings: config.Config, short: int) -> AtSize:
    resize = settings.data.resize.model_copy(update={"short": short, "train_short": ()})
    seen = coverage(dataset, resize, settings.anchors, settings.model.fpn, settings.assignment)
    total = Share(int(seen.covered.sum()), len(seen.covered))
    return AtSize(short, total, _by_class(dataset, seen), int((~seen.placed.trained).sum()))


def _by_class(dataset: DetectionDataset, seen: Coverage) -> dict[str, Share]:
    """Of the classes that have boxes."""
    labels, covered = dataset.labels[seen.placed.rows], seen.covered
    shares = {name: _share(covered, labels == k) for k, name in enumerate(dataset.class_names)}
    return {name: share for name, share in shares.items() if share.boxes}


def _inside(sides: np.ndarray, bins: Histogram) -> np.ndarray:
    return np.clip(sides, bins.edges[0], bins.edges[-1])


def _share(covered: np.ndarray, chosen: np.ndarray) -> Share:
    return Share(int(covered[chosen].sum()), int(chosen.sum()))


def _levels(seen: Coverage, anchors: config.Anchors) -> tuple[Level, ...]:
    levels = []
    for place, level in enumerate(seen.levels):
        shapes = base_anchors(anchors, level)
        sides = np.sqrt((shapes[:, 2:] - shapes[:, :2]).prod(axis=1))
        of_boxes = seen.positives[:, place]
        levels.append(
            Level(level, (float(sides.min()), float(sides.max())), int(of_boxes.sum()), int((of_boxes > 0).sum()))
        )
    return tuple(levels)
