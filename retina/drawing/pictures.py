"""Boxes drawn on images, and sheets of such images.

Only NumPy and Pillow draw here; the typeface is the DejaVu Sans that matplotlib ships.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from retina.errors import RetinaError
from retina.palette import BLACK, WHITE, Colour, class_colours

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

Rectangle = tuple[int, int, int, int]

_LONGEST_NAME = 28


@dataclass(frozen=True)
class Style:
    """Style of drawn pictures. `None` takes the size from the picture's.

    Attributes:
        line_width: of the outlines, in pixels of the picture drawn.
        font_size: of the chips, in pixels of the picture drawn.
        min_side: an image whose long side is below this is enlarged by the smallest whole factor that reaches it.
        chips: whether class names and scores are written.
    """

    line_width: int | None = None
    font_size: int | None = None
    min_side: int = 480
    chips: bool = True


def draw(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    scores: np.ndarray | None = None,
    style: Style | None = None,
    *,
    truth_boxes: np.ndarray | None = None,
    truth_labels: np.ndarray | None = None,
    colours: Sequence[Colour] | None = None,
) -> np.ndarray:
    """Draw detections on an image, each an outline in the colour of its class and a chip with name and score.

    Chips take a free place around their box and stay inside the picture; where none is left, the outline's colour alone
    shows the class. Ground truth is a thin dashed white line; it is thicker and has a chip only where no
    detection of its class overlaps it by half (IoU), so that what was missed stands out.

    Args:
        image: [H, W, 3] uint8 RGB.
        boxes: [n, 4] xyxy in the image's pixels; what lies outside is cut off, or left out altogether.
        labels: [n] indices into `class_names`.
        class_names: K names.
        scores: [n], written with two digits; higher ones are drawn over lower ones.
        style: sizes; the default suits screens.
        truth_boxes: [m, 4], like `boxes`.
        truth_labels: [m], like `labels`.
        colours: of the K classes; the default goes by their names.

    Returns:
        [H * f, W * f, 3] uint8, where the whole number f is 1 unless the image is small (see `Style.min_side`).

    Raises:
        RetinaError: an array has the wrong shape or type, a number is not finite, or a label has no name.
    """
    style = style or Style()
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise RetinaError(
            f"draw: expected an image [H, W, 3] of uint8, got {list(image.shape)} of {image.dtype}; convert it to RGB"
        )
    factor = max(1, math.ceil(style.min_side / max(image.shape[:2])))
    canvas = _resized(image, factor)
    detections = _shapes("boxes", boxes, labels, scores, class_names, image.shape, factor)
    truth = _shapes("truth_boxes", truth_boxes, truth_labels, None, class_names, image.shape, factor)
    missed = [shape for shape in truth if not _is_found(shape, detections)]
    pen = _pen(style, math.sqrt(canvas.shape[0] * canvas.shape[1]), len(detections) + len(missed))
    colours = class_colours(class_names) if colours is None else colours
    for shape in detections:
        _outline(canvas, shape.box, pen.line, colours[shape.label])
    thin = max(1, pen.line // 2)
    for shape in truth:
        _outline(canvas, shape.box, thin + (shape in missed), WHITE, dash=3 * pen.line)
    if style.chips:
        grounds = [*(WHITE for _ in missed), *(colours[shape.label] for shape in detections)]
        _draw_chips(canvas, [*missed, *detections], grounds, pen)
    return canvas


def contact_sheet(
    images: Sequence[np.ndarray],
    columns: int,
    *,
    gap: int = 12,
    max_side: int = 720,
    background: Colour = WHITE,
) -> np.ndarray:
    """Return images side by side, row by row, centred in a grid whose rows and columns fit their largest image.

    Args:
        images: each [h, w, 3] uint8, of any size.
        columns: images a row.
        gap: pixels between images and around them.
        max_side: images with a longer side are reduced to it.
        background: colour of the gaps.

    Returns:
        [H, W, 3] uint8.

    Raises:
        RetinaError: there is no image, or `columns` is below 1.
    """
    if not len(images) or columns < 1:
        raise RetinaError(
            f"contact_sheet: expected at least one image and one column, got {len(images)} and {columns}; "
            "leave the sheet out where there is nothing to show"
        )
    cells = [_resized(image, min(1.0, max_side / max(image.shape[:2]))) for image in images]
    columns = min(columns, len(cells))
    widths = [max(cell.shape[1] for cell in cells[column::columns]) for column in range(columns)]
    heights = [max(cell.shape[0] for cell in cells[row : row + columns]) for row in range(0, len(cells), columns)]
    sheet = np.empty((sum(heights) + gap * (len(heights) + 1), sum(widths) + gap * (columns + 1), 3), np.uint8)
    sheet[:] = background
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        top = gap + sum(heights[:row]) + gap * row + (heights[row] - cell.shape[0]) // 2
        left = gap + sum(widths[:column]) + gap * column + (widths[column] - cell.shape[1]) // 2
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return sheet


# ------------------------------------------------------------------------------------------------------- inputs


class _Pen(NamedTuple):
    line: int
    font: FreeTypeFont


@dataclass(frozen=True, eq=False)
class _Shape:
    box: np.ndarray
    label: int
    text: str


def _pen(style: Style, size: float, count: int) -> _Pen:
    """Sizes that grow with the picture; many boxes get smaller chips, as long as they can be read."""
    crowding = min(1.0, math.sqrt(20 / max(count, 1)))
    return _Pen(
        line=style.line_width or max(2, round(size / 200 * max(crowding, 0.75))),
        font=_font(style.font_size or max(11, round(size / 40 * crowding))),
    )


def _shapes(
    where: str,
    boxes: np.ndarray | None,
    labels: np.ndarray | None,
    scores: np.ndarray | None,
    class_names: Sequence[str],
    image_shape: tuple[int, ...],
    factor: int,
) -> list[_Shape]:
    """The boxes that touch the image, in the picture's pixels, the highest score last."""
    if boxes is None:
        return []
    boxes = np.asarray(boxes, np.float64)
    boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    columns = {
        "labels": np.asarray([] if labels is None else labels).reshape(-1),
        "scores": np.zeros(len(boxes)) if scores is None else np.asarray(scores).reshape(-1),
    }
    if boxes.ndim != 2 or boxes.shape[1] != 4 or any(len(column) != len(boxes) for column in columns.values()):
        got = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
        raise RetinaError(f"draw: {where}: expected [n, 4] with a label each, got {list(boxes.shape)} and {got}")
    if not (np.isfinite(boxes).all() and np.isfinite(columns["scores"]).all()):
        raise RetinaError(f"draw: {where}: expected finite boxes and scores, got NaN or infinity; drop those rows")
    labels = columns["labels"].astype(int)
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise RetinaError(
            f"draw: {where}: expected labels from 0 to {len(class_names) - 1}, got {labels.min()} to {labels.max()}; "
            "give the class names of the same data"
        )
    height, width = image_shape[:2]
    visible = (boxes[:, 0] < width) & (boxes[:, 1] < height) & (boxes[:, 2] > 0) & (boxes[:, 3] > 0)
    cut = np.clip(boxes, 0, [width, height, width, height]) * factor
    order = [row for row in np.argsort(columns["scores"], kind="stable") if visible[row]]
    return [_Shape(cut[row], int(labels[row]), _text(class_names[labels[row]], scores, row)) for row in order]


