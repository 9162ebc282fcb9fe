"""Inputs of detectors as Keras' users have them, turned into batches; and the box formats that Keras names.

Legend: B images, H W their sides, G boxes of an image at most, K classes.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from retina.errors import RetinaError

Tensor = Any
Batch = dict[str, Tensor]

FORMATS = ("xyxy", "xywh", "yxyx", "center_xywh", "rel_xyxy", "rel_yxyx")
PIXEL_RANGES = ((0, 255), (0, 1))
STRIDE = 32  # of the backbone's last map, which the pyramid doubles: sides are multiples of it
# Beyond its image, as `data.invalid_boxes` allows.
_BEYOND = 1.0


class Convention(NamedTuple):
    """What numbers mean: K `classes`, one of `FORMATS` for boxes, one of `PIXEL_RANGES` for images."""

    classes: int
    box_format: str = "xyxy"
    pixel_range: tuple[int, int] = (0, 255)


def convention(classes: int, box_format: str, pixel_range: Any) -> Convention:
    """Return the convention of a detector.

    Raises:
        RetinaError: an unknown format or range.
    """
    if box_format not in FORMATS:
        raise RetinaError(f"bounding_box_format: expected one of {', '.join(FORMATS)}, got {box_format!r}; choose one")
    if tuple(pixel_range) not in PIXEL_RANGES:
        raise RetinaError(f"pixel_range: expected (0, 255) or (0, 1), got {pixel_range}; scale the images")
    return Convention(classes, box_format, tuple(pixel_range))


# ------------------------------------------------------------------------------------------------------------- boxes


def to_xyxy(boxes: Tensor, box_format: str, size: tuple[Any, Any]) -> Tensor:
    """Boxes [..., 4] of a format as xyxy pixels [..., 4] float32; `size` is the images' (height, width)."""
    a, b, c, d = _columns(boxes)
    if box_format.startswith("rel_"):
        height, width = (ops.cast(side, "float32") for side in size)
        sides = (height, width) if box_format == "rel_yxyx" else (width, height)
        a, b, c, d = a * sides[0], b * sides[1], c * sides[0], d * sides[1]
        box_format = box_format.removeprefix("rel_")
    if box_format == "yxyx":
        a, b, c, d = b, a, d, c
    elif box_format == "xywh":
        c, d = a + c, b + d
    elif box_format == "center_xywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return ops.stack([a, b, c, d], axis=-1)


def from_xyxy(boxes: Tensor, box_format: str, size: Tensor) -> Tensor:
    """The inverse of `to_xyxy` for boxes [B, D, 4] and `size` [B, 2] (height, width) of their images."""
    a, b, c, d = _columns(boxes)
    if box_format.startswith("rel_"):
        height, width = (ops.cast(size[:, side], "float32")[:, None] for side in (0, 1))
        a, b, c, d = a / width, b / height, c / width, d / height
        box_format = box_format.removeprefix("rel_")
    if box_format == "yxyx":
        a, b, c, d = b, a, d, c
    elif box_format == "xywh":
        c, d = c - a, d - b
    elif box_format == "center_xywh":
        a, b, c, d = (a + c) / 2, (b + d) / 2, c - a, d - b
    return ops.stack([a, b, c, d], axis=-1)


