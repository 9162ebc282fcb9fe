"""What the table of a split and its ground truth share, and where they differ: one trains, the other is scored against.

The table follows `data.invalid_boxes`; the ground truth holds every box with the numbers of its file, as the reference
evaluators take them.
"""

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from retina import config
from retina.data.load import load_split, read_split
from retina.errors import RetinaError

SOURCES = {
    "coco": {"format": "coco", "annotations": "a.json", "images": "images"},
    "voc": {"format": "voc", "splits": ["all"]},
    "yolo": {"format": "yolo", "data": "data.yaml", "split": "train"},
    "csv": {"format": "csv", "annotations": "boxes.csv", "images": "images"},
}


def section(root, name, select=None, **changes) -> config.Data:
    source = {**SOURCES[name], "select": select}
    tree = {"root": root, "train": source, "validation": {"format": "digits"}, "invalid_boxes": "drop"}
    return config.Data.model_validate(tree | changes)


def read(data):
    return read_split(data, "train")


def pictures(folder, names, size=(100, 200)):
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", size[::-1]).save(folder / name)


# ---------------------------------------------------------------------------------------------------------- COCO


def coco(root, annotations, **changes):
    """Images 9, 4 and 7 of 100 x 200 pixels; ids neither sorted nor without gaps."""
    pictures(root / "images", ("a.png", "b.png", "c.png"))
    files = zip((9, 4, 7), ("a.png", "b.png", "c.png"), strict=True)
    tree = {
        "images": [{"id": number, "file_name": file, "height": 100, "width": 200} for number, file in files],
        "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}, {"id": 8, "name": "emu"}],
        "annotations": annotations,
    }
    (root / "a.json").write_text(json.dumps(tree | changes))
    return root


def box(image, category, bbox, **more):
    return {"id": 0, "image_id": image, "category_id": category, "bbox": bbox} | more


ANNOTATIONS = [
    box(7, 5, [0.1, 0.2, 0.7, 0.1], area=3.25),
    box(9, 2, [150, 90, 80, 20]),  # reaches out of its image
    box(9, 2, [-0.5, 3, 10.1, 20.3], iscrowd=1),  # overshoots by less than a pixel
    box(7, 8, [10, 10, 0, 5], area=0),  # has no width
    box(4, 2, [10, 10, -3, 5]),
    box(9, 5, [1, 2, 3, 4], area=7),
]


def test_coco_every_box_with_the_numbers_of_the_file(tmp_path):
    table, truth = read(section(coco(tmp_path, ANNOTATIONS), "coco"))
    assert table.image_ids == truth.image_ids == (9, 4, 7)
    assert table.class_names == truth.class_names == ("cat", "dog", "emu")
    assert table.category_ids == truth.category_ids == (2, 5, 8) and table.name == truth.name
    # The table: by image, cut to the image, without what is invalid.
    assert table.offsets.tolist() == [0, 2, 2, 3]
    assert table.boxes.tolist() == [[0, 3, -0.5 + 10.1, 3 + 20.3], [1, 2, 4, 6], [0.1, 0.2, 0.1 + 0.7, 0.2 + 0.1]]
    assert table.labels.tolist() == [0, 1, 1] and table.crowd.tolist() == [True, False, False]
    assert table.areas.tolist() == [(-0.5 + 10.1) * (3 + 20.3 - 3), 7, 3.25]
    # The ground truth: annotation ids of any kind, x, y, width and height as they stand there.
    assert truth.boxes.tolist() == [entry["bbox"] for entry in ANNOTATIONS]
    assert truth.image.tolist() == [2, 0, 0, 2, 1, 0] and truth.labels.tolist() == [1, 0, 0, 2, 0, 1]
    assert truth.crowd.tolist() == [False, False, True, False, False, False] and not truth.difficult.any()
    # An area that is missing is the box's own, even of a box with a negative side.
    assert truth.areas.tolist() == [3.25, 1600, 10.1 * 20.3, 0, -15, 7]


@pytest.mark.parametrize(("policy", "boxes"), [("drop", 3), ("clip", 4)])
def test_coco_the_policy_for_boxes_is_the_tables_alone(tmp_path, policy, boxes):
    table, truth = read(section(coco(tmp_path, ANNOTATIONS), "coco", invalid_boxes=policy))
    assert len(table.boxes) == boxes and len(truth.boxes) == 6


