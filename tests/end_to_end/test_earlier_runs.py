"""A run, its SavedModel and a study that 0.1.0 wrote on 2026-11-29, before the modules moved: they still serve."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

import retina
from retina import cli
from retina.data.detections import DetectionTable
from retina.data.load import load_split
from retina.private_names import all_layers
from retina.runs.checkpoint import read
from retina.runs.directory import LATEST, RunDirectory

FIXTURES = Path(__file__).parents[1] / "fixtures"
STEP = 2


def unpacked(name: str, folder: Path) -> Path:
    with tarfile.open(FIXTURES / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / name


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return unpacked("run", tmp_path_factory.mktemp("earlier"))


@pytest.fixture
def main(monkeypatch, capsys):
    """`main(*arguments)`: exit code, standard output and standard error of `retina`."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["retina", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return call


def rows(image_ids, category_ids, corners, scores) -> np.ndarray:
    """[D, 7] of image id, category id, box and score, in an order that a last bit of a score does not change."""
    table = np.column_stack([image_ids, category_ids, corners, scores]).astype(np.float64)
    return table[np.lexsort(np.round(table[:, 5::-1].T, 1))]


def stored(run: Path) -> np.ndarray:
    """The detections that the run wrote down, with corners in place of width and height."""
    detections = json.loads((run / "eval" / f"step_{STEP}" / "detections.json").read_text())
    corners = np.array([detection["bbox"] for detection in detections])
    corners[:, 2:] += corners[:, :2]
    names = ("image_id", "category_id", "score")
    images, categories, scores = ([detection[name] for detection in detections] for name in names)
    return rows(images, categories, corners, scores)


def assert_as_stored(found: np.ndarray, run: Path) -> None:
    expected = stored(run)
    assert len(expected) == 40
    np.testing.assert_array_equal(found[:, :2], expected[:, :2])
    np.testing.assert_allclose(found[:, 2:6], expected[:, 2:6], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found[:, 6], expected[:, 6], rtol=1e-4)


def test_the_run_detects_what_it_wrote_down(run):
    metrics, table, dataset = retina.evaluate(run, "validation", checkpoint=f"step_{STEP}")
    assert isinstance(table, DetectionTable)
    categories = np.array(dataset.category_ids)[table.labels]
    assert_as_stored(rows(np.array(dataset.image_ids)[table.image], categories, table.boxes, table.scores), run)
    document = json.loads((run / "eval" / f"step_{STEP}" / "metrics.json").read_text())
    assert metrics.metrics == document["metrics"]


def test_batch_norm_momentum_null_means_the_backbones(run):
    """MobileNetV3 of keras-cv has 0.999; the package's default has become another one since."""
    predictor = retina.load(run, f"step_{STEP}")
    assert predictor.config.model.batch_norm_momentum is None
    layers = all_layers(predictor.detector.backbone)
    assert {layer.momentum for layer in layers if type(layer).__name__.endswith("BatchNormalization")} == {0.999}


def test_the_saved_model_detects_the_same(run):
    export = retina.load(run / "export" / "saved_model")
    dataset = load_split(export.config.data, "validation")
    detections = export.predict(list(dataset.images))
    counts = [len(image) for image in detections]
    labels = np.concatenate([image.labels for image in detections])
    found = rows(
        np.repeat(np.array(dataset.image_ids), counts),
        np.array(dataset.category_ids)[labels],
        np.concatenate([image.boxes for image in detections]),
        np.concatenate([image.scores for image in detections]),
    )
    assert_as_stored(found, run)


def test_the_run_is_resumed_to_its_end(run, main, tmp_path):
    resumed = RunDirectory(Path(shutil.copytree(run, tmp_path / "resumed")))
    code, _, error = main("train", "--run-dir", resumed.path, "--resume")
    assert code == 0, error
    assert f"resumed after step {STEP}" in (resumed.path / "log.txt").read_text()
    assert read(resumed.checkpoint_path(LATEST)).step == 4
    earlier, lines = RunDirectory(run).metrics(), resumed.metrics()
    assert lines[:2] == earlier and [line["step"] for line in lines] == [2, 2, 4, 4]
    assert np.isfinite(lines[2]["loss"])
    assert "this run is finished, after step 4" in main("train", "--run-dir", resumed.path, "--resume")[2]


def test_the_report_of_a_study_is_rebuilt(main, tmp_path):
    study = unpacked("study", tmp_path)
    before = json.loads((study / "study.json").read_text())
    for name in ("study.json", "study.csv", "study.txt"):
        (study / name).unlink()
    code, _, error = main("ablate", "--report", study)
    assert code == 0, error
    after = json.loads((study / "study.json").read_text())
    for key in ("baseline", "seeds", "images", "replicates", "settings", "trials"):
        assert after[key] == before[key], key
    assert (study / "study.html").is_file() and (study / "study.csv").is_file()
