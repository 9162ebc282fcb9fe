"""Every override that a message gives is applied as a user copies it, and solves what it is given for."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retina import config
from retina.config.reading import override_line, write_yaml
from retina.data.load import check_same_classes, load_split, read_split
from retina.doctor.examine import examine
from retina.doctor.findings import Finding
from retina.doctor.inspection import image_findings, inspect
from retina.doctor.preflight import check
from retina.doctor.statistics import split_findings, table_findings
from retina.doctor.targets import open_target
from retina.errors import RetinaError
from tests.doctor import made

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


# -------------------------------------------------------------------------------- settings in any other advice

_SETTING = re.compile(r"'[a-z]+\.(?:[^']|'\"'\"')*'|\b[a-z]+(?:\.[a-z_]+)+(?:=|: )(?:[\w+-]+(?:\.\w+)*|\{[^}]*\})")
BASE = """
data:
  root: {root}
  train: {{format: coco, annotations: annotations/instances_train.json, images: images}}
  validation: {{format: coco, annotations: annotations/instances_val.json, images: images}}
  resize: {{short: 64, long: 96, multiple: 32}}
model:
  backbone: keras_cv/resnet10
  fpn: {{channels: 16, max_level: 5}}
  head: {{channels: 16, layers: 1}}
schedule: {{kind: cosine, steps: 12}}
run: {{batch_size: 4}}
"""


def settings_in(message: str) -> list[str]:
    """The overrides in a message, `key=value` for a shell or `key: value` as in a file."""
    return [
        shlex.split(line)[0] if line[0] == "'" else line.replace(": ", "=", 1) for line in _SETTING.findall(message)
    ]


@pytest.fixture
def home(tmp_path) -> Path:
    """A configuration with 12 training images of a large cat each, one with a small dog, and others to validate on."""
    (tmp_path / "images").mkdir()
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    for split, numbers in (("train", range(12)), ("val", range(12, 16))):
        for number in numbers:
            Image.fromarray(made.picture(number)).save(tmp_path / f"images/{number}.png")
        images = [{"id": n, "file_name": f"{n}.png", "height": 64, "width": 96} for n in numbers]
        boxes = [{"image_id": n, "category_id": 1, "bbox": [4, 4, 32, 32]} for n in numbers]
        boxes.append({"image_id": numbers[0], "category_id": 2, "bbox": [60, 8, 32, 32]})
        made.write_coco(tmp_path, split, images, boxes, categories)
    (tmp_path / "c.yaml").write_text(BASE.format(root=tmp_path))
    return tmp_path


def findings(home: Path, overrides: list[str]) -> dict[tuple[str, str], Finding]:
    examined = examine(open_target(home / "c.yaml", overrides), quick=True)
    return {(finding.code, finding.split): finding for finding in examined.findings}


def damaged(home: Path, change) -> None:
    """Change the first training image's entry and box."""
    file = home / "annotations/instances_train.json"
    tree = json.loads(file.read_text())
    change(tree["images"][0], tree["annotations"][0])
    file.write_text(json.dumps(tree))


def zero_width(home: Path) -> None:
    damaged(home, lambda image, box: box.update(bbox=[4, 4, 0, 32]))


def missing(home: Path) -> None:
    (home / "images/0.png").unlink()


