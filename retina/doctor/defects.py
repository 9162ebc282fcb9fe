"""Defects of each image of a table, for pages that show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from retina import config as configuration
from retina.data.dataset import DetectionDataset
from retina.data.headers import QUARTER_TURNS, UPRIGHT
from retina.data.image_files import NO_SIZE_FRACTIONS, NO_SIZE_PIXELS
from retina.doctor.coverage import coverage
from retina.doctor.findings import some
from retina.doctor.inspection import Images, duplicate_groups
from retina.doctor.targets import Target
from retina.errors import RetinaError
from retina.output import count

# Boxes that a sentence names.
_NAMED = 3

Defects = dict[int, list["Defect"]]


class Defect(NamedTuple):
    """A defect of one image: `code` as in the findings of the doctor; `text`, which does not name the image."""

    code: str
    text: str


def read_split(target: Target, split: str) -> tuple[DetectionDataset, Defects]:
    """Return a split with all its images, usable or not, without its invalid boxes (or with them cut, if the
    configuration says so), and the faults of invalid boxes by row.

    Raises:
        RetinaError: the split can't be read, for another reason than invalid boxes or images.
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
    """Return whether each image's size is known, without which its boxes mean nothing: [N] bool."""
    unknown = (table.sizes == NO_SIZE_FRACTIONS).all(axis=1) | (table.sizes == NO_SIZE_PIXELS).all(axis=1)
    return ~unknown


def image_defects(table: DetectionDataset, opened: Images, names: Iterable[str]) -> Defects:
    """Return by row the defects of images opened by `retina.doctor.inspection.inspect`: unusable, of another size than
    declared, with an EXIF rotation, equal or nearly equal to others, and with boxes given twice.

    Args:
        names: [N], for texts that name another image.
    """
    names = list(names)
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
            turned = size == declared[::-1] and orientation in QUARTER_TURNS
            cause = f", rotated by EXIF (orientation {orientation})" if turned else ""
            text = f"declared {declared[1]}×{declared[0]}, stored {size[1]}×{size[0]}{cause}"
            add(row, "exif-rotated-size" if turned else "size-mismatch", text)
        elif orientation != UPRIGHT:
            applied = "which is carried out" if table.turns[row] != UPRIGHT else "which is not applied"
            add(row, "exif-rotated", f"EXIF rotation (orientation {orientation}), {applied}")
    same, near, _ = duplicate_groups([opened])
    for code, text, groups in (
        ("duplicate-images", "the same bytes as", same),
        ("near-duplicate-images", "nearly the same picture as", near.rows),
    ):
        for group in groups:
            for row in group:
                others = [names[other] for other in group if other != row]
                more = f" and {len(others) - 1} more" if len(others) > 1 else ""
                add(row, code, f"{text} {others[0]}{more}")
    for row, number in _repeated(table).items():
        add(row, "repeated-boxes", f"{count(number, 'box')} given twice, with the same class and corners")
    return out


def anchor_defects(table: DetectionDataset, rows: Iterable[int], settings: configuration.Config) -> Defects:
    """Return by row the boxes that no anchor learns at the evaluation size (see `retina.doctor.coverage`)."""
    known = sized(table)
    chosen = [row for row in rows if known[row]]
    part = table.subset(chosen)
    assigned = coverage(part, settings.data.resize, settings.anchors, settings.model.fpn, settings.assignment)
    lost: dict[int, list[str]] = {}
    for place in np.flatnonzero(~assigned.covered).tolist():
        x1, y1, x2, y2 = part.boxes[assigned.placed.rows[place]].tolist()
        name = part.class_names[part.labels[assigned.placed.rows[place]]]
        lost.setdefault(chosen[assigned.placed.image[place]], []).append(f"{name} {x2 - x1:.0f}×{y2 - y1:.0f} px")
    out: Defects = {}
    for row, boxes in lost.items():
        text = f"{count(len(boxes), 'box')} without a positive anchor: {some(boxes, _NAMED)}"
        out[row] = [Defect("no-positive-anchor", text)]
    return out


def merged(*parts: Defects) -> Defects:
    """Return all defects of each row, in the order of the parts; rows ascending."""
    rows = sorted({row for part in parts for row in part})
    return {row: [defect for part in parts for defect in part.get(row, [])] for row in rows}


def kinds(defects: Defects) -> dict[str, int]:
    """Return the number of images with each kind of defect, the most frequent first."""
    return dict(
        Counter(code for listed in defects.values() for code in {defect.code for defect in listed}).most_common()
    )


def _repeated(table: DetectionDataset) -> dict[int, int]:
    """Number of boxes of each image that repeat another, with the same class and corners."""
    image = np.repeat(np.arange(len(table)), np.diff(table.offsets))
    keys = np.column_stack([image, table.labels, table.boxes])
    order = np.lexsort(keys.T[::-1])
    again = order[1:][(keys[order[1:]] == keys[order[:-1]]).all(axis=1)]
    return Counter(image[again].tolist())
