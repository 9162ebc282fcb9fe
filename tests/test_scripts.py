"""What scripts share: taking turns in processes of their own, and the measures of the house."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LONGEST
from tests.scripts import SCRIPTS, load_script

EXECUTABLE = sorted(path for path in SCRIPTS.rglob("*.py") if os.access(path, os.X_OK))

# A contestant that answers its name and the number of its turn, notes both in a file, and fails in the turn asked for.
CONTESTANT = """
import sys
sys.path.insert(0, {scripts!r})
from harness import serve
name, notes, fails = sys.argv[1], sys.argv[2], int(sys.argv[3])
turns = []
def turn():
    turns.append(name)
    print("libraries talk")
    if len(turns) == fails:
        raise ValueError("no more")
    with open(notes, "a") as file:
        file.write(f"{{name}}{{len(turns)}} ")
    return {{"turn": len(turns)}}
def build():
    if not fails:
        raise ImportError("no module")
    return {{"name": name}}, turn
serve(build)
"""


@pytest.fixture(scope="module")
def harness():
    return load_script("harness")


def turns_of(harness, notes: Path, fails: dict[str, int], rounds: int = 2):
    code = CONTESTANT.format(scripts=str(SCRIPTS))
    return harness.take_turns(
        fails, lambda name: harness.Worker(name, ["-c", code, name, str(notes), str(fails[name])]), rounds
    )


def test_contestants_take_turns(harness, tmp_path):
    turns = turns_of(harness, tmp_path / "notes", {"a": 9, "b": 9})
    assert (tmp_path / "notes").read_text().split() == ["a1", "b1", "a2", "b2"]
    assert turns.ready == {"a": {"name": "a"}, "b": {"name": "b"}} and turns.errors == {}
    assert turns.rounds == [{name: {"turn": n} for name in "ab"} for n in (1, 2)]
    assert turns.of("b") == [{"turn": 1}, {"turn": 2}]


def test_a_contestant_that_fails_leaves_the_others_alone(harness, tmp_path):
    turns = turns_of(harness, tmp_path / "notes", {"absent": 0, "a": 9, "b": 2}, rounds=3)
    assert turns.errors == {"absent": "ImportError: no module", "b": "ValueError: no more"}
    assert [list(answers) for answers in turns.rounds] == [["a", "b"], ["a"], ["a"]]


def test_a_process_that_ends_is_named(harness):
    worker = harness.Worker("x", ["-c", "import sys; sys.exit(3)"])
    assert worker.error == "the process ended with status 3" and worker.turn() == {}
    worker.close()
    with pytest.raises(SystemExit, match="went wrong"):
        harness.measure_apart(["-c", "raise SystemExit('went wrong')"])
    assert harness.measure_apart(["-c", "print('talk'); print('{\"a\": 1}')"]) == {"a": 1}


def test_medians_and_ratios(harness):
    assert harness.median([]) is None and harness.median([3.0, 1.0, 2.0]) == 2.0
    assert harness.ratios([2.0, 9.0, 5.0], [1.0, 3.0]) == [2.0, 3.0]


def test_statements_are_counted_without_docstrings():
    count = load_script("house").statements
    assert count("") == 0 and count('"""Text."""\n') == 0
    # class, def, return; then the assignment.
    assert count('class A:\n    """Text."""\n    def f(self):\n        """Text."""\n        return 1\nx = 2\n') == 4
    assert count('class A:\n    x: int = 1\n    """Unit of x."""\n') == 2


def test_imports_by_name_are_counted():
    count = load_script("house").imports_by_name
    assert count("import importlib\nx = importlib.import_module('a')\ndef f():\n    import_module('b')\n") == 2
    assert count("import os\nos.getcwd()\n") == 0


def test_the_trace_counts_lines_of_functions_while_it_is_on(tmp_path):
    recorder = load_script("trace_step").Recorder(tmp_path, tmp_path / "images")
    for name in ("early", "late", "never"):
        (tmp_path / f"{name}.py").write_text(f"x = 1\nclass A:\n    y = 2\ndef {name}():\n    return x\n")
    spaces: dict[str, dict] = {name: {} for name in ("early", "late", "never")}
    old = sys.gettrace()
    sys.settrace(recorder.trace)
    try:
        for name, space in spaces.items():
            exec(compile((tmp_path / f"{name}.py").read_text(), str(tmp_path / f"{name}.py"), "exec"), space)
        spaces["early"]["early"]()
        recorder.begin()
        spaces["late"]["late"]()
    finally:
        sys.settrace(old)
    assert list(recorder.files) == ["late.py"]


def test_wrong_trees_are_refused(tmp_path):
    command = [sys.executable, str(SCRIPTS / "house.py"), "--tree", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "expected a checkout" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("path", EXECUTABLE, ids=lambda path: path.relative_to(SCRIPTS).as_posix())
def test_every_script_answers_help(path):
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    done = subprocess.run([sys.executable, str(path), "--help"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout and f"scripts/{path.relative_to(SCRIPTS).as_posix()}" in done.stdout


def test_python_scripts_have_their_ending():
    """So that ruff and mypy see them; a script is executable and says by whom, a module of others is not."""
    for path in SCRIPTS.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            first = path.read_text(encoding="utf-8").partition("\n")[0]
            assert ("python" in first) == (path in EXECUTABLE), path
            assert path.suffix in (".py", ".json") or "bash" in first, path  # JSON: figures to compare with


def test_the_files_that_begin_the_tests_are_there():
    assert [name for name in LONGEST if not (SCRIPTS.parent / "tests" / name).is_file()] == []
