"""`retina score` as a user runs it: figures, tables, and one clear line for what is wrong."""

import json
import sys
import warnings

import pytest
from PIL import Image

from retina.cli import main

TRUTH = {
    "images": [{"id": 0, "file_name": "x.jpg", "height": 100, "width": 100}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "[dog]"}],
    "annotations": [{"id": 0, "image_id": 0, "category_id": 3, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}],
}
FOUND = {"image_id": 0, "category_id": 3, "bbox": [10, 10, 20, 20], "score": 0.5}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "gt.json").write_text(json.dumps(TRUTH))
    (tmp_path / "dt.json").write_text(json.dumps([FOUND]))
    return tmp_path


@pytest.fixture
def call(files, monkeypatch, capsys):
    """`call(option, …)` runs `retina score` in this process, in the folder of the files: (code, out, err)."""
    monkeypatch.chdir(files)

    def run(*options):
        arguments = ["retina", "score", "--ground-truth", "gt.json", "--detections", "dt.json", *map(str, options)]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        return stopped.value.code or 0, out, err

    return run


def test_json(call):
    code, out, err = call("--json")
    tree = json.loads(out)
    assert (code, err) == (0, "")
    assert {"metrics", "per_class", "protocol", "conventions", "images", "boxes", "detections"} <= set(tree)
    # The only box is found exactly; there is no medium or large one, and no dog.
    assert (tree["metrics"]["AP"], tree["metrics"]["APs"]) == pytest.approx((1.0, 1.0), abs=1e-12)
    assert tree["metrics"]["APm"] == tree["per_class"]["[dog]"]["AP"] == -1.0
    assert (tree["images"], tree["boxes"], tree["detections"]) == (1, 1, 1)
    assert call("--json", "--engine", "pycocotools", "--max-detections", "1,2,3")[0] == 0


def test_tables_say_the_conventions(call):
    code, out, err = call("--conventions")
    assert (code, err) == (0, "")
    assert "1 images, 1 boxes, 1 detections" in out and "[dog]" in out and "no ground truth" in out
    assert "Conventions (coco):" in out and "continuous coordinates" in out
    code, out, err = call()
    assert (code, err) == (0, "") and "Conventions: coco; --conventions" in out and "continuous coordinates" not in out
    code, out, err = call("--protocol", "pascal-devkit", "--iou", 0.5, "--iou", 0.75, "--conventions")
    assert (code, err) == (0, "")
    assert "mAP_11pt@0.5" in out and "mAP_allpt@0.75" in out and "counted from 1" in out and "no ground truth" in out


def test_out(call, files):
    code, out, _ = call("--protocol", "voc07", "--out", "scores")
    assert code == 0 and "All of it is in scores." in out
    assert json.loads((files / "scores/metrics.json").read_text())["metrics"] == {"mAP_11pt@0.5": 1.0}
    (entry,) = json.loads((files / "scores/detections.json").read_text())
    assert entry == FOUND | {"bbox": [9.0, 9.0, 21.0, 21.0]}  # inclusive pixels, converted
    (files / "scores/metrics.json").unlink()
    (files / "scores/metrics.json").mkdir()
    code, _, err = call("--out", "scores")
    assert code == 2 and err.startswith("retina: scores: cannot write the evaluation") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("dt.json", json.dumps([FOUND, FOUND | {"image_id": 1}]), "dt.json: entry 1: image_id"),
        ("dt.json", json.dumps([FOUND | {"category_id": 1}]), "dt.json: entry 0: category_id"),
        ("dt.json", json.dumps([FOUND, FOUND | {"score": float("nan")}]), "dt.json: entry 1: expected a finite score"),
        ("dt.json", json.dumps([FOUND | {"bbox": [1, 2, -3, 4]}]), "dt.json: entry 0: expected a bbox with width"),
        ("dt.json", '[{"image_id": 0}]', "dt.json: entry 0: expected image_id"),
        ("dt.json", '[{"image_id"', "dt.json: not valid JSON"),
        ("dt.json", "\x00\x01", "dt.json: not valid JSON"),
        ("gt.json", json.dumps(TRUTH | {"annotations": [{"image_id": 0}]}), "gt.json: annotations[0] has no"),
        ("gt.json", "{}", "gt.json: has no 'images'"),
        ("gt.json", "[]", "gt.json: expected an object"),
        ("dt.json", json.dumps([FOUND | {"bbox": [0, 0, 1e200, 1e200]}]), "dt.json: entry 0: expected bbox as four"),
        (
            "gt.json",
            json.dumps(TRUTH | {"annotations": [{"image_id": 0, "category_id": 3, "bbox": [0, 0, 1e200, 1e200]}]}),
            "gt.json: annotations[0]: 'bbox' must be four finite numbers",
        ),
        (
            "gt.json",
            json.dumps(TRUTH | {"categories": [{"id": 3, "name": "\ud800"}, {"id": 5, "name": "dog"}]}),
            "gt.json: categories[0]: 'name' must be a text of whole characters, got '\\ud800'",
        ),
    ],
)
@pytest.mark.parametrize("protocol", ["coco", "voc07"])
def test_malformed_files_end_with_one_line(call, files, file, content, said, protocol):
    (files / file).write_text(content)
    code, out, err = call("--protocol", protocol, "--json", "--strict")
    assert code == 2 and out == "" and err.startswith(f"retina: {said}") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-detections", "1,x"], "--max-detections: expected whole numbers such as 1,10,100, got '1,x'"),
        (["--iou", "0.5"], "--iou: it has no effect under protocol 'coco'"),
        (["--protocol", "voc"], "'voc' is not one of"),
        (["--splits", "val"], "--splits: it has no effect here"),
        (["--detections", "nowhere"], "nowhere: no such detections"),
        (["--ground-truth", "nowhere"], "nowhere: no such ground truth"),
        (["--detections", "."], ".: a folder of text files does not tell what its numbers mean"),
        (["--dt-format", "xywh"], "dt.json: cannot read this folder of text files"),
        (["--max-detections", f"1,10,{'9' * 23}"], "max_detections: expected increasing positive numbers up to"),
        (["--max-detections", f"1,10,{'9' * 5000}"], "--max-detections: expected whole numbers"),
        (
            ["--max-detections", "1,1_0,100"],
            "--max-detections: expected whole numbers such as 1,10,100, got '1,1_0,100",
        ),
        (["--detections", "n" * 300], "cannot look for this file or folder: File name too long; check the path"),
        (["--ground-truth", "n" * 300], "cannot look for this file or folder: File name too long; check the path"),
        (["--out", "n" * 300], "cannot write the evaluation: File name too long"),
        (["--difficult", "use"], "--difficult use: it has no effect, gt.json has no difficult box; leave it out"),
    ],
)
def test_wrong_usage_ends_with_one_line(call, options, said):
    code, out, err = call(*options)
    assert code == 2 and out == "" and said in err and err.count("\n") == 1


