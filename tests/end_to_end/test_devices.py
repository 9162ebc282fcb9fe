"""Runs on several devices and hosts end as on one, stop together, and go on elsewhere."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.quick_jax import QUICK_JAX
from tests.scripts import load_script

ROOT = Path(__file__).resolve().parents[2]

STEPS = 8

pytestmark = [pytest.mark.slow, pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs jax")]


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in QUICK_JAX.items():
            patch.setenv(name, value)  # the script's processes have this one's environment
        yield load_script("reproduce/devices")


@pytest.fixture(scope="module")
def settings(script) -> list[str]:
    return [text % {"steps": STEPS, "accumulate": 2, "size": 64, "rate": 1e-4} for text in script.SETTINGS]


@pytest.fixture(scope="module")
def alone(script, settings, tmp_path_factory):
    """By backend, one device's run."""
    folder = tmp_path_factory.mktemp("alone")
    return {backend: script.train(script.Case(backend, 1), settings, folder) for backend in ("tensorflow", "jax")}


def assert_same(script, found, expected) -> None:
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    assert script.farthest(found.last, expected.last) <= 1e-5 < script.farthest(expected.last, expected.first)
    assert found.figures == pytest.approx(expected.figures, abs=1e-4)


@pytest.mark.parametrize(("backend", "devices", "hosts"), [("tensorflow", 2, 1), ("jax", 2, 1), ("jax", 1, 2)])
def test_several_end_as_one(script, settings, alone, tmp_path, backend, devices, hosts):
    """`train` itself fails where a host other than the first has written anything."""
    found = script.train(script.Case(backend, devices, hosts), settings, tmp_path)
    assert_same(script, found, alone[backend])
    log = (tmp_path / f"{backend}_{devices}x{hosts}_0" / "log.txt").read_text()
    assert "digits/validation: 13 images" in log and log.count("validation AP") == 1
    (detections,) = (tmp_path / f"{backend}_{devices}x{hosts}_0" / "eval").glob("step_*/detections.json")
    assert len({found["image_id"] for found in json.loads(detections.read_text())}) <= 13


def test_a_signal_stops_all_hosts_and_one_process_goes_on(script, settings, alone, tmp_path):
    """Started as torchrun would; the signal reaches host 1 alone."""
    port, run = script._free_port(), tmp_path / "run"
    common = {**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2"}
    common |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "XLA_FLAGS": ""}
    retina = [sys.executable, "-m", "retina", "train"]
    processes = [
        subprocess.Popen(
            [*retina, *settings, "--launcher", "env", "--run-dir", str(run if host == 0 else tmp_path / "other")],
            env={**common, "RANK": str(host)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in range(2)
    ]
    try:
        until = time.monotonic() + 300
        while not (run / "checkpoints" / "latest").exists():
            assert time.monotonic() < until and all(process.poll() is None for process in processes)
            time.sleep(0.02)
        processes[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [75, 75], said
    assert "SIGTERM after step" in said[0] and not (tmp_path / "other").exists()
    resumed = subprocess.run(
        [*retina, "--run-dir", str(run), "--resume", "run.hosts=null", "run.devices=2"],
        env={**common, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        capture_output=True,
        text=True,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert "run.devices (1 → 2)" in resumed.stderr
    assert "resumed on other devices: " in resumed.stderr and "up to rounding, no longer bit for bit" in resumed.stderr
    assert_same(script, script.read(run), alone["jax"])
