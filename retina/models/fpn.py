"""Feature pyramid network (Lin et al. 2017, arXiv:1612.03144; P6 and P7 as in arXiv:1708.02002, section 4)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from retina import config
from retina.ops.rectifier import relu

Tensor = Any

_INITIALIZERS = {"xavier_uniform": "glorot_uniform", "he_uniform": "he_uniform"}


class FeaturePyramid(keras.layers.Layer):
    """Maps of `levels` from `{"C3", "C4", "C5"}`, finest first, each [B, ceil(H/2^l), ceil(W/2^l), channels]."""

    def __init__(self, fpn: config.Fpn, **kwargs: Any):
        super().__init__(**kwargs)
        self.fpn = fpn
        self.levels = tuple(range(fpn.min_level, fpn.max_level + 1))
        # The top-down path starts at C5 even where the coarsest output is finer.
        merged = range(fpn.min_level, 6)
        self.laterals = {level: self._convolution(1, 1, f"lateral_p{level}") for level in merged}
        self.smooth = {level: self._convolution(3, 1, f"smooth_p{level}") for level in merged if level in self.levels}
        self.extra = {level: self._convolution(3, 2, f"extra_p{level}") for level in self.levels if level > 5}

    def _convolution(self, size: int, stride: int, name: str) -> keras.layers.Conv2D:
        return keras.layers.Conv2D(
            self.fpn.channels,
            size,
            strides=stride,
            # Symmetric padding of a stride-2 convolution is put around the map before it.
            padding="valid" if stride == 2 and self.fpn.padding == "symmetric" else "same",
            kernel_initializer=_INITIALIZERS[self.fpn.init],
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, shapes: dict[str, tuple]) -> None:
        channels = (*shapes["C5"][:3], self.fpn.channels)
        for level, layer in self.laterals.items():
            layer.build(shapes[f"C{level}"])
        for layer in self.smooth.values():
            layer.build(channels)
        for level, layer in self.extra.items():
            layer.build(shapes["C5"] if level == 6 and self.fpn.p6_from == "c5" else channels)

    def call(self, features: dict[str, Tensor]) -> list[Tensor]:
        merged = {5: self.laterals[5](features["C5"])}
        for level in range(4, self.fpn.min_level - 1, -1):
            lateral = self.laterals[level](features[f"C{level}"])
            merged[level] = lateral + _upsample_to(merged[level + 1], lateral)
        maps = {level: layer(merged[level]) for level, layer in self.smooth.items()}
        if 6 in self.extra:
            maps[6] = self._halved(6, features["C5"] if self.fpn.p6_from == "c5" else maps[5])
        if 7 in self.extra:
            maps[7] = self._halved(7, relu(maps[6]))
        return [maps[level] for level in self.levels]

    def _halved(self, level: int, x: Tensor) -> Tensor:
        if self.fpn.padding == "symmetric":
            x = ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
        return self.extra[level](x)


def _upsample_to(coarse: Tensor, fine: Tensor) -> Tensor:
    """Nearest neighbour to twice the size, cut where the finer map's side is odd.

    For sides that a stride-2 layer made of each other this is also PyTorch's `interpolate` to the finer map's size.
    """
    doubled = ops.repeat(ops.repeat(coarse, 2, axis=1), 2, axis=2)
    _, height, width, _ = ops.shape(fine)
    return doubled[:, :height, :width, :]
