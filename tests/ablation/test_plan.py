"""Settings and trials from every way of asking for them, expanded by hand."""

import pytest

from retina import config as configuration
from retina.ablation.directory import Study
from retina.ablation.plan import Plan, changes, make_plan, number_pairs, numbers, numbers_or_none, seed_counts, varied
from retina.ablation.presets import PRESETS
from retina.errors import RetinaError

GRIDS = sorted((configuration.default_path().parent / "grids").glob("*.yaml"))


def names(plan: Plan) -> list[str]:
    return [setting.name for setting in plan.settings]


def losses(plan: Plan) -> list[tuple]:
    trials = plan.trials[: len(plan.settings)]
    found = [plan.trial_config(trial).loss.classification for trial in trials]
    return [(loss.kind, loss.gamma, loss.alpha) for loss in found]


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_the_grids_of_the_package_are_settings(base, file):
    assert len(make_plan(base, grid=file).settings) >= 2


# ----------------------------------------------------------------------------------------------- nothing, and wrong


def test_nothing_to_vary(base):
    with pytest.raises(RetinaError, match="nothing to vary: give --gamma"):
        make_plan(base)


@pytest.mark.parametrize("seeds", [0, -1])
def test_no_seed(base, seeds):
    with pytest.raises(RetinaError, match=f"--seeds: expected at least 1, got {seeds}"):
        make_plan(base, gammas=[0.0], seeds=seeds)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: numbers("--gamma", ""), "--gamma: expected numbers such as 0,0.5,2, got ''"),
        (lambda: numbers("--gamma", "0,x"), "got 'x'"),
        (lambda: numbers("--gamma", "none"), "got 'none'"),
        (lambda: numbers("--gamma", "nan"), "got 'nan'"),
        (lambda: numbers_or_none("--alpha", "inf"), "got 'inf'"),
        (lambda: number_pairs("--pairs", "2"), "--pairs: expected GAMMA:ALPHA such as 2:0.25, got '2'"),
        (lambda: number_pairs("--pairs", "2:0.25,:"), "got ''"),
    ],
)
def test_words_that_are_no_numbers(call, message):
    with pytest.raises(RetinaError, match=message):
        call()


def test_words_that_are():
    assert numbers("--gamma", "0,0.5, 1e-1") == [0.0, 0.5, 0.1]
    assert str(numbers("--gamma", "-0")) == "[0.0]"
    assert numbers_or_none("--alpha", "0.25,none") == [0.25, None]
    assert number_pairs("--pairs", "0:0.75,2:none") == [(0.0, 0.75), (2.0, None)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gammas": [-1.0]}, "setting 'gamma-1_alpha0.25': .*gamma"),
        ({"alphas": [1.5]}, "setting 'gamma2_alpha1.5': .*alpha"),
        ({"gammas": numbers("--gamma", "0,-0")}, "'gamma0_alpha0.25' is given 2 times"),
        ({"gammas": [1.0, 1.0]}, "'gamma1_alpha0.25' is given 2 times"),
        ({"gammas": [0.0], "baseline": "x"}, "baseline 'x': expected one of the settings gamma0_alpha0.25"),
    ],
)
def test_settings_that_can_not_be(base, arguments, message):
    with pytest.raises(RetinaError, match=message):
        make_plan(base, **arguments)


def grid(tmp_path, text: str):
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping of keys to lists of values, or a list"),
        ("[]", "expected a mapping"),
        ("{}", "expected a mapping of keys to lists of values"),
        ("- product: {}", "entry 0: expected {name, overrides}"),
        ("model.head.prior: [2026-11-23]", "entry 0: expected numbers, text, .*date"),
        ("- {name: a, overrides: {data.train: !!set {x}}}", "entry 0: expected numbers, text"),
        ("- &a [*a]", "entry 0: expected numbers, text"),
        ("data.train: [{format: " + "x" * 200 + "}]", "expected a name of at most 100 characters .*, got 2"),
        ("3", "expected a mapping"),
        ("- {name: a}", "entry 0: expected {name, overrides}"),
        ("- {name: a, overrides: {run.seed: 3}}", "setting 'a': the study sets run.seed"),
        ("- {name: a/b, overrides: {model.head.prior: 0.5}}", "setting 'a/b': expected a name of letters"),
        ("- {name: a, overrides: {model.head.prir: 0.5}}", "setting 'a': .*did you mean 'prior'"),
        ("- {name: a, overrides: {evaluation.metric: AP50}}", "setting 'a': changes evaluation"),
        ("- {name: a, overrides: {data.validation.images: 9}}", "setting 'a': changes data.validation"),
        ("- {name: a, overrides: {}}\n- {name: b, overrides: {}}", "'a' and 'b' are the same configuration"),
        ("model.head.prior: 0.5", "'model.head.prior': expected a list of values, got 0.5"),
        ("a: [1]\na: [2]", "line 2: key 'a' is given twice"),
    ],
)
def test_grids_that_can_not_be(base, tmp_path, text, message):
    with pytest.raises(RetinaError, match=message):
        make_plan(base, grid=grid(tmp_path, text))


