"""Pictures: colours, what is drawn where, and that nothing leaves the picture."""

import re
from pathlib import Path

import numpy as np
import pytest

from retina.drawing import pictures
from retina.drawing.pictures import Style, contact_sheet, draw
from retina.errors import RetinaError
from retina.palette import class_colour, class_colours, class_hexes

NAMES = ("cat", "dog", "bird")
GREY = np.full((480, 640, 3), 90, np.uint8)
PLAIN = Style(chips=False)


def changed(before, after):
    """Rows and columns touched, as x0, y0, x1, y1, or None."""
    y, x = np.nonzero((before != after).any(axis=2))
    return (x.min(), y.min(), x.max() + 1, y.max() + 1) if len(x) else None


# ---------------------------------------------------------------------------------------- empty and degenerate


@pytest.mark.parametrize("chips", [True, False])
def test_nothing_to_draw_leaves_the_image_as_it_is(chips):
    out = draw(GREY, np.zeros((0, 4)), np.zeros(0, int), NAMES, np.zeros(0), Style(chips=chips))
    np.testing.assert_array_equal(out, GREY)
    assert out is not GREY
    np.testing.assert_array_equal(draw(GREY, [], [], NAMES), GREY)


def test_boxes_outside_the_picture_are_left_out():
    out = draw(GREY, [[-50, 10, 0, 60], [640, 0, 700, 60], [10, 480, 60, 500]], [0, 1, 2], NAMES)
    np.testing.assert_array_equal(out, GREY)


@pytest.mark.parametrize(
    ("shape", "boxes"),
    [
        ((1, 1), [[0, 0, 1, 1]]),
        ((2, 700), [[0, 0, 700, 2]]),
        ((480, 640), [[100, 100, 100, 100]]),
        ((480, 640), [[-1e6, -1e6, 1e6, 1e6]]),
        ((480, 640), [[639.5, 479.5, 640, 480], [0, 0, 0.5, 0.5]]),
    ],
)
def test_degenerate_shapes_are_drawn(shape, boxes):
    image = np.full((*shape, 3), 90, np.uint8)
    out = draw(image, boxes, [0] * len(boxes), NAMES, [0.5] * len(boxes))
    assert out.dtype == np.uint8
    assert changed(np.full_like(out, 90), out) is not None


def test_a_picture_too_small_for_its_chip_gets_the_outline_only():
    image = np.full((8, 480, 3), 90, np.uint8)
    np.testing.assert_array_equal(
        draw(image, [[10, 2, 60, 6]], [0], NAMES), draw(image, [[10, 2, 60, 6]], [0], NAMES, style=PLAIN)
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"image": GREY.astype(np.float32)}, "expected an image [H, W, 3] of uint8, got [480, 640, 3] of float32"),
        ({"image": GREY[..., 0]}, "got [480, 640] of uint8"),
        ({"image": GREY[:0]}, "got [0, 640, 3]"),
        ({"boxes": [[0, 0, 1]]}, "boxes: expected [n, 4] with a label each, got [1, 3]"),
        ({"labels": [0, 1]}, "got [1, 4] and 2 labels, 1 scores"),
        ({"scores": [0.1, 0.2]}, "got [1, 4] and 1 labels, 2 scores"),
        ({"boxes": [[0, 0, np.nan, 1]]}, "expected finite boxes and scores"),
        ({"labels": [3]}, "expected labels from 0 to 2, got 3 to 3"),
        ({"labels": [-1]}, "expected labels from 0 to 2, got -1 to -1"),
        ({"truth_boxes": [[0, 0, 5, 5]]}, "truth_boxes: expected [n, 4] with a label each"),
    ],
)
def test_bad_input_is_named(arguments, said):
    valid = {"image": GREY, "boxes": [[0, 0, 9, 9]], "labels": [0], "class_names": NAMES}
    with pytest.raises(RetinaError, match=re.escape(said)):
        draw(**(valid | arguments))


# ------------------------------------------------------------------------------------------------------ colours


def test_first_colours_are_okabe_and_itos_and_all_differ():
    assert class_colour(0) == (230, 159, 0)
    assert class_colour(6) == (0, 114, 178)
    # The first lighter orange: 3/8 of the way to white.
    assert class_colour(7) == (239, 195, 96)
    assert class_colour(14) == (144, 99, 0)
    assert len({class_colour(index) for index in range(100)}) == 100
    with pytest.raises(RetinaError, match="at least 0, got -1"):
        class_colour(-1)


