"""From the table to batches of images: plan, read, decode, augment, resize, pad, batch, in one tf.data graph.

The only source of order is the plan and the only source of chance is the seed and the global sample number, so that
batches are equal bit for bit whatever the threads do, and a run may start at any step.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import tensorflow as tf

from retina import config
from retina.data import augment, crop, fused, memory, mixing
from retina.data.batches import pixels, plan
from retina.data.dataset import DetectionDataset
from retina.data.draws import Stream, integers
from retina.data.images import load_image as load_image
from retina.data.images import unusable
from retina.data.rows import Reading, Rows, box_slots, check, decoded, objects, resized, rows, show
from retina.errors import RetinaError

_MARK = "retina batch"

Batch = dict[str, tf.Tensor]
"""`images` [B,H,W,3] uint8, `boxes` [B,G,4] float32 xyxy canvas pixels, `labels` [B,G] int32, `valid` [B,G] bool,
`crowd` [B,G] bool (what training must ignore), `index` [B] int64 (row of the table, -1: filler), `sample` [B] int64,
`scale` [B,2] float32 (vertical, horizontal: canvas pixels per original pixel), `size` [B,2] int32 (h, w before
padding). Invalid slots of `boxes`, `labels` and `crowd` are 0; a filler has size 0 and scale 1.

