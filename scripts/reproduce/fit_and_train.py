#!/usr/bin/env python
"""Train a detector by `retina train` and by Keras' `fit`, from the same first weights and on the same batches.

    .venv/bin/python scripts/reproduce/fit_and_train.py ../shared/data/bccd --steps 160 --seeds 0 1

DATA is the folder of BCCD (Pascal VOC). Its images are halved to 320x240; the backbone is EfficientNet-Lite0 with
ImageNet weights (`--backbone resnet10` begins with random ones). `fit` is given what KerasCV's guide gives:
dictionaries of images and boxes, xywh. Prints a row for each seed: AP on the validation split after the last step, of
both, and the mean of their training losses. What parts them is rounding, which grows: two seeds differ by more.

`tests/end_to_end/test_keras_guides.py` does the same with digits.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

import retina
from retina.data.batches.evaluation import evaluation_batches

BATCH = 8
CLIP_NORM = 10.0


class Ended(NamedTuple):
    """AP on the validation split after the last step, and the mean of all steps' losses."""

    ap: float
    loss: float


class Elements(keras.utils.PyDataset):
    """Batches of retina's as KerasCV's guide has them: images without padding, boxes as xywh, -1 in empty slots."""

    def __init__(self, batches: Iterable[dict[str, np.ndarray]]):
        super().__init__()
        self._elements = [_element(batch) for batch in batches]

    def __len__(self) -> int:
        return len(self._elements)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._elements[index]


def _element(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    batch = {name: field[batch["index"] >= 0] for name, field in batch.items()}  # without fillers
    ((height, width),) = np.unique(batch["size"], axis=0)
    corners = batch["boxes"]
    xywh = np.concatenate([corners[..., :2], corners[..., 2:] - corners[..., :2]], axis=-1)
    classes = np.where(batch["valid"], batch["labels"], -1)
    return {"images": batch["images"][:, :height, :width], "bounding_boxes": {"boxes": xywh, "classes": classes}}


def settings(data: str, model: str, steps: int, learning_rate: float, seed: int = 0) -> retina.Config:
    """Return a configuration whose update is that of Keras' Adam with a constant rate; `data` and `model` are YAML."""
    return retina.load_config(
        overrides=[
            f"data={data}", f"model={model}",
            f"optimizer={{kind: adamw, learning_rate: {learning_rate}, weight_decay: 0.0, clip_norm: {CLIP_NORM}}}",
            f"schedule={{kind: constant, steps: {steps}, warmup_steps: 0}}",
            f"run={{batch_size: {BATCH}, seed: {seed}, evaluate_every: {steps}, log_every: 1, preflight: 'off', "
            "report: false, pictures: 0}",
        ]
    )  # fmt: skip


def trained(config: retina.Config, folder: Path) -> Ended:
    """Train by `retina train`."""
    metrics = retina.train(config, folder) / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    (ap,) = (line["metrics"]["AP"] for line in lines if "metrics" in line)
    return Ended(ap, float(np.mean([line["loss"] for line in lines if "loss" in line])))


def fitted(config: retina.Config) -> Ended:
    """Train by Keras' `fit`."""
    data, seed, steps = retina.load_dataset(config), config.run.seed, config.schedule.steps
    validation = retina.load_dataset(config, "validation")
    shown = evaluation_batches(validation.table, config.data, batch_size=BATCH).as_numpy_iterator()
    elements = Elements(data.as_dataset(BATCH, steps=steps, seed=seed).as_numpy_iterator())
    keras.utils.set_random_seed(seed)
    sections = {name: getattr(config, name) for name in ("model", "anchors", "assignment", "loss", "inference")}
    detector = retina.Detector(data.class_names, bounding_box_format="xywh", **sections)
    adam = keras.optimizers.Adam(config.optimizer.learning_rate, global_clipnorm=CLIP_NORM)
    detector.compile(adam, metrics=[retina.CocoMetrics()])
    history = detector.fit(elements, validation_data=Elements(shown), shuffle=False, verbose=0).history
    return Ended(history["val_AP"][0], history["loss"][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=160, help="(%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="(%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="(%(default)s)")
    parser.add_argument("--backbone", choices=["efficientnet_lite0", "resnet10"], default="efficientnet_lite0")
    arguments = parser.parse_args()
    data = (
        f"{{root: {arguments.data.resolve()}, classes: [RBC, WBC, Platelets], invalid_boxes: drop, "
        "train: {format: voc, splits: [train]}, validation: {format: voc, splits: [val]}, "
        "resize: {short: 240, long: 320, multiple: 32}, "  # as `fit` pads: BN sees the padding
        "augment: {horizontal_flip: 0.5, vertical_flip: 0.5, scale: [1.0, 1.0]}}"
    )
    imagenet = ", weights: imagenet, pixel_mean: [127, 127, 127], pixel_std: [128, 128, 128]"
    first = imagenet if arguments.backbone == "efficientnet_lite0" else ""
    model = (
        f"{{backbone: {arguments.backbone}{first}, fpn: {{channels: 64, max_level: 5}}, "
        "head: {channels: 64, layers: 2, norm: group, init_std: 0.03}}"
    )
    print(f"{'seed':>4}  {'AP of train':>11}  {'of fit':>6}  {'loss of train':>13}  {'of fit':>6}", flush=True)
    for seed in arguments.seeds:
        config = settings(data, model, arguments.steps, arguments.learning_rate, seed)
        with tempfile.TemporaryDirectory() as folder:
            ours = trained(config, Path(folder) / "run")
        keras_ = fitted(config)
        print(f"{seed:4}  {ours.ap:11.3f}  {keras_.ap:6.3f}  {ours.loss:13.3f}  {keras_.loss:6.3f}", flush=True)


if __name__ == "__main__":
    main()
