"""The sections `model`, `anchors` and `assignment`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from retina.config.values import (
    Float,
    Fraction,
    Int,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)


class Fpn(Section):
    """Feature pyramid. P6 and P7, where asked for, are stride-2 convolutions on C5 (`p6_from: c5`) or on P5."""

    channels: PositiveInt = 256
    min_level: Annotated[Int, Field(ge=3, le=5)] = 3
    max_level: Annotated[Int, Field(ge=3, le=7)] = 7
    p6_from: Literal["c5", "p5"] = "c5"
    init: Literal["xavier_uniform", "he_uniform"] = "xavier_uniform"

    @model_validator(mode="after")
    def _ordered(self) -> Fpn:
        if self.max_level < self.min_level:
            raise ValueError(f"max_level ({self.max_level}) must be at least min_level ({self.min_level})")
        return self


class Head(Section):
    """The two subnets, shared over levels: `layers` 3x3 convolutions of `channels` each, then the prediction.

    `norm: group` puts a group normalisation (32 groups) behind each convolution: a departure from the paper that helps
    training from scratch.
    """

    channels: PositiveInt = 256
    layers: NonNegativeInt = 4
    norm: Literal["none", "group"] = "none"
    prior: Annotated[Float, Field(gt=0, lt=1)] = 0.01
    init_std: PositiveFloat = 0.01

    @model_validator(mode="after")
    def _divisible(self) -> Head:
        if self.norm == "group" and self.channels % 32:
            raise ValueError(f"norm: group needs channels in multiples of 32, got {self.channels}")
        return self


class Model(Section):
    """`weights` names a preset, null draws random ones; `batch_norm: frozen` uses the statistics that come with one.

    `batch_norm_momentum` is the share of the old moving statistics that a step keeps; null leaves the backbone's own
    (keras-cv: 0.99, which lags behind in runs of a few hundred steps). `pixel_mean` and `pixel_std` are in units of
    [0, 255], RGB.
    """

    backbone: str = "keras_cv/resnet50"
    weights: str | None = None
    batch_norm: Literal["train", "frozen"] = "train"
    batch_norm_momentum: Annotated[Float, Field(gt=0, lt=1)] | None = None
    fpn: Fpn = Fpn()
    head: Head = Head()
    pixel_mean: tuple[Float, Float, Float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (58.395, 57.12, 57.375)

    @model_validator(mode="after")
    def _as_the_weights_expect(self) -> Model:
        if self.weights is None and self.batch_norm == "frozen":
            raise ValueError("batch_norm: frozen needs pretrained weights; set batch_norm: train")
        if self.batch_norm_momentum is not None and self.batch_norm == "frozen":
            raise ValueError("batch_norm_momentum has no effect with batch_norm: frozen; remove it")
        pixels = (*self.pixel_mean, *self.pixel_std)
        if self.weights and self.backbone.startswith("keras_cv/") and pixels != (0.0, 0.0, 0.0, 255.0, 255.0, 255.0):
            raise ValueError(
                "keras-cv's presets expect pixels in [0, 1]; set pixel_mean: [0.0, 0.0, 0.0] and "
                "pixel_std: [255.0, 255.0, 255.0]"
            )
        return self


class Anchors(Section):
    """At level l: side `size * 2**l * scale` and aspect `ratio` (height / width).

    `offset` is the centre of the first anchor in units of the stride (0.5: the middle of the cell); `rounding` rounds
    the base anchor's corners to whole pixels, as torchvision does. `box_weights` multiply the encoded (dx, dy, dw, dh);
    a decoded side is at most `max_size_ratio` times its anchor's (1000 / 16, as in the code of arXiv:1506.01497).
    """

    size: PositiveFloat = 4.0
    scales: tuple[PositiveFloat, ...] = Field(default=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)), min_length=1)
    ratios: tuple[PositiveFloat, ...] = Field(default=(0.5, 1.0, 2.0), min_length=1)
    offset: Fraction = 0.5
    rounding: bool = False
    box_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (1.0, 1.0, 1.0, 1.0)
    max_size_ratio: Annotated[Float, Field(gt=1)] = 62.5


class Assignment(Section):
    """`force_match` makes each box's best anchor positive whatever its IoU: a departure from the paper.

    A negative anchor of which at least `crowd_overlap` lies inside a crowd box is ignored.
    """

    positive_iou: Fraction = 0.5
    negative_iou: Fraction = 0.4
    force_match: bool = False
    crowd_overlap: Annotated[Float, Field(gt=0, le=1)] = 0.5

    @model_validator(mode="after")
    def _ordered(self) -> Assignment:
        if self.negative_iou > self.positive_iou:
            raise ValueError(f"negative_iou ({self.negative_iou}) must not exceed positive_iou ({self.positive_iou})")
        return self
