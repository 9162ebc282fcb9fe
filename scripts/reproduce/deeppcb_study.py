#!/usr/bin/env python
"""Train the study of γ and α on circuit boards: pilots choose α, then pilots the learning rates, then come the seeds.

    .venv/bin/python scripts/reproduce/deeppcb_study.py ../shared/data/deeppcb --for 90m

It goes on from the results in `--kept`, and packs its own into the same archive: the plans, outcomes and detections of
finished trials, no checkpoints. Where time is up it ends with code 75, and the same command goes on. `retina ablate
--report OUT/adamw` writes tables and page again. With the archive unpacked and `--for 1s` nothing is trained.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from retina.ablation.directory import Study
from retina.ablation.execute import seconds_of
from retina.config.reading import read_yaml, write_yaml
from retina.files import written

REPOSITORY = Path(__file__).parents[2]
KEPT = REPOSITORY / "notebooks/data/deeppcb_study.tar.xz"
CONFIG = REPOSITORY / "configs/ablation_deeppcb.yaml"
OTHERS = REPOSITORY / "configs/grids/deeppcb.yaml"
PILOT = ["schedule.steps=75", "schedule.warmup_steps=8", "run.evaluate_every=75", "--seeds", "1"]
PILOT_PAIRS = "0:0.25,0:0.5,0:0.75,0:0.9,0:0.99"
ADAMW_RATES = "optimizer.learning_rate=0.0005,0.001,0.002,0.004,0.008"
SGD_RATES = "optimizer.learning_rate=0.01,0.03,0.1"
# The optimizer and schedule of arXiv:1708.02002, section 4.1, to the length of a training here.
SGD = [
    "optimizer={{kind: sgd, momentum: 0.9, learning_rate: {}, weight_decay: 0.0001, clip_norm: 10.0}}",
    "schedule={{kind: step, steps: 300, milestones: [200, 267], factor: 0.1, warmup_steps: 30}}",
]
# The pilots give cross-entropy a rate of 0.1, which at the full length turns out worse than this one.
SLOWER = 0.03
TIME_UP = 75


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of DeepPCB, with annotations/ and images/")
    parser.add_argument("--out", type=Path, default=Path("runs/deeppcb_study"), help="(%(default)s)")
    parser.add_argument("--kept", type=Path, default=KEPT, metavar="ARCHIVE", help="(notebooks/data/%(metavar)s)")
    parser.add_argument("--for", dest="time", default="90m", help="stop after this time (%(default)s)")
    arguments = parser.parse_args()
    until = time.monotonic() + seconds_of("--for", arguments.time)
    data = arguments.data.absolute()  # as a study stores it
    if arguments.kept.is_file() and not arguments.out.exists():
        unpack(arguments.kept, arguments.out, data)
    try:
        return study(data, arguments.out, until)
    finally:
        pack(arguments.out, arguments.kept)


def study(data: Path, out: Path, until: float) -> int:
    """Train what is missing; return the exit code of the first part that does not end."""

    def ablate(part: str, *words: str) -> int:
        left = until - time.monotonic()
        if left < 1:
            return TIME_UP
        given = ["ablate", str(CONFIG), f"data.root={data}", *words, "--out", str(out / part), "--for", f"{left:.0f}s"]
        print(f"retina {' '.join(given)}", flush=True)
        return subprocess.run([sys.executable, "-m", "retina", *given]).returncode

    if code := ablate("alpha", *PILOT, "--pairs", PILOT_PAIRS):
        return code
    alpha = best_alpha(out / "alpha")
    pair = f"0:{alpha:g},2:0.25"
    further = f"{pair},1:0.25" if alpha == 0.75 else f"{pair},0:0.75,1:0.25"  # 0.75 is the paper's best
    adamw = ["adamw", "--tune", ADAMW_RATES, "--pairs"]
    trials = planned(out / "adamw")  # a study that has grown is not made smaller again
    return (
        (trials <= 6 and ablate(*adamw, pair, "--seeds", "3"))
        or ablate("sgd", *sgd(0.01), "--tune", SGD_RATES, "--pairs", pair, "--seeds", "3")
        or ablate("sgd_slower", *sgd(SLOWER), "--pairs", pair, "--seeds", "3")
        or (trials <= 10 and ablate(*adamw, pair, "--seeds", "5"))
        or ablate("others", "--grid", str(OTHERS), "--seeds", "1")
        or ablate(*adamw, further, "--seeds", f"3,gamma0_alpha{alpha:g}=5,gamma2_alpha0.25=5")
    )


def sgd(rate: float) -> list[str]:
    return [text.format(rate) for text in SGD]


def planned(folder: Path) -> int:
    """Return the number of trials that the study in the folder plans, 0 without one."""
    return len(Study.open(folder).plan.trials) if (folder / "study.yaml").is_file() else 0


def best_alpha(out: Path) -> float:
    """Return α of the pilot with the highest AP."""
    settings = json.loads((out / "study.json").read_text(encoding="utf-8"))["settings"]
    return max(settings, key=lambda setting: setting["figures"]["AP"]["mean"])["alpha"]


def unpack(archive: Path, out: Path, data: Path) -> None:
    """Unpack the kept results, as if they had been trained on the data where they lie here."""
    with tarfile.open(archive) as packed:
        packed.extractall(out, filter="data")
    for file in out.rglob("study.yaml"):
        file.write_text(with_root(file, str(data)), encoding="utf-8")


def pack(out: Path, archive: Path) -> None:
    """Write the plans, outcomes and last evaluations of all finished trials, unless the archive holds more files."""
    plans = sorted(plan for plan in out.rglob("study.yaml") if results(plan.parent))
    files = [file for plan in plans for file in (*results(plan.parent), plan.parent / "study.json")]
    files = [file for file in files if file.is_file()]
    if archive.is_file():
        with tarfile.open(archive) as packed:
            if len(packed.getnames()) > len(plans) + len(files):
                print(f"{archive}: left as it is, {out} holds fewer results")
                return
    with written(archive) as file, tarfile.open(file, "w:xz", preset=9) as packed:
        for plan in plans:
            text = with_root(plan, "deeppcb").encode()
            member = tarfile.TarInfo(str(plan.relative_to(out)))
            member.size = len(text)
            packed.addfile(member, io.BytesIO(text))
        for result in files:
            packed.add(result, result.relative_to(out), filter=anonymous)
    print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")


def with_root(plan: Path, root: str) -> str:
    tree = read_yaml(plan, str(plan))
    tree["config"]["data"]["root"] = root
    return write_yaml(tree)


def results(folder: Path) -> list[Path]:
    study = Study.open(folder)
    return [
        file
        for trial in study.plan.trials
        if study.is_finished(trial)
        for file in (
            study.file(trial, "json"),
            study.run_dir(trial) / "metrics.jsonl",
            *sorted(study.evaluation(trial).glob("*.json")),
        )
    ]


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    sys.exit(main())
