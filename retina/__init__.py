"""RetinaNet-style one-stage detectors on Keras 3: training, evaluation and the losses around focal loss.

`import retina` is light: a name is imported when it is first asked for, and TensorFlow and Keras with the first that
needs them. Where Keras is imported already, its files can be loaded at once: what they may hold is registered.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from retina.startup import prepare_keras

__version__ = "0.1.0"

# The verbs: each is a function of `retina.api`.
_VERBS = (
    "ablate", "benchmark", "browse", "compare", "compare_settings", "convert", "evaluate", "examine", "export_weights",
    "import_weights", "init", "judge", "load", "load_split", "loss_distribution", "predict", "predict_each", "score",
    "summarise_study", "train", "write_report",
)  # fmt: skip

# The things that verbs take and give, and where they stand.
_HOMES = {
    "CocoMetrics": "retina.inference",
    "Config": "retina.config",
    "DetectionDataset": "retina.data.dataset",
    "Detector": "retina.inference",  # with the metric that a saved detector may hold
    "draw": "retina.drawing.notebook",
    "load_dataset": "retina.drawing.notebook",
    "make_plan": "retina.ablation.plan",
    "show": "retina.drawing.notebook",
    "RetinaError": "retina.errors",
    "load_config": "retina.config:load",
}

# Rooms that can be used as `retina.losses` after `import retina` alone; `export` is a verb as well.
_ROOMS = ("config", "data", "evaluation", "export", "losses", "models", "ops", "runs", "training")
_HEAVY = ("CocoMetrics", "Detector", "losses", "models", "ops", "training")

# Where classes stand that Keras writes into its files, and finds again only if they are imported.
_REGISTERED = ("retina.inference", "retina.losses", "retina.training.optimizer")

__all__ = ["__version__", "export", "losses", *_VERBS, *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(importlib.import_module("retina.api"), name)
    if name in _HEAVY:
        prepare_keras()
    if name in _ROOMS:
        return importlib.import_module(f"retina.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'retina' has no attribute '{name}'")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted(__all__)


if "keras" in sys.modules:
    for _module in _REGISTERED:
        importlib.import_module(_module)