def test_coco_crowds_are_dropped_from_the_table_alone(tmp_path):
    """As detectron2's mapper does in training, and its filter of images: one with a crowd alone has no box then."""
    crowd_alone = [*ANNOTATIONS, box(4, 2, [1, 2, 3, 4], iscrowd=1)]
    data = section(coco(tmp_path, crowd_alone), "coco", {"drop_empty": True}, invalid_boxes="drop", crowd="drop")
    table, truth = read(data)
    assert table.image_ids == (9, 7) and not table.crowd.any() and table.offsets.tolist() == [0, 1, 2]
    assert table.boxes.tolist() == [[1, 2, 4, 6], [0.1, 0.2, 0.1 + 0.7, 0.2 + 0.1]] and table.labels.tolist() == [1, 1]
    assert any("2 of 4 boxes are crowds: dropped (data.crowd: drop)" in note for note in table.notes)
    assert truth.crowd.sum() == 1 and len(truth.boxes) == 5


def test_coco_classes_and_images_of_the_table(tmp_path):
    (tmp_path / "list.txt").write_text("c.png\na.png\n")
    changes = {"relabel": {"rename": {"cat": "pet", "dog": "pet"}, "drop": ["emu"]}}
    table, truth = read(section(coco(tmp_path, ANNOTATIONS), "coco", {"images": "list.txt"}, **changes))
    assert table.image_ids == truth.image_ids == (9, 7) and truth.class_names == ("pet",)
    assert truth.category_ids == table.category_ids == (2,)
    assert truth.image.tolist() == [1, 0, 0, 0] and truth.labels.tolist() == [0] * 4
    assert truth.boxes.tolist() == [ANNOTATIONS[row]["bbox"] for row in (0, 1, 2, 5)]


def test_coco_classes_in_another_order(tmp_path):
    table, truth = read(section(coco(tmp_path, ANNOTATIONS), "coco", classes=["emu", "dog", "cat"]))
    assert table.class_names == truth.class_names == ("emu", "dog", "cat") and truth.category_ids == (8, 5, 2)
    assert truth.labels.tolist() == [1, 2, 2, 0, 2, 1] and table.labels.tolist() == [2, 1, 1]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e101])
def test_coco_a_box_that_cannot_be_computed_with(tmp_path, number):
    """Training may drop it; no overlap is defined for it, so that nothing can be scored against it."""
    data = section(coco(tmp_path, [ANNOTATIONS[0], box(9, 2, [1, 2, number, 4])]), "coco")
    assert len(load_split(data, "train").boxes) == 1
    with pytest.raises(RetinaError, match=r"a\.json: .*finite numbers"):
        read(data)


# ----------------------------------------------------------------------------------------------------------- VOC


def voc(root, objects):
    """Images a, b, c of 100 x 200 pixels; `objects`: name, difficult and corners of the things in each."""
    pictures(root / "JPEGImages", [f"{stem}.png" for stem in objects])
    (root / "Annotations").mkdir()
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/all.txt").write_text("".join(f"{stem}\n" for stem in objects))
    for stem, things in objects.items():
        parts = "".join(
            f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
            + "".join(f"<{key}>{value}</{key}>" for key, value in zip(CORNERS, corners, strict=True))
            + "</bndbox></object>"
            for name, difficult, corners in things
        )
        size = "<size><width>200</width><height>100</height><depth>3</depth></size>"
        (root / f"Annotations/{stem}.xml").write_text(f"<annotation>{size}{parts}</annotation>")
    return root


CORNERS = ("xmin", "ymin", "xmax", "ymax")
THINGS = {
    "c": [("dog", 0, (1, 1, 200, 100)), ("dog", 1, (10, 20, 10, 30))],  # the second: xmin = xmax
    "a": [],
    "b": [("cat", 1, (0.7, 3.1, 17.3, 20.9)), ("cat", 0, (150, 50, 230, 60))],
}
TRUE_BOXES = [
    [0, 0, 200, 100],
    [9, 19, 1, 11],
    [0.7 - 1, 3.1 - 1, (17.3 - 0.7) + 1, (20.9 - 3.1) + 1],
    [149, 49, 81, 11],
]


