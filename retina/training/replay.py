"""Search for the tensor that is not finite in a failed step, on the step's saved batch; it can be repeated later."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable
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
from retina.models.objective import Sums
from retina.runs.checkpoint import gather, read, restore
from retina.runs.directory import RunDirectory
from retina.training.progress import Fault
from retina.training.step import INPUTS

Batch = dict[str, Any]
# A function of a batch: outputs, sums of losses, and the gradients of the loss or, undivided, of the sums.
Differentiate = Callable[[Batch], tuple[dict[str, Any], Sums, Any]]
_REMEDY = "lower optimizer.learning_rate, lengthen schedule.warmup_steps, or set optimizer.clip_norm"
_NAMED_IMAGES = 8
_LONGEST = 200  # characters of an error within the message


class Finding(NamedTuple):
    """Finding in a tensor.

    Attributes:
        name: the tensor's name.
        bad: the number of its values that are not finite.
        size: the number of its values.
        low, high: the range of the finite values, NaN if there are none.
    """

    name: str
    bad: int
    size: int
    low: float
    high: float


@dataclass(frozen=True)
class Replay:
    """Replay of a failed step: the findings of its batch in the network.

    Attributes:
        step: the step that failed.
        weights: the words for the weights that were used, such as "of step 5".
        images: the names of the batch's images.
        findings: in the order of computation: images, weights, outputs, losses, gradients by variable path.
    """

    step: int
    weights: str
    images: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def first_bad(self) -> Finding | None:
        """Return the first finding with values that are not finite."""
        return _first_bad(self.findings)

    def __str__(self) -> str:
        width = max(len(finding.name) for finding in self.findings)
        rows = [
            f"{finding.name:{width}}  {finding.low:12.5g} … {finding.high:<12.5g}"
            + (f"  {finding.bad} of {finding.size} not finite" if finding.bad else "")
            for finding in self.findings
        ]
        return "\n".join([f"step {self.step}, with the weights {self.weights}", *self.images, *rows])


def keep_batch(run: RunDirectory, batch: Batch, dataset: DetectionDataset, fault: Fault) -> None:
    """Save the batch of a failed step before anything is tried with it; `record` adds the weights.

    Raises:
        OSError: it cannot be written.
    """
    arrays = {name: np.asarray(value) for name, value in batch.items()}
    _save(_path(run, fault.step), _meta(dataset, arrays, fault), arrays, {})


def record(
    run: RunDirectory,
    detector: Detector | None,
    origin: str,
    batch: Batch | None,
    dataset: DetectionDataset,
    fault: Fault,
    parts: int = 1,
    gradients: Callable[[Detector, bool], Differentiate] | None = None,
) -> str:
    """Save the batch of a failed step in `replay/step_N.npz`, search for the tensor, and return a message on both.

    The message names the step, whatever else fails, and says what failed.

    Args:
        detector: with the weights before the step, or of the nearest step before it; None if there is none.
        origin: the words for these weights, such as "of step 5"; for None the reason why there is no detector.
        batch: of the step, as in `retina.data.batches.Batch`; None if it could not be read again.
        dataset: has the rows that the batch's `index` names.
        parts: the number of equal parts in which the batch goes through the network, for the device's memory.
        gradients: see `gradients_of`, the default.
    """
    failure = f"step {fault.step}: the {fault.what} is {fault.value}; {_REMEDY}"
    if batch is None:
        return f"{failure}. Its batch could not be read again"
    arrays = {name: np.asarray(value) for name, value in batch.items()}
    saved = _save_all(run, detector, origin, arrays, dataset, fault, parts)
    where = f"Which tensor was first is not known: {origin}"
    if detector is not None:
        where = f"With the weights {origin}, {_search(detector, arrays, fault, parts, gradients or gradients_of)}"
    images = image_names(dataset, arrays["index"])
    named = ", ".join(images[:_NAMED_IMAGES]) + (", …" if len(images) > _NAMED_IMAGES else "")
    return f"{failure}. {where}. Images: {named}; {saved}"


def why(error: Exception) -> str:
    """Return an error's message in a line."""
    message = (error.strerror if isinstance(error, OSError) else None) or str(error)
    first = next(iter(message.splitlines()), "")[:_LONGEST]
    return first if isinstance(error, OSError | RetinaError) else f"{type(error).__name__}: {first}"


