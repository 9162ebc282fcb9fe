"""The page and its pictures: what is drawn where, worked out by hand; names are escaped, nothing comes from outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from retina import config
from retina.doctor.ceiling import Level, report
from retina.doctor.examine import Examination
from retina.doctor.findings import Finding
from retina.doctor.statistics import Histogram, statistics
from retina.pages import examination_charts as charts
from retina.pages.examination import render
from tests.doctor.made import table

EVIL = "<script>alert(1)</script>&'\""


class Tags(HTMLParser):
    """Collects the tags, and fails at one that is closed before it was opened."""

    EMPTY = ("meta", "link", "rect", "line", "br")

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


def examination(**parts) -> Examination:
    empty = {"findings": (), "splits": {}, "anchors": {}, "suggestion": None, "cost": None, "timing": None}
    return Examination(**{"name": "made up", "quick": False, **empty, **parts})


def tags(text: str) -> set[str]:
    parser = Tags()
    parser.feed(text)
    assert parser.open == []
    return parser.seen


def test_an_examination_of_nothing_is_a_page():
    text = render(examination())
    assert "svg" not in tags(text) and "made up" in text


def test_a_split_without_boxes_has_no_picture():
    text = render(examination(splits={"train": statistics(table([(64, 64)], [[]]))}))
    assert "svg" not in tags(text) and ">1</b><span>images in 1 split" in text


def test_everything_that_users_name_is_escaped():
    dataset = table([(64, 64)], [[[4, 4, 36, 36]]], names=(EVIL,))
    settings = config.parse(
        {
            "data": {"train": {"format": "digits"}, "validation": {"format": "digits"}},
            "schedule": {"kind": "cosine", "steps": 10},
        }
    )
    finding = Finding("error", "code", EVIL, EVIL, EVIL, (EVIL, EVIL))
    text = render(
        examination(
            name=EVIL,
            findings=(finding,),
            splits={EVIL: statistics(dataset)},
            anchors={EVIL: report(dataset, settings, 1)},
            positive_iou=0.5,
        )
    )
    assert tags(text) & {"img", "iframe", "object"} == set()
    assert text.count("<script") == 1 and re.findall("<link[^>]*>", text) == ['<link rel="icon" href="data:,">']
    assert "svg" in tags(text) and "&lt;script&gt;" in text and EVIL not in text
    assert re.findall(r"(?:https?:)?//[a-z]", text) == []


@pytest.mark.parametrize(
    ("grades", "told"),
    [((), "No errors"), (("warning", "note"), "No errors"), (("error", "warning"), "Errors: don't train")],
)
def test_the_verdict_is_at_the_head(grades, told):
    findings = tuple(Finding(grade, "code", "message") for grade in grades)
    text = render(examination(findings=findings, splits={"train": statistics(table([(64, 64)], [[]]))}))
    head = text[: text.index('class="tiles"')]
    assert told in head.replace("&#39;", "'") and all(f"1 {grade}" in head for grade in grades)


def test_many_examples_are_cut_and_said_to_be():
    finding = Finding("note", "code", "message", examples=tuple(f"file {n}." for n in range(60)))
    text = render(examination(findings=(finding,)))
    assert "60 listed" in text and "file 49." in text and "file 50." not in text and "and more: see --json" in text


# ---------------------------------------------------------------------------------------------------------- pictures


def test_axes_are_shared_and_without_gaps():
    assert charts.axis([(8.0, 16.0), (32.0, 64.0)]) == pytest.approx([8 * 2 ** (n / 2) for n in range(7)])


def test_bars_stand_at_their_places():
    # 460 px less 40 and 12 for 4 bins: 102 px each; the highest is 120 px tall and ends 138 px below the top.
    chart = charts.bars(Histogram((16.0, 16 * 2**0.5, 32.0), (1, 4)), "title", charts.axis([(8.0, 32.0)]))
    first, second = chart.bars
    assert (first.x, first.width, first.y, first.height, first.rest) == (40 + 204 + 1, 100, 138 - 30, 30, 0)
    assert (second.x, second.y, second.height, second.number) == (40 + 306 + 1, 18, 120, 4)
    assert chart.bottom == 138 and chart.ticks == ((40, "8"), (244, "16"), (448, "32"))


def test_nothing_to_draw():
    assert [bar.height for bar in charts.bars(Histogram((1.0, 2.0), (0,)), "", (1.0, 2.0)).bars] == [0]


def test_what_an_anchor_fits():
    # Squares of 32 in the same place as squares of s: IoU is s² / 32² below, 32² / s² above.
    low, high = charts.reach(Level(3, (32.0, 64.0), 0, 0), 0.25)
    assert (low / 32) ** 2 == pytest.approx(0.25) and (64 / high) ** 2 == pytest.approx(0.25)


def test_boxes_without_an_anchor_are_drawn_on_top():
    # Sides of 32 (covered), 8 (not) on 64 px canvases with anchors of 32 px alone.
    settings = config.parse(
        {
            "data": {
                "train": {"format": "digits"},
                "validation": {"format": "digits"},
                "resize": {"short": 64, "long": 64, "multiple": 32},
            },
            "model": {"fpn": {"max_level": 3}},
            "anchors": {"scales": [1.0], "ratios": [1.0]},
            "schedule": {"kind": "cosine", "steps": 10},
        }
    )
    dataset = table([(64, 64)] * 4, [[[4, 4, 36, 36]]] * 3 + [[[16, 16, 24, 24]]])
    found = report(dataset, settings, 4)
    edges = charts.side_axis([found], 0.5)
    # From the least side, 8, to where 64 / sqrt(2) is, 45.25.
    assert edges[0] == pytest.approx(8) and edges[-1] == pytest.approx(32 * 2**0.5)
    chart = charts.covered_bars(found, "title", edges, 0.5)
    drawn = {bar.number: (bar.height, bar.rest) for bar in chart.bars if bar.number}
    assert drawn == {3: (120, 0), 1: (0, 40)}
    (band,) = chart.bands
    step = (460 - 52) / 5
    assert (band.name, band.x, band.width) == ("P3", round(40 + 3 * step, 1), round(2 * step, 1))


def test_ticks_are_whole_octaves_written_out():
    chart = charts.bars(Histogram((1024.0, 1448.15), (1,)), "", charts.axis([(64 * 2**0.5, 2048.0)]))
    assert [told for _, told in chart.ticks] == ["128", "256", "512", "1024", "2048"]
