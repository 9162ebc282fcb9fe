"""Findings on canvases: the padding that training computes on, and the images that it shows again to fill batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from retina import config
from retina.data.batches import plan
from retina.data.dataset import DetectionDataset
from retina.doctor.findings import Finding
from retina.output import count

# A layout is worth another setting from this share of padding on, if that saves this much of the pixels.
_MUCH, _WORTH = 0.15, 0.05
_MANY_REPEATS = 0.05
_MULTIPLES = (32, 64, 128)
_MORE_CANVASES = 6


def canvas_findings(dataset: DetectionDataset, settings: config.Config, split: str) -> Iterator[Finding]:
    """Yield findings on the canvases of a training split; only its sizes are looked at.

    The multiple that is proposed is the largest of those whose padding is within a point of the least. What each
    multiple pads is said in any case, and what it pads with six canvases, each of which takes a compilation.
    """
    most, batch_size = settings.data.resize.max_canvases, settings.run.batch_size
    padding, repeats, canvases = _shares(dataset, settings.data, batch_size)
    others = {multiple: _shares(dataset, _at(settings.data, multiple), batch_size)[0] for multiple in _MULTIPLES}
    least = min(others.values())
    best = max(multiple for multiple, share in others.items() if share <= least + 0.01)
    more = _shares(dataset, _at(settings.data, best, max(most, _MORE_CANVASES)), batch_size)
    listed = ", ".join(f"{multiple} {share:.1%}" for multiple, share in others.items())
    now = f"{padding:.1%} of the pixels of its {count(canvases, 'canvas')} are padding"
    saves = padding >= _MUCH and padding - others[best] >= _WORTH
    yield Finding(
        "warning" if saves else "note",
        "canvas-padding",
        f"{now}; by data.resize.multiple: {listed}; {best} with {count(more[2], 'canvas')} {more[0]:.1%}",
        f"data.resize.multiple={best} pads {others[best]:.1%}" if saves else "",
        split,
    )
    if repeats > 0:
        # A single canvas repeats fewer images than a batch holds: no setting but a smaller batch would change that.
        many = repeats >= _MANY_REPEATS and canvases > 1
        yield Finding(
            "warning" if many else "note",
            "repeated-images",
            f"{repeats:.1%} of the images of an epoch are shown again to fill batches of {batch_size}",
            "fewer canvases (data.resize.max_canvases) or a smaller run.batch_size repeat fewer" if many else "",
            split,
        )


def _at(data: config.Data, multiple: int, canvases: int | None = None) -> config.Data:
    update = {"multiple": multiple, "max_canvases": canvases or data.resize.max_canvases}
    return data.model_copy(update={"resize": data.resize.model_copy(update=update)})


def _shares(dataset: DetectionDataset, data: config.Data, batch_size: int) -> tuple[float, float, int]:
    """The shares of padding and of repeats, and the number of canvases, in the mean of the sizes of training."""
    geometries = plan.training_geometries(dataset, data, batch_size=batch_size)
    padding = float(np.mean([plan.padding(geometry) for geometry in geometries]))
    canvases = sum(len(geometry.canvases) for geometry in geometries)
    return padding, plan.repeats(geometries[0], batch_size=batch_size), canvases
