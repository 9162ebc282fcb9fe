"""`retina compare` on files and on runs: figures, tables, exit codes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
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
    # Of a single image with dogs every resample is the same.
    assert (tree["per_class"]["dog"]["AP"]["difference"], tree["per_class"]["dog"]["AP"]["superiority"]) == (0, None)
    assert tree["per_class"]["[red]emu"]["AP"]["difference"] is None
    assert tree["verdict"].startswith("B is better by 0.1")


def test_files_as_tables(retina_here, files):
    done = retina_here("compare", *FILES, "--replicates", 100, "--level", 0.9)
    assert (done.code, done.err) == (0, "")
    assert "A: a.json" in done.out and "20 images, 21 boxes" in done.out and "90 % interval" in done.out
    assert "P(B > A)" in done.out and "no ground truth" in done.out and "[red]emu" in done.out
    assert done.out.splitlines()[-1].startswith("B is better by 0.1")
    turned = retina_here("compare", "b.json", "a.json", "--ground-truth", "truth.json", "--replicates", 100)
    assert turned.out.splitlines()[-1].startswith("A is better by 0.1")


def test_files_need_no_tensorflow(python, files):
    code = (
        "import sys; from retina.api import compare; "
        "compare('a.json', 'b.json', ground_truth='truth.json', replicates=100); "
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
        ((*FILES, "--replicates", 0), "replicates: expected at least 100, got 0"),
        ((*FILES, "--seed", -1), "seed: expected a whole number"),
        ((*FILES, "--level", 95), "level: expected a number between 0 and 1, got 95"),
        (("truth.json", *FILES[1:]), "truth.json"),
    ],
)
def test_bad_input(retina_here, files, arguments, message):
    done = retina_here("compare", *arguments)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert message in done.err


def of_its_own_detections(trained, folder):
    """`data.test` as a COCO file whose boxes are the very ones that the run's best checkpoint finds there."""
    _, found, dataset = retina.evaluate(trained.run, "test")
    (folder / "images").mkdir()
    for row, image in enumerate(dataset.images):
        (folder / "images" / f"{row}.png").write_bytes(image)
    tree = {
        "images": [
            {"id": row, "file_name": f"{row}.png", "height": int(height), "width": int(width)}
            for row, (height, width) in enumerate(dataset.sizes)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(dataset.class_names, start=1)],
        "annotations": [
            {"id": n, "image_id": int(image), "category_id": int(label) + 1, "bbox": [x, y, u - x, v - y], "iscrowd": 0}
            for n, (image, label, (x, y, u, v)) in enumerate(
                zip(found.image, found.labels, found.boxes.tolist(), strict=True), start=1
            )
        ],
    }
    (folder / "test.json").write_text(json.dumps(tree))
    return {"format": "coco", "annotations": str(folder / "test.json"), "images": str(folder / "images")}


def with_best(run, folder, step, source):
    """A copy of a run whose best checkpoint is that of `step`, and whose test data is `source`."""
    from retina.runs.checkpoint import read, save

    shutil.copytree(run, folder)
    (folder / "checkpoints/best").write_text(f"step_{step}\n")
    file = folder / f"checkpoints/step_{step}.npz"
    checkpoint = read(file)
    config = checkpoint.config | {"data": checkpoint.config["data"] | {"test": source}}
    save(file, replace(checkpoint, config=config))
    return folder


def test_runs(retina_here, trained, tmp_path):
    """The first finds each box of its own; three updates later some lie elsewhere."""
    source = of_its_own_detections(trained, tmp_path)
    # Nothing is learned in six steps, so the first evaluation stays the best.
    assert (trained.run / "checkpoints/best").read_text() == "step_3\n"
    a, b = (with_best(trained.run, tmp_path / name, step, source) for name, step in (("a", 3), ("b", 6)))
    done = retina_here("compare", a, b, "--split", "test", "--json", "--replicates", 100)
    assert done.code == 0, done.err
    tree = json.loads(done.out)
    assert tree["images"] == 4
    overall = tree["metrics"]["AP"]
    assert overall["a"] == pytest.approx(1.0, abs=1e-12) and 0 < overall["b"] < 0.9
    assert overall["difference"] == pytest.approx(overall["b"] - overall["a"], abs=1e-12)
    assert overall["superiority"] == 0.0 and tree["verdict"].startswith("A is better by")
    metrics, _, _ = retina.evaluate(b, "test")
    assert overall["b"] == pytest.approx(metrics.metrics["AP"], abs=1e-12)
    per_class = {name: figures["AP"]["b"] for name, figures in tree["per_class"].items()}
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
