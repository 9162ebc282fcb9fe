"""Every file of a study: it parses, agrees with the others, and holds what was measured."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy.stats import ttest_rel

from retina import config as configuration
from retina.ablation.directory import Outcome, Study
from retina.ablation.execute import run_locally
from retina.ablation.outputs import csv_text, plain_text, settings_csv_text, write_outputs
from retina.ablation.paper import escaped, methods, table_markdown, table_tex
from retina.ablation.plan import make_plan
from retina.ablation.results import collect, summarise, to_json
from retina.ablation.scores import Scores
from retina.ablation.tables import cells, header, table, title
from retina.data.ground_truth import Results, ground_truth
from retina.errors import RetinaError
from retina.evaluation.coco import evaluate
from retina.pages.study import write_page

BASE, FOCAL, STRONG = "gamma0_alpha0.75", "gamma2_alpha0.25", "gamma5_alpha0.25"


@pytest.fixture
def done(bench):
    """All trials run; the trainer of the third setting diverged once."""
    bench.behave(f"{STRONG}_1", "diverges")
    run_locally(bench.study, retries=0, say=bench.said.append, again="", program=bench.program)
    return bench


@pytest.fixture
def result(done):
    return collect(done.study, replicates=50)


def made(plan, observed, *, statuses=None, replicates: int = 200, sd: float = 0.01):
    """A result from figures [S, R]; the noise of images is the same for all."""
    observed = np.asarray(observed, float)
    noise = np.random.default_rng(0).normal(0, sd, replicates)
    figures = dict.fromkeys(("AP", "AP50", "AP75"), observed)
    drawn = dict.fromkeys(figures, observed[..., None] + noise)
    outcomes = {trial.name: Outcome("finished", 1, 60.0) for trial in plan.trials} | (statuses or {})
    return summarise(plan, outcomes, Scores(figures, drawn, 300))


# ------------------------------------------------------------------------------------------------------ nothing yet


def test_an_unfinished_study_has_no_outputs(bench):
    with pytest.raises(RetinaError, match="no trial is finished yet"):
        collect(bench.study)


def test_a_study_whose_trials_all_diverged_is_a_table_of_dashes(bench):
    for trial in bench.study.plan.trials:
        bench.study.record(trial, Outcome("diverged", 1, 9.0, "step 7: the loss is nan"))
    found = collect(bench.study)
    write_outputs(bench.study, found)
    write_page(bench.study, found)
    assert found.empty and found.images == 0 and found.failed == ()
    assert cells(found, found.settings[1])[:6] == ["γ 2, α 0.25", "0 of 2", "–", "–", "–", "–"]
    assert "nothing to compare with γ 0, α 0.75 (2 diverged of 2 trials)" in found.conclusions[0]
    assert found.notes == ("No trial has finished, so there is no figure.",)
    rows = list(csv.DictReader(io.StringIO((bench.study.path / "study.csv").read_text())))
    assert {(row["status"], row["AP"]) for row in rows} == {("diverged", "")} and len(rows) == 6
    assert not (bench.study.path / "heatmap.png").exists()


@pytest.mark.parametrize(
    ("status", "said"), [("failed", "6 of 6 trials failed"), ("diverged", "all 6 trials diverged")]
)
def test_such_a_study_ends_with_one_and_its_summary(bench, monkeypatch, capsys, status, said):
    from retina import cli

    for trial in bench.study.plan.trials:
        bench.study.record(trial, Outcome(status, 1, 9.0, "step 7"))
    monkeypatch.setattr("sys.argv", ["retina", "ablate", "--report", str(bench.study.path)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert stop.value.code == 1 and said in err and "0 of 2" in out


# ---------------------------------------------------------------------------------------------------------- figures


def test_figures_are_those_of_the_evaluator(result, done, validation):
    """The trials' detections through COCO's engine give the same AP."""
    from retina.data.formats.coco import coco_columns

    for trial in result.trials:
        if trial.name == f"{STRONG}_1":
            assert trial.figures == {} and trial.outcome.status == "diverged"
            continue
        entries = json.loads((done.book / f"{trial.setting}.json").read_text())
        rows, labels = (
            {one: place for place, one in enumerate(ids)} for ids in (validation.image_ids, validation.category_ids)
        )
        columns = coco_columns(entries, rows, labels, trial.setting)
        found = Results("detections", columns.image, columns.boxes, columns.scores, columns.labels)
        expected = evaluate(ground_truth(validation), found).metrics
        assert trial.figures == pytest.approx({name: expected[name] for name in ("AP", "AP50", "AP75")}, abs=1e-9)
    assert result.trials[1].figures["AP"] == pytest.approx(1.0)  # the focal trials find every box
    assert result.images == 8 and result.replicates == 50


def test_settings(result):
    base, focal, strong = result.settings
    assert (focal.gamma, focal.alpha) == (2.0, 0.25)
    assert focal.figures["AP"].mean == pytest.approx(1.0) and focal.figures["AP"].sd == pytest.approx(0.0, abs=1e-12)
    assert base.differences == {"AP": None, "AP50": None, "AP75": None} and base.p_holm is None
    assert focal.differences["AP"].value == pytest.approx(1 - base.figures["AP"].mean)
    assert strong.statuses == {"finished": 1, "diverged": 1} and strong.figures["AP"].count == 1


def test_csv(result):
    rows = list(csv.DictReader(io.StringIO(csv_text(result))))
    assert [row["trial"] for row in rows] == [trial.name for trial in result.trials]
    assert list(rows[0]) == ["trial", "setting", "seed", "gamma", "alpha", "status", "AP", "AP50", "AP75"]
    assert (rows[1]["seed"], rows[1]["gamma"], rows[1]["alpha"], rows[1]["status"]) == ("0", "2.0", "0.25", "finished")
    assert float(rows[0]["AP"]) == result.trials[0].figures["AP"]
    assert (rows[5]["status"], rows[5]["AP"]) == ("diverged", "")


def test_json(result):
    tree = json.loads(json.dumps(to_json(result), allow_nan=False))
    assert tree["format"] == 1 and tree["baseline"] == BASE and tree["level"] == 0.95
    assert [row["name"] for row in tree["settings"]] == [BASE, FOCAL, STRONG]
    assert tree["settings"][0]["differences"]["AP"] is None and tree["settings"][1]["differences"]["AP"]["seeds"] == 2
    assert tree["trials"][5]["AP"] is None and tree["trials"][5]["status"] == "diverged"
    assert "the loss is nan" in tree["trials"][5]["error"]
    assert len(tree["conclusions"]) == 2


def test_all_files_are_written_and_rebuilt(result, done):
    path = done.study.path
    write_outputs(done.study, result)
    write_page(done.study, result)
    names = {"study.csv", "study.json", "study.txt", "study.html", "differences.png", "heatmap.png", "curves.png"}
    assert names <= {file.name for file in path.iterdir()}
    for name in names:
        if name.endswith("png"):
            with Image.open(path / name) as picture:
                assert picture.width > 600 and np.asarray(picture.convert("L")).std() > 5
    before = {name: (path / name).read_bytes() for name in names}
    for name in names:
        (path / name).unlink()
    again = Study.open(path)
    result = collect(again, replicates=50)
    write_outputs(again, result)
    write_page(again, result)
    assert {name: (path / name).read_bytes() for name in names} == before


# ------------------------------------------------------------------------------------------------------------ words


@pytest.fixture
def three(base):
    return make_plan(base, pairs=[(0.0, 0.75), (2.0, 0.25), (5.0, 0.25)], seeds=3)


def test_conclusions_say_what_is_significant_and_what_is_not(three):
    observed = [[0.30, 0.31, 0.32], [0.40, 0.41, 0.421], [0.28, 0.33, 0.30]]
    better, unclear = made(three, observed).conclusions
    assert better.startswith("γ 2, α 0.25: significantly better than γ 0, α 0.75 (+0.100 AP, 95 % interval +0.100 to")
    assert "Holm-adjusted p" in better
    assert unclear.startswith("γ 5, α 0.25: no significant difference from γ 0, α 0.75 (-0.007 AP")


def test_worse_is_said_too(three):
    observed = [[0.40, 0.41, 0.42], [0.30, 0.31, 0.321], [0.1, 0.1, 0.1]]
    assert "significantly worse than" in made(three, observed).conclusions[0]


def test_lost_trials_are_told(three):
    statuses = {f"{STRONG}_{seed}": Outcome("diverged", 1, 9.0, "nan") for seed in range(3)}
    found = made(three, [[0.3] * 3, [0.3] * 3, [np.nan] * 3], statuses=statuses)
    assert found.conclusions[1] == "γ 5, α 0.25: nothing to compare with γ 0, α 0.75 (3 diverged of 3 trials)."
    assert cells(found, found.settings[2])[:4] == ["γ 5, α 0.25", "0 of 3", "–", "–"]


def test_one_surviving_seed_is_no_evidence(three):
    statuses = {f"{FOCAL}_{seed}": Outcome("diverged", 1, 9.0, "nan") for seed in (1, 2)}
    observed = [[0.3, 0.31, 0.3], [0.9, np.nan, np.nan], [0.3, 0.3, 0.31]]
    found = made(three, observed, statuses=statuses)
    row = found.settings[1]
    assert not row.significant and row.p_holm is None and row.differences["AP"].p is None
    assert found.conclusions[0] == (
        "γ 2, α 0.25: +0.600 AP, 95 % interval +0.600 to +0.600 against γ 0, α 0.75 on the 1 of 3 seeds that both "
        "finished (2 diverged of 3 trials); a single seed can't show whether another would repeat it."
    )


def test_a_difference_on_some_seeds_says_so(three):
    statuses = {f"{FOCAL}_2": Outcome("diverged", 1, 9.0, "nan")}
    found = made(three, [[0.3, 0.31, 0.3], [0.9, 0.91, np.nan], [0.5, 0.5, 0.51]], statuses=statuses)
    assert "better than γ 0, α 0.75 on the 2 of 3 seeds that both finished (+0.600 AP" in found.conclusions[0]
    assert "seeds that both" not in found.conclusions[1]


def test_too_few_replicates_are_told(three):
    observed = [[0.3, 0.31, 0.3], [0.4, 0.41, 0.4], [0.5, 0.5, 0.51]]
    # 2 comparisons · 2/79 > 0.05 is too much, 2 · 2/81 is not.
    few, enough = made(three, observed, replicates=78), made(three, observed, replicates=80)
    assert any("78 replicates are too few for 2 comparisons" in note for note in few.notes)
    assert "--replicates 1000." in " ".join(few.notes) and not any("too few" in note for note in enough.notes)
    assert not any(row.significant for row in few.settings) and enough.settings[1].significant


def test_many_settings_get_more_replicates(bench, base, tmp_path):
    plan = make_plan(base, gammas=[float(step) for step in range(16)], seeds=1)
    study = Study.start(tmp_path / "many", plan)
    for trial in plan.trials:
        study.record(trial, Outcome("diverged", 1, 1.0, "nan"))
    assert collect(study).replicates == 1200  # 80 for each of 15 comparisons
    assert collect(study, replicates=9).replicates == 9


def test_one_seed_is_no_evidence(base):
    plan = make_plan(base, pairs=[(0.0, 0.75), (2.0, 0.25)], seeds=1)
    found = made(plan, [[0.3], [0.5]])
    assert "a single seed can't show" in found.conclusions[0] and "significant" not in found.conclusions[0]
    assert any(note.startswith("One seed: its intervals leave") for note in found.notes)


def test_notes_tell_few_seeds_and_the_adjustment(three):
    notes = " ".join(made(three, [[0.3] * 3] * 3).notes)
    assert "pooled over 3 settings (4 degrees of freedom)" in notes
    assert "3 seeds give a coarse interval" in notes and "Holm's adjustment for 2 comparisons" in notes
    assert "300 validation images" in notes and "200 replicates" in notes


def test_the_papers_figures_stand_beside_ours(base):
    plan = make_plan(base, preset="table1b", seeds=3)
    found = made(plan, [[0.3, 0.31, 0.32]] * 7)
    assert header(found)[-2:] == ["paper AP", "paper Δ"]
    rows = {row.setting.name: cells(found, row) for row in found.settings}
    assert rows[FOCAL][-2:] == ["0.340", "+0.029"] and rows[BASE][-2:] == ["0.311", ""]
    text = plain_text(found)
    assert "0.340" in text and "+0.029" in text and "table 1b" in text
    assert max(map(len, text.splitlines())) <= 118


def test_the_pool_is_told_as_it_was(three):
    notes = " ".join(made(three, [[0.3, 0.31, 0.3], [0.4, 0.41, 0.4], [0.1, 0.01, 0.1]]).notes)
    assert "The error of that test comes from the pair alone." in notes
    notes = " ".join(made(three, [[0.3, 0.31, 0.3], [0.4, 0.41, 0.4], [0.35, np.nan, 0.34]]).notes)
    assert "pooled over 3 settings (3 degrees of freedom)" in notes


def test_a_pair_with_a_setting_that_broke_down_uses_its_own_error(base):
    plan = make_plan(base, pairs=[(0.0, 0.75), (1.0, 0.25), (2.0, 0.25), (5.0, 0.25)], seeds=3)
    observed = [[0.50, 0.52, 0.51], [0.51, 0.52, 0.53], [0.51, 0.50, 0.52], [0.2, 0.1, 0.0]]
    found = made(plan, observed)
    own = ttest_rel(observed[3], observed[0]).pvalue
    assert found.settings[3].differences["AP"].p_seeds == pytest.approx(own)
    assert found.settings[1].differences["AP"].p_seeds != pytest.approx(ttest_rel(observed[1], observed[0]).pvalue)
    assert "pooled over 3 settings (4 degrees of freedom)" in " ".join(found.notes)
    assert "so do pairs with 1 that stayed below half of the best" in " ".join(found.notes)


def printed(result, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(table(result, width))
    return out.getvalue()


def test_a_narrow_table_leaves_columns_out_and_breaks_no_number(base):
    plan = make_plan(base, preset="table1b", seeds=3)
    found = made(plan, np.linspace(0.3, 0.5, 21).reshape(7, 3))
    wide, narrow = printed(found, 118), printed(found, 80)
    assert "AP50" in wide and "Too narrow" not in wide
    assert "Too narrow for AP50, AP75" in narrow and max(map(len, narrow.splitlines())) <= 80
    row = cells(found, found.settings[5])
    line = next(line for line in narrow.splitlines() if "γ 2, α 0.25" in line)
    columns = header(found)
    left_out = narrow[narrow.index("Too narrow for ") + 15 : narrow.index(": see")].split(", ")
    kept = [cell for name, cell in zip(columns, row, strict=True) if name not in left_out]
    assert len(kept) >= 6 and all(cell in line for cell in kept)


def test_the_title_names_what_varies(base, three, tmp_path):
    assert title(made(three, [[0.3] * 3] * 3)) == "Study of α, γ: 3 settings, 3 seeds"
    file = tmp_path / "grid.yaml"
    file.write_text("model.head.prior: [0.01, 0.5]")
    plan = make_plan(base, grid=file, seeds=1)
    assert title(made(plan, [[0.3]] * 2)) == "Study of model.head.prior: 2 settings, 1 seed"


def test_the_heatmap_holds_what_differs_in_gamma_and_alpha_alone(base, tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text(
        "- {name: ce, overrides: {loss.classification: {kind: cross_entropy, alpha: 0.5}}}\n"
        "- {name: gamma, overrides: {loss.classification.gamma: 1.0}}\n"
        "- {name: prior, overrides: {loss.classification.gamma: 1.5, model.head.prior: 0.5}}\n"
        "- {name: box, overrides: {loss.box.weight: 3.0}}\n"
        "- {name: ohem, overrides: {loss.classification.kind: ohem}}\n"
        "- {name: varifocal, overrides: {loss.classification: {kind: varifocal}}}\n"
    )
    found = made(make_plan(base, grid=file, seeds=1), [[0.3]] * 6)
    assert [row.setting.name for row in found.settings if row.in_plane] == ["ce", "gamma"]
    assert [(row.gamma, row.alpha) for row in found.settings[:2]] == [(0.0, 0.5), (1.0, 0.25)]
    first = next(csv.DictReader(io.StringIO(csv_text(found))))
    assert (first["setting"], first["gamma"], first["alpha"]) == ("ce", "0.0", "0.5")


def test_without_a_preset_there_are_no_such_columns(three):
    found = made(three, [[0.3] * 3] * 3)
    assert "paper AP" not in header(found) and all(len(cells(found, r)) == len(header(found)) for r in found.settings)


# ------------------------------------------------------------------------------------------------------ for a paper


CLEAR = [[0.30, 0.31], [0.40, 0.412], [0.29, 0.33]]


def test_the_table_for_a_paper_holds_the_figures(plan):
    result = made(plan, CLEAR)
    text = table_tex(result)
    lines = text[text.index(r"\midrule") :].splitlines()[1:4]
    base, focal, strong = ([cell.strip() for cell in line.removesuffix(r"\\").split(" & ")] for line in lines)
    figures = [r"0.305 $\pm$ 0.007"] * 3
    assert base == [r"$\gamma$ 0, $\alpha$ 0.75", *figures, "baseline", ""]
    assert focal[1].startswith(r"\textbf{0.406 ") and not strong[1].startswith(r"\textbf")
    assert result.settings[1].significant == focal[4].endswith("$^{*}$")
    assert focal[4].startswith("$+0.101$") and " to " in focal[5]
    assert "α" not in text and r"$\alpha$" in text and text.count("{") == text.count("}")
    rows = [line.split(" | ") for line in table_markdown(result).splitlines()[2:5]]
    assert [len(row) for row in rows] == [6, 6, 6] and rows[1][1].startswith("**0.406 ± ")


def test_the_methods_have_the_study_s_numbers(plan):
    text = methods(made(plan, CLEAR))
    config = plan.config
    for part in (
        f"{config.schedule.length} steps of {config.run.batch_size} images",
        "over 2 seeds of COCO's figures on 300 validation images",
        "Δ AP is the difference from γ 0, α 0.75",
        "200 bootstrap replicates",
        "p < 0.05 after Holm's adjustment for 2 comparisons",
    ):
        assert part in text
    lost = made(plan, [[0.3, np.nan], *CLEAR[1:]])
    assert "1 of 6 trainings have no figures" in methods(lost)


def test_the_methods_of_a_schedule_in_epochs(base):
    epochs = configuration.override(base, ["schedule.epochs=2.5"])
    counted = make_plan(epochs, pairs=[(0.0, 0.75), (2.0, 0.25), (5.0, 0.25)], seeds=2)
    text = methods(made(counted, CLEAR))
    assert f"trained for 2.5 epochs in steps of {epochs.run.batch_size} images" in text


def test_latex_reads_what_was_written():
    assert escaped("50 % of a_b & c#{d}~^\\") == (
        r"50 \% of a\_b \& c\#\{d\}\textasciitilde{}\textasciicircum{}\textbackslash{}"
    )


def test_settings_as_csv(plan):
    result = made(plan, CLEAR)
    rows = list(csv.DictReader(io.StringIO(settings_csv_text(result))))
    assert [row["setting"] for row in rows] == [setting.name for setting in plan.settings]
    assert float(rows[1]["AP"]) == pytest.approx(0.406) and float(rows[1]["difference"]) == pytest.approx(0.101)
    assert rows[0]["difference"] == "" and float(rows[0]["AP_sd"]) == pytest.approx(np.std(CLEAR[0], ddof=1))


def test_figures_for_print_are_the_same_each_time(result, done):
    write_outputs(done.study, result)
    names = [f"{name}.{kind}" for name in ("differences", "curves") for kind in ("pdf", "svg")]
    before = {name: (done.study.path / name).read_bytes() for name in names}
    write_outputs(done.study, result)
    assert {name: (done.study.path / name).read_bytes() for name in names} == before
    assert before["curves.pdf"].startswith(b"%PDF") and b"<svg" in before["curves.svg"]
