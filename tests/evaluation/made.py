"""Ground truth and results made by hand or drawn at random, for the tests of the evaluators."""

from __future__ import annotations

import numpy as np

from retina.data.ground_truth import GroundTruth, Results


def truth(rows, images=1, classes=1, image_ids=None):
    """Rows are (image, label, (x, y, width, height)[, "crowd" or "difficult"])."""
    boxes = np.array([row[2] for row in rows], np.float64).reshape(-1, 4)
    flags = [row[3] if len(row) > 3 else "" for row in rows]
    return GroundTruth(
        name="made by hand",
        class_names=tuple("abcdefgh"[:classes]),
        category_ids=tuple(range(1, classes + 1)),
        image_ids=tuple(image_ids or range(1, images + 1)),
        image=np.array([row[0] for row in rows], np.int64),
        boxes=boxes,
        labels=np.array([row[1] for row in rows], np.int64),
        crowd=np.array([flag == "crowd" for flag in flags], np.bool_),
        difficult=np.array([flag == "difficult" for flag in flags], np.bool_),
        areas=boxes[:, 2] * boxes[:, 3],
    )


def found(rows):
    """Rows are (image, label, (x, y, width, height), score)."""
    return Results(
        "made by hand",
        np.array([row[0] for row in rows], np.int64),
        np.array([row[2] for row in rows], np.float64).reshape(-1, 4),
        np.array([row[3] for row in rows], np.float64),
        np.array([row[1] for row in rows], np.int64),
    )


def drawn(seed, images=4, classes=3, flags=True, ties=True):
    """Boxes on a coarse grid, detections near them and elsewhere: hits, duplicates, near misses and wrong classes.

    Args:
        flags: some boxes are crowds or difficult.
        ties: scores are tenths, so that many are equal; otherwise all differ.
    """
    rng = np.random.default_rng(seed)
    boxes, detections = [], []
    for image in range(images):
        for _ in range(rng.integers(0, 6)):
            box = np.concatenate((rng.integers(0, 12, 2) * 8.0, rng.integers(1, 5, 2) * 8.0))
            flag = str(rng.choice(["", "", "", "crowd", "difficult"])) if flags else ""
            label = int(rng.integers(classes))
            boxes.append((image, label, tuple(box), flag))
            for _ in range(rng.integers(0, 4)):
                near = box + rng.choice([0.0, 1.0, 3.0, 6.0]) * rng.standard_normal(4)
                near[2:] = np.maximum(near[2:], 0.0)
                wrong = int(rng.integers(classes))
                detections.append((image, label if rng.random() < 0.6 else wrong, tuple(near)))
        for _ in range(rng.integers(0, 3)):
            box = np.concatenate((rng.uniform(0, 100, 2), rng.uniform(0, 30, 2)))
            detections.append((image, int(rng.integers(classes)), tuple(box)))
    scores = rng.integers(0, 11, len(detections)) / 10 if ties else rng.permutation(len(detections)) / 1000 + 0.001
    order = rng.permutation(len(detections))
    rows = [(*detections[place], float(score)) for place, score in zip(order, scores, strict=True)]
    return truth(boxes, images, classes), found(rows)


def crowded(seed, images=5000, per_image=100, boxes_per_image=7, classes=80):
    """Tables of COCO's size: half of the detections near a box, the others anywhere."""
    rng = np.random.default_rng(seed)
    count = images * boxes_per_image
    boxes = np.concatenate((rng.uniform(0, 500, (count, 2)), rng.uniform(10, 150, (count, 2))), axis=1)
    labels = rng.integers(0, classes, count)
    image = np.repeat(np.arange(images), per_image)
    base = image * boxes_per_image + rng.integers(0, boxes_per_image, len(image))
    near = rng.random(len(image)) < 0.5
    detections = boxes[base] + rng.normal(0, 8, (len(image), 4))
    anywhere = np.concatenate((rng.uniform(0, 500, (len(image), 2)), rng.uniform(10, 150, (len(image), 2))), axis=1)
    detections = np.where(near[:, None], detections, anywhere)
    detections[:, 2:] = np.maximum(detections[:, 2:], 1.0)
    detected = np.where(near & (rng.random(len(image)) < 0.8), labels[base], rng.integers(0, classes, len(image)))
    none = np.zeros(count, np.bool_)
    there = GroundTruth(
        name="drawn",
        class_names=tuple(f"class {k}" for k in range(classes)),
        category_ids=tuple(range(1, classes + 1)),
        image_ids=tuple(range(1, images + 1)),
        image=np.repeat(np.arange(images), boxes_per_image),
        boxes=boxes,
        labels=labels,
        crowd=none,
        difficult=none,
        areas=boxes[:, 2] * boxes[:, 3],
    )
    return there, Results("drawn", image, detections, rng.random(len(image)), detected)


def iou(one, other, crowd=False):
    """Of two boxes x, y, width, height; over the area of the first where the second is a crowd. Plain Python."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (one[2] * one[3] if crowd else one[2] * one[3] + other[2] * other[3] - shared)
