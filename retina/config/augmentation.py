"""The section `data.augment`: what training does to an image by chance. Everything but the flip is off by default."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from retina.config.values import Float, Fraction, PositiveFloat, Section

_Share = Annotated[Float, Field(gt=0, le=1)]
_Inner = Annotated[Float, Field(gt=0, lt=1)]
_Turn = Annotated[Float, Field(ge=0, le=0.5)]


def _changed(section: Section, names: list[str]) -> list[str]:
    """Which of the settings differ from their default; a resolved file spells out defaults, and must stay valid."""
    return [name for name in names if getattr(section, name) != type(section).model_fields[name].default]


def _check_range(name: str, given: tuple[float, float]) -> None:
    if given[1] < given[0]:
        raise ValueError(f"{name} must be (low, high) with low <= high, got {given}")


class _Chance(Section):
    """An augmentation that an image gets with the given probability; at 0 its other settings must be the defaults."""

    probability: Fraction = 0.0

    @model_validator(mode="after")
    def _effective(self) -> _Chance:
        idle = _changed(self, [name for name in type(self).model_fields if name != "probability"])
        if self.probability == 0 and idle:
            raise ValueError(f"{', '.join(idle)} without effect while probability is 0; set probability, or leave out")
        return self


class Crop(_Chance):
    """Random crop to a window, which is then enlarged until it touches the image's evaluation size.

    `area` is the window's share of the image, `aspect` its width over height (log-uniform; narrowed where the window
    would not fit). Of 16 windows the first is taken that overlaps one box that counts by at least an amount drawn from
    `least`; if there is none, the image stays whole (arXiv:1512.02325, section 2.2). `overlap` says how that is
    measured: `iou` of window and box, or `visible`, the share of the box inside the window. An image without boxes
    that count takes the first window.
    """

    area: tuple[_Share, _Share] = (0.3, 1.0)
    aspect: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    overlap: Literal["iou", "visible"] = "iou"
    least: tuple[Fraction, ...] = Field(default=(0.0, 0.1, 0.3, 0.5, 0.7, 0.9), min_length=1)

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
    """Colour distortion: brightness, contrast, saturation and hue, in this order, rounded and clipped once at the end.

    The first three are factors drawn evenly from [1 - x, 1 + x]; `hue` is the largest turn of the colour circle, 0.5
    being half of it. Contrast is about the image's mean grey, hue turns in YIQ, so that greys stay as they are.
    """

    brightness: Fraction = 0.2
    contrast: Fraction = 0.4
    saturation: Fraction = 0.4
    hue: _Turn = 0.03

    @model_validator(mode="after")
    def _valid(self) -> Colour:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError("brightness, contrast, saturation and hue are all 0: give one, or set probability to 0")
        return self


class Mosaic(_Chance):
    """Four images on one canvas (arXiv:2004.10934, section 3.4), each covering its quarter; three are drawn evenly.

    `centre` is the range of the point where they meet, as a share of the canvas' sides. Every image is zoomed as little
    as covers its quarter, times `augment.scale` where that is above 1. Costs four times the decoding and room for four
    times the boxes in every batch (time and memory of the assignment grow with it).
    """

    centre: tuple[_Inner, _Inner] = (0.25, 0.75)

    @model_validator(mode="after")
    def _valid(self) -> Mosaic:
        _check_range("centre", self.centre)
        return self


class Mixup(_Chance):
    """The image blended with another one, zoomed as little as covers it; the weight is drawn from Beta(alpha, alpha).

    The boxes of both count in full, whatever the weight (as in YOLOX, arXiv:2107.08430). Costs twice the decoding and
    room for the boxes of one more image.
    """

    alpha: Annotated[Float, Field(ge=0.1, le=100)] = 1.5


class Erase(_Chance):
    """Random erasing of one rectangle (arXiv:1708.04896): `area` is its share of the image, `aspect` width over height.

    `fill` is noise or the image's mean colour. A box of which more than `most_hidden` is erased is ignored by the
    training, like a crowd: neither object nor background; 1.0 never does that.
    """

    area: tuple[_Share, _Share] = (0.02, 0.33)
    aspect: tuple[PositiveFloat, PositiveFloat] = (0.3, 3.3)
    fill: Literal["random", "mean"] = "random"
    most_hidden: Fraction = 0.7

    @model_validator(mode="after")
    def _valid(self) -> Erase:
        _check_range("area", self.area)
        _check_range("aspect", self.aspect)
        return self


class Augment(Section):
    """Training only. `scale` is the range of the random zoom (log-uniform) relative to the evaluation size.

    Where an image is cut, `keep` says which boxes stay: `centre` those whose centre is inside, `area` those of which
    at least the share `min_visible` is; at least 1 pixel of each side must be left. Crowds and difficult boxes need
    only the latter, since what is left of them must still not count as background.
    """

    horizontal_flip: Fraction = 0.5
    vertical_flip: Fraction = 0.0
    scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    keep: Literal["centre", "area"] = "centre"
    min_visible: Fraction = 0.25
    crop: Crop = Crop()
    colour: Colour = Colour()
    mosaic: Mosaic = Mosaic()
    mixup: Mixup = Mixup()
    erase: Erase = Erase()

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
