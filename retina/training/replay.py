"""What went wrong in the step whose numbers are not finite: which tensor, on which images; and the same once more."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from retina import config as configuration
from retina.data.dataset import DetectionDataset
from retina.errors import RetinaError
from retina.files import written
from retina.inference import build_detector
from retina.models.detector import Detector
from retina.models.objective import objective
from retina.training.checkpoint import gather, read, restore
from retina.training.meter import Fault
from retina.training.run_directory import RunDirectory
from retina.training.step import INPUTS

Batch = dict[str, Any]
_REMEDY = "lower optimizer.learning_rate, lengthen schedule.warmup_steps, or set optimizer.clip_norm"
_NAMED_IMAGES = 8


class Finding(NamedTuple):
    """A tensor: how many of its `size` values are not finite, and the range of those that are (NaN if none is)."""

    name: str
    bad: int
    size: int
    low: float
    high: float


@dataclass(frozen=True)
class Replay:
    """A step's batch put through the network again.

    Attributes:
        step: the step.
        weights: which they are.
        images: the names of the batch's images.
        findings: in the order of computation: images, weights, outputs, losses, gradients by variable path.
    """

    step: int
    weights: str
    images: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def first_bad(self) -> Finding | None:
        return next((found for found in self.findings if found.bad), None)

    def __str__(self) -> str:
        width = max(len(found.name) for found in self.findings)
        rows = [
            f"{found.name:{width}}  {found.low:12.5g} … {found.high:<12.5g}"
            + (f"  {found.bad} of {found.size} not finite" if found.bad else "")
            for found in self.findings
        ]
        return "\n".join([f"step {self.step}, with the weights {self.weights}", *self.images, *rows])


def record(
    run: RunDirectory, detector: Detector, origin: str, batch: Batch, dataset: DetectionDataset, fault: Fault
) -> str:
    """Saves the batch of a failed step in `replay/step_N.npz`, finds the tensor that failed, and says both.

    Args:
        detector: with the weights that the step found, or the nearest to them that are finite.
        origin: which these are, for the message.
        batch: of the step, as in `retina.data.pipeline.Batch`.
        dataset: whose rows the batch's `index` are.
    """
    arrays = {name: np.asarray(value) for name, value in batch.items()}
    images = image_names(dataset, arrays["index"])
    weights = {name: array for name, array in gather(detector).items() if name.startswith("weights/")}
    first = next((found for found in _diagnose(detector, arrays) if found.bad), None)
    where = f"first not finite: {first.name} ({first.bad} of {first.size} values)" if first else _elsewhere(fault)
    path = run.path / "replay" / f"step_{fault.step}.npz"
    again = f"from retina.training.replay import replay; print(replay({str(run.path)!r}, {fault.step}))"
    try:
        meta = {"images": images, "class_names": detector.class_names, "scalars": fault.scalars, "origin": origin}
        _save(path, meta, arrays, weights)
        kept = f"the batch is in {path}; look again with: python -c {shlex.quote(again)}"
    except OSError as error:  # the message matters more
        kept = f"the batch could not be saved: {error.strerror}"
    named = ", ".join(images[:_NAMED_IMAGES]) + (", …" if len(images) > _NAMED_IMAGES else "")
    return (
        f"step {fault.step}: the {fault.what} is {fault.value}; {_REMEDY}. With the weights {origin}, {where}. "
        f"Images: {named}; {kept}"
    )


def replay(run: str | Path, step: int, checkpoint: str | None = None) -> Replay:
    """Puts the saved batch of a failed step through the network again.

    Args:
        run: the run directory.
        step: the step that failed.
        checkpoint: `best`, `latest` or `step_N`; None takes the weights that were saved with the batch.

    Raises:
        RetinaError: there is no such run, step or checkpoint.
    """
    directory = RunDirectory.open(Path(run))
    path = directory.path / "replay" / f"step_{step}.npz"
    if not path.is_file():
        raise RetinaError(f"{path}: no such batch; batches are saved when a loss or a gradient is not finite")
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(str(arrays["__meta__"]))
    weights, origin = {name: array for name, array in arrays.items() if name.startswith("weights/")}, meta["origin"]
    if checkpoint is not None:
        saved = read(directory.checkpoint_path(checkpoint))
        weights, origin = saved.arrays, f"of step {saved.step}"
    config = configuration.load(directory.path / "config.yaml")
    detector = build_detector(config, meta["class_names"], load_weights=False)
    restore(weights, detector)
    batch = {name.removeprefix("batch/"): array for name, array in arrays.items() if name.startswith("batch/")}
    return Replay(step, origin, tuple(meta["images"]), tuple(_diagnose(detector, batch)))


def image_names(dataset: DetectionDataset, index: np.ndarray) -> tuple[str, ...]:
    """What an error calls the images of these rows of the table."""
    return tuple(
        str(dataset.images[row])
        if isinstance(dataset.images[row], str)
        else f"{dataset.name}: image {dataset.image_ids[row]}"
        for row in index.tolist()
        if row >= 0
    )


def _save(path: Path, meta: dict[str, Any], batch: Batch, weights: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    stored: dict[str, Any] = {f"batch/{name}": array for name, array in batch.items()}
    with written(path) as temporary:
        np.savez_compressed(temporary, __meta__=np.array(json.dumps(meta)), **stored, **weights)


def _diagnose(detector: Detector, batch: Batch) -> list[Finding]:
    weights = [(v.path, keras.ops.convert_to_numpy(v.value)) for v in detector.variables]
    tensors = {name: keras.ops.convert_to_tensor(batch[name]) for name in INPUTS}
    outputs, losses, gradients = _GRADIENTS[keras.backend.backend()](detector, tensors)
    paths = [v.path for v in detector.trainable_variables]
    named = [
        ("images", batch["images"]),
        ("boxes", batch["boxes"]),
        *((f"weight {path}", array) for path, array in weights if not _finite(array).all()),
        *outputs.items(),
        *((name, losses[name]) for name in ("loss_classification", "loss_box", "loss")),
        *((f"gradient of {path}", value) for path, value in zip(paths, gradients, strict=True)),
    ]
    return [_finding(name, keras.ops.convert_to_numpy(value)) for name, value in named]


def _forward(detector: Detector, batch: Batch) -> tuple[dict[str, Any], dict[str, Any]]:
    outputs = detector(batch, training=True)
    return outputs, objective(detector.loss_sums(outputs, batch))


def _tensorflow_gradients(detector: Detector, batch: Batch) -> tuple:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        outputs, losses = _forward(detector, batch)
    return outputs, losses, tape.gradient(losses["loss"], [v.value for v in detector.trainable_variables])


def _jax_gradients(detector: Detector, batch: Batch) -> tuple:
    import jax

    frozen = [v.value for v in detector.non_trainable_variables]

    @jax.jit
    def gradients(trainable: list, batch: Batch) -> Any:
        def loss(trainable: list) -> tuple[Any, tuple]:
            outputs, _ = detector.stateless_call(trainable, frozen, batch, training=True)
            losses = objective(detector.loss_sums(outputs, batch))
            return losses["loss"], (outputs, losses)

        return jax.value_and_grad(loss, has_aux=True)(trainable)

    (_, (outputs, losses)), found = gradients([v.value for v in detector.trainable_variables], batch)
    return outputs, losses, found


def _torch_gradients(detector: Detector, batch: Batch) -> tuple:
    import torch

    outputs, losses = _forward(detector, batch)
    found = torch.autograd.grad(losses["loss"], [v.value for v in detector.trainable_variables])
    return *({name: value.detach() for name, value in group.items()} for group in (outputs, losses)), found


_GRADIENTS = {"tensorflow": _tensorflow_gradients, "jax": _jax_gradients, "torch": _torch_gradients}


def _finding(name: str, array: np.ndarray) -> Finding:
    finite = _finite(array)
    good = array[finite]
    low, high = (float(good.min()), float(good.max())) if good.size else (np.nan, np.nan)
    return Finding(name, int(array.size - finite.sum()), int(array.size), low, high)


def _finite(array: np.ndarray) -> np.ndarray:
    return np.isfinite(array) if np.issubdtype(array.dtype, np.inexact) else np.ones(array.shape, bool)


def _elsewhere(fault: Fault) -> str:
    """What the step itself told, where the batch alone does not bring the fault back."""
    names = [name for name, value in fault.scalars.items() if not np.isfinite(value)]
    return f"all is finite; in the step these were not: {', '.join(names)}"
