"""What a notebook shows: pictures with boxes, and a dataset with its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retina import config
from retina.data.batches.training import training_batches
from retina.data.dataset import DetectionDataset
from retina.data.formats import Format
from retina.data.formats.layouts import look
from retina.data.images import load_image
from retina.data.load import Split, load_split, load_training
from retina.drawing.pictures import contact_sheet
from retina.drawing.pictures import draw as draw_boxes
from retina.errors import RetinaError
from retina.output import html_table
from retina.palette import class_colour

if TYPE_CHECKING:
    import tensorflow as tf
    from PIL.Image import Image


def draw(
    image: Any, detections: Any = None, ground_truth: Any = None, *, class_names: Sequence[str] | None = None
) -> np.ndarray:
    """Draw boxes on an image: detections as outlines with name and score, ground truth dashed, in white.

    Args:
        image: [H, W, 3] uint8 RGB; or a path, or the bytes of an image file.
        detections: what `retina.load(…).predict` gives of an image; or a dictionary or an object with `boxes` [n, 4]
            xyxy pixels, `labels` (or `classes`) [n] and, if any, `scores` (or `confidence`) [n], as
            `Detector.predict` gives them of an image; of its `num_detections` only so many, and no class -1.
        ground_truth: likewise, without scores; `DetectionDataset.objects(row)` is such.
        class_names: K names; by default those of the detections, else the numbers of the labels.

    Returns:
        [H·f, W·f, 3] uint8; f is a whole number, 1 unless the image is small.

    Raises:
        RetinaError: the image is none, fields are missing or of other shapes, or a label has no name.

    Example: `retina.draw("dog.jpg", retina.load("runs/dogs").predict("dog.jpg")[0])`.

    >>> truth = {"boxes": [[8, 4, 30, 20]], "labels": [1]}
    >>> retina.draw("dog.png", truth, class_names=["cat", "dog"]).shape[2]
    3
    """
    pixels = load_image(image) if isinstance(image, str | Path | bytes) else np.asarray(image)
    shown, truth = (_boxes(part, where) for part, where in ((detections, "detections"), (ground_truth, "ground_truth")))
    most = max([-1, *shown["labels"].tolist(), *truth["labels"].tolist()])
    known = list(class_names if class_names is not None else getattr(detections, "class_names", ()))
    names = known or [str(label) for label in range(most + 1)]
    if not known and getattr(detections, "names", None) is not None:
        for label, name in zip(shown["labels"].tolist(), detections.names, strict=True):
            names[label] = name
    # Of a class that is not shown the name isn't known, and ranks would differ from one image to the next.
    colours = None if known else [class_colour(label) for label in range(len(names))]
    truth_fields = {} if ground_truth is None else {f"truth_{name}": truth[name] for name in ("boxes", "labels")}
    return draw_boxes(pixels, shown["boxes"], shown["labels"], names, shown["scores"], colours=colours, **truth_fields)


def show(
    images: Any,
    detections: Any = None,
    ground_truth: Any = None,
    *,
    class_names: Sequence[str] | None = None,
    columns: int = 3,
    max_side: int = 480,
) -> Image:
    """Return one or several pictures as a notebook shows them, side by side.

    Args:
        images: an image as `draw` takes it, or a list or array of them.
        detections, ground_truth: as of `draw`; of several images a list, or `Detector.predict`'s dictionary of all.
        class_names: as of `draw`.
        columns: pictures in a row.
        max_side: pictures with a longer side are reduced to it, in pixels.

    Returns:
        A Pillow image, the picture that a cell's last line shows.

    Raises:
        RetinaError: as `draw`; there are no images; or lists of other lengths.

    Example: `retina.show(images, detector.predict(images))`.

    >>> retina.show(["dog.png", "cat.png"]).mode
    'RGB'
    """
    from PIL import Image

    single = isinstance(images, str | Path | bytes) or getattr(images, "ndim", 4) == 3
    several = [images] if single else list(images)
    of_each = [
        [part] if single else _of_images(part, len(several), where)
        for part, where in ((detections, "detections"), (ground_truth, "ground_truth"))
    ]
    pictures = [draw(*each, class_names=class_names) for each in zip(several, *of_each, strict=True)]
    return Image.fromarray(contact_sheet(pictures, columns, max_side=max_side))


def load_dataset(
    source: str | Path | config.Config, split: str | None = None, *, format: Format | None = None
) -> Dataset:
    """Return images with boxes, from a folder of any layout that retina knows.

    Args:
        source: a folder or file (COCO, Pascal VOC, YOLO, CSV, labelme), the name of a TFDS dataset, or a configuration.
        split: by the name that the folder gives it; the default is its only one, or the one called `train`. Of a
            configuration: `train` (the default; in the tiles of `data.tiles`), `validation` or `test`.
        format: of a folder that could be read as several.

    Returns:
        See `Dataset`.

    Raises:
        RetinaError: there is no such source or split, or its files are malformed.

    Example: `retina.load_dataset("data/pets").show(6)`.

    >>> retina.load_dataset("pets").summary()["boxes_per_class"]
    {'cat': 2, 'dog': 1}
    """
    if isinstance(source, config.Config):
        asked: Split = split or "train"  # type: ignore[assignment]
        table = load_training(source.data) if asked == "train" else load_split(source.data, asked)
        return Dataset(table, source.data)
    layout = look(str(source), format=format)
    if layout.config is not None:
        return load_dataset(config.load(layout.config), split)
    names = list(layout.splits)
    name = split or next((name for name in names if len(names) == 1 or name == "train"), None)
    if name not in layout.splits:
        got = "several splits" if name is None else f"'{name}'"
        raise RetinaError(f"{source}: split: expected one of {', '.join(names)}, got {got}; choose one")
    data = config.Data(train=layout.splits[name], validation=None)
    return Dataset(load_split(data, "train"), data)


@dataclass(frozen=True)
class Dataset:
    """Images with boxes: what `retina.load_dataset` returns.

    Args:
        table: the images and boxes.
        settings: how they are read and laid out, section `data` of a configuration.

    Raises:
        RetinaError: an image can't be read.

    Example:

    >>> dataset = retina.load_dataset("pets", "train")
    >>> len(dataset), dataset.class_names, dataset.summary()["boxes"]
    (3, ('cat', 'dog'), 3)
    >>> dataset.image(0).shape, dataset.show(2).mode
    ((30, 40, 3), 'RGB')
    >>> len(list(dataset.as_dataset(batch_size=2)))
    2
    """

    table: DetectionDataset
    settings: config.Data

    def __len__(self) -> int:
        return len(self.table)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The K names; label k is `class_names[k]`."""
        return self.table.class_names

    def image(self, row: int) -> np.ndarray:
        """Return the image of a row, [H, W, 3] uint8 RGB.

        Args:
            row: of the table.
        """
        return load_image(self.table.photograph(row), max_pixels=self.settings.max_pixels)

    def summary(self) -> dict[str, Any]:
        """Figures: `images`, `boxes`, `boxes_per_class` by name, `images_without_boxes`, and `median_side`, the median
        of the square roots of the boxes' areas, in pixels."""
        table = self.table
        counts = np.bincount(table.labels, minlength=len(table.class_names)).tolist()
        sides = np.sqrt(np.prod(table.boxes[:, 2:] - table.boxes[:, :2], axis=-1))
        return {
            "images": len(table),
            "boxes": len(table.boxes),
            "boxes_per_class": dict(zip(table.class_names, counts, strict=True)),
            "images_without_boxes": int((np.diff(table.offsets) == 0).sum()),
            "median_side": float(np.median(sides)) if len(sides) else 0.0,
        }

    def show(self, count: int = 9, *, columns: int = 3, max_side: int = 480) -> Image:
        """Return the first images with their boxes, as a picture that a notebook shows.

        Args:
            count: number of images at most.
            columns: pictures in a row.
            max_side: pictures with a longer side are reduced to it, in pixels.
        """
        rows = range(min(count, len(self)))
        pictures = [draw(self.image(row), self.table.objects(row), class_names=self.class_names) for row in rows]
        return show(pictures, columns=columns, max_side=max_side)

    def as_dataset(self, batch_size: int = 8, *, steps: int | None = None, seed: int = 0) -> tf.data.Dataset:
        """Return training batches, shuffled and resized as `settings` say, for `Detector.fit`.

        Args:
            batch_size: B.
            steps: number of batches; None for as many as take in each image once.
            seed: of the order and of what `settings.augment` draws.
        """
        steps = -(-len(self) // batch_size) if steps is None else steps
        return training_batches(self.table, self.settings, batch_size=batch_size, seed=seed, steps=steps).as_dataset()

    def _repr_html_(self) -> str:
        figures = self.summary()
        per_class = figures.pop("boxes_per_class")
        return html_table(self.table.name, {**figures, **{f"boxes of {name}": n for name, n in per_class.items()}})


def _boxes(fields: Any, where: str) -> dict[str, Any]:
    """`boxes`, `labels` and `scores` (or None) of detections or ground truth in any form that `draw` takes."""
    if fields is None:
        return {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "scores": None}
    given = fields if isinstance(fields, Mapping) else {name: getattr(fields, name, None) for name in _FIELDS}
    boxes = given.get("boxes")
    labels = given["labels"] if given.get("labels") is not None else given.get("classes")
    scores = given["scores"] if given.get("scores") is not None else given.get("confidence")
    if boxes is None or labels is None:
        raise RetinaError(
            f"draw: {where}: expected boxes and labels, got {type(fields).__name__}; give a dictionary of both"
        )
    boxes, labels = np.asarray(boxes), np.asarray(labels)
    if labels.ndim != 1 or boxes.ndim != 2:
        raise RetinaError(
            f"draw: {where}: expected boxes [n, 4] and labels [n] of a single image, got {list(boxes.shape)} and "
            f"{list(labels.shape)}; give those of several images to retina.show"
        )
    used = labels >= 0
    count = given.get("num_detections")
    if count is not None:
        used &= np.arange(len(labels)) < int(count)
    return {
        "boxes": boxes[used],
        "labels": labels[used].astype(int),
        "scores": None if scores is None else np.asarray(scores)[used],
    }


_FIELDS = ("boxes", "labels", "classes", "scores", "confidence", "num_detections")


def _of_images(part: Any, count: int, where: str) -> list[Any]:
    """Detections or ground truth of each of several images."""
    if part is None:
        return [None] * count
    if isinstance(part, Mapping):
        part = [{name: field[row] for name, field in part.items()} for row in range(len(next(iter(part.values()))))]
    if len(part) != count:
        raise RetinaError(f"show: {where}: expected those of {count} images, got {len(part)}; give each image its own")
    return list(part)
