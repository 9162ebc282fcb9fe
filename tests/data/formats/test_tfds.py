"""The TFDS source, on datasets that TFDS' own tools wrote: the table, how images are read, what is refused."""

import io
import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retina import config
from retina.data.dataset import DetectionDataset
from retina.data.formats.tfds import split_names
from retina.data.load import load_split, read_split
from retina.data.stored import FileSlice, SourceImage, encoded, path_or_bytes
from retina.errors import RetinaError
from tests.data.formats.tables import read_tfds

tfds = pytest.importorskip("tensorflow_datasets")
FORMATS = ("tfrecord", "array_record")
SIZES = [(60, 80), (40, 40), (50, 100), (64, 32)]  # height, width


def picture(number: int) -> bytes:
    """A PNG of noise: no two are alike."""
    out = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (*SIZES[number], 3), np.uint8)
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def things(number: int) -> list[dict]:
    """Of image 0 two, of image 1 none, of image 2 a crowd, of image 3 a difficult one; ymin, xmin, ymax, xmax."""
    boxes = {0: [(0.0, 0.0, 1.0, 1.0), (0.25, 0.125, 0.5, 0.75)], 1: [], 2: [(0.1, 0.2, 0.3, 0.4)], 3: [(0, 0.5, 1, 1)]}
    return [
        {
            "bbox": tfds.features.BBox(*map(float, box)),
            "label": (number + place) % 3,
            "is_crowd": number == 2,
            "is_difficult": number == 3,
            "area": 100 + place,
        }
        for place, box in enumerate(boxes[number])
    ]


def features(**more):
    label = tfds.features.ClassLabel(names=["cat", "traffic light", "emu"])
    kinds = {"is_crowd": np.bool_, "is_difficult": np.bool_, "area": np.int64}
    objects = tfds.features.Sequence({"bbox": tfds.features.BBoxFeature(), "label": label, **kinds})
    return tfds.features.FeaturesDict({"image": tfds.features.Image(), "objects": objects, **more})


def write(folder: Path, name: str, file_format: str, spec, examples: dict[str, list[dict]], shards: int = 2) -> Path:
    """A dataset as TFDS' own writers and `write_metadata` make one."""
    folder.mkdir(parents=True)
    infos = []
    adapter = tfds.core.file_adapters.ADAPTER_FOR_FORMAT[tfds.core.FileFormat(file_format)]
    for split, rows in examples.items():
        count = min(shards, len(rows))
        edges = [len(rows) * shard // count for shard in range(count + 1)]
        for shard in range(count):
            for row in rows:
                row["image"].seek(0)
            records = ((row, spec.serialize_example(rows[row])) for row in range(edges[shard], edges[shard + 1]))
            adapter.write_examples(folder / f"{name}-{split}.{file_format}-{shard:05d}-of-{count:05d}", records)
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=name, split=split, filetype_suffix=file_format
        )
        lengths = [after - before for before, after in itertools.pairwise(edges)]
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=1, filename_template=template))
    tfds.folder_dataset.write_metadata(data_dir=folder, features=spec, split_infos=infos, check_data=False)
    return folder


def example(number: int, **more) -> dict:
    return {"image": io.BytesIO(picture(number)), "objects": things(number), **more}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> dict[str, Path]:
    """The folder of each file format; `made/things/1.2.0` in it holds splits train (all four) and rest (1)."""
    found = {}
    for file_format in FORMATS:
        root = tmp_path_factory.mktemp(file_format)
        spec = features(**{"image/id": np.int64, "image/filename": tfds.features.Text()})
        rows = [example(n, **{"image/id": 7 - n, "image/filename": f"{n}.png"}) for n in range(4)]
        folder = root / "made" / "things" / "1.2.0"
        write(folder, "made", file_format, spec, {"train": rows, "rest": rows[1:2]})
        info = folder / "dataset_info.json"  # as a builder with configurations writes it
        info.write_text(info.read_text().replace('"name": "made"', '"configName": "things",\n  "name": "made"', 1))
        found[file_format] = root
    return found


@pytest.fixture(params=FORMATS)
def data_dir(request, prepared) -> Path:
    return prepared[request.param]


