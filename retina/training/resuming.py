"""Resuming: the newest whole checkpoint of a run, if configuration and data are still the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from retina import config as configuration
from retina.config import Config
from retina.config.differences import changed_keys
from retina.data.batches import plan
from retina.data.batches.augment import images_per_example
from retina.data.dataset import DetectionDataset
from retina.data.fingerprint import Fingerprints, differences, fingerprint
from retina.data.load import Split, load_split
from retina.data.tiles import in_tiles
from retina.errors import RetinaError
from retina.output import count
from retina.runs.checkpoint import Checkpoint, DamagedCheckpoint, read
from retina.runs.directory import LATEST, RunDirectory, has_config, is_begun
from retina.runs.state import Progress

# Settings that may change when a run is resumed: they change no weight of a step, only what is written when (the
# evaluations also decide which checkpoint is the best, and when early stopping ends the run),
_FREE = (
    "run.keep", "run.checkpoint_every", "run.checkpoint_minutes", "run.report", "run.evaluate_every", "run.log_every",
    "run.pictures", "run.trackers", "run.early_stopping", "run.compilation_cache", "export",
)  # fmt: skip
# the length of the run, which shapes its learning rate from here on (`longer`),
_LENGTH = ("schedule.steps", "schedule.epochs")
# nor the tables, which are compared themselves (`check_data`),
_MOVED = ("data.root",)
# or change them by rounding only.
_PLACE = ("run.devices", "run.hosts")

# Keys of environment.json that rounding may depend on.
_ROUNDING = ("python", "platform", "backend", "devices", "packages", "revision")


class Start(NamedTuple):
    """Start of a run.

    Attributes:
        checkpoint: None at step 0.
        notes: for the log.
        damaged: the steps of newer checkpoints that are damaged.
    """

    checkpoint: Checkpoint | None
    notes: tuple[str, ...] = ()
    damaged: tuple[int, ...] = ()


def find_start(path: Path, config: Config) -> Start:
    """Return the start of `retina train --resume`.

    A checkpoint that is cut short or altered is passed over for the checkpoint before it. Nothing is written.

    Raises:
        RetinaError: `path` is not a run, the configuration has changed, no checkpoint is whole, or the newest can't be
            read at the moment.
    """
    if not is_begun(path):
        RunDirectory.open(path)  # says what is missing
    if not has_config(path):
        return Start(None, ("there is no run to resume yet: starting from step 0",))
    run = RunDirectory(path)
    saved, notes, damaged = newest_checkpoint(run)
    if saved is None:
        before = configuration.load(path / "config.yaml").model_dump(mode="json")
        notes = ("the run has no checkpoint yet: starting from step 0",)
    else:
        # Parsed: keys that the package has gained since then get their defaults.
        before = configuration.parse(saved.config, str(path)).model_dump(mode="json")
    after = config.model_dump(mode="json")
    if "auto" in (before["data"]["orientation"], after["data"]["orientation"]):
        _same_orientation(before["data"], after["data"])
    changed = changed_keys(before, after)
    free = _FREE + _LENGTH + _PLACE + (_MOVED if run.fingerprints() else ())
    if before["data"]["invalid_images"] == "error":
        free += ("data.invalid_images",)  # the tables are compared (`check_data`)
    bound = [text for key, text in changed.items() if not key.startswith(free)]
    if bound:
        raise RetinaError(
            f"{path}: cannot resume with a changed config: {', '.join(bound)}; resume with the config of the run "
            f"({path}/config.yaml), or start a new run"
        )
    if changed:
        notes = (*notes, f"resumed with a changed config: {', '.join(changed.values())}")
    if saved is not None and before["schedule"]["steps"] != config.schedule.steps:
        notes = (*notes, _length_note(path, saved.step, before["schedule"]["steps"], config.schedule))
    if replicas(before["run"]) != replicas(config.run.model_dump()):
        notes = (*notes, _other_devices_note(config))
    return Start(saved, notes, damaged)


def _same_orientation(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Make "auto" equal to what it stands for: a run keeps what was decided, and without decision images are read as
    stored."""
    if after["orientation"] == "auto" or (before["orientation"], after["orientation"]) == ("auto", "stored"):
        after["orientation"] = before["orientation"]


