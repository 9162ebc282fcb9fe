#!/usr/bin/env python
"""COCO evaluation from arrays to the twelve figures: our two engines beside pycocotools and faster-coco-eval.

Every measurement is a process of its own, one at a time, the implementations taking turns over several rounds. All get
the same synthetic arrays (boxes of 80 classes with COCO's imbalance, 1 % crowds, 100 noisy detections an image). The
clock runs from the arrays to the figures, so it holds whatever an implementation needs to be fed: pycocotools and
faster-coco-eval take the ground truth as a tree of dictionaries and the detections as an array. Peak memory is that of
the whole process, interpreter, libraries and arrays included. `ours: matches` is our own matching with its table of
precision, which curves and intervals start from; `ours: bootstrap` adds 1,000 replicates for AP, AP50 and every class.

It fails (exit code 1) if any of the twelve figures differs from pycocotools' by more than 1e-12.

    scripts/benchmark_evaluation.py --images 5000 --detections 100 --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from harness import measure_apart, median, ratios

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
CLASSES = 80
BOXES_AN_IMAGE = 7.3  # COCO val2017: 36,781 boxes in 5,000 images
TOLERANCE = 1e-12
REPLICATES = 1000


class Arrays(NamedTuple):
    """M boxes and n detections (x, y, width, height) of N images."""

    images: int
    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    detection_image: np.ndarray
    detection_boxes: np.ndarray
    detection_labels: np.ndarray
    scores: np.ndarray


def arrays(images: int, detections: int) -> Arrays:
    """Every second detection is a jittered box; the rest are strays; rounded scores tie now and then."""
    random = np.random.default_rng(0)
    m, n = int(images * BOXES_AN_IMAGE), images * detections
    image = np.sort(random.integers(0, images, m))
    size = np.exp(random.normal(4, 1, (m, 2))).clip(4, 500)
    boxes = np.concatenate([random.uniform(0, 1, (m, 2)) * (640 - size).clip(1), size], axis=1)
    labels = (random.random(m) ** 3 * CLASSES).astype(int)
    detection_image = np.repeat(np.arange(images), detections)
    first, count = np.searchsorted(image, np.arange(images)), np.bincount(image, minlength=images)
    copied = first[detection_image] + (random.random(n) * count[detection_image]).astype(int)
    is_copy = (random.random(n) < 0.5) & (count[detection_image] > 0)
    copied = np.where(is_copy, copied, random.integers(0, m, n))
    detection_boxes = boxes[copied] + random.normal(0, 0.08, (n, 4)) * boxes[copied][:, [2, 3, 2, 3]]
    detection_labels = np.where(is_copy & (random.random(n) < 0.9), labels[copied], random.integers(0, CLASSES, n))
    scores = (random.beta(1 + 2 * is_copy, 2)).round(4)
    return Arrays(
        images,
        image,
        boxes,
        labels,
        random.random(m) < 0.01,
        detection_image,
        detection_boxes.clip(0),
        detection_labels,
        scores,
    )


# ---------------------------------------------------------------------------------------------- the implementations


def ours(data: Arrays, engine: Literal["pycocotools", "hotcoco"]) -> dict[str, float]:
    from retina.evaluation.coco import evaluate

    return evaluate(*_tables(data), engine=engine).metrics


def our_matches(data: Arrays) -> dict[str, float]:
    from retina.evaluation.matching import average_precision, match, precision

    table = precision(match(*_tables(data)))
    return {"AP": average_precision(table), "AP50": average_precision(table[0]), "AP75": average_precision(table[5])}


def our_bootstrap(data: Arrays) -> dict[str, float]:
    from retina.evaluation.bootstrap import bootstrap
    from retina.evaluation.matching import match

    truth, detections = _tables(data)
    bootstrap(match(truth, detections), replicates=REPLICATES, seed=0)
    return {}


def _tables(data: Arrays) -> tuple:
    from retina.data.ground_truth import GroundTruth, Results

    truth = GroundTruth(
        "truth",
        tuple(str(k) for k in range(CLASSES)),
        tuple(range(1, CLASSES + 1)),
        tuple(range(1, data.images + 1)),
        data.image,
        data.boxes,
        data.labels,
        data.crowd,
        np.zeros(len(data.image), bool),
        data.boxes[:, 2] * data.boxes[:, 3],
    )
    return truth, Results("detections", data.detection_image, data.detection_boxes, data.scores, data.detection_labels)


def pycocotools(data: Arrays) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return _demo(data, COCO(), COCOeval)


def faster_coco_eval(data: Arrays) -> dict[str, float]:
    from faster_coco_eval import COCO, COCOeval_faster

    return _demo(data, COCO(), COCOeval_faster)


def _demo(data: Arrays, truth: Any, evaluator: Callable) -> dict[str, float]:
    """The steps of pycocotools' own demonstration, which its successors share."""
    columns = zip(
        (data.image + 1).tolist(), (data.labels + 1).tolist(), data.boxes.tolist(), data.crowd.tolist(), strict=True
    )
    truth.dataset = {
        "images": [{"id": i} for i in range(1, data.images + 1)],
        "categories": [{"id": k, "name": str(k - 1)} for k in range(1, CLASSES + 1)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": k, "bbox": b, "area": b[2] * b[3], "iscrowd": int(c)}
            for n, (i, k, b, c) in enumerate(columns, start=1)
        ],
    }
    truth.createIndex()
    rows = np.column_stack([data.detection_image + 1, data.detection_boxes, data.scores, data.detection_labels + 1])
    evaluation = evaluator(truth, truth.loadRes(rows), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return dict(zip(NAMES, (float(value) for value in evaluation.stats[:12]), strict=True))


IMPLEMENTATIONS: dict[str, Callable[[Arrays], dict[str, float]]] = {
    "pycocotools": pycocotools,
    "faster-coco-eval": faster_coco_eval,
    "ours: pycocotools": lambda data: ours(data, "pycocotools"),
    "ours: hotcoco": lambda data: ours(data, "hotcoco"),
    "ours: matches": our_matches,
    "ours: bootstrap": our_bootstrap,
}


# ------------------------------------------------------------------------------------------------------ measurement


def measure(name: str, images: int, detections: int) -> dict:
    """Seconds, peak memory in GB (Linux counts in kB) and figures of this process."""
    data = arrays(images, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        figures = IMPLEMENTATIONS[name](data)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"seconds": seconds, "peak_gb": peak, "figures": figures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="for each image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(IMPLEMENTATIONS), default=list(IMPLEMENTATIONS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.images, arguments.detections)))
        return 0

    size = ["--images", str(arguments.images), "--detections", str(arguments.detections)]
    rounds = [
        {name: measure_apart([__file__, "--child", name, *size]) for name in arguments.only}
        for _ in range(arguments.rounds)
    ]
    reference = rounds[0].get("pycocotools")
    rows = {name: summary(name, rounds) for name in arguments.only}
    if arguments.json:
        print(json.dumps({"images": arguments.images, "detections": arguments.detections, "rows": rows}, indent=2))
    else:
        print(f"{arguments.images:,} images x {arguments.detections} detections, medians of {arguments.rounds} rounds")
        print(f"{'':20}{'seconds':>9}{'x pycocotools':>15}{'peak GB':>9}   largest difference")
        for name, row in rows.items():
            ratio = f"{row['speed_ratio']:.1f}" if reference else "-"
            difference = "-" if row["difference"] is None else f"{row['difference']:.1e}"
            print(f"{name:20}{row['seconds']:9.2f}{ratio:>15}{row['peak_gb']:9.2f}   {difference}")
    return int(any(row["difference"] is not None and row["difference"] > TOLERANCE for row in rows.values()))


def summary(name: str, rounds: list[dict[str, dict]]) -> dict:
    """Medians; the ratio to pycocotools is the median of the rounds' own."""
    reference = rounds[0].get("pycocotools", {}).get("figures", {})
    ours = rounds[0][name]["figures"]
    seconds = [r[name]["seconds"] for r in rounds]
    return {
        "seconds": statistics.median(seconds),
        "speed_ratio": median(ratios([r["pycocotools"]["seconds"] for r in rounds if "pycocotools" in r], seconds)),
        "peak_gb": max(r[name]["peak_gb"] for r in rounds),
        "difference": max(abs(ours[key] - reference[key]) for key in ours) if ours and reference else None,
        "figures": ours,
    }


if __name__ == "__main__":
    sys.exit(main())
