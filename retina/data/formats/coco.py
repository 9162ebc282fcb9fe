"""COCO JSON (https://cocodataset.org/#format-data): annotations read and written, results read and written.

Segmentations are never read. A dataset is written as `annotations/instances_SPLIT.json` and `images/SPLIT/`.
"""

from __future__ import annotations

import json
import math
import mmap
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

import numpy as np

from retina import config
from retina.data.convert.part import Part, place_images
from retina.data.dataset import DetectionDataset, RawObjects, Records, distinct_names, first_repeated, merging_advice
from retina.data.detections import LARGEST, DetectionTable, Pixels, beyond, is_name, is_number, short, to_continuous
from retina.data.folders import LOOKED_AT, files, files_of_splits
from retina.data.ground_truth import (
    FileTruth,
    GroundTruth,
    Id,
    LeftOut,
    Results,
    labels_of_names,
    refuse_all_left_out,
    results,
    rows_of_stems,
)
from retina.data.image_files import guess_folder, locate_images, readings, stem
from retina.errors import RetinaError
from retina.files import written

# Polygons are most of a COCO file. Cut out before parsing, they cost neither the time nor the gigabytes that their
# numbers take as Python objects. The pattern can't match inside a JSON string: there the quotes would be escaped.
_POLYGONS = re.compile(rb'"segmentation"\s*:\s*\[[\[\]0-9eE+\-.,\s]*\]')

# Beside COCO's boxes lie files without any.
_NO_BOXES = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
_BOXES = "instances_"
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_CATEGORIES = re.compile(rb'"categories"\s*:\s*\[')
_OF_FIRST = re.compile(rb'"category_id"\s*:\s*0\s*[,}]')
_MOST_CATEGORIES = 2**20  # bytes
_LISTS = [re.compile(rb'"%b"\s*:\s*\[' % key) for key in (b"images", b"annotations")]

LAYOUTS = {
    "Roboflow's COCO: _annotations.coco.json and x.jpg in train, valid and test": ("train/*.json", "valid/*.json"),
    "COCO and CVAT: annotations/instances_train.json with images, images/train or train": ("annotations/*.json",),
    "COCO and Label Studio: one JSON file beside x.jpg or above images": ("*.json", "images"),
}
"""The layouts of folders in words, each with patterns of what hints at it."""

# A whole number in a text, as Python reads it; not so long that it takes time.
_WHOLE = re.compile(r"-?[0-9]{1,30}")
_TYPES = {int: "a whole number", str: "a text", list: "a list", float: "a number"}


def coco_records(
    annotations: Path,
    images: Path,
    *,
    keep_missing: bool = False,
    relabelled: bool = False,
    supercategory: Literal["drop"] | None = None,
) -> Records:
    """Read one COCO annotation file; the images themselves are not opened.

    Labels follow the categories by id (gaps are fine). Images without annotations stay, and so do crowds. A box is
    `[x, y, width, height]` in the file and xyxy in the table.

    Args:
        keep_missing: an image whose file is missing stays, to be left out by who decodes it.
        relabelled: whether `data.relabel` follows, which may tell classes apart that share a name: they get their ids.
        supercategory: see `retina.config.CocoSource`.

    Raises:
        RetinaError: a file or folder is missing, the JSON is malformed, an entry lacks a key, holds a wrong type or
            points to an image or category that is not there, an id is given twice, or a file name leaves the folder.
    """
    file = _read_file(annotations, "check data.root and annotations")
    name, dropped = file.name, ""
    if supercategory == "drop":
        file, dropped = _without_supercategory(file)
    classes = _classes(file, relabelled)
    image_ids = _column(name, "images", file.images, "id", (int, str))
    _refuse_repeated(name, "images", "id", image_ids)
    file_names = _column(name, "images", file.images, "file_name", (str,))
    sizes = [_column(name, "images", file.images, key, (int,)) for key in ("height", "width")]
    for key, side in zip(("height", "width"), sizes, strict=True):
        _refuse(name, "images", key, side, [not 0 < s < 2**31 for s in side], "a positive whole number")
    located = locate_images(
        name, images, file_names, lambda index: f"images[{index}]", "file_name", keep_missing=keep_missing
    )
    rows = {image_id: row for row, image_id in enumerate(image_ids)}
    labels = {category: label for label, category in enumerate(classes.values())}
    raw = _objects(file, rows, labels, strict=True)
    objects, owners = file.annotations, raw.image

    def describe(row: int) -> str:
        return f"annotation {objects[row].get('id', f'number {row}')} (image {image_ids[owners[row]]})"

    size = np.array(sizes, np.int32).T
    notes = (*located.notes, *([dropped] if dropped else []))
    return Records(name, classes, image_ids, located.paths, size, raw, describe, notes)


