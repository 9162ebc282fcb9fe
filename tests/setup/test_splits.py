"""Splits: roles by name, and a division that is stratified and divides no copies."""

import numpy as np
import pytest

from retina.errors import RetinaError
from retina.setup.splits import divide, joined, roles, shares


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["photographs"], {"train": ["photographs"]}),
        (["val"], {"train": ["val"]}),
        (["train", "valid", "test"], {"train": ["train"], "validation": ["valid"], "test": ["test"]}),
        (["train2017", "val2017"], {"train": ["train2017"], "validation": ["val2017"]}),
        (["test", "train", "trainval", "val"], {"train": ["train"], "validation": ["val"], "test": ["test"]}),
        (["2007/trainval", "2007/test"], {"train": ["2007/trainval"], "test": ["2007/test"]}),
        (["2007/train", "2012/train", "2007/val"], {"train": ["2007/train", "2012/train"], "validation": ["2007/val"]}),
        (["train", "strain_holdout"], {"train": ["train"]}),
    ],
)
def test_splits_are_told_by_their_names(names, expected):
    assert roles(names) == expected


def test_without_a_split_to_train_on_the_names_are_told():
    with pytest.raises(RetinaError, match="expected one called train among left, right"):
        roles(["left", "right"])


def test_many_images_have_a_test_split():
    assert shares(199) == (0.85, 0.15) and shares(200) == (0.7, 0.15, 0.15)
    assert shares(5000, "test there") == (0.85, 0.15)


def test_groups_that_share_a_row_are_one():
    assert joined(6, []).tolist() == [0, 1, 2, 3, 4, 5]
    assert joined(6, [[1, 2], [4, 5], [2, 4]]).tolist() == [0, 1, 1, 3, 1, 1]


def made(images: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Ids, and classes that half, a fifth and a twentieth of the images show."""
    random = np.random.default_rng(seed)
    return [f"{n}.jpg" for n in range(images)], random.random((images, 3)) < [0.5, 0.2, 0.05]


@pytest.mark.parametrize("parts", [(0.85, 0.15), (0.7, 0.15, 0.15)])
def test_each_part_shows_each_class_in_its_share(parts):
    ids, classes = made(400)
    part = divide(ids, classes, np.arange(400), parts)
    for number, share in enumerate(parts):
        inside = part == number
        assert abs(inside.mean() - share) < 0.02
        shown = classes[inside].sum(axis=0)
        assert (np.abs(shown - share * classes.sum(axis=0)) <= 3).all(), shown


def test_no_group_is_divided_not_even_a_film():
    ids, classes = made(100)
    group = joined(100, [range(40), (50, 60), (61, 60)])
    part = divide(ids, classes, group, (0.85, 0.15))
    assert len({*part[:40].tolist()}) == 1 and part[50] == part[60] == part[61]
    assert part[0] == 0 and 8 <= (part == 1).sum() <= 22


def test_the_division_follows_from_the_ids_alone():
    ids, classes = made(60)
    part = divide(ids, classes, np.arange(60), (0.85, 0.15))
    turned = divide(ids[::-1], classes[::-1], np.arange(60), (0.85, 0.15))
    assert part.tolist() == turned[::-1].tolist()


@pytest.mark.parametrize("images", [2, 3, 5])
def test_few_images_leave_no_part_without_an_object(images):
    classes = np.zeros((images, 2), bool)
    classes[:2, 0] = True
    part = divide(list(range(images)), classes, np.arange(images), (0.85, 0.15))
    assert classes[part == 0].any() and classes[part == 1].any()


def test_copies_of_one_image_cannot_be_divided():
    with pytest.raises(RetinaError, match=r"expected at least 2 different images to divide, got 1 \(copies are one\)"):
        divide([1, 2, 3], np.ones((3, 1), bool), np.zeros(3, int), (0.85, 0.15))
