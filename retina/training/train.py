"""`train`: from a configuration to a run directory with a trained detector."""

from __future__ import annotations

import errno
import math
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from retina import config as configuration
from retina.config import Config
from retina.data.dataset import DetectionDataset
from retina.data.load import check_same_classes, load_split
from retina.data.pipeline import training_batches, translated
from retina.data.scoring import GroundTruth, ground_truth, results
from retina.data.split_truth import split_truth
from retina.errors import RetinaError
from retina.evaluation.coco import Metrics, evaluate_as
from retina.inference import build_detector, compile_inference, detect
from retina.report.evaluation import write_evaluation
from retina.training import checkpoint as checkpoints
from retina.training.environment import describe_environment, devices
from retina.training.interruption import Interrupted, InterruptionGuard
from retina.training.optimizer import build_optimizer
from retina.training.progress import Report
from retina.training.run_directory import BEST, LATEST, RunDirectory, refuse_if_used
from retina.training.step import build_step
from retina.training.tensorboard import TensorBoard

# The disk is full or the folder is no longer ours: the last checkpoint stands.
_STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def train(
    config: Config,
    run_dir: str | Path,
    *,
    resume: bool = False,
    train_data: DetectionDataset | None = None,
    validation_data: DetectionDataset | None = None,
) -> Path:
    """Trains a detector and evaluates it on the validation data.

    Args:
        config: the whole configuration (`retina.load_config`).
        run_dir: a new or empty folder, or with `resume` a run made by the same configuration.
        resume: go on from the latest checkpoint.
        train_data, validation_data: tables to use in place of those that `config.data` names.

    Returns:
        The run directory: configuration, environment, log, metrics, checkpoints, evaluations.

    Raises:
        RetinaError: data, configuration or run directory can't be used; found before anything is written.
        Interrupted: SIGINT, SIGTERM or SIGHUP came; `resume` goes on from there.
        FloatingPointError: the loss or its gradient is no longer finite; no checkpoint is written then.
    """
    path = Path(run_dir)
    config = configuration.with_absolute_root(config)
    saved = _read_latest(path, config) if resume else None
    if not resume:
        refuse_if_used(path)
    train_data = load_split(config.data, "train") if train_data is None else train_data
    if validation_data is None:
        validation_data = load_split(config.data, "validation")
        validation_truth = split_truth(config.data, "validation", validation_data)
    else:
        validation_truth = ground_truth(validation_data)
    check_same_classes(train_data, validation_data)
    if saved is not None:
        _check_classes(saved, train_data)

    keras.utils.set_random_seed(config.run.seed)
    if config.run.deterministic:
        _make_deterministic()
    detector = build_detector(config, train_data.class_names, load_weights=saved is None)
    if resume:
        run = RunDirectory.open(path)
    else:
        run = RunDirectory.create(path, configuration.to_yaml(config), describe_environment(config))
    try:
        return _Training(config, run, detector, train_data, validation_data, validation_truth, saved).run()
    except OSError as error:
        if error.errno not in _STORAGE_ERRORS:
            raise
        raise RetinaError(
            f"{path}: the run stopped, since it cannot be written: {error.strerror}; make room, then go on with: "
            f"retina train --run-dir {path} --resume"
        ) from None


def _make_deterministic() -> None:
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif keras.backend.backend() == "torch":
        import torch

        torch.use_deterministic_algorithms(True)


