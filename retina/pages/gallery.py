"""The gallery of a page: images with their boxes, as plain values for `gallery.html.jinja` and `gallery.js`.

A page imports `gallery` and `gallery_style` from that template, and hands `SCRIPT` to
`retina.drawing.furniture.render`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retina.data.ground_truth import GroundTruth, Results
from retina.data.stored import Photograph, TableImage
from retina.drawing.thumbnails import thumbnails
from retina.errors import RetinaError
from retina.evaluation.curves import threshold_index
from retina.evaluation.matching import Matches
from retina.evaluation.mistakes import worst_images
from retina.evaluation.tide import KINDS, Tide
from retina.palette import class_hexes

SCRIPT = Path(__file__).with_name("gallery.js")
# With this many images a page stays below 10 MB, and its pictures are large enough to be judged.
MOST_IMAGES = 300
_TRUTH_KINDS = ("", "crowd", "difficult", "ignored")
_DETECTION_KINDS = ("right", *KINDS, "")

Box = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Truth:
    """An annotated box, xyxy in pixels of the image as stored.

    Attributes:
        label: 0..K-1.
        kind: "", or the reason why it need not be found: "crowd", "difficult", "ignored".
        score: of the detection that found it, None if it was missed; with several runs a score for each.
    """

    box: Box
    label: int
    kind: str = ""
    score: float | tuple[float | None, ...] | None = None


@dataclass(frozen=True)
class Detection:
    """A detection, xyxy in pixels of the image as stored.

    Attributes:
        label: 0..K-1.
        kind: "right", one of `retina.evaluation.tide.KINDS`, or "" where it is neither right nor wrong.
        run: index of its run among those of the gallery.
    """

    box: Box
    label: int
    score: float
    kind: str
    run: int = 0


@dataclass(frozen=True)
class Shown:
    """An image of the gallery.

    Attributes:
        row: in its table, from 0.
        name: shown above it.
        width, height: pixels as stored.
        picture: the image of its thumbnail; None, or an image that can't be read, gives a placeholder.
        defects: of the image and its boxes, each a sentence.
    """

    row: int
    name: str
    width: int
    height: int
    picture: Photograph | TableImage | None
    truths: tuple[Truth, ...] = ()
    detections: tuple[Detection, ...] = ()
    defects: tuple[str, ...] = ()


class Run(NamedTuple):
    """Detections of a run, with their matches and errors on the ground truth that all runs share."""

    detections: Results
    matches: Matches
    errors: Tide


def gallery_data(
    shown: Iterable[Shown],
    class_names: Sequence[str],
    *,
    runs: Sequence[str] = ("",),
    threshold: float = 0.5,
    iou: float = 0.5,
    thumbnail: int | None = None,
    budget: int = 8_000_000,
    total: int | None = None,
    predictions: bool = True,
) -> dict[str, Any]:
    """Return everything that the gallery shows, as plain values for JSON.

    Args:
        runs: names of the runs that the detections come from.
        threshold: initial value of the slider; detections with at least this score are drawn.
        iou: the overlap from which detections are right, for the texts.
        thumbnail: longer side in pixels, by default what the budget allows.
        budget: bytes of all thumbnails together.
        total: number of all images, if these are a part of them.
        predictions: whether a detector was evaluated; otherwise this is a dataset alone, without a slider.

    Returns:
        `classes` (name, colour), `runs`, `threshold`, `iou`, `total`, `predictions` and `images`: each with `row`,
        `name`, `w`, `h`, `src` or None and `reason`, `defects`, `truths` as [x1, y1, x2, y2, label, kind, [score of
        each run]] and `detections` as [x1, y1, x2, y2, label, score, kind, run], coordinates to 0.1 px.

    Raises:
        RetinaError: an unknown label, run or kind, or a box or score that is not finite.
    """
    chosen = list(shown)
    small = thumbnails(
        [image.picture for image in chosen], [image.name for image in chosen], side=thumbnail, budget=budget
    )
    images = []
    for image, picture in zip(chosen, small, strict=True):
        images.append(
            {
                "row": image.row,
                "name": image.name,
                # If another size is declared the pixels decide, since boxes are drawn over them.
                "w": picture.width or max(image.width, 1),
                "h": picture.height or max(image.height, 1),
                "src": picture.uri,
                "reason": picture.reason,
                "defects": list(image.defects),
                "truths": [_truth(box, image, len(class_names), len(runs)) for box in image.truths],
                "detections": [
                    _detection(detection, image, len(class_names), len(runs)) for detection in image.detections
                ],
            }
        )
    return {
        "classes": [
            {"name": name, "colour": colour} for name, colour in zip(class_names, class_hexes(class_names), strict=True)
        ],
        "runs": list(runs),
        "threshold": _score(threshold, "threshold"),
        "iou": iou,
        "total": len(chosen) if total is None else total,
        "predictions": predictions,
        "images": images,
    }


def evaluated(
    rows: Sequence[int],
    truth: GroundTruth,
    runs: Sequence[Run],
    *,
    sizes: np.ndarray,
    pictures: Sequence[Photograph | TableImage] | None = None,
    names: Sequence[str] | None = None,
    iou: float = 0.5,
) -> list[Shown]:
    """Return images of an evaluation for the gallery.

    Args:
        rows: of the ground truth's images.
        runs: a run, or several on the same ground truth.
        sizes: [N, 2] (height, width) of all images.
        pictures, names: [N] of all images; names are the ids by default.
        iou: of the overlaps that `Matches` were made at.

    Raises:
        RetinaError: the matches were not made at this overlap.
    """
    boxes = _corners(truth.boxes)
    in_truth = _by_image(truth.image, len(truth))
    scores = np.full((len(truth.boxes), len(runs)), np.nan)
    detections: list[list[Detection]] = [[] for _ in range(len(truth))]
    for number, run in enumerate(runs):
        t = threshold_index(run.matches, iou)
        hits = run.matches.right[t]
        scores[run.matches.truth[t, hits], number] = run.matches.scores[hits]
        kinds = np.full(len(run.detections), "", object)
        mistakes = run.errors.kinds >= 0
        kinds[mistakes] = np.array(KINDS, object)[run.errors.kinds[mistakes]]
        kinds[run.matches.rows[hits]] = "right"
        corners = _corners(run.detections.boxes)
        for place in run.matches.rows[np.isin(run.matches.image, rows)].tolist():
            image = int(run.detections.image[place])
            label, score = int(run.detections.labels[place]), float(run.detections.scores[place])
            detections[image].append(Detection(corners[place], label, score, kinds[place], number))
    return [
        Shown(
            row=row,
            name=str(truth.image_ids[row]) if names is None else names[row],
            width=int(sizes[row, 1]),
            height=int(sizes[row, 0]),
            picture=None if pictures is None else pictures[row],
            truths=tuple(
                Truth(
                    boxes[k],
                    int(truth.labels[k]),
                    "crowd" if truth.crowd[k] else "difficult" if truth.difficult[k] else "",
                    tuple(None if np.isnan(score) else float(score) for score in scores[k]),
                )
                for k in in_truth[row]
            ),
            detections=tuple(detections[row]),
        )
        for row in rows
    ]


def choose_rows(
    matches: Matches, threshold: float | Sequence[float], *, limit: int = MOST_IMAGES, iou: float = 0.5
) -> list[int]:
    """Return the rows of the images to show: all if they are few, otherwise a mixture, in the table's order.

    A quarter each have the lowest F1, the most confident mistakes, and the most missed boxes; the last quarter is
    spread evenly over the table.

    Args:
        threshold: detections with at least this score count, one number or one for each class.

    Raises:
        RetinaError: the matches were not made at this overlap, or a limit below 1.
    """
    t = threshold_index(matches, iou)
    if matches.images <= limit:
        return mixture(matches.images, limit)
    worst = worst_images(matches, threshold, iou=iou)
    wrong = matches.wrong[t]
    confident = np.full(matches.images, -np.inf)
    np.maximum.at(confident, matches.image[wrong], matches.scores[wrong])
    mistaken = np.argsort(-confident, kind="stable")[: int(np.isfinite(confident).sum())]
    return mixture(
        matches.images,
        limit,
        [score.image for score in worst if score.wrong + score.missed],
        mistaken.tolist(),
        [score.image for score in sorted(worst, key=lambda score: -score.missed) if score.missed],
    )


def mixture(count: int, limit: int, *orders: Sequence[int]) -> list[int]:
    """Return at most `limit` of `count` rows, ascending: in turn the next of each order, and of rows spread evenly.

    Raises:
        RetinaError: a limit below 1.
    """
    if limit < 1:
        raise RetinaError(f"limit: expected at least 1 image, got {limit}; leave it out for a page of moderate size")
    if count <= limit:
        return list(range(count))
    # Rows with the smallest fractional parts of row × golden ratio are spread evenly, however many are taken.
    spread = sorted(range(count), key=lambda row: (row * 0.6180339887498949) % 1.0)
    taken: dict[int, None] = {}
    turns = [iter(order) for order in (*orders, spread)]
    while len(taken) < limit:
        for turn in turns:
            row = next((row for row in turn if row not in taken), None)
            if row is not None and len(taken) < limit:
                taken[row] = None
    return sorted(taken)


def _by_image(image: np.ndarray, images: int) -> list[np.ndarray]:
    order = np.argsort(image, kind="stable")
    return np.split(order, np.searchsorted(image[order], np.arange(1, images))) if images else []


def _corners(boxes: np.ndarray) -> np.ndarray:
    """[n, 4] x, y, width, height to xyxy."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _truth(truth: Truth, image: Shown, classes: int, runs: int) -> list[Any]:
    _check("truth", truth.label, classes, truth.kind, _TRUTH_KINDS, image)
    given = truth.score if isinstance(truth.score, tuple) else (truth.score,)
    scores = [score for score, _ in zip_longest(given, range(runs))]
    if len(scores) != runs:
        raise RetinaError(
            f"gallery: {image.name}: expected {runs} scores of a box, one for each run, got {len(scores)}"
        )
    rounded = [None if score is None else _score(score, image.name) for score in scores]
    return [*_box(truth.box, image), int(truth.label), truth.kind, rounded]


