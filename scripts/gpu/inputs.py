"""The same made-up batch for everybody, and the settings that both detectors share."""

from __future__ import annotations

from typing import Any

import numpy as np

CLASSES, BOXES = 80, 7
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 1e-5, 0.9, 1e-4
# Above the score threshold, so that with random weights every level brings its 1000 candidates to suppression.
PRIOR, THRESHOLD, CANDIDATES, NMS_IOU, KEPT = 0.1, 0.05, 1000, 0.5, 100


def batch(size: int, canvas: tuple[int, int]) -> dict[str, Any]:
    """A training batch as the pipeline gives it (NumPy arrays on the host), and `scale` for decoding."""
    height, width = canvas
    draw = np.random.default_rng(0)
    sides = np.array([height, width], np.float32)
    extent = draw.uniform(1 / 16, 1 / 2, (size, BOXES, 2)) * sides
    corner = draw.uniform(0, 1, extent.shape) * (sides - extent)
    boxes = np.concatenate([corner[..., ::-1], (corner + extent)[..., ::-1]], axis=-1)
    return {
        "images": draw.integers(0, 256, (size, height, width, 3), dtype=np.uint8),
        "size": np.tile(np.array([canvas], np.int32), (size, 1)),
        "scale": np.ones((size, 2), np.float32),
        "boxes": boxes.astype(np.float32),
        "labels": draw.integers(0, CLASSES, (size, BOXES)).astype(np.int32),
        "valid": np.ones((size, BOXES), bool),
        "crowd": np.zeros((size, BOXES), bool),
    }
