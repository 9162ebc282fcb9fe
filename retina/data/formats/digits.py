"""The built-in set: real handwritten digits composed onto cluttered colour backgrounds, made in memory.

The handwriting is the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI Machine
Learning Repository, 1998; 1,797 digits of 8 x 8 pixels) as scikit-learn ships it: no download. The samples of the three
splits are disjoint; their writers are not recorded there and may be shared.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from retina.data.dataset import DetectionDataset, RawObjects, Records, build
from retina.data.detections import to_xywh

# Of each 20 samples of a class, in scikit-learn's order: 14 train, 3 validate, 3 test.
_SPLITS = {"train": range(0, 14), "validation": range(14, 17), "test": range(17, 20)}
_GLYPH = 64  # pixels of a glyph's side, ink and margin
_INK = 0.5  # opacity from which a pixel belongs to the digit
_ANGLE = 12.0  # degrees
_ASPECT = 1.12
_CONTRAST = 80.0  # least difference in luma (0 to 255) between a digit and the mean of its background
_EMPTY = 0.02  # share of images without a digit
_OVERLAP = 0.1  # IoU that the boxes of two digits stay below
_NOISE = 5  # gray levels
_VISIBLE = [255 * (level >= 12) for level in range(256)]  # of the opacities 0 to 255, those that show at all
_TRIES = 12  # places tried for a digit before it is left out
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


class _Handwriting(NamedTuple):
    glyph: Callable[[int], Image.Image]  # by its place in `labels`: [_GLYPH,_GLYPH] opacity, 0 to 255
    labels: list[int]


class _Style(NamedTuple):
    """Of all images of a set: side in pixels, most digits, range of their heights relative to the side."""

    size: int
    most: int
    height: tuple[float, float]


def read_digits(
    split: Literal["train", "validation", "test"],
    images: int,
    size: int = 128,
    seed: int = 0,
    *,
    most: int = 6,
    height: tuple[float, float] = (22 / 128, 64 / 128),
    single_class: bool = False,
) -> DetectionDataset:
    """Return the table of `digits_records`."""
    return build(digits_records(split, images, size, seed, most=most, height=height, single_class=single_class))


def digits_records(
    split: Literal["train", "validation", "test"],
    images: int,
    size: int,
    seed: int,
    *,
    most: int,
    height: tuple[float, float],
    single_class: bool,
) -> Records:
    """Draw `images` square pictures of `size` pixels as PNG, with 0 to `most` digits each, classes "0" to "9" (ids 0 to
    9), or with `single_class` all of class "digit" (id 0).

    Image i depends on i and the other arguments but `images`, so a longer set begins with the shorter one. The heights
    of the digits are log-uniform over the range `height`, relative to the image's side: about 22 to 64 pixels at size
    128. Each box is the tight box of the ink that is visible.
    """
    handwriting = _load(split)
    code = list(_SPLITS).index(split)
    style = _Style(size, most, height)
    drawn = [_compose(handwriting, style, np.random.default_rng([seed, code, i])) for i in range(images)]
    image = np.repeat(np.arange(images), [len(labels) for _, _, labels in drawn])
    boxes = np.array([box for _, of_image, _ in drawn for box in of_image], np.float64).reshape(-1, 4)
    values = np.array([value for _, _, labels in drawn for value in labels], np.int32)
    xywh, none = to_xywh(boxes), np.zeros(len(boxes), np.bool_)
    raw = RawObjects(
        image=image,
        boxes=boxes,
        xywh=xywh,
        given=boxes,
        extent=xywh[:, 2:],
        labels=np.zeros_like(values) if single_class else values,
        crowd=none,
        difficult=none,
        areas=np.full(len(boxes), np.nan),
    )
    return Records(
        f"digits/{split}",
        {"digit": 0} if single_class else {str(digit): digit for digit in range(10)},
        range(images),
        [encoded for encoded, _, _ in drawn],
        np.full((images, 2), size, np.int32),
        raw,
        lambda row: f"digit {row} (image {image[row]})",
    )


def sample_rows(targets: np.ndarray, split: str) -> np.ndarray:
    """The rows of scikit-learn's digits that a split writes with, given all their classes [1797]; stratified."""
    nth = np.empty(len(targets), np.int64)
    for digit in np.unique(targets):
        rows = np.flatnonzero(targets == digit)
        nth[rows] = np.arange(len(rows))
    return np.flatnonzero(np.isin(nth % 20, list(_SPLITS[split])))


