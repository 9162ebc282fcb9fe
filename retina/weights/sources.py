"""One description of a file of weights, whatever its ecosystem: content, places in the network, conventions."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import numpy as np

from retina.errors import RetinaError
from retina.weights import detectron2, keras_hub, torchvision
from retina.weights.architectures import ARCHITECTURES
from retina.weights.coco_classes import CATEGORIES
from retina.weights.keras_file import read_keras
from retina.weights.mapping import Converted, Report, Rule, Setting, convert
from retina.weights.tensor_file import TensorFile, read_tensors, sha256_of_file

# Of [0, 255], RGB, as torchvision and timm train on ImageNet.
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

# Of a head; all that is published has 4.
_MOST_LAYERS = 64

DetectorKind = Literal["torchvision", "keras-hub", "detectron2"]


class Published(NamedTuple):
    """Weights that have a name: a `kind` of `retina.runs.importing`, and where the file is."""

    kind: Literal["torchvision", "detectron2", "torchvision-backbone"]
    url: str


_TORCH, _DETECTRON2 = "https://download.pytorch.org/models", "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection"

PUBLISHED = {
    "torchvision/retinanet_resnet50_fpn": Published(
        "torchvision", f"{_TORCH}/retinanet_resnet50_fpn_coco-eeacb38b.pth"
    ),
    "torchvision/retinanet_resnet50_fpn_v2": Published(
        "torchvision", f"{_TORCH}/retinanet_resnet50_fpn_v2_coco-5905b1c5.pth"
    ),
    "detectron2/retinanet_R_50_FPN_1x": Published(
        "detectron2", f"{_DETECTRON2}/retinanet_R_50_FPN_1x/190397773/model_final_bfca0b.pkl"
    ),
    "detectron2/retinanet_R_50_FPN_3x": Published(
        "detectron2", f"{_DETECTRON2}/retinanet_R_50_FPN_3x/190397829/model_final_5bd44e.pkl"
    ),
    "detectron2/retinanet_R_101_FPN_3x": Published(
        "detectron2", f"{_DETECTRON2}/retinanet_R_101_FPN_3x/190397697/model_final_971ab9.pkl"
    ),
    "torchvision/resnet50": Published("torchvision-backbone", f"{_TORCH}/resnet50-11ad3fa6.pth"),
    "torchvision/resnet50_v1": Published("torchvision-backbone", f"{_TORCH}/resnet50-0676ba61.pth"),
    "torchvision/resnet101": Published("torchvision-backbone", f"{_TORCH}/resnet101-cd907fc2.pth"),
    "torchvision/resnet101_v1": Published("torchvision-backbone", f"{_TORCH}/resnet101-63fe2227.pth"),
    "timm/resnet50.a1_in1k": Published(
        "torchvision-backbone", "https://huggingface.co/timm/resnet50.a1_in1k/resolve/main/model.safetensors"
    ),
}
"""Detectors and ImageNet classifiers by name. `torchvision/resnet50` is torchvision's default, IMAGENET1K_V2."""

# A file of torchvision carries the start of its SHA-256.
_DIGEST = re.compile(r"-([0-9a-f]{8})\.\w+$")


def published_folder() -> Path:
    """Return the folder where published weights are kept: `retina` in Keras' own (`KERAS_HOME`, `~/.keras`)."""
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "retina"


def published_file(name: str) -> Path:
    """Return the file of published weights, which is fetched when it is first asked for.

    Args:
        name: of `PUBLISHED`.

    Raises:
        RetinaError: it can't be fetched, or it is not the file that its name's digest says.
    """
    url = PUBLISHED[name].url
    folder = published_folder() / name
    file = folder / url.rpartition("/")[2]
    if file.is_file():
        return file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(keras.utils.get_file(file.name, url, cache_dir=str(folder), cache_subdir="partial"))
    except Exception as error:  # Keras raises Exception itself
        raise RetinaError(
            f"{name}: cannot fetch {url} ({error}); put the file into {folder}, or name one that you have in its place"
        ) from None
    digest = _DIGEST.search(file.name)
    actual = sha256_of_file(partial)
    if digest and not actual.startswith(digest[1]):
        partial.unlink()
        raise RetinaError(
            f"{name}: {url}: expected a file whose SHA-256 begins with {digest[1]}, got {actual[:8]}; it is deleted, "
            "try again"
        )
    partial.replace(file)
    return file


