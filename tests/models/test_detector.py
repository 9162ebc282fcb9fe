import dataclasses
import math
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from retina import config
from retina.errors import RetinaError
from retina.inference import CocoMetrics
from retina.models.detector import Detector, PixelNormalization
from retina.models.keras_inputs import checked_batch, from_xyxy, padded, to_batch, to_xyxy
from tests import reference

CLASSES = ("a", "b", "c")
TINY = config.Model(
    backbone="keras_cv/resnet10",
    fpn=config.Fpn(channels=32, max_level=5),
    head=config.Head(channels=32, layers=1),
)
ANCHORS = config.Anchors(ratios=(0.25, 1.0, 4.0), scales=(1.0, 1.5))


def tiny(**changes):
    return Detector(CLASSES, **{"model": TINY, "anchors": ANCHORS, **changes})


@pytest.fixture(scope="module")
def detector():
    keras.utils.set_random_seed(1)
    return tiny()


def batch_of(seed=0, images=2, canvas=(64, 96)):
    """Random pixels, one object and one crowd an image, one empty slot; the second image is smaller than the canvas."""
    random = np.random.default_rng(seed)
    boxes = np.array([[8, 8, 40, 44], [60, 20, 90, 60], [0, 0, 0, 0]], np.float32)
    size = [canvas] + [(canvas[0] - 16, canvas[1] - 32)] * (images - 1)
    return {
        "images": random.integers(0, 256, (images, *canvas, 3)).astype(np.uint8),
        "boxes": np.tile(boxes, (images, 1, 1)),
        "labels": np.tile(np.array([2, 0, 0], np.int32), (images, 1)),
        "valid": np.tile([True, True, False], (images, 1)),
        "crowd": np.tile([False, True, False], (images, 1)),
        "size": np.array(size, np.int32),
        "scale": np.full((images, 2), 0.5, np.float32),
    }


def tensors(batch):
    return {name: ops.convert_to_tensor(field) for name, field in batch.items()}


def zero_prediction_kernels(detector):
    for head in (detector.classification, detector.box):
        head.prediction.kernel.assign(np.zeros(head.prediction.kernel.shape))


# ------------------------------------------------------------------------------------------------------ initial state


def test_initial_biases(detector):
    np.testing.assert_allclose(detector.classification.bias, -math.log(0.99 / 0.01), rtol=1e-6)
    assert not ops.convert_to_numpy(detector.box.bias).any()


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_the_first_loss_equals_the_hand_computed_one(precision):
    """Without prediction kernels each logit is its bias and each delta 0, so that the loss follows from the matches."""
    detector, batch = tiny(precision=precision), batch_of()
    zero_prediction_kernels(detector)
    outputs = detector(batch)
    np.testing.assert_allclose(outputs["logits"], -math.log(99), rtol=1e-6)
    assert not ops.convert_to_numpy(outputs["deltas"]).any()

    anchors = np.concatenate(detector.level_anchors((64, 96)))
    rows, ignored = reference.match(anchors, batch["boxes"][0], batch["valid"][0], batch["crowd"][0])
    positives = 2 * int((rows >= 0).sum())  # both images have the same boxes
    negatives = 2 * int((~ignored).sum()) * len(CLASSES) - positives
    assert positives > 4 and ignored.sum() > 10
    prior, alpha, gamma = 0.01, 0.25, 2
    classification = positives * alpha * (1 - prior) ** gamma * -math.log(prior)
    classification += negatives * (1 - alpha) * prior**gamma * -math.log(1 - prior)
    goals = [reference.encode(anchors[a], batch["boxes"][0][row]) for a, row in enumerate(rows) if row >= 0]
    box = 2 * 9 * reference.huber(np.array(goals), 0, 1 / 9).sum()

    sums = detector.loss_sums(outputs, tensors(batch))
    assert float(sums.positives) == positives
    np.testing.assert_allclose(float(sums.classification), classification, rtol=1e-5)
    np.testing.assert_allclose(float(sums.box), box, rtol=1e-5)
    loss = float(sums.losses()["loss"])
    np.testing.assert_allclose(loss, (classification + box) / positives, rtol=1e-5)


def test_initial_scores_are_near_the_prior(detector):
    scores = reference.sigmoid(ops.convert_to_numpy(detector(batch_of())["logits"]))
    assert abs(scores.mean() - 0.01) < 1e-3


# ------------------------------------------------------------------------------------------------------ normalisation


