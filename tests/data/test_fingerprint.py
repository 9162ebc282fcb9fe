"""What tells tables apart."""

from dataclasses import replace

import numpy as np
import pytest

from retina.data.fingerprint import differences, fingerprint
from retina.data.formats.digits import read_digits


@pytest.fixture(scope="module")
def data():
    return read_digits("train", 6, 64)


def changed(array, value):
    copy = array.copy()
    copy[-1] = value
    return copy


def test_an_empty_table_has_one(data):
    found = fingerprint(data.subset([]))
    assert [found[name] for name in ("images", "boxes", "crowd", "difficult")] == [0, 0, 0, 0]
    assert fingerprint(data.subset([])) == found


def test_nothing_differs_between_equal_tables(data):
    one = {"train": fingerprint(data)}
    assert differences(one, {"train": fingerprint(read_digits("train", 6, 64))}) == []
    assert differences({}, {}) == []


def test_paths_may_differ(data):
    moved = replace(data, images=tuple(f"/elsewhere/{row}.png" for row in range(len(data))), name="moved")
    assert fingerprint(moved) == fingerprint(data)


def test_counts_are_told_where_they_differ(data):
    less = data.subset(range(5))
    boxes = len(data.boxes)
    assert differences({"train": fingerprint(data)}, {"train": fingerprint(less)}) == [
        f"train (images 6 → 5, boxes {boxes} → {len(less.boxes)})"
    ]


@pytest.mark.parametrize(
    ("column", "change", "told"),
    [
        ("image_ids", lambda ids: (*ids[:-1], "another"), "train (other image ids)"),
        ("image_ids", lambda ids: tuple(str(one) for one in ids), "train (other image ids)"),
        ("sizes", lambda sizes: changed(sizes, [64, 65]), "train (other image sizes)"),
        ("boxes", lambda boxes: changed(boxes, [1.0, 1.0, 9.0, 9.5]), "train (other boxes)"),
        ("labels", lambda labels: changed(labels, (labels[-1] + 1) % 10), "train (other labels)"),
        ("areas", lambda areas: changed(areas, areas[-1] + 0.25), "train (other areas)"),
        ("crowd", lambda crowd: changed(crowd, True), "train (crowd 0 → 1)"),
        ("difficult", lambda difficult: changed(difficult, True), "train (difficult 0 → 1)"),
    ],
)
def test_one_value_is_a_difference(data, column, change, told):
    other = replace(data, **{column: change(getattr(data, column))})
    assert differences({"train": fingerprint(data)}, {"train": fingerprint(other)}) == [told]


def test_the_order_of_images_is_a_difference(data):
    turned = data.subset(range(len(data))[::-1])
    assert "image ids" in differences({"train": fingerprint(data)}, {"train": fingerprint(turned)})[0]


def test_a_box_that_moves_to_another_image_is_a_difference(data):
    offsets = data.offsets.copy()
    offsets[1] -= 1
    other = replace(data, offsets=np.array(offsets))
    assert differences({"a": fingerprint(data)}, {"a": fingerprint(other)}) == ["a (other boxes per image)"]