def test_the_table(data_dir):
    table = read_tfds("made/things", "train", data_dir)
    assert table.name == "made/things/1.2.0 (train)"
    assert table.class_names == ("cat", "traffic light", "emu") and table.category_ids == (0, 1, 2)
    assert table.image_ids == (7, 6, 5, 4)
    assert table.sizes.tolist() == [list(size) for size in SIZES]
    assert table.offsets.tolist() == [0, 2, 2, 3, 4]
    expected = [[0, 0, 80, 60], [10, 15, 60, 30], [20, 5, 40, 15], [16, 0, 32, 64]]
    np.testing.assert_allclose(table.boxes, expected, rtol=0, atol=100 * 2**-23)
    assert table.labels.tolist() == [0, 1, 2, 0]
    assert table.crowd.tolist() == [False, False, True, False]
    assert table.difficult.tolist() == [False, False, False, True]
    assert table.areas.tolist() == [100, 101, 100, 100]


def test_images_are_read_byte_for_byte_where_they_lie(data_dir):
    table = read_tfds("made/things", "train", data_dir)
    kind = FileSlice if data_dir.name.startswith("tfrecord") else SourceImage
    for number, image in enumerate(table.images):
        assert type(image) is kind and image.length == len(picture(number))
        assert image.read() == encoded(image) == path_or_bytes(image) == picture(number)


def test_another_split_and_parts_of_one(data_dir):
    assert set(split_names("made/things", data_dir)) == {"train", "rest"}
    assert read_tfds("made/things:1.2.0", "rest", data_dir).image_ids == (6,)
    part = read_tfds("made/things", "train[1:3]", data_dir)
    assert part.image_ids == (6, 5)
    assert [image.read() for image in part.images] == [picture(1), picture(2)]
    assert read_tfds("made/things", "train[:25%]+rest", data_dir).image_ids == (7, 6)


def test_by_the_folder_itself_and_through_the_configuration(data_dir):
    direct = read_tfds(None, "train", data_dir / "made/things/1.2.0")
    source = {"format": "tfds", "name": "made/things", "split": "train", "data_dir": data_dir.name}
    data = config.Data.model_validate(
        {"root": data_dir.parent, "train": source, "validation": source, "classes": ["emu", "cat", "traffic light"]}
    )
    table = load_split(data, "train")
    assert table.image_ids == direct.image_ids and table.boxes.tolist() == direct.boxes.tolist()
    assert table.class_names == ("emu", "cat", "traffic light") and table.category_ids == (2, 0, 1)
    assert table.labels.tolist() == [1, 2, 0, 1]


def test_difficult_boxes_follow_the_policy(prepared):
    used = read_tfds("made/things", "train", prepared["tfrecord"], difficult="use")
    assert len(used.boxes) == 4 and not used.difficult.any()
    dropped = read_tfds("made/things", "train", prepared["tfrecord"], difficult="drop")
    assert dropped.offsets.tolist() == [0, 2, 2, 3, 3]
    assert dropped.notes == ("made/things/1.2.0 (train): 1 of 4 objects are difficult: dropped (data.difficult: drop)",)


def test_batches_equal_those_of_files(data_dir, tmp_path):
    from retina.data.batches.training import training_batches
    from retina.data.images import load_image

    table = read_tfds("made/things", "train", data_dir)
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    files = DetectionDataset(**{**vars(table), "images": tuple(str(tmp_path / f"{n}.png") for n in range(4))})
    data = config.Data.model_validate(
        {
            "train": {"format": "digits"},
            "validation": {"format": "digits"},
            "resize": {"short": 32, "long": 64, "multiple": 32},
            "augment": {"scale": [0.8, 1.5]},
        }
    )
    pairs = 0
    for ours, theirs in zip(
        training_batches(table, data, batch_size=2, seed=3, steps=4),
        training_batches(files, data, batch_size=2, seed=3, steps=4),
        strict=True,
    ):
        pairs += 1
        for key in ours:
            assert np.array_equal(ours[key], theirs[key]), key
    assert pairs == 4
    assert np.array_equal(load_image(table.images[2]), load_image(str(tmp_path / "2.png")))


def test_a_shard_that_went_away_is_named_by_the_batches(tmp_path):
    from retina.data.batches.evaluation import evaluation_batches, translated

    rows = [example(n, **{"image/id": n}) for n in range(2)]
    folder = write(tmp_path / "x", "gone", "tfrecord", features(**{"image/id": np.int64}), {"train": rows}, shards=1)
    table = read_tfds(None, "train", folder)
    shard = folder / "gone-train.tfrecord-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(RetinaError, match=r"gone-train\.tfrecord-00000-of-00001: expected \d+ bytes of an image at"):
        table.images[0].read()
    data = config.Data.model_validate({"train": {"format": "digits"}, "validation": {"format": "digits"}})
    with (
        pytest.raises(RetinaError, match=r"gone-train\.tfrecord.*: expected \d+ bytes"),
        translated(table),
    ):
        list(evaluation_batches(table, data, batch_size=1))
    shard.unlink()
    with pytest.raises(RetinaError, match="cannot read this shard: No such file"):
        table.images[1].read()


