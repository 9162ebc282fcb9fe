"""Focal loss and cross-entropy beside torchvision's, by scripts/reproduce/torchvision_focal.py on digits."""

import importlib.util
import json
import subprocess
import sys

import keras
import numpy as np
import pytest

pytest.importorskip("torch")
if importlib.util.find_spec("torchvision") is None:
    pytest.skip("needs torchvision", allow_module_level=True)

from retina.data.batches.evaluation import evaluation_batches
from retina.data.load import load_split
from retina.inference import build_detector, compile_inference
from tests.scripts import SCRIPTS, load_script

pytestmark = pytest.mark.slow

DIGITS = (
    "data={train: {format: digits, images: 16, size: 64}, validation: {format: digits, images: 4, size: 64}, "
    "resize: {short: 64, long: 64, multiple: 64}}"
)


def test_the_losses_of_the_first_steps_agree(tmp_path):
    """The first is of equal weights; the next that of equal gradients and updates, too."""
    file = tmp_path / "figures.json"
    command = [str(SCRIPTS / "reproduce/torchvision_focal.py"), DIGITS, "--steps", "2", "--json", str(file)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert [(row["gamma"], row["alpha"]) for row in rows] == [(0.0, 0.75), (2.0, 0.25)]
    for row in rows:
        here, there = row["retina"]["losses"], row["torchvision"]["losses"]
        assert there[0] == pytest.approx(here[0], rel=1e-4)
        # Maps of one cell leave nothing but rounding to the gradient of a group normalisation, and Adam scales it up.
        assert there[1] == pytest.approx(here[1], rel=2e-3) != there[0]
    assert len(done.stdout.splitlines()) == 3
    assert rows[0]["retina"]["losses"][0] > 2 * rows[1]["retina"]["losses"][0]


def test_both_detect_the_same_before_training():
    script = load_script("reproduce/torchvision_focal")
    detected = [DIGITS, "data.validation.size=96", "model.head.init_std=0.05", "inference.score_threshold=0.0"]
    config = script.settings(None, detected, gamma=2.0, alpha=0.25, steps=2, seed=1)
    table = load_split(config.data, "validation")
    (batch,) = (
        {name: np.asarray(x) for name, x in b.items()} for b in evaluation_batches(table, config.data, batch_size=4)
    )
    assert (batch["scale"] < 0.7).all()
    there = script.inference(config, script.carried(config, table.class_names)[0])(batch)
    keras.utils.set_random_seed(1)
    here = compile_inference(build_detector(config, table.class_names))(batch)
    assert here["valid"].all() and there["valid"].all()
    np.testing.assert_allclose(there["scores"], here["scores"], rtol=0, atol=1e-5)
    same = (there["labels"] == here["labels"]) & (np.abs(there["boxes"] - here["boxes"]).max(axis=-1) < 0.01)
    assert same.mean() > 0.95  # scores that differ by rounding change places


def test_other_first_losses_fail(monkeypatch, capsys):
    script = load_script("reproduce/torchvision_focal")
    monkeypatch.setattr(sys, "argv", ["torchvision_focal.py", DIGITS, "--gamma", "2", "--alpha", "0.25"])
    monkeypatch.setattr(script, "trained_here", lambda config: script.Trained({"AP": 0.3, "AP50": 0.6}, [2.0, 1.0]))
    monkeypatch.setattr(script, "trained_there", lambda config: script.Trained({"AP": 0.2, "AP50": 0.5}, [2.001, 9.0]))
    script.main()
    figures = ["2", "0.25", "0.3000", "0.2000", "0.6000", "0.5000", "2.0000", "2.0010"]
    assert capsys.readouterr().out.splitlines()[1].split() == figures
    monkeypatch.setattr(script, "trained_there", lambda config: script.Trained({"AP": 0.2, "AP50": 0.5}, [2.003, 1.0]))
    with pytest.raises(SystemExit, match="the first losses differ"):
        script.main()
