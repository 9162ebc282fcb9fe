"""Classes and images chosen from a table: settings that can't work, then values by hand, then the ground truth."""

import json

import numpy as np
import pytest

from retina import config
from retina.config import Relabel, Select
from retina.data.dataset import RawObjects, Records, build
from retina.data.load import load_split, read_split
from retina.data.select import new_names, random_order, relabel, select_images, with_known_classes
from retina.errors import RetinaError

NAMES = ("car", "cat", "truck", "bus")


def table(labels_of_images, ids=None, crowd=()):
    """An image of 200 x 200 for each list of labels; box k of the table is [0, 0, k + 1, 10]."""
    labels = np.array([label for labels in labels_of_images for label in labels], np.int32)
    count, images = len(labels), len(labels_of_images)
    boxes = np.stack([np.zeros(count), np.zeros(count), np.arange(count) + 1, np.full(count, 10)], 1).astype(float)
    raw = RawObjects(
        image=np.repeat(np.arange(images), [len(labels) for labels in labels_of_images]),
        boxes=boxes,
        xywh=boxes,
        given=boxes,
        extent=boxes[:, 2:],
        labels=labels,
        crowd=np.isin(np.arange(count), crowd),
        difficult=np.zeros(count, np.bool_),
        areas=np.full(count, np.nan),
    )
    records = Records(
        "t.json",
        dict(zip(NAMES, (3, 5, 8, 9), strict=True)),
        list(range(images)) if ids is None else ids,
        [f"pictures/{row}.jpg" for row in range(images)],
        np.full((images, 2), 200),
        raw,
        describe=str,
        notes=("read",),
    )
    return build(records)


SMALL = table([[0, 1], [], [2, 3, 2], [1]])


# ---------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({}, "expected rename, keep or drop, got none"),
        ({"keep": ["a"], "drop": ["b"]}, "keep and drop contradict each other"),
        ({"rename": {"a": "a"}}, "rename: 'a' to itself has no effect"),
        ({"rename": {"a": ""}}, "a class needs a name, got an empty one"),
        ({"keep": []}, "at least 1 item"),
    ],
)
def test_relabel_settings_without_effect(section, problem):
    with pytest.raises(ValueError, match=problem):
        Relabel.model_validate(section)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({}, "expected share, images, drop_empty, shots, every or first; leave the section out"),
        ({"seed": 3, "first": 2}, "seed has no effect without share or shots"),
        ({"shots_of": "images", "first": 2}, "shots_of has no effect without shots"),
        ({"share": [0, 1]}, "a part of 0 to 1 but not all of it"),
        ({"share": [0.5, 0.5]}, "share must be"),
        ({"share": [0.5, 0.2]}, "share must be"),
        ({"share": [0, 1.5]}, "less than or equal to 1"),
        ({"every": 1}, "greater than or equal to 2"),
        ({"first": 0}, "greater than 0"),
    ],
)
def test_select_settings_without_effect(section, problem):
    with pytest.raises(ValueError, match=problem):
        Select.model_validate(section)


@pytest.mark.parametrize(
    ("train", "validation", "problem"),
    [
        ({"share": [0, 0.8]}, {"share": [0.7, 0.9]}, "their shares .0.0, 0.8. and .0.7, 0.9. overlap"),
        ({"share": [0, 0.8]}, {"share": [0.8, 1], "seed": 1}, "seed differs .0 and 1.*give both the same"),
        ({"share": [0, 0.8]}, {"share": [0.8, 1], "seed": 0}, None),
        ({"share": [0, 0.8]}, {"share": [0, 0.8], "first": 2}, None),  # equal on purpose, to overfit
        ({"share": [0, 0.8]}, {"first": 2}, None),
    ],
)
def test_shares_of_one_source_must_not_overlap(train, validation, problem):
    source = {"format": "coco", "annotations": "a.json", "images": "i"}
    tree = {"train": {**source, "select": train}, "validation": {**source, "select": validation}}
    if problem is None:
        config.Data.model_validate(tree)
    else:
        with pytest.raises(ValueError, match="train and validation are parts of one source, but .*" + problem):
            config.Data.model_validate(tree)
        tree["validation"]["annotations"] = "b.json"
        config.Data.model_validate(tree)


