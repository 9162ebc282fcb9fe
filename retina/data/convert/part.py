"""The content of a conversion: the images of a split under their new names, fitted to what a format can hold."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from retina.data.dataset import DetectionDataset
from retina.data.image_files import place_image
from retina.data.stored import TableImage
from retina.errors import RetinaError
from retina.files import IMAGE_SUFFIXES
from retina.output import count

Written = Literal["coco", "voc", "yolo", "csv", "tfds"]
"""What `retina convert` writes and reads again."""

Target = Literal[Written, "label-studio"]
Spec = Literal["coco", "voc"]
Choice = Literal["keep", "drop"]

_LONGEST = 200  # bytes of a name; file systems allow 255, and a suffix has to fit too
_FLOAT32 = 2.0**-23  # the relative step of its numbers
_RESERVED = ("classes",)  # classes.txt, beside YOLO labels, is not the labels of an image


@dataclass(frozen=True)
class Holds:
    """The properties of a box that a format can hold. `areas`: "exact", "whole" (pixels²) or "no"."""

    title: str
    crowd: bool
    difficult: bool
    areas: Literal["exact", "whole", "no"]


HOLDS: dict[str, Holds] = {
    "coco": Holds("COCO JSON", crowd=True, difficult=False, areas="exact"),
    "voc": Holds("Pascal VOC", crowd=False, difficult=True, areas="no"),
    "yolo": Holds("YOLO", crowd=False, difficult=False, areas="no"),
    "csv": Holds("CSV", crowd=True, difficult=True, areas="exact"),
    "label-studio": Holds("Label Studio", crowd=False, difficult=False, areas="no"),
    "tfds-coco": Holds("TFDS with COCO's features", crowd=True, difficult=False, areas="whole"),
    "tfds-voc": Holds("TFDS with VOC's features", crowd=False, difficult=True, areas="no"),
}


@dataclass(frozen=True, eq=False)
class Part:
    """A split as it will be read again.

    `table`: boxes and sizes of the written images; `names` [N] their file names; `suffixes` [N] by their content;
    `rotations` [N] the EXIF orientation that is undone on writing, 1 for images that are copied byte for byte; `scores`
    [M] of boxes that are detections.
    """

    split: str
    table: DetectionDataset
    names: tuple[str, ...]
    suffixes: tuple[str, ...]
    rotations: np.ndarray
    scores: np.ndarray | None = None

    @property
    def stems(self) -> tuple[str, ...]:
        """[N] the names without extension."""
        return tuple(Path(name).stem for name in self.names)


def place_images(part: Part, folder: Path, *, link: bool, tick: Callable[[], None]) -> None:
    """Write the images of a part into a folder; those that are there already are taken for written."""
    folder.mkdir(parents=True, exist_ok=True)
    for row, name in enumerate(part.names):
        rotated = part.rotations[row] != 1
        place_image(part.table.images[row], str(part.table.image_ids[row]), folder / name, rotated=rotated, link=link)
        tick()


def without(table: DetectionDataset, gone: np.ndarray) -> DetectionDataset:
    """Return the table without the boxes of the mask `gone` [M]; its images stay."""
    if not gone.any():
        return table
    image = np.repeat(np.arange(len(table)), np.diff(table.offsets))[~gone]
    counts = np.bincount(image, minlength=len(table))
    columns = {name: getattr(table, name)[~gone] for name in ("boxes", "labels", "crowd", "difficult", "areas")}
    return replace(table, offsets=np.concatenate([[0], np.cumsum(counts)]), **columns)


def whole_corners(table: DetectionDataset) -> DetectionDataset:
    """Return the table with corners whole that float32 can't tell from whole numbers: sources hold sums and fractions
    of them, which come out as 80.99999999. Areas that are the box's stay so."""
    sides = np.repeat(table.sizes.max(axis=1, initial=1), np.diff(table.offsets))[:, None]
    nearest = np.round(table.boxes)
    boxes = np.where(np.abs(table.boxes - nearest) <= sides * _FLOAT32, nearest, table.boxes)
    sound = np.all(boxes[:, 2:] > boxes[:, :2], axis=1, keepdims=True)
    boxes = np.where(sound, boxes, table.boxes)
    plain = np.abs(table.areas - _areas(table.boxes)) <= 1e-6 * np.maximum(table.areas, 1)
    return replace(table, boxes=boxes, areas=np.where(plain, _areas(boxes), table.areas))


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def fitted(
    table: DetectionDataset, holds: Holds, crowd: Choice | None, difficult: Choice | None
) -> tuple[DetectionDataset, tuple[str, ...]]:
    """Return the table with nothing but what the format can say, and notes on the rest with counts.

    Args:
        crowd, difficult: whether boxes of this kind are left out or become ordinary ones.

    Raises:
        RetinaError: there are boxes of a kind that the format can't mark, and no choice was made; or a choice has no
            effect.
    """
    notes: list[str] = []
    for kind, chosen, can in (("crowd", crowd, holds.crowd), ("difficult", difficult, holds.difficult)):
        flags = getattr(table, kind)
        number = int(flags.sum())
        if chosen == "keep" and can:
            raise RetinaError(f"--{kind} keep: it has no effect, {holds.title} marks {kind} boxes; leave it out")
        if not number or (can and chosen is None):
            continue
        if chosen is None:
            raise RetinaError(
                f"{table.name}: {number} of {len(flags)} boxes are marked {kind}, which {holds.title} can't say; "
                f"decide with --{kind} drop (leave them out) or --{kind} keep (they become ordinary boxes)"
            )
        if chosen == "drop":
            table = without(table, flags)
            notes.append(f"{table.name}: {count(number, f'{kind} box')} left out (--{kind} drop)")
        else:
            table = replace(table, **{kind: np.zeros_like(flags)})
            notes.append(f"{table.name}: {count(number, f'{kind} box')} made ordinary (--{kind} keep)")
    of_boxes = _areas(table.boxes)
    if holds.areas == "whole":
        cut = int((np.floor(table.areas) != table.areas).sum())
        if cut:
            notes.append(f"{table.name}: {count(cut, 'area')} cut to whole pixels, as {holds.title} stores them")
        table = replace(table, areas=np.floor(table.areas))
    elif holds.areas == "no":
        other = int((np.abs(table.areas - of_boxes) > 1e-6 * np.maximum(of_boxes, 1)).sum())
        if other:
            notes.append(
                f"{table.name}: {count(other, 'area')} other than the box's lost, {holds.title} has only those of "
                "the boxes"
            )
        table = replace(table, areas=of_boxes)
    return table, tuple(notes)


