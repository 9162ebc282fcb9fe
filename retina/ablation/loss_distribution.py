"""The distribution of a trained detector's focal loss: the paper's figure 4 (arXiv:1708.02002, section 5.1).

The detector runs on real images; each of its anchors is foreground, background or ignored, as in training. A sample is
the probability of one anchor for one class: a foreground anchor's for its class, a background anchor's for any
class. (The paper samples "windows" and does not say which class; the other classes of a foreground anchor belong to
neither panel.) For each γ the losses of either kind are divided by their sum, sorted, and added up. α is the same
factor for all losses of a kind and drops out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retina.ablation.plots import colours
from retina.data.batches.evaluation import evaluation_batches, translated
from retina.data.load import load_split
from retina.drawing.plots import save
from retina.errors import RetinaError
from retina.files import write_text
from retina.ops.assignment import match
from retina.runs.loading import load

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

SHARES = (0.01, 0.1, 0.2)
# The paper's number of background samples; more are thinned out at random.
_MOST_BACKGROUND = 10_000_000
_POINTS = 1000


@dataclass(frozen=True, eq=False)
class Samples:
    """Errors of the logits x: `foreground` [n] is -x, `background` [m] is x, float32; from `images` images."""

    foreground: np.ndarray
    background: np.ndarray
    images: int


@dataclass(frozen=True, eq=False)
class Distribution:
    """Distribution of the loss for a γ and a kind of anchor.

    Attributes:
        curve: [points] share of the loss on the easiest i / (points - 1) of the samples.
        shares: of the loss, on the hardest 1 %, 10 % and 20 % of the samples.
    """

    curve: np.ndarray
    shares: dict[float, float]


def loss_distribution(
    run: Path, gammas: Sequence[float], *, images: int | None = None, checkpoint: str = "best", seed: int = 0
) -> tuple[Samples, dict[float, dict[str, Distribution]]]:
    """Return samples of a run on its validation data, and by γ the distributions of `foreground` and `background`.

    Args:
        images: number of images, drawn at random with `seed`; None takes all.

    Raises:
        RetinaError: no run, γ below 0, fewer than one image, or no foreground anchor in them.
    """
    for gamma in gammas:
        if not (math.isfinite(gamma) and gamma >= 0):
            raise RetinaError(f"--gamma: expected numbers of at least 0, got {gamma:g}")
    if images is not None and images < 1:
        raise RetinaError(f"--images: expected at least 1, got {images}")
    samples = sample(run, images=images, checkpoint=checkpoint, seed=seed)
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
    foreground, background = [], []
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
            share = _MOST_BACKGROUND / (logits[0].size * len(dataset))
            background.append(negative if share >= 1 else negative[rng.random(len(negative)) < share])
    return Samples(np.concatenate(foreground), np.concatenate(background), len(dataset))


def distribution(errors: np.ndarray, gamma: float) -> Distribution:
    """Return the distribution of the focal loss σ(z)^γ · softplus(z) over errors z [n] of the logits; n at least 1."""
    z = np.sort(errors.astype(np.float64))
    # softplus(z) and log σ(z), neither of which overflows.
    losses = np.logaddexp(0.0, z) * np.exp(-gamma * np.logaddexp(0.0, -z))
    total = losses.sum()
    # All of them underflowed: none is larger than another.
    normal = losses / total if total > 0 else np.full(len(z), 1 / len(z))
    cumulative = np.concatenate([[0.0], np.cumsum(normal)])
    places = np.linspace(0.0, 1.0, _POINTS + 1)
    curve = np.interp(places, np.linspace(0.0, 1.0, len(cumulative)), cumulative)
    shares = {share: float(normal[len(z) - math.ceil(share * len(z) - 1e-9) :].sum()) for share in SHARES}
    return Distribution(curve, shares)


def write(out: Path, samples: Samples, distributions: dict[float, dict[str, Distribution]]) -> None:
    """Write `loss_distribution.png` and `loss_distribution.json`.

    Raises:
        RetinaError: the folder can't be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        save(out / "loss_distribution.png", (9.6, 4.2), lambda figure: _paint(figure, distributions))
        write_text(out / "loss_distribution.json", json.dumps(to_json(samples, distributions), indent=2) + "\n")
    except OSError as error:
        raise RetinaError(f"{out}: cannot write the figure: {error.strerror or error}; choose another --out") from None


def to_json(samples: Samples, distributions: dict[float, dict[str, Distribution]]) -> dict[str, Any]:
    """Return counts, and by γ and kind the share of the loss on the hardest 0.01, 0.1 and 0.2 of the samples."""
    return {
        "images": samples.images,
        "foreground": len(samples.foreground),
        "background": len(samples.background),
        "hardest": [
            {
                "gamma": gamma,
                **{kind: {f"{share:g}": value for share, value in part.shares.items()} for kind, part in kinds.items()},
            }
            for gamma, kinds in distributions.items()
        ],
    }


def table(samples: Samples, distributions: dict[float, dict[str, Distribution]]) -> Table:
    """Return a table with a row for each γ."""
    from rich.table import Table

    out = Table(
        title=(
            f"share of the loss carried by the hardest samples: {len(samples.foreground):,} of foreground, "
            f"{len(samples.background):,} of background, {samples.images:,} images"
        ),
        title_justify="left",
    )
    out.add_column("γ", justify="right")
    for kind in ("foreground", "background"):
        for share in SHARES:
            out.add_column(f"{kind}\nhardest {share:.0%}", justify="right")
    for gamma, kinds in distributions.items():
        values = [kinds[kind].shares[share] for kind in ("foreground", "background") for share in SHARES]
        out.add_row(f"{gamma:g}", *(f"{value:.1%}" for value in values))
    return out


def _paint(figure: Figure, distributions: dict[float, dict[str, Distribution]]) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind in zip(panels, ("foreground", "background"), strict=True):
        for (gamma, kinds), colour in zip(distributions.items(), colours(len(distributions)), strict=True):
            curve = kinds[kind].curve
            axes.plot(np.linspace(0, 1, len(curve)), curve, color=colour, linewidth=1.6, label=f"γ = {gamma:g}")
        axes.set(xlabel=f"fraction of {kind} examples, easiest first", xlim=(0, 1), ylim=(0, 1))
        axes.legend(frameon=False, loc="upper left")
    panels[0].set_ylabel("cumulative normalised loss")
