"""The table: its invariants, its derived tables, and the one policy for invalid boxes."""

import dataclasses

import numpy as np
import pytest

from retina.data.dataset import DetectionDataset, RawObjects, Records, build, first_repeated, suggest, with_classes
from retina.errors import RetinaError


def table(counts=(2, 0, 1), **changes) -> DetectionDataset:
    """Image i is 100 high and 200 wide; object j (over all images) is [j, 0, j + 10, 20] of class j % 2."""
    total = sum(counts)
    start = np.arange(total, dtype=float)
    columns = {
        "name": "made.json",
        "class_names": ("cat", "dog"),
        "category_ids": (3, 7),
        "image_ids": tuple(f"im{i}" for i in range(len(counts))),
        "images": tuple(f"im{i}.jpg" for i in range(len(counts))),
        "sizes": np.tile([100, 200], (len(counts), 1)),
        "offsets": np.cumsum([0, *counts]),
        "boxes": np.stack([start, 0 * start, start + 10, 0 * start + 20], axis=1),
        "labels": np.arange(total) % 2,
        "crowd": np.zeros(total, bool),
        "difficult": np.arange(total) == 0,
        "areas": start + 0.5,
    }
    return DetectionDataset(**(columns | changes))


def raw(boxes, image=None, given=None) -> RawObjects:
    boxes = np.array(boxes, float).reshape(-1, 4)
    count = len(boxes)
    return RawObjects(
        image=np.zeros(count, int) if image is None else np.array(image, int),
        boxes=boxes,
        xywh=np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1),
        given=boxes if given is None else np.array(given, float),
        extent=boxes[:, 2:] - boxes[:, :2],
        labels=np.arange(count) % 2,
        crowd=np.zeros(count, bool),
        difficult=np.zeros(count, bool),
        areas=np.full(count, np.nan),
    )


def made(boxes, policy="error", image=None, images=1) -> DetectionDataset:
    """Images are 100 high and 200 wide."""
    records = Records(
        "made.json",
        {"cat": 3, "dog": 7},
        list(range(images)),
        ["a.jpg"] * images,
        np.tile([100, 200], (images, 1)),
        raw(boxes, image),
        lambda row: f"annotation {row + 100}",
    )
    return build(records, invalid_boxes=policy)


def test_a_table_without_images_and_one_without_boxes():
    none = table(counts=())
    assert len(none) == 0 and none.boxes.shape == (0, 4) and none.sizes.shape == (0, 2)
    assert len(none.subset([])) == 0
    empty = table(counts=(0, 0))
    assert len(empty) == 2 and empty.objects(1).boxes.shape == (0, 4)
    assert len(empty.subset([1])) == 1


def test_objects_are_the_rows_of_one_image():
    data = table()
    assert data.objects(0).boxes.tolist() == [[0, 0, 10, 20], [1, 0, 11, 20]]
    assert data.objects(0).difficult.tolist() == [True, False]
    assert data.objects(1).labels.tolist() == []
    assert data.objects(2).areas.tolist() == [2.5]
    for index in (-1, 3):
        with pytest.raises(IndexError, match=r"it has 3 \(0 to 2\)"):
            data.objects(index)


def test_arrays_are_typed_copied_and_read_only():
    sizes = np.tile([100, 200], (3, 1))
    data = table(sizes=sizes)
    sizes[0] = 1
    assert data.sizes.tolist() == [[100, 200]] * 3
    types = {f: getattr(data, f).dtype.name for f in ("sizes", "offsets", "boxes", "labels", "crowd", "areas")}
    assert types == {
        "sizes": "int32",
        "offsets": "int64",
        "boxes": "float64",
        "labels": "int32",
        "crowd": "bool",
        "areas": "float64",
    }
    with pytest.raises(ValueError, match="read-only"):
        data.boxes[0, 0] = 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"