def test_a_class_has_its_colour_wherever_the_data_list_it():
    assert class_colours(["b", "a", "10", "9"]) == [class_colour(rank) for rank in (2, 1, 3, 0)]
    assert class_colours(["same", "same"]) == [class_colour(0)] * 2 and class_hexes(["x"]) == ["#e69f00"]
    assert class_colours([str(number) for number in range(100)]) == [class_colour(rank) for rank in range(100)]
    boxes, scores = [[100, 50, 300, 250], [350, 50, 400, 250]], [0.9, 0.8]
    expected = draw(GREY, boxes, [0, 2], ("cat", "dog", "mouse"), scores)
    np.testing.assert_array_equal(draw(GREY, boxes, [2, 1], ("dog", "mouse", "cat"), scores), expected)


def test_text_on_every_class_colour_has_the_contrast_of_wcag_aa():
    def luminance(colour):
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255]
        return float(np.dot([0.2126, 0.7152, 0.0722], parts))

    for index in range(100):
        ground = class_colour(index)
        low, high = sorted((luminance(ground), luminance(pictures._text_colour(ground))))
        assert (high + 0.05) / (low + 0.05) >= 4.5, index
    assert pictures._text_colour((0, 114, 178)) == (255, 255, 255)
    assert pictures._text_colour((240, 228, 66)) == (0, 0, 0)


# ------------------------------------------------------------------------------------------------------ drawing


def test_outline_lies_on_the_box_and_leaves_its_inside():
    out = draw(GREY, [[100, 50, 300, 250]], [1], NAMES, style=Style(line_width=2, chips=False))
    for x, y in ((100, 150), (299, 150), (200, 50), (200, 249)):
        assert tuple(out[y, x]) == class_colour(1), (x, y)
    # A line of 2 and a dark rim of 1 around the corners 100, 50 and 300, 250.
    assert changed(GREY, out) == (98, 48, 302, 252)
    np.testing.assert_array_equal(out[60:240, 110:290], GREY[60:240, 110:290])
    assert (out[150, 98] < 90).all()


def test_outline_at_the_edge_is_not_cut_off():
    out = draw(GREY, [[-20, -20, 660, 500]], [0], NAMES, style=Style(line_width=2, chips=False))
    for x, y in ((0, 200), (1, 200), (639, 200), (638, 200), (300, 0), (300, 479)):
        assert tuple(out[y, x]) == class_colour(0), (x, y)


def test_higher_score_is_on_top():
    boxes = [[100, 50, 300, 250]] * 2
    over = draw(GREY, boxes, [0, 1], NAMES, [0.9, 0.1], PLAIN)
    assert tuple(over[150, 100]) == class_colour(0)
    over = draw(GREY, boxes, [0, 1], NAMES, [0.1, 0.9], PLAIN)
    assert tuple(over[150, 100]) == class_colour(1)


def test_chip_stands_above_the_box_in_its_colour():
    plain, out = (
        draw(GREY, [[100, 100, 300, 250]], [0], NAMES, [0.75], Style(line_width=2, font_size=14, chips=chips))
        for chips in (False, True)
    )
    x0, y0, x1, y1 = changed(plain, out)
    # 14 px letters are 17 px high, padded by 2 above and below; eight of them are 50 to 100 px wide.
    assert (x0, y1) == (99, 100)
    assert 75 <= y0 <= 82
    assert 150 <= x1 <= 200
    assert tuple(out[y0 + 3, x0 + 3]) == class_colour(0)
    # Anti-aliased letters: dark, though seldom quite black.
    assert 0.03 < (out[y0:y1, x0:x1] < 80).all(axis=2).mean() < 0.4


@pytest.mark.parametrize(
    "box", [[0, 0, 40, 40], [600, 0, 640, 40], [0, 440, 40, 480], [600, 440, 640, 480], [0, 0, 640, 480]]
)
def test_chips_stay_inside(box):
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_chip", lambda canvas, place, text, colour, pen: seen.append(place))
        draw(GREY, [box], [0], ("a rather long name",), [1.0])
    (x0, y0, x1, y1) = seen[0]
    assert 0 <= x0 < x1 <= 640
    assert 0 <= y0 < y1 <= 480


def test_chips_don_t_hide_each_other():
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_chip", lambda canvas, place, text, colour, pen: seen.append((place, text)))
        draw(GREY, [[200, 200, 400, 300]] * 4, [0, 1, 2, 0], NAMES, [0.1, 0.2, 0.3, 0.4])
    assert [text for _, text in seen] == ["cat 0.10", "dog 0.20", "bird 0.30", "cat 0.40"]
    places = [place for place, _ in seen]
    assert all(pictures._common(a, b) == 0 for i, a in enumerate(places) for b in places[:i])


