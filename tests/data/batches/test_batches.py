"""Batches: content, order, restart, augmentation, and what a bad image file says."""

import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from retina import config
from retina.data.batches import pixels, plan
from retina.data.batches.evaluation import canvas_image, evaluation_batches, readable, translated
from retina.data.batches.training import training_batches
from retina.data.dataset import DetectionDataset
from retina.data.images import load_image
from retina.errors import RetinaError
from tests.data.formats.tables import read_coco


def settings(short=32, long=64, multiple=32, max_canvases=4, **augment) -> config.Data:
    return config.Data(
        train=config.DigitsSource(),
        validation=config.DigitsSource(),
        resize=config.Resize(short=short, long=long, multiple=multiple, max_canvases=max_canvases),
        augment=config.Augment(**augment),
    )


PLAIN = settings(horizontal_flip=0.0)
LIVELY = settings(horizontal_flip=0.5, vertical_flip=0.5, scale=(0.6, 1.8))


def table(images, boxes=None, crowd=None, sizes=None) -> DetectionDataset:
    """`images`: paths, bytes or arrays; `boxes`: one list of xyxy an image."""
    boxes = boxes or [[] for _ in images]
    flat = np.array([box for some in boxes for box in some], np.float64).reshape(-1, 4)
    crowd = np.zeros(len(flat), bool) if crowd is None else np.array(crowd)
    return DetectionDataset(
        name="made up",
        class_names=("a", "b", "c"),
        category_ids=(1, 2, 3),
        image_ids=tuple(range(len(images))),
        images=tuple(png(image) if isinstance(image, np.ndarray) else image for image in images),
        sizes=np.array(sizes if sizes is not None else [i.shape[:2] for i in images], np.int32).reshape(-1, 2),
        offsets=np.cumsum([0] + [len(some) for some in boxes]),
        boxes=flat,
        labels=np.arange(len(flat)) % 3,
        crowd=crowd,
        difficult=np.zeros(len(flat), bool),
        areas=np.ones(len(flat)),
    )


def png(image: np.ndarray) -> bytes:
    return tf.io.encode_png(image).numpy()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def mixed() -> DetectionDataset:
    """Nine images of three shapes, with 0, 1 and 2 boxes in turn."""
    shapes = [(40, 40), (30, 60), (60, 31)] * 3
    images = [noise(*shape, seed) for seed, shape in enumerate(shapes)]
    boxes = [[[1, 2, 20, 25], [5, 5, 28, 29]][: i % 3] for i in range(9)]
    return table(images, boxes)


def numpy(batches) -> list[dict]:
    return list(batches.as_numpy_iterator())


@pytest.fixture(scope="module")
def whole_run() -> list[dict]:
    """14 steps; three canvases of three images in batches of two make six steps an epoch."""
    return numpy(training_batches(mixed(), LIVELY, batch_size=2, seed=3, steps=14))


def assert_same(first: list[dict], second: list[dict]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key, strict=True)


# ------------------------------------------------------------------------------------------------ empty and degenerate


def test_no_image():
    with pytest.raises(RetinaError, match="at least one image"):
        training_batches(table([], sizes=[]), PLAIN, batch_size=2, seed=0, steps=1)
    assert numpy(evaluation_batches(table([], sizes=[]), PLAIN, batch_size=2)) == []


def test_images_without_boxes():
    for batches in (
        training_batches(table([noise(20, 20)]), LIVELY, batch_size=2, seed=0, steps=1),
        evaluation_batches(table([noise(20, 20)]), LIVELY, batch_size=2),
    ):
        (batch,) = numpy(batches)
        assert batch["boxes"].shape == (2, 8, 4) and not batch["boxes"].any()
        assert not batch["valid"].any() and not batch["crowd"].any() and not batch["labels"].any()


def test_an_image_of_one_pixel():
    (batch,) = numpy(evaluation_batches(table([noise(1, 1)]), PLAIN, batch_size=1))
    assert (batch["images"] == noise(1, 1)).all() and batch["images"].shape == (1, 32, 32, 3)
    batches = numpy(training_batches(table([noise(1, 1)]), LIVELY, batch_size=1, seed=0, steps=4))
    assert [batch["images"][0, 0, 0].tolist() for batch in batches] == [noise(1, 1)[0, 0].tolist()] * 4


def test_no_steps_and_too_few_steps():
    data = table([noise(20, 20)])
    assert numpy(training_batches(data, PLAIN, batch_size=1, seed=0, first_step=3, steps=3)) == []
    with pytest.raises(RetinaError, match="first step <= steps, got 4 and 3"):
        training_batches(data, PLAIN, batch_size=1, seed=0, first_step=4, steps=3)


