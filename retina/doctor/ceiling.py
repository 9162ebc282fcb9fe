"""Coverage in figures: by class, size and level, and the highest AP that these anchors allow."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from retina import config
from retina.data.batches import plan
from retina.data.dataset import DetectionDataset
from retina.data.ground_truth import Results, ground_truth
from retina.doctor.coverage import Coverage, coverage, pyramid_levels, resized_sides
from retina.doctor.statistics import SIDE_EDGES, SIZES, Histogram, histogram
from retina.evaluation.coco import evaluate_as
from retina.ops.anchors import base_anchors, count_per_cell, level_shapes


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
    """Coverage of images at one size of `data.resize.train_short`: boxes with a positive anchor, in all and by class,
    and the number of boxes with a side below one canvas pixel."""

    short: int
    total: Share
    classes: dict[str, Share]
    vanished: int


@dataclass(frozen=True)
class AnchorReport:
    """Coverage of a split by the anchors, after the resize of evaluation and without augmentation.

    Attributes:
        short: `data.resize.short`; all but `training` is for this size.
        training: coverage at each size of multi-scale training, of the training split; else empty.
        images: number of images examined; of `all_images` in the split.
        total: boxes with a positive anchor under the training assignment.
        classes, sizes, canvas_sizes: the same by class, by COCO's sizes in the stored image and on the canvas.
        canvas_side: boxes by the square root of their area on the canvas; `canvas_side_covered` those of each bin
            that have a positive anchor.
        levels: the positives on each pyramid level.
        anchors: all anchors of the examined images together.
        vanished: boxes with a side below one canvas pixel, which training drops.
        outbid: boxes that reach the overlap of a positive, but whose every such anchor overlaps another box more.
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
    anchors: int
    vanished: int
    outbid: int
    forced_only: int
    ceilings: dict[str, dict[str, float]]

    @property
    def background_per_positive(self) -> float:
        """Anchors that are not positive, over those that are: the imbalance that focal loss is made for."""
        positives = sum(level.positives for level in self.levels)
        return (self.anchors - positives) / positives if positives else math.inf


def report(
    dataset: DetectionDataset, settings: config.Config, all_images: int, *, training: bool = False
) -> AnchorReport:
    """Return the coverage of a table by the anchors of a configuration.

    Args:
        all_images: number of images in the split that `dataset` was sampled from.
        training: whether it is trained on, so that `data.resize.train_short` counts.
    """
    resize, anchors, fpn = settings.data.resize, settings.anchors, settings.model.fpn
    assigned = coverage(dataset, resize, anchors, fpn, settings.assignment)
    forced_rules = settings.assignment.model_copy(update={"force_match": True})
    forced = coverage(dataset, resize, anchors, fpn, forced_rules)
    covered, placed = assigned.covered, assigned.placed
    areas = dataset.areas[placed.rows]
    canvas_areas = (placed.boxes[:, 2:] - placed.boxes[:, :2]).prod(axis=1)
    sides = resized_sides(placed)
    by_side = histogram(sides, SIDE_EDGES)
    findable = covered | ((assigned.best >= settings.assignment.negative_iou) & placed.trained)
    return AnchorReport(
        short=resize.short,
        training=tuple(_at_size(dataset, settings, short) for short in resize.train_short if training),
        images=len(dataset),
        all_images=all_images,
        total=Share(int(covered.sum()), len(covered)),
        classes=_by_class(dataset, assigned),
        sizes={name: _share(covered, (areas >= low) & (areas < high)) for name, (low, high) in SIZES.items()},
        canvas_sizes={
            name: _share(covered, (canvas_areas >= low) & (canvas_areas < high)) for name, (low, high) in SIZES.items()
        },
        canvas_side=by_side,
        canvas_side_covered=tuple(np.histogram(_inside(sides[covered], by_side), by_side.edges)[0].tolist()),
        levels=_levels(assigned, anchors),
        anchors=_anchors(dataset, settings),
        vanished=int((~placed.trained).sum()),
        outbid=int((assigned.reached & ~covered).sum()),
        forced_only=int((forced.covered & ~covered).sum()),
        ceilings={
            "assigned": ceiling(dataset, placed.rows[covered], settings.evaluation),
            "findable": ceiling(dataset, placed.rows[findable], settings.evaluation),
            "forced": ceiling(dataset, placed.rows[forced.covered], settings.evaluation),
        },
    )


