"""A whole run: its files, killed and resumed, stopped by bad numbers or images, and what Python sees of it."""

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import retina as package
from retina import config as configuration
from retina.data.load import load_split
from retina.errors import Interrupted, RetinaError
from retina.runs.checkpoint import read
from retina.runs.directory import RunDirectory
from retina.training.loop import Collaborators
from retina.training.train import train
from tests.quick_jax import QUICK_JAX

LINE = {"step", "loss", "loss_classification", "loss_box", "learning_rate", "images_per_second"}
WALL_CLOCK = {"images_per_second", "data_wait", "memory", "memory_peak", "device_memory_peak"}

# `retina train` whose process is killed in the middle of its fifth update, as a power cut would. The checkpoint of the
# third is written beside training: that it is there by then is seen to.
WAIT = "        while not os.path.exists('killed/checkpoints/latest'): time.sleep(0.01)\n"
KILLED = f"""
import os, signal, sys, time
from retina.startup import import_tensorflow_quietly
import_tensorflow_quietly()
from retina.training.step import TensorFlowStep
whole, calls = TensorFlowStep.__call__, []
def step(self, batch):
    calls.append(1)
    if len(calls) == 5:
{WAIT}        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, batch)
TensorFlowStep.__call__ = step
from retina.cli import main
sys.argv = ["retina", *sys.argv[1:]]
main()
"""

# The same with a polite request in the second update.
STOPPED = KILLED.replace(WAIT, "").replace("len(calls) == 5", "len(calls) == 2").replace("SIGKILL", "SIGTERM")


@pytest.fixture(scope="module")
def loaded(trained):
    return package.load(trained.run, "latest")


# ------------------------------------------------------------------------------------------------- a run directory


def test_the_run_directory_holds_every_file(trained):
    # Without export/: the tests of the exports share this run.
    files = {str(path.relative_to(trained.run)) for path in trained.run.rglob("*") if path.is_file()}
    files = {name for name in files if not name.startswith("export/")}
    events = {name for name in files if name.startswith("tensorboard/events.out.tfevents")}
    evaluations = {
        f"eval/step_{n}/{name}" for n in (3, 6) for name in ("metrics.json", "detections.json", "predictions.png")
    }
    whole = {"config.yaml", "environment.json", "log.txt", "metrics.jsonl", "checkpoints/best", "checkpoints/latest"}
    whole |= {"data.json", "report/index.html"}
    best = (trained.run / "checkpoints" / "best").read_text().strip()
    assert files - events == whole | evaluations | {"checkpoints/step_6.npz", f"checkpoints/{best}.npz"}
    assert len(events) == 1


def test_the_configuration_comes_back_from_the_run(trained, tiny):
    config = configuration.load(trained.run / "config.yaml")
    expected = configuration.with_absolute_root(configuration.load(None, [*tiny, f"data.root={trained.folder}"]))
    assert config == expected
    saved = read(RunDirectory.open(trained.run).checkpoint_path("latest"))
    assert saved.config == config.model_dump(mode="json")
    assert saved.step == 6 and saved.class_names == tuple("0123456789")


def test_the_environment_says_what_it_ran_on(trained):
    tree = json.loads((trained.run / "environment.json").read_text())
    assert tree["backend"] == "tensorflow" and tree["seed"] == 0 and tree["retina"] == package.__version__
    assert {"tensorflow", "keras", "numpy"} <= tree["packages"].keys()
    assert tree["devices"] and tree["python"]


def test_metrics_have_the_promised_keys(trained):
    lines = RunDirectory(trained.run).metrics()
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    for line in steps:
        assert line.keys() >= LINE
        assert all(isinstance(value, (int, float)) for value in line.values())
        assert line["loss"] == pytest.approx(line["loss_classification"] + line["loss_box"], rel=1e-5)
    # digits.yaml: 2e-3 · warm-up (0.001, 0.5005, 1, …) · cosine over five intervals
    warmup, share = [0.001, 0.5005, 1, 1, 1, 1], np.arange(6) / 5
    expected = 2e-3 * np.array(warmup) * (1 + np.cos(np.pi * share)) / 2
    assert [line["learning_rate"] for line in steps] == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-9)
    evaluations = [line for line in lines if "metrics" in line]
    assert [(line["step"], line["split"]) for line in evaluations] == [(3, "validation"), (6, "validation")]
    for line in evaluations:
        written = json.loads((trained.run / "eval" / f"step_{line['step']}" / "metrics.json").read_text())
        assert line["metrics"] == written["metrics"]


