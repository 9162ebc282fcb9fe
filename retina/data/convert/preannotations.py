"""Detections as a dataset to correct by hand: written by the writers of `retina convert`, and read again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from retina.data.convert.converting import is_finished, is_unfinished, write_tables
from retina.data.convert.part import Target
from retina.data.dataset import DetectionDataset
from retina.data.headers import UPRIGHT, orientation
from retina.errors import RetinaError
from retina.output import count

FORMATS = ("coco", "voc", "yolo", "csv", "label-studio")

_SPLIT = "train"


def check_folders(home: Path, formats: Sequence[str], link: bool) -> list[Path]:
    """Return the folders that a call which was cut off has written, and check that no other holds anything.

    Finished ones are among them while others of `formats` are to be written; `write` leaves them as they are.

    Raises:
        RetinaError: one does: it may have been corrected by hand; `link` has no effect; or an unknown format.
    """
    if link and not formats:
        raise RetinaError("--link: it has no effect without --to, which writes the images; leave it out")
    for format in formats:
        if format not in FORMATS:
            raise RetinaError(f"--to: expected one of {', '.join(FORMATS)}, got '{format}'")
    cut_off = any(not is_finished(home / format) for format in formats)
    for format in FORMATS:
        folder = home / format
        refused = is_finished(folder)  # Without --to, folders that only are called so are none of ours.
        if format in formats:
            refused = not cut_off if refused else _filled(folder) and not is_unfinished(folder)
        if refused:
            raise RetinaError(
                f"{folder}: it holds a dataset already, whose boxes may have been corrected; move it away, or choose "
                "another --out"
            )
    return [home / format for format in formats if _filled(home / format)]


def _filled(folder: Path) -> bool:
    return folder.is_dir() and any(not entry.name.startswith(".partial.") for entry in folder.iterdir())


def table_of(
    entries: Iterable[dict[str, Any]], class_names: Sequence[str], upright: bool
) -> tuple[DetectionDataset, np.ndarray]:
    """Return the lines of a prediction as a table, boxes cut to their images, and the scores [M] of its boxes.

    Args:
        entries: see `retina.drawing.prediction_files`; those with an `error` are left out.
        class_names: K names; category ids are 1..K.
        upright: whether the images were turned as EXIF says.
    """
    readable = [entry for entry in entries if "error" not in entry]
    names = [entry["image"] for entry in readable]
    sizes = np.array([entry["size"] for entry in readable], np.int32).reshape(-1, 2)
    image = np.array([row for row, entry in enumerate(readable) for _ in entry["detections"]], np.int64)
    rows = [[*row["box"], row["label"], row["score"]] for entry in readable for row in entry["detections"]]
    columns = np.array(rows, np.float64).reshape(-1, 6)
    boxes = np.clip(columns[:, :4], 0, np.tile(sizes[:, ::-1], 2)[image])
    whole = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    image, boxes, labels, scores = image[whole], boxes[whole], columns[whole, 4].astype(np.int32), columns[whole, 5]
    table = DetectionDataset(
        name="predictions",
        class_names=tuple(class_names),
        category_ids=tuple(range(1, len(class_names) + 1)),
        image_ids=tuple(range(1, len(names) + 1)),
        images=tuple(names),
        sizes=sizes,
        offsets=np.concatenate([[0], np.cumsum(np.bincount(image, minlength=len(names)))]),
        boxes=boxes,
        labels=labels,
        crowd=np.zeros(len(labels), np.bool_),
        difficult=np.zeros(len(labels), np.bool_),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        orientations=np.array([orientation(name) if upright else UPRIGHT for name in names], np.uint8),
    )
    return table, scores


def write(table: DetectionDataset, scores: np.ndarray, home: Path, format: str, *, link: bool) -> tuple[str, ...]:
    """Write a table with its images into the folder `format` of `home`; return notes on what is otherwise there.

    Images with an EXIF rotation are written upright, boxes with them: labelling tools show them so. A finished folder
    stays as it is, for its boxes may have been corrected, if the same was written into it.

    Raises:
        RetinaError: it can't be written, or is not read again as it was.
    """
    done = write_tables(
        {_SPLIT: table},
        home / format,
        cast(Target, format),
        upright=True,
        link=link,
        resume=True,
        untouched=True,
        scores={_SPLIT: scores},
    )
    if done.problems:
        raise RetinaError(f"{home / format}: it is not what was to be written: {'; '.join(done.problems)}")
    counts = done.splits[_SPLIT]
    return (f"{home / format}: {count(counts['images'], 'image')}, {count(counts['boxes'], 'box')}", *done.notes)
