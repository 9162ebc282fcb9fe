"""How long a training step takes, measured on the real thing."""

from __future__ import annotations

import time
from typing import NamedTuple

import keras
import numpy as np

from retina.config import Config
from retina.data.batches.evaluation import translated
from retina.data.batches.training import training_batches
from retina.data.dataset import DetectionDataset
from retina.errors import RetinaError
from retina.runs.environment import devices, memory
from retina.training.determinism import check_determinism, make_deterministic
from retina.training.devices import distribute
from retina.training.parts import assemble


class Timing(NamedTuple):
    """`first_step` seconds with compiling, `step` seconds (median of the others), `images_per_second`, `data_wait` (the
    share of the time spent waiting for data), `hours` that all steps of the run will take, without evaluations, and
    what `retina.runs.environment.memory` tells behind the last step."""

    steps: int
    first_step: float
    step: float
    images_per_second: float
    data_wait: float
    hours: float
    memory: dict[str, float]
    devices: tuple[str, ...]


def time_steps(config: Config, data: DetectionDataset, steps: int) -> Timing:
    """Runs a few training steps as `retina train` does, writing nothing.

    Args:
        steps: at least 3; the first one, which compiles, is not in the median. Further canvases would be compiled in
            later steps, so one that takes more than 5 times the median is left out of the total.

    Returns:
        Of all devices and hosts together, but for `memory` and `devices`, which are this host's. With `run.hosts` it is
        to be called on each of them.

    Raises:
        RetinaError: fewer than 3 steps, or `run.devices` and the like are not to be had.
    """
    if steps < 3:
        raise RetinaError(f"--time: expected at least 3 steps, got {steps}; the first one only compiles")
    distribution = distribute(config.run)
    batch_size = config.run.batch_size
    slots = distribution.slots(batch_size, config.run.accumulate)
    if config.run.deterministic:
        check_determinism()
        make_deterministic()
    parts = assemble(config, data, distribution=distribution)
    batches = iter(
        training_batches(data, config.data, batch_size=batch_size, seed=config.run.seed, steps=steps, slots=slots)
    )
    whole, waits = [], []
    with translated(data):
        for _ in range(steps):
            start = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - start)
            # Reading a scalar waits for the device.
            float(keras.ops.convert_to_numpy(parts.step(batch)["loss"]))
            whole.append(time.perf_counter() - start)
    took, waited = np.array(whole[1:]), np.array(waits[1:])
    kept = took <= 5 * np.median(took)
    median = float(np.median(took))
    return Timing(
        steps=steps,
        first_step=whole[0],
        step=median,
        images_per_second=batch_size * int(kept.sum()) / float(took[kept].sum()),
        data_wait=float(waited[kept].sum() / took[kept].sum()),
        hours=config.schedule.steps * float(took[kept].mean()) / 3600,
        memory=memory(),
        devices=distribution.names or tuple(devices()),
    )
