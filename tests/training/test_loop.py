"""The loop, around stand-ins: what it writes when, how it stops, goes on, and tells others."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from retina import cli
from retina import config as configuration
from retina.data.formats.digits import read_digits
from retina.errors import Interrupted, RetinaError, RunFailed
from retina.runs import checkpoint as checkpoints
from retina.runs.checkpoint import read
from retina.runs.directory import BEST, LATEST, RunDirectory
from retina.runs.hosts import Hosts
from retina.runs.record import read_record
from retina.training import loop
from retina.training.train import train
from tests.training import stand_ins


@pytest.fixture(scope="module")
def data():
    return read_digits("train", 8, 64), read_digits("validation", 4, 64)


@pytest.fixture(scope="module")
def go(data):
    """`go(path, *overrides, using={…}, **arguments)`: a training with stand-ins.

    `using` holds the arguments of `stand_ins.collaborators`, the others are those of `train`.
    """

    def call(path, *overrides, using=None, **arguments):
        config = configuration.load(None, [*stand_ins.SETTINGS, *overrides])
        arguments |= {"train_data": data[0], "validation_data": data[1]}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: None)  # what is written is read by this machine alone, and soon
            return RunDirectory(
                train(config, path, collaborators=stand_ins.collaborators(**(using or {})), **arguments)
            )

    return call


@pytest.fixture(scope="module")
def whole(go, tmp_path_factory):
    """An uninterrupted run of the usual settings, to compare with or to copy."""
    return go(tmp_path_factory.mktemp("whole") / "run")


def lines(run: RunDirectory) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in stand_ins.WALL_CLOCK} for line in run.metrics()]


def arrays(run: RunDirectory) -> dict[str, bytes]:
    saved = read(run.checkpoint_path(LATEST))
    return {name: array.tobytes() for name, array in saved.arrays.items()}


def assert_same(one: RunDirectory, other: RunDirectory) -> None:
    assert lines(one) == lines(other)
    assert arrays(one) == arrays(other)
    assert one.steps() == other.steps()
    assert [one.pointed_step(name) for name in (BEST, LATEST)] == [other.pointed_step(name) for name in (BEST, LATEST)]


class After(keras.callbacks.Callback):
    """Does something after a batch of the run, counted from 1."""

    def __init__(self, number: int, what):
        super().__init__()
        self.left, self.what = number, what

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.what(self.model)


# ------------------------------------------------------------------------------------------ lines and checkpoints


def test_lines_stand_on_a_grid_and_their_means_are_over_the_steps_between(go, whole, tmp_path):
    run = go(tmp_path / "run", "run.log_every=1")
    often = {line["step"]: line["loss"] for line in run.metrics() if "loss" in line}
    assert [line["step"] for line in whole.metrics() if "loss" in line] == [3, 5, 6, 9, 10, 12, 15, 18, 20]
    means = {line["step"]: line["loss"] for line in whole.metrics() if "loss" in line}
    assert means[3] == pytest.approx((often[1] + often[2] + often[3]) / 3, rel=1e-12)
    assert means[6] == often[6] and means[20] == pytest.approx((often[19] + often[20]) / 2, rel=1e-12)


def test_lines_tell_memory_and_the_share_of_waiting(whole):
    for line in whole.metrics():
        if "loss" in line:
            assert 50 < line["memory"] <= line["memory_peak"] < 1e6
            assert 0 <= line["data_wait"] <= 1


def test_the_newest_checkpoints_and_the_best_stay(go, tmp_path):
    # Evaluations at 5, 10, 15 and 20; checkpoints there and at 4, 8, 12 and 16.
    figures = [{"AP50": value} for value in (0.1, 0.4, 0.3, 0.4)]
    run = go(tmp_path / "two", using={"figures": figures})
    assert (run.steps(), run.pointed_step(BEST), run.pointed_step(LATEST)) == ([10, 16, 20], 10, 20)
    assert read(run.checkpoint_path(BEST)).best == 0.4 and read(run.checkpoint_path(LATEST)).best == 0.4
    run = go(tmp_path / "one", "run.keep=1", "run.checkpoint_every=null", using={"figures": figures})
    assert run.steps() == [10, 20]
    run = go(tmp_path / "many", "run.keep=9", using={"figures": figures})
    assert run.steps() == [4, 5, 8, 10, 12, 15, 16, 20]


def test_time_writes_checkpoints_as_well_and_changes_nothing_else(go, tmp_path):
    usual = go(tmp_path / "usual", "run.keep=30", "run.checkpoint_every=null")
    timed = go(tmp_path / "timed", "run.keep=30", "run.checkpoint_every=null", "run.checkpoint_minutes=1e-9")
    assert usual.steps() == [5, 10, 15, 20] and timed.steps() == list(range(1, 21))
    assert lines(usual) == lines(timed) and arrays(usual) == arrays(timed)


def test_a_checkpoint_is_written_while_training_goes_on(go, tmp_path, monkeypatch):
    """The first write takes until the fourth step after it has been made."""
    released, whole = threading.Event(), checkpoints.save
    monkeypatch.setattr(checkpoints, "save", lambda *arguments: (released.wait(30), whole(*arguments)))
    seen = []
    steps = After(7, lambda _: (seen.append((tmp_path / "run/checkpoints/step_4.npz").exists()), released.set()))
    run = go(tmp_path / "run", "run.evaluate_every=null", callbacks=[steps])
    assert seen == [False] and run.steps() == [16, 20]


# ------------------------------------------------------------------------------------------------ stopped, resumed


@pytest.mark.parametrize("number", [1, 4, 7])
def test_a_signal_writes_a_checkpoint_and_the_resumed_run_has_the_same_lines(go, whole, tmp_path, number):
    stop = After(number, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=rf"SIGTERM after step {number} of 20; .* --run-dir \S*/stopped --resume$"):
        go(tmp_path / "stopped", callbacks=[stop])
    stopped = RunDirectory(tmp_path / "stopped")
    assert stopped.pointed_step(LATEST) == number
    assert_same(go(tmp_path / "stopped", resume=True), whole)


@pytest.mark.parametrize("number", [5, 20])
def test_a_signal_leaves_no_time_for_an_evaluation_which_the_resumed_run_makes(go, whole, tmp_path, number):
    stop = After(number, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=rf"SIGTERM after step {number} of 20; the checkpoint is written"):
        go(tmp_path / "stopped", callbacks=[stop])
    stopped = RunDirectory(tmp_path / "stopped")
    assert read(stopped.checkpoint_path(LATEST)).step == number
    assert [line["step"] for line in lines(stopped) if "split" in line] == list(range(5, number, 5))
    assert_same(go(tmp_path / "stopped", resume=True), whole)


def test_a_signal_within_an_evaluation_ends_it(go, tmp_path):
    whole = go(tmp_path / "whole", "run.early_stopping={patience: 2}")
    seen = []

    class Signalled(stand_ins.Evaluator):
        batches = (1, 2)

        def detect(self, batches):
            for batch in batches:
                seen.append(batch)
                if seen == [1, 2, 1]:  # the second evaluation, of step 10
                    os.kill(os.getpid(), signal.SIGTERM)
            return super().detect(batches)

    using = {"evaluator": lambda config, dataset, truth, model, distribution: Signalled(model, iter(()))}
    with pytest.raises(Interrupted, match="SIGTERM after step 10 of 20"):
        go(tmp_path / "stopped", "run.early_stopping={patience: 2}", using=using)
    assert seen == [1, 2, 1]
    assert_same(go(tmp_path / "stopped", "run.early_stopping={patience: 2}", resume=True), whole)


def test_a_run_killed_behind_the_evaluation_that_it_had_to_make_up_for_has_it_once(go, whole, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        go(tmp_path / "run", callbacks=[After(10, lambda _: os.kill(os.getpid(), signal.SIGINT))])

    def killed(path, saved):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "run", resume=True)
    assert 10 in [line["step"] for line in lines(RunDirectory(tmp_path / "run")) if "split" in line]
    assert_same(go(tmp_path / "run", resume=True), whole)


@pytest.mark.parametrize("name", ["a b", "it's; $HOME", "-dash", "two  spaces", "naïve"])
def test_the_command_that_resumes_survives_a_shell(go, tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted) as caught:
        go(name, callbacks=[After(1, lambda _: os.kill(os.getpid(), signal.SIGINT))])
    command = str(caught.value).partition("Go on with: retina ")[2]
    shown = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True).stdout
    words = shown.splitlines()
    assert words[:2] == ["train", "--run-dir"] and words[3:] == ["--resume"]
    assert (tmp_path / words[2]).samefile(tmp_path / name) and not words[2].startswith("-")


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(go, whole, tmp_path):
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(whole.path, run.path)
    path = run.checkpoint_path(LATEST)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert_same(go(run.path, resume=True), whole)
    log = (run.path / "log.txt").read_text()
    assert "step_20.npz: damaged" in log and "Going back to the checkpoint before it: step 16" in log
    assert "resumed after step 16" in log


def test_a_run_without_a_checkpoint_starts_anew_and_says_so(go, whole, tmp_path):
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(whole.path, run.path)
    shutil.rmtree(run.path / "checkpoints")
    (run.path / "environment.json").unlink()
    assert_same(go(run.path, resume=True), whole)
    assert "no checkpoint yet: starting from step 0" in (run.path / "log.txt").read_text()
    assert json.loads((run.path / "environment.json").read_text()) == {"backend": "tensorflow"}


@pytest.mark.parametrize("begun", ["nothing", "folder", "half a config"])
def test_a_run_killed_before_it_was_one_is_begun(go, tmp_path, begun):
    run = tmp_path / "run"
    if begun != "nothing":
        run.mkdir()
    if begun == "half a config":
        (run / ".partial.config.yaml").write_text("da")
    found = go(run, resume=True)
    assert found.pointed_step(LATEST) == 20
    assert "there is no run to resume yet: starting from step 0" in (run / "log.txt").read_text()
    assert not (run / ".partial.config.yaml").exists()


def test_nothing_of_anybody_elses_is_resumed(go, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RetinaError, match="not a run directory"):
        go(tmp_path, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_finished_run_stays_as_it_is(go, tmp_path, capsys):
    run = go(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    go(tmp_path / "run", resume=True)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert "this run is finished, after step 20" in capsys.readouterr().err


def test_settings_that_change_no_result_may_change(go, tmp_path):
    with pytest.raises(Interrupted):
        go(tmp_path / "run", callbacks=[After(7, lambda _: os.kill(os.getpid(), signal.SIGHUP))])
    with pytest.raises(RetinaError, match=r"changed config: run.seed \(0 → 1\); resume"):
        go(tmp_path / "run", "run.seed=1", "run.keep=3", resume=True)
    run = go(tmp_path / "run", "run.keep=3", resume=True)
    assert "resumed with a changed config: run.keep (2 → 3)" in (run.path / "log.txt").read_text()
    assert run.steps()[-3:] == [15, 16, 20]


def test_a_run_in_another_environment_says_what_it_may_cost(go, tmp_path):
    with pytest.raises(Interrupted):
        go(tmp_path / "run", callbacks=[After(2, lambda _: os.kill(os.getpid(), signal.SIGINT))])
    (tmp_path / "run/environment.json").write_text('{"backend": "jax", "devices": ["cpu:0"]}')
    go(tmp_path / "run", resume=True)
    log = (tmp_path / "run/log.txt").read_text()
    assert "another environment: backend (jax → tensorflow), devices (['cpu:0'] → None)" in log


@pytest.mark.parametrize("call", ["search_runs", "log_metrics"])
def test_a_tracker_that_fails_costs_no_step_and_hides_no_signal(go, tmp_path, monkeypatch, call):
    """It is lost at the step of the signal, before the checkpoint; or at the start."""
    stand_in = {"search_runs": lambda **_: [], "start_run": lambda **_: contextlib.nullcontext()}
    stand_in |= {"log_params": lambda _: None, call: lambda *_, **__: 1 / 0}
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(**stand_in))
    path, callbacks = tmp_path / "run", [After(3, lambda _: os.kill(os.getpid(), signal.SIGTERM))]
    with pytest.raises(Interrupted, match="SIGTERM after step 3 of 20; the checkpoint is written"):
        go(path, "run.trackers=[mlflow]", callbacks=callbacks)
    assert RunDirectory(path).steps() == [3]
    assert (path / "log.txt").read_text().count("warning: run.trackers: mlflow: ") == 1
    assert go(path, "run.trackers=[]", resume=True).steps()[-1] == 20


def test_two_processes_do_not_train_one_run(go, tmp_path):
    with pytest.raises(Interrupted):
        go(tmp_path / "run", callbacks=[After(2, lambda _: os.kill(os.getpid(), signal.SIGINT))])
    holder = (
        "import fcntl, os, sys\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RetinaError, match="another process is training this run"):
            go(tmp_path / "run", resume=True)
    finally:
        other.communicate("\n")
    go(tmp_path / "run", resume=True)


# ------------------------------------------------------------------------------------------------- early stopping


STALE = [{"AP50": 0.30, "AP": value} for value in (0.10, 0.20, 0.20, 0.21)]


def test_a_run_stops_early_and_is_finished_then(go, tmp_path, capsys):
    overrides = ("run.early_stopping={patience: 2}",)
    run = go(tmp_path / "run", *overrides, using={"figures": STALE})
    assert [line["step"] for line in run.metrics() if "metrics" in line] == [5, 10, 15]
    assert run.pointed_step(LATEST) == 15 and run.pointed_step(BEST) == 5
    said = "stopped early after step 15: AP50 has not risen above 0.3000 by more than 0.0 in 2 evaluations"
    assert said in (run.path / "log.txt").read_text()
    go(tmp_path / "run", *overrides, resume=True)
    assert "finished, after step 15; to make it longer" in capsys.readouterr().err


def test_a_run_that_stopped_early_goes_on_where_early_stopping_is_switched_off(go, tmp_path, capsys):
    early, steps = "run.early_stopping={patience: 2}", "schedule.steps=20"
    whole = go(tmp_path / "whole", steps, using={"figures": STALE})
    run = go(tmp_path / "run", early, steps, using={"figures": STALE})
    assert run.pointed_step(LATEST) == 15 and read_record(run.path).is_complete
    go(tmp_path / "run", "run.early_stopping={patience: 1}", steps, resume=True)
    assert re.search("finished, after step 15.* run.early_stopping=null", capsys.readouterr().err)
    patient = go(tmp_path / "run", "run.early_stopping={patience: 9}", steps, using={"figures": STALE[3:]}, resume=True)
    assert patient.pointed_step(LATEST) == 20 and read_record(run.path).is_complete
    assert_same(patient, whole)


def test_a_run_whose_patience_ends_with_its_last_step_is_not_said_to_have_stopped_early(go, tmp_path):
    run = go(tmp_path / "run", "run.early_stopping={patience: 1}", "schedule.steps=10", using={"figures": STALE})
    assert run.pointed_step(LATEST) == 10 and "stopped early" not in (run.path / "log.txt").read_text()


def test_early_stopping_watches_another_figure_by_at_least_so_much(go, tmp_path):
    early = "run.early_stopping={patience: 2, metric: AP, min_delta: 0.05}"
    # 0.10, 0.20, then twice no more than 0.05 above 0.20.
    assert go(tmp_path / "one", early, "schedule.steps=50", using={"figures": STALE}).pointed_step(LATEST) == 20
    early = "run.early_stopping={patience: 2, metric: AP, min_delta: 0.005}"
    assert go(tmp_path / "two", early, "schedule.steps=25", using={"figures": STALE}).pointed_step(LATEST) == 25


def test_a_resumed_run_remembers_how_long_it_has_been_stale(go, tmp_path):
    early = "run.early_stopping={patience: 2}"
    with pytest.raises(Interrupted):
        go(
            tmp_path / "run",
            early,
            using={"figures": STALE},
            callbacks=[After(11, lambda _: os.kill(os.getpid(), signal.SIGINT))],
        )
    run = go(tmp_path / "run", early, using={"figures": STALE[2:]}, resume=True)
    assert run.pointed_step(LATEST) == 15 and run.pointed_step(BEST) == 5


# ----------------------------------------------------------------------------------- no validation data, more steps


@pytest.fixture
def alone(monkeypatch, data):
    """`alone(path, *overrides, **arguments)`: a training with stand-ins and without validation data."""

    def call(path, *overrides, **arguments):
        monkeypatch.setattr(os, "fsync", lambda _: None)
        config = configuration.load(None, [*stand_ins.SETTINGS, "data.validation=null", *overrides])
        arguments |= {"train_data": data[0], "collaborators": stand_ins.collaborators()}
        return RunDirectory(train(config, path, **arguments))

    return call


def test_without_validation_data_the_newest_checkpoint_is_the_best(alone, whole, tmp_path):
    run = alone(tmp_path / "run")
    assert not (run.path / "eval").exists() and [line for line in run.metrics() if "split" in line] == []
    assert (run.steps(), run.pointed_step(BEST), run.pointed_step(LATEST)) == ([16, 20], 20, 20)
    assert arrays(run) == arrays(whole), "evaluations change no weight"
    assert "nothing is evaluated" in (run.path / "log.txt").read_text()
    assert list(run.fingerprints()) == ["train"]


@pytest.mark.parametrize("number", [3, 8, 20])
def test_without_validation_data_a_stopped_run_goes_on_as_an_uninterrupted_one(alone, tmp_path, number):
    stop = After(number, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        alone(tmp_path / "stopped", callbacks=[stop])
    assert RunDirectory(tmp_path / "stopped").pointed_step(BEST) == number
    assert_same(alone(tmp_path / "stopped", resume=True), alone(tmp_path / "whole"))


def test_early_stopping_needs_validation_data(alone, tmp_path):
    with pytest.raises(RetinaError, match="run.early_stopping has no effect with data.validation: null"):
        alone(tmp_path / "run", "run.early_stopping={patience: 2}")


LONGER = {
    "{kind: cosine, steps: %d, warmup_steps: 3}": "its cosine now ends at step 30",
    "{kind: constant, steps: %d}": "the learning rate stays at its peak",
    "{kind: step, steps: %d, milestones: [10]}": "its milestones stay",
}


@pytest.mark.parametrize("schedule", LONGER)
def test_a_finished_run_goes_on_for_more_steps_and_says_what_its_schedule_does(go, tmp_path, schedule):
    before, after = f"schedule={schedule % 20}", f"schedule={schedule % 30}"
    run = go(tmp_path / "run", before)
    weights = arrays(run)
    go(tmp_path / "run", after, resume=True)
    assert run.pointed_step(LATEST) == 30 and arrays(run) != weights
    log = (run.path / "log.txt").read_text()
    assert f"the run has 30 steps now, 20 before: {LONGER[schedule]}" in log
    assert configuration.load(run.path / "config.yaml").schedule.steps == 30, "the next resume knows the new length"
    assert [line["step"] for line in run.metrics() if "split" in line] == [5, 10, 15, 20, 25, 30]
    if "cosine" not in schedule:  # its rate does not depend on the length: weights are those of the longer run
        assert arrays(run) == arrays(go(tmp_path / "long", after))
    with pytest.raises(RetinaError, match="expected at least the 30 steps that the run has made, got 20"):
        go(tmp_path / "run", before, resume=True)


def test_a_finished_run_says_how_it_goes_on(go, tmp_path, capsys):
    go(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    go(tmp_path / "run", resume=True)
    assert re.search(r"after step 20; to make it longer: .* --resume schedule.steps=N\n$", capsys.readouterr().err)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_epochs_become_steps_that_the_run_logs_and_keeps(go, whole, tmp_path):
    """8 images in batches of 2: an epoch is 4 steps."""
    run = go(tmp_path / "run", "schedule={kind: cosine, epochs: 5, warmup_steps: 3}")
    assert "schedule.epochs: 5 epochs are 20 steps" in (run.path / "log.txt").read_text()
    schedule = configuration.load(run.path / "config.yaml").schedule
    assert (schedule.steps, schedule.epochs) == (20, None)
    assert arrays(run) == arrays(whole)
    again = go(tmp_path / "run", "schedule={kind: cosine, epochs: 7, warmup_steps: 3}", resume=True)
    assert again.pointed_step(LATEST) == 28


@pytest.mark.parametrize("change", ["run.evaluate_every=4", "run.log_every=2", "run.keep=7", "run.pictures=0"])
def test_what_changes_no_weight_may_change_on_resume(go, whole, tmp_path, change):
    with pytest.raises(Interrupted):
        go(tmp_path / "run", callbacks=[After(7, lambda _: os.kill(os.getpid(), signal.SIGTERM))])
    run = go(tmp_path / "run", change, resume=True)
    assert arrays(run) == arrays(whole)
    assert "resumed with a changed config: run." in (run.path / "log.txt").read_text()
    evaluated = [line["step"] for line in run.metrics() if "split" in line]
    assert evaluated == ([5, 8, 12, 16, 20] if "evaluate" in change else [5, 10, 15, 20])
    assert (
        configuration.to_yaml(configuration.load(run.path / "config.yaml", [change]))
        == (run.path / "config.yaml").read_text()
    )


# ---------------------------------------------------------------------------------------------------- lost output


def losing_output(kind, monkeypatch):
    """Replace standard error; return a function after which nothing can be written to it."""
    if kind == "full disk":
        monkeypatch.setattr(sys, "stderr", open("/dev/full", "w", buffering=1))  # noqa: SIM115
        return lambda: None
    ours, theirs = os.openpty() if kind == "terminal" else os.pipe()
    stream = open(theirs, "w", buffering=1)  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", stream)
    if kind == "closed":
        return stream.close
    return lambda: os.close(ours)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what is left in their buffers
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, None])
@pytest.mark.parametrize("kind", ["terminal", "pipe", "full disk", "closed"])
def test_lost_output_ends_no_run_and_a_signal_writes_the_checkpoint(go, tmp_path, monkeypatch, kind, number):
    """As when a window is closed: the terminal goes, then SIGHUP comes."""
    lose = losing_output(kind, monkeypatch)
    go_on = contextlib.nullcontext()
    stopped = pytest.raises(Interrupted, match="after step 7 of 20; the checkpoint is written")
    stop = After(7, lambda _: (lose(), number and os.kill(os.getpid(), number)))
    with stopped if number else go_on:
        go(tmp_path / "run", callbacks=[stop])
    run = RunDirectory(tmp_path / "run")
    assert run.pointed_step(LATEST) == (7 if number else 20)
    assert (run.path / "log.txt").read_text().count("warning: the terminal takes no output (") == 1


def test_a_log_that_cannot_be_written_is_a_warning(go, tmp_path, capsys):
    def put_a_folder_there(_):
        (tmp_path / "run/log.txt").unlink()
        (tmp_path / "run/log.txt").mkdir()

    assert go(tmp_path / "run", callbacks=[After(7, put_a_folder_there)]).pointed_step(LATEST) == 20
    assert capsys.readouterr().err.count("log.txt: it can't be written (Is a directory); the run goes on") == 1


def test_a_sighup_that_nohup_ignores_stays_ignored(go, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = After(7, lambda _: os.kill(os.getpid(), signal.SIGHUP))
        assert go(tmp_path / "run", callbacks=[stop]).pointed_step(LATEST) == 20
    finally:
        signal.signal(signal.SIGHUP, before)


# -------------------------------------------------------------------------------------------------- failed writes


def full(number: int, write, code: int = 28):
    """`write`, but that the disk is full from call `number` (from 1) on."""
    calls = []

    def call(*arguments, **keywords):
        calls.append(1)
        if len(calls) >= number:
            raise OSError(code, os.strerror(code))
        return write(*arguments, **keywords)

    return call


@pytest.mark.parametrize("code", [28, 27, 122])  # ENOSPC, EFBIG, EDQUOT
def test_a_full_disk_in_the_writing_thread_ends_the_run_and_the_last_checkpoint_stands(
    go, whole, tmp_path, monkeypatch, code
):
    with monkeypatch.context() as here:
        here.setattr(checkpoints.np, "savez", full(3, np.savez, code))
        with pytest.raises(RunFailed, match=r"the run stopped.*: .*; the last checkpoint is whole.*--resume") as caught:
            go(tmp_path / "run")
    assert cli._explain(caught.value) == (1, str(caught.value))
    run = RunDirectory(tmp_path / "run")
    assert read(run.checkpoint_path(LATEST)).step == 5
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == [
        "best", "latest", "step_4.npz", "step_5.npz",
    ]  # fmt: skip
    assert_same(go(run.path, resume=True), whole)


def test_a_full_disk_at_the_last_checkpoint_does_not_pass_for_a_finished_run(go, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.np, "savez", full(8, np.savez))
    with pytest.raises(RetinaError, match="No space left on device"):
        go(tmp_path / "run")
    assert RunDirectory(tmp_path / "run").pointed_step(LATEST) == 16


def test_a_full_disk_at_a_line_of_metrics(go, tmp_path, monkeypatch):
    monkeypatch.setattr(RunDirectory, "append_metrics", full(3, RunDirectory.append_metrics))
    with pytest.raises(RetinaError, match="No space left on device"):
        go(tmp_path / "run")
    assert RunDirectory(tmp_path / "run").pointed_step(LATEST) == 4


def test_any_other_error_of_the_writing_thread_comes_out_as_it_is(go, tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("of a test")

    monkeypatch.setattr(checkpoints, "save", fail)
    with pytest.raises(ZeroDivisionError, match="of a test"):
        go(tmp_path / "run")


# ------------------------------------------------------------------------------------------------------ bad numbers


def test_a_failed_step_is_met_with_the_weights_before_it(go, tmp_path):
    """Step 7 fails, which shows at step 9: checkpoint 5 stands, and steps 6 and 7 are repeated."""
    weights, seen = [], {}
    keep = After(6, lambda model: weights.extend(v.numpy() for v in model.trainable_variables))

    def record(run, detector, origin, batch, dataset, fault, parts):
        assert parts == 1
        seen.update(weights=[v.numpy() for v in detector.trainable_variables], origin=origin, batch=batch, fault=fault)
        return f"step {fault.step}: the {fault.what} is {fault.value}"

    using = {"bad": {7: {"gradient_norm": np.inf}}, "record": record}
    with pytest.raises(FloatingPointError, match="step 7: the norm of the gradient is inf"):
        go(tmp_path / "run", "run.checkpoint_every=null", using=using, callbacks=[keep])
    assert RunDirectory(tmp_path / "run").steps() == [5]
    assert seen["origin"] == "before the step"
    assert seen["batch"] == next(stand_ins.batches(seed=0, first_step=6, steps=7))
    for found, expected in zip(seen["weights"], weights, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_failure_before_the_first_checkpoint_is_met_as_well(go, tmp_path):
    seen = {}

    def record(run, detector, *_):
        seen.update(weights=detector.trainable_variables[0].numpy())
        return "step 1"

    first = stand_ins.build(SimpleNamespace(run=SimpleNamespace(seed=0)), ())
    with pytest.raises(FloatingPointError):
        go(tmp_path / "run", using={"bad": {1: {"loss": np.nan}}, "record": record})
    np.testing.assert_array_equal(seen["weights"], first.trainable_variables[0].numpy())


@pytest.mark.parametrize(("bad", "origin"), [(411, "before the step"), (412, "of step 210")])
def test_a_failure_far_from_the_last_checkpoint_takes_its_weights(go, tmp_path, bad, origin):
    """At most 200 steps are repeated."""
    seen = {}
    using = {"bad": {bad: {"loss": np.nan}}, "record": lambda *a: seen.update(origin=a[2]) or f"step {bad}"}
    settings = ("schedule.steps=420", "run.checkpoint_every=210", "run.evaluate_every=null", "run.log_every=30")
    with pytest.raises(FloatingPointError):
        go(tmp_path / "run", *settings, using=using)
    assert seen["origin"] == origin


def test_going_back_that_fails_does_not_hide_the_failed_step(go, tmp_path):
    order = []

    class TooLarge(stand_ins.Step):
        def load(self, arrays):
            order.append("went back")
            raise MemoryError("no room for a second one\nand a trace")

    def told(run, detector, origin, batch, dataset, fault, parts):
        assert detector is None and parts == 2
        return f"step {fault.step}: {origin}"

    using = {
        "step": lambda model, optimizer, *_: TooLarge(model, optimizer, {7: {"loss": np.nan}}),
        "keep_batch": lambda run, batch, dataset, fault: order.append(("kept", fault.step)),
        "record": told,
    }
    with pytest.raises(FloatingPointError) as caught:
        go(tmp_path / "run", "run.accumulate=2", using=using)
    assert str(caught.value) == "step 7: going back to step 7 failed: MemoryError: no room for a second one"
    assert order == [("kept", 7), "went back"]


def test_a_batch_that_cannot_be_read_again_does_not_hide_the_failed_step(go, tmp_path):
    def gone(*arguments, first_step, steps, **others):
        if (first_step, steps) == (6, 7):
            raise OSError(2, "No such file or directory")
        return stand_ins.batches(*arguments, first_step=first_step, steps=steps, **others)

    with pytest.raises(FloatingPointError, match=r"^step 7: the loss is nan; .* could not be read again$"):
        go(tmp_path / "run", using={"bad": {7: {"loss": np.nan}}, "batches": gone})


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_weights_that_are_not_finite_do_not_become_a_checkpoint(go, tmp_path, value):
    """The loss and its gradient stay finite: it looks at the bias alone."""
    seen = {}
    using = {"record": lambda *a: seen.update(fault=a[5]) or f"step {a[5].step}: {a[5].what}"}

    def break_a_weight(model):
        kernel = model.trainable_variables[0].numpy()
        kernel[0, 1] = value
        model.trainable_variables[0].assign(kernel)

    with pytest.raises(
        FloatingPointError, match=r"^step 8: array weights/net/last/kernel \(and 2 more\) after the update$"
    ):
        go(tmp_path / "run", using=using, callbacks=[After(7, break_a_weight)])
    run = RunDirectory(tmp_path / "run")
    assert run.steps() == [4, 5] and run.pointed_step(LATEST) == 5
    assert not np.isfinite(seen["fault"].value)


# -------------------------------------------------------------------------------------------------------- callbacks


class Outside(stand_ins.Step):
    """Keeps its weights outside the variables, as on JAX."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.reload()

    def reload(self):
        self.own = [v.numpy() for v in self.model.trainable_variables]

    def sync(self):
        for variable, value in zip(self.model.trainable_variables, self.own, strict=True):
            variable.assign(value)

    def __call__(self, batch):
        self.sync()
        scalars = super().__call__(batch)
        self.reload()
        return scalars