class _Training:
    """The state of a run in progress; each method is one thing that happens to it."""

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        detector: Any,
        train_data: DetectionDataset,
        validation_data: DetectionDataset,
        validation_truth: GroundTruth,
        saved: checkpoints.Checkpoint | None,
    ):
        self.config, self.directory, self.detector = config, run, detector
        self.train_data, self.validation_data = train_data, validation_data
        self.validation_truth = validation_truth
        self.optimizer = build_optimizer(config.optimizer, config.schedule)
        self.optimizer.build(detector.trainable_variables)
        self.first_step, self.best = 0, None
        if saved is not None:
            checkpoints.restore(saved.arrays, detector, self.optimizer)
            self.first_step, self.best = saved.step, saved.best
            run.forget_after(saved.step)
        self.step = build_step(detector, self.optimizer, config.optimizer)
        self.infer = compile_inference(detector)

    def run(self) -> Path:
        steps, settings = self.config.schedule.steps, self.config.run
        batches = training_batches(
            self.train_data,
            self.config.data,
            batch_size=settings.batch_size,
            seed=settings.seed,
            first_step=self.first_step,
            steps=steps,
        )
        with (
            Report(self.directory.path / "log.txt", steps, self.first_step) as self.report,
            TensorBoard(self.directory.path / "tensorboard") as self.tensorboard,
            translated(),
            InterruptionGuard(self.report.say) as interruption,
        ):
            self._introduce()
            meter = _Meter(settings.batch_size)
            iterator = iter(batches)
            for step in range(self.first_step + 1, steps + 1):
                with meter.waiting():
                    batch = next(iterator)
                meter.add(self.step(batch))
                self.report.advance(step)
                stopped_by = interruption.signal  # read once: one that comes later waits for the next step
                evaluates = _due(step, settings.evaluate_every, steps)
                # Every evaluation is a place to go on from, whatever `checkpoint_every` says.
                saves = evaluates or _due(step, settings.checkpoint_every, steps) or bool(stopped_by)
                if saves or step % settings.log_every == 0:
                    meter.check(step)
                    self._log(step, meter)
                is_best = evaluates and self._evaluate(step)
                if saves:
                    self._save(step, is_best)
                    meter.restart()
                if stopped_by and step < steps:
                    raise Interrupted(
                        f"{stopped_by} after step {step} of {steps}; the checkpoint is written. Go on with: "
                        f"retina train --run-dir {self.directory.path} --resume"
                    )
        return self.directory.path

    def _introduce(self) -> None:
        self.report.say(f"training on {', '.join(devices())} ({keras.backend.backend()})")
        for data in (self.train_data, self.validation_data):
            self.report.say(
                f"{data.name}: {len(data)} images, {len(data.boxes)} boxes, {len(data.class_names)} classes"
            )
            for note in data.notes:
                self.report.say(note)
        if self.first_step:
            self.report.say(f"resumed after step {self.first_step}")

    def _log(self, step: int, meter: _Meter) -> None:
        scalars = meter.read()
        rate = float(keras.ops.convert_to_numpy(self._rate(step - 1)))
        line = {"step": step, **scalars, "learning_rate": rate}
        self.directory.append_metrics(line)
        self.tensorboard.scalars("train", line)
        remaining = (self.config.schedule.steps - step) * self.config.run.batch_size / scalars["images_per_second"]
        self.report.scalars(line, remaining)

    def _rate(self, step: int) -> Any:
        return self.optimizer._learning_rate(step)  # the schedule; the public property reads it at `iterations`

    def _evaluate(self, step: int) -> bool:
        """Measures the detector on the validation data; True if it is the best so far."""
        self.step.sync()
        start = time.perf_counter()
        table = detect(self.infer, self.validation_data, self.config.data, self.config.inference.batch_size)
        found = results(table, self.validation_data)
        metrics = evaluate_as(self.config.evaluation, self.validation_truth, found)
        write_evaluation(
            self.directory.evaluation(step), self.validation_data, table, metrics, pictures=self.config.run.pictures
        )
        self.directory.append_metrics({"step": step, "split": "validation", "metrics": metrics.metrics})
        self.tensorboard.scalars("validation", {"step": step, **metrics.metrics})
        self.tensorboard.picture("predictions", step, self.directory.evaluation(step) / "predictions.png")
        self.report.say(
            f"step {step}: validation AP {metrics.metrics['AP']:.4f}, AP50 {metrics.metrics['AP50']:.4f} "
            f"({time.perf_counter() - start:.1f} s)"
        )
        return self._is_best(metrics)

    def _is_best(self, metrics: Metrics) -> bool:
        value = metrics.metrics[self.config.evaluation.metric]
        if self.best is not None and value <= self.best:
            return False
        self.best = value
        return True

    def _save(self, step: int, is_best: bool) -> None:
        self.step.sync()
        path = self._write(step)
        if is_best:
            self.directory.point(BEST, path)
        self.directory.point(LATEST, path)

    def _write(self, step: int) -> Path:
        path = self.directory.checkpoint_path(f"step_{step}")
        checkpoint = checkpoints.Checkpoint(
            step,
            self.config.model_dump(mode="json"),
            self.train_data.class_names,
            self.train_data.category_ids,
            self.best,
            checkpoints.gather(self.detector, self.optimizer),
        )
        checkpoints.save(path, checkpoint)
        return path


