"""The files of `retina predict`: a picture for each image, and `detections.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from retina import config
from retina.data.images import as_configured, load_image
from retina.drawing.pictures import draw
from retina.errors import RetinaError
from retina.files import write_text, written


class ImageDetections(Protocol):
    """The detections of one image, such as `retina.inference.Detections`."""

    @property
    def boxes(self) -> np.ndarray: ...
    @property
    def scores(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray: ...
    def to_list(self) -> list[dict[str, Any]]: ...


def write_predictions(
    folder: Path,
    files: Sequence[Path],
    predictions: Sequence[ImageDetections],
    class_names: Sequence[str],
    settings: Mapping[str, Any] | None = None,
    data: config.Data | None = None,
) -> list[Path]:
    """Write `<stem>.png` for each image (numbered where stems repeat), `detections.json`, and `settings.json` if given.

    Args:
        data: the section by which the images were read; None: as stored.

    Returns:
        The pictures' paths, in the order of `files`.

    Raises:
        RetinaError: the folder can't be written, or a picture would overwrite one of `files`.
    """
    from PIL import Image

    pictures = _distinct_names(folder, files)
    inputs = {file.resolve() for file in files}
    for picture in pictures:
        if picture.resolve() in inputs:
            raise RetinaError(f"{picture}: the picture would overwrite this input image; choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, detections, picture in zip(files, predictions, pictures, strict=True):
            image = load_image(str(file) if data is None else as_configured(str(file), data))
            drawn = draw(image, detections.boxes, detections.labels, class_names, scores=detections.scores)
            with written(picture) as temporary:
                Image.fromarray(drawn).save(temporary)
        tree = [{"image": str(f), "detections": d.to_list()} for f, d in zip(files, predictions, strict=True)]
        write_text(folder / "detections.json", json.dumps(tree, indent=2) + "\n")
        if settings is not None:
            write_text(folder / "settings.json", json.dumps(settings, indent=2) + "\n")
    except OSError as error:
        reason = error.strerror or error
        raise RetinaError(f"{folder}: cannot write the predictions: {reason}; choose another --out") from None
    return pictures


def _distinct_names(folder: Path, files: Sequence[Path]) -> list[Path]:
    taken: set[str] = set()
    out = []
    for file in files:
        candidates = chain([file.stem], (f"{file.stem}_{number}" for number in count(2)))
        taken.add(name := next(name for name in candidates if name not in taken))
        out.append(folder / f"{name}.png")
    return out
