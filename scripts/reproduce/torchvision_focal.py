#!/usr/bin/env python
"""Train the same detector by `retina train` and by torchvision's RetinaNet with its focal loss, for several γ and α.

    .venv/bin/python scripts/reproduce/torchvision_focal.py --gamma 0 2 --alpha 0.75 0.25 --steps 200 --json FILE
    .venv/bin/python scripts/reproduce/torchvision_focal.py --steps 200 data.root=DATA schedule.kind=constant

Both begin with `retina`'s random weights, which go over by the code of `retina export-weights torchvision`, and get
`retina`'s batches in its order, the same rate at each step, weight decay and bound of the gradient. torchvision's own
are network, anchors, matching, losses, gradients, optimizer, decoding and suppression. It gets the pixels on `retina`'s
canvas, and its transform only normalises them.

The task is deeppcb in ../shared/data (COCO) by a ResNet-18 with narrow heads, or that of --config; KEY=VALUE changes
it. What torchvision has fixed is set anyway: the pyramid's levels, four layers of the heads, the anchors' corners, L1
of the boxes, and the mean over images of losses divided by their positives.

Prints a row for each γ: AP and AP50 on the validation split after the last step, by `retina`'s evaluator, and the first
step's loss, of both. Exit code 1 where these losses differ by more than a thousandth. Later ones part by rounding:
TensorFlow on a CPU adds up a channel's values one after the other, so that the mean of 131,072 equal values is off by
3e-4 of itself, and batch normalisation of flat pictures with it; PyTorch's is off by 1e-7.

`tests/end_to_end/test_torchvision_focal.py` does the same with digits.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

sys.path.append(str(Path(__file__).resolve().parents[1]))

import keras
import numpy as np
import torch
from peers import load_torchvision

import retina
from retina import config as configuration
from retina.data.batches.evaluation import evaluation_batches
from retina.data.ground_truth import results
from retina.data.load import read_split
from retina.evaluation.coco import evaluate_as
from retina.inference import CompiledInference, build_detector, detect
from retina.training.optimizer import decays, learning_rate
from retina.weights.export_torchvision import building_code, state_dict
from retina.weights.tensor_writing import write_tensors

load_torchvision(suppression=True)
from torchvision.models.detection import retinanet  # noqa: E402
from torchvision.ops import sigmoid_focal_loss  # noqa: E402

TASK = [
    "data={root: ../shared/data/deeppcb, train: {format: coco, annotations: annotations/train.json, images: images}, "
    "validation: {format: coco, annotations: annotations/val.json, images: images}, "
    "classes: [open, short, mousebite, spur, copper, pin-hole], resize: {short: 256, long: 256, multiple: 128}, "
    "augment: {horizontal_flip: 0.5, vertical_flip: 0.5, scale: [1.0, 1.0]}}",
    "model={backbone: resnet18, fpn: {channels: 64}, "
    "head: {channels: 64, norm: group, conv_bias: false, init_std: 0.03}}",
    "anchors={size: 1.25, ratios: [0.6, 0.9, 1.4]}",
    "optimizer={kind: adamw, learning_rate: 1.0e-3, weight_decay: 1.0e-4, clip_norm: 10.0}",
    "schedule.kind=cosine",
]
FIXED = [
    "model.freeze=0", "model.fpn.max_level=7", "model.fpn.padding=symmetric", "model.head.layers=4",
    "anchors.offset=0.0", "anchors.rounding=true", "anchors.spacing=canvas", "optimizer.rates={}",
]  # fmt: skip
BATCH = 8
ADAM_EPSILON = 1e-7  # Keras'

Batch = dict[str, np.ndarray]


class Trained(NamedTuple):
    """Figures on the validation split after the last step, and the loss of each step."""

    metrics: dict[str, float]
    losses: list[float]


def settings(
    file: Path | None, overrides: list[str], *, gamma: float, alpha: float, steps: int, seed: int
) -> retina.Config:
    """Return the configuration of both trainings."""
    classification = f"{{kind: focal, gamma: {gamma}, alpha: {alpha}}}"
    return retina.load_config(
        file,
        [
            *([] if file else TASK), *overrides, *FIXED,
            f"loss={{classification: {classification}, box: {{kind: l1, weight: 1.0}}, normalizer: {{kind: image}}}}",
            f"schedule.steps={steps}", f"schedule.warmup_steps={steps // 10}",
            f"run={{batch_size: {BATCH}, seed: {seed}, evaluate_every: {steps}, log_every: 1, preflight: 'off', "
            "report: false, pictures: 0}",
        ],
    )  # fmt: skip


def trained_here(config: retina.Config) -> Trained:
    """Train by `retina train`."""
    with tempfile.TemporaryDirectory() as folder:
        metrics = retina.train(config, Path(folder) / "run") / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    (last,) = (line["metrics"] for line in lines if "metrics" in line)
    return Trained(last, [line["loss"] for line in lines if "loss" in line])


def trained_there(config: retina.Config) -> Trained:
    """Train torchvision's RetinaNet from the same weights on the same batches."""
    data = retina.load_dataset(config)
    model, groups = carried(config, data.class_names)
    batches = data.as_dataset(BATCH, steps=config.schedule.steps, seed=config.run.seed).as_numpy_iterator()
    focal = config.loss.classification
    assert isinstance(focal, configuration.Focal)
    loss = partial(sigmoid_focal_loss, alpha=focal.alpha, gamma=focal.gamma)
    with mock.patch.object(retinanet, "sigmoid_focal_loss", loss):
        losses = list(steps(config, model, groups, batches))
    table, truth = read_split(config.data, "validation")
    shown = evaluation_batches(table, config.data, batch_size=BATCH)
    detections = detect(CompiledInference(inference(config, model)), table, shown)
    return Trained(evaluate_as(config.evaluation, truth, results(detections, table)).metrics, losses)