def _columns(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    boxes = ops.cast(boxes, "float32")
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


# ------------------------------------------------------------------------------------------------------------ batches


def is_batch(x: Any) -> bool:
    """Return whether this is a batch of retina's own pipeline."""
    return isinstance(x, dict) and {"images", "size"} <= set(x)


def to_batch(x: Any, y: Any, convention: Convention, weights: Any = None) -> Batch:
    """A batch of arrays or tensors, in a graph as well: shapes are checked here, values by `checked_batch`.

    Args:
        x: images [B, H, W, 3] in any dtype; or `{"images", "bounding_boxes"}`; or a batch, which is returned as it is.
            Of one size, which `padded` brings to multiples of 32 inside the step.
        y: `{"boxes" [B, G, 4], "classes" or "labels" [B, G]}`, empty slots of class -1; ragged, or lists of B arrays;
            None, where detections are asked for.
        weights: [B] of the images, at least 0; None for 1.

    Returns:
        What `retina.data.batches` describes, without `index` and `sample`; `usable` [B]: whether all boxes and classes
        of an image can be trained on; and with `weights` `weight` [B, 1].

    Raises:
        RetinaError: keys, shapes or the sides of the images are others.
    """
    if is_batch(x):
        if y is not None:
            raise RetinaError("batch: it holds its boxes, and y has no effect; leave y out")
        return x if weights is None else {**x, "weight": _weight(weights, x["images"].shape[0])}
    if isinstance(x, dict):
        if "images" not in x or set(x) - {"images", "bounding_boxes"} or (y is not None and "bounding_boxes" in x):
            raise RetinaError(
                f"inputs: expected images and y, or {{'images', 'bounding_boxes'}}, got the keys {sorted(x)}; leave "
                "out or rename the others"
            )
        x, y = x["images"], x.get("bounding_boxes", y)
    images = _images(x, convention)
    count, height, width = ops.shape(images)[0], images.shape[1], images.shape[2]
    sides = np.array([height, width], np.int32)
    batch = {
        "images": images,
        "size": ops.broadcast_to(ops.convert_to_tensor(sides), (count, 2)),
        "scale": ops.ones((count, 2), "float32"),
    }
    if y is not None:
        batch |= _targets(y, convention, (height, width), images.shape[0])
    if weights is not None:
        batch["weight"] = _weight(weights, images.shape[0])
        if "usable" in batch:
            batch["usable"] = ops.logical_and(batch["usable"], _weighable(batch["weight"][:, 0]))
    return batch


def _weight(weights: Any, count: int | None) -> Tensor:
    shape = tuple(weights.shape if hasattr(weights, "shape") else np.shape(weights))
    if shape[1:] not in ((), (1,)) or len(shape) == 0 or (None not in (shape[0], count) and shape[0] != count):
        raise RetinaError(
            f"sample_weight: expected a number of each of {count} images, got the shape {list(shape)}; give [B] numbers"
        )
    return ops.reshape(ops.cast(weights, "float32"), (-1, 1))


def _weighable(weights: Tensor) -> Tensor:
    return ops.logical_and(weights >= 0, ops.isfinite(weights))


def _images(images: Any, convention: Convention) -> Tensor:
    """Images [B, H, W, 3] from 0 to 255."""
    images = np.stack([np.asarray(image) for image in images]) if _same_shapes(images) else images
    if not isinstance(images, list | tuple) and not hasattr(images, "shape"):
        raise RetinaError(f"images: expected [B, H, W, 3], got {type(images).__name__}; give their pixels")
    several = not hasattr(images, "shape") or hasattr(images, "to_tensor")
    shape = (len(images),) if isinstance(images, list | tuple) else _shape(images, "images")
    if 0 in shape[:3]:
        raise RetinaError(f"images: expected at least one, with pixels, got {list(shape)}; leave empty batches out")
    if several or len(shape) != 4 or shape[-1] != 3:
        got = "images of several sizes" if several else list(shape)
        raise RetinaError(f"images: expected [B, H, W, 3] of one size, got {got}; {_remedy(shape, several)}")
    if None in shape[1:3]:
        raise RetinaError(
            "images: expected a size that is known in advance, got [B, None, None, 3]; batch images of one size "
            "(tf.data: .map with tf.ensure_shape)"
        )
    if convention.pixel_range == (0, 1):
        scaled = ops.cast(images, "float32") * 255.0
        images = ops.convert_to_numpy(scaled) if isinstance(images, np.ndarray) else scaled
    return images


def _remedy(shape: tuple[int | None, ...], several: bool) -> str:
    """What makes images [B, H, W, 3] of an array of another shape."""
    if several:
        return "resize or pad them to one size"
    if len(shape) == 3 and shape[-1] == 3:
        return "give a single image as images[None], and batch a tf.data.Dataset: dataset.batch(8)"
    if len(shape) == 3 or (len(shape) == 4 and shape[-1] == 1):
        grey = "images[..., None]" if len(shape) == 3 else "images"
        return f"repeat the value of grey images: np.repeat({grey}, 3, axis=-1)"
    if len(shape) == 4 and shape[-1] == 4:
        return "leave the fourth channel out: images[..., :3]"
    if len(shape) == 4 and shape[1] == 3:
        return "put the channels last: images.transpose(0, 2, 3, 1)"
    return "give their pixels (retina.load(RUN).predict takes files)"


def padded(batch: Batch) -> Batch:
    """The batch, in a step: its images padded at the bottom and on the right to multiples of 32. `size` stays."""
    missing = [-(side or 0) % STRIDE for side in batch["images"].shape[1:3]]
    if not any(missing):
        return batch
    return {**batch, "images": ops.pad(batch["images"], ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))}


