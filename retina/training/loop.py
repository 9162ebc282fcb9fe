"""The loop of a training run: the steps, and the lines, evaluations and checkpoints that are due after them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import keras

from retina import config as configuration
from retina.config import Config
from retina.data.batches.evaluation import how_read, translated
from retina.data.batches.training import described, training_batches
from retina.data.dataset import DetectionDataset
from retina.data.ground_truth import GroundTruth
from retina.doctor import preflight
from retina.errors import RetinaError, RunFailed
from retina.inference import build_detector
from retina.models.detector import Detector
from retina.output import count
from retina.runs import checkpoint as checkpoints
from retina.runs.checkpoint import BackgroundWriter
from retina.runs.directory import BEST, LATEST, RunDirectory, resume_command, stored, storing
from retina.runs.environment import describe_environment, devices, long_lived_objects_set_aside, memory, trim_memory
from retina.runs.interruption import Interrupted, InterruptionGuard
from retina.runs.state import Progress, after_evaluation, is_due, stops_early
from retina.runs.trackers import tracked
from retina.training.callbacks import Callbacks
from retina.training.devices import ALONE, Distribution, distribute, make_deterministic
from retina.training.optimizer import learning_rate
from retina.training.parts import Parts, assemble
from retina.training.progress import Fault, Meter, Report, state_fault
from retina.training.replay import keep_batch, record, why
from retina.training.resuming import newest_checkpoint
from retina.training.step import TrainStep, build_step
from retina.training.tensorboard import TensorBoard
from retina.training.validation import Evaluator, ModeCheck, Validation

# Most steps that are repeated to restore the weights with which a failed step began.
_MOST_REPEATED = 200


class Data(NamedTuple):
    """The tables of a run; `validation` has its table and the ground truth in its files, None if there is none."""

    train: DetectionDataset
    validation: tuple[DetectionDataset, GroundTruth] | None


class Collaborators(NamedTuple):
    """The functions and classes that a run works with; a test hands in quicker ones.

    Attributes:
        distribute, make_deterministic: of `retina.training.devices`.
        check_data: the preflight of the tables, `retina.doctor.preflight.check`.
        describe_environment: the contents of `environment.json`.
        detector, step: make the detector and its training step, as `build_detector` and `build_step`.
        batches: the batches to train on, as `retina.data.batches.training.training_batches`.
        evaluator: evaluates the detector, as `retina.training.validation.Evaluator`.
        tensorboard: writes TensorBoard's files.
        keep_batch, record: save and explain a failed step, as in `retina.training.replay`.
    """

    distribute: Callable[[configuration.Run], Distribution] = distribute
    make_deterministic: Callable[[], None] = make_deterministic
    check_data: Callable[..., tuple[str, ...]] = preflight.check
    describe_environment: Callable[[Config], dict[str, Any]] = describe_environment
    detector: Callable[..., Detector] = build_detector
    step: Callable[..., TrainStep] = build_step
    batches: Callable[..., Iterable[Any]] = training_batches
    evaluator: Callable[..., Evaluator] = Evaluator
    tensorboard: Callable[..., TensorBoard] = TensorBoard
    keep_batch: Callable[..., None] = keep_batch
    record: Callable[..., str] = record

    def assemble(
        self,
        config: Config,
        data: DetectionDataset,
        saved: checkpoints.Checkpoint | None = None,
        distribution: Distribution = ALONE,
    ) -> Parts:
        """Assemble the parts of a run: see `retina.training.parts.assemble`."""
        return assemble(config, data, saved, distribution, build_detector=self.detector, build_step=self.step)


STANDARD = Collaborators()


class Loop:
    """A run in progress.

    Args:
        config: the whole configuration.
        directory: the run directory; only the chief writes there.
        data: the tables.
        parts: the detector with its optimizer and its step.
        saved: the checkpoint that the parts were restored from; None at the start.
        notes: lines for the log.
        callbacks: Keras callbacks.
        distribution: the devices.
        collaborators: what the run works with.
    """

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        data: Data,
        parts: Parts,
        *,
        saved: checkpoints.Checkpoint | None = None,
        notes: Sequence[str] = (),
        callbacks: Sequence[keras.callbacks.Callback] = (),
        distribution: Distribution = ALONE,
        collaborators: Collaborators = STANDARD,
    ):
        self.config, self.directory, self.data, self.notes = config, directory, data, notes
        self.distribution, self.hosts, self.collaborators = distribution, distribution.hosts, collaborators
        self.slots = distribution.slots(config.run.batch_size, config.run.accumulate)
        self.detector, self.optimizer, self.step = parts.detector, parts.optimizer, parts.step
        self.steps, self.settings = config.schedule.length, config.run
        self.rate = learning_rate(config.optimizer, config.schedule, config.run.batch_size)
        self.first_step = saved.step if saved else 0
        self.progress = replace(Progress.from_dict(saved.progress), finished=False) if saved else Progress()
        self.best_steps = {self.first_step: self.progress.best_step}  # by checkpoint
        self.meter = Meter(self.settings.batch_size, self.progress.pending)
        self.canvases: set[tuple[int, ...]] = set()  # of which a step was taken
        self.line: dict[str, float] = {}  # the last of metrics.jsonl
        self.saved_at = time.monotonic()
        path = directory.path if self.hosts.chief else None
        self.report = Report(path and path / "log.txt", self.steps, self.first_step)
        self.interruption = InterruptionGuard(self.report.say)
        self.tensorboard = collaborators.tensorboard(path and path / "tensorboard", self.first_step)
        self.writer = BackgroundWriter()
        self.validation: Validation | None = None
        if data.validation is not None:
            evaluator = collaborators.evaluator(config, *data.validation, self.detector, distribution)
            modes, split = ModeCheck(config, data.train, self.detector), data.validation[0]
            self.validation = Validation(config, directory, split, evaluator, modes, self.step, self.hosts)
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
        """Train to the end of the run, and return the run directory."""
        with (
            tracked(self.directory.path if self.hosts.chief else None, self.config, self.report.say) as self.track,
            self.report,
            # Around the writer: a signal must not end the run while its last checkpoint is being written.
            self.interruption,
            stored(self.directory.path, self.tensorboard),
            translated(self.data.train),
            self.writer,
            long_lived_objects_set_aside(),
        ):
            self._introduce()
            with storing(self.directory.path):
                self.tensorboard.settings(self.config)
            self.callbacks.train_begin()
            if not (self.progress.unevaluated and self._make_up_evaluation()):
                self._train()
            self.callbacks.train_end(self.line)
        return self.directory.path

    def _make_up_evaluation(self) -> bool:
        """Make the evaluation that a signal kept the run from before it goes on; tell whether the run ends with it."""
        if self.hosts.chief:
            self.line = next((line for line in reversed(self.directory.metrics()) if "split" not in line), {})
        return self._finish_step(self.first_step, evaluates=True, ends=self.first_step == self.steps)

    def _train(self) -> None:
        batches = self._batches(self.first_step, self.steps)
        for step in range(self.first_step + 1, self.steps + 1):
            with self.meter.waiting():
                batch = next(batches)
            self.callbacks.batch_begin(step)
            self.meter.add(self._stepped(batch))
            self.callbacks.batch_end(step, self.meter.latest)
            self.report.advance(step)
            self.writer.check()

            # The signal is read once: a later signal waits for the evaluation's batches or the next step.
            stopped_by, waited, ends = self._requests(step, self.interruption.signal)
            evaluates = self.validation is not None and (ends or is_due(step, self.settings.evaluate_every))
            # A fixed grid: a run that is stopped and resumed has the same lines as an uninterrupted run.
            logs = evaluates or ends or is_due(step, self.settings.log_every)
            saves = ends or is_due(step, self.settings.checkpoint_every) or waited
            if logs or saves or stopped_by:
                self._fail_at_bad_numbers(step)
            if logs:
                self._log(step)
            if self._finish_step(step, stopped_by, evaluates=evaluates, saves=saves, ends=ends):
                break

    def _stepped(self, batch: Any) -> Mapping[str, Any]:
        """Take a step and return its scalars; say how long the first of a canvas took on JAX, which compiles it."""
        start = time.perf_counter()
        scalars = self.step(batch)
        if keras.backend.backend() == "jax" and (canvas := batch["images"].shape[1:3]) not in self.canvases:
            self.canvases.add(canvas)
            seconds = time.perf_counter() - start
            self.report.say(
                f"canvas {canvas[1]}x{canvas[0]}: step compiled, or read from the cache, in {seconds:.1f} s"
            )
        return scalars

    def _finish_step(
        self, step: int, stopped_by: str = "", *, evaluates: bool, saves: bool = False, ends: bool
    ) -> bool:
        """Make the evaluation and the checkpoint that are due after a step; tell whether the run ends with it.

        A signal leaves no time for an evaluation, which may take minutes: the run makes it when it is resumed.

        Raises:
            Interrupted: a signal came; the checkpoint is written.
        """
        if evaluates and not stopped_by and not self._evaluate(step):
            stopped_by = self.interruption.signal
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

    def _requests(self, step: int, signal: str) -> tuple[str, bool, bool]:
        """Return the signal that stops the run, if any; whether it is time for a checkpoint; whether the run ends.

        Hosts must do the same at the same step. They ask each other where a line is due, and not before: it takes time.
        """
        last = step == self.steps
        waited, stop = self._waited_long(), self.callbacks.stop
        if self.hosts.count == 1:
            return signal, waited, last or stop
        if not is_due(step, self.settings.log_every):
            return "", False, last
        requests = self.hosts.exchange((signal, waited, stop))
        signals = [request[0] for request in requests if request[0]]
        _, waited, stop = requests[0]  # the chief's
        return signals[0] if signals else "", waited, last or stop

    def _batches(self, first_step: int, steps: int, whole: bool = False) -> Iterator[Any]:
        """Return the batches of the steps after `first_step` up to `steps`: this host's share, or all of each."""
        return iter(
            self.collaborators.batches(
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
        host = f", host {self.hosts.index} of {self.hosts.count}" if self.hosts.count > 1 else ""
        self.report.say(f"training on {names} ({keras.backend.backend()}{host})")
        for data in (self.data.train, *(self.data.validation or ())[:1]):
            self.report.say(
                f"{data.name}: {len(data)} images, {len(data.boxes)} boxes, {count(len(data.class_names), 'class')}"
            )
            for note in data.notes:
                self.report.say(note)
        if self.validation is None:
            self.report.say("no validation data: nothing is evaluated, and the newest checkpoint counts as the best")
        for line in (*described(self.data.train, self.config.data), *how_read()):
            self.report.say(line)
        for note in self.notes:
            self.report.say(note)
        if self.first_step:
            self.report.say(f"resumed after step {self.first_step}")

    def _log(self, step: int) -> None:
        scalars = self.meter.read()
        rate = float(keras.ops.convert_to_numpy(self.rate(step - 1)))
        self.line = {"step": step, **scalars, "learning_rate": rate, **memory()}
        with storing(self.directory.path):
            if self.hosts.chief:
                self.directory.append_metrics(self.line)
            self.tensorboard.scalars("train", self.line)
        self.track("train", self.line)
        remaining = (self.steps - step) * self.settings.batch_size / scalars["images_per_second"]
        self.report.scalars(self.line, remaining)

    def _evaluate(self, step: int) -> bool:
        """Evaluate the detector on the validation data; return False where a signal came before that was done."""
        assert self.validation is not None, "evaluations are due with validation data only"
        self.callbacks.test_begin()
        with self.meter.away():
            figures = self.validation.figures(
                step, self.report, self.tensorboard, lambda: self.hosts.count == 1 and bool(self.interruption.signal)
            )
            if figures is None:
                return False
            self.track("validation", {"step": step, **figures})
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
        """Copy the state; a thread writes it while training goes on."""
        with self.meter.away():
            self.step.sync()
            self.saved_at = time.monotonic()
            arrays = checkpoints.gather(self.detector, self.optimizer, self.step.state()) if self.hosts.chief else {}
            if fault := self.hosts.from_chief(state_fault(step, arrays)):
                self._fail(Fault(*fault))
            if not self.hosts.chief:
                return
            if self.validation is None:
                self.progress = replace(self.progress, best_step=step)
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

    def _fail_at_bad_numbers(self, step: int) -> None:
        """Check the scalars before anything is written.

        Raises:
            FloatingPointError: names the step, its images and the tensor.
        """
        if fault := self.meter.fault(step):
            self._fail(fault)

    def _fail(self, fault: Fault) -> NoReturn:
        """Save the batch of a failed step, search for the tensor, and report both, or why that failed.

        Raises:
            FloatingPointError: always; or RunFailed, where one of several hosts can't repeat the steps.
        """
        batch = self._failed_batch(fault) if self.hosts.chief else None
        detector: Detector | None = None
        try:
            self.writer.wait()
            detector, origin = self._detector_before(fault.step)
        except Exception as error:
            origin = f"going back to step {fault.step} failed: {why(error)}"
            if self.hosts.count > 1:  # the others may be in the middle of a step
                raise RunFailed(f"step {fault.step}: the {fault.what} is {fault.value}; {origin}") from error
        message = ""
        if self.hosts.chief:
            parts = self.settings.accumulate * self.distribution.replicas
            message = self.collaborators.record(self.directory, detector, origin, batch, self.data.train, fault, parts)
        raise FloatingPointError(self.hosts.from_chief(message))

    def _failed_batch(self, fault: Fault) -> Any | None:
        """Read the whole batch of a failed step again, and save it; None where it can't be read."""
        batch = None
        with suppress(Exception):  # `record` tries to save it again, and reports why it can't
            batch = next(self._batches(fault.step - 1, fault.step, whole=True))
            self.collaborators.keep_batch(self.directory, batch, self.data.train, fault)
        return batch

    def _detector_before(self, step: int) -> tuple[Detector, str]:
        """Return a detector with the weights before a step, and a message's words for them.

        The steps since the last checkpoint are repeated, unless they are too many. With one device it is the run's
        detector: another may not fit in its memory, and would be compiled once more.
        """
        saved = newest_checkpoint(self.directory).checkpoint if self.hosts.chief else None
        saved = checkpoints.of_chief(self.hosts, saved)
        first, origin = saved.step if saved else 0, "before the step"
        self._go_back(saved)
        if step - 1 - first > _MOST_REPEATED:
            origin = f"of step {first}"
        else:
            self.report.say(f"step {step} failed: repeating the steps after {first} to restore the weights before it")
            for batch in self._batches(first, step - 1):
                self.step(batch)
            self.step.sync()
        if self.distribution.engine is None:
            return self.detector, origin
        # A single device searches.
        detector = self.collaborators.assemble(self.config, self.data.train, saved).detector
        checkpoints.restore(checkpoints.gather(self.detector), detector)
        return detector, origin

    def _go_back(self, saved: checkpoints.Checkpoint | None) -> None:
        """Restore the state of a checkpoint, or of the run's start."""
        if saved is None:
            start = self.collaborators.assemble(self.config, self.data.train, None, self.distribution)
            arrays = checkpoints.gather(start.detector, start.optimizer, start.step.state())
        else:
            arrays = saved.arrays
        with self.distribution.scope():
            checkpoints.restore(arrays, self.detector, self.optimizer)
            self.step.load(checkpoints.extra_of(arrays))
