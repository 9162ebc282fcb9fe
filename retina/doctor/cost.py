"""What a training step needs: numbers of parameters, an estimate of memory, and the length of the run in images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from retina import config
from retina.data import plan
from retina.data.dataset import DetectionDataset

_BYTES = 4  # of float32, in which weights, gradients and losses are kept whatever the compute dtype
_SLOTS = {"sgd": 1, "adamw": 2}  # momentum; both moments
# Tensors of the size of all logits that the loss keeps or makes: the logits, their gradient, the loss and its weights.
_LOGIT_TENSORS = 4
# Tensors of anchors x boxes that the assignment makes: shared areas, overlaps, and the masked overlaps.
_MATCH_TENSORS = 3
_BOX_MULTIPLE = 8  # as the pipeline pads boxes


@dataclass(frozen=True)
class Cost:
    """What a run will need.

    Attributes:
        parameters, trainable: numbers of weights.
        canvas: (height, width) of the largest canvas; `canvases` how many there are, each compiled once.
        batch: images that go through the network at once.
        anchors: on the largest canvas.
        memory: bytes by what they are for; `total` is their sum.
        steps, images, epochs: of the whole run.
    """

    parameters: int
    trainable: int
    canvas: tuple[int, int]
    canvases: int
    batch: int
    anchors: int
    memory: dict[str, int]
    steps: int
    images: int
    epochs: float

    @property
    def total(self) -> int:
        return sum(self.memory.values())


def estimate(settings: config.Config, dataset: DetectionDataset) -> Cost:
    """Builds the network with random weights and counts, for a step on the largest canvas of the training data.

    Memory is the sum of: weights, gradients and optimizer slots in float32; activations, the output of every layer in
    its own dtype, all of which the backward pass may need; four tensors of the size of the logits for the loss; three
    of anchors x boxes for the assignment; and the batch of uint8 images. It is an estimate: compilers fuse layers and
    free what the backward pass can do without, allocators round up, convolutions ask for workspace. Expect the true
    peak between half and twice of it. Time is not estimated: images per second can only be measured (`--time`).
    """
    import keras

    from retina.models.detector import Detector

    geometry = plan.fit_training(dataset.sizes, settings.data.resize)[-1]
    areas = geometry.canvases.astype(np.int64).prod(axis=1)
    height, width = (int(side) for side in geometry.canvases[int(areas.argmax())])
    batch = settings.run.batch_size // getattr(settings.run, "accumulate", 1)
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
    with _outputs_of_layers(detector) as outputs:
        predicted = detector(keras.Input(batch_shape=(batch, height, width, 3), dtype="float32"), training=True)
    anchors, classes = predicted["logits"].shape[1:]
    boxes = -(-int(np.diff(dataset.offsets).max(initial=1)) // _BOX_MULTIPLE) * _BOX_MULTIPLE
    parameters = sum(prod(weight.shape) for weight in detector.variables)
    trainable = sum(prod(weight.shape) for weight in detector.trainable_variables)
    per_epoch = plan.training_steps(geometry, batch_size=settings.run.batch_size)
    return Cost(
        parameters=parameters,
        trainable=trainable,
        canvas=(height, width),
        canvases=len(geometry.canvases),
        batch=batch,
        anchors=anchors,
        memory={
            "weights": parameters * _BYTES,
            "gradients": trainable * _BYTES,
            "optimizer": trainable * _SLOTS[settings.optimizer.kind] * _BYTES,
            "activations": sum(outputs),
            "loss": batch * anchors * (_LOGIT_TENSORS * classes + _MATCH_TENSORS * boxes) * _BYTES,
            "images": batch * height * width * 3,
        },
        steps=settings.schedule.steps,
        images=settings.schedule.steps * settings.run.batch_size,
        epochs=settings.schedule.steps / per_epoch,
    )


def size(number: float) -> str:
    """Bytes as people read them: "12 MB", "3.4 GB"."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


@contextmanager
def _outputs_of_layers(model: Any) -> Iterator[list[int]]:
    """Collects the bytes of every innermost layer's outputs while the model is called."""
    found: list[int] = []
    leaves = [layer for layer in model._flatten_layers(include_self=False) if not layer._layers]

    def watched(call: Any) -> Any:
        def counting(*arguments: Any, **options: Any) -> Any:
            out = call(*arguments, **options)
            found.append(sum(prod(tensor.shape) * _width(tensor) for tensor in _tensors(out)))
            return out

        return counting

    for layer in leaves:
        layer.__dict__["call"] = watched(layer.call)
    try:
        yield found
    finally:
        for layer in leaves:
            del layer.__dict__["call"]


def _tensors(output: Any) -> list[Any]:
    if isinstance(output, dict):
        output = list(output.values())
    return list(output) if isinstance(output, (list, tuple)) else [output]


def _width(tensor: Any) -> int:
    import keras

    return 2 if "16" in keras.backend.standardize_dtype(tensor.dtype) else _BYTES
