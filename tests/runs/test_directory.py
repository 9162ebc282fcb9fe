"""The run directory: what it refuses, what it keeps, and how it forgets."""

import json
import os
from pathlib import Path

import pytest

from retina.errors import RetinaError
from retina.files import write_text
from retina.runs.directory import BEST, LATEST, RunDirectory, is_begun, refuse_if_used


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", "data: {}\n", {"seed": 3})


def add(run: RunDirectory, step: int) -> None:
    run.checkpoint_path(f"step_{step}").write_bytes(b"x")


def files(run: RunDirectory) -> list[str]:
    return sorted(path.name for path in (run.path / "checkpoints").iterdir())


def test_an_empty_folder_may_be_used(tmp_path):
    refuse_if_used(tmp_path)
    refuse_if_used(tmp_path / "new" / "deeper")
    run = RunDirectory.create(tmp_path, "data: {}\n", {"seed": 3})
    assert (tmp_path / "config.yaml").read_text() == "data: {}\n"
    assert json.loads((tmp_path / "environment.json").read_text()) == {"seed": 3}
    assert run.metrics() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "config.yaml", "environment.json"]


def test_a_used_run_is_refused_with_the_command_that_goes_on(run):
    add(run, 1)
    run.point(LATEST, run.checkpoint_path("step_1"))
    with pytest.raises(RetinaError, match=r"not empty.*retina train --run-dir .*run --resume"):
        refuse_if_used(run.path)
    with pytest.raises(RetinaError, match="not empty"):
        RunDirectory.create(run.path, "other: {}\n", {})
    assert (run.path / "config.yaml").read_text() == "data: {}\n"


def test_a_run_without_checkpoint_is_refused_with_the_command_as_well(run):
    with pytest.raises(RetinaError, match=r"not empty.*; go on with `retina train --run-dir \S*/run --resume`$"):
        refuse_if_used(run.path)


