"""Training batches: the pixels and boxes that TensorFlow's operations give, for any threads, and what is refused."""

import dataclasses
import subprocess
import sys
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retina import config
from retina.data.batches import augment, decoding, pixels, training
from retina.data.batches.evaluation import translated
from retina.data.batches.training import training_batches
from retina.data.dataset import DetectionDataset
from retina.errors import RetinaError
from tests.data.test_robust_images import HEIGHT, VALID, WIDTH
from tests.malformed import encoded, huge, picture, rotated

FLIPS = {"horizontal_flip": 0.5, "vertical_flip": 0.5}
SIZES = [(131, 190), (250, 203), (40, 60), (128, 192), (3, 2), (131, 190)]


def settings(train_short=(), decode="auto", cache="none", **augment) -> config.Data:
    return config.Data(
        train=config.DigitsSource(),
        validation=config.DigitsSource(),
        decode=decode,
        cache=cache,
        resize=config.Resize(short=32, train_short=train_short, long=48, multiple=16, max_canvases=2),
        augment=config.Augment(**{**FLIPS, **augment}),
    )


def table(images, sizes, boxes=3) -> DetectionDataset:
    """Image i has i % `boxes` boxes; each third one is a crowd."""
    random = np.random.default_rng(1)
    counts = [row % boxes for row in range(len(images))]
    corners = [
        np.sort(random.uniform(0, 1, (n, 2, 2)), axis=1) * size[::-1] for n, size in zip(counts, sizes, strict=True)
    ]
    flat = np.concatenate(corners).reshape(-1, 4)
    return DetectionDataset(
        name="made up",
        class_names=("a", "b"),
        category_ids=(1, 2),
        image_ids=tuple(range(len(images))),
        images=tuple(images),
        sizes=np.array(sizes, np.int32),
        offsets=np.cumsum([0, *counts]),
        boxes=flat,
        labels=np.arange(len(flat)) % 2,
        crowd=np.arange(len(flat)) % 3 == 2,
        difficult=np.zeros(len(flat), bool),
        areas=np.ones(len(flat)),
    )


@pytest.fixture(scope="module")
def mixed() -> DetectionDataset:
    """JPEGs shown at about 1/4, 1/6, 1 and 1/4 of their size and enlarged, and a PNG."""
    kinds = ["JPEG"] * 5 + ["PNG"]
    return table([encoded(kind, noisy(*size)) for kind, size in zip(kinds, SIZES, strict=True)], SIZES)


def noisy(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8))


def batches(data, options, **changes) -> list[dict]:
    given = {"batch_size": 2, "seed": 3, "steps": 12, **changes}
    return list(training_batches(data, options, **given).as_numpy_iterator())


# ------------------------------------------------------------------------------------- batches beside TensorFlow's


