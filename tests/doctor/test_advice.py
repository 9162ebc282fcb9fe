"""Every override that a message about classes gives is applied as a user copies it, and solves what it is given for."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from retina import config
from retina.config.reading import override_line, write_yaml
from retina.data.load import check_same_classes, load_split, read_split
from retina.doctor.statistics import split_findings, table_findings
from retina.errors import RetinaError

SIDE = 64
_LINE = re.compile(r"'data\.(?:[^']|'\"'\"')*'")


def lines(message: str) -> list[str]:
    """The overrides in a message."""
    return [word for line in _LINE.findall(message) for word in shlex.split(line)]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE)).save(path)


def coco(root: Path, split: str, categories: list[tuple[int, str]], boxed: list[int]) -> dict:
    picture(root / split / "0.png")
    tree = {
        "images": [{"id": 1, "file_name": "0.png", "width": SIDE, "height": SIDE}],
        "categories": [{"id": number, "name": name} for number, name in categories],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": number, "bbox": [n, 8, 9, 9]} for n, number in enumerate(boxed)
        ],
    }
    (root / f"{split}.json").write_text(json.dumps(tree))
    return {"format": "coco", "annotations": f"{split}.json", "images": split}


def yolo(root: Path, split: str, categories: list[tuple[int, str]], boxed: list[int]) -> dict:
    picture(root / split / "images/0.png")
    (root / split / "labels").mkdir()
    places = {number: index for index, (number, _) in enumerate(categories)}
    text = "".join(f"{places[number]} 0.{n + 1} 0.5 0.1 0.1\n" for n, number in enumerate(boxed))
    (root / split / "labels/0.txt").write_text(text)
    names = [name for _, name in categories]
    (root / split / "data.yaml").write_text(write_yaml({"train": "images", "names": names}))
    return {"format": "yolo", "data": f"{split}/data.yaml", "split": "train"}


def csv(root: Path, split: str, categories: list[tuple[int, str]], boxed: list[int]) -> dict:
    picture(root / split / "0.png")
    names = dict(categories)
    text = "".join(f'0.png,{n},8,{n + 9},17,"{names[number]}"\n' for n, number in enumerate(boxed))
    (root / split / "data.csv").write_text(text)
    return {"format": "csv", "annotations": f"{split}/data.csv"}


WRITERS = {"coco": coco, "yolo": yolo, "csv": csv}
# Categories of train and validation, the ids of their boxes, and the classes after the advice.
SCENARIOS = {
    "an empty class that the other split lacks": ([(1, "a"), (2, "b"), (3, "c")], [1, 2], [(1, "a"), (2, "b")], [1, 2]),
    "a class of each": ([(1, "a"), (2, "b")], [1, 2], [(1, "a"), (2, "c")], [1, 2]),
    "another order": ([(1, "a"), (2, "b")], [1, 2], [(1, "b"), (2, "a")], [1, 2]),
    "another order and a class more": ([(1, "a"), (2, "b"), (3, "x")], [1, 2, 3], [(1, "b"), (2, "a")], [1, 2]),
    "another case": ([(1, "Cat"), (2, "dog")], [1, 2], [(1, "cat"), (2, "Dog")], [1, 2]),
    "one class, called otherwise": ([(1, "blood cell")], [1], [(1, "rbc")], [1]),
    "names that YAML and shells read otherwise": (
        [(1, "a"), (2, "no"), (3, "1e3"), (4, "it's: a, b"), (5, "$x *")],
        [1, 2, 3, 4, 5],
        [(1, "a")],
        [1],
    ),
}


def settings(root: Path, write, scenario: str) -> Path:
    train, boxes, validation, others = SCENARIOS[scenario]
    sources = {"train": write(root, "train", train, boxes), "validation": write(root, "val", validation, others)}
    file = root / "c.yaml"
    file.write_text(write_yaml({"data": {"root": str(root), **sources}, "schedule": {"kind": "constant", "steps": 9}}))
    return file


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("format", WRITERS)
def test_splits_of_other_classes(tmp_path, format, scenario):
    file = settings(tmp_path, WRITERS[format], scenario)
    data = config.load(file).data
    tables = {"train": load_split(data, "train"), "validation": load_split(data, "validation")}
    if tables["train"].class_names == tables["validation"].class_names:
        assert format == "csv"  # whose classes are in the order of their names
        return
    with pytest.raises(RetinaError) as refused:
        check_same_classes(tables["train"], tables["validation"])
    (finding,) = (found for found in split_findings(tables) if found.code == "class-lists-differ")
    assert lines(finding.remedy) == lines(str(refused.value)) != []
    data = config.load(file, lines(finding.remedy)).data
    train, (validation, truth) = load_split(data, "train"), read_split(data, "validation")
    check_same_classes(train, validation)
    assert truth.class_names == train.class_names
    # What is in both stays, with its boxes.
    both = set(tables["train"].class_names) & set(tables["validation"].class_names)
    assert both <= set(train.class_names) and len(validation.boxes)


@pytest.mark.parametrize("format", ["coco", "yolo"])
def test_a_root_category_called_like_a_class(tmp_path, format):
    """Roboflow's exports have one, without boxes."""
    names = [(0, "cells"), (1, "cells"), (2, "platelets")]
    sources = {
        "train": WRITERS[format](tmp_path, "train", names, [1, 2, 1]),
        "validation": WRITERS[format](tmp_path, "val", names, [1]),
    }
    file = tmp_path / "c.yaml"
    tree = {"data": {"root": str(tmp_path), **sources}, "schedule": {"kind": "constant", "steps": 9}}
    file.write_text(write_yaml(tree))
    with pytest.raises(RetinaError, match="cells") as refused:
        load_split(config.load(file).data, "train")
    data = config.load(file, lines(str(refused.value))).data
    table, truth = read_split(data, "train")
    assert table.class_names == ("cells", "platelets") and table.labels.tolist() == [0, 1, 0]
    assert truth.class_names == table.class_names and truth.labels.tolist() == [0, 1, 0]
    check_same_classes(table, load_split(data, "validation"))
    dropped = load_split(config.load(file, ["data.relabel.drop=['cells (0)']"]).data, "train")
    assert dropped.class_names == ("cells (1)", "platelets")