def _detection(detection: Detection, image: Shown, classes: int, runs: int) -> list[Any]:
    _check("detection", detection.label, classes, detection.kind, _DETECTION_KINDS, image)
    if not 0 <= detection.run < runs:
        raise RetinaError(
            f"gallery: {image.name}: expected a run from 0 to {runs - 1}, got {detection.run}; name all runs"
        )
    return [
        *_box(detection.box, image),
        int(detection.label),
        _score(detection.score, image.name),
        detection.kind,
        int(detection.run),
    ]


def _check(what: str, label: int, classes: int, kind: str, kinds: Sequence[str], image: Shown) -> None:
    if not 0 <= label < classes:
        raise RetinaError(
            f"gallery: {image.name}: {what}: expected a label from 0 to {classes - 1}, got {label}; name all classes"
        )
    if kind not in kinds:
        raise RetinaError(f"gallery: {image.name}: {what}: expected a kind of {list(kinds)}, got {kind!r}")


def _box(box: Box, image: Shown) -> list[float]:
    corners = [round(float(value), 1) for value in box]
    if len(corners) != 4 or not np.isfinite(corners).all():
        raise RetinaError(f"gallery: {image.name}: expected a box of four finite numbers, got {corners}")
    return corners


def _score(value: float, where: str) -> float:
    """Score for the page; rounding keeps the order, so a score that reaches a threshold still does."""
    if not np.isfinite(value):
        raise RetinaError(f"gallery: {where}: expected a finite score, got {value}; correct the detections")
    return round(float(value), 6)
