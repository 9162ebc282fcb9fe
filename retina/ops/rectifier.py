"""The rectified linear unit."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from retina.ops.derivative import with_tangent

Tensor = Any


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0), whose gradient is 0 where the result is 0.

    JAX's own `relu` asks its input where to pass a gradient, so that both tensors wait for the backward pass, and no
    convolution of cuDNN's can carry it. TensorFlow's and PyTorch's ask their result already.
    """
    return with_tangent(ops.relu, _where_not_zero)(x) if keras.backend.backend() == "jax" else ops.relu(x)


def _where_not_zero(result: Tensor, _: tuple[Tensor], tangents: tuple[Tensor]) -> Tensor:
    # XLA turns `result > 0` back into a question about the input.
    return ops.where(result != 0, tangents[0], ops.zeros_like(result))
