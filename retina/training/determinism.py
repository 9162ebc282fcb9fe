"""`run.deterministic`: equal bits from equal beginnings, asked of each backend in its own way."""

from __future__ import annotations

import os

import keras

from retina.errors import RetinaError

# https://docs.nvidia.com/cuda/cublas/#results-reproducibility
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_VALUES = (":4096:8", ":16:8")
# It also turns off the choice of kernels by timing, which differs from process to process.
_XLA = "--xla_gpu_deterministic_ops"


def check_determinism() -> None:
    """Called before the slow part.

    Raises:
        RetinaError: the backend would not be deterministic, and only the environment of a new process can change that.
    """
    if keras.backend.backend() == "jax":
        _check_jax()
    elif keras.backend.backend() == "torch":
        _check_torch()


def make_deterministic() -> None:
    """For the rest of the process; `check_determinism` has been called."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
        # It merges sums in an order that changes from one compilation to the next: the gradients of the heads, which
        # all levels share, then differ by rounding from run to run.
        tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    elif keras.backend.backend() == "torch":
        import torch

        torch.use_deterministic_algorithms(True)


def _check_jax() -> None:
    """On a CPU its programs are deterministic by themselves."""
    import jax

    if jax.default_backend() not in ("gpu", "cuda", "rocm"):
        return
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if flag.partition("=")[0] == _XLA]
    if not flags or flags[-1].partition("=")[2].lower() in ("false", "0"):  # the last one counts
        raise RetinaError(
            f"run.deterministic: expected {_XLA}=true in XLA_FLAGS for JAX on a GPU, got "
            f"'{os.environ.get('XLA_FLAGS', '')}'; start with XLA_FLAGS='{_XLA}=true', or set run.deterministic=false"
        )


def _check_torch() -> None:
    """cuBLAS reads its variable when it is first used."""
    import torch

    if not torch.cuda.is_available():
        return
    if _CUBLAS not in os.environ and not torch.cuda.is_initialized():
        os.environ[_CUBLAS] = _CUBLAS_VALUES[0]
    if os.environ.get(_CUBLAS) not in _CUBLAS_VALUES:
        raise RetinaError(
            f"run.deterministic: expected {_CUBLAS} to be {' or '.join(_CUBLAS_VALUES)} for PyTorch on a GPU, got "
            f"'{os.environ.get(_CUBLAS, '')}'; start with {_CUBLAS}={_CUBLAS_VALUES[0]}, or set run.deterministic=false"
        )
