"""The devices and hosts that share a run's batches, and determinism: requests to the backend before anything is built.

Several devices of one host: `tf.distribute.MirroredStrategy` on TensorFlow, `keras.distribution.DataParallel` on JAX;
several hosts: JAX, a process each. Every device holds all weights and works on its slots of each batch. Sums of losses
and of gradients are added up over all of them before anything is divided, so the update is that of the whole batch.

Determinism (`run.deterministic`) means equal bits from equal beginnings; each backend has its switch for it.
"""

from __future__ import annotations

import contextlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from retina import config
from retina.data.batches import plan
from retina.errors import RetinaError
from retina.runs.hosts import Hosts

# https://docs.nvidia.com/cuda/cublas/#results-reproducibility
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_CUBLAS_VALUES = (":4096:8", ":16:8")
# It also turns off the choice of kernels by timing, which differs from process to process.
_XLA = "--xla_gpu_deterministic_ops"


class Distribution(NamedTuple):
    """The devices of a run.

    Attributes:
        devices: how many each host uses.
        hosts: this host, and how many there are.
        names: of the devices of this host, in the backend's words; empty where the backend chooses.
        engine: a `tf.distribute.MirroredStrategy` or a `keras.distribution.DataParallel`; None for one device.
    """

    devices: int = 1
    hosts: Hosts = Hosts()
    names: tuple[str, ...] = ()
    engine: Any = None

    @property
    def replicas(self) -> int:
        """Number of devices, over all hosts."""
        return self.devices * self.hosts.count

    def scope(self) -> contextlib.AbstractContextManager:
        """Return the context manager in which variables are made."""
        return contextlib.nullcontext() if self.engine is None else self.engine.scope()

    def slots(self, batch_size: int, parts: int) -> np.ndarray | None:
        """Return this host's slots of each batch, in the order in which the step takes them; None: all, in their order.

        Raises:
            RetinaError: the batch does not divide evenly.
        """
        if self.replicas == 1:
            return None
        if batch_size % (parts * self.replicas):
            raise RetinaError(
                f"run.batch_size: expected a multiple of accumulate ({parts}) x devices ({self.devices}) x hosts "
                f"({self.hosts.count}), got {batch_size}; change one of them"
            )
        first = self.hosts.index * self.devices
        return plan.share(batch_size, parts=parts, devices=self.replicas, first=first, stop=first + self.devices)


ALONE = Distribution()


def distribute(run: config.Run) -> Distribution:
    """Choose the devices of `run.devices` and join the hosts of `run.hosts`.

    Raises:
        RetinaError: the backend does not support it, there are fewer devices, or the other hosts can't be reached.
    """
    backend = keras.backend.backend()
    if run.hosts is not None and backend != "jax":
        raise RetinaError(
            f"run.hosts: expected JAX for several hosts, got {backend}; set KERAS_BACKEND=jax, or leave run.hosts out"
        )
    if backend == "torch":
        return _torch(run)
    if run.devices == 1 and run.hosts is None:
        return ALONE
    return _jax(run) if backend == "jax" else _tensorflow(run)


def _torch(run: config.Run) -> Distribution:
    import torch

    available = max(torch.cuda.device_count(), 1)
    if (available if run.devices == "all" else run.devices) > 1:
        raise RetinaError(
            f"run.devices: expected 1 with PyTorch, got {run.devices}; set KERAS_BACKEND=jax or tensorflow for several"
        )
    return ALONE


def _tensorflow(run: config.Run) -> Distribution:
    import tensorflow as tf

    available = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    names = _chosen(run, [device.name.removeprefix("/device:") for device in available])
    if len(names) == 1:
        return ALONE
    return Distribution(len(names), Hosts(), names, _mirrored(names))


