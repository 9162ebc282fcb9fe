"""Holds the house to DESIGN section 3: who may import whom, who may import TensorFlow, and how long a module may be."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "retina"
MAX_LINES = 400

# From the ground up: a room may import rooms of lower floors only, and itself.
FLOORS = (
    ("errors",),
    ("files", "startup", "palette"),
    ("",),  # the package itself: its version, and names that are imported when asked for
    ("config", "pages"),
    ("ops",),
    ("losses",),
    ("data", "models", "evaluation"),
    ("inference", "doctor", "scoring"),
    ("training",),
    ("ablation", "export", "report", "guide"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Evaluation turns tables into figures and knows neither models nor sources: of its own floor it sees these only.
EVALUATION_MAY = {"retina.data.dataset", "retina.data.detections", "retina.data.scoring"}

# A run writes pictures of its predictions while it trains, so these three of the report lie below training in truth:
# training may import them, and they may import only what training's ground floor may.
PICTURES = {"retina.report.pictures", "retina.report.plots", "retina.report.evaluation"}

NO_TENSORFLOW = {"ops", "losses", "models"}
TENSORFLOW_AT_THE_TOP = {"data", "export"}
# Imported by the TensorFlow step only.
TENSORFLOW_STEP = "retina.training.fused_batch_norm"


class Import(NamedTuple):
    """`module` imports `target`; `top` unless inside a function, where it costs nothing until it is called."""

    module: str
    target: str
    top: bool


def room(module: str) -> str:
    """The room of a module: `retina.data.coco` is in `data`, `retina` itself in the room without a name."""
    return module.partition(".")[2].partition(".")[0]


def complaint(module: str, target: str) -> str | None:
    """Why the module of retina may not import the other one; None if it may."""
    here, there = room(module), room(target)
    unknown = [name for name in (here, there) if name not in FLOOR]
    if unknown:
        return f"{module} -> {target}: room '{unknown[0]}' has no floor yet; give it one in FLOORS"
    if here == there and module not in PICTURES:
        return None
    if here == "evaluation" and there == "data":
        return None if target in EVALUATION_MAY else f"{module} -> {target}: evaluation knows only data's table"
    if target in PICTURES and (module in PICTURES or here == "training"):
        return None
    floor = FLOOR["inference"] if module in PICTURES else FLOOR[here]
    if FLOOR[there] < floor:
        return None
    return f"{module} -> {target}: '{here}' may import lower floors only, and '{there}' is not below it"


def imports_of(source: str, module: str, modules: set[str], package: bool = False) -> list[Import]:
    """Every import of a module's source; `from retina.data import plan` names retina.data.plan if that is a module."""
    found: list[Import] = []

    def visit(node: ast.AST, top: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(module, alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if package and node.level == 1 else package - node.level]
                base = ".".join([*parents, *([base] if base else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.append(Import(module, whole if whole in modules else base, top))
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, top and not inside)

    visit(ast.parse(source), True)
    return found


def files() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    out = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return out


def all_imports() -> list[Import]:
    modules = files()
    return [
        found
        for name, path in modules.items()
        for found in imports_of(path.read_text(encoding="utf-8"), name, set(modules), path.name == "__init__.py")
    ]


def may_import_tensorflow(module: str) -> bool:
    return room(module) in TENSORFLOW_AT_THE_TOP or module == TENSORFLOW_STEP


def is_of(target: str, package: str) -> bool:
    return target == package or target.startswith(f"{package}.")


# ------------------------------------------------------------------------------- the rules themselves can say no


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("retina.models.decode", "retina.data.plan"),
        ("retina.data.plan", "retina.models.decode"),
        ("retina.evaluation.coco", "retina.data.coco"),
        ("retina.evaluation.coco", "retina.data"),
        ("retina.evaluation.coco", "retina.models.decode"),
        ("retina.data.dataset", "retina.evaluation.coco"),
        ("retina.ops.boxes", "retina.losses.box"),
        ("retina.config", "retina.ops.boxes"),
        ("retina.errors", "retina.config"),
        ("retina.inference", "retina.training.train"),
        ("retina.inference", "retina.doctor"),
        ("retina.training.train", "retina.report.page"),
        ("retina.training.train", "retina.cli"),
        ("retina.inference", "retina.report.pictures"),
        ("retina.report.pictures", "retina.report.page"),
        ("retina.report.evaluation", "retina.training.loading"),
        ("retina.report.evaluation", "retina.inference"),
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
        ("retina.training.train", "retina.inference"),
        ("retina.training.train", "retina.report.evaluation"),
        ("retina.report.evaluation", "retina.report.pictures"),
        ("retina.report.evaluation", "retina.evaluation.tables"),
        ("retina.report.page", "retina.training.loading"),
        ("retina.models.objective", "retina.losses.focal"),
        ("retina.models.decode", "retina.models.heads"),
        ("retina.evaluation.coco", "retina.data.detections"),
        ("retina.training.environment", "retina"),
    ],
)
def test_allowed(module: str, target: str) -> None:
    assert complaint(module, target) is None


def test_imports_are_found_wherever_they_stand() -> None:
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
    assert imports_of(source, "retina.x.z", modules) == [
        ("retina.x.z", "tensorflow", True),
        ("retina.x.z", "retina.data.plan", True),
        ("retina.x.z", "retina.errors", True),
        ("retina.x.z", "retina.x.y", True),
        ("retina.x.z", "retina.errors", True),
        ("retina.x.z", "retina.data", True),
        ("retina.x.z", "jax", False),
        ("retina.x.z", "torch", False),
    ]
    assert imports_of("from . import y\n", "retina.x", modules, package=True) == [("retina.x", "retina.x.y", True)]
    assert imports_of("", "retina.x", modules) == []


# ---------------------------------------------------------------------------------------------------- the house


def test_the_house_is_read() -> None:
    modules = files()
    assert {"retina", "retina.config", "retina.errors", "retina.ops.boxes", "retina.data.dataset"} <= set(modules)
    targets = {(found.module, found.target) for found in all_imports()}
    assert ("retina.config.reading", "retina.errors") in targets


def test_rooms_import_only_lower_floors() -> None:
    complaints = {complaint(found.module, found.target) for found in all_imports() if is_of(found.target, "retina")}
    assert sorted(complaints - {None}) == []


def test_ops_losses_and_models_know_no_tensorflow() -> None:
    tensorflow = [found for found in all_imports() if is_of(found.target, "tensorflow")]
    wrong = [found for found in tensorflow if room(found.module) in NO_TENSORFLOW]
    assert wrong == []


def test_only_data_and_export_import_tensorflow_at_the_top() -> None:
    """Everywhere else it waits for the function that needs it: another backend may be in use, and it takes seconds."""
    wrong = [
        found
        for found in all_imports()
        if found.top and is_of(found.target, "tensorflow") and not may_import_tensorflow(found.module)
    ]
    assert wrong == []


def test_modules_are_short() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files().items()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}
