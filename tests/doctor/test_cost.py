"""The cost of a run against sizes worked out by hand and Keras' own counts."""

from __future__ import annotations

import pytest

from retina import config
from retina.data.batches import augment, plan
from retina.doctor.cost import estimate, size
from retina.ops import assignment
from tests.doctor.made import table

SECTIONS = {
    "data": {
        "train": {"format": "digits"},
        "validation": {"format": "digits"},
        "resize": {"short": 64, "long": 96, "multiple": 32},
    },
    "model": {
        "backbone": "keras_cv/resnet10",
        "fpn": {"channels": 16, "max_level": 4},
        "head": {"channels": 16, "layers": 1},
    },
    "anchors": {"scales": [1.0]},
    "schedule": {"kind": "cosine", "steps": 12},
    "run": {"batch_size": 4},
}
# Eight images of 64 x 96 and four of 64 x 64, a full batch at least of each, with up to 9 boxes.
DATASET = table(
    [(64, 96), (64, 64), (64, 96)] * 4,
    [[[4, 4, 36, 36]] * 9, [], [[4, 4, 36, 36]]] * 4,
    labels=[0, 1] * 20,
    names=("a", "b"),
)


def cost(**sections):
    return estimate(config.parse({**SECTIONS, **sections}), DATASET)


@pytest.fixture(scope="module")
def plain():
    return cost()


def test_sizes(plain):
    # P3 and P4 of 64 x 96 have 8 x 12 and 4 x 6 places of 3 anchors.
    assert (plain.canvas, plain.batch, plain.anchors) == ((64, 96), 4, 3 * (96 + 24))
    assert plain.canvases == 2
    # Eight images of the wide canvas and four of the square one, in batches of 4.
    assert (plain.steps, plain.images) == (12, 48)


def test_memory(plain):
    memory = plain.memory
    assert memory["weights"] == 4 * plain.parameters
    assert memory["gradients"] == memory["optimizer"] == 4 * plain.trainable
    assert memory["images"] == 4 * 64 * 96 * 3
    # 2 classes; 9 boxes are padded to 16.
    assert memory["loss"] == 4 * 360 * (4 * 2 + 3 * 16) * 4
    assert plain.total == sum(memory.values())


def test_parameters_are_those_that_keras_counts(plain):
    from retina.inference import build_detector

    detector = build_detector(config.parse(SECTIONS), DATASET.class_names)
    assert plain.parameters == detector.count_params()


def test_devices_share_the_batch_and_each_holds_all_weights(plain):
    found = cost(run={"batch_size": 8, "devices": 2})
    assert found.batch == 4
    assert found.memory == plain.memory
    # The arithmetic is that of all devices together.
    assert found.flops == pytest.approx(2 * plain.flops)


def test_activations_grow_with_the_batch_alone(plain):
    half = cost(run={"batch_size": 4, "accumulate": 2})
    assert half.batch == 2 and 2 * half.memory["activations"] == plain.memory["activations"]
    assert half.parameters == plain.parameters


def test_activations_of_half_precision_take_half(plain):
    half = cost(run={"batch_size": 4, "precision": "mixed_bfloat16"})
    # A layer may stay in float32, such as one that normalises.
    assert 0.5 <= half.memory["activations"] / plain.memory["activations"] < 0.6


def test_mosaic_and_mixup_bring_the_boxes_of_five_images(monkeypatch):
    augmentations = {"mosaic": {"probability": 0.5}, "mixup": {"probability": 0.5}}
    data = {**SECTIONS["data"], "augment": augmentations}
    # 5 times 9 boxes are padded to 48, of which some are matched at once.
    assert cost(data=data).memory["loss"] == 4 * 360 * (4 * 2 + 3 * 16) * 4
    monkeypatch.setattr(assignment, "PIECE", 48)
    assert cost(data=data).memory["loss"] == 4 * 360 * (4 * 2 + 3 * 48) * 4
    settings = config.parse({**SECTIONS, "data": data}).data
    assert plan.box_slots(DATASET.offsets, augment.images_per_example(settings.augment)) == 48


def test_the_average_is_one_more_copy_of_the_weights_and_the_cache_is_counted(plain, tmp_path):
    assert {"average", "cache"}.isdisjoint(plain.memory)
    found = cost(run={"batch_size": 4, "ema": {"decay": 0.99}}, data={**SECTIONS["data"], "cache": "memory"})
    assert found.memory["average"] == plain.memory["weights"]
    # The twelve files can't be read, so they count as JPEGs; none is ever shown at half its size or less.
    pixels = 64 * 96 * 3, 64 * 64 * 3
    assert found.memory["cache"] >= 4 * (2 * pixels[0] + pixels[1])
    assert found.total == sum(found.memory.values()) > plain.total


def test_operations_of_a_convolution_a_dense_and_a_depthwise_layer():
    import keras

    from retina.doctor.cost import _flops

    image = keras.Input(batch_shape=(2, 8, 6, 3))
    for layer, expected in (
        # 2 images, 8 x 6 places, a kernel of 3 x 3 x 3 x 5.
        (keras.layers.Conv2D(5, 3, padding="same"), 2 * 2 * 48 * 135),
        (keras.layers.Conv2D(5, 3, strides=2, padding="same"), 2 * 2 * 12 * 135),
        (keras.layers.DepthwiseConv2D(3, padding="same"), 2 * 2 * 48 * 27),
        (keras.layers.Dense(7), 2 * 2 * 48 * 21),
        (keras.layers.ReLU(), 0),
    ):
        assert _flops(layer, layer(image)) == expected


def test_operations_of_the_run_are_in_proportion_to_the_canvases(plain):
    # 12 steps; two images of three have the largest canvas, 64 x 96, one has two thirds of it.
    assert plain.run_flops == pytest.approx(12 * plain.flops * (2 + 2 / 3) / 3)
    assert plain.hours == pytest.approx(plain.run_flops / 3.6e15)
    # The first convolution alone, 7 x 7 x 3 x 64 at half the size, and its gradients.
    assert plain.flops > 3 * 2 * 4 * (32 * 48) * 7 * 7 * 3 * 64
    assert cost(run={"batch_size": 4, "accumulate": 2}).flops == plain.flops


def test_adamw_keeps_both_moments(plain):
    found = cost(optimizer={"kind": "adamw"})
    assert found.memory["optimizer"] == 2 * plain.memory["optimizer"]


def test_at_least_the_outputs_of_the_stem_and_the_heads(plain):
    # The first convolution, its normalisation and activation alone: 64 channels at half the size, 4 bytes each.
    assert plain.memory["activations"] > 3 * 4 * (32 * 48 * 64) * 4


@pytest.mark.parametrize(("number", "told"), [(0, "0 MB"), (885e6, "885 MB"), (9.3e9, "9.3 GB")])
def test_bytes_as_people_read_them(number, told):
    assert size(number) == told
