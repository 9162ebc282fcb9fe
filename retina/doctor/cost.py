"""The needs of a training: parameters, an estimate of a step's memory, arithmetic, and the length in images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from retina import config
from retina.data.batches import augment, cache, plan
from retina.data.dataset import DetectionDataset
from retina.doctor.findings import Finding
from retina.models.detector import Detector
from retina.ops.assignment import boxes_at_once
from retina.private_names import innermost_layers

_BYTES = 4  # of float32, in which weights, gradients and losses are kept whatever the compute dtype
_SLOTS = {"sgd": 1, "adamw": 2}  # momentum; both moments
# Tensors of the size of all logits that the loss keeps or makes: the logits, their gradient, the loss and its weights.
_LOGIT_TENSORS = 4
# Tensors of anchors x boxes matched at once that the assignment makes: shared areas, overlaps, and the masked overlaps.
_MATCH_TENSORS = 3
# Forward, and backward to the inputs and to the weights: three convolutions of the same size.
_PASSES = 3


@dataclass(frozen=True)
class Cost:
    """The needs of a run.

    Attributes:
        parameters, trainable: numbers of weights.
        canvas: (height, width) of the largest canvas; `canvases` the number of canvases, each compiled once.
        batch: images in a step on one device; `memory` is the memory of this device.
        anchors: on the largest canvas.
        memory: bytes by what they are for; `total` is their sum.
        flops: floating-point operations of a step on the largest canvas, and `run_flops` of the whole run.
        steps, images, epochs: of the whole run.
    """

    parameters: int
    trainable: int
    canvas: tuple[int, int]
    canvases: int
    batch: int
    anchors: int
    memory: dict[str, int]
    flops: float
    run_flops: float
    steps: int
    images: int
    epochs: float

    @property
    def total(self) -> int:
        return sum(self.memory.values())

    @property
    def hours(self) -> float:
        """Hours of the run at one TFLOP a second: divide by the TFLOP/s that the device achieves."""
        return self.run_flops / 1e12 / 3600


def estimate(settings: config.Config, dataset: DetectionDataset) -> Cost:
    """Build the network with random weights and count, for a step on the largest canvas of the training data.

    Memory is the sum of: weights, gradients and optimizer slots in float32, once more the weights for `run.ema`;
    activations, the output of every layer in its own dtype, all of which the backward pass may need; four tensors of
    the size of the logits for the loss; three of anchors x boxes for the assignment, with room for the boxes of every
    image that mosaic and mixup put into one, but no more than are matched at once; the batch of uint8 images; and the
    images in `data.cache`. It is an estimate: compilers fuse layers and free what the backward pass doesn't need,
    allocators round up, convolutions ask for workspace. Expect the true peak between half of it and twice as much. On
    an accelerator the cache is in the host's memory, all else in the device's.

    Operations are those of the convolutions and matrix products, two for each product that is summed, three times
    those of the forward pass: a little more than is needed where layers are frozen. Those of the run are in proportion
    to the canvases' areas. Time is not estimated: what a device achieves of its peak must be measured
    (`--time`).
    """
    import keras

    settings = plan.with_steps(settings, dataset)
    steps = settings.schedule.length
    geometries = plan.training_geometries(dataset, settings.data, batch_size=settings.run.batch_size)
    largest = geometries[-1]
    areas = largest.canvases.astype(np.int64).prod(axis=1)
    height, width = (int(side) for side in largest.canvases[int(areas.argmax())])
    batch = settings.run.batch_size // (settings.run.accumulate * _replicas(settings.run))
    detector = Detector(
        dataset.class_names,
        model=settings.model,
        anchors=settings.anchors,
        assignment=settings.assignment,
        loss=settings.loss,
        inference=settings.inference,
        precision=settings.run.precision,
        load_weights=False,
    )
    with _counted(detector) as counted:
        predicted = detector(keras.Input(batch_shape=(batch, height, width, 3), dtype="float32"), training=True)
    anchors, classes = predicted["logits"].shape[1:]
    boxes = plan.box_slots(dataset.offsets, augment.images_per_example(settings.data.augment))
    matched = boxes_at_once(anchors, boxes)
    parameters = sum(prod(weight.shape) for weight in detector.variables)
    trainable = sum(prod(weight.shape) for weight in detector.trainable_variables)
    per_epoch = plan.training_steps(largest, batch_size=settings.run.batch_size)
    needed = {
        "weights": parameters * _BYTES,
        "gradients": trainable * _BYTES,
        "optimizer": trainable * _SLOTS[settings.optimizer.kind] * _BYTES,
        "activations": counted["bytes"],
        "loss": batch * anchors * (_LOGIT_TENSORS * classes + _MATCH_TENSORS * matched) * _BYTES,
        "images": batch * height * width * 3,
    }
    if settings.run.ema is not None:
        needed["average"] = parameters * _BYTES
    if settings.data.cache == "memory":
        resized = np.stack([geometry.resized for geometry in geometries])
        needed["cache"] = cache.planned(dataset, resized, settings.data).length
    flops = _PASSES * counted["flops"] * settings.run.batch_size / batch
    mean_area = np.mean(
        [geometry.canvases.astype(np.int64).prod(axis=1)[geometry.canvas_of].mean() for geometry in geometries]
    )
    return Cost(
        parameters=parameters,
        trainable=trainable,
        canvas=(height, width),
        canvases=sum(len(geometry.canvases) for geometry in geometries),
        batch=batch,
        anchors=anchors,
        memory=needed,
        flops=float(flops),
        run_flops=float(flops * steps * mean_area / (height * width)),
        steps=steps,
        images=steps * settings.run.batch_size,
        epochs=steps / per_epoch,
    )


def _replicas(run: config.Run) -> int:
    """Number of devices that share a batch; `all` counts as 1, because only the running machine knows their number."""
    return (1 if run.devices == "all" else run.devices) * (1 if run.hosts is None else run.hosts.count)


def cost_findings(cost: Cost) -> Iterator[Finding]:
    """Yield an error if the cache does not fit into the memory of this machine; training would refuse it."""
    needed, available = cost.memory.get("cache", 0), cache.available_memory()
    if needed > cache.SHARE * available:
        yield Finding(
            "error",
            "cache-too-large",
            f"data.cache: memory needs {size(needed)}, and at most {size(cache.SHARE * available)} may be used here",
            "set data.cache: none, or train where there is more memory",
            "train",
        )


def size(number: float) -> str:
    """Return bytes as people read them: "12 MB", "3.4 GB"."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def operations(number: float) -> str:
    """Return floating-point operations as people read them: "45 GFLOP", "3.4 TFLOP", "12000 TFLOP"."""
    return f"{number / 1e12:.{1 if number < 1e14 else 0}f} TFLOP" if number >= 1e12 else f"{number / 1e9:.0f} GFLOP"