def test_voc_both_corners_belong_to_a_box_of_the_ground_truth(tmp_path):
    table, truth = read(section(voc(tmp_path, THINGS), "voc"))
    assert table.image_ids == truth.image_ids == ("c", "a", "b") and truth.class_names == ("cat", "dog")
    assert table.boxes.tolist() == [[0, 0, 200, 100], [0, 3.1 - 1, 17.3, 20.9]]
    assert table.difficult.tolist() == [False, True]
    assert truth.boxes.tolist() == TRUE_BOXES and truth.image.tolist() == [0, 0, 2, 2]
    assert truth.difficult.tolist() == [False, True, True, False] and not truth.crowd.any()
    assert truth.areas.tolist() == [width * height for _, _, width, height in TRUE_BOXES]


@pytest.mark.parametrize(("policy", "rows"), [("use", [0, 1, 2, 3]), ("drop", [0, 3])])
def test_voc_the_policy_for_difficult_boxes_is_that_of_both(tmp_path, policy, rows):
    table, truth = read(section(voc(tmp_path, THINGS), "voc", difficult=policy, invalid_boxes="clip"))
    assert truth.boxes.tolist() == [TRUE_BOXES[row] for row in rows]
    assert not truth.difficult.any() and not table.difficult.any()


@pytest.mark.parametrize("number", ["nan", "inf", "1e101"])
def test_voc_a_box_that_cannot_be_computed_with(tmp_path, number):
    data = section(voc(tmp_path, {**THINGS, "d": [("dog", 0, (1, 1, number, 5))]}), "voc")
    assert len(load_split(data, "train").boxes) == 2
    with pytest.raises(RetinaError, match="finite numbers"):
        read(data)


def test_voc_a_class_of_another_split(tmp_path):
    """`data.classes` need not hold the classes of the folder's other annotations, however they are called."""
    root = voc(tmp_path, {**THINGS, "d": [("yak", 0, (1, 1, 5, 5))]})
    (root / "ImageSets/Main/all.txt").write_text("c\na\nb\n")
    table, truth = read(section(root, "voc", classes=["dog", "cat"]))
    assert table.class_names == truth.class_names == ("dog", "cat") and truth.category_ids == (2, 1)
    assert truth.labels.tolist() == [0, 0, 1, 1]
    assert read(section(root, "voc"))[1].class_names == ("cat", "dog", "yak")


# ------------------------------------------------------------------------------------------------- text and tables


def test_yolo_boxes_outside_their_image_and_without_width(tmp_path):
    pictures(tmp_path / "images", ("a.png", "b.png"))
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/b.txt").write_text(
        "1 0.5 0.5 0.25 0.5\n1 0.5 0.5 0.25 0.5\n0 0.5 0.5 0 0.5\n0 0.95 0.5 0.2 0.3\n0 .1 .1 .3 .1 .3 .3\n"
    )
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    table, truth = read(section(tmp_path, "yolo"))
    assert table.image_ids == truth.image_ids == ("a", "b") and truth.category_ids == (0, 1)
    assert table.labels.tolist() == [1, 0] and truth.labels.tolist() == [1, 0, 0, 0] and truth.image.tolist() == [1] * 4
    sides = [(0.25 * 200, 0.5 * 100), (0, 50), (0.2 * 200, 0.3 * 100), ((0.3 - 0.1) * 200, (0.3 - 0.1) * 100)]
    assert truth.boxes[:, 2:].tolist() == [list(pair) for pair in sides]
    assert truth.boxes[:3, :2].tolist() == [[75, 25], [100, 25], [(0.95 - 0.1) * 200, (0.5 - 0.15) * 100]]
    assert truth.areas.tolist() == [width * height for width, height in sides]


