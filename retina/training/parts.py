"""Detector, optimizer and step, made by the configuration alone."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import keras

from retina.config import Config
from retina.data.dataset import DetectionDataset
from retina.inference import build_detector
from retina.models.detector import Detector
from retina.runs.checkpoint import Checkpoint, extra_of, restore
from retina.training.devices import ALONE, Distribution
from retina.training.fine_tuning import initialise, read_initial
from retina.training.optimizer import build_optimizer, peak_rate
from retina.training.step import TrainStep, build_step
from retina.weights.sources import pixel_notes


class Parts(NamedTuple):
    """What a step changes, and lines on how it began."""

    detector: Detector
    optimizer: keras.optimizers.Optimizer
    step: TrainStep
    notes: tuple[str, ...] = ()


def assemble(
    config: Config, data: DetectionDataset, saved: Checkpoint | None = None, distribution: Distribution = ALONE
) -> Parts:
    """The parts as they are at a run's start, or with `saved` as they were after the step of that checkpoint.

    Raises:
        RetinaError: weights that the configuration names don't fit, or the checkpoint does not.
    """
    with distribution.scope():
        return _assemble(config, data, saved, distribution)


def _assemble(config: Config, data: DetectionDataset, saved: Checkpoint | None, distribution: Distribution) -> Parts:
    keras.utils.set_random_seed(config.run.seed)
    detector = build_detector(config, data.class_names, load_weights=saved is None)
    notes = _weights_notes(config, detector) if saved is None else []
    if saved is None and config.model.init_from is not None:
        notes += initialise(detector, read_initial(config.model.init_from), config)
    if config.optimizer.base_batch_size is not None:
        rate = peak_rate(config.optimizer, config.run.batch_size)
        notes.append(
            f"learning rate {rate:g}: {config.optimizer.learning_rate:g} at a batch of "
            f"{config.optimizer.base_batch_size}, here {config.run.batch_size}"
        )
    optimizer = build_optimizer(config.optimizer, config.schedule, config.run.batch_size)
    optimizer.build(detector.trainable_variables)
    if saved is not None:
        restore(saved.arrays, detector, optimizer)
    step = build_step(detector, optimizer, config.optimizer, config.run, distribution)
    if saved is not None:
        step.load(extra_of(saved.arrays))
    return Parts(detector, optimizer, step, tuple(notes))


def _weights_notes(config: Config, detector: Detector) -> list[str]:
    """What became of the file of the backbone's weights, if the run starts from one."""
    report, file = detector.weights_report, config.model.weights
    if report is None or file is None:
        return []
    left = f", {len(report.unused)} without a place ({', '.join(sorted({one.reason for one in report.unused}))})"
    return [
        f"backbone weights from {file}: {len(report.carried)} tensors{left if report.unused else ''}; SHA-256 "
        f"{report.sha256} of the file, {report.arrays_sha256} of the variables",
        *pixel_notes(Path(file), config.model.pixel_mean, config.model.pixel_std),
    ]
