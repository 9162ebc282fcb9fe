"""An environment without TensorFlow: made by scripts/setup.py, it trains and evaluates the digits on JAX alike."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.quick_jax import QUICK_JAX
from tests.scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
SHORT = [
    "schedule.steps=30", "schedule.warmup_steps=5", "run.evaluate_every=30", "run.report=false", "run.batch_size=8",
    "data.train.images=80", "data.validation.images=16", "data.resize={short: 64, long: 64, multiple: 32}",
]  # fmt: skip


def test_the_guide_lists_what_setup_installs():
    setup = load_script("setup")
    guide = (ROOT / "retina" / "guide" / "gpu.md").read_text(encoding="utf-8")
    listed = re.search(r"pip install (\"jax.*?) -c constraints", guide, re.DOTALL)
    assert listed is not None
    documented = {re.split(r"[^\w.-]", word)[0] for word in re.findall(r"[^\s\"\\\\]+", listed[1])}
    needed = subprocess.run(
        [sys.executable, "-c", setup.REQUIREMENTS, str(ROOT / "pyproject.toml"), "jax"], capture_output=True, check=True
    )
    names = {re.split(r"[^\w.-]", text)[0] for text in json.loads(needed.stdout)}
    assert documented == names - set(setup.WITHOUT["tensorflow"])


@pytest.mark.slow
def test_the_digits_train_alike_without_tensorflow(tmp_path):
    venv = tmp_path / "venv"
    made = subprocess.run(
        [sys.executable, "scripts/setup.py", "--without", "tensorflow", "--extras", "jax", "--environment", str(venv)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if made.returncode and "pip install" in made.stderr:
        pytest.skip(f"packages can't be fetched: {made.stderr.strip().splitlines()[-1]}")
    assert made.returncode == 0, made.stderr
    figures, detected = {}, {}
    for name, python in {"with": sys.executable, "without": str(venv / "bin" / "python")}.items():
        run = tmp_path / name
        environment = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
        environment |= QUICK_JAX

        def retina(*words, python=python, environment=environment):
            command = [python, "-m", "retina", *map(str, words)]
            return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

        trained = retina("train", *SHORT, "--run-dir", run)
        assert trained.returncode == 0, trained.stderr
        said = "TensorFlow is not installed" in (run / "log.txt").read_text(encoding="utf-8")
        assert said == (name == "without")
        figures[name] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        evaluated = retina("evaluate", run, "--json", "--replicates", "0", "data.test.images=16", "--split", "test")
        assert evaluated.returncode == 0, evaluated.stderr
        detected[name] = json.loads(evaluated.stdout)["metrics"]
    losses = {name: [line["loss"] for line in lines if "loss" in line] for name, lines in figures.items()}
    assert losses["without"] == pytest.approx(losses["with"], rel=1e-3)
    assert detected["without"] == pytest.approx(detected["with"], abs=0.01)
    refused = retina("export", run)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "pip install tensorflow" in refused.stderr
