#!/usr/bin/env python3
"""Detect small objects in a picture of 6000 x 4000 pixels: as a whole, in tiles, and board by board.

    .venv/bin/python scripts/reproduce/tiles.py [--run RUN] [--tile 256] [--overlap 0.5]

Digits are learned first, by configs/digits.yaml in five minutes, unless such a run is given. Unseen boards of 256
pixels with unseen handwriting are put side by side into one picture, which the detector sees as a whole, shrunk to its
128 pixels, and in tiles, which know nothing of the boards. For the figures each detection goes to the board that holds
its centre, so that tiles and single boards are judged by the same truth; the boards alone are the best that tiles can
reach.

Prints AP with intervals over the boards, and what is detected with scores of at least 0.4: boxes that are there (IoU
0.5, their class), and detections beside them. Exits with 0 if the tiles' AP lies within the interval of the boards'.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import retina
from retina import config
from retina.data.dataset import DetectionDataset
from retina.data.detections import DetectionTable
from retina.data.formats.digits import read_digits
from retina.data.ground_truth import file_truth, results
from retina.data.images import table_image
from retina.evaluation.judging import Score, judge
from retina.evaluation.matching import match
from retina.inference import Detections

BOARD, SCORE = 256, 0.4
WIDTH, HEIGHT = 6000, 4000


def side_by_side(boards: DetectionDataset) -> tuple[np.ndarray, np.ndarray]:
    """The picture, grey where no board is, and the place [N, 2] of each board's upper left corner, x and y."""
    picture = np.full((HEIGHT, WIDTH, 3), 127, np.uint8)
    columns = WIDTH // BOARD
    places = np.array([(row % columns, row // columns) for row in range(len(boards))]) * BOARD
    for row, (x, y) in enumerate(places):
        picture[y : y + BOARD, x : x + BOARD] = table_image(boards, row)
    return picture, places


def of_boards(detections: Detections, places: np.ndarray) -> DetectionTable:
    """The detections of the picture as those of the boards that hold their centres."""
    centres = (detections.boxes[:, :2] + detections.boxes[:, 2:]) / 2
    inside = (centres[:, None] >= places) & (centres[:, None] < places + BOARD)
    board, held = inside.all(-1).argmax(1), inside.all(-1).any(1)
    boxes = np.clip(detections.boxes - np.tile(places[board], 2), 0, BOARD)
    return DetectionTable(board[held], boxes[held], detections.scores[held], detections.labels[held])


def judged(name: str, table: DetectionTable, boards: DetectionDataset, seconds: float) -> Score:
    """Print a line of figures."""
    truth = file_truth(boards)
    score = judge(truth, results(table, boards), protocol="coco", settings=config.Evaluation())
    confident = table.scores >= SCORE
    sure = DetectionTable(*(column[confident] for column in (table.image, table.boxes, table.scores, table.labels)))
    right = int(match(truth, results(sure, boards), iou_thresholds=(0.5,)).right.sum())
    figures, intervals = score.to_json()["metrics"], score.to_json()["intervals"]["metrics"]
    low, high = intervals["AP"]
    print(
        f"{name:14} AP {figures['AP']:.3f} ({low:.3f} to {high:.3f})  AP50 {figures['AP50']:.3f}   "
        f"{right:5} of {len(boards.boxes)} objects detected, {len(sure) - right:4} detections beside them, "
        f"{seconds:.0f} s",
        flush=True,
    )
    return score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--tile", type=int, default=BOARD)
    parser.add_argument("--overlap", type=float, default=0.5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run or retina.train(config.load(Path("configs/digits.yaml")), Path(folder) / "run")
        predictor = retina.load(run)
    boards = read_digits("test", images=(WIDTH // BOARD) * (HEIGHT // BOARD), size=BOARD)
    picture, places = side_by_side(boards)
    scores = {}
    for name, options in (("whole picture", {}), ("tiles", {"tile": arguments.tile, "overlap": arguments.overlap})):
        start = time.perf_counter()
        (detections,) = predictor.predict(picture, **options)
        scores[name] = judged(name, of_boards(detections, places), boards, time.perf_counter() - start)
    start = time.perf_counter()
    single = predictor.predict(picture[y : y + BOARD, x : x + BOARD] for x, y in places)
    table = DetectionTable(
        np.repeat(np.arange(len(single)), [len(detections) for detections in single]),
        *(
            np.concatenate([getattr(detections, name) for detections in single])
            for name in ("boxes", "scores", "labels")
        ),
    )
    boards_alone = judged("boards alone", table, boards, time.perf_counter() - start)
    low, high = boards_alone.to_json()["intervals"]["metrics"]["AP"]
    tiles = scores["tiles"].to_json()["metrics"]["AP"]
    print(f"the tiles' AP lies {'within' if low <= tiles <= high else 'outside'} the interval of the boards alone")
    sys.exit(0 if low <= tiles <= high else 1)


if __name__ == "__main__":
    main()
