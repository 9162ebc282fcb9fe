#!/usr/bin/env python3
"""Training and inference of `retina` on a GPU beside torchvision's retinanet_resnet50_fpn, and where the time goes.

Parts, each in its own process with a time limit, so that one that fails or hangs costs no other:

    peak      the card's rate of a large bfloat16 matrix product, of a 3x3 convolution and of a copy
    train     the full step of `retina train` (upload, forward, losses, gradients, update, scalars), made-up batches of
              800x800 and 800x1344 pixels, ResNet-50-FPN, 80 classes, 7 boxes an image; everything trained ("live"), and
              with two stages and all batch normalisations frozen ("frozen"); batches grow until memory ends.
              torchvision: autocast, channels last, fused SGD; `--compiled` adds its network under torch.compile
    infer     network, decoding and suppression, 1000 candidates on every large level
    profile   parts of the training step compiled apart, suppression's share, the busiest kernels (JAX)
    fed       a short training at 800 pixels from photographs (--data)
    accuracy  trains on the photographs and evaluates (--data)

A second round (`--rounds`) times each part again at its best batch, ours and torchvision's in turn; figures are medians
over the rounds. TFLOP are 2 per multiply-add of convolutions and matrix products, of the work really done (scripts/gpu/
measure.py); `of peak` is their rate by the matrix product's, in the same run.

The backend is `KERAS_BACKEND`'s, JAX by default. Records are appended to `--out` as they come; `--table FILE...` prints
the table of several such files and runs nothing. Exit code 1 if a part failed; what the budget left out is named.

    scripts/benchmark_gpu.py --compiled --budget 3600 --out gpu.jsonl
    scripts/benchmark_gpu.py --kinds peak train --tiny

Where a GPU is at hand for fifteen minutes, these two calls, in this order. Each appends a record as soon as it has one
and leaves three files in its folder: records.jsonl, log.txt, table.txt. Neither needs TensorFlow; what they need beside
JAX, PyTorch and torchvision, `scripts/carry_wheels.py` brings (9 MiB). The first is cut off after 360 s: torchvision,
the same compiled, ours at batch 32 and 64 with a trace of three steps each, the gradient check
(scripts/gpu/gradient_check.py) and inference. The second takes 180 s: training fed by files, and the digits' accuracy.

    python3 scripts/benchmark_gpu.py --call step --out gpu-step
    python3 scripts/benchmark_gpu.py --call files --out gpu-files

With --tiny both run on a CPU. `--data DIR` feeds the second from photographs, in the place of made-up files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "gpu"))

from plan import BATCHES, CALLS, Part, again, best, call_parts, parts  # noqa: E402
from table import table  # noqa: E402

KINDS = ("peak", "train", "profile", "infer", "fed", "accuracy")
# What a process needs to import its framework and to compile: no part is begun with less of the budget left.
LEAST_SECONDS = 40.0
PACKAGES = ("jax", "jaxlib", "keras", "tensorflow", "tensorflow-cpu", "torch", "torchvision")


class Runner:
    """Run parts one after another within a budget; `records` are also lines of a file, as soon as they are known."""

    def __init__(
        self,
        budget: float,
        out: IO[str] | None,
        logs: Path,
        least: float = LEAST_SECONDS,
        program: Path = HERE / "gpu" / "part.py",
    ):
        self.end, self.out, self.logs, self.least = time.monotonic() + budget, out, logs, least
        self.program = program
        self.records: list[dict[str, Any]] = []

    def run(self, part: Part) -> None:
        left = self.end - time.monotonic()
        if left < self.least:
            self._keep(part, {"not_run": "the budget was used up"})
            return
        limit = min(part.limit, left)
        note(f"{part.name}, round {part.round} (at most {limit:.0f} s)")
        log = self.logs / "log.txt"
        with log.open("a") as errors:
            print(f"--- {part.name}, round {part.round}", file=errors, flush=True)
            process = subprocess.Popen(
                [sys.executable, str(self.program), json.dumps(part.to_dict())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment(part),
                start_new_session=True,
            )
            reader = threading.Thread(target=self._read, args=(part, process.stdout), daemon=True)
            reader.start()
            try:
                status: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                # With it end what it started: compilers, data workers.
                _kill(process)
            reader.join(10)
        if status is None:
            self._keep(part, {"error": f"stopped after {limit:.0f} s"})
        elif status:
            self._keep(part, {"error": f"status {status}: {last_line(log)}"})

    def _read(self, part: Part, pipe: IO[str]) -> None:
        for line in pipe:
            self._keep(part, json.loads(line))

    def _keep(self, part: Part, values: dict[str, Any]) -> None:
        record = {"part": part.name, "round": part.round, **values, "of": part.to_dict()}
        self.records.append(record)
        if self.out is not None:
            print(json.dumps(record), file=self.out, flush=True)


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment(part: Part) -> dict[str, str]:
    """Environment of a part's process. JAX gets all memory at once, and what it compiled stays for the next round."""
    cache = Path(tempfile.gettempdir()) / f"retina_jax_cache_{os.getuid()}"
    defaults = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
    }
    return {**defaults, **os.environ, "KERAS_BACKEND": part.backend}


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing on standard error"