def test_a_run_that_has_no_config_yet_needs_it_to_go_on(tmp_path):
    (tmp_path / ".partial.config.yaml").write_text("da")
    with pytest.raises(RetinaError, match=r"not empty.*; go on with `retina train CONFIG --run-dir \S* --resume`$"):
        refuse_if_used(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RetinaError, match=r"not empty; choose another --run-dir$"):
        refuse_if_used(tmp_path)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RetinaError, match="run: the run directory is a file; choose another"):
        refuse_if_used(tmp_path / "run")


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RetinaError, match="cannot write the run directory"):
        RunDirectory.create(tmp_path / "file" / "run", "", {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_place_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RetinaError, match="cannot write the run directory: Permission denied; choose another"):
        RunDirectory.create(tmp_path / "run", "", {})


@pytest.mark.parametrize(("make", "found"), [(True, "it has no config.yaml"), (False, "no such folder")])
def test_opening_what_is_no_run(tmp_path, make, found):
    path = tmp_path / "run"
    if make:
        path.mkdir()
    with pytest.raises(RetinaError, match=f"not a run directory .{found}.; make one with `retina train"):
        RunDirectory.open(path)


def test_a_checkpoint_that_is_not_there_yet(run):
    with pytest.raises(RetinaError, match="it has no 'latest' checkpoint"):
        run.checkpoint_path(LATEST)


@pytest.mark.parametrize(
    ("count", "also", "kept"),
    [(1, [], [2, 7]), (2, [], [2, 6, 7]), (1, [1, 4], [1, 2, 4, 7]), (9, [], [1, 2, 3, 4, 5, 6, 7])],
)
def test_the_newest_and_the_named_checkpoints_are_kept(run, count, also, kept):
    for step in range(1, 8):
        add(run, step)
    run.point(BEST, run.checkpoint_path("step_2"))
    run.point(LATEST, run.checkpoint_path("step_7"))
    run.keep(count, also)
    assert run.steps() == kept
    assert run.checkpoint_path(BEST).name == "step_2.npz" and run.checkpoint_path(LATEST).name == "step_7.npz"


def test_the_newest_is_by_number_not_by_name(run):
    for step in (9, 10, 100):
        add(run, step)
    run.keep(2)
    assert run.steps() == [10, 100]


def test_nothing_is_kept_of_nothing(run):
    run.keep(1)
    assert files(run) == [] and run.steps() == [] and run.pointed_step(LATEST) is None


def test_a_users_own_files_among_the_checkpoints_stay(run):
    for name in ("paper.npz", "step_one.npz", "step_1.npz.damaged"):
        (run.path / "checkpoints" / name).write_bytes(b"mine")
    for step in (1, 2):
        add(run, step)
    run.point(LATEST, run.checkpoint_path("step_2"))
    run.keep(1)
    run.go_back_to(0, None)
    assert files(run) == ["paper.npz", "step_1.npz.damaged", "step_one.npz"]


def test_going_back_leaves_what_was_there_then(run):
    for step in range(1, 6):
        add(run, step)
        run.append_metrics({"step": step})
    run.point(BEST, run.checkpoint_path("step_5"))
    run.point(LATEST, run.checkpoint_path("step_4"))
    for half in (run.path / ".partial.metrics.jsonl", run.path / "checkpoints" / ".partial.step_6.npz"):
        half.write_bytes(b"half")
    run.go_back_to(3, best_step=2)
    assert files(run) == ["best", "latest", "step_1.npz", "step_2.npz", "step_3.npz"]
    assert (run.pointed_step(BEST), run.pointed_step(LATEST)) == (2, 3)
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    assert not list(run.path.glob(".partial.*"))


def test_going_back_before_the_best_that_is_gone(run):
    add(run, 3)
    add(run, 5)
    run.point(BEST, run.checkpoint_path("step_5"))
    run.go_back_to(3, best_step=1)
    assert files(run) == ["latest", "step_3.npz"]


@pytest.mark.parametrize(
    ("names", "begun"),
    [
        ([], True),
        ([".partial.config.yaml"], True),
        (["config.yaml", "anything"], True),
        (["environment.json"], False),
        (["thesis.tex"], False),
    ],
)
def test_what_may_be_a_run_that_was_killed_at_its_start(tmp_path, names, begun):
    for name in names:
        (tmp_path / name).write_text("x")
    assert is_begun(tmp_path) == begun
    assert is_begun(tmp_path / "missing") and not is_begun(Path(__file__))


def test_completing_keeps_what_is_there(tmp_path):
    (tmp_path / "config.yaml").write_text("data: {}\n")
    run = RunDirectory.complete(tmp_path, "other: {}\n", {"seed": 4})
    assert (tmp_path / "config.yaml").read_text() == "data: {}\n" and run.environment() == {"seed": 4}
    assert (tmp_path / "checkpoints").is_dir()


@pytest.mark.parametrize("text", ["", "{", "[]", None])
def test_an_environment_that_is_torn_or_missing_says_nothing(run, text):
    (run.path / "environment.json").unlink() if text is None else (run.path / "environment.json").write_text(text)
    assert run.environment() == {}


def test_a_lock_is_given_back(run):
    with run.locked(), pytest.raises(RetinaError, match="another process is training this run"), run.locked():
        pass
    with run.locked():
        pass


def test_forgets_later_steps_and_a_torn_line(run):
    for step in range(1, 6):
        run.append_metrics({"step": step, "loss": step / 2})
    with open(run.path / "metrics.jsonl", "a") as out:
        out.write('{"step": 6, "lo')
    run.forget_after(3)
    assert run.metrics() == [{"step": step, "loss": step / 2} for step in (1, 2, 3)]
    run.append_metrics({"step": 4})
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4]


@pytest.mark.parametrize(("torn", "kept"), [("", 1), ("{", 1), ("\0\0\0", 1), ('{"step": 2}', 2), ('{"step": 4}', 1)])
def test_a_line_that_lost_only_its_end_is_whole(run, torn, kept):
    run.append_metrics({"step": 1})
    with open(run.path / "metrics.jsonl", "a") as out:
        out.write(torn)
    run.forget_after(3)
    run.append_metrics({"step": 4})
    assert [line["step"] for line in run.metrics()] == [*[1, 2][:kept], 4]


def test_forgetting_without_metrics_makes_no_file(run):
    run.forget_after(3)
    assert not (run.path / "metrics.jsonl").exists()


def test_a_failed_write_leaves_the_old_text(run, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_text(run.path / "config.yaml", "half")
    assert (run.path / "config.yaml").read_text() == "data: {}\n"
