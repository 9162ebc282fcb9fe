"""Residual networks as PyTorch's ecosystem builds them (He et al. 2015, arXiv:1512.03385), so that its weights fit.

They differ from keras-cv's in what no file of weights says: convolutions and the pooling of stride 2 pad both sides
alike, a bottleneck's stride lies in its 3x3 convolution ("V1.5"; Goyal et al. 2017, arXiv:1706.02677, section 5.1), and
variances get 1e-5 added.
"""

from __future__ import annotations

import keras

from retina.weights.architectures import ARCHITECTURES

EPSILON = 1e-5
# PyTorch counts the other way round: its 0.1 is the share of the new statistics.
MOMENTUM = 0.9


def resnet(depth: int, *, stride_in_1x1: bool = False) -> keras.Model:
    """A residual network without its classifier.

    Args:
        depth: a key of `retina.weights.architectures.ARCHITECTURES`.
        stride_in_1x1: the stride of a bottleneck lies in its first convolution, as in the paper, Caffe's weights and
            those that detectron2 took over from them; for depths 50 and more.

    Returns:
        A model from normalised images [B, H, W, 3] to `{"C3": [B, H/8, W/8, c3], "C4": …, "C5": …}`, sides rounded up.
        Layers have the names of PyTorch's modules, with `_` for `.`.
    """
    blocks, bottleneck = ARCHITECTURES[depth]
    image = keras.Input((None, None, 3), name="image")
    x = _convolution(image, 64, 7, 2, "conv1")
    x = keras.layers.ReLU(name="relu")(_norm(x, "bn1"))
    # After the rectifier zeros are as good as PyTorch's padding with -inf.
    x = keras.layers.ZeroPadding2D(1, name="maxpool_pad")(x)
    x = keras.layers.MaxPooling2D(3, strides=2, name="maxpool")(x)
    maps = {}
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            stride = 2 if stage > 1 and block == 0 else 1
            name, width = f"layer{stage}_{block}", 64 * 2 ** (stage - 1)
            x = _bottleneck(x, width, stride, stride_in_1x1, name) if bottleneck else _basic(x, width, stride, name)
        maps[f"C{stage + 1}"] = x
    del maps["C2"]
    return keras.Model(image, maps, name="backbone")


def _basic(x: keras.KerasTensor, width: int, stride: int, name: str) -> keras.KerasTensor:
    y = _convolution(x, width, 3, stride, f"{name}_conv1")
    y = keras.layers.ReLU(name=f"{name}_relu1")(_norm(y, f"{name}_bn1"))
    y = _norm(_convolution(y, width, 3, 1, f"{name}_conv2"), f"{name}_bn2")
    return _joined(x, y, stride, name)


def _bottleneck(x: keras.KerasTensor, width: int, stride: int, stride_in_1x1: bool, name: str) -> keras.KerasTensor:
    strides = (stride, 1) if stride_in_1x1 else (1, stride)
    y = _convolution(x, width, 1, strides[0], f"{name}_conv1")
    y = keras.layers.ReLU(name=f"{name}_relu1")(_norm(y, f"{name}_bn1"))
    y = _convolution(y, width, 3, strides[1], f"{name}_conv2")
    y = keras.layers.ReLU(name=f"{name}_relu2")(_norm(y, f"{name}_bn2"))
    y = _norm(_convolution(y, 4 * width, 1, 1, f"{name}_conv3"), f"{name}_bn3")
    return _joined(x, y, stride, name)


def _joined(x: keras.KerasTensor, y: keras.KerasTensor, stride: int, name: str) -> keras.KerasTensor:
    """Rectified sum of a block's branch `y` and its input, which a convolution adapts where shapes differ."""
    if stride != 1 or x.shape[-1] != y.shape[-1]:
        x = _convolution(x, y.shape[-1], 1, stride, f"{name}_downsample_0")
        x = _norm(x, f"{name}_downsample_1")
    return keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([x, y]))


def _convolution(x: keras.KerasTensor, filters: int, size: int, stride: int, name: str) -> keras.KerasTensor:
    """Padded by `size // 2` on every side, as "same" does at stride 1 only."""
    if stride > 1 and size > 1:
        x = keras.layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
    return keras.layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding="same" if stride == 1 else "valid",
        use_bias=False,
        # arXiv:1502.01852, eq. 10, over the outputs: as PyTorch's networks are drawn.
        kernel_initializer=keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="untruncated_normal"),
        name=name,
    )(x)


def _norm(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return keras.layers.BatchNormalization(epsilon=EPSILON, momentum=MOMENTUM, name=name)(x)
