"""A small random detector that finds a lot, and images of many sizes, for the tests of ONNX and LiteRT exports."""

import keras
import numpy as np

from retina import config as configuration
from retina.inference import Detections, Predictor, build_detector

CLASSES = ("zèbre", "cat", "dog")
SETTINGS = [
    "data.train={format: digits, images: 4, size: 64}",
    "data.resize={short: 48, long: 96, multiple: 32}",
    "model.fpn={channels: 16, max_level: 5}",
    "model.head={channels: 16, layers: 1, prior: 0.2, norm: none, init_std: 0.3}",
    "inference={max_detections: 20, candidates: 60}",
]
# (height, width): as they are, shrunk, enlarged, by one side's limit, and a single pixel.
SIZES = ((48, 64), (100, 75), (31, 40), (20, 90), (130, 31), (1, 1))


def make_predictor(*settings: str) -> Predictor:
    """A detector whose scores are far from 0 and 1, whose boxes lie near their anchors, and which finds each class, so
    that rounding on another processor changes neither the scores' order nor which boxes are suppressed."""
    keras.utils.set_random_seed(1)
    config = configuration.load(None, [*SETTINGS, *settings])
    detector = build_detector(config, CLASSES)
    for head, name, spread in ((detector.classification, "logits", 2.0), (detector.box, "deltas", 0.5)):
        outputs = keras.ops.convert_to_numpy(detector(noise(64, 64)[None], training=False)[name])[0]
        kernel = head.prediction.kernel
        kernel.assign(kernel.numpy() * spread / outputs.std())
    logits = keras.ops.convert_to_numpy(detector(noise(64, 64)[None], training=False)["logits"])[0]
    bias = detector.classification.bias
    bias.assign(bias.numpy() - np.tile(np.percentile(logits, 97, axis=0), bias.shape[0] // len(CLASSES)))
    return Predictor(detector, config)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def assert_same(found: Detections, expected: Detections, box: float = 1e-3, score: float = 1e-5) -> None:
    """The same objects in the same order, boxes to `box` pixels."""
    assert found.labels.tolist() == expected.labels.tolist()
    assert found.names == expected.names
    np.testing.assert_allclose(found.boxes, expected.boxes, rtol=0, atol=box)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=score)
