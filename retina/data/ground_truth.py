"""The two tables that every evaluator takes: what is there, and what was found. Boxes stay as they were written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from retina.data.dataset import DetectionDataset, first_repeated
from retina.data.detections import LARGEST, DetectionTable, check, to_xywh
from retina.errors import RetinaError

Id = int | str


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
        for field in ("class_names", "category_ids", "image_ids"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
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
                f"{self.name}: class {again[0]} is called '{again[1]}' like one before; rename one of them"
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
class Results:
    """n detections to be scored against a `GroundTruth`, in the order that decides between equal scores.

    Attributes:
        name: for messages.
        image: [n] int64, rows of the ground truth's `image_ids`.
        boxes: [n, 4] float64, x, y, width, height in pixels.
        scores: [n] float64, finite.
        labels: [n] int64, 0..K-1.

    Raises:
        RetinaError: the columns don't belong together, or a box or score is not finite or too large to compute with.
    """

    name: str
    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

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
    """A dataset's boxes as ground truth."""
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


def results(detections: DetectionTable, dataset: DetectionDataset) -> Results:
    """A detector's table of detections on `dataset`, ready to be scored.

    Raises:
        RetinaError: a row does not fit the dataset (see `retina.data.detections.check`).
    """
    check(detections, dataset)
    return Results(dataset.name, detections.image, to_xywh(detections.boxes), detections.scores, detections.labels)


def as_coco(found: Results, truth: GroundTruth) -> list[dict[str, Any]]:
    """The COCO results format (cocodataset.org/#format-results) with the ground truth's own ids, for `json.dump`."""
    rows = zip(found.image.tolist(), found.labels.tolist(), found.boxes.tolist(), found.scores.tolist(), strict=True)
    return [
        {"image_id": truth.image_ids[image], "category_id": truth.category_ids[label], "bbox": box, "score": score}
        for image, label, box, score in rows
    ]


def check_results(found: Results, truth: GroundTruth) -> None:
    """Every detection lies in an image and a class of the ground truth.

    Raises:
        RetinaError: names the first that does not.
    """
    _check_range(found.name, "image", found.image, len(truth.image_ids))
    _check_range(found.name, "labels", found.labels, len(truth.class_names))


def _set_columns(table: GroundTruth | Results, columns: dict[str, tuple[type, tuple[int, ...]]]) -> None:
    """Converts each column to its type, read-only, and holds all of them to one length."""
    length = len(table.boxes)
    for field, (dtype, tail) in columns.items():
        given = np.asarray(getattr(table, field))
        if given.dtype.kind == "f" and dtype is np.int64 and given.size:
            raise RetinaError(f"{table.name}: {field}: expected whole numbers, got {given.dtype}; convert them")
        column: np.ndarray = np.array(given, dtype)
        column = column.reshape(0, *tail) if column.size == 0 else column
        if column.shape != (length, *tail):
            raise RetinaError(
                f"{table.name}: {field}: expected shape {(length, *tail)}, got {column.shape}; give one row to each box"
            )
        column.setflags(write=False)
        object.__setattr__(table, field, column)


def _check_numbers(name: str, thing: str, field: str, values: np.ndarray) -> None:
    # Written so that NaN is wrong.
    sound = (np.abs(values) <= LARGEST).all(axis=tuple(range(1, values.ndim)))
    if not sound.all():
        row = int(np.argmin(sound))
        raise RetinaError(
            f"{name}: {thing} {row}: {field}: expected finite numbers up to {LARGEST:g}, got {values[row].tolist()}; "
            "mend or remove it"
        )


def _check_range(name: str, field: str, values: np.ndarray, end: int) -> None:
    outside = (values < 0) | (values >= end)
    if outside.any():
        row = int(np.argmax(outside))
        expected = f"0 to {end - 1}" if end else "none at all, as there is nothing to point to"
        raise RetinaError(f"{name}: row {row}: {field}: expected {expected}, got {values[row]}; mend or remove it")
