"""Two runs, or two results files, on the same ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, cast, get_args

from retina import config as configuration
from retina.data.ground_truth import GroundTruth, Results
from retina.data.load import Split, read_ground_truth, read_results
from retina.errors import RetinaError
from retina.evaluation.comparison import Comparison, check_same_truth
from retina.evaluation.comparison import compare as compare_matches
from retina.evaluation.matching import match
from retina.files import exists
from retina.runs.directory import RunDirectory
from retina.scoring import LEAST_REPLICATES
from retina.startup import import_tensorflow_quietly

_COCO_LIMIT = 100


class Pair(NamedTuple):
    """What is compared: two results on one ground truth, with at most `limit` detections of a class in an image."""

    truth: GroundTruth
    a: Results
    b: Results
    limit: int


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
    """Tells whether B is better than A: two run directories, or with a ground truth two COCO results files.

    Runs are evaluated anew: detections that lie in them may be of another checkpoint or of other data.

    Args:
        ground_truth: anything that `retina.data.load.read_ground_truth` tells by itself; runs bring their own.
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
        pair = _runs(*paths, cast(Split, split or "validation"), checkpoint or "best")
    elif checkpoint is not None:
        raise RetinaError(f"--checkpoint {checkpoint}: it has no effect on results files; leave it out")
    else:
        pair = _files(*paths, Path(ground_truth), tuple(split.split(",")) if split else ())
    matches = [match(pair.truth, found, max_detections=pair.limit) for found in (pair.a, pair.b)]
    return compare_matches(pair.truth, *matches, replicates=replicates, seed=seed, level=level)


def _files(a: Path, b: Path, truth_path: Path, splits: tuple[str, ...]) -> Pair:
    for path in (a, b):
        if exists(path) and path.is_dir():
            raise RetinaError(
                f"{path}: expected a COCO results file beside --ground-truth, got a folder; to compare runs leave "
                "--ground-truth out"
            )
    truth = read_ground_truth(truth_path, splits=splits)
    return Pair(truth, read_results(a, truth), read_results(b, truth), _COCO_LIMIT)


def _runs(a: Path, b: Path, split: Split, checkpoint: str) -> Pair:
    for path in (a, b):
        if exists(path) and path.is_file():
            raise RetinaError(f"{path}: expected a run directory, got a file; add --ground-truth to compare files")
    limits = [_limit(run) for run in (a, b)]
    if limits[0] != limits[1]:
        raise RetinaError(
            f"{a} and {b}: evaluation.max_detections: expected the same to compare, got {limits[0]} and {limits[1]} "
            "for AP; compare their detections.json with --ground-truth instead"
        )
    import_tensorflow_quietly()
    # Brings in Keras, which two files can do without.
    from retina.runs.loading import detect_split

    detected_a, detected_b = (detect_split(run, split, checkpoint=checkpoint) for run in (a, b))
    check_same_truth(detected_a.truth, detected_b.truth)
    return Pair(detected_a.truth, detected_a.found, detected_b.found, limits[0])


def _limit(run: Path) -> int:
    directory = RunDirectory.open(run)
    return configuration.load(str(directory.path / "config.yaml")).evaluation.max_detections[-1]
