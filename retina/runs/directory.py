"""The run directory (`retina/ARCHITECTURE.md`, Contracts): its files, and the errors when it can no longer be written.

Whole files appear by renaming; `latest` is written last.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
import secrets
import shlex
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from retina import config
from retina.errors import RetinaError, RunFailed
from retina.files import exists, locked, refuse_scheme, write_text

T = TypeVar("T")
BEST, LATEST = "best", "latest"
SETUP = "setup"
"""Folder in a run that is written before it starts: the configuration with its reasons, and lists of images."""
_CONFIG, _ENVIRONMENT, _DATA, _TRACKER_ID = "config.yaml", "environment.json", "data.json", "tracker_id"
_STEP = re.compile(r"step_(\d+)")
# Errors that say that the disk is full, or that the folder may no longer be written.
_STORAGE_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS, errno.ESTALE,
)  # fmt: skip


class RunDirectory:
    """Directory of a run: `config.yaml`, `environment.json`, `data.json`, `log.txt`, `metrics.jsonl`, `checkpoints/`,
    `eval/step_N/`, `tensorboard/`; with `run.trackers`, `tracker_id`."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, path: Path, config_yaml: str, environment: dict[str, Any]) -> RunDirectory:
        """Make a new run; call `refuse_if_used` before the slow part."""
        refuse_if_used(path)
        return cls.complete(path, config_yaml, environment)

    @classmethod
    def complete(cls, path: Path, config_yaml: str, environment: dict[str, Any]) -> RunDirectory:
        """Make the files that a run which was killed at its very start lacks; files that are there stay."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            # First: a folder with a config.yaml is a run, whatever else is still missing.
            if not (path / _CONFIG).exists():
                write_text(path / _CONFIG, config_yaml)
            (path / "checkpoints").mkdir(exist_ok=True)
            if not (path / _ENVIRONMENT).exists():
                write_text(path / _ENVIRONMENT, json.dumps(environment, indent=2) + "\n")
        except OSError as error:
            raise RetinaError(
                f"{path}: cannot write the run directory: {error.strerror}; choose another --run-dir"
            ) from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Return an existing run.

        Raises:
            RetinaError: there is none at `path`.
        """
        refuse_scheme(path)
        if path.is_file() and path.suffix in (".yaml", ".yml"):
            raise RetinaError(
                f"{path}: expected a run directory, got a configuration; `retina train {shown(path)}` makes a run "
                "of it, whose folder is then given here"
            )
        if not has_config(path):
            reason = "it has no config.yaml" if path.is_dir() else "no such folder"
            raise RetinaError(
                f"{path}: not a run directory ({reason}); make one with `retina train CONFIG --run-dir {shown(path)}`"
            )
        return cls(path)

    def locked(self) -> AbstractContextManager[None]:
        """Return the run's lock, to be entered: a second process must not train the same run.

        Raises:
            RetinaError: on entering, another process holds it.
        """
        return locked(self.path, "another process is training this run; wait for it, or end it first")

    def checkpoint_path(self, name: str) -> Path:
        """Return the file of the checkpoint `best`, `latest` or `step_N`.

        Raises:
            RetinaError: the run has no `best` or `latest` one.
        """
        if name in (BEST, LATEST):
            pointer = self._pointed(name)
            if pointer is None:
                raise RetinaError(f"{self.path}: it has no '{name}' checkpoint; {self._remedy(name)}")
            name = pointer
        return self.path / "checkpoints" / f"{name}.npz"

    def _remedy(self, name: str) -> str:
        other = LATEST if name == BEST else BEST
        if (self.path / "checkpoints" / other).is_file():
            return f"take --checkpoint {other}, or train it further with --resume"
        return (
            f"the run ended before its first checkpoint, or is still running; go on with `{resume_command(self.path)}`"
        )

    def _pointed(self, name: str) -> str | None:
        pointer = self.path / "checkpoints" / name
        return pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None

    def pointed_step(self, name: str) -> int | None:
        """Return the step that `best` or `latest` names; None if there is no such file, or it names something else."""
        match = _STEP.fullmatch(self._pointed(name) or "")
        return int(match[1]) if match else None

    def point(self, name: str, target: Path) -> None:
        """Make `best` or `latest` name a checkpoint."""
        write_text(self.path / "checkpoints" / name, target.stem + "\n")

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints in the directory, in order."""
        matches = (_STEP.fullmatch(file.stem) for file in (self.path / "checkpoints").glob("step_*.npz"))
        return sorted(int(match[1]) for match in matches if match)

    def keep(self, count: int, also: Iterable[int] = ()) -> None:
        """Remove checkpoints, but for the newest `count`, those that `best` and `latest` name, and `also` (steps)."""
        steps = self.steps()
        named = {self.pointed_step(BEST), self.pointed_step(LATEST)}
        for step in set(steps) - set(steps[-count:]) - named - set(also):
            self.checkpoint_path(f"step_{step}").unlink()

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def sync_metrics(self) -> None:
        """Put `metrics.jsonl` on the disk before a checkpoint: after a power cut its steps must have their lines."""
        with contextlib.suppress(FileNotFoundError), open(self.path / "metrics.jsonl", "rb") as file:
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of `metrics.jsonl`."""
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def go_back_to(
        self, step: int, best_step: int | None, damaged: Iterable[int] = (), unevaluated: bool = False
    ) -> None:
        """Restore the run as it was after `step`: remove later lines and checkpoints, and half-written files.

        Args:
            best_step: the best step on the validation data so far; None before the first evaluation.
            damaged: steps whose checkpoints can't be read: those files stay, as `step_N.npz.damaged`.
            unevaluated: the evaluation of `step` itself will be made again, so its lines go, too.
        """
        self.forget_after(step, unevaluated)
        checkpoints = self.path / "checkpoints"
        for later in damaged:
            file = self.checkpoint_path(f"step_{later}")
            if file.is_file():
                file.replace(file.with_name(f"{file.name}.damaged"))
        for later in self.steps():
            if later > step:
                self.checkpoint_path(f"step_{later}").unlink()
        for folder in (self.path, checkpoints):
            for partial in folder.glob(".partial.*"):
                partial.unlink()
        for name, target in ((BEST, best_step), (LATEST, step)):
            if target is not None and self.checkpoint_path(f"step_{target}").is_file():
                if self.pointed_step(name) != target:
                    self.point(name, self.checkpoint_path(f"step_{target}"))
            else:
                (checkpoints / name).unlink(missing_ok=True)

    def forget_after(self, step: int, unevaluated: bool = False) -> None:
        """Drop the metrics that a resumed run will make again, and a line torn by a kill."""
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return
        lines = []
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            if record["step"] < step or (record["step"] == step and not (unevaluated and "split" in record)):
                lines.append(line)
        write_text(file, "".join(line + "\n" for line in lines))

    def environment(self) -> dict[str, Any]:
        """Return the contents of `environment.json`; empty if it is missing or torn."""
        return self._read(_ENVIRONMENT)

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Return the fingerprints of the run's tables in `data.json`; empty if it is missing or torn."""
        return self._read(_DATA)

    def write_config(self, config_yaml: str) -> None:
        """Write the configuration that the run goes on with, if it is a new one."""
        if (self.path / _CONFIG).read_text(encoding="utf-8") != config_yaml:
            write_text(self.path / _CONFIG, config_yaml)

    def write_fingerprints(self, fingerprints: dict[str, dict[str, Any]]) -> None:
        """Write the fingerprints of the tables that the run goes on with, by split, if they are new."""
        if fingerprints != self.fingerprints():
            write_text(self.path / _DATA, json.dumps(fingerprints, indent=2) + "\n")

    def tracker_id(self) -> str:
        """Return the id by which trackers know this run again: random, so that no other run has it; made if missing."""
        file = self.path / _TRACKER_ID
        if not file.is_file():
            write_text(file, f"{secrets.token_hex(8)}\n")
        return file.read_text(encoding="utf-8").strip()

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def evaluation(self, step: int) -> Path:
        """Return the folder of a step's evaluation, made if it is missing."""
        folder = self.path / "eval" / f"step_{step}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def numbered(path: Path) -> Path:
    """Return a folder that is not there yet: `path`, or `path-2`, `path-3`, …"""
    tries = (path if number == 1 else path.with_name(f"{path.name}-{number}") for number in itertools.count(1))
    return next(folder for folder in tries if not exists(folder))


