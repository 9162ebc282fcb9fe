"""The sections of the configuration and their defaults: the paper's (arXiv:1708.02002), where it states one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Union

from pydantic import Field, field_validator, model_validator

from retina.config.losses import Loss
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

# ---------------------------------------------------------------------------------------------------------- data


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


# --------------------------------------------------------------------------------------------------------- model


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


# ------------------------------------------------------------------------------------------------------ training


class Sgd(Section):
    kind: Literal["sgd"] = "sgd"
    learning_rate: PositiveFloat = 0.01
    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegativeFloat = 1e-4
    clip_norm: PositiveFloat | None = None


class AdamW(Section):
    kind: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    beta_1: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    beta_2: Annotated[Float, Field(ge=0, lt=1)] = 0.999
    weight_decay: NonNegativeFloat = 1e-4
    clip_norm: PositiveFloat | None = None


Optimizer = Annotated[Union[Sgd, AdamW], Field(discriminator="kind")]


class _Warmup(Section):
    steps: PositiveInt
    warmup_steps: NonNegativeInt = 0
    warmup_factor: Fraction = 0.001

    @model_validator(mode="after")
    def _shorter(self) -> _Warmup:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must not exceed steps ({self.steps})")
        return self


class StepSchedule(_Warmup):
    """The learning rate is multiplied by `factor` at each of `milestones` (steps)."""

    kind: Literal["step"] = "step"
    milestones: tuple[PositiveInt, ...] = ()
    factor: Annotated[Float, Field(gt=0, lt=1)] = 0.1

    @model_validator(mode="after")
    def _increasing(self) -> StepSchedule:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must increase, got {list(self.milestones)}")
        if self.milestones and self.milestones[-1] >= self.steps:
            raise ValueError(f"milestone {self.milestones[-1]} has no effect: it must be below steps ({self.steps})")
        return self


class CosineSchedule(_Warmup):
    """The learning rate falls along a half cosine to `final_factor` times its peak."""

    kind: Literal["cosine"] = "cosine"
    final_factor: Fraction = 0.0


Schedule = Annotated[Union[StepSchedule, CosineSchedule], Field(discriminator="kind")]


class Run(Section):
    """`evaluate_every` and `checkpoint_every` are in steps; null means at the end only."""

    seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    batch_size: PositiveInt = 8
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    deterministic: bool = False
    evaluate_every: PositiveInt | None = None
    checkpoint_every: PositiveInt | None = None
    log_every: PositiveInt = 20
    pictures: NonNegativeInt = 6


class Inference(Section):
    """`candidates` are taken per level above `score_threshold`; greedy NMS is per class; `max_detections` are kept."""

    score_threshold: Fraction = 0.05
    candidates: PositiveInt = 1000
    nms_iou: Fraction = 0.5
    max_detections: PositiveInt = 100
    batch_size: PositiveInt = 8


class Evaluation(Section):
    """`metric` selects the best checkpoint on the validation data. Both engines give equal figures; one is fast.

    `max_detections` are three bounds on the detections of one class in one image: AP uses the last, AR each.
    `area_ranges` are in square pixels, both ends included, and name the figures: `s` gives APs and ARs.
    """

    metric: Literal["AP", "AP50", "AP75"] = "AP"
    engine: Literal["hotcoco", "pycocotools"] = "hotcoco"
    max_detections: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 10, 100)
    area_ranges: dict[str, tuple[NonNegativeFloat, PositiveFloat]] = Field(
        default={"s": (0.0, 1024.0), "m": (1024.0, 9216.0), "l": (9216.0, 1e10)}
    )

    @model_validator(mode="after")
    def _ordered(self) -> Evaluation:
        if not self.max_detections[0] < self.max_detections[1] < self.max_detections[2]:
            raise ValueError(f"max_detections must increase, got {list(self.max_detections)}")
        if self.max_detections[2] > 1_000_000:
            raise ValueError(f"max_detections must be 1000000 at most, got {self.max_detections[2]}")
        for name, (low, high) in self.area_ranges.items():
            if not (name.isalpha() and low < high):
                raise ValueError(f"area_ranges: '{name}' must be letters, its range must increase: got {low} to {high}")
        return self


class Export(Section):
    """`certify` images of the validation split prove an export, evenly spread over it; null takes all of them.

    `fold_batch_norm` (SavedModel) puts batch normalisations into the convolutions before them: faster by a tenth or so,
    but no longer equal to the checkpoint bit for bit, so that its certificate allows what other formats are allowed.
    """

    certify: PositiveInt | None = None
    fold_batch_norm: bool = False


class Config(Section):
    """The whole configuration; `load` reads one."""

    data: Data
    model: Model = Model()
    anchors: Anchors = Anchors()
    assignment: Assignment = Assignment()
    loss: Loss = Loss()
    optimizer: Optimizer = Sgd()
    schedule: Schedule
    run: Run = Run()
    inference: Inference = Inference()
    evaluation: Evaluation = Evaluation()
    export: Export = Export()

    @model_validator(mode="after")
    def _canvas_fits_pyramid(self) -> Config:
        # Below stride 32 the backbone itself could not halve the canvas evenly; above it, padding rounds up.
        if self.data.resize.multiple % 32:
            raise ValueError(f"data.resize.multiple ({self.data.resize.multiple}) must be a multiple of 32")
        return self
