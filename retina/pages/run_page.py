"""The page of a run: is the data fine, did it learn, how good is it, what does it get wrong, can it be shipped?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retina import config as configuration
from retina.doctor.ceiling import report as anchor_report
from retina.doctor.coverage import sampled
from retina.drawing import furniture
from retina.errors import RetinaError
from retina.files import write_text
from retina.pages import run_sections as sections
from retina.pages.config_changes import changes
from retina.pages.gallery import MOST_IMAGES, SCRIPT, Run, choose_rows, evaluated, gallery_data
from retina.pages.run_answers import answers
from retina.pages.run_charts import curves, quality_charts
from retina.pages.run_judgement import Evidence, Judgement, judge_run, picture_names
from retina.runs.record import Record, certificates, read_record

_TEMPLATE = Path(__file__).with_name("run.html.jinja")
# This many images give the share of boxes with an anchor to within a percent.
_ANCHOR_IMAGES = 1000
# Bytes of all thumbnails: with everything else the page stays below 10 MB.
_PICTURES = 7_000_000
# Largest number of boxes on the page: if images have many, fewer images are shown.
_SHAPES, _LEAST_IMAGES = 40_000, 20


def write_report(
    run: str | Path,
    out: str | Path | None = None,
    *,
    split: str = "validation",
    checkpoint: str = "best",
    overrides: Sequence[str] = (),
) -> Path:
    """Write the page of a run.

    Args:
        run: the run directory; without evaluations, or if its data is gone, the page says so.
        out: the file, by default `report/index.html` in the run.
        split, checkpoint: "train", "validation" or "test"; `best`, `latest` or `step_N`.
        overrides: `key.path=value` of the sections `data` and `evaluation`, for instance another `data.root`.

    Returns:
        The file.

    Raises:
        RetinaError: there is no such run, split or checkpoint, or the file can't be written.
    """
    record = read_record(Path(run))
    target = record.path / "report" / "index.html" if out is None else Path(out)
    if target.is_dir():
        raise RetinaError(f"{target}: expected the name of a file to write, it is a folder; name a file in it")
    text = render(record, judge_run(record, split, checkpoint, tuple(overrides)))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, text)
    except OSError as error:
        raise RetinaError(f"{target}: cannot write the report: {error.strerror}; choose another --out") from None
    return target


def render(record: Record, judged: Judgement) -> str:
    """Return the page's text; every name and message in it is escaped."""
    figures, evidence = judged.figures, judged.evidence
    detailed = figures is not None and "errors" in figures
    name = record.path.absolute().name
    anchors = None if evidence is None else _anchors(record, evidence)
    exports = sections.export_rows(certificates(record.path))
    quality = []
    if evidence is not None and figures is not None:
        quality = quality_charts(evidence.assessment.matches, evidence.truth.class_names, figures)
    return furniture.render(
        _TEMPLATE,
        title=f"{name}: report of a run",
        scripts=[SCRIPT],
        name=name,
        judged=judged,
        figures=figures,
        detailed=detailed,
        level=sections.level(figures) if figures and figures.get("intervals") else "",
        intervals=(figures or {}).get("intervals"),
        tiles=list(sections.tiles(record, judged)),
        remarks=list(sections.remarks(record, judged)),
        answers=list(answers(record, judged, anchors, exports, bool(quality))),
        about=sections.about(record, judged),
        curves=curves(record),
        classes=sections.class_rows(figures) if figures else [],
        quality=quality,
        errors=sections.error_rows(figures) if figures and detailed else [],
        confusion=sections.confusion_table(figures) if figures and detailed else None,
        gallery_of=None if evidence is None else gallery_values(evidence),
        anchors=anchors,
        exports=exports,
        commands=sections.commands(record, judged),
        changes=changes(record.config),
        config=configuration.to_yaml(record.config),
        environment=sections.environment_rows(record.environment),
    )


def gallery_values(evidence: Evidence) -> dict[str, Any]:
    """Return the gallery's values, its slider at the threshold of the best F1."""
    assessment, dataset = evidence.assessment, evidence.dataset
    threshold = assessment.confusion.score_threshold
    shapes = (len(evidence.detections) + len(evidence.truth.boxes)) / max(len(dataset), 1)
    rows = choose_rows(
        assessment.matches, threshold, limit=max(_LEAST_IMAGES, min(MOST_IMAGES, int(_SHAPES / max(shapes, 1))))
    )
    shown = evaluated(
        rows,
        evidence.truth,
        [Run(evidence.detections, assessment.matches, assessment.errors)],
        sizes=dataset.sizes,
        pictures=dataset.photographs,
        names=picture_names(dataset),
    )
    return gallery_data(shown, evidence.truth.class_names, threshold=threshold, budget=_PICTURES, total=len(dataset))


def _anchors(record: Record, evidence: Evidence) -> sections.Coverage | None:
    """Coverage of the judged boxes by the anchors."""
    data = evidence.dataset
    return sections.coverage(anchor_report(sampled(data, _ANCHOR_IMAGES), record.config, len(data)))
