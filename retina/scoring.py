"""Scores anybody's detections against anybody's ground truth, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from retina import config
from retina.data.dataset import DetectionDataset
from retina.data.detections import Pixels
from retina.data.formats import text as text_boxes
from retina.data.ground_truth import FileTruth, GroundTruth, Results, file_truth
from retina.data.image_files import image_files
from retina.data.load import ResultFormat, TruthFormat, read_ground_truth, read_results, result_format, truth_format
from retina.errors import RetinaError
from retina.evaluation.assessment import Assessment, assess
from retina.evaluation.coco import AreaRanges, Engine, Metrics
from retina.evaluation.document import conventions, to_json
from retina.evaluation.voc import Difficult, VocMetrics, evaluate_voc
from retina.evaluation.voc_tables import SHORT, flat_classes, flat_metrics

Protocol = Literal["coco", "voc07", "voc10", "pascal-devkit"]

REPLICATES = 1000
# The ends of a 95 % interval are then the third of either side.
LEAST_REPLICATES = 100

_VOC: dict[str, tuple[Literal["voc07", "voc10"], ...]] = {
    "voc07": ("voc07",),
    "voc10": ("voc10",),
    "pascal-devkit": ("voc07", "voc10"),
}
_PIXELS = {
    "inclusive": "counted from 1, the last one included (VOC): x1..x2 covers [x1 - 1, x2]",
    "continuous": "continuous coordinates, taken as they are",
}


@dataclass(frozen=True, eq=False)
class Score:
    """What `score` found.

    Attributes:
        protocol: whose rules.
        conventions: these rules in words, with those of the pixels.
        assessment: figures, intervals and reasons under "coco", else None.
        voc: the figures of each way to average under the others: one, or both for "pascal-devkit".
        truth, found: what was scored, in continuous coordinates.
        pictures: [N] the image files where they are known, else None.
    """

    protocol: Protocol
    conventions: dict[str, str]
    assessment: Assessment | None
    voc: tuple[VocMetrics, ...]
    truth: GroundTruth
    found: Results
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
        """Plain values, -1 where a figure is undefined; `retina.evaluation.document` lists the keys of COCO's."""
        if self.assessment is not None:
            figures = to_json(self.assessment.metrics, self.assessment)
        else:
            figures = {"metrics": flat_metrics(self.voc), "per_class": flat_classes(self.voc)}
        counts = {"images": len(self.truth), "boxes": self.boxes, "detections": len(self.found)}
        return {**figures, "protocol": self.protocol, "conventions": dict(self.conventions), **counts}


