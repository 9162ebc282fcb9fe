"""What is wrong with each image of a table by itself, for pages that show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from retina import config as configuration
from retina.data.dataset import DetectionDataset
from retina.data.image_files import NO_SIZE_FRACTIONS, NO_SIZE_PIXELS
from retina.doctor.coverage import coverage
from retina.doctor.findings import count
from retina.doctor.inspection import Images, duplicate_groups
from retina.doctor.targets import Target
from retina.errors import RetinaError

_UPRIGHT = 1
# Boxes that a sentence names one by one.
_NAMED = 3

Defects = dict[int, list["Defect"]]


class Defect(NamedTuple):
    """`code`: as in the findings of the doctor; `text`: about one image, which it does not name."""

    code: str
    text: str


def read_split(target: Target, split: str) -> tuple[DetectionDataset, Defects]:
    """A split without its invalid boxes (or with them cut, if the configuration says so), with all its images, usable
    or not, and for the rows of images with invalid boxes what was wrong with these.

    Raises:
        RetinaError: it can't be read, for another reason than invalid boxes or images.
    """
    try:
        return target.read(split, "error"), {}
    except RetinaError as error:
        if not error.details:
            raise
        faults = list(zip(error.images, error.details, strict=False))
    table = target.read(split, "drop" if target.invalid_boxes == "error" else target.invalid_boxes)
    rows = {identifier: row for row, identifier in enumerate(table.image_ids)}
    out: Defects = {}
    for identifier, text in faults:
        if identifier in rows:
            out.setdefault(rows[identifier], []).append(Defect("invalid-boxes", f"invalid: {text}"))
    return table, out


def sized(table: DetectionDataset) -> np.ndarray:
    """[N] bool: the image's size is known, so that its boxes mean something."""
    unknown = (table.sizes == NO_SIZE_FRACTIONS).all(axis=1) | (table.sizes == NO_SIZE_PIXELS).all(axis=1)
    return ~unknown


def image_defects(table: DetectionDataset, opened: Images, names: Iterable[str]) -> Defects:
    """The defects of images, opened by `retina.doctor.inspection.inspect`, by row: those that can't be used, that have
    another size than declared or an EXIF rotation, that are there twice or nearly, and boxes given twice.

    Args:
        names: [N], by which other images are told.
    """
    called = list(names)
    out: Defects = {}

    def add(row: int, code: str, text: str) -> None:
        out.setdefault(row, []).append(Defect(code, text))

    known = sized(table)
    for row, fault in enumerate(opened.faults):
        size, declared = tuple(opened.sizes[row].tolist()), tuple(opened.declared[row].tolist())
        orientation = int(opened.orientations[row])
        if fault is not None:
            add(row, "unreadable-images", f"can't be used: {fault.removeprefix(f'{opened.names[row]}: ')}")
        elif known[row] and size != declared:
            turned = size == declared[::-1] and orientation >= 5
            cause = f", rotated by EXIF (orientation {orientation})" if turned else ""
            told = f"declared {declared[1]}×{declared[0]}, stored {size[1]}×{size[0]}{cause}"
            add(row, "exif-rotated-size" if turned else "size-mismatch", told)
        elif orientation != _UPRIGHT:
            add(row, "exif-rotated", f"EXIF rotation (orientation {orientation}), which is not applied")
    same, near, _ = duplicate_groups([opened])
    for code, told, groups in (
        ("duplicate-images", "the same bytes as", same),
        ("near-duplicate-images", "nearly the same picture as", near.rows),
    ):
        for group in groups:
            for row in group:
                others = [called[other] for other in group if other != row]
                more = f" and {len(others) - 1} more" if len(others) > 1 else ""
                add(row, code, f"{told} {others[0]}{more}")
    for row, number in _repeated(table).items():
        add(row, "repeated-boxes", f"{count(number, 'box')} given twice, with the same class and corners")
    return out


def anchor_defects(table: DetectionDataset, rows: Iterable[int], settings: configuration.Config) -> Defects:
    """For each of these rows the boxes that no anchor learns at the evaluation size (`retina.doctor.coverage`)."""
    known = sized(table)
    chosen = [row for row in rows if known[row]]
    part = table.subset(chosen)
    seen = coverage(part, settings.data.resize, settings.anchors, settings.model.fpn, settings.assignment)
    lost: dict[int, list[str]] = {}
    for place in np.flatnonzero(~seen.covered).tolist():
        x1, y1, x2, y2 = part.boxes[seen.placed.rows[place]].tolist()
        name = part.class_names[part.labels[seen.placed.rows[place]]]
        lost.setdefault(chosen[seen.placed.image[place]], []).append(f"{name} {x2 - x1:.0f}×{y2 - y1:.0f} px")
    out: Defects = {}
    for row, boxes in lost.items():
        told = ", ".join(boxes[:_NAMED]) + (f" and {len(boxes) - _NAMED} more" if len(boxes) > _NAMED else "")
        out[row] = [Defect("no-positive-anchor", f"{count(len(boxes), 'box')} without a positive anchor: {told}")]
    return out


def merged(*parts: Defects) -> Defects:
    """All defects of each row, in the order of the parts; rows rising."""
    rows = sorted({row for part in parts for row in part})
    return {row: [defect for part in parts for defect in part.get(row, [])] for row in rows}


def kinds(defects: Defects) -> dict[str, int]:
    """How many images have each kind of defect, the most frequent first."""
    return dict(Counter(code for found in defects.values() for code in {one.code for one in found}).most_common())


def _repeated(table: DetectionDataset) -> dict[int, int]:
    """How many boxes of each image stood there before, with the same class."""
    image = np.repeat(np.arange(len(table)), np.diff(table.offsets))
    keys = np.column_stack([image, table.labels, table.boxes])
    order = np.lexsort(keys.T[::-1])
    again = order[1:][(keys[order[1:]] == keys[order[:-1]]).all(axis=1)]
    return Counter(image[again].tolist())
