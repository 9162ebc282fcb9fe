"""Photographs with an EXIF rotation: `data.orientation` is the same for every reader, and nothing is placed wrongly."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from retina import config
from retina.data.batches import exif, pixels
from retina.data.batches.evaluation import evaluation_batches
from retina.data.batches.training import training_batches
from retina.data.convert.converting import convert
from retina.data.headers import orientation
from retina.data.images import load_image
from retina.data.load import load_split
from retina.data.orientation import settled, turned
from retina.data.stored import FileSlice, Photograph
from retina.errors import RetinaError

ALL = range(1, 9)
HEIGHT, WIDTH = 48, 80


def picture(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return coarse.repeat(8, axis=0).repeat(8, axis=1)


def photograph(turn: int, kind: str = "PNG", image: np.ndarray | None = None) -> bytes:
    """Encoded bytes that EXIF says to turn."""
    data, out = Image.Exif(), io.BytesIO()
    data[0x010F] = "A maker"  # stands before the orientation in the directory
    data[0x0112] = turn
    lossless = {"lossless": True} if kind == "WEBP" else {}
    options = {"tiffinfo": data} if kind == "TIFF" else {"exif": data}
    Image.fromarray(picture() if image is None else image).save(out, kind, **options, **lossless)
    return out.getvalue()


# ------------------------------------------------------------------------------------------------------------- headers


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", ALL)
def test_the_orientation_is_read_as_pillow_reads_it(kind, turn, tmp_path):
    content = photograph(turn, kind)
    with Image.open(io.BytesIO(content)) as opened:
        assert opened.getexif()[0x0112] == turn
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "shard").write_bytes(b"xyz" + content + b"abc")
    for image in (content, str(tmp_path / "a"), FileSlice(str(tmp_path / "shard"), 3, len(content))):
        assert orientation(image) == turn
    if kind != "TIFF":
        assert int(exif.orientation(content)) == turn


def big_endian(turn: int, kind: int) -> bytes:
    """A JPEG whose EXIF is written the highest byte first, after fill bytes, with the value as a SHORT or a LONG."""
    value = turn.to_bytes(2, "big") + b"\0\0" if kind == 3 else turn.to_bytes(4, "big")
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12" + kind.to_bytes(2, "big") + b"\0\0\0\x01" + value + bytes(4)
    segment = b"Exif\0\0" + tiff
    return b"\xff\xd8\xff\xff\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + photograph(1, "JPEG")[2:]


@pytest.mark.parametrize("kind", [3, 4])
def test_either_order_of_bytes_and_either_width(kind):
    for read in (orientation, lambda content: int(exif.orientation(content))):
        assert read(big_endian(6, kind)) == 6
        assert read(big_endian(9, kind)) == 1  # there is none such


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_header_that_is_cut_short_is_read_alike_by_both(kind):
    import tensorflow as tf

    # A graph, as in the reader: its loops take a tenth of the time.
    in_graph = tf.function(exif.orientation, input_signature=[tf.TensorSpec((), tf.string)], autograph=False)
    content = photograph(6, kind)
    for length in [0, 1, 2, 3, 4, 8, 12, *range(20, len(content), 17)]:
        assert orientation(content[:length]) == int(in_graph(content[:length]))
    for nothing in (b"", b"\xff\xd8", b"GIF89a", b"BM", b"not an image", bytes(100)):
        assert orientation(nothing) == int(in_graph(nothing)) == 1
    assert orientation("no/such/file.jpg") == 1


@pytest.mark.parametrize("turn", ALL)
def test_pixels_are_turned_as_pillow_turns_them(turn):
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(photograph(turn)))))
    np.testing.assert_array_equal(turned(picture(), turn), expected)
    np.testing.assert_array_equal(exif.turned(picture(), np.int64(turn)).numpy(), expected)


# ------------------------------------------------------------------------------------------------------------- readers


def yolo(folder, contents, suffix="png"):
    """A folder of images with a label each; the box covers the upper left quarter."""
    for inside in ("images", "labels"):
        (folder / inside).mkdir(parents=True)
    for number, content in enumerate(contents):
        (folder / "images" / f"{number}.{suffix}").write_bytes(content)
        (folder / "labels" / f"{number}.txt").write_text("0 0.25 0.25 0.5 0.5\n")
    (folder / "classes.txt").write_text("a\n")
    return folder


def section(folder, **settings) -> config.Data:
    source = config.YoloSource(images=folder / "images")
    resize = config.Resize(short=40, long=96, multiple=32)
    return config.Data(train=source, validation=source, resize=resize, **settings)


@pytest.fixture(scope="module")
def upright_and_copies(tmp_path_factory):
    """Images of every orientation with `data.orientation: upright`, and the same pictures stored upright."""
    home = tmp_path_factory.mktemp("upright")
    images = [picture(seed=turn) for turn in ALL]
    rotated = yolo(home / "rotated", [photograph(turn, image=image) for turn, image in zip(ALL, images, strict=True)])
    copies = yolo(home / "copies", [photograph(1, image=turned(i, t)) for t, i in zip(ALL, images, strict=True)])
    return section(rotated, orientation="upright"), section(copies)


def assert_equal_batches(ours, theirs):
    count = 0
    for first, second in zip(ours, theirs, strict=True):
        count += 1
        for key in ("images", "boxes", "labels", "valid", "scale", "size", "index", "sample"):
            np.testing.assert_array_equal(first[key], second[key], err_msg=key)
    assert count


def test_evaluation_reads_what_upright_copies_give(upright_and_copies):
    batches = [
        evaluation_batches(load_split(data, "validation"), data, batch_size=2).as_numpy_iterator()
        for data in upright_and_copies
    ]
    assert_equal_batches(*batches)


@pytest.mark.parametrize("decode", ["auto", "full"])
@pytest.mark.parametrize("cache", ["none", "memory"])
def test_training_reads_what_upright_copies_give(upright_and_copies, decode, cache):
    batches = []
    for data in upright_and_copies:
        data = data.model_copy(update={"decode": decode, "cache": cache})
        batches.append(training_batches(load_split(data, "train"), data, batch_size=2, seed=1, steps=6))
    assert_equal_batches(*batches)


@pytest.mark.parametrize("size", [(480, 800), (484, 804), (483, 801)], ids=["by 8", "by 4", "odd"])
@pytest.mark.parametrize("cache", ["none", "memory"])
def test_jpegs_that_are_halved_and_turned_stay_in_place(tmp_path, size, cache):
    """A pixel that shows less than the others would move all the others; what is no multiple is decoded in full."""
    image = np.asarray(Image.fromarray(picture(seed=3)).resize(size[::-1], Image.Resampling.BICUBIC))
    data = section(yolo(tmp_path, [photograph(turn, "JPEG", image) for turn in ALL], "jpg"), orientation="upright")
    dataset = load_split(data, "train")
    data = data.model_copy(update={"augment": config.Augment(horizontal_flip=0.0), "cache": cache})
    (fast,) = training_batches(dataset, data, batch_size=8, seed=1, steps=1)
    (full,) = training_batches(dataset, data.model_copy(update={"decode": "full"}), batch_size=8, seed=1, steps=1)
    difference = np.abs(fast["images"].astype(int) - full["images"].astype(int)).mean(axis=(1, 2, 3))
    assert difference.max() < 6.0
    moved = np.abs(np.roll(full["images"], 1, axis=2).astype(int) - full["images"].astype(int)).mean(axis=(1, 2, 3))
    assert (difference < moved / 2).all()


@pytest.mark.parametrize("turn", ALL)
def test_a_photograph_alone(turn, tmp_path):
    (tmp_path / "a.png").write_bytes(photograph(turn))
    expected = turned(picture(), turn)
    for image in (photograph(turn), str(tmp_path / "a.png")):
        np.testing.assert_array_equal(load_image(Photograph(image, upright=True)), expected)
        np.testing.assert_array_equal(load_image(image), picture())
    graph = exif.turned(pixels.decode(photograph(turn)), exif.orientation(photograph(turn)))
    np.testing.assert_array_equal(graph.numpy(), expected)


# ------------------------------------------------------------------------------------------------------- what is taken


def coco(folder, images):
    """Images given as (bytes, declared (height, width))."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    for number, (content, (height, width)) in enumerate(images):
        (folder / f"{number}.png").write_bytes(content)
        tree["images"].append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        box = {
            "id": number + 1,
            "image_id": number,
            "category_id": 1,
            "bbox": [1, 2, 20, 30],
            "area": 600,
            "iscrowd": 0,
        }
        tree["annotations"].append(box)
    (folder / "all.json").write_text(json.dumps(tree))
    source = config.CocoSource(annotations=folder / "all.json", images=folder)
    return config.Data(train=source, validation=source)


