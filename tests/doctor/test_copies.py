"""Copies: with other boxes, in shares of one source, and how the terminal lists them; few images; foreign files."""

import io

import numpy as np
import pytest
from rich.console import Console

from retina import config
from retina.data.formats.layouts import look
from retina.data.load import truth_format
from retina.data.select import select_images
from retina.doctor.examine import examine
from retina.doctor.inspection import duplicate_findings, inspect
from retina.doctor.printing import print_examination
from retina.doctor.statistics import fewness_findings, split_findings, statistics
from retina.doctor.targets import open_target
from retina.errors import RetinaError
from tests.doctor.made import picture, table
from tests.doctor.test_inspection import encoded

BOX, OTHER = (1, 1, 20, 20), (2, 1, 20, 20)


def of(images, boxes, **columns):
    return table([(64, 96)] * len(images), boxes, images=tuple(images), **columns)


def duplicates(**splits):
    return {finding.code: finding for finding in duplicate_findings({name: inspect(t) for name, t in splits.items()})}


def test_copies_with_other_boxes_are_named_as_that():
    first, second = encoded(picture(0)), encoded(picture(1))
    same = of([first, first, second], [[BOX, OTHER], [OTHER, BOX], []])
    assert set(duplicates(data=same)) == {"duplicate-images"}  # the order of boxes is no difference
    other = of([first, first, second, second], [[BOX], [OTHER], [], []])
    finding = duplicates(data=other)["copies-with-different-boxes"]
    assert finding.message.startswith("1 group of images") and len(finding.examples) == 1
    labels = of([first, first], [[BOX], [BOX]], labels=[0, 1], names=("a", "b"))
    assert "copies-with-different-boxes" in duplicates(data=labels)
    across = duplicates(train=of([first], [[BOX]]), validation=of([first], [[OTHER]]))
    assert set(across) == {"duplicate-images-across-splits", "copies-with-different-boxes"}
    assert "copies_together" in across["duplicate-images-across-splits"].remedy


@pytest.mark.parametrize("edge", [0.1, 0.3, 0.5, 0.77])
def test_shares_keep_copies_together(edge):
    """Every picture is there three times; shares stay disjoint and whole, and no picture is in two of them."""
    images = [encoded(picture(seed)) for seed in range(7)] * 3
    data = of(images, [[BOX]] * len(images))
    parts = [
        select_images(data, config.Select(share=share, copies_together=True, seed=3), None, "x")
        for share in ((0, edge), (edge, 1))
    ]
    assert sorted(parts[0].image_ids + parts[1].image_ids) == list(range(len(images)))
    assert not set(parts[0].images) & set(parts[1].images)
    assert abs(len(parts[0]) - round(edge * len(images))) < 3
    apart = select_images(data, config.Select(share=(0, edge), seed=3), None, "x")
    assert len(apart) == round(edge * len(images))


def test_settings_that_mean_nothing():
    with pytest.raises(ValueError, match="copies_together has no effect without share"):
        config.Select(first=3, copies_together=True)
    halves = config.Select(share=(0, 0.5), copies_together=True), config.Select(share=(0.5, 1))
    sources = [config.DigitsSource(select=select) for select in halves]
    with pytest.raises(ValueError, match="only one of them has select.copies_together"):
        config.Data(train=sources[0], validation=sources[1])


def test_what_two_splits_share_is_judged_by_their_names():
    images = tuple(f"{i}.png" for i in range(4))
    splits = {name: of(images, [[BOX]] * 4) for name in ("validation", "test")}
    (finding,) = [f for f in split_findings(splits) if "is" in f.code]
    assert (finding.code, finding.grade) == ("test-is-validation", "warning")
    assert "trained on" not in finding.remedy and "chosen" in finding.remedy
    splits = {"train": of(images, [[BOX]] * 4), "test": of(images[:2], [[BOX]] * 2)}
    (finding,) = split_findings(splits)
    assert (finding.code, finding.grade) == ("image-in-two-splits", "error") and "trained on" in finding.remedy


@pytest.mark.parametrize(("count", "codes"), [(2, ["few-images"]), (49, ["few-images"]), (50, [])])
def test_few_images_are_worth_a_word(count, codes):
    for training in (True, False):
        stats = statistics(table([(64, 96)] * count, [[BOX]] * count))
        assert [finding.code for finding in fewness_findings(stats, "x", training)] == codes


def test_the_terminal_lists_copies_and_what_select_left(tmp_path):
    from tests.data.test_orientation import photograph, yolo

    contents = [photograph(1, image=np.asarray(picture(seed // 2))) for seed in range(44)]
    folder = yolo(tmp_path, contents)
    source = f"{{format: yolo, images: {folder}/images, select: {{first: 43}}}}"
    target = open_target("configs/digits.yaml", [f"data.train={source}", f"data.validation={source}"])
    out = io.StringIO()
    print_examination(Console(file=out, width=200), examine(target, quick=True))
    lines = out.getvalue().splitlines()
    assert any("43 of 44 images" in line for line in lines)
    assert sum("0.png" in line and line.startswith("    ") for line in lines) >= 1
    assert any("and 1 more (--json)" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path: .\ntrain: images\nval: images\n", "that is a data.yaml"),
        ("names: [a]\nnc: 1\n", "that is a data.yaml"),
        ("task: detect\nmodel: yolov8n.pt\ndata: coco8.yaml\n", "belongs to another tool"),
        ("MODEL: {WEIGHTS: x}\nDATASETS: {TRAIN: [a]}\n", "belongs to another tool"),
    ],
)
def test_a_file_of_another_tool_is_not_read_as_ours(tmp_path, text, said):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(RetinaError, match=said) as error:
        config.load(file)
    assert "schedule'" not in str(error.value)
    with pytest.raises(RetinaError, match="its config.yaml is not a configuration of retina"):
        look(str(tmp_path))
    (tmp_path / "Annotations").mkdir()
    assert truth_format(tmp_path, "auto") == "voc"


def test_a_data_yaml_without_names_is_still_one(tmp_path):
    (tmp_path / "any.yaml").write_text("train: images\nval: images\n")
    assert look(str(tmp_path / "any.yaml")).format == "yolo"
    (tmp_path / "mine.yaml").write_text("data: {train: {format: digits}}\n")
    assert look(str(tmp_path / "mine.yaml")).format == "config"
