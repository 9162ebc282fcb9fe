"""Runs side by side: the page's figures are the evaluator's, its images are shared, and other data is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from retina import config as configuration
from retina.config.differences import flat
from retina.data.ground_truth import ground_truth
from retina.data.load import load_split
from retina.errors import RetinaError
from retina.evaluation.comparison import compare
from retina.evaluation.matching import match, precision
from retina.pages import comparison as compare_page
from retina.pages.comparison import Judged, Row, config_rows, figure_rows, judge, write

EVIL = "<img src=x onerror=alert(1)>"
SETTINGS = [
    "data.train={format: digits, split: train, images: 4, size: 64}",
    "data.validation={format: digits, split: validation, images: 12, size: 64}",
    "schedule={kind: cosine, steps: 6, warmup_steps: 1}",
]


def make_run(path: Path, missed: int = 0, settings: tuple[str, ...] = (), step: int = 6) -> Path:
    """What a training leaves behind, without one: it finds every box but each `missed`-th, and one where nothing is."""
    config = configuration.load(None, [*SETTINGS, *settings])
    data = load_split(config.data, "validation")
    found = []
    for image in range(len(data)):
        rows = range(data.offsets[image], data.offsets[image + 1])
        for row in rows:
            if not (missed and row % missed == 0):
                x1, y1, x2, y2 = data.boxes[row].tolist()
                box = [x1, y1, x2 - x1, y2 - y1]
                category = data.category_ids[int(data.labels[row])]
                found.append({"image_id": data.image_ids[image], "category_id": category, "bbox": box, "score": 0.9})
    found.append(
        {"image_id": data.image_ids[0], "category_id": data.category_ids[0], "bbox": [0, 0, 3, 3], "score": 0.3}
    )
    folder = path / "eval" / f"step_{step}"
    folder.mkdir(parents=True)
    (path / "checkpoints").mkdir()
    (path / "config.yaml").write_text(configuration.to_yaml(config))
    (path / "checkpoints" / "best").write_text(f"step_{step}\n")
    (folder / "detections.json").write_text(json.dumps(found))
    lines = [{"step": 3, "loss": 2.0, "learning_rate": 0.1}, {"step": 6, "loss": 1.0, "learning_rate": 0.0}]
    lines.append({"step": 6, "split": "validation", "metrics": {"AP": 0.5}})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [
        make_run(folder / "plain", missed=3),
        make_run(folder / EVIL.replace("/", ""), settings=("loss.classification.gamma=1.5",)),
        make_run(folder / "third", missed=2),
    ]


@pytest.fixture(scope="module")
def judged(runs) -> list[Judged]:
    return judge(runs, "validation", "best")


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("page") / "new" / "compare.html"
    assert write(runs, out, replicates=200, seed=3) == out
    return out.read_text()


# ---------------------------------------------------------------------------------------------------- wrong usage


def test_one_run_or_one_twice_is_no_comparison(runs, tmp_path):
    with pytest.raises(RetinaError, match="two runs or more to compare, got 1"):
        write(runs[:1], tmp_path / "x.html")
    with pytest.raises(RetinaError, match="named twice"):
        write([runs[0], runs[2], runs[0]], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_other_ground_truth_is_refused(runs, tmp_path):
    images = "data.validation={format: digits, split: validation, images: 11, size: 64}"
    other = make_run(tmp_path / "other", settings=(images,))
    with pytest.raises(RetinaError, match="the same images to compare on, got 12 and 11"):
        write([runs[0], other], tmp_path / "x.html")


def test_other_limits_are_refused(runs, tmp_path):
    other = make_run(tmp_path / "other", settings=("evaluation.max_detections=[1, 10, 50]",))
    with pytest.raises(RetinaError, match="expected the same to compare, got 100, 50 for AP"):
        write([runs[0], other], tmp_path / "x.html")


def test_a_run_without_evaluation_is_told(runs, tmp_path):
    other = make_run(tmp_path / "other")
    (other / "eval" / "step_6" / "detections.json").unlink()
    with pytest.raises(RetinaError, match="other: there is nothing to compare: The detections of step 6"):
        write([runs[0], other], tmp_path / "x.html")


def test_a_folder_is_no_page(runs, tmp_path):
    with pytest.raises(RetinaError, match="it is a folder"):
        write(runs, tmp_path)


# ----------------------------------------------------------------------------------------------------- the page


def test_everything_named_by_users_is_escaped(page):
    assert EVIL not in page and page.count("&lt;img src=x onerror=alert(1)&gt;") >= 5
    assert "https://" not in page


def test_the_figures_are_those_of_the_evaluator(page, judged):
    truth = ground_truth(load_split(judged[0].record.config.data, "validation"))
    matches = [match(truth, one.evidence.detections) for one in judged]
    expected = compare(truth, matches[0], matches[1], replicates=200, seed=3)
    overall = expected.figures["AP"]
    assert overall.a < 0.75 and overall.b > 0.95
    assert f"{overall.difference:+.3f}</td><td>{overall.low:+.3f} to {overall.high:+.3f}</td>" in page
    table = page[page.index('id="figure-table"') :]
    cells = re.findall(r">([\d.–]+)</td>", table[: table.index("</tr>\n<tr><td>AP50")])
    assert [float(cell) for cell in cells] == pytest.approx(
        [one.evidence.assessment.metrics.metrics["AP"] for one in judged], abs=5e-4
    )
    curves = compare_page.precision_curves(["a", "b", "c"], matches)
    expected_line = np.mean(precision(matches[0])[0][:, matches[0].positives > 0], axis=1)
    np.testing.assert_allclose(curves[0].data["curves"][0]["y"], expected_line, rtol=1e-5)
    assert [len(chart.curves) for chart in curves] == [3, 3]


def test_the_gallery_holds_the_boxes_of_every_run(page, runs):
    data = json.loads(re.search(r'id="gallery-data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["runs"] == [run.name for run in runs] and len(data["images"]) == 12
    stored = [json.loads((run / "eval" / "step_6" / "detections.json").read_text()) for run in runs]
    counts = [sum(box[7] == number for image in data["images"] for box in image["detections"]) for number in range(3)]
    assert counts == [len(found) for found in stored] and counts[0] != counts[1] != counts[2]


def test_only_settings_that_differ_are_listed(judged):
    assert config_rows(judged) == [("loss.classification.gamma", ["2.0", "1.5", "2.0"])]
    assert config_rows(judged[::2]) == []


def test_a_flat_configuration():
    settings = flat(configuration.load(None, SETTINGS))
    assert settings["schedule.steps"] == 6 and settings["data.validation.format"] == "digits"
    assert settings["anchors.ratios"] == [1.0, 1.5, 2.2] and "schedule" not in settings


def test_costs_are_tides(judged):
    rows = {row.kind: row.cells for row in compare_page.cost_rows(judged[:2])}
    assert set(rows) == {"Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"}
    errors = [one.evidence.assessment.errors for one in judged[:2]]
    assert [(cost, count) for cost, _, count in rows["Miss"]] == [
        (one.delta_ap["Miss"], one.counts["Miss"]) for one in errors
    ]
    assert rows["Miss"][0][1] == 100.0 and rows["Miss"][1][2] == 0  # the longest bar; and nothing missed


def test_images_on_which_runs_differ_come_first_when_there_is_no_room_for_all(judged, monkeypatch):
    monkeypatch.setattr(compare_page, "MOST_IMAGES", 3)
    truth = judged[0].evidence.truth
    matches = [one.matches for one in judged[:2]]
    rows = compare_page._rows(truth, matches, [0.5, 0.5])
    assert len(rows) == 3
    # The image of which the first run found the smallest share, and the second all.
    share = [
        np.isin(np.flatnonzero(truth.image == image), matches[0].truth[0]).mean() if (truth.image == image).any() else 1
        for image in range(12)
    ]
    assert any(share[row] == min(share) for row in rows)


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ([{"AP": -1.0}, {"AP": -1.0}], []),
        ([{"AP": 0.5}, {"AP": 0.5}], [Row("AP", [0.5, 0.5], set())]),
        ([{"AP": 0.5, "APl": -1}, {"AP": 0.6, "APl": 0.2}], [Row("AP", [0.5, 0.6], {1}), Row("APl", [None, 0.2], {1})]),
    ],
    ids=["undefined", "equal", "one defined"],
)
def test_the_best_is_marked(metrics, expected):
    assert figure_rows(metrics) == expected


def test_runs_of_one_name_go_by_their_paths(runs, tmp_path):
    other = make_run(tmp_path / "plain")
    assert [one.name for one in judge([runs[0], other], "validation", "best")] == [str(runs[0]), str(other)]


def test_curves_of_both_runs_share_a_chart(judged):
    charts = {chart.title: chart for chart in compare_page.learning_curves(judged[:2])}
    assert set(charts) == {"AP on validation data", "training loss", "learning rate"}
    assert [curve["y"] for curve in charts["training loss"].data["curves"]] == [[2.0, 1.0], [2.0, 1.0]]
