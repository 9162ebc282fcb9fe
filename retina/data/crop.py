"""Random windows of an image, and which boxes stay where an image is cut."""

from __future__ import annotations

import tensorflow as tf

from retina import config
from retina.data import augment
from retina.data.draws import Stream, integers, sometimes, uniform

# A box of which less than this is left, in pixels of the canvas, is dropped.
_LEAST_SIDE = 1.0
_TRIES = 16
# Coordinates are rounded on their way through scale and offset; a box that is wholly visible must count as such.
_SLACK = 1e-4


def view(
    stored: tf.Tensor,
    resized: tf.Tensor,
    canvas: tf.Tensor,
    boxes: tf.Tensor,
    ignored: tf.Tensor,
    seed: tf.Tensor,
    options: config.Augment,
) -> augment.View:
    """What is shown of an image of its own canvas: the random crop, then the random zoom.

    Args:
        stored: [2] int32 (h, w) of the stored image.
        resized: [2] int32 (h, w) of the image at evaluation.
        canvas: [2] int32 (h, w), at least `resized`.
        boxes: [g,4] xyxy pixels of the stored image.
        ignored: [g] bool, boxes on which the crop need not look.
        seed: [2] int64.
        options: its `scale` and `crop`.
    """
    if options.crop.probability == 0:
        if options.scale == (1.0, 1.0):
            return augment.View(tf.zeros(2, tf.int32), stored, resized)
        return augment.zoomed_view(stored, resized, canvas, seed, options.scale)
    offset, window = _part(stored, boxes, ignored, seed, options.crop)
    room, part = tf.cast(resized, tf.float32), tf.cast(window, tf.float32)
    size = tf.cast(tf.round(part * tf.reduce_min(room / part)), tf.int32)
    # The nearest pixel may lie beyond the room by rounding alone.
    size = tf.clip_by_value(size, 1, resized)
    inner = augment.zoomed_view(window, size, canvas, seed, options.scale)
    return inner._replace(offset=offset + inner.offset)


def tile_view(
    stored: tf.Tensor,
    tile: tf.Tensor,
    boxes: tf.Tensor,
    ignored: tf.Tensor,
    seed: tf.Tensor,
    options: config.Augment,
) -> augment.View:
    """What is shown of an image that must cover a tile of [2] int32 (h, w): the random crop, zoomed as little as covers
    the tile, times the random zoom where that is above 1; arguments as in `view`. The content's size is the tile's.
    """
    offset, window = _part(stored, boxes, ignored, seed, options.crop)
    part = tf.cast(window, tf.float32)
    size = tf.cast(tf.round(part * tf.reduce_max(tf.cast(tile, tf.float32) / part)), tf.int32)
    scale = (max(options.scale[0], 1.0), max(options.scale[1], 1.0))
    inner = augment.zoomed_view(window, tf.maximum(size, tile), tile, seed, scale)
    return inner._replace(offset=offset + inner.offset)


def crop_window(
    stored: tf.Tensor, boxes: tf.Tensor, ignored: tf.Tensor, seed: tf.Tensor, options: config.Crop
) -> tuple[tf.Tensor, tf.Tensor]:
    """A window of an image as `retina.config.Crop` describes it; arguments as in `view`.

    Returns:
        offset and size, [2] int32 (vertical, horizontal) pixels of the stored image, inside it.
    """
    offsets, windows = random_windows(stored, seed, Stream.WINDOW, _TRIES, options.area, options.aspect)
    choice = integers(seed, Stream.WINDOW_LEAST, [], len(options.least))
    least = tf.constant(options.least, tf.float32)[choice]
    corners = tf.cast(tf.concat([offsets[:, ::-1], (offsets + windows)[:, ::-1]], axis=1), tf.float32)
    counted = tf.boolean_mask(boxes, ~ignored)
    inside, own = _common(corners[:, None], counted[None]), _area(counted)[None]
    whole = own if options.overlap == "visible" else own + _area(corners)[:, None] - inside
    enough = tf.reduce_any(inside >= (least - _SLACK) * whole, axis=1) | (tf.shape(counted)[0] == 0)
    # argmax is the first of equals.
    first = tf.argmax(tf.cast(enough, tf.int32))
    found = enough[first]
    return tf.where(found, offsets[first], 0), tf.where(found, windows[first], stored)