def test_names_are_shortened_and_kept_on_one_line():
    assert pictures._text("x" * 40, None, 0) == "x" * 27 + "…"
    assert pictures._text("two\nlines", np.array([0.987]), 0) == "two lines 0.99"


def test_truth_is_dashed_white_and_named_where_it_was_missed():
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_chip", lambda canvas, place, text, colour, pen: seen.append((text, colour)))
        out = draw(
            GREY, [[100, 100, 200, 200], [300, 100, 400, 200]], [0, 1], NAMES,
            truth_boxes=[[100, 100, 200, 199], [300, 100, 400, 200]], truth_labels=[0, 2],
        )  # fmt: skip
    assert sorted(seen) == [("bird", (255, 255, 255)), ("cat", class_colour(0)), ("dog", class_colour(1))]
    only = draw(GREY, [], [], NAMES, truth_boxes=[[100, 100, 300, 300]], truth_labels=[0], style=PLAIN)
    white = (only[110:290, 99:102] == 255).all(axis=2).any(axis=1)
    assert 0.3 < white.mean() < 0.7
    assert (out == 255).all(axis=2).any()


def test_small_image_is_enlarged_by_a_whole_factor():
    image = np.full((128, 96, 3), 90, np.uint8)
    out = draw(image, [[10, 20, 50, 60]], [0], NAMES, style=Style(line_width=2, chips=False))
    assert out.shape == (512, 384, 3)
    assert changed(np.full_like(out, 90), out) == (38, 78, 202, 242)
    assert draw(GREY, [], [], NAMES).shape == GREY.shape


def test_input_is_not_changed():
    image, boxes = GREY.copy(), np.array([[1.0, 2.0, 300.0, 400.0]])
    draw(image, boxes, [0], NAMES, [0.5], truth_boxes=boxes, truth_labels=[1])
    np.testing.assert_array_equal(image, GREY)
    np.testing.assert_array_equal(boxes, [[1.0, 2.0, 300.0, 400.0]])


def test_same_input_same_picture():
    arguments = (GREY, [[10, 10, 200, 200], [50, 60, 300, 400]], [0, 1], NAMES, [0.5, 0.5])
    np.testing.assert_array_equal(draw(*arguments), draw(*arguments))


def test_real_photograph(shared_data: Path):
    from PIL import Image

    photograph = np.array(Image.open(shared_data / "bccd" / "JPEGImages" / "BloodImage_00001.jpg").convert("RGB"))
    out = draw(photograph, [[68, 315, 286, 480]], [1], ("RBC", "WBC", "Platelets"), [0.98])
    x0, y0, x1, y1 = changed(photograph, out)
    assert (abs(np.array([x0, y0 + 18, x1, y1]) - [68, 315, 286, 480]) <= 6).all()


# ------------------------------------------------------------------------------------------------ contact sheet


def test_sheet_places_images_in_reading_order():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    sizes = [(20, 30), (20, 40), (10, 30)]
    images = [np.full((*size, 3), colour, np.uint8) for size, colour in zip(sizes, colours, strict=True)]
    sheet = contact_sheet(images, 2, gap=5)
    # Columns 30 and 40 wide, rows 20 and 10 high.
    assert sheet.shape == (5 + 20 + 5 + 10 + 5, 5 + 30 + 5 + 40 + 5, 3)
    assert tuple(sheet[5, 5]) == colours[0] and tuple(sheet[24, 34]) == colours[0]
    assert tuple(sheet[5, 40]) == colours[1] and tuple(sheet[24, 79]) == colours[1]
    assert tuple(sheet[30, 5]) == colours[2] and tuple(sheet[39, 34]) == colours[2]
    for x, y in ((0, 0), (4, 10), (37, 10), (84, 44), (60, 35)):
        assert tuple(sheet[y, x]) == (255, 255, 255)


def test_sheet_centres_small_images_and_reduces_large_ones():
    small, large = np.zeros((10, 10, 3), np.uint8), np.full((100, 400, 3), 200, np.uint8)
    sheet = contact_sheet([large, small], 5, gap=0, max_side=80)
    assert sheet.shape == (20, 90, 3)
    assert (sheet[:, :80] == 200).all()
    assert (sheet[5:15, 80:] == 0).all()
    assert (sheet[:5, 80:] == 255).all()


@pytest.mark.parametrize(("images", "columns"), [([], 2), ([GREY], 0)])
def test_sheet_of_nothing_is_refused(images, columns):
    with pytest.raises(RetinaError, match="at least one image and one column"):
        contact_sheet(images, columns)