# ----------------------------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"rename": {"trck": "vehicle"}}, "t.json: data.relabel.rename: unknown class 'trck'; did you mean 'truck'?"),
        ({"keep": ["dog", "cat"]}, "data.relabel.keep: unknown class 'dog'; expected one of"),
        ({"drop": ["catt"]}, "data.relabel.drop: unknown class 'catt'; did you mean 'cat'?"),
        ({"rename": {"car": "vehicle"}, "keep": ["car"]}, "keep: unknown class 'car'"),  # it counts in new names
        ({"drop": list(NAMES)}, "data.relabel leaves no class of"),
    ],
)
def test_unknown_classes(section, problem):
    with pytest.raises(RetinaError, match=problem):
        relabel(SMALL, Relabel.model_validate(section))


def test_merging():
    merged = relabel(SMALL, Relabel(rename={"truck": "vehicle", "car": "vehicle", "cat": "puss"}))
    assert merged.class_names == ("vehicle", "puss", "bus") and merged.category_ids == (3, 5, 9)
    assert merged.labels.tolist() == [0, 1, 0, 2, 0, 1] and merged.offsets.tolist() == [0, 2, 2, 5, 6]
    assert merged.boxes.tolist() == SMALL.boxes.tolist() and merged.image_ids == SMALL.image_ids
    assert merged.notes == (
        "read",
        "t.json: data.relabel: car (1), truck (2) called vehicle",
        "t.json: data.relabel: cat (2) called puss",
    )
    into = relabel(SMALL, Relabel(rename={"car": "bus"}))  # a class that exists
    assert into.class_names == ("bus", "cat", "truck") and into.category_ids == (3, 5, 8)
    assert into.labels.tolist() == [0, 1, 2, 0, 2, 1]
    swapped = relabel(SMALL, Relabel(rename={"car": "cat", "cat": "car"}))  # all at once
    assert swapped.class_names == ("cat", "car", "truck", "bus") and swapped.labels.tolist() == SMALL.labels.tolist()


@pytest.mark.parametrize("section", [{"keep": ["bus", "cat"]}, {"drop": ["car", "truck"]}])
def test_leaving_classes_out(section):
    kept = relabel(SMALL, Relabel.model_validate(section))
    assert kept.class_names == ("cat", "bus") and kept.category_ids == (5, 9)
    assert kept.labels.tolist() == [0, 1, 0] and kept.offsets.tolist() == [0, 1, 1, 2, 3]
    assert kept.boxes[:, 2].tolist() == [2, 4, 6] and kept.areas.tolist() == [20, 40, 60]
    assert kept.notes[1:] == ("t.json: data.relabel: car (1), truck (2) left out",)


def test_classes_that_a_split_does_not_show():
    settings = Relabel(rename={"van": "vehicle", "car": "vehicle"}, drop=("tram",))
    assert new_names("t", settings, ("cat", "car"), partial=True) == {"cat": "cat", "car": "vehicle"}
    more = with_known_classes(SMALL, ("cat", "van", "truck", "car", "bus"))
    assert more.labels.tolist() == [3, 0, 2, 4, 2, 0] and more.category_ids == (3, 5, 4, 2, 1)
    with pytest.raises(RetinaError, match="class 'bus' is not in data.classes; did you mean 'bug'?"):
        with_known_classes(SMALL, ("cat", "truck", "car", "bug"))


# ------------------------------------------------------------------------------------------------------------ images


def chosen(dataset, root=None, **settings):
    return select_images(dataset, Select(**settings), root, "data.train.select")


