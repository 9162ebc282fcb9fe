"""keras-cv's backbones, built by their base-class constructors: its aliases (`ResNet50Backbone()`) fetch a preset even
for random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from retina.errors import RetinaError
from retina.startup import garbage_left_alone, require_tensorflow

# Blocks of each stage and whether they are bottlenecks (He et al. 2015, arXiv:1512.03385, table 1; 10 is common usage).
_RESNETS = {
    10: ((1, 1, 1, 1), False),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}

# Howard et al. 2019 (arXiv:1905.02244), tables 1 and 2: expansion, filters, kernel, stride, squeeze-excite, activation.
_MOBILENETS: dict[str, tuple[tuple[float, int, int, int, float | None, str], ...]] = {
    "small": (
        (1, 16, 3, 2, 0.25, "relu"),
        (72 / 16, 24, 3, 2, None, "relu"),
        (88 / 24, 24, 3, 1, None, "relu"),
        (4, 40, 5, 2, 0.25, "hard_swish"),
        (6, 40, 5, 1, 0.25, "hard_swish"),
        (6, 40, 5, 1, 0.25, "hard_swish"),
        (3, 48, 5, 1, 0.25, "hard_swish"),
        (3, 48, 5, 1, 0.25, "hard_swish"),
        (6, 96, 5, 2, 0.25, "hard_swish"),
        (6, 96, 5, 1, 0.25, "hard_swish"),
        (6, 96, 5, 1, 0.25, "hard_swish"),
    ),
    "large": (
        (1, 16, 3, 1, None, "relu"),
        (4, 24, 3, 2, None, "relu"),
        (3, 24, 3, 1, None, "relu"),
        (3, 40, 5, 2, 0.25, "relu"),
        (3, 40, 5, 1, 0.25, "relu"),
        (3, 40, 5, 1, 0.25, "relu"),
        (6, 80, 3, 2, None, "hard_swish"),
        (2.5, 80, 3, 1, None, "hard_swish"),
        (2.3, 80, 3, 1, None, "hard_swish"),
        (2.3, 80, 3, 1, None, "hard_swish"),
        (6, 112, 3, 1, 0.25, "hard_swish"),
        (6, 112, 3, 1, 0.25, "hard_swish"),
        (6, 160, 5, 2, 0.25, "hard_swish"),
        (6, 160, 5, 1, 0.25, "hard_swish"),
        (6, 160, 5, 1, 0.25, "hard_swish"),
    ),
}

# Tan & Le 2021 (arXiv:2104.00298), table 4 for S, and the reference code's B0 (the stages that B1-B3 scale from):
# kernel, repeats, input filters, output filters, expansion, squeeze-excite, stride, block.
_EFFICIENTNETS: dict[str, tuple[tuple[int, int, int, int, int, float, int, str], ...]] = {
    "b0": (
        (3, 1, 32, 16, 1, 0, 1, "fused"),
        (3, 2, 16, 32, 4, 0, 2, "fused"),
        (3, 2, 32, 48, 4, 0, 2, "fused"),
        (3, 3, 48, 96, 4, 0.25, 2, "unfused"),
        (3, 5, 96, 112, 6, 0.25, 1, "unfused"),
        (3, 8, 112, 192, 6, 0.25, 2, "unfused"),
    ),
    "s": (
        (3, 2, 24, 24, 1, 0, 1, "fused"),
        (3, 4, 24, 48, 4, 0, 2, "fused"),
        (3, 4, 48, 64, 4, 0, 2, "fused"),
        (3, 6, 64, 128, 4, 0.25, 2, "unfused"),
        (3, 9, 128, 160, 6, 0.25, 1, "unfused"),
        (3, 15, 160, 256, 6, 0.25, 2, "unfused"),
    ),
}

# Width and depth multipliers of YOLOX (Ge et al. 2021, arXiv:2107.08430) on (128, 256, 512, 1024) and (3, 9, 9, 3).
_CSP_DARKNETS = {"tiny": (0.375, 0.33), "s": (0.5, 0.33), "m": (0.75, 0.67), "l": (1.0, 1.0), "xl": (1.25, 1.33)}


def _keras_cv() -> Any:
    require_tensorflow("model.backbone: keras-cv, which imports it (take resnet50 or its kin)")
    with garbage_left_alone("keras_cv"):
        import keras_cv

    return keras_cv.models


_SHAPE: dict[str, Any] = {"include_rescaling": False, "input_shape": (None, None, 3)}


def _resnet(depth: int, version: str) -> keras.Model:
    blocks, bottleneck = _RESNETS[depth]
    network = getattr(_keras_cv(), f"ResNet{version}Backbone")
    return network(
        stackwise_filters=[64, 128, 256, 512],
        stackwise_blocks=list(blocks),
        stackwise_strides=[1, 2, 2, 2],
        block_type="block" if bottleneck else "basic_block",
        **_SHAPE,
    )


def _mobilenet(size: str) -> keras.Model:
    expansion, filters, kernel, stride, squeeze, activation = zip(*_MOBILENETS[size], strict=True)
    return _keras_cv().MobileNetV3Backbone(
        stackwise_expansion=list(expansion),
        stackwise_filters=list(filters),
        stackwise_kernel_size=list(kernel),
        stackwise_stride=list(stride),
        stackwise_se_ratio=list(squeeze),
        stackwise_activation=list(activation),
        **_SHAPE,
    )


def _efficientnet(size: str) -> keras.Model:
    kernel, repeats, inputs, outputs, expansion, squeeze, stride, block = zip(*_EFFICIENTNETS[size], strict=True)
    return _keras_cv().EfficientNetV2Backbone(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        stackwise_kernel_sizes=list(kernel),
        stackwise_num_repeats=list(repeats),
        stackwise_input_filters=list(inputs),
        stackwise_output_filters=list(outputs),
        stackwise_expansion_ratios=list(expansion),
        stackwise_squeeze_and_excite_ratios=list(squeeze),
        stackwise_strides=list(stride),
        stackwise_conv_types=list(block),
        **_SHAPE,
    )


def _csp_darknet(size: str) -> keras.Model:
    width, depth = _CSP_DARKNETS[size]
    return _keras_cv().CSPDarkNetBackbone(
        stackwise_channels=[int(channels * width) for channels in (128, 256, 512, 1024)],
        stackwise_depth=[max(1, round(blocks * depth)) for blocks in (3, 9, 9, 3)],
        **_SHAPE,
    )


def _bind(builder: Callable[..., keras.Model], *arguments: Any) -> Callable[[], keras.Model]:
    return lambda: builder(*arguments)


BUILDERS: dict[str, Callable[[], keras.Model]] = {
    **{f"keras_cv/resnet{depth}": _bind(_resnet, depth, "") for depth in _RESNETS},
    # keras-cv gives two layers of a one-block first stage the same name, so that a ResNetV2 of depth 10 can't be built.
    **{f"keras_cv/resnet{depth}_v2": _bind(_resnet, depth, "V2") for depth in _RESNETS if depth != 10},
    **{f"keras_cv/mobilenet_v3_{size}": _bind(_mobilenet, size) for size in _MOBILENETS},
    **{f"keras_cv/efficientnetv2_{size}": _bind(_efficientnet, size) for size in _EFFICIENTNETS},
    **{f"keras_cv/csp_darknet_{size}": _bind(_csp_darknet, size) for size in _CSP_DARKNETS},
}


def build(name: str, weights: str | None) -> keras.Model:
    """A network of `BUILDERS`, with random weights or those of a preset, from images to its pyramid.

    Raises:
        RetinaError: no such preset, or it can't be fetched.
    """
    network = BUILDERS[name]() if weights is None else _preset(name, weights)
    # keras-cv names its pyramid after the level whose input it is: P3 is the map at stride 8.
    tensors = {f"C{level}": network.get_layer(network.pyramid_level_inputs[f"P{level}"]).output for level in (3, 4, 5)}
    return keras.Model(network.inputs[0], tensors, name="backbone")


def _preset(name: str, weights: str) -> keras.Model:
    models = _keras_cv()
    stem = name.removeprefix("keras_cv/")
    if not weights.startswith(stem):
        raise RetinaError(f"model.weights: preset '{weights}' is not one of {name}; its presets start with '{stem}'")
    families = {
        "resnet": models.ResNetV2Backbone if stem.endswith("_v2") else models.ResNetBackbone,
        "mobilenet_v3": models.MobileNetV3Backbone,
        "efficientnetv2": models.EfficientNetV2Backbone,
        "csp_darknet": models.CSPDarkNetBackbone,
    }
    family = next(cls for prefix, cls in families.items() if stem.startswith(prefix))
    known = sorted(preset for preset in family.presets_with_weights if preset.startswith(stem))
    if weights not in known:
        raise RetinaError(
            f"model.weights: keras-cv has no preset '{weights}'; for {name} it has: {', '.join(known) or 'none'}"
        )
    try:
        return family.from_preset(weights, load_weights=True, **_SHAPE)
    except Exception as error:  # kagglehub raises what its HTTP stack raises: any of it means "not fetched"
        reason = " ".join(str(error).split())[:200]
        raise RetinaError(
            f"model.weights: cannot fetch keras-cv preset '{weights}' ({type(error).__name__}: {reason}). "
            "It is downloaded from Kaggle on first use: connect this machine once, or train from "
            "scratch with model.weights=null model.batch_norm=train"
        ) from error