def test_paths_and_bytes_do_not_mix():
    with pytest.raises(RetinaError, match="made up: .*got both"):
        evaluation_batches(table(["a.jpg", b"x"], sizes=[(1, 1)] * 2), PLAIN, batch_size=1)


# ------------------------------------------------------------------------------------------------------------- content


def test_an_evaluation_batch_by_hand():
    # 16x24 doubles to 32x48 on a canvas of 32x64; 20x20 becomes 32x32 on a canvas of its own.
    plain = np.full((16, 24, 3), (10, 20, 30), np.uint8)
    data = table([plain, noise(20, 20)], [[[1, 2, 11, 12], [3, 4, 24, 16]], []], crowd=[False, True])
    square, wide = numpy(evaluation_batches(data, LIVELY, batch_size=2))
    assert square["index"].tolist() == [1, -1] and wide["index"].tolist() == [0, -1]
    assert wide["sample"].tolist() == [2, 3]
    assert wide["images"].shape == (2, 32, 64, 3) and wide["images"].dtype == np.uint8
    assert (wide["images"][0, :, :48] == [10, 20, 30]).all() and not wide["images"][0, :, 48:].any()
    assert wide["boxes"].shape == (2, 8, 4)
    assert wide["boxes"][0, :2].tolist() == [[2, 4, 22, 24], [6, 8, 48, 32]] and not wide["boxes"][0, 2:].any()
    assert wide["labels"][0].tolist() == [0, 1] + [0] * 6
    assert wide["valid"][0].tolist() == [True] * 2 + [False] * 6
    assert wide["crowd"][0].tolist() == [False, True] + [False] * 6
    assert wide["scale"].tolist() == [[2, 2], [1, 1]] and wide["size"].tolist() == [[32, 48], [0, 0]]
    assert not any(wide[key][1].any() for key in ("images", "boxes", "labels", "valid", "crowd"))
    dtypes = {key: value.dtype.name for key, value in wide.items()}
    assert dtypes == {
        "images": "uint8",
        "boxes": "float32",
        "labels": "int32",
        "valid": "bool",
        "crowd": "bool",
        "index": "int64",
        "sample": "int64",
        "scale": "float32",
        "size": "int32",
    }


def test_slots_for_boxes_come_in_eights():
    boxes = [[[0, 0, 5 + i, 9] for i in range(9)], []]
    (batch,) = numpy(evaluation_batches(table([noise(20, 20)] * 2, boxes), PLAIN, batch_size=2))
    assert batch["boxes"].shape == (2, 16, 4)
    assert batch["valid"].sum(1).tolist() == [9, 0]


def test_resizing_is_bilinear_with_half_pixel_centres():
    # 1x2 -> 2x4: columns at -0.25, 0.25, 0.75 and 1.25, so 0, 24.75, 74.25 and 99.
    image = np.array([[[0] * 3, [99] * 3]], np.uint8)
    canvas, scale, size = canvas_image(image, config.Resize(short=2, long=4, multiple=4))
    assert canvas[0, :, 0].tolist() == [0, 25, 74, 99] and canvas[1, :, 0].tolist() == [0, 25, 74, 99]
    assert canvas.shape == (4, 4, 3) and not canvas[2:].any()
    assert scale.tolist() == [2, 2] and size.tolist() == [2, 4]


@pytest.mark.parametrize(("decode", "levels"), [("full", 0), ("auto", 1)])
def test_training_without_augmentation_shows_what_evaluation_shows(decode, levels):
    """OpenCV, which resizes under `auto`, rounds its weights: pixels may differ by a level, and nothing else does."""
    data = mixed()
    shown = {}
    for batch in numpy(evaluation_batches(data, PLAIN, batch_size=1)):
        shown[int(batch["index"][0])] = batch
    plain = PLAIN.model_copy(update={"decode": decode})
    for batch in numpy(training_batches(data, plain, batch_size=1, seed=0, steps=9)):
        expected = {**shown[int(batch["index"][0])], "sample": batch["sample"]}
        assert np.abs(batch["images"].astype(int) - expected["images"]).max() <= levels
        assert_same([{**batch, "images": expected["images"]}], [expected])


