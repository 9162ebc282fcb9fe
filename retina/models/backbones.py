"""Backbones: Keras models from normalised images to feature maps `{"C3", "C4", "C5"}` at strides 8, 16 and 32.

`resnet50`, `efficientnet_lite0` and their kin are retina's own; each other ecosystem has a module that owns its names.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import NamedTuple

import keras

from retina.errors import RetinaError
from retina.models import backbones_keras_cv, backbones_keras_hub
from retina.models.efficientnet_lite import INSTALLED, SCALES, efficientnet_lite, installed_file, load_weights
from retina.models.resnet import resnet
from retina.private_names import fresh_layer_names
from retina.weights.architectures import ARCHITECTURES
from retina.weights.mapping import Report
from retina.weights.sources import PUBLISHED, load_backbone, published_file

LEVELS = ("C3", "C4", "C5")

# Depth, and whether the stride lies in the bottleneck's 1x1 convolution.
_RESNETS = {
    **{f"resnet{depth}": (depth, False) for depth in ARCHITECTURES},
    **{f"resnet{depth}_v1": (depth, True) for depth, (_, bottleneck) in ARCHITECTURES.items() if bottleneck},
}
_LITES = {f"efficientnet_lite{variant}": variant for variant in SCALES}


class Built(NamedTuple):
    """`report`: the account of the tensors in the file that `weights` names; None for a preset, or without weights."""

    network: keras.Model
    report: Report | None


def build(name: str, weights: str | None = None) -> keras.Model:
    """Build a backbone: the `network` of `build_reported`."""
    return build_reported(name, weights).network


def build_reported(name: str, weights: str | None = None) -> Built:
    """Build a backbone, and account for its weights.

    Args:
        name: of `names()`: `resnet50` (PyTorch's, stride in the 3x3), `resnet50_v1` (stride in the 1x1),
            `keras_cv/resnet50`, `keras_hub/resnet_50_imagenet` and so on.
        weights: for retina's networks the file of a classifier of torchvision or timm (.pth, .safetensors), its name in
            `retina.weights.sources.PUBLISHED`, or a ResNet of keras-hub (a preset folder), for keras-cv's a preset of
            the same network (`resnet50_imagenet`), for keras-hub's a preset or a preset folder; for EfficientNet-Lite a
            file (.pth), or "imagenet" for that of the installed package. None draws random weights.

    Returns:
        A model from [B, H, W, 3], H and W multiples of 32, to `{"C3": [B, H/8, W/8, c3], "C4": …, "C5": …}`. (MobileNet
        rounds other sizes down and CSPDarkNet refuses odd ones; the others round up.)

    Raises:
        RetinaError: unknown name, the preset can't be fetched, or the file can't be read or is of another network.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names())}"
        raise RetinaError(f"model.backbone: unknown backbone '{name}'; {hint}")
    with fresh_layer_names():  # keras-cv leaves some names to Keras' counters
        if name in backbones_keras_hub.NAMES:
            return Built(backbones_keras_hub.build(name, weights), None)
        if not takes_a_file(name):
            return Built(backbones_keras_cv.build(name, weights), None)
        if name in _LITES:
            network = efficientnet_lite(_LITES[name])
        else:
            depth, stride_in_1x1 = _RESNETS[name]
            network = resnet(depth, stride_in_1x1=stride_in_1x1)
    if weights is None:
        return Built(network, None)
    try:
        if name in _LITES:
            file = installed_file(name) if weights == INSTALLED else Path(weights)
            return Built(network, load_weights(network, file, name))
        file = published_file(weights) if weights in PUBLISHED else Path(weights)
        return Built(network, load_backbone(network, file, name))
    except RetinaError as error:
        raise RetinaError(f"model.weights: {error}") from None


def takes_a_file(name: str) -> bool:
    """Return whether `weights` of the backbone name a file (or folder), never a preset."""
    return name in _RESNETS or name in _LITES


def names() -> list[str]:
    """Names of all backbones."""
    return [*_RESNETS, *_LITES, *backbones_keras_cv.BUILDERS, *backbones_keras_hub.NAMES]
