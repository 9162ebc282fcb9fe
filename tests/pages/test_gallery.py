"""What the gallery is given: values, thumbnails, and which images of many are shown."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from retina.data.ground_truth import GroundTruth, Results
from retina.drawing.thumbnails import thumbnails
from retina.errors import RetinaError
from retina.evaluation.matching import match
from retina.evaluation.tide import tide
from retina.pages.gallery import Detection, Run, Shown, Truth, choose_rows, evaluated, gallery_data, mixture
from retina.palette import class_colour


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def opened(uri: str) -> Image.Image:
    head, _, content = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


# ----------------------------------------------------------------------------------------------------- thumbnails


def test_nothing_to_show():
    assert thumbnails([], []) == []
    (none,) = thumbnails([None], ["a"])
    assert (none.uri, none.reason) == (None, "no picture")


def test_a_missing_or_damaged_file_gives_the_reason(tmp_path):
    whole = encoded(noise(40, 30), "JPEG")
    missing, text, cut = thumbnails(
        [str(tmp_path / "gone.jpg"), b"text", whole[: len(whole) // 2]], ["gone", "text", "cut"]
    )
    assert missing.uri is text.uri is cut.uri is None
    assert "gone.jpg: cannot read this image" in missing.reason
    assert text.reason.startswith("text: expected an image, it is none or damaged")
    assert (
        cut.reason
        == "cut: expected a JPEG, PNG, GIF, BMP, WebP or TIFF image, it is damaged or cut short; restore or remove it"
    )


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((400, 200), 100, (100, 50)), ((200, 400), 100, (50, 100)), ((30, 20), 100, (30, 20)), ((1000, 1), 100, (100, 1))],
)
def test_the_longer_side_is_what_was_asked_for(size, side, expected):
    (small,) = thumbnails([encoded(noise(*size), "JPEG")], ["a"], side=side)
    assert opened(small.uri).size == expected
    assert (small.width, small.height) == size


def test_colours_survive_every_kind_of_file():
    plain = np.full((20, 30, 3), (200, 100, 50), np.uint8)
    alpha = np.concatenate([plain, np.full((20, 30, 1), 128, np.uint8)], axis=2)
    images = [encoded(plain), encoded(plain, "WEBP", lossless=True), encoded(plain, "BMP"), encoded(alpha)]
    for small in thumbnails(images, ["a"] * 4):
        assert np.abs(np.asarray(opened(small.uri)).astype(int) - (200, 100, 50)).max() <= 4
    deep = encoded(np.full((20, 30), 200 * 256, np.uint16))
    (small,) = thumbnails([deep], ["deep"])
    assert np.abs(np.asarray(opened(small.uri)).astype(int) - 200).max() <= 4


def test_an_exif_rotation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    (small,) = thumbnails([encoded(noise(40, 20), "JPEG", exif=exif)], ["a"])
    assert opened(small.uri).size == (40, 20) == (small.width, small.height)


def test_the_budget_holds_whatever_it_costs():
    images = [encoded(noise(300, 300, seed)) for seed in range(20)]
    large, small = (thumbnails(images, ["a"] * 20, budget=budget) for budget in (4_000_000, 60_000))
    assert {opened(one.uri).size for one in large} == {(300, 300)}
    assert sum(len(one.uri) for one in small) <= 60_000
    (side,) = {max(opened(one.uri).size) for one in small}
    assert side < 300
    none = thumbnails(images, ["a"] * 20, budget=10)
    assert {(one.uri, one.reason) for one in none} == {(None, "left out to keep the page small")}


def test_impossible_sizes_are_refused():
    with pytest.raises(RetinaError, match="thumbnail: expected at least 1, got 0"):
        thumbnails([], [], side=0)
    with pytest.raises(RetinaError, match="budget: expected at least 1, got -5"):
        thumbnails([], [], budget=-5)


# --------------------------------------------------------------------------------------------------------- values


def test_a_gallery_without_images():
    data = gallery_data([], ["a"], threshold=0.3)
    assert data["images"] == [] and data["total"] == 0 and data["threshold"] == 0.3
    assert data["classes"] == [{"name": "a", "colour": "#e69f00"}]


def test_values_are_plain_and_rounded():
    image = Shown(
        3, "x.png", 50, 40, None,
        (Truth(np.array([1.04, 2.06, 30, 40]), np.int64(1), "crowd"), Truth([0, 0, 1, 1], 0, "", 0.12345678)),
        (Detection([1, 2, 3, 4], 0, np.float32(0.25), "Loc"),),
        ("bad",),
    )  # fmt: skip
    data = gallery_data([image], ["a", "b"], total=9, predictions=False)
    assert data["total"] == 9 and data["predictions"] is False
    assert data["images"] == [
        {
            "row": 3, "name": "x.png", "w": 50, "h": 40, "src": None, "reason": "no picture", "defects": ["bad"],
            "truths": [[1.0, 2.1, 30.0, 40.0, 1, "crowd", [None]], [0.0, 0.0, 1.0, 1.0, 0, "", [0.123457]]],
            "detections": [[1.0, 2.0, 3.0, 4.0, 0, 0.25, "Loc", 0]],
        }
    ]  # fmt: skip
    assert data["classes"][1]["colour"] == "#{:02x}{:02x}{:02x}".format(*class_colour(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truths": (Truth([0, 0, 1, 1], 2),)}, "truth: expected a label from 0 to 1, got 2"),
        ({"truths": (Truth([0, 0, 1, 1], 0, "odd"),)}, "expected a kind of"),
        ({"truths": (Truth([0, 0, float("nan"), 1], 0),)}, "expected a box of four finite numbers"),
        ({"truths": (Truth([0, 0, 1, 1], 0, "", (0.5, 0.5)),)}, "expected 1 scores of a box"),
        ({"detections": (Detection([0, 0, 1, 1], 0, float("inf"), "right"),)}, "expected a finite score"),
        ({"detections": (Detection([0, 0, 1, 1], 0, 0.5, "right", 1),)}, "expected a run from 0 to 0, got 1"),
        ({"detections": (Detection([0, 0, 1, 1], 0, 0.5, "crowd"),)}, "detection: expected a kind of"),
    ],
)
def test_nonsense_is_refused(change, message):
    with pytest.raises(RetinaError, match=message):
        gallery_data([Shown(0, "x", 5, 5, None, **change)], ["a", "b"])


def scored(images: int, boxes, detections) -> tuple[GroundTruth, Run]:
    """`boxes`: (image, xywh, label, crowd); `detections`: (image, xywh, label, score)."""
    truth = GroundTruth(
        "t", ("a", "b"), (1, 2), tuple(range(images)),
        np.array([one[0] for one in boxes], np.int64), np.array([one[1] for one in boxes], float).reshape(-1, 4),
        np.array([one[2] for one in boxes], np.int64), np.array([one[3] for one in boxes], bool),
        np.zeros(len(boxes), bool), np.full(len(boxes), 100.0),
    )  # fmt: skip
    found = Results(
        "d", np.array([one[0] for one in detections], np.int64),
        np.array([one[1] for one in detections], float).reshape(-1, 4),
        np.array([one[3] for one in detections], float), np.array([one[2] for one in detections], np.int64),
    )  # fmt: skip
    return truth, Run(found, match(truth, found), tide(truth, found))


def test_what_became_of_each_box():
    truth, run = scored(
        3,
        [(0, [0, 0, 10, 10], 0, False), (0, [50, 50, 10, 10], 1, False), (2, [0, 0, 40, 40], 0, True)],
        [
            (0, [0, 0, 10, 10], 0, 0.9), (0, [0, 0, 10, 11], 0, 0.8), (0, [50, 50, 10, 10], 0, 0.7),
            (0, [80, 80, 5, 5], 1, 0.6), (2, [5, 5, 10, 10], 0, 0.5),
        ],
    )  # fmt: skip
    shown = evaluated([0, 2], truth, [run], sizes=np.array([[60, 100]] * 3), names=["p", "q", "r"])
    assert [(one.row, one.name, one.width, one.height) for one in shown] == [(0, "p", 100, 60), (2, "r", 100, 60)]
    assert [(one.label, one.kind, one.score) for one in shown[0].truths] == [(0, "", (0.9,)), (1, "", (None,))]
    assert shown[0].truths[1].box.tolist() == [50, 50, 60, 60]
    kinds = {one.score: one.kind for one in shown[0].detections}
    assert kinds == {0.9: "right", 0.8: "Dupe", 0.7: "Cls", 0.6: "Bkg"}
    assert [(one.kind, one.score) for one in shown[1].truths] == [("crowd", (None,))]
    assert [one.kind for one in shown[1].detections] == [""]


def test_two_runs_share_the_boxes():
    boxes = [(0, [0, 0, 10, 10], 0, False)]
    truth, first = scored(1, boxes, [])
    _, second = scored(1, boxes, [(0, [0, 0, 10, 10], 0, 0.9)])
    (shown,) = evaluated([0], truth, [first, second], sizes=np.array([[60, 100]]))
    assert shown.truths[0].score == (None, 0.9)
    assert [(one.run, one.kind) for one in shown.detections] == [(1, "right")]


# --------------------------------------------------------------------------------------------------------- choice


def test_few_images_are_all_shown():
    assert mixture(0, 5) == []
    assert mixture(3, 5, [2, 1]) == [0, 1, 2]


def test_without_wishes_images_lie_evenly():
    rows = mixture(5000, 300)
    assert len(rows) == 300 == len(set(rows))
    assert max(np.diff([-1, *rows, 5000])) <= 3 * 5000 / 300


def test_each_wish_gets_its_share():
    rows = mixture(1000, 9, [999, 998, 997, 996], [999, 1, 2, 3])
    assert {999, 998, 997, 1, 2, 3} <= set(rows) and len(rows) == 9
    assert mixture(10, 4, [], [7]) == sorted({7, *mixture(10, 4, [], [7])}) and 7 in mixture(10, 4, [], [7])
    with pytest.raises(RetinaError, match="limit: expected at least 1 image, got 0"):
        mixture(10, 0)


def test_the_worst_and_the_best_known_mistakes_are_chosen():
    good = [(image, [0, 0, 10, 10], 0, False) for image in range(100)]
    hits = [(image, [0, 0, 10, 10], 0, 0.9) for image in range(100) if image not in (17, 42)]
    # 17: a box missed; 42: three missed; 63: a confident mistake beside what is right.
    more = [(42, [30, 0, 10, 10], 0, False), (42, [60, 0, 10, 10], 0, False)]
    _, run = scored(100, good + more, [*hits, (63, [80, 80, 9, 9], 1, 0.99)])
    assert choose_rows(run.matches, 0.5) == list(range(100))
    rows = choose_rows(run.matches, 0.5, limit=8)
    assert {17, 42, 63} <= set(rows) and len(rows) == 8
