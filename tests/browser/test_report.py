"""The report of a run in a real browser: its counts are the evaluation's, its tables sort, and it stays by itself."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from retina.pages.run_judgement import Evidence, judge_run
from retina.pages.run_page import write_report
from retina.runs.record import read_record
from tests.pages.runs import EVIL, NAMES, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run) -> Path:
    return write_report(run)


@pytest.fixture(scope="module")
def evidence(run) -> Evidence:
    found = judge_run(read_record(run)).evidence
    assert found is not None
    return found


def expected(evidence: Evidence, threshold: float, classes: set[int]) -> dict[str, int]:
    """Counted from the evaluator's matches at IoU 0.5, not from what the page was given."""
    matches, truth = evidence.assessment.matches, evidence.truth
    kept = (matches.scores >= threshold) & np.isin(matches.labels, list(classes))
    right, wrong = int((matches.right[0] & kept).sum()), int((matches.wrong[0] & kept).sum())
    boxes = int(np.isin(truth.labels[truth.counted], list(classes)).sum())
    return {"right": right, "wrong": wrong, "missed": boxes - right, "drawn": boxes + int(kept.sum())}


def counted(browser) -> dict[str, int]:
    said = json.loads(browser.run("return JSON.stringify(document.querySelector('.counts').dataset)"))
    assert int(said["drawn"]) == browser.count(".grid g")
    return {key: int(said[key]) for key in ("right", "wrong", "missed", "drawn")}


def column(browser, number: int) -> list[str]:
    script = "return [...document.querySelectorAll('#class-table tbody tr')].map((row) => row.cells[arguments[0]].textContent)"  # noqa: E501
    return browser.run(script, number)


def test_the_gallery_counts_what_the_evaluator_matched(browser, page, evidence):
    browser.open(page)
    browser.run("document.querySelector('#pictures').scrollIntoView()")
    for threshold in (0.0, 0.5, 0.75, 0.85, 1.0):
        browser.set(".slider", threshold)
        assert counted(browser) == expected(evidence, threshold, {0, 1, 2}), threshold
    browser.set(".slider", 0.5)
    browser.click(".classes input[value='0']")
    assert counted(browser) == expected(evidence, 0.5, {1, 2})
    assert browser.console() == []
    assert browser.requests() == []


def test_classes_sort(browser, page):
    browser.open(page)
    assert column(browser, 0) == list(NAMES)
    browser.click("#class-table th:nth-child(3) button")
    figures = [float(figure) for figure in column(browser, 2)]
    assert figures == sorted(figures, reverse=True) and len(set(figures)) > 1
    browser.click("#class-table th:nth-child(3) button")
    assert [float(figure) for figure in column(browser, 2)] == figures[::-1]
    assert EVIL in column(browser, 0) and browser.count("img[onerror], td script") == 0


def test_charts_tell_their_values(browser, page):
    browser.open(page)
    browser.run("document.querySelector('#training + .pair svg[data-curves]').focus()")
    assert browser.text(".tooltip") == "step 40both: 1classification: 0.75boxes: 0.25"
    browser.press("ArrowLeft")
    assert browser.text(".tooltip").startswith("step 20both: 2")


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_telephone(browser, page, dark):
    browser.open(page, width=375, dark=dark)
    assert browser.overflow(375) == 0
    assert browser.console() == []


def test_the_verdicts_come_first_and_can_be_read(browser, page):
    places = "return [...document.querySelectorAll(arguments[0])].map((at) => at.getBoundingClientRect().bottom)"
    for dark in (False, True):
        browser.open(page, width=1280, dark=dark)
        verdicts = browser.run(places, ".answers .verdict")
        assert len(verdicts) == 5 and max(verdicts) < 800
        assert max(verdicts) < browser.run(places, "#pictures")[0] < browser.run(places, "#settings")[0]
        # WCAG 2.2, AA: 4.5 for text.
        for selector in (".verdict.fine", ".verdict.look", ".verdict.stop", ".answers dd.text", ".notes"):
            assert contrast(browser, selector) >= 4.5, (selector, dark)


def contrast(browser, selector: str) -> float:
    """Contrast of a text of this kind with the page."""
    script = (
        "const at = document.querySelector(arguments[0]) ?? document.querySelector('.answers').appendChild("
        "Object.assign(document.createElement('dd'), {className: arguments[0].replaceAll('.', ' ').trim()}));"
        "return [getComputedStyle(at).color, getComputedStyle(document.body).backgroundColor]"
    )
    values = [[int(part) / 255 for part in re.findall(r"\d+", colour)[:3]] for colour in browser.run(script, selector)]
    linear = [[part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgb] for rgb in values]
    low, high = sorted(0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in linear)
    return (high + 0.05) / (low + 0.05)


def test_every_link_leads_somewhere(browser, page):
    browser.open(page)
    targets = browser.run("return [...document.querySelectorAll('nav a')].map((at) => at.getAttribute('href'))")
    assert len(targets) >= 9
    assert [target for target in targets if browser.count(target) != 1] == []


def test_what_the_keyboard_reaches_has_a_name(browser, page):
    browser.open(page)
    script = (
        "return [...document.querySelectorAll('main :is(a[href], button, input, select, summary, [tabindex])')]"
        ".filter((at) => at.checkVisibility() && !(at.ariaLabel || at.textContent.trim() || at.labels?.length"
        " || at.tagName === 'PRE')).map((at) => at.outerHTML.slice(0, 120))"
    )
    assert browser.run(script) == []
    # The focus can be seen.
    browser.press("Tab")
    outline = (
        "const at = getComputedStyle(document.activeElement); return [at.outlineStyle, parseFloat(at.outlineWidth)]"
    )
    assert browser.run(outline) == ["solid", 2]
