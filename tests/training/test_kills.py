"""Killed anywhere and resumed, a run ends as one that was left alone; `scripts/reproduce/kills.py` kills a real one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.threads import without_limits

ROOT = Path(__file__).parents[2]


def killed(folder: Path, seed: int, count: int | str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.kills", str(folder), str(seed), str(count)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "tensorflow"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(found: dict) -> None:
    # The run itself is what it should be: a fixed grid of lines, and a best that is neither the first nor the last.
    assert [line["step"] for line in found["lines"]] == [3, 5, 5, 6, 9, 10, 10, 12, 15, 15, 18, 20, 20]
    assert found["steps"]["step"] == 20 and found["steps"]["best_step"] == 10
    assert found["operations"] > 60
    for row in found["rows"]:
        assert row["killed"][0] and not row["killed"][2], row
        # Weights, slots, averages and the loop's state; the lines of metrics.jsonl; evaluations and pointers.
        assert row["equal"] == [True, True, True], row
    assert any(row["killed"][1] for row in found["rows"])


def test_runs_killed_at_some_file_operations_end_as_if_they_had_not_been(tmp_path):
    found = killed(tmp_path, seed=3, count=4)
    assert len(found["rows"]) == 4
    check(found)


@pytest.mark.slow
def test_runs_killed_at_every_file_operation_end_as_if_they_had_not_been(tmp_path):
    found = killed(tmp_path, seed=1, count="all")
    assert len(found["rows"]) == found["operations"]
    check(found)
    # Every kind of moment was among them.
    before = {row["before"] for row in found["rows"]}
    assert {
        "os.mkdir ",
        "os.rename /.partial.config.yaml",
        "os.rename /.partial.environment.json",
        "open /metrics.jsonl",
        "open /log.txt",
        "os.rename /checkpoints/.partial.step_4.npz",
        "os.rename /checkpoints/.partial.best",
        "os.rename /checkpoints/.partial.latest",
        "os.remove /checkpoints/step_8.npz",
        "os.rename /eval/step_5/.partial.metrics.json",
    } <= before


@pytest.mark.slow
@pytest.mark.parametrize(("augment", "cache"), [("all", "none"), ("flips", "memory")])
def test_a_real_training_under_float16_that_leaves_updates_out_ends_as_if_it_had_not_been_killed(
    tmp_path, augment, cache
):
    """With parts, moving averages and JPEG files, from disk and from memory, all augmented or flipped; the script
    compares weights, optimizer, loss scale and lines."""
    options = ["--precision", "mixed_float16", "--files", "--kills", "1", "--steps", "20", "--folder", str(tmp_path)]
    options += ["--augment", augment, "--cache", cache]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "reproduce" / "kills.py"), *options],
        env={**without_limits(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.splitlines()
    made = f"mixed_float16, JPEG files, augment {augment}, cache {cache}, 20 steps"
    assert said[0] == f"tensorflow on 1 device, {made}"
    scales = re.search(r"(\d+) with updates left out, loss scale ([\d.]+) to ([\d.]+)$", said[1])
    assert scales and int(scales[1]) >= 1 and float(scales[2]) > float(scales[3]), said[1]
    assert said[-2].endswith("weights: equal, optimizer: equal, extra: equal, metrics.jsonl: equal")
