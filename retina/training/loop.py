"""The loop of a training run: a step, and what is due after it."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import keras

from retina.config import Config
from retina.data.batches.evaluation import translated
from retina.data.batches.training import described, training_batches
from retina.data.dataset import DetectionDataset
from retina.data.ground_truth import GroundTruth
from retina.errors import RetinaError, RunFailed
from retina.models.detector import Detector
from retina.runs import checkpoint as checkpoints
from retina.runs.background_writer import BackgroundWriter
from retina.runs.directory import BEST, LATEST, RunDirectory, resume_command
from retina.runs.environment import devices, memory, trim_memory
from retina.runs.interruption import Interrupted, InterruptionGuard
from retina.runs.state import Progress, after_evaluation, is_due, stops_early
from retina.runs.storage import stored, storing
from retina.training.callbacks import Callbacks
from retina.training.devices import ALONE, Distribution
from retina.training.meter import Fault, Meter, state_fault
from retina.training.parts import Parts, assemble
from retina.training.progress import Report
from retina.training.replay import keep_batch, record, why
from retina.training.resuming import newest_checkpoint
from retina.training.tensorboard import TensorBoard
from retina.training.validation import Validation

# Steps that are gone through again to find the weights that a failed one had met.
_REWINDS = 200


class Data(NamedTuple):
    """What a run trains and validates on; `truth` is what the validation split's files hold."""

    train: DetectionDataset
    validation: DetectionDataset
    truth: GroundTruth


