"""Class labels as the losses take them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from retina.errors import RetinaError

Tensor = Any


def known(values: Tensor) -> np.ndarray | None:
    """The values as an array, or None while a function is traced or compiled and they don't exist yet."""
    # TensorFlow's tensors have `numpy` where they have values; asking a symbolic one for them warns before it fails.
    symbolic = keras.backend.backend() == "tensorflow" and ops.is_tensor(values) and not hasattr(values, "numpy")
    if symbolic or isinstance(values, keras.KerasTensor):
        return None
    try:
        return np.asarray(ops.convert_to_numpy(values))
    except TypeError:  # JAX's answer to a tracer
        return None


def check_labels(labels: Tensor, classes: int, where: str) -> None:
    """Every label is one of 0..`classes` - 1.

    Raises:
        RetinaError: one is not. Under tracing nothing is known, and nothing is raised.
    """
    values = known(labels)
    if values is None:
        return
    wrong = values[(values < 0) | (values >= classes) | (values != np.floor(values))]
    if wrong.size:
        raise RetinaError(
            f"{where}: expected labels 0 to {classes - 1}, got {wrong.flat[0]}; "
            "number the classes from 0, one output of the network each"
        )


def class_targets(logits: Tensor, targets: Tensor, where: str) -> Tensor:
    """Targets as a distribution over classes [..., K], of the dtype of `logits` [..., K].

    Args:
        targets: labels [...], one dimension fewer than `logits`, or already a distribution [..., K].

    Raises:
        RetinaError: the shapes don't belong together, or a label is known and not one of 0..K-1.
    """
    targets = ops.convert_to_tensor(targets)
    classes, rank = logits.shape[-1], len(logits.shape)
    if len(targets.shape) == rank and targets.shape[-1] == classes:
        return ops.cast(targets, logits.dtype)
    if len(targets.shape) != rank - 1:
        raise RetinaError(
            f"{where}: expected labels with one dimension fewer than the logits, or a distribution over their "
            f"{classes} classes, got shape {tuple(targets.shape)} for logits {tuple(logits.shape)}; reshape the targets"
        )
    check_labels(targets, classes, where)
    return ops.cast(is_class(targets, classes), logits.dtype)


def is_class(labels: Tensor, classes: int) -> Tensor:
    """[..., K] bool of labels [...]: whether the label is class k."""
    return ops.cast(labels, "int32")[..., None] == ops.arange(classes, dtype="int32")