def test_a_missing_grid(base, tmp_path):
    with pytest.raises(RetinaError, match="cannot read"):
        make_plan(base, grid=tmp_path / "none.yaml")


# ---------------------------------------------------------------------------------------------------------- settings


def test_the_product_of_gamma_and_alpha(base):
    plan = make_plan(base, gammas=[0.0, 2.0], alphas=[0.25, None])
    assert names(plan) == ["gamma0_alpha0.25", "gamma0_alphanone", "gamma2_alpha0.25", "gamma2_alphanone"]
    assert losses(plan) == [("focal", 0, 0.25), ("focal", 0, None), ("focal", 2, 0.25), ("focal", 2, None)]
    assert plan.baseline == "gamma0_alpha0.25" and plan.preset is None


def test_one_of_them_takes_the_other_from_the_config(base):
    own = configuration.override(base, ["loss.classification.gamma=1.5", "loss.classification.alpha=0.4"])
    assert losses(make_plan(own, gammas=[0.0])) == [("focal", 0.0, 0.4)]
    assert losses(make_plan(own, alphas=[0.9])) == [("focal", 1.5, 0.9)]


def test_a_config_without_gamma_wants_both(base):
    own = configuration.override(base, ["loss.classification.kind=ohem"])
    with pytest.raises(RetinaError, match="is 'ohem': give both --gamma and --alpha"):
        make_plan(own, gammas=[2.0])
    assert losses(make_plan(own, gammas=[2.0], alphas=[0.5])) == [("focal", 2, 0.5)]


def test_pairs_and_seed_major_order(base):
    own = configuration.override(base, ["run.seed=7"])
    plan = make_plan(own, pairs=[(2.0, 0.25), (0.0, 0.75)], seeds=2)
    assert [trial.name for trial in plan.trials] == [
        "gamma2_alpha0.25_7",
        "gamma0_alpha0.75_7",
        "gamma2_alpha0.25_8",
        "gamma0_alpha0.75_8",
    ]
    assert [plan.trial_config(trial).run.seed for trial in plan.trials] == [7, 7, 8, 8]
    assert [trial.index for trial in plan.trials] == [0, 0, 1, 1]
    assert plan.baseline == "gamma0_alpha0.75"


def test_nothing_else_changes(base):
    plan = make_plan(base, pairs=[(5.0, 0.5)])
    mine, theirs = plan.trial_config(plan.trials[1]), configuration.with_absolute_root(base)
    expected = ["loss.classification.gamma=5.0", "loss.classification.alpha=0.5", "run.seed=1", "run.report=false"]
    assert mine == configuration.override(theirs, [*expected, "run.keep=1"])
    more = make_plan(configuration.override(base, ["run.keep=5"]), pairs=[(5.0, 0.5)])
    assert more.trial_config(more.trials[1]).run.keep == 5


def test_a_grid_of_named_settings_and_products(base, tmp_path):
    file = grid(
        tmp_path,
        "- {name: no-prior, overrides: {loss.classification.gamma: 0, model.head.prior: 0.5}}\n"
        "- product: {optimizer.learning_rate: [1e-3, 2.0e-3], loss.classification.alpha: [0.5]}\n"
        "- {name: ohem, overrides: {loss.classification.hardest: 64, loss.classification.kind: ohem}}\n",
    )
    plan = make_plan(base, pairs=[(2.0, 0.25)], grid=file)
    assert names(plan) == [
        "gamma2_alpha0.25",
        "no-prior",
        "learning_rate=0.001_alpha=0.5",
        "learning_rate=0.002_alpha=0.5",
        "ohem",
    ]
    configs = [plan.trial_config(trial) for trial in plan.trials[:5]]
    assert configs[1].model.head.prior == 0.5 and configs[1].loss.classification.gamma == 0
    assert [(c.optimizer.learning_rate, c.loss.classification.alpha) for c in configs[2:4]] == [
        (1e-3, 0.5),
        (2e-3, 0.5),
    ]
    assert configs[4].loss.classification.kind == "ohem" and configs[4].loss.classification.hardest == 64