def reference(image: bytes, view: np.ndarray, halvings: int) -> np.ndarray:
    """A window of an image as TensorFlow decodes and resizes it, float32."""
    ratio = 2**halvings
    if image.startswith(decoding.JPEG):
        stored = tf.io.decode_jpeg(image, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")
    else:
        stored, ratio = pixels.decode(tf.constant(image)), 1
    top, left, height, width = (side // ratio for side in view[:4])
    return tf.image.resize(stored[top : top + height, left : left + width], view[4:]).numpy()


OPTIONS = {
    "zoom": {"scale": (0.5, 2.0)},
    "area": {"scale": (1.0, 1.7), "keep": "area", "min_visible": 0.4},
    "multi-scale": {"scale": (0.6, 1.5), "train_short": (16, 32)},
    "plain": {"horizontal_flip": 0.0, "vertical_flip": 0.0},
    "crop": {"crop": {"probability": 0.7}, "scale": (0.8, 1.2)},
    "mosaic": {"mosaic": {"probability": 0.7}, "scale": (0.8, 1.4)},
}


@pytest.mark.parametrize("decode", ["auto", "full"])
@pytest.mark.parametrize("options", OPTIONS)
def test_pixels_are_tensorflows_to_a_level_and_exactly_where_they_are_decoded_in_full(mixed, options, decode):
    """Every part of an image is what TensorFlow decodes, cuts out, resizes and flips."""
    made = settings(**OPTIONS[options], decode=decode)
    whole = training_batches(mixed, made, batch_size=2, seed=3, steps=12)
    parts = 0
    for step, batch in enumerate(whole):
        layout = layout_of(whole, step)
        shown = layout.parts
        halvings = augment.halvings(shown.views) if decode == "auto" else np.zeros(len(shown.row), int)
        halvings[[not mixed.images[row].startswith(decoding.JPEG) for row in shown.row]] = 0
        taken = np.concatenate(augment.snapped(shown.views, halvings), axis=1)
        for part, example in enumerate(shown.example):
            exact = reference(mixed.images[shown.row[part]], taken[part], int(halvings[part]))
            exact = exact[:: -1 if shown.turned[part] else 1, :: -1 if shown.mirrored[part] else 1]
            (y, x), (height, width) = shown.corner[part], exact.shape[:2]
            shown_pixels = batch["images"][example, y : y + height, x : x + width]
            if decode == "full":
                np.testing.assert_array_equal(shown_pixels, np.round(exact).astype(np.uint8))
            else:
                assert np.abs(shown_pixels - np.round(exact)).max() <= 1
            parts += 1
        for example, (height, width) in enumerate(batch["size"]):
            assert not batch["images"][example, height:].any() and not batch["images"][example, :, width:].any()
    assert parts >= 24


def layout_of(whole: training.Batches, step: int) -> augment.Layout:
    """What was drawn for a step."""
    schedule = whole._schedule
    index, geometry = schedule.order[step].astype(int), schedule.geometry(schedule.first_step + step)
    sample = (schedule.first_step + step) * schedule.batch_size + schedule.slots
    canvas = geometry.canvases[geometry.canvas_of[index[0]]].astype(int)
    resized = geometry.resized[index].astype(int)
    return augment.lay_out(whole._table, index, sample, resized, canvas, schedule.seed, whole._data.augment)


@pytest.mark.parametrize("options", ["zoom", "area", "crop", "mosaic"])
def test_boxes_are_those_of_a_float64_reference(mixed, options):
    """Box by box: moved by the view, scaled, flipped, and cut by the rule of the configuration."""
    made = settings(**OPTIONS[options], decode="full")
    whole = training_batches(mixed, made, batch_size=2, seed=3, steps=30)
    boxes, dropped = 0, 0
    for step, batch in enumerate(whole):
        shown, slot = layout_of(whole, step).parts, [0, 0]
        for part, example in enumerate(shown.example):
            (top, left), (height, width), (rows, columns) = (side[part] for side in shown.views)
            objects = mixed.objects(int(shown.row[part]))
            for x0, y0, x1, y1 in objects.boxes.astype(np.float64):
                place, slot[example] = slot[example], slot[example] + 1
                x0, x1 = ((x - left) * columns / width for x in (x0, x1))
                y0, y1 = ((y - top) * rows / height for y in (y0, y1))
                if shown.mirrored[part]:
                    x0, x1 = columns - x1, columns - x0
                if shown.turned[part]:
                    y0, y1 = rows - y1, rows - y0
                if not batch["valid"][example, place]:
                    assert not batch["boxes"][example, place].any()
                    dropped += 1
                    continue
                expected = np.clip([x0, y0, x1, y1], 0, [columns, rows] * 2) + np.tile(shown.corner[part][::-1], 2)
                np.testing.assert_allclose(batch["boxes"][example, place], expected, atol=1e-4)
                boxes += 1
        for example in range(2):
            assert not batch["valid"][example, slot[example] :].any()
    assert boxes > 25 and dropped > 5


def test_photographs_differ_by_a_level_at_most_from_exact_resizing(shared_data):
    """Measured on 64 of these: no value by more than 1 level, one in 12 by that (one in 10 at 384 x 512)."""
    files = sorted((shared_data / "coco_mini" / "train2017").glob("*.jpg"))[:6]
    decode, paint, off = decoding.decoder(), decoding.fast_painter(), []
    for file in files:
        size = Image.open(file).size[::-1]
        image = decode(file.read_bytes(), size, 1)[0]
        shown, exact = np.zeros((2, 256, 256, 3), np.uint8)
        paint(image, True, False, shown[:192])
        decoding.paint_exactly(image, True, False, exact[:192])
        np.testing.assert_array_equal(exact[:192, ::-1], np.round(tf.image.resize(image, (192, 256))))
        off.append(np.abs(shown.astype(int) - exact).ravel())
    assert np.max(off) == 1 and np.mean(off) < 0.1


def test_what_is_read_depends_on_the_sample_alone(mixed):
    options = settings(scale=(0.5, 2.0))
    whole = batches(mixed, options, threads=1)
    for found in (
        batches(mixed, options, threads=7),
        batches(mixed, options),
        whole[:5] + batches(mixed, options, first_step=5),
        batches(mixed, settings(scale=(0.5, 2.0), cache="memory")),
    ):
        for one, other in zip(found, whole, strict=True):
            for key in one:
                np.testing.assert_array_equal(one[key], other[key], err_msg=key, strict=True)


def test_keras_takes_the_batches_as_a_dataset(mixed):
    read = training_batches(mixed, settings(), batch_size=2, seed=3, steps=4)
    for one, other in zip(read.as_dataset().as_numpy_iterator(), read, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key, strict=True)

    class Counting(keras.Model):
        def train_step(self, data):
            samples.extend(keras.ops.convert_to_numpy(data["sample"]).tolist())
            return {"loss": keras.ops.zeros(())}

    samples: list[int] = []
    model = Counting()
    model.compile(run_eagerly=True)
    model.fit(read.as_dataset(), epochs=2, shuffle=False, verbose=0)
    assert samples == [*range(8), *range(8)]


def test_the_log_says_how_images_are_read(mixed):
    (line,) = training.described(mixed, settings())
    assert "reduced where they are shown small; resized by OpenCV" in line
    (line,) = training.described(mixed, settings(decode="full"))
    assert "in full; resized as for evaluation" in line


def test_without_its_packages_it_is_refused(mixed, monkeypatch):
    for module, package in (("cv2", "opencv-python-headless"), ("simplejpeg", "simplejpeg"), ("PIL", "pillow")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(RetinaError, match=f"expected the package {package}, .*install it"):
                batches(mixed, settings())


def test_tensorflow_is_not_loaded():
    """Training with another backend shall do without it, whatever is switched on and of whatever kind images are."""
    script = (
        "import io, sys, numpy as np\n"
        "from PIL import Image\n"
        "from retina import config\n"
        "from retina.data.batches.training import training_batches\n"
        "from retina.data.dataset import DetectionDataset\n"
        "def encoded(kind):\n"
        "    file = io.BytesIO(); Image.new('RGB', (40, 30)).save(file, kind); return file.getvalue()\n"
        "none = np.zeros(0)\n"
        "table = DetectionDataset(name='x', class_names=('a',), category_ids=(1,), image_ids=(0, 1, 2, 3, 4),\n"
        "    images=tuple(map(encoded, ('JPEG', 'PNG', 'GIF', 'BMP', 'WEBP'))), sizes=np.array([[30, 40]] * 5),\n"
        "    offsets=np.zeros(6, int), boxes=np.zeros((0, 4)), labels=none.astype(int), crowd=none.astype(bool),\n"
        "    difficult=none.astype(bool), areas=none)\n"
        "on = {name: {'probability': 0.5} for name in ('crop', 'colour', 'mosaic', 'mixup', 'erase')}\n"
        "for decode in ('auto', 'full'):\n"
        "    data = config.Data(train=config.DigitsSource(), validation=config.DigitsSource(), decode=decode,\n"
        "        resize=config.Resize(short=32, long=64, multiple=32), augment=config.Augment(**on))\n"
        "    batches = training_batches(table, data, batch_size=2, seed=0, steps=6)\n"
        "    assert [batch['images'].shape for batch in batches] == [(2, 32, 64, 3)] * 6\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)


# -------------------------------------------------------------------------------------------------------- decoding


READ = decoding.decoder()


@pytest.mark.parametrize("kind", VALID)
def test_every_format_is_decoded_as_for_evaluation(kind):
    image, taken = READ(VALID[kind], (HEIGHT, WIDTH), 0)
    np.testing.assert_array_equal(image, pixels.decode(tf.constant(VALID[kind])), strict=True)
    assert taken == 0


@pytest.mark.parametrize("size", [(41, 67), (8, 17), (15, 2), (2, 2)])
@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"progressive": True}], ids=["4:2:0", "4:4:4", "progressive"]
)
def test_reduced_jpegs_are_those_of_tensorflow(size, options):
    content = encoded("JPEG", noisy(*size), **options)
    for halvings in range(int(np.log2(min(size))) + 1 if min(size) < 8 else augment.MOST_HALVINGS + 1):
        image, taken = READ(content, size, halvings)
        expected = tf.io.decode_jpeg(content, channels=3, ratio=2**halvings, dct_method="INTEGER_ACCURATE")
        np.testing.assert_array_equal(image, expected, strict=True)
        assert taken == halvings


def test_an_exif_rotation_is_not_applied():
    content = rotated(6, 20, 30)
    np.testing.assert_array_equal(READ(content, (20, 30), 0)[0], pixels.decode(tf.constant(content)))


def test_what_tensorflow_refuses_is_refused_and_what_it_takes_is_taken():
    """A JPEG cut at 40 places, with 40 bytes changed, and with what does no harm behind it."""
    whole = encoded("JPEG", noisy(40, 56), quality=90)
    cuts = [whole[:end] for end in np.linspace(0, len(whole) - 1, 40).astype(int)]
    places = np.linspace(2, len(whole) - 3, 40).astype(int)
    changed = [whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :] for place in places]
    refused = taken = 0
    for content in [*cuts, *changed, whole + b"\0" * 9, whole + whole]:
        try:
            expected = pixels.decode(tf.constant(content)).numpy()
        except tf.errors.OpError:
            expected = np.zeros((0, 0, 3), np.uint8)
        if expected.shape != (40, 56, 3):
            with pytest.raises((ValueError, OSError)):
                READ(content, (40, 56), 0)
            refused += 1
        else:
            np.testing.assert_array_equal(READ(content, (40, 56), 0)[0], expected)
            taken += 1
    assert refused >= 40 and taken >= 20


