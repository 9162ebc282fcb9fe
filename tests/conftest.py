"""Fixtures for all tests."""

import gc
import os
import signal
from pathlib import Path

import pytest

LONGEST = (
    "end_to_end/test_coco_mini.py",
    "end_to_end/test_ablate.py",
    "training/test_kills.py",
    "end_to_end/test_devices.py",
    "end_to_end/test_without_tensorflow.py",
    "end_to_end/test_train.py",
    "runs/test_importing.py",
    "end_to_end/test_import.py",
    "end_to_end/test_readme_commands.py",
    "backends/test_backends.py",
    "training/test_devices.py",
    "training/test_loop.py",
    "end_to_end/test_export.py",
    "end_to_end/test_notebooks.py",
    "end_to_end/test_command_line.py",
    "end_to_end/test_earlier_runs.py",
    "data/test_orientation.py",
    "data/test_robust_images.py",
    "evaluation/test_engines.py",
    "export/test_onnx.py",
    "export/test_saved_model.py",
    "training/test_resuming.py",
    "training/test_step.py",
)
"""The files that take longest, about a minute or more each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that the processes of `scripts/test` end at about the same time."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(LONGEST))


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data beside the checkout; where it is absent the test is skipped, in CI it fails."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        missing = "needs the real data in ../shared/data beside the checkout"
        if os.environ.get("RETINA_REQUIRE_SHARED"):
            pytest.fail(missing)
        pytest.skip(missing)
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Look for no garbage while the tests' modules are imported: it takes a fifth of that time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish():
    """What the tests' modules import lives to the end: looking for garbage in it took a fifth of all tests' time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def hangups_are_heard():
    """Under `nohup` SIGHUP is ignored, which runs respect; tests send it to see a run stop."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
