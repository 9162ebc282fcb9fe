"""keras-hub's ResNets, built by their constructor: `from_preset` fetches a preset even for random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from retina.errors import RetinaError, install_hint
from retina.weights.keras_file import read_keras

# Blocks of the four stages, whether they are bottlenecks, and the kind: plain, pre-activated ("v2", He et al. 2016,
# arXiv:1603.05027) or with a stem of three convolutions and pooled shortcuts ("vd", arXiv:1812.01187).
_NETWORKS = {
    "resnet_18": ((2, 2, 2, 2), False, ""),
    "resnet_50": ((3, 4, 6, 3), True, ""),
    "resnet_101": ((3, 4, 23, 3), True, ""),
    "resnet_152": ((3, 8, 36, 3), True, ""),
    "resnet_v2_50": ((3, 4, 6, 3), True, "v2"),
    "resnet_v2_101": ((3, 4, 23, 3), True, "v2"),
    "resnet_vd_18": ((2, 2, 2, 2), False, "vd"),
    "resnet_vd_34": ((3, 4, 6, 3), False, "vd"),
    "resnet_vd_50": ((3, 4, 6, 3), True, "vd"),
    "resnet_vd_101": ((3, 4, 23, 3), True, "vd"),
    "resnet_vd_152": ((3, 8, 36, 3), True, "vd"),
    "resnet_vd_200": ((3, 12, 48, 3), True, "vd"),
}
# Each name is also that of the preset with ImageNet's weights; ResNet-50-vd has three more.
NAMES = tuple(f"keras_hub/{stem}_imagenet" for stem in _NETWORKS)
_PREFIX, _SUFFIX = "keras_hub/", "_imagenet"


def build(name: str, weights: str | None) -> keras.Model:
    """A network of `NAMES` from images to its pyramid, with random weights, those of a preset, or of a folder.

    Args:
        name: one of `NAMES`; it says which network, not whose weights.
        weights: None, a preset's name (`resnet_50_imagenet`, fetched on first use), or a preset folder on disk.

    Raises:
        RetinaError: keras-hub is not installed, there is no such preset, or the folder is damaged or of another one.
    """
    hub = _keras_hub(name)
    stem = name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    network = hub.models.ResNetBackbone(**_arguments(stem))
    if weights is not None and Path(weights).is_dir():
        _load_folder(network, Path(weights), name)
    elif weights is not None:
        network = _fetch(hub, stem, name, weights)
    maps = {f"C{level}": network.pyramid_outputs[f"P{level}"] for level in (3, 4, 5)}
    return keras.Model(network.inputs[0], maps, name="backbone")


def _keras_hub(name: str) -> Any:
    try:
        import keras_hub
    except ImportError:
        raise RetinaError(
            f"model.backbone: {name} needs keras-hub, which is not installed; take resnet50, or {install_hint('hub')}"
        ) from None
    return keras_hub


def _arguments(stem: str) -> dict[str, Any]:
    blocks, bottleneck, kind = _NETWORKS[stem]
    block = ("bottleneck" if bottleneck else "basic") + "_block"
    return {
        "input_conv_filters": [32, 32, 64] if kind == "vd" else [64],
        "input_conv_kernel_sizes": [3, 3, 3] if kind == "vd" else [7],
        "stackwise_num_filters": [64, 128, 256, 512],
        "stackwise_num_blocks": list(blocks),
        "stackwise_num_strides": [1, 2, 2, 2],
        "block_type": f"{block}_vd" if kind == "vd" else block,
        "use_pre_activation": kind == "v2",
        "image_shape": (None, None, 3),
    }


def _load_folder(network: keras.Model, folder: Path, name: str) -> None:
    """Load a preset folder. Keras reads its file, by order; before that the configuration and values are checked."""
    config = read_keras(folder).configs.get("config.json", {})
    settings = config.get("config") if isinstance(config, dict) else None
    wanted = network.get_config()
    for key in ("input_conv_filters", "stackwise_num_blocks", "block_type", "use_pre_activation"):
        if not isinstance(settings, dict) or settings.get(key) != wanted[key]:
            other = settings.get(key) if isinstance(settings, dict) else "nothing"
            raise RetinaError(
                f"model.weights: {folder}: expected a preset of {name} ({key} {wanted[key]}), its config.json has "
                f"{other}; choose the backbone of these weights"
            )
    try:
        network.load_weights(str(folder / "model.weights.h5"))
    except Exception as error:  # Keras raises what h5py and its own checks raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RetinaError(f"model.weights: {folder}: not the weights of {name} ({reason}); fetch it again") from None
    for variable in network.variables:
        if variable.path.endswith("/moving_variance") and float(keras.ops.min(variable)) < 0:
            raise RetinaError(
                f"model.weights: {folder}: {variable.path} is a variance, expected values from 0, got "
                f"{float(keras.ops.min(variable)):g}; fetch it again"
            )


def _fetch(hub: Any, stem: str, name: str, weights: str) -> keras.Model:
    known = sorted(preset for preset in hub.models.ResNetBackbone.presets if preset.startswith(f"{stem}_"))
    if weights not in known:
        raise RetinaError(
            f"model.weights: there is no preset folder and no preset '{weights}' of {name}; keras-hub has: "
            f"{', '.join(known) or 'none'}"
        )
    try:
        return hub.models.ResNetBackbone.from_preset(weights, image_shape=(None, None, 3))
    except Exception as error:  # kagglehub raises what its HTTP stack raises: any of it means "not fetched"
        reason = " ".join(str(error).split())[:200]
        raise RetinaError(
            f"model.weights: cannot fetch keras-hub preset '{weights}' ({type(error).__name__}: {reason}). It is "
            "downloaded from Kaggle on first use: connect this machine once, give a preset folder, or train from "
            "scratch with model.weights=null model.batch_norm=train"
        ) from error
