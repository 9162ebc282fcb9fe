#!/usr/bin/env python
"""Measures of the house, of any checkout by the same rules: its size, and how it hangs together.

- files from disk to loss: the files of the package that two images pass in one training step; scripts/trace_step.py
  names them and says what counts (a minute; `--no-trace` leaves it out);
- late imports: statements inside functions that import modules of our own; imports by name, of any module, are calls of
  `importlib.import_module` and stand beside them;
- circles: sets of modules that import one another, late imports (but for the listed ones that reach up) and those for
  type checkers included;
- files a folder: Python files, `__init__.py` left out;
- statements: of Python in the package, docstrings left out; functions and classes count as one, and so do their parts;
- README words: as a reader sees them, code included, without link targets, pictures and the lines of tables.

The rules about imports are those of tests/test_layers.py, that about words is tests/manual.py's. A goal that is missed
is marked; the exit code is 0 all the same, or 1 where the training step could not be traced.

    git worktree add /path/to/before COMMIT
    scripts/house.py --tree /path/to/before
    scripts/house.py --json
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.manual import visible_words  # noqa: E402
from tests.test_layers import (  # noqa: E402
    MAX_FILES,
    MAX_LATE,
    REACHING_UP,
    all_imports,
    circles,
    files,
    files_of_folders,
    import_graph,
    late_imports,
)

MAX_TRACED, MAX_WORDS = 14, 1500


def traced_files(tree: Path) -> list[str]:
    """Files of the package that are executed from two images on the disk to their loss, in that order."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(ROOT / "scripts" / "trace_step.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"trace_step.py ended with status {done.returncode}:\n{done.stderr.strip()[-2000:]}")
    record = json.loads(done.stdout.splitlines()[-1])
    if Path(record["package"]) != tree / "retina":
        raise RuntimeError(f"trace_step.py: expected the package of {tree}, got {record['package']}")
    return record["files"]


def statements(source: str) -> int:
    """Number of statements, docstrings left out: those of modules, classes and functions, and those of attributes."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    return sum(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in nodes)


def imports_by_name(source: str) -> int:
    """Number of calls of `import_module`, of `importlib` or imported from it."""
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return sum(getattr(call, "attr", getattr(call, "id", None)) == "import_module" for call in calls)


def measure(tree: Path) -> dict[str, Any]:
    """Every measure of a checkout but the trace."""
    package = tree / "retina"
    by_module = {name: path.read_text(encoding="utf-8") for name, path in files(package).items()}
    sources = by_module.values()
    imports = all_imports(package)
    late = late_imports(imports)
    return {
        "late_imports": sorted({f"{item.module}:{item.line}" for item in late}),
        "late_names": len(late),
        "imports_by_name": {name: count for name, source in by_module.items() if (count := imports_by_name(source))},
        "circles": circles(import_graph([item for item in imports if item.top or item[:2] not in REACHING_UP])),
        "files_of_folders": dict(sorted(files_of_folders(package).items(), key=lambda pair: -pair[1])),
        "files": len(sources),
        "lines": sum(len(source.splitlines()) for source in sources),
        "statements": sum(map(statements, sources)),
        "readme_words": visible_words((tree / "README.md").read_text(encoding="utf-8")),
    }


def goal(value: int, most: int) -> str:
    return f"{value} (goal: at most {most}{'' if value <= most else ', MISSED'})"


def show(measures: dict[str, Any]) -> str:
    traced, late, folders = measures.get("traced"), measures["late_imports"], measures["files_of_folders"]
    lines = []
    if traced is not None:
        lines += [f"files from disk to loss: {goal(len(traced), MAX_TRACED)}", *(f"  {file}" for file in traced)]
    lines.append(f"late imports of our own: {goal(len(late), MAX_LATE)}, of {measures['late_names']} names")
    lines += [f"  {place}" for place in late]
    by_name = measures["imports_by_name"]
    lines += [f"imports by name: {sum(by_name.values())}", *(f"  {count:3}  {name}" for name, count in by_name.items())]
    lines.append(f"circles of imports: {goal(len(measures['circles']), 0)}")
    lines += [f"  {len(circle)} modules: {', '.join(circle)}" for circle in measures["circles"]]
    largest = max(count for folder, count in folders.items() if folder != "commands")
    lines.append(f"files in a folder: {goal(largest, MAX_FILES)}; commands/ may have more")
    lines += [f"  {count:3}  {folder}" for folder, count in folders.items()]
    lines.append(f"modules: {measures['files']}, lines: {measures['lines']:,}")
    lines.append(f"statements without docstrings: {measures['statements']:,}")
    lines.append(f"words of the README: {goal(measures['readme_words'], MAX_WORDS)}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout to measure (default: this one)")
    parser.add_argument("--no-trace", action="store_true", help="leave out the training step")
    parser.add_argument("--json", action="store_true", help="JSON on standard output instead of the list")
    options = parser.parse_args()
    tree = options.tree.resolve()
    for name in ("retina/__init__.py", "README.md"):
        if not (tree / name).is_file():
            parser.error(f"--tree: expected a checkout, {tree / name} is missing")
    measures = measure(tree)
    failure = ""
    if not options.no_trace:
        try:
            measures["traced"] = traced_files(tree)
        except RuntimeError as error:
            failure = str(error)
    print(json.dumps(measures, indent=1) if options.json else show(measures))
    if failure:
        print(failure, file=sys.stderr)
    return int(bool(failure))


if __name__ == "__main__":
    sys.exit(main())
