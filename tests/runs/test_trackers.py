"""Trackers: what they are sent, and a missing package. `scripts/reproduce/third_parties.py` has the real packages."""

from __future__ import annotations

import shutil
import sys
from types import SimpleNamespace

import pytest

import retina
from retina.errors import Interrupted, RetinaError
from retina.runs.trackers import check_installed, tracked

CONFIG = retina.load_config(overrides=["run.trackers=[wandb, mlflow]", "run.seed=3"])
LINE = {"step": 20, "loss": 1.5, "APl": -1}


class Imitation:
    """Both packages, and the run that they open: notes what it is called with, and raises in the calls in `fails`."""

    run = None  # as wandb has it: none that the caller has opened

    def __init__(self, known=()):
        self.calls, self.known, self.fails = [], list(known), set()

    def _called(self, name, arguments=(), settings=None):
        self.calls.append((name, arguments, settings or {}))
        if name in self.fails:
            raise ConnectionError(f"{name}:\nno route")

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self._called("exit", (kind,))

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def called(*arguments, **settings):
            self._called(name, arguments, settings)
            return self.known if name == "search_runs" else self

        return called


def run_at_service(parameters: dict[str, str]) -> SimpleNamespace:
    """Return a run as `mlflow.search_runs` returns it."""
    return SimpleNamespace(info=SimpleNamespace(run_id="abc"), data=SimpleNamespace(params=parameters))


@pytest.fixture
def packages(monkeypatch):
    imitations = {name: Imitation() for name in ("wandb", "mlflow")}
    for name, package in imitations.items():
        monkeypatch.setitem(sys.modules, name, package)
    return imitations


@pytest.fixture
def pets(tmp_path):
    (tmp_path / "pets").mkdir()
    return tmp_path / "pets"


def silent(line: str) -> None:
    raise AssertionError(line)


def of(package: Imitation, name: str) -> list:
    return [(arguments, settings) for called, arguments, settings in package.calls if called == name]


def test_lines_are_sent_with_their_step_and_undefined_figures_left_out(packages, pets):
    with tracked(pets, CONFIG, silent) as track:
        track("train", LINE)
    assert of(packages["wandb"], "log") == [(({"train/loss": 1.5},), {"step": 20})]
    assert of(packages["mlflow"], "log_metrics") == [(({"train/loss": 1.5},), {"step": 20})]
    ((_, opened),) = of(packages["wandb"], "init")
    assert opened["name"] == "pets" and opened["config"]["run.seed"] == "3" and opened["resume"] == "allow"
    sent = [arguments[0] for arguments, _ in of(packages["mlflow"], "log_params")]
    assert max(map(len, sent)) <= 100 and {**sent[0], **sent[-1]}.keys() >= {"data.root"}
    assert sum(map(len, sent)) == len(opened["config"])
    assert of(packages["wandb"], "finish") == [((0,), {})] and of(packages["mlflow"], "exit") == [((None,), {})]


def test_a_run_that_goes_on_is_the_same_run(packages, pets):
    ids = []
    for known in ([], [run_at_service({"run.seed": "3"})]):
        packages["mlflow"].known = known
        with tracked(pets, CONFIG, silent):
            ids.append(of(packages["wandb"], "init")[-1][1]["id"])
    assert ids[0] == ids[1]
    first, second = (settings for _, settings in of(packages["mlflow"], "start_run"))
    assert first == {"run_name": "pets", "tags": {"retina.run": ids[0]}, "nested": True}
    assert second == {"run_id": "abc", "nested": True}
    shutil.move(pets, pets.parent / "moved")
    with tracked(pets.parent / "moved", CONFIG, silent):
        assert of(packages["wandb"], "init")[-1][1]["id"] == ids[0]


def test_a_run_that_is_made_again_in_the_same_folder_is_another_run(packages, pets):
    for _ in range(2):
        shutil.rmtree(pets)
        pets.mkdir()
        with tracked(pets, CONFIG, silent):
            pass
    first, second = (settings["id"] for _, settings in of(packages["wandb"], "init"))
    assert first != second
    assert [settings["tags"]["retina.run"] for _, settings in of(packages["mlflow"], "start_run")] == [first, second]