def _same_shapes(images: Any) -> bool:
    return isinstance(images, list | tuple) and len({np.shape(image) for image in images}) == 1


def _targets(y: Any, convention: Convention, size: tuple[int, int], count: int | None) -> Batch:
    """`boxes`, `labels`, `valid`, `crowd` [B, G, …] and `usable` [B]."""
    fields = _fields(y)
    boxes_of, classes_of = map(_counts, fields)
    for row, counts in enumerate(zip(boxes_of or (), classes_of or (), strict=False)):
        empty = np.asarray(fields[1][row])[counts[0] :] == -1
        if counts[0] > counts[1] or not empty.all():
            raise RetinaError(
                f"y: image {row}: expected as many classes as boxes, got {counts[1]} and {counts[0]}; give each box "
                "its class"
            )
    boxes, labels = _padded(fields[0], 4), _padded(fields[1], 0)
    both = _shape(boxes, "boxes"), _shape(labels, "classes")
    ranks = (len(both[0]), len(both[1]))
    if ranks != (3, 2) or both[0][2] not in (4, None) or not _alike(*both):
        remedies = {
            (2, 1): "give each image an axis of its boxes: boxes[:, None], classes[:, None]",
            (3, 3): "give numbers of classes: classes.argmax(-1)",
        }
        raise RetinaError(
            f"y: expected boxes [B, G, 4] and classes [B, G], got {list(both[0])} and {list(both[1])}; "
            + remedies.get(ranks, "give each box four numbers and a class, -1 in empty slots")
        )
    if count is not None and both[0][0] not in (count, None):
        raise RetinaError(
            f"y: expected boxes of {count} images, got {both[0][0]}; an image without boxes has classes of -1"
        )
    labels = ops.cast(labels, "float32")
    valid = labels >= 0
    boxes = to_xyxy(boxes, convention.box_format, size)
    usable = ops.all(ops.stack(_conditions(boxes, labels, size, convention.classes)), axis=0)
    usable = ops.where(valid, usable, labels == -1)
    return {
        "boxes": ops.where(valid[..., None], boxes, 0.0),
        "labels": ops.cast(ops.where(valid, labels, 0.0), "int32"),
        "valid": valid,
        "crowd": ops.zeros_like(valid),
        "usable": ops.all(usable, axis=-1),
    }


def _fields(y: Any) -> tuple[Any, Any]:
    """The boxes and the classes of a dictionary."""
    names = set(y) if isinstance(y, dict) else set()
    if names not in ({"boxes", "classes"}, {"boxes", "labels"}):
        got = f"the keys {sorted(names)}; rename them, or leave others out"
        if not isinstance(y, dict):
            got = f"{type(y).__name__}; give {{'boxes': [B, G, 4], 'classes': [B, G]}} of all images"
        raise RetinaError(f"y: expected a dictionary of 'boxes' and 'classes' (or 'labels'), got {got}")
    return y["boxes"], y["classes" if "classes" in y else "labels"]


def _counts(field: Any) -> list[int] | None:
    """Numbers of the rows that each image has of a field that is a list or ragged; None for others, and in graphs."""
    if hasattr(field, "row_lengths"):
        lengths = field.row_lengths()
        return lengths.numpy().tolist() if hasattr(lengths, "numpy") else None
    if isinstance(field, list | tuple) or (isinstance(field, np.ndarray) and field.dtype == object):
        return [len(row) for row in field if isinstance(row, list | tuple) or getattr(row, "ndim", 0) > 0]
    return None


