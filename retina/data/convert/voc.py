"""Pascal VOC: `Annotations/*.xml`, `ImageSets/Main/SPLIT.txt` and `JPEGImages/`.

Corners count from 1 and include the last pixel, as `retina.data.formats.voc` reads them: xmin = x1 + 1,
xmax = x2. They are written with their fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np

from retina import config
from retina.data.convert.images import place_image, placed
from retina.data.convert.part import Part
from retina.data.dataset import DetectionDataset
from retina.errors import RetinaError
from retina.files import write_text

_SUFFIXES = (".jpg", ".jpeg", ".png")


def check(parts: Sequence[Part]) -> tuple[str, ...]:
    """Notes on what is lost.

    Raises:
        RetinaError: an image is neither JPEG nor PNG, or XML can't hold the name of a class.
    """
    for part in parts:
        for name in part.names:
            if Path(name).suffix.lower() not in _SUFFIXES:
                raise RetinaError(f"{part.table.name}: {name}: Pascal VOC holds JPEG and PNG images; use coco or yolo")
        for called in part.table.class_names:
            if called != called.strip() or any(ord(letter) < 32 or letter in "\ufffe\uffff" for letter in called):
                raise RetinaError(
                    f"{part.table.name}: class {called!r}: XML can't hold its blanks or control characters; rename it"
                )
    notes = ["Pascal VOC: truncated and pose are not known: written as 0 and Unspecified"]
    unseen = set(parts[0].table.class_names) - {
        part.table.class_names[label] for part in parts for label in np.unique(part.table.labels)
    }
    if unseen:
        notes.append(f"Pascal VOC has no list of classes: {len(unseen)} without a box are lost: {sorted(unseen)}")
    if any(isinstance(identifier, int) for part in parts for identifier in part.table.image_ids):
        notes.append("Pascal VOC: the names of the files take the place of image ids, 1 to K that of category ids")
    return tuple(notes)


def unheld(table: DetectionDataset) -> tuple[np.ndarray, str]:
    """[M] the boxes that can't be written, and why."""
    sides = table.boxes[:, 2:] - table.boxes[:, :2]
    return (sides - 1 < 1e-6).any(axis=1), "at most 1 pixel wide or high, which reads as xmin = xmax"


def write(part: Part, folder: Path, *, link: bool, tick: Callable[[], None]) -> None:
    """Writes a split; files that are there already are taken for written."""
    homes = [folder / "JPEGImages", folder / "Annotations", folder / "ImageSets" / "Main"]
    for home in homes:
        home.mkdir(parents=True, exist_ok=True)
    images, annotations, lists = homes
    for row, (name, stem) in enumerate(zip(part.names, part.stems, strict=True)):
        rotated = part.rotations[row] != 1
        place_image(part.table.images[row], str(part.table.image_ids[row]), images / name, rotated=rotated, link=link)
        xml = annotations / f"{stem}.xml"
        if not xml.exists():
            with placed(xml) as temporary:
                temporary.write_text(annotation(part, row), encoding="utf-8")
        tick()
    write_text(lists / f"{part.split}.txt", "".join(f"{stem}\n" for stem in part.stems))


def source(folder: Path, split: str, names: Sequence[str]) -> config.VocSource:
    """How a configuration reads the split."""
    return config.VocSource(folder=folder, splits=(split,))


def tolerance(table: DetectionDataset) -> np.ndarray:
    """[M] by how many pixels a corner may differ when it is read again: 10 digits are written."""
    return 1e-6 + 1e-9 * np.abs(table.boxes).max(axis=1, initial=0)


def annotation(part: Part, row: int) -> str:
    """The XML text of one image."""
    table, (height, width) = part.table, part.table.sizes[row]
    root = Element("annotation")
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", part.names[row])
    size = SubElement(root, "size")
    for key, value in (("width", width), ("height", height), ("depth", 3)):
        _add(size, key, str(value))
    _add(root, "segmented", "0")
    objects = table.objects(row)
    for box, label, difficult in zip(objects.boxes, objects.labels, objects.difficult, strict=True):
        found = SubElement(root, "object")
        _add(found, "name", table.class_names[label])
        _add(found, "pose", "Unspecified")
        _add(found, "truncated", "0")
        _add(found, "difficult", str(int(difficult)))
        corners = SubElement(found, "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box + np.array([1, 1, 0, 0]), strict=True):
            _add(corners, key, f"{value:.10g}")
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def _add(parent: Element, tag: str, text: str) -> None:
    SubElement(parent, tag).text = text