def test_settings_that_the_service_has_are_not_sent_again_when_a_run_is_resumed_with_others(packages, pets):
    packages["mlflow"].known = [run_at_service({"schedule.steps": "100", "run.seed": "3"})]
    with tracked(pets, retina.load_config(overrides=["run.trackers=[mlflow]", "schedule.steps=200"]), silent):
        pass
    sent = {key for arguments, _ in of(packages["mlflow"], "log_params") for key in arguments[0]}
    assert "run.batch_size" in sent and not sent & {"schedule.steps", "run.seed"}


def test_another_host_sends_nothing(packages):
    with tracked(None, CONFIG, silent) as track:
        track("train", LINE)
    assert not packages["wandb"].calls and not packages["mlflow"].calls


def test_without_trackers_a_run_has_no_id_for_them(pets):
    with tracked(pets, retina.load_config(), silent):
        assert not list(pets.iterdir())


@pytest.mark.parametrize(
    ("name", "call", "action"),
    [
        ("mlflow", "search_runs", "opening"),
        ("mlflow", "log_params", "opening"),
        ("mlflow", "log_metrics", "sending"),
        ("mlflow", "exit", "closing"),
        ("wandb", "init", "opening"),
        ("wandb", "log", "sending"),
        ("wandb", "finish", "closing"),
    ],
)
def test_a_service_that_fails_is_a_line_and_the_run_goes_on_without_it(packages, pets, name, call, action):
    packages[name].fails = {call}
    other = packages["wandb" if name == "mlflow" else "mlflow"]
    lines: list[str] = []

    def interrupted_run():
        with tracked(pets, CONFIG, lines.append) as track:
            for step in (20, 40):
                track("train", {**LINE, "step": step})
            raise Interrupted("the signal")

    with pytest.raises(Interrupted, match="the signal"):
        interrupted_run()
    assert lines == [
        f"warning: run.trackers: {name}: {action} failed: ConnectionError: {call}: no route; nothing more is sent to it"
    ]
    assert len(of(packages[name], call)) == 1
    assert len(of(other, "log")) + len(of(other, "log_metrics")) == 2
    # What was opened is closed, once, and is told of the error.
    assert of(packages["wandb"], "finish") == ([] if call == "init" else [((1,), {})])
    assert [arguments != (None,) for arguments, _ in of(packages["mlflow"], "exit")] == [True] * (call != "search_runs")


def test_a_service_that_is_lost_is_closed_at_once_and_says_so_when_that_fails_too(packages, pets):
    packages["mlflow"].fails = {"log_metrics", "exit"}
    lines: list[str] = []
    with tracked(pets, CONFIG, lines.append) as track:
        track("train", LINE)
        assert [line.split(": ")[3] for line in lines] == ["sending failed", "closing failed"]
    assert len(lines) == 2


def test_a_run_of_the_caller_stays_open(packages, pets, monkeypatch):
    """MLflow is asked for a nested run always; see `test_a_run_that_goes_on_is_the_same_run`."""
    for run, expected in ((None, "default"), (object(), "create_new")):
        monkeypatch.setattr(packages["wandb"], "run", run, raising=False)
        with tracked(pets, CONFIG, silent):
            assert of(packages["wandb"], "init")[-1][1]["reinit"] == expected


@pytest.mark.parametrize(("variable", "seconds"), [(None, 30.0), ("0", 0.0), ("600", 600.0)])
def test_the_wait_for_wandb_at_the_end_has_a_limit(packages, pets, monkeypatch, variable, seconds):
    monkeypatch.delenv("WANDB_FINISH_TIMEOUT", raising=False)
    if variable is not None:
        monkeypatch.setenv("WANDB_FINISH_TIMEOUT", variable)
    with tracked(pets, CONFIG, silent):
        pass
    assert of(packages["wandb"], "init")[0][1]["settings"] == {"finish_timeout": seconds}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_names_the_extra_before_anything_is_written(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RetinaError, match=rf"run.trackers: {name} is not installed.*\[{name}\].*leave it out"):
        check_installed([name])
    config = retina.load_config(overrides=[f"run.trackers=[{name}]"])
    with pytest.raises(RetinaError, match="is not installed"):
        retina.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
