"""Runs an export in a process of its own, which never sees the checkpoint.

For a SavedModel this file is run by its path and needs nothing but TensorFlow and NumPy: it hides `retina`, Keras and
their like from itself, so that an export that leaned on them would fail here. Other formats bring in their runner.

    python -I worker.py JOB OUT

JOB is a JSON file: `artefact`, a path; `plain`, whether it is a SavedModel; `images`, the paths of encoded images;
`stages`, whether to write every stage of the first image instead of the detections of all. OUT is an .npz: `counts`,
`boxes`, `scores`, `labels` and `seconds` (of each image, decoding included), or the stages.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

HIDDEN = ("retina", "keras", "keras_cv", "keras_hub", "tf_keras", "jax", "torch")

Found = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Boxes [n, 4], scores [n] and labels [n] of one image."""


class _Without:
    """An import finder that does not find some packages, as if they were not installed."""

    def __init__(self, finder: Any):
        self.finder = finder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def main(job_path: str, out_path: str) -> None:
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    detect, stages = _plain_tensorflow(job["artefact"]) if job["plain"] else _with_retina(job["artefact"])
    images = []
    for path in job["images"]:
        with open(path, "rb") as encoded:
            images.append(encoded.read())
    if job["stages"]:
        arrays: dict[str, Any] = dict(stages(images[0]))
        np.savez(out_path, **arrays)
        return
    detect(images[0])  # the first call builds the graph
    found: list[Found] = []
    seconds = []
    for image in images:
        start = time.perf_counter()
        found.append(detect(image))
        seconds.append(time.perf_counter() - start)
    boxes, scores, labels = (np.concatenate(column) for column in zip(*found, strict=True))
    counts = np.array([len(one[1]) for one in found])
    np.savez(out_path, counts=counts, boxes=boxes, scores=scores, labels=labels, seconds=np.array(seconds))


def _plain_tensorflow(path: str) -> tuple[Callable[[bytes], Found], Callable[[bytes], dict[str, np.ndarray]]]:
    sys.meta_path[:] = [_Without(finder) for finder in sys.meta_path]
    import tensorflow as tf

    module = tf.saved_model.load(path)
    signature = module.signatures["serving_default"]

    def detect(image: bytes) -> Found:
        found = signature(image_bytes=tf.constant([image]))
        count = int(found["num_detections"][0])
        return tuple(found[name][0, :count].numpy() for name in ("boxes", "scores", "labels"))

    def stages(image: bytes) -> dict[str, np.ndarray]:
        return {name: value.numpy() for name, value in module.stages(tf.constant([image])).items()}

    return detect, stages


def _with_retina(path: str) -> tuple[Callable[[bytes], Found], Callable[[bytes], dict[str, np.ndarray]]]:
    from retina.export.runner import open_artefact

    runner = open_artefact(path)

    def detect(image: bytes) -> Found:
        (found,) = runner.detect([image])
        return found.boxes, found.scores, found.labels

    def stages(image: bytes) -> dict[str, np.ndarray]:
        return runner.stages(image) if hasattr(runner, "stages") else {}

    return detect, stages


if __name__ == "__main__":
    main(*sys.argv[1:])