def run(args: argparse.Namespace, out: IO[str] | None, logs: Path) -> list[dict[str, Any]]:
    runner = Runner(args.budget, out, logs, 0.0 if args.tiny else LEAST_SECONDS)
    if args.call:
        for part in call_parts(
            args.call, backend=args.backend, data=args.data, tiny=args.tiny, precision=args.precision
        ):
            runner.run(part)
        return runner.records
    first = parts(
        backend=args.backend,
        kinds=args.kinds,
        batches=tuple(args.batches or ((1, 2) if args.tiny else BATCHES)),
        data=args.data,
        repeats=args.repeats,
        steps=args.steps,
        limit=args.limit,
        precision=args.precision,
        compiled=args.compiled,
        tiny=args.tiny,
    )
    first = [p for p in first if p.kind not in ("train", "infer", "profile") or set(args.only) <= set(p.name.split())]
    for part in first:
        runner.run(_at_the_best_batch(part, runner.records) if part.kind == "profile" else part)
    for part in again(first, runner.records, args.rounds):
        runner.run(part)
    return runner.records


def _at_the_best_batch(part: Part, records: list[dict[str, Any]]) -> Part:
    fastest = best(records, replace(part, kind="train").name)
    return replace(part, batches=(fastest["batch"],) if fastest else part.batches[:1])


def machine() -> dict[str, Any]:
    """Card, driver and versions, for whoever reads the figures."""
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        card = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        card = "no NVIDIA card"
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"card": card, "versions": versions, "date": date.today().isoformat(), "python": sys.version.split()[0]}


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    backends = ("jax", "tensorflow", "torch")
    parser.add_argument("--backend", choices=backends, default=os.environ.get("KERAS_BACKEND", "jax"))
    parser.add_argument("--call", choices=sorted(CALLS), help="one of the two calls; --out is then a folder")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="WORD",
        help="of train, infer and profile those whose name has all these words",
    )
    parser.add_argument("--batches", nargs="+", type=int, help="images a step, growing; inference takes twice as many")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--data", nargs="+", default=[], metavar="DIR", help="folders of BCCD or in COCO's layout")
    parser.add_argument("--steps", type=int, help="of `fed` and `accuracy`, in the place of their own")
    parser.add_argument("--compiled", action="store_true", help="torchvision under torch.compile as well")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="timed blocks of about a second")
    parser.add_argument("--budget", type=float, help="seconds for everything: 1500, or those of the --call")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for a part (real data: at least 600)")
    parser.add_argument("--out", type=Path, help="file of records, one JSON object a line; logs go beside it")
    parser.add_argument("--table", nargs="+", type=Path, metavar="FILE", help="print the table of these records")
    parser.add_argument("--tiny", action="store_true", help="a small network on small canvases: a test of the script")
    args = parser.parse_args(arguments)
    if args.call and args.out is None:
        parser.error("--call: expected --out FOLDER for its files")
    if args.budget is None:
        args.budget = CALLS.get(args.call, 1500.0)
    for name in ("rounds", "repeats", "budget", "limit"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name} must be positive, got {getattr(args, name)}")
    if args.batches and (args.batches != sorted(set(args.batches)) or args.batches[0] < 1):
        parser.error(f"--batches must be positive and grow, got {args.batches}")
    missing = [folder for folder in args.data if not Path(folder).is_dir()]
    if missing:
        parser.error(f"--data: expected folders, {missing[0]} is none")
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if args.table:
        lines = [json.loads(line) for file in args.table for line in file.read_text().splitlines()]
        print(table([line for line in lines if "part" in line]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        out = None
        if args.out is not None:
            logs = args.out if args.call else args.out.with_suffix(".logs")
            logs.mkdir(parents=True, exist_ok=True)
            out = (args.out / "records.jsonl" if args.call else args.out).open("a")
        try:
            about = machine()
            note(f"{about['card']}; {', '.join(f'{k} {v}' for k, v in about['versions'].items())}")
            if out is not None:
                print(json.dumps({"machine": about, "budget": args.budget}), file=out, flush=True)
            records = run(args, out, logs)
        finally:
            if out is not None:
                out.close()
    print(table(records))
    if args.call:
        (args.out / "table.txt").write_text(table(records) + "\n", encoding="utf-8")
    failed = [record for record in records if "error" in record]
    for record in failed:
        note(f"failed: {record['part']}: {record['error']}")
    return 1 if failed else 0


if __name__ == "__main__":
    # A scheduler that ends the script must not leave a part behind on the card.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
