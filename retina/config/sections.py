"""The sections of the configuration and their defaults: the paper's (arXiv:1708.02002), where it states one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from retina.config.data import Data
from retina.config.losses import Loss
from retina.config.model import Anchors, Assignment, Model
from retina.config.training import Optimizer, Run, Schedule, Sgd
from retina.config.values import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
)


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

    @model_validator(mode="after")
    def _anchors_fit_pyramid(self) -> Config:
        fpn, sizes = self.model.fpn, self.anchors.sizes
        if sizes is not None and (fpn.min_level != 3 or len(sizes) != fpn.max_level - 2):
            raise ValueError(
                f"anchors.sizes must hold a list for each level from P3 on: model.fpn has P{fpn.min_level} to "
                f"P{fpn.max_level}, there are {len(sizes)} lists"
            )
        return self