def rotated(home: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(made.picture(0)).save(home / "images/0.png", exif=exif)
    damaged(home, lambda image, box: image.update(height=96, width=64))


def unused(home: Path) -> None:
    """YOLO's labels, half of them where they are not sought."""
    for number in range(4):
        folder = home / ("labels" if number < 2 else "labels_new")
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.txt").write_text("0 0.5 0.5 0.3 0.3\n")
    (home / "data.yaml").write_text("train: images\nnames: [cat]\n")


YOLO = ["data.train={format: yolo, data: data.yaml, split: train}", "data.validation=null"]


def nothing(home: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("code", "split", "change", "overrides", "keys", "left"),
    [
        ("few-boxes-covered", "train", nothing, ["anchors.scales=[9.0]"], ["assignment.force_match"], None),
        ("class-without-anchors", "train", nothing, ["anchors.scales=[9.0]"], ["assignment.force_match"], None),
        ("saved-by-force-match", "train", nothing, ["anchors.scales=[9.0]"], ["assignment.force_match"], None),
        ("evaluated-without-tiles", "validation", nothing, ["data.tiles={size: 32, overlap: 0.25}"],
         ["evaluation.tiles.size", "evaluation.tiles.overlap"], None),
        ("canvas-padding", "train", nothing, ["data.resize.multiple=128"], ["data.resize.multiple"], "note"),
        ("more-boxes-than-detections", "train", nothing,
         ["inference.max_detections=1", "evaluation.max_detections=[1]"],
         ["inference.max_detections", "evaluation.max_detections"], None),
        ("more-boxes-than-detections", "train", nothing, ["inference.max_detections=1"],
         ["inference.max_detections"], None),
        ("invalid-boxes", "train", zero_width, [], ["data.invalid_boxes"], "warning"),
        ("unreadable-images", "train", missing, [], ["data.invalid_images"], "warning"),
        ("exif-rotated-size", "train", rotated, ["data.orientation=stored"], ["data.orientation"], None),
    ],
)  # fmt: skip
def test_a_setting_that_a_finding_names(home, code, split, change, overrides, keys, left):
    """It is gone with the setting, or of the grade `left`."""
    change(home)
    finding = findings(home, overrides)[code, split]
    advice = settings_in(finding.remedy) or settings_in(finding.message)
    assert [setting.partition("=")[0] for setting in advice] == keys
    after = findings(home, [*overrides, *advice]).get((code, split))
    assert (None if after is None else after.grade) == left, after
    assert finding.grade != left


def test_anchors_that_the_ceiling_names(home):
    overrides = ["anchors.scales=[9.0]", "anchors.ratios=[3.0]"]
    finding = findings(home, overrides)["ap-ceiling", "train"]
    advice = settings_in(finding.remedy)
    assert advice and all(setting.startswith(("anchors.", "model.fpn.")) for setting in advice)
    promised = finding.remedy.partition(" with ")[0]
    after = findings(home, [*overrides, *advice])["ap-ceiling", "train"]
    assert after.message.startswith(f"the anchors allow an AP of about {promised} ")


def test_remedies_for_classes_of_different_numbers(home):
    """Each of them works on its own, and is not proposed again."""
    finding = findings(home, [])["class-imbalance", "train"]
    advice = settings_in(finding.remedy)
    assert [setting.partition("=")[0] for setting in advice] == ["loss.class_weights.kind", "data.sampling"]
    for setting in advice:
        rest = [other for other in advice if other != setting]
        assert settings_in(findings(home, [setting])["class-imbalance", "train"].remedy) == rest


def test_difficult_boxes_that_are_to_be_used(home):
    (home / "data.csv").write_text(
        "image,x1,y1,x2,y2,label,difficult\nimages/0.png,4,4,36,36,cat,1\nimages/1.png,4,4,36,36,cat,0\n"
    )
    overrides = ["data.train={format: csv, annotations: data.csv}", "data.validation=null"]
    advice = settings_in(findings(home, overrides)["difficult-boxes", "train"].remedy)
    assert advice == ["data.difficult=use"]
    assert ("difficult-boxes", "train") not in findings(home, [*overrides, *advice])


def test_deep_images(home):
    Image.fromarray(np.linspace(-0.25, 1.5, 64 * 96, dtype=np.float32).reshape(64, 96)).save(home / "images/0.tif")
    damaged(home, lambda image, box: image.update(file_name="0.tif"))

    def faults(overrides: list[str]) -> dict[str, Finding]:
        table = load_split(config.load(home / "c.yaml", overrides).data, "train")
        return {finding.code: finding for finding in image_findings(inspect(table, decode=True), "train")}

    before = faults([])
    assert before["deep-images"].grade == before["unreadable-images"].grade == "error"
    (advice,) = settings_in(before["deep-images"].remedy)
    assert advice == "data.depth={low: -0.25, high: 1.5}"
    after = faults([advice])
    assert after["deep-images"].grade == "note" and "unreadable-images" not in after
    (advice,) = settings_in(before["unreadable-images"].message)
    assert "unreadable-images" not in faults([advice])


def test_the_refusal_of_the_preflight(home):
    unused(home)
    settings = config.load(home / "c.yaml", YOLO)
    table = load_split(settings.data, "train")
    with pytest.raises(RetinaError, match="label files .* belong to no image") as refused:
        check(settings, table, None)
    advice = settings_in(str(refused.value))[-1]
    assert advice == "run.preflight=warn"
    settings = config.load(home / "c.yaml", [*YOLO, advice])
    assert any("belong to no image" in line for line in check(settings, table, None))


@pytest.mark.parametrize(
    ("change", "overrides", "advice"),
    [
        (zero_width, [], ["data.invalid_boxes=drop"]),
        (missing, [], ["data.invalid_images=skip"]),
        (lambda home: (unused(home), rotated(home)), YOLO, ["data.orientation=upright"]),
    ],
)
def test_a_setting_that_the_refusal_of_a_split_names(home, change, overrides, advice):
    change(home)
    with pytest.raises(RetinaError) as refused:
        load_split(config.load(home / "c.yaml", overrides).data, "train")
    assert settings_in(str(refused.value)) == advice
    assert len(load_split(config.load(home / "c.yaml", [*overrides, *advice]).data, "train").boxes)
