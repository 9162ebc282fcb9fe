"""YOLO text labels (https://docs.ultralytics.com/datasets/detect/), read and written.

A line is `class cx cy w h`, class an index and the rest fractions of the image's width and height, or a polygon
`class x1 y1 x2 y2 x3 y3 …`, which becomes its bounding box. Each line is judged by its own length. An image whose label
file is missing or empty has no objects. A line that stands twice in a file counts once, as it does for Ultralytics.

Images, labels and names lie where an Ultralytics `data.yaml` says, or in plain folders. Written are `data.yaml`,
`images/SPLIT/` and `labels/SPLIT/`, with a label file for every image, an empty one where it has no object. That
`data.yaml` gives no `path`: the data set's root is then its own folder, wherever that is moved.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from retina import config
from retina.config.reading import read_yaml
from retina.data.convert.part import Part
from retina.data.dataset import (
    DetectionDataset,
    RawObjects,
    Records,
    UnusedLabels,
    distinct_names,
    first_repeated,
    merging_advice,
    note_unused,
    suggest,
    unused_labels,
)
from retina.data.detections import short
from retina.data.folders import LOOKED_AT, SPELLINGS, files, files_below, files_called, split_folders, split_of
from retina.data.formats import text
from retina.data.image_files import (
    NO_SIZE_FRACTIONS,
    guess_folder,
    image_sizes,
    place_image,
    placed,
    plain_names,
    readings,
    refuse_no_name,
)
from retina.errors import RetinaError
from retina.files import IMAGE_SUFFIXES, write_text
from retina.output import count

SPLITS = tuple(SPELLINGS)

LAYOUTS = {
    "Ultralytics and Roboflow: data.yaml with names and train, val and test": ("*.yaml", "*.yml"),
    "YOLO: images/x.jpg, labels/x.txt, classes.txt (Label Studio, or around or in train, val and test)": (
        "images",
        "labels/*.txt",
        "classes.txt",
        "*/labels/*.txt",
    ),
    "LabelImg's YOLO: x.jpg with x.txt beside it, classes.txt (or in train, val and test)": ("*.txt", "train/*.txt"),
    "darknet and CVAT's YOLO: obj.data, obj.names, train.txt": ("*.data", "*.names", "train.txt"),
}
"""The layouts of folders in words, each with patterns of what hints at it."""

# What lies beside images without being one.
_COMPANIONS = (".txt", ".xml", ".json", ".yaml", ".cache", ".npy", ".md", ".csv")
_BOX = "class cx cy w h"
_LEAST_POLYGON = 6  # numbers of three points
# Fractions may leave [0, 1] by a little, which `invalid_boxes` judges; most boxes beyond this are in pixels.
_LARGEST_FRACTION = 2.0
_SHOWN = 3
_YAML = (".yaml", ".yml")
# darknet's keys of splits.
_KEYS = {"train", "valid", "val", "test"}


def yolo_records(
    data: Path | None = None,
    split: str | None = None,
    *,
    images: Path | None = None,
    labels: Path | None = None,
    names: Path | None = None,
    classes: tuple[str, ...] | None = None,
    keep_unreadable: bool = False,
    upright: bool = False,
    relabelled: bool = False,
) -> Records:
    """Read one split of a data.yaml, or a folder of images and its labels, every box as it stands in the files.

    Of images only the headers are read. Image ids are paths without extension, relative to the folder of images, or to
    the data set's root where the split is a list. Category ids are the indices. Images are sorted by path, those of a
    text file stay in its order.

    Args:
        data: an Ultralytics data.yaml; `split` is one of its keys "train", "val" and "test".
        images, labels, names: see `retina.config.YoloSource`.
        classes: the class names in label order, the same as the file's; without any file of names, what the indices
            count.
        keep_unreadable: an image that is missing or has no readable header counts as one of 1 pixel, to be left out by
            who decodes it.
        upright: boxes are fractions of the sides of the upright picture, where EXIF tells of a rotation.
        relabelled: whether `data.relabel` follows, which may tell classes apart that share a name: they get their
            indices.

    Raises:
        RetinaError: a file or folder is missing or malformed (with file and line), a listed path leaves the data set's
            root, a class index has no name, or an image can't be read.
    """
    if data is not None:
        listing = listing_of_yaml(data, split or "train", relabelled=relabelled)
    else:
        assert images is not None, "the configuration asks for one of the two"
        listing = listing_of_folder(images, labels, names, classes)
    unreadable = NO_SIZE_FRACTIONS if keep_unreadable else None
    sizes = np.array(image_sizes(listing.name, listing.images, unreadable, upright), np.int32).reshape(-1, 2)
    lines = _read_labels(listing)
    labels_of = _labels(lines, listing)
    _refuse_pixels(lines, listing)
    fractions, sides = lines.boxes, np.tile(sizes[lines.image][:, ::-1], 2)
    extent = fractions[:, 2:] * sides[:, 2:]
    corner = (fractions[:, :2] - fractions[:, 2:] / 2) * sides[:, :2]
    none = np.zeros(len(fractions), np.bool_)
    raw = RawObjects(
        image=lines.image,
        boxes=np.concatenate([corner, corner + extent], axis=1),
        xywh=np.concatenate([corner, extent], axis=1),
        given=fractions,
        extent=extent,
        labels=labels_of,
        crowd=none,
        difficult=none,
        areas=np.full(len(fractions), np.nan),
    )
    classes_of = {name: index for index, name in enumerate(listing.names)}
    return Records(
        listing.name,
        classes_of,
        listing.image_ids,
        listing.images,
        sizes,
        raw,
        lambda row: f"{listing.labels[lines.image[row]]} line {lines.line[row]}",
        listing.notes + _notes(listing, lines),
        listing.unused,
        measured=True,
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


def _read_labels(listing: Listing) -> _Lines:
    words: list[str] = []
    parts: list[np.ndarray] = [np.zeros((0, 4))]
    counts = np.zeros(len(listing.labels), np.int64)
    line: list[int] = []
    polygons = repeated = missing = 0
    for index, file in enumerate(listing.labels):
        if file is None:
            missing += 1
            continue
        rows, places, again = _rows(file)
        repeated += again
        if not rows:
            continue
        boxes, shaped = _boxes(Path(file), rows, places, listing.keypoint_numbers)
        polygons += shaped
        words += [row[0] for row in rows]
        parts.append(boxes)
        counts[index] = len(rows)
        line += places
    image = np.repeat(np.arange(len(counts)), counts)
    return _Lines(words, np.concatenate(parts), image, np.array(line, np.int64), polygons, repeated, missing)


def _rows(file: str) -> tuple[list[list[str]], list[int], int]:
    """The distinct lines of a file in words, their numbers, and how many were left out as repetitions."""
    rows = [line.split() for line in text.lines_of(text.read_text(Path(file)))]
    places = [place for place, row in enumerate(rows, start=1) if row]
    rows = [row for row in rows if row]
    first: dict[tuple[str, ...], int] = {}
    for index, row in enumerate(rows):
        first.setdefault(tuple(row), index)
    if len(first) == len(rows):
        return rows, places, 0
    distinct = list(first.values())
    return [rows[i] for i in distinct], [places[i] for i in distinct], len(rows) - len(distinct)


def _boxes(file: Path, rows: list[list[str]], places: list[int], keypoints: int) -> tuple[np.ndarray, int]:
    """[n,4] cx, cy, w, h of a file's lines, and how many of them are polygons."""
    if all(len(row) == 5 for row in rows):
        return text.read_numbers([n for row in rows for n in row[1:]], 4, file, places, _BOX), 0
    boxes = [_box(file, row, place, keypoints) for row, place in zip(rows, places, strict=True)]
    return np.array(boxes, np.float64).reshape(-1, 4), sum(_is_polygon(len(row) - 1, keypoints) for row in rows)


