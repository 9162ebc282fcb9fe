"""From an encoded image to a padded canvas, in TensorFlow operations: what batches, predictions and exports share."""

from __future__ import annotations

import tensorflow as tf

from retina import config
from retina.data import augment


def read(image: tf.Tensor, from_file: bool) -> tf.Tensor:
    """The decoded image, or [0,0,3] where that fails: the graph's `try`, which neither raises nor names a file.

    Args:
        image: a scalar string, the encoded bytes or with `from_file` the path of a file with them.
    """

    def attempt(image: tf.Tensor) -> tf.Tensor:
        return decode(tf.io.read_file(image) if from_file else image)

    tried = tf.data.Dataset.from_tensors(image).map(attempt).ignore_errors()
    failed = tf.data.Dataset.from_tensors(tf.zeros([0, 0, 3], tf.uint8))
    return tried.concatenate(failed).take(1).get_single_element()


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """RGB uint8 [h,w,3] of a scalar string, JPEG, PNG, GIF (first frame), BMP or WebP; EXIF is not applied."""
    # decode_image would take libjpeg's fast transform, which is off by up to 20 levels; this one equals Pillow's.
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
    )
    return tf.ensure_shape(image, [None, None, 3])


def fit(stored: tf.Tensor, resize: config.Resize) -> tuple[tf.Tensor, tf.Tensor]:
    """`retina.data.plan.fit` of a single image inside a graph, equal to it for every size.

    Args:
        stored: [2] int32 (h, w) of at least 1 pixel.

    Returns:
        the content's size and the canvas' size, [2] int32 (h, w).
    """
    # In float64 and in the order of the original: a size that lands on half a pixel must round the same way.
    exact = tf.cast(stored, tf.float64)
    short, long = tf.constant(resize.short, tf.float64), tf.constant(resize.long, tf.float64)
    scale = tf.minimum(short / tf.reduce_min(exact), long / tf.reduce_max(exact))
    resized = tf.cast(tf.maximum(tf.floor(exact * scale + 0.5), 1.0), tf.int32)
    return resized, (resized + resize.multiple - 1) // resize.multiple * resize.multiple


def show(image: tf.Tensor, view: augment.View) -> tf.Tensor:
    """The view's window of the image resized to its content size: bilinear, half-pixel centres, no antialias; uint8."""
    (top, left), (height, width) = tf.unstack(view.offset), tf.unstack(view.window)
    part = image[top : top + height, left : left + width]
    return tf.cast(tf.round(tf.image.resize(part, view.content)), tf.uint8)


def pad(content: tf.Tensor, canvas: tf.Tensor) -> tf.Tensor:
    """`content` [h,w,3] in the top left corner of a black canvas of the size `canvas` [2] int32 (H, W)."""
    missing = canvas - tf.shape(content)[:2]
    return tf.pad(content, [[0, missing[0]], [0, missing[1]], [0, 0]])


def scale(view: augment.View) -> tf.Tensor:
    """[2] float32 (vertical, horizontal): canvas pixels per pixel of the stored image."""
    return tf.cast(view.content, tf.float32) / tf.cast(view.window, tf.float32)
