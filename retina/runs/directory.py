"""The files of a run (`retina/ARCHITECTURE.md`, Contracts). Whole ones appear by renaming; `latest` is written last."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retina import config
from retina.errors import RetinaError
from retina.files import exists, write_text

BEST, LATEST = "best", "latest"
_CONFIG, _ENVIRONMENT, _DATA = "config.yaml", "environment.json", "data.json"
_STEP = re.compile(r"step_(\d+)")


class RunDirectory:
    """`config.yaml`, `environment.json`, `data.json`, `log.txt`, `metrics.jsonl`, `checkpoints/`, `eval/step_N/`,
    `tensorboard/`."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, path: Path, config_yaml: str, environment: dict[str, Any]) -> RunDirectory:
        """Makes a new run; the caller has called `refuse_if_used` before the slow part."""
        refuse_if_used(path)
        return cls.complete(path, config_yaml, environment)

    @classmethod
    def complete(cls, path: Path, config_yaml: str, environment: dict[str, Any]) -> RunDirectory:
        """Makes what a run that was killed at its very start had not made yet; files that are there stay."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            # First: a folder that holds it is a run, whatever else is still missing.
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
        """An existing run.

        Raises:
            RetinaError: there is none at `path`.
        """
        if not (exists(path) and (path / _CONFIG).is_file()):
            found = "it has no config.yaml" if path.is_dir() else "no such folder"
            raise RetinaError(
                f"{path}: not a run directory ({found}); make one with `retina train CONFIG --run-dir {shown(path)}`"
            )
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Around everything that writes: a second process must not train the same run.

        The kernel lets go of the lock however the process ends. Where the file system knows no locks there is none.

        Raises:
            RetinaError: another process holds it.
        """
        import fcntl

        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RetinaError(
                    f"{self.path}: another process is training this run; wait for it, or end it first"
                ) from None
            except OSError:
                pass
            yield
        finally:
            os.close(descriptor)

    def checkpoint_path(self, name: str) -> Path:
        """`name` is `best`, `latest` or `step_N`."""
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
        return f"the run ended before its first one, or is still on its way; go on with `{resume_command(self.path)}`"

    def _pointed(self, name: str) -> str | None:
        pointer = self.path / "checkpoints" / name
        return pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None

    def pointed_step(self, name: str) -> int | None:
        """The step that `best` or `latest` names; None if there is no such file, or it names something else."""
        found = _STEP.fullmatch(self._pointed(name) or "")
        return int(found[1]) if found else None

    def point(self, name: str, target: Path) -> None:
        """Makes `best` or `latest` name a checkpoint."""
        write_text(self.path / "checkpoints" / name, target.stem + "\n")

    def steps(self) -> list[int]:
        """The steps whose checkpoints lie here, in order."""
        found = (_STEP.fullmatch(file.stem) for file in (self.path / "checkpoints").glob("step_*.npz"))
        return sorted(int(match[1]) for match in found if match)

    def keep(self, count: int, also: Iterable[int] = ()) -> None:
        """Removes checkpoints, but for the newest `count`, those that `best` and `latest` name, and `also` (steps)."""
        steps = self.steps()
        named = {self.pointed_step(BEST), self.pointed_step(LATEST)}
        for step in set(steps) - set(steps[-count:]) - named - set(also):
            self.checkpoint_path(f"step_{step}").unlink()

    def append_metrics(self, line: dict[str, Any]) -> None:
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def sync_metrics(self) -> None:
        """Before a checkpoint is written: after a power cut the lines of its steps must be there as well."""
        with contextlib.suppress(FileNotFoundError), open(self.path / "metrics.jsonl", "rb") as file:
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def go_back_to(
        self, step: int, best_step: int | None, damaged: Iterable[int] = (), unevaluated: bool = False
    ) -> None:
        """Makes the run what it was after `step`: later lines and checkpoints go, and what a kill left half written.

        Args:
            best_step: the best on the validation data so far; None before the first evaluation.
            damaged: steps whose checkpoints can't be read: those files stay, as `step_N.npz.damaged`.
            unevaluated: the evaluation of `step` itself is to be made again as well.
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
            for half in folder.glob(".partial.*"):
                half.unlink()
        for name, target in ((BEST, best_step), (LATEST, step)):
            if target is not None and self.checkpoint_path(f"step_{target}").is_file():
                if self.pointed_step(name) != target:
                    self.point(name, self.checkpoint_path(f"step_{target}"))
            else:
                (checkpoints / name).unlink(missing_ok=True)

    def forget_after(self, step: int, unevaluated: bool = False) -> None:
        """Drops the metrics that a resumed run will make again, and a line torn by a kill."""
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return
        kept = []
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            if record["step"] < step or (record["step"] == step and not (unevaluated and "split" in record)):
                kept.append(line)
        write_text(file, "".join(line + "\n" for line in kept))

    def environment(self) -> dict[str, Any]:
        """What `environment.json` says; nothing where it is missing or torn."""
        return self._read(_ENVIRONMENT)

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """What `data.json` says of the tables that the run began with; nothing where it is missing or torn."""
        return self._read(_DATA)

    def write_fingerprints(self, found: dict[str, dict[str, Any]]) -> None:
        """Of the tables that the run goes on with, by split."""
        if found != self.fingerprints():
            write_text(self.path / _DATA, json.dumps(found, indent=2) + "\n")

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def evaluation(self, step: int) -> Path:
        folder = self.path / "eval" / f"step_{step}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def shown(path: Path) -> str:
    """A path as a shell takes it, and not as an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def resume_command(path: Path, hosts: config.Hosts | None = None) -> str:
    """What goes on with a run, from the folder that this process was started in; on a host of several, with its place
    among them, which the run directory does not know."""
    command = f"retina train --run-dir {shown(path)} --resume"
    if hosts is None:
        return command
    place = f'run.hosts={{coordinator: "{hosts.coordinator}", count: {hosts.count}, index: {hosts.index}}}'
    return (
        f"{command} {shlex.quote(place)} (on each host with its own index; or as it was started: with --launcher, or "
        "with the CONFIG where a host does not see the run directory)"
    )


def is_begun(path: Path) -> bool:
    """Whether the folder is a run, or what one that was killed at its very start leaves; not anybody else's."""
    if not exists(path):
        return True
    if not path.is_dir():
        return False
    return (path / _CONFIG).is_file() or {entry.name for entry in path.iterdir()} <= {f".partial.{_CONFIG}"}


def has_config(path: Path) -> bool:
    return exists(path) and (path / _CONFIG).is_file()


def refuse_if_used(path: Path) -> None:
    """A new run takes a new or an empty folder.

    Raises:
        RetinaError: it is neither; where it is a run the message gives the command that goes on with it.
    """
    if exists(path) and not path.is_dir():
        raise RetinaError(f"{path}: the run directory is a file; choose another --run-dir")
    if path.is_dir() and any(path.iterdir()):
        resume = ""
        if (path / _CONFIG).is_file():
            resume = f"; go on with `{resume_command(path)}`"
        elif is_begun(path):
            resume = f"; go on with `retina train CONFIG --run-dir {shown(path)} --resume`"
        raise RetinaError(f"{path}: the run directory is not empty; choose another --run-dir{resume}")