def coco_truth(path: Path, pixels: Pixels) -> FileTruth:
    """Read ground truth as pycocotools does: any box, ids of any kind, neither file names nor sizes needed.

    `ignore` has no effect. Where pycocotools would stop for want of an `area`, a box's own is taken. An annotation's id
    is not read.

    Raises:
        RetinaError: the file is missing or malformed, or a number is not finite or too large to compute with.
    """
    file = _read_file(path, "check --ground-truth")
    # pycocotools keeps the last of several images with one id.
    by_id = {_id(file.name, "images", index, entry): entry for index, entry in enumerate(file.images)}
    rows = {identifier: row for row, identifier in enumerate(by_id)}
    names = _distinct_names(file)
    raw = _objects(file, rows, {identifier: label for label, identifier in enumerate(names)}, strict=False)
    boxes = to_continuous(raw.xywh, pixels)
    return FileTruth(
        file.name,
        tuple(names.values()),
        tuple(names),
        tuple(by_id),
        raw.image,
        boxes,
        raw.labels,
        raw.crowd,
        raw.difficult,
        np.where(np.isnan(raw.areas), boxes[:, 2] * boxes[:, 3], raw.areas),
        stems=tuple(_stem(entry, identifier) for identifier, entry in by_id.items()),
        sizes=np.array([_size(entry) for entry in by_id.values()], np.float64),
    )


# --------------------------------------------------------------------------------------------------------- layouts


def sections(folder: Path, images: Path | None = None) -> dict[str, config.Source]:
    """Return the splits of a folder of this format, none if it is no such folder: the files in `annotations`, or in the
    folder itself, or one in each folder in it that is called like a split.

    Args:
        images: the folder of images, where it can't be inferred.

    Raises:
        RetinaError: the images are not where they are looked for, or a split has several files.
    """
    here = _files_of_boxes(folder / "annotations") or _files_of_boxes(folder)
    of_split = {split_name(file): file for file in here} or files_of_splits(folder, _files_of_boxes)
    given = {split: section_of_file(file, images) for split, file in of_split.items()}
    # A category that occurs in one split is none to leave out of the others: all need the same classes.
    drop = "drop" if all(section.supercategory == "drop" for section in given.values()) else None
    return {split: section.model_copy(update={"supercategory": drop}) for split, section in given.items()}


def _files_of_boxes(folder: Path) -> list[Path]:
    there = [file for file in files(folder, (".json",)) if not file.stem.startswith(_NO_BOXES)]
    # COCO's own name tells by itself: what is wrong with such a file, its reader says.
    return [file for file in there[:LOOKED_AT] if file.stem.startswith(_BOXES) or _lists_boxes(file)]


def _lists_boxes(file: Path) -> bool:
    content = _content(file)
    return all(pattern.search(content) for pattern in _LISTS)


def split_name(file: Path) -> str:
    """Return the name of the split that a file is, by its own name."""
    return file.stem.removeprefix(_BOXES)


def section_of_file(file: Path, images: Path | None = None) -> config.CocoSource:
    """Return a COCO file with its folder of images, the given one or the one that is guessed from the names in it.

    Raises:
        RetinaError: the images are not where they are looked for.
    """
    names = [] if images is not None else _file_names(file)
    folder, looked = (images, ()) if images is not None else guess_folder(file, names)
    if names and not any((folder / path).is_file() for name in names for path in readings(name, folder, file.parent)):
        places = ", ".join(map(str, looked))
        raise RetinaError(
            f"{file}: its images are not in {places} (sought: {short(names[0])}); say where they are with --images"
        )
    return config.CocoSource(annotations=file, images=folder, supercategory=_supercategory(file))


def _file_names(file: Path) -> list[str]:
    """The first names of images in a file, without parsing all of it; what is wrong with it, its reader tells."""
    try:
        return [json.loads(match[1]) for match in islice(_FILE_NAME.finditer(_content(file)), LOOKED_AT)]
    except ValueError:  # no JSON
        return []


