"""What a source reads, before any policy: the way to both the table and the ground truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from retina.data.dataset import DetectionDataset, InvalidBoxes, RawObjects, build, with_classes
from retina.data.ground_truth import GroundTruth
from retina.data.stored import TableImage


class Records(NamedTuple):
    """N images and the M objects of their files, whatever their boxes are.

    Attributes:
        name: starts every message.
        classes: `{class name: category id}` in label order.
        image_ids: [N] distinct.
        images: [N] paths, or where the images lie in shards.
        sizes: [N,2] int32 (height, width), pixels.
        raw: [M] objects in the order of the files.
        describe: where object `row` stands, for instance "a.txt line 3".
        notes: what was read otherwise than it stands there, with counts.
    """

    name: str
    classes: dict[str, int]
    image_ids: tuple[int | str, ...]
    images: tuple[TableImage, ...]
    sizes: np.ndarray
    raw: RawObjects
    describe: Callable[[int], str]
    notes: tuple[str, ...]


def to_dataset(records: Records, classes: tuple[str, ...] | None, invalid_boxes: InvalidBoxes) -> DetectionDataset:
    """The table, its classes in the order of `classes`.

    Raises:
        RetinaError: a box is invalid and `invalid_boxes` is "error", or `classes` are other names.
    """
    table = build(
        records.name,
        records.classes,
        records.image_ids,
        records.images,
        records.sizes,
        records.raw,
        invalid_boxes=invalid_boxes,
        describe=records.describe,
        notes=records.notes,
    )
    return with_classes(table, classes)


def to_ground_truth(records: Records) -> GroundTruth:
    """Every box with the numbers of its file, nothing cut or dropped; sizes of boxes come from their extent."""
    raw = records.raw
    # Stable, so that the objects of an image stay in the file's order, as in the table.
    order = np.argsort(raw.image, kind="stable")
    own = raw.extent[:, 0] * raw.extent[:, 1]
    return GroundTruth(
        records.name,
        tuple(records.classes),
        tuple(records.classes.values()),
        records.image_ids,
        raw.image[order],
        np.concatenate([raw.boxes[:, :2], raw.extent], axis=1)[order],
        raw.labels[order].astype(np.int64),
        raw.crowd[order],
        (raw.difficult & ~raw.crowd)[order],
        np.where(np.isnan(raw.areas), own, raw.areas)[order],
    )
