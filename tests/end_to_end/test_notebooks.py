"""The notebooks run from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def test_quickstart(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOKS / "quickstart.ipynb", as_version=4)
    parameters = next(cell for cell in notebook.cells if cell.source.startswith("STEPS = "))
    parameters.source = f'STEPS = 4\nRUN = "{tmp_path}/run"'
    shorten(notebook, {"data.train.images=1500": "data.train.images=48", "steps=20": "steps=2"})
    notebook.cells[3].source = notebook.cells[3].source.replace(
        "overrides=[", 'overrides=["data.validation.images=8", "data.test.images=8", "schedule.warmup_steps=1", '
    )
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3, "the ground truth, the curves and the predictions"
    assert not [
        o for c in notebook.cells for o in c.get("outputs", []) if o.get("name") == "stderr" and "rror" in o.text
    ]


def shorten(notebook: nbformat.NotebookNode, replacements: dict[str, str]) -> None:
    for old, new in replacements.items():
        cells = [cell for cell in notebook.cells if old in cell.source]
        assert cells, f"the notebook no longer has {old}"
        for cell in cells:
            cell.source = cell.source.replace(old, new)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_is_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells)