def _supercategory(file: Path) -> Literal["drop"] | None:
    """The setting that leaves out a category that is superfluous, found without parsing the whole file."""
    content = _content(file)
    start = _CATEGORIES.search(content)
    if start is None or _OF_FIRST.search(content):
        return None
    listed = content[start.end() - 1 : start.end() + _MOST_CATEGORIES].decode(errors="replace")
    try:
        categories, _ = json.JSONDecoder().raw_decode(listed)
    except ValueError:  # its reader says why
        return None
    return "drop" if _is_superfluous(categories) else None


def _is_superfluous(categories: Sequence[Any]) -> bool:
    """Whether a file's category 0 is only what the others are called together, as Roboflow writes it."""
    entries = [entry for entry in categories if isinstance(entry, dict)]
    first = [entry for entry in entries if entry.get("id") == 0 and entry.get("supercategory") == "none"]
    others = [entry.get("supercategory") for entry in entries if entry.get("id") != 0]
    return len(first) == 1 and bool(others) and set(others) == {first[0].get("name")}


def _content(file: Path) -> mmap.mmap | bytes:
    """The bytes of a file, of which only those are read that are looked at; none of one that can't be read."""
    try:
        with open(file, "rb") as opened:
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # ValueError: an empty file
        return b""


# ------------------------------------------------------------------------------------------------- annotation files


