"""What a table tells: counts by hand, and each planted defect found by its name."""

import numpy as np
import pytest

from retina import config as configuration
from retina.data.stored import FileSlice
from retina.data.tiles import in_tiles
from retina.doctor.preflight import preflight
from retina.doctor.statistics import split_findings, statistics, table_findings
from tests.doctor.made import table

BOX = [10, 10, 20, 20]


def codes(dataset, split="train", training=True) -> dict[str, str]:
    """Grade by code."""
    return {finding.code: finding.grade for finding in table_findings(dataset, split, training)}


def many(count: int) -> list[list[float]]:
    return [[n, 0, n + 9, 9 + n % 7] for n in range(count)]


SOUND = table([(64, 64)] * 2, [many(20), many(20)], labels=[0, 1] * 20, names=("a", "b"))


def test_a_table_without_boxes_is_an_error_and_nothing_else():
    assert codes(table([(64, 64)], [[]])) == {"no-boxes": "error"}


def test_a_table_with_nothing_but_crowds_is_one_too():
    assert codes(table([(64, 64)], [[BOX]], crowd=[True])) == {"no-boxes": "error"}


def test_a_sound_table_has_no_findings():
    assert codes(SOUND) == {}


def test_statistics_by_hand():
    boxes = [[[0, 0, 16, 4], [0, 0, 32, 32], [0, 0, 40, 40]], [], [[0, 0, 100, 100], [1, 1, 3, 3]]]
    dataset = table(
        [(120, 120)] * 3,
        boxes,
        labels=[0, 0, 2, 2, 0],
        names=("a", "b", "c"),
        crowd=[0, 0, 1, 0, 0],
        difficult=[0, 0, 0, 0, 1],
    )
    found = statistics(dataset)
    assert (found.images, found.empty_images, found.boxes, found.crowd, found.difficult) == (3, 1, 3, 1, 1)
    assert found.classes == {"a": 2, "b": 0, "c": 1} and found.class_images == {"a": 1, "b": 0, "c": 1}
    # 64, 1024 and 10000 square pixels; 32² counts as medium.
    assert found.sizes == {"small": 1, "medium": 1, "large": 1} and found.most_boxes == 2
    # Sides 8, 32 and 100, in half octaves; heights 1/4, 1 and 1 of the widths.
    assert dict(zip(np.round(found.side.edges[:-1], 1), found.side.counts, strict=True)) == {
        8.0: 1, 11.3: 0, 16.0: 0, 22.6: 0, 32.0: 1, 45.3: 0, 64.0: 0, 90.5: 1,
    }  # fmt: skip
    assert found.aspect.counts == (1, 0, 0, 0, 2) and found.aspect.edges[0] == 0.25 and found.aspect.edges[4] == 1.0


def test_statistics_of_no_boxes():
    found = statistics(table([(64, 64)], [[]]))
    assert found.boxes == 0 and found.most_boxes == 0 and sum(found.side.counts) == 0


@pytest.mark.parametrize(
    ("code", "grade", "dataset"),
    [
        ("images-without-boxes", "note", table([(64, 64)] * 3, [many(20), [], many(20)])),
        ("images-without-boxes", "warning", table([(64, 64)] * 3, [many(20), [], []])),
        ("crowd-boxes", "note", table([(64, 64)], [many(20)], crowd=[True] + [False] * 19)),
        ("difficult-boxes", "note", table([(64, 64)], [many(20)], difficult=[True] + [False] * 19)),
        ("id-gaps", "note", table([(64, 64)], [many(20)], labels=[0, 1] * 10, names=("a", "b"), ids=(1, 3))),
        ("background-class", "warning", table([(64, 64)], [many(20)], names=("__background__",))),
        ("class-without-boxes", "warning", table([(64, 64)], [many(20)], names=("a", "b"))),
        ("rare-classes", "warning", table([(64, 64)], [many(20)], labels=[0] * 11 + [1] * 9, names=("a", "b"))),
        ("class-imbalance", "note", table([(64, 64)] * 9, [many(50)] * 9, [1] * 20 + [0] * 430, ("a", "b"))),
        ("repeated-boxes", "warning", table([(64, 64)], [[*many(20), many(20)[3]]])),
    ],
)  # fmt: skip
def test_each_defect_has_its_name(code, grade, dataset):
    assert codes(dataset) == {code: grade}


