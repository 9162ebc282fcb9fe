"""From the configuration's `data` section to a table."""

import json

import pytest

from retina import config
from retina.data.dataset import with_classes
from retina.data.formats.digits import read_digits
from retina.data.load import check_same_classes, load_split
from retina.errors import RetinaError

DIGITS = {"format": "digits", "images": 3, "size": 64}


def section(**changes) -> config.Data:
    return config.Data.model_validate({"train": DIGITS, "validation": {**DIGITS, "split": "validation"}} | changes)


def coco(folder, crowd=None) -> dict:
    """A source of one image whose only object, if `crowd` is not None, is a crowd or not."""
    (folder / "images").mkdir()
    (folder / "images" / "a.jpg").write_bytes(b"")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 0 if crowd == "zero" else 5, 5]}
    tree = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 10, "width": 10}],
        "annotations": [] if crowd is None else [{**box, "iscrowd": int(crowd is True)}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (folder / "a.json").write_text(json.dumps(tree))
    return {"format": "coco", "annotations": "a.json", "images": "images"}


def test_a_split_without_any_box_is_refused(tmp_path):
    data = section(root=tmp_path, train=coco(tmp_path), validation=DIGITS)
    with pytest.raises(RetinaError, match="a.json: has no box at all in 1 image, .*check data.train"):
        load_split(data, "train")
    with pytest.raises(RetinaError, match="nothing to train on or to measure; check data.validation"):
        load_split(data.model_copy(update={"validation": data.train}), "validation")


def test_a_training_set_of_crowds_only_is_refused(tmp_path):
    with pytest.raises(RetinaError, match="has nothing but crowds and difficult boxes in 1 image"):
        load_split(section(root=tmp_path, train=coco(tmp_path, crowd=True)), "train")


def test_a_split_that_is_not_configured():
    with pytest.raises(RetinaError, match=r"data.test: .*not configured \(configured: train, validation\)"):
        load_split(section(), "test")


def test_paths_are_taken_from_root_and_settings_are_passed_on(tmp_path):
    source = coco(tmp_path, crowd=False)
    table = load_split(section(root=tmp_path, train=source), "train")
    assert table.images == (f"{tmp_path}/images/a.jpg",) and table.boxes.tolist() == [[0, 0, 5, 5]]
    with pytest.raises(RetinaError, match="data.classes"):
        load_split(section(root=tmp_path, train=source, classes=["dog"]), "train")


def test_the_policy_for_boxes_is_passed_on(tmp_path):
    source = coco(tmp_path, crowd="zero")
    with pytest.raises(RetinaError, match=r"annotation 1 \(image 1\): box \[0, 0, 0, 5\] has zero width"):
        load_split(section(root=tmp_path, validation=source), "validation")
    with pytest.raises(RetinaError, match="has no box at all"):
        load_split(section(root=tmp_path, validation=source, invalid_boxes="drop"), "validation")


def test_digits_and_their_classes():
    table = load_split(section(test={**DIGITS, "split": "test", "images": 4}), "test")
    assert table.name == "digits/test" and len(table) == 4
    turned = load_split(section(classes=list("9876543210")), "train")
    straight = load_split(section(), "train")
    assert turned.labels.tolist() == [9 - label for label in straight.labels]
    assert turned.category_ids == tuple(range(9, -1, -1))


def test_voc(shared_data):
    source = {"format": "voc", "folder": "bccd", "splits": ["test"]}
    table = load_split(section(root=shared_data, test=source), "test")
    assert len(table) == 72
    everything = {"format": "voc", "folder": "voc100", "splits": ["all"]}
    used = load_split(section(root=shared_data, test=everything, difficult="use"), "test")
    assert len(used.boxes) == 273 and not used.difficult.any()


def test_check_same_classes():
    table = read_digits("train", 1, 64, 0)
    check_same_classes(table, read_digits("test", 1, 64, 0))
    other = table.rename({"9": "nine"})
    with pytest.raises(RetinaError, match=r"only in digits/train: \['9'\]; only in .*: \['nine'\].*'9'\];.*'nine'\]"):
        check_same_classes(table, other)
    with pytest.raises(RetinaError, match="the same classes in another order"):
        check_same_classes(table, with_classes(table, tuple("9876543210")))
