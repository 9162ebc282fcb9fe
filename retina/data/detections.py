"""The table of detections: what inference returns, what the evaluators take, and what `detections.json` holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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
    """One table of all rows, in the given order; no tables give the empty table."""
    if not tables:
        return DetectionTable.empty()
    return DetectionTable(
        np.concatenate([table.image for table in tables]),
        np.concatenate([table.boxes for table in tables]),
        np.concatenate([table.scores for table in tables]),
        np.concatenate([table.labels for table in tables]),
    )


def check(table: DetectionTable, dataset: DetectionDataset, where: str = "detections") -> None:
    """Holds a table against the dataset that it was made on.

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


def to_coco(table: DetectionTable, dataset: DetectionDataset) -> list[dict[str, Any]]:
    """The COCO results format (cocodataset.org/#format-results), with the source's own ids, ready for `json.dump`.

    Returns:
        One entry a detection: `image_id`, `category_id`, `bbox` as x, y, width, height in pixels, and `score`.

    Raises:
        RetinaError: a row does not fit the dataset (see `check`).
    """
    check(table, dataset)
    boxes = to_xywh(table.boxes).tolist()
    image_ids = [_plain(identifier) for identifier in dataset.image_ids]
    category_ids = [_plain(identifier) for identifier in dataset.category_ids]
    return [
        {"image_id": image_ids[image], "category_id": category_ids[label], "bbox": box, "score": score}
        for image, label, box, score in zip(
            table.image.tolist(), table.labels.tolist(), boxes, table.scores.tolist(), strict=True
        )
    ]


class Columns(NamedTuple):
    """n entries of a COCO results file: `image` [n], `boxes` [n, 4] float64 x, y, width, height, `scores` [n] float64,
    `labels` [n]."""

    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def coco_columns(entries: Any, rows: Mapping[Any, int], labels: Mapping[Any, int], where: str) -> Columns:
    """The entries' four keys as arrays, with the file's own numbers; other keys are left alone.

    Column by column, which takes a second for a million entries; only a fault makes it look at each entry.

    Args:
        rows: the row of each image id.
        labels: the label of each category id.
        where: starts each error message.

    Raises:
        RetinaError: it is not a list; an entry lacks a key, has an image or category that is not known, or a box or
            score that is not a finite number, or a negative width or height.
    """
    if not isinstance(entries, list):
        raise RetinaError(
            f"{where}: expected a list of detections (image_id, category_id, bbox, score), "
            f"got {type(entries).__name__}; give a COCO results file"
        )
    columns = _fast_columns(entries, rows, labels)
    if columns is not None:
        return columns
    for index, entry in enumerate(entries):
        _check_entry(entry, rows, labels, f"{where}: entry {index}")
    raise AssertionError("entries were refused by the fast check and passed the slow one")


def _fast_columns(entries: list[Any], rows: Mapping[Any, int], labels: Mapping[Any, int]) -> Columns | None:
    """None where anything is wrong, whatever it is."""
    try:
        image_ids = [entry["image_id"] for entry in entries]
        category_ids = [entry["category_id"] for entry in entries]
        boxes = [entry["bbox"] for entry in entries]
        scores = [entry["score"] for entry in entries]
        ids = set(map(type, image_ids)) | set(map(type, category_ids))
        numbers = set(map(type, chain.from_iterable(boxes))) | set(map(type, scores))
        shapes = set(map(type, boxes)) <= {list, tuple} and set(map(len, boxes)) <= {4}
        if not (ids <= {int, str, float} and numbers <= {int, float} and shapes):
            return None
        columns = Columns(
            np.array([rows[identifier] for identifier in image_ids], np.int64),
            np.array(list(chain.from_iterable(boxes)), np.float64).reshape(-1, 4),
            np.array(scores, np.float64),
            np.array([labels[identifier] for identifier in category_ids], np.int64),
        )
    # A missing key, an entry or box of another kind, an unknown id, a whole number of more than 308 digits.
    except (KeyError, TypeError, IndexError, OverflowError):
        return None
    # Written so that NaN is not sound.
    sound = all((np.abs(numbers) <= LARGEST).all() for numbers in (columns.boxes, columns.scores))
    return columns if sound and (columns.boxes[:, 2:] >= 0).all() else None


def _check_entry(entry: Any, rows: Mapping[Any, int], labels: Mapping[Any, int], at: str) -> None:
    if not isinstance(entry, dict):
        raise RetinaError(f"{at}: expected a mapping, got {type(entry).__name__}; mend or remove it")
    missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in entry]
    if missing:
        raise RetinaError(f"{at}: expected image_id, category_id, bbox and score, but {missing[0]} is missing; add it")
    _check_id(rows, entry["image_id"], f"{at}: image_id", "images")
    _check_id(labels, entry["category_id"], f"{at}: category_id", "categories")
    _check_box(entry["bbox"], at)
    if not is_number(entry["score"]):
        raise RetinaError(
            f"{at}: expected a finite score, got {short(entry['score'])}{beyond(entry['score'])}; mend or remove it"
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
    """A number of a JSON file that can be computed with: NaN, true and what exceeds `LARGEST` can't."""
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST


def beyond(value: Any) -> str:
    """Why a number that is finite is refused all the same, for the message; else nothing."""
    return f" (beyond {LARGEST:g})" if type(value) in (int, float) and LARGEST < abs(value) < math.inf else ""


def is_name(value: Any) -> bool:
    """A text that can be printed and written: JSON's escapes can hold half a character (a lone surrogate)."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def short(value: Any) -> str:
    """A value in a message, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of more than 4300 digits
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= 80 else text[:77] + "..."


def _check_id(table: Mapping[Any, int], identifier: Any, at: str, things: str) -> None:
    # A list has no hash, and True would pass for 1.
    if isinstance(identifier, bool) or not isinstance(identifier, (int, str, float)) or identifier not in table:
        example = f" (such as {next(iter(table))!r})" if table else ""
        raise RetinaError(
            f"{at}: expected one of the dataset's {len(table)} {things}{example}, got {short(identifier)}; "
            "give the dataset that the detections were made on"
        )


def _check_box(value: Any, at: str) -> None:
    if not isinstance(value, (list, tuple)) or len(value) != 4 or not all(is_number(part) for part in value):
        large = "".join(beyond(part) for part in value[:4]) if isinstance(value, (list, tuple)) else ""
        raise RetinaError(
            f"{at}: expected bbox as four finite numbers x, y, width, height, got {short(value)}{large}; "
            "mend or remove it"
        )
    if value[2] < 0 or value[3] < 0:
        raise RetinaError(
            f"{at}: expected a bbox with width and height of at least 0, got {short(value)}; mend or remove it"
        )


def _plain(identifier: Any) -> Any:
    """NumPy scalars become Python's: `json` refuses them."""
    return identifier.item() if isinstance(identifier, np.generic) else identifier
