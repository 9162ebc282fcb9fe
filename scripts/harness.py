"""Shared by the benchmarks: contestants in processes of their own that take turns, medians, and the machine.

Whatever else a machine does falls on all contestants alike where they take turns, a little work each, over several
rounds, and only one computes at any time. So figures are medians over the rounds, and ratios medians of the rounds' own
ratios: what slows a round slows both sides. A contestant's process first writes a line of JSON that says it is ready;
then each line on its standard input asks for a turn, and is answered by a line of JSON with that turn's figures.

Standard library only, and nothing of retina: torchvision's side of scripts/benchmark_gpu.py imports it, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

Answer = dict[str, Any]

# What a contestant's process starts with, unless the caller's environment says otherwise.
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}


def note(text: str) -> None:
    """Say what is going on, beside the figures."""
    print(text, file=sys.stderr, flush=True)


# -------------------------------------------------------------------------------------------------------- processes


def serve(build: Callable[[], tuple[Answer, Callable[[], Answer]]], *, debug: bool = False) -> None:
    """Be a contestant: build it, then take a turn for each line of standard input.

    Args:
        build: returns what is known when the contestant is ready, and the function that takes a turn.
        debug: let an error end the process, in place of an answer that names it.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print where they like; the answers' pipe is ours alone

    def answer(values: Answer) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        ready, turn = build()
        answer(ready)
        for _ in sys.stdin:
            answer(turn())
    except BrokenPipeError:
        return
    except Exception as error:
        if debug:
            raise
        answer({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


class Worker:
    """A contestant's process. `ready` is its first answer; `error` says why it can take no turn (any more)."""

    def __init__(
        self, name: str, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None, debug: bool = False
    ):
        """Start Python with the arguments, and wait until the contestant is built.

        Args:
            environment: variables set on top of the caller's.
            debug: show what the process says on standard error.
        """
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if debug else subprocess.DEVNULL,
            text=True,
            env={**ENVIRONMENT, **os.environ, **(environment or {})},
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._questions, self._answers = self.process.stdin, self.process.stdout
        self.error: str | None = None
        self.ready = self._read()

    def turn(self) -> Answer:
        """Figures of a turn; empty if it failed."""
        if self.error is not None:
            return {}
        try:
            print("go", file=self._questions, flush=True)
        except BrokenPipeError:
            self.error = f"the process ended with status {self.process.wait()}"
            return {}
        return self._read()

    def _read(self) -> Answer:
        line = self._answers.readline()
        answer = json.loads(line) if line else {"error": f"the process ended with status {self.process.wait()}"}
        self.error = answer.get("error")
        return {} if self.error is not None else answer

    def close(self) -> None:
        """Let the process end, and wait for it."""
        with contextlib.suppress(BrokenPipeError):
            self._questions.close()
        self.process.wait()


class Turns(NamedTuple):
    """Answers of all contestants. `rounds` holds, round by round, those of the contestants that took their turn."""

    ready: dict[str, Answer]
    rounds: list[dict[str, Answer]]
    errors: dict[str, str]

    def of(self, name: str) -> list[Answer]:
        """A contestant's answers."""
        return [answers[name] for answers in self.rounds if name in answers]


def take_turns(names: Iterable[str], start: Callable[[str], Worker], rounds: int, label: str = "") -> Turns:
    """Start every contestant, let them take turns over the rounds, and end them.

    Args:
        start: starts a contestant's process by its name.
        label: stands before each note of what is going on.
    """
    workers: list[Worker] = []
    answers: list[dict[str, Answer]] = []
    try:
        for name in names:
            note(f"{label}building {name}")
            workers.append(start(name))
        for number in range(rounds):
            note(f"{label}round {number + 1} of {rounds}")
            taken = {worker.name: worker.turn() for worker in workers}
            failed = {worker.name for worker in workers if worker.error is not None}
            answers.append({name: answer for name, answer in taken.items() if name not in failed})
    finally:
        for worker in workers:
            worker.close()
    ready = {worker.name: worker.ready for worker in workers}
    return Turns(ready, answers, {worker.name: worker.error for worker in workers if worker.error is not None})


def measure_apart(arguments: Sequence[str]) -> Answer:
    """The JSON object on the last line that Python prints with the arguments, in a process for this measurement alone.

    Raises:
        SystemExit: the process failed; the message holds what it said.
    """
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


# ---------------------------------------------------------------------------------------------------------- figures


def median(values: Iterable[float]) -> float | None:
    """The median; None of nothing."""
    listed = list(values)
    return statistics.median(listed) if listed else None


def ratios(numerators: Iterable[float], denominators: Iterable[float]) -> list[float]:
    """The ratio of each round, as far as both sides got."""
    return [a / b for a, b in zip(numerators, denominators, strict=False)]


# ---------------------------------------------------------------------------------------------------------- machine


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, load at this moment and date."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor()
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "date": date.today().isoformat(),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of packages; `absent` where one is not installed."""
    installed = {"python": platform.python_version()}
    for name in packages:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "absent"
    return installed