def test_normalization_by_hand():
    layer = PixelNormalization((100, 50, 0), (10, 20, 0.5))
    found = layer(np.array([[[[100, 70, 0], [0, 255, 255]]]], np.uint8))
    np.testing.assert_allclose(found, [[[[0, 1, 0], [-10, 10.25, 510]]]], rtol=1e-6)


def test_normalization_zeroes_the_padding_and_nothing_else():
    layer = PixelNormalization((100, 100, 100), (10, 10, 10))
    images = np.full((3, 4, 6, 3), 110, np.uint8)
    found = ops.convert_to_numpy(layer(images, ops.convert_to_tensor(np.array([[4, 6], [3, 2], [0, 0]], np.int32))))
    expected = np.zeros((3, 4, 6, 3), np.float32)
    expected[0], expected[1, :3, :2] = 1, 1
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_the_padding_holds_never_matters(detector):
    batch = batch_of()
    dirty = {**batch, "images": batch["images"].copy()}
    dirty["images"][1, 48:] = 255
    dirty["images"][1, :, 64:] = 77
    clean_logits, dirty_logits = (ops.convert_to_numpy(detector(b)["logits"]) for b in (batch, dirty))
    np.testing.assert_array_equal(clean_logits, dirty_logits)
    assert np.abs(ops.convert_to_numpy(detector(dirty["images"])["logits"])[1] - clean_logits[1]).max() > 1e-4


def test_float_images_are_not_rounded_before_they_are_normalised():
    layer = PixelNormalization((0, 0, 0), (1, 1, 1), dtype="mixed_bfloat16")
    assert "bfloat16" in str(layer(np.zeros((1, 2, 2, 3), np.uint8)).dtype)
    detector = tiny(precision="mixed_bfloat16")
    images = np.full((1, 64, 64, 3), 200.4, np.float32)  # bfloat16 holds 200 and 201 there
    seen = []
    detector.normalization.call = lambda x, size=None: (seen.append(x), PixelNormalization.call(layer, x, size))[1]
    detector(images)
    np.testing.assert_array_equal(seen[0], images)


# ---------------------------------------------------------------------------------------------------------- outputs


def test_outputs_match_the_anchors(detector):
    outputs = detector(batch_of())
    count = sum(map(len, detector.level_anchors((64, 96))))
    assert count == 6 * (8 * 12 + 4 * 6 + 2 * 3)
    assert tuple(outputs["logits"].shape) == (2, count, 3) and tuple(outputs["deltas"].shape) == (2, count, 4)


def test_mixed_precision_stays_close_and_gives_float32():
    keras.utils.set_random_seed(3)
    single = tiny()
    mixed = tiny(precision="mixed_bfloat16")
    # Larger kernels than at the start, so that the comparison is not one of biases.
    for variable, other in zip(single.variables, mixed.variables, strict=True):
        assert variable.path == other.path and "float32" in str(other.dtype)
        if "prediction/kernel" in variable.path:
            variable.assign(np.random.default_rng(0).normal(0, 0.05, variable.shape))
        other.assign(variable.value)
    batch = batch_of()
    losses = []
    for detector in (single, mixed):
        outputs = detector(batch, training=True)
        assert all("float32" in str(x.dtype) for x in outputs.values())
        detections = detector.decode(outputs, tensors(batch))
        assert "float32" in str(detections["boxes"].dtype) and "float32" in str(detections["scores"].dtype)
        losses.append([float(x) for x in detector.loss_sums(outputs, tensors(batch)).losses().values()])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
    assert keras.config.dtype_policy().name == "float32"  # the global policy is put back


def test_decode_gives_original_pixels():
    detector = tiny(inference=config.Inference(max_detections=3, nms_iou=0.3))
    batch = tensors(batch_of())
    anchors = np.concatenate(detector.level_anchors((64, 96)))
    logits = np.full((2, len(anchors), 3), -9.0, np.float32)
    logits[:, 100, 1] = 3.0
    found = detector.decode({"logits": ops.convert_to_tensor(logits), "deltas": ops.zeros((2, len(anchors), 4))}, batch)
    for i, (height, width) in enumerate([(64, 96), (48, 64)]):
        expected = (
            np.clip(anchors[100], 0, [width, height, width, height]) * 2
        )  # half a canvas pixel is one of the image
        np.testing.assert_allclose(found["boxes"][i][0], expected, rtol=1e-6)
        assert list(found["valid"][i]) == [True, False, False] and int(found["labels"][i][0]) == 1


