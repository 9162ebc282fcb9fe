"""One tiny run, trained once through the command line, for every test that needs a trained detector."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.threads import without_limits

ROOT = Path(__file__).parents[2]

# Six updates of a small network: nothing is learned, but a prior of 0.2 gives it detections to talk about.
TINY = [
    "data.train={format: digits, split: train, images: 16, size: 64}",
    "data.validation={format: digits, split: validation, images: 6, size: 64}",
    "data.test={format: digits, split: test, images: 4, size: 64}",
    "data.resize={short: 64, long: 64, multiple: 32}",
    "model.backbone=resnet10",  # of our own: keras-cv alone takes seconds to import, in each process
    "model.fpn={channels: 16, max_level: 5}",
    "model.head={channels: 16, layers: 1, prior: 0.2}",
    "schedule={kind: cosine, steps: 6, warmup_steps: 2}",
    "run={batch_size: 4, checkpoint_every: 3, evaluate_every: 3, log_every: 1, deterministic: true, pictures: 2}",
    "inference={batch_size: 4, max_detections: 20}",
]


class Finished(NamedTuple):
    code: int
    out: str
    err: str


def run_python(arguments: list[str], folder: Path, **environment: str) -> Finished:
    inherited = {name: value for name, value in without_limits().items() if not name.startswith("TF_CPP")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def python() -> Callable[..., Finished]:
    """`python(arguments, folder)` in a process of its own, started in `folder`."""
    return run_python


@pytest.fixture(scope="session")
def retina() -> Callable[..., Finished]:
    """`retina(folder, *arguments)` as a user runs it, started in `folder`."""

    def call(folder: Path, *arguments: object, **environment: str) -> Finished:
        return run_python(["-m", "retina", *map(str, arguments)], folder, **environment)

    return call


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    return list(TINY)


class Trained(NamedTuple):
    folder: Path  # where the commands are run
    run: Path  # the run directory
    finished: Finished


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    """`retina train` with the tiny settings: its run directory and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    finished = run_python(["-m", "retina", "train", *TINY, "--run-dir", "run"], folder)
    assert finished.code == 0, finished.err
    return Trained(folder, folder / "run", finished)
