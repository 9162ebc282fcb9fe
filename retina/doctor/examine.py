"""The whole examination: splits, images, anchors, a suggestion and the cost."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from retina import config as configuration
from retina.data.dataset import DetectionDataset
from retina.data.tiles import in_tiles
from retina.doctor.advice import coverage_findings, limit_findings, tile_findings
from retina.doctor.canvases import canvas_findings
from retina.doctor.ceiling import AnchorReport, report
from retina.doctor.cost import Cost, cost_findings, estimate
from retina.doctor.coverage import sampled
from retina.doctor.findings import GRADES, Finding, ordered
from retina.doctor.inspection import Images, duplicate_findings, image_findings, inspect
from retina.doctor.statistics import (
    Statistics,
    fewness_findings,
    split_findings,
    statistics,
    table_findings,
    unnamed_image_findings,
)
from retina.doctor.suggest import Proposal, propose
from retina.doctor.targets import Target, read_splits
from retina.errors import RetinaError
from retina.output import count

# The coverage of COCO's 118,000 images takes a minute; a sample of this size gives shares to within half a percent.
ANCHOR_IMAGES = 10_000
# A suggestion is made only if it raises the ceiling, or the share of boxes with an anchor, by this much.
_WORTH = 0.01
_LOW_CEILING = 0.95
# Data without a configuration does not say which split is trained on; these are its names in most formats.
_TRAINING_NAMES = ("train", "train2017", "2007/train", "2012/train", "data", "all")

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Suggestion:
    """Anchors that cover more: the proposal, and each split's coverage before and after, by the code of the report."""

    proposal: Proposal
    before: dict[str, AnchorReport]
    after: dict[str, AnchorReport]


@dataclass(frozen=True)
class Examination:
    """Findings, statistics and estimates of `retina doctor`.

    Attributes:
        name: of the data or configuration.
        findings: worst first.
        splits: statistics of each split.
        anchors: coverage of each split, with a configuration.
        suggestion: None where the present anchors are as good.
        cost: None without a configuration, or where it was left out.
        timing: of measured steps, or None.
        quick: images were not decoded.
        positive_iou: of the configuration's assignment; 0 without one.
    """

    name: str
    findings: tuple[Finding, ...]
    splits: dict[str, Statistics]
    anchors: dict[str, AnchorReport]
    suggestion: Suggestion | None
    cost: Cost | None
    timing: dict[str, Any] | None
    quick: bool
    positive_iou: float = 0.0

    @property
    def sound(self) -> bool:
        """True if no finding is an error."""
        return not any(finding.grade == "error" for finding in self.findings)

    @property
    def verdict(self) -> str:
        """The number of findings of each grade, in one line."""
        numbers = {grade: sum(finding.grade == grade for finding in self.findings) for grade in GRADES}
        parts = [count(number, grade) for grade, number in numbers.items() if number]
        return f"{self.name}: {', '.join(parts) if parts else 'no findings'}"

    def to_json(self) -> dict[str, Any]:
        """Return plain values.

        `name`, `ok` (no errors), `quick`; `findings`: a list of `Finding.to_json`; `splits`: by name the fields of
        `Statistics`; `anchors`: by split the fields of `AnchorReport`, a share as `{covered, boxes, share}`;
        `suggestion`: null or `{overrides: [KEY.PATH=VALUE], yaml, before, after}`, the latter by split
        `{share, AP}`; `cost`: null or the fields of `Cost` with `total`, memory in bytes, and
        `hours_at_1_tflops` of the run, from the operations alone; `timing`: null or the fields
        of `retina.training.timing.Timing`.
        """
        return {
            "name": self.name,
            "ok": self.sound,
            "quick": self.quick,
            "findings": [finding.to_json() for finding in self.findings],
            "splits": {name: asdict(split) for name, split in self.splits.items()},
            "anchors": {name: _anchors_json(anchor_report) for name, anchor_report in self.anchors.items()},
            "suggestion": None if self.suggestion is None else _suggestion_json(self.suggestion),
            "cost": None
            if self.cost is None
            else {**asdict(self.cost), "total": self.cost.total, "hours_at_1_tflops": self.cost.hours},
            "timing": self.timing,
        }


