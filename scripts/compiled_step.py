#!/usr/bin/env python
"""Compile the JAX training step for an H200 on a machine without one, and hold its figures to bounds.

    scripts/compiled_step.py                     ResNet-50, batch 16 at 800x800, bfloat16, frozen batch normalisation
    scripts/compiled_step.py --live --boxes 93   everything trained, more boxes: no bound then
    scripts/compiled_step.py --table             appends a row to retina/guide/gpu.md

XLA writes the program that such a GPU would run: cuDNN's calls, fusions, layouts, memory. It is not tuned and nothing
runs, so bytes, kernels and dtypes are exact as far as the text tells them, and images/s are a model
(`gpu/hlo.py`). JAX and its CUDA plugin come in the versions below, into a folder of their own (`--packages`); no CUDA
driver is needed. Prints one line of JSON; exits with 1 if a bound is exceeded and 3 if the packages can't be installed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
JAX = "0.10.2"
PACKAGES = {
    **dict.fromkeys(("jax", "jaxlib", "jax-cuda12-pjrt", "jax-cuda12-plugin"), JAX),
    "nvidia-cuda-nvcc-cu12": "12.9.86",
}
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retina" / f"compiled-step-jax-{JAX}"
TABLE = ROOT / "retina" / "guide" / "gpu.md"
MEMORY_RATES = {"h100": 3.35e12, "h200": 4.8e12}  # bytes/s
NO_PACKAGES = 3
NONE = ("whiles", "sorts", "scatters", "callbacks")


def excesses(figures: dict[str, Any]) -> list[str]:
    """Return what exceeds the bounds of the frozen step at batch 16 and 800x800."""
    bounds = {
        "gigabytes: at most 46": figures["gigabytes"] <= 46,
        "temporary_gigabytes: at most 4": figures["temporary_gigabytes"] <= 4,
        "convolutions: all of bfloat16": set(figures["convolutions"]) == {"bf16"},
        "relus_fused: at least 4/5 of relus": 5 * figures["relus_fused"] >= 4 * figures["relus"] > 0,
        "donated: the whole state": figures["donated"],
        **{f"{name}: none": figures[name] == 0 for name in NONE},
    }
    return [bound for bound, holds in bounds.items() if not holds]


# ---------------------------------------------------------------------------------------------------- compilation


def compiled(arguments: argparse.Namespace) -> tuple[str, Any, int]:
    """Return the program's text, its memory and the bytes of the step's state."""
    sys.path[:0] = [str(ROOT / "scripts" / "gpu")]
    import inputs
    import jax
    from h200 import TARGET
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding
    from plan import Part
    from retina_work import Training

    part = Part("train", "retina", "jax", arguments.backbone, canvas=tuple(arguments.canvas), frozen=not arguments.live)
    step: Any = Training(part).step
    batch = inputs.batch(1, part.canvas)
    boxes = dict.fromkeys(("boxes", "labels", "valid", "crowd"), (arguments.boxes,))
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="h200", target_config=TARGET, topology="1x1x1"
    )
    placed = SingleDeviceSharding(topology.devices[0])

    def described(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

    state = jax.tree.map(lambda v: described(v.shape, v.dtype), step._state)
    shapes = {name: (arguments.batch, *boxes.get(name, x.shape[1:2]), *x.shape[2:]) for name, x in batch.items()}
    described_batch = {name: described(shapes[name], x.dtype) for name, x in batch.items() if name != "scale"}
    # The step's own jit holds the machine's device in its cache; the same function is compiled for the GPU.
    function = jax.jit(step._step.__wrapped__, donate_argnums=0)
    program = function.trace(state, described_batch).lower(lowering_platforms=("cuda",)).compile()
    held = sum(v.size * v.dtype.itemsize for v in jax.tree.leaves(state))
    return program.as_text(), program.memory_analysis(), held


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of the compiled step."""
    text, memory, held = compiled(arguments)
    if arguments.hlo is not None:
        arguments.hlo.write_text(text)
    from hlo import Program

    program = Program.read(text)
    return {
        "date": date.today().isoformat(),
        "revision": revision(),
        "jax": JAX,
        **{name: getattr(arguments, name) for name in ("backbone", "batch", "canvas", "boxes", "live")},
        **program.figures(),
        "temporary_gigabytes": round(memory.temp_size_in_bytes * 1e-9, 2),
        "donated": memory.alias_size_in_bytes >= held,
        **{
            f"modelled_images_per_second_{gpu}": round(program.images_per_second(arguments.batch, rate))
            for gpu, rate in MEMORY_RATES.items()
        },
    }


