"""The sections `model`, `anchors` and `assignment`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from retina.config.values import (
    Float,
    Fraction,
    Int,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)


class Fpn(Section):
    """Feature pyramid. P6 and P7, where asked for, are stride-2 convolutions on C5 (`p6_from: c5`) or on P5.

    `padding` is that of their stride-2 convolutions: on an even side `same` pads 0 before and 1 behind, as TensorFlow
    does, `symmetric` 1 and 1, as PyTorch does. Imported weights bring theirs.
    """

    channels: PositiveInt = 256
    min_level: Annotated[Int, Field(ge=3, le=5)] = 3
    max_level: Annotated[Int, Field(ge=3, le=7)] = 7
    p6_from: Literal["c5", "p5"] = "c5"
    padding: Literal["same", "symmetric"] = "same"
    init: Literal["xavier_uniform", "he_uniform"] = "xavier_uniform"

    @model_validator(mode="after")
    def _ordered(self) -> Fpn:
        if self.max_level < self.min_level:
            raise ValueError(f"max_level ({self.max_level}) must be at least min_level ({self.min_level})")
        return self


class Head(Section):
    """The two subnets, shared over levels: `layers` 3x3 convolutions of `channels` each, then the prediction.

    `norm: group` puts a group normalisation (32 groups) behind each convolution: a departure from the paper that helps
    training from scratch. `conv_bias: false` leaves the biases of those convolutions to the normalisation, which adds
    `norm_epsilon` to variances.
    """

    channels: PositiveInt = 256
    layers: NonNegativeInt = 4
    norm: Literal["none", "group"] = "none"
    norm_epsilon: PositiveFloat = 1e-5
    conv_bias: bool = True
    prior: Annotated[Float, Field(gt=0, lt=1)] = 0.01
    init_std: PositiveFloat = 0.01

    @model_validator(mode="after")
    def _divisible(self) -> Head:
        if self.norm == "group" and self.channels % 32:
            raise ValueError(f"norm: group needs channels in multiples of 32, got {self.channels}")
        if self.norm == "none" and not self.conv_bias:
            raise ValueError("conv_bias: false needs norm: group, whose shift takes the biases' place")
        if self.norm == "none" and self.norm_epsilon != type(self).model_fields["norm_epsilon"].default:
            raise ValueError("norm_epsilon has no effect with norm: none; remove it, or set norm: group")
        return self


class Model(Section):
    """`weights` names a preset of keras-cv, or for `resnet50` and its kin a file of torchvision's or timm's ImageNet
    weights (.pth, .safetensors); null draws random ones.

    `batch_norm: frozen` uses the statistics that come with trained weights and keeps scale and shift as they are;
    `train` normalises by the batch at hand, on TensorFlow that of each device by itself; `sync` by the batch of all
    devices, which with one device, and on JAX always, is the same as `train`. `freeze` counts the stages of the
    backbone that keep their weights, from the first: 1 is the stem, 2 adds the stage of C2, … 5 is all of it
    (torchvision's `trainable_backbone_layers` is 5 less that). Their batch normalisations are frozen as well.

    `init_from` is a run, or a checkpoint file of one, whose weights are the first ones; the rows of the classification
    head are taken by class name, where `init_classes` gives the name there of a class here ({aeroplane: airplane}).

    `batch_norm_momentum` is the share of the old moving statistics that a step keeps. 0.9 suits every backbone: at the
    0.99 and 0.999 of keras-cv's own, a run of a few hundred steps is evaluated with the statistics of a network long
    gone. `batch_norm_epsilon` is added to variances. For both, null leaves the backbone's own.
    `pixel_mean` and `pixel_std` are in units of [0, 255], RGB.
    """

    backbone: str = "keras_cv/resnet50"
    weights: str | None = None
    init_from: Path | None = None
    init_classes: dict[str, str] = Field(default_factory=dict)
    batch_norm: Literal["train", "frozen", "sync"] = "train"
    batch_norm_momentum: Annotated[Float, Field(gt=0, lt=1)] | None = 0.9
    batch_norm_epsilon: NonNegativeFloat | None = None
    freeze: Annotated[Int, Field(ge=0, le=5)] = 0
    fpn: Fpn = Fpn()
    head: Head = Head()
    pixel_mean: tuple[Float, Float, Float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (58.395, 57.12, 57.375)

    @model_validator(mode="after")
    def _as_the_weights_expect(self) -> Model:
        given = self.weights is not None or self.init_from is not None
        if not given and self.batch_norm == "frozen":
            raise ValueError("batch_norm: frozen needs pretrained weights; set batch_norm: train")
        if not given and self.freeze:
            raise ValueError(f"freeze: {self.freeze} would keep random weights; set weights, or freeze: 0")
        if self.weights is not None and self.init_from is not None:
            raise ValueError("weights have no effect beside init_from, which brings its own; remove one of them")
        if self.init_classes and self.init_from is None:
            raise ValueError("init_classes has no effect without init_from; remove it")
        default = type(self).model_fields["batch_norm_momentum"].default
        if self.batch_norm_momentum not in (None, default) and self.batch_norm == "frozen":
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

    `sizes` gives the sides in pixels instead, one list a level from P3 on, equally long. `spacing` is the distance of
    neighbours: the level's stride, or `canvas`: the canvas' side by the map's, rounded down, which is less than the
    stride where the map was rounded up (torchvision: P7 of a side of 800 px has 7 cells, 114 px apart).

    `offset` is the centre of the first anchor in units of the spacing (0.5: the middle of the cell); `rounding` rounds
    the base anchor's corners to whole pixels, as torchvision does. `box_weights` multiply the encoded (dx, dy, dw, dh);
    a decoded side is at most `max_size_ratio` times its anchor's (1000 / 16, as in the code of arXiv:1506.01497).
    """

    size: PositiveFloat = 4.0
    scales: tuple[PositiveFloat, ...] = Field(default=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)), min_length=1)
    ratios: tuple[PositiveFloat, ...] = Field(default=(0.5, 1.0, 2.0), min_length=1)
    sizes: tuple[tuple[PositiveFloat, ...], ...] | None = None
    spacing: Literal["stride", "canvas"] = "stride"
    offset: Fraction = 0.5
    rounding: bool = False
    box_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (1.0, 1.0, 1.0, 1.0)
    max_size_ratio: Annotated[Float, Field(gt=1)] = 62.5

    @model_validator(mode="after")
    def _one_way_of_saying(self) -> Anchors:
        if self.sizes is None:
            return self
        if len({len(sides) for sides in self.sizes}) != 1 or not self.sizes[0]:
            raise ValueError(f"sizes must be lists of the same length, at least 1, got {self.sizes}")
        fields = type(self).model_fields
        for name in ("size", "scales"):
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"{name} has no effect where sizes are given; remove one of them")
        return self


class Assignment(Section):
    """`force_match` makes each box's best anchor positive whatever its IoU above 0: a departure from the paper.

    With `true` that is one anchor, the first of equals, and it learns this box. With `ties` it is every anchor that
    overlaps the box as much as its best one, and each learns the box that it overlaps most, as with torchvision's and
    detectron2's `allow_low_quality_matches`: a box whose best anchors all overlap another box more gets none.

    A negative anchor of which at least `crowd_overlap` lies inside a crowd box is ignored.
    """

    positive_iou: Fraction = 0.5
    negative_iou: Fraction = 0.4
    force_match: Literal[False, True, "ties"] = False
    crowd_overlap: Annotated[Float, Field(gt=0, le=1)] = 0.5

    @model_validator(mode="after")
    def _ordered(self) -> Assignment:
        if self.negative_iou > self.positive_iou:
            raise ValueError(f"negative_iou ({self.negative_iou}) must not exceed positive_iou ({self.positive_iou})")
        return self