def test_subset_takes_rows_in_the_order_asked_for():
    part = table(counts=(2, 0, 1, 3)).subset([3, 1, 0])
    assert part.image_ids == ("im3", "im1", "im0") and part.images == ("im3.jpg", "im1.jpg", "im0.jpg")
    assert part.offsets.tolist() == [0, 3, 3, 5]
    assert part.areas.tolist() == [3.5, 4.5, 5.5, 0.5, 1.5]
    assert part.boxes[:, 0].tolist() == [3, 4, 5, 0, 1]
    assert part.class_names == ("cat", "dog") and part.category_ids == (3, 7)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([3], r"image 3 asked for, it has 3 \(0 to 2\)"),
        ([-1], "image -1 asked for"),
        ([0, 0], "asked for twice"),
        ([0.0], "float64"),
        ([True, False, True], "bool"),
    ],
)
def test_subset_refuses(indices, message):
    with pytest.raises(RetinaError, match="made.json: .*" + message):
        table().subset(indices)


def test_split_is_disjoint_complete_seeded_and_in_order():
    data = table(counts=(1,) * 10)
    first, second = data.split(0.7, seed=1)
    assert (len(first), len(second)) == (7, 3)
    assert sorted(first.image_ids + second.image_ids) == sorted(data.image_ids)
    assert list(first.image_ids) == sorted(first.image_ids) and list(second.image_ids) == sorted(second.image_ids)
    assert data.split(0.7, seed=1)[0].image_ids == first.image_ids
    assert any(data.split(0.7, seed)[0].image_ids != first.image_ids for seed in (2, 3))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 2.0, 0.01, float("nan")])
def test_split_refuses_an_empty_part(fraction):
    with pytest.raises(RetinaError, match="leaves one part empty"):
        table().split(fraction, seed=0)


def test_rename():
    data = table()
    assert data.rename({}).class_names == ("cat", "dog")
    assert data.rename({"dog": "hound"}).class_names == ("cat", "hound")
    assert data.rename({"dog": "cat", "cat": "dog"}).class_names == ("dog", "cat")
    with pytest.raises(RetinaError, match="unknown class 'dogs'; did you mean 'dog'?"):
        data.rename({"dogs": "hound"})
    with pytest.raises(RetinaError, match="class_names: 'cat' is given twice"):
        data.rename({"dog": "cat"})


def test_with_classes_moves_labels_and_ids_along():
    data = table(class_names=("a", "b", "c"), category_ids=(1, 2, 3), labels=[0, 1, 2])
    moved = with_classes(data, ("c", "a", "b"))
    assert moved.labels.tolist() == [1, 2, 0] and moved.category_ids == (3, 1, 2)
    assert [moved.class_names[i] for i in moved.labels] == ["a", "b", "c"]
    assert with_classes(data, None) is data
    with pytest.raises(RetinaError, match=r"data.classes: \['a', 'b'\]; this file: \['a', 'b', 'c'\]"):
        with_classes(data, ("a", "b"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": (), "category_ids": ()}, "no class"),
        ({"category_ids": (3,)}, "2 class names but 1 category ids"),
        ({"category_ids": (3, 3)}, "category_ids: 3 is given twice"),
        ({"image_ids": ("a", "b", "a")}, "image_ids: 'a' is given twice"),
        ({"images": ("a.jpg",)}, "3 image ids but 1 images"),
        ({"labels": [0, 1]}, "3 boxes but 2 labels"),
        ({"labels": [0, 1, 2]}, "labels must be 0 to 1, got 0 to 2"),
        ({"offsets": [0, 2, 2]}, "offsets must rise from 0 to 3 in 4 numbers"),
        ({"offsets": [0, 2, 1, 3]}, "offsets must rise"),
        ({"sizes": [[100, 200], [0, 5], [1, 1]]}, r"image im1: \(height, width\) is \(0, 5\)"),
        ({"sizes": [[100, 200], [5, 5], [1, 1]]}, r"box 2 is \[2.0, 0.0, 12.0, 20.0\]"),
        ({"boxes": [[0, 0, 1, np.nan]] * 3}, "box 0"),
        ({"boxes": np.zeros((3, 5))}, "boxes must have shape"),
        ({"areas": [1, np.nan, 1]}, "areas must be finite"),
    ],
)
def test_a_contradictory_table_is_refused(changes, message):
    with pytest.raises(RetinaError, match="made.json: .*" + message):
        table(**changes)


def test_build_groups_by_image_and_keeps_the_file_order():
    boxes = [[0, 0, 1, 1], [1, 0, 2, 1], [2, 0, 3, 1], [3, 0, 4, 2]]
    data = made(boxes, image=[2, 0, 2, 0], images=4)
    assert data.offsets.tolist() == [0, 2, 2, 4, 4]
    assert data.boxes[:, 0].tolist() == [1, 3, 0, 2]
    assert data.labels.tolist() == [1, 1, 0, 0]
    assert data.areas.tolist() == [1, 2, 1, 1]
    assert data.notes == ()
    assert made([], images=2).offsets.tolist() == [0, 0, 0]


