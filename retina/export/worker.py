"""The work of a process that runs an export and never sees the checkpoint.

For a SavedModel this file is run by its path and needs nothing but TensorFlow and NumPy: it hides `retina`, Keras and
their like from itself, so that an export that leaned on them would fail here. For other formats `retina.export.runner`
is run as a module, and hands in how it opens them.

    python -I worker.py JOB OUT

JOB is a JSON file: `artefact`, a path; `runtime`, what to run it in; `images`, the paths of encoded images; `stages`,
whether to write every stage of the images instead of their detections. OUT is an .npz: `counts`, `boxes`, `scores`,
`labels` and `seconds` (of each image, decoding included), or the stages, the first image's as `0/pixels` and so on.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

HIDDEN = ("retina", "keras", "keras_cv", "keras_hub", "tf_keras", "jax", "torch")

Detected = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Boxes [n, 4], scores [n] and labels [n] of one image."""
Opened = tuple[Callable[[bytes], Detected], Callable[[bytes], dict[str, np.ndarray]]]
"""Two functions of an encoded image: its detections, and the tensors of its stages."""


class _Without:
    """An import finder that does not find some packages, as if they were not installed."""

    def __init__(self, finder: Any):
        self.finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def work(job_path: str, out_path: str, open_export: Callable[[str, str], Opened]) -> None:
    """Do the job with an export that `open_export` opens in a runtime."""
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    detect, stages = open_export(job["artefact"], job["runtime"])
    images = []
    for path in job["images"]:
        with open(path, "rb") as encoded:
            images.append(encoded.read())
    if job["stages"]:
        arrays: dict[str, Any] = {
            f"{row}/{name}": value for row, image in enumerate(images) for name, value in stages(image).items()
        }
        np.savez(out_path, **arrays)
        return
    detect(images[0])  # the first call builds the graph
    detected: list[Detected] = []
    seconds = []
    for image in images:
        start = time.perf_counter()
        detected.append(detect(image))
        seconds.append(time.perf_counter() - start)
    boxes, scores, labels = (np.concatenate(column) for column in zip(*detected, strict=True))
    counts = np.array([len(image[1]) for image in detected])
    np.savez(out_path, counts=counts, boxes=boxes, scores=scores, labels=labels, seconds=np.array(seconds))


def _plain_tensorflow(path: str, _: str) -> Opened:
    """A SavedModel in TensorFlow, without anything that it could lean on."""
    sys.meta_path[:] = [_Without(finder) for finder in sys.meta_path]
    import tensorflow as tf

    module = tf.saved_model.load(path)
    signature = module.signatures["serving_default"]

    def detect(image: bytes) -> Detected:
        outputs = signature(image_bytes=tf.constant([image]))
        count = int(outputs["num_detections"][0])
        return tuple(outputs[name][0, :count].numpy() for name in ("boxes", "scores", "labels"))

    def stages(image: bytes) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in module.stages(tf.constant([image])).items()}

    return detect, stages


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], _plain_tensorflow)