# ------------------------------------------------------------------------------------------------- ids and categories


def test_ids_without_a_number(tmp_path):
    named = features(**{"image/filename": tfds.features.Text()})
    rows = [example(n, **{"image/filename": f"2007_{n:06d}.jpg"}) for n in range(2)]
    assert read_tfds(None, "train", write(tmp_path / "a", "a", "tfrecord", named, {"train": rows})).image_ids == (
        "2007_000000",
        "2007_000001",
    )
    rows = [example(n) for n in range(2)]
    assert read_tfds(None, "train", write(tmp_path / "b", "b", "tfrecord", features(), {"train": rows})).image_ids == (
        0,
        1,
    )
    numbered = features(**{"image/id": np.int64})
    rows = [example(n, **{"image/id": 5}) for n in range(2)]
    with pytest.raises(RetinaError, match="image 1: id 5 is given twice"):
        read_tfds(None, "train", write(tmp_path / "c", "c", "tfrecord", numbered, {"train": rows}))


def minimal(classes: int):
    label = tfds.features.ClassLabel(num_classes=classes)
    objects = tfds.features.Sequence({"bbox": tfds.features.BBoxFeature(), "label": label})
    return tfds.features.FeaturesDict({"image": tfds.features.Image(), "objects": objects})


def one_box(number: int, *box: float) -> dict:
    boxes = [{"bbox": tfds.features.BBox(*box), "label": 1}]
    return {"image": io.BytesIO(picture(number)), "objects": boxes}


def test_cocos_categories_get_their_own_ids_back(tmp_path):
    rows = {"train": [one_box(0, 0.0, 0.0, 0.5, 0.5)]}
    table = read_tfds(None, "train", write(tmp_path / "coco", "coco", "tfrecord", minimal(80), rows))
    assert len(table.category_ids) == 80
    assert table.category_ids[:12] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13) and table.category_ids[-1] == 90
    other = read_tfds(None, "train", write(tmp_path / "other", "other", "tfrecord", minimal(80), rows))
    assert other.category_ids == tuple(range(80))
    assert other.class_names[:2] == ("0", "1"), "classes without names are called by their numbers"


def test_vocs_corners_count_from_one(tmp_path):
    """TFDS' voc divides xmin by the width as it stands in the file; a box of the whole image starts at 1."""
    rows = {"train": [one_box(0, 1 / 60, 1 / 80, 1.0, 1.0), one_box(1, 0.0, 0.5, 0.5, 1.0)]}
    voc = read_tfds(None, "train", write(tmp_path / "voc", "voc", "tfrecord", minimal(3), rows))
    np.testing.assert_allclose(voc.boxes, [[0, 0, 80, 60], [19, 0, 40, 20]], atol=1e-4)
    other = read_tfds(None, "train", write(tmp_path / "other", "other", "tfrecord", minimal(3), rows))
    np.testing.assert_allclose(other.boxes, [[1, 1, 80, 60], [20, 0, 40, 20]], atol=1e-4)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_nothing_is_downloaded(tmp_path):
    with pytest.raises(RetinaError, match=r"coco/2017: expected a TFDS dataset prepared in .*`tfds build coco/2017"):
        read_tfds("coco/2017", "train", tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RetinaError, match="expected the folder of a prepared TFDS dataset"):
        read_tfds(None, "train", tmp_path)


def test_unknown_splits(data_dir):
    with pytest.raises(RetinaError, match="no such split: .*; splits that exist: "):
        read_tfds("made/things", "trian", data_dir)
    with pytest.raises(RetinaError, match="no image"):
        read_tfds("made/things", "train[:0]", data_dir)


def test_features_that_do_not_fit(tmp_path):
    spec = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}
    )
    rows = {"train": [{"image": io.BytesIO(picture(0)), "label": 1}]}
    folder = write(tmp_path / "x", "plain", "tfrecord", spec, rows)
    with pytest.raises(RetinaError, match="no such objects/bbox and objects/label; its features: image, label"):
        read_tfds(None, "train", folder)


