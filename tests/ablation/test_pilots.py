"""Pilots: each setting is compared at its own best values, and the study says how they were chosen."""

import json
import sys
from dataclasses import replace

import pytest

from retina import api
from retina import config as configuration
from retina.ablation.directory import Outcome, Study
from retina.ablation.execute import run_locally
from retina.ablation.pilots import Search, pilot_plan, read_search, tuned_plan
from retina.ablation.plan import make_plan
from retina.ablation.results import collect
from retina.errors import RetinaError
from tests.ablation.conftest import TRAINER, detections

RATES = Search({"optimizer.learning_rate": (0.01, 0.02)}, share=0.5)


def pilots_with(tmp_path, plan, search, figures) -> Study:
    """A study of pilots that ended with these AP, in the order of its trials; None diverged."""
    study = Study.start(tmp_path / "study" / "pilots", pilot_plan(plan, search))
    for trial, figure in zip(study.plan.trials, figures, strict=True):
        if figure is None:
            study.record(trial, Outcome("diverged", 1, 1.0, "step 1: the loss is nan"))
            continue
        folder = study.evaluation(trial)
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"metrics": {"AP": figure}}))
        (folder / "detections.json").write_text("[]")
    return study


@pytest.mark.parametrize(
    ("texts", "keys"),
    [
        (["optimizer.learning_rate=1e-3,0.002"], {"optimizer.learning_rate": (0.001, 0.002)}),
        (["a.b=x,y", "c=null,1"], {"a.b": ("x", "y"), "c": (None, 1)}),
        (["a=[1, 2],[3]"], {"a": ([1, 2], [3])}),
    ],
)
def test_a_search_is_read(texts, keys):
    assert read_search(texts).keys == keys


@pytest.mark.parametrize(
    ("texts", "share", "message"),
    [
        (["optimizer.learning_rate=0.1"], 0.25, "two or more values"),
        (["optimizer.learning_rate"], 0.25, "two or more values"),
        (["=1,2"], 0.25, "two or more values"),
        (["a=[1,2"], 0.25, "--tune a=.*not valid YAML"),
        (["a=1,2", "a=3,4"], 0.25, "'a' is given twice"),
        (["a=1,2"], 0.0, "--pilot: expected a share"),
        (["a=1,2"], 1.5, "--pilot: expected a share"),
        (["a=1,2"], float("nan"), "--pilot: expected a share"),
    ],
)
def test_a_search_that_is_none(texts, share, message):
    with pytest.raises(RetinaError, match=message):
        read_search(texts, share)


def test_pilots_are_shorter_and_have_a_single_seed(plan):
    pilots = pilot_plan(plan, RATES)
    assert [setting.name for setting in pilots.settings] == [
        f"{name}_learning_rate={rate}"
        for name in ("gamma0_alpha0.75", "gamma2_alpha0.25", "gamma5_alpha0.25")
        for rate in (0.01, 0.02)
    ]
    assert len(pilots.trials) == 6
    config = pilots.trial_config(pilots.trials[1])
    assert (config.schedule.steps, config.schedule.warmup_steps, config.run.evaluate_every) == (2, 1, 2)
    assert (config.optimizer.learning_rate, config.loss.classification.alpha) == (0.02, 0.75)


def test_pilots_scale_milestones_and_epochs(base):
    steps = ["schedule={kind: step, steps: 40, milestones: [20, 30]}", "run.evaluate_every=40"]
    plan = make_plan(configuration.override(base, steps), gammas=[0.0, 2.0], alphas=[0.5])
    config = pilot_plan(plan, RATES).trial_config(pilot_plan(plan, RATES).trials[0])
    assert (config.schedule.steps, config.schedule.milestones) == (20, (10, 15))
    late = ["schedule={kind: step, steps: 10, milestones: [4, 9]}", "run.evaluate_every=10"]
    plan = make_plan(configuration.override(base, late), gammas=[0.0, 2.0], alphas=[0.5])
    quarter = pilot_plan(plan, replace(RATES, share=0.25))
    config = quarter.trial_config(quarter.trials[0])
    assert (config.schedule.steps, config.schedule.milestones) == (2, (1,))
    plan = make_plan(configuration.override(base, ["schedule.epochs=3"]), gammas=[0.0, 2.0], alphas=[0.5])
    config = pilot_plan(plan, RATES).trial_config(pilot_plan(plan, RATES).trials[0])
    assert (config.schedule.epochs, config.schedule.steps) == (1.5, None)


def test_a_value_that_is_given_twice_is_refused(plan):
    with pytest.raises(RetinaError, match="'gamma0_alpha0.75_learning_rate=0.001' is given 2 times"):
        pilot_plan(plan, read_search(["optimizer.learning_rate=0.001,1e-3"]))


def test_pilots_that_are_the_same_are_refused(base):
    plan = make_plan(base, pairs=[(0.0, 0.25), (0.0, 0.5)])
    with pytest.raises(RetinaError, match="the same configuration"):
        pilot_plan(plan, Search({"loss.classification.alpha": (0.25, 0.5)}))


def test_each_setting_gets_its_own_best_value(tmp_path, plan):
    pilots = pilots_with(tmp_path, plan, RATES, (0.1, 0.2, 0.4, 0.3, None, 0.1))
    tuned = tuned_plan(plan, RATES, pilots)
    assert [tuned.setting_config(setting).optimizer.learning_rate for setting in tuned.settings] == [0.02, 0.01, 0.02]
    assert [setting.name for setting in tuned.settings] == [setting.name for setting in plan.settings]
    assert tuned.settings[0].label == "γ 0, α 0.75, learning_rate 0.02"
    assert tuned.tuning[1] == (
        "γ 0, α 0.75: 0.02, AP 0.200 (0.01 0.100). At the end of the range tried of optimizer.learning_rate: a wider "
        "one may hold better."
    )
    assert "(0.01 no figure)" in tuned.tuning[3]
    study = Study.start(tmp_path / "study", tuned)
    assert Study.open(study.path).plan == tuned