@pytest.mark.parametrize("backbone", ["keras_cv/resnet10", "keras_cv/csp_darknet_tiny", "resnet18"])
def test_the_momentum_of_batch_normalisation_is_0_9_whatever_the_backbone(backbone):
    """A run of a few hundred steps is evaluated with its own statistics, not with those of a network long gone."""
    assert momenta(backbone=backbone) == {0.9}
    assert momenta(backbone=backbone, batch_norm_momentum=0.5) == {0.5}


def test_null_leaves_the_momentum_that_the_backbone_brings():
    assert momenta(backbone="keras_cv/resnet10", batch_norm_momentum=None) == {0.99}
    assert momenta(backbone="resnet18", batch_norm_momentum=None) == {0.9}


def momenta(**settings: Any) -> set[float]:
    return {layer.momentum for layer in batch_norms(tiny(model=TINY.model_copy(update=settings)))}


def batch_norms(detector: Detector) -> list[keras.layers.BatchNormalization]:
    layers = detector.backbone._flatten_layers()
    return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]


def test_frozen_batch_normalisation():
    for backbone in ("keras_cv/resnet10", "keras_cv/csp_darknet_tiny"):  # the second hides its layers inside blocks
        frozen = tiny(model=TINY.model_copy(update={"backbone": backbone, "batch_norm": "frozen"}))
        trainable = [variable.path for variable in frozen.backbone.trainable_variables]
        assert trainable and not [path for path in trainable if path.endswith(("gamma", "beta"))]
        before = [ops.convert_to_numpy(v) for v in frozen.backbone.non_trainable_variables]
        frozen(batch_of(), training=True)
        for old, new in zip(before, frozen.backbone.non_trainable_variables, strict=True):
            np.testing.assert_array_equal(old, new)


# ------------------------------------------------------------------------------------------------------------ keras


def test_paths_are_unique_and_equal_for_every_detector(detector):
    paths = [variable.path for variable in detector.variables]
    assert len(set(paths)) == len(paths)
    keras.layers.Conv2D(1, 1)
    for other in (tiny(), tiny(precision="mixed_bfloat16"), tiny(name="teacher")):
        assert [v.path.removeprefix(f"{other.name}/") for v in other.variables] == [
            path.removeprefix("detector/") for path in paths
        ]


def test_get_config_round_trip(detector):
    changed = tiny(
        loss=config.Loss(box=config.GiouBox(weight=3.0), classification=config.Focal(alpha=None, gamma=0.5)),
        assignment=config.Assignment(force_match=True),
        inference=config.Inference(nms_iou=0.6),
        precision="mixed_bfloat16",
        bounding_box_format="rel_yxyx",
        pixel_range=(0, 1),
        name="other",
    )
    for first in (detector, changed):
        second = Detector.from_config(first.get_config())
        assert second.get_config() == first.get_config()
        assert second.sections == first.sections and second.class_names == first.class_names
        assert second.convention == first.convention
    assert changed.get_config()["precision"] == "mixed_bfloat16" and changed.get_config()["name"] == "other"


def test_saving_and_loading_by_keras(detector, tmp_path):
    detector.compile(optimizer=keras.optimizers.SGD(0.25))
    detector.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert float(loaded.optimizer.learning_rate) == 0.25
    images = batch_of()["images"]
    np.testing.assert_array_equal(loaded(images)["logits"], detector(images)["logits"])
    assert loaded.get_config() == detector.get_config()


