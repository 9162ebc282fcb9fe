"""A detector that is small enough to be traced often, a batch of four images for it, and steps over both."""

from unittest import mock

import keras
import numpy as np

from retina import config
from retina.models import backbones
from retina.models.detector import Detector
from retina.training.optimizer import build_optimizer
from retina.training.step import build_step

MODEL = config.Model(fpn=config.Fpn(channels=16, max_level=5), head=config.Head(channels=16, layers=1))
# Random statistics are as good as any here, where `config.Model` would ask for trained ones.
FROZEN = MODEL.model_copy(update={"batch_norm": "frozen"})
SGD = config.Sgd(learning_rate=0.01, momentum=0.9, weight_decay=1e-3, clip_norm=5.0)
SCHEDULE = config.ConstantSchedule(steps=10)


def four_images(seed: int = 0) -> dict[str, np.ndarray]:
    """[4, 64, 64, 3]: two boxes, none, a crowd box only, one box."""
    random = np.random.default_rng(seed)
    boxes = np.zeros((4, 3, 4), np.float32)
    boxes[0, :2] = [[4, 4, 36, 36], [20, 10, 60, 40]]
    boxes[2, 0] = [0, 0, 30, 30]
    boxes[3, 0] = [10, 20, 40, 60]
    valid = np.zeros((4, 3), bool)
    valid[0, :2] = valid[2, 0] = valid[3, 0] = True
    crowd = np.zeros((4, 3), bool)
    crowd[2, 0] = True
    labels = np.zeros((4, 3), np.int32)
    labels[0, 1] = 1
    size = np.array([[64, 64], [64, 56], [40, 64], [64, 64]], np.int32)
    images = random.integers(0, 256, (4, 64, 64, 3), np.uint8)
    return {"images": images, "boxes": boxes, "labels": labels, "valid": valid, "crowd": crowd, "size": size}


def tiny_backbone(*_: object) -> keras.Model:
    """Three strided convolutions, each with batch normalisation."""
    x = image = keras.Input((None, None, 3), name="image")
    maps = {}
    for level, stride in ((3, 8), (4, 2), (5, 2)):
        x = keras.layers.Conv2D(16, 3, strides=stride, padding="same", use_bias=False, name=f"conv{level}")(x)
        x = keras.layers.BatchNormalization(name=f"bn{level}")(x)
        x = maps[f"C{level}"] = keras.layers.ReLU(name=f"relu{level}")(x)
    return keras.Model(image, maps, name="backbone")


def small_detector(*args: object, **kwargs: object) -> Detector:
    with mock.patch.object(backbones, "build_reported", side_effect=lambda *_: backbones.Built(tiny_backbone(), None)):
        return Detector(*args, **kwargs)


def make(
    run: config.Run | None = None,
    *,
    model: config.Model = FROZEN,
    loss: config.Loss | None = None,
    settings: config.Optimizer = SGD,
    precision: str = "float32",
):
    """Detector, optimizer and step; the weights are drawn from seed 0."""
    keras.utils.set_random_seed(0)
    detector = small_detector(("a", "b"), model=model, loss=loss or config.Loss(), precision=precision)
    optimizer = build_optimizer(settings, SCHEDULE)
    return detector, optimizer, build_step(detector, optimizer, settings, run or config.Run())


def numbers(scalars: dict) -> dict[str, float]:
    return {name: float(keras.ops.convert_to_numpy(value)) for name, value in scalars.items()}


def weights(detector: Detector) -> dict[str, np.ndarray]:
    """By path; copies."""
    return {v.path: np.array(keras.ops.convert_to_numpy(v.value)) for v in detector.weights}