def read_json(path: Path, what: str = "COCO annotation file", hint: str = "check the path") -> Any:
    """Return a JSON file's content, without the polygons of its segmentations.

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


def read_tree(path: Path, hint: str = "check the path") -> dict[str, Any]:
    """Return the object that a COCO annotation file holds.

    Raises:
        RetinaError: the file can't be read, is not JSON or holds something else.
    """
    tree = read_json(path, hint=hint)
    if not isinstance(tree, dict):
        raise RetinaError(
            f"{path}: expected an object with 'images', 'annotations' and 'categories', got a {type(tree).__name__}"
        )
    return tree


class _File(NamedTuple):
    """The three lists of an annotation file, each entry an object."""

    name: str
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]


def _read_file(path: Path, hint: str) -> _File:
    name, tree = str(path), read_tree(path, hint)
    file = _File(name, *(_entries(name, tree, key) for key in ("images", "annotations", "categories")))
    if not file.images:
        raise RetinaError(f"{name}: 'images' is empty; expected at least one image")
    if not file.categories:
        raise RetinaError(f"{name}: 'categories' is empty; expected at least one class")
    return file


def _without_supercategory(file: _File) -> tuple[_File, str]:
    """The file without its superfluous category, and a note on it."""
    if not _is_superfluous(file.categories) or any(entry.get("category_id") == 0 for entry in file.annotations):
        raise RetinaError(
            f"{file.name}: supercategory: drop: expected a category 0 that has no box and is the supercategory of the "
            "others, there is none; leave supercategory out"
        )
    first = [entry["name"] for entry in file.categories if entry.get("id") == 0]
    categories = [entry for entry in file.categories if entry.get("id") != 0]
    note = f"{file.name}: category 0, {short(first[0])}, is left out: it has no box and only groups the others"
    return file._replace(categories=categories), note


def _entries(name: str, tree: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = tree.get(key)
    if not isinstance(entries, list):
        what = f"has no '{key}'" if key not in tree else f"'{key}' is a {type(entries).__name__}, not a list"
        raise RetinaError(f"{name}: {what}; expected COCO annotations with 'images', 'annotations' and 'categories'")
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise RetinaError(f"{name}: {key}[{index}] is a {type(entry).__name__}, expected an object")
    return entries


def _column(name: str, table: str, entries: list[dict[str, Any]], key: str, types: tuple[type, ...]) -> list[Any]:
    """`entries[:][key]`, checked for presence and exact type."""
    try:
        values = [entry[key] for entry in entries]
    except KeyError:
        index = next(i for i, entry in enumerate(entries) if key not in entry)
        raise RetinaError(f"{name}: {table}[{index}] has no '{key}'; add it") from None
    if not set(map(type, values)) <= set(types):
        expected = " or ".join(_TYPES[kind] for kind in types if kind in _TYPES)
        _refuse(name, table, key, values, [type(value) not in types for value in values], expected)
    return values


def _refuse(name: str, table: str, key: str, values: Sequence[Any], wrong: Sequence[bool], expected: str) -> None:
    """Raise for the first value that is wrong, if any."""
    if any(wrong):
        index = list(wrong).index(True)
        value = values[index]
        large = "".join(map(beyond, value)) if isinstance(value, list) else beyond(value)
        raise RetinaError(f"{name}: {table}[{index}]: '{key}' must be {expected}, got {short(value)}{large}")


def _refuse_repeated(name: str, table: str, key: str, values: list[Any], advice: str = "each must be distinct") -> None:
    again = first_repeated(values)
    if again is not None:
        index, value = again
        raise RetinaError(
            f"{name}: {table}[{index}]: {key} {value!r} is already that of {table}[{values.index(value)}]; {advice}"
        )


def _classes(file: _File, relabelled: bool) -> dict[str, int]:
    """`{name: id}` in the order of the ids; with `relabelled` names that ids share get the id."""
    ids = _column(file.name, "categories", file.categories, "id", (int,))
    names = _column(file.name, "categories", file.categories, "name", (str,))
    wrong = [not is_name(name) for name in names]
    _refuse(file.name, "categories", "name", names, wrong, "a text of whole characters")
    _refuse_repeated(file.name, "categories", "id", ids)
    if not relabelled:
        _refuse_repeated(file.name, "categories", "name", names, merging_advice(names, ids))
    names = distinct_names(names, ids)
    return {names[i]: ids[i] for i in sorted(range(len(ids)), key=ids.__getitem__)}


def _distinct_names(file: _File) -> dict[Id, str]:
    """`{id: name}` in the order of the ids; a name that two ids share gets the id, for figures stand under a name."""
    by_id: dict[Id, str] = {}
    for index, entry in enumerate(file.categories):
        identifier = _id(file.name, "categories", index, entry)
        name = entry.get("name", str(identifier))
        if not is_name(name):
            raise RetinaError(
                f"{file.name}: categories[{index}]: 'name' must be a text of whole characters, got {short(name)}"
            )
        if by_id.setdefault(identifier, name) != name:
            raise RetinaError(
                f"{file.name}: categories[{index}]: id {identifier!r} is already that of '{by_id[identifier]}'; "
                "each must be distinct"
            )
    try:
        ids = sorted(by_id, key=lambda identifier: identifier)
    except TypeError:  # Numbers and texts mixed: the file's order.
        ids = list(by_id)
    return dict(zip(ids, distinct_names([by_id[identifier] for identifier in ids], ids), strict=True))


def _id(name: str, table: str, index: int, entry: dict[str, Any]) -> Id:
    if "id" not in entry:
        raise RetinaError(f"{name}: {table}[{index}] has no 'id'; add it")
    value = entry["id"]
    if type(value) not in (int, str):
        raise RetinaError(f"{name}: {table}[{index}]: 'id' must be a whole number or a text, got {short(value)}")
    return value


def _objects(file: _File, rows: Mapping[Any, int], labels: Mapping[Any, int], *, strict: bool) -> RawObjects:
    """The annotations' columns.

    Args:
        rows: the row of each image id.
        labels: the label of each category id.
        strict: as training wants it: ids of the types that COCO means, no negative area; a box that is not finite is
            left to the policy for invalid boxes. Else as pycocotools takes it: whatever can be computed with.
    """
    name, objects = file.name, file.annotations
    given = _boxes(name, objects, strict)
    image = _references(file, "image_id", rows, "images")
    label = _references(file, "category_id", labels, "categories")
    # null is no crowd, as for pycocotools.
    crowd = [0 if entry.get("iscrowd") is None else entry["iscrowd"] for entry in objects]
    wrong = [type(value) not in (int, bool, float) or value not in (0, 1) for value in crowd]
    _refuse(name, "annotations", "iscrowd", crowd, wrong, "0 or 1")
    with np.errstate(over="ignore", invalid="ignore"):
        boxes = np.concatenate([given[:, :2], given[:, :2] + given[:, 2:]], axis=1)
    return RawObjects(
        image=image,
        boxes=boxes,
        xywh=given,
        given=given,
        extent=given[:, 2:],
        labels=label.astype(np.int32),
        crowd=np.array(crowd, np.bool_),
        difficult=np.zeros(len(objects), np.bool_),
        areas=_areas(name, objects, strict),
    )


def _references(file: _File, key: str, rows: Mapping[Any, int], table: str) -> np.ndarray:
    """[M] int64 the rows of the entries of `table` that the annotations point to; 3.0 points to 3, as in Python."""
    ids = _column(file.name, "annotations", file.annotations, key, (int, str, float))
    places = np.array([rows.get(identifier, -1) for identifier in ids], np.int64)
    _refuse(file.name, "annotations", key, ids, (places < 0).tolist(), f"the id of one of '{table}'")
    return places


def _boxes(name: str, objects: list[dict[str, Any]], strict: bool) -> np.ndarray:
    """[M,4] float64 x, y, width, height."""
    boxes = _column(name, "annotations", objects, "bbox", (list,))
    if set(map(len, boxes)) <= {4} and set(map(type, chain.from_iterable(boxes))) <= {int, float}:
        try:
            numbers = np.array(boxes, np.float64).reshape(-1, 4)
            # Written so that NaN is wrong.
            if strict or (np.abs(numbers) <= LARGEST).all():
                return numbers
        except OverflowError:  # a whole number of more than 308 digits
            pass
    fits = _fits if strict else is_number
    wrong = [len(box) != 4 or not all(fits(number) for number in box) for box in boxes]
    expected = f"four {'' if strict else 'finite '}numbers (x, y, width, height)"
    _refuse(name, "annotations", "bbox", boxes, wrong, expected)
    raise AssertionError("a box was refused by the fast check and passed the slow one")


def _fits(number: Any) -> bool:
    return type(number) is float or (type(number) is int and abs(number) < 10**300)


def _areas(name: str, objects: list[dict[str, Any]], strict: bool) -> np.ndarray:
    """[M] float64, NaN where the file gives none; a file's own NaN, or null, is refused."""
    given = [entry.get("area", math.nan) for entry in objects]
    sound = (is_number(area) and (area >= 0 or not strict) for area in given)
    wrong = ["area" in entry and not fits for entry, fits in zip(objects, sound, strict=True)]
    _refuse(name, "annotations", "area", given, wrong, f"a finite number{', not negative' if strict else ''}")
    return np.array(given, np.float64)


