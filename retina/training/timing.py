"""Timing of training steps, measured by running some."""

from __future__ import annotations

import time
from typing import NamedTuple

import keras
import numpy as np

from retina.config import Config
from retina.data.batches import plan
from retina.data.batches.evaluation import translated
from retina.data.dataset import DetectionDataset
from retina.errors import RetinaError
from retina.runs.environment import devices, memory
from retina.training.devices import check_determinism
from retina.training.loop import STANDARD, Collaborators


class Timing(NamedTuple):
    """Timing of some training steps.

    Attributes:
        steps: how many were run.
        first_step: seconds of the first step, compiling included.
        step: seconds of a later step, the median.
        images_per_second: over the later steps.
        data_wait: the share of the time spent waiting for data.
        hours: of all steps of the run, without evaluations.
        memory: `retina.runs.environment.memory` after the last step.
        devices: the names of this host's devices.
    """

    steps: int
    first_step: float
    step: float
    images_per_second: float
    data_wait: float
    hours: float
    memory: dict[str, float]
    devices: tuple[str, ...]


def time_steps(config: Config, data: DetectionDataset, steps: int, collaborators: Collaborators = STANDARD) -> Timing:
    """Run a few training steps as `retina train` does, without writing anything, and return their timing.

    Args:
        steps: at least 3; the first, which compiles, is not in the median. Further canvases would be compiled in
            later steps, so a step that takes more than 5 times the median is left out of the total.
        collaborators: see `retina.training.loop`.

    Returns:
        The timing of all devices and hosts together, but for `memory` and `devices`, which are this host's. With
        `run.hosts` each host must call it.

    Raises:
        RetinaError: fewer than 3 steps, or `run.devices` and the like are not available.
    """
    if steps < 3:
        raise RetinaError(f"--time: expected at least 3 steps, got {steps}; the first step only compiles")
    distribution = collaborators.distribute(config.run)
    batch_size = config.run.batch_size
    slots = distribution.slots(batch_size, config.run.accumulate)
    if config.run.deterministic:
        check_determinism()
        collaborators.make_deterministic()
    parts = collaborators.assemble(config, data, distribution=distribution)
    batches = iter(
        collaborators.batches(data, config.data, batch_size=batch_size, seed=config.run.seed, steps=steps, slots=slots)
    )
    durations, waits = [], []
    with translated(data):
        for _ in range(steps):
            start = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - start)
            # Reading a scalar waits for the device.
            float(keras.ops.convert_to_numpy(parts.step(batch)["loss"]))
            durations.append(time.perf_counter() - start)
    later, waited = np.array(durations[1:]), np.array(waits[1:])
    median = float(np.median(later))
    usual = later <= 5 * median
    return Timing(
        steps=steps,
        first_step=durations[0],
        step=median,
        images_per_second=batch_size * int(usual.sum()) / float(later[usual].sum()),
        data_wait=float(waited[usual].sum() / later[usual].sum()),
        hours=plan.with_steps(config, data).schedule.length * float(later[usual].mean()) / 3600,
        memory=memory(),
        devices=distribution.names or tuple(devices()),
    )
