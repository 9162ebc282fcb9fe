"""labelme's JSON, a file for each image (https://github.com/wkentaro/labelme), read.

A file names its image by a path from its own folder and holds shapes in pixels, continuous coordinates. Of a polygon,
circle or mask the bounding box is taken; points and lines have no area and are left out. `difficult` of a shape, which
X-AnyLabeling writes, is read. The pixels that a file may hold (`imageData`) are not.

The files lie in one folder, beside their images or in `annotations` or `labels`, or in such a folder for each split.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retina import config
from retina.data.dataset import (
    Difficult,
    RawObjects,
    Records,
    UnusedLabels,
    first_repeated,
    handle_difficult,
    note_unused,
    suggest,
    unused_labels,
)
from retina.data.detections import is_name, is_number, short, to_xywh
from retina.data.folders import LOOKED_AT, files, labels_elsewhere, split_folders, subfolders
from retina.data.image_files import NO_SIZE_PIXELS, guess_folder, image_size, locate_images
from retina.errors import RetinaError
from retina.output import count

LAYOUTS = {"labelme: x.json beside x.jpg, or annotations/x.json and images/x.jpg": ("*.json", "annotations/*.json")}
"""The layouts of folders in words, each with patterns of what hints at it."""

_ALL = "."
_SHAPES = re.compile(rb'"shapes"\s*:\s*\[')
_PIXELS = re.compile(rb'"imageData"\s*:\s*"[^"]*"')
_BOXED = {"rectangle": 2, "polygon": 3, "circle": 2, "mask": 2, "rotation": 3, "oriented_rectangle": 3}
_LINES = ("point", "points", "line", "linestrip")


class _Annotation(NamedTuple):
    file: Path
    image: str
    size: tuple[int, int] | None  # height, width
    names: list[str]
    corners: list[list[float]]
    difficult: list[bool]
    kinds: list[str]


def labelme_records(
    folder: Path,
    splits: tuple[str, ...] = (_ALL,),
    images: Path | None = None,
    *,
    classes: tuple[str, ...] | None = None,
    difficult: Difficult = "ignore",
    keep_unreadable: bool = False,
    upright: bool = False,
) -> Records:
    """Read the files of a folder, or of folders in it; of images headers are read where a file gives no size.

    Image ids are the names of the files without ending. Category ids are 1..K in the order of the sorted names.

    Args:
        splits: the names of the folders in `folder`, read in this order; "." is `folder` itself.
        images: the folder of images; None guesses it, see `retina.data.image_files.guess_folder`.
        classes: the class names in label order. None takes the sorted names of all splits of `folder`, so that every
            split gives the same list.
        difficult: see `retina.data.dataset.handle_difficult`.
        keep_unreadable: an image that is missing or has no readable header stays, to be left out by who decodes it.
        upright: sizes that the files do not give are those of the upright picture, where EXIF tells of a rotation.

    Raises:
        RetinaError: a file or image is missing or malformed, or a class is not in `classes`.
    """
    name = str(folder) if splits == (_ALL,) else f"{folder} ({', '.join(splits)})"
    annotations: list[_Annotation] = []
    paths: list[str] = []
    notes: tuple[str, ...] = ()
    for split in splits:
        home = folder / split
        listed, said = _annotations(home)
        notes += said
        located = _locate(home, listed, images, keep_unreadable)
        annotations, paths, notes = annotations + listed, paths + located.paths, notes + located.notes
    for what, values in (("annotation", [entry.file.stem for entry in annotations]), ("image", paths)):
        again = first_repeated(values)
        if again is not None:
            both = f"{annotations[values.index(values[again[0]])].file} and {annotations[again[0]].file}"
            raise RetinaError(f"{name}: {both} have one {what}, {values[again[0]]}; remove one of the files")
    unused, unannotated = _unclaimed(name, folder, splits, annotations, paths)
    names = list(classes) if classes is not None else _all_names(folder, annotations)
    if not names:
        raise RetinaError(f"{name}: no file has a shape, so there are no class names; set data.classes")
    raw, rows, said = handle_difficult(name, _objects(annotations, names), difficult)
    number = np.array([i for entry in annotations for i in range(len(entry.names))], np.int64)[rows]
    unreadable = NO_SIZE_PIXELS if keep_unreadable else None
    sizes = [
        entry.size or image_size(Path(path), unreadable, upright)
        for entry, path in zip(annotations, paths, strict=True)
    ]
    return Records(
        name,
        {called: sorted(names).index(called) + 1 for called in names},
        [entry.file.stem for entry in annotations],
        paths,
        np.array(sizes, np.int32),
        raw,
        lambda row: f"{annotations[raw.image[row]].file.name} object {number[row]}",
        notes + _notes(name, annotations) + unannotated + said,
        unused,
        open_classes=True,
        measured=np.array([entry.size is None for entry in annotations], np.bool_),
    )


def sections(folder: Path, images: Path | None = None) -> dict[str, config.Source]:
    """Return the splits of a folder of this format, none if it is no such folder.

    It is one split, called as the folder is, or one for each folder in it that is called like one.
    """
    if _files_of(folder):
        return {folder.absolute().name: config.LabelmeSource(folder=folder, images=images)}
    homes = {split: home.name for split, home in split_folders(folder).items() if _files_of(home)}
    return {split: config.LabelmeSource(folder=folder, splits=(name,), images=images) for split, name in homes.items()}


def _files_of(home: Path) -> list[Path]:
    """The JSON files of shapes of a folder, or of `annotations` or `labels` in it."""
    for place in (home, home / "annotations", home / "labels"):
        there = files(place, (".json",))
        if any(_SHAPES.search(_read(file)) for file in there[:LOOKED_AT]):
            return there
    return []


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise RetinaError(f"{file}: cannot read this annotation: {error.strerror}; check the path") from None


def _annotations(home: Path) -> tuple[list[_Annotation], tuple[str, ...]]:
    """The content of a folder's files, and a note on those that are something else."""
    there = _files_of(home)
    listed = [entry for file in there if (entry := _parse(file)) is not None]
    if not listed:
        raise RetinaError(f"{home}: expected a folder of labelme's JSON files, got none; check data.root and folder")
    others = sorted({*there} - {entry.file for entry in listed})
    if not others:
        return listed, ()
    return listed, (f"{home}: {count(len(others), 'JSON file')} of another tool left out, such as {others[0].name}",)


