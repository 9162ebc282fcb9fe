"""Boxes in one CSV file.

With a header, in any order of the columns: `image,x1,y1,x2,y2,label`, and optionally `width,height` (of the image),
`crowd,difficult` (0 or 1) and `area` (pixels²). Without one: the six columns of keras-retinanet,
`path,x1,y1,x2,y2,class_name`. TensorFlow's object detection has `filename,width,height,class,xmin,ymin,xmax,ymax` with
the same meaning: it divides the corners by the sides as they are.

Boxes are absolute pixels, continuous, x2 and y2 excluded. A row whose box and label are empty stands for an image
without objects; the rows of an image need not be neighbours. Sizes that the file does not give are read from the
images' headers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from retina import config
from retina.data.convert.part import Part, place_images
from retina.data.dataset import (
    DetectionDataset,
    Difficult,
    RawObjects,
    Records,
    handle_difficult,
    suggest,
)
from retina.data.detections import short, to_xywh
from retina.data.folders import LOOKED_AT, files, files_of_splits, split_of
from retina.data.formats import text
from retina.data.image_files import NO_SIZE_PIXELS, guess_folder, image_size, locate_images, within
from retina.errors import RetinaError
from retina.files import write_text

_BOX = ("x1", "y1", "x2", "y2")
_NEEDED = ("image", *_BOX, "label")
_OPTIONAL = ("width", "height", "crowd", "difficult", "area")
_TENSORFLOW = {
    "filename": "image",
    "class": "label",
    "xmin": "x1",
    "ymin": "y1",
    "xmax": "x2",
    "ymax": "y2",
}
_LARGEST_SIDE = 2**31
_SNIFFED = 2**14  # characters of a file

LAYOUTS = {
    "keras-retinanet's CSV: train.csv (path,x1,y1,x2,y2,class) with classes.csv beside it": ("*.csv",),
    "TensorFlow's CSV, as Roboflow writes it: _annotations.csv and x.jpg in train, valid and test": ("train/*.csv",),
}
"""The layouts of folders in words, each with patterns of what hints at it."""


def csv_records(
    annotations: Path,
    images: Path | None = None,
    *,
    class_file: Path | None = None,
    classes: tuple[str, ...] | None = None,
    difficult: Difficult = "ignore",
    keep_unreadable: bool = False,
    upright: bool = False,
) -> Records:
    """Read one CSV file, every box as it stands there; image headers are read only where the file gives no sizes.

    Images are in the order in which the file first names them; their ids are their paths relative to the folder.

    Args:
        images: the folder that the image column is relative to; None guesses it, see
            `retina.data.image_files.guess_folder`.
        class_file: lines `class name,id`, keras-retinanet's mapping: labels follow the ids, which are the category ids.
        classes: the class names in label order. Without either, labels follow the sorted names of the file; without a
            mapping category ids are 1..K in the order of the sorted names.
        difficult: see `retina.data.dataset.handle_difficult`.
        keep_unreadable: an image that is missing stays, and one without readable header and given size has room for any
            box, to be left out by who decodes it.
        upright: sizes that the file does not give are those of the upright picture, where EXIF tells of a rotation.

    Raises:
        RetinaError: names the file and line of a row with missing or malformed fields, of an image that leaves the
            folder or a class that is not known; or a file is missing.
    """
    table = _read(annotations)
    folder, looked = guess_folder(annotations, table.columns["image"]) if images is None else (images, ())
    named = within(folder, table.columns["image"])
    ids = tuple(dict.fromkeys(named))
    row_of = {name: row for row, name in enumerate(ids)}
    image = np.array([row_of[name] for name in named], np.int64)
    filled = _filled(table)
    first = np.zeros(len(ids), np.int64)
    first[image[::-1]] = np.arange(len(image))[::-1]
    located = locate_images(
        str(annotations),
        folder,
        ids,
        lambda row: f"line {table.lines[first[row]]}",
        "image",
        looked=looked,
        keep_missing=keep_unreadable,
    )
    boxed = table.only(filled)
    owners = image[filled]
    by_name = _classes(boxed, class_file, classes)
    label_of = {name: label for label, name in enumerate(by_name)}
    labels = np.array([label_of.get(name, -1) for name in boxed.columns["label"]], np.int32)
    if (labels < 0).any():
        row = int(np.argmax(labels < 0))
        called = boxed.columns["label"][row]
        known_by = class_file if class_file is not None else "data.classes"
        boxed.refuse(row, f"class '{called}' is not in {known_by}; {suggest(called, list(by_name))}")
    crowd, flagged = _flags(boxed, "crowd"), _flags(boxed, "difficult")
    areas = _optional(boxed, "area")
    _refuse_first(boxed, ~(np.isnan(areas) | (areas >= 0)), "area must not be negative")
    boxes = _numbers(boxed, _BOX)
    sizes, measured = _sizes(table, image, located.paths, NO_SIZE_PIXELS if keep_unreadable else None, upright)
    xywh = to_xywh(boxes)
    objects = RawObjects(owners, boxes, xywh, boxes, xywh[:, 2:], labels, crowd, flagged, areas)
    raw, rows, notes = handle_difficult(str(annotations), objects, difficult)

    def describe(row: int) -> str:
        return f"line {boxed.lines[rows[row]]} (image {ids[raw.image[row]]})"

    notes = located.notes + notes
    return Records(
        str(annotations),
        by_name,
        ids,
        tuple(located.paths),
        sizes,
        raw,
        describe,
        notes,
        open_classes=class_file is None,
        measured=measured,
    )


def sections(folder: Path, images: Path | None = None) -> dict[str, config.Source]:
    """Return the splits of a folder of this format, none if it is no such folder: the files with boxes in it, or one in
    each folder in it that is called like a split.

    Raises:
        RetinaError: a split has several files.
    """
    here = {file.stem: file for file in _files_of_boxes(folder)} or files_of_splits(folder, _files_of_boxes)
    return {split: section_of_file(file, images) for split, file in here.items()}


def section_of_file(file: Path, images: Path | None = None) -> config.CsvSource:
    """Return a CSV file of boxes, with the only file of classes beside it or else beside the folder of its split."""
    places = [file.parent, *([file.parent.parent] if split_of(file.parent.name) else [])]
    mappings = ([beside for beside in files(place, (".csv",)) if _kind(beside) == "classes"] for place in places)
    classes = next(filter(None, mappings), [])
    return config.CsvSource(annotations=file, images=images, classes=classes[0] if len(classes) == 1 else None)


def _files_of_boxes(folder: Path) -> list[Path]:
    return [file for file in files(folder, (".csv",))[:LOOKED_AT] if _kind(file) == "boxes"]


def _kind(file: Path) -> Literal["boxes", "classes", ""]:
    """The kind of a CSV file, by its first rows."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            # Without the last line, which may be cut.
            lines = opened.read(_SNIFFED).splitlines(keepends=True)
        rows = [row for row in csv.reader(lines[:-1] if len(lines) > 1 else lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error):
        return ""
    pairs = [row for row in rows if len(row) == 2 and text.is_index(row[1].strip())]
    if rows and pairs == rows and len({int(row[1]) for row in pairs}) == len(pairs):
        return "classes"
    header = [_TENSORFLOW.get(word, word) for word in (word.strip().lower() for word in rows[0])] if rows else []
    if set(_NEEDED) <= set(header):
        return "boxes"
    plain = [row[1:5] for row in rows if len(row) == len(_NEEDED)]
    numbers = all(
        word.strip().lstrip("-").replace(".", "", 1).isdigit() for row in plain for word in row if word.strip()
    )
    return "boxes" if plain and len(plain) == len(rows) and numbers else ""


class _Table(NamedTuple):
    """R rows: `columns` by name, each [R] texts without surrounding spaces; `lines` [R], from 1."""

    file: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def only(self, rows: np.ndarray) -> _Table:
        """The rows where `rows` [R] is true."""
        chosen = np.flatnonzero(rows).tolist()
        columns = {name: [column[i] for i in chosen] for name, column in self.columns.items()}
        return _Table(self.file, columns, [self.lines[i] for i in chosen])

    def refuse(self, row: int, what: str) -> None:
        raise RetinaError(f"{self.file}: line {self.lines[row]}: {what}")


def _read(file: Path) -> _Table:
    rows, lines = _rows(file)
    if not rows:
        raise RetinaError(f"{file}: it is empty; expected rows {','.join(_NEEDED)}")
    header = [word.lower() for word in rows[0]]
    if "filename" in header and "class" in header:
        header = [_TENSORFLOW.get(word, word) for word in header]
    # A single word may be a file or a class of this name.
    if len({*header} & {*_NEEDED, *_OPTIONAL}) > 1 and "image" in header:
        _check_header(file, header)
        rows, lines = rows[1:], lines[1:]
        if not rows:
            raise RetinaError(f"{file}: it has a header but no row; a dataset needs at least one image")
    else:
        header = list(_NEEDED)
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            hint = "" if len(rows[0]) != len(row) else f"; a header would begin with the column 'image', got {rows[0]}"
            raise RetinaError(
                f"{file}: line {line}: expected {len(header)} columns ({','.join(header)}), got {len(row)}: "
                f"{short(','.join(row))}{hint if line == lines[0] else ''}"
            )
    table = _Table(file, dict(zip(header, map(list, zip(*rows, strict=True)), strict=True)), lines)
    if "" in table.columns["image"]:
        table.refuse(table.columns["image"].index(""), "image: expected the name of an image file, got nothing")
    return table


def _rows(file: Path) -> tuple[list[list[str]], list[int]]:
    rows: list[list[str]] = []
    lines: list[int] = []
    reader = csv.reader(io.StringIO(text.read_text(file), newline=""), strict=True)
    try:
        for row in reader:
            stripped = [word.strip() for word in row]
            if any(stripped):
                rows.append(stripped)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise RetinaError(f"{file}: line {reader.line_num}: not valid CSV: {error}; check its quotes") from None
    return rows, lines


def _check_header(file: Path, header: list[str]) -> None:
    known = [*_NEEDED, *_OPTIONAL]
    for name in header:
        if name not in known:
            raise RetinaError(f"{file}: line 1: unknown column '{name}'; {suggest(name, known)}")
        if header.count(name) > 1:
            raise RetinaError(f"{file}: line 1: column '{name}' is given twice; remove one")
    missing = [name for name in _NEEDED if name not in header]
    if missing:
        raise RetinaError(f"{file}: line 1: column '{missing[0]}' is missing; expected {','.join(_NEEDED)}")
    if ("width" in header) != ("height" in header):
        raise RetinaError(f"{file}: line 1: width and height belong together; add the other one")


def _filled(table: _Table) -> np.ndarray:
    """[R] bool: the row has an object; empty rows are wholly empty."""
    given = np.array([[bool(word) for word in table.columns[name]] for name in (*_BOX, "label")], np.bool_)
    filled = np.logical_and.reduce(given)
    partly = np.logical_or.reduce(given) & ~filled
    if partly.any():
        row = int(np.argmax(partly))
        missing = next(name for name in (*_BOX, "label") if not table.columns[name][row])
        table.refuse(row, f"{missing} is empty; fill it in, or leave box and label empty for an image without objects")
    return filled


def _classes(boxed: _Table, class_file: Path | None, classes: tuple[str, ...] | None) -> dict[str, int]:
    """`{name: category id}` in label order."""
    if class_file is not None:
        return _class_mapping(class_file)
    names = sorted(set(boxed.columns["label"])) if classes is None else list(classes)
    if not names:
        raise RetinaError(f"{boxed.file}: no row has a label, so there are no class names; set data.classes")
    # By name, whatever the order of the labels: then two readers of one list give a class the same id.
    ids = {name: index for index, name in enumerate(sorted(names), start=1)}
    return {name: ids[name] for name in names}


def _class_mapping(file: Path) -> dict[str, int]:
    rows, lines = _rows(file)
    ids: dict[str, int] = {}
    for row, line in zip(rows, lines, strict=True):
        if len(row) != 2 or not row[0] or not text.is_index(row[1]):
            raise RetinaError(f"{file}: line {line}: expected 'class name,id', got {short(','.join(row))}")
        if row[0] in ids or int(row[1]) in ids.values():
            raise RetinaError(f"{file}: line {line}: {short(','.join(row))}: name or id is given twice; fix one")
        ids[row[0]] = int(row[1])
    if not ids:
        raise RetinaError(f"{file}: this file of classes is empty; expected lines 'class name,id'")
    return dict(sorted(ids.items(), key=lambda item: item[1]))


def _numbers(table: _Table, names: Sequence[str]) -> np.ndarray:
    """[R, len(names)] the numbers of some columns."""
    words = [word for row in zip(*(table.columns[name] for name in names), strict=True) for word in row]
    return text.read_numbers(words, len(names), table.file, table.lines, " ".join(("image", *names)))


def _optional(table: _Table, name: str) -> np.ndarray:
    """[R] the numbers of a column, NaN where there is none."""
    out = np.full(len(table.lines), np.nan)
    if name in table.columns:
        given = np.array([bool(word) for word in table.columns[name]], np.bool_)
        out[given] = _numbers(table.only(given), (name,))[:, 0]
    return out


def _flags(table: _Table, name: str) -> np.ndarray:
    values = _optional(table, name)
    _refuse_first(table, ~(np.isnan(values) | (values == 0) | (values == 1)), f"{name} must be 0, 1 or empty")
    return values == 1


def _refuse_first(table: _Table, wrong: np.ndarray, what: str) -> None:
    if wrong.any():
        table.refuse(int(np.argmax(wrong)), what)


def _sizes(
    table: _Table, image: np.ndarray, paths: Sequence[str], unreadable: tuple[int, int] | None, upright: bool
) -> tuple[np.ndarray, np.ndarray]:
    """[N,2] int32 (height, width): of the file where it says, else of the images' headers; and where not, [N] bool."""
    given = np.stack([_optional(table, "height"), _optional(table, "width")], axis=1)
    half = np.isnan(given).any(1) & ~np.isnan(given).all(1)
    _refuse_first(table, half, "width and height belong together; give both or neither")
    whole = (given >= 1) & (given < _LARGEST_SIDE) & (given == np.floor(given))
    _refuse_first(table, ~(whole | np.isnan(given)).all(1), "width and height must be positive whole numbers")
    known = np.flatnonzero(~np.isnan(given[:, 0]))
    sizes = np.full((len(paths), 2), np.nan)
    sizes[image[known[::-1]]] = given[known[::-1]]  # backwards, so that the first row of an image is the one that stays
    _refuse_first(
        table,
        ~np.isnan(given[:, 0]) & (given != sizes[image]).any(1),
        "width and height are not those of an earlier row of the same image",
    )
    measured = np.isnan(sizes[:, 0])
    for row in np.flatnonzero(measured).tolist():
        sizes[row] = image_size(Path(paths[row]), unreadable, upright)
    return sizes.astype(np.int32), measured


# ----------------------------------------------------------------------------------------------------------- writing


def check(parts: Sequence[Part]) -> tuple[str, ...]:
    """Return notes on what is lost.

    Raises:
        RetinaError: the name of a class begins or ends with a blank, which readers cut off.
    """
    for called in parts[0].table.class_names:
        if called != called.strip():
            raise RetinaError(f"{parts[0].table.name}: class {called!r}: CSV can't hold its blanks; rename it")
    if any(isinstance(identifier, int) for part in parts for identifier in part.table.image_ids):
        return ("CSV: the names of the files take the place of image ids",)
    return ()


def unheld(table: DetectionDataset) -> tuple[np.ndarray, str]:
    """[M] the boxes that can't be written, and why: none."""
    return np.zeros(len(table.boxes), np.bool_), ""


def write(part: Part, folder: Path, *, link: bool, tick: Callable[[], None]) -> None:
    """Write a split; images that are there already are taken for written."""
    place_images(part, folder / "images" / part.split, link=link, tick=tick)
    table, lines = part.table, [(*_NEEDED, *_OPTIONAL)]
    for row, name in enumerate(part.names):
        height, width = table.sizes[row].tolist()
        objects = [column.tolist() for column in table.objects(row)]
        for box, label, crowd, difficult, area in zip(*objects, strict=True):
            flags = int(crowd), int(difficult)
            lines.append((name, *map(repr, box), table.class_names[label], width, height, *flags, repr(area)))
        if not objects[0]:
            lines.append((name, *[""] * 5, width, height, "", "", ""))
    _write_rows(folder / f"{part.split}.csv", lines)
    _write_rows(folder / "classes.csv", list(zip(table.class_names, table.category_ids, strict=True)))


def _write_rows(file: Path, rows: Sequence[Sequence[object]]) -> None:
    lines = io.StringIO(newline="")
    csv.writer(lines, lineterminator="\n").writerows(rows)
    write_text(file, lines.getvalue())


def source(folder: Path, split: str, names: Sequence[str]) -> config.CsvSource:
    """Return the section of a configuration that reads the split."""
    return config.CsvSource(
        annotations=folder / f"{split}.csv", images=folder / "images" / split, classes=folder / "classes.csv"
    )


def tolerance(table: DetectionDataset) -> np.ndarray:
    """[M] by how many pixels a corner may differ when it is read again: all digits are written."""
    return np.full(len(table.boxes), 1e-9)
