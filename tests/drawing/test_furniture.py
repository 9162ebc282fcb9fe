"""A page runs its own scripts only, escapes everything, and draws what it is given."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from retina.drawing import charts, furniture
from retina.drawing.charts import Series, lines, thinned

HOSTILE = "</script><script>alert('&')</script>\u2028"


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "some.html.jinja"
    path.write_text(
        '{% extends "base.html.jinja" %}{% from "macros.html.jinja" import chart %}'
        "{% block body %}<p>{{ name }}</p>{% for plot in plots %}{{ chart(plot) }}{% endfor %}{% endblock %}"
        '{% block data %}<script type="application/json" id="data">{{ name | embed }}</script>{% endblock %}'
    )
    return path


def test_user_text_stays_text(template: Path) -> None:
    page = furniture.render(template, title=HOSTILE, name=HOSTILE, plots=[lines(HOSTILE, [Series(HOSTILE, [1], [2])])])
    assert "<script>alert" not in page
    assert page.count("<script") == 2  # the data and page.js
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    assert json.loads(data.group(1)) == HOSTILE


def test_the_policy_names_each_script_of_the_page_and_nothing_else(template: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.js"
    own.write_text("const x = 1 < 2 && 'µ';\n")
    page = furniture.render(template, title="t", scripts=[own], name="", plots=[])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    told = html.unescape(policy.group(1))
    allowed = re.findall(r"sha256-([\w+/=]+)", told)
    written = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert [base64.b64decode(digest) for digest in allowed] == [hashlib.sha256(t.encode()).digest() for t in written]
    assert written[1] == own.read_text()
    assert "default-src 'none'" in told
    assert "unsafe-inline'; script" in told  # of styles only


def test_a_missing_value_is_an_error(template: Path) -> None:
    with pytest.raises(Exception, match="plots"):
        furniture.render(template, title="t", name="")


def test_nan_is_never_embedded() -> None:
    with pytest.raises(ValueError, match="JSON"):
        furniture.embed({"x": float("nan")})


@pytest.mark.parametrize(
    ("value", "told"), [(None, "–"), (float("nan"), "–"), (-1, "–"), (0.0, "0.000"), (0.5126, "0.513")]
)
def test_figures(value: float | None, told: str) -> None:
    assert furniture.figure(value) == told


def test_percent_and_number() -> None:
    assert [furniture.percent(None), furniture.percent(0.1234), furniture.number(12345)] == ["–", "12.3 %", "12,345"]


@pytest.mark.parametrize(
    "series", [[], [Series("empty", [], [])], [Series("nan", [1.0], [float("nan")])]], ids=["none", "empty", "nan"]
)
def test_nothing_to_draw(series: list[Series], template: Path) -> None:
    plot = lines("title", series)
    assert plot.curves == []
    assert "nothing to draw" in furniture.render(template, title="t", name="", plots=[plot])


def test_a_line_lies_where_its_values_say() -> None:
    plot = lines("loss", [Series("a", [0, 50, 100], [0, 5, 10])])
    # Ends in the corners of the plotting area, the middle in its middle; y grows downwards in an SVG.
    middle = ((plot.left + plot.right) / 2, (plot.top + plot.bottom) / 2)
    assert plot.curves[0].dots == [(plot.left, plot.bottom), middle, (plot.right, plot.top)]
    assert [told for _, told in plot.x_ticks] == ["0", "20", "40", "60", "80", "100"]
    assert [told for _, told in plot.y_ticks] == ["0", "2", "4", "6", "8", "10"]


def test_a_logarithmic_axis_leaves_out_what_it_cannot_show() -> None:
    plot = lines("rate", [Series("a", [0, 1, 2, 3], [0.0, 1e-4, 1e-3, 1e-2])], log_y=True)
    assert [x for x, _ in plot.curves[0].dots] == [plot.left, (plot.left + plot.right) / 2, plot.right]
    assert plot.curves[0].dots[1][1] == (plot.top + plot.bottom) / 2
    assert [told for _, told in plot.y_ticks] == ["0.0001", "0.001", "0.01"]


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.06, 2.0, ["0.1", "0.2", "0.5", "1", "2"]),
        (1e-6, 1.0, ["1e-06", "0.0001", "0.01", "1"]),
        (2.1, 4.9, ["3", "4"]),
        (2.13, 2.87, ["2.2", "2.4", "2.6", "2.8"]),
    ],
)
def test_ticks_of_a_logarithmic_axis(low: float, high: float, told: list[str]) -> None:
    plot = lines("t", [Series("a", [1, 2], [low, high])], log_y=True)
    assert [text for _, text in plot.y_ticks] == told


def test_one_point_and_equal_values_have_a_place() -> None:
    plot = lines("one", [Series("a", [7], [3])])
    assert plot.curves[0].dots == [((plot.left + plot.right) / 2, (plot.top + plot.bottom) / 2)]
    # A share of 0.01 all along has no axis below zero, and zero itself lies at the bottom.
    assert lines("t", [Series("a", [1, 2], [0.01, 0.01])]).y_ticks[0][1] == "0"
    assert lines("t", [Series("a", [1, 2], [0.0, 0.0])]).curves[0].dots[0][1] == plot.bottom


def test_a_class_s_own_colour_has_dark_edges(template: Path) -> None:
    """Yellow on white, or navy on black, could not be seen."""
    plot = lines("t", [Series("a", [0, 1], [0, 1], colour="#f0e442", cased=True), Series("b", [0, 1], [1, 0])])
    page = furniture.render(template, title="t", name="", plots=[plot])
    assert page.count('class="casing"') == 2  # the curve and its place in the legend
    assert page.index('class="casing"') < page.index("stroke: #f0e442")


@pytest.mark.parametrize(("values", "first"), [([1.0, 10.0], "0"), ([0.8, 0.9], "0.8"), ([-10.0, -1.0], "−10")])
def test_the_axis_starts_at_zero_unless_that_wastes_its_height(values: list[float], first: str) -> None:
    assert lines("t", [Series("a", [1, 2], values)]).y_ticks[0][1] == first


def test_many_points_are_averaged_and_their_extremes_kept() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    few = thinned(Series("a", np.arange(1000.0), values), 10)
    assert few.x == [49.5 + 100 * i for i in range(10)]
    np.testing.assert_allclose(few.y, values.reshape(10, 100).mean(axis=1))
    np.testing.assert_array_equal(few.low, values.reshape(10, 100).min(axis=1))
    np.testing.assert_array_equal(few.high, values.reshape(10, 100).max(axis=1))
    assert len(lines("t", [Series("a", np.arange(1000.0), values)]).data["curves"][0]["x"]) == charts.MOST_POINTS


def test_values_beyond_a_given_range_stay_at_its_edge() -> None:
    plot = lines("t", [Series("a", [0, 1], [0.5, 7.0])], y_range=(0, 1))
    assert plot.curves[0].dots[1] == (plot.right, plot.top)


# ------------------------------------------------------------------------------------------------------ legibility


def themes() -> dict[str, dict[str, str]]:
    """The colours of the style sheet, light and dark, by their names."""
    css = (Path(furniture.__file__).parent / "page.css").read_text(encoding="utf-8")
    before, _, after = css.partition("@media screen and (prefers-color-scheme: dark)")
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in (before, after.split("\n}")[0]))
    assert light and set(dark) == set(light)
    return {"light": light, "dark": dark}


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, contrast ratio."""
    low, high = sorted(luminance(colour) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def mixed(colour: str, ground: str, share: float) -> str:
    pairs = [(int(colour[at : at + 2], 16), int(ground[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(share * one + (1 - share) * other):02x}" for one, other in pairs)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_curves_can_be_seen(theme: str) -> None:
    """WCAG AA: 4.5 for text, 3 for what a picture says."""
    colours = themes()[theme]
    for name in ("ink", "soft", "error", "warning", "note", "good", "accent"):
        for ground in ("paper", "raised"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    for name in ("bar", "rest", "band", *(f"series-{number}" for number in range(7))):
        assert contrast(colours[name], colours["paper"]) >= 3, name
    # The darkest cells of the confusion matrix and of the heatmap.
    for name, ground, share in (("bar", "paper", 0.45), ("good", "paper", 0.45), ("bar", "raised", 0.55)):
        assert contrast(colours["ink"], mixed(colours[name], colours[ground], share)) >= 4.5, name
