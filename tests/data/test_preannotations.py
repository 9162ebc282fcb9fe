"""A round of labelling: what a detector sees is written for the labelling tools, and is read back, nothing lost."""

import json
from pathlib import Path
from urllib.parse import parse_qs, urlparse
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import retina
from retina.data.convert.preannotations import FORMATS, check_folders, table_of, write
from retina.data.dataset import DetectionDataset
from retina.data.images import table_image
from retina.errors import RetinaError

NAMES = ("cat", "a dog", "Zebra", "never")
SIZES = {"a.jpg": (40, 60), "sub/a.jpg": (50, 50), "b c.png": (64, 48), "turned.jpg": (30, 70)}


def entry(file: Path, size: tuple[int, int], *rows: tuple[list[float], int, float]) -> dict:
    detections = [{"name": NAMES[label], "label": label, "score": score, "box": box} for box, label, score in rows]
    return {"image": str(file), "file": [1, 1], "picture": None, "size": list(size), "detections": detections}


@pytest.fixture
def entries(tmp_path) -> list[dict]:
    """Four images: fractions of pixels, boxes beyond the image and outside it, none at all, and an EXIF rotation."""
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        file = tmp_path / "photographs" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        if name == "turned.jpg":
            exif[0x0112] = 6
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(file, exif=exif)
    files = [tmp_path / "photographs" / name for name in SIZES]
    third = float(np.float32(1 / 3))
    return [
        entry(files[0], (40, 60), ([third, 2.5, 30.25, 39.75], 2, 0.9), ([-3, 5, 70, 20], 0, 0.5)),
        {"image": "bad.jpg", "file": None, "error": "bad.jpg: it is damaged"},
        entry(files[1], (50, 50)),
        entry(files[2], (64, 48), ([1, 1, 20, 20], 1, 0.75), ([60, 70, 90, 90], 0, 0.6), ([1, 1, 20, 21], 1, 0.7)),
        entry(files[3], (30, 70), ([10, 5, 40, 25], 0, 0.8)),
    ]


def expected(entries: list[dict], *, upright: bool) -> dict[str, tuple[tuple[int, int], list]]:
    """Size and boxes with class names by the image's stem, as every tool should show them."""
    out = {
        "a": ((40, 60), [([1 / 3, 2.5, 30.25, 39.75], "Zebra"), ([0, 5, 60, 20], "cat")]),
        "a_2": ((50, 50), []),
        "b_c": ((64, 48), [([1, 1, 20, 20], "a dog"), ([1, 1, 20, 21], "a dog")]),
        # EXIF 6: turned by a quarter clockwise, so that x becomes height - y and y becomes x.
        "turned": ((70, 30), [([5, 10, 25, 40], "cat")]),
    }
    if upright:  # the detector saw the upright picture
        entries[-1]["size"] = [70, 30]
        entries[-1]["detections"][0]["box"] = [5, 10, 25, 40]
    return out


def compare(table: DetectionDataset, truth: dict) -> None:
    stems = [Path(str(image)).stem for image in table.images]
    assert sorted(stems) == sorted(truth)
    for row, stem in enumerate(stems):
        size, boxes = truth[stem]
        assert tuple(table.sizes[row]) == size == table_image(table, row).shape[:2]
        objects = table.objects(row)
        np.testing.assert_allclose(objects.boxes, np.array([box for box, _ in boxes]).reshape(-1, 4), atol=1e-5)
        assert [table.class_names[label] for label in objects.labels] == [name for _, name in boxes]


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("format", [name for name in FORMATS if name != "label-studio"])
def test_what_is_written_is_read_back(tmp_path, entries, format, upright):
    truth = expected(entries, upright=upright)
    table, scores = table_of(entries, NAMES, upright)
    assert len(scores) == len(table.boxes) == 5
    notes = write(table, scores, tmp_path / "out", format, link=not upright)
    assert notes[0] == f"{tmp_path / 'out' / format}: 4 images, 5 boxes"
    back = retina.load_dataset(tmp_path / "out" / format).table
    compare(back, truth)
    assert back.class_names == NAMES or format == "voc"  # which has no list of classes, and says so
    assert format != "voc" or any("['never']" in note for note in notes)
    assert (tmp_path / "photographs" / "turned.jpg").is_file()


def exported_by_label_studio(folder: Path, out: Path) -> None:
    """COCO's export of Label Studio, after an import of the tasks whose predictions were accepted as they are: numbers
    from percents, images under the names of uploads, category ids from 0 in the order of the interface."""
    interface = ElementTree.parse(folder / "label_config.xml").getroot()
    assert [element.get("value") for element in interface.findall("Image")] == ["$image"]
    names = [element.get("value") for element in interface.iter("Label")]
    tree: dict = {"categories": [{"id": label, "name": name} for label, name in enumerate(names)]}
    tree |= {"images": [], "annotations": []}
    (out / "images").mkdir(parents=True)
    for number, task in enumerate(json.loads((folder / "tasks.json").read_text())):
        (path,) = parse_qs(urlparse(task["data"]["image"]).query)["d"]
        image = folder / path
        uploaded = f"{number:08x}-{image.name}"
        (out / "images" / uploaded).write_bytes(image.read_bytes())
        with Image.open(image) as opened:
            width, height = opened.size
        tree["images"].append({"id": number, "file_name": f"images/{uploaded}", "width": width, "height": height})
        (prediction,) = task["predictions"]
        for region in prediction["result"]:
            value, (label,) = region["value"], region["value"]["rectanglelabels"]
            assert (region["original_width"], region["original_height"]) == (width, height)
            assert (region["type"], region["from_name"], region["to_name"]) == ("rectanglelabels", "label", "image")
            sides = [value["x"] * width, value["y"] * height, value["width"] * width, value["height"] * height]
            box = [side / 100 for side in sides]
            tree["annotations"].append(
                {"id": len(tree["annotations"]), "image_id": number, "category_id": names.index(label)}
                | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            )
    (out / "result.json").write_text(json.dumps(tree))