STORED, TURNED = (HEIGHT, WIDTH), (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("images", "decided", "turns"),
    [
        ([], "", [1]),
        ([(6, TURNED)], "upright", [1, 6]),
        ([(6, STORED)], "stored", [1, 1]),
        ([(6, TURNED), (8, TURNED), (3, STORED)], "upright", [1, 6, 8, 3]),  # a half turn follows the others
        ([(5, STORED), (3, STORED)], "stored", [1, 1, 1]),
        ([(6, TURNED), (7, STORED)], "both", [1, 6, 1]),
    ],
)
def test_declared_sizes_decide(tmp_path, images, decided, turns):
    data = coco(tmp_path, [(photograph(1), STORED), *((photograph(turn), size) for turn, size in images)])
    table = load_split(data, "train")
    assert (table.orientation, table.turns.tolist()) == (decided, turns)
    assert len(table.notes) == bool(decided)
    if decided == "both":
        with pytest.raises(RetinaError, match="convert --upright"):
            settled(data, [table])
    else:
        assert settled(data, [table]).orientation == (decided or "auto")
    assert table.subset([0]).turns.tolist() == [1]
    next(iter(evaluation_batches(table, data, batch_size=1)))


@pytest.mark.parametrize(
    "images", [[(3, STORED)], [(2, STORED)], [(6, TURNED), (7, STORED), (3, STORED)]], ids=["half", "mirror", "split"]
)
def test_what_sizes_do_not_tell_is_refused_with_both_ways_out(tmp_path, images):
    data = coco(tmp_path, [(photograph(turn), size) for turn, size in images])
    with pytest.raises(RetinaError, match="nothing says whether") as error:
        load_split(data, "train")
    assert "data.orientation: upright" in str(error.value) and "or stored" in str(error.value)
    assert load_split(data, "train", keep_unusable=True).orientation == "unknown"


