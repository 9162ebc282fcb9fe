"""Typed, strict configuration: one YAML file plus `key.path=value` overrides.

Nothing is inherited, interpolated or read from the environment. Every component is handed its own section.
A key that no component reads is an error that names its dotted path and the nearest valid key.
"""

from retina.config.data import Augment, CocoSource, Data, DigitsSource, Resize, Source, VocSource
from retina.config.losses import (
    BoxLoss,
    CiouBox,
    ClassificationLoss,
    CrossEntropy,
    DiouBox,
    Focal,
    GiouBox,
    HuberBox,
    Loss,
    Ohem,
    QualityFocal,
    SmoothL1Box,
    Varifocal,
)
from retina.config.model import Anchors, Assignment, Fpn, Head, Model
from retina.config.reading import default_path, load, override, parse, to_yaml, with_absolute_root
from retina.config.sections import Config, Evaluation, Export, Inference
from retina.config.training import AdamW, CosineSchedule, Optimizer, Run, Schedule, Sgd, StepSchedule
from retina.config.values import Section

__all__ = [
    "AdamW",
    "Anchors",
    "Assignment",
    "Augment",
    "BoxLoss",
    "CiouBox",
    "ClassificationLoss",
    "CocoSource",
    "Config",
    "CosineSchedule",
    "CrossEntropy",
    "Data",
    "DigitsSource",
    "DiouBox",
    "Evaluation",
    "Export",
    "Focal",
    "Fpn",
    "GiouBox",
    "Head",
    "HuberBox",
    "Inference",
    "Loss",
    "Model",
    "Ohem",
    "Optimizer",
    "QualityFocal",
    "Resize",
    "Run",
    "Schedule",
    "Section",
    "Sgd",
    "SmoothL1Box",
    "Source",
    "StepSchedule",
    "Varifocal",
    "VocSource",
    "default_path",
    "load",
    "override",
    "parse",
    "to_yaml",
    "with_absolute_root",
]
