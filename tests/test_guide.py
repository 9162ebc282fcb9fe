"""The manual in the terminal and in a pipe: what is listed, what is shown, what an unknown page gives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from retina import cli
from retina.commands.guide import for_terminal, with_backticks
from retina.errors import RetinaError
from retina.guide import page, topics
from tests.malformed import KINDS
from tests.manual import GUIDE, PAGES, ROOT, fences
from tests.manual import text as markdown

TOPICS = (
    "data", "training", "settings", "devices", "weights", "evaluation", "ablation", "gamma", "prediction", "export",
    "python", "reference", "ecosystem", "commands", "measurements", "gpu", "errors",
)  # fmt: skip
HEAVY = ("tensorflow", "keras", "jax", "torch", "numpy", "matplotlib", "pandas")
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def shown(monkeypatch, capsys, *arguments: str, columns: int = 80) -> tuple[int, str, str]:
    """Return exit code, output and errors of `retina guide …`, piped, on a terminal of so many columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.argv", ["retina", "guide", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


def test_every_page_is_a_topic_with_its_line():
    assert tuple(topics()) == TOPICS
    assert set(topics()) == {path.stem for path in GUIDE.glob("*.md")}
    for topic, about in topics().items():
        assert re.match(r"(<!--.*-->\n\n)?# ", page(topic)), topic
        assert 20 <= len(about) <= 160, topic
        assert about.endswith("."), topic


def test_the_topics_are_listed(monkeypatch, capsys):
    code, out, err = shown(monkeypatch, capsys)
    assert (code, err) == (0, "")
    assert re.findall(r"^\w+", out, re.MULTILINE) == list(topics())
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("topic", TOPICS)
def test_a_page_in_a_pipe_is_plain_text(topic, monkeypatch, capsys):
    code, out, err = shown(monkeypatch, capsys, topic)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert "\x1b" not in out and lines == [line.rstrip() for line in lines]
    assert max(map(len, lines)) <= 80
    assert out.count("…") <= markdown(f"retina/guide/{topic}.md").count("…")  # nothing is cut off
    assert [
        heading for heading in re.findall(r"^##? ([A-Z].+)$", page(topic), re.MULTILINE) if heading not in out
    ] == []


def test_long_lines_of_a_wide_pipe(monkeypatch, capsys):
    _, out, _ = shown(monkeypatch, capsys, "training", columns=300)
    assert 80 < max(map(len, out.splitlines())) <= 100


def test_an_unknown_page_names_the_nearest(monkeypatch, capsys):
    code, out, err = shown(monkeypatch, capsys, "device")
    assert (code, out) == (2, "")
    assert err == "retina: guide: there is no page 'device'; did you mean devices?\n"
    with pytest.raises(RetinaError, match=r"there is no page 'zzzzz'; the topics are ablation, commands, data, "):
        page("zzzzz")
    with pytest.raises(RetinaError, match="there is no page"):
        page("../ARCHITECTURE")


def test_a_terminal_gets_colours_and_the_same_words(monkeypatch, capsys):
    _, plain, _ = shown(monkeypatch, capsys, "errors")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    _, coloured, _ = shown(monkeypatch, capsys, "errors")
    assert "\x1b[1m" in coloured
    assert ESCAPE.sub("", coloured).split() == plain.replace("`", "").split()


def test_links_become_what_a_terminal_can_use():
    assert for_terminal("See [data](data.md).") == "See `retina guide data`."
    assert for_terminal("[your folder](data.md#x) is") == "your folder (`retina guide data`) is"
    assert for_terminal("[a client](../../scripts/x)") == "`scripts/x`"
    assert for_terminal("[above](#top) [out](https://x.org)") == "above [out](https://x.org)"
    assert for_terminal("![A page](../../p.png)") == "*(Picture: A page.)*"


def test_code_keeps_its_backticks_without_colours(monkeypatch, capsys):
    assert with_backticks("a `b c` d\n\n```bash\n# `e`\n```\n") == "a `` `b c` `` d\n\n```bash\n# `e`\n```\n"
    _, out, _ = shown(monkeypatch, capsys, "gpu")
    assert "`run.precision=mixed_bfloat16`" in out and "and its `install` there" in out and "``" not in out


def test_the_message_that_the_page_of_errors_shows_is_the_message(monkeypatch, capsys):
    (block,) = fences("retina/guide/errors.md", "text")
    command, message = block.strip().splitlines()
    monkeypatch.setattr("sys.argv", command.removeprefix("$ ").split())
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert (stop.value.code, capsys.readouterr().err) == (2, f"{message}\n")


@pytest.mark.parametrize("topic", ["errors", "measurements"])
def test_the_number_of_kinds_of_broken_input(topic):
    assert f" {len(KINDS)} kinds of broken input " in " ".join(page(topic).split())


def test_the_guide_is_light():
    code = (
        "import json, sys; sys.argv = ['retina', 'guide', 'data']; from retina.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print(json.dumps(sorted(n for n in sys.modules if n in {HEAVY!r})))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True, cwd=Path(ROOT)
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_the_manual_of_the_tests_is_the_commands_manual():
    assert {f"retina/guide/{topic}.md" for topic in topics()} == set(PAGES) - {"README.md"}
