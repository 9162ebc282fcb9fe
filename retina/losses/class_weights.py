"""Weights of classes in the classification loss, for data where some classes are rare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retina.config import ClassWeights
from retina.errors import RetinaError


def class_weights(section: ClassWeights, class_names: Sequence[str], boxes: np.ndarray | None = None) -> np.ndarray:
    """Return the weight [K] float64 of each class, as `loss.class_weights` says.

    Args:
        class_names: [K], in the order of the labels.
        boxes: [K] the numbers of training boxes that count; None where nobody knows them.

    Raises:
        RetinaError: a name is no class, or the numbers are missing or all alike.
    """
    if section.kind == "given":
        unknown = sorted(section.weights.keys() - set(class_names))
        if unknown:
            raise RetinaError(
                f"loss.class_weights.weights: expected names of classes, got '{unknown[0]}'; the classes are "
                f"{', '.join(class_names)}"
            )
        return np.array([section.weights.get(name, 1.0) for name in class_names])
    if boxes is None:
        raise RetinaError(
            "loss.class_weights: effective needs the numbers of training boxes, which only retina.train counts; give "
            "{kind: given, weights: {…}}"
        )
    if len(set(boxes[boxes > 0].tolist())) <= 1:
        raise RetinaError(
            "loss.class_weights: effective has no effect: expected classes of different numbers of boxes, got "
            f"{boxes.max(initial=0)} of each that has any; leave it out"
        )
    return effective_weights(boxes, section.beta)


def effective_weights(boxes: np.ndarray, beta: float) -> np.ndarray:
    """Return weights [K] in proportion to (1 - β) / (1 - βⁿ) (arXiv:1901.05555, eq. 2), 1 in the mean over boxes.

    A class without boxes, which no anchor has, counts as if it had one.

    Args:
        boxes: [K] whole numbers, not all 0.
        beta: in (0, 1).

    Example: 1 and 2 boxes with β = 1/2 have effective numbers 1 and 3/2, so weights in the ratio 3 : 2, of which the
    mean over the 3 boxes is 1: 9/7 and 6/7.
    """
    numbers = np.maximum(np.asarray(boxes, np.float64), 1.0)
    inverse = (1.0 - beta) / -np.expm1(numbers * np.log(beta))
    return inverse * np.sum(boxes) / np.sum(inverse * boxes)