@lru_cache
def _mirrored(names: tuple[str, ...]) -> Any:
    """Return the process's only strategy: TensorFlow numbers the sums of each from the same start, and would mix up
    those of two."""
    import tensorflow as tf

    if _mirrored.cache_info().misses > 1:
        raise RetinaError(
            f"run.devices: expected the number of devices that this process has trained on before, got {len(names)}; "
            "TensorFlow can't change it: start another process"
        )
    return tf.distribute.MirroredStrategy(list(names))


def _jax(run: config.Run) -> Distribution:
    hosts = Hosts() if run.hosts is None else _joined(run.hosts)
    import jax

    local = sorted(jax.local_devices(), key=lambda device: device.id)
    names = hosts.together(lambda: _chosen(run, [f"{device.platform}:{device.id}" for device in local]))
    counts = hosts.exchange(len(names))
    if len(set(counts)) > 1:
        raise RetinaError(f"run.devices: expected as many on each host, got {counts}; set a number that all have")
    if len(names) * hosts.count == 1:
        return ALONE
    all_devices = [
        device
        for host in range(hosts.count)
        for device in sorted(jax.local_devices(process_index=host), key=lambda device: device.id)[: len(names)]
    ]
    engine = keras.distribution.DataParallel(devices=all_devices, auto_shard_dataset=False)
    return Distribution(len(names), hosts, names, engine)


def _chosen(run: config.Run, available: list[str]) -> tuple[str, ...]:
    count = len(available) if run.devices == "all" else run.devices
    if count > len(available):
        raise RetinaError(
            f"run.devices: expected at most the {len(available)} that {keras.backend.backend()} sees here "
            f"({', '.join(available)}), got {count}; lower it, or set all"
        )
    return tuple(available[:count])


def _joined(hosts: config.Hosts) -> Hosts:
    """Join the other hosts; waits until every host has called."""
    import jax

    if not jax.distributed.is_initialized():
        try:
            keras.distribution.initialize(hosts.coordinator, hosts.count, hosts.index)
        except (RuntimeError, ValueError) as error:
            raise RetinaError(
                f"run.hosts: host {hosts.index} cannot join the {hosts.count} hosts at {hosts.coordinator}: "
                f"{' '.join(str(error).split())}; start all of them with the same coordinator and count, each in a "
                "new process"
            ) from None
    if (jax.process_count(), jax.process_index()) != (hosts.count, hosts.index):
        raise RetinaError(
            f"run.hosts: expected index {hosts.index} of {hosts.count}, got a process that is number "
            f"{jax.process_index()} of {jax.process_count()} already; start another process"
        )
    return Hosts(hosts.count, hosts.index)


def cache_compilations(run: config.Run) -> None:
    """Let JAX keep what it compiles in the folder of `run.compilation_cache`, for the rest of the process.

    Raises:
        RetinaError: a folder is given, and the backend is not JAX.
    """
    if keras.backend.backend() != "jax":
        if isinstance(run.compilation_cache, Path):
            raise RetinaError(
                f"run.compilation_cache: {run.compilation_cache} has no effect with {keras.backend.backend()}; leave "
                "it out, or set KERAS_BACKEND=jax"
            )
        return
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    jax.config.update("jax_enable_compilation_cache", run.compilation_cache is not None)
    if isinstance(run.compilation_cache, Path):
        folder: Path | None = run.compilation_cache.expanduser().absolute()
    else:
        chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        folder = None if chosen else _user_cache() / "retina" / "jax"
    if folder is not None and run.compilation_cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    reset_cache()  # JAX looks at the settings once, at its first compilation


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def check_determinism() -> None:
    """Check that the backend can be made deterministic; costs nothing, so call it before the slow part.

    Raises:
        RetinaError: it can't, and only the environment of a new process can change that.
    """
    if keras.backend.backend() == "jax":
        _check_jax()
    elif keras.backend.backend() == "torch":
        _check_torch()


def make_deterministic() -> None:
    """Make the backend deterministic for the rest of the process; call `check_determinism` first."""
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
    """Check XLA's flag; on a CPU JAX's programs are deterministic without it."""
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
    """Set or check cuBLAS' variable, which is read when cuBLAS is first used."""
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
