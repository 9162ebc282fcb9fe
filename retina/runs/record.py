"""Record of a run, read from its files: configuration, figures of training and validation, and exports."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from retina import config as configuration
from retina.errors import RetinaError
from retina.runs.directory import BEST, LATEST, RunDirectory

Line = dict[str, Any]
_STEP = re.compile(r"step_(\d+)")
# The report of `retina.runs.importing`, which imports Keras.
_IMPORT_REPORT = "import.json"
# Keys of the lines of metrics.jsonl that are no figures of a training step.
_MARKS = ("split", "metrics")
_PREFLIGHT = re.compile(r"  preflight: (?:warning|error): (.*)")
# Above this ratio of the moving statistics' loss to the batch's the two modes of batch normalisation part. After 60
# steps on BCCD (`retina guide training`), over eight batches of eight images each and with averages moved one step
# towards these, it was 0.91 to 0.96 at a momentum of 0.9; at 0.99, which costs a quarter of the AP, 1.06 to 1.33, in
# the mean 1.17.
_MOST_APART = 1.1


class ModeLosses(NamedTuple):
    """Loss of the same training images in the two modes of batch normalisation: normalised by their own statistics, as
    in training, and by the moving averages, as in inference."""

    batch: float
    moving: float

    @classmethod
    def from_dict(cls, values: Any) -> ModeLosses | None:
        """Return the losses that `to_dict` wrote; None if these are none."""
        numbers = [values.get(name, "") for name in cls._fields] if isinstance(values, dict) else [""]
        if not all(value is None or _is_number(value) for value in numbers):
            return None
        return cls(*(math.nan if value is None else float(value) for value in numbers))

    def to_dict(self) -> dict[str, float | None]:
        """Return plain values for JSON, which has no NaN and no infinity: None stands for them."""
        return {name: value if math.isfinite(value) else None for name, value in self._asdict().items()}

    @property
    def part(self) -> bool:
        """Tell whether inference is another network than the trained one, since the averages lag behind the weights."""
        return not self.moving <= _MOST_APART * self.batch  # a loss that is no number parts as well

    @property
    def verdict(self) -> str:
        """What the difference means, as a sentence, with what to do where the modes part."""
        if not self.part:
            return f"Training and inference are the same network: {self}."
        return (
            f"Training and inference are not the same network: {self}. Evaluation, the choice of the best checkpoint, "
            "prediction and export use the moving statistics, which lag behind the weights. Train longer, lower "
            "model.batch_norm_momentum (0.9 suits most runs), or raise run.batch_size where it is small."
        )

    def __str__(self) -> str:
        return (
            f"loss of a few training images {self.batch:.4f} with the statistics of their batch, "
            f"{self.moving:.4f} with the moving ones"
        )


@dataclass(frozen=True, eq=False)
class Record:
    """Record of a run.

    Attributes:
        lines: of training, by step.
        evaluations: of validation, by step: (step, figures by name).
        preflight: what the check before the training warned of, in sentences.
        modes: the losses in both modes of batch normalisation, by step; none where it is frozen.
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
    modes: tuple[tuple[int, ModeLosses], ...] = ()
    preflight: tuple[str, ...] = ()

    @property
    def last_step(self) -> int:
        """Return the last step that has figures, 0 if none has."""
        return max([line["step"] for line in self.lines] + [step for step, _ in self.evaluations], default=0)

    @property
    def is_complete(self) -> bool:
        """Tell whether the run is complete: it ends with an evaluation, which a signal may have prevented."""
        evaluated = max((step for step, _ in self.evaluations), default=0)
        return evaluated >= self.config.schedule.length or self.stopped_early

    @property
    def seconds(self) -> float:
        """Return the time of the steps, waiting for data included, evaluations and checkpoints left out."""
        total, before = 0.0, 0
        for line in self.lines:
            rate = line.get("images_per_second") or 0.0
            if rate > 0:
                total += (line["step"] - before) * self.config.run.batch_size / rate
            before = line["step"]
        return total

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Return the steps that have a figure, and its values."""
        rows = [(line["step"], line[name]) for line in self.lines if _is_number(line.get(name))]
        return [step for step, _ in rows], [value for _, value in rows]

    def names(self) -> set[str]:
        """Return the names of all figures of training."""
        return {name for line in self.lines for name in line}


def read_record(path: Path) -> Record:
    """Read a run; files that are missing or torn are left out.

    Raises:
        RetinaError: there is no run at `path`, or its configuration can't be read.
    """
    directory = RunDirectory.open(path)
    config = configuration.load(path / "config.yaml")
    lines, modes = [], []
    evaluations: dict[int, dict[str, float]] = {}  # where a step stands twice, the later holds
    for line in _lines(path / "metrics.jsonl"):
        figures = line.get("metrics")
        if isinstance(figures, dict):
            if line.get("split", "validation") == "validation":
                evaluations[line["step"]] = {name: v for name, v in figures.items() if _is_number(v)}
                if losses := ModeLosses.from_dict(line.get("mode_losses")):
                    modes.append((line["step"], losses))
        elif not any(mark in line for mark in _MARKS):
            lines.append(line)
    log = _log(path)
    # After the step of the last evaluation: a run that went on since has later ones.
    stopped_early = bool(evaluations) and f"  stopped early after step {max(evaluations)}:" in log
    stopped_early = stopped_early and config.run.early_stopping is not None
    preflight = tuple(dict.fromkeys(_PREFLIGHT.findall(log)))
    imported = (path / _IMPORT_REPORT).is_file()
    environment = directory.environment()
    return Record(
        path, config, environment, lines, sorted(evaluations.items()), stopped_early, imported, tuple(modes), preflight
    )


def evaluation_step(record: Record, checkpoint: str) -> int | None:
    """Return the step that `best`, `latest` or `step_N` means.

    In a run that was killed before it pointed to a best checkpoint, `best` is the best of its evaluations.

    Raises:
        RetinaError: `checkpoint` is none of these names.
    """
    if checkpoint in (BEST, LATEST):
        pointed = RunDirectory(record.path).pointed_step(checkpoint)
        if pointed is not None or not record.evaluations:
            return pointed
        metric = record.config.evaluation.metric
        best = max(record.evaluations, key=lambda evaluation: evaluation[1].get(metric, -1.0))
        return best[0] if checkpoint == BEST else record.evaluations[-1][0]
    match = _STEP.fullmatch(checkpoint)
    if match is None:
        raise RetinaError(f"--checkpoint: expected best, latest or step_N, got '{checkpoint}'; choose one of them")
    return int(match[1])


def stored_figures(record: Record, step: int | None) -> dict[str, Any] | None:
    """Return the contents of `eval/step_N/metrics.json`; None if it is missing or torn."""
    document = _json(record.path / "eval" / f"step_{step}" / "metrics.json")
    return document if isinstance(document, dict) and isinstance(document.get("metrics"), dict) else None


def detections_file(record: Record, step: int | None) -> Path | None:
    """Return the file `eval/step_N/detections.json`; None if there is none."""
    file = record.path / "eval" / f"step_{step}" / "detections.json"
    return file if file.is_file() else None


def certificates(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return name and certificate of each export of a run that has one (`retina.export.certificate`)."""
    folder = path / "export"
    files = [*folder.glob("*/assets.extra/certificate.json"), *folder.glob("*.certificate.json")]
    named = []
    for file in sorted(files):
        tree = _json(file)
        if isinstance(tree, dict) and "passed" in tree:
            name = file.name.removesuffix(".certificate.json")
            named.append((file.parents[1].name if name == "certificate.json" else name, tree))
    return named


def _lines(file: Path) -> Iterator[Line]:
    """Yield the lines up to a line that a kill has torn."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            figures = json.loads(line)
        except ValueError:
            return
        if isinstance(figures, dict) and type(figures.get("step")) is int:
            yield figures


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _log(path: Path) -> str:
    try:
        return (path / "log.txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
