"""The evaluations of a run: every host detects in its share of the validation data, the chief evaluates and writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from retina.config import Config
from retina.data.batches import Batch
from retina.data.batches.evaluation import evaluation_batches
from retina.data.batches.plan import evaluation_order, fit
from retina.data.dataset import DetectionDataset
from retina.data.detections import DetectionTable
from retina.data.ground_truth import GroundTruth, Results, results
from retina.drawing.evaluation_files import pictures_with_truth, write_evaluation
from retina.evaluation.coco import Metrics, evaluate_as
from retina.evaluation.matching import match
from retina.inference import compile_inference, detect, detect_images, detect_rows
from retina.models.detector import Detector
from retina.private_names import all_layers
from retina.runs.directory import RunDirectory, storing
from retina.runs.hosts import Hosts
from retina.runs.record import ModeLosses
from retina.training.devices import Distribution
from retina.training.progress import Report
from retina.training.step import INPUTS, TrainStep
from retina.training.tensorboard import TensorBoard

Tensor = Any
# Images whose loss is taken in both modes of batch normalisation, which takes two forward passes.
_MODE_IMAGES = 8


class Evaluation(NamedTuple):
    """Detections in a split, the same as results against the ground truth, and their metrics."""

    table: DetectionTable
    results: Results
    metrics: Metrics


class Evaluator:
    """Evaluator of a run's detector on the validation split.

    Args:
        config: its sections `data`, `inference`, `evaluation` and `run` count.
        dataset, truth: the validation split, and the ground truth in its files.
        detector: with its present weights at each call.
        distribution: the devices; each host detects in its share of the images.
    """

    def __init__(
        self,
        config: Config,
        dataset: DetectionDataset,
        truth: GroundTruth,
        detector: Detector,
        distribution: Distribution,
    ):
        self.config, self.dataset, self.truth = config, dataset, truth
        self.distribution = distribution
        self._infer = compile_inference(detector, distribution.engine)

    @cached_property
    def batches(self) -> Iterable[Any]:
        """The batches of this host's share, made once: each time would trace the pipeline and fragment the heap; with
        `evaluation.tiles` the rows."""
        if self.config.evaluation.tiles is not None:
            return range(len(self.dataset))
        return evaluation_batches(
            self.dataset,
            self.config.data,
            batch_size=self.config.inference.batch_size * self.distribution.devices,
            share=(self.distribution.hosts.index, self.distribution.hosts.count),
        )

    def detect(self, batches: Iterable[Any]) -> DetectionTable:
        """Return the detections in `batches`, or some of them."""
        if self.config.evaluation.tiles is None:
            return detect(self._infer, self.dataset, batches)
        images = partial(detect_images, self._infer, self.config, self.dataset.class_names)
        return detect_rows(images, self.dataset, batches, self.config)

    def evaluate(self, table: DetectionTable) -> Evaluation:
        """Return the metrics of the detections of all hosts."""
        split_results = results(table, self.dataset)
        return Evaluation(table, split_results, evaluate_as(self.config.evaluation, self.truth, split_results))

    def write(self, folder: Path, evaluation: Evaluation) -> None:
        """Write the evaluation's files, with `run.pictures` pictures."""
        pictures = self.config.run.pictures
        write_evaluation(folder, self.dataset, evaluation.table, evaluation.metrics, pictures=pictures)

    def show(self, tensorboard: TensorBoard, step: int, evaluation: Evaluation) -> None:
        """Add pictures and precision-recall curves to TensorBoard."""
        for row, picture in pictures_with_truth(self.dataset, evaluation.table, self.config.run.pictures):
            tensorboard.picture(f"predictions/{row}", step, picture, str(self.dataset.image_ids[row]))
        most = self.config.evaluation.max_detections[-1]
        matches = match(self.truth, evaluation.results, iou_thresholds=[0.5], max_detections=most)
        tensorboard.precision_recall(step, matches, self.truth.class_names)


