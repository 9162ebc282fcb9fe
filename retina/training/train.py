"""`train`: from a configuration to a run directory with a trained detector."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import keras

from retina import config as configuration
from retina.config import Config
from retina.data.dataset import DetectionDataset
from retina.data.fingerprint import Fingerprints, fingerprint
from retina.data.ground_truth import ground_truth
from retina.data.load import check_same_classes, load_split, read_split
from retina.doctor import preflight
from retina.models import backbones
from retina.runs import checkpoint as checkpoints
from retina.runs.directory import RunDirectory, refuse_if_used
from retina.runs.environment import describe_environment
from retina.runs.hosts import Hosts, check_same_config
from retina.runs.state import Progress
from retina.runs.storage import storage_errors_told, storing
from retina.training.determinism import check_determinism, make_deterministic
from retina.training.devices import distribute
from retina.training.loop import Data, Loop
from retina.training.parts import assemble
from retina.training.resuming import (
    Start,
    check_classes,
    check_data,
    environment_notes,
    find_start,
    remove_superseded,
)


def train(
    config: Config,
    run_dir: str | Path,
    *,
    resume: bool = False,
    changed_data: bool = False,
    train_data: DetectionDataset | None = None,
    validation_data: DetectionDataset | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Path:
    """Trains a detector and evaluates it on the validation data.

    Args:
        config: the whole configuration (`retina.load_config`).
        run_dir: a new or empty folder, or with `resume` a run made by the same configuration.
        resume: go on from the latest checkpoint that is whole, or from step 0 where none was written yet; a run that is
            finished stays as it is. Data that are not the run's are refused: see `retina.data.fingerprint`.
        changed_data: resume all the same where the data have changed, and say so in the log.
        train_data, validation_data: tables to use in place of those that `config.data` names.
        callbacks: Keras callbacks; see `retina.training.callbacks.Callbacks` for what they are told and when.

    Returns:
        The run directory: configuration, environment, log, metrics, checkpoints, evaluations.

    Raises:
        RetinaError: data, configuration or run directory can't be used; found before anything is written.
        RunFailed: the run directory can no longer be written; the last checkpoint is whole.
        Interrupted: SIGINT, SIGTERM or SIGHUP came; `resume` goes on from there.
        FloatingPointError: the loss or its gradient is no longer finite; no checkpoint is written then. The message
            names the step, its images and the tensor; see `retina.training.replay`.
    """
    path = Path(run_dir)
    config = with_absolute_paths(config)
    distribution = distribute(config.run)
    hosts = distribution.hosts
    check_same_config(hosts, config)
    distribution.slots(config.run.batch_size, config.run.accumulate)  # its error comes before the work
    if config.run.deterministic:
        hosts.together(check_determinism)
    start = _start(hosts, path, config, resume)
    if start.checkpoint is not None and _is_finished(start.checkpoint, config):
        if hosts.chief:  # not in the log: a finished run stays as it is
            print(f"{path}: this run is finished, after step {start.checkpoint.step}", file=sys.stderr)
            finished = RunDirectory(path)
            with finished.locked():
                remove_superseded(finished, config.run.keep)
        return path
    data, checked = hosts.together(lambda: _prepare(config, start, train_data, validation_data, hosts.chief))
    fingerprints = {"train": fingerprint(data.train), "validation": fingerprint(data.validation)}
    same = hosts.by_chief(lambda: check_data(path, start, fingerprints, changed_data)) or ()
    if config.run.deterministic:
        make_deterministic()
    parts = assemble(config, data.train, start.checkpoint, distribution)
    with hosts.in_step(), ExitStack() as until_done:
        ready = hosts.by_chief(lambda: until_done.enter_context(_directory(config, path, start, resume, fingerprints)))
        run, notes = ready or (RunDirectory(path), ())
        said = (*checked, *start.notes, *same, *parts.notes, *notes)
        return Loop(config, run, data, parts, start.checkpoint, said, callbacks, distribution).run()


@contextmanager
def _directory(
    config: Config, path: Path, start: Start, resume: bool, fingerprints: Fingerprints
) -> Iterator[tuple[RunDirectory, tuple[str, ...]]]:
    """The run directory, made or cleaned up and locked, and what there is to say of where the run goes on."""
    make = RunDirectory.complete if resume else RunDirectory.create
    environment = describe_environment(config)
    run = make(path, configuration.to_yaml(config), environment)
    notes = () if start.checkpoint is None else environment_notes(run.environment(), environment)
    with run.locked(), storage_errors_told(path, config.run.hosts):
        with storing(path):
            if resume:
                progress = Progress.from_dict(start.checkpoint.progress) if start.checkpoint else Progress()
                step = start.checkpoint.step if start.checkpoint else 0
                run.go_back_to(step, progress.best_step, start.damaged, unevaluated=progress.unevaluated)
            run.write_fingerprints(fingerprints)
        yield run, notes


def _start(hosts: Hosts, path: Path, config: Config, resume: bool) -> Start:
    """Where the run begins, on every host; the chief alone looks into the run directory."""

    def find() -> Start:
        if not resume:
            refuse_if_used(path)
        return find_start(path, config) if resume else Start(None)

    found = hosts.by_chief(find) or Start(None)
    return Start(checkpoints.of_chief(hosts, found.checkpoint), found.notes, found.damaged)


def _prepare(
    config: Config,
    start: Start,
    train_data: DetectionDataset | None,
    validation_data: DetectionDataset | None,
    chief: bool,
) -> tuple[Data, tuple[str, ...]]:
    """The data, and what a look at it says; everything that the user may have to correct shows here."""
    data = _load_data(config, train_data, validation_data)
    if start.checkpoint is not None:
        check_classes(start.checkpoint, data.train)
        return data, ()
    return data, preflight.check(config, data.train, data.validation) if chief else ()


def _load_data(config: Config, train_data: DetectionDataset | None, validation_data: DetectionDataset | None) -> Data:
    train_data = load_split(config.data, "train") if train_data is None else train_data
    if validation_data is not None:
        data = Data(train_data, validation_data, ground_truth(validation_data))
    else:
        data = Data(train_data, *read_split(config.data, "validation"))
    check_same_classes(data.train, data.validation)
    return data


def with_absolute_paths(config: Config) -> Config:
    """So that a run can be resumed and evaluated from any folder."""
    config, model = configuration.with_absolute_root(config), config.model
    update: dict[str, object] = {}
    if model.init_from is not None:
        update["init_from"] = model.init_from.expanduser().absolute()
    if model.weights is not None and backbones.takes_a_file(model.backbone):
        update["weights"] = str(Path(model.weights).expanduser().absolute())
    return config.model_copy(update={"model": model.model_copy(update=update)})


def _is_finished(saved: checkpoints.Checkpoint, config: Config) -> bool:
    progress = Progress.from_dict(saved.progress)
    return progress.finished or (saved.step >= config.schedule.steps and not progress.unevaluated)
