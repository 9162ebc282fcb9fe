"""Six kinds of error and the AP that each costs: TIDE (Bolya et al. 2020, arXiv:2008.08115).

Every wrong detection gets one kind, tested in the order of the authors' toolbox, on its largest overlap with the boxes
of its own class and with those of the other classes (f = `iou`, b = `background_iou`):

    Loc   own class in [b, f]: the right class, badly placed
    Cls   another class at least f: well placed, the wrong class
    Dupe  own class at least f: the box already has a better detection
    Bkg   no box above b: nothing there
    Both  the rest: badly placed and the wrong class

and every box that is not found, and that no Cls or Loc error points to, is a Miss.

The cost of a kind is the rise of AP when its errors alone are fixed: a Cls error moves to the class of its box, a Loc
error is placed well, if the box is not found and no higher-scored Cls or Loc error points to it; otherwise they are
removed. Dupe, Bkg and Both errors are removed; missed boxes are taken out of the count. FP removes every wrong
detection, FN every box that is not found. The costs don't add up to 1 - AP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from retina.data.ground_truth import GroundTruth, Results
from retina.errors import RetinaError
from retina.evaluation.matching import Matches, best_of_each, id_order, interpolated_precision, match, overlaps, pairs

# The numbers in `Tide.kinds`; Miss has no detection.
KINDS = ("Cls", "Loc", "Both", "Dupe", "Bkg")
CLS, LOC, BOTH, DUPE, BKG = range(5)
IN_WORDS = {
    "Cls": "wrong class",
    "Loc": "badly placed",
    "Both": "wrong class and badly placed",
    "Dupe": "detected twice",
    "Bkg": "background",
    "Miss": "missed",
}
MEANINGS = {
    "Cls": "well placed, but the wrong class",
    "Loc": "the right class, but badly placed",
    "Both": "the wrong class and badly placed",
    "Dupe": "a second detection of a box that has a better one",
    "Bkg": "a detection where nothing is",
    "Miss": "a box that nothing found",
}


@dataclass(frozen=True, eq=False)
class Tide:
    """Errors of a table of detections by kind, and the AP that each kind costs.

    Attributes:
        iou, background_iou: the two thresholds.
        base_ap: AP at `iou`, as `retina.evaluation.coco` gives it; -1 where no box defines it.
        delta_ap: for `Cls Loc Both Dupe Bkg Miss`, what fixing that kind alone adds to `base_ap`; None where that is
            -1. Not negative: where fewer boxes move the 101 recalls, a small loss is written as 0.
        special: the same for `FP` and `FN`.
        counts: errors of each kind, over all classes.
        per_class: the same for each class name: of detections by their own class, of Miss by the box's.
        kinds: [n] int8, for each row of the `Results`: its place in `KINDS`; -1 for a detection that is right, neither
            right nor wrong, or beyond `max_detections`.
        boxes: [n] int64, the row of the `GroundTruth` that the error belongs to: the badly placed, misnamed or
            repeated box, for Both the box it overlaps most; -1 for Bkg and where `kinds` is -1.
        missed: [M] bool, the boxes of the ground truth that count as Miss.
    """

    iou: float
    background_iou: float
    base_ap: float
    delta_ap: dict[str, float | None]
    special: dict[str, float | None]
    counts: dict[str, int]
    per_class: dict[str, dict[str, int]]
    kinds: np.ndarray
    boxes: np.ndarray
    missed: np.ndarray


class _Flags(NamedTuple):
    """Columns of n detections in the order of their ranking over all classes."""

    labels: np.ndarray
    right: np.ndarray
    wrong: np.ndarray


def tide(
    truth: GroundTruth,
    detections: Results,
    *,
    iou: float = 0.5,
    background_iou: float = 0.1,
    max_detections: int = 100,
) -> Tide:
    """Return the errors of `detections`, their kinds and their costs (see the module's docstring).

    It starts from COCO's matching, so `base_ap` is the AP at `iou` printed elsewhere. Departures from the authors'
    toolbox (tidecv 1.0.1): the limit is for each class of an image, not for the image; classes without boxes are left
    out, not counted as 0; detections on crowds and difficult boxes are no errors at all, where tidecv gives them a kind
    and lets the fix turn them into hits; equal scores keep their ranking; a class that loses all its boxes to Miss or
    FN has AP 0, also where tidecv leaves it out because it has no detections; the recalls are pycocotools' 101 numbers,
    of which tidecv's differ in the last bit.

    Args:
        iou: overlap from which a detection finds a box.
        background_iou: overlap up to which there is nothing.
        max_detections: limit in an image and class; those of the highest scores count.

    Raises:
        RetinaError: not 0 < background_iou <= iou <= 1, or a detection lies in an image or class that the ground truth
            does not have.
    """
    if not 0 < background_iou <= iou <= 1:
        raise RetinaError(
            f"tide: expected 0 < background_iou <= iou <= 1, got background_iou {background_iou} and iou {iou}; "
            "the paper's are 0.1 and 0.5"
        )
    matches = match(truth, detections, iou_thresholds=[iou], max_detections=max_detections)
    is_found = np.zeros(len(truth.boxes), np.bool_)
    is_found[matches.truth[0, matches.right[0]]] = True
    kinds, boxes = _classify(truth, detections, matches, is_found, iou, background_iou)
    pointed = np.zeros(len(truth.boxes), np.bool_)
    pointed[boxes[(kinds == CLS) | (kinds == LOC)]] = True
    missed = matches.counted & ~is_found & ~pointed
    base, delta, special = _costs(truth, matches, kinds, boxes, is_found, missed)
    per_class = _counts(truth, matches, kinds, missed)
    out_kinds, out_boxes = np.full(len(detections), -1, np.int8), np.full(len(detections), -1, np.int64)
    out_kinds[matches.rows], out_boxes[matches.rows] = kinds, boxes
    return Tide(
        iou=iou,
        background_iou=background_iou,
        base_ap=base,
        delta_ap=delta,
        special=special,
        counts={kind: sum(counts[kind] for counts in per_class.values()) for kind in (*KINDS, "Miss")},
        per_class=per_class,
        kinds=out_kinds,
        boxes=out_boxes,
        missed=missed,
    )


def _classify(
    truth: GroundTruth,
    detections: Results,
    matches: Matches,
    is_found: np.ndarray,
    iou: float,
    background_iou: float,
) -> tuple[np.ndarray, np.ndarray]:
    """[n] int8 kinds and [n] int64 boxes of the detections of `matches`, as in `Tide`."""
    kinds = np.where(matches.wrong[0], BKG, -1).astype(np.int8)
    boxes = np.full(len(matches), -1, np.int64)
    wrong, counted = np.flatnonzero(matches.wrong[0]), np.flatnonzero(matches.counted)
    for place, row in pairs(matches.image[wrong], truth.image[counted]):
        detection, box = wrong[place], counted[row]
        overlap = overlaps(detections.boxes[matches.rows[detection]], truth.boxes[box], np.zeros(len(box), np.bool_))
        same = matches.labels[detection] == truth.labels[box]
        same_class, other_class = best_of_each(place, overlap * same), best_of_each(place, overlap * ~same)
        used, any_box = best_of_each(place, overlap * (same & is_found[box])), best_of_each(place, overlap)
        near, far = (overlap * same)[same_class], (overlap * ~same)[other_class]
        repeated = (overlap * (same & is_found[box]))[used]
        tests = (
            (near >= background_iou) & (near <= iou),
            far >= iou,
            repeated >= iou,
            overlap[any_box] <= background_iou,
        )
        kind = np.select(tests, (LOC, CLS, DUPE, BKG), BOTH)
        kinds[detection[same_class]] = kind
        boxes[detection[same_class]] = np.select(
            tests, (box[same_class], box[other_class], box[used], -1), box[any_box]
        )
    return kinds, boxes


def _costs(
    truth: GroundTruth,
    matches: Matches,
    kinds: np.ndarray,
    boxes: np.ndarray,
    is_found: np.ndarray,
    missed: np.ndarray,
) -> tuple[float, dict[str, float | None], dict[str, float | None]]:
    """`base_ap`, `delta_ap` and `special`."""
    # The ranking of `matches` without its classes: Cls errors change theirs.
    ranking = np.lexsort((matches.rows, id_order(truth.image_ids)[matches.image], -matches.scores))
    kinds, boxes, labels = kinds[ranking], boxes[ranking], matches.labels[ranking]
    flags = _Flags(labels, matches.right[0, ranking], matches.wrong[0, ranking])
    positives = matches.positives
    if not positives.any():
        return -1.0, dict.fromkeys((*KINDS, "Miss")), dict.fromkeys(("FP", "FN"))
    chosen = _fixable(kinds, boxes, is_found)
    base = _mean_ap(flags, positives, positives)
    delta: dict[str, float | None] = {}
    for kind, name in enumerate(KINDS):
        of_kind = kinds == kind
        fixed = of_kind & chosen
        moved = labels if kind != CLS else np.where(fixed, truth.labels[boxes], labels)
        raised = _mean_ap(_Flags(moved, flags.right | fixed, flags.wrong & ~of_kind), positives, positives)
        delta[name] = max(raised - base, 0.0)
    classes = len(positives)
    without_missed = positives - np.bincount(truth.labels[missed], minlength=classes)
    delta["Miss"] = max(_mean_ap(flags, without_missed, positives) - base, 0.0)
    only_found = np.bincount(truth.labels[is_found], minlength=classes)
    no_wrong = _Flags(labels, flags.right, np.zeros_like(flags.wrong))
    special: dict[str, float | None] = {
        "FP": _mean_ap(no_wrong, positives, positives) - base,
        "FN": _mean_ap(flags, only_found, positives) - base,
    }
    return base, delta, special


def _fixable(kinds: np.ndarray, boxes: np.ndarray, is_found: np.ndarray) -> np.ndarray:
    """[n] bool, in the order of the ranking: the first Cls or Loc error of each box that is not found."""
    places = np.flatnonzero((kinds == CLS) | (kinds == LOC))
    places = places[~is_found[boxes[places]]]
    _, first = np.unique(boxes[places], return_index=True)
    chosen = np.zeros(len(kinds), np.bool_)
    chosen[places[first]] = True
    return chosen


def _mean_ap(flags: _Flags, positives: np.ndarray, base_positives: np.ndarray) -> float:
    """AP over the classes that have boxes in `base_positives` [K]; 0 for one that has none in `positives` [K]."""
    by_class = np.argsort(flags.labels, kind="stable")
    offsets = np.searchsorted(flags.labels[by_class], np.arange(len(positives) + 1))
    figures = []
    for k in np.flatnonzero(base_positives):
        places = by_class[offsets[k] : offsets[k + 1]]
        figures.append(
            interpolated_precision(flags.right[places], flags.wrong[places], positives[k]).mean()
            if positives[k]
            else 0.0
        )
    return float(np.mean(figures))


def _counts(truth: GroundTruth, matches: Matches, kinds: np.ndarray, missed: np.ndarray) -> dict[str, dict[str, int]]:
    names: Sequence[str] = truth.class_names
    by_kind = {
        kind: np.bincount(matches.labels[kinds == number], minlength=len(names)) for number, kind in enumerate(KINDS)
    }
    by_kind["Miss"] = np.bincount(truth.labels[missed], minlength=len(names))
    return {name: {kind: int(counts[k]) for kind, counts in by_kind.items()} for k, name in enumerate(names)}
