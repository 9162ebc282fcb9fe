"""YOLO text labels (https://docs.ultralytics.com/datasets/detect/) to `DetectionDataset`.

A line is `class cx cy w h`, class an index and the rest fractions of the image's width and height, or a polygon
`class x1 y1 x2 y2 x3 y3 …`, which becomes its bounding box. Each line is judged by its own length. An image whose label
file is missing or empty has no objects. A line that stands twice in a file counts once, as it does for Ultralytics.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from retina.data.dataset import DetectionDataset, InvalidBoxes, RawObjects
from retina.data.detections import short
from retina.data.formats import text as text_boxes
from retina.data.formats.yolo_layout import Listing, listing_of_folder, listing_of_yaml
from retina.data.image_files import NO_SIZE_FRACTIONS, image_sizes
from retina.data.records import Records, to_dataset
from retina.errors import RetinaError

_BOX = "class cx cy w h"
_LEAST_POLYGON = 6  # numbers of three points
# Fractions may leave [0, 1] by a little, which `invalid_boxes` judges; most boxes beyond this are in pixels.
_LARGEST_FRACTION = 2.0


def read_yolo(
    data: Path | None = None,
    split: str | None = None,
    *,
    images: Path | None = None,
    labels: Path | None = None,
    names: Path | None = None,
    classes: tuple[str, ...] | None = None,
    invalid_boxes: InvalidBoxes = "error",
) -> DetectionDataset:
    """Reads one split of a data.yaml, or a folder of images and its labels; of images only the headers are read.

    Image ids are paths without extension, relative to the folder of images, or to the data set's root where the split
    is a list. Category ids are the indices. Images are sorted by path, those of a text file stay in its order.

    Args:
        data: an Ultralytics data.yaml; `split` is one of its keys "train", "val" and "test".
        images, labels, names: see `retina.config.YoloSource`.
        classes: the class names in label order, the same as the file's; without any file of names, what the indices
            count.

    Raises:
        RetinaError: a file or folder is missing or malformed (with file and line), a listed path leaves the data set's
            root, a class index has no name, an image can't be read, or a box is invalid and `invalid_boxes` is "error".
    """
    records = yolo_records(data, split, images=images, labels=labels, names=names, classes=classes)
    return to_dataset(records, classes, invalid_boxes)


def yolo_records(
    data: Path | None = None,
    split: str | None = None,
    *,
    images: Path | None = None,
    labels: Path | None = None,
    names: Path | None = None,
    classes: tuple[str, ...] | None = None,
    keep_unreadable: bool = False,
) -> Records:
    """As `read_yolo`, with every box as it stands in the files.

    Args:
        keep_unreadable: an image that is missing or has no readable header counts as one of 1 pixel, to be left out by
            who decodes it.

    Raises:
        RetinaError: as `read_yolo`, but for invalid boxes.
    """
    if data is not None:
        found = listing_of_yaml(data, split or "train")
    else:
        assert images is not None, "the configuration asks for one of the two"
        found = listing_of_folder(images, labels, names, classes)
    unreadable = NO_SIZE_FRACTIONS if keep_unreadable else None
    sizes = np.array(image_sizes(found.name, found.images, unreadable), np.int32).reshape(-1, 2)
    lines = _read_labels(found)
    labels_of = _labels(lines, found)
    _refuse_pixels(lines, found)
    fractions, sides = lines.boxes, np.tile(sizes[lines.image][:, ::-1], 2)
    extent = fractions[:, 2:] * sides[:, 2:]
    corner = (fractions[:, :2] - fractions[:, 2:] / 2) * sides[:, :2]
    none = np.zeros(len(fractions), np.bool_)
    raw = RawObjects(
        image=lines.image,
        boxes=np.concatenate([corner, corner + extent], axis=1),
        given=fractions,
        extent=extent,
        labels=labels_of,
        crowd=none,
        difficult=none,
        areas=np.full(len(fractions), np.nan),
    )
    classes_of = {name: index for index, name in enumerate(found.names)}
    return Records(
        found.name,
        classes_of,
        found.image_ids,
        found.images,
        sizes,
        raw,
        lambda row: f"{found.labels[lines.image[row]]} line {lines.line[row]}",
        found.notes + _notes(found, lines),
    )


class _Lines(NamedTuple):
    """M lines: `words` [M] the classes, `boxes` [M,4] cx cy w h as fractions, `image` [M], `line` [M] from 1."""

    words: list[str]
    boxes: np.ndarray
    image: np.ndarray
    line: np.ndarray
    polygons: int
    repeated: int
    missing: int


def _read_labels(found: Listing) -> _Lines:
    words: list[str] = []
    parts: list[np.ndarray] = [np.zeros((0, 4))]
    counts = np.zeros(len(found.labels), np.int64)
    line: list[int] = []
    polygons = repeated = missing = 0
    for index, file in enumerate(found.labels):
        if file is None:
            missing += 1
            continue
        rows, places, again = _rows(file)
        repeated += again
        if not rows:
            continue
        boxes, shaped = _boxes(Path(file), rows, places, found.keypoint_numbers)
        polygons += shaped
        words += [row[0] for row in rows]
        parts.append(boxes)
        counts[index] = len(rows)
        line += places
    image = np.repeat(np.arange(len(counts)), counts)
    return _Lines(words, np.concatenate(parts), image, np.array(line, np.int64), polygons, repeated, missing)


def _rows(file: str) -> tuple[list[list[str]], list[int], int]:
    """The distinct lines of a file in words, their numbers, and how many were left out as repetitions."""
    rows = [line.split() for line in text_boxes.read_text(Path(file)).splitlines()]
    places = [place for place, row in enumerate(rows, start=1) if row]
    rows = [row for row in rows if row]
    first: dict[tuple[str, ...], int] = {}
    for index, row in enumerate(rows):
        first.setdefault(tuple(row), index)
    if len(first) == len(rows):
        return rows, places, 0
    kept = list(first.values())
    return [rows[i] for i in kept], [places[i] for i in kept], len(rows) - len(kept)


def _boxes(file: Path, rows: list[list[str]], places: list[int], keypoints: int) -> tuple[np.ndarray, int]:
    """[n,4] cx, cy, w, h of a file's lines, and how many of them are polygons."""
    if all(len(row) == 5 for row in rows):
        return text_boxes.read_numbers([n for row in rows for n in row[1:]], 4, file, places, _BOX), 0
    boxes = [_box(file, row, place, keypoints) for row, place in zip(rows, places, strict=True)]
    return np.array(boxes, np.float64).reshape(-1, 4), sum(_is_polygon(len(row) - 1, keypoints) for row in rows)


