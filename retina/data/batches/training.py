"""Training batches, read by threads of our own: decoded, augmented and laid on their canvases in one pass.

The only source of order is the plan and the only source of chance is the seed and the global sample number, so that
batches are equal bit for bit whatever the threads do, and a run may start at any step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from retina import config
from retina.data.batches import Batch, augment, cache, decoding, pixels, plan
from retina.data.batches.augment import Layout
from retina.data.batches.table_reader import ImageError, TableReader, read_ahead, usual_threads
from retina.data.dataset import DetectionDataset
from retina.data.limits import image_kind
from retina.errors import RetinaError

if TYPE_CHECKING:
    import tensorflow as tf


def described(dataset: DetectionDataset, data: config.Data) -> tuple[str, ...]:
    """Return the log's lines on how training images are read, and how often."""
    how = (
        "JPEGs decoded by simplejpeg, reduced where they are shown small; resized by OpenCV"
        if data.decode == "auto"
        else "JPEGs decoded by simplejpeg in full; resized as for evaluation, bit for bit"
    )
    lines = (f"training images: {how}",)
    if data.sampling is None:
        return lines
    factors = plan.repeat_factors(dataset, data.sampling) / plan.ONCE
    often = f"{(factors > 1).sum()} of them more than once an epoch, at most {factors.max():.3g} times"
    return (*lines, f"training images: {often}; {factors.sum():.0f} images an epoch (data.sampling)")


