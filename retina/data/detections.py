"""The table of detections that inference returns and evaluators take, and the numbers of boxes in files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from retina.errors import RetinaError

if TYPE_CHECKING:
    from retina.data.dataset import DetectionDataset

# No picture has such pixels; the area of a box of larger numbers may exceed float64, and no overlap is then defined.
LARGEST = 1e100


@dataclass(frozen=True, eq=False)
class DetectionTable:
    """n detections over a dataset, in the order in which they were made (it decides between equal scores).

    Values are converted to the types below; they are not copied where they already have them.

    Attributes:
        image: [n] int64, the row of the image in the dataset's table.
        boxes: [n, 4] float32 or float64, xyxy in the original image's pixels.
        scores: [n] float32.
        labels: [n] int32, 0..K-1.

    Raises:
        RetinaError: the shapes don't belong together.
    """

    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        boxes = np.asarray(self.boxes)
        if boxes.dtype not in (np.float32, np.float64):
            boxes = boxes.astype(np.float64)
        converted = {
            "image": np.asarray(self.image, np.int64),
            "boxes": boxes.reshape(0, 4) if boxes.size == 0 else boxes,
            "scores": np.asarray(self.scores, np.float32),
            "labels": np.asarray(self.labels, np.int32),
        }
        shapes = {name: array.shape for name, array in converted.items()}
        n = len(converted["boxes"])
        if shapes != {"image": (n,), "boxes": (n, 4), "scores": (n,), "labels": (n,)}:
            raise RetinaError(
                f"detections: expected image [n], boxes [n, 4], scores [n] and labels [n], got {shapes}; "
                "give one row to each detection"
            )
        for name, array in converted.items():
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls) -> DetectionTable:
        """A table without detections."""
        return cls(np.zeros(0), np.zeros((0, 4)), np.zeros(0), np.zeros(0))


def concatenate(tables: Sequence[DetectionTable]) -> DetectionTable:
    """Return one table of all rows, in the given order; no tables give the empty table."""
    if not tables:
        return DetectionTable.empty()
    return DetectionTable(
        np.concatenate([table.image for table in tables]),
        np.concatenate([table.boxes for table in tables]),
        np.concatenate([table.scores for table in tables]),
        np.concatenate([table.labels for table in tables]),
    )


def check(table: DetectionTable, dataset: DetectionDataset, where: str = "detections") -> None:
    """Check a table against the dataset that it was made on.

    Raises:
        RetinaError: names the first row whose image or label the dataset does not have, whose box is reversed, or
            whose box or score is not finite.
    """
    rules = (
        ("image", (table.image < 0) | (table.image >= len(dataset)), f"a row of the dataset, 0 to {len(dataset) - 1}"),
        (
            "labels",
            (table.labels < 0) | (table.labels >= len(dataset.class_names)),
            f"a class of the dataset, 0 to {len(dataset.class_names) - 1}",
        ),
        ("boxes", ~np.isfinite(table.boxes).all(axis=1), "four finite numbers x1, y1, x2, y2"),
        ("boxes", (table.boxes[:, 2:] < table.boxes[:, :2]).any(axis=1), "x1 <= x2 and y1 <= y2"),
        ("scores", ~np.isfinite(table.scores), "a finite number"),
    )
    for field, bad, expected in rules:
        if bad.any():
            row = int(np.argmax(bad))
            raise RetinaError(
                f"{where}: row {row}: {field}: expected {expected}, got {getattr(table, field)[row].tolist()}; "
                "evaluate detections on the dataset that they were made on"
            )


def to_xywh(boxes: np.ndarray) -> np.ndarray:
    """[n, 4] xyxy to [n, 4] float64 x, y, width, height; subtracts in float64, where float32 corners are exact."""
    xywh = np.asarray(boxes, np.float64).reshape(-1, 4).copy()
    xywh[:, 2:] -= xywh[:, :2]
    return xywh


Pixels = Literal["inclusive", "continuous"]


def to_continuous(xywh: np.ndarray, pixels: Pixels) -> np.ndarray:
    """[n, 4] x, y, width, height as a file means them, to those of continuous coordinates.

    "inclusive" is Pascal VOC's: pixels are counted from 1 and a box from x to x + width holds both of these columns,
    so that it covers x - 1 to x + width. The plain overlap of such boxes is the devkit's, with its areas of + 1.
    """
    if pixels == "continuous":
        return xywh
    return xywh + np.array([-1.0, -1.0, 1.0, 1.0])


def is_number(value: Any) -> bool:
    """Return whether a value of a JSON file can be computed with: NaN, true and what exceeds `LARGEST` can't."""
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST


def beyond(value: Any) -> str:
    """Why a number that is finite is refused all the same, for the message; else nothing."""
    return f" (beyond {LARGEST:g})" if type(value) in (int, float) and LARGEST < abs(value) < math.inf else ""


def is_name(value: Any) -> bool:
    """Return whether a value is a text to print and write: JSON's escapes can hold half a character (a surrogate)."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def short(value: Any) -> str:
    """A value in a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more than 4300 digits
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= 80 else text[:77] + "..."
