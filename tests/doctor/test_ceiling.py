"""The AP that anchors allow, and suggestions that raise it, against values worked out by hand."""

from pathlib import Path

import numpy as np
import pytest

from retina import config
from retina.data.dataset import DetectionDataset
from retina.doctor.advice import coverage_findings, limit_findings
from retina.doctor.ceiling import ceiling, report
from retina.doctor.coverage import best_overlaps
from retina.doctor.preflight import check, preflight
from retina.doctor.suggest import cluster_ratios, propose
from retina.errors import RetinaError
from tests.doctor.made import table

EVALUATION = config.Evaluation()
# COCO's 101 recall points up to a recall of r: their share is AP.
HALF = 51 / 101


def settings(**changes) -> config.Config:
    """64 px images with one level of squares of side 32 at 4, 12, 20, …"""
    sections = {
        "data": {
            "train": {"format": "digits"},
            "validation": {"format": "digits"},
            "resize": {"short": 64, "long": 64, "multiple": 32},
        },
        "model": {"fpn": {"max_level": 3}},
        "anchors": {"scales": [1.0], "ratios": [1.0]},
        "schedule": {"kind": "cosine", "steps": 10},
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = sections
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = value
    return config.parse(sections)


def planted() -> DetectionDataset:
    """20 boxes of class a, each nearly an anchor; 20 of class b, half of them of 8 px, which no anchor covers."""
    large, small = [4, 4, 36.5, 36.5], [16, 16, 24, 24]
    return table([(64, 64)] * 40, [[large]] * 20 + [[large]] * 10 + [[small]] * 10, labels=[0] * 20 + [1] * 20,
                 names=("a", "b"))  # fmt: skip


def test_an_oracle_that_finds_nothing_has_no_ap():
    assert ceiling(planted(), np.zeros(0, int), EVALUATION)["AP"] == 0.0


def test_an_oracle_that_finds_everything_is_perfect():
    assert ceiling(planted(), np.arange(40), EVALUATION)["AP"] == pytest.approx(1.0)


def test_the_ceiling_is_the_mean_of_the_recalls_of_classes():
    found = report(planted(), settings(), 40)
    assert found.ceilings["assigned"]["AP"] == pytest.approx((1 + HALF) / 2)
    assert found.ceilings["assigned"]["APs"] == pytest.approx(0.0)
    assert found.ceilings["assigned"]["APm"] == pytest.approx(1.0)
    assert found.ceilings["forced"]["AP"] == pytest.approx(1.0)
    # 8² / 32² is far from 0.4.
    assert found.ceilings["findable"] == found.ceilings["assigned"]


def test_boxes_near_the_threshold_count_as_findable_only():
    # 22² / 32² = 0.47, between the thresholds.
    found = report(table([(64, 64)] * 2, [[[4, 4, 36, 36]], [[9, 9, 31, 31]]]), settings(), 2)
    assert found.ceilings["assigned"]["AP"] == pytest.approx(HALF)
    assert found.ceilings["findable"]["AP"] == pytest.approx(1.0)


def test_shares_by_class_size_and_level():
    found = report(planted(), settings(), 40)
    assert (found.total.covered, found.total.boxes) == (30, 40)
    assert {name: share.covered for name, share in found.classes.items()} == {"a": 20, "b": 10}
    assert (found.sizes["small"].covered, found.sizes["small"].boxes) == (0, 10)
    assert (found.canvas_sizes["medium"].covered, found.sizes["large"].boxes) == (30, 0)
    (level,) = found.levels
    # Besides its own anchor, those one cell to each side, with 0.6 nearly; the diagonal ones have 0.4.
    assert (level.level, level.sides, level.positives, level.boxes) == (3, (32.0, 32.0), 30 * 5, 30)
    assert found.forced_only == 10 and found.vanished == 0 and found.outbid == 0
    assert found.anchors == len(planted()) * 8 * 8  # 64 px at stride 8, one shape
    assert found.background_per_positive == pytest.approx((found.anchors - 150) / 150)


def test_anchors_are_counted_on_each_canvas_and_level():
    deeper = settings(model__fpn__max_level=4, anchors__ratios=[0.5, 1.0])
    found = report(table([(64, 64), (32, 64)], [[[4, 4, 36, 36]], []]), deeper, 2)
    # Two shapes on P3 and P4; the second image stays 32 x 64, as its long side is at the limit.
    assert found.anchors == 2 * (8 * 8 + 4 * 4) + 2 * (4 * 8 + 2 * 4)


def test_anchors_of_given_sizes_are_counted():
    given = settings(anchors={"sizes": [[32.0]], "ratios": [1.0]})
    assert report(planted(), given, 40).anchors == len(planted()) * 8 * 8


def test_without_a_positive_anchor_the_imbalance_has_no_bound():
    assert report(planted(), settings(anchors__size=0.5), 40).background_per_positive == float("inf")


def test_a_hopeless_set_up_is_refused_with_the_remedy_and_the_way_round():
    tiny = settings(anchors__size=0.5)
    with pytest.raises(RetinaError, match=r"preflight: train: .*\(0.0%\).*run.preflight=warn"):
        check(tiny, planted(), planted())
    told = check(settings(anchors__size=0.5, run__preflight="warn"), planted(), planted())
    assert any("error: train: 0 of 40 boxes" in line for line in told)
    assert check(settings(anchors__size=0.5, run__preflight="off"), planted(), planted()) == ()


def test_a_sound_set_up_is_not():
    lines = check(settings(), planted(), planted())
    assert lines and all(line.startswith("preflight: warning") for line in lines)


def test_a_class_without_any_anchor_is_hopeless_however_many_others_there_are():
    large, small = [4, 4, 36, 36], [16, 16, 24, 24]
    dataset = table([(64, 64)] * 40, [[large]] * 30 + [[small]] * 10, labels=[0] * 30 + [1] * 10, names=("a", "b"))
    found = {finding.code: finding.grade for finding in preflight(settings(), dataset, planted())}
    assert found["class-without-anchors"] == "error"
    few = table([(64, 64)] * 40, [[large]] * 31 + [[small]] * 9, labels=[0] * 31 + [1] * 9, names=("a", "b"))
    found = {finding.code: finding.grade for finding in preflight(settings(), few, planted())}
    assert found["rare-class-without-anchors"] == "warning" and "error" not in found.values()


def test_leakage_is_refused_before_training():
    part = planted().subset(range(20, 40))
    with pytest.raises(RetinaError, match=r"preflight: 20 image files of validation \(100.0%\) also in train"):
        check(settings(), planted(), part)
    assert any("error: 20 image files" in line for line in check(settings(run__preflight="warn"), planted(), part))
    assert any("the same 40 images" in line for line in check(settings(), planted(), planted()))


def test_a_class_that_is_never_trained_is_told():
    lines = check(settings(run__preflight="warn"), planted().subset(range(20)), planted())
    (line,) = [line for line in lines if "none in train" in line]
    assert line.startswith("preflight: warning: validation: 1 class")
    (finding,) = [one for one in preflight(settings(), planted().subset(range(20)), planted()) if one.message in line]
    assert finding.remedy and line.endswith(f"{finding.message}: {finding.remedy}.")


def test_data_without_fault_is_called_that(monkeypatch):
    monkeypatch.setattr("retina.doctor.preflight.preflight", lambda *_: ())
    assert check(settings(), planted(), planted()) == (
        "preflight: no fault in the 40 training images and their anchors.",
    )


def test_no_training_box_at_all_is_hopeless():
    with pytest.raises(RetinaError, match="none of its 1 image has a box that counts"):
        check(settings(), table([(64, 64)], [[]]), planted())


def small_boxes() -> DetectionDataset:
    """Boxes of 16 px, which the anchors of 32 px fit at twice the size only."""
    return table([(64, 64)] * 20, [[[8, 8, 24, 24]]] * 20, names=("a",))


def multi_scale(*train_short: int) -> config.Config:
    return settings(data__resize={"short": 64, "long": 256, "multiple": 32, "train_short": list(train_short)})


def test_multi_scale_training_is_judged_by_the_sizes_that_it_trains_at():
    with pytest.raises(RetinaError, match=r"train: 0 of 20 boxes \(0.0%\)"):
        check(multi_scale(), small_boxes(), small_boxes())
    found = {one.code: one for one in preflight(multi_scale(64, 128), small_boxes(), small_boxes())}
    assert found["few-boxes-covered"].grade == "warning" and "class-without-anchors" not in found
    assert "10 of 20 boxes (50.0%)" in found["few-boxes-covered"].message
    assert "sizes 64, 128" in found["few-boxes-covered"].message
    assert preflight(multi_scale(120, 128), small_boxes(), small_boxes())[0].code == "validation-is-train"
    # A size that is evaluated at but not trained at saves nothing.
    found = {one.code: one.grade for one in preflight(multi_scale(48, 64), small_boxes(), small_boxes())}
    assert found["few-boxes-covered"] == found["class-without-anchors"] == "error"


def test_a_report_says_which_sizes_were_looked_at():
    found = report(small_boxes(), multi_scale(64, 128), 20, training=True)
    assert (found.short, found.total.covered) == (64, 0)
    assert [(one.short, one.total.covered, one.classes["a"].covered) for one in found.training] == [
        (64, 0, 0),
        (128, 20, 20),
    ]
    assert report(small_boxes(), multi_scale(64, 128), 20).training == ()


def test_boxes_that_vanish_at_the_smaller_size_alone_are_trained():
    thin = table([(64, 64)], [[[8, 8, 8.8, 40]]])

    def told(some):
        seen = coverage_findings(report(thin, some, 1, training=True), some, "train")
        return "vanished-boxes" in {one.code for one in seen}

    assert told(multi_scale()) and not told(multi_scale(64, 128))


def test_findings_on_vanished_and_outbid_boxes_and_idle_levels():
    boxes = [[[5, 5, 35, 35], [8, 8, 32, 32], [50, 50, 50.5, 60]]]
    high = settings(assignment__positive_iou=0.55, model__fpn__max_level=4)
    found = {one.code: one for one in coverage_findings(report(table([(64, 64)], boxes), high, 1), high, "train")}
    assert found["vanished-boxes"].message.startswith("1 box with")
    assert found["outbid-boxes"].message.startswith("1 box without an anchor although some reach IoU 0.55")
    assert "P4" in found["idle-levels"].message


def test_more_boxes_than_a_detector_returns():
    (finding,) = limit_findings(101, settings(), "train")
    assert finding.code == "more-boxes-than-detections" and list(limit_findings(100, settings(), "train")) == []


# ----------------------------------------------------------------------------------------------------- suggestions


def test_ratios_are_clustered_by_their_logarithms():
    assert cluster_ratios(np.array([0.25, 0.25, 1.0, 1.0, 4.0, 4.0]), 3) == (0.25, 1.0, 4.0)
    assert cluster_ratios(np.array([0.5, 2.0]), 1) == (1.0,)


def wide_and_small() -> DetectionDataset:
    random = np.random.default_rng(0)
    corner = random.random((60, 2)) * [40, 50]
    boxes = np.concatenate([corner, corner + np.array([16, 5]) + random.random((60, 2))], axis=1)
    return table([(64, 64)] * 60, [[box] for box in boxes])


def test_a_suggestion_covers_more_by_the_same_code():
    before = settings(anchors__ratios=[0.5, 1.0, 2.0])
    proposal = propose(wide_and_small(), before)
    assert proposal is not None
    after = config.override(before, proposal.overrides)
    assert after.anchors == proposal.anchors and after.model.fpn == proposal.fpn
    shares = [report(wide_and_small(), one, 60).total.share for one in (before, after)]
    assert shares[0] == 0.0 and shares[1] > 0.4  # boxes 5 px high on a grid of 8 px
    assert len(after.anchors.ratios) == 3 and len(after.anchors.scales) == 1


def test_a_suggestion_is_the_same_each_time_and_pastes_as_yaml():
    import yaml

    first, second = (propose(wide_and_small(), settings()) for _ in range(2))
    assert first is not None and second is not None and first.overrides == second.overrides
    tree = yaml.safe_load(first.to_yaml())
    assert tree["anchors"]["size"] == first.anchors.size


def test_a_suggestion_is_for_the_sizes_that_are_trained():
    # Anchors of side 32 fit these boxes at the size of evaluation, but training shows them at twice that.
    squares = table([(64, 64)] * 5, [[[4, 4, 36, 36]]] * 5)
    trained = settings(data__resize={"short": 64, "long": 256, "multiple": 32, "train_short": [128]})
    proposal = propose(squares, trained)
    assert proposal is not None
    best = best_overlaps(squares, trained.data.resize.model_copy(update={"short": 128}), proposal.anchors, proposal.fpn)
    assert best.min() >= trained.assignment.positive_iou


def test_anchors_that_fit_are_left_alone():
    assert propose(table([(64, 64)] * 5, [[[4, 4, 36, 36]]] * 5), settings()) is None


def test_nothing_to_fit():
    assert propose(table([(64, 64)], [[]]), settings()) is None


def test_explicit_sizes_are_replaced_by_a_size_and_scales():
    sized = settings(anchors={"sizes": [[60.0, 62.0]], "ratios": [1.0]})
    proposal = propose(wide_and_small(), sized)
    assert proposal is not None and "anchors.sizes=null" in proposal.overrides
    assert config.override(sized, proposal.overrides).anchors == proposal.anchors


def test_bccd_with_anchors_too_large(shared_data):
    """The prediction that scripts/reproduce/bad_anchors.py holds a training to."""
    from retina.data.load import load_split

    bad = config.load(
        Path(__file__).parents[2] / "configs" / "bccd.yaml",
        [f"data.root={shared_data / 'bccd'}", "anchors.size=16.0"],
    )
    train = load_split(bad.data, "train")
    found = report(train, bad, len(train))
    assert found.total.share == pytest.approx(0.212, abs=0.001)
    assert found.ceilings["assigned"]["AP"] == pytest.approx(0.380, abs=0.002)
    assert found.ceilings["findable"]["AP"] == pytest.approx(0.528, abs=0.002)
    proposal = propose(train, bad)
    assert proposal is not None
    better = report(train, config.override(bad, proposal.overrides), len(train))
    assert better.total.share > 0.99 and better.ceilings["assigned"]["AP"] > 0.98