def test_one_canvas_has_a_static_shape():
    data = table([noise(20, 20)] * 3)
    full = PLAIN.model_copy(update={"decode": "full"})
    for batches in (
        training_batches(data, full, batch_size=2, seed=0, steps=1).as_dataset(),
        evaluation_batches(data, PLAIN, batch_size=2),
    ):
        assert batches.element_spec["images"].shape == (2, 32, 32, 3)
        assert batches.element_spec["boxes"].shape == (2, 8, 4)
    spec = evaluation_batches(mixed(), PLAIN, batch_size=2).element_spec
    assert spec["images"].shape.as_list() == [2, None, None, 3]
    assert spec["crowd"].shape == (2, 8) and spec["size"].shape == (2, 2) and spec["index"].shape == (2,)


def test_prediction_prepares_an_image_as_evaluation_does(tmp_path):
    shapes = [(33, 57), (57, 33), (200, 131), (32, 32), (97, 301)]
    paths = []
    for number, shape in enumerate(shapes):
        paths.append(str(tmp_path / f"{number}.jpg"))
        Image.fromarray(noise(*shape, number)).save(paths[-1], quality=90)
    data = settings(max_canvases=2)
    seen = 0
    for batch in numpy(evaluation_batches(table(paths, sizes=shapes), data, batch_size=2)):
        for slot, row in enumerate(batch["index"]):
            if row < 0:
                continue
            canvas, scale, size = canvas_image(load_image(paths[row]), data.resize)
            height, width = canvas.shape[:2]
            np.testing.assert_array_equal(batch["images"][slot, :height, :width], canvas)
            assert not batch["images"][slot, height:].any() and not batch["images"][slot, :, width:].any()
            np.testing.assert_array_equal(batch["scale"][slot], scale, strict=True)
            np.testing.assert_array_equal(batch["size"][slot], size, strict=True)
            seen += 1
    assert seen == 5


# -------------------------------------------------------------------------------------------------------- determinism


def test_two_iterations_and_any_number_of_threads_give_the_same_batches(whole_run):
    batches = training_batches(mixed(), LIVELY, batch_size=2, seed=3, steps=14, threads=5)
    assert_same(whole_run, numpy(batches))
    assert_same(whole_run, numpy(batches))
    one = training_batches(mixed(), LIVELY, batch_size=2, seed=3, steps=14, threads=1)
    assert_same(whole_run, numpy(one))


def test_another_seed_gives_other_batches(whole_run):
    other = numpy(training_batches(mixed(), LIVELY, batch_size=2, seed=4, steps=14))
    assert any(not np.array_equal(a["index"], b["index"]) for a, b in zip(whole_run, other, strict=True))


@pytest.mark.parametrize("first_step", [5, 6, 13])
def test_starting_at_any_step_continues_the_run(whole_run, first_step):
    rest = training_batches(mixed(), LIVELY, batch_size=2, seed=3, first_step=first_step, steps=14)
    assert_same(whole_run[first_step:], numpy(rest))
    assert len(rest) == 14 - first_step


def test_every_epoch_shows_every_image_and_samples_count_up(whole_run):
    for epoch in range(2):
        assert {row for batch in whole_run[epoch * 6 : epoch * 6 + 6] for row in batch["index"]} == set(range(9))
    assert [number for batch in whole_run for number in batch["sample"]] == list(range(28))


