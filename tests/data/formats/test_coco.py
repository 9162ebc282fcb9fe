"""COCO JSON: every malformed entry is named; then values, made and real."""

import copy
import json
from pathlib import Path

import pytest

from retina.errors import RetinaError
from tests.data.formats.tables import read_coco

TREE = {
    "images": [
        {"id": 44, "file_name": "b.jpg", "height": 100, "width": 200},
        {"id": "x7", "file_name": "sub/a.jpg", "height": 50, "width": 60},
        {"id": 2, "file_name": "c..d.jpg", "height": 10, "width": 10},
    ],
    "annotations": [
        {"id": 812, "image_id": "x7", "category_id": 90, "bbox": [1, 2, 3, 4], "area": 5.5, "iscrowd": 0},
        {"image_id": 44, "category_id": 3, "bbox": [10.5, 20, 30, 40.25]},
        {"id": 5, "image_id": 44, "category_id": 90, "bbox": [0, 0, 200, 100], "area": 9, "iscrowd": 1},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
}


def write(folder: Path, tree) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "sub").mkdir(exist_ok=True)
    for name in ("b.jpg", "sub/a.jpg", "c..d.jpg"):
        (folder / "images" / name).write_bytes(b"never opened")
    file = folder / "train.json"
    file.write_text(tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8")
    return file


def read(folder: Path, tree, classes=None, invalid_boxes="error"):
    return read_coco(write(folder, tree), folder / "images", classes=classes, invalid_boxes=invalid_boxes)


def changed(path: str, value=None):
    """TREE with the entry at `path` ("annotations.0.bbox") replaced, or removed where value is None."""
    tree = copy.deepcopy(TREE)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    node = tree
    for part in parents:
        node = node[part]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return tree


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("", "not valid JSON: Expecting value at line 1, column 1"),
        ('{"images": [\n{"id": 1,, }', "not valid JSON: .* at line 2, column 10"),
        (
            '{"annotations": [{"segmentation": [[1.5, 2.5]],\n "id": ?}]}',
            "not valid JSON: Expecting value at line 2, column 8",
        ),
        ("[]", "expected an object with 'images', 'annotations' and 'categories', got a list"),
        (changed("images"), "has no 'images'"),
        (changed("annotations"), "has no 'annotations'"),
        (changed("categories", {}), "'categories' is a dict, not a list"),
        (changed("images", []), "'images' is empty"),
        (changed("categories", []), "'categories' is empty"),
        (
            changed("categories.1.name", "\udfff"),
            r"categories\[1\]: 'name' must be a text of whole characters, got '\\udf",
        ),
        (changed("annotations.1", 7), r"annotations\[1\] is a int, expected an object"),
        (changed("images.1.id"), r"images\[1\] has no 'id'"),
        (changed("images.1.height"), r"images\[1\] has no 'height'"),
        (changed("images.1.width", 0), r"images\[1\]: 'width' must be a positive whole number, got 0"),
        (changed("images.1.width", "60"), r"images\[1\]: 'width' must be a whole number, got '60'"),
        (changed("images.2.id", 44), r"images\[2\]: id 44 is already that of images\[0\]"),
        (changed("images.2.id", 1.5), r"images\[2\]: 'id' must be a whole number or a text, got 1.5"),
        (changed("images.2.file_name", "../c.jpg"), r"images\[2\]: file_name '../c.jpg' leaves the image folder"),
        (changed("images.2.file_name", "a/../../c.jpg"), r"images\[2\]: file_name .* leaves"),
        (changed("images.2.file_name", "/etc/passwd"), r"images\[2\]: file_name .* leaves"),
        (changed("images.2.file_name", "..\\c.jpg"), r"images\[2\]: file_name .* leaves"),
        (changed("images.2.file_name", "C:\\c.jpg"), r"images\[2\]: file_name .* leaves"),
        (changed("images.2.file_name", ""), r"images\[2\]: file_name '' leaves"),
        (changed("annotations.2.bbox"), r"annotations\[2\] has no 'bbox'"),
        (changed("annotations.2.bbox", [1, 2, 3]), r"annotations\[2\]: 'bbox' must be four numbers .* got \[1, 2, 3\]"),
        (changed("annotations.2.bbox", [1, 2, 3, "4"]), r"annotations\[2\]: 'bbox' must be four numbers"),
        (changed("annotations.2.bbox", [1, 2, 3, [4]]), r"annotations\[2\]: 'bbox' must be four numbers"),
        (changed("annotations.2.bbox", [1, 2, 3, 10**400]), r"annotations\[2\]: 'bbox' must be four numbers"),
        (changed("annotations.2.bbox", "1 2 3 4"), r"annotations\[2\]: 'bbox' must be a list"),
        (changed("annotations.2.image_id"), r"annotations\[2\] has no 'image_id'"),
        (
            changed("annotations.2.image_id", 45),
            r"annotations\[2\]: 'image_id' must be the id of one of 'images', got 45",
        ),
        (changed("annotations.2.image_id", "44"), r"annotations\[2\]: 'image_id' must be the id .* got '44'"),
        (changed("annotations.2.category_id", 4), r"annotations\[2\]: 'category_id' must be the id .* got 4"),
        (changed("annotations.2.category_id", [3]), r"annotations\[2\]: 'category_id' must be a whole number"),
        (changed("annotations.2.iscrowd", 2), r"annotations\[2\]: 'iscrowd' must be 0 or 1, got 2"),
        (changed("annotations.2.area", -4), r"annotations\[2\]: 'area' must be a finite number, not negative, got -4"),
        (changed("annotations.2.area", 10**400), r"annotations\[2\]: 'area' must be a finite number"),
        (
            changed("annotations.2.area", "4"),
            r"annotations\[2\]: 'area' must be a finite number, not negative, got '4'",
        ),
        (changed("categories.1.name"), r"categories\[1\] has no 'name'"),
        (changed("categories.1.name", "toothbrush"), r"categories\[1\]: name 'toothbrush' is already that of"),
        (changed("categories.1.id", 90), r"categories\[1\]: id 90 is already that of categories\[0\]"),
    ],
)
def test_each_malformed_file_is_one_clear_line(tmp_path, tree, message):
    with pytest.raises(RetinaError, match="train.json: .*" + message) as caught:
        read(tmp_path, tree)
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    file = write(tmp_path, TREE)
    with pytest.raises(RetinaError, match="no.json: cannot read this COCO annotation file: No such file"):
        read_coco(tmp_path / "no.json", tmp_path / "images")
    with pytest.raises(RetinaError, match="cannot read .*: Is a directory"):
        read_coco(tmp_path, tmp_path / "images")
    with pytest.raises(RetinaError, match="pictures: no such image folder .*train.json"):
        read_coco(file, tmp_path / "pictures")
    (tmp_path / "images" / "b.jpg").unlink()
    with pytest.raises(RetinaError, match="images/b.jpg: no such image .*is .*images the right image folder"):
        read_coco(file, tmp_path / "images")
    file.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    with pytest.raises(RetinaError, match="train.json: not "):
        read_coco(file, tmp_path / "images")