class Source(NamedTuple):
    """A detector of another ecosystem. `sections` of a configuration hold its conventions; `resize` is `data`'s."""

    tensors: TensorFile
    rules: list[Rule]
    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    sections: dict[str, Any]
    notes: tuple[str, ...]
    expected_unused: Mapping[str, str]
    what: str
    settings: tuple[Setting, ...] = ()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the variables that the file's own network has, by path, as far as the file has its tensors."""
        given = self.tensors.tensors
        return {rule.target: rule.shape(given[rule.source].shape) for rule in self.rules if rule.source in given}

    def converted(self, shapes: Mapping[str, tuple[int, ...]]) -> Converted:
        """The values of variables of these shapes, by path.

        Raises:
            RetinaError: a tensor is missing, left over or of another shape.
        """
        return convert(
            self.tensors,
            self.rules,
            shapes,
            what=self.what,
            expected_unused=self.expected_unused,
            notes=self.notes,
            settings=self.settings,
        )


def read_detector(kind: DetectorKind, path: Path, names: Sequence[str] | None, where: str) -> Source:
    """Read a detector's file, and what it says of itself.

    Args:
        names: of the head's rows; by default COCO's for a head of COCO's size, else `class_0`, ….
        where: the file in messages about `names`.

    Raises:
        RetinaError: the file can't be read or is not of this kind, or the names don't fit it.
    """
    source = _DETECTORS[kind](path, names, where)
    _check_size(source)
    return source


def _check_size(source: Source) -> None:
    """A few shapes of a crafted file could ask for a network that no memory holds, before any tensor is compared."""
    model = source.sections["model"]
    channels, layers = model["fpn"]["channels"], model["head"]["layers"]
    needed = 9 * channels * channels * (2 * layers + 3)  # the heads' convolutions and the pyramid's
    held = sum(tensor.size for tensor in source.tensors.tensors.values())
    if layers > _MOST_LAYERS or needed > 2 * held:
        raise RetinaError(
            f"{source.tensors.path}: expected the weights of {source.what}; of its shapes a pyramid of {channels} "
            f"channels and heads of {layers} layers follow, which its {held} numbers can't fill. "
            "Is it another network's file?"
        )


def _torchvision(path: Path, names: Sequence[str] | None, where: str) -> Source:
    tensors = read_tensors(path)
    kind = torchvision.recognise(tensors)
    classes = torchvision.classes_of(kind.rows, names, where)
    sections, notes = torchvision.conventions(kind, tensors)
    return Source(
        tensors,
        torchvision.retinanet_rules(kind, classes),
        classes.names,
        classes.category_ids,
        sections,
        notes,
        torchvision.DETECTOR_UNUSED,
        "a torchvision RetinaNet",
    )


def _keras_hub(path: Path, names: Sequence[str] | None, where: str) -> Source:
    file = read_keras(path)
    tensors = keras_hub.tensors_of(file)
    kind = keras_hub.recognise(file, tensors)
    classes = torchvision.classes_of(kind.rows, names, where)
    sections, notes = keras_hub.conventions(kind, where)
    return Source(
        keras_hub.outputs_first(tensors),
        keras_hub.retinanet_rules(kind, classes),
        classes.names,
        classes.category_ids,
        sections,
        notes,
        {},
        "a RetinaNet of keras-hub",
        kind.settings.account,
    )


def _detectron2(path: Path, names: Sequence[str] | None, where: str) -> Source:
    tensors = read_tensors(path)
    kind = detectron2.recognise(tensors)
    if names is None and kind.rows == len(CATEGORIES):  # COCO's without the gaps in its numbers
        classes = torchvision.Classes(tuple(CATEGORIES.values()), tuple(CATEGORIES), tuple(range(kind.rows)))
    else:
        classes = torchvision.classes_of(kind.rows, names, where)
    sections, notes = detectron2.conventions(kind, tensors)
    return Source(
        detectron2.colours_turned(tensors),
        detectron2.retinanet_rules(kind, classes),
        classes.names,
        classes.category_ids,
        sections,
        notes,
        detectron2.UNUSED,
        "a RetinaNet of detectron2",
    )


