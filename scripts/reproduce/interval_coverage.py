#!/usr/bin/env python
"""Share of the intervals of retina.evaluation.bootstrap that hold the truth, on simulated detections of known AP.

A simulated image has a difficulty of its own, which lowers the chance of finding each of its objects, their overlap and
their score, and brings more false alarms: what one image goes through, all its detections go through. It has also a
scene, which makes some classes likelier together. Five classes of 0.1 to 1.2 objects an image are detected with
different skill; scores of right and wrong detections overlap. The matches at COCO's ten overlaps are drawn
directly, without boxes: an object that is detected with overlap q is right at every threshold up to q, and wrong above.

The true figures are those of 40 x 50,000 images. Each repetition draws N new images, makes the interval from resamples
of them and looks whether the true figure lies in it. With --difference there are two detectors of the same skill on
the same images, whose true differences are 0.

The exit code is 1 if the interval of AP or AP50 (bias-corrected; of a difference, percentile) held the truth in less
than 93 % or more than 97 % of the repetitions.

    .venv/bin/python scripts/reproduce/interval_coverage.py --images 100 300 1000          # 15 minutes on a busy core
    .venv/bin/python scripts/reproduce/interval_coverage.py --images 100 300 --difference  # 7 minutes
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import NamedTuple

import numpy as np

from retina.evaluation.bootstrap import Figures, Method, bootstrap, interval, observed
from retina.evaluation.matching import IOU_THRESHOLDS, Matches

OBJECTS = np.array([1.2, 0.6, 0.4, 0.2, 0.1])  # an image, of each class
SKILL = np.array([1.5, 1.0, 0.5, 1.0, 0.0])
SCENES = np.array([[1.5, 0.3, 1.0, 2.0, 0.2], [0.5, 1.7, 1.0, 0.0, 1.8]])  # how often each class occurs there
FALSE_ALARMS = 0.5  # an image and class
LEAST, MOST = 0.93, 0.97
METHODS: tuple[Method, ...] = ("percentile", "bias-corrected")
FIGURES = ("AP", "AP50", *(f"AP of class {k}" for k in range(len(OBJECTS))))


class Scenes(NamedTuple):
    """N images: how hard each is [N], and image and class of each of M objects [M]."""

    difficulty: np.ndarray
    image: np.ndarray
    labels: np.ndarray


def draw_scenes(images: int, rng: np.random.Generator) -> Scenes:
    difficulty = rng.standard_normal(images)
    counts = rng.poisson(OBJECTS * SCENES[rng.integers(len(SCENES), size=images)])
    return Scenes(difficulty, *_repeated(counts))


def detect(scenes: Scenes, rng: np.random.Generator) -> Matches:
    """Matches of a detector's detections in the images; each call is another detector of the same skill."""
    images, classes = len(scenes.difficulty), len(OBJECTS)
    hardness = scenes.difficulty[scenes.image]
    clear = SKILL[scenes.labels] - 0.7 * hardness + rng.logistic(size=len(hardness))
    detected = np.flatnonzero(clear > 0)
    overlap = 1 - 0.5 * rng.beta(np.exp(0.3 * hardness[detected]) * 1.5, 3.0)
    rate = FALSE_ALARMS * np.exp(0.5 * scenes.difficulty - 0.125)
    alarm_image, alarm_label = _repeated(rng.poisson(rate[:, None], (images, classes)))
    image = np.concatenate((scenes.image[detected], alarm_image))
    labels = np.concatenate((scenes.labels[detected], alarm_label))
    scores = np.concatenate(
        (
            1.0 + 0.4 * clear[detected] + 3.0 * (overlap - 0.8) + rng.standard_normal(len(detected)),
            -0.5 + 0.3 * scenes.difficulty[alarm_image] + rng.standard_normal(len(alarm_image)),
        )
    )
    truth = np.where(overlap >= IOU_THRESHOLDS[:, None], detected, -1)
    truth = np.concatenate((truth, np.full((len(truth), len(alarm_image)), -1)), axis=1)
    order = np.lexsort((-scores, labels))
    return Matches(
        IOU_THRESHOLDS,
        rows=order,
        image=image[order],
        labels=labels[order],
        scores=scores[order],
        offsets=np.searchsorted(labels[order], np.arange(classes + 1)),
        truth=truth[:, order],
        ignored=np.zeros(truth.shape, np.bool_),
        counted=np.ones(len(scenes.image), np.bool_),
        truth_labels=scenes.labels,
        truth_image=scenes.image,
        images=images,
    )