def _stem(entry: dict[str, Any], identifier: Id) -> str:
    file = entry.get("file_name")
    return stem(file) if isinstance(file, str) and file else str(identifier)


def _size(entry: dict[str, Any]) -> list[Any]:
    return [entry[side] if is_number(entry.get(side)) else math.nan for side in ("height", "width")]


# ---------------------------------------------------------------------------------------------------------- results


def coco_results(path: Path, truth: GroundTruth, pixels: Pixels, *, strict: bool = True) -> Results:
    """Read a COCO results file: a list, or an object with the list as `annotations`.

    Where that object has its own `categories` and `images`, they are matched by name, else ids are the ground truth's.

    Args:
        strict: whether a detection of an image or class that the ground truth does not have is refused, or left out.

    Raises:
        RetinaError: names the entry that is malformed or does not fit the ground truth.
    """
    content = read_json(path, "COCO results file", "check --detections")
    where = str(path)
    rows: Mapping[Any, int] = {identifier: row for row, identifier in enumerate(truth.image_ids)}
    labels: Mapping[Any, int] = {identifier: label for label, identifier in enumerate(truth.category_ids)}
    if isinstance(content, dict):
        if "annotations" not in content:
            raise RetinaError(f"{where}: expected a list of detections, or an object with them as 'annotations'")
        labels = _by_name(where, content, "categories", "name", labels_of_names(truth)) or labels
        if _named(content, "images", "file_name"):
            rows = _by_name(where, content, "images", "file_name", rows_of_stems(truth)) or rows
        content, where = content["annotations"], f"{where}: annotations"
    left_out = LeftOut()
    if not strict and isinstance(content, list) and _fast_columns(content, rows, labels) is None:
        content, left_out = _judged(content, rows, labels, where)
    columns = coco_columns(content, rows, labels, where)
    refuse_all_left_out(str(path), left_out, len(columns.image))
    boxes = to_continuous(columns.boxes, pixels)
    return Results(str(path), columns.image, boxes, columns.scores, columns.labels, left_out)