def training_batches(
    dataset: DetectionDataset,
    data: config.Data,
    *,
    batch_size: int,
    seed: int,
    first_step: int = 0,
    steps: int,
    slots: np.ndarray | None = None,
    threads: int | None = None,
) -> Batches:
    """The augmented batches of global steps `first_step` .. `steps` - 1, through as many epochs as that takes.

    Starting at any step gives exactly the batches that an uninterrupted run sees from there on. Which boxes stay where
    an image is cut is said in `retina.config.Augment`.

    Args:
        slots: which of each batch's `batch_size` images are read, and in which order, as `plan.share` gives them; None
            reads all. An image is the same whoever reads it.
        threads: how many images are read at a time; None: two for every core, so that one may wait for its file.

    Raises:
        RetinaError: there is no image, a number is out of range, some images are paths and some are bytes, one is
            declared to have too many pixels, or a package that reads images can't be imported.
    """
    if not 0 <= first_step <= steps:
        raise RetinaError(f"training: expected 0 <= first step <= steps, got {first_step} and {steps}; raise the steps")
    geometries = plan.training_geometries(dataset, data, batch_size=batch_size)
    # Its errors, also those of a run without steps.
    plan.training_plan(geometries[0], batch_size=batch_size, seed=seed, epoch=0)
    image_kind(dataset, data.max_pixels)
    per_epoch = plan.training_steps(geometries[0], batch_size=batch_size)
    parts = [np.zeros((0, batch_size), np.int32)]
    for epoch in range(first_step // per_epoch, -(-steps // per_epoch)):
        whole = plan.training_plan(geometries[0], batch_size=batch_size, seed=seed, epoch=epoch)
        first = epoch * per_epoch
        parts.append(whole.index[max(first_step - first, 0) : max(steps - first, 0)].astype(np.int32))
    slots = np.arange(batch_size) if slots is None else slots
    schedule = Schedule(np.concatenate(parts)[:, slots], first_step, batch_size, slots, geometries, seed)
    return Batches(dataset, data, schedule, threads)


class Schedule(NamedTuple):
    """The images of each batch.

    `order` [n, b] int32 are the rows of the table in the b images that are read of each of n steps, which begin at
    `first_step`; `slots` [b] is their place in the whole batch of `batch_size`. A step is shown at one of the
    `geometries`.
    """

    order: np.ndarray
    first_step: int
    batch_size: int
    slots: np.ndarray
    geometries: tuple[plan.Geometry, ...]
    seed: int

    def geometry(self, step: int) -> plan.Geometry:
        """The geometry of a global step, drawn from the seed and the step alone."""
        count = len(self.geometries)
        return self.geometries[augment.batch_choice(self.seed, step, count) if count > 1 else 0]


class Batches:
    """Batches of NumPy arrays, see `retina.data.batches.Batch`; each iteration reads anew, in threads.

    What takes only a `tf.data.Dataset`, as Keras' `fit` does of such batches, is given `as_dataset()`. An iterator that
    is dropped finishes the few images that are being read, and nobody waits for them.

    Raises:
        RetinaError: a package that reads images can't be imported, or the decoded images don't fit into memory; while
            iterating: an image can't be used, and which.
    """

    def __init__(self, dataset: DetectionDataset, data: config.Data, schedule: Schedule, threads: int | None):
        self._dataset, self._data, self._schedule = dataset, data, schedule
        self._table = augment.Table.of(dataset)
        self._slots = plan.box_slots(dataset.offsets, augment.images_per_example(data.augment))
        self._threads = threads or usual_threads()
        self._reader = TableReader(dataset, data.max_pixels)
        self._paint = _window_painter(data)
        self._cache: cache.Cache | None = None
        if data.cache == "memory":
            resized = np.stack([geometry.resized for geometry in schedule.geometries])
            self._cache = self._filled(cache.layout(dataset, resized, data))

    def __len__(self) -> int:
        return len(self._schedule.order)

    def __iter__(self) -> Iterator[Batch]:
        return read_ahead(self._begin, len(self), self._threads)

    as_numpy_iterator = __iter__

    def as_dataset(self) -> tf.data.Dataset:
        """The same batches as tensors. An image that can't be used is then TensorFlow's error, not `RetinaError`."""
        import tensorflow as tf

        pixels.leave_gpu_to_backend()
        count, slots = len(self._schedule.slots), self._slots
        canvases = np.concatenate([geometry.canvases for geometry in self._schedule.geometries])
        sides = canvases[0].tolist() if len(canvases) == 1 else [None, None]
        spec = {
            "images": tf.TensorSpec([count, *sides, 3], tf.uint8),
            "boxes": tf.TensorSpec([count, slots, 4], tf.float32),
            "labels": tf.TensorSpec([count, slots], tf.int32),
            "valid": tf.TensorSpec([count, slots], tf.bool),
            "crowd": tf.TensorSpec([count, slots], tf.bool),
            "index": tf.TensorSpec([count], tf.int64),
            "sample": tf.TensorSpec([count], tf.int64),
            "scale": tf.TensorSpec([count, 2], tf.float32),
            "size": tf.TensorSpec([count, 2], tf.int32),
        }
        read = tf.data.Dataset.from_generator(self.__iter__, output_signature=spec)
        return read.apply(tf.data.experimental.assert_cardinality(len(self)))

    def _begin(self, pool: ThreadPoolExecutor, step: int) -> Callable[[], Batch]:
        """Sets the threads to work on a batch; the function waits for it."""
        schedule, options = self._schedule, self._data.augment
        index = schedule.order[step].astype(np.int64)
        number = schedule.first_step + step
        sample = number * schedule.batch_size + schedule.slots.astype(np.int64)
        geometry = schedule.geometry(number)
        canvas = geometry.canvases[geometry.canvas_of[index[0]]].astype(np.int64)
        resized = geometry.resized[index].astype(np.int64)
        layout = augment.lay_out(self._table, index, sample, resized, canvas, schedule.seed, options)
        images = np.empty((len(index), *canvas.tolist(), 3), np.uint8)
        paint = self._painter(layout, sample, images)
        workers = min(self._threads, len(index))

        def some(first: int) -> list[list[int]]:
            return [paint(example) for example in range(first, len(index), workers)]

        working = [pool.submit(some, first) for first in range(workers)]

        def finished() -> Batch:
            taken: list[list[int]] = [[]] * len(index)
            for first, part in enumerate(working):
                try:
                    taken[first::workers] = part.result()
                except ImageError as error:
                    raise self._reader.reason(error) from None
            halvings = np.array([halved for parts in taken for halved in parts])
            shown = augment.snapped(layout.parts.views, halvings)
            columns = augment.columns(self._table, layout, shown, self._slots, options)
            return {
                "images": images,
                "index": index,
                "sample": sample,
                "size": layout.content.astype(np.int32),
                **columns,
            }

        return finished

    def _painter(self, layout: Layout, sample: np.ndarray, images: np.ndarray) -> Callable[[int], list[int]]:
        """The function that makes the image of an example, and returns the halvings taken of its parts."""
        parts, options = layout.parts, self._data.augment
        halvings = augment.halvings(parts.views) if self._data.decode == "auto" else np.zeros(len(parts.row), int)
        shown = list(
            zip(
                parts.row.tolist(),
                halvings.tolist(),
                np.concatenate(parts.views, axis=1).tolist(),
                parts.mirrored.tolist(),
                parts.turned.tolist(),
                parts.corner.tolist(),
                parts.blended.tolist(),
                strict=True,
            )
        )
        ends = np.searchsorted(parts.example, np.arange(len(images) + 1)).tolist()
        contents, coloured, erased = layout.content.tolist(), layout.coloured.tolist(), layout.erased.tolist()

        def paint(example: int) -> list[int]:
            image, (height, width), taken = images[example], contents[example], []
            content = image[:height, :width]
            for row, halved, view, mirrored, turned, (y, x), blended in shown[ends[example] : ends[example + 1]]:
                stored, halved = self._read(row, halved)
                top, left, rows, columns = (side >> halved for side in view[:4])
                target = content[y : y + view[4], x : x + view[5]]
                pixels = np.empty(target.shape, np.uint8) if blended else target
                self._paint(stored[top : top + rows, left : left + columns], mirrored, turned, pixels)
                if blended:
                    augment.blend(target, pixels, layout.weight[example])
                taken.append(halved)
            image[height:] = 0
            image[:height, width:] = 0
            if coloured[example]:
                augment.distort(content, *layout.colours[example].tolist())
            if erased[example]:
                offset, size = (side[example].tolist() for side in layout.hole)
                random = options.erase.fill == "random"
                noise = augment.noise(self._schedule.seed, int(sample[example]), (*size, 3)) if random else None
                augment.erase(content, offset, size, noise)
            return taken

        return paint

    def _read(self, row: int, halvings: int) -> tuple[np.ndarray, int]:
        if self._cache is not None:
            return self._cache.image(row, halvings)
        return self._reader.read(row, halvings)

    def _filled(self, layout: cache.Layout) -> cache.Cache:
        try:
            return cache.fill(layout, self._table.sizes, self._read, self._threads)
        except ImageError as error:
            raise self._reader.reason(error) from None


def _window_painter(data: config.Data) -> Callable[[np.ndarray, bool, bool, np.ndarray], None]:
    """The function that shows a window of an image in a target."""
    if data.resize.antialias:
        return decoding.paint_smoothly
    return decoding.fast_painter() if data.decode == "auto" else decoding.paint_exactly
