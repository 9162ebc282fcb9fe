"""A table's columns as tensors, and how a row of it becomes pixels inside the graph of the batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retina.data import augment, reduced
from retina.data.batches import pixels, plan
from retina.data.dataset import DetectionDataset
from retina.data.limits import refuse_too_large
from retina.data.memory import Cache
from retina.data.stored import StoredImage, TableImage
from retina.errors import RetinaError

# Boxes are padded to a multiple of this, so that data sets that differ by a few boxes share a compiled step.
_BOX_MULTIPLE = 8


class Rows(NamedTuple):
    """The columns of the table, and of its geometry at each of S scales, as tensors.

    `canvases` [S*C,2] are those of the first scale, then of the next; `canvas_of` [N] counts those of the first.
    """

    images: tf.Tensor
    from_file: bool
    fetch: Callable[[tf.Tensor], tf.Tensor] | None  # the bytes of an image that lies in a larger file
    sizes: tf.Tensor
    resized: tf.Tensor  # [S,N,2]
    canvas_of: tf.Tensor
    canvases: tf.Tensor
    offsets: tf.Tensor
    boxes: tf.Tensor
    labels: tf.Tensor
    ignored: tf.Tensor
    slots: int  # G
    groups: int  # C
    max_pixels: int


class Reading(NamedTuple):
    """How images are read: whether JPEGs are reduced while they are decoded, and from memory or not."""

    reduce: bool = False
    cache: Cache | None = None


def rows(
    dataset: DetectionDataset, geometries: Sequence[plan.Geometry], images_per_example: int = 1, *, max_pixels: int
) -> Rows:
    """The tensors, on the CPU, with room for the boxes of so many images in every example.

    Args:
        geometries: one for each scale, with the same groups (`plan.fit_training`).

    Raises:
        RetinaError: some images are paths and some are bytes, or one is declared to have more than `max_pixels`.
    """
    kinds = check(dataset, max_pixels)
    from_file, stored = str in kinds, StoredImage in kinds
    images = [os.fsencode(image) if isinstance(image, str) else image for image in dataset.images]
    # On the CPU, where tf.data runs, also when TensorFlow has a GPU.
    with tf.device("CPU:0"):
        return Rows(
            images=tf.range(len(images)) if stored else tf.constant(images, tf.string),
            from_file=from_file,
            fetch=_fetch(dataset.images) if stored else None,
            sizes=tf.constant(dataset.sizes, tf.int32),
            resized=tf.constant(np.stack([one.resized for one in geometries]), tf.int32),
            canvas_of=tf.constant(geometries[0].canvas_of, tf.int32),
            canvases=tf.constant(np.concatenate([one.canvases for one in geometries]), tf.int32),
            offsets=tf.constant(dataset.offsets, tf.int64),
            boxes=tf.constant(dataset.boxes, tf.float32),
            labels=tf.constant(dataset.labels, tf.int32),
            ignored=tf.constant(dataset.crowd | dataset.difficult, tf.bool),
            slots=box_slots(dataset, images_per_example),
            groups=max(len(geometries[0].canvases), 1),
            max_pixels=max_pixels,
        )


def check(dataset: DetectionDataset, max_pixels: int) -> set[type]:
    """The one kind of image that the data set has (none if it is empty): `str`, `bytes` or `StoredImage`.

    Raises:
        RetinaError: some images are paths and some are bytes, or one is declared to have more than `max_pixels`.
    """
    refuse_too_large(dataset, max_pixels)
    kinds = {StoredImage if isinstance(image, StoredImage) else type(image) for image in dataset.images}
    if len(kinds) > 1:
        raise RetinaError(f"{dataset.name}: expected either only paths or only encoded bytes as images, got both")
    return kinds


def box_slots(dataset: DetectionDataset, images_per_example: int) -> int:
    """G: room for the boxes of so many images, each with the most that an image of the table has."""
    most = int(np.diff(dataset.offsets).max(initial=1)) * images_per_example
    return -(-most // _BOX_MULTIPLE) * _BOX_MULTIPLE


def resized(table: Rows, index: tf.Tensor, canvas: tf.Tensor) -> tf.Tensor:
    """[2] int32: the size of a row's image at zoom 1, at the scale that the canvas (a row of `canvases`) belongs to."""
    return table.resized[tf.cast(canvas // table.groups, tf.int64), index]


def objects(table: Rows, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Boxes [g,4] in pixels of the stored image, labels [g] and ignored [g] of one row."""
    own = slice(table.offsets[index], table.offsets[index + 1])
    return table.boxes[own], table.labels[own], table.ignored[own]


def encoded(table: Rows, index: tf.Tensor) -> tf.Tensor:
    """The bytes of the image of one row, a scalar string."""
    image = tf.gather(table.images, index)
    if table.fetch is not None:
        image = table.fetch(image)
    elif table.from_file:
        image = tf.io.read_file(image)
    return pixels.limited(image, table.max_pixels)


def show(table: Rows, index: tf.Tensor, view: augment.View, reading: Reading) -> tuple[tf.Tensor, augment.View]:
    """The view of the image of one row, [h,w,3] uint8, and the view that was taken.

    The latter is the one that boxes have to be moved by: where a JPEG is reduced, the window starts and ends at whole
    pixels of the reduced image (see `retina.data.reduced`); otherwise it is `view`.
    """
    halvings = reduced.halvings(view) if reading.reduce else None
    if reading.cache is not None:
        image, taken = reading.cache.image(index, tf.constant(0) if halvings is None else halvings)
    else:
        image, taken = decoded(table, index, halvings)
    if halvings is None:
        return pixels.show(image, view), view
    view = reduced.snapped(view, taken)
    return pixels.show(image, reduced.within(view, taken)), view


def decoded(table: Rows, index: tf.Tensor, halvings: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    """The image [h,w,3] uint8 of one row and how many times it was halved; an error unless its size is as declared.

    Args:
        index: int64 scalar.
        halvings: int32 scalar, see `retina.data.reduced`; None takes the operations of exports.
    """
    if halvings is None:
        image, taken = pixels.decode(encoded(table, index)), tf.constant(0)
        stored = tf.shape(image)[:2]
    else:
        image, stored, taken = reduced.decode(encoded(table, index), halvings)
    declared = tf.gather(table.sizes, index)
    fits = tf.debugging.Assert(tf.reduce_all(stored == declared), ["declared and stored size", declared, stored])
    with tf.control_dependencies([fits]):
        return tf.identity(image), taken


def _fetch(images: Sequence[TableImage]) -> Callable[[tf.Tensor], tf.Tensor]:
    """Reads the image of a row, a scalar, in the graph."""

    def read(row: np.ndarray) -> bytes:
        image = images[int(row)]
        assert isinstance(image, StoredImage)
        return image.read()

    # Not stateful, so that determinism does not put the threads in a row.
    return lambda row: tf.ensure_shape(tf.numpy_function(read, [row], tf.string, stateful=False), [])
