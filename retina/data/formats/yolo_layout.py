"""Where a YOLO data set keeps its images, labels and names: an Ultralytics data.yaml, or plain folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from retina.config.reading import read_yaml
from retina.data.dataset import first_repeated, suggest
from retina.data.detections import short
from retina.data.formats import text as text_boxes
from retina.errors import RetinaError
from retina.files import IMAGE_SUFFIXES

_SPLITS = ("train", "val", "test")
# Ultralytics reads `val`; others write `validation` or `valid`.
_SPELLINGS = {"val": ("val", "validation", "valid")}


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


def listing_of_yaml(file: Path, split: str) -> Listing:
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
    tree = read_yaml(file, str(file))
    if not isinstance(tree, dict):
        raise RetinaError(
            f"{file}: expected an Ultralytics data.yaml with names and splits, got a {type(tree).__name__}"
        )
    names = _names(file, tree)
    root, notes = _root(file, tree.get("path"))
    given = _split(file, tree, split)
    entries = given if isinstance(given, list) else [given]
    places = [_inside(file, root, split, entry) for entry in entries]
    name = f"{file} ({split})"
    images: list[str] = []
    others: Counter[str] = Counter()
    for place in places:
        images += _of_folder(place, others) if place.is_dir() else _of_text(place, root)
    base = places[0] if len(places) == 1 and places[0].is_dir() else root
    folders = {folder: _labels_folder(root, folder) for folder in {os.path.dirname(image) for image in images}}
    listed = any(not place.is_dir() for place in places)
    return _listing(
        name, names, str(file), base, images, folders, _keypoints(file, tree), notes + _left_out(name, others), listed
    )


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
    found = _of_folder(images, others)
    if names is None:
        beside = [folder / text_boxes.CLASSES_FILE for folder in (home, home.parent)]
        names = next((file for file in beside if file.is_file()), None)
    if names is not None:
        listed, named_by = tuple(text_boxes.read_names(names)), str(names)
    elif classes is not None:
        listed, named_by = tuple(classes), "data.classes"
    else:
        raise RetinaError(
            f"{home}: its labels are indices and there is no {text_boxes.CLASSES_FILE}; name the classes with "
            "names, with data.classes in the order of their indices, or in such a file, one a line"
        )
    folders = {
        folder: os.path.normpath(home / os.path.relpath(folder, images))
        for folder in {os.path.dirname(image) for image in found}
    }
    return _listing(str(images), listed, named_by, images, found, folders, 0, _left_out(str(images), others), False)


def _listing(
    name: str,
    names: tuple[str, ...],
    named_by: str,
    base: Path,
    images: list[str],
    folders: dict[str, str],
    keypoints: int,
    notes: tuple[str, ...],
    listed: bool,
) -> Listing:
    """Pairs images with labels, by one listing of each folder instead of a look-up an image."""
    if not images:
        raise RetinaError(f"{name}: no image found; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    existing = {home: _text_names(home) for home in set(folders.values())}
    stems = [os.path.splitext(image)[0] for image in images]
    again = first_repeated(stems)
    if again is not None:
        both = [images[stems.index(stems[again[0]])], images[again[0]]]
        what = "is listed twice" if both[0] == both[1] else f"and {both[1]} share a label file; rename one"
        raise RetinaError(f"{name}: {both[0]} {what}")
    labels: list[str | None] = []
    for stem in stems:
        folder, short_name = os.path.split(stem)
        home, file = folders[folder], f"{short_name}.txt"
        if file in existing[home]:
            existing[home].discard(file)
            labels.append(f"{home}/{file}")
        else:
            labels.append(None)
    # A text file of images may leave some out on purpose, and beside images any text may lie.
    strays = sorted(
        f"{home}/{file}" for folder, home in folders.items() for file in existing[home] if home != folder and not listed
    )
    if strays:
        notes += (f"{name}: {len(strays)} label files have no image and are left out, such as {strays[0]}",)
    prefix = f"{base}{os.sep}"
    ids = [stem.removeprefix(prefix) if stem.startswith(prefix) else os.path.relpath(stem, base) for stem in stems]
    return Listing(name, names, named_by, tuple(ids), tuple(images), tuple(labels), keypoints, notes)


def _names(file: Path, tree: dict[Any, Any]) -> tuple[str, ...]:
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
    listed = tuple(map(str, names))
    again = first_repeated(listed)
    if again is not None:
        raise RetinaError(f"{file}: names: '{again[1]}' is given twice; each must be distinct")
    return listed


def _root(file: Path, path: Any) -> tuple[Path, tuple[str, ...]]:
    if path is None:
        return file.parent, ()
    if not isinstance(path, str):
        raise RetinaError(f"{file}: path: expected the data set's folder, got {short(path)}")
    root = file.parent / path
    if root.is_dir():
        return Path(os.path.normpath(root)), ()
    return file.parent, (f"{file}: path: no such folder as {path}: the file's own folder is taken",)


def _split(file: Path, tree: dict[Any, Any], split: str) -> Any:
    for key in _SPELLINGS.get(split, (split,)):
        if tree.get(key):
            return tree[key]
    there = splits_of_yaml(tree)
    raise RetinaError(
        f"{file}: it has no split '{split}'; {suggest(split, there) if there else 'expected train, val and test'}"
    )


def splits_of_yaml(tree: dict[Any, Any]) -> list[str]:
    """Which of train, val (by any of its names) and test a data.yaml has."""
    return [key for key in _SPLITS if any(tree.get(spelled) for spelled in _SPELLINGS.get(key, (key,)))]


def _inside(file: Path, root: Path, split: str, entry: Any) -> Path:
    """What a split names, which must exist inside the root."""
    if not isinstance(entry, str):
        raise RetinaError(f"{file}: {split}: expected a folder, a text file or a list of these, got {short(entry)}")
    place = _joined(root, entry)
    if place is None and entry.startswith("../"):
        place = _joined(root, entry[3:])
    if place is None:
        raise RetinaError(
            f"{file}: {split}: {short(entry)} leaves the data set's root {root}; move it inside, or set path"
        )
    if not place.is_dir() and not (place.is_file() and place.suffix == ".txt"):
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
    found: list[str] = []
    for entry in _walk(str(folder), set()):
        suffix = os.path.splitext(entry)[1].lower()
        if suffix in IMAGE_SUFFIXES:
            found.append(entry)
        elif suffix not in _COMPANIONS:
            others[suffix or os.path.basename(entry)] += 1
    return sorted(found)


# What lies beside images without being one.
_COMPANIONS = (".txt", ".xml", ".json", ".yaml", ".cache", ".npy", ".md", ".csv")


def _walk(folder: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Every file below a folder. Links are followed, but into no folder twice: they may lead around in a circle."""
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        entries = list(os.scandir(folder))
    except OSError as error:
        raise RetinaError(f"{folder}: cannot read this folder of images: {error.strerror}; check the path") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue  # such as the ._ companions that macOS writes
        if entry.is_dir():
            yield from _walk(entry.path, seen)
        else:
            yield entry.path