def _shape(x: Tensor, where: str) -> tuple[int | None, ...]:
    if getattr(x.shape, "rank", True) is None:
        raise RetinaError(
            f"{where}: expected a known number of axes, got a tensor of unknown shape; give it one (tf.data: .map with "
            "tf.ensure_shape)"
        )
    return tuple(x.shape)


def _alike(boxes: tuple[int | None, ...], labels: tuple[int | None, ...]) -> bool:
    return all(None in pair or pair[0] == pair[1] for pair in zip(boxes[:2], labels, strict=True))


def _conditions(boxes: Tensor, labels: Tensor, size: tuple[Any, Any], classes: int) -> list[Tensor]:
    """Whether boxes [..., 4] xyxy are finite, have an area and lie inside, and labels are classes; [...] each."""
    limit = ops.convert_to_tensor([size[1], size[0]], "float32")
    return [
        ops.all(ops.isfinite(boxes), axis=-1),
        ops.logical_and(boxes[..., 2] > boxes[..., 0], boxes[..., 3] > boxes[..., 1]),
        ops.logical_and(
            ops.all(boxes[..., :2] >= -_BEYOND, axis=-1), ops.all(boxes[..., 2:] <= limit + _BEYOND, axis=-1)
        ),
        ops.logical_and(labels < classes, labels == ops.floor(labels)),
    ]


def _padded(field: Any, width: int) -> Tensor:
    """A field of all images in one array, slots that an image doesn't use -1; `width` 4 for boxes, 0 for classes."""
    if hasattr(field, "to_tensor"):  # ragged, of TensorFlow
        field = field.to_tensor(-1)
        return ops.reshape(field, (-1, ops.shape(field)[1], 4)) if width and field.shape[-1] is None else field
    if isinstance(field, np.ndarray) and field.dtype == object:
        field = list(field)
    if isinstance(field, np.ndarray) and field.dtype.kind in "US":
        field = field.tolist()
    if not isinstance(field, list | tuple):
        return field
    rows = [_numbers(row, width) for row in field]
    tail = (width,) if width else ()
    rows = [row.reshape(0, *tail) if row.size == 0 else row for row in rows]
    for row in rows:
        if row.ndim != 1 + len(tail) or row.shape[1:] != tail:
            expected = "[G, 4]" if width else "[G]"
            raise RetinaError(f"y: expected of each image an array {expected}, got {list(row.shape)}")
    padded = np.full((len(rows), max(map(len, rows), default=0), *tail), -1, np.float32)
    for image, row in zip(padded, rows, strict=True):
        image[: len(row)] = row
    return padded


def _numbers(row: Any, width: int) -> np.ndarray:
    try:
        return np.asarray(row, np.float32)
    except (TypeError, ValueError):
        expected = "boxes [G, 4]" if width else "numbers of classes, their places in class_names from 0"
        raise RetinaError(f"y: expected of each image {expected}, got {row}; correct it") from None


def checked_batch(x: Any, y: Any, convention: Convention, weights: Any = None) -> Batch:
    """`to_batch` of arrays, as NumPy arrays; values are checked as well.

    Raises:
        RetinaError: as there; or a box is not finite, without area or outside its image, a class is none of 0…K-1, a
            weight is negative or not finite, or pixels are not those of the convention's range.
    """
    batch = to_batch(x, y, convention, weights)
    if batch is x:
        return batch
    # Images that are arrays already are not copied.
    batch = {
        name: value if isinstance(value, np.ndarray) else ops.convert_to_numpy(value) for name, value in batch.items()
    }
    _check_pixels(batch["images"], convention)
    if "weight" in batch and not (good := ops.convert_to_numpy(_weighable(batch["weight"]))).all():
        raise RetinaError(
            "sample_weight: expected finite numbers of at least 0, got "
            f"{batch['weight'][~good].tolist()[:3]}; correct them"
        )
    if "usable" in batch:
        _check_boxes(batch, x.get("bounding_boxes", y) if isinstance(x, dict) else y, convention)
    return batch


