"""Run the trials of a study, each in a fresh process, one after another or on a Ray cluster."""

from __future__ import annotations

import itertools
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retina.ablation.directory import Outcome, Study
from retina.ablation.plan import Trial
from retina.errors import Interrupted, RetinaError, install_hint
from retina.runs.interruption import InterruptionGuard

Say = Callable[[str], None]

BAD_INPUT = 2
INTERRUPTED = 75  # the exit code of `retina train` after a signal

# `retina`, ended at once when the process that started it is gone: its standard input, a pipe, then closes. Otherwise
# it would go on without a reader of its result, and the study's next call would train the same trial next to it.
_RETINA = (
    "import os, runpy, threading\n"
    "def end_with_parent():\n"
    "    os.read(0, 1)\n"  # not sys.stdin: its lock, held by this thread, would break the end of the interpreter
    "    os._exit(1)\n"
    "threading.Thread(target=end_with_parent, daemon=True).start()\n"
    "runpy.run_module('retina', run_name='__main__')\n"
)

# The last line of `retina train` when its numbers are no longer finite.
_TIME_UP = "the time is up"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_DIVERGED = re.compile(r"step \d+: the (loss|norm of the gradient) is -?(nan|inf)")


@dataclass(frozen=True)
class Work:
    """The inputs of a trial, ready to be sent to another machine (with the same files).

    Attributes:
        name: of the trial.
        config, run_dir, log: its configuration, run directory and log.
        results: the files that exist once it is finished.
        retries: attempts after the first that fails.
        program: a program in place of this Python's `retina`, called with `train CONFIG --run-dir DIR [--resume]`.
    """

    name: str
    config: Path
    run_dir: Path
    log: Path
    results: tuple[Path, ...]
    retries: int
    program: tuple[str, ...] = ()

    def command(self, resume: bool) -> list[str]:
        program = self.program or (sys.executable, "-c", _RETINA)
        return [*program, "train", str(self.config), "--run-dir", str(self.run_dir), *(["--resume"] if resume else [])]


def work_of(study: Study, trial: Trial, retries: int, program: tuple[str, ...] = ()) -> Work:
    """Write the configuration of a trial and return its work."""
    study.write_config(trial)
    results = tuple(study.evaluation(trial).absolute() / name for name in ("metrics.json", "detections.json"))
    return Work(
        trial.name,
        study.file(trial, "yaml").absolute(),
        study.run_dir(trial).absolute(),
        study.file(trial, "log").absolute(),
        results,
        retries,
        program,
    )


def run_locally(
    study: Study,
    *,
    retries: int,
    say: Say,
    again: str,
    until: float = math.inf,
    program: tuple[str, ...] = (),
    lock: int = -1,
) -> None:
    """Run the trials that are not finished, one after another; record how each ended.

    Args:
        retries: further attempts at a trial that fails.
        say: called with each line of progress.
        again: the command that resumes the study, for the message of an interruption.
        until: the time by `time.monotonic` at which the running trial is told to write its checkpoint and end.
        program: see `Work`.
        lock: a descriptor that each process inherits, -1 for none.

    Raises:
        Interrupted: a signal came or the time is up, and the running trial has written its checkpoint.
    """
    progress = _Progress(study, say)
    with InterruptionGuard(say) as guard:
        for trial in progress.todo:
            if time.monotonic() >= until:
                raise progress.interrupted(_TIME_UP, again)
            progress.starts(trial)
            work = work_of(study, trial, retries, program)
            outcome = run_trial(work, stop=lambda: bool(guard.signal) or time.monotonic() >= until, lock=lock)
            if outcome is None:
                raise progress.interrupted(guard.signal or _time_up(until), again)
            study.record(trial, outcome)
            progress.ended(trial, outcome)


def run_on_ray(
    study: Study, *, retries: int, say: Say, again: str, until: float = math.inf, program: tuple[str, ...] = ()
) -> None:
    """Do the same as `run_locally` with a Ray task for each trial, on a cluster whose machines see the study's folder.

    The cluster is that at `RAY_ADDRESS`, else that of this machine. A trial takes a CPU slot, and a GPU where the
    cluster has any.

    Raises:
        RetinaError: Ray is not installed, or there is no cluster.
        Interrupted: see `run_locally`.
    """
    try:
        import ray
    except ImportError:
        raise RetinaError(f"--executor ray: Ray is not installed; {install_hint('ray')}") from None
    progress = _Progress(study, say)
    if not progress.todo:
        return
    already = ray.is_initialized()
    if not already:
        try:
            ray.init(address="auto", log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise RetinaError(
                f"--executor ray: no cluster found ({reason}); start one with: ray start --head"
            ) from None
    try:
        with InterruptionGuard(say) as guard:
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
            task = ray.remote(max_retries=0, num_gpus=gpus)(_on_worker)
            pending = {task.remote(work_of(study, trial, retries, program)): trial for trial in progress.todo}
            progress.workers = int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1))
            cancelled = interrupted = False
            while pending:
                done, _ = ray.wait(list(pending), num_returns=1, timeout=0.5)
                for reference in done:
                    trial = pending.pop(reference)
                    outcome = _result(ray, reference)
                    if outcome is None:
                        interrupted = True
                        continue
                    study.record(trial, outcome)
                    progress.ended(trial, outcome)
                if (guard.signal or interrupted or _time_up(until)) and not cancelled:
                    cancelled = True
                    for reference in pending:
                        ray.cancel(reference)
            if cancelled or interrupted:
                raise progress.interrupted(guard.signal or _time_up(until), again)
    finally:
        if not already:
            ray.shutdown()


