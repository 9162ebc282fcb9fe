"""`retina compare` on files and on runs: figures, tables, exit codes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import retina
from retina import cli


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def retina_here(monkeypatch, capsys, tmp_path) -> Callable[..., Done]:
    """The command line in this process, started in `tmp_path`, on a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: object) -> Done:
        monkeypatch.setattr("sys.argv", ["retina", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return Done(stop.value.code or 0, *capsys.readouterr())

    return call


@pytest.fixture
def files(tmp_path) -> Path:
    """Twenty images with a cat each and one dog in all: A misses every fourth cat, B none; nobody finds the dog."""
    boxes = [(image, 1) for image in range(20)] + [(3, 7)]
    truth = {
        "images": [{"id": image, "file_name": f"{image}.jpg", "width": 64, "height": 64} for image in range(20)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 8, "name": "[red]emu"}],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": [4, 4, 20, 20], "area": 400, "iscrowd": 0}
            for n, (image, category) in enumerate(boxes)
        ],
    }
    found = [
        {"image_id": image, "category_id": 1, "bbox": [4, 4, 20, 20], "score": 0.9 - image / 100} for image in range(20)
    ]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "a.json").write_text(json.dumps([entry for entry in found if entry["image_id"] % 4]))
    (tmp_path / "b.json").write_text(json.dumps(found))
    return tmp_path


FILES = ("a.json", "b.json", "--ground-truth", "truth.json")


def test_files_as_json(retina_here, files):
    done = retina_here("compare", *FILES, "--json", "--replicates", 200, "--seed", 3)
    assert (done.code, done.err) == (0, "")
    tree = json.loads(done.out)
    assert list(tree) == [
        "a", "b", "metrics", "per_class", "images", "replicates", "seed", "level", "method", "verdict",
    ]  # fmt: skip
    assert (tree["a"], tree["b"], tree["images"], tree["replicates"], tree["seed"]) == ("a.json", "b.json", 20, 200, 3)
    assert list(tree["metrics"]) == ["AP", "AP50", "AP75"]
    # 15 of 20 cats: the recalls up to 0.75 are 76 of 101; the dog halves the mean.
    overall = tree["metrics"]["AP"]
    assert (overall["a"], overall["b"]) == pytest.approx((76 / 101 / 2, 0.5))
    assert 0 < overall["low"] < overall["difference"] < overall["high"] and overall["superiority"] > 0.99
    assert tree["per_class"]["cat"]["boxes"] == 20
    assert tree["per_class"]["cat"]["AP"]["difference"] == pytest.approx(25 / 101)
    assert tree["per_class"]["dog"]["AP"]["superiority"] == 0.5
    assert tree["per_class"]["[red]emu"]["AP"]["difference"] is None
    assert tree["verdict"].startswith("B is better by 0.1")


def test_files_as_tables(retina_here, files):
    done = retina_here("compare", *FILES, "--replicates", 50, "--level", 0.9)
    assert (done.code, done.err) == (0, "")
    assert "A: a.json" in done.out and "20 images, 21 boxes" in done.out and "90 % interval" in done.out
    assert "P(B > A)" in done.out and "no ground truth" in done.out and "[red]emu" in done.out
    assert done.out.splitlines()[-1].startswith("B is better by 0.1")
    turned = retina_here("compare", "b.json", "a.json", "--ground-truth", "truth.json", "--replicates", 50)
    assert turned.out.splitlines()[-1].startswith("A is better by 0.1")


def test_files_need_no_tensorflow(python, files):
    code = (
        "import sys; from retina.training.comparing import compare; "
        "compare('a.json', 'b.json', ground_truth='truth.json', replicates=2); "
        "assert not {'tensorflow', 'keras', 'matplotlib'} & set(sys.modules)"
    )
    done = python(["-c", code], files)
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.json", "b.json"), "a.json: expected a run directory, got a file; add --ground-truth to compare files"),
        (("missing", "b.json"), "b.json: expected a run directory, got a file"),
        (("missing", "."), "missing: not a run directory (no such folder)"),
        (
            (".", "b.json", "--ground-truth", "truth.json"),
            ".: expected a COCO results file beside --ground-truth, got a",
        ),
        (("missing.json", *FILES[1:]), "missing.json"),
        ((*FILES[:3], "missing.json"), "missing.json"),
        ((*FILES, "--checkpoint", "best"), "--checkpoint best: it has no effect on results files"),
        ((*FILES, "--split", "test"), "has no effect on ground truth of format 'coco'"),
        ((*FILES, "--replicates", 0), "replicates: expected at least 1, got 0"),
        ((*FILES, "--seed", -1), "seed: expected a whole number"),
        ((*FILES, "--level", 95), "level: expected a number between 0 and 1, got 95"),
        (("truth.json", *FILES[1:]), "truth.json"),
    ],
)
def test_bad_input(retina_here, files, arguments, message):
    done = retina_here("compare", *arguments)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert message in done.err


def test_runs(retina_here, trained):
    done = retina_here("compare", trained.run, trained.run, "--split", "test", "--json", "--replicates", 5)
    assert done.code == 0
    tree = json.loads(done.out)
    assert tree["images"] == 4
    overall = tree["metrics"]["AP"]
    assert (overall["difference"], overall["superiority"]) == (0, 0.5)
    metrics, _, _ = retina.evaluate(trained.run, "test")
    assert overall["a"] == pytest.approx(metrics.metrics["AP"], abs=1e-12)
    per_class = {name: figures["AP"]["a"] for name, figures in tree["per_class"].items()}
    expected = {name: figures["AP"] for name, figures in metrics.per_class.items()}
    assert {name: -1 if value is None else value for name, value in per_class.items()} == pytest.approx(expected)


def test_runs_with_other_limits_are_refused(retina_here, trained, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(trained.run, other)
    config = other / "config.yaml"
    changed = config.read_text().replace("max_detections:\n  - 1\n  - 10\n  - 100", "max_detections: [1, 10, 50]")
    assert changed != config.read_text()
    config.write_text(changed)
    done = retina_here("compare", trained.run, other)
    assert done.code == 2 and "evaluation.max_detections: expected the same to compare, got 100 and 50" in done.err
