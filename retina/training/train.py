"""The training of a run: from a configuration to a run directory with a trained detector."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import keras

from retina import config as configuration
from retina.config import Config
from retina.data.batches import plan
from retina.data.dataset import DetectionDataset
from retina.data.fingerprint import Fingerprints, fingerprint
from retina.data.ground_truth import GroundTruth, ground_truth
from retina.data.load import check_same_classes, load_split, read_split
from retina.data.orientation import settled
from retina.data.tiles import in_tiles, noted
from retina.errors import RetinaError
from retina.models import backbones
from retina.models.efficientnet_lite import INSTALLED
from retina.runs import checkpoint as checkpoints
from retina.runs.directory import RunDirectory, refuse_if_used, resume_command, storage_errors_explained, storing
from retina.runs.hosts import Hosts, check_same_config
from retina.runs.state import Progress, stops_early
from retina.runs.trackers import check_installed
from retina.training.devices import cache_compilations, check_determinism
from retina.training.loop import STANDARD, Collaborators, Data, Loop
from retina.training.resuming import (
    Start,
    check_classes,
    check_data,
    environment_notes,
    find_start,
    remove_superseded,
)
from retina.weights.sources import PUBLISHED


def train(
    config: Config,
    run_dir: str | Path,
    *,
    resume: bool = False,
    changed_data: bool = False,
    train_data: DetectionDataset | None = None,
    validation_data: DetectionDataset | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    collaborators: Collaborators = STANDARD,
) -> Path:
    """Train a detector and evaluate it on the validation data.

    Args:
        config: the whole configuration (`retina.load_config`).
        run_dir: a new or empty folder, or with `resume` a run made by the same configuration.
        resume: go on from the latest whole checkpoint, or from step 0 where none was written yet; a finished run stays
            as it is. Other data than the run's are refused: see `retina.data.fingerprint`.
        changed_data: resume even though the data have changed, and say so in the log.
        train_data, validation_data: tables to use in place of those that `config.data` names, of whole images:
            `config.data.tiles` cuts them.
        callbacks: Keras callbacks; see `retina.training.callbacks.Callbacks` for when each method is called.
        collaborators: the functions and classes that the run works with; see `retina.training.loop`.

    Returns:
        The run directory, with configuration, environment, log, metrics, checkpoints and evaluations.

    Raises:
        RetinaError: data, configuration or run directory can't be used. Nothing is written then.
        RunFailed: the run directory can no longer be written; the last checkpoint is whole.
        Interrupted: SIGINT, SIGTERM or SIGHUP came; `resume` goes on from there.
        FloatingPointError: the loss or its gradient is no longer finite; no checkpoint is written then. The message
            names the step, its images and the tensor; see `retina.training.replay`.
    """
    path = Path(run_dir)
    check_installed(config.run.trackers)
    config = with_absolute_paths(config)
    cache_compilations(config.run)
    distribution = collaborators.distribute(config.run)
    hosts = distribution.hosts
    check_same_config(hosts, config)
    length: tuple[str, ...] = ()
    if config.schedule.epochs is not None:
        train_data = hosts.together(lambda: load_split(config.data, "train")) if train_data is None else train_data
        config, length = _with_steps(config, in_tiles(train_data, config.data.tiles))
    distribution.slots(config.run.batch_size, config.run.accumulate)  # its error comes before the work
    if config.evaluation.tiles is not None and distribution.replicas > 1:
        raise RetinaError(
            f"evaluation.tiles: expected one device on one host, got {distribution.replicas}; leave the tiles out and "
            "measure them afterwards: retina evaluate RUN evaluation.tiles.size=N"
        )
    if config.run.deterministic:
        hosts.together(check_determinism)
    start = _start(hosts, path, config, resume)
    if start.checkpoint is not None and _is_finished(start.checkpoint, config):
        if hosts.chief:  # not in the log: a finished run stays as it is
            setting = "run.early_stopping=null" if _ended_early(start.checkpoint, config) else "schedule.steps=N"
            print(
                f"{path}: this run is finished, after step {start.checkpoint.step}; to make it longer: "
                f"{resume_command(path)} {setting}",
                file=sys.stderr,
            )
            finished = RunDirectory(path)
            with finished.locked():
                remove_superseded(finished, config.run.keep)
        return path
    config, data, checked = hosts.together(
        lambda: _prepare(config, start, train_data, validation_data, hosts.chief, collaborators)
    )
    tables = {"train": data.train}
    if data.validation is not None:
        tables["validation"] = data.validation[0]
    fingerprints = {split: fingerprint(table) for split, table in tables.items()}
    same = hosts.by_chief(lambda: check_data(path, start, config, tables, changed_data)) or ()
    if config.run.deterministic:
        collaborators.make_deterministic()
    parts = collaborators.assemble(config, data.train, start.checkpoint, distribution)
    with hosts.in_step(), ExitStack() as until_done:

        def open_directory() -> tuple[RunDirectory, tuple[str, ...]]:
            environment = collaborators.describe_environment(config)
            return until_done.enter_context(_directory(config, path, start, resume, fingerprints, environment))

        run, moved = hosts.by_chief(open_directory) or (RunDirectory(path), ())
        loop = Loop(
            config,
            run,
            data,
            parts,
            saved=start.checkpoint,
            notes=(*length, *checked, *start.notes, *same, *parts.notes, *moved),
            callbacks=callbacks,
            distribution=distribution,
            collaborators=collaborators,
        )
        return loop.run()


@contextmanager
def _directory(
    config: Config, path: Path, start: Start, resume: bool, fingerprints: Fingerprints, environment: dict[str, Any]
) -> Iterator[tuple[RunDirectory, tuple[str, ...]]]:
    """Make or clean up the run directory and lock it; give it, and notes if the environment is another than before."""
    make = RunDirectory.complete if resume else RunDirectory.create
    run = make(path, configuration.to_yaml(config), environment)
    notes = () if start.checkpoint is None else environment_notes(run.environment(), environment)
    with run.locked(), storage_errors_explained(path, config.run.hosts):
        with storing(path):
            if resume:
                progress = Progress.from_dict(start.checkpoint.progress) if start.checkpoint else Progress()
                step = start.checkpoint.step if start.checkpoint else 0
                run.go_back_to(step, progress.best_step, start.damaged, unevaluated=progress.unevaluated)
                run.write_config(configuration.to_yaml(config))
            run.write_fingerprints(fingerprints)
        yield run, notes


def _start(hosts: Hosts, path: Path, config: Config, resume: bool) -> Start:
    """Return where the run begins, on every host; the chief alone reads the run directory."""

    def find() -> Start:
        if not resume:
            refuse_if_used(path)
        return find_start(path, config) if resume else Start(None)

    start = hosts.by_chief(find) or Start(None)
    return Start(checkpoints.of_chief(hosts, start.checkpoint), start.notes, start.damaged)


def _prepare(
    config: Config,
    start: Start,
    train_data: DetectionDataset | None,
    validation_data: DetectionDataset | None,
    chief: bool,
    collaborators: Collaborators,
) -> tuple[Config, Data, tuple[str, ...]]:
    """Load and check the data: return the configuration with what they decide, the data, and the preflight's notes.

    Errors for the user to correct come here.
    """
    config, data = _load_data(config, train_data, validation_data)
    if start.checkpoint is not None:
        check_classes(start.checkpoint, data.train)
        return config, data, ()
    validation = None if data.validation is None else data.validation[0]
    return config, data, collaborators.check_data(config, data.train, validation) if chief else ()


def _load_data(
    config: Config, train_data: DetectionDataset | None, validation_data: DetectionDataset | None
) -> tuple[Config, Data]:
    train_data = in_tiles(load_split(config.data, "train") if train_data is None else train_data, config.data.tiles)
    # What the training images decide holds for the others.
    section = settled(config.data, [train_data])
    validation: tuple[DetectionDataset, GroundTruth] | None = None
    if validation_data is not None:
        validation = (validation_data, ground_truth(validation_data))
    elif section.validation is not None:
        table, truth = read_split(section, "validation")
        validation = (table, truth)
    if validation is not None:
        check_same_classes(train_data, validation[0])
        section = settled(section, [train_data, validation[0]])
        validation = (noted(validation[0], config.evaluation.tiles), validation[1])
    return config.model_copy(update={"data": section}), Data(train_data, validation)


def with_absolute_paths(config: Config) -> Config:
    """Return the configuration with absolute paths, so that a run can be resumed and evaluated from any folder."""
    config, model = configuration.with_absolute_root(config), config.model
    update: dict[str, object] = {}
    if model.init_from is not None and str(model.init_from) not in PUBLISHED:
        update["init_from"] = model.init_from.expanduser().absolute()
    if model.weights not in (None, INSTALLED, *PUBLISHED) and backbones.takes_a_file(model.backbone):
        update["weights"] = str(Path(str(model.weights)).expanduser().absolute())
    return config.model_copy(update={"model": model.model_copy(update=update)})


def _with_steps(config: Config, train_data: DetectionDataset) -> tuple[Config, tuple[str, ...]]:
    """Return the configuration with steps in the place of epochs, and a line on that for the log."""
    resolved = plan.with_steps(config, train_data)
    return resolved, (f"schedule.epochs: {config.schedule.epochs:g} epochs are {resolved.schedule.length} steps",)


def _is_finished(saved: checkpoints.Checkpoint, config: Config) -> bool:
    unevaluated = Progress.from_dict(saved.progress).unevaluated
    return _ended_early(saved, config) or (saved.step >= config.schedule.length and not unevaluated)


def _ended_early(saved: checkpoints.Checkpoint, config: Config) -> bool:
    """Tell whether early stopping has ended the run, and would under this configuration."""
    progress = Progress.from_dict(saved.progress)
    return progress.finished and stops_early(progress, config.run.early_stopping)
