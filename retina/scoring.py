"""Score any files of detections against any ground truth, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from retina import config
from retina.data.dataset import DetectionDataset
from retina.data.detections import Pixels
from retina.data.formats import text
from retina.data.formats.results import ResultFormat, read_results, result_format
from retina.data.formats.truth import FileTruth, TruthFormat, from_dataset, read_ground_truth, truth_format
from retina.data.ground_truth import GroundTruth, Results
from retina.data.image_files import image_files
from retina.errors import RetinaError
from retina.evaluation.coco import AreaRanges, Engine
from retina.evaluation.judging import Protocol, Score, judge
from retina.evaluation.voc import Difficult

_PIXELS = {
    "inclusive": "counted from 1, the last one included (VOC): x1..x2 covers [x1 - 1, x2]",
    "continuous": "continuous coordinates, taken as they are",
}


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
    """Return the figures of `detections` on `ground_truth`, each a file or folder (see `retina.data`) or a table.

    Args:
        protocol: "coco"; "voc07" (11 points), "voc10" (every point); or "pascal-devkit", both of the latter.
        engine, max_detections, area_ranges: of "coco", see `retina.evaluation.coco.evaluate`. By default those of the
            configuration or run that `ground_truth` is, else COCO's.
        replicates: of the bootstrap that gives "coco" its intervals: 1000 by default, at least 100, or 0 for none.
        iou: the overlaps of the others, 0.5 by default.
        difficult: "ignore" makes VOC's difficult boxes neither hits nor misses, "use" counts them like any other.
        pixels: the meaning of the numbers of the detections (see `retina.data.detections.to_continuous`), and those of
            ground truth in COCO or text files. By default "continuous" under "coco" and "inclusive" under the VOC
            protocols, except that the devkit's result files always are inclusive, and that detections on a retina
            configuration are continuous.
        gt_pixels: overrules `pixels` for the ground truth; a VOC folder is "inclusive" unless this says otherwise.
        gt_format, dt_format, splits, names, images: see `retina.data.formats.truth.read_ground_truth` and
            `retina.data.formats.results.read_results`; `images` also says where the pictures are, for
            `retina.drawing.evaluation_files`.

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
    truth_pixels, detection_pixels = _pixels(formats, protocol, pixels, gt_pixels)
    names, images = (None if path is None else Path(path) for path in (names, images))
    truth = _truth(ground_truth, formats, gt_format, truth_pixels, splits, names, images)
    results = detections
    if not isinstance(results, Results):
        results = read_results(
            results,
            truth,
            format=dt_format,
            pixels=detection_pixels,
            names=names if formats.indices else None,
            images=images if formats.fractions else None,
        )
    settings = _settings(ground_truth, formats, given)
    judged = judge(
        truth, results, protocol=protocol, settings=settings, replicates=replicates, iou=iou, difficult=difficult
    )
    conventions = {"ground_truth_pixels": _PIXELS[truth_pixels]} if formats.truth else {}
    conventions |= {"detection_pixels": _PIXELS[detection_pixels]} if formats.detections else {}
    if formats.detections == "coco" and detection_pixels == "inclusive" and pixels is None:
        conventions["detection_pixels"] += (
            "; taken so because the protocol is VOC's: for retina's or COCO's own files say --pixels continuous"
        )
    return replace(judged, conventions=judged.conventions | conventions, pictures=_pictures(truth, images))


class _Formats(NamedTuple):
    """Formats of the two sides, None for a table that is already in memory."""

    truth: str | None
    detections: str | None

    @property
    def text_truth(self) -> bool:
        return self.truth in text.TRUTH_LAYOUTS

    @property
    def indices(self) -> bool:
        """Whether the detections may name a class by an index."""
        return self.detections in text.RESULT_LAYOUTS and self.detections != "voc"

    @property
    def fractions(self) -> bool:
        return self.detections in text.FRACTIONS


def _pixels(
    formats: _Formats, protocol: Protocol, pixels: Pixels | None, gt_pixels: Pixels | None
) -> tuple[Pixels, Pixels]:
    """Meaning of the numbers of the ground truth and of the detections."""
    usual: Pixels = "continuous" if protocol == "coco" else "inclusive"
    # Some formats mean the same under every protocol: VOC's own files, and retina's own tables.
    truths: dict[str | None, Pixels] = {"voc": "inclusive", "config": "continuous"}
    truth = gt_pixels or truths.get(formats.truth) or pixels or usual
    if formats.detections == "voc":
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
        return from_dataset(given)
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
    """COCO's settings, or those of the configuration or run that is the ground truth, with `given` in their place."""
    settings = config.Evaluation()
    if formats.truth == "config":
        path = Path(ground_truth)
        settings = config.load(path / "config.yaml" if path.is_dir() else path).evaluation
    return settings.model_copy(update={key: value for key, value in given.items() if value is not None})


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
            known = ", ".join(name for name in allowed if name)
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
    """Refuse settings that nothing reads."""
    files = formats.detections is not None or formats.truth == "coco" or formats.text_truth
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
