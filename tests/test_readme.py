"""What the README and the guide tell a reader to type exists: commands, options, settings, files and Python names.

And what they claim can be checked: a measured figure stands beside its command and its date.
"""

from __future__ import annotations

import ast
import re
import shlex
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import typer
import yaml
from pydantic import BaseModel

import retina
from retina import cli
from retina.config import Config
from tests.manual import (
    GENERATED,
    GUIDE,
    PAGES,
    ROOT,
    blocks,
    fences,
    headings,
    inline_code,
    links,
    shell_lines,
    text,
    words,
)

MOST_WORDS = 1500
FILE_ENDINGS = (".yaml", ".json", ".jsonl", ".npz", ".csv", ".txt")
WIDEST_CODE = 78  # what rich shows of a code block on 80 columns without breaking a line
COMMANDS = {name: typer.main.get_command(cli.app_of(name)) for name in cli.COMMANDS}
FOLDERS = ("configs/", "notebooks/", "retina/", "scripts/", "tests/")
SCRIPTS = "\n".join(
    path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "scripts").rglob("*"))
    if path.is_file() and path.suffix in ("", ".py")
)

pages = pytest.mark.parametrize("page", PAGES)


def split(line: str) -> list[str]:
    return shlex.split(line, comments=True)


# ------------------------------------------------------------------------------------------------------ what to type


def retina_words(line: str) -> list[str] | None:
    """Return what follows the word `retina` (or `-m retina`) in a command; None if it calls no command of ours."""
    parts = split(line)
    return parts[parts.index("retina") + 1 :] if "retina" in parts and parts[:2] != ["pip", "install"] else None


def test_a_command_is_recognised_after_a_launcher():
    assert retina_words("srun -n 1 retina train X --resume  # so") == ["train", "X", "--resume"]
    assert retina_words("torchrun -m retina train X") == ["train", "X"]
    assert retina_words("pip install retina") is None and retina_words("curl -LO URL") is None


def options_of(command: str) -> set[str]:
    return {option for parameter in COMMANDS[command].params for option in parameter.opts}


@pytest.mark.parametrize(
    ("page", "line"), [(page, line) for page in PAGES for line in shell_lines(page)], ids=lambda value: value
)
def test_commands_in_blocks_exist(page: str, line: str):
    parts = retina_words(line)
    if parts is None:
        first = split(line.removeprefix("python3 "))[0]  # of a machine without an environment
        known = ("curl", "pip", "docker") if not first.startswith("scripts/") else (first,)
        assert first in known, f"{page}: a command that no test knows: {line}"
        return
    assert {part for part in parts if part.startswith("--")} <= options_of(parts[0])
    for part in parts[1:]:
        if "=" in part and not part.startswith("--"):
            assert is_setting(part.partition("=")[0]), f"{page}: {part}"


@pytest.mark.parametrize(
    "line",
    [line for page in PAGES for line in shell_lines(page) if split(line)[0].startswith("scripts/")],
    ids=" ".join,
)
def test_scripts_can_be_run(line: str):
    assert (ROOT / split(line)[0]).stat().st_mode & 0o100


@pages
def test_commands_in_the_text_exist(page: str):
    """`retina evaluate RUN [--json]` in single backticks: the command and every option exist."""
    for code in inline_code(page):
        usage = re.match(r"retina ([a-z][a-z-]*)(.*)", code)
        if usage:
            assert usage[1] in COMMANDS, f"{page}: `{code}`"
            assert set(re.findall(r"--[a-z][a-z-]*", usage[2])) <= options_of(usage[1]), f"{page}: `{code}`"


@pages
def test_options_in_the_text_exist(page: str):
    """`--resume` alone is an option of a command, or of a script."""
    known = {option for name in COMMANDS for option in options_of(name)} | {"--help", "--debug"}
    standing = [code.split()[0] for code in inline_code(page) if code.startswith("--")]
    assert [option for option in standing if option not in known and option not in SCRIPTS] == []


def test_every_command_is_in_the_readme_and_in_the_guide():
    for page in ("README.md", "retina/guide/commands.md"):
        assert [name for name in COMMANDS if f"`retina {name}" not in text(page)] == []


@pages
def test_files_exist(page: str):
    """`configs/bccd.yaml` in backticks or in a command is in the checkout."""
    lines = [*inline_code(page), *shell_lines(page)]
    parts = {part.strip("`'\"().,;:") for line in lines for part in line.split()}
    assert [part for part in parts if part.startswith(FOLDERS) and not (ROOT / part).exists()] == []


# ---------------------------------------------------------------------------------------------------------- settings


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the sections that a field may hold: of a union each."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Literal:
        return []
    return [model for inner in get_args(annotation) for model in models_of(inner)]


