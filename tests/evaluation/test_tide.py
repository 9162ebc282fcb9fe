"""TIDE: each kind by hand, a plain loop written from the paper, the authors' toolbox, and hotcoco."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina.data.ground_truth import ground_truth
from retina.errors import RetinaError
from retina.evaluation import matching
from retina.evaluation.matching import best_of_each, pairs
from retina.evaluation.tide import BKG, BOTH, CLS, DUPE, KINDS, LOC, tide
from tests.data.formats.tables import read_voc
from tests.evaluation.made import crowded, drawn, found, iou, truth
from tests.evaluation.test_voc import from_corner_files

BOX = (0, 0, 10, 10)
FAR = (50, 50, 10, 10)
NOWHERE = (80, 80, 10, 10)
NEAR = (5, 0, 10, 10)  # 1/3 of BOX
NAMES = (*KINDS, "Miss")


def counted(errors):
    return {kind: count for kind, count in errors.counts.items() if count}


# ------------------------------------------------------------------------------------------------------- degenerate


@pytest.mark.parametrize("images", [0, 1])
def test_nothing_at_all(images):
    errors = tide(truth([], images=images), found([]))
    assert errors.base_ap == -1.0
    assert errors.delta_ap == dict.fromkeys(NAMES) and errors.special == {"FP": None, "FN": None}
    assert errors.counts == dict.fromkeys(NAMES, 0)
    assert len(errors.kinds) == len(errors.boxes) == len(errors.missed) == 0


def test_boxes_without_detections():
    errors = tide(truth([(0, 0, BOX), (0, 0, FAR)]), found([]))
    assert errors.base_ap == 0.0
    assert counted(errors) == {"Miss": 2}
    assert errors.missed.tolist() == [True, True]
    # Nothing is left to measure once the missed boxes are gone: 0, not 1.
    assert errors.delta_ap == dict.fromkeys(NAMES, 0.0) and errors.special == {"FP": 0.0, "FN": 0.0}


def test_detections_without_boxes():
    errors = tide(truth([]), found([(0, 0, BOX, 0.9), (0, 0, BOX, 0.8)]))
    assert errors.base_ap == -1.0 and errors.delta_ap["Bkg"] is None
    assert errors.kinds.tolist() == [BKG, BKG] and errors.boxes.tolist() == [-1, -1]
    assert counted(errors) == {"Bkg": 2}


def test_a_detection_without_area_is_background():
    errors = tide(truth([(0, 0, BOX)]), found([(0, 0, (5, 5, 0, 0), 0.9)]))
    assert errors.kinds.tolist() == [BKG]


@pytest.mark.parametrize(("threshold", "background"), [(0.5, 0.0), (0.5, 0.6), (1.5, 0.1), (0.5, float("nan"))])
def test_wrong_thresholds(threshold, background):
    with pytest.raises(RetinaError, match="expected 0 < background_iou <= iou <= 1") as error:
        tide(truth([]), found([]), iou=threshold, background_iou=background)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("label", "box", "kind", "about"),
    [
        (0, BOX, -1, -1),
        (0, NEAR, LOC, 0),
        (1, BOX, CLS, 0),
        (1, NEAR, BOTH, 0),
        (0, NOWHERE, BKG, -1),
        (0, (0, 0, 5, 10), -1, -1),  # exactly 0.5: a hit
        (1, (0, 0, 5, 10), CLS, 0),  # exactly 0.5
        (0, (0, 0, 1, 10), LOC, 0),  # exactly 0.1: Loc comes before Bkg
        (1, (0, 0, 1, 10), BKG, -1),  # exactly 0.1
    ],
)
def test_one_detection(label, box, kind, about):
    errors = tide(truth([(0, 0, BOX)], classes=2), found([(0, label, box, 0.9)]))
    assert errors.kinds.tolist() == [kind]
    assert errors.boxes.tolist() == [about]
    # Only Loc and Cls errors point to the box; otherwise it is missed unless found.
    assert errors.missed.tolist() == [kind in (BOTH, BKG)]


def test_a_duplicate_and_its_order_of_tests():
    there = truth([(0, 0, BOX)], classes=2)
    errors = tide(there, found([(0, 0, BOX, 0.9), (0, 0, BOX, 0.8), (0, 0, (0, 0, 5, 10), 0.7)]))
    # The third overlaps by exactly 0.5, where Loc and Dupe meet: Loc is tested first.
    assert errors.kinds.tolist() == [-1, DUPE, LOC]
    assert errors.boxes.tolist() == [-1, 0, 0]
    # A box of another class under the same place turns a duplicate into a wrong class.
    both = truth([(0, 0, BOX), (0, 1, BOX)], classes=2)
    errors = tide(both, found([(0, 0, BOX, 0.9), (0, 0, BOX, 0.8)]))
    assert errors.kinds.tolist() == [-1, CLS] and errors.boxes.tolist() == [-1, 1]


def test_other_images_are_other_images():
    there = truth([(0, 0, BOX), (1, 0, FAR)], images=2)
    errors = tide(there, found([(1, 0, BOX, 0.9)]))
    assert errors.kinds.tolist() == [BKG]
    assert errors.missed.tolist() == [True, True]


def test_costs_by_hand():
    # Class a: a box placed badly (0.9), a box found (0.8). Class b: a box found (0.7), a box taken for an a (0.6).
    there = truth([(0, 0, BOX), (0, 0, FAR), (1, 1, BOX), (1, 1, FAR)], images=2, classes=2)
    detected = found([(0, 0, NEAR, 0.9), (0, 0, FAR, 0.8), (1, 1, BOX, 0.7), (1, 0, FAR, 0.6)])
    errors = tide(there, detected)
    half = 51 / 101  # recalls 0 to 0.5
    assert errors.kinds.tolist() == [LOC, -1, -1, CLS]
    assert errors.base_ap == pytest.approx((half / 2 + half) / 2, abs=1e-12)
    # Placed well: right, right, wrong: class a has 1, class b stays.
    assert errors.delta_ap["Loc"] == pytest.approx((1 + half) / 2 - errors.base_ap, abs=1e-12)
    # Moved to class b: class a has half / 2 as before (the error was behind its hit), class b has 1.
    assert errors.delta_ap["Cls"] == pytest.approx((half / 2 + 1) / 2 - errors.base_ap, abs=1e-12)
    assert {kind for kind in NAMES if errors.delta_ap[kind]} == {"Loc", "Cls"}
    assert errors.special["FP"] == pytest.approx(half - errors.base_ap, abs=1e-12)
    # Of the found boxes alone: class a wrong, right: 1/2; class b 1.
    assert errors.special["FN"] == pytest.approx(0.75 - errors.base_ap, abs=1e-12)
    assert errors.counts == {"Cls": 1, "Loc": 1, "Both": 0, "Dupe": 0, "Bkg": 0, "Miss": 0}
    assert errors.per_class["a"] == errors.counts
    assert errors.per_class["b"] == dict.fromkeys(NAMES, 0)


def test_removing_what_is_wrong():
    there = truth([(0, 0, BOX)], classes=2)
    for box, label, kind in ((NOWHERE, 0, "Bkg"), (BOX, 0, "Dupe")):
        first = 0.9 if kind == "Bkg" else 0.7
        second = truth([(0, 0, BOX), (0, 0, FAR)], classes=2) if kind == "Dupe" else there
        rows = [(0, label, box, first), (0, 0, BOX if kind == "Bkg" else FAR, 0.6)]
        rows += [(0, 0, BOX, 0.8)] if kind == "Dupe" else []
        errors = tide(second, found(rows))
        assert counted(errors) == {kind: 1}
        assert errors.delta_ap[kind] == errors.special["FP"] == pytest.approx(1 - errors.base_ap, abs=1e-12)
        assert errors.base_ap < 1


def test_one_box_is_mended_once_by_the_best_of_cls_and_loc():
    there = truth([(0, 0, BOX)], classes=2)
    errors = tide(there, found([(0, 0, NEAR, 0.6), (0, 1, BOX, 0.9), (0, 0, NEAR, 0.5)]))
    assert errors.kinds.tolist() == [LOC, CLS, LOC]
    # The Cls error comes first and takes the box, so that mending Loc only removes.
    assert errors.delta_ap["Cls"] == pytest.approx(1.0) and errors.delta_ap["Loc"] == 0.0
    assert counted(errors) == {"Cls": 1, "Loc": 2}


def test_errors_about_a_found_box_are_removed():
    there = truth([(0, 0, BOX)])
    errors = tide(there, found([(0, 0, NEAR, 0.9), (0, 0, BOX, 0.8)]))
    assert errors.base_ap == pytest.approx(0.5) and errors.delta_ap["Loc"] == pytest.approx(0.5)


def test_missed_boxes_are_taken_out_of_the_count():
    there = truth([(0, 0, BOX), (0, 0, FAR)], classes=1)
    errors = tide(there, found([(0, 0, BOX, 0.9)]))
    assert errors.missed.tolist() == [False, True]
    assert errors.delta_ap["Miss"] == errors.special["FN"] == pytest.approx(1 - 51 / 101, abs=1e-12)


@pytest.mark.parametrize("flag", ["crowd", "difficult"])
def test_flagged_boxes(flag):
    there = truth([(0, 0, BOX), (0, 0, FAR, flag)], classes=2)
    errors = tide(there, found([(0, 0, FAR, 0.9), (0, 0, BOX, 0.8), (0, 1, FAR, 0.7), (0, 0, (55, 50, 10, 10), 0.6)]))
    # On it: neither. In another class, or too little on it: background, since an ignored box explains nothing.
    inside = flag == "crowd"  # half of the last one lies in the crowd
    assert errors.kinds.tolist() == [-1, -1, BKG, -1 if inside else BKG]
    assert errors.missed.tolist() == [False, False]
    assert errors.base_ap == pytest.approx(1.0)


def test_the_limit():
    there = truth([(0, 0, BOX)], classes=2)
    errors = tide(there, found([(0, 0, NOWHERE, 0.9), (0, 0, BOX, 0.8), (0, 1, NOWHERE, 0.1)]), max_detections=1)
    assert errors.kinds.tolist() == [BKG, -1, BKG] and errors.base_ap == 0.0


# ------------------------------------------------------------------------------------------------------------- pairs


def test_pairs_in_pieces():
    keys, box_keys = np.array([3, 1, 9, 1, 3, 9]), np.array([1, 3, 1, 2, 3, 1])
    expected = [(d, b) for d in range(6) for b in range(6) if keys[d] == box_keys[b]]
    for limit in (1, 2, 4, 100):
        pieces = list(pairs(keys, box_keys, limit))
        assert [(int(d), int(b)) for piece in pieces for d, b in zip(*piece, strict=True)] == expected
        # A detection is never cut in two.
        members = [set(piece[0].tolist()) for piece in pieces]
        assert sum(len(group) for group in members) == len(set.union(*members)) == 4
    assert len(list(pairs(keys, box_keys, 1))) == 4 and len(list(pairs(keys, box_keys, 100))) == 1
    assert list(pairs(np.zeros(0, np.int64), box_keys)) == []
    assert list(pairs(keys, np.zeros(0, np.int64))) == []


def test_best_takes_the_first_of_equal_ones():
    group, value = np.array([0, 0, 0, 4, 7, 7]), np.array([0.1, 0.5, 0.5, 0.0, -1.0, -2.0])
    assert best_of_each(group, value).tolist() == [1, 3, 4]
    assert best_of_each(np.zeros(0, np.int64), np.zeros(0)).tolist() == []


# ------------------------------------------------------------------------------------------------------- peers


def loop(there, detected, threshold, background):
    """The paper's section 2 for one detection after the other; COCO's matching is held to pycocotools elsewhere."""
    matches = matching.match(there, detected, iou_thresholds=[threshold])
    state = {
        int(row): "right" if right else "wrong" if wrong else ""
        for row, right, wrong in zip(matches.rows, matches.right[0], matches.wrong[0], strict=True)
    }
    is_found = {int(box) for box, right in zip(matches.truth[0], matches.right[0], strict=True) if right}
    ranking = sorted(state, key=lambda row: (-detected.scores[row], detected.image[row], row))
    kinds, about = {}, {}
    for row in ranking:
        if state[row] != "wrong":
            continue
        boxes = [
            box for box in range(len(there.boxes)) if there.counted[box] and there.image[box] == detected.image[row]
        ]
        overlap = {box: iou(detected.boxes[row].tolist(), there.boxes[box].tolist()) for box in boxes}
        own = [box for box in boxes if there.labels[box] == detected.labels[row]]
        other = [box for box in boxes if there.labels[box] != detected.labels[row]]

        def most(of, overlap=overlap):
            which = max(of, key=overlap.get, default=None)  # The first of equal ones.
            return (overlap[which], which) if of else (-1.0, None)

        used = [box for box in own if box in is_found]
        if background <= most(own)[0] <= threshold:
            kinds[row], about[row] = "Loc", most(own)[1]
        elif most(other)[0] >= threshold:
            kinds[row], about[row] = "Cls", most(other)[1]
        elif most(used)[0] >= threshold:
            kinds[row], about[row] = "Dupe", most(used)[1]
        elif most(boxes)[0] <= background:
            kinds[row], about[row] = "Bkg", -1
        else:
            kinds[row], about[row] = "Both", most(boxes)[1]
    taken, mended = set(is_found), set()
    for row in ranking:
        if kinds.get(row) in ("Cls", "Loc") and about[row] not in taken:
            taken.add(about[row])
            mended.add(row)
    missed = {box for box in range(len(there.boxes)) if there.counted[box]} - taken

    def mean_ap(kind=None, no_wrong=False, gone=()):
        figures = []
        for label in range(len(there.class_names)):
            total = sum(1 for box in np.flatnonzero(there.counted) if there.labels[box] == label)
            if not total:
                continue
            total -= sum(1 for box in gone if there.labels[box] == label)
            hits, misses, curve = 0, 0, []
            for row in ranking:
                mend = kinds.get(row) == kind and kind is not None
                if not state[row] or (mend and row not in mended) or (no_wrong and state[row] == "wrong"):
                    continue
                home = there.labels[about[row]] if mend and kind == "Cls" else detected.labels[row]
                if home == label:
                    right = state[row] == "right" or mend
                    hits, misses = hits + right, misses + (not right)
                    curve.append((hits, hits / (hits + misses)))
            points = [
                max([p for h, p in curve if h / total >= r], default=0.0) if total else 0.0 for r in matching.RECALLS
            ]
            figures.append(sum(points) / 101)
        return sum(figures) / len(figures) if figures else None

    base = mean_ap()
    if base is None:
        return kinds, about, missed, None, {}, {}
    delta = {kind: max(mean_ap(kind) - base, 0) for kind in KINDS}
    delta["Miss"] = max(mean_ap(gone=missed) - base, 0)
    lost = {box for box in range(len(there.boxes)) if there.counted[box]} - is_found
    special = {"FP": mean_ap(no_wrong=True) - base, "FN": mean_ap(gone=lost) - base}
    return kinds, about, missed, base, delta, special


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), thresholds=st.sampled_from([(0.5, 0.1), (0.75, 0.3), (1.0, 0.05)]))
def test_equal_to_the_loop(seed, thresholds):
    there, detected = drawn(seed)
    errors = tide(there, detected, iou=thresholds[0], background_iou=thresholds[1])
    kinds, about, missed, base, delta, special = loop(there, detected, *thresholds)
    assert {row: KINDS[kind] for row, kind in enumerate(errors.kinds) if kind >= 0} == kinds
    assert {row: box for row, box in enumerate(errors.boxes.tolist()) if errors.kinds[row] >= 0} == about
    assert set(np.flatnonzero(errors.missed).tolist()) == missed
    assert errors.counts == {
        **{kind: list(kinds.values()).count(kind) for kind in KINDS},
        "Miss": len(missed),
    }
    for kind in NAMES:
        assert sum(counts[kind] for counts in errors.per_class.values()) == errors.counts[kind]
    if base is None:
        assert errors.base_ap == -1.0
    else:
        assert errors.base_ap == pytest.approx(base, abs=1e-12)
        assert errors.delta_ap == pytest.approx(delta, abs=1e-12)
        assert errors.special == pytest.approx(special, abs=1e-12)


def toolbox():
    """What the authors' toolbox, tidecv 1.0.1, found, by seed: `tidecv_reference.py` wrote it."""
    return json.loads((Path(__file__).parent / "tidecv_reference.json").read_text())