def test_a_mapping_is_a_product(base, tmp_path):
    plan = make_plan(base, grid=grid(tmp_path, "model.head.prior: [0.01, 0.5]\nmodel.head.layers: [0, 1]"))
    assert names(plan) == ["prior=0.01_layers=0", "prior=0.01_layers=1", "prior=0.5_layers=0", "prior=0.5_layers=1"]
    assert plan.baseline == "prior=0.01_layers=0"


def test_numbers_that_look_alike_have_their_own_names(base):
    plan = make_plan(base, gammas=[0.1234567, 0.12345671])
    assert names(plan) == ["gamma0.1234567_alpha0.25", "gamma0.12345671_alpha0.25"]
    assert plan.settings[1].label == "γ 0.12345671, α 0.25"


@pytest.mark.parametrize(
    "overrides",
    [
        "{loss.classification.gamma: 0.0}",
        "{loss.classification: {kind: focal, gamma: 0.0}}",
        "{loss.classification.kind: cross_entropy}",
    ],
)
def test_the_baseline_is_cross_entropy_however_it_is_written(base, tmp_path, overrides):
    file = grid(tmp_path, f"- {{name: first, overrides: {{}}}}\n- {{name: ce, overrides: {overrides}}}")
    assert make_plan(base, grid=file).baseline == "ce"


def test_what_varies(base, tmp_path):
    assert varied(make_plan(base, gammas=[0.0, 2.0])) == ["loss.classification.gamma"]
    assert varied(make_plan(base, gammas=[2.0])) == []
    assert varied(make_plan(base, preset="table1d")) == ["loss.classification"]
    file = grid(
        tmp_path,
        "- {name: a, overrides: {loss.classification.gamma: 1, model.head.prior: 0.5}}\n"
        "- {name: b, overrides: {loss.classification.kind: cross_entropy, loss.classification.alpha: 0.25}}",
    )
    assert varied(make_plan(base, grid=file)) == ["loss.classification.gamma", "model.head.prior"]


# -------------------------------------------------------------------------------------------------- the paper's tables


def paper(preset: str) -> dict[str, tuple]:
    return {s.name: (s.paper["AP"], s.paper["AP50"], s.paper["AP75"]) for s in PRESETS[preset].settings}


def test_table_1b(base):
    plan = make_plan(base, preset="table1b")
    assert [(gamma, alpha) for _, gamma, alpha in losses(plan)] == [
        (0, 0.75), (0.1, 0.75), (0.2, 0.75), (0.5, 0.5), (1, 0.25), (2, 0.25), (5, 0.25),
    ]  # fmt: skip
    assert paper("table1b") == {
        "gamma0_alpha0.75": (0.311, 0.494, 0.330),
        "gamma0.1_alpha0.75": (0.314, 0.499, 0.331),
        "gamma0.2_alpha0.75": (0.319, 0.507, 0.334),
        "gamma0.5_alpha0.5": (0.329, 0.517, 0.352),
        "gamma1_alpha0.25": (0.337, 0.520, 0.362),
        "gamma2_alpha0.25": (0.340, 0.525, 0.365),
        "gamma5_alpha0.25": (0.322, 0.496, 0.348),
    }
    assert plan.baseline == "gamma0_alpha0.75" and plan.preset == "table1b" and len(plan.trials) == 21


def test_table_1a(base):
    plan = make_plan(base, preset="table1a", seeds=1)
    assert [loss[1] for loss in losses(plan)] == [0] * 7
    assert [loss[2] for loss in losses(plan)] == [0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999]
    assert [row[0] for row in paper("table1a").values()] == [0.0, 0.108, 0.302, 0.311, 0.308, 0.287, 0.251]
    assert plan.baseline == "gamma0_alpha0.5"


def test_table_1d(base):
    plan = make_plan(base, preset="table1d", seeds=1)
    found = [plan.trial_config(trial).loss.classification for trial in plan.trials]
    assert [(loss.hardest, loss.ratio) for loss in found[:-1]] == [
        (128, None), (256, None), (512, None), (128, 3), (256, 3), (512, 3),
    ]  # fmt: skip
    assert (found[-1].kind, found[-1].gamma, found[-1].alpha) == ("focal", 2.0, 0.25)
    assert list(paper("table1d").values()) == [
        (0.328, 0.503, 0.351), (0.310, 0.474, 0.330), (0.276, 0.420, 0.292), (0.311, 0.472, 0.332),
        (0.283, 0.424, 0.303), (0.240, 0.355, 0.258), (0.360, 0.549, 0.387),
    ]  # fmt: skip
    assert plan.baseline == "gamma2_alpha0.25"


# ------------------------------------------------------------------------------------------------------- plans as trees


def test_a_plan_comes_back_from_its_tree(plan):
    assert Plan.from_tree(plan.to_tree(), "study.yaml") == plan


