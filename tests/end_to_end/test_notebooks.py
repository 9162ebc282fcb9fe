"""The notebooks run from top to bottom."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

import retina
from retina import losses

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_import_no_private_module(path: Path) -> None:
    """`retina` and its rooms are public, and what these hold."""
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    names = re.findall(r"^\s*(?:from|import) (retina[\w.]*)", code, re.MULTILINE)
    assert names and [name for name in names if name.count(".") and name.split(".")[1] not in retina._ROOMS] == []


def test_quickstart(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOKS / "quickstart.ipynb", as_version=4)
    parameters = next(cell for cell in notebook.cells if cell.source.startswith("STEPS = "))
    parameters.source = f'STEPS = 4\nRUN = "{tmp_path}/run"'
    shorten(notebook, {"data.train.images=1500": "data.train.images=48", "steps=20": "steps=2"})
    notebook.cells[3].source = notebook.cells[3].source.replace(
        "overrides=[",
        'overrides=["data.validation.images=8", "data.test.images=8", "schedule.warmup_steps=1", '
        '"model.backbone=resnet10", ',
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


# Appended to losses.ipynb: prints what its cells have computed.
PROBE = """
import json

print(json.dumps({
    "logistic": [part.tolist() for part in differentiate(lambda x: losses.logistic(x, targets=1.0), np.array([0.0]))],
    "shares": shares,
    "offsets": offsets.tolist(),
    "slopes": {name: differentiate(curve, offsets)[1].tolist() for name, curve in curves.items()},
    "hinges": hinges.tolist(),
    "features": features.tolist(),
    "classes": classes.tolist(),
    "centers": centers.tolist(),
    "moved": moved.tolist(),
    "embeddings": embeddings.tolist(),
    "batch_hard": value.tolist(),
    "triplet": of_negative(np.array([[0.0, 0.0], [0.5, 0.0], [1.0, 1.0], [0.0, 1.5]])).numpy().tolist(),
}))
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    """losses.ipynb with its outputs, and a last cell that prints what it computed."""
    notebook = nbformat.read(NOTEBOOKS / "losses.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(PROBE))
    folder = str(tmp_path_factory.mktemp("losses"))
    # The limit is of each cell; the whole takes 10 to 15 s.
    return NotebookClient(notebook, timeout=120, resources={"metadata": {"path": folder}}).execute()


@pytest.fixture(scope="module")
def computed(executed: nbformat.NotebookNode) -> dict:
    return json.loads(executed.cells[-1].outputs[0].text)


def test_losses_draws_without_complaint(executed: nbformat.NotebookNode) -> None:
    outputs = [output for cell in executed.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 17


def test_losses_prints_the_paper_s_ratios_and_the_worked_example(executed: nbformat.NotebookNode) -> None:
    text = "".join(o.get("text", "") for cell in executed.cells[:-1] for o in cell.get("outputs", []))
    # arXiv:1708.02002, section 3.2: at γ = 2, 100 times lower at p_t = 0.9 and 1000 times at 0.968 (976.6).
    assert "p_t = 0.5: cross-entropy is 4 ×" in text
    assert "p_t = 0.9: cross-entropy is 100 ×" in text and "p_t = 0.968: cross-entropy is 977 ×" in text
    assert "losses 2.9 0.0 12.9 mean 5.27" in text


def test_losses_computes_what_numpy_does(computed: dict) -> None:
    assert computed["logistic"] == [[pytest.approx(np.log(2))], [pytest.approx(-0.5)]]
    np.testing.assert_allclose(computed["hinges"], [2.9, 0, 12.9], rtol=1e-12)
    # Distances to the anchor (0, 0): the positive is 1 away, the margin 1.
    np.testing.assert_allclose(computed["triplet"], [2, 1.75, 0, 0], rtol=1e-12)
    features, classes, centers = (np.array(computed[name]) for name in ("features", "classes", "centers"))
    moved = [center + 0.5 * (features[classes == k] - center).sum(0) / (1 + 5) for k, center in enumerate(centers)]
    np.testing.assert_allclose(computed["moved"], moved, rtol=1e-12)
    points = np.array(computed["embeddings"])
    squared = ((points[:, None] - points) ** 2).sum(-1)
    same = classes[:, None] == classes
    hard = np.where(same, squared, 0).max(1) - np.where(same, np.inf, squared).min(1) + 1
    np.testing.assert_allclose(computed["batch_hard"], np.maximum(hard, 0), rtol=1e-9, atol=1e-12)
    assert 0 < np.count_nonzero(hard > 0) < len(hard), "the picture shows active and inactive triplets"


def test_losses_shows_who_carries_the_loss(computed: dict) -> None:
    random = np.random.default_rng(0)
    positive, negative = random.normal(0, 2, 100), random.normal(-5, 1.5, 100_000)
    wrong = np.concatenate([negative, -positive])
    easy, is_negative = wrong < -np.log(9), np.arange(len(wrong)) < len(negative)
    for gamma, shares in computed["shares"].items():
        loss = np.log1p(np.exp(wrong)) / (1 + np.exp(-wrong)) ** float(gamma)
        groups = (easy & is_negative, ~easy & is_negative, easy & ~is_negative, ~easy & ~is_negative)
        np.testing.assert_allclose(shares, [loss[group].sum() / loss.sum() for group in groups], rtol=1e-6)
    assert list(computed["shares"]) == ["0.0", "0.5", "1.0", "2.0", "5.0"]
    assert computed["shares"]["0.0"][0] > 0.6 and computed["shares"]["2.0"][0] < 0.03


def test_losses_shows_where_the_gradient_of_iou_vanishes(computed: dict) -> None:
    distance = np.abs(computed["offsets"])
    slopes = {name: np.abs(slope) for name, slope in computed["slopes"].items()}
    apart, nested = distance > 60, distance < 20
    np.testing.assert_array_equal(slopes["1 - IoU"] == 0, apart | nested)
    assert (slopes["GIoU"][apart] > 1e-3).all() and slopes["GIoU"][nested].max() < 1e-12
    assert (slopes["DIoU"] > 0).all()
    np.testing.assert_allclose(slopes["CIoU"], slopes["DIoU"], rtol=1e-9)
    # Apart, DIoU is 1 + d² / ((d + 60)² + 60²): the hull is d + 20 + 40 wide and 60 high.
    d = distance[apart]
    expected = (2 * d * ((d + 60) ** 2 + 60**2) - d**2 * 2 * (d + 60)) / ((d + 60) ** 2 + 60**2) ** 2
    np.testing.assert_allclose(slopes["DIoU"][apart], expected, rtol=1e-9)


LOSSES = [name for name in losses.__all__ if name.islower() and name != "updated_centers"]


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_formula_a_picture_and_two_sentences(name: str) -> None:
    cells = nbformat.read(NOTEBOOKS / "losses.ipynb", as_version=4).cells
    texts = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    section = re.search(rf"### `{name}`\n\n(.+?)\n\n(.+?)(\n|$)", texts)
    assert section, f"no section, formula or advice for {name}"
    formula, advice = section[1], section[2]
    assert formula.startswith("$$L") and formula.endswith("$$")
    sentences = re.findall(r"\S.*?[.!?](?= |$)", advice)
    assert len(sentences) == 2 and sentences[0].startswith("Use it") and sentences[1].startswith("Don't")
    assert any(re.search(rf"losses\.{name}\b", cell.source) for cell in cells if cell.cell_type == "code")


def shorten(notebook: nbformat.NotebookNode, replacements: dict[str, str]) -> None:
    for old, new in replacements.items():
        cells = [cell for cell in notebook.cells if old in cell.source]
        assert cells, f"the notebook no longer has {old}"
        for cell in cells:
            cell.source = cell.source.replace(old, new)


SHORTER = {
    "own_data": ({"STEPS = 400": "STEPS = 2", '"train": 120, "val": 24': '"train": 24, "val": 8'}, 3),
    "keras_training": ({"EPOCHS = 12": "EPOCHS = 1", "made(96, seed=0)": "made(16, seed=0)"}, 3),
    "export": (
        {
            "STEPS = 300": "STEPS = 2",
            '"run.pictures=0"': '"run.pictures=0", "schedule.warmup_steps=1"',
            "train.images=400": "train.images=16",
            "certify_images=16": "certify_images=2",
        },
        2,
    ),
    "ablation": ({}, 2),
}
"""What each notebook is shortened by, and how many pictures it shows."""


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORTER)
def test_runs_from_top_to_bottom(name: str, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    replacements, pictures = SHORTER[name]
    shorten(notebook, replacements)
    shutil.copytree(NOTEBOOKS / "data", tmp_path / "data")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == pictures


def test_every_notebook_is_run() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {*SHORTER, "quickstart", "losses"}


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_opens_with_what_one_will_see(path: Path) -> None:
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ") and len(first.source.split()) > 15


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.name)
def test_is_stored_with_its_outputs(path: Path) -> None:
    """As `scripts/run_notebooks.py` leaves it: executed from top to bottom, without an error, small."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr" and "rror" in output.text]
    assert [output for output in outputs if "image/png" in output.get("data", {})]
    assert path.stat().st_size <= 1_500_000
