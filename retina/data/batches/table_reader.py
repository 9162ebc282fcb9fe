"""The images of a table, read by threads of our own: what training shares with evaluation without TensorFlow."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from retina import config
from retina.data import orientation
from retina.data.batches import Batch, decoding
from retina.data.dataset import DetectionDataset
from retina.data.headers import QUARTER_TURNS, UPRIGHT
from retina.data.images import unusable
from retina.data.limits import image_name
from retina.errors import RetinaError

# Batches that are being read or are ready while another is worked on.
AHEAD = 2


class TableReader:
    """Reader of the images of a table, as the table turns them.

    Raises:
        RetinaError: a package that reads images can't be imported.
    """

    def __init__(self, dataset: DetectionDataset, max_pixels: int = config.MAX_PIXELS):
        self._dataset, self._max_pixels = dataset, max_pixels
        self._decode = decoding.decoder(dataset.depth)
        self._turns = dataset.turns.tolist()
        # As stored: a quarter turn swaps the sides.
        self._sizes = [
            (width, height) if turn in QUARTER_TURNS else (height, width)
            for (height, width), turn in zip(dataset.sizes.tolist(), self._turns, strict=True)
        ]
        self._most = decoding.most_halvings(dataset).tolist()

    def read(self, row: int, halvings: int = 0) -> tuple[np.ndarray, int]:
        """Return the image of a row, uint8 [h,w,3], and how often it is halved, at most `halvings`.

        Raises:
            ImageError: it can't be read.
        """
        try:
            content = decoding.content_of(self._dataset.images[row])
            image, halved = self._decode(content, self._sizes[row], min(halvings, self._most[row]))
        except Exception as error:
            raise ImageError(row, error) from None
        turn = self._turns[row]
        return (image if turn == UPRIGHT else np.ascontiguousarray(orientation.turned(image, turn))), halved

    def reason(self, error: ImageError) -> BaseException:
        """Return the reason for which evaluation would refuse the image; if there is none, the error at hand."""
        cause = unusable(self._dataset, [error.row], self._max_pixels)
        if cause is None and isinstance(error.error, ValueError):
            name = image_name(self._dataset, error.row)
            cause = RetinaError(f"{name}: expected a readable image, {error.error}; store it anew, or remove it")
        return cause or error.error


class ImageError(Exception):
    """Error that was raised while the image of a row was read."""

    def __init__(self, row: int, error: Exception):
        super().__init__(row, error)
        self.row, self.error = row, error


def read_ahead(
    begin: Callable[[ThreadPoolExecutor, int], Callable[[], Batch]], steps: int, threads: int
) -> Iterator[Batch]:
    """Yield the batches of `steps` steps in order, a few of them being read meanwhile.

    Args:
        begin: sets the threads to work on the batch of a step, and returns the function that waits for it.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="retina-images")
    # A name of our own: an iterator may outlive the modules, whose threads have ended by themselves then.
    ending = sys.is_finalizing
    try:
        ahead: deque[Callable[[], Batch]] = deque()
        for step in range(steps + AHEAD):
            if step < steps:
                ahead.append(begin(pool, step))
            if step >= AHEAD and ahead:
                yield ahead.popleft()()
    finally:
        if not ending():
            pool.shutdown(wait=False, cancel_futures=True)


def usual_threads() -> int:
    """Return two threads for every core, so that one may wait for its file."""
    return 2 * (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