@pytest.mark.parametrize("upright", [False, True])
def test_label_studio_shows_it_and_its_export_is_read_back(tmp_path, entries, upright):
    truth = expected(entries, upright=upright)
    table, scores = table_of(entries, NAMES, upright)
    write(table, scores, tmp_path, "label-studio", link=False)
    tasks = json.loads((tmp_path / "label-studio" / "tasks.json").read_text())
    regions = [region for task in tasks for region in task["predictions"][0]["result"]]
    assert [region["score"] for region in regions] == [0.9, 0.5, 0.75, 0.7, 0.8]
    assert len({region["id"] for region in regions}) == 5
    exported_by_label_studio(tmp_path / "label-studio", tmp_path / "export")
    back = retina.load_dataset(tmp_path / "export").table
    assert back.class_names == NAMES
    compare(back, {f"{number:08x}-{stem}": known for number, (stem, known) in enumerate(truth.items())})


@pytest.mark.slow
def test_init_reads_the_round_of_labelling(tmp_path):
    """Twelve photographs of which a detector labels some, through Label Studio and into a configuration."""
    rng = np.random.default_rng(0)
    entries = []
    for number in range(12):
        file = tmp_path / "photographs" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(file)
        x, y = rng.integers(0, 30, 2).tolist()
        rows = [([x, y, x + 30, y + 24], number % 3, 0.9)] if number else []
        entries.append(entry(file, (64, 64), *rows))
    table, scores = table_of(entries, NAMES[:3], upright=False)
    write(table, scores, tmp_path, "label-studio", link=False)
    exported_by_label_studio(tmp_path / "label-studio", tmp_path / "export")
    settings = retina.init(tmp_path / "export", tmp_path / "export.yaml", minutes=1)
    parts = [retina.load_split(settings.data, split) for split in ("train", "validation")]
    assert sum(map(len, parts)) == 12 and sum(len(part.boxes) for part in parts) == 11
    boxes = np.concatenate([part.boxes for part in parts])
    order, expected = np.lexsort(boxes.T), np.lexsort(table.boxes.T)
    np.testing.assert_allclose(boxes[order], table.boxes[expected], atol=1e-6)


def test_a_dataset_that_may_have_been_corrected_is_not_touched(tmp_path, entries):
    table, scores = table_of(entries, NAMES, upright=False)
    check_folders(tmp_path, ["yolo"], link=True)
    write(table, scores, tmp_path, "yolo", link=False)
    for formats in ([], ["coco"], ["yolo"]):
        with pytest.raises(RetinaError, match="yolo: it holds a dataset already, whose boxes may have been corrected"):
            check_folders(tmp_path, formats, link=False)
    (tmp_path / "other" / "csv").mkdir(parents=True)
    (tmp_path / "other" / "csv" / "mine.txt").write_text("mine")
    check_folders(tmp_path / "other", ["coco"], link=False)  # only called like a format
    with pytest.raises(RetinaError, match="csv: it holds a dataset already"):
        check_folders(tmp_path / "other", ["csv"], link=False)
    with pytest.raises(RetinaError, match="--link: it has no effect without --to"):
        check_folders(tmp_path / "new", [], link=True)
    with pytest.raises(RetinaError, match="--to: expected one of coco, voc, yolo, csv, label-studio, got 'cocco'"):
        check_folders(tmp_path / "new", ["cocco"], link=False)


def test_writing_that_was_cut_off_goes_on(tmp_path, entries):
    table, scores = table_of(entries, NAMES, upright=False)
    write(table, scores, tmp_path / "whole", "voc", link=False)
    write(table, scores, tmp_path / "cut", "voc", link=False)
    home = tmp_path / "cut" / "voc"
    state = json.loads((home / "conversion.json").read_text())["fingerprint"]
    (home / ".retina_convert.json").write_text(json.dumps({"fingerprint": state}))
    (home / "conversion.json").unlink()
    (home / "Annotations" / "b_c.xml").unlink()
    check_folders(tmp_path / "cut", ["voc"], link=False)
    write(table, scores, tmp_path / "cut", "voc", link=False)
    for file in (tmp_path / "whole").rglob("*.*"):
        if file.is_file():
            assert (tmp_path / "cut" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes(), file


def test_nothing_detected(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    table, scores = table_of([entry(tmp_path / "a.png", (8, 8))], NAMES, upright=False)
    for format in ("voc", "label-studio"):
        assert write(table, scores, tmp_path, format, link=False)[0].endswith("1 image, 0 boxes")
