"""The commands as a user runs them, each in its own process: output, exit codes, and nothing else on the screen."""

import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import retina as package
from retina import cli

COCO = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
COMMANDS = ["train", "evaluate", "predict", "config", "version"]


def chatter(text: str) -> list[str]:
    """Lines that no command of retina writes: warnings, TensorFlow's log lines, tracebacks."""
    wanted = re.compile(r"^(training on|training images: |preflight: |step \d|digits/|resumed after step)")
    return [line for line in text.splitlines() if line.strip() and not wanted.match(line)]


@pytest.fixture(scope="module")
def pictures(trained) -> list[Path]:
    folder = trained.folder / "photographs"
    folder.mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (64, 48 + 16 * number, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def main(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    """The same entry point in this process: cheaper where TensorFlow is needed again."""
    monkeypatch.setattr("sys.argv", ["retina", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


def test_train_says_what_it_does_and_where_the_run_is(trained):
    assert chatter(trained.finished.err) == []
    assert "digits/train: 16 images" in trained.finished.err and "step 6/6  loss" in trained.finished.err
    assert "The run is in run" in trained.finished.out and "retina evaluate run" in trained.finished.out


def test_evaluate_as_json(retina, trained):
    done = retina(trained.folder, "evaluate", "run", "--json", "--checkpoint", "latest")
    assert done.code == 0 and done.err == ""
    tree = json.loads(done.out)
    assert list(tree["metrics"]) == COCO
    assert list(tree["per_class"]) == [str(digit) for digit in range(10)]
    assert (tree["run"], tree["split"], tree["checkpoint"], tree["images"]) == ("run", "validation", "latest", 6)
    # What was measured while training is what the checkpoint scores.
    written = json.loads((trained.run / "eval" / "step_6" / "metrics.json").read_text())
    assert tree["metrics"] == pytest.approx(written["metrics"], abs=1e-6)
    assert tree["detections"] == written["detections"] > 0


def test_evaluate_as_tables_with_files(monkeypatch, capsys, trained, tmp_path):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = main(monkeypatch, capsys, "evaluate", trained.run, "--split", "test", "--out", tmp_path / "test")
    assert (code, err) == (0, "")
    assert "AP50" in out and "4 images" in out and "per class" in out
    plots = {f"{name}.png" for name in ("precision_recall", "confidence", "calibration", "errors", "confusion")}
    files = {path.name for path in (tmp_path / "test").iterdir()}
    # A detector of six steps finds next to nothing: the images are bad, and mistakes may be none.
    assert files - {"mistakes.png"} == plots | {
        "detections.json",
        "metrics.json",
        "predictions.png",
        "worst_images.png",
    }


def test_predict_as_json_with_pictures(retina, trained, pictures):
    done = retina(trained.folder, "predict", "run", "photographs", "--out", "found", "--score", "0.1", "--json")
    assert done.code == 0 and done.err.startswith("detects: scores above 0.05,") and done.err.count("\n") == 1
    tree = json.loads(done.out)
    assert [entry["image"] for entry in tree] == ["photographs/0.png", "photographs/1.png"]
    assert json.loads((trained.folder / "found" / "detections.json").read_text()) == tree
    for entry, source in zip(tree, pictures, strict=True):
        assert entry["detections"] and all(d["score"] >= 0.1 for d in entry["detections"])
        with Image.open(trained.folder / "found" / source.name) as drawn, Image.open(source) as photograph:
            assert drawn.width >= photograph.width
            assert np.asarray(drawn).shape[2] == 3


def test_predict_in_words(monkeypatch, capsys, trained, pictures, tmp_path):
    code, out, err = main(
        monkeypatch, capsys, "predict", trained.run, pictures[0], "--out", tmp_path / "p", "--score", "1"
    )
    assert (code, err.count("\n")) == (0, 1) and err.startswith("detects: ")
    assert out == f"{pictures[0]}: nothing found  →  {tmp_path}/p/0.png\n"
    assert (tmp_path / "p" / "0.png").is_file()


def test_predict_goes_on_past_a_bad_image_with_its_own_inference_settings(
    monkeypatch, capsys, trained, pictures, tmp_path
):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    settings = ["inference.nms_iou=0.3", "inference.class_agnostic=true", "inference.score_threshold=0.01"]
    settings += ["inference.candidates_per=image", "inference.clip=none"]
    code, out, err = main(
        monkeypatch, capsys, "predict", trained.run, tmp_path / "bad.jpg", pictures[0], "--out", tmp_path / "p",
        "--score", "0.02", *settings,
    )  # fmt: skip
    lines = err.splitlines()
    assert code == 1 and len(lines) == 3 and out.startswith(f"{pictures[0]}: ")
    assert "scores above 0.01" in lines[0] and "NMS of all classes together at IoU 0.3" in lines[0]
    assert "candidates an image" in lines[0] and "boxes not cut to the image" in lines[0]
    assert "bad.jpg: expected a JPEG" in lines[1] and "it is not an image" in lines[1]
    assert lines[2] == f"retina: 1 of 2 images could not be read; the others are in {tmp_path / 'p'}"
    written = json.loads((tmp_path / "p" / "settings.json").read_text())
    assert written["inference"]["nms_iou"] == 0.3 and written["inference"]["class_agnostic"] is True
    assert list(written["left_out"]) == [str(tmp_path / "bad.jpg")]
    (entry,) = json.loads((tmp_path / "p" / "detections.json").read_text())
    boxes = [d["box"] for d in entry["detections"]]
    assert boxes and all(iou(a, b) <= 0.3 + 1e-6 for a, b in itertools.combinations(boxes, 2))


def test_predict_in_tiles_as_a_dataset_and_again(monkeypatch, capsys, trained, pictures, tmp_path):
    for number, picture in enumerate(pictures):
        shutil.copytree(picture.parent, tmp_path / "photographs" / str(number))
    out = tmp_path / "p"
    command = ["predict", trained.run, tmp_path / "photographs", "--out", out, "--tile", "40", "--no-pictures"]
    options = ["--to", "coco", "--to", "label-studio", "--link", "--json", "--score", "0.1"]
    code, printed, err = main(monkeypatch, capsys, *command, *options)
    tree, files = json.loads(printed), len(pictures) * len(list(pictures[0].parent.iterdir()))
    assert code == 0 and len(tree) == files and (out / "detections.json").read_text() == printed
    count = sum(len(entry["detections"]) for entry in tree)
    assert count and f"{out / 'coco'}: {files} images, {count} boxes" in err.splitlines()
    assert not list(out.glob("*.png")) and (out / "label-studio" / "tasks.json").is_file()
    code, _, err = main(monkeypatch, capsys, *command, "--score", "0.1")
    assert code == 2 and "coco: it holds a dataset already, whose boxes may have been corrected" in err
    for name in ("coco", "label-studio"):
        shutil.rmtree(out / name)
    code, printed, err = main(monkeypatch, capsys, *command, "--score", "0.1")
    assert code == 0 and f"{out}: goes on after {files} of {files} images" in err and printed.count("\n") == files
    code, _, err = main(monkeypatch, capsys, *command, "--score", trained.run)
    assert code == 2 and "expected a number, or the metrics.json of an evaluation" in err


def iou(a, b):
    sides = [max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    shared = sides[0] * sides[1]
    return shared / max(sum(areas) - shared, 1e-9)  # a box may have no area


def test_evaluate_by_other_inference_settings_and_an_edited_config(monkeypatch, capsys, trained, tmp_path):
    """The settings are used, named and kept; an edit of config.yaml is not used, and that is said."""
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    text = (run / "config.yaml").read_text()
    assert text.count("max_detections: 20\n") == 1
    (run / "config.yaml").write_text(text.replace("max_detections: 20\n", "max_detections: 7\n"))
    code, out, _ = main(
        monkeypatch, capsys, "evaluate", run, "inference.max_detections=1", "--replicates", "0", "--json",
        "--out", tmp_path / "scores",
    )  # fmt: skip
    tree = json.loads(out)
    assert code == 0 and tree["detections"] <= tree["images"]
    assert tree["conventions"]["inference"].endswith("up to 1 detections an image")
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())["conventions"] == tree["conventions"]
    assert "config.yaml was edited, which has no effect" in tree["notes"][0]
    assert "(inference.max_detections (20 → 7))" in tree["notes"][0]


def test_evaluate_in_tiles_scores_what_predict_in_tiles_detects(monkeypatch, capsys, trained, tmp_path):
    data = package.load_split(package.load_config(trained.run / "config.yaml").data, "validation")
    (tmp_path / "images").mkdir()
    for identifier, image in zip(data.image_ids, data.images, strict=True):
        (tmp_path / "images" / f"{identifier}.png").write_bytes(image)
    tiles = ["evaluation.tiles.size=48", "evaluation.tiles.overlap=0.5"]
    options = ["--replicates", "0", "--json", "--out", tmp_path / "scores"]
    code, out, err = main(monkeypatch, capsys, "evaluate", trained.run, *tiles, *options)
    assert code == 0, err
    assert json.loads(out)["conventions"]["inference"].endswith(
        "up to 20 detections a tile, in tiles of 48 pixels with an overlap of 0.5, and whole"
    )
    files = [tmp_path / "images" / f"{identifier}.png" for identifier in data.image_ids]
    predicted = package.load(trained.run).predict(files, tile=48, overlap=0.5)
    expected = [
        (identifier, data.category_ids[label], float(score), [x1, y1, x2 - x1, y2 - y1])
        for identifier, detections in zip(data.image_ids, predicted, strict=True)
        for (x1, y1, x2, y2), score, label in zip(
            detections.boxes.astype(float).tolist(), detections.scores, detections.labels, strict=True
        )
    ]
    scored = json.loads((tmp_path / "scores" / "detections.json").read_text())
    rows = [(d["image_id"], d["category_id"], d["score"], d["bbox"]) for d in scored]
    assert sorted(rows) == sorted(expected) and expected


def test_config_prints_what_it_reads_again(retina, tmp_path):
    done = retina(tmp_path, "config", "run.seed=7", "optimizer.learning_rate=1e-3")
    assert done.code == 0 and done.err == ""
    tree = yaml.safe_load(done.out)
    assert tree["run"]["seed"] == 7 and tree["optimizer"]["learning_rate"] == 1e-3
    assert tree["inference"]["nms_iou"] == 0.5
    (tmp_path / "mine.yaml").write_text(done.out)
    assert retina(tmp_path, "config", "mine.yaml").out == done.out


def test_version(retina, tmp_path):
    assert retina(tmp_path, "version") == (0, f"{package.__version__}\n", "")


def test_help_names_the_commands(monkeypatch, capsys):
    code, out, err = main(monkeypatch, capsys, "--help")
    assert (code, err) == (0, "")
    assert all(re.search(rf"^  {name} ", out, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(monkeypatch, capsys, command):
    code, out, err = main(monkeypatch, capsys, command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: retina {command}")


def test_help_imports_nothing_heavy(python, tmp_path):
    code = (
        "import sys\nsys.argv = ['retina', '--help']\nfrom retina.cli import main\n"
        "try:\n    main()\nfinally:\n"
        "    heavy = {'tensorflow', 'keras', 'numpy', 'pydantic', 'PIL', 'jax', 'torch', 'rich.console'}\n"
        "    print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = python(["-c", code], tmp_path)
    assert done.code == 0 and done.err == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "No such command 'fly'"),
        (["train", "--bogus"], "No such option: --bogus"),
        (["evaluate"], "Missing argument"),
        (["evaluate", "run", "--split", "holdout"], "'holdout' is not one of"),
        (["predict", "run"], "Missing argument"),
        (["predict", "run", "x.png", "--score", "1.5"], "--score"),
    ],
)
def test_wrong_usage_is_two(monkeypatch, capsys, arguments, message):
    code, out, err = main(monkeypatch, capsys, *arguments)
    assert code == 2 and out == ""
    assert message in err and "Traceback" not in err


def test_a_defect_is_one_and_says_how_to_see_more(monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise KeyError("broken")

    monkeypatch.setattr("retina.config.load", fail)
    code, out, err = main(monkeypatch, capsys, "config")
    assert (code, out) == (1, "")
    assert err == "retina: unexpected KeyError: 'broken' (a defect of retina: `--debug` shows where)\n"


def test_a_loss_that_is_not_finite_is_one(monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise FloatingPointError("step 3: the loss is nan")

    monkeypatch.setattr("retina.config.load", fail)
    assert main(monkeypatch, capsys, "config") == (1, "", "retina: step 3: the loss is nan\n")


def test_control_c_is_130_without_traceback(monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("retina.config.load", fail)
    code, out, err = main(monkeypatch, capsys, "config")
    assert code == 128 + signal.SIGINT and out == "" and "Traceback" not in err


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_missing_backend_is_named_with_its_remedy(monkeypatch, capsys, backend):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.setattr("retina.startup.find_spec", lambda name: None)
    code, out, err = main(monkeypatch, capsys, "predict", "run", __file__)
    assert (code, out) == (2, "")
    assert err == (
        f'retina: KERAS_BACKEND={backend}: {backend} is not installed; pip install "retina-detection[{backend}]" '
        f'(in a checkout: pip install -e ".[{backend}]"), or unset KERAS_BACKEND\n'
    )


@pytest.mark.parametrize("arguments", ["guide settings", "config --explain", "--help"])
def test_a_reader_that_goes_is_no_defect(arguments, tmp_path):
    command = f"{sys.executable} -m retina {arguments} | head -n 1; echo ${{PIPESTATUS[0]}} >&2"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1
    assert done.stderr in ("0\n", "1\n"), "0 where all of it was written before the reader went"


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ("score --ground-truth gt.json --detections dt.json --out scored", "scored/metrics.json"),
        ("convert gt.json out --to yolo --split gt=train", "out/data.yaml"),
        ("evaluate {run} --replicates 0 --out evaluated", "evaluated/metrics.json"),
    ],
)
def test_a_reader_that_is_gone_costs_no_work(request, arguments, written, tmp_path):
    run = request.getfixturevalue("trained").run if "{run}" in arguments else None
    images = [{"id": 0, "file_name": "x.png", "height": 40, "width": 40}]
    thing = {"image_id": 0, "category_id": 3, "bbox": [10, 10, 20, 20]}
    categories, annotation = [{"id": 3, "name": "cat"}], {"id": 1, "area": 400, "iscrowd": 0, **thing}
    truth = {"images": images, "categories": categories, "annotations": [annotation]}
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    (tmp_path / "dt.json").write_text(json.dumps([{**thing, "score": 0.5}]))
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    command = f"{sys.executable} -m retina {arguments.format(run=run)} | true; echo ${{PIPESTATUS[0]}} >&2"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "" and done.stderr.splitlines()[-1] == "1" and "Traceback" not in done.stderr
    assert (tmp_path / written).stat().st_size and not list(tmp_path.rglob(".partial*"))


@pytest.mark.parametrize(("redirection", "says"), [(">/dev/full", "could not be written"), (">&-", ""), ("2>&-", "")])
def test_output_that_cannot_be_written_is_the_last_thing_that_fails(redirection, says, tmp_path):
    """A figure that nobody got is a failure; the words on standard error are not."""
    command = f"{sys.executable} -m retina version {redirection}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == (0 if "2>" in redirection else 1)
    assert says in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") <= 1
    assert bool(done.stdout) == ("2>" in redirection)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (PermissionError(13, "Permission denied", "/a/.partial.page.html"), 2, "/a/page.html: Permission denied; it "),
        (OSError(30, "Read-only file system", "/a/.partial.x", None, "/a/x"), 2, "/a/x: Read-only file system; it "),
        (OSError(28, "No space left on device"), 1, "No space left on device; make room, or choose another place"),
        (IsADirectoryError(21, "Is a directory", "/a"), 2, "/a: Is a directory; expected a file, it is a folder"),
        (NotADirectoryError(20, "Not a directory", "/a/b"), 2, "/a/b: Not a directory; a part of this path is a file"),
        (FileNotFoundError(2, "No such file or directory", "/a"), 2, "/a: No such file or directory; check the path"),
        (OSError(24, "Too many open files"), 1, "Too many open files; check the system"),
        (ModuleNotFoundError("No module named 'cv2'", name="cv2"), 2, "No module named 'cv2': a package is missing"),
        (ImportError("libGL.so.1: cannot open shared object file"), 2, "libGL.so.1: cannot open shared object file: "),
        (MemoryError("Unable to allocate 8 GiB"), 1, "there is no room left: Unable to allocate 8 GiB; free memory"),
        (KeyError("x"), 1, "unexpected KeyError: 'x' (a defect of retina"),
        (ModuleNotFoundError("No module named 'retina.nowhere'", name="retina.nowhere"), 1, "unexpected Mod"),
    ],
)  # fmt: skip
def test_what_the_system_refuses_is_no_defect(monkeypatch, capsys, error, code, line):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("retina.config.load", fail)
    got, out, err = main(monkeypatch, capsys, "config")
    assert (got, out) == (code, "") and err.startswith(f"retina: {line}") and err.count("\n") == 1


def test_an_unknown_backend_is_named(monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    code, _, err = main(monkeypatch, capsys, "predict", "run", __file__)
    assert code == 2 and err.startswith("retina: KERAS_BACKEND=numpy: expected tensorflow, jax or torch")


@pytest.mark.parametrize("command", ["doctor DATA --html FOLDER", "browse DATA --out FOLDER"])
def test_a_folder_in_the_place_of_a_page(monkeypatch, capsys, tmp_path, command):
    """As a user types it: the work is done, the page has no place."""
    few = "{format: digits, images: 8, size: 64, split: "
    data = tmp_path / "few.yaml"
    data.write_text(
        f"data: {{train: {few}train}}, validation: {few}validation}}}}\nschedule: {{kind: constant, steps: 1}}\n"
        "model: {backbone: resnet10}\n"
    )
    words = [{"DATA": str(data), "FOLDER": str(tmp_path)}.get(word, word) for word in command.split()]
    code, _, err = main(monkeypatch, capsys, *words)
    assert code in (1, 2) and "defect" not in err and str(tmp_path) in err and err.count("\n") == 1
