"""The section `data.augment`: random changes of training images. Everything but the flip is off by default."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from retina.config.values import Float, Fraction, PositiveFloat, Section

_Share = Annotated[Float, Field(gt=0, le=1)]
_Inner = Annotated[Float, Field(gt=0, lt=1)]
_Turn = Annotated[Float, Field(ge=0, le=0.5)]


def _changed(section: Section, names: list[str]) -> list[str]:
    """The settings that differ from their default; a resolved file spells out defaults, and must stay valid."""
    return [name for name in names if getattr(section, name) != type(section).model_fields[name].default]


def _check_range(name: str, given: tuple[float, float]) -> None:
    if given[1] < given[0]:
        raise ValueError(f"{name} must be (low, high) with low <= high, got {given}")


class _Chance(Section):
    """An augmentation that an image gets with the given probability; at 0 its other settings must be the defaults."""

    probability: Fraction = 0.0
    """Chance that an image gets this augmentation, drawn for each image by itself; 0 switches it off, as by default."""

    @model_validator(mode="after")
    def _effective(self) -> _Chance:
        idle = _changed(self, [name for name in type(self).model_fields if name != "probability"])
        if self.probability == 0 and idle:
            raise ValueError(f"{', '.join(idle)} without effect while probability is 0; set probability, or leave out")
        return self


class Crop(_Chance):
    """Random crop to a window, which is then enlarged until it touches the image's evaluation size.

    16 windows are drawn, and the first is taken that overlaps a box that counts by enough (`least`); if there is none,
    the image stays whole (arXiv:1512.02325, section 2.2). An image without boxes that count takes the first window.
    """

    area: tuple[_Share, _Share] = (0.3, 1.0)
    """Range of the window's area as a share of the image's, drawn evenly."""

    aspect: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    """Range of the window's width over height, drawn log-uniformly; narrowed where the window would not fit.
    The default is that of arXiv:1512.02325, section 2.2."""

    overlap: Literal["iou", "visible"] = "iou"
    """Measure of overlap: `iou` of window and box, as in that paper, or `visible`, the share of the box inside the
    window."""

    least: tuple[Fraction, ...] = Field(default=(0.0, 0.1, 0.3, 0.5, 0.7, 0.9), min_length=1)
    """Amounts of overlap of which one is drawn for each image: a window must reach it with at least one box.
    The default are the paper's five, and 0 for any window."""

    @model_validator(mode="after")
    def _valid(self) -> Crop:
        _check_range("area", self.area)
        _check_range("aspect", self.aspect)
        if self.area[0] == 1:
            raise ValueError("area [1, 1] crops nothing away; lower its first number, or set probability to 0")
        if not any(self.least) and _changed(self, ["overlap"]):
            raise ValueError("overlap has no effect where least holds nothing but 0; leave it out")
        return self


class Colour(_Chance):
    """Colour distortion: brightness, contrast, saturation, hue, in this order; rounded and clipped once at the end."""

    brightness: Fraction = 0.2
    """Largest change x of the brightness, a factor drawn evenly from [1 - x, 1 + x]."""

    contrast: Fraction = 0.4
    """Largest change x of the contrast, a factor drawn evenly from [1 - x, 1 + x]; about the image's mean grey."""

    saturation: Fraction = 0.4
    """Largest change x of the saturation, a factor drawn evenly from [1 - x, 1 + x]; about each pixel's own grey."""

    hue: _Turn = 0.03
    """Largest turn of the colour circle, either way, in full circles (0.5 reaches every hue). It turns in YIQ, so that
    greys stay as they are."""

    @model_validator(mode="after")
    def _valid(self) -> Colour:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError("brightness, contrast, saturation and hue are all 0: give one, or set probability to 0")
        return self