def _judged(
    entries: list[Any], rows: Mapping[Any, int], labels: Mapping[Any, int], where: str
) -> tuple[list[Any], LeftOut]:
    """The entries that the ground truth can judge, and the others; what is malformed is refused in either.

    Ids that are neither numbers nor texts, or the ground truth's in the other type, are malformed.
    """
    images: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    left = []
    for index, entry in enumerate(entries):
        at = f"{where}: entry {index}"
        if isinstance(entry, dict) and "image_id" in entry and "category_id" in entry:
            image, category = entry["image_id"], entry["category_id"]
            known = [_is_known(image, rows, at, "image_id"), _is_known(category, labels, at, "category_id")]
            of_image = {image: 0} if not known[0] else rows
            _check_entry(entry, of_image, {category: 0} if not known[1] else labels, at)
            if not known[0]:
                images[str(image)] += 1
            elif not known[1]:
                classes[str(category)] += 1
            else:
                left.append(entry)
        else:
            _check_entry(entry, rows, labels, at)
    return left, LeftOut(images, classes)


def _is_known(identifier: Any, table: Mapping[Any, int], at: str, key: str) -> bool:
    """Whether an id is one of the ground truth's; what can't be an id counts as known, for the check of the entry.

    Raises:
        RetinaError: the ground truth has it as a text where the file has a number, or the other way round.
    """
    if type(identifier) not in (int, str, float) or identifier in table or identifier != identifier:
        return True
    _refuse_other_type(identifier, table, f"{at}: {key}")
    return False


def _refuse_other_type(identifier: int | str | float, table: Mapping[Any, int], at: str) -> None:
    if isinstance(identifier, str):
        twin: int | str | None = int(identifier) if _WHOLE.fullmatch(identifier) else None
    else:
        twin = short(identifier)
    if twin is not None and twin in table:
        kinds = ("a text", "a number") if isinstance(identifier, str) else ("a number", "a text")
        raise RetinaError(
            f"{at}: expected {twin!r}, {kinds[1]}, as the ground truth has it, got {short(identifier)}, {kinds[0]}; "
            "write ids alike in both files"
        )


def to_coco(table: DetectionTable, dataset: DetectionDataset) -> list[dict[str, Any]]:
    """Return detections in COCO's results format, with the source's own ids.

    Raises:
        RetinaError: a row does not fit the dataset (see `retina.data.detections.check`).
    """
    return as_coco(results(table, dataset), dataset)


