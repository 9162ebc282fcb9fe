"""The twelve COCO figures (cocodataset.org/#detection-eval), those of each class, and those of each overlap.

Two engines compute the same arrays of precision and recall: `pycocotools`, the reference, and `hotcoco`, the default,
because the tests hold each of its figures to the reference. On 5,000 images with 100 detections each it took 0.42 s and
0.34 GB where pycocotools took 44.9 s and 2.26 GB (2 cores, 2026-11-23: `scripts/benchmark_evaluation.py --rounds 3`).
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from retina import config
from retina.data.detections import short
from retina.data.ground_truth import GroundTruth, Results, check_results
from retina.errors import RetinaError
from retina.evaluation.matching import ALL_AREAS, IOU_THRESHOLDS, average_precision, id_order

Engine = Literal["hotcoco", "pycocotools"]
AreaRanges = Mapping[str, tuple[float, float]]

MAX_DETECTIONS = (1, 10, 100)
# More than any detector returns for an image; both engines and NumPy can count so far.
_LARGEST_LIMIT = 1_000_000
# Pixels², both ends included: COCO's small, medium and large.
AREA_RANGES: AreaRanges = MappingProxyType({"s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)})

# Below every area range, zero included: both engines then ignore the box in each of them, with the plain overlap.
# pycocotools overwrites a box's own `ignore` key, and `iscrowd` would change the overlap.
_IGNORED_AREA = -1.0


@dataclass(frozen=True)
class Metrics:
    """COCO's figures of a table of detections, each a fraction in [0, 1], or -1 where no ground truth defines it.

    Attributes:
        metrics: `AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl`. The numbers of `AR` follow `max_detections`, the
            letters `area_ranges`.
        per_class: for each class name the same figures, and `boxes`, the number of ground truth boxes that count
            (neither crowd nor difficult).
        per_iou: AP at each overlap, `{"0.50": …, "0.55": …}`.
        images: images evaluated, those without boxes included.
        boxes: ground truth boxes that count, over all classes.
        detections: rows handed in.
        max_detections: bounds on the detections of one class in one image.
        area_ranges: name to smallest and largest area in pixels², both included.
        engine: the one that computed them.
    """

    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    per_iou: dict[str, float]
    images: int
    boxes: int
    detections: int
    max_detections: tuple[int, ...]
    area_ranges: dict[str, tuple[float, float]]
    engine: Engine


class _Tables(NamedTuple):
    """Precision [10 IoU, 101 recalls, K, areas, limits] and recall [10, K, areas, limits]; the first area is all."""

    precision: np.ndarray
    recall: np.ndarray


class _Settings(NamedTuple):
    limits: tuple[int, ...]
    areas: dict[str, tuple[float, float]]


def evaluate(
    truth: GroundTruth,
    detections: Results,
    *,
    max_detections: Sequence[int] = MAX_DETECTIONS,
    area_ranges: AreaRanges = AREA_RANGES,
    engine: Engine = "hotcoco",
) -> Metrics:
    """Return COCO's figures for `detections` on all images of `truth`.

    Crowd boxes are COCO's `iscrowd`: they absorb any number of detections that lie at least IoU-threshold deep inside
    them. Difficult boxes are ignored as COCO ignores a box outside the area range: a detection whose plain IoU with
    one passes the threshold is neither right nor wrong (one detection for each box and threshold). Neither kind counts
    as ground truth. Equal scores are ranked as pycocotools ranks them: by ascending image id where the ids can be
    ordered (else by the table's order), then by the order of the table.

    Args:
        truth, detections: ids of any kind, since all of them are renumbered from 1 internally.
        max_detections: increasing bounds, up to a million, on the detections of one class in one image; AP uses the
            last one.
        area_ranges: name to smallest and largest area in pixels², both included; decides a box by its annotated area.
        engine: both give equal figures.

    Raises:
        RetinaError: `max_detections` are not increasing positive numbers, an area range is empty, the engine is
            unknown, or a detection does not fit the ground truth.
    """
    settings = _Settings(_limits(max_detections), _areas(area_ranges))
    check_results(detections, truth)
    if not len(truth.class_names):
        raise RetinaError(f"{truth.name}: no classes to evaluate; give ground truth with at least one category")
    engines = {"hotcoco": _run_hotcoco, "pycocotools": _run_pycocotools}
    if engine not in engines:
        raise RetinaError(f"engine: expected one of {', '.join(engines)}, got {engine!r}; choose one of them")
    tables = engines[engine](truth, detections, settings)
    boxes = np.bincount(truth.labels[truth.counted], minlength=len(truth.class_names))
    return Metrics(
        metrics=_summary(tables, settings),
        per_class={
            name: {**_summary(_of_class(tables, k), settings), "boxes": int(boxes[k])}
            for k, name in enumerate(truth.class_names)
        },
        per_iou={
            f"{iou:.2f}": average_precision(tables.precision[t, :, :, 0, -1]) for t, iou in enumerate(IOU_THRESHOLDS)
        },
        images=len(truth),
        boxes=int(boxes.sum()),
        detections=len(detections),
        max_detections=settings.limits,
        area_ranges={name: bounds for name, bounds in settings.areas.items() if name},
        engine=engine,
    )


def evaluate_as(settings: config.Evaluation, truth: GroundTruth, detections: Results) -> Metrics:
    """Return what `evaluate` does under the configuration's settings."""
    return evaluate(
        truth,
        detections,
        max_detections=settings.max_detections,
        area_ranges=settings.area_ranges,
        engine=settings.engine,
    )


def _limits(max_detections: Sequence[int]) -> tuple[int, ...]:
    limits = tuple(int(limit) for limit in max_detections)
    rising = all(low < high for low, high in itertools.pairwise((0, *limits)))
    if not limits or not rising or limits[-1] > _LARGEST_LIMIT:
        raise RetinaError(
            f"max_detections: expected increasing positive numbers up to {_LARGEST_LIMIT}, got "
            f"{short(list(max_detections))}; COCO's are [1, 10, 100]"
        )
    return limits


def _areas(ranges: AreaRanges) -> dict[str, tuple[float, float]]:
    for name, (low, high) in ranges.items():
        if not 0 <= low < high:
            raise RetinaError(
                f"area_ranges: {name}: expected 0 <= smallest < largest in square pixels, got {low} and {high}; "
                "COCO's small is (0, 1024)"
            )
    return {"": ALL_AREAS, **ranges}


def _summary(tables: _Tables, settings: _Settings) -> dict[str, float]:
    """Mean of what is defined. The summary of pycocotools insists on a limit of 100 and prints."""
    precision, recall = tables
    sizes = {name: place for place, name in enumerate(settings.areas) if name}
    return {
        "AP": average_precision(precision[:, :, :, 0, -1]),
        "AP50": average_precision(precision[0, :, :, 0, -1]),
        "AP75": average_precision(precision[5, :, :, 0, -1]),
        **{f"AP{name}": average_precision(precision[:, :, :, place, -1]) for name, place in sizes.items()},
        **{f"AR{limit}": average_precision(recall[:, :, 0, place]) for place, limit in enumerate(settings.limits)},
        **{f"AR{name}": average_precision(recall[:, :, place, -1]) for name, place in sizes.items()},
    }


def _of_class(tables: _Tables, k: int) -> _Tables:
    return _Tables(tables.precision[:, :, k : k + 1], tables.recall[:, k : k + 1])


# ------------------------------------------------------------------------------------------------------- engines


def _run_hotcoco(truth: GroundTruth, detections: Results, settings: _Settings) -> _Tables:
    from hotcoco import COCO, COCOeval

    ids = id_order(truth.image_ids) + 1
    images = [{"id": n} for n in range(1, len(truth) + 1)]
    categories = [{"id": k, "name": str(k)} for k in range(1, len(truth.class_names) + 1)]
    truth_coco = COCO.from_arrays(
        images,
        categories,
        ids[truth.image],
        truth.labels + 1,
        truth.boxes,
        area=_truth_areas(truth),
        iscrowd=truth.crowd,
    )
    # Detections are annotations with a score, which columns can't carry: `loadRes` takes them as an array.
    rows = np.column_stack([ids[detections.image], detections.boxes, detections.scores, detections.labels + 1])
    evaluation = COCOeval(truth_coco, truth_coco.loadRes(rows), "bbox")
    _set_params(evaluation.params, settings)
    evaluation.evaluate()
    evaluation.accumulate()
    tables: Any = evaluation.eval
    return _Tables(tables["precision"], tables["recall"])


def _run_pycocotools(truth: GroundTruth, detections: Results, settings: _Settings) -> _Tables:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ids = id_order(truth.image_ids) + 1
    images = [{"id": n} for n in range(1, len(truth) + 1)]
    categories = [{"id": k} for k in range(1, len(truth.class_names) + 1)]
    truth_coco, detections_coco = COCO(), COCO()
    truth_coco.dataset = {"images": images, "categories": categories, "annotations": _truth_entries(truth, ids)}
    detections_coco.dataset = {
        "images": images,
        "categories": categories,
        "annotations": _detection_entries(detections, ids),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth_coco.createIndex()
        detections_coco.createIndex()
        evaluation = COCOeval(truth_coco, detections_coco, "bbox")
        _set_params(evaluation.params, settings)
        evaluation.evaluate()
        evaluation.accumulate()
    return _Tables(evaluation.eval["precision"], evaluation.eval["recall"])


def _set_params(params: Any, settings: _Settings) -> None:
    params.maxDets = list(settings.limits)
    params.areaRng = [list(bounds) for bounds in settings.areas.values()]
    params.areaRngLbl = [name or "all" for name in settings.areas]


def _truth_areas(truth: GroundTruth) -> np.ndarray:
    return np.where(truth.difficult & ~truth.crowd, _IGNORED_AREA, truth.areas)


def _truth_entries(truth: GroundTruth, ids: np.ndarray) -> list[dict[str, Any]]:
    fields = zip(
        ids[truth.image].tolist(),
        (truth.labels + 1).tolist(),
        truth.boxes.tolist(),
        _truth_areas(truth).tolist(),
        truth.crowd.astype(int).tolist(),
        strict=True,
    )
    return [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": size, "iscrowd": is_crowd}
        for number, (image, category, box, size, is_crowd) in enumerate(fields, start=1)
    ]


def _detection_entries(detections: Results, ids: np.ndarray) -> list[dict[str, Any]]:
    fields = zip(
        ids[detections.image].tolist(),
        (detections.labels + 1).tolist(),
        detections.boxes.tolist(),
        (detections.boxes[:, 2] * detections.boxes[:, 3]).tolist(),
        detections.scores.tolist(),
        strict=True,
    )
    return [
        {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": area, "score": score}
        for number, (image, category, box, area, score) in enumerate(fields, start=1)
    ]
