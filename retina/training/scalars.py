"""What a step reports beside its losses."""

from __future__ import annotations

from typing import Any

from keras import ops

from retina.models.objective import Sums

Tensor = Any


def observations(sums: Sums, levels: tuple[int, ...]) -> dict[str, Tensor]:
    """Scalars by name, from sums over the global batch.

    - `positives`: positive anchors; `positives_p3` … of each pyramid level.
    - `foreground_share`, `background_share`: the parts of the classification loss that positive and other anchors have
      (arXiv:1708.02002, section 5.1, looks at these two); both 0 where that loss is 0.
    - `background_probability`: mean σ(logit) over classes and background anchors, a sample of one in 17. It starts at
      the prior π and should fall from there.
    """
    both = sums.foreground + sums.background
    return {
        "positives": sums.positives,
        **{f"positives_p{level}": sums.positives_by_level[place] for place, level in enumerate(levels)},
        "foreground_share": ops.divide_no_nan(sums.foreground, both),
        "background_share": ops.divide_no_nan(sums.background, both),
        "background_probability": ops.divide_no_nan(sums.probability, sums.sampled),
    }
