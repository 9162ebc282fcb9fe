"""Two settings over seeds: what is paired, when a difference counts, and what the command makes of it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from retina import api, cli
from retina import config as configuration
from retina.ablation.runs import compare_settings, settings_verdict, to_json
from retina.commands.gates import Limit, below, limits, spelled_out, worse
from retina.config.reading import write_yaml
from retina.errors import RetinaError
from retina.evaluation.bootstrap import NAMES, bootstrap, observed
from retina.evaluation.matching import match
from tests.evaluation.test_comparison import BOX, detector, ground_truth

TRUTH = ground_truth([(image, BOX, image % 2) for image in range(24)], 24, classes=2)


def trainings(share, seeds=3):
    """Detectors of one setting by seed."""
    return {
        seed: match(TRUTH, detector(np.random.default_rng(seed), TRUTH, share), max_detections=100)
        for seed in range(seeds)
    }


def test_the_figures_are_those_of_the_trainings():
    a, b = trainings(0.4), trainings(0.9)
    compared = compare_settings(TRUTH, a, b, replicates=50)
    for name in NAMES:
        of_a, of_b = (np.array([observed(m)[name][0] for m in setting.values()]) for setting in (a, b))
        assert compared.a[name].mean == pytest.approx(of_a.mean()) and compared.b[name].mean == pytest.approx(
            of_b.mean()
        )
        assert compared.differences[name].value == pytest.approx((of_b - of_a).mean())
    # A single seed leaves only the images to resample.
    single = compare_settings(TRUTH, {7: a[0]}, {7: b[0]}, replicates=50).differences["AP"]
    drawn = [bootstrap(m, replicates=50, seed=0)["AP"] for m in (b[0], a[0])]
    assert (single.low, single.high) == pytest.approx(tuple(np.percentile(drawn[0] - drawn[1], [2.5, 97.5])))


def test_a_clear_difference_and_none_and_one_that_a_seed_cannot_show():
    a, b = trainings(0.3), trainings(1.0)
    clear = compare_settings(TRUTH, a, b, replicates=200)
    assert clear.significant and settings_verdict(clear).startswith("Setting B is better: B has +0.")
    assert settings_verdict(compare_settings(TRUTH, b, a, replicates=200)).startswith("Setting A is better: B has -0.")
    same = compare_settings(TRUTH, a, a, replicates=50)
    assert settings_verdict(same).startswith(
        "No clear difference between the settings: B has +0.000 AP against A over 3 seeds"
    )
    single = compare_settings(TRUTH, {0: a[0]}, {0: b[0]}, replicates=50)
    assert not single.significant and "possible from one seed" in settings_verdict(single)
    assert json.loads(json.dumps(to_json(single)))["metrics"]["AP"]["difference"]["p"] is None


def test_other_seeds_are_refused():
    with pytest.raises(RetinaError, match=r"the same run.seed, got \[0, 1\] for A and \[0, 1, 2\] for B"):
        compare_settings(TRUTH, trainings(0.4, 2), trainings(0.4), replicates=50)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Runs a_0, a_1, a_2, b_0, …: their configuration, and what their detectors would find."""
    results = {}
    for setting, share in (("a", 0.3), ("b", 1.0)):
        for seed in range(3):
            run = tmp_path / f"{setting}_{seed}"
            run.mkdir()
            config = configuration.load(None, [f"run.seed={seed}"])
            (run / "config.yaml").write_text(write_yaml(config.model_dump(mode="json")))
            (run / "environment.json").write_text("{}")
            results[str(run)] = detector(np.random.default_rng(seed), TRUTH, share)
    detect = lambda run, split, *, checkpoint: SimpleNamespace(truth=TRUTH, results=results[str(run)])  # noqa: E731
    monkeypatch.setitem(api.__dict__, "_heavy", lambda name: {"detect_run": detect}[name])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_compares_settings_and_has_gates(runs, capsys):
    a, b = ([str(runs / f"{setting}_{seed}") for seed in range(3)] for setting in "ab")
    few = ["--replicates", "100"]
    assert not cli.run(["compare", "--a", *a, "--b", *b, *few, "--fail-if-worse", "--fail-below", "AP=0.5"])
    assert "Setting B is better" in capsys.readouterr().out
    assert cli.run(["compare", "--a", *b, "--b", *a, *few, "--fail-if-worse", "0.1", "--fail-below", "AP50=0.9"]) == 1
    fault = capsys.readouterr().err
    assert "below that of A, tolerated are 0.1 (--fail-if-worse)" in fault and "AP50 is 0." in fault
    assert cli.run(["compare", b[0], a[0], *few, "--fail-if-worse", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["verdict"].startswith("A is better by")
    with pytest.raises(RetinaError, match=r"run.seed: expected one run for each seed of a setting, got \[0, 0, 1\]"):
        cli.run(["compare", "--a", a[0], a[0], a[1], "--b", *b])
    for wrong in (["x"], ["--a", *a], ["x", "--a", *a, "--b", *b]):
        with pytest.raises(RetinaError, match="expected two detectors"):
            cli.run(["compare", *wrong])


def test_gates():
    assert worse(None, -0.5) == worse(0.01, -0.01) == worse(0.0, 0.0) == []
    assert worse(0.01, -0.02) == ["AP of B is 0.0200 below that of A, tolerated are 0.01 (--fail-if-worse)"]
    assert worse(0.01, None) == ["AP of B can't be compared with that of A, tolerated are 0.01 (--fail-if-worse)"]
    figures = {"AP": 0.5, "APs": -1.0, "APm": None}
    assert below(limits(["AP=0.5", "AP=.4"]), figures) == []
    assert below(limits(["AP=0.51"]), figures) == ["AP is 0.5000, below 0.51 (--fail-below)"]
    assert below([Limit("APs", 0.0), Limit("APm", 0.1)], figures) == [
        "APs is undefined, below 0 (--fail-below)",
        "APm is undefined, below 0.1 (--fail-below)",
    ]
    for wrong in ("AP", "=1", "AP=x", "AP=-1"):
        with pytest.raises(RetinaError, match="expected FIGURE=VALUE"):
            limits([wrong])
    with pytest.raises(RetinaError, match="expected one of AP, APs, APm"):
        below(limits(["mAP=0.5"]), figures)


def test_options_are_spelled_out():
    words = ["--a", "r1", "r2", "--b", "q1", "--fail-if-worse", "--json"]
    assert spelled_out(words) == ["--a", "r1", "--a", "r2", "--b", "q1", "--fail-if-worse", "0.01", "--json"]
    assert spelled_out(["x", "y", "--fail-if-worse", "0.02", "--split", "test"])[2:4] == ["--fail-if-worse", "0.02"]
