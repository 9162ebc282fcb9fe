"""Score a table of detections by the rules of a benchmark: COCO's with intervals and reasons, or VOC's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from retina import config
from retina.data.ground_truth import GroundTruth, Results
from retina.errors import RetinaError
from retina.evaluation.assessment import Assessment, assess
from retina.evaluation.coco import Metrics
from retina.evaluation.document import SHORT, conventions, flat_classes, flat_metrics, to_json
from retina.evaluation.voc import Difficult, VocMetrics, evaluate_voc

Protocol = Literal["coco", "voc07", "voc10", "pascal-devkit"]

REPLICATES = 1000
# The ends of a 95 % interval are then the third of either side.
LEAST_REPLICATES = 100

_VOC: dict[str, tuple[Literal["voc07", "voc10"], ...]] = {
    "voc07": ("voc07",),
    "voc10": ("voc10",),
    "pascal-devkit": ("voc07", "voc10"),
}


@dataclass(frozen=True, eq=False)
class Score:
    """The figures of a table of detections under one protocol.

    Attributes:
        protocol: the benchmark whose rules hold.
        conventions: these rules in words, with those of the pixels.
        assessment: figures, intervals and reasons under "coco", else None.
        voc: the figures of each way to average under the others: one, or both for "pascal-devkit".
        truth, detections: the tables that were scored, in continuous coordinates.
        pictures: [N] the image files where they are known, else None.
    """

    protocol: Protocol
    conventions: dict[str, str]
    assessment: Assessment | None
    voc: tuple[VocMetrics, ...]
    truth: GroundTruth
    detections: Results
    pictures: tuple[str, ...] | None = None

    @property
    def coco(self) -> Metrics | None:
        """COCO's figures under "coco", else None."""
        return None if self.assessment is None else self.assessment.metrics

    @property
    def boxes(self) -> int:
        """Ground truth boxes that count."""
        return int(self.truth.counted.sum())

    def to_json(self) -> dict[str, Any]:
        """Return plain values, -1 for an undefined figure; `retina.evaluation.document` lists the keys of "coco"."""
        if self.assessment is not None:
            figures = to_json(self.assessment.metrics, self.assessment)
        else:
            figures = {"metrics": flat_metrics(self.voc), "per_class": flat_classes(self.voc)}
        counts = {"images": len(self.truth), "boxes": self.boxes, "detections": len(self.detections)}
        left_out = {kind: dict(names) for kind, names in self.detections.left_out._asdict().items()}
        rules = {"protocol": self.protocol, "conventions": dict(self.conventions)}
        return {**figures, **rules, **counts, "left_out": left_out}


def judge(
    truth: GroundTruth,
    detections: Results,
    *,
    protocol: Protocol,
    settings: config.Evaluation,
    replicates: int | None = None,
    iou: Sequence[float] | None = None,
    difficult: Difficult = "ignore",
) -> Score:
    """Return the score of two tables in continuous coordinates.

    Args:
        settings: those of "coco".
        replicates, iou, difficult: see `retina.api.score`.

    Raises:
        RetinaError: the tables don't fit each other, or a setting is bad or has no effect.
    """
    if difficult == "use":
        if not truth.difficult.any():
            raise RetinaError(f"--difficult use: it has no effect, {truth.name} has no difficult box; leave it out")
        truth = replace(truth, difficult=np.zeros_like(truth.difficult))
    _check_replicates(replicates)
    if protocol == "coco":
        assessment = assess(truth, detections, settings, replicates=REPLICATES if replicates is None else replicates)
        rules = conventions(assessment.metrics)
        if difficult == "use":
            rules["difficult"] = "difficult boxes count like any other"
        return Score(protocol, rules, assessment, (), truth, detections)
    overlaps = (0.5,) if iou is None else iou
    voc = tuple(
        evaluate_voc(truth, detections, protocol=rules, iou=overlaps, difficult=difficult) for rules in _VOC[protocol]
    )
    return Score(protocol, _voc_conventions(voc), None, voc, truth, detections)


def _check_replicates(replicates: int | None) -> None:
    if replicates is not None and replicates != 0 and replicates < LEAST_REPLICATES:
        raise RetinaError(
            f"--replicates: expected 0 for no intervals, or at least {LEAST_REPLICATES}, got {replicates}; fewer don't "
            "reach the ends of a 95 % interval"
        )


def _voc_conventions(voc: Sequence[VocMetrics]) -> dict[str, str]:
    out: dict[str, str] = {}
    for metrics in voc:
        for key, words in metrics.conventions.items():
            both = len(voc) > 1 and any(other.conventions[key] != words for other in voc)
            out[f"{key}_{SHORT[metrics.protocol]}" if both else key] = words
    return out
