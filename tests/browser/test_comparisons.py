"""The pages of a study and of runs side by side in a real browser: they sort, switch runs, and stay by themselves."""

import json
from pathlib import Path

import pytest

from retina import config as configuration
from retina.ablation.directory import Study
from retina.ablation.plan import make_plan
from retina.pages import study as study_page
from retina.pages.comparison import Judged, judge, write
from tests.ablation.test_outputs import made
from tests.pages.test_comparison import SETTINGS, make_run

EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    plan = make_plan(configuration.load(None, SETTINGS), pairs=[(0.0, 0.75), (2.0, 0.25), (5.0, 0.25)], seeds=3)
    found = made(plan, [[0.30, 0.31, 0.32], [0.40, 0.41, 0.421], [0.28, 0.33, 0.30]])
    out = folder / "study.html"
    out.write_text(study_page.render(Study.start(folder / "s", plan), found), encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / "plain", missed=3), make_run(folder / EVIL.replace("/", ""))]


@pytest.fixture(scope="module")
def judged(runs) -> list[Judged]:
    return judge(runs, "validation", "best")


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory) -> Path:
    return write(runs, tmp_path_factory.mktemp("page") / "compare.html", replicates=50)


def first_cells(browser, table: str) -> list[str]:
    script = "return [...document.querySelectorAll(`${arguments[0]} tbody tr`)].map((row) => row.cells[0].textContent)"
    return browser.run(script, table)


def test_a_study_sorts_by_its_differences(browser, study):
    browser.open(study)
    rows = first_cells(browser, "table.forest")
    assert rows == ["γ 2, α 0.25", "γ 5, α 0.25"]
    button = "table.forest th:nth-child(3) button"
    browser.click(button)  # descending first
    assert first_cells(browser, "table.forest") == rows
    browser.click(button)
    assert first_cells(browser, "table.forest") == rows[::-1]
    assert browser.count("table.forest th.plot button") == 0
    assert browser.text("table.heat td.best").startswith("0.410")


@pytest.mark.parametrize("name", ["study", "compared"])
def test_pages_stay_by_themselves_and_fit_a_telephone(browser, request, name):
    browser.open(request.getfixturevalue(name), dark=True)
    assert browser.console() == []
    assert browser.requests() == []
    assert browser.overflow(375) <= 0


def test_runs_are_counted_and_switched(browser, compared, judged):
    browser.open(compared)
    browser.run("document.querySelector('#pictures').scrollIntoView()")
    browser.set(".slider", 0.5)
    kept = [int((one.matches.scores >= 0.5).sum()) for one in judged]
    boxes = int(judged[0].evidence.truth.counted.sum())
    assert kept[0] < kept[1] == boxes
    for number, found in enumerate(kept):
        browser.set("select.run", str(number))
        said = json.loads(browser.run("return JSON.stringify(document.querySelector('.counts').dataset)"))
        assert int(said["drawn"]) == boxes + found == browser.count(".grid g")
    assert browser.run("return [...document.querySelectorAll('select.run option')].map((one) => one.textContent)")[
        1:
    ] == [one.name for one in judged]
