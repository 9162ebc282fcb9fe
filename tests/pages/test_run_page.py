"""A run's page holds the run's own figures, says what is missing, and takes nobody's text for markup."""

from __future__ import annotations

import html
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from retina import config as configuration
from retina.commands.train import _report as report_of_training
from retina.errors import RetinaError
from retina.pages.config_changes import changes
from retina.pages.run_answers import answers
from retina.pages.run_charts import curves
from retina.pages.run_judgement import Change, judge_run
from retina.pages.run_page import gallery_values, write_report
from retina.pages.run_sections import (
    Coverage,
    CoverageRow,
    ExportRow,
    commands,
    confusion_table,
    coverage,
    duration,
    error_rows,
    export_rows,
)
from retina.palette import class_hexes
from retina.runs.record import certificates, evaluation_step, read_record
from tests.pages.runs import CATEGORIES, EVIL, IMAGES, NAMES, STEPS, make_run


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def page(made, tmp_path_factory) -> str:
    return write_report(made, tmp_path_factory.mktemp("page") / "deep" / "report.html").read_text()


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A copy to damage."""
    shutil.copytree(made.parent, tmp_path / "copy")
    config = tmp_path / "copy" / made.name / "config.yaml"
    config.write_text(config.read_text().replace(str(made.parent), str(tmp_path / "copy")))
    return config.parent


def stored(run: Path, step: int = STEPS) -> dict[str, Any]:
    return json.loads((run / "eval" / f"step_{step}" / "metrics.json").read_text())


def tiles(page: str) -> dict[str, str]:
    """Figure by what it is."""
    found = re.findall(r'<div class="tile"><b>(.*?)</b><span>(.*?)</span>', page)
    return {html.unescape(told): html.unescape(figure) for figure, told in found}


def class_rows(page: str) -> list[list[str]]:
    table = re.search(r'id="class-table">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert table is not None
    rows = re.findall(r"<tr>(.*?)</tr>", table[1], re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub(r"<span.*?</span>", "", cell)) for cell in row] for row in cells]


def answers_of(page: str) -> dict[str, str]:
    """Answer by question, without the link."""
    found = re.findall(
        r'<dt>([^<]*)</dt><dd class="verdict .*?</dd><dd class="text">(.*?)(?: <a .*?)?</dd></div>', page
    )
    return {html.unescape(question): html.unescape(re.sub("</?span>", "", answer)) for question, answer in found}


def remarks(page: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r'<span class="grade">\w+</span> (.*?)</li>', page)]


def written(run: Path, **settings: Any) -> str:
    return write_report(run, **settings).read_text()


# ------------------------------------------------------------------------------------------------ nothing, or damage


def test_no_run_is_refused(tmp_path):
    with pytest.raises(RetinaError, match="not a run directory"):
        write_report(tmp_path / "none")


def test_a_run_that_has_not_begun(run):
    (run / "metrics.jsonl").unlink()
    (run / "environment.json").unlink()
    for folder in ("eval", "checkpoints"):
        shutil.rmtree(run / folder)
    text = written(run)
    assert remarks(text) == [
        "The run has not logged a training step yet (metrics.jsonl is missing or empty).",
        "The run has no evaluation yet; the first is due at step 20.",
    ]
    assert "AP on validation" not in text and 'id="pictures"' not in text and "environment.json" in text
    assert tiles(text) == {"of 40 steps": "0"}


def test_a_run_that_found_nothing_says_so(run):
    (run / "eval" / f"step_{STEPS}" / "detections.json").write_text("[]")
    text = written(run)
    assert "Nothing was detected in validation: no score reached inference.score_threshold." in remarks(text)
    assert answers_of(text)["How good is it?"].startswith("AP 0.000 on validation")


def test_imported_weights_have_no_training_to_show(run):
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "eval")
    (run / "import.json").write_text("{}")
    text = written(run)
    assert remarks(text)[0].startswith("The weights come from elsewhere") and "not logged a training step" not in text
    assert tiles(text) == {} and "# training from these weights, in a new folder" in text
    assert "<dt>model</dt>" in text and "<dt>training</dt>" not in text


def test_an_interrupted_run_with_a_torn_line(tmp_path):
    run = make_run(tmp_path, best=20, last=20)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "loss": 2.0}\n{"step": 40, "lo')
    record = read_record(run)
    assert record.last_step == 30 and not record.is_complete and len(record.evaluations) == 1
    text = written(run)
    assert remarks(text)[0].startswith("The run stands at step 30 of 40: it was interrupted")
    assert tiles(text)["of 40 steps"] == "30"
    assert f"{stored(run, 20)['metrics']['AP']:.3f}" in tiles(text).values()


def test_an_evaluation_without_pointers_is_found(run):
    """Killed after its evaluation and before its checkpoint."""
    for name in ("best", "latest"):
        (run / "checkpoints" / name).unlink()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[1]["metrics"]["AP"] = 0.9
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = read_record(run)
    assert evaluation_step(record, "best") == 20 and evaluation_step(record, "latest") == 40


def test_data_that_is_gone_leaves_the_figures(run):
    shutil.rmtree(run.parent / "data")
    text = written(run)
    figures = stored(run)
    assert any(text.startswith("The data can't be read: ") for text in remarks(text))
    assert tiles(text)["AP on validation"] == f"{figures['metrics']['AP']:.3f}"
    assert [row[0] for row in class_rows(text)] == list(NAMES)
    assert [row[2:] for row in class_rows(text)] == [
        [f"{figures['per_class'][name][key]:.3f}" for key in ("AP", "AP50", "AP75")] for name in NAMES
    ]
    assert 'id="pictures"' not in text and 'id="errors"' not in text


def test_images_that_are_gone_leave_the_boxes(run):
    for file in (run.parent / "data" / "images").iterdir():
        file.unlink()
    evidence = judge_run(read_record(run)).evidence
    assert evidence is not None
    images = gallery_values(evidence)["images"]
    assert [image["src"] for image in images] == [None] * IMAGES
    assert all(image["reason"] and len(image["truths"]) == 3 for image in images)
    assert 'id="pictures"' in written(run)


def test_detections_that_are_gone_or_torn(run):
    file = run / "eval" / f"step_{STEPS}" / "detections.json"
    file.write_text(file.read_text()[:50])
    assert any(text.startswith("The data can't be read: ") for text in remarks(written(run)))
    file.unlink()
    text = written(run)
    assert f"The detections of step {STEPS} (eval/step_{STEPS}/detections.json) are missing." in remarks(text)
    assert tiles(text)["AP on validation"] == f"{stored(run)['metrics']['AP']:.3f}"


def test_data_of_other_classes_is_not_scored(run):
    file = run.parent / "data" / "truth.json"
    file.write_text(file.read_text().replace('"bird"', '"plane"'))
    assert any("expected the run's classes ['cat'" in text for text in remarks(written(run)))


def test_data_that_changed_is_told(run):
    truth = json.loads((run.parent / "data" / "truth.json").read_text())
    truth["annotations"] = [one for one in truth["annotations"] if one["category_id"] == CATEGORIES[0] or one["id"] > 3]
    (run.parent / "data" / "truth.json").write_text(json.dumps(truth))
    assert any(text.startswith("The run recorded AP ") for text in remarks(written(run)))


def test_category_ids_are_the_run_s_own(run):
    """A source may number its classes otherwise than when the run was trained; its checkpoint knows how."""
    before = judge_run(read_record(run)).figures
    truth = json.loads((run.parent / "data" / "truth.json").read_text())
    renumbered = dict(zip(CATEGORIES, (9, 3, 7), strict=True))
    for entry in truth["annotations"]:
        entry["category_id"] = renumbered[entry["category_id"]]
    truth["categories"] = [{"id": renumbered[one["id"]], "name": one["name"]} for one in truth["categories"]]
    (run.parent / "data" / "truth.json").write_text(json.dumps(truth))
    meta = json.dumps({"class_names": NAMES, "category_ids": CATEGORIES})
    np.savez(run / "checkpoints" / f"step_{STEPS}.npz", __meta__=np.array(meta))
    judged = judge_run(read_record(run))
    assert before is not None and judged.figures is not None
    assert judged.figures["metrics"] == before["metrics"] and judged.changed == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "dev"}, "--split: expected one of train, validation, test, got 'dev'"),
        ({"checkpoint": "last"}, "--checkpoint: expected best, latest or step_N, got 'last'"),
        ({"checkpoint": "step_7"}, "expected step_7 to be an evaluation or a checkpoint.*step_20, step_40"),
        ({"overrides": ["model.backbone=resnet50"]}, "a report takes only data.\\* and evaluation.\\*"),
        ({"overrides": ["data.root=/nowhere"]}, "nowhere"),
    ],
)
def test_wrong_usage(run, settings, message):
    with pytest.raises(RetinaError, match=message):
        write_report(run, **settings)
    assert not (run / "report").exists()


def test_a_folder_or_a_forbidden_place_is_no_file(run, tmp_path):
    with pytest.raises(RetinaError, match="it is a folder; name a file in it"):
        write_report(run, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RetinaError, match="cannot write the report"):
        write_report(run, tmp_path / "file" / "page.html")


# ------------------------------------------------------------------------------------------------------- the figures


def test_the_figures_are_the_run_s(made, page):
    figures = stored(made)
    record = read_record(made)
    judged = judge_run(record)
    assert judged.figures is not None and judged.figures["metrics"] == figures["metrics"]
    shown = {told.split(",")[0]: figure for told, figure in tiles(page).items()}
    assert shown["AP on validation"] == f"{figures['metrics']['AP']:.3f}"
    assert shown["AP at IoU 0.5 on validation"] == f"{figures['metrics']['AP50']:.3f}"
    assert shown["AP at IoU 0.75 on validation"] == f"{figures['metrics']['AP75']:.3f}"
    assert shown["of 40 steps"] == "40"
    assert shown["images per second"] == "8" and shown["of the steps' time spent waiting for data"] == "25.0 %"
    assert shown["of training steps; evaluations and checkpoints not counted"] == "20 s"  # 40 steps of 4 images, 8/s
    low, high = judged.figures["intervals"]["metrics"]["AP"]
    assert f"95\u00a0% interval {low:.3f}–{high:.3f}" in next(told for told in tiles(page) if told.startswith("AP on"))
    rows = class_rows(page)
    for name, row in zip(NAMES, rows, strict=True):
        own = figures["per_class"][name]
        assert row[:2] == [name, "8"]
        assert [row[2], row[4], row[5]] == [f"{own[key]:.3f}" for key in ("AP", "AP50", "AP75")]
    # The bird is found in every second image, at 0.8, and never wrongly.
    assert rows[2][6:] == ["0.800", "1.000", "0.500", f"{2 / 3:.3f}"]


def test_the_steps_wait_is_told(page):
    assert "Steps wait 25.0 % of their time for data: reading the data limits the speed." in remarks(page)


def test_intervals_that_were_written_down_are_taken(run):
    file = run / "eval" / f"step_{STEPS}" / "metrics.json"
    figures = stored(run)
    ends = {"AP": [0.1234, 0.9876]}
    figures["intervals"] = {"level": 0.9, "method": "bias-corrected", "replicates": 77, "seed": 0, "metrics": ends,
                            "per_class": dict.fromkeys(NAMES, ends)}  # fmt: skip
    file.write_text(json.dumps(figures))
    text = written(run)
    assert any("90\u00a0% interval 0.123–0.988" in told for told in tiles(text))
    assert [row[3] for row in class_rows(text)] == ["0.123–0.988"] * 3
    assert "from 77 resamples" in text


def test_errors_and_confusion(made):
    judged = judge_run(read_record(made))
    assert judged.figures is not None
    rows = {row.kind: row for row in error_rows(judged.figures)}
    assert rows["Bkg"].number == IMAGES and rows["Miss"].number == IMAGES // 2 and rows["Cls"].number == 0
    assert rows["Miss"].cost == judged.figures["errors"]["delta_ap"]["Miss"]
    assert max(row.share for row in rows.values()) == 100
    table = confusion_table(judged.figures)
    assert table.names == [*NAMES, "background"] and table.worst == [] and not table.dense
    assert [[count for count, _ in cells] for _, cells in table.rows] == judged.figures["confusion"]["matrix"]


def test_the_worst_confusions_come_first():
    matrix = [[5, 3, 0, 2], [0, 1, 4, 0], [0, 0, 0, 0], [7, 0, 0, 0]]
    found = confusion_table({"confusion": {"names": ["a", "b", "c", "background"], "matrix": matrix}})
    assert found.worst == [("b", "c", 4, 0.8), ("a", "b", 3, 0.3)]
    assert found.rows[0] == ("a", [(5, 50.0), (3, 30.0), (0, 0.0), (2, 20.0)])
    assert found.rows[2][1] == [(0, 0.0)] * 4


def test_the_curves_are_those_of_the_lines(made):
    plots = {plot.title: plot for plot in curves(read_record(made))}
    losses = plots["loss, mean since the last log line"].data["curves"]
    assert losses[0] == {"name": "both", "x": [20, 40], "y": [2, 1]}
    aps = plots["AP on validation data"].data["curves"]
    assert aps[0]["y"] == pytest.approx([stored(made)["metrics"]["AP"]] * 2, abs=1e-6)
    levels = plots["positive anchors a step, by pyramid level"].data["curves"]
    assert [(one["name"], one["y"]) for one in levels] == [("P3", [9, 9]), ("P4", [3, 3])]
    drift = plots["probability of background anchors"].data["curves"]
    assert [one["name"] for one in drift] == ["mean over background", "prior π"] and drift[1]["y"] == [0.01, 0.01]
    # From the beginning, whatever the step of the first line.
    assert {tuple(plot.data["x"]) for plot in plots.values()} == {(0.0, 40.0)}
    assert plots["share of the time spent waiting for data"].y_ticks[0][1] == "0"
    assert "memory, MB" not in plots and "scale of the loss" not in plots


def test_the_gallery_is_the_evaluation(made):
    evidence = judge_run(read_record(made)).evidence
    assert evidence is not None
    data = gallery_values(evidence)
    kinds = [found[6] for image in data["images"] for found in image["detections"]]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"right": 8 + 8 + 4, "Bkg": 8}
    assert data["threshold"] == pytest.approx(evidence.assessment.operating.overall.threshold, abs=1e-6)
    assert [one["name"] for one in data["classes"]] == list(NAMES)
    assert data["images"][1]["truths"][2][6] == [None] and data["images"][0]["truths"][2][6] == [0.8]


def test_another_evaluation_of_the_run(made):
    judged = judge_run(read_record(made), checkpoint="step_20")
    assert judged.step == 20 and judged.evidence is not None
    assert "--checkpoint step_20" in commands(read_record(made), judged)


def test_the_questions_are_answered_with_the_run_s_figures(made, page):
    judged = judge_run(read_record(made))
    assert judged.figures is not None
    metrics, point = judged.figures["metrics"], judged.figures["operating_points"]["overall"]
    told = answers_of(page)
    assert list(told) == [
        "Is the data fine?", "Is it learning?", "How good is it?", "What does it get wrong?", "Can it be shipped?",
    ]  # fmt: skip
    assert re.search(r"\. \d+\.\d % of 24 boxes in validation have a positive anchor", told["Is the data fine?"])
    # Both evaluations are the same.
    ap = f"{metrics['AP']:.3f}"
    assert told["Is it learning?"] == (
        f"It has learned, and does not rise any more. The loss went from 2 to 1; AP was highest at step 20 with {ap}, "
        f"and {ap} at the end (95\u00a0% interval +0.000 to +0.000, on the same images)."
    )
    assert told["How good is it?"].startswith(f"AP {metrics['AP']:.3f} on validation, 95\u00a0% interval ")
    assert f"At scores of {point['threshold']:.3f} and above" in told["How good is it?"]
    # Half of the birds are missing, and every second box of the other class is below the shifted ones.
    assert "What costs AP50 most: missed (a box that nothing found), 0." in told["What does it get wrong?"]
    lowest = sorted(judged.figures["per_class"], key=lambda name: judged.figures["per_class"][name]["AP"])[:2]
    assert f"The lowest AP: {lowest[0]} (" in told["What does it get wrong?"]
    assert told["Can it be shipped?"].startswith("Not exported")


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ({"batch": 0.5, "moving": 0.52}, "Training and inference are the same network."),
        ({"batch": 0.5, "moving": 1.5}, "Training and inference are not the same network: "),
        ({"batch": 0.5, "moving": None}, "Training and inference are not the same network: "),
    ],
)
def test_the_two_modes_of_batch_norm_have_a_verdict(run, losses, verdict):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["mode_losses"] = losses
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = read_record(run)
    answer = {answer.question: answer.reason for answer in answers(record, judge_run(record), None, [], False)}
    assert answer["Is it the network that was trained?"].startswith(verdict)


def verdicts(record, figures=None, anchors=None, exports=(), split="validation", change=None):
    """(Verdict, answer) by question of a run of which only this is known."""
    values = {"preflight": (), "evaluations": [], "modes": (), "losses": [2.0, 1.0], **record}
    stand_in = SimpleNamespace(
        preflight=values["preflight"],
        evaluations=values["evaluations"],
        modes=values["modes"],
        config=configuration.load(None),
        series=lambda name: (range(len(values["losses"])), values["losses"]),
    )
    judged = SimpleNamespace(step=None, figures=figures, split=split, evidence=None, change=change)
    given = answers(stand_in, judged, anchors, exports, False)
    return {answer.question: (answer.verdict, f"{answer.reason} {answer.facts}") for answer in given}


def covered(everything, worst, name="owl"):
    rows = [CoverageRow("all boxes", f"{everything} % of 90", everything, "")]
    return Coverage(9, 9, 64, 0.9, rows, [CoverageRow(name, f"{worst} % of 9", worst, "")], [])


@pytest.mark.parametrize(
    ("anchors", "preflight", "verdict", "sentence"),
    [
        (covered(99.0, 95.0), (), "fine", "retina doctor also checks the images."),
        (covered(95.0, 23.4), (), "look", "Of owl only 23.4 % of 9 boxes have an anchor: the rest is hardly learned."),
        (covered(80.0, 95.0), (), "look", "retina doctor suggests anchors and sizes that cover more."),
        (covered(40.0, 10.0), (), "stop", "retina doctor suggests"),
        (covered(99.0, 95.0), ("Copies.", "B.", "C.", "D."), "look", "said: Copies. B. C. And 1 more in log.txt."),
        (None, ("Copies.",), "look", "The check before the training said: Copies."),
    ],
)
def test_the_verdict_on_the_data(anchors, preflight, verdict, sentence):
    given, answer = verdicts({"preflight": preflight}, anchors=anchors)["Is the data fine?"]
    assert given == verdict and sentence in answer


@pytest.mark.parametrize(
    ("losses", "figures", "verdict", "sentence"),
    [
        ([2.0, 1.0], [], "fine", "The loss went from 2 to 1."),
        ([1.0, 1.5], [0.2], "stop", "The loss did not fall: lower optimizer.learning_rate"),
        ([2.0, math.nan], [0.2], "stop", "The loss did not stay a number: lower optimizer.learning_rate"),
        ([2.0, 1.0], [0.5, 0.4, 0.5], "fine", "was highest at step 1 with 0.500, and 0.500 at the end."),
        ([2.0, 1.0], [0.0, 0.001], "stop", "It has learned next to nothing: train longer, or look"),
        ([2.0, 1.0], [0.3, 0.5, 0.51], "fine", "highest at the last evaluation, 0.510 after 0.300"),
        ([2.0, 1.0], [0.3, 0.4, 0.5], "look", "AP still rises: train longer. The loss went from 2 to 1"),
        ([2.0, 1.0], [0.1, 0.2, 0.28, 0.35, 0.42], "look", "0.420 after 0.100 at the first, +0.070 since step 4."),
        ([2.0, 1.0], [0.40, 0.41, 0.40, 0.41, 0.45], "fine", "highest at the last evaluation, 0.450"),
        ([2.0, 1.0], [0.3, 0.5, 0.495], "fine", "was highest at step 2 with 0.500, and 0.495 at the end."),
        ([2.0, 1.0], [0.3, 0.5, 0.4], "look", "It may overfit: step 2 is the best checkpoint"),
    ],
)
def test_the_verdict_on_the_learning(losses, figures, verdict, sentence):
    evaluations = [(step, {"AP": value}) for step, value in enumerate(figures, 1)]
    given, answer = verdicts({"losses": losses, "evaluations": evaluations})["Is it learning?"]
    assert given == verdict and sentence in answer


@pytest.mark.parametrize(
    ("figures", "change", "verdict"),
    [
        ([0.3, 0.4, 0.5], Change(2, 3, 0.02, 0.18, 9), "look: AP still rises: train longer."),
        ([0.3, 0.4, 0.5], Change(2, 3, -0.02, 0.22, 9), "look: Whether AP still rises, 9 images can't tell"),
        ([0.3, 0.5, 0.505], Change(2, 3, -0.02, 0.03, 9), "fine: It has learned, and hardly rises any more."),
        ([0.3, 0.4, 0.5], Change(1, 3, -0.02, 0.22, 9), "look: AP still rises"),  # of other evaluations
        ([0.3, 0.5, 0.4], Change(2, 3, -0.18, -0.02, 9), "look: It may overfit"),
        ([0.3, 0.5, 0.4], Change(2, 3, -0.22, 0.02, 9), "fine: It has learned; the last evaluation is lower, but by"),
    ],
)
def test_a_rise_or_fall_may_lie_within_its_interval(figures, change, verdict):
    evaluations = [(step, {"AP": value}) for step, value in enumerate(figures, 1)]
    given, answer = verdicts({"evaluations": evaluations}, change=change)["Is it learning?"]
    assert f"{given}: {answer}".startswith(verdict)
    stated = f"(95\u00a0% interval {change.low:+.3f} to {change.high:+.3f}, on the same images)"
    assert (stated in answer) == (change.before == 2)


def test_the_change_is_that_of_the_two_evaluations(run):
    # Nothing is detected at first.
    (run / "eval/step_20/detections.json").write_text("[]")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [{**line, "metrics": {"AP": 0.0}} if line["step"] == 20 and "metrics" in line else line for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = read_record(run)
    change = judge_run(record).change
    assert change is not None and change[:2] == (20, 40) and 0 < change.low < change.high and change.images == 8
    page = html.unescape(written(run))
    assert f"95\u00a0% interval {change.low:+.3f} to {change.high:+.3f}, on the same images" in page
    # The interval is of the logged difference, or there is none.
    other = [(step, {"AP": figures["AP"] + 0.01 * (step == STEPS)}) for step, figures in record.evaluations]
    assert judge_run(replace(record, evaluations=other)).change is None
    assert judge_run(record, overrides=("evaluation.metric=AP50",)).change == change
    (run / "eval/step_20/detections.json").write_text("[")
    assert judge_run(record).change is None


def test_of_a_step_that_was_evaluated_twice_the_later_counts(run):
    before = read_record(run).evaluations
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": STEPS, "metrics": {"AP": 0.123}}) + "\n")
    assert read_record(run).evaluations == [*before[:-1], (STEPS, {"AP": 0.123})]


def test_overfitting_is_said_once(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": STEPS, "metrics": {"AP": 0.123}}) + "\n")
    assert html.unescape(written(run)).count("may overfit") == 1


@pytest.mark.parametrize(
    ("ap", "ap50", "ends", "verdict", "sentence"),
    [
        (0.45, 0.8, (0.43, 0.47), "fine", "interval 0.430–0.470. That is 50.0 % of what the anchors allow."),
        (0.45, 0.8, (0.35, 0.55), "look", "more images to judge on would make the figure surer"),
        (0.2, 0.4, (0.19, 0.21), "look", "AP50 0.400 is little for most uses."),
        (0.001, 0.01, (0.0, 0.01), "stop", "it detects next to nothing."),
        (-1.0, -1.0, (-1.0, -1.0), "look", "it has no boxes that count"),
    ],
)
def test_the_verdict_on_the_figures(ap, ap50, ends, verdict, sentence):
    intervals = {"level": 0.95, "metrics": {"AP": ends}}
    figures = {"metrics": {"AP": ap, "AP50": ap50}, "per_class": {}, "intervals": intervals}
    given, answer = verdicts({}, figures, covered(99.0, 95.0))["How good is it?"]
    assert given == verdict and sentence in answer


@pytest.mark.parametrize(
    ("costs", "owl", "verdict", "sentence"),
    [
        ({"Cls": 0.02, "Bkg": 0.01}, 0.5, "fine", "What costs AP50 most: wrong class ("),
        ({"Cls": 0.02, "Bkg": 0.2}, 0.5, "look", "Look whether objects lack a box in the data"),
        ({"Cls": 0.02}, 0.0, "look", "The lowest AP: owl (0.000), cat (0.700)."),
    ],
)
def test_the_verdict_on_the_errors(costs, owl, verdict, sentence):
    errors = {"delta_ap": costs, "counts": dict.fromkeys(costs, 1)}
    figures = {"metrics": {"AP": 0.5}, "per_class": {"cat": {"AP": 0.7}, "owl": {"AP": owl}}, "errors": errors}
    given, answer = verdicts({}, figures)["What does it get wrong?"]
    assert given == verdict and sentence in answer


@pytest.mark.parametrize(("passed", "verdict"), [((), "open"), ((True,), "fine"), ((True, False), "stop")])
def test_the_verdict_on_exports(passed, verdict):
    rows = [ExportRow("m", "onnx", value, 0.5, 0.5, "exactly 0", "–", "1 MB", 9, []) for value in passed]
    assert verdicts({}, exports=rows)["Can it be shipped?"][0] == verdict


def test_the_check_before_the_training_is_read_from_the_log(run):
    lines = ["12:00  training on cpu:0", *2 * ["12:01  preflight: warning: 36 of 47 boxes of owl have no anchor."]]
    (run / "log.txt").write_text("\n".join(lines) + "\n")
    assert read_record(run).preflight == ("36 of 47 boxes of owl have no anchor.",)
    assert "said: 36 of 47 boxes of owl have no anchor." in answers_of(written(run))["Is the data fine?"]


def test_the_pictures_come_before_figures_and_settings(page):
    order = ["summary", "pictures", "classes", "errors", "confusion", "quality", "training", "anchors", "settings"]
    assert re.findall(r' id="(\w+)"[ >]', page)[:1] == order[:1]
    places = [page.index(f'id="{name}"') for name in order]
    assert places == sorted(places)
    assert re.findall(r'<a href="#(\w+)">', page[: page.index("</nav>")])[: len(order)] == order


def test_the_settings_show_what_differs_from_the_default(page):
    settings = page[page.index('id="settings"') : page.index('id="exports"')]
    changed = re.findall(r"<li><code>(.*?)</code> <b>(.*?)</b>", settings)
    assert ("optimizer.kind", "adamw") in changed and ("run.seed", "3") in changed
    assert "instead of sgd" in settings


def test_classes_have_the_colours_of_their_boxes(page):
    shown = re.findall(r'<td class="named"><span class="key" style="background: (#\w+)"></span>', page)
    assert shown == class_hexes(NAMES) and shown != class_hexes(sorted(NAMES))


# ------------------------------------------------------------------------------------- configuration, exports, texts


def test_changes_name_what_is_not_the_default(made):
    found = {one.key: (one.value, one.default) for one in changes(read_record(made).config)}
    assert found["optimizer.kind"] == ("adamw", "sgd")
    assert found["optimizer.learning_rate"] == ("0.002", "0.001")
    assert found["schedule.kind"] == ("cosine", "–") and found["schedule.steps"] == ("40", "null")
    assert found["run.seed"] == ("3", "0") and found["data.resize.short"] == ("64", "800")
    assert found["data.train.format"] == ("coco", "–")
    assert "run.precision" not in found and "anchors.scales" not in found


def test_the_folder_of_built_in_data_is_no_change(made):
    root = "data.root=/somewhere"
    assert "data.root" not in {one.key for one in changes(configuration.load(None, [root]))}
    assert "data.root" in {one.key for one in changes(read_record(made).config)}


def test_a_section_that_is_on_with_its_defaults_is_a_change():
    plain = configuration.load(None)
    with_ema = configuration.override(plain, ["run.ema={}"])
    new = [one for one in changes(with_ema) if one not in changes(plain)]
    assert [(one.key, one.default) for one in new] == [("run.ema", "null")]
    assert json.loads(new[0].value) == {"decay": 0.9998, "warmup": True}


def test_exports_are_told_by_their_certificates(run):
    inside = run / "export" / "saved_model" / "assets.extra"
    inside.mkdir(parents=True)
    tree = {"passed": False, "format": "saved_model", "ap": {"checkpoint": 0.5, "export": None}, "delta_ap": None,
            "latency_ms": {"export": {}}, "size_bytes": 2_500_000, "images": 8, "problems": [EVIL]}  # fmt: skip
    (inside / "certificate.json").write_text(json.dumps(tree))
    passed = {**tree, "passed": True, "delta_ap": 0.0, "problems": [], "latency_ms": {"export": {"median": 12.34}}}
    (run / "export" / "model.onnx.certificate.json").write_text(json.dumps(passed))
    (run / "export" / "torn.certificate.json").write_text("{")
    rows = export_rows(certificates(run))
    assert [(row.name, row.passed, row.difference, row.latency, row.megabytes) for row in rows] == [
        ("model.onnx", True, "exactly 0", "12.3 ms", "2.5 MB"),
        ("saved_model", False, "–", "–", "2.5 MB"),
    ]
    text = written(run)
    assert html.escape(EVIL) in text and EVIL not in text
    assert answers_of(text)["Can it be shipped?"] == (
        "model.onnx: certificate passed, AP difference exactly 0; saved_model: certificate refused."
    )


def test_commands_are_what_a_shell_takes(made):
    record = read_record(made)
    judged = judge_run(record, overrides=("evaluation.metric=AP50",))
    lines = commands(record, judged).splitlines()
    assert lines[1] == f"KERAS_BACKEND=jax retina train '{made}/config.yaml' --run-dir '{made}_again'"
    assert lines[4].endswith("--split validation --checkpoint best evaluation.metric=AP50")


def test_other_tiles_are_detected_again(made, monkeypatch):
    def predicted(record, split, checkpoint, overrides):
        raise RetinaError(f"predicts {split} again with {' '.join(overrides)}")

    monkeypatch.setattr("retina.pages.run_judgement._predicted", predicted)
    with pytest.raises(RetinaError, match=r"predicts validation again with evaluation\.tiles\.size=64"):
        judge_run(read_record(made), overrides=("evaluation.tiles.size=64",))


def test_user_text_stays_text(page):
    assert "<script>alert" not in page and "<img src=x" not in page and "<b></h1>" not in page
    assert html.escape(EVIL) in page and "run &amp; &lt;b&gt;" in page
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)


def test_durations():
    assert [duration(seconds) for seconds in (0, 89.4, 90, 3600, 7530)] == [
        "0 s", "89 s", "2 min", "1 h 00 min", "2 h 06 min",
    ]  # fmt: skip


def test_anchors_without_boxes_have_no_figure(made):
    from retina.doctor.ceiling import report as anchor_report

    record = read_record(made)
    evidence = judge_run(record).evidence
    assert evidence is not None
    found = coverage(anchor_report(evidence.dataset, record.config, IMAGES))
    assert found.rows[0].label == "all boxes" and found.rows[0].text.endswith("of 24")
    assert sum(level[3] for level in found.levels) >= round(24 * found.rows[0].percent / 100)


# --------------------------------------------------------------------------------------------- the end of a training


def test_training_ends_with_the_page(run):
    page = report_of_training(run)
    assert page == run / "report" / "index.html"
    before = page.stat().st_mtime_ns
    assert report_of_training(run) == page and page.stat().st_mtime_ns == before  # finished: it stays as it is


def test_a_page_that_fails_loses_nothing(run, capsys):
    (run / "report").write_text("in the way")
    assert report_of_training(run) is None
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("retina: warning: ") and "the run is complete" in error
    assert (run / "report").read_text() == "in the way" and stored(run)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_train_command_writes_it_unless_told_not_to(run, monkeypatch, capsys, wanted):
    from retina import cli
    from retina.training import train

    monkeypatch.setattr(train, "train", lambda config, run_dir, **settings: run_dir)
    monkeypatch.setattr("sys.argv", ["retina", "train", f"run.report={str(wanted).lower()}", "--run-dir", str(run)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert (run / "report" / "index.html").is_file() is wanted
    assert ("report/index.html" in capsys.readouterr().out.replace("\n", "")) is wanted


def test_the_report_command(run, monkeypatch, capsys):
    from retina import cli

    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    page = run.parent / "page.html"
    command = ["retina", "report", str(run), "evaluation.metric=AP50", "--out", str(page), "--open"]
    for arguments, code in ((command, 0), (["retina", "report", "data.root=x"], 2), ([*command, "--split", "x"], 2)):
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert (stop.value.code or 0) == code
    assert opened == [page.as_uri()] and page.is_file()
    assert "expected a run or a study first" in capsys.readouterr().err