def revision() -> str:
    """Return git's name of the checkout's state."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


# ------------------------------------------------------------------------------------------------------- packages


def install(folder: Path) -> str | None:
    """Install `PACKAGES` into the folder unless they are there; return pip's last words if that fails."""
    folders = [folder / f"{name.replace('-', '_')}-{version}.dist-info" for name, version in PACKAGES.items()]
    if all(path.is_dir() for path in folders):
        return None
    wanted = [f"{name}=={version}" for name, version in PACKAGES.items()]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stderr.strip().splitlines() or ["pip failed"])[-1] if done.returncode else None


def environment(packages: Path) -> dict[str, str]:
    """Return the environment of the process that compiles: these packages first, no GPU, JAX."""
    variables = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    binaries = packages / "nvidia" / "cuda_nvcc" / "bin"
    return {
        **variables,
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join([str(packages), str(ROOT)]),
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "KERAS_BACKEND": "jax",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def row(figures: dict[str, Any]) -> str:
    """Return the row of the guide's table."""
    height, width = figures["canvas"]
    cells = (
        figures["date"],
        f"`{figures['revision']}`",
        f"{figures['backbone']}, {'live' if figures['live'] else 'frozen'}, {figures['batch']} of {height}×{width}, "
        f"{figures['boxes']} boxes",
        figures["gigabytes"],
        figures["temporary_gigabytes"],
        figures["kernels"],
        f"{figures['relus_fused']} of {figures['relus']}",
        f"{figures['transposes_and_casts']} + {figures['copies']}",
        f"{figures['modelled_images_per_second_h100']}, {figures['modelled_images_per_second_h200']}",
    )
    return f"| {' | '.join(map(str, cells))} |\n"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--canvas", type=int, nargs=2, default=[800, 800], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--boxes", type=int, default=7, help="slots for boxes of an image")
    parser.add_argument("--live", action="store_true", help="train every stage and batch normalisation")
    parser.add_argument("--hlo", type=Path, help="file for the program's text")
    parser.add_argument("--packages", type=Path, default=CACHE, help="folder of the pinned packages (%(default)s)")
    parser.add_argument("--table", action="store_true", help=f"append a row to {TABLE.relative_to(ROOT)}")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in the process that compiles
    return parser.parse_args()


def main() -> int:
    arguments = parsed()
    if arguments.here:
        print(json.dumps(measure(arguments)), flush=True)
        return 0
    failure = install(arguments.packages)
    if failure is not None:
        print(f"compiled_step: {arguments.packages}: expected {PACKAGES}, pip says: {failure}", file=sys.stderr)
        return NO_PACKAGES
    command = [sys.executable, __file__, *sys.argv[1:], "--here"]
    done = subprocess.run(command, env=environment(arguments.packages), stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return done.returncode
    figures = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(figures), flush=True)
    if arguments.table:
        with TABLE.open("a") as file:
            file.write(row(figures))
    usual = (arguments.batch, arguments.canvas, arguments.backbone) == (16, [800, 800], "resnet50")
    exceeded = excesses(figures) if usual and not arguments.live else []
    for bound in exceeded:
        print(f"compiled_step: {bound}, got {figures[bound.partition(':')[0]]}", file=sys.stderr)
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