def _locate(home: Path, listed: Sequence[_Annotation], images: Path | None, keep_missing: bool) -> Any:
    """The images that the files of a folder name."""
    folder = listed[0].file.parent
    # Files in a folder of their own name images beside that folder.
    beside = folder / "x" if folder == home else home / "annotations" / "x"
    named = [entry.image for entry in listed]
    place, looked = guess_folder(beside, named) if images is None else (images, ())
    return locate_images(
        str(folder / "*.json"),
        place,
        named,
        lambda index: listed[index].file.name,
        "imagePath",
        looked=looked,
        keep_missing=keep_missing,
    )


def _unclaimed(
    name: str, folder: Path, splits: Sequence[str], annotations: Sequence[_Annotation], paths: Sequence[str]
) -> tuple[UnusedLabels | None, tuple[str, ...]]:
    """The files called like images that none names, and notes on both."""
    homes = dict.fromkeys(entry.file.parent for entry in annotations)
    others = [file for home in _homes_of_splits(folder, splits) for file in _files_of(home)]
    annotated = {str(Path(path)) for path in paths}
    beside = [image for place in dict.fromkeys(Path(path).parent for path in paths) for image in files(place)]
    stems = {entry.file.stem for entry in annotations} | {file.stem for file in others}
    without = [image for image in beside if str(image) not in annotated and image.stem not in stems]
    if not without:
        return None, ()
    note = (
        f"{name}: {len(without)} of {len(beside)} images have no JSON file and are left out, such as "
        f"{without[0].name}; one without objects needs a file without shapes"
    )
    claimed = [*others, *(file for home in homes for file in files(home, (".json",)))]
    elsewhere = labels_elsewhere(folder, without, claimed, ".json", _SHAPES)
    sought = list(map(str, homes))
    unused = unused_labels(elsewhere, len(annotations), sought, ".json", "is left out")
    return unused, (note, *([note_unused(name, elsewhere, sought)] if elsewhere else []))


def _homes_of_splits(folder: Path, splits: Sequence[str]) -> list[Path]:
    """The folders that may be splits: those called so or, where splits are called otherwise, all in the folder."""
    called = list(split_folders(folder).values())
    return called if all(folder / split in (folder, *called) for split in splits) else subfolders(folder)


def _all_names(folder: Path, annotations: Sequence[_Annotation]) -> list[str]:
    """The sorted class names of all splits of a folder, of which `annotations` are already parsed."""
    known = {entry.file for entry in annotations}
    homes = {entry.file.parent for entry in annotations} - {folder}
    there = [file for home in split_folders(folder).values() if homes for file in _files_of(home)]
    others = [_parse(file) for file in there if file not in known]
    return sorted({name for entry in (*annotations, *others) if entry is not None for name in entry.names})