def _is_polygon(numbers: int, keypoints: int) -> bool:
    return not keypoints and numbers >= _LEAST_POLYGON and numbers % 2 == 0


def _box(file: Path, row: list[str], place: int, keypoints: int) -> np.ndarray:
    count = len(row) - 1
    if _is_polygon(count, keypoints):
        expected = "class " + " ".join(f"x{point} y{point}" for point in range(1, count // 2 + 1))
        points = text_boxes.read_numbers(row[1:], count, file, [place], expected).reshape(-1, 2)
        low, high = points.min(0), points.max(0)
        return np.concatenate([(low + high) / 2, high - low])
    if count not in (4, 4 + keypoints):
        more = (
            f" or {5 + keypoints} with keypoints"
            if keypoints
            else " or a polygon's (class x1 y1 x2 y2 x3 y3 and so on)"
        )
        raise RetinaError(f"{file}: line {place}: expected 5 columns ({_BOX}){more}, got {count + 1}: {_shown(row)}")
    return text_boxes.read_numbers(row[1:5], 4, file, [place], _BOX)[0]


def _shown(row: list[str]) -> str:
    return short(" ".join(row[:12]))


def _labels(lines: _Lines, found: Listing) -> np.ndarray:
    known = {str(index): index for index in range(len(found.names))}
    labels = np.array([known.get(word, -1) for word in lines.words], np.int32)
    if (labels < 0).any():
        row = int(np.argmax(labels < 0))
        raise RetinaError(
            f"{found.labels[lines.image[row]]}: line {lines.line[row]}: expected a class index from 0 to "
            f"{len(found.names) - 1} (the names of {found.named_by}), got {short(lines.words[row])}; mend the line or "
            "the names"
        )
    return labels


def _refuse_pixels(lines: _Lines, found: Listing) -> None:
    far = (np.abs(lines.boxes) > _LARGEST_FRACTION).any(axis=1)
    if far.sum() * 2 > len(far):
        row = int(np.argmax(far))
        got = " ".join(f"{number:g}" for number in lines.boxes[row])
        raise RetinaError(
            f"{found.labels[lines.image[row]]}: line {lines.line[row]}: expected cx cy w h as fractions of the image's "
            f"sides, got {got}, and {far.sum()} of {len(far)} boxes like it; are they pixels?"
        )


def _notes(found: Listing, lines: _Lines) -> tuple[str, ...]:
    notes = []
    if lines.missing:
        notes.append(f"{lines.missing} of {len(found.images)} images have no label file: taken as without objects")
    if lines.polygons:
        notes.append(f"{lines.polygons} of {len(lines.words)} objects are polygons: their bounding boxes are taken")
    if lines.repeated:
        notes.append(f"{lines.repeated} lines stand twice in their label file: taken once")
    return tuple(f"{found.name}: {note}" for note in notes)
