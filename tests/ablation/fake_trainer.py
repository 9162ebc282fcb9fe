"""Stands in for `retina train` where a study's bookkeeping is tested: no network, a few milliseconds.

Called as `fake_trainer.py BOOK train CONFIG --run-dir DIR [--resume]`. BOOK is a folder: `NAME.txt` says how trial NAME
behaves (a word a call, the last one for good, "ok" without a file), `calls.txt` gets a line a call, and
`SETTING.json` has the detections that its trials write.
"""

import shutil
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    book, config, run = Path(sys.argv[1]), Path(sys.argv[3]), Path(sys.argv[5])
    name, resume = config.stem, "--resume" in sys.argv
    with open(book / "calls.txt", "a") as calls:
        calls.write(f"{name}{' resumed' if resume else ''}\n")
    if resume != (run / "checkpoints" / "latest").exists() or (run.exists() and not resume):
        print("the run directory is not as it should be")
        return 2
    behaviour = book / f"{name}.txt"
    words = behaviour.read_text().split() if behaviour.exists() else ["ok"]
    if len(words) > 1:
        behaviour.write_text(" ".join(words[1:]))
    return BEHAVIOURS[words[0]](book, name, config, run)


def ok(book: Path, name: str, config: Path, run: Path) -> int:
    (steps,) = [line.split()[1] for line in config.read_text().splitlines() if line.startswith("  steps:")]
    folder = run / "eval" / f"step_{steps}"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text('{"metrics": {"AP": 0.25}}')
    shutil.copy(book / f"{name.rpartition('_')[0]}.json", folder / "detections.json")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 2, "los')
    return 0


def checkpoint(run: Path) -> None:
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text("")
    (run / "checkpoints" / "latest").write_text("step_1")


def fails(book: Path, name: str, config: Path, run: Path) -> int:
    run.mkdir(parents=True, exist_ok=True)
    print("step 1\nretina: out of memory\n")
    return 3


def fails_late(book: Path, name: str, config: Path, run: Path) -> int:
    checkpoint(run)
    return fails(book, name, config, run)


def bad_input_late(book: Path, name: str, config: Path, run: Path) -> int:
    checkpoint(run)
    print("retina: no such data")
    return 2


def dies_silently(book: Path, name: str, config: Path, run: Path) -> int:
    return 4


def diverges(book: Path, name: str, config: Path, run: Path) -> int:
    print("retina: step 7: the loss is nan; lower optimizer.learning_rate")
    return 1


def says_nothing(book: Path, name: str, config: Path, run: Path) -> int:
    return 0


def waits(book: Path, name: str, config: Path, run: Path) -> int:
    """Until it is told to stop; then it writes its checkpoint."""
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    (book / "waiting").write_text("")
    while not told:
        time.sleep(0.01)
    checkpoint(run)
    return 75


def hangs(book: Path, name: str, config: Path, run: Path) -> int:
    checkpoint(run)
    (book / "waiting").write_text("")
    sys.stdin.read()  # ends with the process that started it
    return 1


FUNCTIONS = (ok, fails, fails_late, bad_input_late, dies_silently, diverges, says_nothing, waits, hangs)
BEHAVIOURS = {function.__name__: function for function in FUNCTIONS}

if __name__ == "__main__":
    sys.exit(main())