def test_formats_without_sizes_are_refused_until_told(tmp_path):
    folder = yolo(tmp_path, [photograph(1), photograph(6), photograph(3)])
    with pytest.raises(RetinaError, match="2 of 3 images carry an EXIF rotation"):
        load_split(section(folder), "train")
    stored = load_split(section(folder, orientation="stored"), "train")
    assert stored.sizes.tolist() == [[HEIGHT, WIDTH]] * 3 and stored.turns.tolist() == [1, 1, 1]
    upright = load_split(section(folder, orientation="upright"), "train")
    assert upright.sizes.tolist() == [[HEIGHT, WIDTH], [WIDTH, HEIGHT], [HEIGHT, WIDTH]]
    assert upright.turns.tolist() == [1, 6, 3]
    np.testing.assert_allclose(upright.boxes[1], [0, 0, HEIGHT / 2, WIDTH / 2])


def test_csv_follows_the_sizes_that_it_gives(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(photograph(6))
    lines = ["image,x1,y1,x2,y2,label,width,height", f"0.png,1,2,20,60,a,{HEIGHT},{WIDTH}", "1.png,1,2,20,30,a,,"]
    file = tmp_path / "boxes.csv"
    file.write_text("\n".join(lines) + "\n")
    source = config.CsvSource(annotations=file)
    table = load_split(config.Data(train=source, validation=source), "train")
    assert table.orientation == "upright" and table.turns.tolist() == [6, 6]


def test_an_explicit_choice_that_sizes_contradict_is_refused_with_the_other(tmp_path):
    data = coco(tmp_path, [(photograph(6), TURNED)]).model_copy(update={"orientation": "stored"})
    with pytest.raises(RetinaError, match=r"an EXIF rotation: it fits data\.orientation: upright"):
        list(training_batches(load_split(data, "train"), data, batch_size=1, seed=0, steps=1))


# ------------------------------------------------------------------------------------------------------------- convert


def test_convert_turns_only_what_it_knows_to_be_right(tmp_path):
    folder = yolo(tmp_path / "yolo", [photograph(6)])
    with pytest.raises(RetinaError, match="give --orientation upright"):
        convert(folder, tmp_path / "a", "coco", upright=True)
    boxes = {}
    for orientation_ in ("upright", "stored"):
        done = convert(folder, tmp_path / orientation_, "coco", orientation=orientation_, upright=True)
        assert done.problems == () and "orientation" not in done.data
        (file,) = (tmp_path / orientation_).glob("annotations/*.json")
        tree = json.loads(file.read_text())
        assert (tree["images"][0]["height"], tree["images"][0]["width"]) == (WIDTH, HEIGHT)
        boxes[orientation_] = tree["annotations"][0]["bbox"]
    assert boxes["upright"] == [0, 0, HEIGHT / 2, WIDTH / 2]
    assert boxes["stored"] == [HEIGHT / 2, 0, HEIGHT / 2, WIDTH / 2]  # turned with the pixels
    with pytest.raises(RetinaError, match="--upright"):
        convert(folder, tmp_path / "b", "coco", orientation="upright")
    assert convert(folder, tmp_path / "c", "coco", orientation="stored").data["orientation"] == "stored"


# -------------------------------------------------------------------------------------------------------------- export


def test_an_export_turns_photographs_as_prediction_does():
    """The graph of a SavedModel on encoded bytes, against the predictor and against upright copies."""
    import tensorflow as tf

    from retina.export.serving import Serving
    from tests.export.small import make_predictor

    predictor = make_predictor("data.orientation=upright", "model.backbone=resnet10")
    serving = Serving(predictor.detector, predictor.config)
    # In a graph, as in an export: its loops take a tenth of the time.
    decoded = tf.function(serving.decoded, input_signature=[tf.TensorSpec((), tf.string)], autograph=False)
    for turn in ALL:
        content = photograph(turn, "JPEG" if turn % 2 else "PNG")
        pixels_ = load_image(Photograph(content, upright=True))
        np.testing.assert_array_equal(decoded(tf.constant(content)).numpy(), pixels_)
    detections = serving.detect(tf.constant([photograph(6)]))
    (expected,) = predictor.predict(turned(picture(), 6))
    assert len(expected) and int(detections["num_detections"][0]) == len(expected)
    np.testing.assert_array_equal(detections["boxes"][0, : len(expected)], expected.boxes)
    assert serving.decoded(tf.constant(b"no image")).shape == (0, 0, 3)


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("auto", "auto", False),
        ("upright", "auto", False),  # the run keeps what was decided
        ("stored", "auto", False),
        ("auto", "stored", False),  # what a run of before did
        ("auto", "upright", True),
        ("stored", "upright", True),
    ],
)
def test_a_run_keeps_its_orientation(tmp_path, before, after, changed):
    from retina.training.resuming import find_start

    digits = "{format: digits, images: 2}"
    settings = [f"data.train={digits}", f"data.validation={digits}"]
    (tmp_path / "config.yaml").write_text(config.to_yaml(config.load(None, [*settings, f"data.orientation={before}"])))
    (tmp_path / "environment.json").write_text("{}")
    given = config.load(None, [*settings, f"data.orientation={after}"])
    if changed:
        with pytest.raises(RetinaError, match=r"data\.orientation"):
            find_start(tmp_path, given)
    else:
        find_start(tmp_path, given)