class _Meter:
    """Means of the step's scalars, throughput and the share of time spent waiting for data, since the last `read`.

    Scalars stay on the device until `read`, so that the host runs ahead of it.
    """

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        self.pending: list[dict[str, Any]] = []
        self.start, self.waited = time.perf_counter(), 0.0

    def waiting(self) -> _Stopwatch:
        return _Stopwatch(self)

    def add(self, scalars: dict[str, Any]) -> None:
        self.pending.append(scalars)

    def check(self, last: int) -> None:
        """Before anything is written: weights that are not finite must not become a checkpoint.

        Args:
            last: the step that was added last.

        Raises:
            FloatingPointError: names the first step whose loss or gradient is not finite.
        """
        for step, scalars in enumerate(self.pending, start=last - len(self.pending) + 1):
            for name, what in (("loss", "loss"), ("gradient_norm", "norm of the gradient")):
                value = float(keras.ops.convert_to_numpy(scalars[name]))
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"step {step}: the {what} is {value}; lower optimizer.learning_rate, lengthen "
                        "schedule.warmup_steps, or set optimizer.clip_norm"
                    )

    def read(self) -> dict[str, float]:
        names = self.pending[0].keys()
        means = {
            name: float(np.mean([keras.ops.convert_to_numpy(scalars[name]) for scalars in self.pending]))
            for name in names
        }
        elapsed = time.perf_counter() - self.start
        means["images_per_second"] = len(self.pending) * self.batch_size / elapsed
        means["data_wait"] = self.waited / elapsed
        self.restart()
        return means


class _Stopwatch:
    def __init__(self, meter: _Meter):
        self.meter = meter

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.meter.waited += time.perf_counter() - self.start


def _due(step: int, every: int | None, steps: int) -> bool:
    return step == steps or (every is not None and step % every == 0)


def _read_latest(path: Path, config: Config) -> checkpoints.Checkpoint:
    saved = checkpoints.read(RunDirectory.open(path).checkpoint_path(LATEST))
    changed = _changed_keys(saved.config, config.model_dump(mode="json"))
    if changed:
        raise RetinaError(
            f"{path}: cannot resume with a changed config: {', '.join(changed)}; resume with the run's own "
            f"({path}/config.yaml), or start a new run"
        )
    if saved.step >= config.schedule.steps:
        raise RetinaError(f"{path}: this run is finished ({saved.step} of {config.schedule.steps} steps)")
    return saved


def _check_classes(saved: checkpoints.Checkpoint, data: DetectionDataset) -> None:
    before, now = (saved.class_names, saved.category_ids), (data.class_names, data.category_ids)
    if before != now:
        raise RetinaError(
            f"{data.name}: cannot resume: its classes {list(now[0])} with category ids {list(now[1])} are not the "
            f"checkpoint's {list(before[0])} with {list(before[1])}; restore the data, or start a new run"
        )


def _changed_keys(before: Any, after: Any, prefix: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(set(before) | set(after))
        return [
            name
            for key in keys
            for name in _changed_keys(before.get(key), after.get(key), f"{prefix}.{key}".lstrip("."))
        ]
    return [] if before == after else [f"{prefix} ({before} → {after})"]
