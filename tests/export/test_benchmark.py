"""`retina benchmark`: figures of known times, and one real measurement of each kind."""

import json
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import retina.runs.loading
from retina.commands.benchmark import benchmark as command
from retina.commands.benchmark import table
from retina.errors import RetinaError
from retina.export import benchmark as module
from retina.export.benchmark import Benchmark, Timing, benchmark, synthetic_image
from tests.export.small import noise

if keras.backend.backend() != "tensorflow":
    pytest.skip("exports are written on TensorFlow", allow_module_level=True)

from retina.data.images import load_image

STAGES = {
    "onnx": ["decode", "resize", "network", "nms"],
    "litert": ["decode", "resize", "network", "nms"],
    "saved_model": ["decode", "network", "resize and nms"],
}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batches": ()}, r"expected batches of at least 1, got \[\]"),
        ({"batches": (1, 0)}, r"expected batches of at least 1, got \[1, 0\]"),
        ({"repeats": 0}, r"expected repeats of at least 1, got \[0\]"),
        ({"images": [Path("nowhere.jpg")]}, "nowhere.jpg: expected an image file"),
        ({}, "expected a run directory or an export"),
    ],
)
def test_what_cannot_be_measured(tmp_path, settings, message):
    with pytest.raises(RetinaError, match=message):
        benchmark(tmp_path, **settings)


def test_a_broken_image_is_an_error(litert_file):
    with pytest.raises(RetinaError, match="it is not an image"):
        benchmark(litert_file, images=[b"no image"], repeats=1, batches=(1,))


def test_figures_of_known_times():
    timing = Timing(4, tuple(np.arange(1, 101) / 100), {"decode": 0.25, "network": 0.75})
    assert timing.percentile(50) == pytest.approx(0.505)
    assert timing.images_per_second == pytest.approx(4 * 100 / 50.5)
    assert timing.to_json() == {
        "batch": 4,
        "batches": 100,
        "seconds": {"median": pytest.approx(0.505), "p90": pytest.approx(0.901), "p99": pytest.approx(0.9901)},
        "images_per_second": pytest.approx(7.92079),
        "shares": {"decode": 0.25, "network": 0.75},
    }


def test_shares_are_medians_and_no_difference_is_negative():
    rounds = [{"a": 1.0, "b": 3.0, "c": -0.5}, {"a": 1.0, "b": 3.0, "c": 0.1}, {"a": 100.0, "b": 3.0, "c": -0.2}]
    assert module._shares(rounds) == {"a": 0.25, "b": 0.75, "c": 0.0}


def test_batches_stages_and_warm_up_are_counted(monkeypatch):
    """A target that takes 5 ms an image: two images, three batches of each size, one round before them."""
    calls: list[tuple[str, bytes, int]] = []

    def detect(files):
        calls.append(("detect", files[0], len(files)))
        time.sleep(0.005 * len(files))

    def stages(files):
        calls.append(("stages", files[0], len(files)))
        return {"decode": 1.0, "network": 3.0}

    monkeypatch.setattr(module, "_open", lambda path, checkpoint: module._Target("run", "x", detect, stages))
    found = benchmark("any", batches=(1, 2), images=[b"a", b"b"], repeats=3)
    for timing, size in zip(found.timings, (1, 2), strict=True):
        assert timing.batch == size and len(timing.seconds) == 3
        assert 0.005 * size <= min(timing.seconds)
        assert timing.shares == {"decode": 0.25, "network": 0.75}
        counted = [image for kind, image, n in calls if kind == "detect" and n == size]
        assert counted == [b"a", b"b", b"a", b"b", b"a"]
    assert found.images == "2 given"


def test_the_synthetic_image_is_always_the_same_photograph_like_file():
    assert synthetic_image() == synthetic_image()
    assert load_image(synthetic_image()).shape == (480, 640, 3)
    assert 30_000 < len(synthetic_image()) < 200_000  # a photograph of this size: 50 to 150 kB


@pytest.mark.parametrize("kind", sorted(STAGES))
def test_exports_are_measured(request, kind, tmp_path):
    path = request.getfixturevalue({"saved_model": "saved_model_folder"}.get(kind, f"{kind}_file"))
    Image.fromarray(noise(50, 60)).save(tmp_path / "a.png")
    found = benchmark(path, batches=(2,), images=[tmp_path / "a.png"], repeats=2)
    assert found.kind == kind
    for timing in found.timings:
        assert list(timing.shares) == STAGES[kind]
        assert sum(timing.shares.values()) == pytest.approx(1)
        assert timing.shares["network"] > 0.05 and len(timing.seconds) == 2


def test_a_run_is_measured(monkeypatch, tmp_path, small_predictor):
    (tmp_path / "config.yaml").write_text("")
    monkeypatch.setattr(retina.runs.loading, "load", lambda path, checkpoint: small_predictor)
    found = benchmark(tmp_path, batches=(2,), repeats=1)
    assert (found.kind, found.images) == ("run", "synthetic, 640x480")
    assert list(found.timings[0].shares) == ["decode", "resize", "network", "nms"]


def test_the_command_prints_a_table_or_json(monkeypatch, capsys):
    timing = Timing(2, (0.1, 0.1), {"decode": 0.25, "network": 0.75})
    found = Benchmark(Path("model.onnx"), "onnx", "1 given", "its parts", (timing,))
    seen = {}
    monkeypatch.setattr(module, "benchmark", lambda path, **settings: seen.update(settings) or found)
    command(Path("model.onnx"), batch="1,2", images=None, repeats=5, checkpoint="best", as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["format"] == "onnx" and printed["timings"][0]["seconds"]["p99"] == pytest.approx(0.1)
    assert seen == {"batches": [1, 2], "images": (), "repeats": 5, "checkpoint": "best"}
    columns = [[str(cell) for cell in column.cells] for column in table(found).columns]
    assert columns == [["2"], ["100.0"], ["100.0"], ["100.0"], ["20.00"], ["25%"], ["75%"]]
    command(Path("model.onnx"), batch="1", images=None, repeats=5, checkpoint="best", as_json=False)
    assert "Stages: its parts. Images: 1 given." in capsys.readouterr().out
    with pytest.raises(RetinaError, match="--batch: expected whole numbers"):
        command(Path("model.onnx"), batch="one", images=None, repeats=5, checkpoint="best", as_json=True)
