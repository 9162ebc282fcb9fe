"""The first lines of KerasCV's and KerasHub's detection guides, written anew, on `retina.Detector` and the digits.

Only names differ: the class, its constructor's arguments, and the loss, which is built in.
"""

import keras
import numpy as np
import pytest

import retina
from retina import config
from tests.scripts import load_script

pytestmark = pytest.mark.slow

SIDE = 96
SMALL = {
    "model": config.Model(
        backbone="keras_cv/resnet10", fpn=config.Fpn(channels=32, max_level=5), head=config.Head(channels=32, layers=1)
    ),
    "inference": config.Inference(score_threshold=0.001, max_detections=10),
}


@pytest.fixture(scope="module")
def digits():
    """Images [N, 96, 96, 3], of each the boxes [n, 4] as xywh and the classes [n], and the class names."""
    data = retina.load_dataset(retina.load_config(overrides=["data.train.images=16"]))
    images = np.zeros((len(data), SIDE, SIDE, 3), np.uint8)
    boxes, classes = [], []
    for row in range(len(data)):
        pixels, objects = data.image(row), data.table.objects(row)
        height, width = (min(side, SIDE) for side in pixels.shape[:2])
        images[row, :height, :width] = pixels[:height, :width]
        inside = (objects.boxes[:, 2] <= width) & (objects.boxes[:, 3] <= height)
        corners = objects.boxes[inside]
        boxes.append(np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).astype(np.float32))
        classes.append(objects.labels[inside].astype(np.float32))
    assert sum(map(len, boxes)) > 10
    return images, boxes, classes, data.class_names


def test_keras_cv(digits):
    """A `tf.data.Dataset` of dictionaries in ragged batches, xywh, figures of COCO after the epoch."""
    tf = pytest.importorskip("tensorflow")
    images, boxes, classes, names = digits

    def rows():
        for image, corners, labels in zip(images, boxes, classes, strict=True):
            yield {"images": image, "bounding_boxes": {"boxes": corners, "classes": labels}}

    signature = {
        "images": tf.TensorSpec([SIDE, SIDE, 3], tf.uint8),
        "bounding_boxes": {"boxes": tf.TensorSpec([None, 4]), "classes": tf.TensorSpec([None])},
    }
    train_ds = tf.data.Dataset.from_generator(rows, output_signature=signature)
    train_ds = train_ds.apply(tf.data.experimental.assert_cardinality(len(images)))
    train_ds = train_ds.shuffle(4, seed=0).ragged_batch(8, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    keras.utils.set_random_seed(0)
    model = retina.Detector(names, bounding_box_format="xywh", **SMALL)
    optimizer = keras.optimizers.SGD(learning_rate=0.005, momentum=0.9, global_clipnorm=10.0)
    model.compile(optimizer=optimizer, metrics=[retina.CocoMetrics()])
    history = model.fit(train_ds, validation_data=train_ds, epochs=3, verbose=0).history
    assert history["loss"][2] < history["loss"][0] and set(history) >= {"val_AP", "val_AP50"}
    y_pred = model.predict(images[:4], names="keras_cv", verbose=0)
    assert set(y_pred) == {"boxes", "confidence", "classes", "num_detections"}
    assert (y_pred["num_detections"] > 0).any() and np.isfinite(y_pred["boxes"]).all()


def test_keras_hub(digits):
    """Arrays, a dictionary of padded boxes and labels, xyxy."""
    images, boxes, classes, names = digits
    most = max(map(len, classes))
    targets = {"boxes": np.full((len(images), most, 4), -1.0), "labels": np.full((len(images), most), -1)}
    for row, (corners, labels) in enumerate(zip(boxes, classes, strict=True)):
        targets["boxes"][row, : len(labels)] = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], axis=1)
        targets["labels"][row, : len(labels)] = labels
    keras.utils.set_random_seed(0)
    detector = retina.Detector(names, bounding_box_format="xyxy", **SMALL)
    detector.compile(optimizer=keras.optimizers.Adam(1e-3))
    history = detector.fit(x=images, y=targets, batch_size=8, epochs=3, verbose=0).history
    assert history["loss"][2] < history["loss"][0]
    predictions = detector.predict(images[:4], names="keras_hub", verbose=0)
    assert set(predictions) == {"boxes", "confidence", "labels", "num_detections"}
    picture = retina.show(images[:4], predictions, class_names=names, columns=2)
    assert picture.size[0] > 2 * SIDE


def test_the_ap_of_retina_train(tmp_path):
    """On the same batches and first weights as many steps of Keras' `fit` as of `retina train` end where that does.

    Their losses part by rounding, which grows: a learning rate that differs by 1e-5 of itself moves the AP after 40
    steps by 0.1, so that the trainings are long enough to have ended. BCCD's photographs: the script's own command.
    """
    script = load_script("reproduce/fit_and_train")
    digits = "{format: digits, images: 32, size: 64, most: 2, single_class: true, height: [0.3, 0.6]}"
    settings = script.settings(
        f"{{train: {digits}, validation: {digits}, resize: {{short: 64, long: 64, multiple: 32}}, "
        "augment: {horizontal_flip: 0.0, scale: [1.0, 1.0]}}",
        "{backbone: resnet10, fpn: {channels: 32, max_level: 5}, head: {channels: 32, layers: 1}}",
        steps=200,
        learning_rate=2e-3,
    )
    expected, ended = script.trained(settings, tmp_path / "run"), script.fitted(settings)
    assert ended.loss == pytest.approx(expected.loss, rel=0.1)
    assert expected.ap > 0.6 and ended.ap == pytest.approx(expected.ap, abs=0.1)
