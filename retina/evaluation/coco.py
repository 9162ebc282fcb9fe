"""The twelve COCO figures (cocodataset.org/#detection-eval) and those of each class, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from retina.data.detections import DetectionTable, check, to_xywh
from retina.errors import RetinaError

if TYPE_CHECKING:
    from retina.data.dataset import DetectionDataset

# The place of each size in pycocotools' axis of area ranges: up to 32² px, up to 96² px, above.
_SIZES = {"s": 1, "m": 2, "l": 3}
# Below every area range, zero included: pycocotools (and every engine that follows it) then ignores the box in each of
# them, with the plain overlap. Its own `ignore` key is overwritten, and `iscrowd` would change the overlap.
_IGNORED_AREA = -1.0


@dataclass(frozen=True)
class Metrics:
    """What `evaluate` found.

    Attributes:
        metrics: `AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl`, fractions in [0, 1], -1 where no ground truth
            defines them. The three `AR` numbers follow `max_detections`.
        per_class: for each class name `AP`, `AP50`, `AP75` (-1 without ground truth) and `boxes`, the number of ground
            truth boxes that count (neither crowd nor difficult).
        images: images evaluated, those without boxes included.
        boxes: ground truth boxes that count, over all classes.
        detections: rows handed in.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    images: int
    boxes: int
    detections: int


def evaluate(
    dataset: DetectionDataset,
    detections: DetectionTable,
    *,
    max_detections: Sequence[int] = (1, 10, 100),
) -> Metrics:
    """COCO's figures for `detections` on all images of `dataset`.

    Crowd boxes are COCO's `iscrowd`: they absorb any number of detections that lie at least IoU-threshold deep inside
    them. Difficult boxes are ignored as COCO ignores a box outside the area range: a detection whose plain IoU with
    one passes the threshold is neither right nor wrong (one detection for each box and threshold). Neither kind counts
    as ground truth. Equal scores are ranked as pycocotools ranks them: by ascending image id where the ids can be
    ordered (else by the dataset's order), then by the order of the table.

    Args:
        dataset: the ground truth; ids of any kind, since all of them are renumbered from 1 internally.
        detections: rows refer to `dataset`.
        max_detections: three increasing bounds on the detections of one class in one image; AP uses the last one.

    Raises:
        RetinaError: `max_detections` is not three increasing positive numbers, or a row does not fit the dataset.
    """
    limits = [int(limit) for limit in max_detections]
    if len(limits) != 3 or limits[0] < 1 or not limits[0] < limits[1] < limits[2]:
        raise RetinaError(
            f"max_detections: expected three increasing positive numbers, got {list(max_detections)}; "
            "COCO's are [1, 10, 100]"
        )
    check(detections, dataset)
    precision, recall = _run_pycocotools(dataset, detections, limits)
    labels = dataset.labels[~(dataset.crowd | dataset.difficult)]
    boxes = np.bincount(labels, minlength=len(dataset.class_names))
    return Metrics(
        metrics=_summary(precision, recall, limits),
        per_class={
            name: {
                "AP": _mean(precision[:, :, k, 0, -1]),
                "AP50": _mean(precision[0, :, k, 0, -1]),
                "AP75": _mean(precision[5, :, k, 0, -1]),
                "boxes": int(boxes[k]),
            }
            for k, name in enumerate(dataset.class_names)
        },
        images=len(dataset),
        boxes=len(labels),
        detections=len(detections),
    )


def _summary(precision: np.ndarray, recall: np.ndarray, limits: list[int]) -> dict[str, float]:
    """Precision [10 IoU, 101 recalls, K, 4 areas, 3 limits] and recall [10, K, 4, 3], averaged over what is defined.

    pycocotools' own summary insists on a limit of 100 and prints.
    """
    return {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[0, :, :, 0, -1]),
        "AP75": _mean(precision[5, :, :, 0, -1]),
        **{f"AP{size}": _mean(precision[:, :, :, area, -1]) for size, area in _SIZES.items()},
        **{f"AR{limit}": _mean(recall[:, :, 0, place]) for place, limit in enumerate(limits)},
        **{f"AR{size}": _mean(recall[:, :, area, -1]) for size, area in _SIZES.items()},
    }


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _run_pycocotools(
    dataset: DetectionDataset, detections: DetectionTable, limits: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    # pycocotools takes long to import, and `retina.evaluation` is imported by commands that never evaluate.
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ids = _internal_ids(dataset.image_ids)
    images = [{"id": n} for n in range(1, len(dataset) + 1)]
    categories = [{"id": k} for k in range(1, len(dataset.class_names) + 1)]
    truth, found = COCO(), COCO()
    truth.dataset = {"images": images, "categories": categories, "annotations": _truth(dataset, ids)}
    found.dataset = {"images": images, "categories": categories, "annotations": _found(detections, ids)}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"], evaluation.eval["recall"]


def _internal_ids(image_ids: Sequence[Any]) -> np.ndarray:
    """[N] 1..N, ascending with the source's ids: pycocotools visits images in that order, which decides ties."""
    rows = range(len(image_ids))
    try:
        order = sorted(rows, key=lambda row: image_ids[row])
    except TypeError:  # Numbers and strings mixed.
        order = list(rows)
    ids = np.empty(len(order), np.int64)
    ids[order] = np.arange(1, len(order) + 1)
    return ids


def _truth(dataset: DetectionDataset, ids: np.ndarray) -> list[dict[str, Any]]:
    # Crowd wins: a region stays a region, whoever also calls it difficult.
    area = np.where(dataset.difficult & ~dataset.crowd, _IGNORED_AREA, dataset.areas)
    fields = zip(
        np.repeat(ids, np.diff(dataset.offsets)).tolist(),
        (dataset.labels + 1).tolist(),
        to_xywh(dataset.boxes).tolist(),
        area.tolist(),
        dataset.crowd.astype(int).tolist(),
        strict=True,
    )
    return [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": size, "iscrowd": is_crowd}
        for number, (image, category, box, size, is_crowd) in enumerate(fields, start=1)
    ]


def _found(detections: DetectionTable, ids: np.ndarray) -> list[dict[str, Any]]:
    boxes = to_xywh(detections.boxes)
    fields = zip(
        ids[detections.image].tolist(),
        (detections.labels + 1).tolist(),
        boxes.tolist(),
        (boxes[:, 2] * boxes[:, 3]).tolist(),
        detections.scores.tolist(),
        strict=True,
    )
    return [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "score": score}
        for number, (image, category, box, area, score) in enumerate(fields, start=1)
    ]
