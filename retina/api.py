"""The verbs of the package, one home for each: what the command line does, Python does by these.

A verb that brings in Keras is imported when it is first asked for. That takes seconds, which two files to score or a
typo in a configuration need not wait for; and TensorFlow's start-up lines are kept off the screen meanwhile.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

import numpy as np

from retina import __version__, config
from retina.ablation.directory import Study
from retina.ablation.execute import run_locally, run_on_ray
from retina.ablation.outputs import write_outputs
from retina.ablation.pilots import Search, pilot_plan, tuned_plan
from retina.ablation.plan import Plan
from retina.ablation.results import StudyResult, collect
from retina.ablation.runs import SettingsComparison
from retina.ablation.runs import compare_settings as compare_matches_of_settings
from retina.ablation.tables import seed_range, total_length
from retina.data.convert import preannotations
from retina.data.convert.converting import convert
from retina.data.dataset import DetectionDataset
from retina.data.detections import Pixels
from retina.data.formats import Format, text
from retina.data.ground_truth import FileTruth, GroundTruth, Results, file_truth
from retina.data.image_files import image_files, named_images
from retina.data.load import (
    ResultFormat,
    Split,
    TruthFormat,
    load_split,
    load_training,
    read_ground_truth,
    read_results,
    result_format,
    truth_format,
)
from retina.data.tiles import check_tiles
from retina.doctor.targets import open_target
from retina.drawing.evaluation_files import write_score, write_sheet
from retina.drawing.prediction_files import PredictionFolder
from retina.errors import RetinaError
from retina.evaluation.coco import AreaRanges, Engine
from retina.evaluation.comparison import Comparison, check_same_truth
from retina.evaluation.comparison import compare as compare_matches
from retina.evaluation.document import read_thresholds
from retina.evaluation.judging import LEAST_REPLICATES, Protocol, Score
from retina.evaluation.judging import judge as judge_tables
from retina.evaluation.matching import match
from retina.evaluation.voc import Difficult
from retina.files import exists, write_text
from retina.output import Watch, count, unwatched
from retina.pages import study as study_page
from retina.runs.directory import RunDirectory
from retina.startup import prepare_keras

if TYPE_CHECKING:
    from retina.ablation.sampling import loss_distribution
    from retina.doctor.examine import Examination
    from retina.export.benchmark import benchmark
    from retina.export.exporting import export
    from retina.export.loading import ExportedPredictor, evaluate, load
    from retina.export.weights import export_weights
    from retina.inference import Detections, Predictor
    from retina.pages.browse import browse
    from retina.runs.importing import import_run as import_weights
    from retina.setup.starting import init

# Verbs and helpers that bring in Keras, and where they stand.
_HEAVY = {
    "Detections": "retina.inference",
    "benchmark": "retina.export.benchmark",
    "browse": "retina.pages.browse",
    "compare_runs": "retina.pages.comparison:write",
    "detect_run": "retina.runs.loading:detect_split",
    "detect_split": "retina.export.loading",
    "evaluate": "retina.export.loading",
    "examination_page": "retina.pages.examination:render",
    "examine_target": "retina.doctor.examine:examine",
    "export": "retina.export.exporting",
    "export_weights": "retina.export.weights",
    "import_weights": "retina.runs.importing:import_run",
    "init": "retina.setup.starting",
    "init_run": "retina.setup.starting",
    "inference_in_words": "retina.runs.loading",
    "load": "retina.export.loading",
    "loss_distribution": "retina.ablation.sampling",
    "pixels_of": "retina.inference",
    "print_examination": "retina.doctor.printing",
    "time_steps": "retina.training.timing",
    "train_by_config": "retina.training.train:train",
    "write_run_page": "retina.pages.run_page:write_report",
}

__all__ = [
    "ablate", "benchmark", "browse", "compare", "compare_settings", "convert", "evaluate", "examine", "export",
    "export_weights", "import_weights", "init", "judge", "load", "load_split", "loss_distribution", "predict",
    "predict_each", "score", "summarise_study", "train", "write_report",
]  # fmt: skip


class Judged(NamedTuple):
    """The figures of a detector, and what reading its data had to say."""

    score: Score
    notes: tuple[str, ...]


def __getattr__(name: str) -> Any:
    if name not in _HEAVY:
        raise AttributeError(f"module 'retina.api' has no attribute '{name}'")
    module, _, attribute = _HEAVY[name].partition(":")
    prepare_keras()
    return getattr(importlib.import_module(module), attribute or name)


# ------------------------------------------------------------------------------------------------------- training


def train(
    config_or_folder: config.Config | str | Path,
    run_dir: str | Path | None = None,
    *,
    minutes: float | None = None,
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Path:
    """Train a detector by a configuration, or on a folder of images, and evaluate it on the validation data.

    Args:
        config_or_folder: a configuration (`retina.load_config`), or data for which `init` makes one first.
        run_dir: a new or empty folder; with `resume=True` a run. Of a folder of images by default `runs/NAME`, or
            `runs/NAME-2` and so on.
        minutes, say: of a folder, as for `init`.
        options: `resume`, `changed_data`, `train_data`, `validation_data`, `callbacks`, `collaborators`, as of
            `retina.training.train.train`.

    Returns:
        The run directory.

    Raises:
        RetinaError, RunFailed, Interrupted, FloatingPointError: as `retina.training.train.train`, and as `init`.

    Example:

    >>> config = retina.load_config("digits.yaml", ["schedule.steps=2"])
    >>> retina.train(config, "runs/new").name
    'new'
    """
    if not isinstance(config_or_folder, config.Config):
        settings, run_dir = _heavy("init_run")(config_or_folder, run_dir, minutes=minutes, say=say)
    elif minutes is not None:
        raise RetinaError("minutes: it has an effect on a folder of images only; set schedule.steps, or leave it out")
    else:
        settings = config_or_folder
    if run_dir is None:
        raise RetinaError("run_dir: expected a new folder for the run, got none; a configuration needs it")
    return _heavy("train_by_config")(settings, run_dir, **options)


def report_after_training(run: Path) -> Path:
    """Write the page of a run that has just ended; one that is newer than the run's figures stays as it is.

    Returns:
        The page.

    Raises:
        RetinaError: it can't be written; the run is complete all the same.
    """
    page, figures = run / "report" / "index.html", run / "metrics.jsonl"
    if page.is_file() and page.stat().st_mtime >= figures.stat().st_mtime:
        return page
    return write_report(run)


# ------------------------------------------------------------------------------------------------ figures and pages


def judge(
    run_or_export: str | Path,
    split: Split = "validation",
    *,
    checkpoint: str = "best",
    protocol: Protocol = "coco",
    replicates: int | None = None,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    watched: Watch = unwatched,
) -> Judged:
    """Return the figures of a run or an export on a split of its data, how sure they are, and what keeps them down.

    Args:
        run_or_export: a run directory or an export.
        split: `train`, `validation` or `test` of its data.
        checkpoint: of a run: `best`, `latest` or `step_N`.
        protocol, replicates: see `score`.
        overrides: `key.path=value` of the sections `data`, `evaluation` and `inference`.
        out: a folder for metrics, detections, plots and pictures.
        watched: passes the batches on, for instance `retina.output.bar`.

    Returns:
        `score`, as of `retina.score`, and `notes`, what reading the data had to say.

    Raises:
        RetinaError: as `evaluate`; a setting has no effect; or `out` can't be written.

    Example:

    >>> figures, notes = retina.judge("runs/digits", "test", replicates=100)
    >>> sorted(figures.coco.metrics)[:4]
    ['AP', 'AP50', 'AP75', 'APl']
    """
    detected = _heavy("detect_split")(run_or_export, split, checkpoint=checkpoint, overrides=overrides, watched=watched)
    settings = detected.config.evaluation
    figures = judge_tables(
        detected.truth, detected.results, protocol=protocol, settings=settings, replicates=replicates
    )
    inference = _heavy("inference_in_words")(detected.config.inference, settings.tiles)
    figures = replace(figures, conventions={"inference": inference, **figures.conventions})
    if out is not None:
        out = Path(out)
        write_score(out, figures, detected.dataset.photographs)
        write_sheet(out, detected.dataset, detected.table, pictures=9)
    return Judged(figures, tuple(detected.dataset.notes))


def write_report(
    runs: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    split: Split = "validation",
    checkpoint: str = "best",
    overrides: Sequence[str] = (),
) -> Path:
    """Write the page of a run or of a study, or the page of several runs side by side.

    Args:
        runs: a run directory, a study's folder, or several run directories.
        out: the page; by default RUN/report/index.html, STUDY/study.html or comparison.html.
        split: of runs, the data whose figures are shown: `train`, `validation` or `test`.
        checkpoint: of runs: `best`, `latest` or `step_N`.
        overrides: `key.path=value` of the sections `data` and `evaluation`, of runs.

    Returns:
        The page's path.

    Raises:
        RetinaError: not runs or a study, the page can't be written, or a setting has no effect on a study.

    Example:

    >>> retina.write_report("runs/digits").name
    'index.html'
    """
    paths = [Path(runs)] if isinstance(runs, (str, Path)) else [Path(run) for run in runs]
    page = None if out is None else Path(out)
    if not paths:
        raise RetinaError("report: expected a run, several runs or a study, got none")
    if len(paths) == 1 and (paths[0] / "study.yaml").is_file():
        if overrides or split != "validation" or checkpoint != "best":
            raise RetinaError(
                f"{paths[0]}: a study's page takes neither --split, --checkpoint nor overrides; leave them out"
            )
        return study_page.write(paths[0], page or paths[0] / "study.html")
    settings: dict[str, Any] = {"split": split, "checkpoint": checkpoint, "overrides": overrides}
    if len(paths) > 1:
        return _heavy("compare_runs")(paths, page or Path("comparison.html"), **settings)
    return _heavy("write_run_page")(paths[0], page, **settings)


def examine(
    target: str | Path,
    overrides: Sequence[str] = (),
    *,
    images: Path | None = None,
    data_dir: Path | None = None,
    format: Format | None = None,
    quick: bool = False,
    time: int | None = None,
    html: str | Path | None = None,
    advance: Callable[[int], None] | None = None,
) -> Examination:
    """Return what `retina doctor` sees: data, alone or through the anchors of a configuration.

    Args:
        target: data of any format, the name of a TFDS dataset, a configuration or a run.
        overrides: `key.path=value` of a configuration.
        images, data_dir, format: see `retina.data.formats.layouts.look`.
        quick: read only the headers of images.
        time: training steps to run and time; left out where a finding is an error, which training would stop at.
        html: a file for all of it as one page.
        advance: called with the number of images that were opened since the last call.

    Returns:
        `findings`, worst first, `splits` with statistics of each, and `anchors` with a configuration.

    Raises:
        RetinaError: there is no such data, an option has no effect, or the page can't be written.

    Example:

    >>> retina.examine("pets").findings[0].code
    'rare-classes'
    """
    page = None if html is None else Path(html)
    opened = open_target(target, list(overrides), images, data_dir, format)
    if time is not None and opened.config is None:
        raise RetinaError(f"--time: training steps need a configuration, and {target} is data; leave it out")
    if time is not None and opened.config is not None and (hosts := opened.config.run.hosts) is not None:
        share = opened.config.run.batch_size // hosts.count
        raise RetinaError(
            f"--time: run.hosts: one process cannot time the steps of {hosts.count} hosts; time one host's share of "
            f"them with run.hosts=null run.batch_size={share}"
        )
    if page is not None and not page.absolute().parent.is_dir():
        raise RetinaError(f"--html: {page.absolute().parent}: no such folder; make it first")
    examined = _heavy("examine_target")(opened, quick=quick, advance=advance)
    if time is not None and opened.config is not None and examined.sound and "train" in examined.splits:
        timing = _heavy("time_steps")(opened.config, load_training(opened.config.data), time)
        examined = replace(examined, timing=timing._asdict())
    if page is not None:
        write_text(page, _heavy("examination_page")(examined))
    return examined


def compare(
    a: str | Path,
    b: str | Path,
    *,
    ground_truth: str | Path | None = None,
    split: str | None = None,
    checkpoint: str | None = None,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Return whether B is better than A: two run directories, or with a ground truth two COCO results files.

    Runs are evaluated again: detections that lie in them may be of another checkpoint or of other data.

    Args:
        a, b: run directories; or files of COCO results, with `ground_truth`.
        ground_truth: anything that `retina.data.load.read_ground_truth` recognises; runs bring their own.
        split: of runs "train", "validation" (the default) or "test"; of a ground truth that has several, theirs, with
            commas between them ("2007/test,2012/val").
        checkpoint: of both runs, "best" by default.
        replicates, seed, level: see `retina.evaluation.comparison.compare`.

    Returns:
        `figures` with the difference B - A and its interval by AP, AP50 and AP75, `per_class`, `images`.

    Raises:
        RetinaError: not runs, or no results files; they are of different data or classes; a run's and the other's
            `evaluation.max_detections` differ; a setting without effect; or bad `replicates`, `seed` or `level`.

    Example:

    >>> detections = "runs/digits/eval/step_2/detections.json"
    >>> compared = retina.compare(
    ...     detections, detections, ground_truth="runs/digits", split="validation"
    ... )
    >>> compared.figures["AP"].difference
    0.0
    """
    paths = Path(a), Path(b)
    _check_replicates(replicates)
    if not 0 < level < 1:
        raise RetinaError(f"--level: expected a number between 0 and 1, got {level}; 0.95 is usual")
    if ground_truth is None:
        truth, limit, (of_a, of_b) = _results_of_runs(paths, _split_of_runs(split), checkpoint or "best")
        pair = _Pair(truth, of_a, of_b, limit)
    elif checkpoint is not None:
        raise RetinaError(f"--checkpoint {checkpoint}: it has no effect on results files; leave it out")
    else:
        pair = _results_in_files(*paths, Path(ground_truth), tuple(split.split(",")) if split else ())
    matches = [match(pair.truth, results, max_detections=pair.limit) for results in (pair.a, pair.b)]
    return compare_matches(pair.truth, *matches, replicates=replicates, seed=seed, level=level)


