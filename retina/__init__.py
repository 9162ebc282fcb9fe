"""RetinaNet-style one-stage detectors on Keras 3: training, evaluation and the losses around focal loss.

`import retina` is light: TensorFlow and Keras are imported with the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import Any

from retina.startup import import_tensorflow_quietly

__version__ = "0.1.0"

_HOMES = {
    "RetinaError": "retina.errors",
    "Config": "retina.config",
    "load_config": "retina.config:load",
    "DetectionDataset": "retina.data.dataset",
    "load_split": "retina.data.load",
    "Detector": "retina.models.detector",
    "train": "retina.training.train",
    "import_weights": "retina.runs.importing:import_run",
    "export_weights": "retina.export.weights",
    "evaluate": "retina.export.loading",
    "load": "retina.export.loading",
    "score": "retina.scoring",
    "compare": "retina.runs.comparing",
    "browse": "retina.pages.browse",
    "write_report": "retina.pages.run_page",
}

__all__ = ["__version__", "losses", *_HOMES]


_LIGHT = (
    "retina.errors",
    "retina.config",
    "retina.data.dataset",
    "retina.data.load",
    "retina.scoring",
    "retina.runs.comparing",
)


def __getattr__(name: str) -> Any:
    if name in ("losses", "ops", "models", "training"):
        import_tensorflow_quietly()
    if name in ("losses", "ops", "models", "data", "training", "evaluation", "runs", "pages"):
        return importlib.import_module(f"retina.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'retina' has no attribute '{name}'")
    module, _, attribute = _HOMES[name].partition(":")
    if module not in _LIGHT:
        import_tensorflow_quietly()
    return getattr(importlib.import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted(__all__)