def test_a_hundredfold_imbalance_is_a_warning():
    dataset = table([(64, 64)] * 21, [many(50)] * 21, labels=[1] * 10 + [0] * 1040, names=("a", "b"))
    assert codes(dataset) == {"class-imbalance": "warning"}


@pytest.mark.parametrize(("images", "sampling"), [(21, "'data.sampling={kind: repeat, threshold: 0.19}'"), (2, None)])
def test_an_imbalance_names_the_settings_that_help(images, sampling):
    each = 420 // images
    dataset = table([(64, 320)] * images, [many(each)] * images, [1] * 20 + [0] * 400, ("a", "b"))
    (finding,) = table_findings(dataset, "train", training=True)
    assert "try loss.class_weights.kind=effective" in finding.remedy
    assert ("data.sampling" in finding.remedy) == (sampling is not None) and (sampling or "") in finding.remedy


def test_tiles_are_parts_of_their_image_files():
    settings = configuration.load(None, ["data.tiles.size=64"])
    whole = table([(64, 96)] * 300, [[BOX]] * 300)
    tiles, last = in_tiles(whole, settings.data.tiles), whole.subset([299])
    (finding,) = split_findings({"train": tiles, "validation": last})
    assert (finding.grade, finding.code) == ("error", "image-in-two-splits")
    assert finding.message == "1 image file of validation (100.0%) also in train: 299.png"
    sparse = in_tiles(table([(64, 640)] * 20, [[BOX]] * 20), settings.data.tiles)
    assert codes(sparse) == {"images-without-boxes": "note"}  # most tiles of a large image are background
    names = {finding.code for finding in preflight(settings, tiles, last)}
    assert {"image-in-two-splits", "evaluated-without-tiles"} <= names
    assert "evaluated-without-tiles" not in {finding.code for finding in preflight(settings, tiles, None)}


@pytest.mark.parametrize(("evaluated", "warned"), [(64, False), (128, True)])
def test_evaluations_in_other_tiles_than_the_trainings_are_a_warning(evaluated, warned):
    settings = configuration.load(None, ["data.tiles.size=64", f"evaluation.tiles.size={evaluated}"])
    tiles = in_tiles(table([(64, 96)] * 300, [[BOX]] * 300), settings.data.tiles)
    data = table([(64, 96)] * 20, [[BOX]] * 20)
    remedies = {finding.code: finding.remedy for finding in preflight(settings, tiles, data)}
    assert "evaluated-without-tiles" not in remedies and ("evaluated-in-other-tiles" in remedies) == warned
    assert not warned or remedies["evaluated-in-other-tiles"].endswith("set evaluation.tiles.size=64")


@pytest.mark.parametrize(
    ("overrides", "proposed"),
    [
        (["loss.class_weights.kind=effective"], {"data.sampling"}),
        (["data.sampling={kind: repeat, threshold: 0.19}"], {"loss.class_weights"}),
        (["loss.class_weights.kind=effective", "data.sampling={kind: repeat, threshold: 0.19}"], set()),
    ],
)
def test_what_is_set_against_an_imbalance_is_not_proposed_again(overrides, proposed):
    dataset = table([(64, 320)] * 21, [many(20)] * 21, [1] * 20 + [0] * 400, ("a", "b"))
    findings = preflight(configuration.load(None, overrides), dataset, None)
    (finding,) = [finding for finding in findings if finding.code == "class-imbalance"]
    assert {name for name in ("data.sampling", "loss.class_weights") if name in finding.remedy} == proposed
    assert finding.remedy.endswith("add images of the rare classes") == (not proposed)


def test_outside_training_few_boxes_of_a_class_are_no_matter():
    dataset = table([(64, 64)], [many(20)], labels=[0] * 19 + [1], names=("a", "b", "c"))
    assert codes(dataset, "test", training=False) == {"class-without-boxes": "note"}