@pytest.mark.parametrize("kind", ["PNG", "BMP", "JPEG"])
def test_a_huge_image_is_not_decoded(kind):
    with pytest.raises(ValueError, match="as declared|huge"):
        READ(huge(kind), (64, 64), 0)
    data = table([encoded(kind, picture(10, 10))], [(10, 10)], boxes=1)
    for limit in (100, 99):
        limited = settings().model_copy(update={"max_pixels": limit})
        if limit == 100:
            assert len(batches(data, limited, steps=1)) == 1
        else:
            with pytest.raises(RetinaError, match="expected at most 99 pixels"):
                batches(data, limited, steps=1)


@pytest.mark.parametrize("options", [{"mode": "P"}, {"mode": "1"}, {"bits": 4}, {"packed": 1}])
def test_bitmaps_that_evaluation_refuses_are_refused(options):
    """Of 1 bit and 4 bits a pixel, and packed ones: OpenCV would read them."""
    content = bytearray(encoded("BMP", picture(20, 20).convert(options.get("mode", "P"))))
    if options == {"mode": "P"}:
        assert READ(bytes(content), (20, 20), 0)[0].shape == (20, 20, 3)
        return
    if "bits" in options:
        content[28] = options["bits"]
    if "packed" in options:
        content[30] = options["packed"]
    with pytest.raises(ValueError, match="no JPEG, PNG, GIF, BMP, WebP or TIFF that can be read"):
        READ(bytes(content), (20, 20), 0)
    with pytest.raises(tf.errors.OpError):
        pixels.decode(tf.constant(bytes(content)))


