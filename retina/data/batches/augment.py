"""Examples for training out of stored images: alone or as a mosaic, blended, then with other colours, then erased.

Draws are laid out for a whole batch before an image is read (`lay_out`); the functions of pixels work on one
image each, in any thread.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from retina import config
from retina.data.batches import draws as chance
from retina.data.batches import views as geometry
from retina.data.batches.draws import Place, Stream
from retina.data.batches.views import Objects, Views
from retina.data.dataset import DetectionDataset

_QUANTILES = 8192

# ITU-R BT.601, as in Pillow and torchvision.
_LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
# The mean grey is that of every fourth row and column.
_SPACING = 4


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
    draws = chance.table(seed, samples)
    mosaic = draws[:, Stream.MOSAIC_CHANCE, 0] < options.mosaic.probability
    content = np.where(mosaic[:, None], canvas, 0)
    groups = []

    def add(chosen: np.ndarray, rows: np.ndarray, place: Place, corner: np.ndarray, tile: np.ndarray | None) -> None:
        """Adds an image to the examples `chosen` [n] bool, alone or covering its `tile` [n,2]."""
        example = np.flatnonzero(chosen)
        if not len(example):
            return
        drawn = chance.table(seed, samples[example], place) if place else draws[chosen]
        rows = rows[example]
        # Nothing but a crop looks at the objects.
        stored, objects = table.sizes[rows], table.objects(rows[: len(rows) if options.crop.probability else 0])
        if tile is None:
            views = geometry.alone(stored, resized[example], canvas, objects, drawn, options)
            content[example] = views.content
        else:
            views = geometry.covering(stored, tile[example], objects, drawn, options)
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
        holes = geometry.random_windows(content, windows, options.erase.area, options.erase.aspect)
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
    boxes = geometry.moved(objects, views, parts.mirrored, parts.turned)
    boxes, stays = geometry.cut(boxes, objects.ignored, views.content[objects.image], options)
    boxes += np.tile(parts.corner[objects.image, ::-1], 2).astype(np.float32)
    example, ignored = parts.example[objects.image], objects.ignored
    if layout.erased.any():
        hidden = geometry.hidden_share(boxes, layout.hole[0][example], layout.hole[1][example])
        ignored = ignored | layout.erased[example] & (hidden > options.erase.most_hidden)
    counts = np.bincount(example, minlength=count)
    slot = (np.arange(len(example)) - np.repeat(np.cumsum(counts) - counts, counts))[stays]
    batch = {
        "boxes": np.zeros((count, slots, 4), np.float32),
        "labels": np.zeros((count, slots), np.int32),
        "valid": np.zeros((count, slots), bool),
        "crowd": np.zeros((count, slots), bool),
        "scale": geometry.scale(views)[np.searchsorted(parts.example, np.arange(count))],
    }
    place = example[stays], slot
    batch["boxes"][place] = boxes[stays]
    batch["labels"][place] = objects.labels[stays]
    batch["valid"][place] = True
    batch["crowd"][place] = ignored[stays]
    return batch


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
