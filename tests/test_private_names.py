"""Private names of other packages stand in `retina.private_names` alone, each with its reason; and they still exist."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "retina"
HOME = PACKAGE / "private_names.py"
# Underscores that documentation makes public: named tuples' methods, and the way to end a process at once.
PUBLIC = {"_replace", "_asdict", "_fields", "_exit"}
PRIVATE_PACKAGES = ("keras.src", "tensorflow.python", "tensorflow.core", "jax._src", "torch._")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def private_names(source: str) -> list[str]:
    """Return the uses of private names that the source does not define itself, with their lines."""
    tree = ast.parse(source)
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    defined |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    uses = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in defined:
            uses.append(f"{node.lineno}: {node.attr}")
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        uses += [f"{node.lineno}: {module}" for module in modules if f"{module}.".startswith(PRIVATE_PACKAGES)]
    return uses


def test_the_search_can_find_some():
    source = "from keras.src.backend import x\nimport jax._src.y\nlayers = model._flatten_layers()\nself._kept = 1\n"
    assert private_names(source + "self._kept; point._replace(x=1); os._exit(1)\n") == [
        "1: keras.src.backend", "2: jax._src.y", "3: _flatten_layers",
    ]  # fmt: skip
    assert len(private_names(HOME.read_text(encoding="utf-8"))) >= 5


@pytest.mark.parametrize("path", sorted(set(PACKAGE.rglob("*.py")) - {HOME}), ids=lambda path: path.stem)
def test_no_private_name_stands_elsewhere(path):
    assert private_names(path.read_text(encoding="utf-8")) == []


def test_every_private_name_has_its_reason():
    """It says what the public names lack, or which other function does."""
    functions = [node for node in ast.parse(HOME.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    reasons = {node.name: ast.get_docstring(node) or "" for node in functions}
    assert [
        name for name, reason in reasons.items() if "public" not in reason and "see `all_layers`" not in reason
    ] == []
    assert len(reasons) >= 5
