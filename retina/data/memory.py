"""Decoded images kept in memory (`data.cache: memory`), at every size that training may show them in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retina import config
from retina.data import reduced
from retina.data.dataset import DetectionDataset
from retina.data.stored import StoredImage, TableImage
from retina.errors import RetinaError

# Of the memory that is free when training starts, so that the model and the batches find room too.
SHARE = 0.8
_JPEG = b"\xff\xd8\xff"
# Slices that start at such an address need not be copied by TensorFlow.
_ALIGNMENT = 64


class Layout(NamedTuple):
    """Where N images lie in the cache at L = `MOST` + 1 sizes: `starts` [N,L] int64 (-1: not kept), `jpeg` [N] bool."""

    starts: np.ndarray
    jpeg: np.ndarray
    length: int  # bytes in all


class Cache(NamedTuple):
    """The decoded images: `values` [bytes] uint8, and what `Layout` says as tensors; `sizes` [N,2] int32 as stored."""

    values: tf.Tensor
    starts: tf.Tensor
    jpeg: tf.Tensor
    sizes: tf.Tensor

    def image(self, index: tf.Tensor, halvings: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """What `retina.data.reduced.decode` gives for that row: the image [h,w,3] and the halvings taken."""
        taken = tf.where(tf.gather(self.jpeg, index), halvings, 0)
        start = tf.gather_nd(self.starts, tf.stack([index, tf.cast(taken, tf.int64)]))
        size = _halved(tf.gather(self.sizes, index), tf.bitwise.left_shift(1, taken))
        count = tf.reduce_prod(tf.cast(size, tf.int64)) * 3
        flat = tf.slice(self.values, start[None], count[None])
        return tf.reshape(flat, tf.concat([size, [3]], axis=0)), taken


def layout(dataset: DetectionDataset, resized: np.ndarray, data: config.Data) -> Layout:
    """As `planned`.

    Raises:
        RetinaError: it would take more than `SHARE` of the memory that is available.
    """
    found, available = planned(dataset, resized, data), available_memory()
    if found.length > SHARE * available:
        raise RetinaError(
            f"data.cache: the {len(dataset)} decoded images of {dataset.name} take {_amount(found.length)}, expected "
            f"at most {_amount(SHARE * available)} ({SHARE:.0%} of {_amount(available)} available); set data.cache: "
            "none"
        )
    return found


def planned(dataset: DetectionDataset, resized: np.ndarray, data: config.Data) -> Layout:
    """Plans the cache: a JPEG at each reduced size that some draw may ask for, other images as stored.

    Args:
        resized: [S,N,2] the sizes at zoom 1, at each of S scales, the smallest first.
    """
    jpeg = np.array([_is_jpeg(image) for image in dataset.images], bool)
    least, most = _range_of_halvings(dataset.sizes, resized, data)
    starts, end = np.full((len(dataset), reduced.MOST + 1), -1, np.int64), 0
    for level in range(reduced.MOST + 1):
        kept = np.where(jpeg, (least <= level) & (level <= most), level == 0)
        count = _halved(dataset.sizes[kept].astype(np.int64), 2**level).prod(1) * 3
        ends = end + np.cumsum(-(-count // _ALIGNMENT) * _ALIGNMENT)
        starts[kept, level] = np.concatenate([[end], ends[:-1]])[: len(ends)]
        end = int(ends[-1]) if len(ends) else end
    return Layout(starts, jpeg, end)


def fill(planned: Layout, sizes: np.ndarray, decode: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Cache:
    """Decodes every image at every size kept, with all cores.

    Args:
        sizes: [N,2] int32 (h, w) as stored.
        decode: the image [h,w,3] uint8 of a row (int64 scalar) halved so many times (int32 scalar).
    """
    held = np.empty(planned.length + 2 * _ALIGNMENT, np.uint8)
    first = -held.ctypes.data % _ALIGNMENT
    values = held[first : first + max(planned.length, 1)]
    row, level = np.nonzero(planned.starts >= 0)
    todo = tf.data.Dataset.from_tensor_slices(
        (row.astype(np.int64), level.astype(np.int32), planned.starts[row, level])
    )
    decoded = todo.map(
        lambda row, level, start: (start, tf.reshape(decode(row, level), [-1])), num_parallel_calls=tf.data.AUTOTUNE
    )
    for start, flat in decoded.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
        values[start : start + len(flat)] = flat
    with tf.device("CPU:0"):
        return Cache(
            # The tensor shares the array's memory and keeps it alive.
            values=tf.experimental.dlpack.from_dlpack(values.__dlpack__()),
            starts=tf.constant(planned.starts, tf.int64),
            jpeg=tf.constant(planned.jpeg, tf.bool),
            sizes=tf.constant(sizes, tf.int32),
        )


def available_memory() -> int:
    """Bytes that this process may still take: free or reclaimable in the system, and within its control group.

    Where the system does not say (macOS), half of what is installed.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            group = Path("/sys/fs/cgroup")
            most, now = (group / limit).read_text(encoding="ascii"), (group / used).read_text(encoding="ascii")
            found = min(found, max(int(most) - int(now), 0))
        except (OSError, ValueError):  # no such group, or its limit is "max"
            continue
    return found


def _range_of_halvings(sizes: np.ndarray, resized: np.ndarray, data: config.Data) -> tuple[np.ndarray, np.ndarray]:
    """The fewest and the most halvings [N] a draw may ask for; all, where crops and partners make that hard to say."""
    options, count = data.augment, len(sizes)
    if data.decode == "full":
        return np.zeros(count, int), np.zeros(count, int)
    if options.crop.probability or options.mosaic.probability or options.mixup.probability:
        return np.zeros(count, int), np.full(count, reduced.MOST)
    # In float32 and rounded as `augment.zoomed_view` does: its window is at least r contents if the image is r targets.
    shrinks = []
    for zoom, size in ((options.scale[1], resized[-1]), (options.scale[0], resized[0])):
        target = np.maximum(np.round(size.astype(np.float32) * np.float32(zoom)), 1).astype(np.int64)
        shrinks.append((sizes // target).min(1))
    least, most = (np.digitize(shrink, [2**k for k in range(1, reduced.MOST + 1)]) for shrink in shrinks)
    # Rounding to whole pixels may make a small window a little wider than its share.
    return least, np.minimum(most + 1, reduced.MOST)


def _halved(size: tf.Tensor | np.ndarray, ratio: tf.Tensor | int) -> tf.Tensor | np.ndarray:
    return (size + ratio - 1) // ratio


def _is_jpeg(image: TableImage) -> bool:
    """By its first bytes, as TensorFlow tells; what can't be read counts as one, and fails with its name later."""
    if isinstance(image, bytes):
        return image.startswith(_JPEG)
    try:
        if isinstance(image, StoredImage):
            return image.read().startswith(_JPEG)
        with open(image, "rb") as file:
            return file.read(len(_JPEG)) == _JPEG
    except (OSError, RetinaError):
        return True


def _amount(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
