"""The map for contributors is true: every path that it names exists, and its rooms are those of the tests."""

from __future__ import annotations

import re

import pytest

from tests.manual import ROOT, anchor
from tests.test_layers import EVALUATION_MAY, EVALUATION_ROOMS, FLOORS, MAX_FILES, MAX_STATEMENT_LINES

TEXT = (ROOT / "retina" / "ARCHITECTURE.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
CODE = re.findall(r"`([^`\n]+)`", PROSE)
PATH = re.compile(r"(?:retina|tests|scripts|configs|notebooks|\.ci)/[\w./]*|\w+\.md")


def paths() -> list[str]:
    return [code for code in CODE if PATH.fullmatch(code)]


def test_every_path_exists():
    assert len(paths()) > 60
    missing = [path for path in paths() if not (ROOT / path).exists() and path != "retina/guide/TOPIC.md"]
    assert missing == []


def test_every_function_named_beside_a_file_is_in_it():
    """`name` in `retina/…/file.py`, or `file.py`, `name`."""
    pairs = [(file, name) for name, file in re.findall(r"`(\w+)`\s+(?:in|of)\s+`(retina/[\w/]+\.py)`", PROSE)]
    pairs += re.findall(r"`(retina/[\w/]+\.py)`(?:, | \(|: )`(\w+)(?:\(\))?`", PROSE)
    assert len(pairs) >= 6
    for file, name in pairs:
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text(encoding="utf-8")), f"{name} in {file}"


def test_links_within_lead_to_headings():
    titles = re.findall(r"^#+ (.+)$", PROSE, re.MULTILINE)
    targets = re.findall(r"\]\(#([^)]+)\)", PROSE)
    assert targets
    assert [target for target in targets if target not in {anchor(title) for title in titles}] == []


def table_of_rooms() -> list[tuple[str, ...]]:
    """The rooms of each row of the table, from the ground up."""
    table = PROSE.split("| room | what it holds |\n|---|---|\n", 1)[1].split("\n\n", 1)[0]
    return [tuple(re.findall(r"`(\w+)`", row.split("|")[1])) for row in table.splitlines()]


def test_the_rooms_stand_in_the_order_of_the_floors():
    there = {path.stem for path in (ROOT / "retina").iterdir()} | {""}
    floors = [tuple(room or "retina" for room in rooms if room in there) for rooms in FLOORS]
    expected = [set(rooms) for rooms in floors if rooms and rooms != ("__main__",)]
    assert [set(rooms) for rooms in table_of_rooms()] == expected


def test_every_room_is_in_the_table():
    listed = {room for rooms in table_of_rooms() for room in rooms}
    there = {path.stem for path in (ROOT / "retina").iterdir()}
    assert {room for rooms in FLOORS for room in rooms} & there - {"__main__"} <= listed


def test_it_states_what_evaluation_may_import():
    (rule,) = re.findall(r"^- \*\*`evaluation`\*\* may import(.*?)\n- ", PROSE, re.DOTALL | re.MULTILINE)
    for module in EVALUATION_MAY:
        assert f"`{module.replace('.', '/')}.py`" in rule
    for room in EVALUATION_ROOMS - {""}:
        assert f"`{room}`" in rule


@pytest.mark.parametrize("bound", [f"{MAX_STATEMENT_LINES} lines", f"{MAX_FILES} Python files"])
def test_the_bounds_are_those_of_the_tests(bound):
    assert bound in TEXT


def test_code_and_tests_cite_it_and_no_page_outside_the_repository():
    outside = "DES" + "IGN"
    files = [*(ROOT / "retina").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "scripts").rglob("*")]
    texts = {path: path.read_text(encoding="utf-8") for path in files if path.is_file() and path.suffix in ("", ".py")}
    assert [str(path.relative_to(ROOT)) for path, text in texts.items() if re.search(rf"\b{outside}\b", text)] == []
