#!/usr/bin/env python
"""Training batches of `retina` beside plain tf.data, torchvision and keras-cv: images a second.

All do the same work on the same JPEG files of 640x480 pixels with 7 boxes each: read, decode, zoom at random between
0.8 and 1.25 with what exceeds the canvas cropped away, flip half of them, pad to a square canvas, batch, boxes
included. The files are real photographs where `--data` names a folder in COCO's or VOC's layout: those of that size as
they are, others resized once; else smooth made-up pictures. They stay in the system's file cache: this is about
processors, not disks. How large the files are matters: what all loaders must do alike, undoing the Huffman code, takes
0.8 ms for a photograph of 90 kB, and 0.2 ms for one of 20 kB.

- retina: `training_batches` as `retina train` uses it (simplejpeg and OpenCV); `full`: with `data.decode: full`;
  `cached`: with `data.cache: memory`. With `--augment` every image gets those augmentations, too, which the others
  don't know.
- tf.data: `tf.io.decode_jpeg` and `tf.image.resize` at their defaults, flip, crop, pad; float32 pixels.
- torchvision: Pillow, `torchvision.transforms.v2` on uint8 (ToImage, ScaleJitter, RandomCrop that pads,
  RandomHorizontalFlip, SanitizeBoundingBoxes) and a DataLoader with a worker process for every core.
- keras-cv: its layers `RandomFlip` and `JitteredResize`, mapped over batches of decoded images, as its guides do it.

Each loader lives in its own process. They take turns over several rounds, so that whatever else the machine does falls
on all alike; only one loads at any time. A turn is a fresh iterator, a warm-up of a second and at least three batches,
then the clock. Ratios are medians of the rounds' own. It fails (exit code 1) if a bound is missed; a loader whose
package is missing is left out with the reason, and its bound is not checked.

    scripts/benchmark_pipeline.py --data /path/to/coco_mini --size 256 512 --rounds 5
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import Answer, Worker, machine, median, serve, take_turns
from peers import load_torchvision

HEIGHT, WIDTH, BOXES, CLASSES, SEED = 480, 640, 7, 80, 0
ZOOM, FLIP = (0.8, 1.25), 0.5
AUGMENTATIONS, ALWAYS = ("crop", "colour", "mosaic", "mixup", "erase"), {"probability": 1.0}
QUALITY = 90
FOLDERS = ("train2017", "JPEGImages")
WARM_UP_SECONDS, WARM_UP_BATCHES = 1.0, 3
# How many times as fast as that loader `retina` must be, by the side of the canvas.
BOUNDS = {256: {"tf.data": 1.5, "torchvision": 2.5, "keras-cv": 10.0}, 512: {"tf.data": 1.2}}
PACKAGES = {"torchvision": ("torch", "torchvision"), "keras-cv": ("keras_cv",)}


def photographs(data: Path) -> list[Path]:
    return sorted(file for folder in FOLDERS for file in (data / folder).glob("*.jpg"))


def write_files(folder: Path, count: int, data: Path | None) -> str:
    """Write `count` JPEG files into `folder`, and return what they show.

    Photographs are taken evenly from all of them, and repeat under other names where there are too few. Those that are
    JPEGs of 640x480 stay as they are, byte for byte.
    """
    from PIL import Image

    random = np.random.default_rng(SEED)
    if data is None:
        for number in range(count):
            picture = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
            _save(picture, folder / f"{number:05d}.jpg")
        return "made-up pictures"
    files = photographs(data)
    chosen = [
        files[number * len(files) // count] if count < len(files) else files[number % len(files)]
        for number in range(count)
    ]
    unchanged = set()
    for number, file in enumerate(chosen):
        target = folder / f"{number:05d}.jpg"
        with Image.open(file) as picture:
            if picture.format == "JPEG" and picture.size == (WIDTH, HEIGHT):
                shutil.copyfile(file, target)
                unchanged.add(file)
            else:
                _save(picture.convert("RGB"), target)
    how = f"{len(unchanged)} as they are, the others resized to {WIDTH}x{HEIGHT} at quality {QUALITY}"
    return f"{len(set(chosen))} photographs ({how if len(unchanged) < len(set(chosen)) else 'as they are'})"


def _save(picture: Any, target: Path) -> None:
    from PIL import Image

    picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(target, quality=QUALITY)


def ground_truth(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N,7,4] float32 xyxy and labels [N,7]."""
    random = np.random.default_rng(SEED)
    size = random.uniform(20, 240, (count, BOXES, 2))
    corner = random.uniform(0, 1, size.shape) * ([WIDTH, HEIGHT] - size)
    return np.concatenate([corner, corner + size], axis=2).astype(np.float32), random.integers(
        0, CLASSES, (count, BOXES)
    )