def _check_pixels(images: np.ndarray, convention: Convention) -> None:
    """Refuse pixels [B, H, W, 3] that are not those of the convention's range, brought to 0…255."""
    if images.dtype.kind in "bOSU":
        raise RetinaError(f"images: expected numbers from 0 to 255, got {images.dtype}; convert them to uint8")
    if images.dtype == np.uint8:
        return
    factor = 255 / convention.pixel_range[1]
    least, most = float(images.min()), float(images.max())
    if not (least >= 0 and most <= 255):
        remedy = "scale them" if least >= 0 else "give images that are not normalised, the detector does it"
        raise RetinaError(
            f"images: expected pixels of {convention.pixel_range}, as pixel_range says, got {least / factor:g} to "
            f"{most / factor:g}; {remedy}"
        )
    if convention.pixel_range == (0, 255) and 0 < most <= 1 and images.dtype.kind not in "iu":
        raise RetinaError(
            f"images: expected pixels from 0 to 255, the largest is {most:g}; multiply them by 255, or make the "
            "Detector with pixel_range=(0, 1)"
        )


def _check_boxes(batch: Batch, y: Any, convention: Convention) -> None:
    """Refuse boxes and classes that can't be trained on, as the batch says, and name the first of them."""
    size = tuple(batch["size"][0].tolist())
    boxes, labels = (
        np.asarray(ops.convert_to_numpy(_padded(field, width)), np.float32)
        for field, width in zip(_fields(y), (4, 0), strict=True)
    )
    if batch["usable"].all():
        pixels = batch["boxes"][batch["valid"]]
        if len(pixels) and pixels.max() <= 1 and (pixels % 1).any() and not convention.box_format.startswith("rel_"):
            raise RetinaError(
                f"y: expected boxes in {convention.box_format}, in pixels, none lies beyond the first; multiply them "
                "by the sides, or make the Detector with bounding_box_format='rel_xyxy'"
            )
        return
    used = labels >= 0

    def conditions(box_format: str) -> list[np.ndarray]:
        corners = to_xyxy(np.where(used[..., None], boxes, 0), box_format, size)
        fulfilled = _conditions(corners, labels, size, convention.classes)
        return [np.where(used, ops.convert_to_numpy(condition), True) for condition in fulfilled]

    finite, solid, inside, known = conditions(convention.box_format)
    known &= used | (labels == -1)
    row, slot = np.argwhere(~(finite & solid & inside & known))[0].tolist()
    others = [name for name in FORMATS if np.logical_and.reduce(conditions(name)[:3]).all()]
    expected, remedy = next(
        words
        for condition, *words in (
            (known, f"classes from 0 to {convention.classes - 1}, -1 in empty slots", "correct it"),
            (finite, "finite numbers", "correct it, or set its class to -1"),
            (solid, "a positive width and height", "correct it, or set its class to -1"),
            (inside, f"boxes inside the image, {size[1]} x {size[0]} pixels", "clip it, or set its class to -1"),
        )
        if not condition[row, slot]
    )
    if others and known[row, slot]:
        remedy += f"; as {' or '.join(others)} all would do: make the Detector with that bounding_box_format"
    raise RetinaError(
        f"y: image {row}: expected {expected}, got the box {boxes[row, slot].tolist()}, {convention.box_format}, of "
        f"class {labels[row, slot]:g}; {remedy}"
    )


# ------------------------------------------------------------------------------------------------------------ sources


class Checked(keras.utils.PyDataset):
    """A `keras.utils.PyDataset` whose elements are turned into batches. `error` is what was wrong with an element:
    TensorFlow hides errors of Python code inside its own."""

    def __init__(self, dataset: keras.utils.PyDataset, convert: Callable[[Any, int], Batch]):
        super().__init__(dataset.workers, dataset.use_multiprocessing, dataset.max_queue_size)
        self.dataset, self.convert = dataset, convert
        self.error: RetinaError | None = None

    @property
    def num_batches(self) -> int | None:
        return self.dataset.num_batches

    def __getitem__(self, index: int) -> Batch:
        try:
            return self.convert(self.dataset[index], index)
        except RetinaError as error:
            self.error = error
            raise

    def on_epoch_begin(self) -> None:
        self.dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.dataset.on_epoch_end()