class ModeCheck:
    """Check that inference is the network that was trained: the loss of a few training images in both modes of batch
    normalisation. Training normalises a batch by its own statistics, inference by moving averages of those of earlier
    steps (Ioffe & Szegedy 2015, arXiv:1502.03167), which may lag behind the weights.

    The images are the same at every evaluation, and not augmented. Weights and statistics stay as they are, and nothing
    else of training is switched on, such as dropout.

    Args:
        config: its sections `data` and `run` count.
        dataset: the training data.
        detector: with its present weights at each call.
    """

    def __init__(self, config: Config, dataset: DetectionDataset, detector: Detector):
        self._config, self._dataset, self._detector = config, dataset, detector
        # Frozen ones have one mode. None where all are frozen, or the network has no batch normalisation.
        self._layers = [
            layer
            for layer in all_layers(detector)
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
        ]

    def __call__(self) -> ModeLosses | None:
        """Return the losses; None where no batch normalisation trains."""
        return ModeLosses(*self._compute(self._batch).tolist()) if self._layers else None

    @cached_property
    def _batch(self) -> Batch:
        """Images of the canvas that most have, spread evenly over the table."""
        canvas_of = fit(self._dataset.sizes, self._config.data.resize).canvas_of
        rows = np.flatnonzero(canvas_of == np.bincount(canvas_of).argmax())
        count = min(_MODE_IMAGES, len(rows))
        few = self._dataset.subset(rows[np.linspace(0, len(rows) - 1, count).round().astype(int)])
        batch = next(iter(evaluation_batches(few, self._config.data, batch_size=count)))
        return {name: np.asarray(batch[name]) for name in INPUTS}

    @cached_property
    def _compute(self) -> Callable[[Batch], np.ndarray]:
        """The function from the batch to both losses, compiled once where the backend compiles."""
        backend = keras.backend.backend()
        if backend == "jax":
            return self._on_jax()
        if backend == "tensorflow":
            import tensorflow as tf

            compiled = tf.function(self._losses, autograph=False)
            return lambda batch: compiled(batch).numpy()
        return self._on_torch()

    def _on_jax(self) -> Callable[[Batch], np.ndarray]:
        import jax

        variables = self._detector.variables
        compiled = jax.jit(lambda values, batch: self._losses(batch, list(zip(variables, values, strict=True))))
        # Arrays of this host: those of the variables may lie on the devices of several.
        return lambda batch: np.asarray(compiled([np.asarray(v.value) for v in variables], batch))

    def _on_torch(self) -> Callable[[Batch], np.ndarray]:
        import torch

        @torch.no_grad()
        def compute(batch: Batch) -> np.ndarray:
            losses = self._losses({name: keras.ops.convert_to_tensor(x) for name, x in batch.items()})
            return keras.ops.convert_to_numpy(losses)

        return compute

    def _losses(self, batch: Mapping[str, Tensor], state: Sequence[tuple[keras.Variable, Tensor]] = ()) -> Tensor:
        """Both losses, in the order of `ModeLosses`; `state` are values that stand for those of variables."""

        def loss() -> Tensor:
            with keras.StatelessScope(state):  # what is assigned to the averages is forgotten with it
                return self._detector.loss_sums(self._detector(batch, training=False), dict(batch)).losses()["loss"]

        with self._normalised_by_batch():
            of_batch = loss()
        return keras.ops.stack([of_batch, loss()])

    @contextmanager
    def _normalised_by_batch(self) -> Iterator[None]:
        def by_batch(layer: keras.layers.BatchNormalization) -> Callable[..., Tensor]:
            call = layer.call
            return lambda inputs, training=None, mask=None: call(inputs, training=True, mask=mask)

        # A layer of TensorFlow's training step has a call of its own there already.
        before = [layer.__dict__.get("call") for layer in self._layers]
        for layer in self._layers:
            layer.__dict__["call"] = by_batch(layer)
        try:
            yield
        finally:
            for layer, call in zip(self._layers, before, strict=True):
                del layer.__dict__["call"]
                if call is not None:
                    layer.__dict__["call"] = call


class _Stopped(Exception):
    """A signal came during the evaluation."""


class Validation:
    """The evaluations of a run, with the averaged weights where the run has them (`run.ema`).

    Args:
        directory: of the run; only the chief writes there.
        dataset: the validation split.
        evaluator: of the run's detector.
        modes: the check of the detector's two modes.
        step: has the averages.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        dataset: DetectionDataset,
        evaluator: Evaluator,
        modes: ModeCheck,
        step: TrainStep,
        hosts: Hosts,
    ):
        self._config, self._directory, self._dataset = config, directory, dataset
        self._evaluator, self._modes, self._step, self._hosts = evaluator, modes, step, hosts

    def figures(
        self, step: int, report: Report, tensorboard: TensorBoard, stopped: Callable[[], bool]
    ) -> dict[str, float] | None:
        """Return the figures after `step`, by name, on every host; None if the run was stopped meanwhile.

        Args:
            stopped: asked before each batch; over several hosts all must get the same answer.

        Raises:
            Unwritable: the evaluation could not be written.
        """
        start = time.perf_counter()
        try:
            table, losses = self._detections(stopped)
        except _Stopped:
            return None
        with storing(self._directory.path):
            figures = self._write(step, table, losses, start, report, tensorboard) if self._hosts.chief else {}
            return self._hosts.from_chief(figures)

    def _detections(self, stopped: Callable[[], bool]) -> tuple[DetectionTable, ModeLosses | None]:
        def batches() -> Iterator[Any]:
            for batch in self._evaluator.batches:
                if stopped():
                    raise _Stopped
                yield batch

        with self._step.averaged():
            table = self._evaluator.detect(batches())
            losses = self._modes() if self._hosts.chief else None
        order = lambda: evaluation_order(self._dataset.sizes, self._config.data.resize)  # noqa: E731
        return self._hosts.gather_table(table, order), losses

    def _write(
        self,
        step: int,
        table: DetectionTable,
        losses: ModeLosses | None,
        start: float,
        report: Report,
        tensorboard: TensorBoard,
    ) -> dict[str, float]:
        """Evaluate the detections, write all of it down, and return the figures."""
        evaluation = self._evaluator.evaluate(table)
        folder, figures = self._directory.evaluation(step), evaluation.metrics.metrics
        self._evaluator.write(folder, evaluation)
        of_modes = {} if losses is None else {"mode_losses": losses.to_dict()}
        self._directory.append_metrics({"step": step, "split": "validation", "metrics": figures, **of_modes})
        tensorboard.scalars("validation", {"step": step, **figures})
        self._evaluator.show(tensorboard, step, evaluation)
        report.say(
            f"step {step}: validation AP {figures['AP']:.4f}, AP50 {figures['AP50']:.4f} "
            f"({time.perf_counter() - start:.1f} s)"
        )
        if losses is not None:
            report.say(f"step {step}: {losses}")
            if losses.part:
                report.say(f"step {step}: warning: {losses.verdict}")
        return figures
