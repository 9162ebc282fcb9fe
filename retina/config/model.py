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
    """Feature pyramid (arXiv:1612.03144), with P6 and P7 as in arXiv:1708.02002, section 4."""

    channels: PositiveInt = 256
    """Channels of every level; 256 is the papers'."""

    min_level: Annotated[Int, Field(ge=3, le=5)] = 3
    """Finest level; level l has a stride of 2^l pixels. P3 is the paper's."""

    max_level: Annotated[Int, Field(ge=3, le=7)] = 7
    """Coarsest level, at least `min_level`; P7 is the paper's. Fewer levels suit small images."""

    p6_from: Literal["c5", "p5"] = "c5"
    """Map that P6, a 3x3 convolution of stride 2, is made from: the backbone's last (`c5`, as in the paper) or the
    pyramid's (`p5`). P7 is made from P6 alike, after a ReLU."""

    padding: Literal["same", "symmetric"] = "same"
    """Padding of the convolutions that make P6 and P7. On an even side `same` pads 0 before and 1 after, as TensorFlow
    does, `symmetric` 1 and 1, as PyTorch does. Imported weights bring theirs."""

    init: Literal["xavier_uniform", "he_uniform"] = "xavier_uniform"
    """Distribution of the convolutions' first weights; Xavier-uniform is that of the paper's code (Detectron)."""

    @model_validator(mode="after")
    def _ordered(self) -> Fpn:
        if self.max_level < self.min_level:
            raise ValueError(f"max_level ({self.max_level}) must be at least min_level ({self.min_level})")
        return self


class Head(Section):
    """The two subnets, classification and box, shared over levels (arXiv:1708.02002, section 4)."""

    channels: PositiveInt = 256
    """Channels of the convolutions before the prediction; 256 is the paper's. With `norm: group` a multiple of 32."""

    layers: NonNegativeInt = 4
    """Number of 3x3 convolutions before the prediction, in each subnet; 4 is the paper's."""

    norm: Literal["none", "group"] = "none"
    """Normalisation after each of these convolutions: none, as in the paper, or `group` (32 groups, arXiv:1803.08494),
    a departure from the paper that helps training from scratch."""

    norm_epsilon: PositiveFloat = 1e-5
    """Number that the group normalisation adds to variances; 1e-5 is PyTorch's."""

    conv_bias: bool = True
    """Whether these convolutions have biases. `false` leaves them to the group normalisation's shift, as
    torchvision's RetinaNet V2 does."""

    prior: Annotated[Float, Field(gt=0, lt=1)] = 0.01
    """Probability π that every class starts with at every anchor: the last bias of the classification head is
    -log((1 - π) / π), so that the many background anchors don't swamp the first steps. 0.01 is the paper's
    (section 4.1)."""

    init_std: PositiveFloat = 0.01
    """Standard deviation of the normal distribution that the heads' weights are drawn from; 0.01 is the paper's
    (section 4.1). The digits demo, with narrow heads and without pretrained weights, takes 0.03."""

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
    """The network: a normalisation of the pixels, backbone, feature pyramid and heads."""

    backbone: str = "keras_cv/resnet50"
    """Name of the backbone: PyTorch's ResNets (`resnet10` to `resnet152`; `resnet50_v1` and its kin have the stride in
    the 1x1 convolution), EfficientNet-Lite (`efficientnet_lite0` to 2, arXiv:1905.11946), keras-cv's
    (`keras_cv/resnet50`) or keras-hub's (`keras_hub/resnet_50_imagenet`). ResNet-50 is the paper's."""

    weights: str | None = None
    """First weights of the backbone: for `resnet50` and its kin a file of torchvision's or timm's ImageNet weights
    (.pth, .safetensors), their name (`torchvision/resnet50`, fetched once) or the folder of a preset of keras-hub, for
    `efficientnet_lite0` and its kin `imagenet` (the file of an installed package, extra `lite`) or such a file, for the
    others a preset of keras-cv or keras-hub, which is fetched when first used. Null draws random ones."""

    init_from: Path | None = None
    """First weights of the whole detector: a run, whose best checkpoint is taken (or its latest, where none is the
    best), the file of a checkpoint, or the name of a published detector (`torchvision/retinanet_resnet50_fpn_v2`,
    fetched once). The rows of the classification head are taken by class name. Relative to the
    folder that the command runs in."""

    init_classes: dict[str, str] = Field(default_factory=dict)
    """Names of classes here and their names in `init_from`, where they differ: {aeroplane: airplane}."""

    batch_norm: Literal["train", "frozen", "sync"] = "train"
    """Statistics of the backbone's batch normalisations. `frozen` uses those that come with trained weights and keeps
    scale and shift as they are; `train` normalises by the batch at hand, on TensorFlow that of each device by itself;
    `sync` by the batch of all devices, which with one device, and on JAX always, is the same as `train`."""

    batch_norm_momentum: Annotated[Float, Field(gt=0, lt=1)] | None = 0.9
    """Share of the old moving statistics that a step keeps; null leaves the backbone's own. 0.9 suits every backbone:
    at the 0.99 and 0.999 of keras-cv's own, a run of a few hundred steps is evaluated with the statistics of a network
    long gone."""

    batch_norm_epsilon: NonNegativeFloat | None = None
    """Number that batch normalisation adds to variances; null leaves the backbone's own."""

    freeze: Annotated[Int, Field(ge=0, le=5)] = 0
    """Number of the backbone's stages that keep their weights, from the first: 1 is the stem, 2 adds the stage of C2,
    … 5 is all of it (torchvision's `trainable_backbone_layers` is 5 less that). Their batch normalisations are frozen
    as well. Needs `weights` or `init_from`."""

    fpn: Fpn = Fpn()
    """Feature pyramid."""

    head: Head = Head()
    """Classification and box subnets."""

    pixel_mean: tuple[Float, Float, Float] = (123.675, 116.28, 103.53)
    """Mean that is subtracted from the pixels, red, green, blue, on the scale of 0 to 255. The default is ImageNet's,
    as torchvision's weights expect; keras-cv's presets expect 0."""

    pixel_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (58.395, 57.12, 57.375)
    """Standard deviation that the pixels are then divided by, on the same scale; keras-cv's presets expect 255."""

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
        lite = self.weights and self.backbone.startswith("efficientnet_lite")
        if lite and pixels != (127.0, 127.0, 127.0, 128.0, 128.0, 128.0):
            raise ValueError(
                "EfficientNet-Lite's weights expect pixels as (x - 127) / 128; set pixel_mean: [127.0, 127.0, 127.0] "
                "and pixel_std: [128.0, 128.0, 128.0]"
            )
        return self