@pytest.mark.parametrize("way", ["clone_model", "save_weights", "tf.train.Checkpoint"])
def test_weights_go_to_another_detector(detector, way, tmp_path):
    """`clone_model` gives another of the same configuration; the optimizer goes with TensorFlow's checkpoints."""
    detector.compile(optimizer=keras.optimizers.Adam(0.25))
    detector.optimizer.build(detector.trainable_variables)
    detector.optimizer.iterations.assign(7)
    other = keras.models.clone_model(detector)
    assert other.get_config() == detector.get_config()
    if way == "clone_model":
        other.set_weights(detector.get_weights())
    elif way == "save_weights":
        detector.save_weights(tmp_path / "m.weights.h5")
        other.load_weights(tmp_path / "m.weights.h5")
    else:
        tf = pytest.importorskip("tensorflow")
        path = tf.train.Checkpoint(model=detector, optimizer=detector.optimizer).save(str(tmp_path / "c"))
        other.compile(optimizer=keras.optimizers.Adam(0.125))
        other.optimizer.build(other.trainable_variables)
        tf.train.Checkpoint(model=other, optimizer=other.optimizer).restore(path).assert_consumed()
        assert int(other.optimizer.iterations) == 7 and float(other.optimizer.learning_rate) == 0.25
    for ours, theirs in zip(detector.weights, other.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_fit_lowers_the_loss_and_reports_the_objective():
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    detector = tiny()
    batches = [batch_of(1), batch_of(2)]
    data = tf.data.Dataset.from_tensor_slices({k: np.concatenate([b[k] for b in batches]) for k in batches[0]})
    data = data.filter(lambda image: True).batch(2)  # of unknown length, so that a read fails at the end
    detector.compile(optimizer=keras.optimizers.Adam(1e-3))

    losses = [detector.loss_sums(detector(b), tensors(b)).losses() for b in batches]
    reported = detector.evaluate(data, verbose=0, return_dict=True)
    assert set(reported) == {"loss", "loss_classification", "loss_box", "positives"}
    for name in ("loss", "loss_classification", "loss_box"):
        np.testing.assert_allclose(reported[name], np.mean([float(x[name]) for x in losses]), rtol=1e-4)
    assert reported["positives"] == float(detector.loss_sums(detector(batches[0]), tensors(batches[0])).positives)

    history = detector.fit(data.repeat(2), epochs=3, verbose=0).history["loss"]
    assert history[-1] < 0.8 * history[0]


# ------------------------------------------------------------------------------------------------- Keras' usual inputs

BOXES = [[[8, 8, 40, 44], [60, 20, 90, 60]], [[8, 8, 40, 44]]]  # xyxy on 64 x 96
LABELS = [[2, 0], [1]]


def usual(box_format="xyxy"):
    """Images and targets, and the batch of ours that they are."""
    images = batch_of()["images"]
    boxes = np.array([BOXES[0], [*BOXES[1], [0] * 4]], np.float32)
    labels = np.array([[2, 0], [1, -1]], np.int32)
    batch = {
        "images": images,
        "boxes": boxes,
        "labels": np.maximum(labels, 0),
        "valid": labels >= 0,
        "crowd": np.zeros((2, 2), bool),
        "size": np.array([[64, 96]] * 2, np.int32),
        "scale": np.ones((2, 2), np.float32),
    }
    targets = from_xyxy(ops.convert_to_tensor(boxes), box_format, ops.convert_to_tensor(batch["size"]))
    return images, {"boxes": ops.convert_to_numpy(targets), "classes": labels}, batch


@pytest.fixture(scope="module")
def compiled():
    keras.utils.set_random_seed(5)
    detector = tiny(bounding_box_format="xywh", inference=config.Inference(max_detections=7, score_threshold=0.001))
    head = detector.classification.prediction.kernel
    head.assign(np.random.default_rng(0).normal(0, 0.3, head.shape))
    detector.compile(optimizer=keras.optimizers.SGD(1e-3))
    return detector


class Elements(keras.utils.PyDataset):
    def __init__(self, *elements):
        super().__init__()
        self.elements = elements

    def __len__(self):
        return len(self.elements)

    def __getitem__(self, index):
        return self.elements[index]


def lists(images, targets):
    return images, {
        "boxes": [boxes[classes >= 0] for boxes, classes in zip(targets["boxes"], targets["classes"], strict=True)],
        "labels": [classes[classes >= 0] for classes in targets["classes"]],
    }


def of_tensorflow(images, targets):
    import tensorflow as tf

    def rows():
        for image, boxes, labels in zip(images, *lists(images, targets)[1].values(), strict=True):
            yield image, {"boxes": boxes, "classes": labels}

    spec = {"boxes": tf.TensorSpec([None, 4]), "classes": tf.TensorSpec([None], tf.int32)}
    data = tf.data.Dataset.from_generator(rows, output_signature=(tf.TensorSpec([64, 96, 3], tf.uint8), spec))
    data = data.apply(tf.data.experimental.assert_cardinality(len(images)))
    return data.ragged_batch(2)


@pytest.mark.parametrize("form", ["arrays", "KerasCV", "PyDataset", "ragged tf.data"])
def test_evaluate_gives_the_loss_of_our_own_batch(compiled, form):
    images, targets, batch = usual("xywh")
    forms = {
        "arrays": lambda: (images, targets),
        "KerasCV": lambda: ({"images": images, "bounding_boxes": targets}, None),
        "PyDataset": lambda: (Elements(lists(images, targets)), None),
        "ragged tf.data": lambda: (of_tensorflow(images, targets), None),
    }
    x, y = forms[form]()
    expected = compiled.loss_sums(compiled(batch), tensors(batch)).losses()["loss"]
    reported = compiled.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(reported["loss"], float(expected), rtol=1e-6)
    np.testing.assert_allclose(reported["loss"], compiled.test_on_batch(images, targets)[0], rtol=1e-6)


def test_fit_takes_batches_of_several_lengths_and_gives_the_loss_of_the_step(compiled, tmp_path):
    """One image, none with a box, and more boxes than before, at a size that the strides don't divide; the learning
    rate is too small to move the loss."""
    images, targets, _ = usual("xywh")
    images = images[:, :60, :90]
    image, one = lists(images[:1], {name: field[:1] for name, field in targets.items()})
    elements = (image, one), (image, {"boxes": [[]], "labels": [[]]}), lists(images, targets)
    detector = Detector.from_config(compiled.get_config())
    detector.set_weights(compiled.get_weights())
    detector.compile(optimizer=keras.optimizers.SGD(1e-12), metrics=[CocoMetrics()])
    expected = []
    for element in elements:
        batch = padded(tensors(checked_batch(*element, detector.convention)))
        expected.append(float(detector.loss_sums(detector(batch, training=True), batch).losses()["loss"]))
    detector.set_weights(compiled.get_weights())  # the statistics of batch normalisation, too
    best = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="val_AP", save_best_only=True)
    stop = keras.callbacks.EarlyStopping(monitor="val_AP")
    validation = {"validation_data": (images, targets), "callbacks": [best, stop]}
    history = detector.fit(Elements(*elements), shuffle=False, verbose=0, **validation)
    counts = [len(element[0]) for element in elements]
    np.testing.assert_allclose(history.history["loss"], [np.average(expected, weights=counts)], rtol=1e-6)
    parts = np.add(history.history["loss_classification"], history.history["loss_box"])
    np.testing.assert_allclose(parts, history.history["loss"], rtol=1e-5)
    assert history.history["val_loss"][0] > 0
    ((figure,),) = (history.history[name] for name in ("val_AP",))
    assert stop.best == figure and 0 <= figure < 1
    assert stop.monitor_op is best.monitor_op is ops.greater  # though nobody gave mode="max"
    # What the callback saved is the model, metric included, and finds what the metric was given.
    loaded = keras.saving.load_model(tmp_path / "best.keras")
    assert loaded.get_config() == detector.get_config()
    (metric,) = loaded.detection_metrics.of_epoch
    boxes = np.array([[*BOXES[0]], [*BOXES[1], [0] * 4]], np.float32)
    detections = detector.predict(images, verbose=0)
    size = (np.array([[64]] * 2), np.array([[96]] * 2))
    metric.update_state(
        {"boxes": boxes, "labels": targets["classes"]},
        {**detections, "boxes": to_xyxy(detections["boxes"], "xywh", size)},
    )
    assert metric.result()["AP"] == figure
    theirs = detector.predict(images, verbose=0, names="keras_hub")
    np.testing.assert_array_equal(theirs["confidence"], detections["scores"])
    assert detector.image_size == (60, 90) and compiled.image_size is None


