"""Commands of the README and the guide, typed as they stand there, on tiny files and runs of the names they give."""

import json
import re
import shlex
import shutil
import sys
import webbrowser
from glob import glob
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retina.cli import main
from tests.manual import shell_lines

GUIDE = "retina/guide/"


def commands(page: str, section: str) -> list[str]:
    """The `retina` lines in the code blocks of a section."""
    return [line for line in shell_lines(page, section) if line.startswith("retina ")]


SCORE = commands(f"{GUIDE}evaluation.md", "Score anybody's detections")
COMPARE = commands(f"{GUIDE}evaluation.md", "Is B better than A?")
FILES = [line for line in SCORE + COMPARE if "runs/" not in line]
RUNS = [line for line in SCORE + COMPARE if "runs/a" in line]
SETTINGS = [line for line in COMPARE if " --a " in line]
ON_A_RUN = [
    line
    for line in [
        *commands("README.md", "Use"),
        *commands(f"{GUIDE}evaluation.md", "How good, how sure, and why"),
        *commands(f"{GUIDE}evaluation.md", "The report"),
        *commands(f"{GUIDE}export.md", "Commands"),
        *commands(f"{GUIDE}prediction.md", "Many photographs"),
    ]
    if " train " not in line and "onnx" not in line
]
ON_A_FOLDER = [
    line
    for line in commands(f"{GUIDE}data.md", "Your own folder")
    if " train " not in line and " init " not in line  # tests/setup/test_train_folder.py
]


@pytest.fixture
def type_in(monkeypatch, capsys, tmp_path):
    """`type_in(line)` runs a command in this process, in `tmp_path`: what it prints, if it succeeds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def run(line: str) -> str:
        words = shlex.split(line, comments=True)
        monkeypatch.setattr(sys, "argv", [path for word in words for path in sorted(glob(word)) or [word]])  # a shell's
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = capsys.readouterr()
        # `predict` says by which settings; its standard output is the detections alone.
        said = [text for text in err.splitlines() if not (" predict " in line and text.startswith("detects: "))]
        assert (stopped.value.code or 0, said) == (0, []), err
        return out

    return run


def coco_files(folder: Path) -> None:
    """Two images with a cat each: a.json finds one of them, b.json and results.json both."""
    tree = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 64} for n in (1, 2)],
        "categories": [{"id": 17, "name": "cat"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 17, "bbox": [8, 8, 16, 16], "area": 256, "iscrowd": 0}
            for n in (1, 2)
        ],
    }
    detections = [{"image_id": n, "category_id": 17, "bbox": [8, 8, 16, 16], "score": 0.9} for n in (1, 2)]
    for name, content in (
        ("instances_val2017", tree), ("results", detections), ("a", detections[:1]), ("b", detections),
    ):  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(content))


def devkit_files(folder: Path) -> None:
    """VOC2007's test split of one image with one car, and the devkit's result file of that class."""
    home = folder / "VOCdevkit/VOC2007"
    for inside in ("Annotations", "ImageSets/Main"):
        (home / inside).mkdir(parents=True)
    box = "<xmin>9</xmin><ymin>9</ymin><xmax>24</xmax><ymax>24</ymax>"
    (home / "Annotations/000001.xml").write_text(
        "<annotation><size><width>64</width><height>64</height><depth>3</depth></size>"
        f"<object><name>car</name><difficult>0</difficult><bndbox>{box}</bndbox></object></annotation>"
    )
    (home / "ImageSets/Main/test.txt").write_text("000001\n")
    (folder / "results").mkdir()
    (folder / "results/comp4_det_test_car.txt").write_text("000001 0.9 9 9 24 24\n")


def yolo_files(folder: Path) -> None:
    """An image of 64 px with one box, labelled by fractions, and detected in Ultralytics' order of columns."""
    for name in ("images", "labels", "predicted"):
        (folder / name).mkdir()
    Image.new("RGB", (64, 64)).save(folder / "images/x.png")
    (folder / "labels/x.txt").write_text("0 0.25 0.25 0.25 0.25\n")
    (folder / "predicted/x.txt").write_text("0 0.25 0.25 0.25 0.25 0.9\n")


