"""Images of more than 8 bits, and TIFFs: both readers, predictions and the doctor take them alike."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from retina import config
from retina.data.batches import decoding, pixels
from retina.data.batches.evaluation import evaluation_batches
from retina.data.batches.training import training_batches
from retina.data.convert.converting import convert
from retina.data.images import as_configured, load_image
from retina.data.load import load_split
from retina.data.stored import Photograph
from retina.doctor.inspection import image_findings, inspect
from retina.errors import RetinaError
from tests.data.test_orientation import yolo

HEIGHT, WIDTH = 40, 56
TWELVE = np.random.default_rng(0).integers(0, 4096, (HEIGHT, WIDTH, 3)).astype(np.uint16)
EIGHT = (TWELVE >> 4).astype(np.uint8)


def by_opencv(values: np.ndarray, kind: str) -> bytes:
    return cv2.imencode(f".{kind}", values[..., ::-1] if values.ndim == 3 else values)[1].tobytes()


def by_pillow(values: np.ndarray, **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(values).save(out, "TIFF", **options)
    return out.getvalue()


def rgb(values: np.ndarray) -> np.ndarray:
    return values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)


# ------------------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (by_pillow(EIGHT), EIGHT),
        (by_pillow(EIGHT, compression="tiff_lzw"), EIGHT),
        (by_pillow(EIGHT, compression="tiff_adobe_deflate"), EIGHT),
        (by_pillow(EIGHT[..., 0]), rgb(EIGHT[..., 0])),
        (by_pillow(np.dstack([EIGHT, EIGHT[..., :1]])), EIGHT),  # alpha is dropped
        (by_pillow(TWELVE[..., 0]), rgb((TWELVE[..., 0] >> 8).astype(np.uint8))),
        (by_opencv(TWELVE, "tiff"), (TWELVE >> 8).astype(np.uint8)),
        (by_opencv(TWELVE, "png"), (TWELVE >> 8).astype(np.uint8)),
    ],
    ids=["rgb", "lzw", "deflate", "grey", "alpha", "16 bit grey", "16 bit rgb", "16 bit png"],
)
def test_without_depth_the_upper_8_bits_are_taken(content, expected):
    np.testing.assert_array_equal(load_image(content), expected)
    training, halved = decoding.decoder()(content, (HEIGHT, WIDTH), 2)
    np.testing.assert_array_equal(training, expected)
    assert halved == 0


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("values", [TWELVE, TWELVE[..., 0]], ids=["rgb", "grey"])
@pytest.mark.parametrize("depth", [(0.0, 4095.0), (100.0, 1000.0), (0.5, 65535.0)])
def test_depth_scales_16_bits(kind, values, depth):
    expected = np.round(np.clip((rgb(values).astype(np.float64) - depth[0]) * 255 / (depth[1] - depth[0]), 0, 255))
    content = by_opencv(values, kind)
    ours = load_image(Photograph(content, depth=depth))
    # Half levels may round either way in float32.
    assert np.abs(ours - expected).max() <= 1 and (ours != expected).mean() < 1e-3
    np.testing.assert_array_equal(decoding.decoder(depth)(content, (HEIGHT, WIDTH), 0)[0], ours)


def test_the_graph_scales_as_numpy_does_for_every_value():
    values = np.arange(2**16, dtype=np.uint16)
    for depth in ((0.0, 4095.0), (3.0, 4098.5), (1000.0, 1001.0), (-5.0, 70000.0)):
        np.testing.assert_array_equal(pixels.scaled(values, depth).numpy(), decoding.scaled(values, depth))


def test_depth_leaves_8_bits_alone():
    for content in (by_pillow(EIGHT), by_opencv(EIGHT, "png"), by_opencv(EIGHT, "bmp")):
        np.testing.assert_array_equal(load_image(Photograph(content, depth=(0, 4095))), EIGHT)


@pytest.mark.parametrize("values", [TWELVE, TWELVE[..., 0]], ids=["rgb", "grey"])
def test_floats_need_depth_and_the_message_says_which(values):
    share = values.astype(np.float32) / 4095
    share.flat[0], share.flat[1] = 0, 1
    content = by_opencv(share, "tiff")
    with pytest.raises(RetinaError, match=r"a\.tif: .*float32 from 0 to 1.*data\.depth: \{low: 0, high: 1\}"):
        load_image(content, "a.tif")
    data = config.Data(train=config.DigitsSource(), validation=config.DigitsSource(), depth={"low": 0, "high": 1})
    np.testing.assert_array_equal(load_image(as_configured(content, data)), np.round(rgb(share) * 255).astype(np.uint8))
    share.flat[2] = np.nan
    assert load_image(Photograph(by_opencv(share, "tiff"), depth=(0.0, 1.0))).dtype == np.uint8


def bands(count: int, extra: int) -> bytes:
    """A TIFF of so many channels of 8 bits, written by hand; `extra` is what the last of them mean."""
    entries = [
        (256, 4, 1),
        (257, 4, 1),
        (258, 3, 8),
        (262, 3, 2),
        (273, 4, 8 + 2 + 12 * 7 + 4),
        (277, 3, count),
        (338, 3, extra),
    ]
    body = b"".join(
        tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + b"\1\0\0\0" + value.to_bytes(4, "little")
        for tag, kind, value in entries
    )
    return b"II*\0\x08\0\0\0" + len(entries).to_bytes(2, "little") + body + bytes(4) + bytes(count)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (bands(4, 0), "it has 4 channels: write RGB images"),
        (bands(7, 0), "it has 7 channels: write RGB images"),
        (b"II*\0", "gives no size"),
        (by_pillow(EIGHT)[:200], "damaged or cut short"),
    ],
)
def test_what_is_refused_says_what_to_do(content, fault):
    with pytest.raises(RetinaError, match=fault) as error:
        load_image(content, "a.tif")
    assert str(error.value).startswith("a.tif: ")


def test_print_colours_are_refused():
    out = io.BytesIO()
    Image.fromarray(EIGHT).convert("CMYK").save(out, "TIFF")
    with pytest.raises(RetinaError, match="print colours"):
        load_image(out.getvalue())


# ------------------------------------------------------------------------------------------------------------ readers


def test_both_readers_see_a_tiff_as_a_png_of_the_same_values(tmp_path):
    """16-bit TIFF and 16-bit PNG, in training and in evaluation, with depth: all the same pixels."""
    read = {}
    for kind in ("tiff", "png"):
        folder = yolo(tmp_path / kind, [by_opencv(TWELVE, kind), by_opencv(TWELVE[::-1], kind)], kind)
        source = config.YoloSource(images=folder / "images")
        data = config.Data(
            train=source,
            validation=source,
            depth=config.Depth(high=4095),
            decode="full",
            resize=config.Resize(short=32, long=64, multiple=32),
            augment=config.Augment(horizontal_flip=0.0),
        )
        table = load_split(data, "train")
        assert table.sizes.tolist() == [[HEIGHT, WIDTH]] * 2
        (trained,) = training_batches(table, data, batch_size=2, seed=0, steps=1)
        (evaluated,) = evaluation_batches(table, data, batch_size=2).as_numpy_iterator()
        read[kind] = evaluated["images"]
        assert read[kind].max() > 200
        np.testing.assert_array_equal(trained["images"], read[kind][trained["index"]])
    np.testing.assert_array_equal(read["tiff"], read["png"])


# -------------------------------------------------------------------------------------------------------------- doctor


def findings(folder, contents, suffix, quick=False, **settings):
    source = config.YoloSource(images=yolo(folder, contents, suffix) / "images")
    table = load_split(config.Data(train=source, validation=source, **settings), "train", keep_unusable=True)
    opened = inspect(table, decode=not quick)
    return {finding.code: finding for finding in image_findings(opened, "train")}


def test_the_doctor_tells_dark_constant_and_grey_images(tmp_path):
    dark, flat, grey = EIGHT // 32, np.full_like(EIGHT, 90), rgb(EIGHT[..., 0])
    codes = findings(tmp_path, [by_opencv(image, "png") for image in (EIGHT, EIGHT[::-1], dark, flat, grey)], "png")
    assert set(codes) == {"dark-images", "constant-images", "grey-images"}
    for code, row in (("dark-images", 2), ("constant-images", 3), ("grey-images", 4)):
        assert [name.rpartition("/")[2] for name in codes[code].examples] == [f"{row}.png"]
        assert codes[code].message.startswith("1 of 5 images (20%)")
    assert not findings(tmp_path / "grey", [by_opencv(grey, "png")], "png")
    mostly_grey = [by_opencv(image, "png") for image in (grey, grey[::-1], EIGHT)]
    (note,) = findings(tmp_path / "mostly", mostly_grey, "png").values()
    assert note.message.startswith("1 of 3 images (33%) in colour among others that are grey: ")
    assert [name.rpartition("/")[2] for name in note.examples] == ["2.png"]


def test_the_doctor_names_the_setting_that_scales_deep_images(tmp_path):
    contents = [by_opencv(TWELVE, "png"), by_opencv(TWELVE // 2, "png")]
    codes = findings(tmp_path / "a", contents, "png")
    assert set(codes) == {"deep-images", "dark-images"}
    assert "2 images of more than 8 bits (uint16), from 0 to 4095" in codes["deep-images"].message
    assert "data.depth={low: 0, high: 4095}" in codes["deep-images"].remedy
    told = findings(tmp_path / "b", contents, "png", depth=config.Depth(high=4095))
    assert set(told) == {"deep-images"} and told["deep-images"].grade == "note"
    floats = [by_opencv((TWELVE / 4095).astype(np.float32), "tiff")]
    codes = findings(tmp_path / "c", floats, "tiff")
    assert set(codes) == {"deep-images", "unreadable-images"}
    assert codes["deep-images"].grade == "error" and codes["deep-images"].remedy == "'data.depth={low: 0, high: 1}'"


def test_convert_copies_deep_images_and_says_how_they_are_read(tmp_path):
    folder = yolo(tmp_path / "yolo", [by_opencv(TWELVE, "tiff")], "tiff")
    source = config.YoloSource(images=folder / "images")
    file = tmp_path / "config.yaml"
    settings = config.load(None, [f"data.train={{format: yolo, images: {folder}/images}}", "data.depth={high: 4095}"])
    data = settings.data.model_copy(update={"validation": source})
    file.write_text(config.to_yaml(settings.model_copy(update={"data": data})))
    done = convert(file, tmp_path / "coco", "coco", splits=["train"])
    assert done.problems == () and done.data["depth"] == {"low": 0.0, "high": 4095.0}
    with pytest.raises(RetinaError, match="it is a TIFF; write it as PNG"):
        convert(file, tmp_path / "tfds", "tfds", splits=["train"])


def test_the_graph_of_an_export_reads_as_prediction_does():
    depth = (100.0, 4000.0)
    for values in (TWELVE, TWELVE[..., 0]):
        content = by_opencv(values, "png")
        expected = load_image(Photograph(content, depth=depth))
        np.testing.assert_array_equal(pixels.read(content, from_file=False, depth=depth).numpy(), expected)