def test_the_log_has_a_time_on_every_line(trained):
    lines = (trained.run / "log.txt").read_text().splitlines()
    # The device, how images are read, two datasets, six steps, two evaluations with the losses of both modes; and what
    # the preflight and six steps' statistics warn of.
    assert len([line for line in lines if "warning: " not in line]) == 1 + 1 + 2 + 6 + 2 + 2
    assert all(line[4] == line[7] == "-" and line[10] == "T" and line[19:21] == "  " for line in lines)


def test_a_training_in_tiles_stopped_and_resumed_is_uninterrupted_bit_for_bit(tiny, tmp_path):
    tiles = "{size: 48, overlap: 0.25}"
    config = configuration.load(None, [*tiny, f"data.tiles={tiles}", f"evaluation.tiles={tiles}"])
    whole = train(config, tmp_path / "whole")
    stop = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: os.kill(os.getpid(), signal.SIGTERM) if batch == 1 else None
    )
    with pytest.raises(Interrupted, match="SIGTERM after step 2 of 6"):
        train(config, tmp_path / "stopped", callbacks=[stop])
    resumed = train(config, tmp_path / "stopped", resume=True)
    first, second = (read(RunDirectory.open(run).checkpoint_path("latest")) for run in (whole, resumed))
    assert first.step == second.step == 6 and first.arrays.keys() == second.arrays.keys()
    for name, array in first.arrays.items():
        assert array.tobytes() == second.arrays[name].tobytes(), name
    file = "eval/step_6/detections.json"
    assert (whole / file).read_bytes() == (resumed / file).read_bytes()
    assert {d["image_id"] for d in json.loads((whole / file).read_text())} <= set(range(6))  # of whole images
    log = (whole / "log.txt").read_text()
    assert "data.tiles: 16 images are 64 tiles of up to 48 pixels" in log and "no effect" not in log


# ------------------------------------------------------------------------------------------------ killed and resumed


@pytest.fixture(scope="module")
def resumed(trained, tiny, python, retina) -> Path:
    """The same settings, killed at step 5, a line torn, resumed by the command that the error message names."""
    killed = python(["-c", KILLED, "train", *tiny, "--run-dir", "killed"], trained.folder)
    run = trained.folder / "killed"
    assert killed.code == -signal.SIGKILL, killed.err
    assert RunDirectory.open(run).checkpoint_path("latest").name == "step_3.npz"
    assert [line["step"] for line in RunDirectory(run).metrics()] == [1, 2, 3, 3, 4]
    with open(run / "metrics.jsonl", "a") as out:
        out.write('{"step": 5, "loss": 1.')
    with pytest.raises(RetinaError, match=r"`retina train --run-dir \S+/killed --resume`"):
        package.train(config_of(run), run)
    done = retina(trained.folder, "train", "--run-dir", "killed", "--resume")
    assert done.code == 0, done.err
    assert "resumed after step 3" in done.err
    return run


def test_resumed_is_uninterrupted_bit_for_bit(trained, resumed):
    """Needs `run.deterministic`: TensorFlow's threads may otherwise add in another order."""
    first, second = (read(RunDirectory.open(run).checkpoint_path("latest")) for run in (trained.run, resumed))
    assert (first.step, first.config, first.best) == (second.step, second.config, second.best)
    assert first.arrays.keys() == second.arrays.keys()
    different = [name for name in first.arrays if not np.array_equal(first.arrays[name], second.arrays[name])]
    assert different == []


def test_resumed_metrics_are_those_of_the_uninterrupted_run(trained, resumed):
    first, second = (
        [{key: line[key] for key in line if key not in WALL_CLOCK} for line in RunDirectory(run).metrics()]
        for run in (trained.run, resumed)
    )
    assert first == second
    for name in ("metrics.json", "detections.json", "predictions.png"):
        file = Path("eval") / "step_6" / name
        assert (trained.run / file).read_bytes() == (resumed / file).read_bytes()
    assert (trained.run / "checkpoints" / "best").read_text() == (resumed / "checkpoints" / "best").read_text()


def config_of(run: Path, *overrides: str) -> configuration.Config:
    return configuration.load(run / "config.yaml", overrides)


def test_a_finished_run_stays_as_it_is(trained, capsys):
    before = {file: file.stat().st_mtime_ns for file in trained.run.rglob("*")}
    assert package.train(config_of(trained.run), trained.run, resume=True) == trained.run
    assert "run: this run is finished, after step 6" in capsys.readouterr().err
    assert {file: file.stat().st_mtime_ns for file in trained.run.rglob("*")} == before


