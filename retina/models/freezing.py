"""Freezing of a backbone's first stages in training: those of residual networks, known by their layers' names."""

from __future__ import annotations

import re

import keras

from retina.errors import RetinaError

# The stem, then the stages that give C2 to C5, as keras-cv (v2_stack_0_…), keras-hub (stack0_…), PyTorch (layer1_…) and
# retina's EfficientNet-Lite (stage2_…, whose stem is in stage1_…) name their layers.
_STEM = re.compile(r"(conv\d_|conv1$|bn1$)")
_STAGE = re.compile(r"(?:v2_)?stack_?(?P<from_0>\d)_|layer(?P<from_1>\d)_|stage(?P<itself>\d)_")
_AFTER_THE_LAST = re.compile(r"post_bn$")
STAGES = 5


def stage_of(layer: str) -> int | None:
    """The stage of a residual network's layer, from its name: 1 is the stem, 2 to 5 give C2 to C5.

    Example: `v2_stack_0_block1_1_conv` and `layer1_0_conv1` are in stage 2. None for a name of another network.
    """
    if _STEM.match(layer):
        return 1
    if _AFTER_THE_LAST.match(layer):
        return STAGES
    match = _STAGE.match(layer)
    if match is None:
        return None
    if match["itself"] is not None:
        return int(match["itself"])
    stage = int(match["from_0"]) + 2 if match["from_0"] is not None else int(match["from_1"]) + 1
    return stage if 2 <= stage <= STAGES else None


def freeze_stages(backbone: keras.Model, name: str, stages: int) -> None:
    """Make the first stages untrainable; their batch normalisations then use their moving statistics.

    Args:
        backbone: changed in place.
        name: of the backbone, for the error.
        stages: 0 to 5, see `config.Model.freeze`.

    Raises:
        RetinaError: the stages can't be read from the layers' names. Nothing is frozen then.
    """
    if not stages:
        return
    layers = [layer for layer in backbone.layers if layer.weights]
    unknown = [layer.name for layer in layers if stage_of(layer.name) is None]
    if unknown:
        raise RetinaError(
            f"model.freeze: expected a residual network, whose stages are known, got {name} (layer "
            f"'{unknown[0]}' is of no stage); set model.freeze: 0, or use a resnet"
        )
    for layer in layers:
        if stage_of(layer.name) <= stages:  # type: ignore[operator]
            layer.trainable = False
