"""`retina ablate` as a user runs it: a real study, killed and resumed, and the paper's figure 4 of a real run."""

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from retina import config as configuration
from retina.data.load import load_split
from retina.ops.anchors import level_anchors
from tests.threads import without_limits

ROOT = Path(__file__).parents[2]
STUDY = ["--pairs", "0:0.75,2:0.25", "--seeds", "2", "--replicates", "20"]


def overlap(anchors: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[A, G] IoU, plain NumPy."""
    low, high = np.maximum(anchors[:, None, :2], boxes[:, :2]), np.minimum(anchors[:, None, 2:], boxes[:, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = (anchors[:, 2:] - anchors[:, :2]).prod(-1)[:, None] + (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return shared / (areas - shared)


# ------------------------------------------------------------------------------------------------------ wrong usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to vary: give --gamma"),
        (["none.yaml", "--gamma", "0"], "none.yaml: cannot read"),
        (["--gamma", "x"], "--gamma: expected numbers"),
        (["--gamma", ""], "--gamma: expected numbers"),
        (["--pairs", ""], "--pairs: expected GAMMA:ALPHA"),
        (["--gamma", "0", "run.sed=1"], "unknown key 'run.sed'"),
        (["--gamma", "0", "--retries", "-1"], "--retries: expected at least 0"),
        (["--gamma", "0", "--replicates", "0"], "--replicates: expected at least 1"),
        (["--gamma", "0", "--images", "3"], "--images has no effect on a study"),
        (["--gamma", "0", "--checkpoint", "best"], "--checkpoint has no effect on a study"),
        (["--preset", "table1c"], "table1c"),
        (["--report", "nowhere"], "nowhere: not a study"),
        (["--report", "nowhere", "--gamma", "0"], "--gamma has no effect on --report"),
        (["loss-distribution"], "expected a run directory, got none"),
        (["loss-distribution", "nowhere"], "nowhere: not a run directory"),
        (["loss-distribution", "a", "b"], "'b' has no effect on loss-distribution"),
        (["loss-distribution", "a", "--alpha", "0.5"], "--alpha has no effect on loss-distribution"),
    ],
)
def test_wrong_usage_is_two(monkeypatch, capsys, tmp_path, arguments, message):
    from retina import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["retina", "ablate", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "") and message in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- figure 4


def test_loss_distribution_counts_the_anchors_of_training(retina, trained):
    done = retina(trained.folder, "ablate", "loss-distribution", "run", "--gamma", "0,2", "--out", "figure", "--json")
    assert done.code == 0 and done.err == ""
    tree = json.loads(done.out)
    config = configuration.load(trained.run / "config.yaml")
    data = load_split(config.data, "validation")
    anchors = np.concatenate(level_anchors(config.anchors, (64, 64), (3, 4, 5)))
    best = [overlap(anchors, data.objects(row).boxes).max(axis=1, initial=0.0) for row in range(len(data))]
    assert tree["images"] == len(data) == 6
    assert tree["foreground"] == sum(int((row >= 0.5).sum()) for row in best) > 0
    assert tree["background"] == 10 * sum(int((row < 0.4).sum()) for row in best)
    shares = {row["gamma"]: row["background"]["0.1"] for row in tree["hardest"]}
    assert 0.1 <= shares[0.0] < shares[2.0] <= 1.0
    assert sorted(file.name for file in (trained.folder / "figure").iterdir()) == [
        "loss_distribution.json",
        "loss_distribution.png",
    ]


@pytest.mark.slow
def test_loss_distribution_in_words_of_fewer_images(retina, trained, tmp_path):
    # In a copy: it writes into the run's report/, and other tests list the files of the run they share.
    run = shutil.copytree(trained.run, tmp_path / "run")
    done = retina(
        trained.folder, "ablate", "loss-distribution", run, "--images", "3", "--checkpoint", "latest", COLUMNS="120"
    )
    assert done.code == 0, done.err
    assert "3 images" in done.out and "γ = 2: the hardest 10 % carry" in done.out
    assert "background below 0.1 carries" in done.out
    assert (run / "report" / "loss_distribution.png").is_file()


# ----------------------------------------------------------------------------------------------------------- studies


def rows(folder: Path) -> list[dict]:
    with open(folder / "study.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_killed_study_gives_the_table_of_an_uninterrupted_one(retina, tiny, tmp_path):
    whole = retina(tmp_path, "ablate", *tiny, *STUDY, "--out", "whole", "--json")
    assert whole.code == 0, whole.err
    names = [f"{setting}_{seed}" for seed in (0, 1) for setting in ("gamma0_alpha0.75", "gamma2_alpha0.25")]
    assert [row["trial"] for row in rows(tmp_path / "whole")] == names
    assert {row["status"] for row in rows(tmp_path / "whole")} == {"finished"}
    tree = json.loads(whole.out)
    assert tree == json.loads((tmp_path / "whole" / "study.json").read_text())
    assert [trial["attempts"] for trial in tree["trials"]] == [1, 1, 1, 1]
    for row in rows(tmp_path / "whole"):
        written = tmp_path / "whole" / "trials" / row["trial"] / "eval" / "step_6" / "metrics.json"
        assert float(row["AP"]) == pytest.approx(json.loads(written.read_text())["metrics"]["AP"], abs=1e-9)

    # Twice, at moments that differ from run to run; a failure tells them.
    moments = [(names[1], random.uniform(0, 5)), (names[2], random.uniform(0, 5))]
    print("killed:", moments)
    for trial, seconds in moments:
        kill(tiny, tmp_path, trial, seconds)
    again = retina(tmp_path, "ablate", *tiny, *STUDY, "--out", "killed")
    assert again.code == 0, again.err
    assert "of 4 trials are already done" in again.err
    assert (tmp_path / "killed" / "study.csv").read_bytes() == (tmp_path / "whole" / "study.csv").read_bytes()

    (tmp_path / "killed" / "study.html").unlink()
    report = retina(tmp_path, "ablate", "--report", "killed", "--replicates", "20")
    assert report.code == 0, report.err
    assert "no significant difference" in report.out or "significantly" in report.out
    assert (tmp_path / "killed" / "study.html").is_file()
    other = retina(tmp_path, "ablate", *tiny, *STUDY[:-4], "--seeds", "1", "--out", "killed")
    assert other.code == 2 and "changed: seeds of 'gamma0_alpha0.75' (2 → 1)" in other.err


def kill(tiny: list[str], folder: Path, trial: str, seconds: float) -> None:
    """SIGKILL to the study's own process, so long after this trial has begun to write; the trial must end with it."""
    environment = {**without_limits(), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "retina", "ablate", *tiny, *STUDY, "--out", "killed"]
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    run = folder / "killed" / "trials" / trial
    deadline = time.monotonic() + 300
    while not (run / "config.yaml").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