def test_a_changed_config_is_not_resumed_and_the_keys_are_named(trained):
    changed = config_of(trained.run, "run.seed=5", "optimizer.learning_rate=0.5", "schedule.warmup_steps=1")
    with pytest.raises(RetinaError) as caught:
        package.train(changed, trained.run, resume=True)
    for part in ("optimizer.learning_rate (0.002 → 0.5)", "run.seed (0 → 5)", "schedule.warmup_steps (2 → 1)"):
        assert part in str(caught.value)
    assert "run.batch_size" not in str(caught.value)


def test_another_optimizer_is_not_resumed(trained):
    changed = config_of(trained.run, "optimizer={kind: sgd}")
    with pytest.raises(RetinaError, match="optimizer.kind .adamw → sgd."):
        package.train(changed, trained.run, resume=True)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_resumed(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    for path in (run / "checkpoints").glob("*.npz"):
        path.write_bytes(path.read_bytes()[:5000])
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    with pytest.raises(RetinaError, match="no checkpoint is whole: .*step_6.npz: damaged"):
        package.train(config_of(trained.run), run, resume=True)
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before


# -------------------------------------------------------------------------------------------------- bad numbers


class FakeStep:
    """Losses 1, 2, 3, … without a network behind them, until `bad` at step `when`."""

    def __init__(self, name: str = "loss", bad: float = np.nan, when: int | None = None):
        self.name, self.bad, self.when, self.calls = name, bad, when, 0

    def __call__(self, batch: dict) -> dict[str, np.ndarray]:
        self.calls += 1
        scalars = {
            "loss": self.calls,
            "loss_classification": self.calls,
            "loss_box": 0,
            "gradient_norm": 1,
            "positives": 2,
        }
        if self.calls == self.when:
            scalars[self.name] = self.bad
        return {name: np.float32(value) for name, value in scalars.items()}

    def sync(self) -> None:
        pass

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        pass

    @contextlib.contextmanager
    def averaged(self):
        yield


@pytest.fixture
def quick(tiny):
    """`quick(folder, step, *overrides)`: a training loop around a fake step and a fake network."""

    def call(folder: Path, step: FakeStep, *overrides: str) -> Path:
        config = configuration.load(None, [*tiny, "run.deterministic=false", *overrides])
        return train(config, folder, collaborators=Collaborators(step=lambda *_: step))

    return call


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [("loss", np.nan, "step 2: the loss is nan"), ("gradient_norm", np.inf, "step 2: the norm of the gradient is inf")],
)
def test_a_number_that_is_not_finite_ends_the_run_before_it_is_saved(quick, tmp_path, name, bad, message):
    overrides = ("run.log_every=6", "run.evaluate_every=6", "run.checkpoint_every=4")
    with pytest.raises(FloatingPointError, match=f"{message}; lower optimizer.learning_rate"):
        quick(tmp_path / "run", FakeStep(name, bad, when=2), *overrides)
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_logged_losses_are_means_since_the_last_line(quick, tmp_path):
    run = quick(tmp_path / "run", FakeStep(), "run.log_every=4", "run.checkpoint_every=null", "run.evaluate_every=null")
    lines = [line for line in RunDirectory(run).metrics() if "loss" in line]
    assert [(line["step"], line["loss"]) for line in lines] == [(4, 2.5), (6, 5.5)]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best", "latest", "step_6.npz"]


# --------------------------------------------------------------------------------------------------- bad images


def coco(folder: Path, images: int = 4) -> configuration.Config:
    """A COCO data set of grey images with one box each."""
    (folder / "images").mkdir(parents=True)
    for number in range(images):
        Image.fromarray(np.full((64, 64, 3), 40 * number, np.uint8)).save(folder / "images" / f"{number}.jpg")
    tree = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 64, "height": 64} for n in range(images)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": n + 1, "image_id": n, "category_id": 1, "bbox": [8, 8, 24, 24], "area": 576, "iscrowd": 0}
            for n in range(images)
        ],
    }
    (folder / "all.json").write_text(json.dumps(tree))
    return configuration.load(
        None,
        [
            f"data={{root: {folder}, train: {{format: coco, annotations: all.json, images: images}}, "
            "validation: {format: coco, annotations: all.json, images: images}, "
            "resize: {short: 64, long: 64, multiple: 32}}",
            "schedule={kind: cosine, steps: 2}",
            "run={batch_size: 4}",
            "model.fpn={channels: 16, max_level: 5}",
            "model.head={channels: 16, layers: 1}",
        ],
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:400]), "damaged or cut short"),
        (lambda file: file.write_bytes(b""), "it is empty"),
        (lambda file: file.write_bytes(b"no image"), "it is not an image"),
        (lambda file: Image.new("RGB", (32, 48)).save(file), "expected 64x64 pixels .* the image has 32x48"),
    ],
)
def test_a_bad_image_ends_training_by_its_name(tmp_path, damage, message):
    config = coco(tmp_path / "data")
    damage(tmp_path / "data" / "images" / "2.jpg")
    with pytest.raises(RetinaError, match=f"images/2.jpg: .*{message}"):
        train(config, tmp_path / "run", collaborators=Collaborators(step=lambda *_: FakeStep()))