def test_the_commands_are_there():
    counts = len(SCORE), len(COMPARE), len(RUNS), len(SETTINGS), len(ON_A_RUN), len(ON_A_FOLDER)
    assert counts == (3, 3, 1, 1, 12, 2)


@pytest.mark.parametrize("line", FILES)
def test_commands_on_files(type_in, tmp_path, line):
    for make in (coco_files, devkit_files, yolo_files):
        make(tmp_path)
    shown = type_in(line)
    rows = [words for words in map(str.split, shown.splitlines()) if len(words) > 1]
    figures = {words[0]: words[1] for words in reversed(rows)}  # the first table is that of the means
    tree = json.loads(type_in(f"{line} --json"))
    if " compare " in line:
        # A finds one of two alike: precision 1 up to a recall of a half, 51 of 101 points.
        assert figures["AP"] == "0.505" and tree["metrics"]["AP"]["b"] == pytest.approx(1.0, abs=1e-12)
        assert "0.495" in shown
        return
    # Everything is found exactly, under the name that the rules give it.
    expected = {"mAP_11pt@0.5", "mAP_allpt@0.5"} if "pascal-devkit" in line else {"AP", "AP50", "AP75"}
    assert expected <= set(tree["metrics"])
    for name in expected:
        assert tree["metrics"][name] == pytest.approx(1.0, abs=1e-12) and figures[name] == "1.000"


@pytest.mark.parametrize("line", RUNS)
def test_commands_on_runs(type_in, trained, tmp_path, line):
    for name in ("a", "b"):
        shutil.copytree(trained.run, tmp_path / "runs" / name)
    shown = type_in(line)
    assert "A: runs/a" in shown and "A and B have the same AP" in shown


@pytest.mark.parametrize("line", SETTINGS)
def test_commands_on_settings(type_in, trained, tmp_path, line):
    for setting in ("plain", "focal"):
        for seed in (1, 2):
            run = tmp_path / f"runs/{setting}_{seed}"
            shutil.copytree(trained.run, run)
            config = (run / "config.yaml").read_text()
            (run / "config.yaml").write_text(re.sub(r"^  seed: \d+", f"  seed: {seed}", config, flags=re.MULTILINE))
    shown = type_in(line)
    assert "A: runs/plain_1, runs/plain_2" in shown and "seeds 1, 2" in shown
    assert "No clear difference between the settings: B has +0.000 AP against A over 2 seeds" in shown


@pytest.fixture
def runs(trained, tmp_path) -> Path:
    """A tiny run under the names that the pages give it, with an export and a photograph."""
    for name in ("digits", "a", "b"):
        shutil.copytree(trained.run, tmp_path / "runs" / name)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "IMAGE…", "PNG")
    (tmp_path / "photographs").mkdir()
    Image.fromarray(noise).save(tmp_path / "photographs" / "noise.png")
    return tmp_path / "runs"


@pytest.mark.slow
def test_commands_on_a_run(type_in, runs, tmp_path, monkeypatch):
    """In the order in which they stand: the export is there when it is evaluated. One writes where another wrote."""
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    exports = [line for line in ON_A_RUN if line == "retina export runs/digits"]
    assert len(exports) == 2  # the README's and the guide's: a second would be refused, since the folder is taken
    for line in dict.fromkeys(ON_A_RUN):
        assert type_in(line), line
    for path in (
        "predictions/detections.json", "evaluation/metrics.json", "comparison.html", "runs/digits/report/index.html",
        "runs/digits/export/saved_model/saved_model.pb",
    ):  # fmt: skip
        assert (tmp_path / path).is_file(), path
    assert len(opened) == 1


def test_commands_on_a_folder(type_in, tmp_path, monkeypatch):
    monkeypatch.setattr(webbrowser, "open", lambda _: True)
    (tmp_path / "FOLDER").mkdir()
    yolo_files(tmp_path / "FOLDER")
    (tmp_path / "FOLDER/classes.txt").write_text("cat\n")
    for line in ON_A_FOLDER:
        assert type_in(line), line