def is_setting(key: str, models: list[type[BaseModel]] | None = None) -> bool:
    """Return whether the configuration has this dotted key."""
    name, _, rest = key.partition(".")
    fields = [model.model_fields[name] for model in models or [Config] if name in model.model_fields]
    inner = [model for field in fields for model in models_of(field.annotation)]
    return bool(fields) and (not rest or is_setting(rest, inner) if inner or not rest else False)


def test_settings_are_recognised():
    assert models_of(Annotated[Union[int, Config], "why"]) == [Config]
    assert is_setting("data.train.annotations") and is_setting("optimizer.beta_1") and is_setting("run.ema.decay")
    assert is_setting("model") and not is_setting("run.batchsize") and not is_setting("run.seed.more")


def settings_of(tree: dict[str, Any], models: list[type[BaseModel]]) -> list[str]:
    """Return the keys of a YAML tree that no section has."""
    unknown = []
    for key, value in tree.items():
        if not is_setting(key, models):
            unknown.append(key)
        elif isinstance(value, dict):
            fields = [model.model_fields[key] for model in models if key in model.model_fields]
            inner = [model for field in fields for model in models_of(field.annotation)]
            unknown += settings_of(value, inner) if inner else []
    return unknown


@pages
def test_settings_in_yaml_exist(page: str):
    for block in fences(page, "yaml"):
        tree = yaml.safe_load(block)
        if tree is None:  # nothing but a comment
            continue
        if isinstance(tree, dict):
            assert settings_of(tree, [Config]) == []
        else:  # a grid: named settings and products of dotted keys
            keys = [key for entry in tree for key in {**entry.get("overrides", {}), **entry.get("product", {})}]
            assert keys
            assert [key for key in keys if not is_setting(key)] == []


@pages
def test_settings_in_the_text_exist(page: str):
    """`run.keep` or `run.ema: {decay: 0.9998}` in single backticks."""
    sections = "|".join(Config.model_fields)
    keys = [match[1] for code in inline_code(page) if (match := re.match(rf"((?:{sections})\.\w+(?:\.\w+)*)", code))]
    assert [key for key in keys if not key.endswith(FILE_ENDINGS) and not is_setting(key)] == []


# ------------------------------------------------------------------------------------------------------------- links


@pages
def test_links_and_pictures_lead_somewhere(page: str):
    folder = PAGES[page].parent
    for target in links(page):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve() if path else PAGES[page]
        assert file.is_file(), f"{page}: {target}"
        if anchor:
            assert anchor in headings(file.relative_to(ROOT).as_posix()), f"{page}: {target}"


def test_the_readme_links_every_page_of_the_guide():
    linked = {target for target in links("README.md") if target.startswith("retina/guide/")}
    pages_there = {path.relative_to(ROOT).as_posix() for path in GUIDE.glob("*.md")}
    assert pages_there <= {target.partition("#")[0] for target in linked}


# ------------------------------------------------------------------------------------------------------ Python names


def python_names(source: str) -> set[str]:
    """Return the attributes of `retina` that a piece of Python uses."""
    attributes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)]
    return {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "retina"}


@pages
def test_python_names_exist(page: str):
    names = {name for block in fences(page, "python") for name in python_names(block)}
    assert names <= set(dir(retina))
    for code in inline_code(page):
        for dotted in re.findall(r"(?<![/\w])retina((?:\.\w+)+)", code):
            if dotted.endswith(FILE_ENDINGS):
                continue
            assert is_python_name(dotted[1:].split(".")), f"{page}: `{code}`"


def test_the_page_on_python_names_all_that_retina_offers():
    named = "\n".join(inline_code("retina/guide/python.md"))
    assert [name for name in retina.__all__ if name != "__version__" and f"retina.{name}" not in named] == []


def is_python_name(parts: list[str]) -> bool:
    """Return whether `retina` has this name: one that it offers, a module, or what a module defines."""
    if parts[0] in dir(retina) and len(parts) == 1:
        return True
    module = ROOT / "retina" / "/".join(parts)
    if module.with_suffix(".py").is_file() or (module / "__init__.py").is_file():
        return True
    home, room = module.parent.with_suffix(".py"), module.parent / "__init__.py"
    if room.is_file():
        return re.search(rf'^    "{parts[-1]}",$', room.read_text(encoding="utf-8"), re.M) is not None  # its `__all__`
    defined = re.compile(rf"^(def |class )?{parts[-1]}\b", re.MULTILINE)
    return home.is_file() and defined.search(home.read_text(encoding="utf-8")) is not None