def _load(split: str) -> _Handwriting:
    from sklearn.datasets import load_digits  # half a second that only this source should cost

    bunch = load_digits()
    rows = sample_rows(bunch.target, split)
    # A few images need a few digits: each is enlarged when it is first asked for.
    return _Handwriting(cache(lambda number: _glyph(bunch.images[rows[number]])), bunch.target[rows].tolist())


def _glyph(pixels: np.ndarray) -> Image.Image:
    """One digit, [8,8] of 0 to 16, enlarged to smooth strokes with steep edges."""
    padded = np.zeros((12, 12), np.float32)
    padded[2:10, 2:10] = pixels / 16.0
    large = Image.fromarray(padded).resize((_GLYPH, _GLYPH), Image.Resampling.BICUBIC)
    # A higher bar where there is much ink around keeps the loops of 4, 6, 8 and 9 open.
    around = Image.fromarray(padded).resize((6, 6), Image.Resampling.BOX).resize(large.size, Image.Resampling.BICUBIC)
    opacity = np.clip((np.asarray(large) - 0.12 - 0.55 * np.asarray(around)) / 0.28, 0.0, 1.0)
    return Image.fromarray((opacity * opacity * (3 - 2 * opacity) * 255).astype(np.uint8))


def _compose(
    handwriting: _Handwriting, style: _Style, rng: np.random.Generator
) -> tuple[bytes, list[tuple[int, int, int, int]], list[int]]:
    """One picture: PNG bytes, boxes xyxy and labels."""
    size = style.size
    canvas = np.array(_background(handwriting, size, rng), np.float32)
    taken = np.zeros((size, size), np.bool_)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    count = 0 if rng.random() < _EMPTY else int(rng.integers(1, style.most + 1))
    for _ in range(count):
        row = int(rng.integers(len(handwriting.labels)))
        opacity = _pose(handwriting.glyph(row), style, rng)
        place = _place(opacity, taken, boxes, size, rng)
        if place is None:
            continue
        _ink(canvas, opacity, place, rng)
        x1, y1, x2, y2 = place
        taken[y1:y2, x1:x2] |= opacity > 0
        boxes.append(_tight(opacity, place))
        labels.append(handwriting.labels[row])
    canvas += rng.integers(-_NOISE, _NOISE + 1, canvas.shape, dtype=np.int8)
    buffer = io.BytesIO()
    picture = Image.fromarray(np.clip(np.rint(canvas), 0, 255).astype(np.uint8))
    # Matches don't pay in noise: Huffman coding alone is both faster and smaller here.
    picture.save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_HUFFMAN_ONLY)
    return buffer.getvalue(), boxes, labels


def _pose(glyph: Image.Image, style: _Style, rng: np.random.Generator) -> np.ndarray:
    """The glyph turned, stretched and scaled: opacity [h,w] 0 to 1, cropped to what shows at all."""
    turned = glyph.rotate(rng.uniform(-_ANGLE, _ANGLE), Image.Resampling.BICUBIC)
    box = turned.point(_VISIBLE).getbbox()
    assert box is not None, "every glyph has ink"
    low, high = np.log(style.height)
    height = style.size * np.exp(rng.uniform(low, high))
    ratio = (box[2] - box[0]) / (box[3] - box[1]) * np.exp(rng.uniform(-1, 1) * np.log(_ASPECT))
    wanted = (max(4, round(height * ratio)), round(height))
    small = np.asarray(turned.resize(wanted, Image.Resampling.BICUBIC, box=box), np.float32)
    return small / 255.0