def file_names(
    images: Sequence[TableImage], ids: Sequence[int | str], suffixes: Sequence[str]
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return a file name for each image, distinct without extension in any case, and (old, new) where it changed.

    Letters, digits, `-`, `_` and `.` stay (Unicode too, composed), all else becomes `_`. Of images that would share a
    name the later ones get `_2`, `_3` and so on; the same file given twice keeps one name. Images that are no files of
    their own are called by their id, numbers with 12 digits as COCO does.

    Args:
        suffixes: [N] the extension by content, such as ".jpg", for images without one.
    """
    names: list[str] = []
    renamed: list[tuple[str, str]] = []
    taken: set[str] = set(_RESERVED)
    known: dict[str, str] = {}
    for image, identifier, suffix in zip(images, ids, suffixes, strict=True):
        if isinstance(image, str) and image in known:
            names.append(known[image])
            continue
        if isinstance(image, str):
            old = Path(image).name
        else:
            old = (f"{identifier:012d}" if isinstance(identifier, int) else identifier) + suffix
        name = _free(_plain(old, suffix), taken)
        taken.add(Path(name).stem.casefold())
        names.append(name)
        if isinstance(image, str):
            known[image] = name
        if name != old:
            renamed.append((image if isinstance(image, str) else old, name))
    return tuple(names), tuple(renamed)


def _plain(name: str, suffix: str) -> str:
    path = Path(unicodedata.normalize("NFC", name).replace("/", "_").replace("\\", "_"))
    # An image without an extension may have a dot in its name all the same: frame.0001.
    stem, ending = (path.stem, path.suffix) if path.suffix.lower() in IMAGE_SUFFIXES else (path.name, suffix)
    clean = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in stem)
    if clean[:1] in (".", "-"):
        clean = "_" + clean[1:]
    while len(clean.encode()) > _LONGEST:
        clean = clean[:-1]
    return (clean or "image") + ending


def _free(name: str, taken: set[str]) -> str:
    path = Path(name)
    number, free = 1, name
    while Path(free).stem.casefold() in taken:
        number += 1
        free = f"{path.stem}_{number}{path.suffix}"
    return free