# ------------------------------------------------------------------------------------------------------- Python


def test_load_predicts_what_evaluate_measured(trained, loaded):
    """Paths, arrays and lists through the trained detector give the detections that the run wrote down."""
    dataset = load_split(loaded.config.data, "validation")
    written = json.loads((trained.run / "eval" / "step_6" / "detections.json").read_text())
    assert len(written) > 0
    files = []
    for number, image in enumerate(dataset.images[:2]):
        files.append(trained.folder / f"validation_{number}.png")
        files[-1].write_bytes(image)
    for number, found in enumerate(loaded.predict(files)):
        mine = [d for d in written if d["image_id"] == dataset.image_ids[number]]
        assert len(found) == len(mine) > 0
        np.testing.assert_allclose(found.scores, [d["score"] for d in mine], atol=1e-4)
        xywh = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], axis=1)
        np.testing.assert_allclose(xywh, [d["bbox"] for d in mine], atol=1e-3)
        assert [dataset.category_ids[label] for label in found.labels] == [d["category_id"] for d in mine]
        pixels = np.asarray(Image.open(files[number]).convert("RGB"))
        np.testing.assert_array_equal(loaded.predict(pixels)[0].scores, found.scores)
    assert loaded.predict([]) == []
    with pytest.raises(RetinaError, match="uint8"):
        loaded.predict(np.zeros((64, 64, 3), np.float32))


def test_checkpoints_by_name(trained):
    with pytest.raises(RetinaError, match="step_99.npz: no such checkpoint"):
        package.load(trained.run, "step_99")
    with pytest.raises(RetinaError, match="not a run directory"):
        package.load(trained.folder)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_train_resume_and_evaluate(backend, retina, tiny, tmp_path):
    pytest.importorskip(backend)
    settings = [*tiny, "run.deterministic=false"]
    first = retina(tmp_path, "train", *settings, "--run-dir", "run", KERAS_BACKEND=backend, **QUICK_JAX)
    assert first.code == 0, first.err
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["backend"] == backend
    losses = [line["loss"] for line in RunDirectory(tmp_path / "run").metrics() if "loss" in line]
    assert len(losses) == 6 and np.isfinite(losses).all()
    # A checkpoint is the same on every backend.
    on_tensorflow, on_its_own = (
        retina(tmp_path, "evaluate", "run", "--json", "--checkpoint", "latest", KERAS_BACKEND=name, **QUICK_JAX)
        for name in ("tensorflow", backend)
    )
    assert on_tensorflow.code == on_its_own.code == 0, on_its_own.err
    first_figures, second_figures = (json.loads(done.out)["metrics"] for done in (on_tensorflow, on_its_own))
    assert first_figures == pytest.approx(second_figures, abs=1e-3)


def test_a_run_told_to_stop_writes_its_checkpoint_and_goes_on_from_there(trained, tiny, python, retina, tmp_path):
    config = [*tiny, f"data.root={trained.folder}"]
    stopped = python(["-c", STOPPED, "train", *config, "--run-dir", "run"], tmp_path)
    assert stopped.code == 75, stopped.err
    assert "SIGTERM after step 2 of 6" in stopped.err and "retina train --run-dir run --resume" in stopped.err
    assert read(RunDirectory.open(tmp_path / "run").checkpoint_path("latest")).step == 2
    resumed = retina(tmp_path, "train", "--run-dir", "run", "--resume")
    assert resumed.code == 0, resumed.err
    ours, theirs = (read(RunDirectory.open(run).checkpoint_path("latest")) for run in (tmp_path / "run", trained.run))
    assert ours.arrays.keys() == theirs.arrays.keys()
    for name, array in theirs.arrays.items():
        np.testing.assert_array_equal(ours.arrays[name], array, err_msg=name)