def compare_settings(
    a: Sequence[str | Path],
    b: Sequence[str | Path],
    *,
    split: str | None = None,
    checkpoint: str = "latest",
    replicates: int = 1000,
    seed: int = 0,
) -> SettingsComparison:
    """Return whether setting B is better than setting A: several runs of each, with the same seeds.

    Seeds and images are resampled together, as `retina ablate` does. The last checkpoints count: the best on the way
    favours the setting with the most noise.

    Args:
        a, b: run directories of each setting, one for each seed.
        split, checkpoint, replicates: as of `compare`.
        seed: of the resamples.

    Returns:
        `differences` B - A with intervals by AP, AP50 and AP75, and `significant`.

    Raises:
        RetinaError: as of `compare`; two runs of a setting have one seed, or the settings have other seeds.

    Example:

    >>> compared = retina.compare_settings(
    ...     ["runs/a_0"], ["runs/b_0"], replicates=100
    ... )
    >>> compared.significant
    False
    """
    _check_replicates(replicates)
    runs = [*map(Path, a), *map(Path, b)]
    truth, limit, detected = _results_of_runs(runs, _split_of_runs(split), checkpoint)
    matches = [match(truth, results, max_detections=limit) for results in detected]
    by_seed = []
    for paths, some in ((runs[: len(a)], matches[: len(a)]), (runs[len(a) :], matches[len(a) :])):
        seeds = [config.load(path / "config.yaml").run.seed for path in paths]
        if len(set(seeds)) < len(seeds):
            raise RetinaError(
                f"{', '.join(map(str, paths))}: run.seed: expected one run for each seed of a setting, got {seeds}; "
                "leave the others out"
            )
        by_seed.append(dict(zip(seeds, some, strict=True)))
    return compare_matches_of_settings(truth, *by_seed, replicates=replicates, seed=seed)