def test_the_same_box_of_another_class_or_image_is_no_repetition():
    dataset = table([(64, 64)] * 2, [many(20), many(20)], labels=[0] * 40)
    assert codes(dataset) == {}
    two = table([(64, 64)], [[*many(20), *many(20)]], labels=[0] * 20 + [1] * 20, names=("a", "b"))
    assert codes(two) == {}


def test_repetitions_name_their_images():
    dataset = table([(64, 64)] * 3, [many(20), [BOX, BOX, BOX], [BOX, [1, 1, 2, 2], BOX]])
    (finding,) = [found for found in table_findings(dataset, "train", True) if found.code == "repeated-boxes"]
    assert finding.examples == ("1", "2") and finding.message.startswith("3 boxes given twice")


def between(**splits) -> dict[str, str]:
    return {finding.code: finding.grade for finding in split_findings(splits)}


def test_alike_splits_have_nothing_to_say():
    other = table([(64, 64)], [many(20)], labels=[0, 1] * 10, names=("a", "b"), images=("x.png",))
    assert between(train=SOUND, validation=other) == {}


def test_differing_class_lists_are_told_with_both_sides():
    other = table([(64, 64)], [many(20)], labels=[0, 1] * 10, names=("a", "c"), images=("x.png",))
    found = {finding.code: finding for finding in split_findings({"train": SOUND, "validation": other})}
    assert found["class-lists-differ"].grade == "error"
    assert found["class-lists-differ"].examples == ("b", "c")
    assert "only in train: b; only in validation: c" in found["class-lists-differ"].message
    assert found["class-never-trained"].examples == ("c",) and found["class-never-trained"].split == "validation"


def test_the_same_classes_in_another_order_differ_as_well():
    other = table([(64, 64)], [many(20)], labels=[0, 1] * 10, names=("b", "a"), images=("x.png",))
    (finding,) = split_findings({"train": SOUND, "validation": other})
    assert finding.code == "class-lists-differ" and "another order" in finding.message


def test_a_file_in_two_splits_is_leakage():
    other = table([(64, 64)] * 2, [many(20)] * 2, labels=[0, 1] * 20, names=("a", "b"), images=("x.png", "1.png"))
    (finding,) = split_findings({"train": SOUND, "validation": other})
    assert (finding.code, finding.grade, finding.examples) == ("image-in-two-splits", "error", ("1.png",))


def files(first: int, stop: int, prefix: str = ""):
    names = tuple(f"{prefix}{row}.png" for row in range(first, stop))
    return table([(64, 64)] * len(names), [[BOX]] * len(names), images=names)


def test_validating_on_part_of_the_training_images_is_an_error_but_for_a_few():
    found = between(train=files(0, 400), validation=files(320, 400, "./"))
    assert found == {"image-in-two-splits": "error"}
    assert between(train=files(0, 400), validation=files(399, 800)) == {"image-in-two-splits": "warning"}
    assert between(train=files(0, 400), validation=files(398, 798)) == {"image-in-two-splits": "error"}


def test_the_same_images_on_purpose_are_a_warning_in_training_and_an_error_elsewhere():
    assert between(train=files(0, 8), validation=files(0, 8)) == {"validation-is-train": "warning"}
    assert between(train=files(0, 8), test=files(0, 8)) == {"image-in-two-splits": "error"}


def test_images_of_shards_are_known_by_their_place():
    slices = [FileSlice("shard", 100 * row, 100) for row in range(4)]
    one, other = (
        table([(64, 64)] * 2, [[BOX]] * 2, images=tuple(some)) for some in (slices[:2], [slices[1], slices[3]])
    )
    (finding,) = split_findings({"train": one, "validation": other})
    assert (finding.code, finding.examples) == ("image-in-two-splits", ("shard at 100",))


def test_images_in_memory_lie_nowhere():
    one = table([(64, 64)], [[BOX]], images=(b"bytes",))
    assert between(train=one, validation=one) == {}