def test_predict_decodes_and_takes_new_thresholds(compiled):
    images, _, batch = usual()
    expected = compiled.decode(compiled(batch), tensors(batch))
    found = compiled.predict(images, verbose=0)
    assert set(found) == {"boxes", "scores", "labels", "num_detections"}
    boxes = from_xyxy(expected["boxes"], "xywh", ops.convert_to_tensor(batch["size"]))
    np.testing.assert_allclose(found["boxes"], boxes, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found["labels"], expected["labels"])
    assert found["num_detections"].tolist() == [7, 7]
    before = compiled.inference
    try:
        compiled.inference = before.model_copy(update={"max_detections": 3})
        assert compiled.predict_function is None  # so that Keras compiles another
        assert compiled.decode(compiled(batch), tensors(batch))["boxes"].shape == (2, 3, 4)
    finally:
        compiled.inference = before
    with pytest.raises(RetinaError, match="retina.config.Inference"):
        compiled.inference = {"max_detections": 3}


@pytest.mark.parametrize("box_format", ["xywh", "rel_yxyx"])
def test_losses_of_images_of_any_size(compiled, box_format, monkeypatch):
    """That of our own batch of the same images, padded."""
    images, targets, batch = usual("xywh")
    images, targets = images[1:, :50, :70], {name: field[1:] for name, field in targets.items()}
    ours = {name: field[1:] for name, field in batch.items()} | {"size": np.array([[50, 70]], np.int32)}
    corners = ops.convert_to_tensor(ours["boxes"])
    targets["boxes"] = from_xyxy(corners, box_format, ops.convert_to_tensor(ours["size"]))
    monkeypatch.setattr(compiled, "convention", compiled.convention._replace(box_format=box_format))
    expected = compiled.loss_sums(compiled(ours), tensors(ours)).losses()["loss"]
    compiled.reset_metrics()
    np.testing.assert_allclose(compiled.test_step((images, targets))["loss"], expected, rtol=1e-6)