def _length_note(path: Path, step: int, before: int, schedule: configuration.Schedule) -> str:
    """Return the note on a run that is to have another number of steps than before.

    Raises:
        RetinaError: it has made more steps than that.
    """
    steps = schedule.length
    if steps < step:
        raise RetinaError(
            f"{path}: schedule.steps: expected at least the {step} steps that the run has made, got {steps}; "
            "give more, or start a new run"
        )
    course = {
        "cosine": f"its cosine now ends at step {steps}, so that the learning rate goes on from the place of "
        f"step {step + 1} on the new curve, with a jump",
        "step": "its milestones stay, so that the learning rate stays at its last value after them",
        "constant": "the learning rate stays at its peak",
    }[schedule.kind]
    return (
        f"the run has {steps} steps now, {before} before: {course}. A run of {steps} steps from the "
        "start would have been another"
    )


def replicas(run: Mapping[str, Any]) -> tuple[Any, int]:
    """Return the devices of a host, and the number of hosts, of a section `run`."""
    return run["devices"], (run["hosts"] or {"count": 1})["count"]


def _other_devices_note(config: Config) -> str:
    """Return the note on what changes when a run is resumed with another number of devices."""
    change = (
        "weights, optimizer, averages and losses equal an uninterrupted run's up to rounding, no longer bit for bit"
    )
    if config.model.batch_norm == "train":
        change += "; and on TensorFlow batch_norm: train normalises by other images together, which sync would not"
    return f"resumed on other devices: {change}. The images, their order and augmentation are the same"


def remove_superseded(run: RunDirectory, keep: int) -> None:
    """Remove the checkpoints of a finished run that it would have removed, had it not been killed before.

    None is removed if one of the newest `keep` can't be read: the others may be needed.
    """
    try:
        newest = [read(run.checkpoint_path(f"step_{step}")) for step in run.steps()[-keep:]]
    except RetinaError:
        return
    bests = {Progress.from_dict(saved.progress).best_step for saved in newest}
    run.keep(keep, {step for step in bests if step is not None})


def newest_checkpoint(run: RunDirectory) -> Start:
    """Return the checkpoint that `latest` names, or the newest whole one before it; None if there is none at all.

    A note names damaged checkpoints that were passed over.

    Raises:
        DamagedCheckpoint: there are checkpoints, and none is whole.
        RetinaError: the system could not read one: it may be whole, so none before it is taken.
    """
    last = run.pointed_step(LATEST)
    steps = [step for step in reversed(run.steps()) if last is None or step <= last]
    damage: list[str] = [] if last is None or last in steps else [f"step_{last}.npz is missing"]
    passed: list[int] = []
    for step in steps:
        try:
            saved = read(run.checkpoint_path(f"step_{step}"))
        except DamagedCheckpoint as error:
            damage.append(str(error))
            passed.append(step)
            continue
        renamed = "; the damaged file stays, as .npz.damaged" if passed else ""
        notes = tuple(f"{text}. Going back to the checkpoint before it: step {step}{renamed}" for text in damage[-1:])
        return Start(saved, notes, tuple(passed))
    if damage:
        raise DamagedCheckpoint(f"{run.path}: no checkpoint is whole: {'; '.join(damage)}; start a new run")
    return Start(None)


def check_classes(saved: Checkpoint, data: DetectionDataset) -> None:
    """Check the data's classes.

    Raises:
        RetinaError: classes or category ids are not the checkpoint's.
    """
    before, now = (saved.class_names, saved.category_ids), (data.class_names, data.category_ids)
    if before != now:
        raise RetinaError(
            f"{data.name}: cannot resume: its classes {list(now[0])} with category ids {list(now[1])} are not the "
            f"checkpoint's {list(before[0])} with {list(before[1])}; restore the data, or start a new run"
        )