def duration(hours: float) -> str:
    """Return a time as people read it: "2.5 h", and minutes or seconds below an hour."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 2 else f"{hours * 3600:.0f} s"


@contextmanager
def _counted(model: Any) -> Iterator[dict[str, int]]:
    """Collect, while the model is called, the `bytes` of every innermost layer's outputs and the `flops` of those that
    multiply by a kernel."""
    counts = {"bytes": 0, "flops": 0}
    leaves = innermost_layers(model)

    def watched(layer: Any, call: Any) -> Any:
        def counting(*arguments: Any, **options: Any) -> Any:
            out = call(*arguments, **options)
            counts["bytes"] += sum(prod(tensor.shape) * _width(tensor) for tensor in _tensors(out))
            counts["flops"] += _flops(layer, out)
            return out

        return counting

    for layer in leaves:
        layer.__dict__["call"] = watched(layer, layer.call)
    try:
        yield counts
    finally:
        for layer in leaves:
            del layer.__dict__["call"]


def _flops(layer: Any, out: Any) -> int:
    """Operations of a layer: each place of the output takes the whole kernel once, a product and a sum each."""
    import keras

    if not isinstance(layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)):
        return 0
    return 2 * prod(layer.kernel.shape) * prod(out.shape[:-1])


def _tensors(output: Any) -> list[Any]:
    if isinstance(output, dict):
        output = list(output.values())
    return list(output) if isinstance(output, (list, tuple)) else [output]


def _width(tensor: Any) -> int:
    import keras

    return 2 if "16" in keras.backend.standardize_dtype(tensor.dtype) else _BYTES
