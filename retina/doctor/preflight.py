"""The quick part that `retina train` runs first: tables and anchors, no image, no network."""

from __future__ import annotations

from retina import config
from retina.data.dataset import DetectionDataset
from retina.doctor.advice import coverage_findings
from retina.doctor.ceiling import report
from retina.doctor.coverage import sampled
from retina.doctor.findings import Finding, ordered
from retina.doctor.statistics import split_findings, table_findings
from retina.errors import RetinaError

# Enough for shares to within a percent, at a second or two, and as much for each few of data.resize.train_short.
IMAGES = 2000


def preflight(
    settings: config.Config, train: DetectionDataset, validation: DetectionDataset, images: int = IMAGES
) -> tuple[Finding, ...]:
    """Findings on the tables, on what they share, and on the anchors' coverage of the training boxes, worst first.

    Args:
        images: of a larger training split so many, drawn at random, are looked at through the anchors.
    """
    findings = [
        *table_findings(train, "train", training=True),
        *table_findings(validation, "validation", training=False),
        *split_findings({"train": train, "validation": validation}),
    ]
    if not any(finding.code == "no-boxes" and finding.split == "train" for finding in findings):
        part = sampled(train, images)
        findings += coverage_findings(report(part, settings, len(train), training=True), settings, "train")
    return ordered(findings)


def check(settings: config.Config, train: DetectionDataset, validation: DetectionDataset) -> tuple[str, ...]:
    """Runs the preflight as `run.preflight` says.

    Returns:
        what the log should say: warnings, and errors where they are not refused.

    Raises:
        RetinaError: the set-up is hopeless and `run.preflight` is "refuse"; the message gives each reason and remedy.
    """
    if settings.run.preflight == "off":
        return ()
    findings = preflight(settings, train, validation)
    errors = [finding for finding in findings if finding.grade == "error"]
    if errors and settings.run.preflight == "refuse":
        told = "; ".join(f"{_told(finding)}: {finding.remedy}" for finding in errors)
        raise RetinaError(
            f"preflight: {told}. See `retina doctor CONFIG`; to train all the same, set run.preflight=warn"
        )
    shown = [finding for finding in findings if finding.grade != "note"]
    return tuple(f"preflight: {finding.grade}: {_told(finding)}" for finding in shown)


def _told(finding: Finding) -> str:
    return f"{finding.split}: {finding.message}" if finding.split else finding.message
