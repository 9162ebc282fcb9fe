"""The distribution of a trained detector's focal loss: the paper's figure 4 (arXiv:1708.02002, section 5.1).

The detector runs on real images; each of its anchors is foreground, background or ignored, as in training. A sample is
the probability of one anchor for one class: a foreground anchor's for its class, a background anchor's for any
class. (The paper samples "windows" and does not say which class; the other classes of a foreground anchor belong to
neither panel.) For each γ the losses of either kind are divided by their sum, sorted, and added up. α is the same
factor for all losses of a kind and drops out. It counts in the share of both kinds' loss that easy background carries,
which is what focal loss is made to lower.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retina.ablation.plots import colours
from retina.drawing.plots import save
from retina.errors import RetinaError
from retina.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

SHARES = (0.01, 0.1, 0.2)
# Background of a lower probability is easy.
EASY = 0.1
_POINTS = 1000


@dataclass(frozen=True, eq=False)
class Samples:
    """Errors of the logits x: `foreground` [n] is -x, `background` [m] is x, float32; from `images` images.

    `every` is how many samples of background there were for each that is here, and `alpha` that of the run's loss, None
    where it balances nothing.
    """

    foreground: np.ndarray
    background: np.ndarray
    images: int
    every: float = 1.0
    alpha: float | None = None


@dataclass(frozen=True, eq=False)
class Distribution:
    """Distribution of the loss for a γ and a kind of anchor.

    Attributes:
        curve: [points] share of the loss on the easiest i / (points - 1) of the samples.
        shares: of the loss, on the hardest 1 %, 10 % and 20 % of the samples.
    """

    curve: np.ndarray
    shares: dict[float, float]


def distribution(errors: np.ndarray, gamma: float) -> Distribution:
    """Return the distribution of the focal loss σ(z)^γ · softplus(z) over errors z [n] of the logits; n at least 1."""
    z = np.sort(errors.astype(np.float64))
    losses = _losses(z, gamma)
    total = losses.sum()
    # All of them underflowed: none is larger than another.
    normal = losses / total if total > 0 else np.full(len(z), 1 / len(z))
    cumulative = np.concatenate([[0.0], np.cumsum(normal)])
    places = np.linspace(0.0, 1.0, _POINTS + 1)
    curve = np.interp(places, np.linspace(0.0, 1.0, len(cumulative)), cumulative)
    shares = {share: float(normal[len(z) - math.ceil(share * len(z) - 1e-9) :].sum()) for share in SHARES}
    return Distribution(curve, shares)


def easy_background_share(samples: Samples, gamma: float) -> float:
    """Return the share of the loss of all samples, α included, that background of a probability below 0.1 carries."""
    positive, negative = (1.0, 1.0) if samples.alpha is None else (samples.alpha, 1 - samples.alpha)
    background = _losses(samples.background.astype(np.float64), gamma) * negative * samples.every
    easy = background[samples.background < math.log(EASY / (1 - EASY))].sum()
    total = background.sum() + positive * _losses(samples.foreground.astype(np.float64), gamma).sum()
    return float(easy / total) if total > 0 else 0.0


def _losses(z: np.ndarray, gamma: float) -> np.ndarray:
    """Focal losses of errors z, from softplus(z) and log σ(z), neither of which overflows."""
    return np.logaddexp(0.0, z) * np.exp(-gamma * np.logaddexp(0.0, -z))


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
    """Return counts; by γ and kind the share of the loss on the hardest 0.01, 0.1 and 0.2 of the samples; and by γ the
    share of both kinds' loss on easy background, with the run's α."""
    return {
        "images": samples.images,
        "foreground": len(samples.foreground),
        "background": len(samples.background),
        "alpha": samples.alpha,
        "easy_background": {f"{gamma:g}": easy_background_share(samples, gamma) for gamma in distributions},
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
    out.add_column(f"of both:\nbackground\nbelow {EASY:g}", justify="right")
    for gamma, kinds in distributions.items():
        values = [kinds[kind].shares[share] for kind in ("foreground", "background") for share in SHARES]
        out.add_row(f"{gamma:g}", *(f"{value:.1%}" for value in (*values, easy_background_share(samples, gamma))))
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
