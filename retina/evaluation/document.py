"""`metrics.json` and what `--json` prints: the keys of an evaluation, in one place.

| key | value |
|---|---|
| `protocol`, `conventions` | `coco`, and the rules of the figures in words |
| `engine` | which engine computed them; both give the same |
| `metrics` | `AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl`, fractions in [0, 1], -1 where nothing defines one |
| `per_class` | for each class name the same, and `boxes`, how many of it there are to find |
| `per_iou` | AP at each overlap, `"0.50"` to `"0.95"` |
| `images`, `boxes`, `detections` | how many went in; `boxes` without crowds and difficult ones |
| `max_detections`, `area_ranges` | the bounds of the AR figures, and `[low, high]` of the sizes in square pixels |

and, after an assessment (`retina evaluate`, `retina score`):

| key | value |
|---|---|
| `intervals` | `level`, `method`, `replicates`, `seed`, and `[low, high]` of AP, AP50, AP75 in `metrics` and `per_class`; null without |
| `errors` | TIDE at `iou` and `background_iou`: `base_ap`, `delta_ap` (what fixing a kind adds, null without boxes), `special`, `counts`, `per_class` counts |
| `operating_points` | `overall` and `per_class`: `threshold` of the largest F1 at IoU 0.5, its `precision`, `recall`, `f1`; null where there is none |
| `calibration` | `expected_error`, `maximum_error`, and `bins` with `low`, `high`, `count`, `score`, `precision` (null when empty); null where scores are no probabilities |
| `confusion` | `score_threshold`, `iou`, `names` (the classes and `background`), `matrix` (rows: what it is; columns: what it was called) |
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retina.errors import RetinaError
from retina.evaluation.assessment import Assessment, Intervals
from retina.evaluation.coco import Metrics
from retina.evaluation.confusion import Confusion
from retina.evaluation.curves import Reliability
from retina.evaluation.matching import ALL_AREAS
from retina.evaluation.tide import Tide
from retina.evaluation.voc import VocMetrics

# A figure is named after the way its curve is averaged, for the same detections differ in it.
SHORT = {"voc07": "11pt", "voc10": "allpt"}


def conventions(metrics: Metrics) -> dict[str, str]:
    """Return the rules of COCO's figures in words: other rules give other numbers for the same detections."""
    limits = metrics.max_detections
    return {
        "average_precision": "mean over the overlaps 0.50, 0.55, ... 0.95 of the precision at 101 recalls (COCO)",
        "matching": "by descending score, each detection takes the box of its class it overlaps most of those still "
        "free, a hit from the threshold on (>=)",
        "crowd": "crowds don't count; detections that lie in one at the overlap's depth are neither right nor wrong",
        "difficult": "difficult boxes don't count, nor do detections of them",
        "limit": f"at most {limits[-1]} detections of a class in an image; average recall at "
        f"{', '.join(map(str, limits))}",
        "sizes": "; ".join(f"{name}: {area_in_words(*bounds)}" for name, bounds in metrics.area_ranges.items()),
        "ties": "equal scores by ascending image id, then in the order given",
        "undefined": "-1 where no ground truth defines a figure; such classes are left out of the means",
    }


def to_json(metrics: Metrics, assessment: Assessment | None = None) -> dict[str, Any]:
    """Return plain values under the keys of the module's docstring; an undefined figure is -1 or None, never NaN."""
    tree: dict[str, Any] = {
        "protocol": "coco",
        "conventions": conventions(metrics),
        "engine": metrics.engine,
        "metrics": dict(metrics.metrics),
        "per_class": {name: dict(figures) for name, figures in metrics.per_class.items()},
        "per_iou": dict(metrics.per_iou),
        "images": metrics.images,
        "boxes": metrics.boxes,
        "detections": metrics.detections,
        "max_detections": list(metrics.max_detections),
        "area_ranges": {name: list(bounds) for name, bounds in metrics.area_ranges.items()},
    }
    if assessment is None:
        return tree
    points = assessment.operating
    return {
        **tree,
        "intervals": assessment.intervals and _intervals(assessment.intervals),
        "errors": _errors(assessment.errors),
        "operating_points": {
            "iou": 0.5,
            "overall": dataclasses.asdict(points.overall),
            "per_class": {
                name: dataclasses.asdict(point) for name, point in zip(metrics.per_class, points.per_class, strict=True)
            },
        },
        "calibration": assessment.calibration and _calibration(assessment.calibration),
        "confusion": _confusion(assessment.confusion),
    }