def test_predict_pads_images_of_any_size(compiled):
    """The padding is that of our own batches: nothing is detected in it, and it changes no score."""
    images, _, batch = usual()
    size = np.array([[50, 70]] * 2, np.int32)
    inside = np.zeros_like(images)
    inside[:, :50, :70] = images[:, :50, :70]
    ours = {"images": inside, "size": size, "scale": batch["scale"]}
    expected = compiled.decode(compiled(ours), tensors(ours))
    found = compiled.predict_on_batch(images[:, :50, :70])
    boxes = from_xyxy(expected["boxes"], "xywh", ops.convert_to_tensor(size))
    np.testing.assert_allclose(found["boxes"], boxes, rtol=0, atol=1e-3)
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=0, atol=1e-5)
    assert (found["boxes"][..., :2] + found["boxes"][..., 2:] <= [70.001, 50.001]).all()


def test_a_batch_that_a_graph_cannot_refuse_has_a_loss_of_nan(compiled):
    images, targets, _ = usual("xywh")
    batch = to_batch(images, {**targets, "classes": np.array([[3, 0], [1, -1]])}, compiled.convention)
    assert [bool(usable) for usable in batch["usable"]] == [False, True]
    compiled.reset_metrics()
    assert math.isnan(float(compiled.compute_loss(batch, y_pred=compiled(batch))))
    # A loss may be NaN for other reasons; the positives are only for this one, which the epoch's end names.
    logs = {name: float(metric.result()) for name, metric in compiled.trackers.items()}
    compiled.reset_metrics()
    assert [name for name, value in logs.items() if math.isnan(value)] == ["positives"]
    named = compiled._refuse_unusable()
    with pytest.raises(RetinaError, match=r"data: expected finite boxes in xywh .* classes from 0 to 2"):
        named.on_epoch_end(0, logs)
    with pytest.raises(RetinaError, match="validation data: expected"):
        named.on_epoch_end(0, {"loss": 1.0, "positives": 3.0, "val_positives": math.nan})
    named.on_epoch_end(0, {"loss": math.nan, "positives": 3.0})


def test_weights_are_of_images(compiled):
    """Weights 2 and 0 give twice the sums of the first image alone, over the positives of both."""
    images, targets, _ = usual("xywh")
    of_both, first = (
        tensors(checked_batch(*part, compiled.convention))
        for part in ((images, targets), (images[:1], {name: field[:1] for name, field in targets.items()}))
    )
    weighted = tensors(checked_batch(images, targets, compiled.convention, [2, 0]))
    outputs = compiled(of_both["images"])
    alone = {name: value[:1] for name, value in outputs.items()}
    for kind in (config.BatchNormalizer(), config.ImageNormalizer()):
        loss = config.Loss(normalizer=kind)
        objective = dataclasses.replace(compiled.objective((64, 96)), loss=loss)
        sums, expected = objective.sums(outputs, weighted), objective.sums(alone, first)
        np.testing.assert_allclose(float(sums.classification), 2 * float(expected.classification), rtol=1e-5)
        np.testing.assert_allclose(float(sums.box), 2 * float(expected.box), rtol=1e-5)
        assert float(sums.positives) == float(objective.sums(outputs, of_both).positives)


