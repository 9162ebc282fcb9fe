"""Examples for training out of stored images: alone or as a mosaic, blended, then with other colours, then erased.

Draws are a function of (seed, sample, stream): the same in any thread, order and restart. Philox 4x64-10 (J. Salmon et
al., Parallel random numbers: as easy as 1, 2, 3, SC 2011) turns a key and a counter into four numbers. The run's seed
and an image's place in its example are the key, sample and stream are the counter.

A batch is laid out before an image is read (`lay_out`), with the views of its images and the ways of their boxes for
all of them at once. Sizes, offsets and scales are (vertical, horizontal); boxes are xyxy; `draws` [n,32,4] are those of
`draw`. The functions of pixels (`blend`, `distort`, `erase`) work on one image each, in any thread.
"""

from __future__ import annotations

import enum
import functools
import math
from typing import NamedTuple

import numpy as np

from retina import config
from retina.data.dataset import DetectionDataset

MOST_HALVINGS = 3
"""libjpeg halves an image three times at most."""

# A box of which less than this is left, in pixels of the canvas, is dropped.
_LEAST_SIDE = 1.0
# Coordinates are rounded on their way through scale and offset; a box that is wholly visible must count as such.
_SLACK = 1e-4

_QUANTILES = 8192

# ITU-R BT.601, as in Pillow and torchvision.
_LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
# The mean grey is that of every fourth row and column.
_SPACING = 4


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


class Views(NamedTuple):
    """The parts of n stored images that are shown, each [n,2] int64 pixels.

    `offset` and `window` are the part's corner and size in the stored image, `content` the size it is resized to.
    """

    offset: np.ndarray
    window: np.ndarray
    content: np.ndarray


class Objects(NamedTuple):
    """The m objects of n images: `image` [m] from 0 to n - 1, `boxes` [m,4] float32 xyxy pixels of the stored image,
    `labels` [m] int32, `ignored` [m] bool (crowd or difficult)."""

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray


class Table(NamedTuple):
    """The columns of N images: `sizes` [N,2] int64, `offsets` [N+1] into `boxes` [M,4], `labels` and `ignored` [M]."""

    sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray

    @classmethod
    def of(cls, dataset: DetectionDataset) -> Table:
        return cls(
            dataset.sizes.astype(np.int64).reshape(-1, 2),
            dataset.offsets.astype(np.int64),
            dataset.boxes.astype(np.float32),
            dataset.labels.astype(np.int32),
            dataset.crowd | dataset.difficult,
        )

    def objects(self, rows: np.ndarray) -> Objects:
        """The objects of the images `rows` [n], one image after the other."""
        first = self.offsets[rows]
        counts = self.offsets[rows + 1] - first
        image = np.repeat(np.arange(len(rows)), counts)
        row = np.arange(len(image)) + np.repeat(first - np.cumsum(counts) + counts, counts)
        return Objects(image, self.boxes[row], self.labels[row], self.ignored[row])


class Parts(NamedTuple):
    """The P images that n examples show, sorted by example: what is shown of a row of the table, and where.

    `corner` [P,2] is where the content starts on the canvas; a `blended` one is mixed with what lies there.
    """

    example: np.ndarray
    row: np.ndarray
    views: Views
    mirrored: np.ndarray
    turned: np.ndarray
    corner: np.ndarray
    blended: np.ndarray


class Layout(NamedTuple):
    """Draws of n examples; where `coloured` or `erased` is false, what belongs to it has no meaning."""

    parts: Parts
    content: np.ndarray  # [n,2] sizes before padding
    weight: np.ndarray  # [n] of what a mixup's other image is blended with
    coloured: np.ndarray  # [n] bool
    colours: np.ndarray  # [n,4] brightness, contrast, saturation, hue
    erased: np.ndarray  # [n] bool
    hole: tuple[np.ndarray, np.ndarray]  # offset and size, [n,2] each


