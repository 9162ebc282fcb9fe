"""Writes `tidecv_reference.json`: what the authors' toolbox finds in random cases of `made.py` and in voc100.

    pip install tidecv==1.0.1 && python -m tests.evaluation.tidecv_reference ../shared/data

The toolbox is no dependency of the tests: it needs OpenCV, and with it libraries of the desktop.
"""

import json
import sys
from pathlib import Path

import numpy as np

from retina.data.ground_truth import ground_truth
from retina.evaluation.tide import KINDS
from tests.data.formats.tables import read_voc
from tests.evaluation.made import drawn
from tests.evaluation.test_voc import from_corner_files


def toolbox(there, detected):
    """The authors' own run: AP, costs, kinds of all detections."""
    from tidecv.data import Data
    from tidecv.quantify import TIDERun

    boxes, detections = Data("truth"), Data("found")
    for image in range(len(there)):
        boxes.add_image(image, str(image))
    for image, label, box in zip(there.image.tolist(), there.labels.tolist(), there.boxes.tolist(), strict=True):
        boxes.add_ground_truth(image, label, box)
    for row in range(len(detected)):
        detections.add_detection(
            int(detected.image[row]),
            int(detected.labels[row]),
            float(detected.scores[row]),
            detected.boxes[row].tolist(),
        )
    done = TIDERun(boxes, detections, 0.5, 0.1, "bbox", 100)
    kinds = np.full(len(detected), -1)
    for error in done.errors:
        if hasattr(error, "pred"):
            kinds[error.pred["_id"]] = KINDS.index(error.short_name)
    costs = {kind.short_name: cost / 100 for kind, cost in done.fix_main_errors().items()}
    special = {kind.short_name: cost / 100 for kind, cost in done.fix_special_errors().items()}
    counts = {kind.short_name: len(errors) for kind, errors in done.error_dict.items()}
    return done.ap / 100, costs, {"FP": special["FalsePos"], "FN": special["FalseNeg"]}, counts, kinds


def entry(there, detected):
    base, costs, special, counts, kinds = toolbox(there, detected)
    return {"base_ap": base, "delta_ap": costs, "special": special, "counts": counts, "kinds": kinds.tolist()}


def main(data):
    voc = read_voc(data / "voc100", ("all",), difficult="use")
    reference = {"voc100": entry(ground_truth(voc), from_corner_files(data / "voc100", voc))}
    for seed in range(60):
        there, detected = drawn(seed, images=6, flags=False, ties=False)
        # Only with all three classes on both sides do both average over the same ones.
        if len(set(there.labels)) == len(set(detected.labels)) == 3:
            reference[seed] = entry(there, detected)
    Path(__file__).with_suffix(".json").write_text(json.dumps(reference) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