class Mosaic(_Chance):
    """Four images on one canvas (arXiv:2004.10934, section 3.4), each covering its quarter; three are drawn from all.

    Every image is zoomed as little as covers its quarter, times `augment.scale` where that is above 1. Costs four times
    the decoding and room for four times the boxes in every batch (time and memory of the assignment grow with it).
    """

    centre: tuple[_Inner, _Inner] = (0.25, 0.75)
    """Range of the point where the four meet, as a share of the canvas' sides, drawn evenly for each side: no quarter
    gets narrower than a quarter of the canvas."""

    @model_validator(mode="after")
    def _valid(self) -> Mosaic:
        _check_range("centre", self.centre)
        return self


class Mixup(_Chance):
    """The image blended with another one that is drawn evenly and zoomed as little as covers it.

    The boxes of both count in full, whatever the weight (as in YOLOX, arXiv:2107.08430). Costs twice the decoding and
    room for the boxes of one more image.
    """

    alpha: Annotated[Float, Field(ge=0.1, le=100)] = 1.5
    """Parameter of Beta(alpha, alpha), from which the weight is drawn: 1 is an even draw, above it weights gather about
    0.5. 1.5 is that of arXiv:1902.04103."""


class Erase(_Chance):
    """Random erasing of one rectangle (arXiv:1708.04896). The defaults of its size are torchvision's."""

    area: tuple[_Share, _Share] = (0.02, 0.33)
    """Range of the rectangle's area as a share of the image's, drawn evenly."""

    aspect: tuple[PositiveFloat, PositiveFloat] = (0.3, 3.3)
    """Range of the rectangle's width over height, drawn log-uniformly; narrowed where it would not fit."""

    fill: Literal["random", "mean"] = "random"
    """Content of the rectangle: noise (`random`), as in the paper, or the image's mean colour."""

    most_hidden: Fraction = 0.7
    """Share of a box's area that may be erased: above it the training ignores the box, like a crowd: neither object nor
    background. 1.0 never does that."""

    @model_validator(mode="after")
    def _valid(self) -> Erase:
        _check_range("area", self.area)
        _check_range("aspect", self.aspect)
        return self


class Augment(Section):
    """Random changes of images, in training only."""

    horizontal_flip: Fraction = 0.5
    """Chance that an image is mirrored left to right, the only augmentation of arXiv:1708.02002 (section 4.1). Set 0
    where left and right differ, as in text."""

    vertical_flip: Fraction = 0.0
    """Chance that an image is mirrored top to bottom; for images without an up, such as those of a microscope."""

    scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    """Range of the random zoom, drawn log-uniformly, as a factor of the image's size at evaluation. What then exceeds
    the canvas is cut off at a random place; below 1 the canvas is padded more. [1, 1] is no zoom."""

    keep: Literal["centre", "area"] = "centre"
    """Rule by which boxes stay where an image is cut: `centre` those whose centre is inside, `area` those of which at
    least the share `min_visible` is. At least 1 pixel of each side must be left. Crowds and difficult boxes need only
    that pixel, since what is left of them must still not count as background."""

    min_visible: Fraction = 0.25
    """Share of a box's area that must be left for it to stay, with `keep: area`."""

    crop: Crop = Crop()
    """Random crop to a window of the image."""

    colour: Colour = Colour()
    """Colour distortion."""

    mosaic: Mosaic = Mosaic()
    """Four images on one canvas."""

    mixup: Mixup = Mixup()
    """Two images blended into one."""

    erase: Erase = Erase()
    """Random erasing of one rectangle."""

    @model_validator(mode="after")
    def _valid(self) -> Augment:
        _check_range("scale", self.scale)
        if self.keep == "centre" and _changed(self, ["min_visible"]):
            raise ValueError("min_visible has no effect with keep: centre; set keep: area, or leave it out")
        cuts = self.scale[1] > 1 or self.crop.probability or self.mosaic.probability or self.mixup.probability
        if not cuts and _changed(self, ["keep"]):
            raise ValueError("keep has no effect where nothing cuts an image (scale above 1, crop, mosaic, mixup)")
        if self.mosaic.probability == 1 and self.scale != (1.0, 1.0) and self.scale[1] <= 1:
            raise ValueError(
                "scale has no effect up to 1 where mosaic.probability is 1; raise its end, or leave it out"
            )
        return self