def as_coco(detections: Results, ids: GroundTruth | DetectionDataset) -> list[dict[str, Any]]:
    """Return detections in COCO's results format (cocodataset.org/#format-results), ready for `json.dump`.

    Args:
        ids: names the images and categories.

    Returns:
        One entry a detection: `image_id`, `category_id`, `bbox` as x, y, width, height in pixels, and `score`.
    """
    image_ids, category_ids = map(_plain, ids.image_ids), map(_plain, ids.category_ids)
    images, categories = tuple(image_ids), tuple(category_ids)
    columns = (detections.image, detections.labels, detections.boxes, detections.scores)
    return [
        {"image_id": images[image], "category_id": categories[label], "bbox": box, "score": score}
        for image, label, box, score in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _plain(identifier: Any) -> Any:
    """NumPy scalars become Python's: `json` refuses them."""
    return identifier.item() if isinstance(identifier, np.generic) else identifier


def _named(tree: dict[str, Any], table: str, key: str) -> list[dict[str, Any]]:
    """The entries of a file's own table of images or categories, if each of them has a name."""
    entries = tree.get(table)
    if not isinstance(entries, list):
        return []
    named = all(isinstance(entry, dict) and isinstance(entry.get(key), str) for entry in entries)
    return entries if named else []


def _by_name(where: str, tree: dict[str, Any], table: str, key: str, known: Mapping[str, int]) -> dict[Any, int] | None:
    """The meaning of the file's own ids, by the names that it gives them; None where it gives none.

    Classes and images that only the file knows may stand there, so long as nothing was detected of them.
    """
    entries = _named(tree, table, key)
    if not entries:
        return None
    places: dict[Any, int] = {}
    names: dict[Any, str] = {}
    for index, entry in enumerate(entries):
        identifier, name = entry.get("id"), entry[key]
        if type(identifier) not in (int, str):
            raise RetinaError(
                f"{where}: {table}[{index}]: 'id' must be a whole number or a text, got {short(identifier)}"
            )
        if names.setdefault(identifier, name) != name:
            raise RetinaError(
                f"{where}: {table}[{index}]: id {short(identifier)} is already that of {short(names[identifier])}, "
                f"got {short(name)}; give each an id of its own"
            )
        name = stem(name) if table == "images" else name
        if name in known:
            places[identifier] = known[name]
    if not places:
        example = f" (such as {short(next(iter(known)))})" if known else ""
        raise RetinaError(
            f"{where}: {table}: expected names of the ground truth's {table}{example}, got none; "
            "give the ground truth that the detections were made on"
        )
    return places


class Columns(NamedTuple):
    """n entries of a COCO results file: `image` [n], `boxes` [n, 4] float64 x, y, width, height, `scores` [n] float64,
    `labels` [n]."""

    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def coco_columns(entries: Any, rows: Mapping[Any, int], labels: Mapping[Any, int], where: str) -> Columns:
    """The entries' four keys as arrays, with the file's own numbers; other keys are left alone.

    Column by column, which takes a second for a million entries; only a fault makes it look at each entry.

    Args:
        rows: the row of each image id.
        labels: the label of each category id.
        where: starts each error message.

    Raises:
        RetinaError: it is not a list; an entry lacks a key, has an image or category that is not known, or a box or
            score that is not a finite number, or a negative width or height.
    """
    if not isinstance(entries, list):
        raise RetinaError(
            f"{where}: expected a list of detections (image_id, category_id, bbox, score), "
            f"got {type(entries).__name__}; give a COCO results file"
        )
    columns = _fast_columns(entries, rows, labels)
    if columns is not None:
        return columns
    for index, entry in enumerate(entries):
        _check_entry(entry, rows, labels, f"{where}: entry {index}")
    raise AssertionError("entries were refused by the fast check and passed the slow one")


def _fast_columns(entries: list[Any], rows: Mapping[Any, int], labels: Mapping[Any, int]) -> Columns | None:
    """None where anything is wrong, whatever it is."""
    try:
        image_ids = [entry["image_id"] for entry in entries]
        category_ids = [entry["category_id"] for entry in entries]
        boxes = [entry["bbox"] for entry in entries]
        scores = [entry["score"] for entry in entries]
        ids = set(map(type, image_ids)) | set(map(type, category_ids))
        numbers = set(map(type, chain.from_iterable(boxes))) | set(map(type, scores))
        shapes = set(map(type, boxes)) <= {list, tuple} and set(map(len, boxes)) <= {4}
        if not (ids <= {int, str, float} and numbers <= {int, float} and shapes):
            return None
        columns = Columns(
            np.array([rows[identifier] for identifier in image_ids], np.int64),
            np.array(list(chain.from_iterable(boxes)), np.float64).reshape(-1, 4),
            np.array(scores, np.float64),
            np.array([labels[identifier] for identifier in category_ids], np.int64),
        )
    # A missing key, an entry or box of another kind, an unknown id, a whole number of more than 308 digits.
    except (KeyError, TypeError, IndexError, OverflowError):
        return None
    # Written so that NaN is not sound.
    sound = all((np.abs(numbers) <= LARGEST).all() for numbers in (columns.boxes, columns.scores))
    return columns if sound and (columns.boxes[:, 2:] >= 0).all() else None


def _check_entry(entry: Any, rows: Mapping[Any, int], labels: Mapping[Any, int], at: str) -> None:
    if not isinstance(entry, dict):
        raise RetinaError(f"{at}: expected a mapping, got {type(entry).__name__}; fix or remove it")
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in entry]
    if missing:
        raise RetinaError(f"{at}: expected image_id, category_id, bbox and score, but {missing[0]} is missing; add it")
    _check_id(rows, entry["image_id"], f"{at}: image_id", "images")
    _check_id(labels, entry["category_id"], f"{at}: category_id", "categories")
    _check_box(entry["bbox"], at)
    if not is_number(entry["score"]):
        raise RetinaError(
            f"{at}: expected a finite score, got {short(entry['score'])}{beyond(entry['score'])}; fix or remove it"
        )