Of a mosaic or mixup, `index` and `scale` are those of the first image (a mosaic's top left), `size` is that of the
whole; G grows to what the images of one example can hold together, so that no box is ever left out for want of room."""


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
    slots: np.ndarray | None = None,
    parallel_calls: int = tf.data.AUTOTUNE,
) -> fused.Batches | tf.data.Dataset:
    """The augmented batches of global steps `first_step` .. `steps` - 1, through as many epochs as that takes.

    Starting at any step gives exactly the batches that an uninterrupted run sees from there on. Which boxes stay where
    an image is cut is said in `retina.config.Augment`. How images are read, `retina.data.fused.described` tells.

    Args:
        slots: which of each batch's `batch_size` images are read, and in which order, as `plan.share` gives
            them; None reads all. An image is the same whoever reads it.

    Returns:
        `steps - first_step` elements as in `Batch`: of arrays where `retina.data.fused` reads them, which names
        an image that can't be used itself, else a `tf.data.Dataset` of tensors. Errors while iterating: see `readable`.

    Raises:
        RetinaError: there is no image, or a number is out of range.
    """
    if not 0 <= first_step <= steps:
        raise RetinaError(f"training: expected 0 <= first step <= steps, got {first_step} and {steps}; raise the steps")
    geometries = plan.fit_training(dataset.sizes, data.resize)
    geometry = geometries[0]
    # Its errors, also those of a run without steps.
    plan.training_plan(geometry, batch_size=batch_size, seed=seed, epoch=0)
    per_epoch = plan.training_steps(geometry, batch_size=batch_size)
    parts = [np.zeros((0, batch_size), np.int32)]
    for epoch in range(first_step // per_epoch, -(-steps // per_epoch)):
        whole = plan.training_plan(geometry, batch_size=batch_size, seed=seed, epoch=epoch)
        first = epoch * per_epoch
        parts.append(whole.index[max(first_step - first, 0) : max(steps - first, 0)].astype(np.int32))
    slots = np.arange(batch_size) if slots is None else slots
    order = np.concatenate(parts)[:, slots]
    boxes = box_slots(dataset, mixing.images_per_example(data.augment))
    table: Rows | None = None
    if data.cache == "memory" or not fused.fits(data):
        table = rows(dataset, geometries, mixing.images_per_example(data.augment), max_pixels=data.max_pixels)
    cache = _cached(table, dataset, data) if table is not None and data.cache == "memory" else None

    if table is None or fused.fits(data):
        check(dataset, data.max_pixels)
        scales = len(geometries)

        def scale(step: int) -> int:
            return int(_scale(seed, tf.constant(step, tf.int64), scales)) if scales > 1 else 0

        return fused.Batches(
            dataset,
            data,
            fused.Schedule(order, first_step, batch_size, slots, scale),
            fused.columns(dataset, geometries, boxes),
            seed=seed,
            threads=None if parallel_calls == tf.data.AUTOTUNE else parallel_calls,
            cache=cache,
        )

    # All of the run's plans (6 ms and half a megabyte for an epoch of 118,000 images) rather than a generator, which
    # would run in Python, and would make TensorFlow, where it is made deterministic, give up all parallelism.
    numbered = tf.data.Dataset.from_tensor_slices(order.ravel()).enumerate()
    own, slot_of = len(slots), tf.constant(slots, tf.int64)
    graph, reading = table, Reading(reduce=data.decode == "auto", cache=cache)

    def slot(place: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        sample = (first_step + place // own) * batch_size + slot_of[place % own]
        canvas = tf.gather(graph.canvas_of, index)
        if len(geometries) > 1:
            canvas += _scale(seed, sample // batch_size, len(geometries)) * graph.groups
        return tf.cast(index, tf.int64), sample, canvas

    return _batches(
        numbered.map(slot),
        lambda index, sample, canvas: _example(graph, reading, data.augment, seed, index, sample, canvas),
        graph.canvases.numpy(),
        own,
        steps - first_step,
        parallel_calls,
    )


def evaluation_batches(
    dataset: DetectionDataset,
    data: config.Data,
    *,
    batch_size: int,
    share: tuple[int, int] = (0, 1),
    parallel_calls: int = tf.data.AUTOTUNE,
) -> tf.data.Dataset:
    """Each image once, as it is, ordered by canvas; what is missing in the last batch of a canvas is filler (index -1).

    Args:
        share: (i, n) gives every n-th batch, from the i-th on: n hosts with i = 0 .. n - 1 have each image once.

    Returns:
        A `tf.data.Dataset` of elements as in `Batch`. Errors while iterating: see `readable`.
    """
    geometry = plan.fit(dataset.sizes, data.resize)
    whole = plan.evaluation_plan(geometry, batch_size=batch_size)
    table = rows(dataset, [geometry], max_pixels=data.max_pixels)

    def example(index: tf.Tensor, sample: tf.Tensor, canvas: tf.Tensor) -> Batch:
        return tf.cond(
            index >= 0,
            lambda: _example(table, Reading(), None, 0, index, sample, canvas),
            lambda: _filler(table, sample, canvas),
        )

    own = slice(share[0], None, share[1])
    slots = tf.data.Dataset.from_tensor_slices(_slots(whole, own))
    return _batches(slots, example, geometry.canvases, batch_size, len(whole.index[own]), parallel_calls)


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


def readable(error: BaseException, dataset: DetectionDataset) -> RetinaError | None:
    """What an error raised while iterating over batches means to the user, naming the image; None if unknown.

    The images of the batch that failed are looked at first, then, since a batch may show others too, all of them.
    """
    found = re.search(rf"\[{_MARK}\] \[([-\d ]*)\]", getattr(error, "message", ""))
    if not isinstance(error, tf.errors.OpError) or not found:
        return None
    suspects = [int(row) for row in found[1].split() if int(row) >= 0]
    return unusable(dataset, suspects) or unusable(dataset, range(len(dataset)))


@contextmanager
def translated(dataset: DetectionDataset) -> Iterator[None]:
    """Around a loop over batches of it: an image that can't be used ends it with a `RetinaError` that names it."""
    try:
        yield
    except tf.errors.OpError as error:
        known = readable(error, dataset)
        if known is None:
            raise
        raise known from None


# ------------------------------------------------------------------------------------------------------- the graph


def _slots(whole: plan.Plan, batches: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some of the batches as flat columns (index, sample, canvas), one row per image."""
    index, sample = whole.index[batches], whole.sample[batches]
    return index.ravel(), sample.ravel(), np.repeat(whole.canvas[batches].astype(np.int32), index.shape[1])


def _batches(
    slots: tf.data.Dataset,
    example: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], Batch],
    canvases: np.ndarray,
    batch_size: int,
    count: int,
    parallel_calls: int,
) -> tf.data.Dataset:
    """Batches of `example(index, sample, canvas)` over the slots; the error of one that can't be made lists its rows.

    A `try` around each image would tell which one it was, but it takes a data set of its own: time, and, where
    TensorFlow is made deterministic, all parallelism. So a batch that fails is left out, which shows in the sample
    numbers, and `readable` looks into its images.
    """

    def checked(slots: tuple[tf.Tensor, ...], batch: Batch) -> Batch:
        index, sample, _ = slots
        report = [_MARK, index, "could not be made; the cause stands in the warnings above"]
        here = tf.debugging.Assert(tf.reduce_all(batch["sample"] == sample), report, summarize=batch_size)
        with tf.control_dependencies([here]):
            return {key: tf.ensure_shape(value, shapes[key]) for key, value in batch.items()}

    batches = slots.map(example, num_parallel_calls=parallel_calls, deterministic=True)
    batches = batches.batch(batch_size, drop_remainder=True).ignore_errors(log_warning=True)
    shapes = {key: spec.shape for key, spec in batches.element_spec.items()}
    if len(canvases) == 1:
        shapes["images"] = tf.TensorShape([batch_size, *canvases[0].tolist(), 3])
    nothing = {
        key: tf.cast(tf.fill([size or 0 for size in spec.shape], -1 if key == "sample" else 0), spec.dtype)
        for key, spec in batches.element_spec.items()
    }
    batches = batches.concatenate(tf.data.Dataset.from_tensors(nothing))
    batches = tf.data.Dataset.zip(slots.batch(batch_size, drop_remainder=True), batches).map(checked)
    options = tf.data.Options()
    options.deterministic = True
    return (
        batches.apply(tf.data.experimental.assert_cardinality(count)).prefetch(tf.data.AUTOTUNE).with_options(options)
    )


def _scale(seed: int, step: tf.Tensor, count: int) -> tf.Tensor:
    """Which of `count` scales a batch is shown at, drawn from the seed and its number alone; an int32 scalar."""
    pair = tf.stack([tf.constant(seed, tf.int64), step])
    return tf.cast(integers(pair, Stream.SHORT_SIDE, (), count), tf.int32)


def _cached(table: Rows, dataset: DetectionDataset, data: config.Data) -> memory.Cache:
    planned = memory.layout(dataset, table.resized.numpy(), data)
    try:
        return memory.fill(planned, dataset.sizes, lambda row, halvings: decoded(table, row, halvings)[0])
    except tf.errors.OpError:
        reason = unusable(dataset, range(len(dataset)))
        if reason is None:
            raise
        raise reason from None


def _example(
    table: Rows,
    reading: Reading,
    options: config.Augment | None,
    seed: int,
    index: tf.Tensor,
    sample: tf.Tensor,
    canvas: tf.Tensor,
) -> Batch:
    """One image of a batch; without `options` (evaluation) it is neither augmented nor are its boxes sorted out."""
    canvas_size = table.canvases[canvas]
    if options is None:
        part = _whole(table, reading, index, canvas)
    else:
        draws, count = tf.stack([tf.constant(seed, tf.int64), sample]), int(table.sizes.shape[0])
        part = mixing.augmented(
            options, draws, index, count, canvas_size, functools.partial(_shown, table, reading, options, canvas)
        )
    return {
        "images": pixels.pad(part.image, canvas_size),
        "boxes": _padded(tf.where(part.valid[:, None], part.boxes, 0.0), table.slots),
        "labels": _padded(tf.where(part.valid, part.labels, 0), table.slots),
        "valid": _padded(part.valid, table.slots),
        "crowd": _padded(part.ignored & part.valid, table.slots),
        "index": index,
        "sample": sample,
        "scale": part.scale,
        "size": tf.shape(part.image)[:2],
    }


def _whole(table: Rows, reading: Reading, index: tf.Tensor, canvas: tf.Tensor) -> mixing.Part:
    """The image as evaluation shows it: whole, with all its boxes."""
    boxes, labels, ignored = objects(table, index)
    view = augment.View(tf.zeros(2, tf.int32), table.sizes[index], resized(table, index, canvas))
    image, view = show(table, index, view, reading)
    boxes = crop.clip(_move(boxes, view), view.content)
    return mixing.Part(image, boxes, labels, ignored, tf.ones_like(ignored), pixels.scale(view))


def _shown(
    table: Rows,
    reading: Reading,
    options: config.Augment,
    canvas: tf.Tensor,
    index: tf.Tensor,
    draws: tf.Tensor,
    tile: tf.Tensor | None,
) -> mixing.Part:
    """One image cropped, zoomed and flipped, with its boxes; with `tile` [2] int32 (h, w) it covers that exactly."""
    boxes, labels, ignored = objects(table, index)
    stored = table.sizes[index]
    if tile is None:
        size = resized(table, index, canvas)
        view = crop.view(stored, size, table.canvases[canvas], boxes, ignored, draws, options)
    else:
        view = crop.tile_view(stored, tile, boxes, ignored, draws, options)
    shown, view = show(table, index, view, reading)
    boxes = _move(boxes, view)
    if options.horizontal_flip:
        shown, boxes = augment.horizontal_flip(shown, boxes, draws, options.horizontal_flip)
    if options.vertical_flip:
        shown, boxes = augment.vertical_flip(shown, boxes, draws, options.vertical_flip)
    boxes, valid = crop.cut(boxes, ignored, view.content, options)
    return mixing.Part(shown, boxes, labels, ignored, valid, pixels.scale(view))


def _filler(table: Rows, sample: tf.Tensor, canvas: tf.Tensor) -> Batch:
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


def _move(boxes: tf.Tensor, view: augment.View) -> tf.Tensor:
    """Boxes [g,4] from pixels of the stored image to pixels of the content."""
    corner = tf.tile(tf.cast(view.offset[::-1], tf.float32), [2])
    return (boxes - corner) * tf.tile(pixels.scale(view)[::-1], [2])
