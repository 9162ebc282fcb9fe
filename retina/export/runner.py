"""Exports of any format, opened and run."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from retina.errors import RetinaError
from retina.export import litert, onnx, saved_model, worker
from retina.inference import Detections

Format = Literal["saved_model", "onnx", "litert"]
Image = np.ndarray | bytes | Path


class Runner(Protocol):
    """A loaded export. A runner that can show what lies between an image and its detections also has a method
    `stages(image) -> dict[str, np.ndarray]`, with any of `retina.export.agreement.TENSORS`: the certificate then names
    the stage in which a difference arises."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def path(self) -> Path: ...

    @property
    def document(self) -> Mapping[str, Any]:
        """The document that travels inside: see `retina.export.description.describe`."""
        ...

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """Detections of uint8 RGB arrays [H, W, 3] or of encoded files, of any sizes, in the order given.

        Raises:
            RetinaError: a file is missing or no image, or an array is of another shape or type.
        """
        ...


def format_of(path: str | Path) -> Format | None:
    """The format of the export at `path`; None if there is none."""
    path = Path(path)
    if path.is_dir():
        return "saved_model" if (path / "saved_model.pb").is_file() else None
    return _SUFFIXES.get(path.suffix.lower()) if path.is_file() else None


def installed_runtimes(format: Format) -> tuple[str, ...]:
    """The packages that run exports of a format and are installed; first the format's first choice, there or not."""
    first, *others = _RUNTIMES[format]
    return (first, *(name for name in others if importlib.util.find_spec(_RUNTIMES[format][name])))


def open_artefact(path: str | Path, runtime: str | None = None) -> Runner:
    """Load an export: a SavedModel's folder, or a file ending in .onnx or .tflite.

    Args:
        runtime: of `installed_runtimes`; its first if left out.

    Raises:
        RetinaError: there is none, or it is damaged or no export of retina.
    """
    path = Path(path)
    format = format_of(path)
    if format is None:
        what = "it is neither" if path.exists() else "there is nothing"
        raise RetinaError(
            f"{path}: expected an export (a SavedModel folder, or a file ending in {' or '.join(_SUFFIXES)}), {what}; "
            "make one with retina export"
        )
    if format == "saved_model":
        return saved_model.open_saved_model(path)
    given: Any = {} if runtime is None else {"runtime": runtime}
    return onnx.open_onnx(path, **given) if format == "onnx" else litert.open_litert(path, **given)


def _for_worker(path: str, runtime: str) -> worker.Opened:
    """An export opened for the process that a certificate is made with."""
    runner = open_artefact(path, runtime)

    def detect(image: bytes) -> worker.Detected:
        (detections,) = runner.detect([image])
        return detections.boxes, detections.scores, detections.labels

    def stages(image: bytes) -> dict[str, np.ndarray]:
        return runner.stages(image) if hasattr(runner, "stages") else {}

    return detect, stages


# Packages, and the module of each that runs the format: TensorFlow is to lose its interpreter of .tflite files.
_RUNTIMES: dict[Format, dict[str, str]] = {
    "saved_model": {"tensorflow": "tensorflow"},
    "onnx": {"onnxruntime": "onnxruntime", "openvino": "openvino"},
    "litert": {"ai-edge-litert": "ai_edge_litert", "tensorflow": "tensorflow.lite.python.interpreter"},
}
_SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".tflite": "litert"}

if __name__ == "__main__":
    worker.work(sys.argv[1], sys.argv[2], _for_worker)