def _objects(annotations: Sequence[_Annotation], names: Sequence[str]) -> RawObjects:
    label_of = {name: label for label, name in enumerate(names)}
    for entry in annotations:
        for index, name in enumerate(entry.names):
            if name not in label_of:
                hint = suggest(name, names)
                raise RetinaError(f"{entry.file}: object {index}: class {short(name)} is not in data.classes; {hint}")
    boxes = np.array([corners for entry in annotations for corners in entry.corners], np.float64).reshape(-1, 4)
    xywh = to_xywh(boxes)
    return RawObjects(
        image=np.repeat(np.arange(len(annotations)), [len(entry.names) for entry in annotations]),
        boxes=boxes,
        xywh=xywh,
        given=boxes,
        extent=xywh[:, 2:],
        labels=np.array([label_of[name] for entry in annotations for name in entry.names], np.int32),
        crowd=np.zeros(len(boxes), np.bool_),
        difficult=np.array([flag for entry in annotations for flag in entry.difficult], np.bool_),
        areas=np.full(len(boxes), np.nan),
    )


def _notes(name: str, annotations: Sequence[_Annotation]) -> tuple[str, ...]:
    kinds = Counter(kind for entry in annotations for kind in entry.kinds)
    outlines = sum(count for kind, count in kinds.items() if kind in _BOXED and kind != "rectangle")
    lines = sum(kinds[kind] for kind in _LINES)
    notes = []
    if outlines:
        notes.append(f"{outlines} of {kinds.total()} shapes are outlines or masks: their bounding boxes are taken")
    if lines:
        notes.append(f"{lines} of {kinds.total()} shapes are points or lines, which have no area: left out")
    return tuple(f"{name}: {note}" for note in notes)


def _parse(file: Path) -> _Annotation | None:
    """The content of a file; None if it is something else than labelme's."""
    try:
        tree = json.loads(_PIXELS.sub(b'"imageData":null', _read(file)))
    except (ValueError, RecursionError) as error:
        raise RetinaError(f"{file}: not valid JSON: {error}; is the file complete?") from None
    if not isinstance(tree, dict) or not {"shapes", "imagePath"} & set(tree):
        return None
    shapes, image = tree.get("shapes"), tree.get("imagePath")
    if not isinstance(shapes, list) or not isinstance(image, str) or not image:
        got = f"{type(shapes).__name__} and {short(image)}"
        raise RetinaError(f"{file}: expected a list as shapes and a path as imagePath, got {got}; correct the file")
    sides = [tree.get(key) for key in ("imageHeight", "imageWidth")]
    if any(side is not None and not (type(side) is int and 0 < side < 2**31) for side in sides):
        raise RetinaError(f"{file}: imageHeight and imageWidth must be positive whole numbers, got {short(sides)}")
    height, width = sides
    size = None if height is None or width is None else (height, width)
    entry = _Annotation(file, image, size, [], [], [], [])
    for index, shape in enumerate(shapes):
        kind, corners = _corners(f"{file}: shape {index}", shape)
        entry.kinds.append(kind)
        if corners is not None:
            entry.names.append(shape["label"])
            entry.corners.append(corners)
            entry.difficult.append(_difficult(f"{file}: shape {index}", shape.get("difficult")))
    return entry


def _difficult(where: str, flag: Any) -> bool:
    if flag is not None and (type(flag) not in (bool, int, float) or flag not in (0, 1)):
        raise RetinaError(f"{where}: difficult must be true or false, got {short(flag)}")
    return bool(flag)


def _corners(where: str, shape: Any) -> tuple[str, list[float] | None]:
    """The kind of a shape, and x1, y1, x2, y2 around it; None for one without area."""
    if not isinstance(shape, dict) or not is_name(shape.get("label")) or not shape["label"]:
        raise RetinaError(f"{where}: expected an object with a label, got {short(shape)}; add it, or remove the shape")
    kind: str = shape.get("shape_type") or "polygon"
    points: Any = shape.get("points")
    if kind in _LINES:
        return kind, None
    if not is_name(kind) or kind not in _BOXED:
        raise RetinaError(f"{where}: shape_type must be one of {', '.join((*_BOXED, *_LINES))}, got {short(kind)}")
    pairs = isinstance(points, list) and all(isinstance(point, list) and len(point) == 2 for point in points)
    if not pairs or len(points) < _BOXED[kind] or not all(is_number(number) for point in points for number in point):
        raise RetinaError(f"{where}: a {kind} needs at least {_BOXED[kind]} points [x, y], got {short(points)}")
    xs, ys = zip(*points, strict=True)
    if kind == "circle":  # its centre, and a point on it
        radius = math.dist(*points[:2])
        return kind, [xs[0] - radius, ys[0] - radius, xs[0] + radius, ys[0] + radius]
    return kind, [min(xs), min(ys), max(xs), max(ys)]
