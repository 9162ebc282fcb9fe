"""The work of a process of test_distribution.py: the same steps on one and on several parts of the CPU, compared.

TensorFlow's collectives keep the number of devices that a process had first: a process for each number.
"""

import json
import sys

import keras
import numpy as np

from retina import config
from retina.data.batches.plan import share
from retina.inference import compile_inference
from retina.runs.checkpoint import gather
from retina.training.devices import Distribution, distribute
from retina.training.optimizer import build_optimizer
from retina.training.step import build_step
from tests.training.small_step import FROZEN, MODEL, SCHEDULE, SGD, four_images, numbers, small_detector

MODES = {name: MODEL.model_copy(update={"batch_norm": name}) for name in ("train", "sync")} | {"frozen": FROZEN}


EVERYTHING = config.Inference(score_threshold=0.0, max_detections=20)


def batch(seed: int, devices: int, parts: int) -> dict[str, np.ndarray]:
    """Eight images: two of `four_images`, as the devices take them."""
    both = [four_images(2 * seed), four_images(2 * seed + 1)]
    whole = {name: np.concatenate([one[name] for one in both]) for name in both[0]}
    slots = share(8, parts=parts, devices=devices, first=0, stop=devices)
    return {name: x[slots] for name, x in whole.items()}


def train(devices: int, mode: str, parts: int, steps: int, loss: config.Loss = config.Loss()) -> dict:  # noqa: B008
    run = config.Run(batch_size=8, accumulate=parts, devices=devices, ema=config.Ema(decay=0.5))
    distribution = distribute(run)
    assert isinstance(distribution, Distribution) and distribution.devices == devices
    keras.utils.set_random_seed(0)
    with distribution.scope():
        detector = small_detector(("a", "b"), model=MODES[mode], loss=loss, inference=EVERYTHING)
        optimizer = build_optimizer(SGD, SCHEDULE)
        step = build_step(detector, optimizer, SGD, run, distribution)
    before = gather(detector)
    lines = [numbers(step(batch(seed, devices, parts))) for seed in range(steps)]
    step.sync()
    arrays = gather(detector, optimizer, step.state())
    with step.averaged():
        images = batch(0, 1, 1)
        images["scale"] = np.ones((8, 2), np.float32)
        found = compile_inference(detector, distribution.engine)(images)
    after = gather(detector, optimizer, step.state())
    assert all(np.array_equal(arrays[name], after[name]) for name in arrays)  # the averages have gone again
    return {"lines": lines, "arrays": arrays, "before": before, "found": found, "equal": mirrors_are_equal(detector)}


def mirrors_are_equal(detector) -> bool:
    """Whether every device holds the same."""
    for variable in detector.variables:
        value = variable.value
        copies = [np.asarray(one) for one in getattr(value, "values", ())] or [
            np.asarray(shard.data) for shard in getattr(value, "addressable_shards", ())
        ]
        if any(not np.array_equal(copies[0], one) for one in copies[1:]):
            return False
    return True


def apart(one: dict, other: dict) -> dict:
    names = ("loss", "gradient_norm", "positives", "foreground_share")
    return {
        "loss": max(
            abs(a[name] / b[name] - 1) for a, b in zip(one["lines"], other["lines"], strict=True) for name in names
        ),
        "weights": max(float(np.abs(one["arrays"][n] - other["arrays"][n]).max()) for n in one["arrays"]),
        "moved": max(float(np.abs(one["arrays"][n] - one["before"][n]).max()) for n in one["before"]),
        "scores": float(np.abs(one["found"]["scores"] - other["found"]["scores"]).max()),
        "found": int(one["found"]["valid"].sum()),
        "equal": one["equal"],
    }


def main(devices: int, steps: int, cases: list[list]) -> None:
    """Prints, for each `[batch_norm, parts]`, how far apart one and `devices` devices are after the steps."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        parts_of_it = [tf.config.LogicalDeviceConfiguration()] * devices
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts_of_it)
    ema = config.Loss(normalizer=config.EmaNormalizer(initial=20.0))
    found = []
    for mode, parts in cases:
        alone, together = (
            train(count, mode, parts, steps, ema if parts > 1 else config.Loss()) for count in (1, devices)
        )
        found.append(apart(together, alone))
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
