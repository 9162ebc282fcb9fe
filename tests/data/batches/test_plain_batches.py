"""Images as read without TensorFlow, beside TensorFlow's."""

import dataclasses

import numpy as np
import pytest

from retina.data import images
from retina.data.batches import evaluation
from retina.errors import RetinaError
from tests.data.batches.test_batches import PLAIN, damaged, noise, table
from tests.data.batches.test_training import VALID


def without_tensorflow(monkeypatch) -> None:
    for module in (evaluation, images):
        monkeypatch.setattr(module, "has_tensorflow", lambda: False)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("share", [(0, 1), (1, 2)])
def test_batches_are_tensorflows(monkeypatch, antialias, share):
    """Every column; pixels equal, and within one grey level where they are averaged. One image is turned by EXIF."""
    data = PLAIN.model_copy(update={"resize": PLAIN.resize.model_copy(update={"antialias": antialias})})
    shapes = [(40, 40), (90, 130), (30, 60), (60, 31), (41, 40)]
    boxes = [[[1, 2, 20, 25], [5, 5, 55, 29]][: i % 3] for i in range(5)]
    whole = table([noise(*shape, seed) for seed, shape in enumerate(shapes)], boxes, crowd=[False, True, False, True])
    whole = dataclasses.replace(whole, orientations=np.array([1, 3, 2, 4, 1], whole.turns.dtype))
    expected = list(evaluation.evaluation_batches(whole, data, batch_size=2, share=share).as_numpy_iterator())
    without_tensorflow(monkeypatch)
    batches = evaluation.evaluation_batches(whole, data, batch_size=2, share=share)
    assert len(batches) == len(expected)
    for batch, wanted in zip(batches, expected, strict=True):
        assert batch.keys() == wanted.keys()
        for name in wanted:
            levels = int(antialias and name == "images")
            assert batch[name].dtype == wanted[name].dtype, name
            np.testing.assert_allclose(batch[name].astype(float), wanted[name].astype(float), 0, levels, err_msg=name)
    image = noise(90, 130)
    plain = evaluation.canvas_image(image, data.resize)
    monkeypatch.undo()
    for value, wanted in zip(plain, evaluation.canvas_image(image, data.resize), strict=True):
        np.testing.assert_allclose(value.astype(float), wanted.astype(float), 0, int(antialias))


@pytest.mark.parametrize("kind", VALID)
def test_every_format_is_decoded_alike(monkeypatch, kind):
    wanted = images.load_image(VALID[kind])
    without_tensorflow(monkeypatch)
    np.testing.assert_array_equal(images.load_image(VALID[kind]), wanted)


def test_faults_are_named_alike(monkeypatch, tmp_path):
    faults = {}
    for path in damaged(tmp_path):
        with pytest.raises(RetinaError) as caught:
            images.load_image(path)
        faults[path] = str(caught.value)
    without_tensorflow(monkeypatch)
    for path, fault in faults.items():
        with pytest.raises(RetinaError) as caught:
            images.load_image(path)
        assert str(caught.value) == fault
    path = next(iter(faults))
    with pytest.raises(RetinaError, match="data.invalid_images=skip"):
        list(evaluation.evaluation_batches(table([path], sizes=[(40, 40)]), PLAIN, batch_size=1))
    large = VALID[next(iter(VALID))]
    with pytest.raises(RetinaError, match=r"data\.max_pixels"):
        images.load_image(large, max_pixels=4)


def test_the_log_says_it(monkeypatch):
    assert evaluation.how_read() == ()
    without_tensorflow(monkeypatch)
    assert "TensorFlow is not installed" in evaluation.how_read()[0]