def run_trial(work: Work, *, stop: Callable[[], bool], lock: int = -1) -> Outcome | None:
    """Train a trial to its end, from its checkpoint if it has one; return None if it was interrupted.

    A retry resumes from the checkpoint as well, unless the attempt that failed had resumed from one: then it starts
    from the beginning, except after bad input, which is no fault of the checkpoint.
    """
    start = time.monotonic()
    attempts, error, resumed, code = 0, "", False, 0
    while attempts <= work.retries:
        resumed = _prepare(work.run_dir, restart=resumed and code != BAD_INPUT)
        attempts += 1
        before = work.log.stat().st_size if work.log.exists() else 0
        code = _run_process(work.command(resumed), work.log, stop, lock)
        seconds = round(time.monotonic() - start, 1)
        if code == 0 and all(file.is_file() for file in work.results):
            return Outcome("finished", attempts, seconds)
        if code == INTERRUPTED or stop():
            return None
        error = _last_line(work.log, before) or f"exit code {code}"
        if code == 0:
            error = "the process ended without its last evaluation"
        elif code < 0:
            error = f"killed by signal {-code}; its last line: {error}"
        if _DIVERGED.search(error):
            return Outcome("diverged", attempts, seconds, error)
    return Outcome("failed", attempts, round(time.monotonic() - start, 1), error)


class _Progress:
    """Trials that are left, and lines of progress."""

    def __init__(self, study: Study, say: Say):
        self.study, self.say, self.workers = study, say, 1
        self.trials = study.plan.trials
        self.todo = [trial for trial in self.trials if study.outcome(trial).status not in ("finished", "diverged")]
        self.left = len(self.todo)
        self.seconds: list[float] = []
        if self.todo and len(self.todo) < len(self.trials):
            say(f"{len(self.trials) - len(self.todo)} of {len(self.trials)} trials are already done")

    def starts(self, trial: Trial) -> None:
        self.say(f"{self._place(len(self.trials) - self.left + 1)} {trial.name} …")

    def ended(self, trial: Trial, outcome: Outcome) -> None:
        self.left -= 1
        self.seconds.append(outcome.seconds)
        text = (
            f"{self._place(len(self.trials) - self.left)} {trial.name}: {outcome.status} in {duration(outcome.seconds)}"
        )
        if (figure := self.study.figure(trial)) is not None:
            text += f", AP {figure:.3f}"
        if outcome.attempts > 1:
            text += f", {outcome.attempts} attempts"
        if outcome.error:
            text += f": {outcome.error}"
        if self.left:
            remaining = sum(self.seconds) / len(self.seconds) * self.left / self.workers
            text += f"  ({self.left} left, about {duration(remaining)})"
        self.say(text)

    def interrupted(self, signal: str, again: str) -> Interrupted:
        done = len(self.trials) - self.left
        return Interrupted(
            f"{signal or 'a trial was interrupted'}: {done} of {len(self.trials)} trials are done; resume with: {again}"
        )

    def _place(self, number: int) -> str:
        return f"[{number}/{len(self.trials)}]"


def duration(seconds: float) -> str:
    """Return a duration as text: `1:05` for 65 seconds, `1:00:05` for an hour and five seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def seconds_of(option: str, text: str) -> float:
    """Return the seconds of a duration such as `90m`, `1.5h` or `30s`.

    Raises:
        RetinaError: names the option and the text.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise RetinaError(f"{option}: expected a duration such as 90m, 1.5h or 30s, got '{text}'")
    return float(match[1]) * _SECONDS[match[2]]


def _time_up(until: float) -> str:
    return _TIME_UP if time.monotonic() >= until else ""


def _prepare(run_dir: Path, restart: bool) -> bool:
    """Return whether the run can be resumed; else remove its folder, or move it aside if it has checkpoints."""
    if not restart and (run_dir / "checkpoints" / "latest").is_file() and (run_dir / "config.yaml").is_file():
        return True
    if (run_dir / "checkpoints").is_dir():
        aside = (run_dir.with_name(f"{run_dir.name}.failed_{number}") for number in itertools.count(1))
        run_dir.rename(next(path for path in aside if not path.exists()))
    elif run_dir.exists():
        shutil.rmtree(run_dir)
    return False


def _run_process(command: Sequence[str], log: Path, stop: Callable[[], bool], lock: int) -> int:
    """Run a process and return its exit code; once `stop` returns true, send SIGTERM a single time."""
    with open(log, "ab") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            # In a new session: Ctrl-C must reach it once, from here, and not a second time from the terminal.
            start_new_session=True,
            pass_fds=(lock,) if lock >= 0 else (),
        )
    assert process.stdin is not None, "a pipe was asked for"
    terminated = False
    try:
        while True:
            try:
                return process.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                if stop() and not terminated:
                    terminated = True
                    process.terminate()
    except KeyboardInterrupt:
        # Ray's cancellation, or a second Ctrl-C: after the first it writes its checkpoint, the second ends it at once.
        process.terminate()
        process.wait()
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdin.close()


def _last_line(log: Path, start: int) -> str:
    """Last line of the log after its first `start` bytes."""
    with open(log, "rb") as file:
        file.seek(0, 2)
        file.seek(max(start, file.tell() - 4000))
        lines = [line.strip() for line in file.read().decode("utf-8", errors="replace").splitlines()]
    return next((line[:300] for line in reversed(lines) if line), "")


def _on_worker(work: Work) -> Outcome | None:
    try:
        return run_trial(work, stop=lambda: False)
    except KeyboardInterrupt:  # how Ray cancels
        return None


def _result(ray: Any, reference: Any) -> Outcome | None:
    try:
        outcome: Outcome | None = ray.get(reference)
    except ray.exceptions.TaskCancelledError:
        return None
    except ray.exceptions.RayError as error:
        text = " ".join(str(error).split())
        return Outcome("failed", 1, 0.0, text[:300])
    return outcome