def test_a_setting_is_named_after_the_alpha_that_was_chosen(tmp_path, base):
    plan = make_plan(
        base, gammas=[0.0, 2.0], alphas=[0.25], baseline="gamma2_alpha0.25", seeds_of={"gamma0_alpha0.25": 4}
    )
    alphas = Search({"loss.classification.alpha": (0.25, 0.5, 0.75)})
    tuned = tuned_plan(plan, alphas, pilots_with(tmp_path, plan, alphas, (0.1, 0.2, 0.1, 0.1, 0.2, 0.1)))
    assert [(setting.name, setting.label, setting.seeds) for setting in tuned.settings] == [
        ("gamma0_alpha0.5", "γ 0, α 0.5", 4),
        ("gamma2_alpha0.5", "γ 2, α 0.5", None),
    ]
    assert tuned.baseline == "gamma2_alpha0.5"
    assert [bool(setting.paper) for setting in tuned.settings] == [False, False]
    assert not any("end of the range" in sentence for sentence in tuned.tuning)


def test_figures_of_the_paper_stay_with_its_alpha_alone(tmp_path, base):
    plan = make_plan(base, preset="table1b")
    alphas = Search({"loss.classification.alpha": (0.25, 0.3)})
    plan = replace(plan, settings=plan.settings[4:6], baseline="gamma1_alpha0.25")
    tuned = tuned_plan(plan, alphas, pilots_with(tmp_path, plan, alphas, (0.1, 0.2, 0.2, 0.1)))
    assert [bool(setting.paper) for setting in tuned.settings] == [False, True]


def test_nothing_is_chosen_while_a_pilot_has_failed(tmp_path, plan):
    """It is tried again at the next call, and may then be the best."""
    pilots = pilots_with(tmp_path, plan, RATES, (0.1, 0.2, 0.4, 0.3, None, 0.1))
    pilots.record(pilots.plan.trials[4], Outcome("failed", 2, 1.0, "out of memory"))
    with pytest.raises(RetinaError, match=r"the pilot gamma5_alpha0.25_learning_rate=0.01_0 failed, .* repeat the"):
        tuned_plan(plan, RATES, pilots)


def test_pilots_can_be_given_further_values(tmp_path, plan):
    home = tmp_path / "study"
    Study.start_pilots(home, pilot_plan(plan, RATES))
    lower = Search({"optimizer.learning_rate": (0.005, 0.01, 0.02)}, share=0.5)
    grown = Study.start_pilots(home, pilot_plan(plan, lower))
    assert len(grown.plan.trials) == 9


def test_pilots_do_not_start_where_their_study_can_not(tmp_path, plan):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RetinaError, match="expected a new folder or a study"):
        Study.start_pilots(tmp_path, pilot_plan(plan, RATES))
    Study.start(tmp_path / "untuned", plan)
    with pytest.raises(RetinaError, match="began without --tune"):
        Study.start_pilots(tmp_path / "untuned", pilot_plan(plan, RATES))
    assert not list(tmp_path.rglob("pilots"))


def test_a_study_at_work_is_not_given_another_plan(tmp_path, base, plan, monkeypatch):
    monkeypatch.setattr("retina.ablation.directory._LOCK_SECONDS", 0.0)
    study = Study.start(tmp_path / "study", plan)
    more = replace(plan, seeds=3)
    with study.locked(), pytest.raises(RetinaError, match="another study or one of its trials is running"):
        Study.start(study.path, more)
    assert Study.open(study.path).plan == plan
    assert Study.start(study.path, more).plan == more == Study.open(study.path).plan


def test_pilots_without_any_figure_are_refused(tmp_path, plan):
    pilots = pilots_with(tmp_path, plan, RATES, (None, None, 0.4, 0.3, 0.1, 0.1))
    with pytest.raises(RetinaError, match="no pilot of 'gamma0_alpha0.75' has a figure, all diverged"):
        tuned_plan(plan, RATES, pilots)


def test_a_study_runs_its_pilots_first_and_reports_the_choice(tmp_path, plan, validation, monkeypatch):
    book = tmp_path / "book"
    book.mkdir()
    for setting in (*plan.settings, *pilot_plan(plan, RATES).settings):
        (book / f"{setting.name}.json").write_text(json.dumps(detections(validation, 2)))
    program = (sys.executable, str(TRAINER), str(book))
    monkeypatch.setattr(api, "run_locally", lambda study, **words: run_locally(study, program=program, **words))
    said = []
    api.ablate(plan, tmp_path / "study", search=RATES, replicates=100, say=said.append)
    calls = (book / "calls.txt").read_text().splitlines()
    assert len(calls) == 12
    assert all("learning_rate=" in call for call in calls[:6])
    assert not any("learning_rate=" in call for call in calls[6:])
    assert said[0].startswith("6 settings, 1 seed: 6 trials, 12 training steps in all, in ")
    result = collect(Study.open(tmp_path / "study"), replicates=100)
    assert any("optimizer.learning_rate on the same validation images" in note for note in result.notes)
    api.ablate(plan, tmp_path / "study", search=RATES, replicates=100, say=said.append)
    assert len((book / "calls.txt").read_text().splitlines()) == 12
