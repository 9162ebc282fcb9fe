"""Random erasing of a training image (arXiv:1708.04896), in TensorFlow operations."""

from __future__ import annotations

import tensorflow as tf

from retina import config
from retina.data import crop
from retina.data.colour import mean_colour
from retina.data.draws import Stream, fold


def erase(
    image: tf.Tensor, boxes: tf.Tensor, ignored: tf.Tensor, seed: tf.Tensor, options: config.Erase
) -> tuple[tf.Tensor, tf.Tensor]:
    """Fills a random rectangle with noise or with the image's mean colour; the probability is the caller's affair.

    Args:
        image: [H,W,3] uint8.
        boxes: [g,4] xyxy pixels of `image`; all stay.
        ignored: [g] bool.
        seed: [2] int64.

    Returns:
        the image, and `ignored` with the boxes of which more than `options.most_hidden` is erased.
    """
    offsets, windows = crop.random_windows(
        tf.shape(image)[:2], seed, Stream.ERASE_WINDOW, 1, options.area, options.aspect
    )
    (top, left), (height, width) = tf.unstack(offsets[0]), tf.unstack(windows[0])
    if options.fill == "random":
        patch = tf.random.stateless_uniform(
            [height, width, 3], fold(seed, Stream.ERASE_FILL), 0, 256, tf.int32, alg="philox"
        )
    else:
        patch = tf.broadcast_to(tf.cast(tf.round(mean_colour(image)), tf.int32), [height, width, 3])
    band = image[top : top + height]
    band = tf.concat([band[:, :left], tf.cast(patch, tf.uint8), band[:, left + width :]], axis=1)
    erased = tf.ensure_shape(tf.concat([image[:top], band, image[top + height :]], axis=0), image.shape)
    hidden = crop.hidden_share(boxes, offsets[0], windows[0])
    return erased, ignored | (hidden > options.most_hidden)
