"""Tables on narrow terminals: every number that is shown is whole, and every class can be read."""

import dataclasses
import io
import re

import numpy as np
import pytest
from rich.console import Console

from retina import config
from retina.evaluation.assessment import assess
from retina.evaluation.comparison import class_comparison_table, compare, comparison_table
from retina.evaluation.judging import Score
from retina.evaluation.matching import match
from retina.evaluation.tables import (
    Column,
    class_table,
    errors_table,
    metrics_table,
    optional,
    print_score,
    table,
    value,
    voc_class_table,
    voc_metrics_table,
)
from retina.evaluation.voc import evaluate_voc
from retina.palette import class_colours
from tests.evaluation.made import drawn, found, truth

BOX, FAR = (0, 0, 10, 10), (50, 50, 10, 10)
CLASSES = ("traffic light", "[dog]", "pneumonoultramicroscopic")


def lines(made, width) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(made)
    text = console.file.getvalue().splitlines()
    assert max(map(len, text)) <= width
    return text


def said(text) -> str:
    """All of it on one line."""
    return " ".join(" ".join(text).split())


def whole(text) -> bool:
    """Every fraction has its three decimals, and nothing is cut. Overlaps in headers are no figures."""
    fractions = re.findall(r"\d\.\d*", re.sub(r"@\d\.\d+", "", said(text)))
    return bool(fractions) and "…" not in said(text) and all(len(fraction) == 5 for fraction in fractions)


def class_names(text) -> str:
    """The column of the classes without spaces, the folded lines put together."""
    header = next(line for line in text if line.split()[:2] == ["class", "boxes"])
    rows = text[text.index(header) + 2 :]
    return "".join("".join(line[: header.index("boxes")].split()) for line in rows)


@pytest.fixture(scope="module")
def assessed():
    there, seen = drawn(2, images=12)
    there = dataclasses.replace(there, class_names=CLASSES)
    return there, seen, assess(there, seen, config.Evaluation(), replicates=20)


@pytest.mark.parametrize(
    ("width", "shown", "left_out"),
    [
        (60, [], ["95% interval", "best F1", "at score"]),
        (80, ["95% interval"], ["best F1", "at score"]),
        (140, ["95% interval", "best F1", "at score"], []),
    ],
)
def test_class_table(assessed, width, shown, left_out):
    _, _, result = assessed
    text = lines(class_table(result.metrics, result, width), width)
    header = next(line for line in text if line.split()[:1] == ["class"])
    assert all(name in header for name in ["boxes", " AP ", "AP50", "AP75", *shown])
    assert not any(name in header for name in left_out)
    assert (f"too narrow for {', '.join(left_out)}: see --json" in said(text)) == bool(left_out)
    assert whole(text)
    for k, (name, figures) in enumerate(result.metrics.per_class.items()):
        assert name.replace(" ", "") in class_names(text)
        expected = [f"{figures[key]:.3f}" for key in ("AP", "AP50", "AP75")]
        if "95% interval" in shown:
            expected += [f"{end:.3f}" for end in result.intervals.per_class[name]["AP"]]
        if "best F1" in shown:
            point = result.operating.per_class[k]
            expected += [f"{point.f1:.3f}", f"{point.threshold:.3f}"]
        assert set(expected) <= set(re.findall(r"\d\.\d{3}", " ".join(text))), name


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_other_tables(assessed, width):
    there, seen, result = assessed
    matches = match(there, seen), match(there, found([]))
    compared = compare(there, *matches, replicates=20)
    voc = [evaluate_voc(there, seen, protocol=one, iou=(0.5, 0.6, 0.7, 0.8, 0.9)) for one in ("voc07", "voc10")]
    for made in (
        comparison_table(compared, width),
        class_comparison_table(compared, width),
        voc_class_table(voc, width),
    ):
        assert whole(lines(made, width)), width
        if "class" in said(lines(made, width)):
            assert all(name.replace(" ", "") in class_names(lines(made, width)) for name in CLASSES)
    text = said(lines(class_comparison_table(compared, width), width))
    assert ("P(B > A)" in text.partition("too narrow")[0]) == (width > 60)
    text = said(lines(voc_class_table(voc, width), width))
    assert "11pt@0.5" in text and ("allpt@0.9: see --json" in text) == (width < 140)
    for made, expected in (
        (metrics_table(result.metrics, result.intervals), [f for f in result.metrics.metrics.values() if f >= 0]),
        (
            metrics_table(result.metrics, result.intervals),
            [e for ends in result.intervals.metrics.values() for e in ends],
        ),
        (errors_table(result), result.errors.delta_ap.values()),
        (voc_metrics_table(voc, "t"), [figures["mAP"] for one in voc for figures in one.figures.values()]),
    ):
        text = said(lines(made, width))
        assert {f"{number:.3f}" for number in expected} <= set(re.findall(r"\d\.\d{3}", text)) and "…" not in text


def test_dashes_are_explained():
    """a is found in one image; b is not found, so no score is best; c does not exist."""
    there = truth([(0, 0, BOX), (0, 1, FAR), (1, 1, FAR)], images=2, classes=3)
    result = assess(there, found([(0, 0, BOX, 0.9)]), config.Evaluation(), replicates=20)
    text = lines(class_table(result.metrics, result), 160)
    assert said(text).endswith(
        "–: no ground truth, left out of the means; – as interval: all boxes lie in one image; "
        "– at score: no detection of the class is right"
    )
    assert [line.split() for line in text if line.split()[:1] == ["b"]] == [
        ["b", "2", "0.000", "0.000–0.000", "0.000", "0.000", "0.000", "–"]
    ]
    assert said(lines(class_table(result.metrics), 160)).endswith("– – – –: no ground truth, left out of the means")
    both = truth([(0, 0, BOX), (1, 0, BOX)], images=2)
    result = assess(both, found([(0, 0, BOX, 0.9)]), config.Evaluation(), replicates=20)
    assert "–:" not in " ".join(lines(class_table(result.metrics, result), 160))


def test_a_table_without_rows_and_one_too_narrow_for_anything():
    assert "name" in " ".join(lines(table("t", [Column("name", "left"), Column("n")], []), 40))
    columns = [Column("name", "left"), Column("n"), Column("more", group="x"), Column("most", group="x")]
    text = said(lines(table("t", columns, [["a", "1", "2", "3"]], width=5), 40))
    assert "too narrow for more, most: see --json" in text and "2" not in text


def test_values():
    assert [value(number) for number in (-1.0, 0.0, 0.12345, 1.0)] == ["–", "0.000", "0.123", "1.000"]
    # A threshold may be negative: scores are what the user gives.
    assert [optional(number) for number in (None, -3.5, np.float64(0.25))] == ["–", "-3.500", "0.250"]


def test_classes_have_their_colours_where_the_terminal_shows_any(assessed):
    there, seen, result = assessed
    score = Score("coco", {}, result, (), there, seen)
    plain, coloured = (
        Console(file=io.StringIO(), width=140, force_terminal=on, color_system="truecolor" if on else None)
        for on in (False, True)
    )
    for console in (plain, coloured):
        print_score(console, score)
    assert "■" not in plain.file.getvalue()
    for name, (red, green, blue) in zip(CLASSES, class_colours(CLASSES), strict=True):
        assert f"\x1b[38;2;{red};{green};{blue}m■\x1b[0m {name}" in coloured.file.getvalue()
