"""The folder of a study: its plan, its trials, and how they ended.

study.yaml            the plan, written first
pilots/               a study of its own, which chose values for the settings; see `retina.ablation.pilots`
trials/NAME.yaml      the configuration of a trial; NAME is SETTING_SEED
trials/NAME/          its run directory, as `retina train` makes it
trials/NAME.failed_1/ a run directory that could not be resumed
trials/NAME.log       the output of its process
trials/NAME.json      its outcome, once it has ended
study.csv, study.json, study.txt, *.png                see `retina.ablation.outputs`
study.html                                            see `retina.pages.study`
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from retina import config as configuration
from retina.ablation.plan import Plan, Trial, changes
from retina.config.reading import read_yaml, write_yaml
from retina.errors import RetinaError
from retina.files import write_text

# A "pending" trial has not started, or was interrupted.
Status = Literal["finished", "diverged", "failed", "pending"]

PILOTS = "pilots"
_LOCK_SECONDS = 20.0


@dataclass(frozen=True)
class Outcome:
    """Outcome of a trial.

    Attributes:
        status: "diverged" if its loss was no longer finite, which is a result and not retried.
        attempts: processes started for it, in the call that ended it.
        seconds: time of these processes together.
        error: the last line of its log, unless it is finished.
    """

    status: Status
    attempts: int = 0
    seconds: float = 0.0
    error: str = ""


class Study:
    """Paths and records of one study."""

    def __init__(self, path: Path, plan: Plan):
        self.path, self.plan = path, plan

    @classmethod
    def start(cls, path: Path, plan: Plan) -> Study:
        """Start a study, or open the study at `path` if its plan is the same, or has fewer seeds or settings.

        Raises:
            RetinaError: the folder holds something else, or a study with another plan; the message names the changes.
        """
        file = path / "study.yaml"
        before = cls.open(path).plan if file.is_file() else None
        if before is not None:
            # Compared as plans and not as files: keys that this version added have their defaults on both sides.
            if changed := changes(before, plan):
                more = f" and {len(changed) - 6} more" if len(changed) > 6 else ""
                raise RetinaError(
                    f"{path}: a study with another plan is here; changed: {', '.join(changed[:6])}{more}. Repeat "
                    "the command that started it, or choose another --out"
                )
        else:
            _refuse_other(path)
        study = cls(path, plan)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if before is None:
                write_text(file, write_yaml(plan.to_tree()))
            elif plan != before:
                with study.locked():  # a study at work reads its plan again at its end
                    write_text(file, write_yaml(plan.to_tree()))
            (path / "trials").mkdir(exist_ok=True)
        except OSError as error:
            raise RetinaError(f"{path}: cannot write the study: {error.strerror}; choose another --out") from None
        return study

    @classmethod
    def start_pilots(cls, path: Path, plan: Plan) -> Study:
        """Start the pilots of the study at `path`, or open them if there are some.

        Raises:
            RetinaError: as `start`; or a study without pilots is at `path`.
        """
        if not (path / "study.yaml").is_file():
            _refuse_other(path)
        elif not cls.open(path).plan.tuning:
            raise RetinaError(f"{path}: the study here began without --tune; leave it out, or choose another --out")
        home = path / PILOTS
        if (home / "study.yaml").is_file():  # further values may come before the first
            plan = replace(plan, baseline=cls.open(home).plan.baseline)
        return cls.start(home, plan)

    @classmethod
    def open(cls, path: Path) -> Study:
        """Open the study at `path`.

        Raises:
            RetinaError: it is not a study.
        """
        file = path / "study.yaml"
        if not file.is_file():
            raise RetinaError(
                f"{path}: not a study (it has no study.yaml); make one with `retina ablate … --out {path}`"
            )
        return cls(path, Plan.from_tree(read_yaml(file, str(file)), str(file)))

    def run_dir(self, trial: Trial) -> Path:
        return self.path / "trials" / trial.name

    def file(self, trial: Trial, suffix: str) -> Path:
        """Return the path of `NAME.yaml`, `NAME.log` or `NAME.json` next to the run directory."""
        return self.path / "trials" / f"{trial.name}.{suffix}"

    def evaluation(self, trial: Trial) -> Path:
        """Return the folder of the trial's last evaluation, at its last step, whether it exists or not."""
        steps, written = self.plan.trial_config(trial).schedule.steps, self.run_dir(trial) / "config.yaml"
        if steps is None and written.is_file():  # of epochs the run knows the steps
            steps = configuration.load(written).schedule.steps
        return self.run_dir(trial) / "eval" / f"step_{steps}"

    def is_finished(self, trial: Trial) -> bool:
        return all((self.evaluation(trial) / name).is_file() for name in ("metrics.json", "detections.json"))

    def figure(self, trial: Trial) -> float | None:
        """Return AP of the trial's last evaluation; None without one."""
        file = self.evaluation(trial) / "metrics.json"
        if not self.is_finished(trial):
            return None
        try:
            return float(json.loads(file.read_text(encoding="utf-8"))["metrics"]["AP"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # shown in passing; the scores are computed from the detections

    def write_config(self, trial: Trial) -> None:
        write_text(self.file(trial, "yaml"), configuration.to_yaml(self.plan.trial_config(trial)))

    def outcome(self, trial: Trial) -> Outcome:
        """Return the outcome of a trial: it is finished once its last evaluation is on the disk."""
        record = _read_record(self.file(trial, "json"))
        if self.is_finished(trial):
            return record if record is not None and record.status == "finished" else Outcome("finished")
        return record if record is not None and record.status != "finished" else Outcome("pending")

    def record(self, trial: Trial, outcome: Outcome) -> None:
        write_text(self.file(trial, "json"), json.dumps(asdict(outcome), indent=2) + "\n")

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Lock the folder against a second study; yield the descriptor that the trials' processes inherit.

        They hold the lock as long as they live, so that a killed study is not resumed while one of its trials still
        runs. Systems without such locks (Windows) lock nothing.

        Raises:
            RetinaError: the folder stays in use.
        """
        try:
            import fcntl
        except ImportError:
            yield -1
            return
        with open(self.path / ".lock", "w", encoding="utf-8") as file:
            deadline = time.monotonic() + _LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise RetinaError(
                            f"{self.path}: another study or one of its trials is running here; wait for it or stop it"
                        ) from None
                    time.sleep(0.1)
            yield file.fileno()


def _refuse_other(path: Path) -> None:
    """Raise RetinaError if a folder holds anything but pilots."""
    if path.exists() and (not path.is_dir() or any(entry.name != PILOTS for entry in path.iterdir())):
        raise RetinaError(f"{path}: expected a new folder or a study, found something else; choose another --out")


def _read_record(file: Path) -> Outcome | None:
    """Return the record of an outcome; None if it is missing or damaged, and the trial is examined again."""
    try:
        return Outcome(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
