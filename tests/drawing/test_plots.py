"""The plots of an assessment: each is drawn, says what it shows, and copes with nothing."""

import dataclasses
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from retina import config
from retina.drawing import plots
from retina.drawing.plots import save
from retina.evaluation.assessment import assess
from tests.evaluation.made import drawn, found, truth

BOX, FAR = (0, 0, 10, 10), (50, 50, 10, 10)
NAMES = {"precision_recall.png", "confidence.png", "calibration.png", "errors.png", "confusion.png"}


def assessed(there, seen):
    return assess(there, seen, config.Evaluation(), replicates=0)


def painted(paint, *arguments):
    """The axes after painting."""
    axes = Figure().add_subplot()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paint(axes, *arguments)
    return axes


def legend(axes) -> list[str]:
    """What is read there; with mathematics parsed it would be something else."""
    assert not any(text.get_parse_math() for text in axes.get_legend().get_texts())
    return [text.get_text() for text in axes.get_legend().get_texts()]


def words(axes) -> str:
    return " ".join(text.get_text() for text in axes.texts)


@pytest.mark.parametrize(
    ("there", "seen"),
    [
        (truth([]), found([])),
        (truth([]), found([(0, 0, BOX, 0.5)])),
        (truth([(0, 0, BOX)]), found([])),
        (truth([(0, 0, BOX)]), found([(0, 0, BOX, 3.0)])),
        drawn(1),
    ],
    ids=["empty", "nothing there", "nothing found", "scores above 1", "drawn"],
)
def test_every_plot_is_written(there, seen, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.write_plots(tmp_path, assessed(there, seen))
    assert {path.name for path in tmp_path.iterdir()} == NAMES
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) > 300
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_nothing_to_draw_is_said():
    result = assessed(truth([]), found([]))
    assert "no ground truth" in words(painted(plots._precision_recall, result.matches, ("a",)))
    assert "no ground truth" in words(painted(plots._confidence, result))
    assert "no detections" in words(painted(plots._calibration, result))
    assert "no ground truth" in words(painted(plots._errors, result))
    no_probability = assessed(truth([(0, 0, BOX)]), found([(0, 0, BOX, 3.0)]))
    assert "no probabilities" in words(painted(plots._calibration, no_probability))


def test_the_curves_hold_the_figures():
    """Right at 0.9, wrong at 0.8, one of two boxes never found."""
    result = assessed(truth([(0, 0, BOX), (0, 0, FAR)]), found([(0, 0, BOX, 0.9), (0, 0, (80, 0, 10, 10), 0.8)]))
    axes = painted(plots._precision_recall, result.matches, ("a$b",))
    (curve,) = axes.lines
    assert curve.get_xdata().tolist() == [0.5, 0.5] and curve.get_ydata().tolist() == [1.0, 0.5]
    assert legend(axes) == ["a$b"]
    axes = painted(plots._confidence, result)
    by_name = {line.get_label(): line for line in axes.lines}
    assert by_name["F1"].get_ydata().tolist() == pytest.approx([2 / 3, 0.5])
    assert "best F1 0.667 at 0.900" in words(axes)
    bars = painted(plots._errors, result).patches
    assert [bar.get_width() for bar in bars] == pytest.approx([50 / 101, 0, 0, 0, 0, 0], abs=1e-12)
    assert words(painted(plots._confusion, result)) == "1 1"


def test_many_classes_are_grey_and_only_the_mean_is_named():
    rows = [(0, k, BOX) for k in range(8)]
    result = assessed(truth(rows, classes=8), found([(*row, 0.9) for row in rows]))
    axes = painted(plots._precision_recall, result.matches, tuple("abcdefgh"))
    assert axes.get_legend_handles_labels()[1] == ["mean, interpolated"]
    assert len(axes.lines) == 9


NAMES_OF_OTHERS = ("_a", r"b\$c$d$", "長い名前", "x" * 300, "", "two\nlines", r"$\frac{")


def test_class_names_are_shown_as_they_are(tmp_path):
    """Names that matplotlib hides, reads as mathematics, has no glyphs or no room for."""
    rows = [(0, k, BOX) for k in range(len(NAMES_OF_OTHERS))]
    there = dataclasses.replace(truth(rows, classes=len(rows)), class_names=NAMES_OF_OTHERS)
    result = assessed(there, found([(*row, 0.9) for row in rows]))
    axes = painted(plots._precision_recall, result.matches, NAMES_OF_OTHERS)
    expected = ["_a", r"b\$c$d$", "長い名前", "x" * 15 + "…" + "x" * 8, "", "two lines", r"$\frac{"]
    assert legend(axes) == [*expected, "mean, interpolated"]
    confusion = painted(plots._confusion, result)
    for ticks in (confusion.get_xticklabels(), confusion.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == [*expected, "background"]
        assert not any(tick.get_parse_math() for tick in ticks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.write_plots(tmp_path, result)
    assert {path.name for path in tmp_path.iterdir()} == NAMES


def test_other_warnings_are_not_hidden(tmp_path):
    with pytest.warns(RuntimeWarning, match="mine"):
        save(tmp_path / "a.png", (3.0, 3.0), lambda figure: warnings.warn("mine", RuntimeWarning, stacklevel=1))
