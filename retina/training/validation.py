"""The evaluations of a run: every host looks at its share of the validation data, the chief judges and writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import Any

from retina.config import Config
from retina.data.batches.evaluation import evaluation_batches
from retina.data.batches.plan import evaluation_order
from retina.data.dataset import DetectionDataset
from retina.data.detections import DetectionTable
from retina.data.ground_truth import GroundTruth, results
from retina.drawing.evaluation_files import pictures_with_truth, write_evaluation
from retina.evaluation.coco import evaluate_as
from retina.evaluation.matching import match
from retina.inference import compile_inference, detect
from retina.runs.directory import RunDirectory
from retina.runs.storage import storing
from retina.training.devices import Distribution
from retina.training.parts import Parts
from retina.training.progress import Report
from retina.training.tensorboard import TensorBoard


class _ToldToStop(Exception):
    pass


class Validation:
    """Measures the detector of a run, with the averaged weights where it keeps them.

    Args:
        directory: of the run; only the chief writes there.
        dataset, truth: the validation split, and what its files hold.
        parts: whose detector is looked at, and whose step knows the averages.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        dataset: DetectionDataset,
        truth: GroundTruth,
        parts: Parts,
        distribution: Distribution,
    ):
        self._config, self._directory, self._dataset, self._truth = config, directory, dataset, truth
        self._step, self._distribution, self._hosts = parts.step, distribution, distribution.hosts
        self._infer = compile_inference(parts.detector, distribution.engine)

    def figures(
        self, step: int, report: Report, tensorboard: TensorBoard, told_to_stop: Callable[[], bool]
    ) -> dict[str, float] | None:
        """The figures after `step`, by name, on every host; None where the run was told to stop on the way.

        Args:
            told_to_stop: asked before each batch; over several hosts it must not tell one of them alone.

        Raises:
            Unwritable: the evaluation could not be written.
        """
        start = time.perf_counter()
        try:
            table = self._detections(told_to_stop)
        except _ToldToStop:
            return None
        with storing(self._directory.path):
            own = self._judge(step, table, start, report, tensorboard) if self._hosts.chief else {}
            return self._hosts.from_chief(own)

    def _detections(self, told_to_stop: Callable[[], bool]) -> DetectionTable:
        def batches() -> Iterator[Any]:
            for batch in self._batches:
                if told_to_stop():
                    raise _ToldToStop
                yield batch

        with self._step.averaged():
            table = detect(self._infer, self._dataset, batches())
        return self._hosts.gather_table(table, lambda: evaluation_order(self._dataset.sizes, self._config.data.resize))

    @cached_property
    def _batches(self) -> Iterable[Any]:
        """Of this host. Made once: each time would trace the pipeline anew and fray the heap."""
        return evaluation_batches(
            self._dataset,
            self._config.data,
            batch_size=self._config.inference.batch_size * self._distribution.devices,
            share=(self._hosts.index, self._hosts.count),
        )

    def _judge(
        self, step: int, table: DetectionTable, start: float, report: Report, tensorboard: TensorBoard
    ) -> dict[str, float]:
        """The figures, written down."""
        settings, pictures = self._config.evaluation, self._config.run.pictures
        found = results(table, self._dataset)
        metrics = evaluate_as(settings, self._truth, found)
        folder, figures = self._directory.evaluation(step), metrics.metrics
        write_evaluation(folder, self._dataset, table, metrics, pictures=pictures)
        self._directory.append_metrics({"step": step, "split": "validation", "metrics": figures})
        tensorboard.scalars("validation", {"step": step, **figures})
        for row, picture in pictures_with_truth(self._dataset, table, pictures):
            tensorboard.picture(f"predictions/{row}", step, picture, str(self._dataset.image_ids[row]))
        matches = match(self._truth, found, iou_thresholds=[0.5], max_detections=settings.max_detections[-1])
        tensorboard.precision_recall(step, matches, self._truth.class_names)
        report.say(
            f"step {step}: validation AP {figures['AP']:.4f}, AP50 {figures['AP50']:.4f} "
            f"({time.perf_counter() - start:.1f} s)"
        )
        return figures
