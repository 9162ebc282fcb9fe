"""The quick checks that `retina train` runs first: tables and anchors, no image, no network."""

from __future__ import annotations

from retina import config
from retina.data.dataset import DetectionDataset
from retina.doctor.advice import coverage_findings, tile_findings
from retina.doctor.canvases import canvas_findings
from retina.doctor.ceiling import report
from retina.doctor.coverage import sampled
from retina.doctor.findings import Finding, ordered
from retina.doctor.statistics import split_findings, table_findings
from retina.errors import RetinaError
from retina.output import count

# Enough for shares to within a percent, in a second or two, and in as much again for a few of data.resize.train_short.
IMAGES = 2000


def preflight(
    settings: config.Config, train: DetectionDataset, validation: DetectionDataset | None, images: int = IMAGES
) -> tuple[Finding, ...]:
    """Return findings on the tables, on images in both, and on the coverage of the training boxes, worst first.

    Without validation data (None) there are those on the training data.

    Args:
        images: size of the random sample of a larger training split whose coverage is computed.
    """
    findings = list(table_findings(train, "train", True, settings))
    if validation is not None:
        findings += table_findings(validation, "validation", training=False)
        findings += tile_findings(settings)
        findings += split_findings({"train": train, "validation": validation})
    if len(train):
        findings += canvas_findings(train, settings, "train")
    if not any(finding.code == "no-boxes" and finding.split == "train" for finding in findings):
        part = sampled(train, images)
        findings += coverage_findings(report(part, settings, len(train), training=True), settings, "train")
    return ordered(findings)


def check(settings: config.Config, train: DetectionDataset, validation: DetectionDataset | None) -> tuple[str, ...]:
    """Run the preflight as `run.preflight` says.

    Returns:
        Lines for the log: warnings, and errors where they are not refused, each with its remedy; where there are none,
        a line that says so.

    Raises:
        RetinaError: the set-up is hopeless and `run.preflight` is "refuse"; the message gives each reason and remedy.
    """
    if settings.run.preflight == "off":
        return ()
    findings = preflight(settings, train, validation)
    errors = [finding for finding in findings if finding.grade == "error"]
    if errors and settings.run.preflight == "refuse":
        reasons = "; ".join(map(_sentence, errors))
        raise RetinaError(f"preflight: {reasons}. See `retina doctor CONFIG`; to train anyway, set run.preflight=warn")
    shown = [finding for finding in findings if finding.grade != "note"]
    if not shown:
        return (f"preflight: no fault in the {count(len(train), 'training image')} and their anchors.",)
    return tuple(f"preflight: {finding.grade}: {_sentence(finding)}." for finding in shown)


def _sentence(finding: Finding) -> str:
    """What a finding says, where, and what to do about it."""
    return ": ".join(filter(None, (finding.split, finding.message, finding.remedy)))
