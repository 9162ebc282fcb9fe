"""The processes of a run over several hosts: what one of them knows and all must, goes through here.

Every host calls each of these at the same point of the run, or all wait forever. Arrays travel by JAX's collectives,
which is all that they need: no shared folder.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from retina import config
from retina.config.differences import changed_keys
from retina.data.detections import DetectionTable, concatenate
from retina.errors import Interrupted, RetinaError, RunFailed

T = TypeVar("T")
_CHUNK = 2**25  # bytes of a broadcast, and of its copy on each device


@dataclass(frozen=True)
class Hosts:
    """Host `index` of `count`; the first is the chief, and it alone writes."""

    count: int = 1
    index: int = 0

    @property
    def chief(self) -> bool:
        return self.index == 0

    def gather(self, payload: bytes) -> list[bytes]:
        """What every host gave, in their order."""
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
        """What the chief gave; what the others give is left aside."""
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
        """`gather` of plain values that JSON can hold."""
        return [json.loads(one) for one in self.gather(json.dumps(value).encode())] if self.count > 1 else [value]

    def from_chief(self, value: T) -> T:
        """`broadcast` of plain values that JSON can hold."""
        return json.loads(self.broadcast(json.dumps(value).encode())) if self.count > 1 else value

    def together(self, work: Callable[[], T]) -> T:
        """Does the work, as every host does.

        Raises:
            RetinaError: it failed on this host, or on another: no host goes on without the others.
        """
        return self._agreed(work)[0]

    def by_chief(self, work: Callable[[], T]) -> T | None:
        """Has the chief do the work; None elsewhere.

        Raises:
            RetinaError: it failed; on every host.
        """
        return self._agreed(work)[0] if self.chief else self._agreed(lambda: None)[0]

    def _agreed(self, work: Callable[[], T]) -> tuple[T]:
        if self.count == 1:
            return (work(),)
        try:
            result, error = (work(),), None
        except RetinaError as raised:
            result, error = None, raised
        messages = self.exchange(None if error is None else str(error))
        if error is not None:
            raise error
        failed = [f"host {host}: {message}" for host, message in enumerate(messages) if message is not None]
        if failed:
            raise RetinaError(failed[0])
        assert result is not None
        return result

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Around what all hosts do together, step by step.

        A host that fails alone ends at once when its process does: by itself JAX would wait for minutes for the others,
        who wait for this one. They lose it then.

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
                    f"run.hosts: host {self.index} of {self.count} has lost another one: see what that said, then "
                    f"start all of them again with --resume ({str(error).splitlines()[0]})"
                ) from error
            raise

    def gather_table(self, table: DetectionTable, order: Callable[[], np.ndarray]) -> DetectionTable:
        """The detections of all hosts, as one host would have made them.

        Args:
            order: the rows of the dataset in the order in which they are evaluated: it decides between equal scores.
        """
        if self.count == 1:
            return table
        whole = concatenate([_table(one) for one in self.gather(_bytes(**vars(table)))])
        rows = order()
        place = np.empty(len(rows), np.int64)
        place[rows] = np.arange(len(rows))
        sorted_ = np.argsort(place[whole.image], kind="stable")
        return DetectionTable(*(column[sorted_] for column in vars(whole).values()))


def check_same_config(hosts: Hosts, settings: config.Config) -> None:
    """Every host must have been started with the chief's configuration, but for its own number.

    Raises:
        RetinaError: one was not; names the keys.
    """
    own = settings.model_dump(mode="json")
    chiefs = hosts.from_chief(own)

    def check() -> None:
        changed = {key: text for key, text in changed_keys(chiefs, own).items() if key not in _OF_A_HOST}
        if changed:
            raise RetinaError(
                f"run.hosts: host {hosts.index} has another configuration than host 0: {', '.join(changed.values())}; "
                "start every host with the same"
            )

    hosts.together(check)


# A folder has another name on another host, and may.
_OF_A_HOST = ("run.hosts.index", "data.root")


def _end(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _bytes(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def _table(payload: bytes) -> DetectionTable:
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        return DetectionTable(**{name: arrays[name] for name in arrays.files})