_DETECTORS: dict[DetectorKind, Callable[[Path, Sequence[str] | None, str], Source]] = {
    "torchvision": _torchvision,
    "keras-hub": _keras_hub,
    "detectron2": _detectron2,
}


# ------------------------------------------------------------------------------------------------------- backbones


def is_keras_backbone(path: Path) -> bool:
    """Return whether a keras-hub file holds a ResNet alone.

    Raises:
        RetinaError: the file can't be read.
    """
    return keras_hub.holds_encoder_alone(keras_hub.tensors_of(read_keras(path)))


def backbone_depth(path: Path) -> int:
    """Layers of the ResNet in a file of torchvision, timm or keras-hub.

    Raises:
        RetinaError: the file can't be read, or holds no ResNet of 18 to 152 layers.
    """
    if _is_keras(path):
        return keras_hub.encoder_depth(keras_hub.tensors_of(read_keras(path)))
    return torchvision.classifier_depth(torchvision.read_classifier(path))


def load_backbone(network: keras.Model, path: Path, name: str) -> Report:
    """Assign an ImageNet network's weights to one of retina's ResNets.

    Args:
        network: of `retina.models.resnet`.
        path: of torchvision or timm (.pth, .safetensors), or of keras-hub (a preset folder, .keras, .weights.h5).
        name: of the network, for messages.

    Raises:
        RetinaError: the file can't be read, or is not of this network. Nothing is assigned then.
    """
    architecture = ARCHITECTURES[int(name.removeprefix("resnet").removesuffix("_v1"))]
    if not _is_keras(path):
        what, unused = name, torchvision.CLASSIFIER
        tensors, rules = torchvision.read_classifier(path), torchvision.resnet_rules(architecture)
    elif name.endswith("_v1"):
        raise RetinaError(
            f"{path}: keras-hub's ResNets have their stride in the 3x3 convolution, {name} in the 1x1; set "
            f"model.backbone: {name.removesuffix('_v1')}"
        )
    else:
        what, unused = f"{name} in keras-hub", keras_hub.CLASSIFIER
        tensors, rules = keras_hub.tensors_of(read_keras(path)), keras_hub.encoder_rules(architecture)
    variables = {variable.path: variable for variable in network.variables}
    shapes = {path: tuple(variable.shape) for path, variable in variables.items()}
    converted = convert(tensors, rules, shapes, what=what, expected_unused=unused)
    for target, values in converted.arrays.items():
        variables[target].assign(values)
    return converted.report


def pixel_notes(path: Path, mean: Sequence[float], std: Sequence[float]) -> tuple[str, ...]:
    """Notes on a configuration's pixel settings, [0, 255], beside a file of ImageNet weights.

    A file of torchvision's or timm's says nothing of its pixels, but all that they publish were trained with
    ImageNet's mean and deviation: others are noted, for they may be right for the user's file.

    Raises:
        RetinaError: a keras-hub preset says that it was trained with others.
    """
    if not _is_keras(path):
        known: tuple[tuple[float, ...], tuple[float, ...]] | None = (IMAGENET_MEAN, IMAGENET_STD)
    else:
        known = keras_hub.pixels_of(read_keras(path))
    notes = []
    for name, theirs, ours in zip(("pixel_mean", "pixel_std"), known or (), (mean, std), strict=False):
        if np.allclose(ours, theirs, rtol=1e-5, atol=1e-3):
            continue
        given, expected = list(ours), [round(value, 3) for value in theirs]
        if _is_keras(path):
            raise RetinaError(
                f"{path}: was trained with {name} {expected}, the configuration has {given}; add "
                f"model.{name}={expected}"
            )
        notes.append(
            f"model.{name} is {given}, the ImageNet weights of torchvision and timm expect {expected}: unless "
            f"{path.name} was trained with yours, set model.{name}={expected}"
        )
    return tuple(notes)


def _is_keras(path: Path) -> bool:
    return path.is_dir() or path.name.endswith((".h5", ".keras"))