# ------------------------------------------------------------------------------------------------------- the loaders


Loader = Callable[[list[str], argparse.Namespace], Callable[[], Iterable[Any]]]
"""(files, arguments) -> a function that starts a fresh, practically endless pass over batches."""


def ours(files: list[str], args: argparse.Namespace, **settings: str) -> Callable[[], Iterable[Any]]:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from retina import config
    from retina.data.batches.training import training_batches
    from retina.data.dataset import DetectionDataset

    boxes, labels = ground_truth(len(files))
    flat = boxes.reshape(-1, 4).astype(np.float64)
    none = np.zeros(len(flat), bool)
    table = DetectionDataset(
        name="benchmark",
        class_names=tuple(str(k) for k in range(CLASSES)),
        category_ids=tuple(range(1, CLASSES + 1)),
        image_ids=tuple(range(len(files))),
        images=tuple(files),
        sizes=np.tile(np.array([HEIGHT, WIDTH], np.int32), (len(files), 1)),
        offsets=np.arange(len(files) + 1) * BOXES,
        boxes=flat,
        labels=labels.ravel(),
        crowd=none,
        difficult=none,
        areas=(flat[:, 2:] - flat[:, :2]).prod(1),
    )
    data = config.Data(
        train=config.DigitsSource(),  # not read: the table is handed over
        validation=config.DigitsSource(),
        resize=config.Resize(short=args.side, long=args.side, multiple=args.side),
        augment=config.Augment(horizontal_flip=FLIP, scale=ZOOM, **dict.fromkeys(args.augment, ALWAYS)),
        **settings,
    )
    batches = training_batches(table, data, batch_size=args.batch, seed=SEED, steps=100_000)
    return lambda: batches


def plain(files: list[str], args: argparse.Namespace) -> Callable[[], Iterable[Any]]:
    import tensorflow as tf

    side = args.side

    def example(file: Any, boxes: Any, labels: Any) -> dict[str, Any]:
        image = tf.io.decode_jpeg(tf.io.read_file(file), channels=3)
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        zoom = tf.exp(tf.random.uniform([], *np.log(ZOOM).tolist()))
        target = tf.cast(tf.round(size * side / tf.reduce_max(size) * zoom), tf.int32)
        scale = tf.cast(target, tf.float32) / size
        image, boxes = tf.image.resize(image, target), boxes * tf.tile(scale[::-1], [2])
        content = tf.minimum(target, side)
        room = tf.cast(target - content + 1, tf.float32)
        offset = tf.cast(tf.random.uniform([2]) * room, tf.int32)
        image = tf.slice(image, [offset[0], offset[1], 0], [content[0], content[1], 3])
        limits = tf.tile(tf.cast(content[::-1], tf.float32), [2])
        boxes = tf.clip_by_value(boxes - tf.tile(tf.cast(offset[::-1], tf.float32), [2]), 0.0, limits)
        flip = tf.random.uniform([]) < FLIP
        image = tf.cond(flip, lambda: tf.image.flip_left_right(image), lambda: image)
        mirrored = tf.stack([limits[0] - boxes[:, 2], boxes[:, 1], limits[0] - boxes[:, 0], boxes[:, 3]], axis=1)
        image = tf.image.pad_to_bounding_box(image, 0, 0, side, side)
        return {"images": image, "boxes": tf.where(flip, mirrored, boxes), "labels": labels}

    rows = tf.data.Dataset.from_tensor_slices((files, *ground_truth(len(files))))
    rows = rows.shuffle(len(files), seed=SEED).repeat()
    batches = rows.map(example, num_parallel_calls=tf.data.AUTOTUNE).batch(args.batch, drop_remainder=True)
    return lambda: batches.prefetch(tf.data.AUTOTUNE)


def torchvision(files: list[str], args: argparse.Namespace) -> Callable[[], Iterable[Any]]:
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset, RandomSampler

    load_torchvision()
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    all_boxes, all_labels = ground_truth(len(files))
    side = args.side
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.ScaleJitter((side, side), ZOOM, antialias=True),
            v2.RandomCrop((side, side), pad_if_needed=True),
            v2.RandomHorizontalFlip(FLIP),
            v2.SanitizeBoundingBoxes(),
        ]
    )

    class Photographs(Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, row: int) -> tuple[Any, Any]:
            boxes = tv_tensors.BoundingBoxes(all_boxes[row], format="XYXY", canvas_size=(HEIGHT, WIDTH))
            target = {"boxes": boxes, "labels": torch.from_numpy(all_labels[row])}
            return transform(Image.open(files[row]).convert("RGB"), target)

    def collate(examples: list[tuple[Any, Any]]) -> tuple[Any, list[Any]]:
        images, targets = zip(*examples, strict=True)
        return torch.stack(images), list(targets)

    data = Photographs()
    endless = RandomSampler(data, replacement=True, num_samples=100_000 * args.batch)
    loader = DataLoader(
        data, args.batch, sampler=endless, num_workers=len(os.sched_getaffinity(0)), collate_fn=collate, drop_last=True
    )
    return lambda: loader


