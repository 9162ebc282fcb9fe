"""The sections of the configuration and their defaults: the paper's (arXiv:1708.02002), where it states one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from retina.config.data import Data, Tiles
from retina.config.losses import Loss
from retina.config.model import Anchors, Assignment, Model
from retina.config.recipe import Optimizer, Run, Schedule, Sgd
from retina.config.values import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
)


class Inference(Section):
    """Way from the network's outputs to detections (arXiv:1708.02002, section 4.1)."""

    score_threshold: Fraction = 0.05
    """Score above which an anchor's class is a candidate; 0.05 is the paper's. Lower finds more and takes longer."""

    candidates: PositiveInt = 1000
    """Most pairs of anchor and class, by their scores; 1000 a level are the paper's."""

    candidates_per: Literal["level", "image"] = "level"
    """Pairs that `candidates` bounds: those of each pyramid level, as in the paper, or those of an image, all levels
    together."""

    clip: Literal["before", "after", "none"] = "before"
    """Cutting of boxes to the image: `before` suppression, so that it compares what is left of them, as in torchvision;
    `after` it, as in detectron2; or `none`, as in keras-hub, where boxes may reach beyond the image."""

    suppression: Literal["hard", "linear", "gaussian"] = "hard"
    """Treatment of the lower-scored of two overlapping boxes: `hard` removes it, as in the paper. Soft-NMS
    (arXiv:1704.04503, section 3) lowers its score s: `linear` to s (1 - IoU) above `nms_iou`, `gaussian` to
    s exp(-IoU² / `soft_sigma`) at any IoU, without `nms_iou`; it goes where the score falls to `score_threshold`. That
    finds more in crowds and costs a pass over the candidates for each detection. Exports to ONNX and LiteRT have `hard`
    alone."""

    soft_sigma: PositiveFloat = 0.5
    """Width σ of `gaussian`, in squares of IoU; smaller lowers scores more. 0.5 is the default of arXiv:1704.04503."""

    nms_iou: Fraction = 0.5
    """IoU above which the lower-scored of two boxes of one class is suppressed, greedily; 0.5 is the paper's."""

    class_agnostic: bool = False
    """Suppresses among boxes of all classes together: of two objects of different classes in one place the
    lower-scored is lost, and so is a second name for one object. Off, as in the paper."""

    max_detections: PositiveInt = 100
    """Most detections in an image, all classes together; 100 is the most that COCO's AP counts of a class. Raise it
    with `evaluation.max_detections` where images hold more objects."""

    batch_size: PositiveInt = 8
    """Images that go through the network at once, on each device, in evaluations; it is about speed and memory."""

    @model_validator(mode="after")
    def _effective(self) -> Inference:
        idle = "nms_iou" if self.suppression == "gaussian" else "soft_sigma"
        default = type(self).model_fields[idle].default
        if getattr(self, idle) != default:
            raise ValueError(f"{idle} has no effect with suppression: {self.suppression}; leave it at {default}")
        return self


class Evaluation(Section):
    """Figures of a detector on a split, by the rules of pycocotools."""

    metric: Literal["AP", "AP50", "AP75"] = "AP"
    """Figure that selects the best checkpoint on the validation data; AP, over IoU 0.5 to 0.95, is COCO's first."""

    engine: Literal["hotcoco", "pycocotools"] = "hotcoco"
    """Library that computes the figures. Both give equal ones; hotcoco is faster, pycocotools the reference."""

    max_detections: tuple[PositiveInt, ...] = Field(default=(1, 10, 100), min_length=1)
    """Bounds on the detections of one class in one image, as many as wanted, increasing, up to 1000000: AP uses the
    last, and each names an AR. The default is COCO's, with AR1, AR10 and AR100; [1, 10, 100, 500] adds AR500 where
    images are crowded, and then AP counts 500."""

    area_ranges: dict[str, tuple[NonNegativeFloat, PositiveFloat]] = Field(
        default={"s": (0.0, 1024.0), "m": (1024.0, 9216.0), "l": (9216.0, 1e10)}
    )
    """Ranges of the objects' areas in square pixels, both ends included, by the letters that name their figures: `s`
    gives APs and ARs. The default is COCO's, with bounds at 32 x 32 and 96 x 96 pixels."""

    tiles: Tiles | None = None
    """Tiles that images are detected in, and as a whole for objects too large for these; the figures are of the whole
    images, as `retina score` gives them for `retina predict --tile`. Null, the default, detects in whole images alone.
    For large images: training then evaluates on one device."""

    @model_validator(mode="after")
    def _ordered(self) -> Evaluation:
        if list(self.max_detections) != sorted(set(self.max_detections)):
            raise ValueError(f"max_detections must increase, got {list(self.max_detections)}")
        if self.max_detections[-1] > 1_000_000:
            raise ValueError(f"max_detections must be 1000000 at most, got {self.max_detections[-1]}")
        for name, (low, high) in self.area_ranges.items():
            if not (name.isalpha() and low < high):
                raise ValueError(f"area_ranges: '{name}' must be letters, its range must increase: got {low} to {high}")
        return self


class Export(Section):
    """A trained detector written for production, with a certificate that it scores what the checkpoint scores."""

    certify: PositiveInt | None = None
    """Images of the split (validation by default) that prove an export, evenly spread over it; null takes all."""

    fold_batch_norm: bool = False
    """Whether a SavedModel's batch normalisations are put into the convolutions before them: faster by a tenth or so,
    but no longer equal to the checkpoint bit for bit, so that its certificate allows what other formats are allowed."""


class Config(Section):
    """The whole configuration."""

    data: Data
    """Sources of images and boxes, and the way from an image to a canvas."""

    model: Model = Model()
    """The network: backbone, feature pyramid and heads."""

    anchors: Anchors = Anchors()
    """Anchor boxes and the encoding of boxes relative to them."""

    assignment: Assignment = Assignment()
    """Rule by which anchors learn boxes."""

    loss: Loss = Loss()
    """The objective: classification loss and box loss."""

    optimizer: Optimizer = Sgd()
    """Updates of the weights."""

    schedule: Schedule
    """Length of the run, and the course of the learning rate."""

    run: Run = Run()
    """Batches, precision, devices, and what is written when."""

    inference: Inference = Inference()
    """Way from the network's outputs to detections."""

    evaluation: Evaluation = Evaluation()
    """Figures of a detector on a split."""

    export: Export = Export()
    """A trained detector written for production."""

    @model_validator(mode="after")
    def _canvas_fits_pyramid(self) -> Config:
        # Below stride 32 the backbone itself could not halve the canvas evenly; above it, padding rounds up.
        if self.data.resize.multiple % 32:
            raise ValueError(f"data.resize.multiple ({self.data.resize.multiple}) must be a multiple of 32")
        return self

    @model_validator(mode="after")
    def _stops_by_validation(self) -> Config:
        if self.data.validation is None and self.run.early_stopping is not None:
            raise ValueError(
                "run.early_stopping has no effect with data.validation: null; remove it, or add validation"
            )
        return self

    @model_validator(mode="after")
    def _anchors_fit_pyramid(self) -> Config:
        fpn, sizes = self.model.fpn, self.anchors.sizes
        if sizes is not None and (fpn.min_level != 3 or len(sizes) != fpn.max_level - 2):
            raise ValueError(
                f"anchors.sizes must hold a list for each level from P3 on: model.fpn has P{fpn.min_level} to "
                f"P{fpn.max_level}, there are {len(sizes)} lists"
            )
        return self