def _left_out(name: str, others: Counter[str]) -> tuple[str, ...]:
    if not others:
        return ()
    what = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
    return (f"{name}: {sum(others.values())} files are no images of a known kind and are left out: {what}",)


def _of_text(file: Path, root: Path) -> list[str]:
    """The images that a text file lists, in its order."""
    found: list[str] = []
    top = os.path.abspath(root)
    home = os.path.abspath(file.parent)
    for number, line in enumerate(text_boxes.read_text(file).splitlines(), start=1):
        entry = line.strip()
        if not entry:
            continue
        whole = os.path.normpath(os.path.join(home, entry))
        if not whole.startswith(top.rstrip(os.sep) + os.sep):
            raise RetinaError(
                f"{file}: line {number}: {short(entry)} leaves the data set's root {root}; move it inside"
            )
        if os.path.splitext(whole)[1].lower() not in IMAGE_SUFFIXES:
            raise RetinaError(
                f"{file}: line {number}: expected an image ending in {', '.join(IMAGE_SUFFIXES)}, got {short(entry)}"
            )
        found.append(os.path.join(str(root), whole[len(top.rstrip(os.sep)) + 1 :]))
    return found


def _labels_folder(root: Path, folder: str) -> str:
    """Where the labels of a folder of images lie."""
    parts = list(Path(os.path.relpath(folder, root) if root.parts else folder).parts)
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        swapped = str(root.joinpath(*parts[:last], "labels", *parts[last + 1 :]))
        if os.path.isdir(swapped):
            return swapped
    return folder


def _text_names(folder: str) -> set[str]:
    try:
        names = {entry.name for entry in os.scandir(folder) if entry.name.endswith(".txt")}
    except FileNotFoundError:
        return set()  # a subfolder of images none of which has objects
    except OSError as error:
        raise RetinaError(f"{folder}: cannot read this folder of labels: {error.strerror}; check the path") from None
    return names - {text_boxes.CLASSES_FILE}


def _keypoints(file: Path, tree: dict[Any, Any]) -> int:
    shape = tree.get("kpt_shape")
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and n > 0 for n in shape):
        raise RetinaError(f"{file}: kpt_shape: expected [points, 2 or 3], got {short(shape)}")
    return shape[0] * shape[1]
