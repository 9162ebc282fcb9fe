"""Random numbers that are a function of (seed, sample, stream): the same in any thread, order and restart.

Philox 4x64-10 (J. Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011) turns a key and a counter into
four numbers. The run's seed and an image's place in its example are the key, sample and stream are the counter.
"""

from __future__ import annotations

import enum

import numpy as np


class Stream(enum.IntEnum):
    """The uses of chance. Each has a stream, so that adding or switching off a use changes no draw of another.

    Numbers never change and are never used again: runs must stay repeatable.
    """

    HORIZONTAL_FLIP = 0
    VERTICAL_FLIP = 1
    ZOOM = 2
    PLACE = 3
    WINDOW_CHANCE = 4
    WINDOW_LEAST = 5
    COLOUR_CHANCE = 6
    COLOUR = 7
    MOSAIC_CHANCE = 8
    MOSAIC_CENTRE = 9
    MOSAIC_PARTNERS = 10
    MIXUP_CHANCE = 11
    MIXUP_WEIGHT = 12
    MIXUP_PARTNER = 13
    ERASE_CHANCE = 14
    ERASE_WINDOW = 15
    # A stream for each of the windows that a crop tries.
    WINDOWS = 16


class Place(enum.IntEnum):
    """An image's place in its example: alone or first, second to fourth in a mosaic, blended in by a mixup."""

    FIRST = 0
    SECOND = 1
    THIRD = 2
    FOURTH = 3
    BLENDED = 4
    # Draws of a whole batch, whose number stands in the place of the sample's.
    BATCH = 5


WINDOWS = 16
_STREAMS = Stream.WINDOWS + WINDOWS
# The plan's keys are (seed, epoch), which stay below.
_KEYS = 2**63


def table(seed: int, samples: np.ndarray, place: int = Place.FIRST) -> np.ndarray:
    """Four numbers for each stream of each sample: [n,32,4] float64 in [0, 1).

    Args:
        samples: [n] int64; time and memory grow with the distance from the least to the largest.
    """
    if not len(samples):
        return np.zeros((0, _STREAMS, 4))
    first, last = int(samples.min()), int(samples.max())
    drawn = _generator(seed, place, first * _STREAMS).random((last - first + 1, _STREAMS, 4))
    return drawn[samples - first]


def noise(seed: int, sample: int, shape: tuple[int, ...]) -> np.ndarray:
    """Even noise of that shape for a sample, uint8."""
    # Past the counters of every table.
    return _generator(seed, Place.FIRST, (sample + 1) << 64).integers(0, 256, shape, np.uint8)


def batch_choice(seed: int, step: int, count: int) -> int:
    """A number from 0 to `count` - 1 for a whole batch, evenly."""
    return int(table(seed, np.array([step]), Place.BATCH)[0, 0, 0] * count)


def _generator(seed: int, place: int, counter: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, _KEYS + place], np.uint64), counter=counter))