def simulate(images: int, rng: np.random.Generator) -> Matches:
    """N images of the process, with one detector."""
    return detect(draw_scenes(images, rng), rng)


def _repeated(counts: np.ndarray) -> list[np.ndarray]:
    """Row and column of each of the counted things [N, K]."""
    return [np.repeat(axis.ravel(), counts.ravel()) for axis in np.indices(counts.shape)]


def columns(figures: Figures) -> np.ndarray:
    """[b, F] in the order of `FIGURES`."""
    return np.column_stack((figures.AP, figures.AP50, figures.per_class["AP"]))


def generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence((seed, *stream)))


def true_figures(seed: int, blocks: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    """[F] the figures of the process and their standard errors, from the spread of the blocks."""
    values = np.concatenate([columns(observed(simulate(images, generator(seed, 0, block)))) for block in range(blocks)])
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(blocks)


class Coverage(NamedTuple):
    """`held` and `width` by method, [R, F]; `estimates` [R, F]."""

    held: dict[Method, np.ndarray]
    width: dict[Method, np.ndarray]
    estimates: np.ndarray


def cover(
    truth: np.ndarray, repetitions: int, images: int, replicates: int, seed: int, difference: bool = False
) -> Coverage:
    """Make the intervals `repetitions` times: of a detector's figures, or of the difference between two."""
    held, width = ({method: np.zeros((repetitions, len(truth))) for method in METHODS} for _ in range(2))
    estimates = np.zeros((repetitions, len(truth)))
    for repetition in range(repetitions):
        rng = generator(seed, images, repetition)
        scenes = draw_scenes(images, rng)
        detectors = [detect(scenes, rng) for _ in range(1 + difference)]
        plain = [columns(observed(matches))[0] for matches in detectors]
        drawn = [columns(bootstrap(matches, replicates=replicates, seed=seed + repetition)) for matches in detectors]
        values = drawn[1] - drawn[0] if difference else drawn[0]
        estimates[repetition] = plain[1] - plain[0] if difference else plain[0]
        for method in METHODS:
            low, high = interval(values, method=method, estimate=estimates[repetition])
            held[method][repetition] = (low <= truth) & (truth <= high)
            width[method][repetition] = high - low
    return Coverage(held, width, estimates)


def honest(coverage: Coverage, method: Method) -> bool:
    """Return whether the intervals of AP and AP50 hold as often as the exit code asks."""
    share = coverage.held[method][:, :2].mean(axis=0)
    return bool(((share >= LEAST) & (share <= MOST)).all())


def report(truth: np.ndarray, images: int, coverage: Coverage) -> None:
    repetitions = len(coverage.estimates)
    bias = np.nanmean(coverage.estimates, axis=0) - truth
    spread = np.nanstd(coverage.estimates, axis=0)
    print(f"\n{images} images, {repetitions} repetitions")
    print(f"{'figure':14}{'bias':>9}{'sd':>8}" + "".join(f"{method:>30}" for method in METHODS))
    for f, name in enumerate(FIGURES):
        cells = []
        for method in METHODS:
            share = coverage.held[method][:, f].mean()
            error = np.sqrt(share * (1 - share) / repetitions)
            cells.append(f"{share:9.1%} ± {error:4.1%}, width {np.nanmean(coverage.width[method][:, f]):.3f}")
        print(f"{name:14}{bias[f]:+9.4f}{spread[f]:8.4f}" + "".join(f"{cell:>30}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[300])
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--difference", action="store_true", help="of two detectors of the same skill, paired")
    parser.add_argument("--blocks", type=int, default=40, help="samples that the true figures come from")
    parser.add_argument("--block-images", type=int, default=50_000)
    arguments = parser.parse_args()
    truth = np.zeros(len(FIGURES))
    if arguments.difference:
        print("differences of two detectors of the same skill; the true ones are 0")
    else:
        truth, error = true_figures(arguments.seed, arguments.blocks, arguments.block_images)
        print(f"true figures, from {arguments.blocks} x {arguments.block_images:,} images")
        for name, value, uncertain in zip(FIGURES, truth, error, strict=True):
            print(f"{name:14}{value:.5f} ± {uncertain:.5f}")
    verdicts = []
    for images in arguments.images:
        start = time.perf_counter()
        coverage = cover(
            truth, arguments.repetitions, images, arguments.replicates, arguments.seed, arguments.difference
        )
        report(truth, images, coverage)
        verdicts.append(honest(coverage, "percentile" if arguments.difference else "bias-corrected"))
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
    sys.exit(0 if all(verdicts) else 1)


if __name__ == "__main__":
    main()
