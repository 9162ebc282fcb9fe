"""What a run goes on with: its own data, checkpoints that can be read, and its place among the hosts."""

import errno
import json
import os
import shutil
import signal
import subprocess
import threading
from dataclasses import replace

import keras
import pytest
from PIL import Image

from retina import cli
from retina import config as configuration
from retina.data.formats.digits import read_digits
from retina.data.images import unusable
from retina.data.load import load_split
from retina.errors import Interrupted, RetinaError
from retina.runs import checkpoint as checkpoints
from retina.runs.checkpoint import DamagedCheckpoint, read
from retina.runs.directory import LATEST, RunDirectory, resume_command
from retina.training import resuming
from retina.training import train as training
from tests.training import stand_ins


@pytest.fixture(scope="module")
def data():
    return read_digits("train", 8, 64), read_digits("validation", 4, 64)


@pytest.fixture(scope="module")
def go(data):
    """`go(path, *overrides, tables=…, **arguments)`: a training with stand-ins."""

    def call(path, *overrides, tables=data, **arguments):
        config = configuration.load(None, [*stand_ins.SETTINGS, *overrides])
        arguments |= {"train_data": tables[0], "validation_data": tables[1]}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)
            return RunDirectory(training.train(config, path, collaborators=stand_ins.collaborators(), **arguments))

    return call


class At(keras.callbacks.Callback):
    """Sends a signal after a step of the run, counted from 1."""

    def __init__(self, step, number=signal.SIGTERM):
        super().__init__()
        self.left, self.number = step, number

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def interrupted(go, tmp_path_factory):
    """A run that was interrupted after step 7, to copy."""
    path = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.raises(Interrupted):
        go(path, callbacks=[At(7)])
    return path


@pytest.fixture
def stopped(interrupted, tmp_path):
    """A run that was interrupted after step 7."""
    return RunDirectory(shutil.copytree(interrupted, tmp_path / "run"))


