"""The page of a study: it says what study.json says, draws it where the figures put it, and escapes every name."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from retina.ablation.curves import Curves, over_seeds, read_metrics
from retina.ablation.directory import Outcome, Study
from retina.ablation.plan import make_plan
from retina.ablation.results import from_json, to_json
from retina.drawing import charts
from retina.errors import RetinaError
from retina.pages import study as page
from tests.ablation.test_outputs import BASE, FOCAL, STRONG, made

EVIL = "<script>alert(1)</script> & more"
OBSERVED = [[0.30, 0.31, 0.32], [0.40, 0.41, 0.421], [0.28, 0.33, 0.30]]


class Page(HTMLParser):
    """All tags with their attributes; fails at one that is closed before it was opened."""

    VOID = ("meta", "link", "line", "path", "circle")

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def three(base):
    return make_plan(base, pairs=[(0.0, 0.75), (2.0, 0.25), (5.0, 0.25)], seeds=3)


def study_of(plan, folder) -> Study:
    return Study.start(folder / "study", plan)


# -------------------------------------------------------------------------------------------------------- nothing


def test_a_study_without_figures_is_a_page_without_pictures(three, tmp_path):
    statuses = {trial.name: Outcome("diverged", 1, 9.0, "nan") for trial in three.trials}
    found = made(three, np.full((3, 3), np.nan), statuses=statuses)
    text = page.render(study_of(three, tmp_path), found)
    assert Page(text).open == []
    assert "0 of 9" in text and "<svg" not in text
    assert not re.search(r'id="(heatmap|differences|curves)"', text)


def test_no_study_and_no_results(three, tmp_path):
    with pytest.raises(RetinaError, match=r"not a study \(it has no study.yaml\)"):
        page.write(tmp_path, tmp_path / "x.html")
    with pytest.raises(RetinaError, match="no trial is finished yet"):
        page.write(study_of(three, tmp_path).path, tmp_path / "x.html")


@pytest.mark.parametrize("text", ["{", "{}", '{"settings": [], "trials": []}', "[]"])
def test_a_damaged_study_json_is_told(three, tmp_path, text):
    study = study_of(three, tmp_path)
    (study.path / "study.json").write_text(text)
    with pytest.raises(RetinaError, match="retina ablate --report"):
        page.write(study.path, tmp_path / "x.html")


def test_one_setting_has_neither_heatmap_nor_differences(base):
    found = made(make_plan(base, pairs=[(2.0, 0.25)], seeds=2), [[0.3, 0.4]])
    assert page.heatmap(found) is None and page.differences(found) is None


# ---------------------------------------------------------------------------------------------------------- whole


def test_the_page_is_whole_offline_and_escaped(three, tmp_path):
    statuses = {f"{STRONG}_0": Outcome("failed", 2, 9.0, EVIL)}
    found = made(three, [*OBSERVED[:2], [np.nan, 0.3, 0.31]], statuses=statuses)
    text = page.render(study_of(three, tmp_path), found)
    parsed = Page(text)
    assert parsed.open == []
    assert EVIL not in text and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in text
    assert text.count("<script") == 1  # the package's own
    assert not re.search(r"https?://", text)
    assert {attributes["href"][0] for tag, attributes in parsed.tags if tag == "a"} == {"#"}
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    # Whatever is wider than a telephone scrolls inside its own box.
    assert len(re.findall(r'<div class="wide[^>]*><table', text)) == text.count("<table") == 4
    assert "γ 2, α 0.25" in text and "schedule:" in text
    assert f"--grid grid.yaml --seeds 3 --baseline {BASE} --out NEW" in text and f"name: {FOCAL}" in text


def test_a_preset_is_repeated_by_its_name(base, tmp_path):
    plan = make_plan(base, preset="table1b", seeds=1)
    text = page.render(study_of(plan, tmp_path), made(plan, np.linspace(0.3, 0.5, 7)[:, None]))
    assert "--preset table1b --seeds 1" in text and "grid.yaml" not in text
    assert re.search(r'data-value="0\.029', text)  # paper Δ of γ 2: 0.340 - 0.311 sorts as a number


def test_json_there_and_back(three):
    statuses = {f"{STRONG}_0": Outcome("diverged", 1, 9.0, "nan")}
    found = made(three, [*OBSERVED[:2], [np.nan, 0.3, 0.31]], statuses=statuses)
    assert from_json(three, json.loads(json.dumps(to_json(found)))) == found


def test_a_study_is_written_from_its_json(three, tmp_path, monkeypatch):
    study = study_of(three, tmp_path)
    found = made(three, OBSERVED)
    (study.path / "study.json").write_text(json.dumps(to_json(found)))
    monkeypatch.setattr(Study, "outcome", lambda self, trial: Outcome("finished", 1, 60.0))
    monkeypatch.setattr(page, "collect", lambda study: pytest.fail("the figures are there"))
    out = page.write(study.path, tmp_path / "new" / "page.html")
    assert out.read_text() == page.render(study, found)


def test_trials_that_ended_since_are_counted(three, tmp_path, monkeypatch):
    study = study_of(three, tmp_path)
    pending = {trial.name: Outcome("pending") for trial in three.trials}
    (study.path / "study.json").write_text(json.dumps(to_json(made(three, np.full((3, 3), np.nan), statuses=pending))))
    monkeypatch.setattr(Study, "outcome", lambda self, trial: Outcome("finished", 1, 60.0))
    monkeypatch.setattr(page, "collect", lambda study: made(three, OBSERVED))
    text = page.write(study.path, tmp_path / "page.html").read_text()
    assert ">9 of 9</b>" in text and ">0.410</b>" in text


# ------------------------------------------------------------------------------------------------------- pictures


def test_the_heatmap_holds_means_and_marks(base):
    plan = make_plan(base, gammas=[0.0, 2.0], alphas=[0.25, 0.75, None], seeds=1)
    # γ 0: α 0.25, 0.75, none; then γ 2. The baseline is the first with γ 0.
    drawn = page.heatmap(made(plan, [[0.1], [0.2], [0.3], [0.4], [0.5], [np.nan]]))
    assert drawn.gammas == ["0", "2"] and [alpha for alpha, _ in drawn.rows] == ["0.25", "0.75", "none"]
    assert [[cell and cell.text for cell in cells] for _, cells in drawn.rows] == [
        ["0.100", "0.400"],
        ["0.200", "0.500"],
        ["0.300", None],
    ]
    assert [cell.share for cell in drawn.rows[0][1]] == pytest.approx([0.0, 0.55 * 0.75], abs=1e-3)
    assert drawn.rows[0][1][0].mark == "baseline" and drawn.rows[1][1][1].mark == "best"


def test_differences_are_those_of_the_result(three):
    found = made(three, OBSERVED)
    rows = page.differences(found).rows
    expected = [row.differences["AP"] for row in found.settings[1:]]
    assert [row.value for row in rows] == [one.value for one in expected]
    assert rows[0].text == "+0.100" and rows[0].clear and not rows[1].clear
    assert rows[0].interval == f"{expected[0].low:+.3f} to {expected[0].high:+.3f}"


def test_a_forest_puts_its_marks_where_the_figures_are():
    # 240 units less 12 at each end: -1 lies at 12, 1 at 228, 0 in the middle.
    drawn = charts.forest([charts.Estimate("a", 0.5, -1.0, 1.0), charts.Estimate("b", None), charts.Estimate("c", 0.0)])
    assert drawn.zero == 120 and (drawn.rows[0].x, drawn.rows[0].start, drawn.rows[0].end) == (174, 12, 228)
    assert drawn.rows[1][1:7] == (None, "–", "–", None, None, None)
    assert (drawn.rows[2].x, drawn.rows[2].interval) == (120, "–")
    assert [told for _, told in drawn.ticks] == ["−1", "−0.5", "0", "0.5", "1"]
    assert charts.forest([]).zero == 120


# --------------------------------------------------------------------------------------------------------- curves


def test_curves_are_means_over_seeds(three):
    found = made(three, OBSERVED, statuses={f"{FOCAL}_2": Outcome("diverged", 1, 9.0, "nan")})
    points = {
        **{f"{BASE}_{seed}": [(10, 1.0 + seed), (20, 0.5)] for seed in range(3)},
        **{f"{FOCAL}_{seed}": [(10, 9.0)] if seed == 2 else [(10, 2.0 + 2 * seed)] for seed in range(3)},
    }
    curves = {name: Curves(line, []) for name, line in points.items()}
    first, second, third = over_seeds(found, curves, lambda one: one.loss)
    assert (first.x, first.y, first.low, first.high) == ([10, 20], [2.0, 0.5], [1.0, 0.5], [3.0, 0.5])
    assert (second.y, second.low, second.high) == ([3.0], [2.0], [4.0])  # without the one that diverged
    assert list(third.x) == [] and third.low is None


def test_a_torn_line_ends_the_reading(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 1, "loss": 2.5},
        {"step": 2, "split": "v", "metrics": {"AP": -1}},
        {"step": 3, "metrics": {"AP": 0.5}},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo\n{"step": 5, "loss": 1}\n')
    assert read_metrics(file) == Curves([(1, 2.5)], [(3, 0.5)])