def shown(path: Path) -> str:
    """Return a path quoted for a shell, and safe from being read as an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def resume_command(path: Path, hosts: config.Hosts | None = None) -> str:
    """Return the command that resumes a run, from the folder that this process was started in.

    On a host of several it holds the host's place among them, which the run directory does not know.
    """
    command = f"retina train --run-dir {shown(path)} --resume"
    if hosts is None:
        return command
    place = f'run.hosts={{coordinator: "{hosts.coordinator}", count: {hosts.count}, index: {hosts.index}}}'
    return (
        f"{command} {shlex.quote(place)} (on each host with its own index; or as it was started: with --launcher, or "
        "with the CONFIG where a host does not see the run directory)"
    )


def is_begun(path: Path) -> bool:
    """Tell whether the folder is a run, is missing, or holds only the files of a run killed at its very start."""
    if not exists(path):
        return True
    if not path.is_dir():
        return False
    return (path / _CONFIG).is_file() or {entry.name for entry in path.iterdir()} <= {f".partial.{_CONFIG}"}


def has_config(path: Path) -> bool:
    """Tell whether the folder is a run: it has a `config.yaml`."""
    return exists(path) and (path / _CONFIG).is_file()


def refuse_if_used(path: Path) -> None:
    """Check that a new run has a new or an empty folder.

    Raises:
        RetinaError: it is neither, and holds more than `SETUP`; if it is a run, the message gives the command that
            resumes it.
    """
    if exists(path) and not path.is_dir():
        raise RetinaError(f"{path}: the run directory is a file; choose another --run-dir")
    if path.is_dir() and any(entry.name != SETUP for entry in path.iterdir()):
        resume = ""
        if (path / _CONFIG).is_file():
            resume = f"; go on with `{resume_command(path)}`"
        elif is_begun(path):
            resume = f"; go on with `retina train CONFIG --run-dir {shown(path)} --resume`"
        raise RetinaError(f"{path}: the run directory is not empty; choose another --run-dir{resume}")


class Unwritable(Exception):
    """Error of a file of the run that could not be written; the message is the system's reason."""


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Surround code that writes into the run directory `path`, and only that: errors of reading pass as they are.

    Raises:
        Unwritable: a file could not be written.
    """
    try:
        yield
    except OSError as error:
        reason = _reason(error, path)
        if reason is None:
            raise
        raise Unwritable(reason) from error


@contextmanager
def stored(path: Path, writer: AbstractContextManager[T]) -> Iterator[T]:
    """Enter a context manager whose opening and closing write into the run directory `path`.

    An error from inside goes on, whatever the closing raises.

    Raises:
        Unwritable: the opening or the closing failed.
    """
    with storing(path):
        entered = writer.__enter__()
    try:
        yield entered
    except BaseException as error:
        with contextlib.suppress(OSError):
            writer.__exit__(type(error), error, error.__traceback__)
        raise
    with storing(path):
        writer.__exit__(None, None, None)


@contextmanager
def storage_errors_explained(path: Path, hosts: config.Hosts | None = None) -> Iterator[None]:
    """Surround the run, to explain an `Unwritable`.

    Args:
        hosts: `run.hosts`, for the command that resumes.

    Raises:
        RunFailed: a file of the run could not be written; the message names the last whole checkpoint.
    """
    try:
        yield
    except Unwritable as error:
        raise RunFailed(
            f"{path}: the run stopped, since it cannot be written: {error}; {_last_checkpoint(path)}. Make room, then "
            f"go on with: {resume_command(path, hosts)}"
        ) from None


def _reason(error: OSError, path: Path) -> str | None:
    """Return why a file of the run could not be written; None for any other error."""
    # An evaluation's pictures are made of images that lie elsewhere.
    elsewhere = isinstance(error.filename, str) and not Path(error.filename).absolute().is_relative_to(path.absolute())
    return None if elsewhere or error.errno not in _STORAGE_ERRORS else error.strerror


def _last_checkpoint(path: Path) -> str:
    try:
        step = RunDirectory(path).pointed_step(LATEST)
    except OSError:
        step = None
    return "it has no checkpoint yet" if step is None else f"the last checkpoint is whole (step {step})"
