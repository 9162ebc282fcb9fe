"""The data.yaml that `retina convert` writes, and splits of others that lead nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from retina.config.reading import read_yaml
from retina.data.convert.converting import convert
from retina.data.formats.layouts import look
from retina.doctor.targets import open_target, read_splits
from retina.errors import RetinaError
from tests.data.formats.tables import read_yolo

NAMES = (
    "1", "007", "1e3", "1E5", "1_000", "0x1F", "0o17", "1:30", "3.0", ".inf", ".nan", "2026-11-29",
    "2001-12-14 21:59:43", "yes", "no", "on", "off", "y", "N", "true", "False", "null", "~", "Null", "=", "<<", "- a",
    "a: b", "a #b", "'q'", "\"q\"", "[x]", "{x}", "!tag", "&a", "*a", "%x", "@x", "`x`", "|", ">", "é日本",
    "back\\slash", "a" * 200, "two  blanks", "🙂",
)  # fmt: skip
SIDE = 40


def source(root: Path, names=NAMES) -> Path:
    (root / "images").mkdir(parents=True)
    Image.new("RGB", (SIDE, SIDE)).save(root / "images/0.png")
    tree = {
        "images": [{"id": 0, "file_name": "0.png", "width": SIDE, "height": SIDE}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        "annotations": [
            {"id": n, "image_id": 0, "category_id": n, "bbox": [n % 20, 1, 9, 9]} for n, _ in enumerate(names)
        ],
    }
    (root / "data.json").write_text(json.dumps(tree))
    return root / "data.json"


def ultralytics(file: Path) -> dict:
    """What `check_det_dataset` of Ultralytics 8 asks of a data.yaml, in its order."""
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert "train" in data and "val" in data, "'train' and 'val' are required in all data YAMLs"
    assert sorted(data["names"]) == list(range(len(data["names"])))
    assert all(isinstance(name, str) for name in data["names"].values())
    for split in ("train", "val", "test"):
        if data.get(split):
            data[split] = (file.parent / data[split]).resolve()
            assert data[split].is_dir()
    return data


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_name_comes_back_whoever_reads(tmp_path, split):
    done = convert(source(tmp_path / "src"), tmp_path / "out", "yolo", splits=[f"data={split}"])
    assert done.problems == ()
    file = tmp_path / "out/data.yaml"
    assert tuple(ultralytics(file)["names"].values()) == NAMES
    assert tuple(read_yaml(file, "here")["names"].values()) == NAMES
    # A reader of YAML 1.2 sees them in quotes, whatever it would take them for.
    quoted = [
        token for token in yaml.scan(file.read_text()) if isinstance(token, yaml.ScalarToken) and token.style == '"'
    ]
    assert [token.value for token in quoted] == list(NAMES)
    assert read_yolo(file, split).class_names == NAMES
    assert list(look(str(file)).splits) == [split]


@pytest.mark.parametrize("names", ["[007, 1_000, 0x1F, a, '7']", "{3: a, 0: 007, 2: 0x1F, 1: 1_000, 4: '7'}"])
def test_numbers_in_names_are_the_texts_that_stand_there(tmp_path, names):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "images/0.png")
    (tmp_path / "data.yaml").write_text(f"train: images\nnames: {names}\n")
    assert read_yolo(tmp_path / "data.yaml", "train").class_names == ("007", "1_000", "0x1F", "a", "7")


@pytest.mark.parametrize("test", ["", "test: gone/images\n", "test:\n", "test: ../test/images\n", "test: [a, b]\n"])
def test_a_test_split_that_was_never_made(tmp_path, test):
    convert(source(tmp_path / "src", ("cat",)), tmp_path / "set", "yolo", splits=["data=train"])
    file = tmp_path / "set/data.yaml"
    file.write_text(f"train: images/train\nval: images/train\n{test}names: [cat]\n")
    assert list(look(str(file)).splits) == ["train", "val"]
    splits, findings = read_splits(open_target(file, []))
    assert list(splits) == ["train", "val"] and not findings
    done = convert(file, tmp_path / "all", "coco")
    assert list(done.splits) == ["train", "val"] and not done.problems
    assert read_yolo(file, "train").class_names == ("cat",)
    for asked in (lambda: convert(file, tmp_path / "asked", "coco", splits=["test"]), lambda: read_yolo(file, "test")):
        with pytest.raises(RetinaError, match="test"):
            asked()


def test_a_file_with_train_alone(tmp_path):
    convert(source(tmp_path / "src", ("cat",)), tmp_path / "set", "yolo", splits=["data=train"])
    file = tmp_path / "set/data.yaml"
    file.write_text("train: images/train\nnames: [cat]\n")
    assert list(look(str(file)).splits) == ["train"]
    assert list(convert(file, tmp_path / "all", "coco").splits) == ["train"]
    with pytest.raises(RetinaError, match="it has no split 'val'"):
        convert(file, tmp_path / "asked", "coco", splits=["val"])
    # One that is missing though it is there to be evaluated stays a fault.
    file.write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    with pytest.raises(RetinaError, match="val: expected a folder of images"):
        convert(file, tmp_path / "broken", "coco")
