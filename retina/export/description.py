"""The document that travels inside every export, and what writers and runners share."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

import retina
from retina import config as configuration
from retina.data.images import load_image
from retina.data.stored import Photograph
from retina.errors import RetinaError, install_hint
from retina.inference import Detections, Predictor, build_detector
from retina.models.detector import Detector

FORMAT = 1
_STORED = "xyxy, pixels of the image as stored (EXIF rotation is not applied)"
_BOXES = {
    "auto": _STORED,
    "stored": _STORED,
    "upright": "xyxy, pixels of the upright picture: encoded images are turned as EXIF says, arrays of pixels must be "
    "upright already",
}
_PACKAGES = ("tensorflow", "keras", "tf2onnx", "onnx", "ai-edge-litert", "openvino", "numpy")


def describe(
    predictor: Predictor, category_ids: Sequence[int] | None, notes: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The document that travels inside an export; `config` is the whole resolved configuration of the training.

    Raises:
        RetinaError: the number of category ids is not the number of classes.
    """
    names = list(predictor.class_names)
    ids = list(range(len(names))) if category_ids is None else list(category_ids)
    if len(ids) != len(names):
        raise RetinaError(f"export: expected {len(names)} category ids, one a class, got {len(ids)}")
    return {
        "format": FORMAT,
        "class_names": names,
        "category_ids": ids,
        "boxes": _BOXES[predictor.config.data.orientation],
        "config": portable(predictor.config).model_dump(mode="json"),
        "versions": {"retina": retina.__version__, **_versions()},
        **(notes or {}),
    }


def portable(config: configuration.Config) -> configuration.Config:
    """The configuration without places on the machine that trained: of an absolute path only the last name stays."""

    def inside(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: inside(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [inside(inner) for inner in value]
        return without_place(value) if isinstance(value, str) else value

    return configuration.parse(inside(config.model_dump(mode="json")))


def without_place(text: str) -> str:
    """The last name of an absolute path; any other text as it is."""
    return Path(text).name if Path(text).is_absolute() else text


def float32_detector(predictor: Predictor) -> Detector:
    """The detector itself, or a float32 copy of one that computes in bfloat16."""
    if predictor.config.run.precision == "float32":
        return predictor.detector
    run = predictor.config.run.model_copy(update={"precision": "float32"})
    config = predictor.config.model_copy(update={"run": run})
    detector = build_detector(config, predictor.class_names, load_weights=False)
    detector.set_weights(predictor.detector.get_weights())
    return detector


def check_backend(kind: str) -> None:
    """Refuse to export where Keras does not run on TensorFlow.

    Raises:
        RetinaError: it runs on another backend.
    """
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise RetinaError(
            f"export to {kind}: expected the TensorFlow backend, got {backend}; set KERAS_BACKEND=tensorflow"
        )


def check_expressible(kind: str, inference: configuration.Inference, resize: configuration.Resize) -> None:
    """Refuse soft suppression and antialiasing, which the operators of ONNX and LiteRT's graph don't have.

    Raises:
        RetinaError: the settings ask for one.
    """
    if resize.antialias:
        raise RetinaError(
            f"export to {kind}: data.resize.antialias: expected false, got true; add data.resize.antialias=false, or "
            "export a saved_model, which has it"
        )
    if inference.suppression != "hard":
        raise RetinaError(
            f"export to {kind}: inference.suppression: expected hard, got {inference.suppression}; add "
            "inference.suppression=hard, or export a saved_model, which has it"
        )


def missing_extra(extra: str, error: ImportError) -> RetinaError:
    """The error of an optional package that is not installed, with the command that installs it."""
    return RetinaError(f"{extra}: {error.name or error} is not installed; {install_hint(extra)}")


@contextmanager
def quiet(logger_name: str) -> Iterator[None]:
    """Silence a converter that reports every pass it makes."""
    logger = logging.getLogger(logger_name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def detections_of(outputs: Mapping[str, Any], class_names: Sequence[str]) -> Detections:
    """Detections of the first image in an export's outputs, whose slots after `num_detections` are empty."""
    count = int(outputs["num_detections"][0])
    boxes, scores, labels = (np.asarray(outputs[name])[0, :count] for name in ("boxes", "scores", "labels"))
    return Detections(boxes, scores, labels, tuple(class_names[label] for label in labels), tuple(class_names))


def pixels_of(image: np.ndarray | bytes | str | Path, document: Mapping[str, Any]) -> np.ndarray:
    """The image as uint8 RGB [H, W, 3]; files are read as the run's own images were, arrays stay as they are.

    Args:
        document: of the export, see `describe`.

    Raises:
        RetinaError: it is missing, damaged, empty, or an array of another shape or type.
    """
    if isinstance(image, (str, Path, bytes)):
        return load_image(as_described(image if isinstance(image, bytes) else str(image), document))
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise RetinaError(f"image: expected uint8 RGB [H, W, 3], got {pixels.dtype} {list(pixels.shape)}; convert it")
    return pixels


def as_described(image: str | bytes, document: Mapping[str, Any]) -> Photograph:
    """The image with how it is read, by the configuration in the document of an export."""
    data = document["config"]["data"]  # exports of older versions lack the keys
    depth = data.get("depth")
    return Photograph(image, data.get("orientation") == "upright", depth and (depth["low"], depth["high"]))


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