def test_one_class():
    detector = Detector(["cell"], model=TINY, anchors=ANCHORS)
    targets = {"boxes": BOXES, "classes": [[0, 0], [0]]}
    batch = tensors(checked_batch(batch_of()["images"], targets, detector.convention))
    assert 0 < float(detector.compute_loss(batch, y_pred=detector(batch))) < 100


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d, x, y: d.compile(loss="mse"), "loss= has no effect"),
        (lambda d, x, y: d.compile(metrics=["accuracy"]), r"metrics: expected \[retina.CocoMetrics\(\)\]"),
        (lambda d, x, y: d.compile(classification_loss="focal"), "classification_loss= has no effect"),
        (lambda d, x, y: d.fit(x, y, sample_weight=np.ones(3)), "sample_weight: expected a number of each of 2"),
        (lambda d, x, y: d.fit(x, y, class_weight={0: 1}), "class_weight= has no effect"),
        (lambda d, x, y: d.fit(x, y, validation_data=(x, y, -np.ones(2))), "sample_weight: expected finite"),
        (lambda d, x, y: d.predict(x, names="torchvision"), "names: expected one of retina, keras_hub, keras_cv"),
        (lambda d, x, y: d.fit(x, {**y, "classes": y["classes"] + 3}, verbose=0), "classes from 0 to 2"),
        (lambda d, x, y: d.fit(Elements((x, y)), y), "leave y out"),
        (lambda d, x, y: d.fit(x, verbose=0), "y: expected boxes and classes, got none; give y="),
        (lambda d, x, y: d.evaluate(Elements(x), verbose=0), "y: expected boxes and classes, got none; give y="),
        (lambda d, x, y: d.train_on_batch(x), "y: expected boxes and classes, got none; give y="),
        (lambda d, x, y: d.fit(x, y, validation_data=[x, {"boxes": y["boxes"]}]), r"the keys \['boxes'\]"),
        (lambda d, x, y: d.predict(x[:0]), "images: expected at least one"),
        (lambda d, x, y: d.evaluate(Elements(*[(x, y)] * 3, (x, {**y, "boxes": 3 * y["boxes"]})), verbose=0), "inside"),
        (lambda d, x, y: d.evaluate(of_tensorflow(x, {**y, "boxes": 3 * y["boxes"]})), "inside the image"),
    ],
)
def test_what_the_methods_of_keras_refuse(compiled, call, message):
    images, targets, _ = usual("xywh")
    with pytest.raises(RetinaError, match=message):
        call(compiled, images, targets)


@pytest.mark.parametrize(
    ("names", "arguments", "message"),
    [
        (20, {}, "class_names: expected the names of the classes, each once, got 20; give a list"),
        ("cat", {}, "got 'cat'"),
        ([], {}, r"got \[\]"),
        ([0, 1], {}, r"got \[0, 1\]"),
        (["a", "a"], {}, r"got \['a', 'a'\]"),
        (
            ["a"],
            {"precision": "bfloat16"},
            "precision: expected one of float32, mixed_bfloat16, mixed_float16, got 'bfl",
        ),
        (
            ["a"],
            {"backbone": "resnet18", "num_classes": 1},
            "backbone, num_classes: no such argument; .* in model=retina",
        ),
        (["a"], {"model": "resnet18"}, "model: expected a retina.config.Model, got str; give retina.config.Model"),
        (["a"], {"loss": {"kind": "focal"}}, "loss: expected a retina.config.Loss, got dict"),
    ],
)
def test_what_no_detector_is_made_of(names, arguments, message):
    with pytest.raises(RetinaError, match=f"Detector: .*{message}"):
        Detector(names, **arguments)


def test_class_names_may_come_from_an_iterator():
    assert Detector((name for name in "ab"), model=config.Model(backbone="resnet10")).class_names == ("a", "b")


def test_regularisers_are_part_of_the_loss(compiled):
    images, targets, _ = usual("xywh")
    batch = tensors(checked_batch(images, targets, compiled.convention))
    outputs, kernel = compiled(batch), compiled.box.prediction.kernel
    before = float(compiled.compute_loss(batch, y_pred=outputs))
    kernel.regularizer = keras.regularizers.L2(10.0)
    penalty = 10 * float(ops.sum(kernel**2))
    try:
        assert penalty > 0.01
        np.testing.assert_allclose(float(compiled.compute_loss(batch, y_pred=outputs)), before + penalty, rtol=1e-6)
    finally:
        kernel.regularizer = None
