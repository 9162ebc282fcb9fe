"""One description of a file of weights, whoever's it is: what it holds, where it goes, and under which conventions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras

from retina.errors import RetinaError
from retina.models.resnet import ARCHITECTURES
from retina.models.weights import detectron2, keras_hub, torchvision
from retina.models.weights.coco import CATEGORIES
from retina.models.weights.keras_file import read_keras
from retina.models.weights.mapping import Converted, Report, Rule, convert
from retina.models.weights.reading import TensorFile, read_tensors

DetectorKind = Literal["torchvision", "keras-hub", "detectron2"]


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

    def converted(self, shapes: Mapping[str, tuple[int, ...]]) -> Converted:
        """The values of variables of these shapes, by path.

        Raises:
            RetinaError: a tensor is missing, left over or of another shape.
        """
        return convert(
            self.tensors, self.rules, shapes, what=self.what, expected_unused=self.expected_unused, notes=self.notes
        )


def read_detector(kind: DetectorKind, path: Path, names: Sequence[str] | None, where: str) -> Source:
    """Reads a detector's file, and what it tells about itself.

    Args:
        names: of the head's rows; by default COCO's for a head of COCO's size, else `class_0`, ….
        where: the file in messages about `names`.

    Raises:
        RetinaError: the file can't be read or is not of this kind, or the names don't fit it.
    """
    return _DETECTORS[kind](path, names, where)


def _torchvision(path: Path, names: Sequence[str] | None, where: str) -> Source:
    tensors = read_tensors(path)
    found = torchvision.recognise(tensors)
    classes = torchvision.classes_of(found.rows, names, where)
    sections, notes = torchvision.conventions(found, tensors)
    return Source(
        tensors,
        torchvision.retinanet_rules(found, classes),
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
    found = keras_hub.recognise(file, tensors)
    classes = torchvision.classes_of(found.rows, names, where)
    sections, notes = keras_hub.conventions(found, where)
    return Source(
        keras_hub.outputs_first(tensors),
        keras_hub.retinanet_rules(found, classes),
        classes.names,
        classes.category_ids,
        sections,
        notes,
        {},
        "a RetinaNet of keras-hub",
    )


def _detectron2(path: Path, names: Sequence[str] | None, where: str) -> Source:
    tensors = read_tensors(path)
    found = detectron2.recognise(tensors)
    if names is None and found.rows == len(CATEGORIES):  # COCO's without the gaps in its numbers
        classes = torchvision.Classes(tuple(CATEGORIES.values()), tuple(CATEGORIES), tuple(range(found.rows)))
    else:
        classes = torchvision.classes_of(found.rows, names, where)
    sections, notes = detectron2.conventions(found, tensors)
    return Source(
        detectron2.colours_turned(tensors),
        detectron2.retinanet_rules(found, classes),
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
    """Whether a keras-hub file holds a ResNet alone.

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
    return torchvision.classifier_depth(read_tensors(path))


def load_backbone(network: keras.Model, path: Path, name: str) -> Report:
    """Assigns an ImageNet network's weights to one of our own ResNets.

    Args:
        network: of `retina.models.resnet`.
        path: of torchvision or timm (.pth, .safetensors), or of keras-hub (a preset folder, .keras, .weights.h5).
        name: of the network, for messages.

    Raises:
        RetinaError: the file can't be read, or is not of this network. Nothing is assigned then.
    """
    if not _is_keras(path):
        return torchvision.load_backbone(network, path, name)
    if name.endswith("_v1"):
        raise RetinaError(
            f"{path}: keras-hub's ResNets have their stride in the 3x3 convolution, {name} in the 1x1; set "
            f"model.backbone: {name.removesuffix('_v1')}"
        )
    architecture = ARCHITECTURES[int(name.removeprefix("resnet"))]
    variables = {variable.path: variable for variable in network.variables}
    converted = convert(
        keras_hub.tensors_of(read_keras(path)),
        keras_hub.encoder_rules(architecture),
        {path: tuple(variable.shape) for path, variable in variables.items()},
        what=f"{name} in keras-hub",
        expected_unused=keras_hub.CLASSIFIER,
    )
    for target, values in converted.arrays.items():
        variables[target].assign(values)
    return converted.report


def keras_pixels(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation in [0, 255] that a keras-hub preset was trained with, where it tells."""
    return keras_hub.pixels_of(read_keras(path)) if _is_keras(path) else None


def _is_keras(path: Path) -> bool:
    return path.is_dir() or path.name.endswith((".h5", ".keras"))
