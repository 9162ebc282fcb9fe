#!/usr/bin/env python
"""Measure what the momentum of batch normalisation costs a short training, and what statistics computed again give it.

    .venv/bin/python scripts/reproduce/stale_statistics.py ../shared/data/bccd --steps 60 200 300
    .venv/bin/python scripts/reproduce/stale_statistics.py ../shared/data/deeppcb --steps 300

DATA are folders of BCCD (Pascal VOC) or deeppcb (COCO). Each is trained from scratch, small and in float32, once for
each number of --steps, and evaluated on the validation split with the last weights: with the moving statistics of each
of --momenta, and with statistics computed again over --images training images, resized as in evaluation and not
augmented. A training uses the statistics of its batches, so the momentum changes no weight: all rows of a number of
steps have the same weights. The trained momentum is 0.9; the averages of another are taken beside it, step by step,
from what the step added to its own. Statistics are computed again by this script alone; the package has the momentum.

Prints a table: AP with the package's bootstrap interval, AP50, and the loss of eight training images with the
statistics of their batch and with the moving ones, as every evaluation of a run logs it. --json writes the same to a
file.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

import retina
from retina import config as configuration
from retina.data.batches.evaluation import evaluation_batches
from retina.data.ground_truth import results
from retina.data.load import load_split, read_split
from retina.evaluation.assessment import intervals
from retina.evaluation.coco import evaluate_as
from retina.evaluation.matching import match
from retina.inference import Predictor, compile_inference, detect
from retina.private_names import all_layers
from retina.runs.loading import load
from retina.training.validation import ModeCheck

TRAINED = 0.9  # the momentum of the trainings
# At 0.4 of the images' sides, with anchors that fit the boxes there.
SMALL = {
    "backbone": "keras_cv/resnet10",
    "fpn": {"channels": 64, "max_level": 5},
    "head": {"channels": 64, "layers": 2, "norm": "group", "init_std": 0.03},
}
FLIPS = {"horizontal_flip": 0.5, "vertical_flip": 0.5}
SETS: dict[str, dict[str, Any]] = {
    "bccd": {
        "data": {
            "train": {"format": "voc", "splits": ["train"]},
            "validation": {"format": "voc", "splits": ["val"]},
            "classes": ["RBC", "WBC", "Platelets"],
            "invalid_boxes": "drop",
            "resize": {"short": 192, "long": 256, "multiple": 64},
            "augment": {**FLIPS, "scale": [0.8, 1.25]},
        },
        "anchors": {"ratios": [0.7, 1.0, 1.4], "size": 2},
    },
    "deeppcb": {
        "data": {
            "train": {"format": "coco", "annotations": "annotations/train.json", "images": "images"},
            "validation": {"format": "coco", "annotations": "annotations/val.json", "images": "images"},
            "resize": {"short": 256, "long": 256, "multiple": 64},
            "augment": FLIPS,
        },
        "anchors": {"size": 2},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+", help="folders of BCCD or deeppcb")
    parser.add_argument("--steps", type=int, nargs="+", default=[60, 200, 300], help="of the trainings (%(default)s)")
    parser.add_argument("--momenta", type=float, nargs="+", default=[0.99, 0.9], help="(%(default)s)")
    parser.add_argument("--images", type=int, default=200, help="for statistics computed again (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    arguments = parser.parse_args()

    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {keras.backend.backend()}")
    header = f"{'data':10}{'steps':>6}  {'statistics':14}{'AP':>7}  {'interval':16}{'AP50':>7}"
    print(f"{header}{'batch':>8}{'moving':>8}{'s':>7}", flush=True)
    rows = []
    for folder in arguments.data:
        for steps in arguments.steps:
            for row in measured(folder, steps, arguments.momenta, arguments.images, arguments.seed):
                rows.append(row)
                (low, high), losses = row["AP interval"], row["losses"]
                print(
                    f"{row['data']:10}{row['steps']:6}  {row['statistics']:14}{row['AP']:7.3f}  "
                    f"{f'{low:.3f} to {high:.3f}':16}{row['AP50']:7.3f}{losses['batch']:8.3f}"
                    f"{losses['moving']:8.3f}{row['seconds']:7.0f}",
                    flush=True,
                )
                if arguments.json:
                    arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def measured(folder: Path, steps: int, momenta: list[float], images: int, seed: int) -> Iterator[dict[str, Any]]:
    """Train once; yield a row of the moving statistics of each momentum, and of the statistics computed again."""
    name = "bccd" if (folder / "ImageSets").is_dir() else "deeppcb"
    settings = configuration.parse(written(name, folder, steps, seed), name)
    others = Averages(momenta)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        few = load_split(settings.data, "validation").subset(np.arange(8))  # for the evaluation that ends a training
        run = retina.train(settings, Path(scratch) / "run", validation_data=few, callbacks=[others])
        predictor = load(run, "latest")
    row = {"data": name, "steps": steps, "seed": seed, "seconds": time.perf_counter() - start}
    for momentum in momenta:
        for variable, value in zip(statistics(predictor.detector), others.averages[momentum], strict=True):
            variable.assign(value)
        yield {**row, "statistics": f"momentum {momentum:g}", **evaluated(predictor)}
    compute_again(predictor, images)
    yield {**row, "statistics": "computed again", **evaluated(predictor)}


class Averages(keras.callbacks.Callback):
    """Moving statistics as they would be with other momenta than the trained one.

    Attributes:
        averages: by momentum, in the order of `statistics`.
    """

    def __init__(self, momenta: list[float]):
        super().__init__()
        self._momenta = momenta

    def on_train_begin(self, logs: Any = None) -> None:
        self._last = self._present()
        self.averages = dict.fromkeys(self._momenta, self._last)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        present = self._present()
        of_batch = [(new - TRAINED * old) / (1 - TRAINED) for new, old in zip(present, self._last, strict=True)]
        for momentum, averages in self.averages.items():
            self.averages[momentum] = [
                momentum * old + (1 - momentum) * new for old, new in zip(averages, of_batch, strict=True)
            ]
        self._last = present

    def _present(self) -> list[np.ndarray]:
        return [np.array(variable, np.float64) for variable in statistics(self.model)]


def norms(detector: retina.Detector) -> list[keras.layers.BatchNormalization]:
    """Return the batch normalisations of the backbone."""
    return [layer for layer in all_layers(detector.backbone) if isinstance(layer, keras.layers.BatchNormalization)]


def statistics(detector: retina.Detector) -> list[keras.Variable]:
    """Return the moving means and variances of all batch normalisations."""
    return [variable for layer in norms(detector) for variable in (layer.moving_mean, layer.moving_variance)]


def written(name: str, folder: Path, steps: int, seed: int) -> dict[str, Any]:
    """Return the configuration as a file would hold it."""
    settings = SETS[name]
    return {
        "data": {"root": str(folder.resolve()), **settings["data"]},
        "anchors": settings["anchors"],
        "model": {**SMALL, "batch_norm_momentum": TRAINED},
        "optimizer": {"kind": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05, "clip_norm": 10.0},
        "schedule": {"kind": "cosine", "steps": steps, "warmup_steps": min(50, steps // 4)},
        "run": {"batch_size": 8, "seed": seed, "precision": "float32", "preflight": "warn", "pictures": 0},
    }


def evaluated(predictor: Predictor) -> dict[str, Any]:
    """Return AP with its interval, and AP50, on the validation split."""
    settings = predictor.config
    dataset, truth = read_split(settings.data, "validation")
    batches = evaluation_batches(dataset, settings.data, batch_size=settings.inference.batch_size)
    # Compiled anew: on TensorFlow nothing else makes sure that statistics assigned since are used.
    detections = results(detect(compile_inference(predictor.detector), dataset, batches), dataset)
    metrics = evaluate_as(settings.evaluation, truth, detections).metrics
    matches = match(truth, detections, max_detections=settings.evaluation.max_detections[-1])
    around = intervals(matches, truth.class_names, replicates=1000)
    losses = ModeCheck(settings, load_split(settings.data, "train"), predictor.detector)()
    assert losses is not None  # nothing is frozen
    figures = {name: metrics[name] for name in ("AP", "AP50")}
    return {**figures, "AP interval": around.metrics["AP"], "losses": losses._asdict()}


def compute_again(predictor: Predictor, images: int) -> None:
    """Replace the moving statistics by those of training images that are not augmented: means, and the variances about
    these, over all batches."""
    detector, settings = predictor.detector, predictor.config
    dataset, _ = read_split(settings.data, "train")
    rows = np.random.default_rng(0).permutation(len(dataset))[:images]
    layers = norms(detector)
    sums = [[np.zeros(layer.moving_mean.shape), np.zeros(layer.moving_mean.shape)] for layer in layers]
    count = 0
    for layer in layers:
        layer.momentum = 0.0  # the moving statistics become those of the last batch
    for batch in evaluation_batches(dataset.subset(np.sort(rows)), settings.data, batch_size=8).as_numpy_iterator():
        if (batch["index"] < 0).any():
            continue  # filler is no image
        detector.feature_maps(batch["images"], batch["size"], training=True)
        count += 1
        for layer, (mean, square) in zip(layers, sums, strict=True):
            here = np.asarray(layer.moving_mean, np.float64)
            mean += here
            square += np.asarray(layer.moving_variance, np.float64) + here**2
    for layer, (mean, square) in zip(layers, sums, strict=True):
        layer.moving_mean.assign(mean / count)
        layer.moving_variance.assign(square / count - (mean / count) ** 2)


if __name__ == "__main__":
    main()