def hold_to_the_toolbox(errors, expected):
    assert errors.kinds.tolist() == expected["kinds"]
    assert errors.counts == expected["counts"]
    assert errors.base_ap == pytest.approx(expected["base_ap"], abs=1e-12)
    assert errors.delta_ap == pytest.approx(expected["delta_ap"], abs=1e-12)
    assert errors.special == pytest.approx(expected["special"], abs=1e-12)


def test_equal_to_the_toolbox(monkeypatch):
    # Its recalls are quotients; pycocotools', and so ours, are multiples of 0.01.
    monkeypatch.setattr(matching, "RECALLS", np.arange(101) / 100)
    seeds = [int(name) for name in toolbox() if name != "voc100"]
    assert len(seeds) > 50
    for seed in seeds:
        hold_to_the_toolbox(tide(*drawn(seed, images=6, flags=False, ties=False)), toolbox()[str(seed)])


def hotcoco_tide(there, detected):
    import hotcoco

    tree = {
        "images": [{"id": image + 1, "width": 500, "height": 500} for image in range(len(there))],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(there.class_names)],
        "annotations": [
            {
                "id": row + 1,
                "image_id": int(there.image[row]) + 1,
                "category_id": int(there.labels[row]) + 1,
                "bbox": there.boxes[row].tolist(),
                # Below every area range: ignored, which is how a difficult box is told to COCO's engines.
                "area": -1.0 if there.difficult[row] else float(there.areas[row]),
                "iscrowd": int(there.crowd[row]),
            }
            for row in range(len(there.boxes))
        ],
    }
    coco = hotcoco.COCO(tree)
    entries = [
        {
            "image_id": int(detected.image[row]) + 1,
            "category_id": int(detected.labels[row]) + 1,
            "bbox": detected.boxes[row].tolist(),
            "score": float(detected.scores[row]),
        }
        for row in range(len(detected))
    ]
    evaluation = hotcoco.COCOeval(coco, coco.load_res(entries), "bbox")
    evaluation.evaluate()
    return evaluation.tide_errors()


