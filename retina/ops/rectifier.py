"""The rectified linear unit."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any


def relu(x: Tensor) -> Tensor:
    """Return max(x, 0), whose gradient is 0 where the result is 0.

    JAX's own `relu` asks its input where to pass a gradient, so that both tensors wait for the backward pass, and no
    convolution of cuDNN's can carry it. TensorFlow's and PyTorch's ask their result already.
    """
    return _of_result(x) if keras.backend.backend() == "jax" else ops.relu(x)


@ops.custom_gradient
def _of_result(x: Tensor) -> tuple[Tensor, Any]:
    result = ops.relu(x)
    # XLA turns `result > 0` back into a question about the input.
    return result, lambda upstream: ops.where(result != 0, upstream, ops.zeros_like(upstream))