def _text(name: str, scores: np.ndarray | None, row: int) -> str:
    name = " ".join(str(name).split())
    if len(name) > _LONGEST_NAME:
        name = name[: _LONGEST_NAME - 1] + "…"
    return name if scores is None else f"{name} {float(scores[row]):.2f}"


def _is_found(truth: _Shape, detections: list[_Shape]) -> bool:
    return any(shape.label == truth.label and _iou(shape.box, truth.box) >= 0.5 for shape in detections)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    common = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common
    return float(common / union) if union > 0 else 0.0


# ------------------------------------------------------------------------------------------------------ drawing


def _outline(canvas: np.ndarray, box: np.ndarray, line: int, colour: Colour, dash: int | None = None) -> None:
    """Draw a rounded outline over a dark rim, which keeps it visible on a similar colour. Changes `canvas`."""
    height, width = canvas.shape[:2]
    # On the pixel grid straight lines are crisp; inside the picture by half a line, none of it is cut off.
    half = line / 2
    low = np.minimum(np.maximum(np.round(box[:2] - half) + half, half), np.array([width, height]) - half)
    high = np.minimum(np.maximum(np.round(box[2:] - half) + half, low), np.array([width, height]) - half)
    rim = max(1.0, line / 3)
    reach = math.ceil(half + rim + 1)
    radius = float(min(1.5 * line, *((high - low) / 2)))
    for strip in _frame(low, high, reach + math.ceil(radius), reach, width, height):
        distance, along = _distance(strip, low, high, radius)
        ink = np.clip(half + 0.5 - np.abs(distance), 0, 1)
        shade = 0.45 * np.clip(half + rim + 0.5 - np.abs(distance), 0, 1)
        if dash:
            on = along % (2 * dash) < dash
            ink, shade = ink * on, shade * on
        _blend(canvas, strip, BLACK, shade)
        _blend(canvas, strip, colour, ink)