def test_draws_depend_on_the_image_and_its_sample_number_not_on_the_batch_size():
    data = table([noise(40, 40)], [[[5, 5, 30, 30]]])
    draws = {}
    for batch_size in (2, 3):
        for batch in numpy(training_batches(data, LIVELY, batch_size=batch_size, seed=3, steps=18 // batch_size)):
            for slot, number in enumerate(batch["sample"]):
                one = (batch["images"][slot].tobytes(), batch["boxes"][slot].tobytes(), batch["scale"][slot].tobytes())
                assert draws.setdefault(int(number), one) == one
    assert len(draws) == 18 and len(set(draws.values())) > 12


# ------------------------------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize(("shape", "seed"), [((64, 96), 0), ((90, 41), 1)])
def test_a_painted_box_stays_on_its_paint(shape, seed):
    image = np.full((*shape, 3), 90, np.uint8)
    image[22:35, 12:31] = (250, 10, 10)
    data = table([image], [[[12, 22, 31, 35]]])
    found, flips = 0, set()
    for batch in numpy(training_batches(data, LIVELY, batch_size=1, seed=seed, steps=50)):
        height, width = batch["size"][0]
        pixels = batch["images"][0]
        assert not pixels[height:].any() and not pixels[:, width:].any()
        assert (pixels[:height, :width, 0] >= 90).all()
        if not batch["valid"][0, 0]:
            assert not batch["boxes"][0].any()
            continue
        rows, columns = np.nonzero(pixels[..., 0] > 170)
        painted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(batch["boxes"][0, 0], painted, atol=1.5)
        flips.add((bool(columns.mean() > width / 2), bool(rows.mean() > height / 2)))
        found += 1
    assert found >= 30 and len(flips) == 4


def test_a_box_whose_centre_is_cropped_away_is_dropped_but_a_crowd_stays():
    # Zoom 2 of 32x32 on 32x32 shows 16x16 stored pixels at a random place.
    data = table([noise(32, 32)], [[[0, 0, 12, 12], [0, 0, 12, 12]]], crowd=[False, True])
    options = settings(horizontal_flip=0.0, scale=(2.0, 2.0))
    cases = set()
    for batch in numpy(training_batches(data, options, batch_size=1, seed=0, steps=40)):
        box, crowd = batch["boxes"][0, :2]
        assert batch["scale"].tolist() == [[2, 2]]
        assert batch["crowd"][0].tolist()[:2] == [False, bool(batch["valid"][0, 1])]
        # The shown corner (x, y) cuts the crowd's box to 2 * (12 - x, 12 - y); the centre is inside while x, y <= 6.
        if batch["valid"][0, 1]:
            assert crowd[:2].tolist() == [0, 0]
            inside = bool((crowd[2:] >= 12).all())
            assert batch["valid"][0, 0] == inside
            assert box.tolist() == (crowd.tolist() if inside else [0] * 4)
            cases.add(inside)
        else:
            assert not batch["boxes"][0].any() and not batch["valid"][0].any()
            cases.add(None)
    assert cases == {True, False, None}


def test_a_box_below_one_pixel_is_dropped_in_training():
    # 64x64 stored on 32x32: a box of 1.9 stored pixels becomes 0.95.
    data = table([noise(64, 64)], [[[0, 0, 1.9, 30], [0, 0, 2, 30]]])
    (batch,) = numpy(training_batches(data, PLAIN, batch_size=1, seed=0, steps=1))
    assert batch["valid"][0, :2].tolist() == [False, True]
    assert batch["boxes"][0, :2].tolist() == [[0, 0, 0, 0], [0, 0, 1, 15]]
    (batch,) = numpy(evaluation_batches(data, PLAIN, batch_size=1))
    assert batch["valid"][0, :2].tolist() == [True, True]


# ----------------------------------------------------------------------------------------------------------- decoding


def test_jpeg_pixels_equal_pillow_and_exif_is_not_applied(tmp_path):
    smooth = np.asarray(Image.fromarray(noise(6, 9)).resize((45, 30), Image.Resampling.BICUBIC))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    file = tmp_path / "a.jpg"
    Image.fromarray(smooth).save(file, quality=80, exif=exif)
    loaded = load_image(file)
    assert loaded.shape == (30, 45, 3)
    # The fast transform would be off by more.
    np.testing.assert_allclose(loaded.astype(int), np.asarray(Image.open(file)).astype(int), atol=1)
    np.testing.assert_array_equal(load_image(file.read_bytes()), loaded)


def test_grey_and_transparent_pictures_become_rgb():
    for mode, value in (("L", 77), ("LA", (77, 9)), ("RGBA", (77, 77, 77, 9)), ("P", 3)):
        buffer = io.BytesIO()
        picture = Image.new(mode, (5, 4), value)
        if mode == "P":
            picture.putpalette([77] * 768)
        picture.save(buffer, "PNG")
        loaded = load_image(buffer.getvalue())
        assert loaded.shape == (4, 5, 3) and (loaded == 77).all()


def damaged(folder: Path) -> dict[str, str]:
    """What each bad file must say, by path."""
    buffer = io.BytesIO()
    Image.fromarray(noise(40, 40)).save(buffer, "JPEG")
    whole = buffer.getvalue()
    files = {
        "notes [1] é.jpg": b"hello, world",
        "empty.jpg": b"",
        "cut.jpg": whole[:600],
        "cut.png": png(noise(40, 40))[:900],
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "folder.jpg").mkdir()
    faults = ("it is not an image", "it is empty", "damaged or cut short", "damaged or cut short")
    said = {str(folder / name): fault for name, fault in zip(files, faults, strict=True)}
    return said | {str(folder / "gone.jpg"): "No such file", str(folder / "folder.jpg"): "Is a directory"}


def test_a_bad_file_is_named(tmp_path):
    good = str(tmp_path / "good.png")
    Path(good).write_bytes(png(noise(40, 40)))
    for number, (path, fault) in enumerate(damaged(tmp_path).items()):
        with pytest.raises(RetinaError) as caught:
            load_image(path)
        assert str(caught.value).startswith(f"{path}: expected") and fault in str(caught.value)
        if number % 2:  # half of them: building a graph takes a second
            continue
        data = table([good, path, good], sizes=[(40, 40)] * 3)
        if number:
            batches = evaluation_batches(data, PLAIN, batch_size=3)
        else:
            batches = training_batches(data, LIVELY, batch_size=2, seed=0, steps=9)
        with pytest.raises(RetinaError) as raised, translated(data):
            numpy(batches)
        advice = "; data.invalid_images=skip leaves such images out, with --resume too"
        assert str(raised.value) == f"{caught.value}{advice}" and "\n" not in str(raised.value)


def test_bad_bytes_are_named_by_image_id():
    with pytest.raises(RetinaError, match="^camera 3: expected .*not an image"):
        load_image(b"zzz", "camera 3")
    data = table([png(noise(40, 40)), b"zzz"], sizes=[(40, 40)] * 2)
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        numpy(evaluation_batches(data, PLAIN, batch_size=2))
    assert str(readable(raised.value, data)).startswith("made up: image 1: expected a JPEG, PNG")


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ((40, 50), "expected 50x40 pixels (width x height) as declared, the image has 60x40; correct"),
        ((60, 40), "expected 40x60 pixels (width x height) as declared, the image has 60x40 (an EXIF rotation"),
    ],
)
def test_a_wrong_declared_size_is_named(tmp_path, declared, said):
    path = str(tmp_path / "a.png")
    Path(path).write_bytes(png(noise(40, 60)))
    data = table([path], sizes=[declared])
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        numpy(evaluation_batches(data, PLAIN, batch_size=1))
    assert str(readable(raised.value, data)).startswith(f"{path}: {said}")


