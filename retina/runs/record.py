"""What a run directory says about itself: its configuration, its lines of figures, and its exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retina import config as configuration
from retina.errors import RetinaError
from retina.runs.directory import BEST, LATEST, RunDirectory

Line = dict[str, Any]
_STEP = re.compile(r"step_(\d+)")
# What `retina.runs.importing`, which brings in Keras, calls its report.
_IMPORT_REPORT = "import.json"
# Of metrics.jsonl: what is no figure of a training step.
_MARKS = ("split", "metrics")


@dataclass(frozen=True, eq=False)
class Record:
    """A run as its files tell it.

    Attributes:
        lines: of training, by step.
        evaluations: of validation, by step: (step, figures by name).
        stopped_early: the run ended by `run.early_stopping`.
        imported: its weights were trained elsewhere (`retina import-weights`).
    """

    path: Path
    config: configuration.Config
    environment: dict[str, Any]
    lines: list[Line]
    evaluations: list[tuple[int, dict[str, float]]]
    stopped_early: bool
    imported: bool = False

    @property
    def last_step(self) -> int:
        """The last one that a line tells of, 0 where there is none."""
        return max([line["step"] for line in self.lines] + [step for step, _ in self.evaluations], default=0)

    @property
    def is_complete(self) -> bool:
        """A run that has done its steps ends with an evaluation; a signal may have kept it from that."""
        evaluated = max((step for step, _ in self.evaluations), default=0)
        return evaluated >= self.config.schedule.steps or self.stopped_early

    @property
    def seconds(self) -> float:
        """Spent on the steps, waiting for data included; evaluations and checkpoints are not."""
        total, before = 0.0, 0
        for line in self.lines:
            rate = line.get("images_per_second") or 0.0
            if rate > 0:
                total += (line["step"] - before) * self.config.run.batch_size / rate
            before = line["step"]
        return total

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Steps, and a figure's values at those that have it."""
        rows = [(line["step"], line[name]) for line in self.lines if _is_number(line.get(name))]
        return [step for step, _ in rows], [value for _, value in rows]

    def names(self) -> set[str]:
        """Of all figures of training."""
        return {name for line in self.lines for name in line}


def read_record(path: Path) -> Record:
    """Reads a run; what is missing or torn is left out.

    Raises:
        RetinaError: there is no run at `path`, or its configuration can't be read.
    """
    directory = RunDirectory.open(path)
    config = configuration.load(path / "config.yaml")
    lines, evaluations = [], []
    for line in _lines(path / "metrics.jsonl"):
        figures = line.get("metrics")
        if isinstance(figures, dict):
            if line.get("split", "validation") == "validation":
                evaluations.append((line["step"], {name: v for name, v in figures.items() if _is_number(v)}))
        elif not any(mark in line for mark in _MARKS):
            lines.append(line)
    stopped_early, imported = _stopped_early(path, config), (path / _IMPORT_REPORT).is_file()
    return Record(path, config, directory.environment(), lines, evaluations, stopped_early, imported)


def evaluation_step(record: Record, checkpoint: str) -> int | None:
    """The step that `best`, `latest` or `step_N` means.

    A run that was killed before it pointed to a best checkpoint has the best of its evaluations.

    Raises:
        RetinaError: it is none of these names.
    """
    if checkpoint in (BEST, LATEST):
        pointed = RunDirectory(record.path).pointed_step(checkpoint)
        if pointed is not None or not record.evaluations:
            return pointed
        metric = record.config.evaluation.metric
        best = max(record.evaluations, key=lambda one: one[1].get(metric, -1.0))
        return best[0] if checkpoint == BEST else record.evaluations[-1][0]
    found = _STEP.fullmatch(checkpoint)
    if found is None:
        raise RetinaError(f"--checkpoint: expected best, latest or step_N, got '{checkpoint}'; choose one of them")
    return int(found[1])


def stored_figures(record: Record, step: int | None) -> dict[str, Any] | None:
    """`eval/step_N/metrics.json`; None where it is missing or torn."""
    found = _json(record.path / "eval" / f"step_{step}" / "metrics.json")
    return found if isinstance(found, dict) and isinstance(found.get("metrics"), dict) else None


def detections_file(record: Record, step: int | None) -> Path | None:
    """`eval/step_N/detections.json`, if there is one."""
    file = record.path / "eval" / f"step_{step}" / "detections.json"
    return file if file.is_file() else None


def certificates(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Of the exports of a run: the export's name and what its certificate holds (`retina.export.certificate`)."""
    folder = path / "export"
    files = [*folder.glob("*/assets.extra/certificate.json"), *folder.glob("*.certificate.json")]
    found = []
    for file in sorted(files):
        tree = _json(file)
        if isinstance(tree, dict) and "passed" in tree:
            name = file.name.removesuffix(".certificate.json")
            found.append((file.parents[1].name if name == "certificate.json" else name, tree))
    return found


def _lines(file: Path) -> Iterator[Line]:
    """Up to a line that a kill has torn."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            return
        if isinstance(found, dict) and type(found.get("step")) is int:
            yield found


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _stopped_early(path: Path, config: configuration.Config) -> bool:
    if config.run.early_stopping is None:
        return False
    try:
        return "  stopped early after step " in (path / "log.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
