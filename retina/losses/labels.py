"""Class labels in the form that the losses take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from retina.errors import RetinaError

Tensor = Any


def known(values: Tensor) -> np.ndarray | None:
    """The values as an array, or None while a function is traced, compiled or transformed and they don't exist yet."""
    # TensorFlow's tensors have `numpy` where they have values; asking a symbolic one for them warns before it fails.
    symbolic = keras.backend.backend() == "tensorflow" and ops.is_tensor(values) and not hasattr(values, "numpy")
    if symbolic or isinstance(values, keras.KerasTensor):
        return None
    try:
        return np.asarray(ops.convert_to_numpy(values))
    except (TypeError, RuntimeError):  # JAX's answer to a tracer, PyTorch's inside of torch.func's transforms
        return None


def differ(first: Sequence[int | None], second: Sequence[int | None]) -> bool:
    """Return whether two shapes are certain to differ: in rank, or in a dimension that both know."""
    if len(first) != len(second):
        return True
    return any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(first, second, strict=True))


def legal_labels(labels: Tensor, leading: Sequence[int | None], classes: int, where: str) -> Tensor | None:
    """The labels in 0..`classes` - 1: None for all of them, else a mask for `nan_unless`.

    Args:
        labels: numbers of the shape `leading`, as far as it is known.

    Returns:
        None where the values are known; a bool tensor of the labels' shape while they are traced.

    Raises:
        RetinaError: the shape is another, or a known label is no class.
    """
    if not hasattr(labels, "shape"):
        labels = np.asarray(labels)
    if differ(tuple(labels.shape), tuple(leading)):
        raise RetinaError(
            f"{where}: expected one label for each sample, shape {tuple(leading)}, got shape {tuple(labels.shape)}; "
            "reshape the labels"
        )
    values = known(labels)
    if values is None:
        floating = keras.backend.is_float_dtype(keras.backend.standardize_dtype(labels.dtype))
        numbers = labels if floating else ops.cast(labels, "float32")
        in_range = ops.logical_and(numbers >= 0, numbers <= classes - 1)
        return ops.logical_and(in_range, numbers == ops.floor(numbers))
    wrong = values[~((values >= 0) & (values < classes) & (values == np.floor(values)))]
    if wrong.size:
        raise RetinaError(
            f"{where}: expected labels 0 to {classes - 1}, got {wrong.flat[0]}; "
            "number the classes from 0, one output of the network each"
        )
    return None


def nan_unless(legal: Tensor | None, losses: Tensor) -> Tensor:
    """`losses` with NaN, and no gradient, where a label is not legal; a mask of None leaves them as they are.

    A compiled function cannot raise, and any other number would pass for a loss.
    """
    return losses if legal is None else ops.where(legal, losses, math.nan)


def class_targets(logits: Tensor, targets: Tensor, where: str) -> tuple[Tensor, Tensor | None]:
    """Targets as a distribution over classes [..., K], of the dtype of `logits` [..., K], and a mask for `nan_unless`.

    Args:
        targets: labels [...], one dimension fewer than `logits`, or already a distribution [..., K].

    Raises:
        RetinaError: the shapes don't belong together, or a label is known and not one of 0..K-1.
    """
    targets = ops.convert_to_tensor(targets)
    shape, classes = tuple(logits.shape), logits.shape[-1]
    if not differ(tuple(targets.shape), shape):
        return ops.cast(targets, logits.dtype), None
    if differ(tuple(targets.shape), shape[:-1]):
        raise RetinaError(
            f"{where}: expected labels with one dimension fewer than the logits, or a distribution over their "
            f"{classes} classes, got shape {tuple(targets.shape)} for logits {shape}; reshape the targets"
        )
    legal = legal_labels(targets, shape[:-1], classes, where)
    return ops.cast(is_class(targets, classes), logits.dtype), legal


def class_mask(scores: Tensor, labels: Tensor, where: str) -> tuple[Tensor, Tensor | None]:
    """Mask [..., K] of each sample's class, of labels [...] or one-hot [..., K], and a mask for `nan_unless`.

    Raises:
        RetinaError: as `legal_labels`; or a row that is known is not one-hot.
    """
    labels, classes = ops.convert_to_tensor(labels), scores.shape[-1]
    if differ(tuple(labels.shape), tuple(scores.shape)):
        legal = legal_labels(labels, scores.shape[:-1], classes, where)
        return is_class(labels, classes), legal
    mask = labels == 1
    legal = ops.logical_and(
        ops.all(ops.logical_or(mask, labels == 0), axis=-1), ops.sum(ops.cast(mask, "int32"), axis=-1) == 1
    )
    values = known(legal)
    if values is not None and not values.all():
        raise RetinaError(f"{where}: expected labels, or rows of zeros and a single 1; correct the rows")
    return mask, legal if values is None else None


def is_class(labels: Tensor, classes: int) -> Tensor:
    """Mask [..., K] of labels [...]: whether the label is class k."""
    return ops.cast(labels, "int32")[..., None] == ops.arange(classes, dtype="int32")