def ceiling(dataset: DetectionDataset, rows: np.ndarray, settings: config.Evaluation) -> dict[str, float]:
    """Return COCO's figures, by our evaluator, of an oracle that finds the boxes in `rows` perfectly and nothing else.

    With `rows` the boxes that have a positive anchor ("assigned") this is what the anchors allow: it equals the recall
    of those boxes, averaged over classes and, for APs, APm and APl, within their sizes. A box without a positive has no
    anchor that is trained to find it. Where its best anchors overlap it less than `assignment.negative_iou`, they are
    trained as background, and a detector that learns this scores them below the boxes that it was trained to find.

    It is a prediction, not a bound, in both directions. A trained detector stays below it because it also errs. It can
    exceed it, because its scores do not jump where the rule does: anchors that overlap a box between
    `negative_iou` and `positive_iou` are not trained on it at all and may well find it, as neighbours of positives
    do. "findable" counts these boxes as found as well, and so is the more careful estimate; a higher AP would need
    anchors that score highly where they were trained as background. "forced" is the figure of the same
    anchors under `assignment.force_match`.
    """
    boxes = dataset.boxes[rows]
    image = np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets))[rows]
    oracle = Results(
        dataset.name,
        image,
        np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
        np.ones(len(boxes)),
        dataset.labels[rows].astype(np.int64),
    )
    return evaluate_as(settings, ground_truth(dataset), oracle).metrics


def _anchors(dataset: DetectionDataset, settings: config.Config) -> int:
    """Anchors of all images on their canvases."""
    geometry, fpn = plan.fit(dataset.sizes, settings.data.resize), settings.model.fpn
    images = np.bincount(geometry.canvas_of, minlength=len(geometry.canvases)).tolist()
    levels = pyramid_levels(fpn)
    cells = [sum(height * width for height, width in level_shapes(c, levels)) for c in geometry.canvases.tolist()]
    return count_per_cell(settings.anchors) * sum(count * area for count, area in zip(images, cells, strict=True))


def _at_size(dataset: DetectionDataset, settings: config.Config, short: int) -> AtSize:
    resize = settings.data.resize.model_copy(update={"short": short, "train_short": ()})
    assigned = coverage(dataset, resize, settings.anchors, settings.model.fpn, settings.assignment)
    total = Share(int(assigned.covered.sum()), len(assigned.covered))
    return AtSize(short, total, _by_class(dataset, assigned), int((~assigned.placed.trained).sum()))


def _by_class(dataset: DetectionDataset, assigned: Coverage) -> dict[str, Share]:
    """Shares of the classes that have boxes."""
    labels, covered = dataset.labels[assigned.placed.rows], assigned.covered
    shares = {name: _share(covered, labels == k) for k, name in enumerate(dataset.class_names)}
    return {name: share for name, share in shares.items() if share.boxes}


def _inside(sides: np.ndarray, bins: Histogram) -> np.ndarray:
    return np.clip(sides, bins.edges[0], bins.edges[-1])


def _share(covered: np.ndarray, chosen: np.ndarray) -> Share:
    return Share(int(covered[chosen].sum()), int(chosen.sum()))


def _levels(assigned: Coverage, anchors: config.Anchors) -> tuple[Level, ...]:
    levels = []
    for place, level in enumerate(assigned.levels):
        shapes = base_anchors(anchors, level)
        sides = np.sqrt((shapes[:, 2:] - shapes[:, :2]).prod(axis=1))
        of_boxes = assigned.positives[:, place]
        levels.append(
            Level(level, (float(sides.min()), float(sides.max())), int(of_boxes.sum()), int((of_boxes > 0).sum()))
        )
    return tuple(levels)
