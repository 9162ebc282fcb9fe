import keras
import numpy as np
import pytest

from retina.config import Anchors
from retina.errors import RetinaError
from retina.ops.anchors import (
    base_anchors,
    count_per_cell,
    level_anchors,
    level_shapes,
    pyramid_anchors,
)
from tests import reference

THIRDS = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))


def torchvision_cell_anchors(sizes, ratios):
    """The formula of torchvision's AnchorGenerator: float32, rounded corners around the origin."""
    sizes, roots = np.asarray(sizes, np.float32), np.sqrt(np.asarray(ratios, np.float32))
    widths, heights = ((1 / roots)[:, None] * sizes).ravel(), (roots[:, None] * sizes).ravel()
    return np.round(np.stack([-widths, -heights, widths, heights], axis=1) / 2)


def torchvision_grid(cells, canvas, stride):
    """Every cell's anchors, cells row by row, centred on the cells' top-left corners."""
    out = []
    for y in range(0, canvas[0], stride):
        for x in range(0, canvas[1], stride):
            out.extend(cells + np.array([x, y, x, y]))
    return np.array(out)


def test_number_of_anchors_in_a_cell():
    assert count_per_cell(Anchors()) == 9
    assert count_per_cell(Anchors(scales=(1.0,), ratios=(1.0,))) == 1


def test_sides_and_ratios():
    anchors = base_anchors(Anchors(), 3)
    assert anchors.dtype == np.float64 and anchors.shape == (9, 4)
    width, height = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    # Every ratio keeps the area, 32² · scale²; the ratio is height over width and varies slowest.
    np.testing.assert_allclose(width * height, np.tile(np.square(32 * np.array(THIRDS)), 3), rtol=1e-12)
    np.testing.assert_allclose(height / width, np.repeat([0.5, 1, 2], 3), rtol=1e-12)
    np.testing.assert_allclose(anchors[:, :2], -anchors[:, 2:], rtol=1e-12)


def test_rounded_base_anchors_are_torchvisions():
    # AnchorGenerator(((32,),), ((0.5, 1.0, 2.0),)) has these cell anchors: 32·√2/2 = 22.6, 32/√2/2 = 11.3.
    one_scale = base_anchors(Anchors(scales=(1.0,), rounding=True), 3)
    np.testing.assert_array_equal(one_scale, [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]])
    for level in (3, 4, 5, 6, 7):
        sides = [4 * 2**level * scale for scale in THIRDS]
        ours = base_anchors(Anchors(rounding=True), level)
        np.testing.assert_array_equal(ours, torchvision_cell_anchors(sides, (0.5, 1, 2)))


def test_torchvisions_retinanet_needs_its_truncated_sizes():
    # Its model truncates the sides to whole pixels: (32, 40, 50) on P3, (64, 80, 101) on P4. Exact scales differ.
    truncated = torchvision_cell_anchors((32, 40, 50), (0.5, 1, 2))
    assert truncated[1].tolist() == [-28, -14, 28, 14]
    assert base_anchors(Anchors(rounding=True), 3)[1].tolist() == [-29, -14, 29, 14]
    np.testing.assert_array_equal(base_anchors(Anchors(scales=(1, 40 / 32, 50 / 32), rounding=True), 3), truncated)


def test_rounded_anchors_at_offset_0_are_torchvisions_grid():
    config = Anchors(rounding=True, offset=0.0)
    for level, anchors in zip((3, 5), level_anchors(config, (64, 96), (3, 5)), strict=True):
        cells = torchvision_cell_anchors([4 * 2**level * scale for scale in THIRDS], (0.5, 1, 2))
        np.testing.assert_array_equal(anchors, torchvision_grid(cells, (64, 96), 2**level))


@pytest.mark.parametrize("canvas", [(64, 64), (96, 160), (75, 131)])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_pyramid_equals_reference(canvas, offset):
    config = Anchors(size=3.0, scales=(1.0, 1.5), ratios=(0.4, 1.0, 3.0), offset=offset)
    anchors = pyramid_anchors(config, canvas, (3, 4, 5, 6, 7))
    assert anchors.dtype == np.float32
    expected = reference.anchors(canvas, (3, 4, 5, 6, 7), 3.0, (1.0, 1.5), (0.4, 1.0, 3.0), offset)
    np.testing.assert_array_equal(anchors, expected.astype(np.float32))


