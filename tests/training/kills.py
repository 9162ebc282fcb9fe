"""Kills trainings in front of their file operations, and resumes them: a program of its own, see test_kills.py.

The package is imported once; each training, made of stand-ins, is a fork of this process, so that dozens take seconds.
A child is killed with SIGKILL just before the n-th time that it opens, renames, removes or makes something in its run
directory.

    python -m tests.training.kills FOLDER SEED COUNT|all        prints JSON
"""

import gc
import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path

from retina.startup import import_tensorflow_quietly

import_tensorflow_quietly()

from retina import config as configuration  # noqa: E402
from retina.data.formats.digits import read_digits  # noqa: E402
from retina.runs.checkpoint import read  # noqa: E402
from retina.runs.directory import RunDirectory  # noqa: E402
from retina.training.train import train  # noqa: E402
from tests.training import stand_ins  # noqa: E402

SETTINGS = [*stand_ins.SETTINGS, "run.early_stopping={patience: 3}"]
EVENTS = ("open", "os.rename", "os.remove", "os.mkdir")


def kill_before(run: str, number: int) -> list[str]:
    """Ends this process in front of file operation `number` (from 0) in the run; gives the operations so far."""
    seen: list[str] = []

    def hook(event, arguments):
        if event in EVENTS and str(arguments[0]).startswith(run):
            if event == "open" and isinstance(arguments[1], str) and arguments[1].startswith("r"):
                return
            if len(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(f"{event} {str(arguments[0]).removeprefix(run)}")

    sys.addaudithook(hook)
    return seen


def child(run: Path, data: tuple, number: int, resume: bool) -> int | list[str]:
    """Trains in a fork: the signal that ended it, or what it did to its files."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            seen = kill_before(str(run), number)
            train(
                configuration.load(None, SETTINGS),
                run,
                resume=resume,
                train_data=data[0],
                validation_data=data[1],
                collaborators=stand_ins.collaborators(),
            )
            os.write(writer, json.dumps(seen).encode())
            code = 0
        except BaseException:
            os.write(writer, json.dumps([traceback.format_exc()]).encode())
        os._exit(code)
    os.close(writer)
    said = b""
    while piece := os.read(reader, 65536):
        said += piece
    os.close(reader)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if status:
        raise RuntimeError(json.loads(said)[0])
    return json.loads(said)


def outcome(run: Path) -> tuple[dict, list, dict]:
    """What two runs that are equal bit for bit agree on."""
    saved = read(RunDirectory.open(run).checkpoint_path("latest"))
    lines = [{k: v for k, v in line.items() if k not in stand_ins.WALL_CLOCK} for line in RunDirectory(run).metrics()]
    arrays = {name: array.tobytes().hex() for name, array in saved.arrays.items()}
    files = {str(file.relative_to(run)): file.read_text() for file in run.glob("eval/*/*")}
    files |= {name: (run / "checkpoints" / name).read_text() for name in ("best", "latest")}
    files["names"] = " ".join(sorted(file.name for file in (run / "checkpoints").iterdir()))
    progress = {"step": saved.step, "best": saved.best, **saved.progress}
    return {"arrays": arrays, "progress": progress}, lines, files


def main() -> None:
    folder, seed, count = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    data = read_digits("train", 8, 64), read_digits("validation", 4, 64)
    # A training looks for garbage: in every fork, among all that was imported here, which took most of its time.
    gc.collect()
    gc.freeze()
    whole = folder / "whole"
    operations = child(whole, data, -1, resume=False)
    expected = outcome(whole)
    numbers = range(len(operations))
    draw = random.Random(seed)
    chosen = numbers if count == "all" else sorted(draw.sample(numbers, int(count)))
    rows = []
    for number in chosen:
        run = folder / f"killed_{number}"
        ends = [child(run, data, number, resume=False)]
        # Killed once more on the way, not later than it would take to finish.
        again = draw.randrange(1, 20)
        ends.append(child(run, data, again, resume=True))
        ends.append(child(run, data, -1, resume=True))
        found = outcome(run)
        rows.append(
            {
                "before": operations[number],
                "again": again,
                "killed": [end == signal.SIGKILL for end in ends],
                "equal": [one == other for one, other in zip(found, expected, strict=True)],
            }
        )
    print(
        json.dumps(
            {"operations": len(operations), "steps": expected[0]["progress"], "lines": expected[1], "rows": rows}
        )
    )


if __name__ == "__main__":
    main()