def test_equal_to_hotcoco_on_drawn_cases():
    compared = 0
    for seed in range(60):
        there, detected = drawn(seed, flags=False, ties=False)
        if not len(detected) or not len(there.boxes):
            continue
        compared += 1
        errors, expected = tide(there, detected), hotcoco_tide(there, detected)
        assert errors.base_ap == pytest.approx(expected["ap_base"], abs=1e-12)
        assert errors.counts == expected["counts"]
        assert {**errors.delta_ap, **errors.special} == pytest.approx(expected["delta_ap"], abs=1e-12)
    assert compared > 50


def test_hotcoco_lets_ignored_boxes_explain_errors():
    """Where it departs from us and from the authors' toolbox: a detection beside a crowd is Loc there, Bkg here."""
    there = truth([(0, 0, BOX), (0, 0, FAR, "crowd")])
    detected = found([(0, 0, (57, 50, 10, 10), 0.9)])
    assert counted(tide(there, detected)) == {"Bkg": 1, "Miss": 1}
    assert hotcoco_tide(there, detected)["counts"]["Loc"] == 1


def test_a_real_model_on_voc(shared_data, monkeypatch):
    """All boxes used: then the toolbox, hotcoco and we must agree on real detections."""
    folder = shared_data / "voc100"
    dataset = read_voc(folder, ("all",), difficult="use")
    there, detected = ground_truth(dataset), from_corner_files(folder, dataset)
    errors, expected = tide(there, detected), hotcoco_tide(there, detected)
    assert errors.base_ap == pytest.approx(expected["ap_base"], abs=1e-12)
    assert errors.counts == expected["counts"]
    assert {**errors.delta_ap, **errors.special} == pytest.approx(expected["delta_ap"], abs=1e-12)
    assert errors.counts["Bkg"] > 0 and errors.counts["Loc"] > 0 and errors.delta_ap["Loc"] > 0
    monkeypatch.setattr(matching, "RECALLS", np.arange(101) / 100)
    hold_to_the_toolbox(tide(there, detected), toolbox()["voc100"])


def test_many_detections_in_pieces():
    there, detected = crowded(1, images=300, per_image=100, boxes_per_image=12, classes=10)
    assert len(detected) * 12 > 1 << 18  # more than one piece
    errors, expected = tide(there, detected), hotcoco_tide(there, detected)
    assert errors.counts == expected["counts"]
    assert {**errors.delta_ap, **errors.special} == pytest.approx(expected["delta_ap"], abs=1e-12)