def test_first_anchor_is_centred_on_the_first_cell():
    config = Anchors(scales=(1.0,), ratios=(1.0,))
    anchors = level_anchors(config, (64, 64), (3, 4))
    assert anchors[0][0].tolist() == [-12, -12, 20, 20]  # centre (4, 4), side 32
    assert anchors[0][1].tolist() == [-4, -12, 28, 20]  # the next column, not the next row
    assert anchors[1][-1].tolist() == [24, 24, 88, 88]  # centre (56, 56), side 64


def test_level_shapes_round_up():
    assert level_shapes((800, 1333), (3, 4, 5, 6, 7)) == [(100, 167), (50, 84), (25, 42), (13, 21), (7, 11)]
    assert level_shapes((1, 1), (3, 7)) == [(1, 1), (1, 1)]
    assert level_shapes((0, 64), (3,)) == [(0, 8)]


def test_empty_canvas_has_no_anchors():
    assert pyramid_anchors(Anchors(), (0, 64), (3, 4)).shape == (0, 4)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="only TensorFlow's graphs have unknown shapes")
@pytest.mark.parametrize(
    "anchors",
    [
        Anchors(),
        Anchors(offset=0.0, rounding=True),
        Anchors(size=2.7, ratios=(0.7, 1.3)),
        Anchors(sizes=((32, 40, 50),) * 5, spacing="canvas", offset=0.25),
    ],
)
def test_anchors_in_a_graph_are_the_same_bit_for_bit(anchors):
    for canvas in ((32, 32), (96, 640), (100, 70), (1344, 800)):
        inside = level_anchors(anchors, tuple(map(keras.ops.convert_to_tensor, canvas)), (3, 4, 5, 6, 7))
        for ours, expected in zip(inside, level_anchors(anchors, canvas, (3, 4, 5, 6, 7)), strict=True):
            ours = keras.ops.convert_to_numpy(ours)
            assert ours.dtype == expected.dtype == np.float32
            np.testing.assert_array_equal(ours, expected)


# --------------------------------------------------------------------------------------- sizes and spacing of one's own

TORCHVISION = Anchors(
    sizes=((32, 40, 50), (64, 80, 101), (128, 161, 203), (256, 322, 406), (512, 645, 812)),
    offset=0.0,
    rounding=True,
    spacing="canvas",
)


def test_sizes_replace_size_and_scales():
    assert count_per_cell(TORCHVISION) == 9 and count_per_cell(Anchors(sizes=((8, 9),), ratios=(1.0,))) == 2
    squares = base_anchors(TORCHVISION.model_copy(update={"ratios": (1.0,)}), 7)
    # Half of 645 is 322.5, which rounds to the even whole number.
    assert squares.tolist() == [[-256, -256, 256, 256], [-322, -322, 322, 322], [-406, -406, 406, 406]]
    exact = Anchors(sizes=((32, 40, 50),), ratios=(1.0,))
    assert base_anchors(exact, 3)[:, 2].tolist() == [16, 20, 25]


@pytest.mark.parametrize("level", [2, 4])
def test_a_level_without_sizes(level):
    with pytest.raises(RetinaError, match=f"anchors.sizes: expected a list for P{level}, there are 1 from P3 on"):
        base_anchors(Anchors(sizes=((32,),)), level)


def test_spacing_by_the_canvas():
    """A side of 800 has 13 cells on P6 and 7 on P7: 61 and 114 pixels apart, not 64 and 128; 100, 50, 25 fit."""
    levels = level_anchors(TORCHVISION.model_copy(update={"ratios": (1.0,)}), (800, 64), (3, 4, 5, 6, 7))
    steps = [8, 16, 32, 61, 114]
    for anchors, cells, step, columns in zip(levels, (100, 50, 25, 13, 7), steps, (8, 4, 2, 1, 1), strict=True):
        centres = anchors[::3, [1, 3]].mean(axis=1).reshape(cells, columns)
        assert centres[:, 0].tolist() == [step * row for row in range(cells)]
    across = level_anchors(TORCHVISION, (64, 800), (7,))[0][::9, [0, 2]].mean(axis=1)
    assert across.tolist() == [114 * column for column in range(7)]


def test_spacing_of_an_empty_canvas():
    assert pyramid_anchors(TORCHVISION, (0, 64), (3, 4)).shape == (0, 4)