def test_classes_to_leave_out(tmp_path):
    """The doctor's advice on a class for background, on one without boxes and on one that is never trained."""
    names = [(1, "background"), (2, "a"), (3, "b"), (4, "c")]
    sources = {
        "train": coco(tmp_path, "train", names, [1, 2, 2]),
        "validation": coco(tmp_path, "val", names, [2, 4]),
    }
    tree = {"data": {"root": str(tmp_path), **sources}, "schedule": {"kind": "constant", "steps": 9}}
    (tmp_path / "c.yaml").write_text(write_yaml(tree))
    data = config.load(tmp_path / "c.yaml").data
    tables = {"train": load_split(data, "train"), "validation": load_split(data, "validation")}
    findings = {
        found.code: found for found in (*table_findings(tables["train"], "train", True), *split_findings(tables))
    }
    for code, left in (
        ("background-class", ("a", "b", "c")),
        ("class-without-boxes", ("background", "a")),
        ("class-never-trained", ("background", "a", "b")),
    ):
        data = config.load(tmp_path / "c.yaml", lines(findings[code].remedy)).data
        assert load_split(data, "train").class_names == load_split(data, "validation").class_names == left


def test_a_list_of_classes_that_leaves_one_out(tmp_path):
    file = settings(tmp_path, coco, "an empty class that the other split lacks")
    with pytest.raises(RetinaError, match="data.classes must name the classes of this file") as refused:
        load_split(config.load(file, ["data.classes=[b, a]"]).data, "train")
    data = config.load(file, ["data.classes=[b, a]", *lines(str(refused.value))]).data
    assert load_split(data, "train").class_names == load_split(data, "validation").class_names == ("b", "a")


def test_a_slip_is_still_refused(tmp_path):
    file = settings(tmp_path, coco, "an empty class that the other split lacks")
    for override in ("data.relabel.drop=[cc]", "data.relabel.keep=[a, bb]", "data.relabel.rename={x: y}"):
        for split in ("train", "validation"):
            with pytest.raises(RetinaError, match="unknown class"):
                load_split(config.load(file, [override]).data, split)


@pytest.mark.parametrize("value", [["no", "1e3", "a: b", "it's", "é", "x" * 300], {"a b": "c"}, [], ["#"], 3, "x"])
def test_an_override_line_is_read_as_it_was_meant(value):
    (line,) = shlex.split(override_line("data.x", value))
    key, _, text = line.partition("=")
    tree: dict = {"data": {}}
    config.reading._apply(tree, line)
    assert (key, tree["data"]["x"]) == ("data.x", value) and "\n" not in text