@pytest.mark.parametrize("tree", [None, {}, {"settings": 3}, {"settings": [{"name": "a"}]}])
def test_a_tree_that_is_none(tree):
    with pytest.raises(RetinaError, match="study.yaml: expected the plan of a study"):
        Plan.from_tree(tree, "study.yaml")


def test_changes_are_named(base, plan):
    def changed(**arguments):
        given = {"pairs": [(0.0, 0.75), (2.0, 0.25), (5.0, 0.25)], "seeds": 2, **arguments}
        config = given.pop("config", base)
        return changes(plan, make_plan(config, **given))

    assert changed() == []
    assert changed(seeds=1) == [f"seeds of '{setting.name}' (2 → 1)" for setting in plan.settings]
    assert changed(seeds_of={"gamma2_alpha0.25": 1}) == ["seeds of 'gamma2_alpha0.25' (2 → 1)"]
    assert changed(baseline="gamma5_alpha0.25") == ["baseline (gamma0_alpha0.75 → gamma5_alpha0.25)"]
    assert changed(pairs=[(0.0, 0.75), (2.0, 0.25)]) == ["setting 'gamma5_alpha0.25' is gone"]
    assert changed(pairs=[(0.0, 0.75), (5.0, 0.25), (2.0, 0.25)]) == ["the order of the settings"]
    other = configuration.override(base, ["schedule.steps=5"])
    assert changed(config=other) == ["schedule.steps (4 → 5)"]
    with_sgd = configuration.override(base, ["loss.classification={kind: focal, gamma: 1.0}"])
    assert changed(config=with_sgd) == ["loss.classification.gamma (2.0 → 1.0)"]


def test_more_seeds_and_further_settings_are_no_change(base, plan):
    def grown(**arguments):
        given = {"pairs": [(0.0, 0.75), (2.0, 0.25), (5.0, 0.25)], "seeds": 2, **arguments}
        return changes(plan, make_plan(base, **given))

    assert grown(seeds=3) == []
    assert grown(seeds_of={"gamma2_alpha0.25": 5}) == []
    assert grown(seeds=1, seeds_of={setting.name: 2 for setting in plan.settings}) == []
    assert grown(pairs=[(0.0, 0.75), (1.0, 0.25), (2.0, 0.25), (5.0, 0.25)], baseline="gamma0_alpha0.75") == []


# -------------------------------------------------------------------------------------------------- seeds of settings


def test_settings_may_have_more_seeds_than_others(base):
    plan = make_plan(base, pairs=[(0.0, 0.75), (2.0, 0.25)], seeds=1, seeds_of={"gamma2_alpha0.25": 3})
    assert [trial.name for trial in plan.trials] == [
        "gamma0_alpha0.75_0", "gamma2_alpha0.25_0", "gamma2_alpha0.25_1", "gamma2_alpha0.25_2",
    ]  # fmt: skip
    assert [plan.seeds_of(setting) for setting in plan.settings] == [1, 3]
    assert plan.most_seeds == 3
    with pytest.raises(RetinaError, match="expected one of the settings gamma0_alpha0.75, gamma2_alpha0.25, got 'a'"):
        make_plan(base, pairs=[(0.0, 0.75), (2.0, 0.25)], seeds_of={"a": 3})
    with pytest.raises(RetinaError, match="--seeds: expected at least 1, got 0"):
        make_plan(base, pairs=[(0.0, 0.75), (2.0, 0.25)], seeds_of={"gamma0_alpha0.75": 0})


def test_numbers_of_seeds_are_read():
    assert seed_counts("3") == (3, {})
    assert seed_counts("3,gamma2_alpha0.25=5, a=b=1") == (3, {"gamma2_alpha0.25": 5, "a=b": 1})


@pytest.mark.parametrize("text", ["", "x", "3,5", "3,a=", "3,a=x", "-1", "1.5", "a=3"])
def test_numbers_of_seeds_that_are_none(text):
    with pytest.raises(RetinaError, match="--seeds: expected a number, then NAME=NUMBER"):
        seed_counts(text)


def test_the_last_evaluation_of_epochs_is_at_the_steps_that_the_run_kept(base, tmp_path):
    epochs = configuration.override(base, ["schedule.epochs=3"])
    study = Study.start(tmp_path / "study", make_plan(epochs, gammas=(0.0, 2.0), alphas=(0.25,), seeds=1))
    trial = study.plan.trials[0]
    run = study.run_dir(trial)
    run.mkdir(parents=True)
    assert not study.is_finished(trial)
    (run / "config.yaml").write_text(configuration.to_yaml(configuration.override(base, ["schedule.steps=6"])))
    assert study.evaluation(trial) == run / "eval" / "step_6"
