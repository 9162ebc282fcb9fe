"""Focal loss and cross-entropy beside torchvision's, by scripts/reproduce/torchvision_focal.py on digits."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.scripts import SCRIPTS

pytest.importorskip("torch")
if importlib.util.find_spec("torchvision") is None:
    pytest.skip("needs torchvision", allow_module_level=True)

DIGITS = (
    "data={train: {format: digits, images: 16, size: 64}, validation: {format: digits, images: 4, size: 64}, "
    "resize: {short: 64, long: 64, multiple: 64}}"
)


@pytest.mark.slow
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
        assert there[1] == pytest.approx(here[1], rel=1e-2) != there[0]
        assert len(done.stdout.splitlines()) == 3
    assert rows[0]["retina"]["losses"][0] > 2 * rows[1]["retina"]["losses"][0]