def _check_replicates(replicates: int) -> None:
    if replicates < LEAST_REPLICATES:
        raise RetinaError(f"--replicates: expected at least {LEAST_REPLICATES}, got {replicates}; 1000 are usual")


def _split_of_runs(split: str | None) -> Split:
    if split is not None and split not in get_args(Split):
        raise RetinaError(f"--split: expected one of {', '.join(get_args(Split))}, got '{split}'")
    return cast(Split, split or "validation")


class _Pair(NamedTuple):
    """Two results on one ground truth, with at most `limit` detections of a class in an image."""

    truth: GroundTruth
    a: Results
    b: Results
    limit: int


def _results_in_files(a: Path, b: Path, truth_path: Path, splits: tuple[str, ...]) -> _Pair:
    for path in (a, b):
        if exists(path) and path.is_dir():
            raise RetinaError(
                f"{path}: expected a COCO results file beside --ground-truth, got a folder; to compare runs leave "
                "--ground-truth out"
            )
    truth = read_ground_truth(truth_path, splits=splits)
    return _Pair(truth, read_results(a, truth), read_results(b, truth), config.Evaluation().max_detections[-1])


def _results_of_runs(runs: Sequence[Path], split: Split, checkpoint: str) -> tuple[GroundTruth, int, list[Results]]:
    """The ground truth that runs share, the detections of a class in an image that count, and the results of each."""
    for path in runs:
        if exists(path) and path.is_file():
            raise RetinaError(f"{path}: expected a run directory, got a file; add --ground-truth to compare files")
    first, *others = runs
    limit = _limit(first)
    for run in others:
        if _limit(run) != limit:
            raise RetinaError(
                f"{first} and {run}: evaluation.max_detections: expected the same to compare, got {limit} and "
                f"{_limit(run)} for AP; compare their detections.json with --ground-truth instead"
            )
    detected = [_heavy("detect_run")(run, split, checkpoint=checkpoint) for run in runs]
    for other in detected[1:]:
        check_same_truth(detected[0].truth, other.truth)
    return detected[0].truth, limit, [run.results for run in detected]


