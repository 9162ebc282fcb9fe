"""The results of the study of circuit boards that the repository keeps."""

import json
import tarfile

import pytest

from retina.ablation.directory import Study
from tests.scripts import load_script

script = load_script("reproduce/deeppcb_study")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept") / "study"
    script.unpack(script.KEPT, folder, folder / "boards")
    return folder


def test_they_open_as_a_study_on_the_data_that_are_here(home):
    for plan in home.rglob("study.yaml"):
        study = Study.open(plan.parent)
        assert study.plan.config.data.root == home / "boards"
        done = [trial for trial in study.plan.trials if study.is_finished(trial)]
        assert done and all(study.outcome(trial).status == "finished" for trial in done)
        assert all(0 <= study.figure(trial) < 1 for trial in done)
    assert script.best_alpha(home / "alpha") == 0.99
    assert Study.open(home / "sgd").plan.config.schedule.kind == "step"  # as the script goes on


def test_the_tables_are_of_the_trials(home):
    for name in ("alpha", "adamw"):
        study = Study.open(home / name)
        rows = json.loads((home / name / "study.json").read_text(encoding="utf-8"))["trials"]
        trials = {trial.name: trial for trial in study.plan.trials}
        assert {row["name"]: row["AP"] for row in rows if row["AP"] is not None} == {
            name: pytest.approx(study.figure(trial)) for name, trial in trials.items() if study.is_finished(trial)
        }


def test_packed_again_they_hold_the_same_and_no_path(home, tmp_path):
    script.pack(home, tmp_path / "again.tar.xz")
    kept, again = contents(script.KEPT), contents(tmp_path / "again.tar.xz")
    assert again == kept
    assert not any(str(tmp_path.parent).encode() in content for content in again.values())


def test_fewer_results_do_not_replace_them(home, tmp_path, capsys):
    (tmp_path / "study").mkdir()
    before = script.KEPT.read_bytes()
    script.pack(tmp_path / "study", script.KEPT)
    assert script.KEPT.read_bytes() == before and "holds fewer results" in capsys.readouterr().out


def contents(archive):
    with tarfile.open(archive) as packed:
        members = packed.getmembers()
        assert {member.uname for member in members} == {""}
        return {member.name: packed.extractfile(member).read() for member in members}
