"""Training images read, cropped, zoomed, flipped and laid on their canvas in one pass, by threads of our own.

simplejpeg decodes a JPEG as TensorFlow does, bit for bit, and OpenCV resizes bytes to bytes straight into the batch:
bilinear, half-pixel centres, no antialiasing, as `pixels.show`, within one level of it and a tenth of one
darker in the mean (OpenCV's weights have 11 bits, and it cuts off; `INTER_LINEAR_EXACT` is slower). Both
work outside Python's lock. What simplejpeg does not take without complaint (other formats, CMYK, damaged files) goes to
TensorFlow's decoder, which decides.

Where an image is zoomed by 1/2 to 1, neither filters what is finer than the shown pixels. Averaging instead
(`INTER_AREA`) takes five times as long, and evaluation, which training should resemble, doesn't either.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from retina import config
from retina.data import fused_geometry as geometry
from retina.data import reduced
from retina.data.batches import pixels
from retina.data.batches.plan import Geometry
from retina.data.dataset import DetectionDataset
from retina.data.images import unusable
from retina.data.memory import Cache
from retina.data.stored import StoredImage, TableImage
from retina.errors import RetinaError
from retina.files import refuse_special

_PNG = b"\x89PNG\r\n\x1a\n"
_COLOURS = ("YCbCr", "RGB", "Gray")
# simplejpeg is told a least size, not a ratio; from this side on each ratio has a size of its own.
_LEAST_SIDE = 16
# Batches that are being read or are ready while one is trained on.
AHEAD = 2

Reader = Callable[[TableImage, int], tuple[np.ndarray, int]]
"""(image, halvings) -> the image [h,w,3] uint8 at that or its full size, and the halvings taken."""


def fits(data: config.Data) -> bool:
    """Whether training images are read here: `decode: auto`, and nothing but flips and zoom changes them."""
    options = data.augment
    others = (options.crop, options.colour, options.mosaic, options.mixup, options.erase)
    return data.decode == "auto" and not any(other.probability for other in others)


def described(data: config.Data) -> str:
    """How training images are read, for the log."""
    if fits(data):
        return "training images: JPEGs decoded by simplejpeg, reduced where they are shown small; resized by OpenCV"
    if data.decode == "auto":
        return "training images: decoded, reduced where they are shown small, augmented and resized by TensorFlow"
    return "training images: decoded in full and resized by TensorFlow"


class Columns(NamedTuple):
    """What is known of the images before they are read: `sizes` [N,2], `resized` [S,N,2], `canvases` [S*C,2] int32."""

    images: Sequence[TableImage]
    sizes: np.ndarray
    resized: np.ndarray
    canvases: np.ndarray
    canvas_of: np.ndarray  # [N] int32
    groups: int  # C
    objects: geometry.Table


def columns(dataset: DetectionDataset, geometries: Sequence[Geometry], slots: int) -> Columns:
    """Those of a data set at each scale, as `retina.data.rows.rows` has them."""
    return Columns(
        dataset.images,
        dataset.sizes.astype(np.int32),
        np.stack([one.resized for one in geometries]).astype(np.int32),
        np.concatenate([one.canvases for one in geometries]).astype(np.int32),
        geometries[0].canvas_of.astype(np.int32),
        max(len(geometries[0].canvases), 1),
        geometry.Table.of(dataset, slots),
    )


class Schedule(NamedTuple):
    """Which images make which batch.

    `order` [n, b] int32 are the rows of the table in the b images that are read of each of n steps, which begin at
    `first_step`; `slots` [b] is their place in the whole batch of `batch_size`, and `scale` the number of the geometry
    at which a step is shown.
    """

    order: np.ndarray
    first_step: int
    batch_size: int
    slots: np.ndarray
    scale: Callable[[int], int]


class Batches:
    """Batches as `retina.data.pipeline.Batch` describes them, of NumPy arrays; each iteration reads anew, in threads.

    What takes only a `tf.data.Dataset`, as Keras' `fit` does of such batches, is given `as_dataset()`.

    Threads of Python's beside a `tf.data.Dataset` rather than calls from inside one: TensorFlow makes those wait for
    each other where it is made deterministic, and an iterator of it that Python's garbage collector finds in such a
    call waits for itself. What a batch holds depends on its sample numbers alone, not on threads. An iterator that is
    dropped finishes the few images that are being read, and nobody waits for them.

    Args:
        threads: how many images are read at a time; None: two for every core, so that one may wait for its file.

    Raises:
        RetinaError: simplejpeg or OpenCV can't be imported; while iterating: an image can't be used, and which.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        data: config.Data,
        schedule: Schedule,
        table: Columns,
        *,
        seed: int,
        threads: int | None,
        cache: Cache | None,
    ):
        self._dataset, self._data, self._schedule, self._table = dataset, data, schedule, table
        self._threads = threads or 2 * _cores()
        self._draw = geometry.drawing(seed)
        self._shown = _painter()
        self._image_of = _from_files(table, data.max_pixels) if cache is None else _from_memory(cache)

    def __len__(self) -> int:
        return len(self._schedule.order)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="retina-images")
        # A name of our own: an iterator may outlive the modules, whose threads have ended by themselves then.
        ending = sys.is_finalizing
        try:
            ahead: deque[Callable[[], dict[str, np.ndarray]]] = deque()
            for step in range(len(self) + AHEAD):
                if step < len(self):
                    ahead.append(self._begin(pool, step))
                if step >= AHEAD and ahead:
                    yield ahead.popleft()()
        finally:
            if not ending():
                pool.shutdown(wait=False, cancel_futures=True)

    as_numpy_iterator = __iter__

    def as_dataset(self) -> tf.data.Dataset:
        """The same batches as tensors. An image that can't be used is then TensorFlow's error, not `RetinaError`."""
        count, slots, canvases = len(self._schedule.slots), self._table.objects.slots, self._table.canvases
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

    def _begin(self, pool: ThreadPoolExecutor, step: int) -> Callable[[], dict[str, np.ndarray]]:
        """Sets the threads to work on a batch; the function waits for it."""
        table, options, schedule = self._table, self._data.augment, self._schedule
        index = schedule.order[step].astype(np.int64)
        number = schedule.first_step + step
        sample = number * schedule.batch_size + schedule.slots.astype(np.int64)
        canvas = table.canvas_of[index] + schedule.scale(number) * table.groups
        drawn = self._draw(sample)
        height, width = table.canvases[canvas[0]].tolist()
        resized = table.resized[canvas // table.groups, index]
        views = geometry.views(table.sizes[index], resized, np.array([height, width], np.int32), drawn, options.scale)
        mirrored, turned = drawn.mirror < options.horizontal_flip, drawn.turn < options.vertical_flip
        images = np.empty((len(index), height, width, 3), np.uint8)
        todo = list(
            zip(
                index.tolist(),
                geometry.halvings(views).tolist(),
                np.concatenate(views, axis=1).tolist(),
                mirrored.tolist(),
                turned.tolist(),
                images,
                strict=True,
            )
        )
        parts = min(self._threads, len(todo))

        def some(first: int) -> list[int]:
            taken = []
            for row, halvings, view, mirror, turn, target in todo[first::parts]:
                image, halved = self._image_of(row, halvings)
                self._shown(image, [side >> halved for side in view[:4]], view[4:], mirror, turn, target)
                taken.append(halved)
            return taken

        working = [pool.submit(some, first) for first in range(parts)]

        def finished() -> dict[str, np.ndarray]:
            taken = np.zeros(len(index), np.int32)
            for first, part in enumerate(working):
                try:
                    taken[first::parts] = part.result()
                except Exception:
                    raise self._fault(index) from None
            seen = geometry.snapped(views, taken)
            boxes, labels, valid, crowd = table.objects.objects(index, seen, mirrored, turned, options)
            return {
                "images": images,
                "boxes": boxes,
                "labels": labels,
                "valid": valid,
                "crowd": crowd,
                "index": index,
                "sample": sample,
                "scale": geometry.scale(seen),
                "size": seen.content,
            }

        return finished

    def _fault(self, index: np.ndarray) -> BaseException:
        """What keeps one of these images from being used; if nothing does, the error at hand."""
        error = sys.exc_info()[1]
        assert error is not None
        return unusable(self._dataset, index.tolist(), self._data.max_pixels) or error


def reader(max_pixels: int) -> Callable[[bytes, tuple[int, int], int], tuple[np.ndarray, int]]:
    """The function from (encoded, declared size (h, w), halvings) to what `retina.data.reduced.decode` gives.

    It raises `ValueError` if the size is not the declared one, and what TensorFlow raises if it can't be decoded.
    An image of more than `max_pixels` is not decoded.

    Raises:
        RetinaError: simplejpeg can't be imported.
    """
    decode, header = _imported("simplejpeg", "decode_jpeg"), _imported("simplejpeg", "decode_jpeg_header")

    def read(content: bytes, declared: tuple[int, int], halvings: int) -> tuple[np.ndarray, int]:
        least = tuple(-(-side >> halvings) for side in declared) if halvings else (0, 0)
        if max(declared) >= _LEAST_SIDE or not halvings:
            try:
                height, width, colours, _ = header(content)
                if (height, width) == declared and colours in _COLOURS:
                    return decode(content, "RGB", min_height=least[0], min_width=least[1]), halvings
            except ValueError:
                pass
        return _by_tensorflow(content, declared, halvings, max_pixels)

    return read


def _by_tensorflow(content: bytes, declared: tuple[int, int], halvings: int, max_pixels: int) -> tuple[np.ndarray, int]:
    # Operation by operation, not as a function: that would wait for threads which may be waiting for this one.
    with tf.device("CPU:0"):
        encoded = pixels.limited(tf.constant(content), max_pixels)
        if content.startswith(_PNG):
            image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
            stored, taken = tuple(image.shape[:2]), 0
        else:
            image, size, taken = reduced.decode(encoded, tf.constant(halvings))
            stored, taken = tuple(size.numpy().tolist()), int(taken)
    if stored != declared:
        raise ValueError(f"expected an image of {declared} pixels (height, width) as declared, got {stored}")
    return image.numpy(), taken


def _from_files(table: Columns, max_pixels: int) -> Callable[[int, int], tuple[np.ndarray, int]]:
    read, images = reader(max_pixels), table.images
    sizes = list(map(tuple, table.sizes.tolist()))

    def image(row: int, halvings: int) -> tuple[np.ndarray, int]:
        return read(_content(images[row]), sizes[row], halvings)

    return image


def _from_memory(cache: Cache) -> Callable[[int, int], tuple[np.ndarray, int]]:
    # Views of the tensors' memory, which they keep alive.
    values, starts = np.asarray(memoryview(cache.values)), cache.starts.numpy()
    jpeg, sizes = cache.jpeg.numpy().tolist(), cache.sizes.numpy().tolist()

    def image(row: int, halvings: int) -> tuple[np.ndarray, int]:
        taken = halvings if jpeg[row] else 0
        height, width = (-(-side >> taken) for side in sizes[row])
        start = int(starts[row, taken])
        return values[start : start + height * width * 3].reshape(height, width, 3), taken

    return image


def _content(image: TableImage) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, StoredImage):
        return image.read()
    refuse_special(image)
    with open(image, "rb", buffering=0) as file:
        return file.readall()


