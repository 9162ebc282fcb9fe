"""The two tables that every evaluator takes, ground truth and results. Boxes stay as they were written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from retina.data.dataset import DetectionDataset, Records, first_repeated
from retina.data.detections import LARGEST, DetectionTable, check, to_xywh
from retina.data.image_files import without_ending
from retina.errors import RetinaError

Id = int | str
_SHOWN = 5


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """M annotated boxes of K classes in N images, to score detections against.

    Unlike a `DetectionDataset`, which a detector trains on, it takes any box: outside its image, without area or with
    a negative side, because the reference evaluators do. Boxes are x, y, width, height, the numbers that COCO's files
    hold: a detour through corners would round them, and an overlap may then cross its threshold.

    Attributes:
        name: for messages: a file or a split.
        class_names: [K], in the order of the labels; distinct, because figures stand under them.
        category_ids: [K], the source's own.
        image_ids: [N], the source's own; distinct.
        image: [M] int64, rows of `image_ids`.
        boxes: [M, 4] float64, x, y, width, height in pixels; none beyond `retina.data.detections.LARGEST`.
        labels: [M] int64, 0..K-1.
        crowd: [M] bool, COCO's `iscrowd`.
        difficult: [M] bool, Pascal VOC's; neither a hit nor a miss.
        areas: [M] float64, pixels²: decides small, medium or large.

    Raises:
        RetinaError: the columns don't belong together, or point to images or classes that are not there; a box is not
            finite or too large to compute with; or two classes share a name.
    """

    name: str
    class_names: tuple[str, ...]
    category_ids: tuple[Id, ...]
    image_ids: tuple[Id, ...]
    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    areas: np.ndarray

    def __post_init__(self) -> None:
        for name in ("class_names", "category_ids", "image_ids"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _set_columns(
            self,
            {
                "image": (np.int64, ()),
                "boxes": (np.float64, (4,)),
                "labels": (np.int64, ()),
                "crowd": (np.bool_, ()),
                "difficult": (np.bool_, ()),
                "areas": (np.float64, ()),
            },
        )
        if len(self.class_names) != len(self.category_ids):
            raise RetinaError(
                f"{self.name}: {len(self.class_names)} class names for {len(self.category_ids)} category ids; "
                "give each class one id"
            )
        again = first_repeated(self.class_names)
        if again is not None:
            raise RetinaError(
                f"{self.name}: class {again[0]} is called '{again[1]}' like a class before; rename one of them"
            )
        _check_numbers(self.name, "box", "boxes", self.boxes)
        _check_range(self.name, "image", self.image, len(self.image_ids))
        _check_range(self.name, "labels", self.labels, len(self.class_names))

    def __len__(self) -> int:
        """The number of images."""
        return len(self.image_ids)

    @property
    def counted(self) -> np.ndarray:
        """[M] bool: the boxes that a detector should find, neither crowd nor difficult."""
        return ~(self.crowd | self.difficult)


@dataclass(frozen=True, eq=False)
class FileTruth(GroundTruth):
    """Ground truth that also knows its image files, by which text files and other tools name an image.

    Attributes:
        stems: [N] names of the image files, without folder and extension.
        sizes: [N, 2] float64 (height, width) in pixels, NaN where the source does not say.
    """

    stems: tuple[str, ...] = ()
    sizes: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))

    def __post_init__(self) -> None:
        super().__post_init__()
        assert len(self.stems) == len(self.sizes) == len(self.image_ids)


class LeftOut(NamedTuple):
    """The numbers of detections that no ground truth can judge, by `images` and `classes` that it does not have; one of
    both stands under its image."""

    images: Mapping[str, int] = {}
    classes: Mapping[str, int] = {}

    @property
    def detections(self) -> int:
        """The number of detections that were left out."""
        return sum(self.images.values()) + sum(self.classes.values())

    def words(self) -> str:
        """Return what was left out in words, such as "3 of 1 class that the ground truth does not have (yak)"."""
        parts = []
        for one, many, names in (("image", "images", self.images), ("class", "classes", self.classes)):
            if names:
                shown = ", ".join(list(names)[:_SHOWN]) + ", …" * (len(names) > _SHOWN)
                kinds = f"{len(names)} {one if len(names) == 1 else many}"
                parts.append(f"{sum(names.values())} of {kinds} that the ground truth does not have ({shown})")
        return " and ".join(parts)


def refuse_all_left_out(name: str, left_out: LeftOut, read: int) -> None:
    """Refuse results of which nothing is left.

    Args:
        read: the number of detections that are left.

    Raises:
        RetinaError: there are none, because all were left out.
    """
    if not read and (left_out.images or left_out.classes):
        raise RetinaError(
            f"{name}: expected detections in the ground truth's images and classes, got {left_out.words()}, and no "
            "other; give the ground truth that the detections were made on"
        )


@dataclass(frozen=True, eq=False)
class Results:
    """n detections to be scored against a `GroundTruth`, in the order that decides between equal scores.

    Attributes:
        name: for messages.
        image: [n] int64, rows of the ground truth's `image_ids`.
        boxes: [n, 4] float64, x, y, width, height in pixels.
        scores: [n] float64, finite.
        labels: [n] int64, 0..K-1.
        left_out: detections of the source that are not among these.

    Raises:
        RetinaError: the columns don't belong together, or a box or score is not finite or too large to compute with.
    """

    name: str
    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    left_out: LeftOut = field(default_factory=LeftOut)

    def __post_init__(self) -> None:
        _set_columns(
            self,
            {
                "image": (np.int64, ()),
                "boxes": (np.float64, (4,)),
                "scores": (np.float64, ()),
                "labels": (np.int64, ()),
            },
        )
        _check_numbers(self.name, "detection", "boxes", self.boxes)
        _check_numbers(self.name, "detection", "scores", self.scores)

    def __len__(self) -> int:
        """The number of detections."""
        return len(self.scores)


def ground_truth(dataset: DetectionDataset) -> GroundTruth:
    """Return a dataset's boxes as ground truth."""
    return GroundTruth(
        dataset.name,
        dataset.class_names,
        dataset.category_ids,
        dataset.image_ids,
        np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets)),
        to_xywh(dataset.boxes),
        dataset.labels,
        dataset.crowd,
        # Crowd wins: a region stays a region, whoever also calls it difficult.
        dataset.difficult & ~dataset.crowd,
        dataset.areas,
    )