def test_invalid_boxes_follow_the_policy(tmp_path):
    rows = {"train": [one_box(0, 0.5, 0.5, 0.5, 0.75), one_box(1, 0.0, 0.0, 1.0, 1.0)]}
    folder = write(tmp_path / "x", "flat", "tfrecord", minimal(2), rows)
    with pytest.raises(RetinaError, match=r"an object of image 0: box \[0.5, 0.5, 0.5, 0.75\] has zero height"):
        read_tfds(None, "train", folder)
    assert read_tfds(None, "train", folder, invalid_boxes="drop").offsets.tolist() == [0, 0, 1]
    source = {"format": "tfds", "split": "train", "data_dir": "x"}
    data = config.Data.model_validate(
        {"root": tmp_path, "train": source, "validation": source, "invalid_boxes": "drop", "classes": ["1", "0"]}
    )
    truth = read_split(data, "train").truth
    assert truth.boxes.tolist() == [[40, 30, 20, 0], [0, 0, 40, 40]], "a box that nothing can find is still missed"
    assert truth.labels.tolist() == [0, 0] and truth.class_names == ("1", "0") and truth.areas.tolist() == [0, 1600]


@pytest.mark.parametrize("damage", ["flipped", "short", "missing", "empty"])
def test_damaged_shards(data_dir, tmp_path, damage):
    root = tmp_path / "copy"
    shutil.copytree(data_dir, root)
    shard = next((root / "made/things/1.2.0").glob("made-train.*-00001-of-00002"))
    content = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    else:
        content[len(content) // 2] ^= 255
        shard.write_bytes({"flipped": content, "short": content[:-200], "empty": b""}[damage])
    with pytest.raises(RetinaError, match=r"made/things/1\.2\.0 \(train\): cannot read its shards in "):
        read_tfds("made/things", "train", root)


def test_an_image_that_is_none(tmp_path):
    rows = {"train": [{**one_box(0, 0.0, 0.0, 1.0, 1.0), "image": io.BytesIO(b"no image")}]}
    folder = write(tmp_path / "x", "broken", "tfrecord", minimal(2), rows)
    with pytest.raises(RetinaError, match="image 0: expected an encoded image, got 8 bytes that are none"):
        read_tfds(None, "train", folder)


def test_other_features_of_objects_are_passed_over(tmp_path):
    """They may be nested, or have any number of values."""
    more = {"attributes": {"age": np.int64}, "parts": tfds.features.Sequence(np.int64)}
    objects = tfds.features.Sequence({**features()["objects"].feature, **more})
    row = example(0)
    for number, thing in enumerate(row["objects"]):
        thing |= {"attributes": {"age": 3}, "parts": [1] * number}
    spec = tfds.features.FeaturesDict({"image": tfds.features.Image(), "objects": objects})
    write(tmp_path / "more/1.0.0", "more", "tfrecord", spec, {"train": [row]})
    source = config.TfdsSource(name="more", split="train", data_dir=tmp_path)
    table = load_split(config.Data(train=source, validation=source), "train")
    height, width = SIZES[0]
    whole, part = [0, 0, width, height], [0.125 * width, 0.25 * height, 0.75 * width, 0.5 * height]
    assert table.boxes.tolist() == [whole, part] and table.areas.tolist() == [100, 101]


def test_skip_leaves_out_an_image_that_is_none_and_the_error_names_its_record(tmp_path):
    spec = tfds.features.FeaturesDict(
        dict(minimal(2).items()) | {"image/id": np.int64, "image/filename": tfds.features.Text()}
    )
    rows = [one_box(n, 0.0, 0.0, 0.5, 0.5) | {"image/id": 70 + n, "image/filename": f"{n}.png"} for n in range(3)]
    rows[1]["image"] = io.BytesIO(b"no image")
    folder = write(tmp_path / "x", "broken", "tfrecord", spec, {"train": rows})
    named = r"image 1 \(image/id 71, image/filename 1\.png\): .*invalid_images: skip"
    with pytest.raises(RetinaError, match=named):
        read_tfds(None, "train", folder)
    source = {"format": "tfds", "split": "train", "data_dir": folder}
    data = config.Data.model_validate({"train": source, "validation": source, "invalid_images": "skip"})
    dataset, truth = read_split(data, "train")
    assert dataset.image_ids == (70, 72) and dataset.sizes.tolist() == [[60, 80], [50, 100]]
    assert "1 of them, with 1 box, can't be used" in dataset.notes[-1] and "image 71" in dataset.notes[-1]
    assert truth.image_ids == (70, 72)


def test_a_split_without_labels(tmp_path):
    row = {"image": io.BytesIO(picture(0)), "objects": [{"bbox": tfds.features.BBox(0.0, 0.0, 0.5, 0.5), "label": -1}]}
    folder = write(tmp_path / "x", "blind", "tfrecord", minimal(2), {"test": [row]})
    message = (
        r"\(test\): image 0: an object has the label -1, expected 0 to 1, and so have 1 of 1 objects; .*test split"
    )
    with pytest.raises(RetinaError, match=message):
        read_tfds(None, "test", folder)
