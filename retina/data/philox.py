"""The draws of `retina.data.draws` for many samples at once, in NumPy: the same bits, without a graph for each sample.

Philox 4x32-10 (J. Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011) under the scrambling of seeds
that TensorFlow's stateless generators do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint32(0x9E3779B9), np.uint32(0xBB67AE85))
# The key under which TensorFlow scrambles a seed pair.
_SCRAMBLE = (np.uint32(0x3EC8F720), np.uint32(0x02461E29))
_HALF = np.uint64(32)
_Words = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def uniform(seed: int, samples: np.ndarray, streams: Sequence[int]) -> np.ndarray:
    """What `retina.data.draws.uniform` gives for each of n seed pairs (seed, sample) and each of S streams.

    Args:
        samples: [n] int64.

    Returns:
        [n,S,4] float32 in [0, 1): the first four numbers; those of a shorter shape are the first of them.
    """
    pairs = np.stack(np.broadcast_arrays(np.int64(seed), np.asarray(samples, np.int64)), axis=-1)
    low, high = _first_words(pairs)[:2]
    folded = (high.astype(np.uint64) << _HALF | low).view(np.int64)
    pairs = np.stack(np.broadcast_arrays(folded[:, None], np.array(streams, np.int64)), axis=-1)
    words = np.stack(_first_words(pairs), axis=-1)
    # The lower 23 bits as the fraction of a number from 1 to 2.
    return ((words & np.uint32(0x7FFFFF)) | np.uint32(127 << 23)).view(np.float32) - np.float32(1)


def _first_words(pairs: np.ndarray) -> _Words:
    """The first four words of the generator that a seed pair [...,2] int64 starts: each [...] uint32."""
    seeds = np.ascontiguousarray(pairs).view(np.uint32)
    mix = _philox((seeds[..., 0], seeds[..., 1], seeds[..., 2], seeds[..., 3]), _SCRAMBLE)
    zero = np.zeros_like(mix[0])
    return _philox((zero, zero, mix[2], mix[3]), (mix[0], mix[1]))


def _philox(counter: _Words, key: tuple[np.ndarray, np.ndarray] | tuple[np.uint32, np.uint32]) -> _Words:
    first, second, third, fourth = counter
    keys = [np.atleast_1d(np.asarray(half)) for half in key]
    for number in range(_ROUNDS):
        one, two = _MULTIPLIERS[0] * first.astype(np.uint64), _MULTIPLIERS[1] * third.astype(np.uint64)
        first, second, third, fourth = (
            (two >> _HALF).astype(np.uint32) ^ second ^ keys[0],
            two.astype(np.uint32),
            (one >> _HALF).astype(np.uint32) ^ fourth ^ keys[1],
            one.astype(np.uint32),
        )
        if number < _ROUNDS - 1:
            keys = [half + step for half, step in zip(keys, _WEYL, strict=True)]
    return first, second, third, fourth
