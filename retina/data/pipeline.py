"""From the table to batches of images: plan, read, decode, augment, resize, pad, batch, in one tf.data graph.

The only source of order is the plan and the only source of chance is the seed and the global sample number, so that
batches are equal bit for bit whatever the threads do, and a run may start at any step.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retina import config
from retina.data import augment, pixels, plan
from retina.data.dataset import DetectionDataset
from retina.errors import RetinaError

# Boxes are padded to a multiple of this, so that data sets that differ by a few boxes share a compiled step.
_BOX_MULTIPLE = 8
# A box of which less than this is left after a crop, in pixels of the canvas, is dropped.
_LEAST_SIDE = 1.0
_MARK = "retina image"

Batch = dict[str, tf.Tensor]
"""`images` [B,H,W,3] uint8, `boxes` [B,G,4] float32 xyxy canvas pixels, `labels` [B,G] int32, `valid` [B,G] bool,
`crowd` [B,G] bool (what training must ignore), `index` [B] int64 (row of the table, -1: filler), `sample` [B] int64,
`scale` [B,2] float32 (vertical, horizontal: canvas pixels per original pixel), `size` [B,2] int32 (h, w before
padding). Invalid slots of `boxes`, `labels` and `crowd` are 0; a filler has size 0 and scale 1."""


class _Table(NamedTuple):
    """The columns of the table and of its geometry as tensors; `names` [N] is what an error calls an image."""

    images: tf.Tensor
    names: tf.Tensor
    from_file: bool
    sizes: tf.Tensor
    resized: tf.Tensor
    canvases: tf.Tensor
    offsets: tf.Tensor
    boxes: tf.Tensor
    labels: tf.Tensor
    ignored: tf.Tensor
    slots: int  # G


def _leave_gpu_to_backend() -> None:
    backend = os.environ.get("KERAS_BACKEND")
    if not backend:
        import keras

        backend = keras.backend.backend()
    if backend != "tensorflow":
        # A RuntimeError means that TensorFlow already runs in this process: the user has settled who gets which device.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")


_leave_gpu_to_backend()


def training_batches(
    dataset: DetectionDataset,
    data: config.Data,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    steps: int,
    parallel_calls: int = tf.data.AUTOTUNE,
) -> tf.data.Dataset:
    """The augmented batches of global steps `first_step` .. `steps` - 1, through as many epochs as that takes.

    Starting at any step gives exactly the batches that an uninterrupted run sees from there on. A box is kept if its
    centre lies inside the shown part of the image and at least 1 pixel of each side is left; crowds and difficult boxes
    need only the latter, since what is left of them must still not count as background.

    Returns:
        A `tf.data.Dataset` of `steps - first_step` elements as in `Batch`. Errors while iterating: see `readable`.

    Raises:
        RetinaError: there is no image, or a number is out of range.
    """
    if not 0 <= first_step <= steps:
        raise RetinaError(f"training: expected 0 <= first step <= steps, got {first_step} and {steps}; raise the steps")
    geometry = plan.fit(dataset.sizes, data.resize)
    # Its errors belong here, not into the thread that draws the plans.
    plan.training_plan(geometry, batch_size=batch_size, seed=seed, epoch=0)
    per_epoch = plan.training_steps(geometry, batch_size=batch_size)

    def epochs() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for epoch in range(first_step // per_epoch, -(-steps // per_epoch)):
            whole = plan.training_plan(geometry, batch_size=batch_size, seed=seed, epoch=epoch)
            yield _slots(whole, max(first_step - epoch * per_epoch, 0), steps - epoch * per_epoch)

    spec = tuple(tf.TensorSpec([None], dtype) for dtype in (tf.int64, tf.int64, tf.int32))
    slots = tf.data.Dataset.from_generator(epochs, output_signature=spec).prefetch(1).unbatch()
    table = _table(dataset, geometry)
    return _batches(
        slots,
        lambda index, sample, canvas: _example(table, data.augment, seed, index, sample, canvas),
        geometry.canvases,
        batch_size,
        steps - first_step,
        parallel_calls,
    )


def evaluation_batches(
    dataset: DetectionDataset,
    data: config.Data,
    *,
    batch_size: int,
    parallel_calls: int = tf.data.AUTOTUNE,
) -> tf.data.Dataset:
    """Each image once, as it is, ordered by canvas; what is missing in the last batch of a canvas is filler (index -1).

    Returns:
        A `tf.data.Dataset` of elements as in `Batch`. Errors while iterating: see `readable`.
    """
    geometry = plan.fit(dataset.sizes, data.resize)
    whole = plan.evaluation_plan(geometry, batch_size=batch_size)
    table = _table(dataset, geometry)

    def example(index: tf.Tensor, sample: tf.Tensor, canvas: tf.Tensor) -> Batch:
        return tf.cond(
            index >= 0,
            lambda: _example(table, None, 0, index, sample, canvas),
            lambda: _filler(table, sample, canvas),
        )

    slots = tf.data.Dataset.from_tensor_slices(_slots(whole, 0, len(whole.index)))
    return _batches(slots, example, geometry.canvases, batch_size, len(whole.index), parallel_calls)


def load_image(image: str | os.PathLike | bytes, name: str = "image") -> np.ndarray:
    """Reads and decodes one image as the batches do: RGB, uint8 [H,W,3]; an EXIF rotation is not applied.

    Args:
        image: a path, or the bytes of a JPEG, PNG, GIF (first frame), BMP or WebP.
        name: what an error calls the image where it comes as bytes.

    Raises:
        RetinaError: it is missing, empty, not an image, or damaged; the message names it.
    """
    if not isinstance(image, bytes):
        name = os.fspath(image)
        try:
            with open(image, "rb") as file:
                image = file.read()
        except OSError as error:
            raise RetinaError(
                f"{name}: expected an image file, cannot read it: {error.strerror}; check the path"
            ) from None
    if not image:
        raise RetinaError(f"{name}: expected an image, it is empty (0 bytes); restore or remove it")
    try:
        with tf.device("CPU:0"):
            return pixels.decode(tf.constant(image)).numpy()
    except tf.errors.OpError as error:
        known = "Unknown image file format" not in error.message
        fault = "it is damaged or cut short" if known else "it is not an image"
        raise RetinaError(
            f"{name}: expected a JPEG, PNG, GIF, BMP or WebP image, {fault}; restore or remove it"
        ) from None


def canvas_image(image: np.ndarray, resize: config.Resize) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Resizes and pads one image by the operations of `evaluation_batches`; pixels come out equal bit for bit.

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
    with tf.device("CPU:0"):
        view = augment.View(tf.zeros(2, tf.int32), tf.constant(image.shape[:2]), tf.constant(geometry.resized[0]))
        canvas = pixels.pad(pixels.show(tf.constant(image), view), tf.constant(geometry.canvases[0]))
        return canvas.numpy(), pixels.scale(view).numpy(), geometry.resized[0]


def readable(error: BaseException) -> RetinaError | None:
    """What an error raised while iterating over batches means to the user, naming the image file; None if unknown."""
    found = re.search(
        rf"\[{_MARK}\] \[(.*)\] \[([01])\] \[(\d+) (\d+)\] \[(\d+) (\d+)\]", getattr(error, "message", ""), re.DOTALL
    )
    if not isinstance(error, tf.errors.OpError) or not found:
        return None
    name, from_file = found[1], found[2] == "1"
    height, width, stored_height, stored_width = map(int, found.groups()[2:])
    if stored_height:
        swapped = (height, width) == (stored_width, stored_height)
        cause = " (an EXIF rotation is not applied: store the image upright)" if swapped else ""
        return RetinaError(
            f"{name}: expected {width}x{height} pixels (width x height) as declared, the image has "
            f"{stored_width}x{stored_height}{cause}; correct the declared size or the image"
        )
    if from_file:
        try:
            load_image(name)
        except RetinaError as reason:
            return reason
    return RetinaError(f"{name}: expected an image, it could not be read or decoded; restore or remove it")


@contextmanager
def translated() -> Iterator[None]:
    """Around a loop over batches: an image that can't be used ends it with a `RetinaError` that names the image."""
    try:
        yield
    except tf.errors.OpError as error:
        known = readable(error)
        if known is None:
            raise
        raise known from None


