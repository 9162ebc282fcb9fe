"""The parts of a run, detector, optimizer and step, assembled as the configuration says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from retina.config import Config, GivenWeights
from retina.data.dataset import DetectionDataset
from retina.inference import build_detector
from retina.losses.class_weights import class_weights
from retina.models.detector import Detector
from retina.runs.checkpoint import Checkpoint, extra_of, restore
from retina.training.devices import ALONE, Distribution
from retina.training.fine_tuning import initialise, read_initial
from retina.training.optimizer import build_optimizer, peak_rate
from retina.training.step import TrainStep, build_step
from retina.weights.sources import pixel_notes


class Parts(NamedTuple):
    """Detector, optimizer and step of a run, and notes for the log on how they began."""

    detector: Detector
    optimizer: keras.optimizers.Optimizer
    step: TrainStep
    notes: tuple[str, ...] = ()


def assemble(
    config: Config,
    data: DetectionDataset,
    saved: Checkpoint | None = None,
    distribution: Distribution = ALONE,
    *,
    build_detector: Callable[..., Detector] = build_detector,
    build_step: Callable[..., TrainStep] = build_step,
) -> Parts:
    """Assemble the parts as they are at a run's start, or with `saved` as they were at that checkpoint.

    Args:
        data: the training data, for the classes.
        distribution: the devices.
        build_detector, build_step: make the detector (`retina.inference`) and the step (`retina.training.step`).

    Raises:
        RetinaError: the checkpoint, or weights that the configuration names, don't fit.
    """
    with distribution.scope():
        detector, notes = _detector(config, data, saved, build_detector)
        optimizer = build_optimizer(config.optimizer, config.schedule, config.run.batch_size)
        optimizer.build(detector.trainable_variables)
        if saved is not None:
            restore(saved.arrays, detector, optimizer)
        step = build_step(detector, optimizer, config.optimizer, config.run, distribution)
        if saved is not None:
            step.load(extra_of(saved.arrays))
        return Parts(detector, optimizer, step, notes)


def _detector(
    config: Config, data: DetectionDataset, saved: Checkpoint | None, build_detector: Callable[..., Detector]
) -> tuple[Detector, tuple[str, ...]]:
    """Return the detector with its first weights, and notes; with `saved` its weights are still to be restored."""
    keras.utils.set_random_seed(config.run.seed)
    config, weighting = _with_class_weights(config, data)
    detector = build_detector(config, data.class_names, load_weights=saved is None)
    notes = weighting + (_weights_notes(config, detector) if saved is None else [])
    if saved is None and config.model.init_from is not None:
        notes += initialise(detector, read_initial(config.model.init_from), config)
    if config.optimizer.base_batch_size is not None:
        rate = peak_rate(config.optimizer, config.run.batch_size)
        notes.append(
            f"learning rate {rate:g}: {config.optimizer.learning_rate:g} at a batch of "
            f"{config.optimizer.base_batch_size}, here {config.run.batch_size}"
        )
    return detector, tuple(notes)


def _with_class_weights(config: Config, data: DetectionDataset) -> tuple[Config, list[str]]:
    """Return the configuration with `loss.class_weights` in numbers, and a line on them for the log."""
    section = config.loss.class_weights
    if section is None:
        return config, []
    counted = data.labels[~(data.crowd | data.difficult)]
    values = class_weights(section, data.class_names, np.bincount(counted, minlength=len(data.class_names)))
    weights = dict(zip(data.class_names, values.tolist(), strict=True))
    loss = config.loss.model_copy(update={"class_weights": GivenWeights(weights=weights)})
    listed = ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items())
    return config.model_copy(update={"loss": loss}), [f"class weights ({section.kind}): {listed}"]


def _weights_notes(config: Config, detector: Detector) -> list[str]:
    """Return notes on the file of the backbone's weights, if the run starts from such a file."""
    report, file = detector.weights_report, config.model.weights
    if report is None or file is None:
        return []
    is_resnet = config.model.backbone.startswith("resnet")
    reasons = ", ".join(sorted({tensor.reason for tensor in report.unused}))
    unused = f", {len(report.unused)} without a place ({reasons})" if report.unused else ""
    return [
        f"backbone weights from {file}: {len(report.carried)} tensors{unused}; SHA-256 "
        f"{report.sha256} of the file, {report.arrays_sha256} of the variables",
        # EfficientNet-Lite's pixels are checked by the configuration.
        *(pixel_notes(Path(file), config.model.pixel_mean, config.model.pixel_std) if is_resnet else ()),
    ]