class Loop:
    """The state of a run in progress; each method is one thing that happens to it."""

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        data: Data,
        parts: Parts,
        saved: checkpoints.Checkpoint | None,
        notes: Sequence[str],
        callbacks: Sequence[keras.callbacks.Callback],
        distribution: Distribution = ALONE,
    ):
        self.distribution, self.hosts = distribution, distribution.hosts
        self.slots = distribution.slots(config.run.batch_size, config.run.accumulate)
        self.config, self.directory, self.data, self.notes = config, run, data, notes
        self.detector, self.optimizer, self.step = parts.detector, parts.optimizer, parts.step
        self.steps, self.settings = config.schedule.steps, config.run
        self.first_step = saved.step if saved else 0
        self.progress = Progress.from_dict(saved.progress) if saved else Progress()
        self.best_steps = {self.first_step: self.progress.best_step}  # by checkpoint
        self.meter = Meter(self.settings.batch_size, self.progress.pending)
        self.line: dict[str, float] = {}  # the last of metrics.jsonl
        self.saved_at = time.monotonic()
        self.validation = Validation(config, run, data.validation, data.truth, parts, distribution)
        self.callbacks = Callbacks(
            callbacks if self.hosts.chief else (),
            self.detector,
            self.optimizer,
            every=self.settings.evaluate_every or self.steps,
            steps=self.steps,
            sync=self.step.sync,
            reload=self._reload,
        )

    def run(self) -> Path:
        path = self.directory.path if self.hosts.chief else None
        with (
            Report(path and path / "log.txt", self.steps, self.first_step) as self.report,
            # Around the writer: a signal must not end the run while its last checkpoint is being written.
            InterruptionGuard(self.report.say) as interruption,
            stored(
                self.directory.path, TensorBoard(path and path / "tensorboard", self.first_step)
            ) as self.tensorboard,
            translated(self.data.train),
            BackgroundWriter() as self.writer,
        ):
            self._introduce()
            with storing(self.directory.path):
                self.tensorboard.settings(self.config)
            self.callbacks.train_begin()
            if not (self.progress.unevaluated and self._evaluated_late(interruption)):
                self._train(interruption)
            self.callbacks.train_end(self.line)
        return self.directory.path

    def _evaluated_late(self, interruption: InterruptionGuard) -> bool:
        """The evaluation that a signal kept the run from, before it goes on; whether it ends with it."""
        if self.hosts.chief:
            self.line = next((line for line in reversed(self.directory.metrics()) if "split" not in line), {})
        return self._behind(self.first_step, interruption, evaluates=True, ends=self.first_step == self.steps)

    def _train(self, interruption: InterruptionGuard) -> None:
        batches = self._batches(self.first_step, self.steps)
        for step in range(self.first_step + 1, self.steps + 1):
            with self.meter.waiting():
                batch = next(batches)
            self.callbacks.batch_begin(step)
            self.meter.add(self.step(batch))
            self.callbacks.batch_end(step, self.meter.latest)
            self.report.advance(step)
            self.writer.check()

            # The signal is read once: one that comes later waits for the evaluation's batches or the next step.
            stopped_by, waited, ends = self._wishes(step, interruption.signal)
            evaluates = ends or is_due(step, self.settings.evaluate_every)
            # A fixed grid: a run that is stopped and resumed has the lines of one that was not.
            logs = evaluates or is_due(step, self.settings.log_every)
            saves = is_due(step, self.settings.checkpoint_every) or waited
            if logs or saves or stopped_by:
                self._stop_at_bad_numbers(step)
            if logs:
                self._log(step)
            if self._behind(step, interruption, stopped_by, evaluates=evaluates, saves=saves, ends=ends):
                break

    def _behind(
        self,
        step: int,
        interruption: InterruptionGuard,
        stopped_by: str = "",
        *,
        evaluates: bool,
        saves: bool = False,
        ends: bool,
    ) -> bool:
        """The evaluation and the checkpoint that are due behind a step; whether the run ends with it.

        A signal leaves no time for an evaluation, which may take minutes: the run makes it when it goes on.

        Raises:
            Interrupted: a signal came; the checkpoint is written.
        """
        if evaluates and not stopped_by and not self._evaluate(step, interruption):
            stopped_by = interruption.signal
        if evaluates and stopped_by:
            self.progress = replace(self.progress, unevaluated=True)
        elif evaluates:
            ends = ends or self._stops_early(step)
        if evaluates or saves or stopped_by:
            self._save(step)
        if stopped_by:
            self.writer.wait()
            raise Interrupted(
                f"{stopped_by} after step {step} of {self.steps}; the checkpoint is written. Go on with: "
                f"{resume_command(self.directory.path, self.config.run.hosts)}"
            )
        if ends and step < self.steps and not self.progress.finished:
            self.report.say(f"stopped by a callback after step {step}: --resume goes on from here")
        return ends

    def _reload(self) -> None:
        if self.step.reload() and self.hosts.count > 1:
            raise RetinaError(
                "callbacks: expected weights that are left alone over several hosts, got a callback that assigned "
                "some: the other hosts would not have them; remove it, or train on one host"
            )

    def _wishes(self, step: int, signal: str) -> tuple[str, bool, bool]:
        """The signal that stops the run, if any; whether it is time for a checkpoint; whether the run ends.

        Hosts must do the same at the same step. They ask each other where a line is due, and not before: it takes time.
        """
        last = step == self.steps
        own = (signal, self._waited_long(), self.callbacks.stop)
        if self.hosts.count == 1:
            return own[0], own[1], last or own[2]
        if not is_due(step, self.settings.log_every):
            return "", False, last
        every = self.hosts.exchange(own)
        return next((one[0] for one in every if one[0]), ""), every[0][1], last or every[0][2]

    def _batches(self, first_step: int, steps: int, whole: bool = False) -> Iterator[Any]:
        """The batches after `first_step`, up to and with that of step `steps`: this host's share, or all of each."""
        return iter(
            training_batches(
                self.data.train,
                self.config.data,
                batch_size=self.settings.batch_size,
                seed=self.settings.seed,
                first_step=first_step,
                steps=steps,
                slots=None if whole else self.slots,
            )
        )

    def _introduce(self) -> None:
        names = ", ".join(self.distribution.names or devices())
        of = f", host {self.hosts.index} of {self.hosts.count}" if self.hosts.count > 1 else ""
        self.report.say(f"training on {names} ({keras.backend.backend()}{of})")
        for data in (self.data.train, self.data.validation):
            self.report.say(
                f"{data.name}: {len(data)} images, {len(data.boxes)} boxes, {len(data.class_names)} classes"
            )
            for note in data.notes:
                self.report.say(note)
        self.report.say(described(self.config.data))
        for note in self.notes:
            self.report.say(note)
        if self.first_step:
            self.report.say(f"resumed after step {self.first_step}")

    def _log(self, step: int) -> None:
        scalars = self.meter.read()
        rate = float(keras.ops.convert_to_numpy(self._rate(step - 1)))
        self.line = {"step": step, **scalars, "learning_rate": rate, **memory()}
        with storing(self.directory.path):
            if self.hosts.chief:
                self.directory.append_metrics(self.line)
            self.tensorboard.scalars("train", self.line)
        remaining = (self.steps - step) * self.settings.batch_size / scalars["images_per_second"]
        self.report.scalars(self.line, remaining)

    def _rate(self, step: int) -> Any:
        return self.optimizer._learning_rate(step)  # the schedule; the public property reads it at `iterations`

    def _evaluate(self, step: int, interruption: InterruptionGuard) -> bool:
        """Measures the detector on the validation data; False where a signal came before that was done."""
        self.callbacks.test_begin()
        with self.meter.away():
            figures = self.validation.figures(
                step, self.report, self.tensorboard, lambda: self.hosts.count == 1 and bool(interruption.signal)
            )
            if figures is None:
                return False
            metric, early = self.config.evaluation.metric, self.settings.early_stopping
            self.progress = after_evaluation(self.progress, step, figures, metric, early)
            # The pipeline's functions hold each other in cycles, and with as many objects as TensorFlow keeps alive
            # Python would collect those of dozens of evaluations at once: memory would grow until then.
            gc.collect()
            trim_memory()
        self.callbacks.test_end(step, self.line, figures)
        return True

    def _stops_early(self, step: int) -> bool:
        early = self.settings.early_stopping
        if early is None or not stops_early(self.progress, early):
            return False
        self.progress = replace(self.progress, finished=True)
        name = early.metric or self.config.evaluation.metric
        self.report.say(
            f"stopped early after step {step}: {name} has not risen above {self.progress.reference:.4f} by more than "
            f"{early.min_delta} in {early.patience} evaluations"
        )
        return True

    def _waited_long(self) -> bool:
        minutes = self.settings.checkpoint_minutes
        return minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes

    def _save(self, step: int) -> None:
        """Copies the state; a thread writes it while training goes on."""
        with self.meter.away():
            self.step.sync()
            self.saved_at = time.monotonic()
            arrays = checkpoints.gather(self.detector, self.optimizer, self.step.state()) if self.hosts.chief else {}
            if fault := self.hosts.from_chief(state_fault(step, arrays)):
                self._stop(Fault(*fault))
            if not self.hosts.chief:
                return
            progress = replace(self.progress, pending=self.meter.pending())
            saved = checkpoints.Checkpoint(
                step,
                self.config.model_dump(mode="json"),
                self.data.train.class_names,
                self.data.train.category_ids,
                progress.best,
                arrays,
                progress.to_dict(),
            )
            # With each checkpoint stays the one that was the best then: a run may have to go back to it.
            self.best_steps[step] = progress.best_step
            self.best_steps = dict(sorted(self.best_steps.items())[-self.settings.keep :])
            needed = {best for best in self.best_steps.values() if best is not None}
            self.writer.submit(lambda: self._write(saved, progress.best_step, needed))
            self.saved_at = time.monotonic()

    def _write(self, saved: checkpoints.Checkpoint, best_step: int | None, needed: set[int]) -> None:
        path = self.directory.checkpoint_path(f"step_{saved.step}")
        with storing(self.directory.path):
            self.directory.sync_metrics()
            checkpoints.save(path, saved)
            if best_step == saved.step:
                self.directory.point(BEST, path)
            self.directory.point(LATEST, path)
            self.directory.keep(self.settings.keep, needed)

    def _stop_at_bad_numbers(self, step: int) -> None:
        """Before anything is written.

        Raises:
            FloatingPointError: says which step, on which images, in which tensor.
        """
        if fault := self.meter.fault(step):
            self._stop(fault)

    def _stop(self, fault: Fault) -> NoReturn:
        """Keeps the batch of a failed step, looks for the tensor, and tells: also of what fails in doing so.

        Raises:
            FloatingPointError: always; or RunFailed, where one of several hosts can't go through the steps again.
        """
        batch = self._kept(fault) if self.hosts.chief else None
        detector: Detector | None = None
        try:
            self.writer.wait()
            detector, origin = self._before(fault.step)
        except Exception as error:
            origin = f"going back to step {fault.step} failed: {why(error)}"
            if self.hosts.count > 1:  # the others may be in the middle of a step
                raise RunFailed(f"step {fault.step}: the {fault.what} is {fault.value}; {origin}") from error
        message = ""
        if self.hosts.chief:
            parts = self.settings.accumulate * self.distribution.replicas
            message = record(self.directory, detector, origin, batch, self.data.train, fault, parts)
        raise FloatingPointError(self.hosts.from_chief(message))

    def _kept(self, fault: Fault) -> Any | None:
        """The whole batch of a step, saved; None where it can't be read again."""
        batch = None
        with suppress(Exception):  # `record` tries to save it again, and tells
            batch = next(self._batches(fault.step - 1, fault.step, whole=True))
            keep_batch(self.directory, batch, self.data.train, fault)
        return batch

    def _before(self, step: int) -> tuple[Detector, str]:
        """A detector with the weights that a step found, gone through again from the checkpoint before it.

        With one device it is the run's own: a second one may not fit in its memory, and would be compiled once more.
        """
        saved = newest_checkpoint(self.directory)[0] if self.hosts.chief else None
        saved = checkpoints.of_chief(self.hosts, saved)
        first, origin = saved.step if saved else 0, "that it found"
        self._go_back(saved)
        if step - 1 - first > _REWINDS:
            origin = f"of step {first}"
        else:
            self.report.say(f"step {step} went wrong: going through the steps from {first} again to see what it met")
            for batch in self._batches(first, step - 1):
                self.step(batch)
            self.step.sync()
        if self.distribution.engine is None:
            return self.detector, origin
        # One device looks into it.
        detector = assemble(self.config, self.data.train, saved).detector
        checkpoints.restore(checkpoints.gather(self.detector), detector)
        return detector, origin

    def _go_back(self, saved: checkpoints.Checkpoint | None) -> None:
        """Puts the state of a checkpoint, or of the run's start, into the parts."""
        if saved is None:
            start = assemble(self.config, self.data.train, None, self.distribution)
            arrays = checkpoints.gather(start.detector, start.optimizer, start.step.state())
        else:
            arrays = saved.arrays
        with self.distribution.scope():
            checkpoints.restore(arrays, self.detector, self.optimizer)
            self.step.load(checkpoints.extra_of(arrays))
