"""Whatever a user can get wrong: exit code 2, one line that names it, and nothing left on the disk."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from retina import cli

SMALL = [
    "data.resize={short: 64, long: 64, multiple: 32}",
    "model={backbone: keras_cv/resnet10, fpn: {channels: 16, max_level: 5}, head: {channels: 16, layers: 1}}",
    "schedule={kind: cosine, steps: 2}",
]
ANNOTATION = """<annotation><size><width>64</width><height>64</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{name}</name><bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>
</object>"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def retina(monkeypatch, capsys, tmp_path) -> Callable[..., Done]:
    """The command line in this process, started in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Done:
        monkeypatch.setattr("sys.argv", ["retina", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return Done(stop.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture
def refused(retina, tmp_path) -> Callable[..., str]:
    """`refused(message, *arguments)`: the command fails as a bad input must; gives its line."""

    def check(message: str, *arguments: object) -> str:
        before = snapshot(tmp_path)
        done = retina(*arguments)
        lines = done.err.splitlines()
        assert (done.code, done.out, len(lines)) == (2, "", 1), done.err
        assert lines[0].startswith("retina: ") and re.search(message, lines[0]), lines[0]
        assert snapshot(tmp_path) == before, "something was left on the disk"
        return lines[0]

    return check


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def train(*settings: str) -> list[str]:
    return ["train", *SMALL, *settings, "--run-dir", "run"]


# ---------------------------------------------------------------------------------------------------- COCO files


def coco(folder: Path, name: str = "train", change: Callable[[dict], object] = lambda tree: None) -> str:
    """Two images with two boxes in `<name>.json`; gives the source for the configuration."""
    (folder / "images").mkdir(exist_ok=True)
    for number in range(2):
        Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(folder / "images" / f"{number}.png")
    tree = {
        "images": [{"id": 40 + n, "file_name": f"{n}.png", "width": 64, "height": 64} for n in range(2)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 810 + n, "image_id": 40 + n, "category_id": 1, "bbox": [8, 8, 24, 24], "area": 576, "iscrowd": 0}
            for n in range(2)
        ],
    }
    change(tree)
    (folder / f"{name}.json").write_text(json.dumps(tree))
    return f"{{format: coco, annotations: {name}.json, images: images}}"


def box(*numbers: float) -> Callable[[dict], object]:
    return lambda tree: tree["annotations"][1].update(bbox=list(numbers))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["annotations"].clear(), r"train.json: has no box at all in 2 images"),
        (lambda tree: [a.update(iscrowd=1) for a in tree["annotations"]], r"train.json: has nothing but crowds and"),
        (lambda tree: tree["images"].clear(), r"train.json: 'images' is empty"),
        (lambda tree: tree["categories"].clear(), r"train.json: 'categories' is empty"),
        (lambda tree: tree.pop("annotations"), r"train.json: has no 'annotations'"),
        (box(8, 8, 0, 24), r"train.json: .*annotation 811 \(image 41\): box \[8, 8, 0, 24\] has zero width"),
        (box(8, 8, -3, 24), r"train.json: .*annotation 811 \(image 41\): .* negative width \(-3\)"),
        (box(50, 8, 24, 24), r"train.json: .*annotation 811 \(image 41\): .* reaches 10 px outside its image"),
        (box(8, 8, float("nan"), 24), r"train.json: .*annotation 811 \(image 41\): .* not finite"),
        (
            lambda tree: tree["annotations"][1].update(bbox=[1, 2, 3]),
            r"train.json: annotations\[1\]: 'bbox' must be four",
        ),
        (
            lambda tree: tree["annotations"][1].update(category_id=2),
            r"train.json: annotations\[1\]: 'category_id' must be",
        ),
        (lambda tree: tree["annotations"][1].update(image_id=9), r"train.json: annotations\[1\]: 'image_id' must be"),
        (lambda tree: tree["annotations"][1].pop("bbox"), r"train.json: annotations\[1\] has no 'bbox'"),
        (lambda tree: tree["images"][0].update(file_name="away.png"), r"images/away.png: no such image"),
        (lambda tree: tree["images"][0].update(file_name="../x.png"), r"train.json: images\[0\]: file_name '../x.png'"),
    ],
)
def test_coco_that_cannot_train(refused, tmp_path, change, message):
    validation = coco(tmp_path, "validation")
    refused(message, *train(f"data.train={coco(tmp_path, 'train', change)}", f"data.validation={validation}"))


def test_the_validation_file_is_read_before_training_too(refused, tmp_path):
    validation = coco(tmp_path, "validation", box(8, 8, 0, 24))
    refused(
        r"validation.json: .*annotation 811", *train(f"data.train={coco(tmp_path)}", f"data.validation={validation}")
    )


def test_a_missing_annotation_file(refused, tmp_path):
    source = coco(tmp_path)
    (tmp_path / "train.json").unlink()
    refused("train.json: cannot read .*No such file", *train(f"data.train={source}", f"data.validation={source}"))


def test_a_missing_image_folder(refused, tmp_path):
    source = coco(tmp_path).replace("images: images", "images: photographs")
    refused("photographs: no such image folder", *train(f"data.train={source}", f"data.validation={source}"))


def test_json_cut_short(refused, tmp_path):
    source = coco(tmp_path)
    text = (tmp_path / "train.json").read_text()
    (tmp_path / "train.json").write_text(text[: len(text) // 2])
    refused(r"train.json: not valid JSON: .* at line 1", *train(f"data.train={source}", f"data.validation={source}"))


def test_classes_of_training_and_validation_disagree(refused, tmp_path):
    validation = coco(tmp_path, "validation", lambda tree: tree["categories"][1].update(name="wolf"))
    line = refused("different classes", *train(f"data.train={coco(tmp_path)}", f"data.validation={validation}"))
    assert "['cat', 'dog']" in line and "['cat', 'wolf']" in line and "validation.json" in line


def test_classes_that_are_not_the_file_s(refused, tmp_path):
    source = coco(tmp_path)
    refused(
        r"data.classes: \['cat', 'mouse'\]",
        *train(f"data.train={source}", f"data.validation={source}", "data.classes=[cat, mouse]"),
    )


# ----------------------------------------------------------------------------------------------------- VOC files


def voc(folder: Path, objects: list[str] | None = None, names: tuple[str, ...] = ("one", "two")) -> str:
    """Two images; `objects` are those of the second one."""
    for part in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    good = OBJECT.format(5, 5, 40, 40, name="cat")
    for name, content in zip(names, (good, "".join([good] if objects is None else objects)), strict=True):
        (folder / "Annotations" / f"{name}.xml").write_text(ANNOTATION.format(objects=content))
        Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(folder / "JPEGImages" / f"{name}.jpg")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("\n".join(names) + "\n")
    return "{format: voc, splits: [train]}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (OBJECT.format(9, 9, 9, 40, name="cat"), r"box \[9, 9, 9, 40\] has zero width"),
        (OBJECT.format(40, 9, 9, 40, name="cat"), r"box \[40, 9, 9, 40\] has negative width"),
        (OBJECT.format(9, 9, 90, 40, name="cat"), r"box \[9, 9, 90, 40\] reaches 26 px outside its image"),
        (OBJECT.format(9, 9, "wide", 40, name="cat"), r"two.xml: object 0: <bndbox/xmax> must be a number, got 'wide'"),
        (OBJECT.format(9, 9, 40, 40, name="cow"), r"two.xml: object 0: class 'cow' is not in data.classes"),
        ("<object>", r"two.xml: not valid XML"),
    ],
)
def test_voc_that_cannot_train(refused, tmp_path, given, message):
    source = voc(tmp_path, [given])
    line = refused(message, *train(f"data.train={source}", f"data.validation={source}", "data.classes=[cat]"))
    assert "two" in line


def test_an_xml_that_declares_entities(refused, tmp_path):
    source = voc(tmp_path)
    file = tmp_path / "Annotations" / "two.xml"
    file.write_text('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + file.read_text())
    refused("two.xml: it declares a DTD or entities", *train(f"data.train={source}", f"data.validation={source}"))


def test_a_split_that_does_not_exist(refused, tmp_path):
    source = voc(tmp_path)
    refused("trian", *train(f"data.train={source.replace('train', 'trian')}", f"data.validation={source}"))


@pytest.mark.parametrize("folder", ["Annotations", "JPEGImages"])
def test_a_missing_file_of_voc(refused, tmp_path, folder):
    source = voc(tmp_path)
    next((tmp_path / folder).glob("two.*")).unlink()
    refused(rf"{folder}/?.*two", *train(f"data.train={source}", f"data.validation={source}"))


def test_a_missing_folder(refused, tmp_path):
    source = "{format: voc, splits: [train]}"
    refused("nowhere", *train(f"data.root={tmp_path}/nowhere", f"data.train={source}", f"data.validation={source}"))


def test_no_box_at_all(refused, tmp_path):
    source = voc(tmp_path, [])
    (tmp_path / "Annotations" / "one.xml").write_text(ANNOTATION.format(objects=""))
    sources = [f"data.{split}={source}" for split in ("train", "validation")]
    refused("no annotation has an object", *train(*sources))
    refused("has no box at all in 2 images", *train(*sources, "data.classes=[cat]"))


def test_the_two_zero_area_boxes_of_bccd_are_named(refused, shared_data):
    config = Path(__file__).parents[2] / "configs" / "bccd.yaml"
    common = ("train", config, f"data.root={shared_data / 'bccd'}", "data.invalid_boxes=error", "--run-dir", "run")
    faults = {}
    for split in ("train", "val", "test"):
        names = (shared_data / "bccd" / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        faults[split] = [name for name in ("BloodImage_00338", "BloodImage_00343") if name in names]
    for split in filter(faults.get, faults):
        line = refused("zero width and zero height", *common, f"data.train={{format: voc, splits: [{split}]}}")
        assert all(name in line for name in faults[split])
    assert sum(map(len, faults.values())) == 2


# ------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimizer.learning_rte=0.1"], r"unknown key 'optimizer.learning_rte'; did you mean 'learning_rate'\?"),
        (["schedul.steps=3"], r"unknown key 'schedul'; did you mean 'schedule'\?"),
        (["run.batch_size=eight"], r"'run.batch_size': .*got 'eight'"),
        (["run.batch_size=0"], r"'run.batch_size': .*got 0"),
        (["optimizer.kind=lion"], r"'optimizer.kind': expected one of .*got 'lion'"),
        (["run.seed"], r"'run.seed'"),
        (["run.seed=[1"], "not valid YAML"),
        (["schedule.steps=3", "schedule.warmup_steps=9"], r"warmup_steps \(9\) must not exceed steps \(3\)"),
        (["model.backbone=keras_cv/resnet51"], "resnet51"),
    ],
)
def test_settings(refused, settings, message):
    tiny = ["data.train={format: digits, images: 1, size: 64}", "data.validation={format: digits, images: 1, size: 64}"]
    refused(message, "train", *tiny, *settings, "--run-dir", "run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {seed: 1, sede: 2}", r"mine.yaml: .*unknown key 'run.sede'"),
        ("run:\n  seed: 1\n  seed: 2\n", r"mine.yaml: line 3: key 'seed' is given twice"),
        ("run: [", "mine.yaml: line 1: not valid YAML"),
        ("", "mine.yaml: expected a mapping"),
        ("just words", "mine.yaml: expected a mapping"),
        ("\0", "mine.yaml"),
    ],
)
def test_config_files(refused, tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    for command in (["config", "mine.yaml"], ["train", "mine.yaml", "--run-dir", "run"]):
        refused(message, *command)


def test_a_missing_config(refused, tmp_path):
    refused(r"nowhere.yaml: cannot read this config file: No such file", "train", "nowhere.yaml", "--run-dir", "run")
    refused(r"nowhere.yaml: cannot read this config file", "config", "nowhere.yaml")
    refused(r"cannot read this config file: Is a directory", "config", tmp_path)


# ------------------------------------------------------------------------------------------------------ run folders


def test_a_run_directory_in_use(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    refused("run: the run directory is not empty; choose another --run-dir", *train())


def test_a_run_directory_that_is_a_file(refused, tmp_path):
    (tmp_path / "run").write_text("mine")
    refused("run: the run directory is a file", *train())


def test_resuming_nothing(refused):
    refused("run: not a run directory .no such folder.", "train", "--resume", "--run-dir", "run")


@pytest.mark.parametrize("command", [["evaluate", "run"], ["predict", "run", "image.png"]])
def test_what_is_no_run(refused, tmp_path, command):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    refused("run: not a run directory .no such folder.", *command)
    (tmp_path / "run").mkdir()
    refused("run: not a run directory .it has no config.yaml.", *command)


def test_a_run_without_checkpoint(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    refused("run: it has no 'best' checkpoint", "evaluate", "run")


# -------------------------------------------------------------------------------- evaluation and prediction of a run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "step_77"], "step_77.npz: no such checkpoint"),
        (
            ["anchors.size=3"],
            r"override 'anchors.size=3': an evaluation takes only data.\*, evaluation.\* and inference.\*",
        ),
        (["inference.nms_iou=3"], "inference.nms_iou"),
        (["data.validation.imags=3"], "unknown key 'data.validation.imags'"),
        (
            ["data.test=null", "--split", "test"],
            r"data.test: this split is not configured .configured: train, validation",
        ),
        (["data.classes=[a, b]"], "data.classes must name the classes"),
    ],
)
def test_evaluate(refused, trained, arguments, message):
    refused(message, "evaluate", trained.run, *arguments)


def test_evaluating_data_of_other_classes(refused, trained, tmp_path):
    source = coco(tmp_path)
    line = refused(
        "are not the checkpoint's", "evaluate", trained.run, f"data.root={tmp_path}", f"data.validation={source}"
    )
    assert "['cat', 'dog']" in line and "'9'" in line


def test_predict(refused, trained, tmp_path):
    run = trained.run
    refused("nowhere.png: no such image", "predict", run, "nowhere.png")
    (tmp_path / "empty").mkdir()
    refused("empty: no image in this folder; expected files ending in .jpg", "predict", run, "empty")
    Image.new("RGB", (32, 32)).save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    refused("bad.jpg: .*it is not an image", "predict", run, "bad.jpg", "--out", "found")  # with others: exit code 1
    refused("got the override 'inference.nms_iou=1' alone", "predict", run, "inference.nms_iou=1")
    refused("the rest is the checkpoint's", "predict", run, "good.png", "data.root=x")
    refused("good.png: the picture would overwrite this input image", "predict", run, "good.png", "--out", ".")


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "n" * 300],
        ["predict", "n" * 300, "x.png"],
        ["predict", "run", "n" * 300],
        ["train", "--run-dir", "n" * 300],
        ["config", "n" * 300],
        ["compare", "n" * 300, "b"],
        ["compare", "n" * 300, "b.json", "--ground-truth", "gt.json"],
    ],
)
def test_paths_that_the_system_will_not_look_for(refused, tmp_path, arguments):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    refused("n{300}: cannot .*: File name too long", *arguments)


def test_an_override_longer_than_a_file_s_name_is_none(retina):
    classes = [f"class {n}" for n in range(100)]
    done = retina("config", f"data.classes=[{', '.join(classes)}]")
    assert (done.code, done.err) == (0, "") and "class 99" in done.out


# ---------------------------------------------------------------------------------------------- a process of its own


def test_a_typo_in_a_process_of_its_own(python, tmp_path):
    done = python(["-m", "retina", "train", "run.sead=1", "--run-dir", "run"], tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err == "retina: digits demo: unknown key 'run.sead'; did you mean 'seed'?\n"
    assert list(tmp_path.iterdir()) == []


def test_a_bad_file_in_a_process_of_its_own(python, tmp_path):
    source = coco(tmp_path, "train", box(8, 8, 0, 24))
    done = python(["-m", "retina", *train(f"data.train={source}", f"data.validation={source}")], tmp_path)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert "annotation 811 (image 41)" in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", [["--debug", "config"], ["config", "--debug"]])
def test_debug_shows_the_traceback(python, tmp_path, place):
    done = python(["-m", "retina", *place, "nowhere.yaml"], tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "Traceback (most recent call last)" in done.err
    assert done.err.splitlines()[-1].startswith("retina: nowhere.yaml: cannot read")