def _frame(low: np.ndarray, high: np.ndarray, inner: int, outer: int, width: int, height: int) -> list[Rectangle]:
    """Four strips that cover the outline and not the box's inside: large boxes would make that slow."""
    x0, y0 = np.floor(low).astype(int) - outer
    x1, y1 = np.ceil(high).astype(int) + outer
    top = min(y0 + outer + inner, y1)
    bottom = max(y1 - outer - inner, top)
    left = min(x0 + outer + inner, x1)
    right = max(x1 - outer - inner, left)
    strips = [(x0, y0, x1, top), (x0, bottom, x1, y1), (x0, top, left, bottom), (right, top, x1, bottom)]
    return [(max(a, 0), max(b, 0), min(c, width), min(d, height)) for a, b, c, d in strips]


def _distance(strip: Rectangle, low: np.ndarray, high: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance [h, w] of pixel centres to a rounded rectangle, and position [h, w] along its nearest side."""
    x = np.arange(strip[0], strip[2])[None, :] + 0.5
    y = np.arange(strip[1], strip[3])[:, None] + 0.5
    centre, extent = (low + high) / 2, (high - low) / 2
    dx, dy = np.abs(x - centre[0]) - extent[0] + radius, np.abs(y - centre[1]) - extent[1] + radius
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    distance = outside + np.minimum(np.maximum(dx, dy), 0) - radius
    return distance, np.where(dx > dy, y - low[1], x - low[0])


def _blend(canvas: np.ndarray, area: Rectangle, colour: Colour, cover: np.ndarray) -> None:
    """Blend a colour into the area x0, y0, x1, y1 with the opacity `cover` [h, w] in [0, 1]. Changes `canvas`."""
    x0, y0, x1, y1 = area
    if x1 <= x0 or y1 <= y0:
        return
    patch = canvas[y0:y1, x0:x1].astype(np.float32)
    cover = cover.astype(np.float32)[..., None]
    canvas[y0:y1, x0:x1] = np.round(patch + (np.array(colour, np.float32) - patch) * cover).astype(np.uint8)


# -------------------------------------------------------------------------------------------------------- chips


def _draw_chips(canvas: np.ndarray, shapes: list[_Shape], colours: list[Colour], pen: _Pen) -> None:
    """Draw the chips of shapes, each in its colour. The last choose their place first."""
    height, width = canvas.shape[:2]
    taken: list[Rectangle] = []
    chips = []
    for rank in reversed(range(len(shapes))):
        size = _chip_size(shapes[rank].text, pen.font)
        if size[0] > width or size[1] > height:
            continue
        place = _place(shapes[rank].box, size, (width, height), taken, pen.line)
        if place is None:
            continue
        taken.append(place)
        chips.append((place, shapes[rank].text, colours[rank]))
    for place, text, colour in reversed(chips):
        _chip(canvas, place, text, colour, pen)


def _place(
    box: np.ndarray, size: tuple[int, int], bounds: tuple[int, int], taken: list[Rectangle], line: int
) -> Rectangle | None:
    """Place where a chip hides other chips least; of equals the first: above the box, in its corners, below, beside.

    None where more than a tenth of the chip would be hidden at each place.
    """
    w, h = size
    half = (line + 1) // 2
    x0, y0, x1, y1 = np.round(box).astype(int).tolist()
    left, right, middle = max(x0 - half, 0), min(x1 + half, bounds[0]) - w, (x0 + x1 - w) // 2
    corners = [(x, y) for y in (y0 - h, y0, y1, y1 - h) for x in (left, right)]
    sides = [(x1 + half, y0), (x0 - half - w, y0), (x1 + half, y1 - h), (x0 - half - w, y1 - h)]
    middles = [(middle, y) for y in (y0 - h, y0, y1, y1 - h, (y0 + y1 - h) // 2)]
    best, least = None, math.inf
    for x, y in corners + sides + middles:
        inside_x, inside_y = min(max(x, 0), bounds[0] - w), min(max(y, 0), bounds[1] - h)
        place = (inside_x, inside_y, inside_x + w, inside_y + h)
        hidden = sum(_common(place, other) for other in taken)
        # A chip that the picture's edge has moved over its own box comes after one that fits.
        cost = hidden + 0.1 * (abs(inside_y - y) * w + abs(inside_x - x) * h)
        if cost < least and hidden <= w * h / 10:
            best, least = place, cost
    return best


def _common(a: Rectangle, b: Rectangle) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _chip(canvas: np.ndarray, place: Rectangle, text: str, colour: Colour, pen: _Pen) -> None:
    from PIL import Image, ImageDraw

    low, high = np.array(place[:2], float), np.array(place[2:], float)
    distance, _ = _distance(place, low, high, min(float(pen.line), (high[1] - low[1]) / 2))
    _blend(canvas, place, colour, np.clip(0.5 - distance, 0, 1))
    mask = Image.new("L", (place[2] - place[0], place[3] - place[1]))
    # "ls" sets the baseline, so that words with and without descenders stand level.
    ascent = pen.font.getmetrics()[0]
    ImageDraw.Draw(mask).text((_padding(pen.font), _padding(pen.font) // 2 + ascent), text, 255, pen.font, anchor="ls")
    _blend(canvas, place, _text_colour(colour), np.asarray(mask, np.float32) / 255)


def _chip_size(text: str, font: FreeTypeFont) -> tuple[int, int]:
    ascent, descent = font.getmetrics()
    return math.ceil(font.getlength(text)) + 2 * _padding(font), ascent + descent + 2 * (_padding(font) // 2)


def _padding(font: FreeTypeFont) -> int:
    return max(3, round(font.size / 3))


def _text_colour(ground: Colour) -> Colour:
    """Black or white, whichever has the higher contrast ratio (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in ground)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return BLACK if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else WHITE


@functools.lru_cache(maxsize=16)
def _font(size: int) -> FreeTypeFont:
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _resized(image: np.ndarray, scale: float) -> np.ndarray:
    """A copy of [h, w, 3] with both sides times `scale`, at least 1 pixel each."""
    from PIL import Image

    if scale == 1:
        return image.copy()
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    method = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS
    return np.array(Image.fromarray(image).resize(size, method))
