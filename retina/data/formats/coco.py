"""COCO JSON (https://cocodataset.org/#format-data) to `DetectionDataset`. Segmentations are never read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from retina.data.dataset import DetectionDataset, InvalidBoxes, RawObjects, build, first_repeated, with_classes
from retina.data.detections import is_name, short
from retina.data.image_files import locate_images
from retina.errors import RetinaError

# Polygons are most of a COCO file. Cut out before parsing, they cost neither the time nor the gigabytes that their
# numbers take as Python objects. The pattern can't match inside a JSON string: there the quotes would be escaped.
_POLYGONS = re.compile(rb'"segmentation"\s*:\s*\[[\[\]0-9eE+\-.,\s]*\]')


def read_coco(
    annotations: Path,
    images: Path,
    *,
    classes: tuple[str, ...] | None = None,
    invalid_boxes: InvalidBoxes = "error",
    keep_missing: bool = False,
) -> DetectionDataset:
    """Reads one COCO annotation file; the images themselves are not opened.

    Labels follow the categories by id (gaps are fine), or `classes` where given, which must be the same names. Images
    without annotations are kept, and so are crowds. A box is `[x, y, width, height]` in the file and xyxy from here on.

    Args:
        keep_missing: an image whose file is missing stays, to be left out by who decodes it.

    Raises:
        RetinaError: a file or folder is missing, the JSON is malformed, an entry lacks a key, holds a wrong type or
            points to an image or category that is not there, an id is given twice, a file name leaves the folder, or a
            box is invalid and `invalid_boxes` is "error".
    """
    name = str(annotations)
    tree = read_tree(annotations)
    pictures, objects, categories = (entries(name, tree, key) for key in ("images", "annotations", "categories"))
    if not pictures:
        raise RetinaError(f"{name}: 'images' is empty; a dataset needs at least one image")
    if not categories:
        raise RetinaError(f"{name}: 'categories' is empty; a detector needs at least one class")
    by_name = _categories(name, categories)
    image_ids = _column(name, "images", pictures, "id", (int, str))
    _distinct(name, "images", "id", image_ids)
    files = _column(name, "images", pictures, "file_name", (str,))
    sizes = [_column(name, "images", pictures, key, (int,)) for key in ("height", "width")]
    for key, side in zip(("height", "width"), sizes, strict=True):
        _refuse(name, "images", key, side, [not 0 < s < 2**31 for s in side], "a positive whole number")
    paths = locate_images(name, images, files, lambda index: f"images[{index}]", "file_name", keep_missing=keep_missing)

    rows = {image_id: row for row, image_id in enumerate(image_ids)}
    raw = _objects(name, objects, rows, {category: label for label, category in enumerate(by_name.values())})
    owners = raw.image

    def describe(row: int) -> str:
        return f"annotation {objects[row].get('id', f'number {row}')} (image {image_ids[owners[row]]})"

    table = build(
        name,
        by_name,
        image_ids,
        paths,
        np.array(sizes, np.int32).T,
        raw,
        invalid_boxes=invalid_boxes,
        describe=describe,
    )
    return with_classes(table, classes)


def read_json(path: Path, what: str = "COCO annotation file", hint: str = "check the path") -> Any:
    """A JSON file's content, without the polygons of its segmentations.

    Raises:
        RetinaError: the file can't be read, or is not JSON.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RetinaError(f"{path}: cannot read this {what}: {error.strerror}; {hint}") from None
    try:
        try:
            return json.loads(_POLYGONS.sub(b'"segmentation":0', data))
        except json.JSONDecodeError:
            return json.loads(data)  # again, so that the message's line and column are the file's own
    except json.JSONDecodeError as error:
        raise RetinaError(
            f"{path}: not valid JSON: {error.msg.removesuffix(' at')} at line {error.lineno}, column {error.colno}; "
            "is the file complete?"
        ) from None
    except (UnicodeDecodeError, RecursionError):
        raise RetinaError(f"{path}: not a JSON text file; expected a {what}") from None
    except ValueError as error:  # a whole number of more than 4300 digits
        raise RetinaError(f"{path}: not valid JSON: {error}; is this a {what}?") from None


def read_tree(path: Path, hint: str = "check data.root and annotations") -> dict[str, Any]:
    """The object that a COCO annotation file holds.

    Raises:
        RetinaError: the file can't be read, is not JSON or holds something else.
    """
    tree = read_json(path, hint=hint)
    if not isinstance(tree, dict):
        raise RetinaError(
            f"{path}: expected an object with 'images', 'annotations' and 'categories', got a {type(tree).__name__}"
        )
    return tree