def carried(config: retina.Config, class_names: tuple[str, ...]) -> tuple[Any, list[dict[str, Any]]]:
    """Return torchvision's RetinaNet with the first weights of `retina train`, and its weights with their decay."""
    keras.utils.set_random_seed(config.run.seed)
    detector = build_detector(config, class_names)
    variables = {variable.path: variable for variable in detector.variables}
    arrays = {path: keras.ops.convert_to_numpy(variable) for path, variable in variables.items()}
    classes = class_names, tuple(range(len(class_names)))
    rows = len(class_names)  # none for the background
    state = state_dict(arrays, config, *classes, leftovers={}, imported_rows=rows, step=0, where="configuration")
    space: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        write_tensors(file, state.tensors)
        exec(building_code(config, state.kind, str(file)), space)  # noqa: S102 - the export's own code
    model = space["model"]
    model.transform.resize = lambda image, target: (image, target)
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": 0.0},
        {"params": [], "weight_decay": config.optimizer.weight_decay},
    ]
    parameters = dict(model.named_parameters())
    for tensor in state.written:
        if tensor.name in parameters and tensor.source is not None:
            group = groups[decays(variables[tensor.source], config.optimizer.no_decay)]
            group["params"].append(parameters.pop(tensor.name))
    assert not parameters, parameters.keys()
    return model, groups


def steps(config: retina.Config, model: Any, groups: list[dict[str, Any]], batches: Iterable[Batch]) -> Iterable[float]:
    """Train on batches, and give the loss of each."""
    settings, rate = config.optimizer, learning_rate(config.optimizer, config.schedule, BATCH)
    optimizer: torch.optim.Optimizer
    if settings.kind == "sgd":
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum)
    else:
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(settings.beta_1, settings.beta_2))
    model.train().to(memory_format=torch.channels_last)
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = float(rate(step))
            if settings.kind == "adamw":  # PyTorch adds it after the correction of the second moment, Keras before
                group["eps"] = ADAM_EPSILON / math.sqrt(1 - settings.beta_2 ** (step + 1))
        loss = sum(model(images(config, batch), targets(batch)).values())
        optimizer.zero_grad()
        loss.backward()
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        yield float(loss.detach())


