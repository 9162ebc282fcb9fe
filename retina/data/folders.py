"""The content of a folder at first sight, by which the formats recognise their layouts."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from retina.errors import RetinaError
from retina.files import IMAGE_SUFFIXES

SPELLINGS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}
"""The names of the splits, by those that they go by here, which are Ultralytics'; Roboflow writes `valid`."""

LOOKED_AT = 100
"""Files of a folder that are opened to learn their kind."""

# Where files are looked for by their names alone: beside images may lie a whole home folder.
_MOST_FOLDERS = 2000
# Where the images of a folder of labels lie, beside that folder.
_IMAGES = "JPEGImages", "images"


def files(folder: Path, endings: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Return the files of a folder, not of its subfolders, with one of some endings in lower case, sorted; hidden ones
    left out, such as the companions `._x.jpg` that macOS writes."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.lower().endswith(tuple(endings)) and entry.is_file()]
    return [folder / name for name in sorted(names) if not name.startswith(".")]


def files_below(folder: str) -> Iterator[str]:
    """Yield every file of a folder and its subfolders, in no order; hidden ones left out. Links are followed, but into
    no folder twice: they may lead around in a circle.

    Raises:
        RetinaError: a folder can't be read.
    """
    yield from _below(folder, set())


def _below(folder: str, visited: set[tuple[int, int]]) -> Iterator[str]:
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            return
        visited.add((status.st_dev, status.st_ino))
        entries = list(os.scandir(folder))
    except OSError as error:
        raise RetinaError(f"{folder}: cannot read this folder of images: {error.strerror}; check the path") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue  # such as the ._ companions that macOS writes
        if entry.is_dir():
            yield from _below(entry.path, visited)
        else:
            yield entry.path


def files_called(folder: Path, stems: Collection[str], ending: str) -> Iterator[str]:
    """Yield the files of a folder and its subfolders that have one of some names without ending, and this ending, both
    in any case; hidden ones and hidden folders left out, and what is no file, such as a broken link."""
    names = {stem.casefold() for stem in stems}
    for parent, folders, inside in islice(os.walk(folder), _MOST_FOLDERS) if names else ():
        folders[:] = [below for below in folders if not below.startswith((".", "__"))]  # of trash, caches, archives
        for file in inside:
            stem, suffix = os.path.splitext(file)
            if suffix.lower() == ending and stem.casefold() in names and not file.startswith("."):
                path = os.path.join(parent, file)
                if os.path.isfile(path):
                    yield path


def labels_elsewhere(
    folder: Path, images: Iterable[Path], claimed: Iterable[Path], ending: str, content: re.Pattern[bytes]
) -> list[str]:
    """Return the label files of a folder and its subfolders that are called like one of some images without labels, in
    any case, sorted; but for those that can't be read or are the labels of another image, beside which they lie.

    Args:
        images: those without labels.
        claimed: the label files in use, of this split and others.
        content: what a label file holds.
    """
    without, used = ({os.path.abspath(path) for path in paths} for paths in (images, claimed))
    named: dict[Path, dict[str, list[str]]] = {}
    beside: dict[str, list[dict[str, list[str]]]] = {}

    def images_of(folder: Path) -> dict[str, list[str]]:
        """The images of a folder by their names without ending."""
        if folder not in named:
            named[folder] = {}
            for image in files(folder):
                named[folder].setdefault(image.stem, []).append(str(image))
        return named[folder]

    def is_of_another(label: str) -> bool:
        home, name = os.path.split(label)
        if home not in beside:
            above = Path(home).parent
            beside[home] = [images_of(place) for place in (Path(home), above, *(above / inside for inside in _IMAGES))]
        stem = os.path.splitext(name)[0]
        nearest = next((images[stem] for images in beside[home] if stem in images), None)
        return nearest is not None and without.isdisjoint(nearest)

    stems = {os.path.splitext(os.path.basename(image))[0] for image in without}
    called = {file: os.path.abspath(file) for file in files_called(folder, stems, ending)}
    return sorted(
        file for file, path in called.items() if path not in used and not is_of_another(path) and _holds(path, content)
    )


def _holds(file: str, content: re.Pattern[bytes]) -> bool:
    try:
        return content.search(Path(file).read_bytes()) is not None
    except OSError:
        return False


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted; without hidden ones and the `__MACOSX` of archives."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__"))]
    return [folder / name for name in sorted(names)]


def split_folders(folder: Path) -> dict[str, Path]:
    """Return the folders in a folder that are called like a split, by the names of `SPELLINGS`, in its order."""
    called = {inside.name.lower(): inside for inside in reversed(subfolders(folder))}
    splits = {split: [called[name] for name in names if name in called] for split, names in SPELLINGS.items()}
    return {split: homes[0] for split, homes in splits.items() if homes}


def files_of_splits(folder: Path, of_split: Callable[[Path], list[Path]]) -> dict[str, Path]:
    """Return the file that describes each split in `split_folders`, where there is one.

    Raises:
        RetinaError: a split has several.
    """
    candidates = {split: of_split(home) for split, home in split_folders(folder).items()}
    for split, several in candidates.items():
        if len(several) > 1:
            raise RetinaError(
                f"{folder}: expected one file of annotations for the split {split}, got "
                f"{' and '.join(map(str, several))}; remove the others, or give one of them"
            )
    return {split: several[0] for split, several in candidates.items() if several}


def split_of(name: str) -> str | None:
    """Return the split that the name of a folder, file or list says, as in `train2017` or `2007_valid`."""
    words = re.findall("[a-z]+", name.lower())
    return next((split for split, names in SPELLINGS.items() if set(words) & set(names)), None)


def first_folder(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first of some folders in a folder that is there."""
    return next((folder / name for name in names if (folder / name).is_dir()), None)
