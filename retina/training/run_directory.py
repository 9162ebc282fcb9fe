"""The files of a run (DESIGN: run directory). Whole files appear by renaming; `latest` is written last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from retina.errors import RetinaError
from retina.files import exists, write_text

BEST, LATEST = "best", "latest"


class RunDirectory:
    """`config.yaml`, `environment.json`, `log.txt`, `metrics.jsonl`, `checkpoints/`, `eval/step_N/`, `tensorboard/`."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def create(cls, path: Path, config_yaml: str, environment: dict[str, Any]) -> RunDirectory:
        """Makes a new run; the caller has called `refuse_if_used` before the slow part."""
        refuse_if_used(path)
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            write_text(path / "environment.json", json.dumps(environment, indent=2) + "\n")
            write_text(path / "config.yaml", config_yaml)
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
        if not (exists(path) and (path / "config.yaml").is_file()):
            found = "it has no config.yaml" if path.is_dir() else "no such folder"
            raise RetinaError(
                f"{path}: not a run directory ({found}); make one with `retina train CONFIG --run-dir {path}`"
            )
        return cls(path)

    def checkpoint_path(self, name: str) -> Path:
        """`name` is `best`, `latest` or `step_N`."""
        if name in (BEST, LATEST):
            pointer = self.path / "checkpoints" / name
            if not pointer.is_file():
                raise RetinaError(f"{self.path}: it has no '{name}' checkpoint; {self._remedy(name)}")
            name = pointer.read_text(encoding="utf-8").strip()
        return self.path / "checkpoints" / f"{name}.npz"

    def _remedy(self, name: str) -> str:
        other = LATEST if name == BEST else BEST
        if (self.path / "checkpoints" / other).is_file():
            return f"take --checkpoint {other}, or train it further with --resume"
        return "the run ended before its first one, or is still on its way; train again with another --run-dir"

    def point(self, name: str, target: Path) -> None:
        """Makes `best` or `latest` name a checkpoint, then removes the checkpoints that neither names."""
        write_text(self.path / "checkpoints" / name, target.stem + "\n")
        named = {
            pointer.read_text(encoding="utf-8").strip()
            for pointer in (self.path / "checkpoints" / BEST, self.path / "checkpoints" / LATEST)
            if pointer.is_file()
        }
        for file in (self.path / "checkpoints").glob("step_*.npz"):
            if file.stem not in named:
                file.unlink()

    def append_metrics(self, line: dict[str, Any]) -> None:
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def forget_after(self, step: int) -> None:
        """Drops the metrics of steps that a resumed run will make again, and a line torn by a kill."""
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return
        kept = []
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            if record["step"] <= step:
                kept.append(line)
        write_text(file, "".join(line + "\n" for line in kept))

    def evaluation(self, step: int) -> Path:
        folder = self.path / "eval" / f"step_{step}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def refuse_if_used(path: Path) -> None:
    if exists(path) and not path.is_dir():
        raise RetinaError(f"{path}: the run directory is a file; choose another --run-dir")
    if path.is_dir() and any(path.iterdir()):
        resumable = (path / "config.yaml").is_file() and (path / "checkpoints" / LATEST).is_file()
        resume = f"; go on with `retina train --run-dir {path} --resume`" if resumable else ""
        raise RetinaError(f"{path}: the run directory is not empty; choose another --run-dir{resume}")
