"""Runs an export, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from retina.errors import RetinaError
from retina.inference import Detections

Format = Literal["saved_model", "onnx", "litert"]
Image = np.ndarray | bytes | Path


class Runner(Protocol):
    """A loaded export. One that can say what lies between an image and its detections has a method
    `stages(image) -> dict[str, np.ndarray]` as well, with any of `retina.export.stages.TENSORS`: the certificate then
    names the stage in which a difference arises."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def path(self) -> Path: ...

    @property
    def document(self) -> Mapping[str, Any]:
        """What travels inside: see `retina.export.description.describe`."""
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


def open_artefact(path: str | Path) -> Runner:
    """Loads an export: a SavedModel's folder, or a file ending in .onnx or .tflite.

    Raises:
        RetinaError: there is none, or it is damaged or no export of retina.
    """
    path = Path(path)
    found = format_of(path)
    if found is None:
        what = "it is neither" if path.exists() else "there is nothing"
        raise RetinaError(
            f"{path}: expected an export (a SavedModel folder, or a file ending in {' or '.join(_SUFFIXES)}), {what}; "
            "make one with retina export"
        )
    return _OPEN[found](path)


def _open_saved_model(path: Path) -> Runner:
    from retina.export.saved_model import open_saved_model

    return open_saved_model(path)


def _open_onnx(path: Path) -> Runner:
    from retina.export.onnx import open_onnx

    return open_onnx(path)


def _open_litert(path: Path) -> Runner:
    from retina.export.litert import open_litert

    return open_litert(path)


_SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".tflite": "litert"}
_OPEN: dict[Format, Callable[[Path], Runner]] = {
    "saved_model": _open_saved_model,
    "onnx": _open_onnx,
    "litert": _open_litert,
}