def test_what_a_callback_assigns_is_trained_on(go, whole, tmp_path):
    def half(model):
        for variable in model.trainable_variables:
            variable.assign(0.5 * variable)

    inside = go(tmp_path / "inside", callbacks=[After(7, half)])
    using = {"step": lambda model, optimizer, *_: Outside(model, optimizer)}
    assert_same(go(tmp_path / "outside", using=using, callbacks=[After(7, half)]), inside)
    assert arrays(whole) != arrays(inside)


def test_a_callback_that_assigns_weights_on_one_of_several_hosts_is_refused():
    """The others have no callbacks."""
    of_two = SimpleNamespace(hosts=Hosts(2, 0), step=SimpleNamespace(reload=lambda: True))
    with pytest.raises(RetinaError, match="callbacks: expected weights that are left alone over several hosts"):
        loop.Loop._reload(of_two)
    of_two.step.reload = lambda: False
    loop.Loop._reload(of_two)


def test_keras_callbacks_are_told_as_by_fit(go, tmp_path):
    told = []
    made = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: told.append(("train begin",)),
        on_epoch_begin=lambda epoch, logs: told.append(("epoch begin", epoch)),
        on_train_batch_end=lambda batch, logs: told.append(("batch end", batch)),
        on_epoch_end=lambda epoch, logs: told.append(("epoch end", epoch, logs["val_AP50"], logs["loss"])),
        on_train_end=lambda logs: told.append(("train end",)),
    )
    run = go(tmp_path / "run", "schedule.steps=4", "schedule.warmup_steps=1", "run.evaluate_every=2", callbacks=[made])
    figures = {line["step"]: line["metrics"]["AP50"] for line in run.metrics() if "metrics" in line}
    losses = {line["step"]: line["loss"] for line in run.metrics() if "loss" in line}
    assert told == [
        ("train begin",),
        ("epoch begin", 0),
        ("batch end", 0),
        ("batch end", 1),
        ("epoch end", 0, figures[2], losses[2]),
        ("epoch begin", 1),
        ("batch end", 0),
        ("batch end", 1),
        ("epoch end", 1, figures[4], losses[4]),
        ("train end",),
    ]