def _check_id(table: Mapping[Any, int], identifier: Any, at: str, things: str) -> None:
    # A list has no hash, and True would pass for 1.
    if isinstance(identifier, bool) or not isinstance(identifier, (int, str, float)) or identifier not in table:
        if type(identifier) in (int, str, float):
            _refuse_other_type(identifier, table, at)
        example = f" (such as {next(iter(table))!r})" if table else ""
        raise RetinaError(
            f"{at}: expected one of the dataset's {len(table)} {things}{example}, got {short(identifier)}; "
            "give the dataset that the detections were made on"
        )


def _check_box(value: Any, at: str) -> None:
    if not isinstance(value, (list, tuple)) or len(value) != 4 or not all(is_number(part) for part in value):
        large = "".join(beyond(part) for part in value[:4]) if isinstance(value, (list, tuple)) else ""
        raise RetinaError(
            f"{at}: expected bbox as four finite numbers x, y, width, height, got {short(value)}{large}; "
            "fix or remove it"
        )
    if value[2] < 0 or value[3] < 0:
        raise RetinaError(
            f"{at}: expected a bbox with width and height of at least 0, got {short(value)}; fix or remove it"
        )


# ----------------------------------------------------------------------------------------------------------- writing


def check(parts: Sequence[Part]) -> tuple[str, ...]:
    """Return notes on what is lost; there is nothing to refuse."""
    if any(_numbered(part.table) for part in parts):
        return ("COCO JSON: image ids are texts, which COCO's tools don't expect: numbered from 1 in each split",)
    return ()


def unheld(table: DetectionDataset) -> tuple[np.ndarray, str]:
    """[M] the boxes that can't be written, and why: none."""
    return np.zeros(len(table.boxes), np.bool_), ""


def write(part: Part, folder: Path, *, link: bool, tick: Callable[[], None]) -> None:
    """Write a split; images that are there already are taken for written."""
    annotations = folder / "annotations"
    annotations.mkdir(parents=True, exist_ok=True)
    place_images(part, folder / "images" / part.split, link=link, tick=tick)
    with written(annotations / f"instances_{part.split}.json") as temporary, open(temporary, "w") as file:
        _write_json(file, part)


def source(folder: Path, split: str, names: Sequence[str]) -> config.CocoSource:
    """Return the section of a configuration that reads the split."""
    return config.CocoSource(
        annotations=folder / "annotations" / f"instances_{split}.json", images=folder / "images" / split
    )


def tolerance(table: DetectionDataset) -> np.ndarray:
    """[M] by how many pixels a corner may differ when it is read again: x + width rounds."""
    return np.full(len(table.boxes), 1e-6)


def _numbered(table: DetectionDataset) -> bool:
    return not all(isinstance(identifier, int) for identifier in table.image_ids)


def _write_json(file: TextIO, part: Part) -> None:
    table = part.table
    ids = range(1, len(table) + 1) if _numbered(table) else table.image_ids
    file.write('{"info": {"description": "written by retina convert"}, "licenses": [],\n"categories": [\n')
    categories = zip(table.category_ids, table.class_names, strict=True)
    _write_list(file, ({"id": identifier, "name": name} for identifier, name in categories))
    file.write('],\n"images": [\n')
    _write_list(
        file,
        (
            {"id": identifier, "file_name": name, "height": int(height), "width": int(width)}
            for identifier, name, (height, width) in zip(ids, part.names, table.sizes, strict=True)
        ),
    )
    file.write('],\n"annotations": [\n')
    _write_list(file, _annotations(table, ids))
    file.write("]}\n")


def _annotations(table: DetectionDataset, ids: Iterable[int | str]) -> Iterator[dict[str, Any]]:
    number = 0
    for row, identifier in enumerate(ids):
        objects = table.objects(row)
        for box, label, crowd, area in zip(objects.boxes, objects.labels, objects.crowd, objects.areas, strict=True):
            number += 1  # from 1: pycocotools scores an annotation 0 as unmatched
            x1, y1, x2, y2 = box.tolist()
            yield {
                "id": number,
                "image_id": identifier,
                "category_id": table.category_ids[label],
                "bbox": [_compact(value) for value in (x1, y1, x2 - x1, y2 - y1)],
                "area": _compact(float(area)),
                "iscrowd": int(crowd),
            }


def _compact(number: float) -> float:
    return int(number) if number.is_integer() else number


def _write_list(file: TextIO, entries: Iterable[dict[str, Any]]) -> None:
    for index, entry in enumerate(entries):
        file.write(("" if index == 0 else ",\n") + json.dumps(entry))
