"""What a path or a name is: one detector for `retina doctor` and `retina convert`, so they can't disagree."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retina import config
from retina.data.convert.origin import find_source
from retina.data.formats import layouts
from retina.data.formats.layouts import look
from retina.data.load import load_split, read_ground_truth
from retina.doctor.statistics import table_findings
from retina.doctor.targets import open_target, read_splits
from retina.errors import RetinaError
from tests.data.formats import folders
from tests.data.formats.folders import CLASSES, PARTED, PICTURES, SPLITS, WRITERS
from tests.malformed import coco


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64)).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def both(path) -> tuple[list[str], list[str]]:
    """The splits that the doctor reads (all of them, or it fails) and those that would be converted."""
    target = open_target(path, [])
    splits, findings = read_splits(target)
    assert list(splits) == list(target.splits), findings
    return list(splits), list(find_source(str(path)).splits)


def test_what_is_nothing(tmp_path):
    empty, images_only = tmp_path / "empty", tmp_path / "photos"
    empty.mkdir()
    picture(images_only / "images" / "0.png")
    for wrong, message in (
        (empty, "got none of them"),
        (images_only, "got none of them"),
        (tmp_path / "gone", "no such file or folder; expected a configuration"),
        (
            "gone/2007",
            r"no such file or folder, nor a TFDS dataset of this name in ~/tensorflow_datasets \(--data-dir\)",
        ),
    ):
        with pytest.raises(RetinaError, match=message):
            open_target(wrong, [])
        with pytest.raises(RetinaError, match=message):
            find_source(str(wrong))
    with pytest.raises(RetinaError, match="--data-dir has no effect on a source of format 'config'"):
        look(str(configuration(tmp_path)), data_dir=tmp_path)
    with pytest.raises(RetinaError, match="--images has no effect"):
        look(str(configuration(tmp_path)), images=tmp_path)


def configuration(folder):
    write(folder / "c.yaml", "data: {}\n")
    return folder / "c.yaml"


def test_a_folder_of_coco(tmp_path):
    coco(tmp_path)
    tree = (tmp_path / "data.json").read_text()
    for split in ("train", "val"):
        write(tmp_path / "annotations" / f"instances_{split}.json", tree)
    write(tmp_path / "annotations" / "captions_val.json", "{}")
    assert both(tmp_path) == (["train", "val"], ["train", "val"])
    assert look(str(tmp_path)).splits["val"].images == tmp_path / "images"


def test_images_that_lie_beside_their_coco_file(tmp_path):
    coco(tmp_path)
    file = tmp_path / "images" / "_annotations.coco.json"
    (tmp_path / "data.json").rename(file)
    assert both(file) == (["data"], ["_annotations_coco"])
    assert next(iter(look(str(file)).splits.values())).images == tmp_path / "images"
    write(tmp_path / "elsewhere" / "a.json", file.read_text())
    with pytest.raises(RetinaError, match="its images are not in .*; say where they are with --images"):
        look(str(tmp_path / "elsewhere" / "a.json"))


@pytest.mark.parametrize("third", ["val", "valid"])
def test_yolo_by_its_folder_and_as_plain_folders(tmp_path, third):
    for split in ("train", third):
        picture(tmp_path / "images" / split / f"{split}.png")
        write(tmp_path / "labels" / split / f"{split}.txt", "0 0.5 0.5 0.2 0.2\n")
    write(tmp_path / "labels" / "classes.txt", "cat\n")
    assert both(tmp_path) == (["train", "val"], ["train", "val"])
    (tmp_path / "labels" / "classes.txt").rename(tmp_path / "classes.txt")
    tables = read_splits(open_target(str(tmp_path), []))[0]
    assert {name: (len(table), table.boxes.tolist()) for name, table in tables.items()} == {
        split: (1, tables["train"].boxes.tolist()) for split in ("train", "val")
    }
    picture(tmp_path / "images" / "loose.png")  # belongs to no split: all is one
    assert both(tmp_path) == ([tmp_path.name], [tmp_path.name])
    (tmp_path / "images" / "loose.png").unlink()
    write(tmp_path / "data.yaml", f"train: images/train\n{third}: images/{third}\nnames: [cat]\n")
    for path in (tmp_path, tmp_path / "data.yaml"):
        assert both(path) == (["train", "val"], ["train", "val"])
    write(tmp_path / "data.yaml", "names: [cat]\n")
    with pytest.raises(RetinaError, match="expected at least one of train, val and test"):
        look(str(tmp_path))


def test_csv(tmp_path):
    picture(tmp_path / "a.png")
    write(tmp_path / "boxes.csv", "a.png,1,1,9,9,cat\n")
    assert both(tmp_path / "boxes.csv") == (["data"], ["boxes"])


def test_tfds_by_folder_and_by_name(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    from retina.data.convert.converting import convert

    (tmp_path / "src").mkdir()
    coco(tmp_path / "src")
    home = tmp_path / "all"
    folder = home / "blood" / "1.0.0"
    convert(tmp_path / "src" / "data.json", folder, "tfds", images=tmp_path / "src" / "images", splits=["train"])
    assert both(folder) == (["train"], ["train"])
    target = open_target("blood", [], data_dir=home)
    assert tuple(target.splits) == ("train",) and len(read_splits(target)[0]["train"]) == 2
    assert list(find_source("blood:1.0.0", data_dir=home).splits) == ["train"]


def test_the_real_folders(shared_data):
    assert both(shared_data / "coco_mini") == (["train2017", "val2017"], ["train2017", "val2017"])
    assert tuple(open_target(shared_data / "bccd", []).splits) == ("test", "train", "val")
    assert list(look(str(shared_data / "voc100")).splits) == ["all"]


# ------------------------------------------------------------------------- any folder (`tests/data/formats/folders.py`)


@pytest.fixture(scope="module")
def homes(tmp_path_factory) -> dict[str, Path]:
    written = {}
    for name, (_, write_layout) in WRITERS.items():
        written[name] = tmp_path_factory.mktemp("any") / "pets"
        write_layout(written[name])
    return written


def content(table) -> dict[int, tuple]:
    """The size and the boxes of each picture, by its number."""
    pictures = {}
    for row, image in enumerate(table.images):
        objects = table.objects(row)
        named = [table.class_names[label] for label in objects.labels]
        boxes = sorted(zip(named, objects.boxes.round(5).tolist(), strict=True))
        pictures[folders.number(image)] = (table.sizes[row].tolist(), boxes)
    assert len(pictures) == len(table)
    return pictures


def expected(numbers) -> dict[int, tuple]:
    return {
        which: ([*PICTURES[which].size[::-1]], sorted((name, [float(n) for n in box]) for name, *box in boxes))
        for which, boxes in ((which, PICTURES[which].boxes) for which in numbers)
    }


@pytest.mark.parametrize("name", WRITERS)
def test_every_layout_is_read_to_the_same_table(homes, name):
    layout = look(str(homes[name]))
    assert layout.format == WRITERS[name][0] and layout.config is None and not (layout.lists and name != "CVAT's VOC")
    # A picture without boxes has no line in a CSV file of TensorFlow.
    missing = {2} if name == "Roboflow's CSV" else set()
    whole = {}
    for split, source in layout.splits.items():
        # Through YAML and back, as a configuration holds it.
        data = config.Data.model_validate(
            {"train": source.model_dump(mode="json"), "validation": {"format": "digits"}, "orientation": "stored"}
        )
        table = load_split(data, "train")
        assert table.class_names == CLASSES
        pictures = content(table)
        if name in PARTED:
            assert pictures == expected(set(SPLITS[split]) - missing)
        whole |= pictures
    assert whole == expected(set(folders.EVERY) - missing)
    assert list(layout.splits) == list(SPLITS) or name not in PARTED


@pytest.mark.parametrize("name", WRITERS)
def test_every_command_takes_every_layout(homes, name):
    """The doctor, `convert`, and `score`, one split at a time."""
    splits = list(look(str(homes[name])).splits)
    target = open_target(homes[name], [])
    assert list(target.splits) == splits
    tables, findings = read_splits(target)
    assert list(tables) == splits and not findings
    assert list(find_source(str(homes[name])).splits) == splits
    truth = read_ground_truth(homes[name], splits=[] if name in VOC_FOLDERS else splits[:1])
    table = tables[splits[0]]
    assert truth.class_names == table.class_names
    assert truth.image.tolist() == np.repeat(np.arange(len(table)), np.diff(table.offsets)).tolist()
    np.testing.assert_allclose(truth.boxes[:, :2] + truth.boxes[:, 2:], table.boxes[:, 2:], atol=1e-5)


VOC_FOLDERS = {"VOC without lists", "Annotations below the images"}


def test_the_folders_of_an_archive(tmp_path):
    folders.roboflow_coco(tmp_path / "export" / "pets v1")
    (tmp_path / "export/__MACOSX").mkdir()
    assert list(look(str(tmp_path)).splits) == list(SPLITS)


def test_a_folder_without_splits_is_called_as_is_said(homes):
    for name, said in (("LabelImg", ["train"]), ("CVAT's COCO", ["default=val"]), ("labelme", ["x=test"])):
        assert list(find_source(str(homes[name]), splits=said).splits) == [said[0].rpartition("=")[2]]
    with pytest.raises(RetinaError, match="it is one split; expected one --split, got 2"):
        find_source(str(homes["LabelImg"]), splits=["train", "val"])
    with pytest.raises(RetinaError, match="it has no split 'valid'; did you mean 'val'"):
        find_source(str(homes["Roboflow's VOC"]), splits=["valid"])


def test_what_lies_beside_is_no_reading(tmp_path):
    """Texts and YAML files of other kinds."""
    folders.labelimg(tmp_path)
    write(tmp_path / "b.txt", "a red cat on a mat\n")
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe0")
    write(tmp_path / "notes.yaml", "a: [1\n")
    write(tmp_path / "my.yaml", "data: {}\n")
    write(tmp_path / "counts.csv", "cat,3\ndog,3\n")
    write(tmp_path / "notes.json", '{"images": 6, "annotations": "xml"}')
    assert look(str(tmp_path)).format == "voc"


def test_a_file_that_coco_calls_so_and_is_broken(tmp_path):
    write(tmp_path / "annotations/instances_train.json", '{"images": [')
    source = look(str(tmp_path)).splits["train"]
    with pytest.raises(RetinaError, match=r"instances_train\.json: not valid JSON"):
        table_of(source)


def test_several_readings_are_listed_with_what_picks_one(tmp_path):
    home = tmp_path / "pets"
    folders.labelimg(home)
    folders.coco(home / "boxes.json")
    with pytest.raises(RetinaError) as error:
        look(str(home))
    ways = "--format coco (boxes); --format voc (pets)"
    assert str(error.value) == f"{home}: it may be read in 2 ways; choose one: {ways}"
    assert look(str(home), format="voc").splits == {"pets": config.VocSource(folder=home, splits=(".",))}
    assert list(find_source(str(home), format="coco").splits) == ["boxes"]
    with pytest.raises(RetinaError, match="2 ways; give the file of one, or a configuration .*: coco .boxes.; voc"):
        read_ground_truth(home)
    with pytest.raises(RetinaError, match="expected a folder of format 'yolo'; got none of them. It holds 6 .png, 6 "):
        open_target(home, [], format="yolo")
    with pytest.raises(RetinaError, match="--format has no effect on a source of format 'coco'; leave it out"):
        look(str(home / "boxes.json"), format="coco")
    for name in ("a.yaml", "b.yaml"):
        write(tmp_path / "two" / name, "names: [cat]\ntrain: .\n")
    with pytest.raises(
        RetinaError, match=r"2 files say what its splits are; give the one to use: .*a\.yaml, .*b\.yaml"
    ):
        look(str(tmp_path / "two"))


def test_a_format_that_fits_and_is_not_whole_is_a_reading_too(tmp_path):
    folders.labelimg(tmp_path)
    folders.coco(tmp_path / "boxes.json", called=lambda name: f"lost-{name}")
    with pytest.raises(RetinaError, match="--format coco .*its images are not in"):
        look(str(tmp_path))


@pytest.mark.parametrize(
    ("files", "holds", "nearest"),
    [
        (["a.jpg", "b.txt"], r"1 \.jpg, 1 \.txt", "LabelImg's YOLO"),
        (["images/a.jpg", "labels.xml"], r"1 \.xml, images/", "LabelImg: x.jpg with x.xml beside it"),
        (["annotations/x.json", "images/a.jpg"], "annotations/, images/", "COCO and CVAT"),
        ([], "nothing", "LabelImg: .*; Roboflow's COCO: .*; Ultralytics and Roboflow: "),
    ],
)
def test_what_is_there_and_the_nearest_layouts(tmp_path, files, holds, nearest):
    for file in files:
        write(tmp_path / file, "")
    with pytest.raises(RetinaError, match=f"It holds {holds}. The nearest layouts: .*{nearest}") as error:
        look(str(tmp_path))
    assert str(error.value).partition("nearest layouts: ")[2].count("; ") == 2


def table_of(source):
    return load_split(config.Data(train=source, validation=source, orientation="stored"), "train")


def test_words_about_what_was_read_otherwise(homes, tmp_path):
    def notes(folder):
        return " ".join(table_of(next(iter(look(str(folder)).splits.values()))).notes)

    said = notes(homes["Roboflow's COCO"])
    assert "category 0, 'pets', is left out: it has no box and only groups the others" in said
    assert "4 of 8 shapes are outlines or masks: their bounding boxes are taken" in notes(homes["labelme"])
    assert "5 label files called as Label Studio does" in notes(homes["Label Studio's YOLO without images"])
    folders.labelimg(tmp_path / "voc")
    (tmp_path / "voc/b.xml").unlink()
    assert "1 of 6 images have no annotation and are left out, such as b.png" in notes(tmp_path / "voc")
    folders.labelme_beside(tmp_path / "labelme")
    for name in "be":
        (tmp_path / f"labelme/{name}.json").unlink()
    assert "2 of 6 images have no JSON file and are left out, such as b.png" in notes(tmp_path / "labelme")


@pytest.mark.parametrize(
    ("writer", "label", "moved", "fate"),
    [
        (folders.voc_without_lists, "Annotations/b.xml", "annotations/b.xml", "is left out"),
        (folders.voc_without_lists, "Annotations/b.xml", "JPEGImages/b.XML", "is left out"),
        (folders.kaggle_voc, "annotations/b.xml", "new/sub/B.xml", "is left out"),
        (folders.roboflow_voc, "train/", "later/", "is left out"),
        (folders.labelme_beside, "b.json", "new/sub/b.JSON", "is left out"),
        (folders.labelme_in_annotations, "annotations/b.json", "annotations/B/B.json", "is left out"),
        (folders.labelme_in_split_folders, "train/b.json", "later/b.json", "is left out"),
        (folders.yolo_in_split_folders, "train/labels/b.txt", "train/labels_new/b.txt", "is trained as background"),
    ],
)
def test_labels_that_no_image_claims(tmp_path, writer, label, moved, fate):
    """Of every format with a file of labels for each image, in another folder: the preflight refuses them."""
    writer(tmp_path)
    source = next(iter(look(str(tmp_path)).splits.values()))
    assert table_of(source).unused is None
    if label.endswith("/"):
        (name,) = (file.name for file in (tmp_path / label).glob("b*.xml"))
        label, moved = label + name, moved + name
    (tmp_path / moved).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / label).rename(tmp_path / moved)
    table = table_of(source)
    assert table.unused.files == (str(tmp_path / moved),) and table.unused.sought == (str((tmp_path / label).parent),)
    assert (table.unused.ending, table.unused.fate) == (Path(label).suffix, fate)
    assert f"1 label file is called like an image without labels, but not used, such as {tmp_path / moved}" in " ".join(
        table.notes
    )
    (finding,) = (finding for finding in table_findings(table, "train", True) if finding.code == "unused-labels")
    assert finding.grade == "error" and finding.remedy.startswith(f"an image without labels {fate}: put each")
    assert ") belongs to no image and is not used: " in finding.message
    (tmp_path / moved).rename(tmp_path / label)
    assert table_of(source).unused is None, "where they are sought"


def test_labels_of_other_splits_are_theirs(tmp_path):
    """Images of two splits may have one name, and splits may share a folder of images."""
    for writer, home in ((folders.xmls, "voc"), (folders.labelme, "labelme")):
        for split, numbers in (("train", range(1, 4)), ("val", range(2, 3))):
            folders.draw(tmp_path / home / split, range(1, 4))
            writer(tmp_path / home / split, [number for number in numbers if (split, number) != ("train", 2)])
        table = table_of(look(str(tmp_path / home)).splits["train"])
        assert table.image_ids == ("b", "d") and table.unused is None
    folders.draw(tmp_path / "shared/images")
    for split, numbers in folders.SPLITS.items():
        folders.labelme(tmp_path / "shared" / split, numbers, "../images/")
    for source in look(str(tmp_path / "shared")).splits.values():
        table = table_of(source.model_copy(update={"images": tmp_path / "shared/images"}))
        assert table.unused is None and "left out" not in " ".join(table.notes)


def test_labels_of_other_splits_are_theirs_from_their_own_folder(tmp_path, monkeypatch):
    """`.` is no part of a path, as `retina train .` gives it."""
    for split, numbers in (("train", (1, 3)), ("val", (2, 4))):
        folders.draw(tmp_path / split, range(1, 5))
        folders.xmls(tmp_path / split, numbers)
    monkeypatch.chdir(tmp_path)
    for source in look(".").splits.values():
        assert table_of(source).unused is None


def test_labels_of_other_images_are_theirs(tmp_path):
    """Another data set may lie within, and a folder of labels may be that of a split called otherwise."""
    for home in (tmp_path / "voc", tmp_path / "voc/more"):
        folders.draw(home / "JPEGImages", range(1, 4))
        folders.xmls(home / "Annotations", (1, 3) if home.name == "voc" else range(1, 4))
    for home in (tmp_path / "labelme", tmp_path / "labelme/more"):
        folders.draw(home, range(1, 4))
        folders.labelme(home, (1, 3) if home.name == "labelme" else range(1, 4))
    for name in ("voc", "labelme"):
        (source,) = look(str(tmp_path / name)).splits.values()
        table = table_of(source)
        assert table.image_ids == ("b", "d") and table.unused is None
        assert "1 of 3 images have no" in " ".join(table.notes)
    folders.draw(tmp_path / "days/images", range(1, 4))
    for split, numbers in (("monday", (1, 3)), ("tuesday", (2,))):
        folders.labelme(tmp_path / "days" / split, numbers, "../images/")
        settings = {"folder": tmp_path / "days", "splits": (split,), "images": tmp_path / "days/images"}
        if split == "monday":
            assert table_of(config.LabelmeSource(**settings)).unused is None


@pytest.mark.parametrize(
    ("writer", "label"), [(folders.voc_without_lists, "Annotations/b.xml"), (folders.labelme_beside, "b.json")]
)
def test_what_is_called_like_labels_and_is_hidden_or_cannot_be_read_is_no_label(tmp_path, monkeypatch, writer, label):
    writer(tmp_path)
    file = tmp_path / "more" / Path(label).name
    file.parent.mkdir()
    (tmp_path / label).rename(file)
    (source,) = look(str(tmp_path)).splits.values()
    assert table_of(source).unused.files == (str(file),)
    read = Path.read_bytes

    def refused(path):
        if path == file:
            raise PermissionError(13, "Permission denied")
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refused)
        assert table_of(source).unused is None
    file.parent.rename(tmp_path / ".trash")
    assert table_of(source).unused is None
    file.parent.mkdir()
    file.symlink_to("nowhere")
    assert table_of(source).unused is None


def test_the_superfluous_category(tmp_path):
    """It goes where nothing is of it in any split; a configuration that does not say so keeps it."""
    folders.roboflow_coco(tmp_path)
    sections = look(str(tmp_path)).splits
    assert {source.supercategory for source in sections.values()} == {"drop"}
    assert table_of(sections["train"].model_copy(update={"supercategory": None})).class_names == ("pets", *CLASSES)
    file = tmp_path / "test" / "_annotations.coco.json"
    file.write_text(file.read_text().replace('"category_id": 2', '"category_id": 0'))
    assert {source.supercategory for source in look(str(tmp_path)).splits.values()} == {None}
    with pytest.raises(RetinaError, match=r"test.*supercategory: drop: expected a category 0 that has no box"):
        table_of(sections["test"])
    # Called like the only class, as for a project of that name.
    tree = {"id": 0, "name": "cat", "supercategory": "none"}, {"id": 1, "name": "cat", "supercategory": "cat"}
    folders.draw(tmp_path / "a", range(1, 3))
    folders.coco(tmp_path / "a/_annotations.coco.json", range(1, 3), categories=tree)
    (source,) = look(str(tmp_path / "a")).splits.values()
    assert table_of(source).class_names == ("cat",)


def test_the_guide_lists_every_layout():
    text = (Path(layouts.__file__).parents[2] / "guide" / "data.md").read_text(encoding="utf-8")
    for words in layouts.LAYOUTS:
        assert "| {} | {} |".format(*words.split(": ", 1)) in text
