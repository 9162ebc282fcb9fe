"""The verbs of the package, one home for each: what the command line does, Python does by these.

A verb that brings in Keras is imported when it is first asked for. That takes seconds, which two files to score or a
typo in a configuration need not wait for; and TensorFlow's start-up lines are kept off the screen meanwhile.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

from retina import config
from retina.ablation.directory import Study
from retina.ablation.execute import run_locally, run_on_ray
from retina.ablation.outputs import write_outputs
from retina.ablation.plan import Plan
from retina.ablation.results import StudyResult, collect
from retina.data.convert.run import convert
from retina.data.formats.results import read_results
from retina.data.formats.truth import read_ground_truth
from retina.data.ground_truth import GroundTruth, Results
from retina.data.load import Split, load_split
from retina.doctor.targets import open_target
from retina.drawing.evaluation_files import write_sheet
from retina.drawing.prediction_files import write_predictions
from retina.drawing.score_files import write_score
from retina.errors import RetinaError
from retina.evaluation.comparison import Comparison, check_same_truth
from retina.evaluation.comparison import compare as compare_matches
from retina.evaluation.matching import match
from retina.files import IMAGE_SUFFIXES, exists, write_text
from retina.pages import study as study_page
from retina.runs.directory import RunDirectory
from retina.scoring import LEAST_REPLICATES, Protocol, Score, score
from retina.scoring import judge as judge_tables
from retina.startup import import_tensorflow_quietly

if TYPE_CHECKING:
    from retina.ablation.loss_distribution import loss_distribution
    from retina.doctor.examine import Examination
    from retina.export.benchmark import benchmark
    from retina.export.exporting import export
    from retina.export.loading import evaluate, load
    from retina.export.weights import export_weights
    from retina.inference import Detections
    from retina.pages.browse import browse
    from retina.runs.importing import import_run as import_weights
    from retina.training.train import train

# Verbs and helpers that bring in Keras, and where they stand.
_HEAVY = {
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
    "load": "retina.export.loading",
    "loss_distribution": "retina.ablation.loss_distribution",
    "print_examination": "retina.doctor.printing",
    "time_steps": "retina.training.timing",
    "train": "retina.training.train",
    "with_timing": "retina.doctor.examine",
    "write_run_page": "retina.pages.run_page:write_report",
}

__all__ = [
    "ablate", "benchmark", "browse", "compare", "convert", "evaluate", "examine", "export", "export_weights",
    "import_weights", "judge", "load", "load_split", "loss_distribution", "predict", "score", "summarise_study",
    "train", "write_report",
]  # fmt: skip


class Judged(NamedTuple):
    """The figures of a detector, and what reading its data had to say."""

    score: Score
    notes: tuple[str, ...]


def __getattr__(name: str) -> Any:
    if name not in _HEAVY:
        raise AttributeError(f"module 'retina.api' has no attribute '{name}'")
    module, _, attribute = _HEAVY[name].partition(":")
    import_tensorflow_quietly()
    return getattr(importlib.import_module(module), attribute or name)


# ------------------------------------------------------------------------------------------------------- training


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
    out: Path | None = None,
) -> Judged:
    """Return the figures of a run or an export on a split of its data, how sure they are, and what keeps them down.

    Args:
        protocol, replicates: see `score`.
        overrides: `key.path=value` of the sections `data` and `evaluation`.
        out: a folder for metrics, detections, plots and pictures.

    Raises:
        RetinaError: as `evaluate`; a setting has no effect; or `out` can't be written.
    """
    detected = _heavy("detect_split")(run_or_export, split, checkpoint=checkpoint, overrides=overrides)
    settings = detected.config.evaluation
    figures = judge_tables(detected.truth, detected.found, protocol=protocol, settings=settings, replicates=replicates)
    if out is not None:
        write_score(out, figures, detected.dataset.images)
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
        overrides: `key.path=value` of the sections `data` and `evaluation`, of runs.

    Returns:
        The page.

    Raises:
        RetinaError: not runs or a study, the page can't be written, or a setting has no effect on a study.
    """
    paths = [Path(runs)] if isinstance(runs, (str, Path)) else [Path(run) for run in runs]
    page = None if out is None else Path(out)
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
    quick: bool = False,
    time: int | None = None,
    html: Path | None = None,
    advance: Callable[[int], None] | None = None,
) -> Examination:
    """Return what `retina doctor` sees: data, alone or through the anchors of a configuration.

    Args:
        target: data of any format, the name of a TFDS dataset, a configuration or a run.
        overrides: `key.path=value` of a configuration.
        images: the folder of images of a COCO or CSV file, where it is not found by itself.
        data_dir: where TFDS datasets lie.
        quick: read only the headers of images.
        time: training steps to run and time; left out where a finding is an error, which training would stop at.
        html: a file for all of it as one page.
        advance: called with the number of images that were opened since the last call.

    Raises:
        RetinaError: there is no such data, an option has no effect, or the page can't be written.
    """
    opened = open_target(target, list(overrides), images, data_dir)
    if time is not None and opened.config is None:
        raise RetinaError(f"--time: training steps need a configuration, and {target} is data; leave it out")
    if time is not None and opened.config is not None and (hosts := opened.config.run.hosts) is not None:
        share = opened.config.run.batch_size // hosts.count
        raise RetinaError(
            f"--time: run.hosts: one process cannot time the steps of {hosts.count} hosts; time one host's share of "
            f"them with run.hosts=null run.batch_size={share}"
        )
    if html is not None and not html.absolute().parent.is_dir():
        raise RetinaError(f"--html: {html.absolute().parent}: no such folder; make it first")
    examined = _heavy("examine_target")(opened, quick=quick, advance=advance)
    if time is not None and opened.config is not None and examined.sound and "train" in examined.splits:
        timing = _heavy("time_steps")(opened.config, load_split(opened.config.data, "train"), time)
        examined = _heavy("with_timing")(examined, timing._asdict())
    if html is not None:
        write_text(html, _heavy("examination_page")(examined))
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

    Runs are evaluated anew: detections that lie in them may be of another checkpoint or of other data.

    Args:
        ground_truth: anything that `retina.data.formats.truth.read_ground_truth` tells by itself; runs bring their own.
        split: of runs "train", "validation" (the default) or "test"; of a ground truth that has several, theirs, with
            commas between them ("2007/test,2012/val").
        checkpoint: of both runs, "best" by default.
        replicates, seed, level: see `retina.evaluation.comparison.compare`.

    Raises:
        RetinaError: not runs, or no results files; they are of different data or classes; a run's and the other's
            `evaluation.max_detections` differ; a setting without effect; or bad `replicates`, `seed` or `level`.
    """
    paths = Path(a), Path(b)
    if replicates < LEAST_REPLICATES:
        raise RetinaError(f"--replicates: expected at least {LEAST_REPLICATES}, got {replicates}; 1000 are usual")
    if not 0 < level < 1:
        raise RetinaError(f"--level: expected a number between 0 and 1, got {level}; 0.95 is usual")
    if ground_truth is None:
        if split is not None and split not in get_args(Split):
            raise RetinaError(f"--split: expected one of {', '.join(get_args(Split))}, got '{split}'")
        pair = _results_of_runs(*paths, cast(Split, split or "validation"), checkpoint or "best")
    elif checkpoint is not None:
        raise RetinaError(f"--checkpoint {checkpoint}: it has no effect on results files; leave it out")
    else:
        pair = _results_in_files(*paths, Path(ground_truth), tuple(split.split(",")) if split else ())
    matches = [match(pair.truth, results, max_detections=pair.limit) for results in (pair.a, pair.b)]
    return compare_matches(pair.truth, *matches, replicates=replicates, seed=seed, level=level)


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


def _results_of_runs(a: Path, b: Path, split: Split, checkpoint: str) -> _Pair:
    for path in (a, b):
        if exists(path) and path.is_file():
            raise RetinaError(f"{path}: expected a run directory, got a file; add --ground-truth to compare files")
    limits = [_limit(run) for run in (a, b)]
    if limits[0] != limits[1]:
        raise RetinaError(
            f"{a} and {b}: evaluation.max_detections: expected the same to compare, got {limits[0]} and {limits[1]} "
            "for AP; compare their detections.json with --ground-truth instead"
        )
    detected = [_heavy("detect_run")(run, split, checkpoint=checkpoint) for run in (a, b)]
    check_same_truth(detected[0].truth, detected[1].truth)
    return _Pair(detected[0].truth, detected[0].found, detected[1].found, limits[0])


def _limit(run: Path) -> int:
    directory = RunDirectory.open(run)
    return config.load(directory.path / "config.yaml").evaluation.max_detections[-1]


# ------------------------------------------------------------------------------------------------------ prediction


class Prediction(NamedTuple):
    """The detections in an image file, and the picture that shows them."""

    file: Path
    detections: Detections
    picture: Path


def predict(
    run_or_export: str | Path,
    images: Sequence[str | Path],
    out: str | Path = "predictions",
    *,
    score: float = 0.4,
    checkpoint: str = "best",
) -> list[Prediction]:
    """Detect objects in image files, and write pictures with boxes and `detections.json`.

    Everything is detected before anything is written: a broken image leaves no half-filled folder.

    Args:
        images: files, or folders whose images are taken by name.
        out: the folder to write.
        score: leave out detections below it.
        checkpoint: of a run: `best`, `latest` or `step_N`.

    Raises:
        RetinaError: no such image, a picture would overwrite an image, or `score` lies below the detector's own
            threshold.
    """
    files = _image_files([Path(path) for path in images])
    predictor = _heavy("load")(run_or_export, checkpoint)
    lowest = predictor.config.inference.score_threshold
    if score < lowest:
        raise RetinaError(
            f"--score {score}: the run's inference.score_threshold is {lowest}; nothing below it is detected"
        )
    detections = [of_image.above(score) for of_image in predictor.predict(files)]
    pictures = write_predictions(Path(out), files, detections, predictor.class_names)
    return [Prediction(*row) for row in zip(files, detections, pictures, strict=True)]


def _image_files(paths: Sequence[Path]) -> list[Path]:
    files = []
    for path in paths:
        if not exists(path):
            raise RetinaError(f"{path}: no such image")
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise RetinaError(
                    f"{path}: no image in this folder; expected files ending in {', '.join(IMAGE_SUFFIXES)}"
                )
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise RetinaError(f"{path}: no such image; expected a file or a folder, got a device, a pipe or a socket")
    return files


# -------------------------------------------------------------------------------------------------------- ablation


def ablate(
    plan: Plan,
    out: str | Path,
    *,
    executor: Literal["local", "ray"] = "local",
    retries: int = 1,
    replicates: int | None = None,
    say: Callable[[str], None] = lambda text: None,
    again: str = "the same call",
) -> StudyResult:
    """Train the trials of a plan that are still to do, and say which settings differ; a killed study goes on.

    Args:
        plan: settings and seeds, as `retina.ablation.plan.make_plan` makes them.
        out: the study's folder.
        executor: each trial in a process of this machine, or on a Ray cluster.
        retries: further attempts at a trial that fails.
        replicates: resamples of seeds and images; 1000, or more for many settings, by default.
        say: called with lines of progress.
        again: what goes on with an interrupted study, for its messages.

    Raises:
        RetinaError: the folder holds another study or can't be written, or a number is out of its range.
    """
    _check_resamples(replicates)
    if retries < 0:
        raise RetinaError(f"--retries: expected at least 0, got {retries}")
    study = Study.start(Path(out), plan)
    say(f"{len(plan.settings)} settings × {plan.seeds} seeds = {len(plan.trials)} trials in {out}")
    with study.locked() as lock:
        if executor == "ray":
            run_on_ray(study, retries=retries, say=say, again=again)
        else:
            run_locally(study, retries=retries, say=say, again=again, lock=lock)
    return summarise_study(out, replicates=replicates, say=say)


def summarise_study(
    path: str | Path, *, replicates: int | None = None, say: Callable[[str], None] = lambda text: None
) -> StudyResult:
    """Write a study's table, plots and page anew from its finished trials, and return what they show.

    Raises:
        RetinaError: not a study's folder, it can't be written, or `replicates` is below 1.
    """
    _check_resamples(replicates)
    study = Study.open(Path(path))
    result = collect(study, replicates=replicates, say=say)
    write_outputs(study, result)
    return result


def _check_resamples(replicates: int | None) -> None:
    if replicates is not None and replicates < 1:
        raise RetinaError(f"--replicates: expected at least 1, got {replicates}; 1000 are usual")


def _heavy(name: str) -> Any:
    return __getattr__(name)