def read_thresholds(path: Path, class_names: Sequence[str]) -> np.ndarray:
    """Return the score of the largest F1 of each class [K] from a `metrics.json`, or from the folder that holds it.

    A class that the evaluation could not judge, for it had no box or none of its was detected, has that of all classes.

    Raises:
        RetinaError: the file can't be read, holds no operating points, or is of other classes.
    """
    file = path / "metrics.json" if path.is_dir() else path
    try:
        points = json.loads(file.read_text(encoding="utf-8"))["operating_points"]
        overall, per_class = points["overall"]["threshold"], points["per_class"]
        given = {name: point["threshold"] for name, point in per_class.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = error.strerror if isinstance(error, OSError) else "it holds no thresholds"
        raise RetinaError(
            f"{file}: expected a number, or the metrics.json of an evaluation with its thresholds, {fault}; make one "
            "with retina evaluate RUN --out DIR"
        ) from None
    if list(given) != list(class_names):
        raise RetinaError(f"{file}: its classes {list(given)} are not the detector's {list(class_names)}")
    if overall is None:
        raise RetinaError(f"{file}: no score finds a box in that evaluation, so it has no thresholds; give a number")
    return np.array([overall if threshold is None else threshold for threshold in given.values()], np.float32)


def area_in_words(low: float, high: float) -> str:
    """Return an area range, both ends included, in words: `32² to 96² px`."""
    if low <= 0:
        return f"up to {_side(high)} px"
    return f"above {_side(low)} px" if high >= ALL_AREAS[1] else f"{_side(low)} to {_side(high)} px"


def _side(area: float) -> str:
    root = math.sqrt(area)
    return f"{root:.0f}²" if root == round(root) else f"{area:g} square"


def flat_metrics(voc: Sequence[VocMetrics]) -> dict[str, float]:
    """Return VOC's means as `{"mAP_11pt@0.5": …, "mAP_allpt@0.5": …}`, by overlap and protocol."""
    return {f"mAP_{name}": figures["mAP"] for name, figures, _ in voc_columns(voc)}


def flat_classes(voc: Sequence[VocMetrics]) -> dict[str, dict[str, float]]:
    """Return for each class `{"AP_11pt@0.5": …, "boxes": …}`."""
    columns = voc_columns(voc)
    out: dict[str, dict[str, float]] = {}
    for class_name in columns[0][1]["per_class"] if columns else ():
        rows = {name: figures["per_class"][class_name] for name, figures, _ in columns}
        out[class_name] = {f"AP_{name}": row["AP"] for name, row in rows.items()}
        out[class_name]["boxes"] = next(iter(rows.values()))["boxes"]
    return out


def voc_columns(voc: Sequence[VocMetrics]) -> list[tuple[str, dict, str]]:
    """Return (name such as "11pt@0.5", its figures, protocol), by overlap and then protocol."""
    overlaps = list(voc[0].figures) if voc else []
    return [
        (f"{SHORT[metrics.protocol]}@{iou}", metrics.figures[iou], metrics.protocol)
        for iou in overlaps
        for metrics in voc
    ]


def _intervals(intervals: Intervals) -> dict[str, Any]:
    return {
        "level": intervals.level,
        "method": intervals.method,
        "replicates": intervals.replicates,
        "seed": intervals.seed,
        "metrics": {name: list(ends) for name, ends in intervals.metrics.items()},
        "per_class": {
            label: {name: list(ends) for name, ends in figures.items()}
            for label, figures in intervals.per_class.items()
        },
    }


def _errors(errors: Tide) -> dict[str, Any]:
    return {
        "iou": errors.iou,
        "background_iou": errors.background_iou,
        "base_ap": errors.base_ap,
        "delta_ap": dict(errors.delta_ap),
        "special": dict(errors.special),
        "counts": dict(errors.counts),
        "per_class": {name: dict(counts) for name, counts in errors.per_class.items()},
    }


def _calibration(calibration: Reliability) -> dict[str, Any]:
    return {
        "iou": 0.5,
        "expected_error": calibration.expected_error,
        "maximum_error": calibration.maximum_error,
        "bins": [
            {
                "low": float(calibration.edges[b]),
                "high": float(calibration.edges[b + 1]),
                "count": int(calibration.count[b]),
                "score": _defined(calibration.score[b]),
                "precision": _defined(calibration.precision[b]),
            }
            for b in range(len(calibration.count))
        ],
    }


def _confusion(confusion: Confusion) -> dict[str, Any]:
    return {
        "score_threshold": confusion.score_threshold,
        "iou": confusion.iou,
        "names": list(confusion.names),
        "matrix": confusion.matrix.tolist(),
    }


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