def test_a_callback_has_model_optimizer_parameters_and_the_steps_scalars(go, tmp_path):
    class Looking(keras.callbacks.Callback):
        def on_test_end(self, logs=None):
            self.figures = logs
            assert set(self.model.detection_metrics.rising) == set(logs)  # so that callbacks need no mode="max"

        def on_train_batch_end(self, batch, logs=None):
            last = self.model.trainable_variables[-1].numpy()
            assert logs["loss"] == last[0] and logs["loss_box"] == last[2]
            assert int(self.model.optimizer.iterations) % 5 == (batch + 1) % 5

    looking = Looking()
    run = go(tmp_path / "run", callbacks=[looking])
    assert looking.params == {"epochs": 4, "steps": 5, "verbose": 0}
    assert looking.figures == run.metrics()[-1]["metrics"]


def test_callbacks_change_nothing(go, whole, tmp_path):
    history = keras.callbacks.History()
    assert_same(go(tmp_path / "with", callbacks=[history, After(99, print)]), whole)
    assert len(history.history["val_AP50"]) == 4


def test_a_callback_ends_the_run_with_an_evaluation_and_a_checkpoint(go, tmp_path):
    class Enough(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = int(self.model.optimizer.iterations) == 7

    run = go(tmp_path / "run", callbacks=[Enough()])
    assert run.pointed_step(LATEST) == 7
    assert [line["step"] for line in run.metrics() if "metrics" in line] == [5, 7]
    # Not finished: without the callback it goes on.
    assert go(tmp_path / "run", resume=True).pointed_step(LATEST) == 20