MANY = table([[row % 4] * (row % 3) for row in range(30)])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"share": (0.0, 0.001)}, "data.train.select: no image is left of 30 .share .0.0, 0.001. with seed 0: 0.; ask"),
        ({"first": 31}, "data.train.select.first: 31 images asked for, there are 30; leave it out"),
        ({"first": 3, "every": 15}, "data.train.select.first: 3 images asked for, there are 2"),
    ],
)
def test_settings_that_leave_nothing_or_ask_too_much(settings, problem):
    with pytest.raises(RetinaError, match="t.json: " + problem):
        chosen(MANY, **settings)


def test_no_object_at_all():
    with pytest.raises(RetinaError, match="no image is left of 2 .with a box: 0."):
        chosen(table([[], []]), drop_empty=True)
    with pytest.raises(RetinaError, match="no image is left of 2 .2 instances a class with seed 0: 0."):
        chosen(table([[], []]), shots=2)


def test_shares_are_disjoint_and_together_whole():
    parts = [chosen(MANY, share=share, seed=4).image_ids for share in ((0, 0.56), (0.56, 0.7), (0.7, 1))]
    assert list(map(len, parts)) == [17, 4, 9]  # 30 · 0.56 = 16.8, 30 · 0.7 = 21
    assert sorted(sum(parts, ())) == list(range(30)) and all(list(part) == sorted(part) for part in parts)
    assert chosen(MANY, share=(0, 0.56), seed=4).image_ids == parts[0]
    assert chosen(MANY, share=(0, 0.56), seed=5).image_ids != parts[0]
    note = "t.json: data.train.select: 4 of 30 images (share [0.56, 0.7] with seed 4: 4)"
    assert chosen(MANY, share=(0.56, 0.7), seed=4).notes == ("read", note)


def test_the_random_order_is_that_of_seed_and_id_alone():
    # `printf '0 a' | b2sum -l 64` and so on: a9ea…, 7c5e…, 0e22…, 2136…, 371a…. Another order would mix up old splits.
    assert random_order(["a", "b", 7, "d", "e"], 0).tolist() == [2, 3, 4, 1, 0]
    ids = np.array([str(number) for number in range(50)])
    first = ids[random_order(ids, 3)]
    assert first.tolist() == ids[::-1][random_order(ids[::-1], 3)].tolist(), "the order of the table has no part in it"
    assert first[:20].tolist() != sorted(first[:20])
    fewer = [name for name in first if name != "17"]
    assert np.array(fewer)[random_order(fewer, 3)].tolist() == fewer, "without an image the others keep their order"
    assert random_order([], 0).tolist() == []


def test_subsets():
    assert chosen(MANY, first=3).image_ids == (0, 1, 2)
    assert chosen(MANY, every=7).image_ids == (0, 7, 14, 21, 28)
    assert chosen(MANY, every=7, first=2).image_ids == (0, 7)
    assert chosen(MANY, drop_empty=True, first=4).image_ids == (1, 2, 4, 5)
    part = chosen(SMALL, every=2)
    assert part.image_ids == (0, 2) and part.labels.tolist() == [0, 1, 2, 3, 2] and part.offsets.tolist() == [0, 2, 5]


