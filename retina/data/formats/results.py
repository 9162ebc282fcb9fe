"""Detections from other people's files, as `Results` for a ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from retina.data.dataset import first_repeated
from retina.data.detections import Pixels, coco_columns, short, to_continuous
from retina.data.formats import text as text_boxes
from retina.data.formats.coco import read_json
from retina.data.formats.truth import FileTruth
from retina.data.ground_truth import GroundTruth, Results
from retina.data.image_files import image_files, image_size, stem
from retina.errors import RetinaError
from retina.files import exists

ResultFormat = Literal["auto", "coco", "voc", "xywh", "xyxy", "yolo", "ultralytics"]


def read_results(
    path: str | Path,
    truth: GroundTruth,
    *,
    format: ResultFormat = "auto",
    pixels: Pixels = "continuous",
    names: Path | None = None,
    images: Path | None = None,
) -> Results:
    """The detections of a file or folder, scores in float64; none at all is fine.

    Args:
        path: a COCO results file (a list, or an object with the list as `annotations`; where that object has its own
            `categories` and `images`, they are matched by name, else ids are the ground truth's), or a folder of text
            files named like the images. "auto" takes a file for COCO's.
        format: lines of text files: `class score x y w h` ("xywh"), `class score x1 y1 x2 y2` ("xyxy"), and in
            fractions of the image's sides `class score cx cy w h` ("yolo") or `class cx cy w h score` ("ultralytics").
            "voc" are the devkit's files, one a class (`comp4_det_test_car.txt`, `car.txt`): `image score x1 y1 x2 y2`.
        pixels: what the numbers mean, see `retina.data.detections.to_continuous`.
        names: a file of class names, one a line, for text files whose class is an index; without it, indices count the
            ground truth's classes.
        images: the folder of images, where fractions need sizes that the ground truth does not know.

    Raises:
        RetinaError: names the file and the entry or line that is malformed or does not fit the ground truth.
    """
    path = Path(path)
    kind = result_format(path, format)
    for option, given, used in (
        ("--names", names is not None, kind not in ("coco", "voc")),
        ("--images", images is not None, kind in text_boxes.FRACTIONS),
    ):
        if given and not used:
            raise RetinaError(f"{path}: {option} has no effect on detections of format '{kind}'; leave it out")
    if kind == "coco":
        return _from_coco(path, truth, pixels)
    if kind == "voc":
        return _from_devkit(path, truth, pixels)
    return _from_text(path, truth, kind, pixels, names, images)


def result_format(path: Path, format: ResultFormat) -> str:
    """The format of detections, "auto" resolved by looking at `path`.

    Raises:
        RetinaError: there is nothing, or a folder of text files, whose numbers could mean several things.
    """
    if format not in get_args(ResultFormat):
        raise RetinaError(
            f"detections: expected one of the formats {', '.join(get_args(ResultFormat))}, got {format!r}"
        )
    if format != "auto":
        return format
    if not exists(path):
        raise RetinaError(f"{path}: no such detections; expected a COCO results file or a folder of text files")
    if path.is_file() or path.is_fifo():
        return "coco"
    if not path.is_dir():
        raise RetinaError(f"{path}: expected a COCO results file or a folder of text files, got a device or a socket")
    raise RetinaError(
        f"{path}: a folder of text files does not tell what its numbers mean; say it with --dt-format: "
        f"{', '.join(text_boxes.RESULT_LAYOUTS)}"
    )


# ---------------------------------------------------------------------------------------------------------- COCO


def _from_coco(path: Path, truth: GroundTruth, pixels: Pixels) -> Results:
    content = read_json(path, "COCO results file", "check --detections")
    where = str(path)
    rows: Mapping[Any, int] = {identifier: row for row, identifier in enumerate(truth.image_ids)}
    labels: Mapping[Any, int] = {identifier: label for label, identifier in enumerate(truth.category_ids)}
    if isinstance(content, dict):
        if "annotations" not in content:
            raise RetinaError(f"{where}: expected a list of detections, or an object with them as 'annotations'")
        labels = _by_name(where, content, "categories", "name", _labels_of_names(truth)) or labels
        if _named(content, "images", "file_name"):
            rows = _by_name(where, content, "images", "file_name", _rows_of_stems(truth)) or rows
        content, where = content["annotations"], f"{where}: annotations"
    columns = coco_columns(content, rows, labels, where)
    return Results(str(path), columns.image, to_continuous(columns.boxes, pixels), columns.scores, columns.labels)


def _named(tree: dict[str, Any], table: str, key: str) -> list[dict[str, Any]]:
    """The entries of a file's own table of images or categories, if each of them has a name."""
    entries = tree.get(table)
    if not isinstance(entries, list):
        return []
    named = all(isinstance(entry, dict) and isinstance(entry.get(key), str) for entry in entries)
    return entries if named else []


def _by_name(where: str, tree: dict[str, Any], table: str, key: str, known: Mapping[str, int]) -> dict[Any, int] | None:
    """What the file's own ids mean, by the names that it gives them; None where it gives none.

    Classes and images that only the file knows may stand there, so long as nothing was found of them.
    """
    entries = _named(tree, table, key)
    if not entries:
        return None
    out: dict[Any, int] = {}
    called: dict[Any, str] = {}
    for index, entry in enumerate(entries):
        identifier, name = entry.get("id"), entry[key]
        if type(identifier) not in (int, str):
            raise RetinaError(
                f"{where}: {table}[{index}]: 'id' must be a whole number or a text, got {short(identifier)}"
            )
        if called.setdefault(identifier, name) != name:
            raise RetinaError(
                f"{where}: {table}[{index}]: id {short(identifier)} is already that of {short(called[identifier])}, "
                f"got {short(name)}; give each an id of its own"
            )
        name = stem(name) if table == "images" and name not in known else name
        if name in known:
            out[identifier] = known[name]
    if not out:
        example = f" (such as {short(next(iter(known)))})" if known else ""
        raise RetinaError(
            f"{where}: {table}: expected names of the ground truth's {table}{example}, got none; "
            "give the ground truth that the detections were made on"
        )
    return out


# ---------------------------------------------------------------------------------------------------- text files


def _from_text(
    folder: Path, truth: GroundTruth, layout: str, pixels: Pixels, names: Path | None, images: Path | None
) -> Results:
    files = text_boxes.text_files(folder)
    rows = _rows_of_stems(truth)
    for file in files:
        if file.stem not in rows:
            example = f" (such as '{next(iter(rows))}')" if rows else ""
            raise RetinaError(
                f"{file}: expected a file named like one of the ground truth's {len(truth)} images{example}; "
                "give the ground truth that the detections were made on"
            )
    listed = text_boxes.read_names(names) if names is not None else None
    expected = text_boxes.columns(layout, scored=True)
    lines = text_boxes.read_lines(files, expected, spaces=True)
    image = np.array([rows[file.stem] for file in files], np.int64)[lines.file]
    labels = text_boxes.labels_of(lines, files, _labels_of_names(truth), listed, expected)
    place = 4 if layout == "ultralytics" else 0
    scores, boxes = lines.numbers[:, place], np.delete(lines.numbers, place, axis=1)
    sizes = _sizes(truth, image, images)[image] if layout in text_boxes.FRACTIONS else None
    given = text_boxes.to_xywh(lines, boxes, layout, files, sizes)
    return Results(str(folder), image, to_continuous(given, pixels), scores, labels)


def _from_devkit(folder: Path, truth: GroundTruth, pixels: Pixels) -> Results:
    files = text_boxes.text_files(folder)
    classes, rows = _labels_of_names(truth), _rows_of_stems(truth)
    labels = [_class_of(file, classes) for file in files]
    again = first_repeated(labels)
    if again is not None:
        label = labels[again[0]]
        other = files[labels.index(label)]
        raise RetinaError(
            f"{files[again[0]]}: expected one file a class, got {other.name} of '{truth.class_names[label]}', too; "
            "remove one of them, or score each in a folder of its own"
        )
    of_file = np.array(labels, np.int64)
    expected = text_boxes.columns("voc", scored=True)
    lines = text_boxes.read_lines(files, expected, spaces=False)
    image = np.array([rows.get(word, -1) for word in lines.words], np.int64)
    if (image < 0).any():
        row = int(np.argmax(image < 0))
        what = f"expected one of the ground truth's {len(truth)} images, got {short(lines.words[row])}"
        text_boxes.refuse(lines, files, row, f"{what}; give the ground truth that the detections were made on")
    boxes = text_boxes.to_xywh(lines, lines.numbers[:, 1:], "voc", files)
    return Results(str(folder), image, to_continuous(boxes, pixels), lines.numbers[:, 0], of_file[lines.file])


def _class_of(file: Path, classes: Mapping[str, int]) -> int:
    """`comp4_det_test_car.txt` or `car.txt`; of a "car" and a "race_car", the longer one that fits."""
    fitting = [name for name in classes if file.stem == name or file.stem.endswith(f"_{name}")]
    if not fitting:
        raise RetinaError(
            f"{file}: expected a name that ends in one of the ground truth's {len(classes)} classes, such as "
            f"comp4_det_test_{next(iter(classes))}.txt; rename or remove it"
        )
    return classes[max(fitting, key=len)]


def _labels_of_names(truth: GroundTruth) -> dict[str, int]:
    return {name: label for label, name in enumerate(truth.class_names)}


def _rows_of_stems(truth: GroundTruth) -> dict[str, int]:
    stems = truth.stems if isinstance(truth, FileTruth) else tuple(map(str, truth.image_ids))
    rows = {name: row for row, name in enumerate(stems)}
    again = first_repeated(stems) if len(rows) < len(stems) else None
    if again is not None:
        raise RetinaError(
            f"{truth.name}: images {truth.image_ids[rows[str(again[1])]]!r} and others share the file name "
            f"'{again[1]}', so that detections can't be told apart by it; give them as a COCO results list"
        )
    return rows


def _sizes(truth: GroundTruth, image: np.ndarray, folder: Path | None) -> np.ndarray:
    """[N, 2] (height, width) of the images that are asked for, NaN where nobody knows."""
    if folder is None:
        return truth.sizes if isinstance(truth, FileTruth) else np.full((len(truth), 2), np.nan)
    files, rows = image_files(folder), _rows_of_stems(truth)
    asked = set(np.unique(image).tolist())
    sizes = np.full((len(truth), 2), np.nan)
    for name, row in rows.items():
        if row in asked and name in files:
            sizes[row] = image_size(files[name])
    return sizes