def _painter() -> Callable[..., None]:
    """The function that shows a window of an image in the corner of a canvas, and makes the rest of it black."""
    cv2 = _imported("cv2")
    # Images are what is shared out among threads; OpenCV would start some of its own in each of ours.
    cv2.setNumThreads(1)
    resize, flip = cv2.resize, cv2.flip

    def paint(
        image: np.ndarray, window: list[int], content: list[int], mirror: bool, turn: bool, canvas: np.ndarray
    ) -> None:
        top, left, height, width = window
        rows, columns = content
        part, target = image[top : top + height, left : left + width], canvas[:rows, :columns]
        if mirror or turn:
            flip(resize(part, (columns, rows)), {(1, 0): 1, (0, 1): 0, (1, 1): -1}[mirror, turn], dst=target)
        else:
            resize(part, (columns, rows), dst=target)
        canvas[rows:] = 0
        canvas[:rows, columns:] = 0

    return paint


def _imported(module: str, name: str | None = None) -> Any:
    """A package that reads images, or a function of it: imported here, so that other commands do without."""
    import importlib

    try:
        found = importlib.import_module(module)
    except ImportError as error:
        package = {"cv2": "opencv-python-headless"}.get(module, module)
        raise RetinaError(
            f"data.decode: auto: expected the package {package}, importing {module} failed ({error}); install it, or "
            "set data.decode: full, which gives slightly other pixels"
        ) from None
    return getattr(found, name) if name else found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