def _limit(run: Path) -> int:
    directory = RunDirectory.open(run)
    return config.load(directory.path / "config.yaml").evaluation.max_detections[-1]


# --------------------------------------------------------------------------------------------------- scoring files

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
    strict: bool = False,
) -> Score:
    """Return the figures of `detections` on `ground_truth`, each a file or folder (see `retina.data`) or a table.

    Args:
        ground_truth: boxes that are there: a file or folder of any format, a configuration, a run, or a table.
        detections: COCO's results, VOC's or text files, or a table.
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
            `retina.drawing.evaluation_files`.
        strict: refuses detections of classes that the ground truth does not have, and of images outside it. They are
            left out otherwise, and `Score.detections.left_out` counts them.

    Returns:
        `coco` with `metrics` and `per_class` under "coco", `voc` under the others; `boxes`, how many counted.

    Raises:
        RetinaError: a file is missing or malformed, the two don't fit, or a setting has no effect.

    Example:

    >>> detections = "runs/digits/eval/step_2/detections.json"
    >>> figures = retina.score("runs/digits", detections, splits=["validation"])
    >>> figures.coco.metrics["AP"], figures.boxes
    (0.0, 27)
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
    truth_pixels, result_pixels = _pixels(formats, protocol, pixels, gt_pixels)
    names, images = (None if path is None else Path(path) for path in (names, images))
    truth = _truth(ground_truth, formats, gt_format, truth_pixels, splits, names, images)
    results = detections
    if not isinstance(results, Results):
        results = read_results(
            results,
            truth,
            format=dt_format,
            pixels=result_pixels,
            names=names if formats.indices else None,
            images=images if formats.fractions else None,
            strict=strict,
        )
    elif strict:
        raise RetinaError("--strict: it has no effect on a table of detections, which is always checked; leave it out")
    settings = _settings(ground_truth, formats, given)
    figures = judge_tables(
        truth, results, protocol=protocol, settings=settings, replicates=replicates, iou=iou, difficult=difficult
    )
    spoken = {"ground_truth_pixels": _PIXELS[truth_pixels]} if formats.truth else {}
    spoken |= {"detection_pixels": _PIXELS[result_pixels]} if formats.results else {}
    if formats.results == "coco" and result_pixels == "inclusive" and pixels is None:
        spoken["detection_pixels"] += (
            "; taken so because the protocol is VOC's: for retina's or COCO's own files say --pixels continuous"
        )
    return replace(figures, conventions=figures.conventions | spoken, pictures=_pictures(truth, images))


class _Formats(NamedTuple):
    """The formats of the two sides; None for a table that is in memory already."""

    truth: str | None
    results: str | None

    @property
    def text_truth(self) -> bool:
        return self.truth in text.TRUTH_LAYOUTS

    @property
    def indices(self) -> bool:
        """True where the detections may name a class by an index."""
        return self.results in text.RESULT_LAYOUTS and self.results != "voc"

    @property
    def numbers(self) -> bool:
        """True where it may be said what the numbers of the ground truth mean."""
        return self.truth not in ("config", "data", None)

    @property
    def fractions(self) -> bool:
        return self.results in text.FRACTIONS


def _pixels(
    formats: _Formats, protocol: Protocol, pixels: Pixels | None, gt_pixels: Pixels | None
) -> tuple[Pixels, Pixels]:
    """The meaning of the numbers of the ground truth, and of the detections."""
    usual: Pixels = "continuous" if protocol == "coco" else "inclusive"
    # Some formats mean one thing whoever scores them: VOC's own files, and retina's own tables.
    truths: dict[str | None, Pixels] = {"voc": "inclusive", "config": "continuous", "data": "continuous"}
    truth = gt_pixels or truths.get(formats.truth) or pixels or usual
    if formats.results == "voc":
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
        pixels=pixels if formats.numbers else None,
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
    """A setting that nothing reads is an error."""
    files = formats.results is not None or formats.truth == "coco" or formats.text_truth
    for option, given, used, purpose in (
        (
            "--splits",
            bool(splits),
            formats.truth in ("voc", "config", "data"),
            "ground truth in a VOC folder or other data with splits, or a configuration",
        ),
        ("--names", names is not None, formats.text_truth or formats.indices, "text files whose class is an index"),
        ("--images", images is not None, formats.truth not in ("config", None) or formats.fractions, "files"),
        ("--gt-pixels", gt_pixels is not None, formats.numbers, "ground truth from files"),
        ("--pixels", pixels is not None, files, "files"),
    ):
        if given and not used:
            raise RetinaError(f"{option}: it has no effect here, it is for {purpose}; leave it out")


# ------------------------------------------------------------------------------------------------------ prediction


class Prediction(NamedTuple):
    """The detections in an image file, and the picture that shows them; or why the file has none."""

    file: Path
    detections: Detections | None
    picture: Path | None
    error: str = ""


def predict(
    run_or_export: str | Path,
    images: str | Path | Sequence[str | Path],
    out: str | Path = "predictions",
    **options: Any,
) -> list[Prediction]:
    """Detect objects in image files, and write pictures with boxes and the detections.

    Args:
        run_or_export: a run directory or an export.
        images: a file, folder, pattern or list of files, or several.
        out: the folder to write.
        options: as of `predict_each`.

    Returns:
        Of each image `file`, `detections` (see `Detections`), `picture` and `error`.

    Raises:
        RetinaError: as `predict_each`.

    Example:

    >>> retina.predict("runs/digits", "dog.png", "pictures")[0].picture.name
    'dog.png'
    """
    return list(predict_each(run_or_export, images, out, **options))


def predict_each(
    run_or_export: str | Path,
    images: str | Path | Sequence[str | Path],
    out: str | Path = "predictions",
    *,
    score: float | str | Path = 0.4,
    checkpoint: str = "best",
    overrides: Sequence[str] = (),
    tile: int | None = None,
    overlap: float | None = None,
    pictures: bool = True,
    to: Sequence[str] = (),
    link: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[Prediction]:
    """Detect objects in image files, and yield what is detected image by image, written before.

    The same call goes on with one that was cut off, see `retina.drawing.prediction_files`. An image that can't be read
    has an `error` in the place of its detections, and the others are written. Memory does not grow with the images.

    Args:
        run_or_export: a run directory or an export.
        images: a file, folder, pattern or list of files, or several; see `retina.data.image_files.named_images`.
        out: the folder to write.
        score: leave out detections below it; or the `metrics.json` of `retina evaluate --out`, or its folder: those
            below their class's threshold of the largest F1.
        checkpoint: of a run: `best`, `latest` or `step_N`.
        overrides: of a run: `key.path=value` of the section `inference`.
        tile, overlap: of large images, as of `predict` of a `Predictor`.
        pictures: whether pictures are drawn.
        to: formats (coco, voc, yolo, csv, label-studio) in which the images and their boxes are written at the end, a
            folder in `out` for each.
        link: of these folders: hard links in the place of copies.
        say: called with a line on the settings of the inference, and what loading and writing had to say.

    Returns:
        Of each image `file`, `detections` (see `Detections`), `picture` and `error`.

    Raises:
        RetinaError: no such image, no image that can be read, a file in `out` that no prediction wrote would be
            overwritten, another process predicts into `out`, `score` lies below the detector's own threshold, a folder
            of `to` is there already, or a setting has no effect.

    Example:

    >>> for each in retina.predict_each("runs/digits", "dog.png", "each"):
    ...     print(each.file.name, each.picture.name)
    dog.png dog.png
    """
    home = Path(out)
    check_tiles(tile, overlap)
    datasets = preannotations.check_folders(home, to, link)
    files = named_images([images] if isinstance(images, str | Path) else images, home)
    predictor = _heavy("load")(run_or_export, checkpoint, overrides)
    inference, names = predictor.config.inference, predictor.class_names
    by_class = None if isinstance(score, float | int) else read_thresholds(Path(score), names)
    thresholds = np.full(len(names), score, np.float32) if by_class is None else by_class
    least = score if isinstance(score, float | int) else float(thresholds.min())
    if least < inference.score_threshold:
        raise RetinaError(
            f"--score {least:g}: the run's inference.score_threshold is {inference.score_threshold}; nothing below it "
            f"is detected: of a run, give inference.score_threshold={least:g} as well"
        )
    _refuse_unreadable(files, predictor.config.data)
    settings = {
        "detector": str(run_or_export),
        "checkpoint": checkpoint,
        "score": score if by_class is None else dict(zip(names, by_class.tolist(), strict=True)),
        "tile": tile,
        "overlap": overlap,
        **_settings_of(predictor),
    }
    folder = PredictionFolder(home, files, settings, names, pictures=pictures, datasets=datasets)
    tiles = None if tile is None else config.Tiles(size=tile, **({} if overlap is None else {"overlap": overlap}))
    for line in (*predictor.notes, f"detects: {_heavy('inference_in_words')(inference, tiles)}"):
        say(line)
    if folder.done:
        say(f"{home}: goes on after {folder.done} of {len(files)} images, which an earlier call has done")

    def detections_in(file: Path) -> tuple[np.ndarray, Detections]:
        pixels = _heavy("pixels_of")(file, predictor.config.data)
        return pixels, predictor.predict(pixels, tile=tile, overlap=overlap)[0].above(thresholds)

    def write_datasets() -> None:
        if to:
            upright = predictor.config.data.orientation == "upright"
            table, scores = preannotations.table_of(folder.entries(), names, upright)
            for format in to:
                for note in preannotations.write(table, scores, home, format, link=link):
                    say(note)

    return (_prediction(home, entry) for entry in folder.run(detections_in, write_datasets))


def _settings_of(predictor: Predictor | ExportedPredictor) -> dict[str, Any]:
    """What decides on the detections of a predictor in an image, as plain values."""
    import keras

    return {
        "retina": __version__,
        "backend": keras.backend.backend(),
        "weights": predictor.digest(),
        "precision": predictor.config.run.precision,
        "classes": list(predictor.class_names),
        "data": predictor.config.data.model_dump(mode="json", include={"resize", "orientation", "depth", "max_pixels"}),
        "inference": predictor.config.inference.model_dump(mode="json"),
    }


def _refuse_unreadable(files: Sequence[Path], data: config.Data) -> None:
    """Check, before anything is written, that some file is an image.

    Raises:
        RetinaError: none is; the message is the first one's.
    """
    errors: list[RetinaError] = []
    for file in files:
        try:
            _heavy("pixels_of")(file, data)
            return
        except RetinaError as error:
            errors.append(error)
    raise errors[0]


def _prediction(folder: Path, entry: dict[str, Any]) -> Prediction:
    """A line of the predictions, as an object."""
    file = Path(entry["image"])
    if "error" in entry:
        return Prediction(file, None, None, entry["error"])
    picture = None if entry["picture"] is None else folder / entry["picture"]
    return Prediction(file, _heavy("Detections").from_list(entry["detections"]), picture)


# -------------------------------------------------------------------------------------------------------- ablation


def ablate(
    plan: Plan,
    out: str | Path,
    *,
    search: Search | None = None,
    seconds: float | None = None,
    executor: Literal["local", "ray"] = "local",
    retries: int = 1,
    replicates: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    again: str = "the same call",
) -> StudyResult:
    """Train the trials of a plan that are still to do, and say which settings differ; a killed study goes on.

    Args:
        plan: settings and seeds, as `make_plan` makes them. More seeds or settings than at the last call are added to
            the study.
        out: the study's folder.
        search: values that pilots choose from for each setting before the study starts.
        seconds: after them the running trial writes its checkpoint and the call ends; None for no limit.
        executor: each trial in a process of this machine, or on a Ray cluster.
        retries: further attempts at a trial that fails.
        replicates: resamples of seeds and images; 1000, or more for many settings, by default.
        say: called with lines of progress.
        again: what goes on with an interrupted study, for its messages.

    Returns:
        `settings` with their figures over the seeds, and `conclusions`, sentences on what differs.

    Raises:
        RetinaError: the folder holds another study or can't be written, or a number is out of its range.
        Interrupted: a signal came, or the time is up; the same call goes on.

    Example:

    >>> config = retina.load_config("digits.yaml")
    >>> plan = retina.make_plan(config, gammas=(0.0, 2.0), seeds=2)
    >>> print(retina.ablate(plan, "study").conclusions[0])
    γ 2, α 0.25: no significant difference from γ 0, α 0.25 (+0.000 AP, ...
    """
    until = math.inf if seconds is None else time.monotonic() + seconds
    _check_resamples(replicates)
    if executor not in ("local", "ray"):
        raise RetinaError(f"--executor: expected local or ray, got {executor!r}")
    if retries < 0:
        raise RetinaError(f"--retries: expected at least 0, got {retries}")

    def run(study: Study) -> StudyResult:
        settings, trials = count(len(study.plan.settings), "setting"), count(len(study.plan.trials), "trial")
        say(f"{settings}, {seed_range(study.plan)}: {trials}{total_length(study.plan)} in {study.path}")
        with study.locked() as lock:
            if executor == "ray":
                run_on_ray(study, retries=retries, say=say, again=again, until=until)
            else:
                run_locally(study, retries=retries, say=say, again=again, until=until, lock=lock)
        return summarise_study(study.path, replicates=replicates, say=say)

    if search is not None:
        pilots = Study.start_pilots(Path(out), pilot_plan(plan, search))
        run(pilots)
        plan = tuned_plan(plan, search, pilots)
        for sentence in plan.tuning:
            say(sentence)
    return run(Study.start(Path(out), plan))


def summarise_study(
    path: str | Path, *, replicates: int | None = None, say: Callable[[str], None] = lambda text: None
) -> StudyResult:
    """Write a study's table, plots and page from its finished trials, and return its figures.

    Args:
        path: a study's folder.
        replicates: resamples of seeds and images; 1000, or more for many settings, by default.
        say: called with lines of progress.

    Returns:
        As of `ablate`.

    Raises:
        RetinaError: not a study's folder, it can't be written, or `replicates` is below 1.

    Example:

    >>> study = retina.summarise_study("study")
    >>> [of_setting.setting.label for of_setting in study.settings]
    ['γ 0, α 0.25', 'γ 2, α 0.25']
    """
    _check_resamples(replicates)
    study = Study.open(Path(path))
    result = collect(study, replicates=replicates, say=say)
    write_outputs(study, result)
    study_page.write_page(study, result)
    return result


def _check_resamples(replicates: int | None) -> None:
    if replicates is not None and replicates < 1:
        raise RetinaError(f"--replicates: expected at least 1, got {replicates}; 1000 are usual")


def _heavy(name: str) -> Any:
    return __getattr__(name)