def keras_cv(files: list[str], args: argparse.Namespace) -> Callable[[], Iterable[Any]]:
    import keras_cv as library
    import tensorflow as tf

    def example(file: Any, boxes: Any, labels: Any) -> dict[str, Any]:
        image = tf.cast(tf.io.decode_jpeg(tf.io.read_file(file), channels=3), tf.float32)
        return {"images": image, "bounding_boxes": {"boxes": boxes, "classes": tf.cast(labels, tf.float32)}}

    layers = [
        library.layers.RandomFlip("horizontal", FLIP, bounding_box_format="xyxy"),
        library.layers.JitteredResize((args.side, args.side), ZOOM, bounding_box_format="xyxy"),
    ]

    def augmented(inputs: dict[str, Any]) -> dict[str, Any]:
        for layer in layers:
            inputs = layer(inputs, training=True)
        return {**inputs, "bounding_boxes": library.bounding_box.to_dense(inputs["bounding_boxes"], BOXES)}

    rows = tf.data.Dataset.from_tensor_slices((files, *ground_truth(len(files))))
    rows = rows.shuffle(len(files), seed=SEED).repeat().map(example, num_parallel_calls=tf.data.AUTOTUNE)
    batches = rows.batch(args.batch, drop_remainder=True).map(augmented, num_parallel_calls=tf.data.AUTOTUNE)
    return lambda: batches.prefetch(tf.data.AUTOTUNE)


LOADERS: dict[str, Loader] = {
    "retina": ours,
    "retina, full": lambda files, args: ours(files, args, decode="full"),
    "retina, cached": lambda files, args: ours(files, args, cache="memory"),
    "tf.data": plain,
    "torchvision": torchvision,
    "keras-cv": keras_cv,
}


# ------------------------------------------------------------------------------------------------------- measurement


def rate(batches: Iterable[Any], args: argparse.Namespace) -> dict[str, float | None]:
    """Over `args.seconds`, after the warm-up: images a second and processor seconds an image. The iterator ends."""
    iterator: Iterator[Any] = iter(batches)
    start, warm = time.perf_counter(), 0
    while warm < WARM_UP_BATCHES or time.perf_counter() < start + WARM_UP_SECONDS:
        next(iterator)
        warm += 1
    start, busy, count = time.perf_counter(), _processor_seconds(), 0
    while time.perf_counter() < start + args.seconds or not count:
        next(iterator)
        count += 1
    seconds, images = time.perf_counter() - start, count * args.batch
    end = _processor_seconds()
    used = None if busy is None or end is None else (end - busy) / images
    return {"rate": images / seconds, "cpu": used}


def _processor_seconds() -> float | None:
    """Processor seconds of this process and its children that live (Linux only)."""
    total, this = 0, str(os.getpid())
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, fields = stat.parent.name, stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if this in (number, fields[1]):
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK") if total else None


def loader(args: argparse.Namespace) -> tuple[Answer, Callable[[], Answer]]:
    """Build a loader, and return its first answer and its turn (see `rate`)."""
    fresh = LOADERS[args.worker](sorted(str(file) for file in Path(args.files).glob("*.jpg")), args)
    return {"ready": True}, lambda: rate(fresh(), args)


def start(name: str, files: Path, side: int, args: argparse.Namespace) -> Worker:
    """A loader's process."""
    arguments = [__file__, "--worker", name, "--files", str(files), "--side", str(side)]
    arguments += [
        "--augment",
        *args.augment,
        "--batch",
        str(args.batch),
        "--seconds",
        str(args.seconds),
        *(["--debug"] if args.debug else []),
    ]
    environment = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "-1")}
    return Worker(name, arguments, environment=environment, debug=args.debug)