def test_csv_rows_of_an_image_that_are_no_neighbours(tmp_path):
    pictures(tmp_path / "images", ("a.png", "b.png"))
    (tmp_path / "boxes.csv").write_text(
        "image,x1,y1,x2,y2,label,crowd,difficult,area\n"
        "b.png,1.1,2.2,3.3,4.4,cat,,,\na.png,5,5,5,9,dog,,,12.5\nb.png,10,10,20,20,dog,1,1,\na.png,0,0,9,9,cat,,1,\n"
    )
    table, truth = read(section(tmp_path, "csv"))
    assert table.image_ids == truth.image_ids == ("b.png", "a.png")
    assert table.boxes.tolist() == [[1.1, 2.2, 3.3, 4.4], [10, 10, 20, 20], [0, 0, 9, 9]]
    of_image = [truth.boxes[truth.image == row].tolist() for row in (0, 1)]
    assert of_image == [[[1.1, 2.2, 3.3 - 1.1, 4.4 - 2.2], [10, 10, 10, 10]], [[5, 5, 0, 4], [0, 0, 9, 9]]]
    # A region stays a region, whoever also calls it difficult.
    rows = list(zip(truth.crowd.tolist(), truth.difficult.tolist(), truth.areas.tolist(), strict=True))
    assert sorted(rows) == [
        (False, False, (3.3 - 1.1) * (4.4 - 2.2)),
        (False, False, 12.5),
        (False, True, 81),
        (True, False, 100),
    ]
    assert table.crowd.tolist() == [False, True, False] and table.difficult.tolist() == [False, True, True]


@pytest.mark.parametrize("name", ["coco", "csv"])
def test_images_that_cannot_be_used_are_in_neither(tmp_path, name):
    root = coco(tmp_path, ANNOTATIONS)
    (root / "boxes.csv").write_text("a.png,1,1,9,9,cat\nc.png,1,1,9,9,cat\nb.png,1,1,9,9,dog\n")
    (root / "images/a.png").write_bytes(b"no image")
    (root / "images/b.png").unlink()
    table, truth = read(section(root, name, invalid_images="skip"))
    assert len(table) == len(truth) == 1 and table.image_ids == truth.image_ids
    assert truth.image.tolist() == [0] * len(truth.boxes) and len(truth.boxes) == {"coco": 2, "csv": 1}[name]


def test_digits(tmp_path):
    digits = {"format": "digits", "images": 6, "size": 64, "select": {"drop_empty": True, "first": 3}}
    data = config.Data.model_validate({"train": digits, "validation": digits, "classes": list("9876543210")})
    table, truth = read(data)
    corners = [[x, y, x + width, y + height] for x, y, width, height in truth.boxes.tolist()]
    assert corners == table.boxes.tolist() and truth.labels.tolist() == table.labels.tolist()
    assert truth.areas.tolist() == table.areas.tolist() and truth.image_ids == table.image_ids


# ------------------------------------------------------------------------------------------------------- one reading


def written(root, name):
    """A source of each format with its files in `root`, and the number of files that hold its annotations."""
    if name == "voc":
        voc(root, THINGS)
        return 4  # a list and three annotations
    coco(root, ANNOTATIONS)
    (root / "boxes.csv").write_text("a.png,1,1,9,9,cat\nc.png,1,1,9,9,cat\nb.png,1,1,9,9,dog\n")
    (root / "labels").mkdir()
    for stem in "abc":
        (root / f"labels/{stem}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    return {"coco": 1, "csv": 1, "yolo": 4}[name]


@pytest.mark.parametrize("name", SOURCES)
def test_each_file_is_read_once(tmp_path, monkeypatch, name):
    files = written(tmp_path, name)
    reads = Counter()

    def counting(original):
        def read_file(path, *args, **settings):
            reads[path] += 1
            return original(path, *args, **settings)

        return read_file

    for method in ("read_bytes", "read_text"):
        monkeypatch.setattr(Path, method, counting(getattr(Path, method)))
    table, truth = read(section(tmp_path, name))
    assert len(table) == len(truth) == 3 and len(truth.boxes) >= 3
    assert len(reads) == files and set(reads.values()) == {1}


@pytest.mark.parametrize("name", SOURCES)
def test_images_of_unknown_size_cannot_be_scored(tmp_path, name):
    """A page shows what a run detected in images that are damaged by now, if their annotations hold the sizes."""
    written(tmp_path, name)
    sorted((tmp_path / ("JPEGImages" if name == "voc" else "images")).iterdir())[0].write_bytes(b"no image")
    data = section(tmp_path, name)
    assert len(load_split(data, "train", keep_unusable=True)) == 3
    if name in ("coco", "voc"):
        assert len(read_split(data, "train", keep_unusable=True).truth) == 3
    else:
        with pytest.raises(RetinaError, match=r"image a.*: its size can't be read"):
            read_split(data, "train", keep_unusable=True)
