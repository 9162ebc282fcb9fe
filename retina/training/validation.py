"""The evaluations of a run: every host detects in its share of the validation data, the chief evaluates and writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from retina.config import Config
from retina.data.batches.evaluation import evaluation_batches
from retina.data.batches.plan import evaluation_order
from retina.data.dataset import DetectionDataset
from retina.data.detections import DetectionTable
from retina.data.ground_truth import GroundTruth, Results, results
from retina.drawing.evaluation_files import pictures_with_truth, write_evaluation
from retina.evaluation.coco import Metrics, evaluate_as
from retina.evaluation.matching import match
from retina.inference import compile_inference, detect
from retina.models.detector import Detector
from retina.runs.directory import RunDirectory, storing
from retina.runs.hosts import Hosts
from retina.training.devices import Distribution
from retina.training.progress import Report
from retina.training.step import TrainStep
from retina.training.tensorboard import TensorBoard


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
        """The batches of this host's share, made once: each time would trace the pipeline and fragment the heap."""
        return evaluation_batches(
            self.dataset,
            self.config.data,
            batch_size=self.config.inference.batch_size * self.distribution.devices,
            share=(self.distribution.hosts.index, self.distribution.hosts.count),
        )

    def detect(self, batches: Iterable[Any]) -> DetectionTable:
        """Return the detections in the batches."""
        return detect(self._infer, self.dataset, batches)

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


class _Stopped(Exception):
    """A signal came during the evaluation."""


class Validation:
    """The evaluations of a run, with the averaged weights where the run has them (`run.ema`).

    Args:
        directory: of the run; only the chief writes there.
        dataset: the validation split.
        evaluator: of the run's detector.
        step: has the averages.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        dataset: DetectionDataset,
        evaluator: Evaluator,
        step: TrainStep,
        hosts: Hosts,
    ):
        self._config, self._directory, self._dataset = config, directory, dataset
        self._evaluator, self._step, self._hosts = evaluator, step, hosts

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
            table = self._detections(stopped)
        except _Stopped:
            return None
        with storing(self._directory.path):
            figures = self._write(step, table, start, report, tensorboard) if self._hosts.chief else {}
            return self._hosts.from_chief(figures)

    def _detections(self, stopped: Callable[[], bool]) -> DetectionTable:
        def batches() -> Iterator[Any]:
            for batch in self._evaluator.batches:
                if stopped():
                    raise _Stopped
                yield batch

        with self._step.averaged():
            table = self._evaluator.detect(batches())
        return self._hosts.gather_table(table, lambda: evaluation_order(self._dataset.sizes, self._config.data.resize))

    def _write(
        self, step: int, table: DetectionTable, start: float, report: Report, tensorboard: TensorBoard
    ) -> dict[str, float]:
        """Evaluate the detections, write all of it down, and return the figures."""
        evaluation = self._evaluator.evaluate(table)
        folder, figures = self._directory.evaluation(step), evaluation.metrics.metrics
        self._evaluator.write(folder, evaluation)
        self._directory.append_metrics({"step": step, "split": "validation", "metrics": figures})
        tensorboard.scalars("validation", {"step": step, **figures})
        self._evaluator.show(tensorboard, step, evaluation)
        report.say(
            f"step {step}: validation AP {figures['AP']:.4f}, AP50 {figures['AP50']:.4f} "
            f"({time.perf_counter() - start:.1f} s)"
        )
        return figures
