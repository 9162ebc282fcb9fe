"""Evaluation batches: each image once, as exports show it, in one tf.data graph; without TensorFlow by our threads."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from retina import config
from retina.data.batches import Batch, decoding, exif, pixels, plan
from retina.data.batches.table_reader import ImageError, TableReader, read_ahead, usual_threads
from retina.data.dataset import DetectionDataset
from retina.data.headers import UPRIGHT
from retina.data.images import unusable
from retina.data.limits import image_kind
from retina.data.stored import StoredImage, TableImage
from retina.errors import RetinaError
from retina.startup import has_tensorflow

if TYPE_CHECKING:
    import tensorflow as tf

_MARK = "retina batch"


def evaluation_batches(
    dataset: DetectionDataset,
    data: config.Data,
    *,
    batch_size: int,
    share: tuple[int, int] = (0, 1),
    parallel_calls: int | None = None,
) -> tf.data.Dataset | PlainBatches:
    """Each image once, as it is, ordered by canvas; what is missing in the last batch of a canvas is filler (index -1).

    Args:
        share: (i, n) gives every n-th batch, from the i-th on: n hosts with i = 0 .. n - 1 have each image once.
        parallel_calls: how many images are read at a time; None leaves it to TensorFlow.

    Returns:
        A `tf.data.Dataset` of elements as in `Batch`; where TensorFlow is not installed, the same in NumPy. Errors
        while iterating: see `readable`.

    Raises:
        RetinaError: some images are paths and some are bytes, or one is declared to have too many pixels.
    """
    geometry = plan.fit(dataset.sizes, data.resize)
    whole = plan.evaluation_plan(geometry, batch_size=batch_size)
    shared = plan.Plan(*(column[share[0] :: share[1]] for column in (whole.index, whole.sample, whole.canvas)))
    if not has_tensorflow():
        return PlainBatches(dataset, data, geometry, shared, parallel_calls)
    import tensorflow as tf

    pixels.leave_gpu_to_backend()
    table = _columns(dataset, geometry, data.max_pixels, data.resize.antialias)
    index, sample = shared.index, shared.sample
    canvas = np.repeat(shared.canvas.astype(np.int32), batch_size)
    slots = tf.data.Dataset.from_tensor_slices((index.ravel(), sample.ravel(), canvas))

    def example(index: tf.Tensor, sample: tf.Tensor, canvas: tf.Tensor) -> Batch:
        size = table.canvases[canvas]
        shown = tf.cond(index >= 0, lambda: _shown(table, index, size), lambda: _filler(table, size))
        return {**shown, "index": index, "sample": sample}

    calls = tf.data.AUTOTUNE if parallel_calls is None else parallel_calls
    return _batches(slots, example, geometry.canvases, batch_size, len(index), calls)


def canvas_image(image: np.ndarray, resize: config.Resize) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resizes and pads an image as `evaluation_batches` does; pixels come out equal bit for bit.

    The canvas is the image's own; in a batch it may be larger, with more padding, where canvases were merged.

    Args:
        image: uint8 [h,w,3].

    Returns:
        canvas uint8 [H,W,3], scale float32 [2] and size int32 [2], as in `Batch`.

    Raises:
        RetinaError: the array is not of that shape and type.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise RetinaError(
            f"image: expected a non-empty uint8 array [height, width, 3] (RGB), got {image.dtype} {list(image.shape)}; "
            "convert it first"
        )
    geometry = plan.fit(np.array([image.shape[:2]]), resize)
    if not has_tensorflow():
        canvas = np.zeros((*geometry.canvases[0], 3), np.uint8)
        return canvas, _show(image, geometry.resized[0], canvas, resize.antialias), geometry.resized[0]
    import tensorflow as tf

    pixels.leave_gpu_to_backend()
    with tf.device("CPU:0"):
        content = tf.constant(geometry.resized[0])
        canvas = pixels.pad(
            pixels.show(tf.constant(image), content, resize.antialias), tf.constant(geometry.canvases[0])
        )
        return canvas.numpy(), pixels.scale(tf.constant(image.shape[:2]), content).numpy(), geometry.resized[0]


def readable(error: BaseException, dataset: DetectionDataset) -> RetinaError | None:
    """Return an error raised while iterating over batches as users read it, naming the image; None if unknown.

    The images of the batch that failed are looked at first, then, since others may be read by then, all of them.
    """
    rows = re.search(rf"\[{_MARK}\] \[([-\d ]*)\]", str(getattr(error, "message", "")))
    if rows is None:
        return None
    suspects = [int(row) for row in rows[1].split() if int(row) >= 0]
    return unusable(dataset, suspects) or unusable(dataset, range(len(dataset)))


@contextmanager
def translated(dataset: DetectionDataset) -> Iterator[None]:
    """Around a loop over batches of it: an image that can't be used ends it with a `RetinaError` that names it."""
    try:
        yield
    except Exception as error:
        known = readable(error, dataset)
        if known is None:
            raise
        raise known from None