# ------------------------------------------------------------------------------------------------------- the graph


def _slots(whole: plan.Plan, first: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Batches `first` .. `stop` - 1 as flat columns (index, sample, canvas), one row per image."""
    index, sample = whole.index[first:stop], whole.sample[first:stop]
    return index.ravel(), sample.ravel(), np.repeat(whole.canvas[first:stop].astype(np.int32), index.shape[1])


def _batches(
    slots: tf.data.Dataset,
    example: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Batch],
    canvases: np.ndarray,
    batch_size: int,
    count: int,
    parallel_calls: int,
) -> tf.data.Dataset:
    batches = slots.map(example, num_parallel_calls=parallel_calls, deterministic=True)
    batches = batches.batch(batch_size, drop_remainder=True)
    if len(canvases) == 1:
        shape = [batch_size, *canvases[0].tolist(), 3]
        batches = batches.map(lambda batch: {**batch, "images": tf.ensure_shape(batch["images"], shape)})
    options = tf.data.Options()
    options.deterministic = True
    return (
        batches.apply(tf.data.experimental.assert_cardinality(count)).prefetch(tf.data.AUTOTUNE).with_options(options)
    )


def _table(dataset: DetectionDataset, geometry: plan.Geometry) -> _Table:
    from_file = not any(isinstance(image, bytes) for image in dataset.images)
    if not from_file and not all(isinstance(image, bytes) for image in dataset.images):
        raise RetinaError(f"{dataset.name}: expected either only paths or only encoded bytes as images, got both")
    images = [os.fsencode(image) if from_file else image for image in dataset.images]
    names = images if from_file else [f"{dataset.name}: image {name}" for name in dataset.image_ids]
    most = int(np.diff(dataset.offsets).max(initial=1))
    # On the CPU, where tf.data runs, also when TensorFlow has a GPU.
    with tf.device("CPU:0"):
        return _Table(
            images=tf.constant(images, tf.string),
            names=tf.constant(names, tf.string),
            from_file=from_file,
            sizes=tf.constant(dataset.sizes, tf.int32),
            resized=tf.constant(geometry.resized, tf.int32),
            canvases=tf.constant(geometry.canvases, tf.int32),
            offsets=tf.constant(dataset.offsets, tf.int64),
            boxes=tf.constant(dataset.boxes, tf.float32),
            labels=tf.constant(dataset.labels, tf.int32),
            ignored=tf.constant(dataset.crowd | dataset.difficult, tf.bool),
            slots=-(-most // _BOX_MULTIPLE) * _BOX_MULTIPLE,
        )


def _example(
    table: _Table, options: config.Augment | None, seed: int, index: tf.Tensor, sample: tf.Tensor, canvas: tf.Tensor
) -> Batch:
    """One image of a batch; without `options` (evaluation) it is neither augmented nor are its boxes sorted out."""
    image, boxes, labels, ignored = _row(table, index)
    stored, resized, canvas_size = table.sizes[index], table.resized[index], table.canvases[canvas]
    draws = tf.stack([tf.constant(seed, tf.int64), sample])
    if options is None or options.scale == (1.0, 1.0):
        view = augment.View(tf.zeros(2, tf.int32), stored, resized)
    else:
        view = augment.zoomed_view(stored, resized, canvas_size, draws, options.scale)
    shown, boxes = pixels.show(image, view), _move(boxes, view)
    if options is not None and options.horizontal_flip:
        shown, boxes = augment.horizontal_flip(shown, boxes, draws, options.horizontal_flip)
    if options is not None and options.vertical_flip:
        shown, boxes = augment.vertical_flip(shown, boxes, draws, options.vertical_flip)
    boxes, centred, sized = _clip(boxes, tf.cast(view.content, tf.float32))
    keep = tf.ones_like(ignored) if options is None else (centred | ignored) & sized
    return {
        "images": pixels.pad(shown, canvas_size),
        "boxes": _padded(tf.where(keep[:, None], boxes, 0.0), table.slots),
        "labels": _padded(tf.where(keep, labels, 0), table.slots),
        "valid": _padded(keep, table.slots),
        "crowd": _padded(ignored & keep, table.slots),
        "index": index,
        "sample": sample,
        "scale": pixels.scale(view),
        "size": view.content,
    }


def _filler(table: _Table, sample: tf.Tensor, canvas: tf.Tensor) -> Batch:
    size = table.canvases[canvas]
    return {
        "images": tf.zeros([size[0], size[1], 3], tf.uint8),
        "boxes": tf.zeros([table.slots, 4]),
        "labels": tf.zeros([table.slots], tf.int32),
        "valid": tf.zeros([table.slots], tf.bool),
        "crowd": tf.zeros([table.slots], tf.bool),
        "index": tf.constant(-1, tf.int64),
        "sample": sample,
        "scale": tf.ones([2]),
        "size": tf.zeros([2], tf.int32),
    }


def _padded(column: tf.Tensor, slots: int) -> tf.Tensor:
    column = tf.pad(column, [[0, slots - tf.shape(column)[0]]] + [[0, 0]] * (column.shape.rank - 1))
    return tf.ensure_shape(column, [slots, *column.shape[1:]])


def _row(table: _Table, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Image [h,w,3] uint8, boxes [g,4], labels [g] and ignored [g] of one row of the table."""
    rows = slice(table.offsets[index], table.offsets[index + 1])
    image = pixels.read(table.images[index], table.from_file)
    stored, declared = tf.shape(image)[:2], table.sizes[index]
    report = [_MARK, table.names[index], int(table.from_file), declared, stored]
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(stored == declared), report)]):
        return tf.identity(image), table.boxes[rows], table.labels[rows], table.ignored[rows]


def _move(boxes: tf.Tensor, view: augment.View) -> tf.Tensor:
    """Boxes [g,4] from pixels of the stored image to pixels of the content."""
    corner = tf.tile(tf.cast(view.offset[::-1], tf.float32), [2])
    return (boxes - corner) * tf.tile(pixels.scale(view)[::-1], [2])


def _clip(boxes: tf.Tensor, limits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Boxes [g,4] cut to (height, width) `limits` [2], whether each centre was inside, and whether enough is left."""
    limits = limits[::-1]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    centred = tf.reduce_all((centre >= 0) & (centre <= limits), axis=1)
    cut = tf.clip_by_value(boxes, 0.0, tf.tile(limits, [2]))
    return cut, centred, tf.reduce_all(cut[:, 2:] - cut[:, :2] >= _LEAST_SIDE, axis=1)