def test_an_invalid_box_is_named_by_annotation_and_image(tmp_path):
    tree = changed("annotations.0.bbox", [31, 2, 0, 4])
    with pytest.raises(RetinaError, match=r"annotation 812 \(image x7\): box \[31, 2, 0, 4\] has zero width"):
        read(tmp_path, tree)
    dropped = read(tmp_path, tree, invalid_boxes="drop")
    assert dropped.offsets.tolist() == [0, 2, 2, 2] and "1 dropped" in dropped.notes[0]
    unnamed = changed("annotations.1.bbox", [31, 2, -1, 4])
    with pytest.raises(RetinaError, match=r"annotation number 1 \(image 44\): .* has negative width \(-1\)"):
        read(tmp_path, unnamed)
    not_finite = json.dumps(TREE).replace("40.25", "NaN")
    with pytest.raises(RetinaError, match=r"annotation number 1 .* is not finite"):
        read(tmp_path, not_finite)


def test_values(tmp_path):
    data = read(tmp_path, TREE)
    assert data.class_names == ("car", "toothbrush") and data.category_ids == (3, 90)
    assert data.image_ids == (44, "x7", 2)
    assert data.images == tuple(f"{tmp_path}/images/{name}" for name in ("b.jpg", "sub/a.jpg", "c..d.jpg"))
    assert data.sizes.tolist() == [[100, 200], [50, 60], [10, 10]]
    assert data.offsets.tolist() == [0, 2, 3, 3]
    assert data.boxes.tolist() == [[10.5, 20, 40.5, 60.25], [0, 0, 200, 100], [1, 2, 4, 6]]
    assert data.labels.tolist() == [0, 1, 1]
    assert data.crowd.tolist() == [False, True, False] and not data.difficult.any()
    assert data.areas.tolist() == [30 * 40.25, 9, 5.5]
    assert data.name.endswith("train.json") and data.notes == ()


def test_a_file_without_annotations_is_a_table_without_boxes(tmp_path):
    data = read(tmp_path, changed("annotations", []))
    assert len(data) == 3 and data.boxes.shape == (0, 4)


def test_classes_give_the_order(tmp_path):
    data = read(tmp_path, TREE, classes=("toothbrush", "car"))
    assert data.category_ids == (90, 3) and data.labels.tolist() == [1, 0, 0]
    with pytest.raises(RetinaError, match=r"\['car', 'bus'\]; this file: \['car', 'toothbrush'\]"):
        read(tmp_path, TREE, classes=("car", "bus"))


def test_segmentations_and_texts_that_look_like_them_change_nothing(tmp_path):
    tree = changed("annotations.0.segmentation", [[1.5, -2e3, 3, 4], []])
    tree["annotations"][1]["segmentation"] = {"counts": [1, 2], "size": [3, 4]}
    tree["annotations"][2]["segmentation"] = []
    tree["images"][0]["file_name"] = 'b"segmentation": [1].jpg'
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / tree["images"][0]["file_name"]).write_bytes(b"")
    data = read(tmp_path, tree)
    assert data.images[0].endswith('b"segmentation": [1].jpg')
    assert data.boxes.tolist() == read(tmp_path, TREE).boxes.tolist()


@pytest.mark.parametrize(("split", "images", "boxes", "crowds"), [("train", 160, 1444, 14), ("val", 158, 1424, 16)])
def test_real_coco(shared_data, split, images, boxes, crowds):
    folder = shared_data / "coco_mini"
    data = read_coco(folder / "annotations" / f"instances_{split}2017.json", folder / f"{split}2017")
    assert (len(data), len(data.boxes), int(data.crowd.sum())) == (images, boxes, crowds)
    assert len(data.class_names) == 80 and data.category_ids[0] == 1 and data.category_ids[-1] == 90
    assert data.class_names[0] == "person" and data.class_names[-1] == "toothbrush" and data.notes == ()
    assert all(Path(path).is_file() for path in data.images)
