"""Max pooling."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from retina.ops.derivative import with_tangent

Tensor = Any


def max_pool(x: Tensor, size: int, stride: int) -> Tensor:
    """Return the largest values [B, H', W', C] of windows of [B, H, W, C], unpadded: H' = ⌊(H - size) / stride⌋ + 1.

    The gradient of a window goes to the first of its largest values, row by row, as on every backend. JAX's own is a
    search for the place of each and, on a GPU, a scatter of what they get: three times the bytes.
    """
    return _gathered(x, size, stride) if keras.backend.backend() == "jax" else ops.max_pool(x, size, stride)


def _gathered(x: Tensor, size: int, stride: int) -> Tensor:
    """`max_pool` whose gradient each value gathers from the windows that hold it."""
    offsets = [(dy, dx) for dy in range(size) for dx in range(size)]

    def tangent(result: Tensor, arguments: tuple[Tensor], tangents: tuple[Tensor]) -> Tensor:
        (x,), (of_x,) = arguments, tangents
        rows, columns = ((n - 1) * stride + 1 for n in result.shape[1:3])

        def in_windows(values: Tensor, dy: int, dx: int) -> Tensor:
            return values[:, dy : dy + rows : stride, dx : dx + columns : stride]

        place = ops.full(result.shape, len(offsets), "uint8")
        for number, offset in reversed(list(enumerate(offsets))):
            place = ops.where(in_windows(x, *offset) == result, ops.cast(number, "uint8"), place)
        shares = [
            ops.where(place == number, in_windows(of_x, *offset), ops.zeros_like(result))
            for number, offset in enumerate(offsets)
        ]
        return sum(shares[1:], shares[0])

    return with_tangent(lambda x: ops.max_pool(x, size, stride), tangent)(x)