def test_in_a_process_of_its_own(retina, files):
    done = retina(files, "score", "--ground-truth", "gt.json", "--detections", "dt.json", "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["metrics"]["AP50"] == pytest.approx(1.0, abs=1e-12)
    (files / "dt.json").write_text(json.dumps([FOUND, FOUND | {"score": "high"}]))
    done = retina(files, "score", "--ground-truth", "gt.json", "--detections", "dt.json")
    assert done.code == 2 and done.out == ""
    assert done.err == "retina: dt.json: entry 1: expected a finite score, got 'high'; fix or remove it\n"


def test_names_of_any_script_on_any_terminal(retina, files):
    """Characters that it can't show become question marks, and nothing else is said, whatever draws the pictures."""
    Image.new("RGB", (100, 100)).save(files / "x.jpg")
    (files / "dt.json").write_text(json.dumps([FOUND, FOUND | {"bbox": [60, 60, 20, 20]}]))
    tree = TRUTH | {"categories": [{"id": 3, "name": "長い" * 150}, {"id": 5, "name": "größe"}]}
    (files / "gt.json").write_text(json.dumps(tree))
    command = ("score", "--ground-truth", "gt.json", "--detections", "dt.json")
    for encoding, shown in (("ascii", "gr??e"), ("utf-8", "größe")):
        options = ("--out", "scores", "--images", ".") if encoding == "utf-8" else ()
        done = retina(files, *command, *options, PYTHONIOENCODING=encoding, PYTHONUTF8="1", COLUMNS="80")
        assert (done.code, done.err) == (0, "")
        assert shown in done.out
    assert {"mistakes.png", "confusion.png"} <= {path.name for path in (files / "scores").iterdir()}
    done = retina(files, *command, "--names", "größe", PYTHONIOENCODING="ascii:strict", PYTHONUTF8="1")
    assert (done.code, done.out) == (2, "") and done.err.startswith("retina: --names") and done.err.count("\n") == 1


@pytest.mark.parametrize("protocol", ["coco", "voc07"])
def test_the_largest_boxes_are_scored_quietly(call, files, protocol):
    """Numbers just within the bound: their areas still are numbers."""
    box = [-1e99, 0, 1e100, 1e100]
    annotation = {"image_id": 0, "category_id": 3, "bbox": box, "area": 1e100}
    (files / "gt.json").write_text(json.dumps(TRUTH | {"annotations": [*TRUTH["annotations"], annotation]}))
    near = FOUND | {"bbox": [-1e99, 0, 1e100, 0.9e100], "score": 0.4}
    (files / "dt.json").write_text(json.dumps([FOUND, near, FOUND | {"bbox": [0, 0, 1e-200, 1e100]}]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code, out, err = call("--protocol", protocol, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["boxes"] == 2


def test_scoring_needs_no_framework(python, files):
    code = (
        "import sys, retina; retina.score('gt.json', 'dt.json'); "
        "print([name for name in ('tensorflow', 'keras', 'matplotlib') if name in sys.modules])"
    )
    done = python(["-c", code], files)
    assert (done.code, done.out, done.err) == (0, "[]\n", "")


def test_detections_of_other_classes_and_images(call, files):
    others = [FOUND, FOUND | {"category_id": 77}, FOUND | {"image_id": 5}, FOUND | {"image_id": 5}]
    (files / "dt.json").write_text(json.dumps(others))
    code, out, err = call("--json")
    tree = json.loads(out)
    assert (code, err) == (0, "")
    assert tree["metrics"]["AP"] == pytest.approx(1.0) and tree["detections"] == 1
    assert tree["left_out"] == {"images": {"5": 2}, "classes": {"77": 1}}
    code, out, err = call()
    assert "Left out, 3 of 4 detections: 2 of 1 image that the ground truth does not have (5) and 1 of 1 class" in out
    code, out, err = call("--strict")
    assert code == 2 and "entry 1: category_id: expected one of the dataset's 2 categories" in err