def test_a_damaged_image_and_a_wrong_size_are_named(mixed):
    cut = dataclasses.replace(mixed, images=(*mixed.images[:3], mixed.images[3][:400], *mixed.images[4:]))
    sizes = mixed.sizes.copy()
    sizes[0] = sizes[0][::-1]
    wrong = dataclasses.replace(mixed, sizes=sizes)
    for data, said in ((cut, "image 3: .*damaged or cut short"), (wrong, "image 0: expected 131x190 .*EXIF")):
        with pytest.raises(RetinaError, match=said), translated(data):
            batches(data, settings())


def test_files_that_cannot_be_read_are_named(tmp_path):
    good = tmp_path / "good.jpg"
    good.write_bytes(encoded("JPEG", picture(20, 20)))
    (tmp_path / "folder.jpg").mkdir()
    for name, said in (("gone.jpg", "No such file"), ("folder.jpg", "Is a directory")):
        data = table([str(good), str(tmp_path / name)], [(20, 20)] * 2, boxes=1)
        with pytest.raises(RetinaError, match=f"{name}: .*{said}"), translated(data):
            batches(data, settings())


# -------------------------------------------------------------------------------------------------- in a process


@pytest.mark.slow
def test_a_process_ends_in_the_middle_of_a_run_also_where_tensorflow_is_deterministic():
    """An iterator that lives until the interpreter ends must not keep it from ending."""
    script = (
        "import tensorflow as tf; tf.config.experimental.enable_op_determinism()\n"
        "from retina.data.batches.training import training_batches\n"
        "from tests.data.batches import test_training as t\n"
        "data = t.table([t.encoded('JPEG', t.noisy(600, 800))] * 8, [(600, 800)] * 8)\n"
        "batches = iter(training_batches(data, t.settings(), batch_size=8, seed=0, steps=2000))\n"
        "for _ in range(30): next(batches)\n"
    )
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", script], timeout=100, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]


def test_an_iterator_that_is_dropped_lets_its_threads_go(mixed):
    def alive() -> int:
        return sum(thread.name.startswith("retina-images") for thread in threading.enumerate())

    before = alive()
    whole = training_batches(mixed, settings(), batch_size=2, seed=3, steps=2000)
    assert len(whole) == 2000
    two = [iter(whole), iter(whole)]
    first = [next(one) for one in two]
    np.testing.assert_array_equal(first[0]["images"], first[1]["images"])
    assert alive() > before
    del two
    for _ in range(200):
        if alive() <= before:
            break
        time.sleep(0.01)
    assert alive() <= before


def test_what_is_no_fault_of_an_image_comes_out_as_it_is(mixed, monkeypatch):
    def broken(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(decoding, "content_of", broken)
    with pytest.raises(MemoryError, match="no room"):
        batches(mixed, settings())