def measure(files: Path, side: int, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """A row for each loader: `rates` of the rounds, their median and ratios, or `error`, or `absent`."""
    rows: dict[str, dict[str, Any]] = {}
    for name in args.only:
        missing = [package for package in PACKAGES.get(name, ()) if importlib.util.find_spec(package) is None]
        if missing:
            rows[name] = {"absent": f"{', '.join(missing)} not installed"}
    present = [name for name in args.only if name not in rows]
    turns = take_turns(present, lambda name: start(name, files, side, args), args.rounds, f"{side} px: ")
    for name in present:
        error = turns.errors.get(name)
        rows[name] = {"error": error} if error else summary(name, turns.rounds, BOUNDS.get(side, {}))
    return {name: rows[name] for name in args.only}


def summary(name: str, rounds: list[dict[str, Answer]], bounds: dict[str, float]) -> dict[str, Any]:
    """Medians of a loader's rounds. `ratio` is how many times as fast `retina` is, `met` whether that is at least the
    bound (None: no bound). `cpu_ratio` is the same in processor time an image, which a busy machine disturbs less.
    """
    both = [(answers["retina"], answers[name]) for answers in rounds if {"retina", name} <= answers.keys()]
    theirs = [answers[name] for answers in rounds if name in answers]
    timed = [(a["cpu"], b["cpu"]) for a, b in both if a["cpu"] and b["cpu"]]
    rate_ratios = [a["rate"] / b["rate"] for a, b in both]
    ratio, bound = median(rate_ratios), bounds.get(name)
    return {
        "images_per_second": median(answer["rate"] for answer in theirs),
        "rates": [answer["rate"] for answer in theirs],
        "cpu_seconds_per_image": median(answer["cpu"] for answer in theirs if answer["cpu"]),
        "ratio": ratio,
        "ratios": rate_ratios,
        "cpu_ratio": median(b / a for a, b in timed),
        "bound": bound,
        "met": None if bound is None or ratio is None else ratio >= bound,
    }


def table(side: int, rows: dict[str, dict[str, Any]], rounds: int) -> str:
    lines = [
        f"{side} x {side} pixels, medians of {rounds} rounds",
        "",
        "| loader | images/s | retina is faster by | rounds | CPU ms/image | retina takes less by | bound |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        reason = row.get("absent") or row.get("error")
        if reason:
            lines.append(f"| {name} | - | - | - | - | - | {reason} |")
            continue
        spread = f"{min(row['ratios']):.2f} to {max(row['ratios']):.2f}" if row["ratios"] else "-"
        bound = "" if row["met"] is None else f"{row['bound']:g} x: {'met' if row['met'] else 'MISSED'}"
        used = row["cpu_seconds_per_image"]
        lines.append(
            f"| {name} | {row['images_per_second']:.0f} | {_times(row['ratio'])} | {spread} | "
            f"{'-' if used is None else f'{1e3 * used:.2f}'} | {_times(row['cpu_ratio'])} | {bound} |"
        )
    return "\n".join(lines)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f} x"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="photographs lie in its train2017 or JPEGImages")
    parser.add_argument("--size", type=int, nargs="+", default=[256, 512], help="sides of the canvas")
    parser.add_argument("--files", default=160, help="how many files are written")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a turn")
    parser.add_argument("--only", nargs="+", choices=list(LOADERS), default=list(LOADERS))
    parser.add_argument(
        "--augment", nargs="*", choices=AUGMENTATIONS, default=[], help="retina's own augmentations of every image"
    )
    parser.add_argument("--json", action="store_true", help="JSON on standard output instead of the tables")
    parser.add_argument("--debug", action="store_true", help="show the loaders' tracebacks and chatter")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.worker:
        return args
    try:
        args.files = int(args.files)
    except ValueError:
        parser.error(f"--files must be a number, got {args.files}")
    if min(*args.size, args.files, args.batch, args.rounds, args.seconds) <= 0:
        parser.error("--size, --files, --batch, --rounds and --seconds must be positive")
    if args.data is not None and not photographs(args.data):
        folders = " or ".join(str(args.data / folder) for folder in FOLDERS)
        parser.error(f"--data: expected *.jpg in {folders}, got none; leave it out for made-up ones")
    return args


def main() -> int:
    args = parse()
    if args.worker:
        serve(lambda: loader(args), debug=args.debug)
        return 0
    described = machine()
    with tempfile.TemporaryDirectory() as folder:
        pictures = write_files(Path(folder), args.files, args.data)
        sizes = [file.stat().st_size for file in Path(folder).iterdir()]
        results = {side: measure(Path(folder), side, args) for side in args.size}
    setting = {
        "pictures": f"{pictures}, {args.files} files of {statistics.mean(sizes) / 1e3:.0f} kB",
        "batch": args.batch,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "augment": args.augment,
    }
    if args.json:
        print(json.dumps({"setting": setting, "machine": described, "results": results}, indent=1))
    else:
        print(
            f"{setting['pictures']}; batches of {args.batch}; {described['cores']} cores, "
            f"load before {described['load_before']:.1f}"
        )
        for side, rows in results.items():
            print(f"\n{table(side, rows, args.rounds)}")
    all_rows = [row for rows in results.values() for row in rows.values()]
    return int(any("error" in row or row.get("met") is False for row in all_rows))


if __name__ == "__main__":
    sys.exit(main())