def check_data(
    path: Path, start: Start, config: Config, tables: Mapping[str, DetectionDataset], changed_data: bool
) -> tuple[str, ...]:
    """Check that a run is resumed on the tables that it began with; return notes for the log.

    Args:
        tables: the present data, by split; their fingerprints are compared (`retina.data.fingerprint`).
        changed_data: they may differ.

    Raises:
        RetinaError: they differ, and may not; names the differences.
    """
    before = {} if start.checkpoint is None else RunDirectory(path).fingerprints()
    if not before:
        unchecked = ("the run does not say what data it began with: whether these are the same is not checked",)
        return () if start.checkpoint is None else unchecked
    changes = "; ".join(differences(before, {split: fingerprint(table) for split, table in tables.items()}))
    if changes and not changed_data and (notes := _left_out(start, config, tables, before)):
        return notes
    if changes and not changed_data:
        raise RetinaError(
            f"{path}: cannot resume on other data than the run's: {changes}; restore the data, start a new run, or "
            "accept the data with --changed-data (in Python: changed_data=True)"
        )
    return (f"resumed on other data, as --changed-data allows: {changes}",) if changes else ()


def _left_out(
    start: Start, config: Config, tables: Mapping[str, DetectionDataset], before: Fingerprints
) -> tuple[str, ...]:
    """Return notes on images that `data.invalid_images: skip`, new at this resume, leaves out of the run's own data.

    Empty where the setting is not new, or where more than such images differs.

    Raises:
        RetinaError: the run has used such an image.
    """
    assert start.checkpoint is not None, "there are fingerprints to compare with"
    if start.checkpoint.config["data"]["invalid_images"] != "error" or config.data.invalid_images != "skip":
        return ()
    notes = []
    for split, table in tables.items():
        whole = load_split(config.data, cast(Split, split), keep_unusable=True)
        if split == "train":
            whole = in_tiles(whole, config.data.tiles)
        if differences({split: before.get(split, {})}, {split: fingerprint(whole)}):
            return ()
        remaining = set(table.image_ids)
        rows = [row for row, identifier in enumerate(whole.image_ids) if identifier not in remaining]
        if not rows:
            continue
        names = ", ".join(str(whole.image_ids[row]) for row in rows[:3]) + (", …" if len(rows) > 3 else "")
        if split == "train":
            used = bool(np.isin(rows, _used(whole, config, start.checkpoint.step)).any())
        else:
            used = Progress.from_dict(start.checkpoint.progress).best is not None
        if used:
            raise RetinaError(
                f"{whole.name}: cannot resume without images that the run has used already ({names}): restore them, "
                "start a new run, or accept the data with --changed-data (in Python: changed_data=True)"
            )
        notes.append(
            f"{whole.name}: resumed without {count(len(rows), 'image')} that no step has used ({names}): "
            "from here on the order of the images is that of a run without them"
        )
    return tuple(notes)


def _used(data: DetectionDataset, config: Config, steps: int) -> np.ndarray:
    """Return the rows that the first steps of a run have read; all of them where an example is made of several."""
    if images_per_example(config.data.augment) > 1 or config.data.cache != "none":
        return np.arange(len(data) if steps else 0)
    geometry = plan.training_geometries(data, config.data, batch_size=config.run.batch_size)[0]
    per_epoch = plan.training_steps(geometry, batch_size=config.run.batch_size)
    parts = [np.zeros(0, np.int64)]
    for epoch in range(-(-steps // per_epoch)):
        whole = plan.training_plan(geometry, batch_size=config.run.batch_size, seed=config.run.seed, epoch=epoch)
        parts.append(whole.index[: steps - epoch * per_epoch].ravel())
    return np.unique(np.concatenate(parts))


def environment_notes(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    """Return the notes of a run that is resumed in another environment, where it is no longer equal bit for bit."""
    names = [name for name in _ROUNDING if name in before]
    changed = changed_keys({name: before[name] for name in names}, {name: now.get(name) for name in names})
    if not changed:
        return ()
    return (
        f"resumed in another environment: {', '.join(changed.values())}; from here on the run may differ from an "
        "uninterrupted one by rounding",
    )