def replay(
    run: str | Path,
    step: int,
    checkpoint: str | None = None,
    *,
    build_detector: Callable[..., Detector] = build_detector,
) -> Replay:
    """Put the saved batch of a failed step through the network again.

    Args:
        run: the run directory.
        step: the step that failed.
        checkpoint: `best`, `latest` or `step_N`; None takes the weights that were saved with the batch.
        build_detector: makes the detector, as `retina.inference.build_detector`.

    Raises:
        RetinaError: there is no such run, step or checkpoint.
    """
    directory = RunDirectory.open(Path(run))
    path = _path(directory, step)
    if not path.is_file():
        raise RetinaError(f"{path}: no such batch; batches are saved when a loss or a gradient is not finite")
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    meta = json.loads(str(arrays["__meta__"]))
    weights, origin = {name: array for name, array in arrays.items() if name.startswith("weights/")}, meta["origin"]
    if checkpoint is not None:
        saved = read(directory.checkpoint_path(checkpoint))
        weights, origin = saved.arrays, f"of step {saved.step}"
    if not weights:
        raise RetinaError(f"{path}: expected weights beside the batch, got none; name a checkpoint, such as 'latest'")
    config = configuration.load(directory.path / "config.yaml")
    detector = build_detector(config, meta["class_names"], load_weights=False)
    restore(weights, detector)
    batch = {name.removeprefix("batch/"): array for name, array in arrays.items() if name.startswith("batch/")}
    return Replay(step, origin, tuple(meta["images"]), tuple(_diagnose(detector, batch, meta.get("parts", 1))))


def image_names(dataset: DetectionDataset, index: np.ndarray) -> tuple[str, ...]:
    """Return the images of these rows of the table as an error message names them."""
    return tuple(
        str(dataset.images[row])
        if isinstance(dataset.images[row], str)
        else f"{dataset.name}: image {dataset.image_ids[row]}"
        for row in index.tolist()
        if row >= 0
    )


def _path(run: RunDirectory, step: int) -> Path:
    return run.path / "replay" / f"step_{step}.npz"


def _meta(dataset: DetectionDataset, batch: Batch, fault: Fault) -> dict[str, Any]:
    images = image_names(dataset, batch["index"])
    return {"images": images, "class_names": dataset.class_names, "scalars": fault.scalars, "origin": "unknown"}


def _save_all(
    run: RunDirectory,
    detector: Detector | None,
    origin: str,
    batch: Batch,
    dataset: DetectionDataset,
    fault: Fault,
    parts: int,
) -> str:
    """Save the batch, with the detector's weights if there is one, and say where; or say why that failed."""
    path = _path(run, fault.step)
    again = f"from retina.training.replay import replay; print(replay({str(run.path)!r}, {fault.step}))"
    try:
        if detector is None:
            keep_batch(run, batch, dataset, fault)
            return f"the batch is in {path}"
        weights = {name: array for name, array in gather(detector).items() if name.startswith("weights/")}
        detected = {"class_names": detector.class_names, "origin": origin, "parts": parts}
        _save(path, {**_meta(dataset, batch, fault), **detected}, batch, weights)
        return f"the batch is in {path}; look at it again with: python -c {shlex.quote(again)}"
    except Exception as error:  # the message on the step matters more
        return f"the batch could not be saved: {why(error)}"


