"""The benchmark of COCO-sized tables runs, on a small file."""

import re
import subprocess
import sys

import pytest

from tests.scripts import SCRIPTS

SCRIPT = SCRIPTS / "benchmark_table.py"


@pytest.mark.slow
def test_a_small_table():
    command = [sys.executable, SCRIPT, "--images", "300", "--boxes", "2000", "--rounds", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("300 images, 2,000 boxes, a file of ")
    figures = dict(re.findall(r"^\| ([a-z, A-Z]+) \| ([\d.e+-]+) \|", done.stdout, re.MULTILINE))
    assert list(figures) == ["load, s", "load, CPU s", "peak memory, GB", "table, MB", "plan, s"]
    # 300 images and 2,000 boxes as arrays: 8 + 8 bytes an image, 32 + 4 + 1 + 1 + 8 a box, beside paths and ids.
    assert 0.0968 < float(figures["table, MB"]) < 0.2
    assert subprocess.run([sys.executable, SCRIPT, "--images", "0"], capture_output=True).returncode == 2