def score(
    ground_truth: str | Path | GroundTruth | DetectionDataset,
    detections: str | Path | Results,
    *,
    protocol: Protocol = "coco",
    engine: Engine | None = None,
    max_detections: Sequence[int] | None = None,
    area_ranges: AreaRanges | None = None,
    replicates: int | None = None,
    iou: Sequence[float] | None = None,
    difficult: Difficult = "ignore",
    pixels: Pixels | None = None,
    gt_pixels: Pixels | None = None,
    gt_format: TruthFormat = "auto",
    dt_format: ResultFormat = "auto",
    splits: Sequence[str] = (),
    names: str | Path | None = None,
    images: str | Path | None = None,
) -> Score:
    """The figures of `detections` on `ground_truth`, each a file or folder (see `retina.data`) or a table.

    Args:
        protocol: "coco"; "voc07" (11 points), "voc10" (every point); or "pascal-devkit", both of the latter.
        engine, max_detections, area_ranges: of "coco", see `retina.evaluation.coco.evaluate`. By default those of the
            configuration or run that `ground_truth` is, else COCO's.
        replicates: of the bootstrap that gives "coco" its intervals: 1000 by default, at least 100, or 0 for none.
        iou: the overlaps of the others, 0.5 by default.
        difficult: "ignore" makes VOC's difficult boxes neither hits nor misses, "use" counts them like any other.
        pixels: what the numbers of the detections mean (see `retina.data.detections.to_continuous`), and those of
            ground truth in COCO or text files. By default "continuous" under "coco" and "inclusive" under the VOC
            protocols, except that the devkit's result files always are inclusive, and that detections on a retina
            configuration are continuous.
        gt_pixels: overrules `pixels` for the ground truth; a VOC folder is "inclusive" unless told otherwise here.
        gt_format, dt_format, splits, names, images: see `retina.data.load.read_ground_truth` and
            `retina.data.load.read_results`; `images` also says where the pictures are, for
            `retina.drawing.score_files`.

    Raises:
        RetinaError: a file is missing or malformed, the two don't fit, or a setting has no effect.
    """
    given = {"engine": engine, "max_detections": max_detections, "area_ranges": area_ranges}
    _check_settings(protocol, given, replicates, iou, difficult, pixels, gt_pixels)
    formats = _Formats(
        None
        if isinstance(ground_truth, GroundTruth | DetectionDataset)
        else truth_format(Path(ground_truth), gt_format),
        None if isinstance(detections, Results) else result_format(Path(detections), dt_format),
    )
    _check_effects(formats, pixels, gt_pixels, splits, names, images)
    truth_pixels, found_pixels = _pixels(formats, protocol, pixels, gt_pixels)
    names, images = (None if path is None else Path(path) for path in (names, images))
    truth = _truth(ground_truth, formats, gt_format, truth_pixels, splits, names, images)
    found = detections
    if not isinstance(found, Results):
        found = read_results(
            found,
            truth,
            format=dt_format,
            pixels=found_pixels,
            names=names if formats.indices else None,
            images=images if formats.fractions else None,
        )
    settings = _settings(ground_truth, formats, given)
    judged = judge(
        truth, found, protocol=protocol, settings=settings, replicates=replicates, iou=iou, difficult=difficult
    )
    spoken = {"ground_truth_pixels": _PIXELS[truth_pixels]} if formats.truth else {}
    spoken |= {"detection_pixels": _PIXELS[found_pixels]} if formats.found else {}
    if formats.found == "coco" and found_pixels == "inclusive" and pixels is None:
        spoken["detection_pixels"] += (
            "; taken so because the protocol is VOC's: for retina's or COCO's own files say --pixels continuous"
        )
    return replace(judged, conventions=judged.conventions | spoken, pictures=_pictures(truth, images))


def judge(
    truth: GroundTruth,
    found: Results,
    *,
    protocol: Protocol,
    settings: config.Evaluation,
    replicates: int | None = None,
    iou: Sequence[float] | None = None,
    difficult: Difficult = "ignore",
) -> Score:
    """`score` of two tables in continuous coordinates.

    Args:
        settings: of "coco".
    """
    if difficult == "use":
        if not truth.difficult.any():
            raise RetinaError(f"--difficult use: it has no effect, {truth.name} has no difficult box; leave it out")
        truth = replace(truth, difficult=np.zeros_like(truth.difficult))
    _check_replicates(replicates)
    if protocol == "coco":
        assessment = assess(truth, found, settings, replicates=REPLICATES if replicates is None else replicates)
        rules = conventions(assessment.metrics)
        if difficult == "use":
            rules["difficult"] = "difficult boxes count like any other"
        return Score(protocol, rules, assessment, (), truth, found)
    overlaps = (0.5,) if iou is None else iou
    voc = tuple(evaluate_voc(truth, found, protocol=one, iou=overlaps, difficult=difficult) for one in _VOC[protocol])
    return Score(protocol, _voc_conventions(voc), None, voc, truth, found)


class _Formats(NamedTuple):
    """Of the two sides, None for a table that is in memory already."""

    truth: str | None
    found: str | None

    @property
    def text_truth(self) -> bool:
        return self.truth in text_boxes.TRUTH_LAYOUTS

    @property
    def indices(self) -> bool:
        """Whether the detections may name a class by an index."""
        return self.found in text_boxes.RESULT_LAYOUTS and self.found != "voc"

    @property
    def fractions(self) -> bool:
        return self.found in text_boxes.FRACTIONS


def _pixels(
    formats: _Formats, protocol: Protocol, pixels: Pixels | None, gt_pixels: Pixels | None
) -> tuple[Pixels, Pixels]:
    """What the numbers of the ground truth and of the detections mean."""
    usual: Pixels = "continuous" if protocol == "coco" else "inclusive"
    # Some formats mean one thing whoever scores them: VOC's own files, and retina's own tables.
    truths: dict[str | None, Pixels] = {"voc": "inclusive", "config": "continuous"}
    truth = gt_pixels or truths.get(formats.truth) or pixels or usual
    if formats.found == "voc":
        usual = "inclusive"
    elif formats.truth == "config":
        usual = "continuous"
    return truth, pixels or usual