def images_per_example(options: config.Augment) -> int:
    """Most images whose boxes a training example holds: 1, 2 with mixup, 4 with mosaic, 5 with both."""
    return (4 if options.mosaic.probability else 1) + (1 if options.mixup.probability else 0)


def lay_out(
    table: Table,
    rows: np.ndarray,
    samples: np.ndarray,
    resized: np.ndarray,
    canvas: np.ndarray,
    seed: int,
    options: config.Augment,
) -> Layout:
    """Draws the examples of a batch; partners are drawn evenly from the whole table, the image itself included.

    Args:
        rows: [n] of the examples' first images.
        samples: [n] int64, their numbers.
        resized: [n,2] their sizes at evaluation.
        canvas: [2] the size of the batch's images, which a mosaic fills.
    """
    draws = draw(seed, samples)
    mosaic = draws[:, Stream.MOSAIC_CHANCE, 0] < options.mosaic.probability
    content = np.where(mosaic[:, None], canvas, 0)
    groups: list[tuple[np.ndarray, ...]] = []

    def add(chosen: np.ndarray, rows: np.ndarray, place: Place, corner: np.ndarray, tile: np.ndarray | None) -> None:
        """Adds an image to the examples `chosen` [n] bool, alone or covering its `tile` [n,2]."""
        example = np.flatnonzero(chosen)
        if not len(example):
            return
        drawn = draw(seed, samples[example], place) if place else draws[chosen]
        rows = rows[example]
        # Nothing but a crop looks at the objects.
        stored, objects = table.sizes[rows], table.objects(rows[: len(rows) if options.crop.probability else 0])
        if tile is None:
            views = alone(stored, resized[example], canvas, objects, drawn, options)
            content[example] = views.content
        else:
            views = covering(stored, tile[example], objects, drawn, options)
        mirrored = drawn[:, Stream.HORIZONTAL_FLIP, 0] < options.horizontal_flip
        turned = drawn[:, Stream.VERTICAL_FLIP, 0] < options.vertical_flip
        blended = np.full(len(example), place == Place.BLENDED)
        groups.append((example, rows, *views, mirrored, turned, corner[example], blended))

    origin = np.zeros((len(rows), 2), np.int64)
    add(~mosaic, rows, Place.FIRST, origin, None)
    if mosaic.any():
        low, high = options.mosaic.centre
        middle = np.round((low + draws[:, Stream.MOSAIC_CENTRE, :2] * (high - low)) * canvas).astype(np.int64)
        middle = np.clip(middle, 1, canvas - 1)
        partners = _evenly(draws[:, Stream.MOSAIC_PARTNERS, :3], len(table.sizes))
        for place, beyond in enumerate(((False, False), (False, True), (True, False), (True, True))):
            tile = np.where(beyond, canvas - middle, middle)
            add(mosaic, partners[:, place - 1] if place else rows, Place(place), middle * beyond, tile)
    mixed = draws[:, Stream.MIXUP_CHANCE, 0] < options.mixup.probability
    add(mixed, _evenly(draws[:, Stream.MIXUP_PARTNER, 0], len(table.sizes)), Place.BLENDED, origin, content)

    if len(groups) > 1:
        columns = [np.concatenate(column) for column in zip(*groups, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        groups = [tuple(column[order] for column in columns)]
    example, row, offset, window, shown, mirrored, turned, corner, blended = groups[0]
    strengths = np.array([options.colour.brightness, options.colour.contrast, options.colour.saturation])
    drawn = 2 * draws[:, Stream.COLOUR] - 1
    hole = (origin, origin)
    if options.erase.probability:
        windows = draws[:, [Stream.ERASE_WINDOW]]
        holes = random_windows(content, windows, options.erase.area, options.erase.aspect)
        hole = holes[0][:, 0], holes[1][:, 0]
    return Layout(
        parts=Parts(example, row, Views(offset, window, shown), mirrored, turned, corner, blended),
        content=content,
        weight=beta(draws[:, Stream.MIXUP_WEIGHT, 0], options.mixup.alpha),
        coloured=draws[:, Stream.COLOUR_CHANCE, 0] < options.colour.probability,
        colours=np.concatenate([1 + strengths * drawn[:, :3], options.colour.hue * drawn[:, 3:]], axis=1),
        erased=draws[:, Stream.ERASE_CHANCE, 0] < options.erase.probability,
        hole=hole,
    )


def columns(table: Table, layout: Layout, views: Views, slots: int, options: config.Augment) -> dict[str, np.ndarray]:
    """`boxes`, `labels`, `valid`, `crowd` and `scale` of a batch, see `retina.data.batches.Batch`.

    Args:
        views: of the parts, as they were taken.
        slots: G.
    """
    parts, count = layout.parts, len(layout.content)
    objects = table.objects(parts.row)
    boxes = moved(objects, views, parts.mirrored, parts.turned)
    boxes, stays = cut(boxes, objects.ignored, views.content[objects.image], options)
    boxes.reshape(-1, 2, 2)[:] += parts.corner[objects.image, None, ::-1].astype(np.float32)
    example, ignored = parts.example[objects.image], objects.ignored
    if layout.erased.any():
        hidden = hidden_share(boxes, layout.hole[0][example], layout.hole[1][example])
        ignored = ignored | layout.erased[example] & (hidden > options.erase.most_hidden)
    counts = np.bincount(example, minlength=count)
    slot = (np.arange(len(example)) - np.repeat(np.cumsum(counts) - counts, counts))[stays]
    batch = {
        "boxes": np.zeros((count, slots, 4), np.float32),
        "labels": np.zeros((count, slots), np.int32),
        "valid": np.zeros((count, slots), bool),
        "crowd": np.zeros((count, slots), bool),
        "scale": scale(views)[np.searchsorted(parts.example, np.arange(count))],
    }
    place = example[stays], slot
    batch["boxes"][place] = boxes[stays]
    batch["labels"][place] = objects.labels[stays]
    batch["valid"][place] = True
    batch["crowd"][place] = ignored[stays]
    return batch


def alone(
    stored: np.ndarray,
    resized: np.ndarray,
    canvas: np.ndarray,
    objects: Objects,
    draws: np.ndarray,
    options: config.Augment,
) -> Views:
    """Views of images that are shown alone: the random crop, enlarged to the evaluation size, then the random zoom.

    Args:
        stored: [n,2] sizes of the stored images.
        resized: [n,2] sizes at evaluation.
        canvas: [2] or [n,2], at least `resized`.
        options: its `scale` and `crop`.
    """
    if options.crop.probability == 0:
        return zoomed(stored, resized, canvas, draws, options.scale)
    offset, window = cropped(stored, objects, draws, options.crop)
    # The nearest pixel may lie beyond the room by rounding alone.
    size = np.clip(_round(window * (resized / window).min(axis=1, keepdims=True)), 1, resized)
    inner = zoomed(window, size, canvas, draws, options.scale)
    return inner._replace(offset=offset + inner.offset)


def covering(
    stored: np.ndarray, tile: np.ndarray, objects: Objects, draws: np.ndarray, options: config.Augment
) -> Views:
    """Views of images that must cover tiles [n,2]: the random crop, zoomed as little as covers the tile, times the
    random zoom where that is above 1; arguments as in `alone`. The content's size is the tile's.
    """
    offset, window = cropped(stored, objects, draws, options.crop)
    size = np.maximum(_round(window * (tile / window).max(axis=1, keepdims=True)), tile)
    low, high = options.scale
    inner = zoomed(window, size, tile, draws, (max(low, 1.0), max(high, 1.0)))
    return inner._replace(offset=offset + inner.offset)


def zoomed(
    stored: np.ndarray, resized: np.ndarray, canvas: np.ndarray, draws: np.ndarray, scale: tuple[float, float]
) -> Views:
    """Views of randomly zoomed images: what exceeds the canvas is cropped away at a random place.

    The crop is taken from the stored image, in whole pixels, so that nothing is resized only to be thrown away.
    """
    if scale == (1.0, 1.0) and canvas.ndim == 1:
        return Views(np.zeros_like(stored), stored, resized)
    target = zoomed_size(resized, zoom(draws, scale)[:, None])
    content = np.minimum(target, canvas)
    window = np.minimum(np.maximum(_round(stored * (content / target)), 1), stored)
    offset = (draws[:, Stream.PLACE, :2] * (stored - window + 1)).astype(np.int64)
    return Views(offset, window, content)


def zoom(draws: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Zoom factors [n], log-uniform in `scale` (low, high)."""
    low, high = scale
    # A power may round to just outside.
    return np.minimum(np.maximum(low * (high / low) ** draws[:, Stream.ZOOM, 0], low), high)


def zoomed_size(resized: np.ndarray, factor: np.ndarray | float) -> np.ndarray:
    """The size of images of that size at zoom 1, in whole pixels, at least 1."""
    return np.maximum(_round(resized * factor), 1)


def cropped(
    stored: np.ndarray, objects: Objects, draws: np.ndarray, options: config.Crop
) -> tuple[np.ndarray, np.ndarray]:
    """Windows as `retina.config.Crop` describes them: offset and size, [n,2] each, in pixels of the stored image."""
    chosen = draws[:, Stream.WINDOW_CHANCE, 0] < options.probability
    if not chosen.any():
        return np.zeros_like(stored), stored
    offsets, windows = random_windows(
        stored, draws[:, Stream.WINDOWS : Stream.WINDOWS + WINDOWS], options.area, options.aspect
    )
    least = np.array(options.least)[(draws[:, Stream.WINDOW_LEAST, 0] * len(options.least)).astype(int)]
    corners = np.concatenate([offsets[..., ::-1], (offsets + windows)[..., ::-1]], axis=2)
    image, boxes = objects.image[~objects.ignored], objects.boxes[~objects.ignored].astype(np.float64)
    inside, whole = _common(corners[image], boxes[:, None]), area(boxes)[:, None]
    if options.overlap == "iou":
        whole = whole + area(corners)[image] - inside
    enough = np.zeros(offsets.shape[:2], bool)
    enough[np.bincount(image, minlength=len(stored)) == 0] = True
    np.logical_or.at(enough, image, inside >= (least[image, None] - _SLACK) * whole)
    chosen &= enough.any(axis=1)
    # argmax is the first of equals.
    first = np.arange(len(stored)), enough.argmax(axis=1)
    return np.where(chosen[:, None], offsets[first], 0), np.where(chosen[:, None], windows[first], stored)


def random_windows(
    size: np.ndarray, draws: np.ndarray, share: tuple[float, float], aspect: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Windows with a share of the image's area drawn evenly and an aspect (width / height) drawn log-uniformly.

    The range of the aspect is narrowed to what fits into the image at the area drawn, so that no draw is in vain.

    Args:
        size: [n,2] sizes of the images, at least 1 pixel.
        draws: [n,k,4] for k windows in each image.

    Returns:
        offsets and sizes [n,k,2] pixels; sizes are at least 1.
    """
    height, width = size[:, None, 0].astype(np.float64), size[:, None, 1].astype(np.float64)
    pixels = height * width * (share[0] + draws[..., 0] * (share[1] - share[0]))
    low, high = (np.log(np.maximum(np.minimum(end, width**2 / pixels), pixels / height**2)) for end in aspect)
    ratio = np.exp(low + draws[..., 1] * (high - low))
    sides = np.sqrt(np.stack([pixels / ratio, pixels * ratio], axis=2))
    windows = np.clip(_round(sides), 1, size[:, None])
    return (draws[..., 2:] * (size[:, None] - windows + 1)).astype(np.int64), windows


def halvings(views: Views) -> np.ndarray:
    """[n]: number of times that a JPEG can be halved as it is decoded without a side of the window below its content's.

    libjpeg computes such an image from the low frequencies of each block, so that it costs less to decode and to
    resize, and what is finer than its pixels is filtered away before the bilinear resize, which does no antialiasing.
    What is left for that resize is a shrink by less than 2 in the side that shrinks less (or beyond the 8th). A reduced
    pixel (x, y) covers the square of stored pixels [x r, (x + 1) r) x [y r, (y + 1) r), r being 2 to the power of
    `halvings`.
    """
    return possible_halvings((views.window // views.content).min(axis=1))


def possible_halvings(shrink: np.ndarray) -> np.ndarray:
    """Number of times that an image shown at 1 / `shrink` of its size can be halved: 0 to `MOST_HALVINGS`."""
    return np.digitize(shrink, [2**k for k in range(1, MOST_HALVINGS + 1)])


def snapped(views: Views, halvings: np.ndarray) -> Views:
    """The views with windows shrunk to whole reduced pixels: less than one of them is lost at each edge."""
    shift = halvings[:, None]
    return views._replace(offset=views.offset >> shift << shift, window=views.window >> shift << shift)


def scale(views: Views) -> np.ndarray:
    """[n,2] float32: canvas pixels per pixel of the stored image."""
    return views.content.astype(np.float32) / views.window.astype(np.float32)


def moved(objects: Objects, views: Views, mirrored: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """The boxes [m,4] in pixels of their content, moved and flipped with it.

    Args:
        mirrored: [n] bool, flipped left and right; so is `turned`, top and bottom.
    """
    image = objects.image
    boxes = objects.boxes.reshape(-1, 2, 2) - views.offset.astype(np.float32)[image][:, None, ::-1]
    boxes = boxes * scale(views)[image][:, None, ::-1]
    for axis, flips in ((0, mirrored), (1, turned)):
        if flips.any():
            opposite = views.content[image, 1 - axis].astype(np.float32)[:, None] - boxes[:, ::-1, axis]
            boxes[..., axis] = np.where(flips[image][:, None], opposite, boxes[..., axis])
    return boxes.reshape(-1, 4)


def cut(
    boxes: np.ndarray, ignored: np.ndarray, limits: np.ndarray, options: config.Augment
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [m,4] cut to their (height, width) `limits` [m,2], and which stay [m]; see `retina.config.Augment`."""
    corners = np.concatenate([limits, limits], axis=1)[:, ::-1].astype(np.float32)
    left = np.minimum(np.maximum(boxes, np.float32(0)), corners)
    if options.keep == "centre":
        centre = (boxes[:, :2] + boxes[:, 2:]) / np.float32(2)
        stays = ((centre >= 0) & (centre <= corners[:, :2])).all(axis=1)
    else:
        stays = area(left) >= np.float32(options.min_visible - _SLACK) * area(boxes)
    return left, (stays | ignored) & (left[:, 2:] - left[:, :2] >= _LEAST_SIDE).all(axis=1)


def hidden_share(boxes: np.ndarray, offset: np.ndarray, window: np.ndarray) -> np.ndarray:
    """[m]: the share of each box [m,4] inside its window, `offset` and `window` [m,2]; 0 of a box without area."""
    corners = np.concatenate([offset[:, ::-1], (offset + window)[:, ::-1]], axis=1)
    whole = area(boxes)
    return np.divide(_common(corners, boxes), whole, out=np.zeros(len(boxes)), where=whole > 0)


def area(boxes: np.ndarray) -> np.ndarray:
    """Areas [...] of boxes [...,4]."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _common(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    return np.maximum(sides, 0).prod(axis=-1)


def _round(sides: np.ndarray) -> np.ndarray:
    return np.round(sides).astype(np.int64)


def draw(seed: int, samples: np.ndarray, place: int = Place.FIRST) -> np.ndarray:
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
    # Past the counters of every draw.
    return _generator(seed, Place.FIRST, (sample + 1) << 64).integers(0, 256, shape, np.uint8)


def batch_choice(seed: int, step: int, count: int) -> int:
    """A number from 0 to `count` - 1 for a whole batch, evenly."""
    return int(draw(seed, np.array([step]), Place.BATCH)[0, 0, 0] * count)


def _generator(seed: int, place: int, counter: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, _KEYS + place], np.uint64), counter=counter))


@functools.cache
def _quantiles(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    # With x = sin(t)^2 the density of t is (sin t cos t)^(2 alpha - 1), which is smooth where that of x is not.
    cells = 16 * _QUANTILES
    angle = (np.arange(cells) + 0.5) * (math.pi / 2 / cells)
    logs = (2 * alpha - 1) * np.log(np.sin(angle) * np.cos(angle))
    mass = np.concatenate([[0.0], np.cumsum(np.exp(logs - logs.max()))])
    edges = np.sin(np.arange(cells + 1) * (math.pi / 2 / cells)) ** 2
    shares = np.linspace(0, 1, _QUANTILES + 1)
    return shares, np.interp(shares, mass / mass[-1], edges)


def beta(drawn: np.ndarray, alpha: float) -> np.ndarray:
    """Quantiles of Beta(alpha, alpha) at `drawn` in [0, 1): turns an even draw into one of that distribution.

    Read from a table of 8,193 quantiles, linear in between, so that a draw is the same on every machine and version.
    """
    return np.interp(drawn, *_quantiles(alpha))


def blend(image: np.ndarray, other: np.ndarray, weight: float) -> None:
    """Mixes another image [h,w,3] uint8 into `image`, which keeps the share `weight`; to the nearest level."""
    import cv2

    cv2.addWeighted(image, weight, other, 1 - weight, 0, dst=image)


def distort(image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float) -> None:
    """Changes the colours of an image [h,w,3] uint8 of any size.

    Multiplies by `brightness`, blends with the mean grey by `contrast` and with the pixel's grey by `saturation`
    (1: no change, 0: nothing of the image is left), and turns the hue by `hue` full circles, as a turn in YIQ. All of
    these are linear in (R, G, B), so that their product is a matrix and an offset: a single pass, in which nothing is
    rounded or clipped but the result.
    """
    import cv2

    if not image.size:
        return
    angle = 2 * math.pi * hue
    turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    grey = np.tile(_LUMA, (3, 1))
    matrix = np.linalg.inv(_YIQ) @ turn @ _YIQ @ (saturation * np.eye(3) + (1 - saturation) * grey)
    offset = brightness * (1 - contrast) * (_LUMA @ mean_colour(image))
    affine = np.concatenate([brightness * contrast * matrix, np.full((3, 1), offset)], axis=1)
    image[:] = cv2.transform(image, affine)


def mean_colour(image: np.ndarray) -> np.ndarray:
    """[3]: the mean of every fourth row and column of an image [h,w,3] uint8."""
    import cv2

    return np.array(cv2.mean(np.ascontiguousarray(image[::_SPACING, ::_SPACING]))[:3])


def erase(image: np.ndarray, offset: list[int], size: list[int], noise: np.ndarray | None) -> None:
    """Fills a rectangle of an image (arXiv:1708.04896) with noise of its size, or with the image's mean colour."""
    (top, left), (height, width) = offset, size
    image[top : top + height, left : left + width] = np.round(mean_colour(image)) if noise is None else noise


def _evenly(drawn: np.ndarray, count: int) -> np.ndarray:
    """Numbers from 0 to `count` - 1."""
    return (drawn * count).astype(np.int64)
