"""Where a run goes on: the newest checkpoint that is whole, made by the same configuration on the same classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from retina import config as configuration
from retina.config import Config
from retina.config.differences import changed_keys
from retina.data.dataset import DetectionDataset
from retina.data.fingerprint import Fingerprints, differences
from retina.errors import RetinaError
from retina.runs.checkpoint import Checkpoint, DamagedCheckpoint, read
from retina.runs.directory import LATEST, RunDirectory, has_config, is_begun
from retina.runs.state import Progress

# What may differ when a run goes on: none of it touches a weight or a line of metrics.jsonl,
_FREE = ("run.keep", "run.checkpoint_every", "run.checkpoint_minutes", "run.report", "export")
# or the tables, which are compared themselves (`check_data`),
_MOVED = ("data.root",)
# or does so by rounding.
_PLACE = ("run.devices", "run.hosts")

# Of environment.json: what rounding may depend on.
_ROUNDING = ("python", "platform", "backend", "devices", "packages", "revision")


class Start(NamedTuple):
    """`checkpoint` is None where none had been written; `notes` are for the log; `damaged` are the steps of the newer
    checkpoints that can't be read."""

    checkpoint: Checkpoint | None
    notes: tuple[str, ...] = ()
    damaged: tuple[int, ...] = ()


def find_start(path: Path, config: Config) -> Start:
    """Where `retina train --resume` begins.

    A checkpoint that is cut short or altered is passed over for the one before it. Nothing is written.

    Raises:
        RetinaError: `path` holds something else, the configuration has changed, no checkpoint is whole, or the newest
            can't be read for now.
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
        # Parsed: keys that were added to the package since then have their defaults.
        before = configuration.parse(saved.config, str(path)).model_dump(mode="json")
    changed = changed_keys(before, config.model_dump(mode="json"))
    free = _FREE + _PLACE + (_MOVED if run.fingerprints() else ())
    bound = [text for key, text in changed.items() if not key.startswith(free)]
    if bound:
        raise RetinaError(
            f"{path}: cannot resume with a changed config: {', '.join(bound)}; resume with the run's own "
            f"({path}/config.yaml), or start a new run"
        )
    if changed:
        notes = (*notes, f"resumed with a changed config: {', '.join(changed.values())}")
    if replicas(before["run"]) != replicas(config.run.model_dump()):
        notes = (*notes, _elsewhere(config))
    return Start(saved, notes, damaged)


def replicas(run: Mapping[str, Any]) -> tuple[Any, int]:
    """Devices of a host, and hosts, of a section `run`."""
    return run["devices"], (run["hosts"] or {"count": 1})["count"]


def _elsewhere(config: Config) -> str:
    """What is no longer so when a run goes on with another number of devices."""
    lost = "weights, optimizer, averages and losses equal an uninterrupted run's up to rounding, no longer bit for bit"
    if config.model.batch_norm == "train":
        lost += "; and on TensorFlow batch_norm: train normalises by other images together, which sync would not"
    return f"resumed on other devices: {lost}. The images, their order and augmentation are the same"


def remove_superseded(run: RunDirectory, keep: int) -> None:
    """Removes of a finished run the checkpoints that it would have removed, had a kill left it the time.

    None where one of those to keep can't be read: it may be the others that are needed.
    """
    try:
        kept = [read(run.checkpoint_path(f"step_{step}")) for step in run.steps()[-keep:]]
    except RetinaError:
        return
    bests = {Progress.from_dict(saved.progress).best_step for saved in kept}
    run.keep(keep, {step for step in bests if step is not None})


def newest_checkpoint(run: RunDirectory) -> Start:
    """The checkpoint that `latest` names, or the newest before it that is whole; None where there is none at all.

    Returns:
        It, a line about the damaged ones that were passed over, and their steps.

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
        kept = "; the damaged file stays, as .npz.damaged" if passed else ""
        notes = tuple(f"{text}. Going back to the checkpoint before it: step {step}{kept}" for text in damage[-1:])
        return Start(saved, notes, tuple(passed))
    if damage:
        raise DamagedCheckpoint(f"{run.path}: no checkpoint is whole: {'; '.join(damage)}; start a new run")
    return Start(None)


def check_classes(saved: Checkpoint, data: DetectionDataset) -> None:
    """Raises: RetinaError, the data's classes or category ids are not the checkpoint's."""
    before, now = (saved.class_names, saved.category_ids), (data.class_names, data.category_ids)
    if before != now:
        raise RetinaError(
            f"{data.name}: cannot resume: its classes {list(now[0])} with category ids {list(now[1])} are not the "
            f"checkpoint's {list(before[0])} with {list(before[1])}; restore the data, or start a new run"
        )


def check_data(path: Path, start: Start, now: Fingerprints, changed_data: bool) -> tuple[str, ...]:
    """Whether a run goes on with the tables that it began with.

    Args:
        now: of the data at hand; see `retina.data.fingerprint`.
        changed_data: they may differ.

    Returns:
        Notes for the log.

    Raises:
        RetinaError: they differ, and may not; says in what.
    """
    before = {} if start.checkpoint is None else RunDirectory(path).fingerprints()
    if not before:
        old = ("the run does not say what data it began with: whether these are the same is not checked",)
        return () if start.checkpoint is None else old
    found = "; ".join(differences(before, now))
    if found and not changed_data:
        raise RetinaError(
            f"{path}: cannot resume on other data than the run's: {found}; restore the data, start a new run, or "
            "accept it with --changed-data (in Python: changed_data=True)"
        )
    return (f"resumed on other data, as --changed-data allows: {found}",) if found else ()


def environment_notes(before: dict[str, Any], now: dict[str, Any]) -> tuple[str, ...]:
    """What a resumed run says where it goes on elsewhere: equal bit for bit it is on the same ground only."""
    names = [name for name in _ROUNDING if name in before]
    changed = changed_keys({name: before[name] for name in names}, {name: now.get(name) for name in names})
    if not changed:
        return ()
    return (
        f"resumed in another environment: {', '.join(changed.values())}; from here on the run may differ from an "
        "uninterrupted one by rounding",
    )