def test_up_to_one_pixel_outside_is_cut_without_a_note():
    data = made([[-1, 5, 10, 15], [190, 90, 201, 100.5], [600.3 - 500, 0, 200 + 1e-9, 5]])
    assert data.boxes.tolist() == [[0, 5, 10, 15], [190, 90, 200, 100], [600.3 - 500, 0, 200, 5]]
    assert data.areas[0] == 100 and data.notes == ()


INVALID = [
    ([5, 5, 5, 9], "has zero width"),
    ([5, 5, 9, 5], "has zero height"),
    ([5, 5, 5, 5], "has zero width and zero height"),
    ([9, 5, 5, 7], r"has negative width \(-4\)"),
    ([5, 7, 9, 5], r"has negative height \(-2\)"),
    ([np.nan, 5, 9, 9], "is not finite"),
    ([5, 5, np.inf, 9], "is not finite"),
    ([190, 5, 201.5, 9], r"reaches 1.5 px outside its image \(200 wide, 100 high\)"),
    ([5, -3, 9, 9], "reaches 3 px outside"),
    ([300, 5, 310, 9], "reaches 110 px outside"),
    ([-1, 5, 0, 9], "reaches 1 px outside"),
]


@pytest.mark.parametrize(("box", "fault"), INVALID)
def test_each_invalid_box_is_an_error_that_names_it(box, fault):
    with pytest.raises(RetinaError, match=f"made.json: 1 of 2 boxes invalid.*annotation 101: box .*{fault}.*drop") as e:
        made([[0, 0, 5, 5], box])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("box", "fault"), INVALID)
def test_each_invalid_box_can_be_dropped(box, fault):
    data = made([[0, 0, 5, 5], box, [1, 1, 6, 6]], "drop")
    assert data.boxes.tolist() == [[0, 0, 5, 5], [1, 1, 6, 6]]
    assert data.labels.tolist() == [0, 0]
    assert len(data.notes) == 1 and data.notes[0].startswith("made.json: 1 of 3 boxes invalid (1 ")
    assert data.notes[0].endswith("1 dropped (data.invalid_boxes: drop)")


def test_clip_cuts_what_it_can_and_drops_what_has_nothing_left():
    data = made([box for box, _ in INVALID], "clip")
    assert data.boxes.tolist() == [[190, 5, 200, 9], [5, 0, 9, 9]]
    assert data.areas.tolist() == [40, 36]
    assert data.notes == (
        "made.json: 11 of 11 boxes invalid (2 not finite, 5 of no positive width and height, "
        "4 reaching outside their image): 9 dropped, 2 cut to the image (data.invalid_boxes: clip)",
    )


def test_only_the_first_faults_are_spelled_out():
    with pytest.raises(RetinaError) as caught:
        made([[5, 5, 5, 5]] * 7)
    message = str(caught.value)
    assert message.count("zero width") == 3 and "; and 4 more." in message and "7 of 7" in message
    assert "annotation 102" in message and "annotation 103" not in message


def test_a_box_too_thin_for_float64_is_invalid():
    thin = raw([[50, 5, 50, 9]])._replace(extent=np.array([[1e-20, 4.0]]))
    with pytest.raises(RetinaError, match="too thin"):
        build(Records("x", {"a": 0}, [0], ["a"], np.array([[100, 200]]), thin, str))


def test_first_repeated():
    assert first_repeated([]) is None
    assert first_repeated(["a", "b", "c"]) is None
    assert first_repeated(["a", "b", "b", "a"]) == (2, "b")


@pytest.mark.parametrize(
    ("name", "valid", "hint"),
    [
        ("Cat", ["bat", "cat"], "did you mean 'cat'?"),
        ("CAT", ["dog", "cat"], "did you mean 'cat'?"),
        ("cats", ["Cat", "dog"], "did you mean 'Cat'?"),
        ("xyz", ["cat", "dog"], "expected one of ['cat', 'dog']"),
    ],
)
def test_the_nearest_name_whatever_its_case(name, valid, hint):
    assert suggest(name, valid) == hint
