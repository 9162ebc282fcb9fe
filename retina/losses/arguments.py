"""What a loss is handed, as tensors of floats."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any


def floats(values: Tensor, dtype: Any = None) -> Tensor:
    """The values (tensors, arrays, lists or numbers) as a tensor of `dtype`; by default floats stay what they are, and
    whole numbers become Keras' default float."""
    if not isinstance(values, keras.KerasTensor):
        values = ops.convert_to_tensor(values)
    if dtype is None:
        given = keras.backend.standardize_dtype(values.dtype)
        dtype = given if keras.backend.is_float_dtype(given) else keras.config.floatx()
    return ops.cast(values, dtype)


def smoothed(targets: Tensor, smoothing: float, classes: int) -> Tensor:
    """Targets of which the share `smoothing` is spread evenly over the classes (Szegedy et al. 2016, arXiv:1512.00567,
    section 7); of a binary target there are two."""
    return targets * (1.0 - smoothing) + smoothing / classes if smoothing else targets