def test_a_list_of_images(tmp_path):
    dataset = table([[0], [1], [2]], ids=["x", 12, "12.jpg"])
    (tmp_path / "ids.txt").write_text("12\n\n0.jpg\n")
    assert chosen(dataset, tmp_path, images="ids.txt").image_ids == ("x", 12)
    (tmp_path / "ids.txt").write_text("12.jpg\n")
    assert chosen(dataset, tmp_path, images="ids.txt").image_ids == ("12.jpg",), "an id comes before a file's name"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x\nyy\n", "line 2: 'yy' is no image of t.json; expected one of"),
        ("12.jgp\n", "line 1: '12.jgp' is no image of t.json; did you mean '12.jpg'?"),
        ("x\n0.jpg\n", "line 2: '0.jpg' stands in line 1 before; remove one"),
    ],
)
def test_a_malformed_list_of_images(tmp_path, text, message):
    dataset = table([[0], [1], [2]], ids=["x", 12, "12.jpg"])
    (tmp_path / "ids.txt").write_text(text)
    with pytest.raises(RetinaError, match="ids.txt: " + message):
        chosen(dataset, tmp_path, images="ids.txt")
    with pytest.raises(RetinaError, match="none.txt: cannot read this text file"):
        chosen(dataset, tmp_path, images="none.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(RetinaError, match="no image is left of 3 .listed in empty.txt: 0."):
        chosen(dataset, tmp_path, images="empty.txt")


def test_few_shots():
    random = np.random.default_rng(0)
    dataset = table([random.integers(0, 3, 3).tolist() for _ in range(40)], crowd=[1, 4])
    few = chosen(dataset, shots=4, seed=1)
    counts = np.bincount(few.labels[~few.crowd], minlength=4)
    assert (counts[:3] >= 4).all() and counts[3] == 0 and len(few) <= 12
    assert few.notes[-1] == (
        f"t.json: data.train.select.shots: 0 to {counts.max()} instances a class; fewer than 4 there are of bus (0)"
    )
    assert chosen(dataset, shots=4, seed=1).image_ids == few.image_ids
    assert chosen(dataset, shots=4, seed=2).image_ids != few.image_ids
    for row, name in enumerate(few.image_ids):  # images stay whole
        assert few.objects(row).boxes.tolist() == dataset.objects(name).boxes.tolist()
    whole = chosen(table([[0, 0, 0], [0], [1], [1], [2], [3], [0]]), shots=2, shots_of="images")
    shown = [set(whole.objects(row).labels.tolist()) for row in range(len(whole))]
    assert [sum(label in labels for labels in shown) for label in range(4)] == [2, 2, 1, 1]


def test_crowds_are_no_shots():
    first, *others = random_order(range(4), 0).tolist()
    dataset = table([[0], [0], [0], [0]], crowd=[first])
    assert chosen(dataset, shots=1).image_ids == (others[0],)


def test_the_rarest_class_first():
    """Images of class 3 bring class 0 along, so that none is taken for class 0 alone."""
    dataset = table([[0]] * 50 + [[3, 0], [3, 0]] + [[1, 1], [2, 2]])
    assert chosen(dataset, shots=2).image_ids == (50, 51, 52, 53)


# ------------------------------------------------------------------------------------- in a configuration, with truth


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    (root / "images").mkdir()
    images = [{"id": i + 1, "file_name": f"{i}.jpg", "height": 50, "width": 60} for i in range(10)]
    boxes = [
        {
            "id": i + 1,
            "image_id": i // 2 + 1,
            "category_id": (3, 5, 8, 9)[i % 4],
            "bbox": [1, 2, 3 + i, 80 * (i == 5) + 4],
        }
        for i in range(20)
    ]
    for image in images:
        (root / "images" / image["file_name"]).touch()
    categories = [{"id": i, "name": name} for i, name in zip((3, 5, 8, 9), NAMES, strict=True)]
    (root / "a.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return root


def section(root, select=None, **changes):
    source = {"format": "coco", "annotations": "a.json", "images": "images", "select": select}
    tree = {"root": root, "train": source, "validation": {"format": "digits"}, "invalid_boxes": "drop"}
    return config.Data.model_validate(tree | changes)


def test_the_ground_truth_follows_the_selection(coco):
    """Also the box that training drops, in its place."""
    data = section(
        coco,
        {"every": 2, "first": 3},
        relabel={"rename": {"car": "vehicle", "bus": "vehicle"}, "drop": ["truck"]},
        classes=["cat", "vehicle"],
    )
    found, truth = read_split(data, "train")
    assert found.image_ids == (1, 3, 5) and found.class_names == ("cat", "vehicle") and found.category_ids == (5, 3)
    assert truth.image_ids == found.image_ids and truth.class_names == found.class_names
    # Images 1, 3 and 5 hold boxes 0, 1; 4, 5; 8, 9: categories 3 and 5 each, widths 3 + i.
    assert truth.image.tolist() == [0, 0, 1, 1, 2, 2] and truth.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert truth.boxes[:, 2].tolist() == [3, 4, 7, 8, 11, 12] and truth.boxes[3].tolist() == [1, 2, 8, 84]
    assert found.boxes[:, 2].tolist() == [4, 5, 8, 12, 13], "box 5 reaches out of its image and was dropped"
    assert truth.category_ids == (5, 3)


def test_a_selection_by_boxes_is_that_of_the_table_not_of_the_file(coco):
    data = section(coco, {"drop_empty": True}, relabel={"keep": ["cat"]})
    found, truth = read_split(data, "train")
    # cat is box 1, 5, 9, 13 and 17; box 5 of image 3 is dropped as invalid, so image 3 is empty.
    assert found.image_ids == (1, 5, 7, 9)
    assert truth.image.tolist() == [0, 1, 2, 3]


def test_nothing_is_selected_twice(coco):
    whole = load_split(section(coco), "train")
    assert len(whole) == 10 and whole.category_ids == (3, 5, 8, 9)
    parts = [load_split(section(coco, {"share": share}), "train") for share in ([0, 0.3], [0.3, 1])]
    assert sorted(parts[0].image_ids + parts[1].image_ids) == list(whole.image_ids)
    with pytest.raises(RetinaError, match="unknown class 'dog'"):
        load_split(section(coco, relabel={"keep": ["dog"]}), "train")


def test_digits_can_be_selected_too():
    digits = {"format": "digits", "images": 6, "size": 64, "select": {"first": 4}}
    data = config.Data.model_validate(
        {"train": digits, "validation": digits, "relabel": {"rename": {"1": "seven", "7": "seven"}}}
    )
    found, truth = read_split(data, "train")
    assert len(found) == 4 and found.class_names == ("0", "seven", *"2345689")
    assert truth.image_ids == found.image_ids


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("data.train.select.frist=3", "unknown key 'data.train.select.frist'; did you mean 'first'?"),
        ("data.train.select.first=0", "'data.train.select.first': input should be greater than 0, got 0"),
        ("data.train.select={}", "'data.train.select': expected share, images, drop_empty, shots, every or first"),
        ("data.relabel={kep: [a]}", "unknown key 'data.relabel.kep'; did you mean 'keep'?"),
        ("data.train={format: yolo}", "'data.train': give either data (a data.yaml) or images (a folder)"),
        ("data.train={format: yolo, data: d, images: i}", "give either data (a data.yaml) or images (a folder)"),
        ("data.train={format: yolo, data: d}", "data needs split: train, val or test"),
        ("data.train={format: yolo, data: d, split: val, names: n}", "labels and names have no effect with data"),
        ("data.train={format: yolo, images: i, split: val}", "split has no effect without data; leave it out"),
        ("data.train={format: csv}", "missing key 'data.train.annotations'"),
    ],
)
def test_a_bad_setting_is_named_with_its_path(override, problem):
    digits = {"format": "digits"}
    whole = config.parse({"data": {"train": digits, "validation": digits}, "schedule": {"kind": "step", "steps": 1}})
    with pytest.raises(RetinaError) as caught:
        config.override(whole, [override])
    assert problem in str(caught.value)


def test_a_selection_survives_the_round_trip_through_yaml(tmp_path):
    source = {
        "format": "yolo",
        "data": "d.yaml",
        "split": "val",
        "select": {"share": [0, 0.8], "seed": 3, "images": "a"},
    }
    data = {"train": source, "validation": {**source, "select": {"share": [0.8, 1.0], "seed": 3}}}
    data["relabel"] = {"rename": {"yes": "no"}, "keep": ["no"]}
    whole = config.parse({"data": data, "schedule": {"kind": "step", "steps": 1}})
    (tmp_path / "c.yaml").write_text(config.to_yaml(whole))
    assert config.load(tmp_path / "c.yaml") == whole and whole.data.train.select.share == (0.0, 0.8)