def images(config: retina.Config, batch: Batch) -> list[torch.Tensor]:
    """Return the canvases, [3, H, W] in 0 … 1; the padding is the mean, of which torchvision's transform makes 0."""
    pixels, size = np.asarray(batch["images"]), np.asarray(batch["size"])
    rows, columns = (np.arange(side) < size[:, [axis]] for axis, side in enumerate(pixels.shape[1:3]))
    inside = (rows[:, :, None] & columns[:, None])[..., None]
    canvases = np.where(inside, pixels, np.float32(config.model.pixel_mean)) / np.float32(255)
    return list(torch.from_numpy(canvases).permute(0, 3, 1, 2))


def targets(batch: Batch) -> list[dict[str, torch.Tensor]]:
    usable = batch["valid"] & ~batch["crowd"]
    return [
        {"boxes": torch.from_numpy(boxes[rows]), "labels": torch.from_numpy(labels[rows]).long()}
        for boxes, labels, rows in zip(batch["boxes"], batch["labels"], usable, strict=True)
    ]


def inference(config: retina.Config, model: Any) -> Callable[[Batch], Batch]:
    """Return torchvision's own detection, from a batch to detections in the images' pixels."""
    model.eval()

    @torch.no_grad()
    def infer(batch: Batch) -> Batch:
        listed = model(images(config, batch))
        shape = len(listed), config.inference.max_detections
        valid = np.arange(shape[1]) < np.array([[len(each["scores"])] for each in listed])
        fields = {name: np.zeros((*shape, *each.shape[1:]), each.numpy().dtype) for name, each in listed[0].items()}
        for name, field in fields.items():
            field[valid] = torch.cat([each[name] for each in listed]).numpy()
        fields["boxes"] /= np.tile(np.asarray(batch["scale"])[:, ::-1], 2)[:, None]
        return {**fields, "valid": valid}

    return infer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--gamma", type=float, nargs="+", default=[0.0, 2.0], help="(0 2)")
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.75, 0.25], help="one for each γ (0.75 0.25)")
    parser.add_argument("--steps", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures, and the losses of all steps")
    arguments = parser.parse_args()
    if len(arguments.gamma) != len(arguments.alpha):
        parser.error(f"--alpha: expected one for each of {len(arguments.gamma)} γ, got {len(arguments.alpha)}")
    heads = "γ", "α", "AP", "torchvision's", "AP50", "torchvision's", "first loss", "torchvision's"
    print("  ".join(f"{head:>13}" for head in heads), flush=True)
    rows, differs = [], False
    for gamma, alpha in zip(arguments.gamma, arguments.alpha, strict=True):
        given = {"gamma": gamma, "alpha": alpha, "steps": arguments.steps, "seed": arguments.seed}
        config = settings(arguments.config, arguments.overrides, **given)
        there, here = trained_there(config), trained_here(config)  # the first refuses what torchvision can't hold
        rows.append({**given, "retina": here._asdict(), "torchvision": there._asdict()})
        pairs = [(each.metrics["AP"], each.metrics["AP50"], each.losses[0]) for each in (here, there)]
        figures = [f"{figure:13.4f}" for pair in zip(*pairs, strict=True) for figure in pair]
        print("  ".join([f"{gamma:13g}", f"{alpha:13g}", *figures]), flush=True)
        differs |= not np.isclose(here.losses[0], there.losses[0], rtol=1e-3, atol=0)
        if arguments.json:
            arguments.json.write_text(json.dumps({"overrides": arguments.overrides, "rows": rows}, indent=1) + "\n")
    if differs:
        sys.exit("the first losses differ: the two do not train the same detector")


if __name__ == "__main__":
    main()