def _truth(
    given: str | Path | GroundTruth | DetectionDataset,
    formats: _Formats,
    format: TruthFormat,
    pixels: Pixels,
    splits: Sequence[str],
    names: Path | None,
    images: Path | None,
) -> GroundTruth:
    if isinstance(given, GroundTruth):
        return given
    if isinstance(given, DetectionDataset):
        return file_truth(given)
    return read_ground_truth(
        given,
        format=format,
        pixels=None if formats.truth == "config" else pixels,
        splits=splits,
        names=names if formats.text_truth else None,
        images=images if formats.text_truth else None,
    )


def _pictures(truth: GroundTruth, images: Path | None) -> tuple[str, ...] | None:
    """The files of all images, by their names."""
    if images is None or not isinstance(truth, FileTruth):
        return None
    files = image_files(images)
    for name in truth.stems:
        if name not in files:
            raise RetinaError(f"{images}: no image called '{name}', which {truth.name} has; give the folder of all")
    return tuple(str(files[name]) for name in truth.stems)


def _settings(ground_truth: Any, formats: _Formats, given: dict[str, Any]) -> config.Evaluation:
    """COCO's, or those of the configuration or run that is the ground truth; `given` ones replace them."""
    settings = config.Evaluation()
    if formats.truth == "config":
        path = Path(ground_truth)
        settings = config.load(path / "config.yaml" if path.is_dir() else path).evaluation
    return settings.model_copy(update={key: value for key, value in given.items() if value is not None})


def _check_replicates(replicates: int | None) -> None:
    if replicates is not None and replicates != 0 and replicates < LEAST_REPLICATES:
        raise RetinaError(
            f"--replicates: expected 0 for no intervals, or at least {LEAST_REPLICATES}, got {replicates}; fewer don't "
            "reach the ends of a 95 % interval"
        )


def _check_settings(protocol: str, of_coco: dict[str, Any], replicates: Any, iou: Any, *others: Any) -> None:
    difficult, pixels, gt_pixels = others
    for name, value, allowed in (
        ("protocol", protocol, get_args(Protocol)),
        ("engine", of_coco["engine"], (None, *get_args(Engine))),
        ("difficult", difficult, get_args(Difficult)),
        ("pixels", pixels, (None, *get_args(Pixels))),
        ("gt_pixels", gt_pixels, (None, *get_args(Pixels))),
    ):
        if value not in allowed:
            known = ", ".join(one for one in allowed if one)
            raise RetinaError(f"{name}: expected one of {known}, got {value!r}; choose one of them")
    coco = protocol == "coco"
    for name, given, used, instead in (
        *((name.replace("_", "-"), value, coco, "--protocol coco") for name, value in of_coco.items()),
        ("replicates", replicates, coco, "--protocol coco"),
        ("iou", iou, not coco, "--protocol voc07, voc10 or pascal-devkit"),
    ):
        if given is not None and not used:
            raise RetinaError(f"--{name}: it has no effect under protocol '{protocol}'; leave it out, or use {instead}")


def _check_effects(
    formats: _Formats, pixels: Any, gt_pixels: Any, splits: Sequence[str], names: Any, images: Any
) -> None:
    """A setting that nothing reads is an error."""
    files = formats.found is not None or formats.truth == "coco" or formats.text_truth
    for option, given, used, purpose in (
        (
            "--splits",
            bool(splits),
            formats.truth in ("voc", "config"),
            "ground truth in a VOC folder or a configuration",
        ),
        ("--names", names is not None, formats.text_truth or formats.indices, "text files whose class is an index"),
        ("--images", images is not None, formats.truth not in ("config", None) or formats.fractions, "files"),
        ("--gt-pixels", gt_pixels is not None, formats.truth not in ("config", None), "ground truth from files"),
        ("--pixels", pixels is not None, files, "files"),
    ):
        if given and not used:
            raise RetinaError(f"{option}: it has no effect here, it is for {purpose}; leave it out")


def _voc_conventions(voc: Sequence[VocMetrics]) -> dict[str, str]:
    out: dict[str, str] = {}
    for one in voc:
        for key, words in one.conventions.items():
            both = len(voc) > 1 and any(other.conventions[key] != words for other in voc)
            out[f"{key}_{SHORT[one.protocol]}" if both else key] = words
    return out
