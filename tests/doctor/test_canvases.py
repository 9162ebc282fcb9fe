"""Padding and repeats of the canvases, as the doctor tells them."""

import numpy as np
import pytest

from retina import config
from retina.data.batches import plan
from retina.doctor.canvases import canvas_findings
from tests.doctor.made import table

LANDSCAPE, PORTRAIT, PANORAMA = (240, 320), (320, 240), (200, 800)
RESIZE = config.Resize(short=320, long=640, multiple=128)


def layout(sizes, batch_size):
    (geometry,) = plan.fit_training(np.array(sizes), RESIZE, batch_size=batch_size)
    return geometry, np.bincount(geometry.canvas_of, minlength=len(geometry.canvases)).tolist()


def test_full_batches_leave_the_canvases_as_they_are():
    sizes = [LANDSCAPE] * 16 + [PORTRAIT] * 8
    for batch_size in (1, 8):
        geometry, counts = layout(sizes, batch_size)
        assert geometry.canvases.tolist() == [[384, 512], [512, 384]] and counts == [16, 8]


def test_a_rare_canvas_moves_to_the_nearest_that_contains_it():
    geometry, counts = layout([(320, 320)] + [LANDSCAPE] * 20 + [PORTRAIT] * 20, 8)
    assert geometry.canvases.tolist() == [[384, 512], [512, 384]] and counts == [21, 20]


def test_a_rare_canvas_that_none_contains_borrows_the_missing_images():
    """Only a batch pays for the padding; all others keep their canvas."""
    sizes = [LANDSCAPE] * 160 + [PORTRAIT] * 3 + [PANORAMA]
    geometry, counts = layout(sizes, 8)
    assert geometry.canvases.tolist() == [[384, 640], [384, 512], [512, 512]] and counts == [8, 148, 8]
    assert geometry.canvas_of[163] == 0 and (geometry.canvas_of[160:163] == 2).all()
    for epoch in range(3):
        for row in plan.training_plan(geometry, batch_size=8, seed=0, epoch=epoch).index:
            assert len(set(row.tolist())) == 8


@pytest.mark.parametrize("batch_size", [2, 5, 8, 64])
def test_no_batch_holds_an_image_twice_unless_all_are_fewer(batch_size):
    random = np.random.default_rng(batch_size)
    for _ in range(20):
        sizes = random.integers(20, 900, (random.integers(1, 60), 2))
        geometry, counts = layout(sizes, batch_size)
        assert min(counts) >= batch_size or len(counts) == 1
        assert (geometry.resized <= geometry.canvases[geometry.canvas_of]).all()
        whole = plan.training_plan(geometry, batch_size=batch_size, seed=0, epoch=0).index
        assert set(whole.ravel().tolist()) == set(range(len(sizes)))


def test_groups_are_the_same_at_every_scale():
    resize = RESIZE.model_copy(update={"train_short": (160, 320)})
    low, high = plan.fit_training(np.array([LANDSCAPE] * 20 + [PORTRAIT]), resize, batch_size=4)
    assert low.canvas_of.tolist() == high.canvas_of.tolist()
    for geometry in (low, high):
        assert (geometry.resized <= geometry.canvases[geometry.canvas_of]).all()


def test_the_shares():
    geometry, _ = layout([LANDSCAPE] * 7, 4)
    assert plan.padding(geometry) == pytest.approx(1 - 320 * 427 / (384 * 512))
    assert plan.repeats(geometry, batch_size=4) == pytest.approx(1 / 8)
    nothing = plan.fit(np.zeros((0, 2), int), RESIZE)
    assert plan.padding(nothing) == plan.repeats(nothing, batch_size=4) == 0.0


def test_the_finding_names_the_multiple_that_pads_least():
    overrides = ["data.resize={short: 320, long: 640, multiple: 128}", "run.batch_size=4"]
    data = table([LANDSCAPE] * 7, [[(0, 0, 9, 9)]] * 7)
    padding, repeats = canvas_findings(data, config.load(None, overrides), "train")
    assert (padding.grade, padding.code) == ("warning", "canvas-padding")
    assert padding.message.startswith("30.5% of the pixels")
    assert padding.message.endswith("by data.resize.multiple: 32 4.7%, 64 4.7%, 128 30.5%; 64 with 1 canvas 4.7%")
    assert padding.remedy == "data.resize.multiple=64 pads 4.7%"
    assert (repeats.grade, repeats.code) == ("note", "repeated-images") and repeats.message.startswith("12.5% of")
    quiet = list(
        canvas_findings(
            data, config.load(None, [*overrides[:1], "data.resize.multiple=64", "run.batch_size=7"]), "train"
        )
    )
    assert [finding.grade for finding in quiet] == ["note"]


def test_many_repeats_are_a_warning_where_fewer_canvases_would_repeat_fewer():
    sizes = [LANDSCAPE] * 7 + [LANDSCAPE[::-1]] * 9
    settings = config.load(None, ["data.resize={short: 320, long: 640, multiple: 64}", "run.batch_size=4"])
    _, repeats = canvas_findings(table(sizes, [[(0, 0, 9, 9)]] * len(sizes)), settings, "train")
    assert (repeats.grade, repeats.code) == ("warning", "repeated-images") and repeats.message.startswith("20.0% of")
    assert "data.resize.max_canvases" in repeats.remedy