def _place(
    opacity: np.ndarray, taken: np.ndarray, boxes: list[tuple[int, int, int, int]], size: int, rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """A random place inside the image where no ink meets ink and no box overlaps much; None if there was none."""
    height, width = opacity.shape
    for left, top in rng.random((_TRIES, 2)):
        x, y = 1 + int(left * (size - width - 1)), 1 + int(top * (size - height - 1))
        place = (x, y, x + width, y + height)
        if any(_iou(place, box) >= _OVERLAP for box in boxes):
            continue
        if not (taken[y : y + height, x : x + width] & (opacity > 0)).any():
            return place
    return None


def _ink(canvas: np.ndarray, opacity: np.ndarray, place: tuple[int, int, int, int], rng: np.random.Generator) -> None:
    """Draw on `canvas` in a random colour that stands out from what it covers."""
    x1, y1, x2, y2 = place
    patch = canvas[y1:y2, x1:x2]
    color = _contrasting(float(patch.mean((0, 1)) @ _LUMA), rng)
    patch += opacity[..., None] * (color - patch)


def _contrasting(luma: float, rng: np.random.Generator) -> np.ndarray:
    """A random RGB colour whose luma differs from `luma` by at least `_CONTRAST`."""
    darker, brighter = luma - _CONTRAST, 255.0 - _CONTRAST - luma
    room = max(darker, 0.0) + max(brighter, 0.0)
    # Uniform over the allowed lumas: below `darker`, or from there on above the gap.
    target = rng.random() * room
    if target > max(darker, 0.0):
        target += luma + _CONTRAST - max(darker, 0.0)
    color = rng.uniform(0.0, 255.0, 3).astype(np.float32)
    present = float(color @ _LUMA)
    if target < present:
        return color * np.float32(target / present)
    return color + (255.0 - color) * np.float32((target - present) / (255.0 - present))


def _tight(opacity: np.ndarray, place: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    rows, columns = (np.flatnonzero((opacity >= _INK).any(axis)) for axis in (1, 0))
    x, y = place[:2]
    return x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1


def _iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _background(handwriting: _Handwriting, size: int, rng: np.random.Generator) -> Image.Image:
    """A soft gradient with ellipses, rectangles, lines, arcs and bits of strokes in neighbouring colours."""
    knots = int(rng.integers(2, 5))
    base = rng.uniform(50, 205, 3)
    colors = np.clip(base + rng.normal(0, 30, (knots, knots, 3)), 20, 235).astype(np.uint8)
    picture = Image.fromarray(colors).resize((size, size), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for kind in rng.integers(0, 4, int(rng.integers(4, 13))):
        x, y = rng.uniform(-0.1, 1.0, 2) * size
        width, height = rng.uniform(0.05, 0.5, 2) * size
        color = _near(base, rng)
        stroke = max(1, round(size / 128 * rng.uniform(1, 3)))
        corners = [x, y, x + width, y + height]
        if kind == 0:
            draw.ellipse(corners, fill=color)
        elif kind == 1:
            draw.line([x, y, x + rng.choice((-1, 1)) * width * 2, y + height * 2], fill=color, width=stroke)
        elif kind == 2:
            start = rng.uniform(0, 360)
            draw.arc(corners, start, start + rng.uniform(60, 200), fill=color, width=stroke)
        else:
            draw.polygon([tuple(p) for p in (rng.uniform(0, 0.35, (3, 2)) * size + (x, y)).tolist()], fill=color)
    for _ in range(int(rng.integers(0, 4))):
        _fragment(picture, handwriting, size, rng)
    return picture


def _fragment(picture: Image.Image, handwriting: _Handwriting, size: int, rng: np.random.Generator) -> None:
    """A piece of a digit's stroke, too small to read: what a detector must learn to leave alone."""
    glyph = handwriting.glyph(int(rng.integers(len(handwriting.labels))))
    x, y = rng.integers(16, 32, 2).tolist()
    side = int(rng.integers(14, 20))
    length = round(size * rng.uniform(0.04, 0.14))
    piece = glyph.resize((length, length), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))
    left, top = (rng.random(2) * (size - length)).astype(int).tolist()
    color = _near(rng.uniform(0, 255, 3), rng)
    picture.paste(color, (left, top), piece)


def _near(base: np.ndarray, rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = np.clip(base + rng.normal(0, 28, 3), 10, 245).astype(int).tolist()
    return red, green, blue
