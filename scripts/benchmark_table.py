#!/usr/bin/env python
"""Time and memory that a COCO-sized annotation file takes to become a table, and an epoch of it to be planned.

It writes a COCO JSON file of the size asked for into a temporary folder, by repetition of a few hundred made-up objects
with polygons as long as COCO's (the real `instances_train2017.json`: 118,287 images, 860,001 annotations, 448 MB),
beside as many empty image files, since reading checks that they exist. Then, in processes of their own, several times:

- load: reading the file with `coco_records` and making the table, by the clock, and the processor's time for it, which
  says how much a busy machine added;
- peak memory: of that whole process, interpreter and libraries included;
- table: the bytes of its arrays, of its image paths and of its ids;
- plan: laying the images out on canvases (`plan.fit`) and drawing one epoch (`plan.training_plan`), at batch 16.

Each figure is the median of the rounds, peak memory the largest. It fails (exit code 1) if a bound is exceeded.

    scripts/benchmark_table.py --images 118000 --boxes 860000 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path

import numpy as np
from harness import measure_apart

CLASSES = 80
DISTINCT = 500  # objects drawn; the file repeats them
BATCH = 16
# What a table of COCO's size may take.
BOUNDS = {"load, s": 15.0, "peak memory, GB": 1.5, "plan, s": 0.5}


def write_coco(folder: Path, images: int, boxes: int) -> Path:
    """A COCO file in `folder` with its (empty) image files."""
    random = np.random.default_rng(0)
    sides = random.choice([640, 640, 500, 480, 427, 375, 333], (DISTINCT, 2)).tolist()
    entries = []
    for number in range(DISTINCT):
        corner, size = random.uniform(0, 150, 2), np.exp(random.normal(4, 0.6, 2)).clip(2, 180)
        points = (corner + random.uniform(0, 1, (random.integers(8, 36), 2)) * size).round(2)
        entries.append(
            f'"segmentation": [{points.ravel().tolist()}], "area": {size.prod():.4f}, "iscrowd": 0, '
            f'"bbox": {[*corner.round(2).tolist(), *size.round(2).tolist()]}, '
            f'"category_id": {_category(number % CLASSES)}'
        )
    (folder / "images").mkdir()
    for image in range(images):
        (folder / "images" / f"{image:012d}.jpg").touch()
    path = folder / "instances.json"
    categories = [{"id": _category(k), "name": f"class {k}", "supercategory": "thing"} for k in range(CLASSES)]
    with path.open("w") as file:
        file.write(f'{{"info": {{}}, "licenses": [], "categories": {json.dumps(categories)}, "images": [')
        for image in range(images):
            height, width = sides[image % DISTINCT]
            file.write(
                f'{", " * (image > 0)}{{"license": 3, "file_name": "{image:012d}.jpg", '
                f'"coco_url": "http://images.example.org/train2017/{image:012d}.jpg", "height": {height}, '
                f'"width": {width}, "date_captured": "2013-11-14 11:18:45", '
                f'"flickr_url": "http://farm9.example.com/{image:010d}_{image:010x}_z.jpg", "id": {image + 1}}}'
            )
        file.write('], "annotations": [')
        for number in range(boxes):
            image = number * images // boxes
            file.write(
                f'{", " * (number > 0)}{{{entries[number % DISTINCT]}, "image_id": {image + 1}, "id": {number + 1}}}'
            )
        file.write("]}")
    return path


def _category(label: int) -> int:
    """Ids with gaps, as COCO's."""
    return label + 1 + label // 10


def measure(annotations: Path) -> dict[str, float]:
    """The figures of this process."""
    from retina import config
    from retina.data.batches import plan
    from retina.data.dataset import build
    from retina.data.formats.coco import coco_records

    start, busy = time.perf_counter(), time.process_time()
    table = build(coco_records(annotations, annotations.parent / "images"))
    loaded, used = time.perf_counter(), time.process_time() - busy
    # Before the plan: that needs little, and the question is what reading takes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.perf_counter()
    geometry = plan.fit(table.sizes, config.Resize())
    plan.training_plan(geometry, batch_size=BATCH, seed=0, epoch=0)
    planned = time.perf_counter()
    columns = ("sizes", "offsets", "boxes", "labels", "crowd", "difficult", "areas")
    arrays = sum(getattr(table, name).nbytes for name in columns)
    texts = sum(map(sys.getsizeof, chain(table.images, table.image_ids)))
    return {
        "load, s": loaded - start,
        "load, CPU s": used,
        "peak memory, GB": peak / 1e9,
        "table, MB": (arrays + texts) / 1e6,
        "plan, s": planned - began,
        "images": len(table),
        "boxes": len(table.boxes),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--boxes", type=int, default=860_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure)))
        return 0
    if min(arguments.images, arguments.boxes, arguments.rounds) < 1:
        parser.error("--images, --boxes and --rounds must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        path = write_coco(Path(folder), arguments.images, arguments.boxes)
        print(f"{arguments.images:,} images, {arguments.boxes:,} boxes, a file of {path.stat().st_size / 1e6:.0f} MB")
        rounds = [measure_apart([__file__, "--measure", str(path)]) for _ in range(arguments.rounds)]
    print(f"\n| figure | median of {arguments.rounds} | all | bound |\n|---|---|---|---|")
    exceeded = False
    for name in ("load, s", "load, CPU s", "peak memory, GB", "table, MB", "plan, s"):
        values = [figures[name] for figures in rounds]
        figure = max(values) if "memory" in name else statistics.median(values)
        bound = BOUNDS.get(name)
        exceeded |= bound is not None and figure > bound
        every = ", ".join(f"{value:.3g}" for value in values)
        print(f"| {name} | {figure:.3g} | {every} | {'' if bound is None else f'{bound:g}'} |")
    if exceeded:
        print("a bound is exceeded", file=sys.stderr)
    return int(exceeded)


if __name__ == "__main__":
    sys.exit(main())
