"""Samples of a trained detector's anchors on its validation images, for `retina.ablation.loss_distribution`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retina.ablation.loss_distribution import Distribution, Samples, distribution
from retina.ablation.plan import plain_loss
from retina.data.batches.evaluation import evaluation_batches, translated
from retina.data.load import load_split
from retina.errors import RetinaError
from retina.ops.assignment import match
from retina.runs.loading import load

# The paper's number of background samples; more are thinned out at random.
_MOST_BACKGROUND = 10_000_000


def loss_distribution(
    run: str | Path, gammas: Sequence[float], *, images: int | None = None, checkpoint: str = "best", seed: int = 0
) -> tuple[Samples, dict[float, dict[str, Distribution]]]:
    """Return samples of a run on its validation data, and by γ the distributions of `foreground` and `background`.

    Args:
        run: a run directory.
        gammas: values of γ, at least 0.
        images: number of images, drawn at random with `seed`; None takes all.
        checkpoint: `best`, `latest` or `step_N`.
        seed: of the images that are drawn.

    Returns:
        Samples, and by γ the distributions of `foreground` and `background`.

    Raises:
        RetinaError: no run, γ below 0, fewer than one image, or no foreground anchor in them.

    Example:

    >>> samples, by_gamma = retina.loss_distribution(
    ...     "runs/digits", [0.0, 2.0], images=2
    ... )
    >>> sorted(by_gamma[2.0])
    ['background', 'foreground']
    """
    for gamma in gammas:
        if not (math.isfinite(gamma) and gamma >= 0):
            raise RetinaError(f"--gamma: expected numbers of at least 0, got {gamma:g}")
    if images is not None and images < 1:
        raise RetinaError(f"--images: expected at least 1, got {images}")
    samples = sample(Path(run), images=images, checkpoint=checkpoint, seed=seed)
    if not len(samples.foreground):
        raise RetinaError(f"{run}: no anchor is foreground in {samples.images} validation images; take more --images")
    kinds = {"foreground": samples.foreground, "background": samples.background}
    return samples, {gamma: {kind: distribution(z, gamma) for kind, z in kinds.items()} for gamma in gammas}


def sample(run: Path, *, images: int | None, checkpoint: str, seed: int) -> Samples:
    """Return the errors of a run's detector at the anchors of its validation images."""
    import keras

    predictor = load(run, checkpoint)
    detector, config = predictor.detector, predictor.config
    dataset = load_split(config.data, "validation")
    rng = np.random.default_rng(seed)
    if images is not None and images < len(dataset):
        dataset = dataset.subset(np.sort(rng.permutation(len(dataset))[:images]))
    foreground, background, negatives = [], [], 0
    with translated(dataset):
        for batch in evaluation_batches(dataset, config.data, batch_size=config.inference.batch_size):
            batch = {name: keras.ops.convert_to_tensor(np.asarray(value)) for name, value in batch.items()}
            anchors = np.concatenate(detector.level_anchors(tuple(batch["images"].shape[1:3])))
            logits = keras.ops.convert_to_numpy(detector(batch, training=False)["logits"])
            matches = match(
                keras.ops.convert_to_tensor(anchors), batch["boxes"], batch["valid"], batch["crowd"], config.assignment
            )
            index, positive, ignored = (keras.ops.convert_to_numpy(part) for part in matches)
            there = (keras.ops.convert_to_numpy(batch["index"]) >= 0)[:, None]
            labels = np.take_along_axis(keras.ops.convert_to_numpy(batch["labels"]), index, axis=1)
            at = np.nonzero(positive & there)
            foreground.append(-logits[(*at, labels[at])])
            negative = logits[~positive & ~ignored & there].ravel()
            negatives += len(negative)
            share = _MOST_BACKGROUND / (logits[0].size * len(dataset))
            background.append(negative if share >= 1 else negative[rng.random(len(negative)) < share])
    _, alpha = plain_loss(config) or (0.0, None)
    thinned = np.concatenate(background)
    return Samples(np.concatenate(foreground), thinned, len(dataset), negatives / max(1, len(thinned)), alpha)