def command(monkeypatch, *arguments):
    """The exit code of `retina`."""
    monkeypatch.setattr("sys.argv", ["retina", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0


def contents(run):
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


def log(run):
    return (run.path / "log.txt").read_text()


# ------------------------------------------------------------------------------------------------------- the data


def test_a_run_says_what_data_it_is_made_of(stopped, data):
    found = json.loads((stopped.path / "data.json").read_text())
    assert {split: (one["images"], one["boxes"]) for split, one in found.items()} == {
        "train": (8, len(data[0].boxes)),
        "validation": (4, len(data[1].boxes)),
    }


@pytest.mark.parametrize("split", [0, 1])
def test_other_data_are_refused_and_nothing_is_touched(go, stopped, data, split):
    labels = data[split].labels.copy()
    labels[0] = (labels[0] + 1) % 10
    tables = list(data)
    tables[split] = replace(data[split], labels=labels)
    before = contents(stopped)
    name = ("train", "validation")[split]
    with pytest.raises(RetinaError, match=rf"cannot resume on other data.*: {name} \(other labels\); .*--changed-data"):
        go(stopped.path, resume=True, tables=tables)
    assert contents(stopped) == before
    assert go(stopped.path, resume=True).pointed_step(LATEST) == 20


def test_other_data_may_be_accepted_and_are_the_runs_from_then_on(go, stopped, data):
    tables = (data[0].subset(range(7)), data[1])
    with pytest.raises(Interrupted):
        go(stopped.path, resume=True, tables=tables, changed_data=True, callbacks=[At(2)])
    assert "resumed on other data, as --changed-data allows: train (images 8 → 7, boxes" in log(stopped)
    with pytest.raises(RetinaError, match=r"train \(images 7 → 8"):
        go(stopped.path, resume=True)
    assert go(stopped.path, resume=True, tables=tables).pointed_step(LATEST) == 20


def test_a_run_of_an_earlier_version_goes_on_with_a_note(go, stopped, data):
    (stopped.path / "data.json").unlink()
    go(stopped.path, resume=True)
    assert "does not say what data it began with" in log(stopped)
    assert stopped.fingerprints()["train"]["images"] == 8


def test_a_run_without_a_checkpoint_begins_with_the_data_at_hand(go, stopped, data):
    for path in (stopped.path / "checkpoints").iterdir():
        path.unlink()
    go(stopped.path, resume=True, tables=(data[0].subset(range(6)), data[1]))
    assert stopped.fingerprints()["train"]["images"] == 6


@pytest.fixture
def of_files(tmp_path, monkeypatch):
    """`of_files(*overrides, **arguments)`: a training with stand-ins on eight PNGs, four steps an epoch."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number in range(8):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
        annotations.append({"id": number + 1, "image_id": number, "category_id": 1, "bbox": [8, 8, 40, 40]})
    tree = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "ring"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(tree))
    monkeypatch.setattr(os, "fsync", lambda _: None)

    def call(*overrides, **arguments):
        train = f"data.train={{format: coco, annotations: {tmp_path}/boxes.json, images: {tmp_path}/images}}"
        given = [*stand_ins.SETTINGS, train, "data.validation=null", "run.preflight=off", *overrides]
        config = configuration.load(None, given)
        path = tmp_path / "run"
        return RunDirectory(training.train(config, path, collaborators=stand_ins.collaborators(), **arguments)), config

    return call


@pytest.mark.parametrize("used", [False, True])
def test_images_that_went_bad_may_be_left_out_on_resume_unless_a_step_has_used_them(of_files, tmp_path, used):
    with pytest.raises(Interrupted):
        of_files(callbacks=[At(3)])
    config = configuration.load(tmp_path / "run" / "config.yaml")
    rows = resuming._used(load_split(config.data, "train"), config, 3).tolist()
    assert len(rows) == 6, "three steps of two images each"
    number = rows[0] if used else next(row for row in range(8) if row not in rows)
    whole = (tmp_path / "images" / f"{number}.png").read_bytes()
    (tmp_path / "images" / f"{number}.png").write_bytes(whole[:60])
    fault = unusable(load_split(config.data, "train"), range(8))
    assert f"{number}.png" in str(fault) and "; data.invalid_images=skip leaves such images out, with --resume" in str(
        fault
    )
    if used:
        with pytest.raises(RetinaError, match=rf"images that the run has used already \({number}\).*--changed-data"):
            of_files("data.invalid_images=skip", resume=True)
        return
    run, _ = of_files("data.invalid_images=skip", resume=True)
    assert run.pointed_step(LATEST) == 20 and run.fingerprints()["train"]["images"] == 7
    assert f"resumed without 1 image that no step has used ({number})" in log(run)
    assert of_files("data.invalid_images=skip", resume=True)[0].steps() == run.steps()


def test_an_example_of_several_images_counts_as_all_of_them(of_files):
    config = configuration.load(None, [*stand_ins.SETTINGS, "data.augment.mosaic={probability: 0.5}"])
    data = read_digits("train", 8, 64)
    assert len(resuming._used(data, config, 1)) == 8 and len(resuming._used(data, config, 0)) == 0


def test_the_folder_of_the_data_may_move(go, stopped, tmp_path):
    go(stopped.path, f"data.root={tmp_path}/moved", resume=True)
    assert "resumed with a changed config: data.root (" in log(stopped)


def test_it_may_not_where_the_data_can_not_be_compared(go, stopped, tmp_path):
    (stopped.path / "data.json").unlink()
    with pytest.raises(RetinaError, match=r"cannot resume with a changed config: data\.root"):
        go(stopped.path, f"data.root={tmp_path}/moved", resume=True)


def test_accepting_other_data_without_resuming_is_no_silent_wish(capsys, monkeypatch):
    assert command(monkeypatch, "train", "--changed-data", "--run-dir", "nowhere") == 2
    assert "--changed-data: it has an effect on a run that goes on only" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- the checkpoint


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.ENOMEM])
def test_a_disk_that_can_not_be_read_now_stops_the_resume_and_removes_nothing(go, stopped, monkeypatch, number):
    before = contents(stopped)

    def failing(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as here:
        here.setattr(checkpoints.np, "load", failing)
        with pytest.raises(RetinaError, match=rf"step_7\.npz: .* cannot be read: {os.strerror(number)}") as caught:
            go(stopped.path, resume=True)
    assert not isinstance(caught.value, DamagedCheckpoint)
    assert contents(stopped) == before
    assert go(stopped.path, resume=True).pointed_step(LATEST) == 20


def test_a_damaged_checkpoint_stays_under_another_name(go, stopped):
    path = stopped.checkpoint_path("step_7")
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half)
    go(stopped.path, resume=True)
    assert (stopped.path / "checkpoints/step_7.npz.damaged").read_bytes() == half
    assert "Going back to the checkpoint before it: step 5; the damaged file stays, as .npz.damaged" in log(stopped)
    assert "resumed after step 5" in log(stopped) and stopped.pointed_step(LATEST) == 20


def test_damage_is_told_by_the_step_it_is_of(stopped):
    for step in (5, 7):
        stopped.checkpoint_path(f"step_{step}").write_bytes(b"")
    with pytest.raises(DamagedCheckpoint, match="no checkpoint is whole"):
        resuming.newest_checkpoint(stopped)
    assert stopped.steps() == [5, 7]


# --------------------------------------------------------------------------------------------------------- signals


def test_sigterm_while_the_last_checkpoint_is_written(go, tmp_path, monkeypatch):
    """Nobody but the guard hears it, and the run is finished."""
    unguarded, told, ended = [], [], threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: unguarded.append(1))
    whole = checkpoints.save

    def late(path, saved):
        if saved.step == 20:
            told.append(ended.wait(30))
            threading.Event().wait(0.1)  # the loop has gone on to wait for this
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(0.1)
        whole(path, saved)

    monkeypatch.setattr(checkpoints, "save", late)
    try:
        run = go(tmp_path / "run", callbacks=[keras.callbacks.LambdaCallback(on_train_end=lambda logs: ended.set())])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == [True] and unguarded == []
    assert read(run.checkpoint_path(LATEST)).step == 20


def test_a_run_that_a_callback_stopped_says_that_it_is_not_finished(go, tmp_path):
    class Enough(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = int(self.model.optimizer.iterations) == 7

    run = go(tmp_path / "run", callbacks=[Enough()])
    assert "stopped by a callback after step 7: --resume goes on from here" in log(run)
    assert "by a callback" not in log(go(tmp_path / "other"))


# ----------------------------------------------------------------------------------------------------------- hosts


HOSTS = configuration.Hosts(coordinator="node0:1234", count=2, index=1)


def test_the_command_of_one_host_is_as_short_as_can_be(tmp_path):
    assert resume_command(tmp_path) == f"retina train --run-dir {tmp_path} --resume"


def test_the_command_of_a_host_of_several_holds_its_place_and_survives_a_shell(tmp_path):
    command = resume_command(tmp_path / "a b", HOSTS).partition(" (on each host with its own index")[0]
    shown = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True).stdout
    words = shown.splitlines()
    assert words[:3] == ["retina", "train", "--run-dir"] and words[4] == "--resume" and len(words) == 6
    assert configuration.load(None, [words[5]]).run.hosts == HOSTS


@pytest.fixture
def of_two_hosts(tmp_path, monkeypatch):
    """The command line on the run of two hosts; gives its exit code and what would have been trained."""
    run, begun = tmp_path / "run", []
    config = configuration.load(None, ["run.hosts={coordinator: 'node0:1234', count: 2, index: 0}"])
    RunDirectory.create(run, configuration.to_yaml(config), {})
    monkeypatch.setattr(training, "train", lambda config, path, **_: begun.append(config.run.hosts))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name, value in {"RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "1234"}.items():
        monkeypatch.setenv(name, value)
    return lambda *more: (command(monkeypatch, "train", "--run-dir", str(run), "--resume", *more), begun)


@pytest.mark.parametrize("more", [(), ("run.keep=3",)])
def test_a_host_that_does_not_know_its_place_is_refused(of_two_hosts, capsys, more):
    assert of_two_hosts(*more) == (2, [])
    error = capsys.readouterr().err
    assert "the run is one of 2 hosts, and which one this is has to be said again" in error
    assert "run.hosts='{coordinator: node0:1234, count: 2, index: N}'" in error and "--launcher" in error


@pytest.mark.parametrize(
    "more",
    [("--launcher", "env"), ("run.hosts.index=1",), ("run.hosts={coordinator: 'node0:1234', count: 2, index: 1}",)],
)
def test_a_host_that_says_its_place_goes_on(of_two_hosts, more):
    assert of_two_hosts(*more) == (0, [HOSTS])