def _is_polygon(numbers: int, keypoints: int) -> bool:
    return not keypoints and numbers >= _LEAST_POLYGON and numbers % 2 == 0


def _box(file: Path, row: list[str], place: int, keypoints: int) -> np.ndarray:
    count = len(row) - 1
    if _is_polygon(count, keypoints):
        expected = "class " + " ".join(f"x{point} y{point}" for point in range(1, count // 2 + 1))
        points = text.read_numbers(row[1:], count, file, [place], expected).reshape(-1, 2)
        low, high = points.min(0), points.max(0)
        return np.concatenate([(low + high) / 2, high - low])
    if count not in (4, 4 + keypoints):
        more = (
            f" or {5 + keypoints} with keypoints"
            if keypoints
            else " or a polygon's (class x1 y1 x2 y2 x3 y3 and so on)"
        )
        raise RetinaError(f"{file}: line {place}: expected 5 columns ({_BOX}){more}, got {count + 1}: {_shown(row)}")
    return text.read_numbers(row[1:5], 4, file, [place], _BOX)[0]


def _shown(row: list[str]) -> str:
    return short(" ".join(row[:12]))


def _labels(lines: _Lines, listing: Listing) -> np.ndarray:
    known = {str(index): index for index in range(len(listing.names))}
    labels = np.array([known.get(word, -1) for word in lines.words], np.int32)
    if (labels < 0).any():
        row = int(np.argmax(labels < 0))
        raise RetinaError(
            f"{listing.labels[lines.image[row]]}: line {lines.line[row]}: expected a class index from 0 to "
            f"{len(listing.names) - 1} (the names of {listing.named_by}), got {short(lines.words[row])}; fix the line "
            "or the names"
        )
    return labels


def _refuse_pixels(lines: _Lines, listing: Listing) -> None:
    far = (np.abs(lines.boxes) > _LARGEST_FRACTION).any(axis=1)
    if far.sum() * 2 > len(far):
        row = int(np.argmax(far))
        got = " ".join(f"{number:g}" for number in lines.boxes[row])
        raise RetinaError(
            f"{listing.labels[lines.image[row]]}: line {lines.line[row]}: expected cx cy w h as fractions of the "
            f"image's sides, got {got}, and {far.sum()} of {len(far)} boxes like it; are they pixels?"
        )


def _notes(listing: Listing, lines: _Lines) -> tuple[str, ...]:
    notes = []
    if lines.missing:
        notes.append(f"{lines.missing} of {len(listing.images)} images have no label file: taken as without objects")
    if lines.polygons:
        notes.append(f"{lines.polygons} of {len(lines.words)} objects are polygons: their bounding boxes are taken")
    if lines.repeated:
        notes.append(f"{count(lines.repeated, 'line')} repeated in a label file: taken once")
    return tuple(f"{listing.name}: {note}" for note in notes)


# ---------------------------------------------------------------------------------------------------------- the layout


class Listing(NamedTuple):
    """N images and the files that belong to them.

    `names` [K] in the order of their indices, from `named_by`; `image_ids`, `images` and `labels` [N], a label None
    where there is no file; `keypoint_numbers` is how many follow the box in a line of pose labels, 0 without.
    """

    name: str
    names: tuple[str, ...]
    named_by: str
    image_ids: tuple[str, ...]
    images: tuple[str, ...]
    labels: tuple[str | None, ...]
    keypoint_numbers: int
    notes: tuple[str, ...]
    unused: UnusedLabels | None


def listing_of_yaml(file: Path, split: str, *, relabelled: bool = False) -> Listing:
    """The images of a split of an Ultralytics data.yaml.

    The root is its `path` (relative: to the file's own folder), or the file's folder where `path` is missing or leads
    nowhere, as it does when a data set has moved. A split is a folder, searched with all its subfolders, a text file of
    image paths relative to itself, or a list of such; all of them must lie in the root. A leading `../` that leads out
    of it is cut off, as Ultralytics does for the exports of Roboflow. Labels lie where the last `images` of an image's
    folder is replaced by `labels`, or beside the image where there is no such folder.

    Raises:
        RetinaError: the file is malformed, a folder or split is missing, a path leaves the root, or an image is listed
            twice.
    """
    tree = _tree(file)
    names = _class_names(file, tree, relabelled)
    root, notes = _root(file, tree.get("path"))
    given = _split(file, tree, split)
    entries = given if isinstance(given, list) else [given]
    places = [_inside(file, root, split, entry) for entry in entries]
    name = f"{file} ({split})"
    images: list[str] = []
    others: Counter[str] = Counter()
    for place in places:
        if place.is_dir():
            images += _of_folder(place, others)
        else:
            of_list, said = _of_text(place, root, darknet=file.suffix.lower() not in _YAML)
            images, notes = images + of_list, notes + said
    base = places[0] if len(places) == 1 and places[0].is_dir() else root
    folders = {folder: _labels_folder(root, folder) for folder in {os.path.dirname(image) for image in images}}
    listed = any(not place.is_dir() for place in places)
    notes += _left_out(name, others)
    return _listing(name, names, str(file), base, root, images, folders, _keypoints(file, tree), notes, listed)


def listing_of_folder(images: Path, labels: Path | None, names: Path | None, classes: Sequence[str] | None) -> Listing:
    """The images of a folder and its subfolders, with labels laid out alike in `labels`.

    Args:
        labels: None takes the folder where the last `images` of the path is `labels`, or `images` itself.
        names: a file of class names, one a line; None takes `classes.txt` of the labels' folder or the one above.
        classes: the names where there is no such file.

    Raises:
        RetinaError: a folder is missing or has no image, or there are no names.
    """
    for folder in (images, labels):
        if folder is not None and not folder.is_dir():
            raise RetinaError(f"{folder}: no such folder of YOLO {'images' if folder is images else 'labels'}")
    home = labels if labels is not None else Path(_labels_folder(Path(), str(images)))
    others: Counter[str] = Counter()
    paths = _of_folder(images, others)
    if names is None:
        beside = [folder / text.CLASSES_FILE for folder in (home, home.parent)]
        names = next((file for file in beside if text.names_classes(file)), None)
    if names is not None:
        listed, named_by = tuple(text.read_names(names)), str(names)
    elif classes is not None:
        listed, named_by = tuple(classes), "data.classes"
    else:
        raise RetinaError(
            f"{home}: its labels are indices and there is no {text.CLASSES_FILE}; name the classes with "
            "names, with data.classes in the order of their indices, or in such a file, one a line"
        )
    folders = {
        folder: os.path.normpath(home / os.path.relpath(folder, images))
        for folder in {os.path.dirname(image) for image in paths}
    }
    notes = _left_out(str(images), others)
    # Beside a folder that holds images and labels lie other data sets.
    root = images if home == images and images.name != "images" else images.parent
    return _listing(str(images), listed, named_by, images, root, paths, folders, 0, notes, False)


def _listing(
    name: str,
    names: tuple[str, ...],
    named_by: str,
    base: Path,
    root: Path,
    images: list[str],
    folders: dict[str, str],
    keypoints: int,
    notes: tuple[str, ...],
    listed: bool,
) -> Listing:
    """Pair images with labels, by one listing of each folder instead of a look-up an image.

    Args:
        base: the folder that image ids are relative to.
        root: the folder in which label files are looked for that no image claims.
        folders: the folder of labels of each folder of images.
        listed: a text file lists the images.
    """
    if not images:
        raise RetinaError(f"{name}: no image found; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    existing = {home: _text_names(home) for home in set(folders.values())}
    stems = [os.path.splitext(image)[0] for image in images]
    again = first_repeated(stems)
    if again is not None:
        both = [images[stems.index(stems[again[0]])], images[again[0]]]
        what = "is listed twice" if both[0] == both[1] else f"and {both[1]} share a label file; rename one"
        raise RetinaError(f"{name}: {both[0]} {what}")
    labels, renamed = _paired(stems, folders, existing)
    if renamed:
        notes += (
            f"{name}: {count(renamed, 'label file')} called as Label Studio does: taken for the images that they name",
        )
    # A text file of images may leave some out on purpose, and beside images any text may lie.
    strays = sorted(
        f"{home}/{file}" for folder, home in folders.items() for file in existing[home] if home != folder and not listed
    )
    if strays:
        notes += (f"{name}: {count(len(strays), 'label file')} without image left out, such as {strays[0]}",)
    claimed = {os.path.abspath(label) for label in (*labels, *strays) if label is not None}
    without = [stem for stem, label in zip(stems, labels, strict=True) if label is None]
    elsewhere = _labels_elsewhere(root, without, claimed)
    sought = tuple(sorted(set(folders.values())))
    used = len(labels) - len(without)
    if elsewhere:
        notes += (note_unused(name, elsewhere, sought),)
    unused = unused_labels((*elsewhere, *strays), used, sought, ".txt", "is trained as background")
    prefix = f"{base}{os.sep}"
    ids = [stem.removeprefix(prefix) if stem.startswith(prefix) else os.path.relpath(stem, base) for stem in stems]
    return Listing(name, names, named_by, tuple(ids), tuple(images), tuple(labels), keypoints, notes, unused)


def _paired(
    stems: Sequence[str], folders: Mapping[str, str], existing: dict[str, set[str]]
) -> tuple[list[str | None], int]:
    """The label file of each image, which is taken out of `existing`; and the number of those that are called
    otherwise, as Label Studio exports them without the images."""
    labels: list[str | None] = []
    for stem in stems:
        folder, short_name = os.path.split(stem)
        home, file = folders[folder], f"{short_name}.txt"
        labels.append(f"{home}/{file}" if file in existing[home] else None)
        existing[home].discard(file)
    exported: dict[str, list[str]] = {}
    for home, left in existing.items():
        for file in sorted(left):
            for plain in plain_names(file.removesuffix(".txt")):
                exported.setdefault(f"{home}/{plain}", []).append(file)
    renamed = 0
    for row, (stem, label) in enumerate(zip(stems, labels, strict=True)):
        folder, short_name = os.path.split(stem)
        named = exported.get(f"{folders[folder]}/{short_name}", []) if label is None else []
        if len(named) == 1 and named[0] in existing[folders[folder]]:
            existing[folders[folder]].discard(named[0])
            labels[row] = f"{folders[folder]}/{named[0]}"
            renamed += 1
    return labels, renamed


def _labels_elsewhere(root: Path, stems: Sequence[str], claimed: set[str]) -> list[str]:
    """The text files in the root called like one of these images, in any case, which are no label of any image: with
    another case of the ending or of `labels`, or in another folder."""
    listing: dict[str, set[str]] = {}

    def images_in(folder: str) -> set[str]:
        if folder not in listing:
            entries = map(os.path.splitext, os.listdir(folder) if os.path.isdir(folder) else ())
            listing[folder] = {stem for stem, ending in entries if ending.lower() in IMAGE_SUFFIXES}
        return listing[folder]

    def has_image(folder: str, stem: str) -> bool:
        parts = Path(os.path.relpath(folder, root)).parts
        homes = [folder]
        if "labels" in parts:
            last = len(parts) - 1 - parts[::-1].index("labels")
            homes.append(str(root.joinpath(*parts[:last], "images", *parts[last + 1 :])))
        return any(
            stem in images_in(home) and os.path.abspath(_labels_folder(root, home)) == os.path.abspath(folder)
            for home in homes
        )

    unused = []
    for path in files_called(root, {os.path.basename(stem) for stem in stems}, ".txt"):
        stem, ending = os.path.splitext(os.path.basename(path))
        if os.path.abspath(path) in claimed or text.names_classes(Path(path)):
            continue
        if ending != ".txt" or not has_image(os.path.dirname(path), stem):
            unused.append(path)
    return sorted(unused)


def _class_names(file: Path, tree: dict[Any, Any], relabelled: bool) -> tuple[str, ...]:
    names, count = tree.get("names"), tree.get("nc")
    if count is not None and (type(count) is not int or count < 1):
        raise RetinaError(f"{file}: nc: expected the number of classes, got {short(count)}")
    if names is None and count is not None:
        return tuple(f"class_{index}" for index in range(count))  # as Ultralytics calls them
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise RetinaError(f"{file}: names: expected the indices 0 to {len(names) - 1}, got {short(list(names))}")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise RetinaError(f"{file}: names: expected a list of class names, or {{0: name, …}}, got {short(names)}")
    for index, name in enumerate(names):
        if type(name) not in (str, int) or name == "":
            raise RetinaError(
                f"{file}: names: expected a text for class {index}, got {short(name)}; put it into quotes"
            )
    if count is not None and count != len(names):
        raise RetinaError(f"{file}: nc is {count}, but there are {len(names)} names; correct one of them")
    written = _as_written(file, tree["names"]) if int in map(type, names) else names
    listed = tuple(name if type(name) is str else text for name, text in zip(names, written, strict=True))
    again = first_repeated(listed)
    if again is not None and not relabelled:
        advice = merging_advice(listed, range(len(listed)))
        raise RetinaError(f"{file}: names: '{again[1]}' is given twice; {advice}")
    return tuple(distinct_names(listed, range(len(listed))))


def _as_written(file: Path, given: dict[int, Any] | list[Any]) -> list[str]:
    """The names of a data.yaml as they stand there: YAML reads 007 as 7, and 1_000 as 1000."""
    names = yaml.load(file.read_text(encoding="utf-8"), yaml.BaseLoader)["names"]  # noqa: S506 - it makes texts alone
    if not isinstance(given, dict):
        return names
    by_index = dict(zip(given, names.values(), strict=True))
    return [by_index[index] for index in range(len(given))]


def _root(file: Path, path: Any) -> tuple[Path, tuple[str, ...]]:
    if path is None:
        return file.parent, ()
    if not isinstance(path, str):
        raise RetinaError(f"{file}: path: expected the data set's folder, got {short(path)}")
    root = file.parent / path
    if os.path.isdir(root):
        return Path(os.path.normpath(root)), ()
    return file.parent, (f"{file}: path: no such folder as {path}: the file's own folder is taken",)


def _split(file: Path, tree: dict[Any, Any], split: str) -> Any:
    for key in SPELLINGS.get(split, (split,)):
        if tree.get(key):
            return tree[key]
    there = splits_of_yaml(tree)
    raise RetinaError(
        f"{file}: it has no split '{split}'; {suggest(split, there) if there else 'expected train, val and test'}"
    )


def sections(folder: Path, images: Path | None = None) -> dict[str, config.Source]:
    """Return the splits of a folder of this format, none if it is no such folder.

    A folder without a list of its splits is one split, called as the folder is, or one for each folder in it, or in
    its `images`, that is called like a split.

    Raises:
        RetinaError: several files say what the splits are.
    """
    listing = _listing_files(folder)
    if len(listing) > 1:
        raise RetinaError(
            f"{folder}: {len(listing)} files say what its splits are; give the one to use: "
            f"{', '.join(map(str, listing[:_SHOWN]))}"
        )
    if listing:
        return sections_of_file(listing[0])
    if (folder / "images").is_dir() and _holds_labels(folder):
        parts = {} if files(folder / "images") else split_folders(folder / "images")
        if parts:
            names = _names_file(folder, folder / "labels")
            return {split: config.YoloSource(images=home, names=names) for split, home in parts.items()}
        return {folder.absolute().name: config.YoloSource(images=folder / "images")}
    if _labels_beside(folder):
        return {folder.absolute().name: config.YoloSource(images=folder, names=_names_file(folder))}
    splits: dict[str, config.Source] = {}
    for split, home in split_folders(folder).items():
        if _holds_labels(home):
            splits[split] = config.YoloSource(images=home / "images", names=_names_file(folder, home))
        elif _labels_beside(home):
            splits[split] = config.YoloSource(images=home, names=_names_file(folder, home))
    return splits


def _names_file(*folders: Path) -> Path | None:
    """The first file of class names in some folders: classes.txt, or darknet's, which Roboflow calls `.labels`."""
    named = ([folder / text.CLASSES_FILE, *files(folder, (".names", ".labels"))] for folder in folders)
    return next((file for listed in named for file in listed if file.is_file()), None)


def _listing_files(folder: Path) -> list[Path]:
    """The files that say what the splits of a folder are: data.yaml, whatever it is called, or darknet's twins."""
    if (folder / "data.yaml").is_file():
        return [folder / "data.yaml"]
    by_yaml = [file for file in files(folder, _YAML) if _holds_splits(file)]
    names = files(folder, (".names",)) if _lists(folder) else []
    return by_yaml or files(folder, (".data",)) or names


def _lists(folder: Path) -> dict[str, str]:
    """The lists of images of darknet's splits."""
    there = {file.name.lower(): file.name for file in reversed(files(folder, (".txt",)))}
    lists = {
        split: [there[f"{name}.txt"] for name in names if f"{name}.txt" in there] for split, names in SPELLINGS.items()
    }
    return {split: named[0] for split, named in lists.items() if named}


def is_data_yaml(tree: object) -> bool:
    """Return whether the content of a YAML file looks like a data.yaml, and not like a configuration."""
    return isinstance(tree, dict) and not config.is_ours(tree) and bool({"names", "nc", *SPLITS} & set(tree))


def _holds_splits(file: Path) -> bool:
    """Whether a YAML file names splits; `config.yaml` is the name of a run's configuration."""
    try:
        tree = read_yaml(file, str(file))
    except RetinaError:  # no YAML: whatever it is, it is no data.yaml
        return False
    return file.name != "config.yaml" and is_data_yaml(tree) and bool(splits_of_yaml(tree))


def _holds_labels(home: Path) -> bool:
    """Whether there are labels of `images` in `labels`, or beside the images."""
    inside = (entry for entry in (home / "labels").rglob("[!.]*") if entry.is_file())
    of_labels = next((entry.suffix.lower() == ".txt" for entry in inside), (home / "labels").is_dir())
    return (home / "images").is_dir() and (of_labels or any((home / "images").rglob("*.txt")))


def _labels_beside(folder: Path) -> bool:
    """Whether an image of a folder has a text file of its name beside it, with a line of YOLO's."""
    stems = {file.stem for file in files(folder)}
    beside = (file for file in files(folder, (".txt",)) if file.stem in stems)
    return any(map(_holds_boxes, islice(beside, LOOKED_AT)))


def _holds_boxes(file: Path) -> bool:
    try:
        words = next((line.split() for line in text.lines_of(text.read_text(file)) if line.strip()), [])
        numbers = [float(word) for word in words]
    except (RetinaError, ValueError):  # other text
        return False
    return len(numbers) > len(_BOX.split()) - 1 and numbers[0].is_integer() and max(numbers[1:]) <= _LARGEST_FRACTION


def sections_of_file(file: Path) -> dict[str, config.Source]:
    """Return the splits of a data.yaml, or of darknet's twin of it.

    Raises:
        RetinaError: it is malformed or names no split.
    """
    tree = _tree(file)
    there = splits_of_yaml(tree)
    # Tools write a test split that was never made. Who asks for it learns that its folder is not there.
    if len(there) > 1 and not leads_to_images(file, tree, "test"):
        there = [split for split in there if split != "test"]
    if not there:
        raise RetinaError(f"{file}: expected at least one of train, val and test in this {file.name}, got none")
    return {split: config.YoloSource(data=file, split=split) for split in there}


def _tree(file: Path) -> dict[Any, Any]:
    """The content of a data.yaml, or of darknet's twins of it as such: `obj.data` of lines `key = value`, or without it
    `obj.names` beside the lists of the splits."""
    ending = file.suffix.lower()
    if ending in _YAML:
        tree = read_yaml(file, str(file))
        if not isinstance(tree, dict):
            raise RetinaError(
                f"{file}: expected an Ultralytics data.yaml with names and splits, got a {type(tree).__name__}"
            )
        return tree
    home = file.parent
    if ending == ".names":
        return {"names": text.read_names(file), **_lists(home)}
    pairs = (line.partition("=") for line in text.lines_of(text.read_text(file)) if "=" in line)
    given = {key.strip(): value.strip() for key, _, value in pairs}
    names = given.get("names", "")
    if not (home / (read := _in_root(names, home))).is_file():
        raise RetinaError(f"{file}: names: expected a file of class names, one a line, {short(names)} is none")
    return {"names": text.read_names(home / read), **{key: _in_root(given[key], home) for key in given.keys() & _KEYS}}


def _in_root(path: str, root: Path) -> str:
    """A path of darknet's, which starts where darknet was called, from the root: without as many of its folders as it
    takes to lead to a file; as it stands where none does."""
    parts = [part for part in re.split(r"[/\\]", path) if part not in ("", ".")]
    tails = ("/".join(parts[place:]) for place in range(len(parts)))
    return next((tail for tail in tails if ".." not in parts and (root / tail).is_file()), path)


def splits_of_yaml(tree: dict[Any, Any]) -> list[str]:
    """Return those of train, val (by any of its names) and test that a data.yaml has."""
    return [key for key in SPLITS if any(tree.get(spelled) for spelled in SPELLINGS[key])]


def leads_to_images(file: Path, tree: dict[Any, Any], split: str) -> bool:
    """Return whether a split of a data.yaml is there, in its key and on the disk."""
    try:
        root, _ = _root(file, tree.get("path"))
        given = _split(file, tree, split)
        for entry in given if isinstance(given, list) else [given]:
            _inside(file, root, split, entry)
    except RetinaError:
        return False
    return True


def _inside(file: Path, root: Path, split: str, entry: Any) -> Path:
    """The folder or file that a split names, which must exist inside the root."""
    if not isinstance(entry, str):
        raise RetinaError(f"{file}: {split}: expected a folder, a text file or a list of these, got {short(entry)}")
    if "\\" in entry and not os.path.exists(root / entry):
        entry = entry.replace("\\", "/")
    place = _joined(root, entry)
    if place is None and entry.startswith("../"):
        place = _joined(root, entry[3:])
    if place is None:
        raise RetinaError(
            f"{file}: {split}: {short(entry)} leaves the data set's root {root}; move it inside, or set path"
        )
    if not os.path.isdir(place) and not (os.path.isfile(place) and place.suffix == ".txt"):
        raise RetinaError(
            f"{file}: {split}: expected a folder of images or a .txt file of their paths, and {place} is neither; "
            "check path and the split"
        )
    return place


def _joined(root: Path, entry: str) -> Path | None:
    """The path, or None if it is not inside the root."""
    whole, top = os.path.abspath(root / entry), os.path.abspath(root)
    if whole != top and not whole.startswith(top.rstrip(os.sep) + os.sep):
        return None
    return root / os.path.relpath(whole, top)


def _of_folder(folder: Path, others: Counter[str]) -> list[str]:
    """The images of a folder and its subfolders, sorted; other files are counted by their ending."""
    images: list[str] = []
    for entry in files_below(str(folder)):
        suffix = os.path.splitext(entry)[1].lower()
        if suffix in IMAGE_SUFFIXES:
            images.append(entry)
        elif suffix not in _COMPANIONS:
            others[suffix or os.path.basename(entry)] += 1
    return sorted(images)


def _left_out(name: str, others: Counter[str]) -> tuple[str, ...]:
    if not others:
        return ()
    what = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
    return (f"{name}: {count(others.total(), 'file')} of no known kind of image left out: {what}",)


def _of_text(file: Path, root: Path, *, darknet: bool) -> tuple[list[str], tuple[str, ...]]:
    """The images that a text file lists, in its order, and a note on those whose path was read otherwise than it stands
    there, from the file's own folder; paths of darknet start elsewhere, and need no note."""
    images: list[str] = []
    others: list[str] = []
    top = os.path.abspath(root)
    lines = [(number, line.strip()) for number, line in enumerate(text.lines_of(text.read_text(file)), start=1)]
    entries = [(number, entry) for number, entry in lines if entry]
    guessed: Path | None = None
    for number, entry in entries:
        refuse_no_name(f"{file}: line {number}:", entry)
        if darknet:
            entry = str(root.absolute() / _in_root(entry, root))
        whole = os.path.normpath(os.path.join(os.path.abspath(file.parent), entry))
        if not os.path.isfile(whole):
            guessed = guessed or guess_folder(file, [entry for _, entry in entries])[0]
            paths = (folder / path for folder in (root, guessed) for path in readings(entry, folder, file.parent))
            other = next(filter(os.path.isfile, paths), None)
            if other is not None:
                whole = os.path.abspath(other)
                others.append(f"{entry} as {whole}")
        if not whole.startswith(top.rstrip(os.sep) + os.sep):
            raise RetinaError(
                f"{file}: line {number}: {short(entry)} leaves the data set's root {root}; move it inside"
            )
        if os.path.splitext(whole)[1].lower() not in IMAGE_SUFFIXES:
            raise RetinaError(
                f"{file}: line {number}: expected an image ending in {', '.join(IMAGE_SUFFIXES)}, got {short(entry)}"
            )
        images.append(os.path.join(str(root), whole[len(top.rstrip(os.sep)) + 1 :]))
    if not others:
        return images, ()
    return images, (f"{file}: {count(len(others), 'image name')} read otherwise, such as {others[0]}",)


def _labels_folder(root: Path, folder: str) -> str:
    """The folder of the labels of a folder of images."""
    parts = list(Path(os.path.relpath(folder, root) if root.parts else folder).parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        swapped = str(root.joinpath(*parts[:last], "labels", *parts[last + 1 :]))
        if os.path.isdir(swapped):
            return swapped
    return folder


def _text_names(folder: str) -> set[str]:
    try:
        names = {entry.name for entry in os.scandir(folder) if entry.name.endswith(".txt") and entry.name[:2] != "._"}
    except FileNotFoundError:
        return set()  # a subfolder of images none of which has objects
    except OSError as error:
        raise RetinaError(f"{folder}: cannot read this folder of labels: {error.strerror}; check the path") from None
    return {name for name in names if not text.names_classes(Path(folder) / name)}


def _keypoints(file: Path, tree: dict[Any, Any]) -> int:
    shape = tree.get("kpt_shape")
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and n > 0 for n in shape):
        raise RetinaError(f"{file}: kpt_shape: expected [points, 2 or 3], got {short(shape)}")
    return shape[0] * shape[1]


# ------------------------------------------------------------------------------------------------------------- writing


def check(parts: Sequence[Part]) -> tuple[str, ...]:
    """Return notes on what is lost.

    Raises:
        RetinaError: a split is called otherwise than YOLO's three, or a name has no extension that it knows.
    """
    splits = [part.split for part in parts]
    for part in parts:
        if part.split not in SPLITS:
            meant = split_of(part.split) or next((split for split in SPLITS if split not in splits), None)
            # Two splits of one name would put images to evaluate on among those to train on.
            hint = f"say which it is with --split {part.split}={meant}"
            if meant is None or meant in splits:
                hint = f"{meant or 'each of them'} is there already: leave one out by naming the others with --split"
            raise RetinaError(
                f"{part.table.name}: YOLO knows the splits train, val and test, got '{part.split}'; {hint}"
            )
        for name in part.names:
            if Path(name).suffix.lower() not in IMAGE_SUFFIXES:
                raise RetinaError(f"{part.table.name}: {name}: expected an image ending in {', '.join(IMAGE_SUFFIXES)}")
    notes = []
    lacking = {"train", "val"} - {part.split for part in parts}
    if lacking:
        which = " and ".join(sorted(lacking))
        notes.append(f"YOLO: Ultralytics also asks for the split {which} in data.yaml: written as null, without images")
    first = parts[0].table
    if first.category_ids != tuple(range(len(first.class_names))) or any(
        isinstance(identifier, int) for part in parts for identifier in part.table.image_ids
    ):
        notes.append("YOLO: the names of the files take the place of image ids, 0 to K-1 that of category ids")
    return tuple(notes)


def called(splits: Iterable[str]) -> dict[str, str]:
    """Return the names that YOLO gives to splits, such as val for validation; where it has none, or has it already,
    they keep theirs."""
    names = list(splits)
    usual = {name: split for split, spellings in SPELLINGS.items() for name in spellings if split not in names}
    return {name: usual.get(name, name) for name in names}


def unheld(table: DetectionDataset) -> tuple[np.ndarray, str]:
    """[M] the boxes that can't be written, and why: of equal lines readers take one."""
    gone = np.zeros(len(table.boxes), np.bool_)
    for row in range(len(table)):
        start = int(table.offsets[row])
        before: set[str] = set()
        for index, line in enumerate(_written_lines(table, row)):
            gone[start + index] = line in before
            before.add(line)
    return gone, "equal to another one of the same image, of which YOLO's readers take one"


def write(part: Part, folder: Path, *, link: bool, tick: Callable[[], None]) -> None:
    """Write a split; files that are there already are taken for written."""
    images, labels = (folder / kind / part.split for kind in ("images", "labels"))
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    for row, (name, stem) in enumerate(zip(part.names, part.stems, strict=True)):
        rotated = part.rotations[row] != 1
        place_image(part.table.images[row], str(part.table.image_ids[row]), images / name, rotated=rotated, link=link)
        label_file = labels / f"{stem}.txt"
        if not label_file.exists():
            with placed(label_file) as temporary:
                temporary.write_text(_written_text(part.table, row), encoding="utf-8")
        tick()


def written_texts(part: Part, folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each label file that was written, and its text."""
    for row, stem in enumerate(part.stems):
        yield folder / "labels" / part.split / f"{stem}.txt", _written_text(part.table, row)


def finish(parts: Sequence[Part], folder: Path) -> None:
    """Write `data.yaml`."""
    written = {part.split for part in parts}
    # Ultralytics refuses a file without the keys train and val, and takes them without a value.
    lines = [f"{split}: {f'images/{split}' if split in written else 'null'}" for split in SPLITS[:2]]
    lines += [f"{split}: images/{split}" for split in SPLITS[2:] if split in written]
    # Quoted all of them: readers differ in what they take for a number, a date or a boolean.
    names = (
        yaml.dump(name, default_style='"', allow_unicode=True, width=float("inf")).strip()
        for name in parts[0].table.class_names
    )
    lines += ["names:", *(f"  {index}: {name}" for index, name in enumerate(names))]
    write_text(folder / "data.yaml", "".join(f"{line}\n" for line in lines))


def source(folder: Path, split: str, names: Sequence[str]) -> config.YoloSource:
    """Return the section of a configuration that reads the split."""
    return config.YoloSource(data=folder / "data.yaml", split=split)


def tolerance(table: DetectionDataset) -> np.ndarray:
    """[M] by how many pixels a corner may differ when it is read again: 10 digits of a fraction are written."""
    sides = np.repeat(table.sizes.max(axis=1, initial=0), np.diff(table.offsets))
    return 1e-6 + 1e-9 * sides


def _written_text(table: DetectionDataset, row: int) -> str:
    return "".join(f"{line}\n" for line in _written_lines(table, row))


def _written_lines(table: DetectionDataset, row: int) -> list[str]:
    height, width = table.sizes[row]
    objects = table.objects(row)
    x1, y1, x2, y2 = objects.boxes.T
    fractions = np.stack([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height], axis=1)
    return [
        f"{label} " + " ".join(f"{value:.10g}" for value in values)
        for label, values in zip(objects.labels.tolist(), fractions.tolist(), strict=True)
    ]
