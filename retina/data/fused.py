"""Training images read, cropped, zoomed, flipped and laid on their canvas in one pass, a batch in one call.

simplejpeg decodes a JPEG as TensorFlow does, bit for bit, and OpenCV resizes bytes to bytes straight into the batch:
bilinear, half-pixel centres, no antialiasing, as `retina.data.pixels.show`, within one level of it (OpenCV's weights
have 11 bits). Both work outside Python's lock. What simplejpeg does not take without complaint (other formats, CMYK,
damaged files) goes to TensorFlow's decoder, which decides.

Where an image is zoomed by 1/2 to 1, neither filters what is finer than the shown pixels. Averaging instead
(`INTER_AREA`) takes five times as long, and evaluation, which training should resemble, doesn't either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from retina import config
from retina.data import fused_geometry as geometry
from retina.data import pixels, reduced
from retina.data.calls import Guarded
from retina.data.dataset import DetectionDataset
from retina.data.memory import Cache
from retina.data.plan import Geometry
from retina.data.stored import StoredImage, TableImage
from retina.errors import RetinaError
from retina.files import refuse_special

_PNG = b"\x89PNG\r\n\x1a\n"
_COLOURS = ("YCbCr", "RGB", "Gray")
# simplejpeg is told a least size, not a ratio; from this side on each ratio has a size of its own.
_LEAST_SIDE = 16
# TensorFlow takes an array over without a copy if it starts at such an address.
_ALIGNMENT = 64
# While the last images of one batch are read, the threads that are done go on with the next.
BATCHES_AT_ONCE = 2

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
    groups: int  # C
    objects: geometry.Table


def columns(dataset: DetectionDataset, geometries: Sequence[Geometry], slots: int) -> Columns:
    """Those of a data set at each scale, as `retina.data.rows.rows` has them."""
    return Columns(
        dataset.images,
        dataset.sizes.astype(np.int32),
        np.stack([one.resized for one in geometries]).astype(np.int32),
        np.concatenate([one.canvases for one in geometries]).astype(np.int32),
        max(len(geometries[0].canvases), 1),
        geometry.Table.of(dataset, slots),
    )


def examples(
    table: Columns, data: config.Data, *, seed: int, threads: int | None, cache: Cache | None
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
    """The function from (index, sample, canvas), each [B], to the batch as `retina.data.pipeline.Batch` describes it.

    It is one `tf.numpy_function` for the whole batch, with threads of its own: one for each image would cost more, and
    the images would be copied into the batch. What a batch holds depends on its sample numbers alone, not on threads.

    Args:
        threads: how many images are read at a time; None: one for every core.

    Raises:
        RetinaError: simplejpeg or OpenCV can't be imported.
    """
    make = _maker(table, data, seed, threads or _cores(), cache)
    types = {
        "images": tf.uint8,
        "boxes": tf.float32,
        "labels": tf.int32,
        "valid": tf.bool,
        "crowd": tf.bool,
        "scale": tf.float32,
        "size": tf.int32,
    }
    slots = table.objects.slots
    inner: dict[str, list[int | None]] = {"images": [None, None, 3], "boxes": [slots, 4], "scale": [2], "size": [2]}

    def example(index: tf.Tensor, sample: tf.Tensor, canvas: tf.Tensor) -> dict[str, tf.Tensor]:
        found = tf.numpy_function(make, [index, sample, canvas], list(types.values()), stateful=False)
        batch = {
            key: tf.ensure_shape(value, [index.shape[0], *inner.get(key, [slots])])
            for key, value in zip(types, found, strict=True)
        }
        return {**batch, "index": index, "sample": sample}

    return example


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


def _maker(table: Columns, data: config.Data, seed: int, threads: int, cache: Cache | None) -> Guarded:
    """(index, sample, canvas), each [B] -> images, boxes, labels, valid, crowd, scale, size of a batch."""
    shown = _painter()
    image_of = _from_files(table, data.max_pixels) if cache is None else _from_memory(cache)
    draw, options = geometry.drawing(seed), data.augment
    pool = ThreadPoolExecutor(threads, thread_name_prefix="retina-images")

    def make(index: np.ndarray, sample: np.ndarray, canvas: np.ndarray) -> tuple[np.ndarray, ...]:
        drawn = draw(sample)
        height, width = table.canvases[canvas[0]].tolist()
        resized = table.resized[canvas // table.groups, index]
        views = geometry.views(table.sizes[index], resized, np.array([height, width], np.int32), drawn, options.scale)
        mirrored, turned = drawn.mirror < options.horizontal_flip, drawn.turn < options.vertical_flip
        wished = geometry.halvings(views)
        images = _aligned(len(index), height, width)
        todo = list(
            zip(
                index.tolist(),
                wished.tolist(),
                np.concatenate(views, axis=1).tolist(),
                mirrored.tolist(),
                turned.tolist(),
                images,
                strict=True,
            )
        )

        def some(first: int) -> list[int]:
            taken = []
            with guarded.working():
                for row, halvings, view, mirror, turn, target in todo[first::threads]:
                    image, halved = image_of(row, halvings)
                    shown(image, [side >> halved for side in view[:4]], view[4:], mirror, turn, target)
                    taken.append(halved)
            return taken

        taken = np.zeros(len(index), np.int32)
        for first, found in enumerate(_shared_out(pool, some, min(threads, len(todo)))):
            taken[first::threads] = found
        views = geometry.snapped(views, taken)
        objects = table.objects.objects(index, views, mirrored, turned, options)
        return images, *objects, geometry.scale(views), views.content

    guarded = Guarded(make)
    return guarded


def _shared_out(pool: ThreadPoolExecutor, work: Callable[[int], Any], parts: int) -> list[Any]:
    """`work(0)` .. `work(parts - 1)`, the first in this thread, which would only wait otherwise."""
    try:
        others = [pool.submit(work, part) for part in range(1, parts)]
    except RuntimeError:  # the interpreter ends, and threads take no more work
        return [work(part) for part in range(parts)]
    return [work(0), *(other.result() for other in others)]


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


def _aligned(count: int, height: int, width: int) -> np.ndarray:
    """An uninitialised uint8 array [count,height,width,3] that TensorFlow need not copy."""
    length = count * height * width * 3
    held = np.empty(length + _ALIGNMENT, np.uint8)
    first = -held.ctypes.data % _ALIGNMENT
    return held[first : first + length].reshape(count, height, width, 3)


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
