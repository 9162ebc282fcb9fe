"""Where the focal loss of a trained detector lies: the paper's figure 4 (arXiv:1708.02002, section 5.1).

The detector looks at real images; each of its anchors is foreground, background or ignored, as in training. A sample is
the probability of one anchor for one class: a foreground anchor's for its own class, a background anchor's for any
class. (The paper samples "windows" and does not say which class; the other classes of a foreground anchor belong to
neither panel here.) For each γ the losses of either kind are divided by their sum, sorted, and added up. α multiplies
all losses of a kind alike and drops out.
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
from retina.drawing.figures import save
from retina.errors import RetinaError
from retina.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

SHARES = (0.01, 0.1, 0.2)
# The paper's number of background samples; more are thinned out at random.
_MOST_BACKGROUND = 10_000_000
_POINTS = 1000


@dataclass(frozen=True, eq=False)
class Samples:
    """By how much logits err: `foreground` [n] is -x, `background` [m] is x, float32; from `images` images."""

    foreground: np.ndarray
    background: np.ndarray
    images: int


@dataclass(frozen=True, eq=False)
class Distribution:
    """Of one γ and one kind of anchor.

    Attributes:
        curve: [points] share of the loss carried by the easiest i / (points - 1) of the samples.
        shares: of the loss, carried by the hardest 1 %, 10 % and 20 % of the samples.
    """

    curve: np.ndarray
    shares: dict[float, float]


def loss_distribution(
    run: Path, gammas: Sequence[float], *, images: int | None = None, checkpoint: str = "best", seed: int = 0
) -> tuple[Samples, dict[float, dict[str, Distribution]]]:
    """Samples of a run on its validation data, and by γ the distributions of `foreground` and `background`.

    Args:
        images: how many, drawn at random with `seed`; None takes all.

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
    """What a run's detector says of the anchors on its validation images."""
    import keras

    from retina.data.batches.evaluation import evaluation_batches, translated
    from retina.data.load import load_split
    from retina.ops.assignment import match
    from retina.runs.loading import load

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
            found = match(
                keras.ops.convert_to_tensor(anchors), batch["boxes"], batch["valid"], batch["crowd"], config.assignment
            )
            index, positive, ignored = (keras.ops.convert_to_numpy(part) for part in found)
            there = (keras.ops.convert_to_numpy(batch["index"]) >= 0)[:, None]
            own = np.take_along_axis(keras.ops.convert_to_numpy(batch["labels"]), index, axis=1)
            at = np.nonzero(positive & there)
            foreground.append(-logits[(*at, own[at])])
            negative = logits[~positive & ~ignored & there].ravel()
            share = _MOST_BACKGROUND / (logits[0].size * len(dataset))
            background.append(negative if share >= 1 else negative[rng.random(len(negative)) < share])
    return Samples(np.concatenate(foreground), np.concatenate(background), len(dataset))


def distribution(errors: np.ndarray, gamma: float) -> Distribution:
    """How the focal loss σ(z)^γ · softplus(z) spreads over samples [n] that err by logits z; n at least 1."""
    z = np.sort(errors.astype(np.float64))
    # softplus(z) and log σ(z), neither of which overflows.
    losses = np.logaddexp(0.0, z) * np.exp(-gamma * np.logaddexp(0.0, -z))
    total = losses.sum()
    # All of them underflowed: nothing is left to tell apart.
    normal = losses / total if total > 0 else np.full(len(z), 1 / len(z))
    cumulative = np.concatenate([[0.0], np.cumsum(normal)])
    places = np.linspace(0.0, 1.0, _POINTS + 1)
    curve = np.interp(places, np.linspace(0.0, 1.0, len(cumulative)), cumulative)
    shares = {share: float(normal[len(z) - math.ceil(share * len(z) - 1e-9) :].sum()) for share in SHARES}
    return Distribution(curve, shares)


def write(out: Path, samples: Samples, found: dict[float, dict[str, Distribution]]) -> None:
    """Writes `loss_distribution.png` and `loss_distribution.json`.

    Raises:
        RetinaError: the folder can't be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        save(out / "loss_distribution.png", (9.6, 4.2), lambda figure: _paint(figure, found))
        write_text(out / "loss_distribution.json", json.dumps(to_json(samples, found), indent=2) + "\n")
    except OSError as error:
        raise RetinaError(f"{out}: cannot write the figure: {error.strerror or error}; choose another --out") from None


def to_json(samples: Samples, found: dict[float, dict[str, Distribution]]) -> dict[str, Any]:
    """Counts, and by γ and kind the share of the loss of the hardest 0.01, 0.1 and 0.2 of the samples."""
    return {
        "images": samples.images,
        "foreground": len(samples.foreground),
        "background": len(samples.background),
        "hardest": [
            {
                "gamma": gamma,
                **{kind: {f"{share:g}": value for share, value in part.shares.items()} for kind, part in kinds.items()},
            }
            for gamma, kinds in found.items()
        ],
    }


def table(samples: Samples, found: dict[float, dict[str, Distribution]]) -> Table:
    """One row a γ."""
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
    for gamma, kinds in found.items():
        values = [kinds[kind].shares[share] for kind in ("foreground", "background") for share in SHARES]
        out.add_row(f"{gamma:g}", *(f"{value:.1%}" for value in values))
    return out


def _paint(figure: Figure, found: dict[float, dict[str, Distribution]]) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind in zip(panels, ("foreground", "background"), strict=True):
        for (gamma, kinds), colour in zip(found.items(), colours(len(found)), strict=True):
            curve = kinds[kind].curve
            axes.plot(np.linspace(0, 1, len(curve)), curve, color=colour, linewidth=1.6, label=f"γ = {gamma:g}")
        axes.set(xlabel=f"fraction of {kind} examples, easiest first", xlim=(0, 1), ylim=(0, 1))
        axes.legend(frameon=False, loc="upper left")
    panels[0].set_ylabel("cumulative normalised loss")
