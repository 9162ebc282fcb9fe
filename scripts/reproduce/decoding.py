#!/usr/bin/env python
"""Accuracy that decoding at a reduced size (`data.decode: auto`) costs: of a trained detector, and of further training.

    .venv/bin/python scripts/reproduce/decoding.py DATA [--run RUN] [--steps 600] [--more 200] [--seeds 3]

Two trainings from scratch that differ in their pixels by a little part ways as two seeds do, which hides 0.002 of AP.
So one detector of blood cells is trained (configs/bccd.yaml at 0.4 of its photographs' sides, where `auto` decodes each
at 1/2), with `full`, and all else is measured on it, in pairs:

1. The pixels: it looks at all 364 photographs as training reads them, but not augmented, with `full` and with `auto`.
2. The training: it is trained further at a tenth of the learning rate, with `full` and with `auto`, from the same
   weights on the same samples; both are evaluated as ever (in full) on the 159 photographs that are not trained on.

Each pair is compared on the same images, with the interval of the difference by `retina.evaluation.comparison` (paired
bootstrap, 95 %). The trainings of several seeds also have a mean difference with its standard error, of which two on
either side are taken. An answer is "not worse" where AP is certainly no more than 0.002 lower with `auto`, "WORSE"
where it certainly is, else "can't tell". Exit code 0: the pixels and the mean of the trainings are "not worse".
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import retina
from retina import config as configuration
from retina.data.batches.training import training_batches
from retina.data.ground_truth import results
from retina.evaluation.comparison import Difference, compare
from retina.evaluation.matching import match
from retina.inference import detect
from retina.runs.loading import Detected, detect_split, split_for

ROOT = Path(__file__).resolve().parents[2]
BOUND = 0.002
FIGURES = ("AP", "AP50")
REPLICATES = 2000
# Nothing is selected here, so the test images may count: the more, the narrower the intervals.
ALL, UNSEEN = (
    "data.validation={format: voc, splits: [train, val, test]}",
    "data.validation={format: voc, splits: [val, test]}",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="holds Annotations, ImageSets and JPEGImages")
    parser.add_argument("--run", type=Path, help="a run that this script left in --out, in place of training one")
    parser.add_argument("--steps", type=int, default=600, help="of the first training (%(default)s)")
    parser.add_argument("--more", type=int, default=200, help="steps of each further one (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="how many pairs of further trainings (%(default)s)")
    parser.add_argument("--short", type=int, default=192, help="data.resize.short, at most 192 (%(default)s)")
    parser.add_argument("--precision", default="mixed_bfloat16", help="run.precision (%(default)s)")
    parser.add_argument("--out", type=Path, help="keep the runs here")
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.more, arguments.seeds) < 1 or not 32 <= arguments.short <= 192:
        parser.error("--steps, --more and --seeds must be at least 1, --short from 32 to 192 (0.4 of 480: 1/2 will do)")

    with tempfile.TemporaryDirectory() as folder:
        out = arguments.out or Path(folder)
        first = arguments.run
        if first is None:
            first = out / "first"
            train(arguments, first, "full", steps=arguments.steps)
        print(f"{'':34}{'full':>8}{'auto':>8}{'auto - full':>13}  95 % interval")
        pixels = difference(*(as_trained(first, decode) for decode in ("full", "auto")))
        answers = [show("the same detector", pixels)]
        differences = []
        for seed in range(1, arguments.seeds + 1):
            runs = [out / f"{decode}_{seed}" for decode in ("full", "auto")]
            for run, decode in zip(runs, ("full", "auto"), strict=True):
                train(arguments, run, decode, steps=arguments.more, seed=seed, init_from=first)
            differences.append(difference(*(evaluated(run) for run in runs)))
            show(f"trained on, seed {seed}", differences[-1])
    ends = mean_interval([figures["AP"].difference for figures in differences])
    if ends is not None:
        answers.append(verdict(*ends))
        print(f"trained on, mean of {len(differences)} seeds: AP {sum(ends) / 2:+.4f}, {span(*ends)}: {answers[-1]}")
    else:
        answers.append(verdict(differences[0]["AP"].low, differences[0]["AP"].high))
    sys.exit(0 if all(answer == "not worse" for answer in answers) else 1)


def train(
    arguments: argparse.Namespace, run: Path, decode: str, *, steps: int, seed: int = 0, init_from: Path | None = None
) -> None:
    short, start = arguments.short, time.perf_counter()
    rate = 1e-3 if init_from is None else 1e-4
    config = configuration.load(
        ROOT / "configs" / "bccd.yaml",
        [
            f"data.root={arguments.root.resolve()}",
            f"data.decode={decode}",
            f"data.resize={{short: {short}, long: {short * 4 // 3}, multiple: 32}}",
            f"anchors.size={4 * short / 384}",
            f"optimizer.learning_rate={rate}",
            f"schedule={{kind: cosine, steps: {steps}, warmup_steps: {min(50, steps)}}}",
            f"run={{batch_size: 8, seed: {seed}, precision: {arguments.precision}, preflight: warn, pictures: 0, "
            "report: false}",
            *([] if init_from is None else [f"model.init_from={init_from.resolve()}"]),
        ],
    )
    retina.train(config, run)
    print(f"{run.name}: {steps} steps in {time.perf_counter() - start:.0f} s", flush=True)


def as_trained(run: Path, decode: str) -> Detected:
    """Detections of the run in all images as training reads them with `decode`, unaugmented."""
    predictor = retina.load(run, "latest")
    dataset, truth, config = split_for(predictor, "validation", [ALL])
    table = detect(predictor.run, dataset, plain_batches(dataset, config.data, decode))
    return Detected(table, dataset, results(table, dataset), truth, config)


def evaluated(run: Path) -> Detected:
    """Detections of the run, by the usual evaluation, in the images that it was not trained on."""
    return detect_split(run, "validation", checkpoint="latest", overrides=[UNSEEN])


def plain_batches(dataset: retina.DetectionDataset, data: configuration.Data, decode: str) -> Iterable[dict[str, Any]]:
    """Each image once, as training reads it, whole and neither zoomed nor flipped."""
    plain = data.model_copy(update={"augment": configuration.Augment(horizontal_flip=0.0), "decode": decode})
    return training_batches(dataset, plain, batch_size=1, seed=0, steps=len(dataset))


def difference(full: Detected, auto: Detected) -> dict[str, Difference]:
    """`auto` less `full` of each figure, with its interval."""
    matches = [match(full.truth, detected.results) for detected in (full, auto)]
    return compare(full.truth, *matches, replicates=REPLICATES).figures


def show(what: str, figures: dict[str, Difference]) -> str:
    """Print a line for each figure, and return the verdict of AP."""
    answer = verdict(figures["AP"].low, figures["AP"].high)
    for figure in FIGURES:
        value = figures[figure]
        ending = f": {answer}" if figure == "AP" else ""
        print(
            f"{what + ', ' + figure:34}{value.a:8.4f}{value.b:8.4f}{value.difference:+13.4f}  "
            f"{span(value.low, value.high)}{ending}"
        )
    sys.stdout.flush()
    return answer


def verdict(low: float, high: float) -> str:
    """Verdict by an interval of the difference in AP, `auto` less `full`."""
    if low >= -BOUND:
        return "not worse"
    return "WORSE" if high < -BOUND else "can't tell"


def mean_interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """Two standard errors of the mean on either side of it; None of a single one, which has no error."""
    if len(differences) < 2:
        return None
    mean, error = statistics.mean(differences), statistics.stdev(differences) / np.sqrt(len(differences))
    return mean - 2 * error, mean + 2 * error


def span(low: float, high: float) -> str:
    return f"{low:+.4f} to {high:+.4f}"


if __name__ == "__main__":
    main()
