"""Max pooling."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Tensor = Any


def max_pool(x: Tensor, size: int, stride: int) -> Tensor:
    """Return the largest values [B, H', W', C] of windows of [B, H, W, C], unpadded: H' = ⌊(H - size) / stride⌋ + 1.

    The gradient of a window goes to the first of its largest values, row by row, as on every backend. JAX's own is a
    search for the place of each and, on a GPU, a scatter of what they get: three times the bytes.
    """
    return _gathered(x, size, stride) if keras.backend.backend() == "jax" else ops.max_pool(x, size, stride)


def _gathered(x: Tensor, size: int, stride: int) -> Tensor:
    """`max_pool` whose gradient each value gathers from the windows that hold it."""
    height, width = int(x.shape[1]), int(x.shape[2])
    offsets = [(dy, dx) for dy in range(size) for dx in range(size)]

    @ops.custom_gradient
    def pool(x: Tensor) -> tuple[Tensor, Any]:
        result = ops.max_pool(x, size, stride)
        rows, columns = ((n - 1) * stride + 1 for n in result.shape[1:3])
        place = ops.full(result.shape, len(offsets), "uint8")
        for number, (dy, dx) in reversed(list(enumerate(offsets))):
            largest = x[:, dy : dy + rows : stride, dx : dx + columns : stride] == result
            place = ops.where(largest, ops.cast(number, "uint8"), place)

        def gradient(*args: Tensor, upstream: Tensor = None) -> Tensor:
            (upstream,) = args if upstream is None else (upstream,)
            shares = [
                _spread(ops.where(place == number, upstream, ops.zeros_like(upstream)), stride, offset, (height, width))
                for number, offset in enumerate(offsets)
            ]
            return sum(shares[1:], shares[0])

        return result, gradient

    return pool(x)


def _spread(x: Tensor, stride: int, offset: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Place values [B, h, w, C] `stride` apart on zeros [B, *size, C], the first at `offset`."""
    batch, rows, columns, channels = x.shape
    gap = (0, stride - 1)
    apart = ops.pad(x[:, :, None, :, None], [(0, 0), (0, 0), gap, (0, 0), gap, (0, 0)])
    apart = ops.reshape(apart, (batch, rows * stride, columns * stride, channels))
    (top, left), (height, width) = offset, size
    apart = apart[:, : height - top, : width - left]
    below, right = height - top - apart.shape[1], width - left - apart.shape[2]
    return ops.pad(apart, [(0, 0), (top, below), (left, right), (0, 0)])