# -------------------------------------------------------------------------------------------- without TensorFlow


def how_read() -> tuple[str, ...]:
    """Return the log's line on how evaluation images are read, where that is not by TensorFlow's operations."""
    if has_tensorflow():
        return ()
    return (
        "evaluation images: decoded by simplejpeg, OpenCV and Pillow, for TensorFlow is not installed; equal to its "
        "pixels, or with data.resize.antialias within one grey level",
    )


class PlainBatches:
    """Evaluation batches of NumPy arrays; each iteration reads anew, in threads.

    Raises:
        RetinaError: see `evaluation_batches`; while iterating: an image can't be used, and which.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        data: config.Data,
        geometry: plan.Geometry,
        batches: plan.Plan,
        threads: int | None = None,
    ):
        image_kind(dataset, data.max_pixels)
        self._dataset, self._geometry, self._batches = dataset, geometry, batches
        self._threads = threads or usual_threads()
        self._antialias = data.resize.antialias
        self._reader = TableReader(dataset, data.max_pixels)
        self._slots = plan.box_slots(dataset.offsets)

    def __len__(self) -> int:
        return len(self._batches.index)

    def __iter__(self) -> Iterator[Batch]:
        return read_ahead(self._begin, len(self), self._threads)

    as_numpy_iterator = __iter__

    def _begin(self, pool: ThreadPoolExecutor, step: int) -> Callable[[], Batch]:
        index = self._batches.index[step]
        images = np.zeros((len(index), *self._geometry.canvases[self._batches.canvas[step]], 3), np.uint8)
        working = [pool.submit(self._example, int(row), image) for row, image in zip(index, images, strict=True)]

        def finished() -> Batch:
            try:
                examples = [part.result() for part in working]
            except ImageError as error:
                raise self._reader.reason(error) from None
            columns = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
            return {"images": images, **columns, "index": index, "sample": self._batches.sample[step]}

        return finished

    def _example(self, row: int, image: np.ndarray) -> Batch:
        """The columns of a row beside its image, which is shown in `image`; -1 is a filler."""
        table, slots = self._dataset, self._slots
        example = {
            "boxes": np.zeros((slots, 4), np.float32),
            "labels": np.zeros(slots, np.int32),
            "valid": np.zeros(slots, bool),
            "crowd": np.zeros(slots, bool),
            "scale": np.ones(2, np.float32),
            "size": np.zeros(2, np.int32),
        }
        if row < 0:
            return example
        stored, content = self._reader.read(row)[0], self._geometry.resized[row]
        scale = _show(stored, content, image, self._antialias)
        rows = slice(table.offsets[row], table.offsets[row + 1])
        count = rows.stop - rows.start
        boxes = table.boxes[rows].astype(np.float32) * np.tile(scale[::-1], 2)
        example["boxes"][:count] = np.clip(boxes, 0, np.tile(content[::-1].astype(np.float32), 2))
        example["labels"][:count] = table.labels[rows]
        example["valid"][:count] = True
        example["crowd"][:count] = table.crowd[rows] | table.difficult[rows]
        return {**example, "scale": scale, "size": content}


def _show(image: np.ndarray, content: np.ndarray, canvas: np.ndarray, antialias: bool) -> np.ndarray:
    """Shows an image [h,w,3] at its content size (h, w) in the top left corner of a canvas; returns its scale [2]."""
    paint = decoding.paint_smoothly if antialias else decoding.paint_exactly
    paint(image, False, False, canvas[: content[0], : content[1]])
    return content.astype(np.float32) / np.array(image.shape[:2], np.float32)


# ------------------------------------------------------------------------------------------------------- the graph


class _Columns(NamedTuple):
    """The columns of the table and of its geometry, as tensors."""

    encoded: Callable[[tf.Tensor], tf.Tensor]  # the bytes of the image of a row, a scalar string
    orientations: tf.Tensor | None  # None: no image is turned
    depth: tuple[float, float] | None
    sizes: tf.Tensor
    resized: tf.Tensor
    antialias: bool
    canvases: tf.Tensor
    offsets: tf.Tensor
    boxes: tf.Tensor
    labels: tf.Tensor
    ignored: tf.Tensor
    slots: int  # G


def _columns(dataset: DetectionDataset, geometry: plan.Geometry, max_pixels: int, antialias: bool) -> _Columns:
    import tensorflow as tf

    kind = image_kind(dataset, max_pixels)
    # On the CPU, where tf.data runs, also when TensorFlow has a GPU.
    with tf.device("CPU:0"):
        stored = [] if kind is StoredImage else [os.fsencode(i) if isinstance(i, str) else i for i in dataset.images]
        images, fetch = tf.constant(stored, tf.string), _fetch(dataset.images)

        def encoded(index: tf.Tensor) -> tf.Tensor:
            if kind is StoredImage:
                return pixels.limited(fetch(index), max_pixels)
            image = tf.gather(images, index)
            return pixels.limited(tf.io.read_file(image) if kind is str else image, max_pixels)

        return _Columns(
            encoded=encoded,
            orientations=tf.constant(dataset.turns, tf.int64) if (dataset.turns != UPRIGHT).any() else None,
            depth=dataset.depth,
            sizes=tf.constant(dataset.sizes, tf.int32),
            resized=tf.constant(geometry.resized, tf.int32),
            antialias=antialias,
            canvases=tf.constant(geometry.canvases, tf.int32),
            offsets=tf.constant(dataset.offsets, tf.int64),
            boxes=tf.constant(dataset.boxes, tf.float32),
            labels=tf.constant(dataset.labels, tf.int32),
            ignored=tf.constant(dataset.crowd | dataset.difficult, tf.bool),
            slots=plan.box_slots(dataset.offsets),
        )


def _fetch(images: Sequence[TableImage]) -> Callable[[tf.Tensor], tf.Tensor]:
    """The function that reads the image of a row, a scalar, in the graph, where it lies in a larger file."""
    import tensorflow as tf

    def read(row: np.ndarray) -> bytes:
        image = images[int(row)]
        assert isinstance(image, StoredImage)
        return image.read()

    # Not stateful, so that determinism does not put the threads in a row.
    return lambda row: tf.ensure_shape(tf.numpy_function(read, [row], tf.string, stateful=False), [])


def _decoded(encoded: tf.Tensor, depth: tuple[float, float] | None) -> tf.Tensor:
    """The image [h,w,3] of encoded bytes; TIFFs by the function of the training reader, for TensorFlow reads none."""
    import tensorflow as tf

    def tiff() -> tf.Tensor:
        return tf.numpy_function(
            lambda content: decoding.decode_tiff(content, depth), [encoded], tf.uint8, stateful=False
        )

    image = tf.cond(pixels.is_tiff(encoded), tiff, lambda: pixels.decode(encoded, depth))
    return tf.ensure_shape(image, [None, None, 3])


def _batches(
    slots: tf.data.Dataset,
    example: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Batch],
    canvases: np.ndarray,
    batch_size: int,
    count: int,
    parallel_calls: int,
) -> tf.data.Dataset:
    """Batches of `example(index, sample, canvas)` over the slots; the error of one that can't be made lists its rows.

    A `try` around each image would tell which it was, but it takes a data set of its own: time, and, where TensorFlow
    is made deterministic, all parallelism. So a batch that fails is left out, which shows in the sample numbers, and
    `readable` looks into its images.
    """
    import tensorflow as tf

    def checked(slots: tuple[tf.Tensor, ...], batch: Batch) -> Batch:
        index, sample, _ = slots
        report = [_MARK, index, "could not be made; the cause stands in the warnings above"]
        here = tf.debugging.Assert(tf.reduce_all(batch["sample"] == sample), report, summarize=batch_size)
        with tf.control_dependencies([here]):
            return {key: tf.ensure_shape(value, shapes[key]) for key, value in batch.items()}

    # Nothing here is for AutoGraph to rewrite, and looking for it takes longer than the reading of many images.
    plain = tf.autograph.experimental.do_not_convert
    batches = slots.map(plain(example), num_parallel_calls=parallel_calls, deterministic=True)
    batches = batches.batch(batch_size, drop_remainder=True).ignore_errors(log_warning=True)
    shapes = {key: spec.shape for key, spec in batches.element_spec.items()}
    if len(canvases) == 1:
        shapes["images"] = tf.TensorShape([batch_size, *canvases[0].tolist(), 3])
    nothing = {
        key: tf.cast(tf.fill([size or 0 for size in spec.shape], -1 if key == "sample" else 0), spec.dtype)
        for key, spec in batches.element_spec.items()
    }
    batches = batches.concatenate(tf.data.Dataset.from_tensors(nothing))
    batches = tf.data.Dataset.zip(slots.batch(batch_size, drop_remainder=True), batches).map(plain(checked))
    options = tf.data.Options()
    options.deterministic = True
    return (
        batches.apply(tf.data.experimental.assert_cardinality(count)).prefetch(tf.data.AUTOTUNE).with_options(options)
    )


def _shown(table: _Columns, index: tf.Tensor, canvas: tf.Tensor) -> dict[str, Any]:
    """The image of a row, whole, with all its boxes."""
    import tensorflow as tf

    stored, content = table.sizes[index], table.resized[index]
    image = _decoded(table.encoded(index), table.depth)
    if table.orientations is not None:
        image = exif.turned(image, table.orientations[index])
    fits = tf.debugging.Assert(
        tf.reduce_all(tf.shape(image)[:2] == stored), ["declared and stored size", stored, tf.shape(image)[:2]]
    )
    with tf.control_dependencies([fits]):
        image = pixels.show(image, content, table.antialias)
    scale = pixels.scale(stored, content)
    rows = slice(table.offsets[index], table.offsets[index + 1])
    boxes = table.boxes[rows] * tf.tile(scale[::-1], [2])
    boxes = tf.clip_by_value(boxes, 0.0, tf.tile(tf.cast(content, tf.float32)[::-1], [2]))
    columns = {
        "boxes": boxes,
        "labels": table.labels[rows],
        "valid": tf.ones_like(table.ignored[rows]),
        "crowd": table.ignored[rows],
    }
    padded = {name: _padded(column, table.slots) for name, column in columns.items()}
    return {"images": pixels.pad(image, canvas), **padded, "scale": scale, "size": content}


def _filler(table: _Columns, canvas: tf.Tensor) -> dict[str, Any]:
    import tensorflow as tf

    return {
        "images": tf.zeros([canvas[0], canvas[1], 3], tf.uint8),
        "boxes": tf.zeros([table.slots, 4]),
        "labels": tf.zeros([table.slots], tf.int32),
        "valid": tf.zeros([table.slots], tf.bool),
        "crowd": tf.zeros([table.slots], tf.bool),
        "scale": tf.ones([2]),
        "size": tf.zeros([2], tf.int32),
    }


def _padded(column: tf.Tensor, slots: int) -> tf.Tensor:
    import tensorflow as tf

    column = tf.pad(column, [[0, slots - tf.shape(column)[0]]] + [[0, 0]] * (column.shape.rank - 1))
    return tf.ensure_shape(column, [slots, *column.shape[1:]])