def random_windows(
    size: tf.Tensor,
    seed: tf.Tensor,
    stream: int,
    count: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Windows with a share of the image's area drawn evenly and an aspect (width / height) drawn log-uniformly.

    The range of the aspect is narrowed to what fits into the image at the area drawn, so that no draw is in vain.

    Args:
        size: [2] int32 (h, w) of the image, at least 1 pixel.
        seed: [2] int64.

    Returns:
        offsets and sizes [count,2] int32 (vertical, horizontal) pixels; sizes are at least 1.
    """
    draws = uniform(seed, stream, [count, 4])
    height, width = tf.unstack(tf.cast(size, tf.float32))
    share = height * width * (area[0] + draws[:, 0] * (area[1] - area[0]))
    least, most = share / height**2, width**2 / share
    low, high = (tf.math.log(tf.maximum(tf.minimum(end, most), least)) for end in aspect)
    ratio = tf.exp(low + draws[:, 1] * (high - low))
    sides = tf.sqrt(tf.stack([share / ratio, share * ratio], axis=1))
    windows = tf.clip_by_value(tf.cast(tf.round(sides), tf.int32), 1, size)
    room = size - windows
    offsets = tf.cast(tf.floor(draws[:, 2:] * tf.cast(room + 1, tf.float32)), tf.int32)
    return tf.minimum(offsets, room), windows


def cut(
    boxes: tf.Tensor, ignored: tf.Tensor, limits: tf.Tensor, options: config.Augment
) -> tuple[tf.Tensor, tf.Tensor]:
    """Boxes [g,4] cut to (height, width) `limits` [2] int32, and which stay [g]; see `retina.config.Augment`."""
    left = clip(boxes, limits)
    if options.keep == "centre":
        limits = tf.cast(limits, tf.float32)[::-1]
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        stays = tf.reduce_all((centre >= 0) & (centre <= limits), axis=1)
    else:
        stays = _area(left) >= (options.min_visible - _SLACK) * _area(boxes)
    return left, (stays | ignored) & tf.reduce_all(left[:, 2:] - left[:, :2] >= _LEAST_SIDE, axis=1)


def clip(boxes: tf.Tensor, limits: tf.Tensor) -> tf.Tensor:
    """Boxes [g,4] cut to (height, width) `limits` [2] int32."""
    return tf.clip_by_value(boxes, 0.0, tf.tile(tf.cast(limits, tf.float32)[::-1], [2]))


def hidden_share(boxes: tf.Tensor, offset: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """[g] float32: the share of each box [g,4] inside a window of [2] int32 (vertical, horizontal); 0 of no area."""
    corners = tf.cast(tf.concat([offset[::-1], (offset + window)[::-1]], axis=0), tf.float32)
    return tf.math.divide_no_nan(_common(corners[None], boxes), _area(boxes))


def _part(
    stored: tf.Tensor, boxes: tf.Tensor, ignored: tf.Tensor, seed: tf.Tensor, options: config.Crop
) -> tuple[tf.Tensor, tf.Tensor]:
    return sometimes(
        seed,
        Stream.WINDOW_CHANCE,
        options.probability,
        lambda: crop_window(stored, boxes, ignored, seed, options),
        lambda: (tf.zeros(2, tf.int32), stored),
    )


def _area(boxes: tf.Tensor) -> tf.Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _common(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    sides = tf.minimum(first[..., 2:], second[..., 2:]) - tf.maximum(first[..., :2], second[..., :2])
    return tf.reduce_prod(tf.maximum(sides, 0.0), axis=-1)
