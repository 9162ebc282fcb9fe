"""Holds the house to `retina/ARCHITECTURE.md`: who may import whom and when, and how large things may be."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest

from retina import api

PACKAGE = Path(__file__).resolve().parents[1] / "retina"
MAX_STATEMENT_LINES = 80
MAX_FILES = 16
MAX_LATE = 12

# From the ground up: a room may import rooms of lower floors only, and itself.
FLOORS = (
    ("errors",),
    ("files", "output", "startup", "palette", "private_names"),
    ("",),  # the package itself: its version, and names that are imported when asked for
    ("config",),
    ("ops",),
    ("losses",),
    ("weights",),
    ("models", "data"),
    ("evaluation",),
    ("drawing",),
    ("inference",),
    ("runs",),
    ("doctor",),
    ("training",),
    ("export", "ablation", "setup"),
    ("pages",),
    ("api", "guide"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
WINGS = ("export", "ablation", "setup", "pages", "commands")

# Evaluation turns tables into figures and knows neither models nor formats.
EVALUATION_ROOMS = {"", "errors", "files", "palette", "config"}
EVALUATION_MAY = {"retina.data.dataset", "retina.data.detections", "retina.data.ground_truth"}

NO_TENSORFLOW = {"ops", "losses", "models", "weights"}

# File names that may occur more than once: a command and a format are named after what they serve.
FREE_NAMES = ("retina.commands.", "retina.data.formats.")

# Every import of our own that waits inside a function, with its reason.
LATE: dict[tuple[str, str], str] = {
    ("retina.export", "retina.export.exporting"): "calling the package brings in Keras, importing it must not",
    ("retina.models.detector", "retina.export.exporting"): "a Keras model is exported by a method of its own",
    (
        "retina.models.detector",
        "retina.training.fine_tuning",
    ): "a Keras model of a preset is made by its class",
}
# Late imports that reach up: methods that Keras' users call on a model. They close circles that nobody walks.
REACHING_UP = {
    ("retina.models.detector", "retina.export.exporting"),
    ("retina.models.detector", "retina.training.fine_tuning"),
}


class Import(NamedTuple):
    """`module` imports `target`; `top` unless inside a function, where it costs nothing until it is called."""

    module: str
    target: str
    top: bool
    line: int = 0


def room(module: str) -> str:
    """The room of a module: `retina.data.plan` is in `data`, `retina` itself in the room without a name."""
    return module.partition(".")[2].partition(".")[0]


def complaint(module: str, target: str) -> str | None:
    """Why the module of retina may not import the other; None if it may."""
    here, there = room(module), room(target)
    unknown = [name for name in (here, there) if name not in FLOOR]
    if unknown:
        return f"{module} -> {target}: room '{unknown[0]}' has no floor yet; give it a place in FLOORS"
    if here == there:
        return None
    if here == "evaluation" and there not in EVALUATION_ROOMS:
        return None if target in EVALUATION_MAY else f"{module} -> {target}: evaluation knows only data's tables"
    if FLOOR[there] < FLOOR[here]:
        return None
    return f"{module} -> {target}: '{here}' may import lower floors only, and '{there}' is not below it"


def imports_of(source: str, module: str, modules: set[str], package: bool = False) -> list[Import]:
    """Every import of a module's source; `from retina.data import plan` names retina.data.plan if that is a module.

    What stands under `if TYPE_CHECKING:` is an import too: a circle of names is a circle for the reader.
    """
    imports: list[Import] = []

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.Import):
            imports.extend(Import(module, alias.name, top, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if package and node.level == 1 else package - node.level]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                imports.append(Import(module, whole if whole in modules else base, top, node.lineno))
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, top and not inside)

    visit(ast.parse(source), True)
    return imports


def files(package: Path = PACKAGE) -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def all_imports(package: Path = PACKAGE) -> list[Import]:
    modules = files(package)
    return [
        item
        for name, path in modules.items()
        for item in imports_of(path.read_text(encoding="utf-8"), name, set(modules), path.name == "__init__.py")
    ]


def is_of(target: str, package: str) -> bool:
    return target == package or target.startswith(f"{package}.")


def late_imports(imports: list[Import]) -> list[Import]:
    """Imports of our own that wait inside a function."""
    return [item for item in imports if not item.top and is_of(item.target, "retina")]


def house_imports() -> list[Import]:
    """Every import of the package but the late ones that may reach up."""
    return [item for item in all_imports() if item.top or (item.module, item.target) not in REACHING_UP]


def import_graph(imports: list[Import]) -> dict[str, set[str]]:
    """Modules of ours that each module imports, wherever the import stands."""
    edges: dict[str, set[str]] = defaultdict(set)
    for item in imports:
        # A package's `__init__` and what is in it count as one another's neighbours only where they say so.
        if is_of(item.target, "retina") and item.target not in ("retina", item.module):
            edges[item.module].add(item.target)
    return edges


def files_of_folders(package: Path = PACKAGE) -> dict[str, int]:
    """Number of Python files in each folder, `__init__.py` left out."""
    counts: dict[str, int] = defaultdict(int)
    for path in files(package).values():
        counts[path.parent.relative_to(package).as_posix()] += path.name != "__init__.py"
    return dict(counts)


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The sets of modules that import one another in a circle: strongly connected components (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for neighbour in sorted(edges.get(node, ())):
            if neighbour not in index:
                visit(neighbour)
                low[node] = min(low[node], low[neighbour])
            elif neighbour in stack:
                low[node] = min(low[node], index[neighbour])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                components.append(sorted(component))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return components


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body, its docstring left out."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def long_functions(source: str) -> dict[str, int]:
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {node.name: body_lines(node) for node in functions if body_lines(node) > MAX_STATEMENT_LINES}


# ------------------------------------------------------------------------------- the rules themselves can say no


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("retina.models.decode", "retina.data.plan"),
        ("retina.data.plan", "retina.models.decode"),
        ("retina.weights.torchvision", "retina.models.resnet"),
        ("retina.evaluation.coco", "retina.data.formats.coco"),
        ("retina.evaluation.coco", "retina.data"),
        ("retina.evaluation.coco", "retina.models.decode"),
        ("retina.data.dataset", "retina.evaluation.coco"),
        ("retina.ops.boxes", "retina.losses.box"),
        ("retina.config", "retina.ops.boxes"),
        ("retina.errors", "retina.config"),
        ("retina.inference", "retina.training.train"),
        ("retina.inference", "retina.doctor"),
        ("retina.drawing.pictures", "retina.inference"),
        ("retina.runs.loading", "retina.training.train"),
        ("retina.training.train", "retina.pages.run_page"),
        ("retina.training.train", "retina.cli"),
        ("retina.export.exporting", "retina.ablation.plan"),
        ("retina.ablation.outputs", "retina.pages.study"),
        ("retina.setup.starting", "retina.ablation.plan"),
        ("retina.training.train", "retina.setup.starting"),
        ("retina.pages.study", "retina.api"),
        ("retina.attic.old", "retina.config"),
        ("retina.cli", "retina.attic.old"),
    ],
)
def test_forbidden(module: str, target: str) -> None:
    assert complaint(module, target) is not None


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("retina.cli", "retina.training.train"),
        ("retina.cli", "retina.errors"),
        ("retina.api", "retina.pages.run_page"),
        ("retina.training.train", "retina.inference"),
        ("retina.training.train", "retina.drawing.evaluation_files"),
        ("retina.drawing.evaluation_files", "retina.drawing.pictures"),
        ("retina.drawing.evaluation_files", "retina.evaluation.tables"),
        ("retina.pages.run_page", "retina.runs.loading"),
        ("retina.pages.study", "retina.ablation.plan"),
        ("retina.models.objective", "retina.losses.focal"),
        ("retina.models.backbones", "retina.weights.sources"),
        ("retina.models.decode", "retina.models.heads"),
        ("retina.evaluation.coco", "retina.data.detections"),
        ("retina.runs.environment", "retina"),
    ],
)
def test_allowed(module: str, target: str) -> None:
    assert complaint(module, target) is None


def test_imports_are_listed_wherever_they_stand() -> None:
    modules = {"retina", "retina.data", "retina.data.plan", "retina.errors", "retina.x", "retina.x.y"}
    source = (
        "import tensorflow as tf\n"
        "from retina.data import plan\n"
        "from retina.errors import RetinaError\n"
        "from . import y\n"
        "from .. import errors\n"
        "if TYPE_CHECKING:\n    import retina.data\n"
        "class A:\n    def f(self):\n        import jax, torch\n"
    )
    assert [item[:3] for item in imports_of(source, "retina.x.z", modules)] == [
        ("retina.x.z", "tensorflow", True),
        ("retina.x.z", "retina.data.plan", True),
        ("retina.x.z", "retina.errors", True),
        ("retina.x.z", "retina.x.y", True),
        ("retina.x.z", "retina.errors", True),
        ("retina.x.z", "retina.data", True),
        ("retina.x.z", "jax", False),
        ("retina.x.z", "torch", False),
    ]
    from_package = imports_of("from . import y\n", "retina.x", modules, package=True)
    assert [item[:3] for item in from_package] == [("retina.x", "retina.x.y", True)]
    assert imports_of("", "retina.x", modules) == []


def test_circles_are_noticed() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"a"}}) == []


def test_long_functions_are_noticed() -> None:
    body = "".join(f"    x = {line}\n" for line in range(MAX_STATEMENT_LINES))
    assert long_functions(f'def fits():\n    """Text.\n\n{"    more" * 9}\n    """\n{body}') == {}
    assert long_functions(f"def long():\n{body}    return x\n") == {"long": MAX_STATEMENT_LINES + 1}


# ---------------------------------------------------------------------------------------------------- the house


def test_the_house_is_read() -> None:
    modules = files()
    assert {"retina", "retina.config", "retina.errors", "retina.ops.boxes", "retina.data.dataset"} <= set(modules)
    targets = {(item.module, item.target) for item in all_imports()}
    assert ("retina.config.reading", "retina.errors") in targets


def test_rooms_import_only_lower_floors() -> None:
    complaints = {complaint(item.module, item.target) for item in house_imports() if is_of(item.target, "retina")}
    assert sorted(complaints - {None}) == []


def test_nothing_is_imported_in_a_circle() -> None:
    assert circles(import_graph(house_imports())) == []


def test_late_imports_of_our_own_have_their_reasons() -> None:
    late = late_imports(all_imports())
    statements = {(item.module, item.line) for item in late}
    assert {(item.module, item.target) for item in late} == set(LATE)
    assert len(statements) <= MAX_LATE
    assert all(reason for reason in LATE.values())


def test_verbs_imported_when_asked_for_stand_on_lower_floors() -> None:
    """`retina.api` names their homes in a table, which no import statement shows."""
    modules = files()
    homes = [home.partition(":")[0] for home in api._HEAVY.values()]
    assert [home for home in homes if home not in modules or complaint("retina.api", home) is not None] == []


def test_ops_losses_models_and_weights_know_no_tensorflow() -> None:
    wrong = [item for item in all_imports() if is_of(item.target, "tensorflow") and room(item.module) in NO_TENSORFLOW]
    assert wrong == []


def test_tensorflow_waits_for_the_function_that_needs_it() -> None:
    """Another backend may be in use, and importing it takes seconds. Names for type checkers cost nothing."""
    wrong = []
    for name, path in files().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Import) and any(is_of(alias.name, "tensorflow") for alias in node.names):
                wrong.append(name)
            if isinstance(node, ast.ImportFrom) and is_of(node.module or "", "tensorflow"):
                wrong.append(name)
    assert wrong == []


def test_functions_are_short() -> None:
    lengths = {name: long_functions(path.read_text(encoding="utf-8")) for name, path in files().items()}
    assert {name: functions for name, functions in lengths.items() if functions} == {}


def test_folders_can_be_taken_in_at_a_glance() -> None:
    assert {
        folder: count for folder, count in files_of_folders().items() if count > MAX_FILES and folder != "commands"
    } == {}


def test_no_file_name_stands_twice() -> None:
    """Within ground and core, and within each wing; a command and a format are named after what they serve."""
    homes: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, path in files().items():
        if path.name != "__init__.py" and not name.startswith(FREE_NAMES):
            wing = room(name) if room(name) in WINGS else "core"
            homes[wing, path.name].append(name)
    assert {key: names for key, names in homes.items() if len(names) > 1} == {}
