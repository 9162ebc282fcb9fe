"""The section `data`: where images and boxes come from, and how an image becomes a canvas."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Union

from pydantic import Field, field_validator, model_validator

from retina.config.values import (
    Float,
    Fraction,
    Int,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)


class CocoSource(Section):
    """A COCO JSON file and the folder that holds its images."""

    format: Literal["coco"] = "coco"
    annotations: Path
    images: Path


class VocSource(Section):
    """Pascal VOC XML: `folder` holds `VOC2007`-like year folders, or `Annotations` itself.

    `splits` names files of `ImageSets/Main`: `2007/trainval` in a devkit with year folders, `train` in a bare one.
    """

    format: Literal["voc"] = "voc"
    folder: Path = Path(".")
    splits: tuple[str, ...] = Field(min_length=1)


# The share of the image's side that the widest digit, turned and stretched, still fits into.
DigitHeight = Annotated[Float, Field(gt=0, le=0.6)]


class DigitsSource(Section):
    """The built-in digits: generated in memory, no files. The handwriting in `train` and `validation` is disjoint.

    An image has at most `most` digits, of a height in the range `height` relative to the image's side. The classes are
    "0" to "9", or with `single_class` just "digit".
    """

    format: Literal["digits"] = "digits"
    split: Literal["train", "validation", "test"] = "train"
    images: PositiveInt = 1000
    size: Annotated[Int, Field(ge=64)] = 128
    most: PositiveInt = 6
    height: tuple[DigitHeight, DigitHeight] = (22 / 128, 64 / 128)
    single_class: bool = False
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _legible(self) -> DigitsSource:
        low, high = self.height
        if high < low or low * self.size < 8:
            raise ValueError(
                f"height must be (low, high) with low <= high and low * size at least 8 pixels, got {self.height} "
                f"at size {self.size}"
            )
        return self


Source = Annotated[Union[CocoSource, VocSource, DigitsSource], Field(discriminator="format")]


class Resize(Section):
    """Aspect-preserving resize: the short side becomes `short`, unless the long side would then exceed `long`.

    Each side of the padded canvas is a multiple of `multiple`; `max_canvases` bounds the number of canvas shapes.
    """

    short: PositiveInt = 800
    long: PositiveInt = 1333
    multiple: PositiveInt = 128
    max_canvases: PositiveInt = 4

    @model_validator(mode="after")
    def _ordered(self) -> Resize:
        if self.long < self.short:
            raise ValueError(f"long ({self.long}) must be at least short ({self.short})")
        return self


class Augment(Section):
    """Training only. `scale` is the range of the random zoom (log-uniform) relative to the evaluation size."""

    horizontal_flip: Fraction = 0.5
    vertical_flip: Fraction = 0.0
    scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        if self.scale[1] < self.scale[0]:
            raise ValueError(f"scale must be (low, high) with low <= high, got {self.scale}")
        return self


class Data(Section):
    """Where the data is and how an image becomes a canvas. Relative paths of the sources are taken from `root`."""

    root: Path = Path(".")
    train: Source
    validation: Source
    test: Source | None = None
    classes: tuple[str, ...] | None = None
    invalid_boxes: Literal["error", "clip", "drop"] = "error"
    difficult: Literal["ignore", "use", "drop"] = "ignore"
    resize: Resize = Resize()
    augment: Augment = Augment()

    @field_validator("root")
    @classmethod
    def _home(cls, root: Path) -> Path:
        return root.expanduser()

    @field_validator("classes")
    @classmethod
    def _distinct(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and (len(set(names)) != len(names) or not names):
            raise ValueError("classes must be a non-empty list of distinct names")
        return names
