"""How well anchors cover boxes, against overlaps worked out by hand."""

import numpy as np
import pytest

from retina import config
from retina.data.dataset import DetectionDataset
from retina.doctor.coverage import best_overlaps

ANCHORS = config.Anchors(scales=(1.0,), ratios=(1.0,))
# One level: squares of side 32 centred at 4, 12, 20, …
FPN = config.Fpn(min_level=3, max_level=3)
RESIZE = config.Resize(short=64, long=64, multiple=32)


def table(sizes, boxes) -> DetectionDataset:
    """`sizes`: (height, width) of each image; `boxes`: its list of xyxy."""
    flat = np.array([box for some in boxes for box in some], np.float64).reshape(-1, 4)
    return DetectionDataset(
        name="made up",
        class_names=("a",),
        category_ids=(1,),
        image_ids=tuple(range(len(sizes))),
        images=tuple(f"{i}.png" for i in range(len(sizes))),
        sizes=np.array(sizes, np.int32).reshape(-1, 2),
        offsets=np.cumsum([0] + [len(some) for some in boxes]),
        boxes=flat,
        labels=np.zeros(len(flat)),
        crowd=np.zeros(len(flat), bool),
        difficult=np.zeros(len(flat), bool),
        areas=np.ones(len(flat)),
    )


def test_images_without_boxes_give_nothing():
    assert best_overlaps(table([(64, 64)], [[]]), RESIZE, ANCHORS, FPN).shape == (0,)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([4, 4, 36, 36], 1.0),  # the anchor at (20, 20)
        ([12, 12, 28, 28], 0.25),  # 16² / 32²
        ([8, 4, 40, 36], 28 * 32 / (2 * 1024 - 28 * 32)),  # half-way between two anchors
        ([0, 0, 64, 64], 0.25),  # 32² / 64²
        ([20, 20, 20.5, 20.5], 0.25 / 1024),
    ],
)
def test_one_box(box, expected):
    found = best_overlaps(table([(64, 64)], [[box]]), RESIZE, ANCHORS, FPN)
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_boxes_are_seen_at_the_size_that_the_network_sees():
    # 128 x 256 becomes 32 x 64: the box [16, 16, 144, 80] becomes 32 x 16 pixels in [4, 4, 36, 20].
    found = best_overlaps(table([(128, 256)], [[[16, 16, 144, 80]]]), RESIZE, ANCHORS, FPN)
    np.testing.assert_allclose(found, [512 / 1024], rtol=1e-6)


def test_each_row_belongs_to_its_own_image():
    sizes = [(64, 64), (64, 64), (128, 128)]
    boxes = [[[4, 4, 36, 36]], [], [[24, 24, 56, 56], [8, 8, 72, 72]]]
    # The third image is halved: [12, 12, 28, 28] and [4, 4, 36, 36].
    found = best_overlaps(table(sizes, boxes), RESIZE, ANCHORS, FPN)
    np.testing.assert_allclose(found, [1.0, 0.25, 1.0], rtol=1e-6)


def test_the_best_of_scales_ratios_and_levels_counts():
    anchors = config.Anchors(scales=(0.5, 1.0), ratios=(0.25, 1.0))
    fpn = config.Fpn(min_level=3, max_level=4)
    boxes = [
        [12, 12, 28, 28],  # scale 0.5 at level 3: side 16 at (20, 20)
        [4, 16, 36, 24],  # the same of ratio 0.25: 32 x 8
        [8, 8, 40, 40],  # scale 0.5 at level 4: side 32 at (24, 24)
    ]
    found = best_overlaps(table([(64, 64)], [boxes]), RESIZE, anchors, fpn)
    np.testing.assert_allclose(found, [1.0, 1.0, 1.0], rtol=1e-6)


def test_real_platelets_need_a_larger_scale(shared_data):
    """Half size leaves most platelets of BCCD without a positive anchor of the default pyramid; 0.8 hardly any."""
    from tests.data.formats.tables import read_voc

    dataset = read_voc(shared_data / "bccd", ("val",), classes=("RBC", "WBC", "Platelets"), invalid_boxes="drop")
    platelets = dataset.labels == 2

    def lost(short: int, long: int) -> float:
        resize = config.Resize(short=short, long=long)
        return float((best_overlaps(dataset, resize, config.Anchors(), config.Fpn())[platelets] < 0.5).mean())

    assert lost(240, 320) > 0.6
    assert lost(384, 512) < 0.05