def entries(name: str, tree: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The list under a key of a COCO tree, each entry an object.

    Raises:
        RetinaError: it is missing, no list, or one of its entries is none.
    """
    entries = tree.get(key)
    if not isinstance(entries, list):
        what = f"has no '{key}'" if key not in tree else f"'{key}' is a {type(entries).__name__}, not a list"
        raise RetinaError(f"{name}: {what}; expected COCO annotations with 'images', 'annotations' and 'categories'")
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise RetinaError(f"{name}: {key}[{index}] is a {type(entry).__name__}, expected an object")
    return entries


def _column(
    name: str, table: str, entries: list[dict], key: str, types: tuple[type, ...], default: Any = None
) -> list[Any]:
    """`entries[:][key]`, checked for presence (unless there is a default) and exact type."""
    if default is not None:
        values = [entry.get(key, default) for entry in entries]
    else:
        try:
            values = [entry[key] for entry in entries]
        except KeyError:
            index = next(i for i, entry in enumerate(entries) if key not in entry)
            raise RetinaError(f"{name}: {table}[{index}] has no '{key}'; add it") from None
    if not set(map(type, values)) <= set(types):
        expected = " or ".join(
            {int: "a whole number", str: "a text", list: "a list", float: "a number"}[t] for t in types
        )
        _refuse(name, table, key, values, [type(value) not in types for value in values], expected)
    return values


def _refuse(name: str, table: str, key: str, values: Sequence, wrong: Sequence[bool], expected: str) -> None:
    """Raises for the first value that is wrong, if any."""
    if any(wrong):
        index = list(wrong).index(True)
        raise RetinaError(f"{name}: {table}[{index}]: '{key}' must be {expected}, got {short(values[index])}")


def _distinct(name: str, table: str, key: str, values: list) -> None:
    again = first_repeated(values)
    if again is not None:
        index, value = again
        raise RetinaError(
            f"{name}: {table}[{index}]: {key} {value!r} is already that of {table}[{values.index(value)}]; "
            "each must be distinct"
        )


def _categories(name: str, categories: list[dict]) -> dict[str, int]:
    """`{name: id}` in the order of the ids."""
    ids = _column(name, "categories", categories, "id", (int,))
    names = _column(name, "categories", categories, "name", (str,))
    _refuse(name, "categories", "name", names, [not is_name(called) for called in names], "a text of whole characters")
    _distinct(name, "categories", "id", ids)
    _distinct(name, "categories", "name", names)
    return {names[i]: ids[i] for i in sorted(range(len(ids)), key=ids.__getitem__)}


def _objects(name: str, objects: list[dict], rows: dict[int | str, int], labels: dict[int, int]) -> RawObjects:
    table = "annotations"
    given = _boxes(name, _column(name, table, objects, "bbox", (list,)))
    owners = _column(name, table, objects, "image_id", (int, str))
    image = np.array([rows.get(owner, -1) for owner in owners], np.int64)
    _refuse(name, table, "image_id", owners, (image < 0).tolist(), "the id of one of 'images'")
    kinds = _column(name, table, objects, "category_id", (int,))
    label = np.array([labels.get(kind, -1) for kind in kinds], np.int32)
    _refuse(name, table, "category_id", kinds, (label < 0).tolist(), "the id of one of 'categories'")
    crowd = _column(name, table, objects, "iscrowd", (int, bool), default=0)
    _refuse(name, table, "iscrowd", crowd, [value not in (0, 1) for value in crowd], "0 or 1")
    # NaN stands for "not given"; a file's own NaN is refused.
    given_areas = _column(name, table, objects, "area", (int, float), default=np.nan)
    wrong = ["area" in entry and not 0 <= area < 1e300 for entry, area in zip(objects, given_areas, strict=True)]
    _refuse(name, table, "area", given_areas, wrong, "a finite number, not negative")
    with np.errstate(over="ignore", invalid="ignore"):
        boxes = np.concatenate([given[:, :2], given[:, :2] + given[:, 2:]], axis=1)
    return RawObjects(
        image=image,
        boxes=boxes,
        given=given,
        extent=given[:, 2:],
        labels=label,
        crowd=np.array(crowd, np.bool_),
        difficult=np.zeros(len(objects), np.bool_),
        areas=np.array(given_areas, np.float64),
    )


def _boxes(name: str, boxes: list[list]) -> np.ndarray:
    if set(map(len, boxes)) <= {4} and set(map(type, chain.from_iterable(boxes))) <= {int, float}:
        try:
            return np.array(boxes, np.float64).reshape(-1, 4)
        except OverflowError:  # a whole number of more than 308 digits
            pass
    wrong = [
        len(box) != 4 or not all(type(number) in (int, float) and _fits(number) for number in box) for box in boxes
    ]
    _refuse(name, "annotations", "bbox", boxes, wrong, "four numbers (x, y, width, height)")
    raise AssertionError("a box was refused by the fast check and passed the slow one")


def _fits(number: float) -> bool:
    return type(number) is float or abs(number) < 10**300
