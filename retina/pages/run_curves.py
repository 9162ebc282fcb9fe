"""How a training went, as charts over its steps."""

from __future__ import annotations

import math
import re

from retina.drawing.charts import Chart, Series, lines
from retina.runs.record import Record

# The axis of the time spent waiting reaches this far at least: less is nothing to look at.
_WAITS = 0.1


def curves(record: Record) -> list[Chart]:
    """How training went; a figure that the run did not write down has no chart."""
    named = {"loss": "both", "loss_classification": "classification", "loss_box": "boxes"}
    steps = [float(step) for step, _ in record.evaluations]
    every = [
        Series(name, steps, [_defined(figures.get(name)) for _, figures in record.evaluations])
        for name in ("AP", "AP50", "AP75")
    ]
    highest = max([value for one in every for value in one.y if value > 0], default=1.0)
    shares = {"foreground_share": "positive anchors", "background_share": "background"}
    levels = sorted(name for name in record.names() if re.fullmatch(r"positives_p\d+", name))
    per_level = {name: name.removeprefix("positives_").upper() for name in levels}
    start = Series("prior π", [0.0, float(record.last_step)], [record.config.model.head.prior] * 2)
    drift = _series(record, {"background_probability": "mean over background"})
    waits = _series(record, {"data_wait": "waiting"})
    longest = max([_WAITS, *(value for one in waits for value in one.y)])
    plots = [
        _chart(record, "loss, mean since the line before", _series(record, named), log=True),
        _chart(record, "AP on validation data", every, y_range=(0.0, highest)),
        _chart(record, "learning rate", _series(record, {"learning_rate": "learning rate"})),
        _chart(record, "images per second", _series(record, {"images_per_second": "images per second"})),
        _chart(record, "share of the time spent waiting for data", waits, y_range=(0.0, longest)),
        _chart(record, "norm of the gradient", _series(record, {"gradient_norm": "norm"}), log=True),
        _chart(
            record,
            "positive anchors a step, by pyramid level" if per_level else "positive anchors a step",
            _series(record, per_level or {"positives": "positive anchors"}),
            log=bool(per_level),
        ),
        _chart(record, "share of the classification loss", _series(record, shares)),
        _chart(record, "probability given to background anchors", [*drift, start] if drift else [], log=True),
        _chart(record, "scale of the loss", _series(record, {"loss_scale": "scale"}), log=True),
        _chart(
            record,
            "memory, MB",
            _series(record, {"memory": "process", "memory_peak": "its peak", "device_memory_peak": "device, its peak"}),
        ),
    ]
    return [plot for plot in plots if plot.curves]


def _series(record: Record, names: dict[str, str]) -> list[Series]:
    return [Series(told, *record.series(name)) for name, told in names.items() if record.series(name)[0]]


def _chart(
    record: Record, title: str, series: list[Series], *, log: bool = False, y_range: tuple[float, float] | None = None
) -> Chart:
    """From step 0 to the last one, so that charts side by side can be compared; logarithmic only where the values span
    a factor of ten."""
    values = [value for one in series for value in one.y if value > 0]
    log = log and bool(values) and max(values) >= 10 * min(values)
    return lines(title, series, x_range=(0.0, float(record.last_step)), y_range=y_range, log_y=log)


def _defined(value: float | None) -> float:
    """NaN, which a chart leaves out, for a figure that nothing defines."""
    return math.nan if value is None or value < 0 else value
