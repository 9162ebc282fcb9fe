"""Decoding a JPEG at 1/2, 1/4 or 1/8 of its size where a training image is shown that small, in TensorFlow operations.

libjpeg computes such an image from the low frequencies of each block, so that it costs less to decode and to resize,
and what is finer than its pixels is filtered away before the bilinear resize, which does no antialiasing. What is left
for that resize is a shrink by less than 2 in the side that shrinks less (or beyond the 8th). A reduced pixel (x, y)
covers the square of stored pixels [x r, (x + 1) r) x [y r, (y + 1) r), r being 2 to the power of `halvings`.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from retina.data import augment
from retina.data.batches import pixels

MOST = 3
"""libjpeg halves an image three times at most."""


def halvings(view: augment.View) -> tf.Tensor:
    """How often the view's window can be halved without a side below its content's: int32 scalar, 0 to `MOST`."""
    shrink = tf.reduce_min(view.window // view.content)
    return tf.reduce_sum(tf.cast(shrink >= tf.constant([2**k for k in range(1, MOST + 1)]), tf.int32))


def snapped(view: augment.View, halvings: tf.Tensor) -> augment.View:
    """The view with its window shrunk to whole reduced pixels: less than one of them is lost at each edge."""
    inner = within(view, halvings)
    ratio = tf.bitwise.left_shift(1, halvings)
    return view._replace(offset=inner.offset * ratio, window=inner.window * ratio)


def within(view: augment.View, halvings: tf.Tensor) -> augment.View:
    """The view in pixels of the reduced image; exact for a view that is `snapped`."""
    shift = tf.bitwise.right_shift
    return view._replace(offset=shift(view.offset, halvings), window=shift(view.window, halvings))


def decode(encoded: tf.Tensor, halvings: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`retina.data.batches.pixels.decode`, at a reduced size if it is a JPEG.

    Args:
        encoded: a scalar string.
        halvings: int32 scalar, 0 to `MOST`.

    Returns:
        RGB uint8 [h,w,3] (sides rounded up), the stored size [2] int32 (h, w), and the halvings taken: 0 unless a JPEG.
    """
    jpeg = tf.io.is_jpeg(encoded)
    taken = tf.where(jpeg, halvings, 0)

    def at(ratio: int) -> Callable[[], tf.Tensor]:
        # The transform that equals Pillow's, as in `pixels.decode`; at these sizes it costs the same as the fast one.
        return lambda: tf.io.decode_jpeg(encoded, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    def other() -> tf.Tensor:
        return pixels.decode_other(encoded)

    branches = [at(2**k) for k in range(MOST + 1)]
    image = tf.ensure_shape(tf.switch_case(tf.where(jpeg, halvings, MOST + 1), [*branches, other]), [None, None, 3])
    stored = tf.cond(taken > 0, lambda: tf.io.extract_jpeg_shape(encoded)[:2], lambda: tf.shape(image)[:2])
    return image, tf.ensure_shape(stored, [2]), taken
