"""The benchmark of loaders: that they run and do the same work, and how figures become ratios and bounds."""

import json
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
from PIL import Image

from tests.scripts import SCRIPTS, load_script

SCRIPT = SCRIPTS / "benchmark_pipeline.py"


@pytest.fixture(scope="module")
def benchmark():
    return load_script("benchmark_pipeline")


def test_ratios_are_medians_of_the_rounds_and_meet_bounds_or_not(benchmark):
    # Ratios 2, 4 and 3; in processor time 0.3 / 0.1, and no figure in the other rounds.
    rounds = [
        {"retina": {"rate": 100.0, "cpu": 0.1}, "tf.data": {"rate": 50.0, "cpu": 0.3}},
        {"retina": {"rate": 400.0, "cpu": None}, "tf.data": {"rate": 100.0, "cpu": None}},
        {"retina": {"rate": 30.0, "cpu": None}, "tf.data": {"rate": 10.0, "cpu": None}},
    ]
    row = benchmark.summary("tf.data", rounds, {"tf.data": 3.0})
    assert row["ratio"] == 3 and row["ratios"] == [2, 4, 3] and row["met"] is True and row["bound"] == 3
    assert row["images_per_second"] == 50 and row["cpu_ratio"] == pytest.approx(3)
    assert benchmark.summary("tf.data", rounds, {"tf.data": 3.1})["met"] is False
    assert benchmark.summary("tf.data", rounds, {})["met"] is None
    alone = benchmark.summary("tf.data", [{"tf.data": {"rate": 5.0, "cpu": 0.1}}], {"tf.data": 3.0})
    assert alone["ratio"] is None and alone["met"] is None
    text = benchmark.table(256, {"tf.data": row, "keras-cv": {"absent": "keras_cv not installed"}}, 3)
    assert "| tf.data | 50 | 3.00 x | 2.00 to 4.00 | 300.00 | 3.00 x | 3 x: met |" in text
    assert "| keras-cv | - | - | - | - | - | keras_cv not installed |" in text


def test_boxes_lie_inside_the_picture(benchmark):
    boxes, labels = benchmark.ground_truth(5)
    assert boxes.shape == (5, 7, 4) and labels.shape == (5, 7)
    assert (boxes >= 0).all() and (boxes <= [640, 480, 640, 480]).all()
    assert (boxes[..., 2:] - boxes[..., :2] >= 19.9).all()


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--size", "0"], ["--data", "nowhere"], ["--files", "x"]])
def test_wrong_usage(benchmark, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.parse(arguments)
    assert ended.value.code == 2 and capsys.readouterr().err


@pytest.fixture(scope="module")
def files(benchmark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    assert benchmark.write_files(folder, 4, None) == "made-up pictures"
    return sorted(str(file) for file in folder.glob("*.jpg"))


def test_photographs_of_the_size_stay_as_they_are_and_others_are_resized(benchmark, tmp_path):
    data, folder = tmp_path / "data", tmp_path / "files"
    (data / "JPEGImages").mkdir(parents=True)
    folder.mkdir()
    for name, size, quality in (("a", (640, 480), 30), ("b", (320, 240), 95), ("c", (480, 640), 95)):
        Image.new("RGB", size, (200, 30, 90)).save(data / "JPEGImages" / f"{name}.jpg", quality=quality)
    said = benchmark.write_files(folder, 6, data)
    assert said == "3 photographs (1 as they are, the others resized to 640x480 at quality 90)"
    files = sorted(folder.iterdir())
    original = (data / "JPEGImages" / "a.jpg").read_bytes()
    assert [file.read_bytes() == original for file in files] == [True, False, False] * 2
    assert all(Image.open(file).size == (640, 480) for file in files)


@pytest.mark.parametrize("name", ["retina", "tf.data"])
def test_a_batch_holds_what_it_should(benchmark, files, name):
    batch = next(iter(benchmark.LOADERS[name](files, Namespace(side=128, batch=3, augment=[]))()))
    images, boxes = np.asarray(batch["images"]), np.asarray(batch["boxes"])
    assert images.shape == (3, 128, 128, 3) and boxes.shape[0] == 3 and boxes.shape[2] == 4
    assert (boxes >= 0).all() and (boxes <= 128).all() and boxes.any()
    # 4:3 pictures zoomed to at most 1.25: the lower edge is padding, the middle is not.
    assert not images[:, 122:].any() and np.abs(images[:, 30:60, 30:60]).mean() > 40


@pytest.mark.slow
def test_it_runs():
    command = [sys.executable, SCRIPT, "--size", "128", "--files", "4", "--batch", "2", "--rounds", "2"]
    command += ["--seconds", "0.2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout)
    assert report["setting"]["pictures"].startswith("made-up pictures, 4 files of ")
    rows = report["results"]["128"]
    assert {"retina", "retina, full", "retina, cached", "tf.data", "torchvision", "keras-cv"} == set(rows)
    for row in rows.values():
        assert "absent" in row or (len(row["rates"]) == 2 and min(row["rates"]) > 0 and row["met"] is None)
    assert rows["retina"]["ratio"] == 1
