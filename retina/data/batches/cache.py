"""Decoded images kept in memory (`data.cache: memory`), at every size that training may show them in."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retina import config
from retina.data.batches import augment
from retina.data.batches.decoding import JPEG, most_halvings
from retina.data.dataset import DetectionDataset
from retina.data.stored import StoredImage, TableImage
from retina.data.tiles import TileImage
from retina.errors import RetinaError

# Of the memory that is free when training starts, so that the model and the batches find room too.
SHARE = 0.8
_LEVELS = augment.MOST_HALVINGS + 1


class Layout(NamedTuple):
    """Places of N images at L levels of halving: `starts` [N,L] int64 (-1: not stored), `most` [N] the last level."""

    starts: np.ndarray
    most: np.ndarray
    length: int  # bytes in all


class Cache(NamedTuple):
    """The decoded images: `values` [bytes] uint8, laid out as `layout` says; `sizes` [N,2] as stored."""

    values: np.ndarray
    layout: Layout
    sizes: np.ndarray

    def image(self, row: int, halvings: int) -> tuple[np.ndarray, int]:
        """The image [h,w,3] of a row and the halvings taken, as `retina.data.batches.decoding.Decoder` gives them."""
        taken = min(halvings, int(self.layout.most[row]))
        height, width = (-(-side >> taken) for side in self.sizes[row].tolist())
        start = int(self.layout.starts[row, taken])
        return self.values[start : start + height * width * 3].reshape(height, width, 3), taken


def layout(dataset: DetectionDataset, resized: np.ndarray, data: config.Data) -> Layout:
    """As `planned`.

    Raises:
        RetinaError: it would take more than `SHARE` of the memory that is available.
    """
    plan, available = planned(dataset, resized, data), available_memory()
    if plan.length > SHARE * available:
        raise RetinaError(
            f"data.cache: the {len(dataset)} decoded images of {dataset.name} take {_amount(plan.length)}, expected "
            f"at most {_amount(SHARE * available)} ({SHARE:.0%} of {_amount(available)} available); set data.cache: "
            "none"
        )
    return plan


def planned(dataset: DetectionDataset, resized: np.ndarray, data: config.Data) -> Layout:
    """Plans the cache: a JPEG at each reduced size that some draw may ask for, other images in full.

    Args:
        resized: [S,N,2] the sizes at zoom 1, at each of S scales, the smallest first.
    """
    jpeg = np.array([_is_jpeg(image) for image in dataset.images], bool)
    last = np.where(jpeg, most_halvings(dataset), 0)
    least, most = (np.minimum(level, last) for level in _range_of_halvings(dataset.sizes, resized, data))
    level = np.arange(_LEVELS)
    stored = (least[:, None] <= level) & (level <= most[:, None])
    sides = -(-dataset.sizes.astype(np.int64)[:, None] >> level[:, None])
    # Level by level, and image by image within each.
    lengths = np.where(stored, sides.prod(axis=2) * 3, 0).T.ravel()
    starts = np.where(stored, (np.cumsum(lengths) - lengths).reshape(_LEVELS, -1).T, -1)
    return Layout(starts, last, int(lengths.sum()))


def fill(layout: Layout, sizes: np.ndarray, read: Callable[[int, int], tuple[np.ndarray, int]], threads: int) -> Cache:
    """Decodes every image at every size of the layout, by so many threads.

    Args:
        sizes: [N,2] (h, w) as stored.
        read: the image [h,w,3] uint8 of a row halved so many times, and the halvings taken.
    """
    values = np.empty(layout.length, np.uint8)

    def place(row: int, level: int) -> None:
        pixels = read(row, level)[0].ravel()
        start = layout.starts[row, level]
        values[start : start + len(pixels)] = pixels

    with ThreadPoolExecutor(threads, thread_name_prefix="retina-cache") as pool:
        # The list raises what a thread raised.
        list(pool.map(place, *(column.tolist() for column in np.nonzero(layout.starts >= 0))))
    return Cache(values, layout, sizes)


def available_memory() -> int:
    """Bytes that this process may still take: free or reclaimable in the system, and within its control group.

    Where the system does not say (macOS), half of what is installed.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            group = Path("/sys/fs/cgroup")
            most, now = (group / limit).read_text(encoding="ascii"), (group / used).read_text(encoding="ascii")
            available = min(available, max(int(most) - int(now), 0))
        except (OSError, ValueError):  # no such group, or its limit is "max"
            continue
    return available


def _range_of_halvings(sizes: np.ndarray, resized: np.ndarray, data: config.Data) -> tuple[np.ndarray, np.ndarray]:
    """The fewest and the most halvings [N] a draw may ask for; all, where crops and partners make that hard to say."""
    options, count = data.augment, len(sizes)
    if data.decode == "full":
        return np.zeros(count, int), np.zeros(count, int)
    # What is halved has a pixel left.
    possible = augment.possible_halvings(sizes.min(axis=1, initial=2**30))
    if options.crop.probability or options.mosaic.probability or options.mixup.probability:
        return np.zeros(count, int), possible
    # Rounded as `augment.zoomed` does: its window is at least r contents if the image is r targets.
    targets = (augment.zoomed_size(resized[-1], options.scale[1]), augment.zoomed_size(resized[0], options.scale[0]))
    least, most = (augment.possible_halvings((sizes // target).min(axis=1)) for target in targets)
    # Rounding to whole pixels may make a small window a little wider than its share.
    return least, np.minimum(most + 1, possible)


def _is_jpeg(image: TableImage) -> bool:
    """True if the first bytes are those of a JPEG; what can't be read counts as one, and fails with its name later."""
    if isinstance(image, bytes):
        return image.startswith(JPEG)
    if isinstance(image, TileImage):
        return False  # a bitmap; reading it would decode the whole image
    try:
        if isinstance(image, StoredImage):
            return image.read().startswith(JPEG)
        with open(image, "rb") as file:
            return file.read(len(JPEG)) == JPEG
    except (OSError, RetinaError):
        return True


def _amount(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
