"""Trackers: what they are sent, and a missing package. `scripts/reproduce/third_parties.py` has the real packages."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

import retina
from retina.errors import RetinaError
from retina.runs.trackers import check_installed, tracked

CONFIG = retina.load_config(overrides=["run.trackers=[wandb, mlflow]", "run.seed=3"])
LINE = {"step": 20, "loss": 1.5, "APl": -1}


class Imitation:
    """Both packages: notes what it is called with."""

    def __init__(self, known=()):
        self.calls, self.known = [], list(known)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def called(*arguments, **settings):
            self.calls.append((name, arguments, settings))
            return self.known if name == "search_runs" else nullcontext(self)

        return called


@pytest.fixture
def packages(monkeypatch):
    imitations = {name: Imitation() for name in ("wandb", "mlflow")}
    for name, package in imitations.items():
        monkeypatch.setitem(sys.modules, name, package)
    return imitations


def of(package: Imitation, name: str) -> list:
    return [(arguments, settings) for called, arguments, settings in package.calls if called == name]


def test_lines_are_sent_with_their_step_and_undefined_figures_left_out(packages):
    with tracked(Path("runs/pets"), CONFIG) as track:
        track("train", LINE)
    assert of(packages["wandb"], "log") == [(({"train/loss": 1.5},), {"step": 20})]
    assert of(packages["mlflow"], "log_metrics") == [(({"train/loss": 1.5},), {"step": 20})]
    ((_, opened),) = of(packages["wandb"], "init")
    assert opened["name"] == "pets" and opened["config"]["run.seed"] == "3" and opened["resume"] == "allow"
    sent = [arguments[0] for arguments, _ in of(packages["mlflow"], "log_params")]
    assert max(map(len, sent)) <= 100 and {**sent[0], **sent[-1]}.keys() >= {"data.root"}
    assert sum(map(len, sent)) == len(opened["config"])


def test_a_run_that_goes_on_is_the_same_run(packages):
    ids = []
    for known in ([], [SimpleNamespace(info=SimpleNamespace(run_id="abc"))]):
        packages["mlflow"].known = known
        with tracked(Path("runs/pets"), CONFIG):
            ids.append(of(packages["wandb"], "init")[-1][1]["id"])
    assert ids[0] == ids[1]
    first, second = (settings for _, settings in of(packages["mlflow"], "start_run"))
    assert first["run_name"] == "pets" and first["tags"] == {"retina.run": ids[0]}
    assert second == {"run_id": "abc"}
    with tracked(Path("runs/others"), CONFIG):
        assert of(packages["wandb"], "init")[-1][1]["id"] != ids[0]


def test_another_host_sends_nothing(packages):
    with tracked(None, CONFIG) as track:
        track("train", LINE)
    assert not packages["wandb"].calls and not packages["mlflow"].calls


def test_a_service_that_is_not_there_is_a_line(packages, monkeypatch):
    monkeypatch.setattr(packages["mlflow"], "search_runs", lambda **settings: 1 / 0, raising=False)
    expected = pytest.raises(RetinaError, match="run.trackers: mlflow: .*ZeroDivisionError: .*leave it out")
    with expected, tracked(Path("runs/pets"), CONFIG):
        pass


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_names_the_extra_before_anything_is_written(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RetinaError, match=rf"run.trackers: {name} is not installed.*\[{name}\].*leave it out"):
        check_installed([name])
    config = retina.load_config(overrides=[f"run.trackers=[{name}]"])
    with pytest.raises(RetinaError, match="is not installed"):
        retina.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
