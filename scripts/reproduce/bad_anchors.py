#!/usr/bin/env python
"""Hold the doctor's AP ceiling to a training: anchors far too large for blood cells, and those that it suggests.

    .venv/bin/python scripts/reproduce/bad_anchors.py ../shared/data/bccd [--size 12] [--steps 800] [--out DIR]

Trains configs/bccd.yaml, smaller, with `anchors.size` set to --size, and again with what the doctor suggests for that;
evaluates both on the validation split; and prints the predicted ceilings beside what was trained, by class as well.
Exit code 1 unless AP of the bad anchors stays below its ceiling (the one that counts boxes near the threshold) and that
of the suggested ones exceeds it. AP50 is printed beside it but decides nothing: it asks for no more than half an
overlap, so it can gain a little from boxes predicted from anchors that overlap them by less than the ceiling counts.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import retina
from retina import config as configuration
from retina.doctor.ceiling import report
from retina.doctor.suggest import propose

ROOT = Path(__file__).resolve().parents[2]
# 0.4 of the pixels of configs/bccd.yaml. Both flips, but no zoom: the ceiling is that of boxes as they are, and a zoom
# of 1.25 would bring some of the red cells to the size of the bad anchors.
SMALLER = [
    "data.resize={short: 240, long: 320, multiple: 32}",
    "data.augment={horizontal_flip: 0.5, vertical_flip: 0.5}",
    "run={batch_size: 8, precision: mixed_bfloat16, preflight: warn, pictures: 0}",
]
FIGURES = ("AP", "AP50", "APs", "APm", "APl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="holds Annotations, ImageSets and JPEGImages")
    parser.add_argument("--size", type=float, default=12.0, help="anchors.size of the bad configuration (%(default)s)")
    parser.add_argument("--steps", type=int, default=800, help="of each training (%(default)s)")
    parser.add_argument("--out", type=Path, help="keep the runs here")
    arguments = parser.parse_args()

    bad = configuration.load(
        ROOT / "configs" / "bccd.yaml",
        [
            f"data.root={arguments.root.resolve()}",
            *SMALLER,
            f"anchors.size={arguments.size}",
            f"schedule={{kind: cosine, steps: {arguments.steps}, warmup_steps: {min(50, arguments.steps)}}}",
        ],
    )
    train, validation = (retina.load_split(bad.data, split) for split in ("train", "validation"))
    proposal = propose(train, bad)
    if proposal is None:
        sys.exit(f"anchors.size {arguments.size:g} covers as much as any other: choose a worse one")
    print("suggested:", " ".join(proposal.overrides))
    suggested = configuration.override(bad, proposal.overrides)
    with tempfile.TemporaryDirectory() as folder:
        trained = {
            name: compare(name, config, (arguments.out or Path(folder)) / name, validation)
            for name, config in (("bad", bad), ("suggested", suggested))
        }
    bad_figures, ceilings = trained["bad"]
    suggested_figures, _ = trained["suggested"]
    bounds = ceilings["findable"]
    held = holds(bad_figures["AP"], bounds["AP"], suggested_figures["AP"])
    print(
        "\npredicted for the bad anchors: "
        + ", ".join(
            f"{figure} at most {bounds[figure]:.3f} (trained {bad_figures[figure]:.3f}; suggested anchors "
            f"{suggested_figures[figure]:.3f})"
            for figure in ("AP", "AP50")
        )
    )
    print("the prediction holds" if held else "the prediction does NOT hold")
    sys.exit(0 if held else 1)


def holds(trained: float, ceiling: float, suggested: float) -> bool:
    """Return whether training stayed below the ceiling of the bad anchors, and exceeds it with the suggested ones."""
    return trained <= ceiling < suggested


def compare(name: str, config: retina.Config, run: Path, validation: retina.DetectionDataset) -> tuple[dict, dict]:
    """Train, print the ceilings beside the figures of that training, and return figures and ceilings."""
    coverage = report(validation, config, len(validation))
    print(f"\n{name}: {coverage.total.share:.1%} of the validation boxes have a positive anchor", flush=True)
    start = time.perf_counter()
    retina.train(config, run)
    metrics, _, _ = retina.evaluate(run, "validation", checkpoint="latest")
    print(f"{name}, {config.schedule.steps} steps and two evaluations in {time.perf_counter() - start:.0f} s")
    print(f"{'':12}{'ceiling':>10}{'near too':>10}{'trained':>10}")
    for figure in FIGURES:
        ceilings = [coverage.ceilings[kind][figure] for kind in ("assigned", "findable")]
        print(f"{figure:12}" + "".join(f"{value:10.3f}" for value in (*ceilings, metrics.metrics[figure])))
    print(f"{'':12}{'covered':>10}{'':10}{'AP':>10}{'AP50':>10}")
    for label, share in coverage.classes.items():
        of_class = metrics.per_class[label]
        print(f"{label:12}{share.share:10.1%}{'':10}{of_class['AP']:10.3f}{of_class['AP50']:10.3f}")
    sys.stdout.flush()
    return metrics.metrics, coverage.ceilings


if __name__ == "__main__":
    main()
