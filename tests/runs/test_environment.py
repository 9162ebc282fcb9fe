"""What a run says it ran on, and what `run.deterministic` asks of its surroundings."""

import ctypes
import gc
import subprocess
import sys
import weakref
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from retina.errors import RetinaError
from retina.runs.environment import _revision, long_lived_objects_set_aside, memory, trim_memory
from retina.training.devices import check_determinism


@pytest.fixture
def repository(tmp_path):
    """Somebody's repository, in which the package lies."""

    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "thesis.tex").write_text("mine")
    package = tmp_path / "venv" / "retina" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("")
    git("add", "thesis.tex")
    git("commit", "-m", "mine")
    return git, package


def test_outside_a_repository_there_is_no_revision(tmp_path):
    assert _revision(tmp_path / "__init__.py") is None
    assert _revision(tmp_path / "missing" / "__init__.py") is None


def test_a_repository_that_the_package_merely_lies_in_is_not_its_own(repository):
    _, package = repository
    assert _revision(package) is None


def test_the_repository_that_tracks_the_package_is(repository):
    git, package = repository
    git("add", "venv")
    git("commit", "-m", "the package")
    assert _revision(package) == git("rev-parse", "--short=12", "HEAD")
    package.write_text("changed")
    assert _revision(package) == git("rev-parse", "--short=12", "HEAD") + "-dirty"


# ------------------------------------------------------------------------------------------------- run.deterministic


@pytest.fixture
def jax_on(monkeypatch):
    """Check on JAX, with `platform` and XLA_FLAGS."""

    def check(platform, flags):
        monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
        monkeypatch.setitem(sys.modules, "jax", SimpleNamespace(default_backend=lambda: platform))
        monkeypatch.delenv("XLA_FLAGS", raising=False)
        if flags is not None:
            monkeypatch.setenv("XLA_FLAGS", flags)
        check_determinism()

    return check


@pytest.mark.parametrize(
    "flags",
    [None, "", "--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops_of_another=true", "--xla_dump_to=/x"],
)
def test_jax_on_a_gpu_is_not_deterministic_by_itself(jax_on, flags):
    with pytest.raises(RetinaError, match=r"expected --xla_gpu_deterministic_ops=true in XLA_FLAGS.*; start with"):
        jax_on("gpu", flags)


@pytest.mark.parametrize(
    ("platform", "flags"),
    [
        ("cpu", None),
        ("gpu", "--xla_gpu_deterministic_ops=true"),
        ("gpu", "--xla_dump_to=/x --xla_gpu_deterministic_ops"),
        ("gpu", "--xla_gpu_deterministic_ops=false --xla_gpu_deterministic_ops=1"),
    ],
)
def test_jax_is_where_it_was_told_or_needs_not_be(jax_on, platform, flags):
    jax_on(platform, flags)


@pytest.fixture
def torch_on(monkeypatch):
    """Check on PyTorch, with a GPU or without, CUDA in use or not, and cuBLAS' variable; gives the variable then."""

    def check(gpu, used, value):
        import os

        cuda = SimpleNamespace(is_available=lambda: gpu, is_initialized=lambda: used)
        monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
        monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "to be restored")
        if value is None:
            monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
        else:
            monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", value)
        check_determinism()
        return os.environ.get("CUBLAS_WORKSPACE_CONFIG")

    return check


def test_pytorch_sets_cublas_where_it_still_can(torch_on):
    assert torch_on(gpu=True, used=False, value=None) == ":4096:8"
    assert torch_on(gpu=True, used=True, value=":16:8") == ":16:8"
    assert torch_on(gpu=False, used=False, value=None) is None


@pytest.mark.parametrize(("used", "value"), [(True, None), (False, ":0:0"), (True, ":8:8")])
def test_pytorch_that_would_not_be_deterministic_is_refused(torch_on, used, value):
    with pytest.raises(RetinaError, match="expected CUBLAS_WORKSPACE_CONFIG to be :4096:8 or :16:8"):
        torch_on(True, used, value)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_freed_memory_goes_back_although_something_lies_behind_it():
    blocks = [np.ones(8000, np.uint8) for _ in range(20_000)]  # 160 MB, too small each to be mapped by itself
    full, last = memory()["memory"], blocks.pop()
    del blocks
    trim_memory()
    assert memory()["memory"] < full - 120 and last[0] == 1


def test_objects_of_before_are_set_aside_and_come_back():
    gc.unfreeze()  # the tests' own, see tests/conftest.py
    try:
        with long_lived_objects_set_aside():
            frozen = gc.get_freeze_count()
            assert frozen > 1000
            with long_lived_objects_set_aside():  # as in a training within a training
                assert gc.get_freeze_count() >= frozen
            assert gc.get_freeze_count() >= frozen
            made = Cycle()
            seen = weakref.ref(made)
            del made
            gc.collect()
            assert seen() is None
        assert gc.get_freeze_count() == 0
    finally:
        gc.freeze()


class Cycle:
    def __init__(self):
        self.itself = self
