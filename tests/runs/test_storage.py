"""A run that can no longer be written: on full file systems, and told apart from data that can't be read."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
import time

import keras
import pytest

from retina import config as configuration
from retina.data.formats.digits import read_digits
from retina.errors import RunFailed
from retina.runs.checkpoint import read
from retina.runs.directory import LATEST, RunDirectory, Unwritable, storage_errors_explained, stored, storing
from retina.training.tensorboard import TensorBoard
from retina.training.train import train
from tests.training import stand_ins


@pytest.fixture(scope="module")
def data():
    return read_digits("train", 8, 64), read_digits("validation", 4, 64)


@pytest.fixture(scope="module")
def go(data):
    """A training with stand-ins, but for TensorBoard's files, which are written as by any run."""

    def call(path, *overrides, **arguments):
        config = configuration.load(None, [*stand_ins.SETTINGS, *overrides])
        arguments |= {"train_data": data[0], "validation_data": data[1]}
        return RunDirectory(
            train(config, path, collaborators=stand_ins.collaborators(tensorboard=TensorBoard), **arguments)
        )

    return call


class At(keras.callbacks.Callback):
    """Does something after a step of the run, counted from 1."""

    def __init__(self, step, what):
        super().__init__()
        self.left, self.what = step, what

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.what()


def wait_for(run, step):
    """Until the thread has written the checkpoint."""
    for _ in range(3000):
        if run.pointed_step(LATEST) == step:
            return
        time.sleep(0.01)
    pytest.fail(f"no checkpoint of step {step}")


def arrays(run):
    return {name: array.tobytes() for name, array in read(run.checkpoint_path(LATEST)).arrays.items()}


@pytest.fixture(scope="module")
def whole(go, tmp_path_factory):
    """The arrays of a run that could be written to its end."""
    return arrays(go(tmp_path_factory.mktemp("whole") / "run"))


# ---------------------------------------------------------------------------------------------- which error it is


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
def test_what_fails_inside_the_run_is_a_write(tmp_path, number):
    for error in (OSError(number, "why"), OSError(number, "why", str(tmp_path / "log.txt"))):
        with pytest.raises(Unwritable, match=r"^why$"), storing(tmp_path):
            raise error


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "/data/images/7.jpg"),
        OSError(errno.EIO, "Input/output error", "/data/images/7.jpg"),
        FileNotFoundError(errno.ENOENT, "No such file", "log.txt"),
        OSError("no number"),
        ZeroDivisionError("of a test"),
    ],
)
def test_what_is_read_elsewhere_fails_in_its_own_words(tmp_path, error):
    with pytest.raises(type(error)) as caught, storing(tmp_path):
        raise error
    assert caught.value is error


def test_only_what_is_written_is_told_as_a_write(go, tmp_path):
    """An image that can't be read, seen by whatever a step does, is no reason to make room on the disk."""

    def unreadable():
        raise PermissionError(errno.EACCES, "Permission denied", "/data/images/7.jpg")

    with pytest.raises(PermissionError, match=r"7\.jpg"):
        go(tmp_path / "run", callbacks=[At(7, unreadable)])


def test_says_which_checkpoint_stands(tmp_path):
    run = RunDirectory.create(tmp_path / "run", "data: {}\n", {})
    message = r"cannot be written: No space; it has no checkpoint yet\. Make room"
    with pytest.raises(RunFailed, match=message), storage_errors_explained(run.path):
        raise Unwritable("No space")
    run.point(LATEST, run.checkpoint_path("step_4"))
    hosts = configuration.Hosts(coordinator="a:1234", count=2, index=1)
    message = r"the last checkpoint is whole \(step 4\)\..*--resume 'run.hosts=.*index: 1"
    with pytest.raises(RunFailed, match=message), storage_errors_explained(run.path, hosts):
        raise Unwritable("No space")


class Closing:
    """Fails when it is closed."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        raise OSError(errno.ENOSPC, "full")


def test_closing_hides_no_error_that_ends_the_run(tmp_path):
    with pytest.raises(ZeroDivisionError), stored(tmp_path, Closing()):
        raise ZeroDivisionError
    with pytest.raises(Unwritable, match="full"), stored(tmp_path, Closing()):
        pass


# ------------------------------------------------------------------------------------------------ real full disks


def test_a_file_that_may_grow_no_further(go, whole, tmp_path):
    """The kernel's own limit: EFBIG out of every write, TensorBoard's files included."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def lower():
        wait_for(RunDirectory(tmp_path / "run"), 5)
        resource.setrlimit(resource.RLIMIT_FSIZE, (256, hard))

    try:
        with pytest.raises(RunFailed, match=r"cannot be written: File too large; .* whole \(step 5\)"):
            go(tmp_path / "run", callbacks=[At(7, lower)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert arrays(go(tmp_path / "run", resume=True)) == whole


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a file system is root's to do, on Linux")
    options = ["-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("this machine lets not even root mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder):
    """To the last byte."""
    with open(folder / "filler", "wb", buffering=0) as file:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size) == size:
                    pass


@pytest.mark.parametrize("step", [1, 7, 19])
def test_a_full_file_system(go, whole, small_disk, step):
    """Whatever is the first to meet it: a line, TensorBoard's file, a checkpoint."""
    last = {1: None, 7: 5, 19: 16}[step]
    stands = rf"the last checkpoint is whole \(step {last}\)" if last else "it has no checkpoint yet"

    def full():
        wait_for(RunDirectory(small_disk / "run"), last)
        fill(small_disk)

    with pytest.raises(RunFailed, match=rf"written: No space left on device; .*{stands}\. Make room.*--resume"):
        go(small_disk / "run", callbacks=[At(step, full)])
    assert not list((small_disk / "run/checkpoints").glob(".partial.*"))
    (small_disk / "filler").unlink()
    assert arrays(go(small_disk / "run", resume=True)) == whole