def test_the_blocks_are_read():
    assert len(shell_lines("README.md")) >= 6 and len(fences("README.md", "python")) == 1
    assert sum(len(shell_lines(page)) for page in PAGES) > 40
    assert sum(len(fences(page, "yaml")) for page in PAGES) > 6
    assert is_python_name(["training", "replay", "replay"]) and not is_python_name(["training", "replay", "gone"])


# ------------------------------------------------------------------------------------------------------ how it reads


def test_the_readme_is_short():
    assert words("README.md") <= MOST_WORDS


@pages
def test_tables_have_as_many_cells_in_every_row(page: str):
    """Markdown drops a cell too many without a word."""
    for block in blocks(page):
        if block.kind == "table":
            counts = {len(re.split(r"(?<!\\)\|", row)) for row in block.text.splitlines()}
            assert len(counts) == 1, block.text


@pages
def test_code_fits_a_terminal(page: str):
    lines = [line for block in blocks(page) if block.kind == "code" for line in block.text.splitlines()]
    assert [line for line in lines if len(line) > WIDEST_CODE and "://" not in line] == []


# --------------------------------------------------------------------------------------------- figures have a command

FIGURE = re.compile(
    r"\bAP\d* (?:of )?0\.\d{3}"  # AP 0.802
    r"|\b\d+(?:\.\d+)? (?:images/s|GB\b|MB\b|ms\b|min\b|px\b|s of )"  # 3.37 images/s
    r"|\b[01]\.\d{3}\b"  # 0.412
    r"|\b\d\.\d+e-\d\d\b"  # 6.9e-07
    r"|\b\d+\.\d ×"  # 2.0 ×
)
"""What a measured figure looks like."""

NOT_MEASURED = (
    "difference of AP at most",  # limits of an export's certificate
    "stays below 10 MB",  # a bound that the browser keeps
    "about 1 GB of downloads",
    "compares the result with torchvision's own model",  # bounds of tests/parity
    "(about 1e-5 px)",
    "not measured",  # goals
    "objects of 20 to 250 pixels",
)
"""Words of paragraphs, tables and their headers whose figures are bounds, goals or somebody else's."""

PUBLISHED = "published, not verified here"
DATE = re.compile(r"\b20\d\d-\d\d-\d\d\b")
COMMAND = re.compile(r"`[^`]*(?:scripts/|retina (?:ablate|evaluate|train|benchmark|doctor))[^`]*`")


def proven(*texts: str) -> bool:
    """Return whether one of the texts holds a command in backticks and a date."""
    return any(DATE.search(part) and COMMAND.search(part) for part in texts)


def needs_proof(part: str) -> bool:
    return bool(FIGURE.search(part)) and not any(words in part for words in NOT_MEASURED)


def test_figures_and_their_proof_are_recognised():
    assert proven("AP 0.802 (`scripts/demo`, 2026-11-28)") and proven("no", "(`retina train X`, 2026-11-28)")
    assert not proven("AP 0.802 (`scripts/demo`)") and not proven("(2026-11-28)", "`scripts/demo`")
    assert needs_proof("It reaches AP 0.802.") and needs_proof("| a | 3.37 images/s |") and needs_proof("| 6.9e-07 |")
    assert not needs_proof("It has 20 steps.") and not needs_proof("250 images/s, not measured")


@pytest.mark.parametrize("page", [page for page, path in PAGES.items() if path not in GENERATED])
def test_measured_figures_stand_beside_their_command_and_date(page: str):
    """In the same section; those of a table in its caption, the paragraph before it, or in the same row.

    The pages of settings and of Python's names are made of defaults and examples, and hold no measurement.
    """
    for block in blocks(page):
        if PUBLISHED in block.section:
            continue
        if block.kind == "table" and not proven(block.before):
            header, _, *rows = block.text.splitlines()
            assert [row for row in rows if needs_proof(f"{header}\n{row}") and not proven(row)] == []
        elif block.kind == "paragraph" and needs_proof(block.text):
            assert proven(block.section), f"{page}: {block.text}"


TRAININGS = ("0.593", "0.2566", "0.228")
"""Figures of trainings from before 2026-11-29, when the momentum of batch normalisation became 0.9."""
MARK = "before the momentum changed (2026-11-29)"


@pytest.mark.parametrize("page", [page for page, path in PAGES.items() if path not in GENERATED])
def test_figures_of_old_trainings_say_so(page: str):
    for block in blocks(page):
        if block.kind == "table" and MARK not in block.before:
            rows = [row for row in block.text.splitlines() if any(figure in row for figure in TRAININGS)]
            assert [row for row in rows if MARK not in row] == []
        elif block.kind == "paragraph" and any(figure in block.text for figure in TRAININGS):
            assert MARK in " ".join(block.section.split()), f"{page}: {block.text}"