def examine(target: Target, *, quick: bool = False, advance: Advance | None = None) -> Examination:
    """Examine a target; a fault never stops the examination, it becomes a finding.

    Args:
        quick: images are not decoded (their headers are read, and bytes where files are equally long), and the network
            is not built.
        advance: called with the number of images opened since the last call.
    """
    splits, findings = read_splits(target)
    training = next((name for name in _TRAINING_NAMES if name in splits), "")
    for name, table in splits.items():
        findings += table_findings(table, name, name == training, target.config)
        findings += fewness_findings(statistics(table), name, training=name == training)
    findings += split_findings(splits)
    # Images that can't be read are left out of the tables, though they are named.
    whole = len(splits) == len(target.splits) and all(finding.code != "unreadable-images" for finding in findings)
    if whole and all(map(_names_all_images, target.splits.values())):
        findings += unnamed_image_findings(splits)
    limit, skip = configuration.MAX_PIXELS, False
    if target.config is not None:
        limit, skip = target.config.data.max_pixels, target.config.data.invalid_images == "skip"
    opened: dict[str, Images] = {}
    for name, table in splits.items():
        opened[name] = inspect(table, decode=not quick, max_pixels=limit, advance=advance)
        findings += image_findings(opened[name], name, skip=skip)
    if opened:
        findings += duplicate_findings(opened)
    anchors: dict[str, AnchorReport] = {}
    suggestion, cost = None, None
    if target.config is not None:
        trained = _as_trained(splits, target.config, findings)
        samples = {name: sampled(table, ANCHOR_IMAGES) for name, table in trained.items()}
        for name, table in samples.items():
            anchors[name] = report(table, target.config, len(trained[name]), training=name == "train")
            findings += coverage_findings(anchors[name], target.config, name)
            findings += limit_findings(statistics(trained[name]).most_boxes, target.config, name)
        if "validation" in samples:
            findings += tile_findings(target.config)
        if "train" in samples:
            findings += canvas_findings(trained["train"], target.config, "train")
            suggestion = _suggestion(samples, target.config, anchors)
            if not quick:
                cost = estimate(target.config, trained["train"])
                findings += cost_findings(cost)
        findings += _ceiling_findings(anchors, suggestion)
    return Examination(
        name=target.name,
        findings=ordered(findings),
        splits={name: statistics(table) for name, table in splits.items()},
        anchors=anchors,
        suggestion=suggestion,
        cost=cost,
        timing=None,
        quick=quick,
        positive_iou=0.0 if target.config is None else target.config.assignment.positive_iou,
    )


def _names_all_images(source: configuration.Source) -> bool:
    """Whether a file names the images of a source, and all of them are read."""
    return source.format in ("coco", "csv") and source.select is None


def _as_trained(
    splits: dict[str, DetectionDataset], settings: configuration.Config, findings: list[Finding]
) -> dict[str, DetectionDataset]:
    """The splits as training and evaluation show them to the anchors: training images in tiles, if there are such."""
    if "train" not in splits:
        return splits
    try:
        return {**splits, "train": in_tiles(splits["train"], settings.data.tiles)}
    except RetinaError as error:
        findings.append(Finding("error", "tiles-without-effect", str(error), split="train"))
        return splits


def _suggestion(
    samples: dict[str, DetectionDataset], settings: configuration.Config, before: dict[str, AnchorReport]
) -> Suggestion | None:
    proposal = propose(samples["train"], settings)
    if proposal is None:
        return None
    model = settings.model.model_copy(update={"fpn": proposal.fpn})
    changed = settings.model_copy(update={"anchors": proposal.anchors, "model": model})
    after = {name: report(table, changed, before[name].all_images) for name, table in samples.items()}
    gains = (
        after["train"].ceilings["assigned"]["AP"] - before["train"].ceilings["assigned"]["AP"],
        after["train"].total.share - before["train"].total.share,
    )
    return Suggestion(proposal, before, after) if max(gains) >= _WORTH and min(gains) > -_WORTH else None


def _ceiling_findings(anchors: dict[str, AnchorReport], suggestion: Suggestion | None) -> Iterator[Finding]:
    for name, anchor_report in anchors.items():
        highest = anchor_report.ceilings["assigned"]["AP"]
        if highest < 0:
            continue
        remedy = ""
        if suggestion is not None:
            overrides = shlex.join(suggestion.proposal.overrides)
            remedy = f"{suggestion.after[name].ceilings['assigned']['AP']:.3f} with {overrides}"
        yield Finding(
            "warning" if highest < _LOW_CEILING else "note",
            "ap-ceiling",
            f"the anchors allow an AP of about {highest:.3f} (small {_figure(anchor_report, 'APs')}, medium "
            f"{_figure(anchor_report, 'APm')}, large {_figure(anchor_report, 'APl')}); "
            f"{anchor_report.ceilings['findable']['AP']:.3f} counting boxes near the threshold",
            remedy,
            name,
        )


def _figure(anchor_report: AnchorReport, name: str) -> str:
    value = anchor_report.ceilings["assigned"].get(name, -1)
    return f"{value:.3f}" if value >= 0 else "–"


def _anchors_json(anchor_report: AnchorReport) -> dict[str, Any]:
    tree = asdict(anchor_report)
    tree["total"]["share"] = anchor_report.total.share
    imbalance = anchor_report.background_per_positive
    tree["background_per_positive"] = imbalance if math.isfinite(imbalance) else None
    for at_size, size in zip(tree["training"], anchor_report.training, strict=True):
        at_size["total"]["share"] = size.total.share
        for name, share in size.classes.items():
            at_size["classes"][name]["share"] = share.share
    for group in ("classes", "sizes", "canvas_sizes"):
        for name, share in getattr(anchor_report, group).items():
            tree[group][name]["share"] = share.share
    return tree


def _suggestion_json(suggestion: Suggestion) -> dict[str, Any]:
    def figures(reports: dict[str, AnchorReport]) -> dict[str, Any]:
        return {
            name: {"share": anchor_report.total.share, "AP": anchor_report.ceilings["assigned"]["AP"]}
            for name, anchor_report in reports.items()
        }

    return {
        "overrides": list(suggestion.proposal.overrides),
        "yaml": suggestion.proposal.to_yaml(),
        "before": figures(suggestion.before),
        "after": figures(suggestion.after),
    }