def source(x: Any, y: Any, convention: Convention, weights: Any = None) -> Any:
    """What Keras' `fit`, `evaluate` and `predict` are given as `x` in place of `x`, `y` and the weights of images.

    Arrays become one large batch, elements of a PyDataset or a generator a batch each. Datasets of TensorFlow keep
    their pipeline: ragged fields are padded there, the first element is checked here, and the others are turned into
    batches inside the step; so is what comes from a DataLoader.

    Raises:
        RetinaError: see `checked_batch`.
    """
    if isinstance(x, str | bytes | Path) or not (hasattr(x, "__iter__") or hasattr(x, "__getitem__")):
        raise RetinaError(
            f"x: expected images [B, H, W, 3], or a dataset of them, got {type(x).__name__}; give the pixels "
            "(retina.load(RUN).predict takes files and Pillow's images)"
        )
    arrays = isinstance(x, dict | list | tuple) or hasattr(x, "__array__") or hasattr(x, "to_tensor")
    for name, value in (("y", y), ("sample_weight", weights)):
        if value is not None and not arrays:
            raise RetinaError(
                f"{name}: it has no effect beside {type(x).__name__}, whose elements hold it; leave {name} out"
            )
    if arrays:
        return checked_batch(x, y, convention, weights)
    if hasattr(x, "element_spec"):
        if is_batch(x.element_spec):
            return x
        dense = x.map(lambda *element: _dense(element if len(element) > 1 else element[0]))
        for element in dense.take(1):
            _checked_element(keras.tree.map_structure(ops.convert_to_numpy, element), convention)
        return dense
    if isinstance(x, keras.utils.PyDataset):
        return Checked(x, lambda element, index: _with_slots(_checked_element(element, convention), index == 0))
    if isinstance(x, types.GeneratorType):
        return _each(x, convention)
    return x


def _each(elements: Iterator[Any], convention: Convention) -> Iterator[Batch]:
    for index, element in enumerate(elements):
        yield _with_slots(_checked_element(element, convention), index == 0)


def _with_slots(batch: Batch, first: bool) -> Batch:
    """The batch with an even number of slots for boxes, the first one with an odd number: Keras learns from the first
    two batches which sides vary."""
    if "usable" not in batch:
        return batch
    missing = batch["labels"].shape[1] % 2 ^ first
    widths = {name: [(0, 0), (0, missing), (0, 0)] for name in ("boxes", "labels", "valid", "crowd")}
    return {
        name: np.pad(value, widths[name][: value.ndim]) if name in widths else value for name, value in batch.items()
    }


def _dense(element: Any) -> Any:
    if isinstance(element, dict):
        return {name: _dense(field) for name, field in element.items()}
    if isinstance(element, tuple):
        return tuple(_dense(field) for field in element)
    return element.to_tensor(-1) if hasattr(element, "to_tensor") else element


def element_batch(element: Any, convention: Convention) -> Batch:
    """`to_batch` of an element that Keras hands to a step: images, and after them targets and weights."""
    x, y, weights = keras.utils.unpack_x_y_sample_weight(element)
    return to_batch(x, y, convention, weights)


def _checked_element(element: Any, convention: Convention) -> Batch:
    x, y, weights = keras.utils.unpack_x_y_sample_weight(element)
    return checked_batch(x, y, convention, weights)


def each_batch(data: Any, convention: Convention, size: int | None) -> Iterator[Batch]:
    """The batches of what `source` gives, of `size` images (32) where it is a single large one.

    Raises:
        RetinaError: it can be read only once.
    """
    if isinstance(data, types.GeneratorType):
        raise RetinaError(
            "metrics: expected data that can be read again after the loss, got a generator; give arrays, a "
            "keras.utils.PyDataset or a tf.data.Dataset"
        )
    if is_batch(data):
        step = size or 32
        for start in range(0, len(data["images"]), step):
            yield {name: field[start : start + step] for name, field in data.items()}
    elif isinstance(data, keras.utils.PyDataset):
        yield from (data[i] for i in (itertools.count() if data.num_batches is None else range(data.num_batches)))
    else:
        for element in data:
            yield element_batch(keras.tree.map_structure(ops.convert_to_numpy, element), convention)