def file_truth(dataset: DetectionDataset) -> FileTruth:
    """Return a dataset's boxes as ground truth that knows its files."""
    return FileTruth(**vars(ground_truth(dataset)), stems=image_stems(dataset), sizes=dataset.sizes.astype(np.float64))


def image_stems(dataset: DetectionDataset) -> tuple[str, ...]:
    """[N] names of a dataset's image files without folder and extension; ids of images that are no files."""
    images = zip(dataset.images, dataset.image_ids, strict=True)
    # A path of this system, where a backslash is part of a name.
    return tuple(without_ending(os.path.basename(image)) if isinstance(image, str) else str(i) for image, i in images)


def truth_of_records(records: Records, table: DetectionDataset, names: Mapping[str, str | None]) -> FileTruth:
    """Return the ground truth of a table's images and classes: every box with the numbers of its file.

    Training cuts or drops boxes that reach outside their image or have no area (`data.invalid_boxes`). An evaluator
    must not: a box in the annotation file that nothing can detect is missed by everybody, and pycocotools counts it.

    Args:
        records: what the table was made of.
        names: what the table calls each class of the records, None where it leaves it out.

    Raises:
        RetinaError: a box is not finite or too large to compute with.
    """
    raw = records.raw
    row_of = {identifier: row for row, identifier in enumerate(table.image_ids)}
    label_of = {name: label for label, name in enumerate(table.class_names)}
    image = np.array([row_of.get(identifier, -1) for identifier in records.image_ids], np.int64)[raw.image]
    new = [names[name] for name in records.classes]
    labels = np.array([-1 if name is None else label_of[name] for name in new], np.int64)[raw.labels]
    rows = np.flatnonzero((image >= 0) & (labels >= 0))
    boxes = raw.xywh[rows]
    # Written so that NaN is wrong.
    sound = (np.abs(boxes) <= LARGEST).all(axis=1)
    if not sound.all():
        row = rows[int(np.argmin(sound))]
        raise RetinaError(
            f"{records.name}: {records.describe(row)}: expected a box of finite numbers up to {LARGEST:g}, got "
            f"{raw.given[row].tolist()}, for which no overlap is defined; fix or remove it"
        )
    areas = raw.areas[rows]
    return FileTruth(
        table.name,
        table.class_names,
        table.category_ids,
        table.image_ids,
        image[rows],
        boxes,
        labels[rows],
        raw.crowd[rows],
        (raw.difficult & ~raw.crowd)[rows],
        np.where(np.isnan(areas), boxes[:, 2] * boxes[:, 3], areas),
        stems=image_stems(table),
        sizes=table.sizes.astype(np.float64),
    )


