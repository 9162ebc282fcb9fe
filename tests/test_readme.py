"""What the README tells a newcomer to type exists: commands, options, files and Python names."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer

import retina
from retina import config
from retina.cli import app

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


LINES = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines() if line.strip()]


def test_the_blocks_are_found():
    assert len(LINES) >= 6 and len(blocks("python")) == 1 and blocks("yaml")


@pytest.mark.parametrize("line", [line for line in LINES if line[0] == "retina"], ids=" ".join)
def test_commands_and_their_options_exist(line: list[str]):
    command = COMMANDS[line[1]]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in line[2:] if word.startswith("--")} <= options
    for word in line[2:]:
        if word.startswith("configs/"):
            assert (ROOT / word).is_file()
        elif "=" in word:
            section, key = word.partition("=")[0].split(".")
            assert key in type(getattr(config.load(), section)).model_fields


@pytest.mark.parametrize("line", [line for line in LINES if line[0].startswith("scripts/")], ids=" ".join)
def test_scripts_exist(line: list[str]):
    assert (ROOT / line[0]).stat().st_mode & 0o100


def test_every_command_is_in_the_table():
    assert {name for name in COMMANDS if f"`retina {name}" not in TEXT} == set()


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert targets
    assert [target for target in targets if "://" not in target and not (ROOT / target).is_file()] == []


def test_links_within_the_page_lead_to_headings():
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
    targets = re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert len(targets) > 10
    assert set(targets) <= slugs


def test_the_python_names_exist():
    (block,) = blocks("python")
    names = {
        node.attr
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "retina"
    }
    assert names and names <= set(dir(retina))
