"""Tables sort by what their cells say: counts, differences, intervals and names, whatever they are written with."""

from pathlib import Path

import pytest

from retina.drawing import furniture

PAGE = """{% extends "base.html.jinja" %}{% block body %}<table class="sortable">
<thead><tr>{% for name in header %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table>{% endblock %}"""
HEADER = ("class", "boxes", "interval", "p", "share", "word")
ROWS = (
    ("10", "1,234", "−0.200 to −0.100", "< 0.001", "9.9 %", "–"),
    ("9", "35", "+0.100 to +0.200", "0.020", "100.0 %", "b"),
    ("2 cars", "–", "–", "–", "0.0 %", "10 a"),
    ("cat", "900", "−0.050 to +0.010", "0.300", "12.3 %", "9 a"),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    (folder / "page.html.jinja").write_text(PAGE)
    text = furniture.render(folder / "page.html.jinja", title="t", header=HEADER, rows=ROWS)
    (folder / "page.html").write_text(text, encoding="utf-8")
    return folder / "page.html"


@pytest.mark.parametrize(
    ("column", "first", "second"),
    [
        # Names ascend first, numbers descend; without a value last, either way.
        (1, [2, 1, 0, 3], [3, 0, 1, 2]),
        (2, [0, 3, 1, 2], [1, 3, 0, 2]),
        (3, [1, 3, 0, 2], [0, 3, 1, 2]),
        (4, [3, 1, 0, 2], [0, 1, 3, 2]),
        (5, [1, 3, 0, 2], [2, 0, 3, 1]),
        (6, [3, 2, 1, 0], [1, 2, 3, 0]),
    ],
    ids=HEADER,
)
def test_a_column_sorts_by_its_values(browser, page, column, first, second):
    browser.open(page)
    script = "return [...document.querySelectorAll('tbody tr')].map((row) => row.cells[0].textContent)"
    for direction, wanted in (
        ("ascending" if column in (1, 6) else "descending", first),
        ("descending" if column in (1, 6) else "ascending", second),
    ):
        browser.run("document.querySelector(arguments[0]).focus()", f"th:nth-child({column}) button")
        browser.press("Enter")
        assert browser.run(script) == [ROWS[place][0] for place in wanted]
        told = browser.run("return document.querySelector(arguments[0]).ariaSort", f"th:nth-child({column})")
        assert told == direction
    assert browser.console() == []