def results(detections: DetectionTable, dataset: DetectionDataset) -> Results:
    """Return a detector's table of detections on `dataset`, ready to be scored.

    Raises:
        RetinaError: a row does not fit the dataset (see `retina.data.detections.check`).
    """
    check(detections, dataset)
    return Results(dataset.name, detections.image, to_xywh(detections.boxes), detections.scores, detections.labels)


def labels_of_names(truth: GroundTruth) -> dict[str, int]:
    """Return the label of each class name."""
    return {name: label for label, name in enumerate(truth.class_names)}


def rows_of_stems(truth: GroundTruth) -> dict[str, int]:
    """Return the row of each image by its file's name without extension, or by its id where no file is known.

    Raises:
        RetinaError: two images share a name.
    """
    stems = truth.stems if isinstance(truth, FileTruth) else tuple(map(str, truth.image_ids))
    rows = {name: row for row, name in enumerate(stems)}
    again = first_repeated(stems) if len(rows) < len(stems) else None
    if again is not None:
        raise RetinaError(
            f"{truth.name}: images {truth.image_ids[rows[str(again[1])]]!r} and others share the file name "
            f"'{again[1]}', so that detections can't be told apart by it; give them as a COCO results list"
        )
    return rows


def check_results(detections: Results, truth: GroundTruth) -> None:
    """Check that every detection lies in an image and a class of the ground truth.

    Raises:
        RetinaError: names the first that does not.
    """
    _check_range(detections.name, "image", detections.image, len(truth.image_ids))
    _check_range(detections.name, "labels", detections.labels, len(truth.class_names))


def _set_columns(table: GroundTruth | Results, columns: dict[str, tuple[type, tuple[int, ...]]]) -> None:
    """Convert each column to its type, read-only, and hold all of them to one length."""
    length = len(table.boxes)
    for name, (dtype, tail) in columns.items():
        given = np.asarray(getattr(table, name))
        if given.dtype.kind == "f" and dtype is np.int64 and given.size:
            raise RetinaError(f"{table.name}: {name}: expected whole numbers, got {given.dtype}; convert them")
        column: np.ndarray = np.array(given, dtype)
        column = column.reshape(0, *tail) if column.size == 0 else column
        if column.shape != (length, *tail):
            raise RetinaError(
                f"{table.name}: {name}: expected shape {(length, *tail)}, got {column.shape}; give one row to each box"
            )
        column.setflags(write=False)
        object.__setattr__(table, name, column)


def _check_numbers(name: str, thing: str, column: str, values: np.ndarray) -> None:
    # Written so that NaN is wrong.
    sound = (np.abs(values) <= LARGEST).all(axis=tuple(range(1, values.ndim)))
    if not sound.all():
        row = int(np.argmin(sound))
        raise RetinaError(
            f"{name}: {thing} {row}: {column}: expected finite numbers up to {LARGEST:g}, got {values[row].tolist()}; "
            "fix or remove it"
        )


def _check_range(name: str, column: str, values: np.ndarray, end: int) -> None:
    outside = (values < 0) | (values >= end)
    if outside.any():
        row = int(np.argmax(outside))
        expected = f"0 to {end - 1}" if end else "none at all, as there is nothing to point to"
        raise RetinaError(f"{name}: row {row}: {column}: expected {expected}, got {values[row]}; fix or remove it")
