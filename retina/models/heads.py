"""Classification and box subnets, shared over pyramid levels (arXiv:1708.02002, section 4)."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from retina import config
from retina.models.group_norm import GroupNormalization
from retina.ops.rectifier import relu

Tensor = Any


class Subnet(keras.layers.Layer):
    """Convolutions and a prediction, applied to each pyramid level with the same weights.

    Maps `[[B, h, w, c], …]` to one [B, Σ h·w·anchors, width] float32; with `joined=False` to each level's convolution
    [B, h, w, anchors·width] in the compute dtype, of which `predictions` makes the rest.
    """

    def __init__(self, head: config.Head, anchors: int, width: int, bias: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.head, self.anchors, self.width, self.bias_value = head, anchors, width, bias
        self.convolutions = [self._convolution(head.channels, head.conv_bias, f"conv_{i}") for i in range(head.layers)]
        self.norms = [
            GroupNormalization(32, epsilon=head.norm_epsilon, dtype=self.dtype_policy, name=f"norm_{i}")
            for i in range(head.layers if head.norm == "group" else 0)
        ]
        self.prediction = self._convolution(anchors * width, False, "prediction")

    def _convolution(self, channels: int, bias: bool, name: str) -> keras.layers.Conv2D:
        return keras.layers.Conv2D(
            channels,
            3,
            padding="same",
            use_bias=bias,
            kernel_initializer=keras.initializers.RandomNormal(stddev=self.head.init_std),
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, shapes: list[tuple]) -> None:
        shape = tuple(shapes[0])
        for index, layer in enumerate(self.convolutions):
            layer.build(shape)
            shape = (*shape[:3], self.head.channels)
            if self.norms:
                self.norms[index].build(shape)
        self.prediction.build(shape)
        self.bias = self.add_weight(
            name="prediction_bias",
            shape=(self.anchors * self.width,),
            initializer=keras.initializers.Constant(self.bias_value),
            dtype="float32",
            autocast=False,
        )

    def call(self, maps: list[Tensor], joined: bool = True) -> Tensor | list[Tensor]:
        levels = [self._one_level(x) for x in maps]
        if not joined:
            return levels
        return ops.concatenate([predictions(x, self.bias, self.width) for x in levels], axis=1)

    def _one_level(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.convolutions):
            x = layer(x)
            x = relu(self.norms[index](x) if self.norms else x)
        return self.prediction(x)


def predictions(convolved: Tensor, bias: Tensor, width: int) -> Tensor:
    """Predictions [B, h·w·anchors, width] float32 of a level's last convolution [B, h, w, anchors·width].

    The bias is added in float32: in bfloat16 a bias of -4.6 would round the logits to steps of 1/32.
    """
    x = ops.cast(convolved, "float32") + ops.convert_to_tensor(bias)
    _, height, columns, channels = ops.shape(x)
    return ops.reshape(x, (-1, height * columns * (channels // width), width))


def classification_subnet(head: config.Head, anchors: int, classes: int, **kwargs: Any) -> Subnet:
    """Logits [B, A, K]; every class starts with probability `head.prior`."""
    bias = -math.log((1.0 - head.prior) / head.prior)
    return Subnet(head, anchors, classes, bias, name="classification", **kwargs)


def box_subnet(head: config.Head, anchors: int, **kwargs: Any) -> Subnet:
    """Deltas [B, A, 4]."""
    return Subnet(head, anchors, 4, 0.0, name="box", **kwargs)
