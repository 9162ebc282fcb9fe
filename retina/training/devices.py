"""Which devices of which hosts share a run's batches, on the engines that Keras' backends have for it.

Several devices of one host: `tf.distribute.MirroredStrategy` on TensorFlow, `keras.distribution.DataParallel` on JAX;
several hosts: JAX, a process each. Every device holds all weights and works on its slots of each batch. Sums of losses
and of gradients are added up over all of them before anything is divided, so the update is that of the whole batch.
"""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any, NamedTuple

import keras
import numpy as np

from retina import config
from retina.data.batches import plan
from retina.errors import RetinaError
from retina.runs.hosts import Hosts


class Distribution(NamedTuple):
    """Where a run works.

    Attributes:
        devices: how many each host uses.
        hosts: this one, of how many.
        names: of the devices of this host, in the backend's words; empty: whatever the backend takes by itself.
        engine: a `tf.distribute.MirroredStrategy` or a `keras.distribution.DataParallel`; None for one device.
    """

    devices: int = 1
    hosts: Hosts = Hosts()
    names: tuple[str, ...] = ()
    engine: Any = None

    @property
    def replicas(self) -> int:
        """Devices, over all hosts."""
        return self.devices * self.hosts.count

    def scope(self) -> contextlib.AbstractContextManager:
        """Around everything that makes variables."""
        return contextlib.nullcontext() if self.engine is None else self.engine.scope()

    def slots(self, batch_size: int, parts: int) -> np.ndarray | None:
        """This host's slots of each batch, in the order in which the training step takes them; None: all, as they are.

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
    """Finds the devices of `run.devices` and joins the hosts of `run.hosts`.

    Raises:
        RetinaError: the backend can't do it, there are not as many devices, or the other hosts can't be reached.
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

    found = max(torch.cuda.device_count(), 1)
    if (found if run.devices == "all" else run.devices) > 1:
        raise RetinaError(
            f"run.devices: expected 1 with PyTorch, got {run.devices}; set KERAS_BACKEND=jax or tensorflow for several"
        )
    return ALONE


def _tensorflow(run: config.Run) -> Distribution:
    import tensorflow as tf

    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    names = _chosen(run, [device.name.removeprefix("/device:") for device in found])
    if len(names) == 1:
        return ALONE
    return Distribution(len(names), Hosts(), names, _mirrored(names))


@lru_cache
def _mirrored(names: tuple[str, ...]) -> Any:
    """One strategy a process: TensorFlow numbers the sums of each from the same start, and mixes those of two up."""
    import tensorflow as tf

    if _mirrored.cache_info().misses > 1:
        raise RetinaError(
            f"run.devices: this process has trained on another number than {len(names)} before, and TensorFlow can't "
            "change it; start another process"
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
    every = [
        device
        for host in range(hosts.count)
        for device in sorted(jax.local_devices(process_index=host), key=lambda device: device.id)[: len(names)]
    ]
    engine = keras.distribution.DataParallel(devices=every, auto_shard_dataset=False)
    return Distribution(len(names), hosts, names, engine)


def _chosen(run: config.Run, found: list[str]) -> tuple[str, ...]:
    count = len(found) if run.devices == "all" else run.devices
    if count > len(found):
        raise RetinaError(
            f"run.devices: expected at most the {len(found)} that {keras.backend.backend()} sees here "
            f"({', '.join(found)}), got {count}; lower it, or set all"
        )
    return tuple(found[:count])


def _joined(hosts: config.Hosts) -> Hosts:
    """Waits until every host has called."""
    import jax

    if not jax.distributed.is_initialized():
        try:
            keras.distribution.initialize(hosts.coordinator, hosts.count, hosts.index)
        except (RuntimeError, ValueError) as error:
            raise RetinaError(
                f"run.hosts: host {hosts.index} cannot join the {hosts.count} hosts at {hosts.coordinator}: "
                f"{' '.join(str(error).split())}; start all of them with the same coordinator and count, and in a "
                "process of its own"
            ) from None
    if (jax.process_count(), jax.process_index()) != (hosts.count, hosts.index):
        raise RetinaError(
            f"run.hosts: expected index {hosts.index} of {hosts.count}, got a process that is number "
            f"{jax.process_index()} of {jax.process_count()} already; start another process"
        )
    return Hosts(hosts.count, hosts.index)
