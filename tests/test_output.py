"""Output: what goes into a pipe is whole, a terminal sees a bar; paths with a scheme are refused."""

import contextlib
import io
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from retina import cli
from retina.errors import RetinaError
from retina.files import refuse_scheme
from retina.output import bar, console, count
from retina.runs.directory import RunDirectory
from retina.training.progress import Report


@pytest.mark.parametrize(
    ("number", "thing", "words"),
    [(1, "box", "1 box"), (2, "box", "2 boxes"), (0, "class", "0 classes"), (1000, "image", "1,000 images")],
)
def test_numbers_with_their_nouns(number, thing, words):
    assert count(number, thing, ",") == words and count(number, thing) == words.replace(",", "")


def test_a_pipe_gets_whole_lines(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    terminal = console()
    terminal.print("word " * 100)
    assert len(terminal.file.getvalue().splitlines()) == 1
    monkeypatch.setenv("COLUMNS", "60")
    assert console().width == 60


def test_a_bar_passes_on_what_it_counts(monkeypatch, capsys):
    assert list(bar("detecting")(iter("abc"), 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_narrow_terminal_cuts_the_figures_and_not_the_step(width):
    report = Report(None, 12000)
    line = {
        "step": 11999,
        "loss": 0.5123,
        "loss_classification": 0.4,
        "loss_box": 0.1123,
        "learning_rate": 1e-3,
        "images_per_second": 12.3,
        "data_wait": 0.02,
    }
    report.scalars(line, 60.0)
    screen = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, _environ={})
    screen.print(report.progress.make_tasks_table(report.progress.tasks))
    (shown,) = screen.file.getvalue().splitlines()
    assert len(shown) <= width and shown.startswith("step 11999/12000 ") and "-:--:--" in shown
    assert ("loss 0.5123  12.3 images/s" in shown) == (width > 70)
    assert ("waiting for data 2%" in shown) == (width > 150)


# ------------------------------------------------------------------------------------------------------------- schemes


@pytest.mark.parametrize("path", ["gs://b/r", "s3://b/r", "https://x.org/a.jpg", Path("gs://b/r"), "hdfs+x://a"])
def test_paths_with_a_scheme_are_refused(path):
    with pytest.raises(RetinaError, match="expected a path of this machine, got one with a scheme"):
        refuse_scheme(path)
    with pytest.raises(RetinaError, match="with a scheme"):
        RunDirectory.open(Path(path))


@pytest.mark.parametrize("path", ["a/b", "/a:b/c", "C:/runs", "a:b", "./gs:/x", ""])
def test_other_paths_are_none_of_these(path):
    refuse_scheme(path)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--run-dir", "gs://b/r"],
        ["train", "--run-dir=gs://b/r"],
        ["train", "data.root=s3://b"],
        ["train", "https://x.org/my.yaml"],
        ["predict", "run", "https://x.org/a.jpg"],
        ["convert", "a", "s3://b", "--to", "yolo"],
        ["evaluate", "gs://b/r"],
    ],
)
def test_every_command_refuses_them(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RetinaError, match="with a scheme"):
        cli.run(words)
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_is_no_run(tmp_path):
    (tmp_path / "my.yaml").write_text("run: {seed: 1}\n")
    with pytest.raises(RetinaError, match="expected a run directory, got a configuration; `retina train"):
        RunDirectory.open(tmp_path / "my.yaml")


# ---------------------------------------------------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["ev"], ["evaluate"]),
        (["evaluate", "run", "--check"], ["--checkpoint"]),
        (["train", "--run"], ["--run-dir"]),
        (["guide", "xyz"], []),
        (["guide", "--h"], ["--help"]),
    ],
)
def test_bash_completes_commands_and_options(words, completed, completion_script):
    shell = [
        "bash",
        "-c",
        f'{completion_script}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _retina; echo "${{COMPREPLY[@]}}"',
    ]
    done = subprocess.run([*shell, "bash", "retina", *words], capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (completed, "")


@pytest.fixture(scope="module")
def completion_script():
    with pytest.raises(RetinaError, match="expected bash or zsh, got 'csh'"):
        cli.run(["--completion", "csh"])
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert not cli.run(["--completion", "bash"])
    return out.getvalue()