def _save(path: Path, meta: dict[str, Any], batch: Batch, weights: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    stored: dict[str, Any] = {f"batch/{name}": array for name, array in batch.items()}
    with written(path) as temporary:
        np.savez_compressed(temporary, __meta__=np.array(json.dumps(meta)), **stored, **weights)


def _search(
    detector: Detector,
    batch: Batch,
    fault: Fault,
    parts: int,
    gradients: Callable[[Detector, bool], Differentiate],
) -> str:
    """Return the message's words for the first tensor that is not finite."""
    try:
        first = _first_bad(_diagnose(detector, batch, parts, gradients))
    except Exception as error:  # the batch may not fit in memory a second time
        return f"the search for the tensor failed: {why(error)}"
    if first is not None:
        return f"first not finite: {first.name} ({first.bad} of {first.size} values)"
    names = [name for name, value in fault.scalars.items() if not np.isfinite(value)]
    return f"all is finite; in the step these were not: {', '.join(names)}"


def _first_bad(findings: Iterable[Finding]) -> Finding | None:
    return next((finding for finding in findings if finding.bad), None)


def _diagnose(
    detector: Detector,
    batch: Batch,
    parts: int,
    gradients: Callable[[Detector, bool], Differentiate] | None = None,
) -> list[Finding]:
    """Return the findings in the tensors, of all parts together, in the order of computation."""
    variables = detector.trainable_variables
    weights = [(v.path, keras.ops.convert_to_numpy(v.value)) for v in detector.variables]
    differentiate = (gradients or gradients_of)(detector, parts > 1)
    size = len(batch["images"]) // parts
    outputs: dict[str, Finding] = {}
    total: tuple[Sums, list] | None = None
    for place in range(0, parts * size, size):
        part = {name: keras.ops.convert_to_tensor(batch[name][place : place + size]) for name in INPUTS}
        tensors, sums, part_gradients = differentiate(part)
        for name, value in tensors.items():
            finding = _finding(name, keras.ops.convert_to_numpy(value))
            outputs[name] = _merged(outputs[name], finding) if name in outputs else finding
        new = (sums, list(part_gradients))
        total = new if total is None else keras.tree.map_structure(lambda x, y: x + y, total, new)
    assert total is not None
    losses, divisor = total[0].losses(), 1.0
    if parts > 1:
        divisor = float(keras.ops.convert_to_numpy(total[0].divisor))
    named = [
        *((name, losses[name]) for name in ("loss_classification", "loss_box", "loss")),
        *((f"gradient of {v.path}", value / divisor) for v, value in zip(variables, total[1], strict=True)),
    ]
    return [
        *(_finding(name, batch[name]) for name in ("images", "boxes")),
        *(_finding(f"weight {path}", array) for path, array in weights if not _finite(array).all()),
        *outputs.values(),
        *(_finding(name, keras.ops.convert_to_numpy(value)) for name, value in named),
    ]


def gradients_of(detector: Detector, undivided: bool) -> Differentiate:
    """Return the function that differentiates a detector's loss for a batch on the backend in use.

    Args:
        undivided: take the gradients of the summed losses, without a divisor.
    """
    backends = {"tensorflow": _tensorflow_gradients, "jax": _jax_gradients, "torch": _torch_gradients}
    return backends[keras.backend.backend()](detector, undivided)


def _target(sums: Sums, undivided: bool) -> Any:
    return sums.undivided if undivided else sums.losses()["loss"]


def _tensorflow_gradients(detector: Detector, undivided: bool) -> Differentiate:
    import tensorflow as tf

    def gradients(batch: Batch) -> tuple:
        with tf.GradientTape() as tape:
            outputs = detector(batch, training=True)
            sums = detector.loss_sums(outputs, batch)
            target = _target(sums, undivided)
        return outputs, sums, tape.gradient(target, [v.value for v in detector.trainable_variables])

    return gradients


def _jax_gradients(detector: Detector, undivided: bool) -> Differentiate:
    import jax

    frozen = [v.value for v in detector.non_trainable_variables]

    @jax.jit
    def gradients(trainable: list, batch: Batch) -> tuple:
        def loss(trainable: list) -> tuple[Any, tuple]:
            outputs, _ = detector.stateless_call(trainable, frozen, batch, training=True)
            sums = detector.loss_sums(outputs, batch)
            return _target(sums, undivided), (outputs, sums)

        (_, auxiliary), derivatives = jax.value_and_grad(loss, has_aux=True)(trainable)
        return *auxiliary, derivatives

    return lambda batch: gradients([v.value for v in detector.trainable_variables], batch)


def _torch_gradients(detector: Detector, undivided: bool) -> Differentiate:
    import torch

    def gradients(batch: Batch) -> tuple:
        outputs = detector(batch, training=True)
        sums = detector.loss_sums(outputs, batch)
        derivatives = torch.autograd.grad(_target(sums, undivided), [v.value for v in detector.trainable_variables])
        return *keras.tree.map_structure(lambda x: x.detach(), (dict(outputs), sums)), derivatives

    return gradients


def _finding(name: str, array: np.ndarray) -> Finding:
    finite = _finite(array)
    good = array[finite]
    low, high = (float(good.min()), float(good.max())) if good.size else (np.nan, np.nan)
    return Finding(name, int(array.size - finite.sum()), int(array.size), low, high)


def _merged(first: Finding, second: Finding) -> Finding:
    """Merge the findings in two parts of a tensor."""
    low, high = float(np.fmin(first.low, second.low)), float(np.fmax(first.high, second.high))
    return Finding(first.name, first.bad + second.bad, first.size + second.size, low, high)


def _finite(array: np.ndarray) -> np.ndarray:
    return np.isfinite(array) if np.issubdtype(array.dtype, np.inexact) else np.ones(array.shape, bool)
