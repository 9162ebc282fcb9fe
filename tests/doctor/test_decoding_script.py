"""The conclusions of scripts/reproduce/decoding.py and bad_anchors.py; the former compares pixels."""

import numpy as np
import pytest

from retina import config
from retina.data.detections import DetectionTable
from retina.data.ground_truth import results
from retina.data.load import read_ground_truth
from retina.runs.loading import Detected
from tests.data.batches.test_training import noisy, table
from tests.malformed import encoded
from tests.scripts import load_script


@pytest.fixture(scope="module")
def script():
    return load_script("reproduce/decoding")


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (-0.0019, 0.0019, "not worse"),
        (-0.002, 0.03, "not worse"),
        (0.01, 0.03, "not worse"),
        (-0.0021, 0.03, "can't tell"),
        (-0.03, -0.0019, "can't tell"),
        (-0.03, -0.0021, "WORSE"),
        (np.nan, np.nan, "can't tell"),
    ],
)
def test_verdict(script, low, high, told):
    assert script.verdict(low, high) == told


def test_two_standard_errors_of_the_mean(script):
    # Mean 0.01; the deviation of the two is 0.02 * sqrt(2), its error 0.02.
    assert script.mean_interval([-0.01, 0.03]) == pytest.approx((-0.03, 0.05))
    assert script.mean_interval([0.01]) is None


def test_unaugmented_batches_show_each_image_whole_once_and_differ_by_the_decoding_alone(script):
    sizes = [(256, 256), (128, 128), (32, 32)]
    data = table([encoded("JPEG", noisy(*size)) for size in sizes], sizes)
    settings = config.Data(
        train=config.DigitsSource(),
        validation=config.DigitsSource(),
        resize=config.Resize(short=64, long=64, multiple=64),
        augment=config.Augment(scale=(0.5, 2.0)),
    )
    full, auto = (list(script.plain_batches(data, settings, decode)) for decode in ("full", "auto"))
    assert sorted(int(np.asarray(batch["index"])[0]) for batch in auto) == [0, 1, 2]
    for one, other in zip(full, auto, strict=True):
        row = int(np.asarray(one["index"])[0])
        for name in ("index", "scale", "size", "boxes", "valid"):
            np.testing.assert_allclose(one[name], other[name], rtol=1e-6, err_msg=name)
        assert (np.asarray(one["size"]) == 64).all()
        spread = [np.asarray(batch["images"]).astype(float).std() for batch in (one, other)]
        # Bilinear takes the mean of 2 x 2 pixels wherever it shrinks; reduced decoding cuts off high frequencies, which
        # keeps more of noise at 1/2 and less at 1/4. The third image is enlarged: nothing is reduced.
        assert spread[1] / spread[0] == pytest.approx([0.68, 1.36, 1][row], abs=0.03)


def test_the_difference_is_auto_less_full(script, tmp_path):
    (tmp_path / "truth.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}, {"id": 2, "file_name": "b.png", '
        '"width": 64, "height": 64}], "categories": [{"id": 1, "name": "cat"}], "annotations": ['
        '{"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 24, 24], "area": 576, "iscrowd": 0},'
        '{"id": 2, "image_id": 2, "category_id": 1, "bbox": [8, 8, 24, 24], "area": 576, "iscrowd": 0}]}'
    )
    truth = read_ground_truth(tmp_path / "truth.json")
    data = table([b"", b""], [(64, 64), (64, 64)])

    def found(*images: int) -> Detected:
        rows = np.array(images)
        boxes = np.tile(np.array([[8.0, 8, 32, 32]], np.float32), (len(rows), 1))
        one = DetectionTable(rows, boxes, np.ones(len(rows), np.float32), np.zeros(len(rows), np.int64))
        return Detected(one, data, results(one, data), truth, None)

    # All of 2 boxes, and 51 of the 101 recalls (0 to 0.5) of one.
    one = script.difference(found(0, 1), found(0))["AP"]
    assert (one.a, one.b, one.difference) == pytest.approx((1.0, 51 / 101, -50 / 101))
    assert one.low <= one.difference <= one.high


@pytest.mark.parametrize(
    ("trained", "suggested", "holds"), [(0.228, 0.489, True), (0.344, 0.489, False), (0.228, 0.343, False)]
)
def test_a_ceiling_holds_where_the_bad_anchors_stay_below_it_and_the_suggested_exceed_it(trained, suggested, holds):
    assert load_script("reproduce/bad_anchors").holds(trained, 0.343, suggested) is holds