def test_other_errors_are_left_alone():
    data = table([noise(4, 4)])
    assert readable(ValueError("x"), data) is None
    assert readable(tf.errors.InvalidArgumentError(None, None, "shapes differ"), data) is None
    # What fails for another reason than its images is raised as it is.
    lost = tf.errors.InvalidArgumentError(None, None, "assertion failed: [retina batch] [0 -1]")
    assert readable(lost, data) is None
    with pytest.raises(tf.errors.InvalidArgumentError), translated(data):
        raise lost


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_canvas_image_refuses_other_arrays(image):
    with pytest.raises(RetinaError, match="expected a non-empty uint8 array"):
        canvas_image(image, config.Resize())


@pytest.mark.parametrize(("backend", "hidden"), [("tensorflow", []), ("jax", [([], "GPU")]), ("torch", [([], "GPU")])])
def test_the_gpu_is_left_to_the_backend(monkeypatch, backend, hidden):
    calls = []
    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *arguments: calls.append(arguments))
    pixels.leave_gpu_to_backend()
    assert calls == hidden


# ---------------------------------------------------------------------------------------------------------- real data


def test_real_photographs_keep_their_boxes_inside(shared_data):
    data = settings(short=128, long=192, multiple=64, max_canvases=2, scale=(0.8, 1.4))
    folder = shared_data / "coco_mini"
    real = read_coco(folder / "annotations" / "instances_train2017.json", folder / "train2017", invalid_boxes="clip")
    geometry = plan.fit(real.sizes, data.resize)
    steps = plan.training_steps(geometry, batch_size=8)
    seen, boxes, crowds = set(), 0, 0
    for batch in numpy(training_batches(real, data, batch_size=8, seed=0, steps=steps)):
        assert list(batch["images"].shape[1:3]) in geometry.canvases.tolist()
        limits = np.tile(batch["size"][:, None, ::-1], 2)
        valid = batch["valid"]
        assert (batch["boxes"] >= 0).all() and (batch["boxes"] <= limits).all()
        assert ((batch["boxes"][..., 2:] - batch["boxes"][..., :2])[valid] >= 1).all()
        seen |= set(batch["index"])
        boxes += int(valid.sum())
        crowds += int(batch["crowd"].sum())
    assert seen == set(range(160)) and boxes > 1000 and crowds >= 10
    total = 0
    for batch in numpy(evaluation_batches(real, data, batch_size=8)):
        limits = np.tile(batch["size"][:, None, ::-1], 2)
        assert (batch["boxes"] <= limits).all() and (batch["boxes"] >= 0).all()
        for slot, row in enumerate(batch["index"]):
            original = real.objects(row).boxes if row >= 0 else np.zeros((0, 4))
            found = batch["boxes"][slot][batch["valid"][slot]]
            np.testing.assert_allclose(found / np.tile(batch["scale"][slot, ::-1], 2), original, atol=1e-3)
            total += len(found)
    assert total == len(real.boxes)