class Anchors(Section):
    """Anchor boxes: in each cell of level l one for each scale and ratio, and the encoding of boxes relative to them.

    The defaults are those of arXiv:1708.02002, section 4: sides of 32 to 512 pixels on P3 to P7. `retina doctor` shows
    how well they cover the boxes of a dataset.
    """

    size: PositiveFloat = 4.0
    """Side of an anchor in strides of its level: `size * 2^l * scale` pixels."""

    scales: tuple[PositiveFloat, ...] = Field(default=(1.0, 2 ** (1 / 3), 2 ** (2 / 3)), min_length=1)
    """Factors of the side, an anchor each; the default divides an octave into three."""

    ratios: tuple[PositiveFloat, ...] = Field(default=(0.5, 1.0, 2.0), min_length=1)
    """Aspects, height / width, an anchor each; all have the same area."""

    sizes: tuple[tuple[PositiveFloat, ...], ...] | None = None
    """Sides in pixels in the place of `size` and `scales`: one list a level from P3 on, all equally long."""

    spacing: Literal["stride", "canvas"] = "stride"
    """Distance of neighbouring anchors: the level's stride, or `canvas`: the canvas' side by the map's, rounded down,
    which is less than the stride where the map was rounded up (torchvision: P7 of a side of 800 px has 7 cells, 114 px
    apart)."""

    offset: Fraction = 0.5
    """Centre of the first anchor in units of the spacing: 0.5 is the middle of the cell, 0 its corner, as in
    torchvision and detectron2."""

    rounding: bool = False
    """Whether an anchor's corners are rounded to whole pixels about its centre, as in torchvision."""

    box_weights: tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat] = (1.0, 1.0, 1.0, 1.0)
    """Factors of the encoded (dx, dy, dw, dh): offsets of the centre in sides of the anchor, and logarithms of the
    ratios of the sides."""

    max_size_ratio: Annotated[Float, Field(gt=1)] = 62.5
    """Bound on a decoded side, in sides of its anchor, so that the exponential stays finite. 62.5 is the 1000 / 16 of
    the code of arXiv:1506.01497."""

    @model_validator(mode="after")
    def _sizes_stand_alone(self) -> Anchors:
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
    """Rule by which anchors learn boxes, by their overlap (IoU) with the box that they overlap most
    (arXiv:1708.02002, section 4)."""

    positive_iou: Fraction = 0.5
    """IoU from which an anchor learns its box; 0.5 is the paper's."""

    negative_iou: Fraction = 0.4
    """IoU below which an anchor is background, at most `positive_iou`; 0.4 is the paper's. Anchors between the two add
    nothing to the loss."""

    force_match: Literal[False, True, "ties"] = False
    """Whether each box's best anchor is positive whatever its IoU above 0: a departure from the paper. With `true` that
    is one anchor, the first of equals, and it learns this box. With `ties` it is every anchor that overlaps the box as
    much as its best one, and each learns the box that it overlaps most, as with torchvision's and detectron2's
    `allow_low_quality_matches`: a box whose best anchors all overlap another box more gets none."""

    crowd_overlap: Annotated[Float, Field(gt=0, le=1)] = 0.5
    """Share of a background anchor's area inside one crowd box from which it is ignored, since objects without boxes of
    their own are there. 0.5 is ours; the paper says nothing of crowds."""

    @model_validator(mode="after")
    def _ordered(self) -> Assignment:
        if self.negative_iou > self.positive_iou:
            raise ValueError(f"negative_iou ({self.negative_iou}) must not exceed positive_iou ({self.positive_iou})")
        return self
