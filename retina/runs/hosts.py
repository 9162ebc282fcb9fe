"""The hosts of a run, a process each: how they exchange what all of them must know, and what launchers say of them.

Every host calls each method of `Hosts` at the same point of the run, or all wait forever. Arrays travel by JAX's
collectives; the hosts need no shared folder. The configuration reads no environment: a launcher is named on the command
line (`--launcher`), and `hosts_of` makes a section `run.hosts` of its variables.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from pydantic import ValidationError

from retina import config
from retina.config.differences import changed_keys
from retina.data.detections import DetectionTable, concatenate
from retina.errors import Interrupted, RetinaError, RunFailed
from retina.output import guarded

T = TypeVar("T")
Launcher = Literal["slurm", "env"]
_CHUNK = 2**25  # bytes of a broadcast, and of its copy on each device
# A folder has another name on another host, and may.
_OF_A_HOST = ("run.hosts.index", "data.root")


@dataclass(frozen=True)
class Hosts:
    """Host `index` of `count`; the first is the chief, and it alone writes files."""

    count: int = 1
    index: int = 0

    @property
    def chief(self) -> bool:
        return self.index == 0

    def gather(self, payload: bytes) -> list[bytes]:
        """Return the payloads of all hosts, in their order."""
        if self.count == 1:
            return [payload]
        from jax.experimental.multihost_utils import process_allgather

        sizes = process_allgather(np.array([len(payload)], np.int32)).ravel()
        # Powers of two: a program is compiled for each size.
        buffer = np.zeros(1 << int(max(sizes.max(), 1) - 1).bit_length(), np.uint8)
        buffer[: len(payload)] = np.frombuffer(payload, np.uint8)
        rows = process_allgather(buffer)
        return [rows[host, :size].tobytes() for host, size in enumerate(sizes)]

    def broadcast(self, payload: bytes) -> bytes:
        """Return the chief's payload; those of the others are ignored."""
        if self.count == 1:
            return payload
        from jax.experimental.multihost_utils import broadcast_one_to_all

        chunks = [payload[at : at + _CHUNK] for at in range(0, len(payload), _CHUNK)] if self.chief else []
        size = int(np.asarray(broadcast_one_to_all(np.int32(len(chunks)))))
        return b"".join(self._chunk(chunks[place] if chunks else b"") for place in range(size))

    def _chunk(self, chunk: bytes) -> bytes:
        from jax.experimental.multihost_utils import broadcast_one_to_all

        length = int(np.asarray(broadcast_one_to_all(np.int32(len(chunk)))))
        buffer = np.zeros(1 << max(length - 1, 0).bit_length(), np.uint8)
        buffer[: len(chunk)] = np.frombuffer(chunk, np.uint8)
        return np.asarray(broadcast_one_to_all(buffer)).astype(np.uint8)[:length].tobytes()

    def exchange(self, value: Any) -> list[Any]:
        """Return the values of all hosts, in their order: plain values that JSON can hold."""
        if self.count == 1:
            return [value]
        return [json.loads(payload) for payload in self.gather(json.dumps(value).encode())]

    def from_chief(self, value: T) -> T:
        """Return the chief's value: a plain value that JSON can hold."""
        return json.loads(self.broadcast(json.dumps(value).encode())) if self.count > 1 else value

    def together(self, work: Callable[[], T]) -> T:
        """Do the work, as every host does, and return its value.

        Raises:
            RetinaError: it failed on this host, or on another: no host goes on without the others.
        """
        return self._agreed(work)[0]

    def by_chief(self, work: Callable[[], T]) -> T | None:
        """Have the chief do the work, and return its value; None on the other hosts.

        Raises:
            RetinaError: it failed; on every host.
        """
        return self._agreed(work)[0] if self.chief else self._agreed(lambda: None)[0]

    def _agreed(self, work: Callable[[], T]) -> tuple[T]:
        if self.count == 1:
            return (work(),)
        try:
            value, error = (work(),), None
        except RetinaError as raised:
            value, error = None, raised
        messages = self.exchange(None if error is None else str(error))
        if error is not None:
            raise error
        failed = [f"host {host}: {message}" for host, message in enumerate(messages) if message is not None]
        if failed:
            raise RetinaError(failed[0])
        assert value is not None
        return value

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Surround the work that all hosts do together, step by step.

        A host that fails alone ends at once when its process does: by itself JAX would wait for minutes for the others,
        who wait for this host. They lose it then.

        Raises:
            RunFailed: another host is gone.
        """
        if self.count == 1:
            yield
            return
        import jax

        try:
            yield
        except (Interrupted, FloatingPointError):  # every host's
            raise
        except BaseException as error:
            usage = isinstance(error, RetinaError) and not isinstance(error, RunFailed)
            atexit.register(_end, 2 if usage else 1)  # the codes of `retina.cli`
            if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise RunFailed(
                    f"run.hosts: host {self.index} of {self.count} has lost another host: read that host's error, then "
                    f"start all of them again with --resume ({str(error).splitlines()[0]})"
                ) from error
            raise

    def gather_table(self, table: DetectionTable, order: Callable[[], np.ndarray]) -> DetectionTable:
        """Return the detections of all hosts, in the order in which a single host would have made them.

        Args:
            order: the rows of the dataset in the order in which they are evaluated: it decides between equal scores.
        """
        if self.count == 1:
            return table
        whole = concatenate([_table(payload) for payload in self.gather(_bytes(**vars(table)))])
        rows = order()
        place = np.empty(len(rows), np.int64)
        place[rows] = np.arange(len(rows))
        sorted_ = np.argsort(place[whole.image], kind="stable")
        return DetectionTable(*(column[sorted_] for column in vars(whole).values()))


def check_same_config(hosts: Hosts, settings: config.Config) -> None:
    """Check that every host was started with the chief's configuration, but for its number and its data's folder.

    Raises:
        RetinaError: a host was not; names the keys.
    """
    this = settings.model_dump(mode="json")
    chiefs = hosts.from_chief(this)

    def check() -> None:
        changed = {key: text for key, text in changed_keys(chiefs, this).items() if key not in _OF_A_HOST}
        if changed:
            raise RetinaError(
                f"run.hosts: host {hosts.index} has another configuration than host 0: {', '.join(changed.values())}; "
                "start every host with the same"
            )

    hosts.together(check)


def _end(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        guarded(stream).flush()
    os._exit(code)


def _bytes(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def _table(payload: bytes) -> DetectionTable:
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        return DetectionTable(**{name: arrays[name] for name in arrays.files})


def hosts_of(launcher: Launcher, variables: Mapping[str, str]) -> config.Hosts | None:
    """Return the section `run.hosts` that a launcher's variables mean; None where it started a single process.

    - `slurm`: SLURM_NTASKS, SLURM_PROCID, SLURM_STEP_NODELIST (or SLURM_JOB_NODELIST), SLURM_JOB_ID, which gives the
      port, and SLURM_STEP_NUM_NODES (or SLURM_NNODES): one task a node.
    - `env`: MASTER_ADDR, MASTER_PORT, WORLD_SIZE and RANK, as torchrun and most operators of Kubernetes set them;
      LOCAL_WORLD_SIZE, where it is set, must be 1: a process takes all devices of its host. Under torchrun's
      TORCHELASTIC_USE_AGENT_STORE the port is the next one.

    Raises:
        RetinaError: a variable is missing or not a number, or several processes share a host.
    """
    if launcher not in get_args(Launcher):
        raise RetinaError(f"--launcher: expected {' or '.join(get_args(Launcher))}, got '{launcher}'; choose either")
    return _slurm(variables) if launcher == "slurm" else _env(variables)


def _slurm(variables: Mapping[str, str]) -> config.Hosts | None:
    count, index = _number(variables, "slurm", "SLURM_NTASKS"), _number(variables, "slurm", "SLURM_PROCID")
    if count == 1:
        return None
    nodes = _number(variables, "slurm", "SLURM_STEP_NUM_NODES", "SLURM_NNODES")
    if nodes != count:
        raise RetinaError(
            f"--launcher slurm: expected one task a node, got {count} tasks on {nodes} nodes; start it with "
            "--ntasks-per-node=1"
        )
    first = first_node(_text(variables, "slurm", "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"))
    # The same on every node, and seldom that of another job: above the ports that Linux gives to clients.
    port = 61000 + _number(variables, "slurm", "SLURM_JOB_ID") % 4000
    return _hosts("slurm", f"{first}:{port}", count, index)


def _env(variables: Mapping[str, str]) -> config.Hosts | None:
    count, index = _number(variables, "env", "WORLD_SIZE"), _number(variables, "env", "RANK")
    if variables.get("LOCAL_WORLD_SIZE", "1") != "1":
        raise RetinaError(
            f"--launcher env: expected one process a host (LOCAL_WORLD_SIZE 1), got {variables['LOCAL_WORLD_SIZE']}; "
            "start it with --nproc-per-node=1: a process takes all devices of its host"
        )
    if count == 1:
        return None
    # torchrun itself listens at its port where it lends its store to the processes.
    port = _number(variables, "env", "MASTER_PORT") + (variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True")
    return _hosts("env", f"{_text(variables, 'env', 'MASTER_ADDR')}:{port}", count, index)


def first_node(nodes: str) -> str:
    """Return the first of SLURM's list of nodes.

    Example: `gpu[003-005,9],login1` begins with gpu003.
    """
    name = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    assert name is not None  # it matches the empty text
    return "".join(part or "" for part in name.groups())


def _hosts(launcher: str, coordinator: str, count: int, index: int) -> config.Hosts:
    try:
        return config.Hosts(coordinator=coordinator, count=count, index=index)
    except ValidationError as error:
        raise RetinaError(
            f"--launcher {launcher}: expected variables of a single run, got process {index} of {count} at "
            f"{coordinator}: {error.errors()[0]['msg'].removeprefix('Value error, ')}; check how the launcher was "
            "started"
        ) from None


def _text(variables: Mapping[str, str], launcher: str, *names: str) -> str:
    for name in names:
        if variables.get(name):
            return variables[name]
    raise RetinaError(
        f"--launcher {launcher}: expected the variable {' or '.join(names)}, got none; start it by the launcher, or "
        "give run.hosts instead"
    )


def _number(variables: Mapping[str, str], launcher: str, *names: str) -> int:
    text = _text(variables, launcher, *names)
    if not text.isdecimal():
        raise RetinaError(f"--launcher {launcher}: expected a number in {' or '.join(names)}, got '{text}'; correct it")
    return int(text)
