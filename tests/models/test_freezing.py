"""Stages by layer names; what freezing keeps; the modes of batch normalisation."""

import keras
import numpy as np
import pytest

from retina import config
from retina.errors import RetinaError
from retina.models import backbones
from retina.models.freezing import STAGES, freeze_stages, stage_of


@pytest.mark.parametrize(
    ("layer", "stage"),
    [
        ("", None),
        ("stem_conv", None),
        ("layer5_0_conv1", None),
        ("conv10", None),
        ("conv1", 1),
        ("bn1", 1),
        ("conv1_bn", 1),
        ("conv3_conv", 1),
        ("layer1_0_conv1", 2),
        ("layer4_2_downsample_1", 5),
        ("v2_stack_0_block1_1_conv", 2),
        ("v2_stack_3_block2_2_bn", 5),
        ("stack0_block0_0_bn", 2),
        ("stack3_block2_3_conv", 5),
        ("post_bn", 5),
    ],
)
def test_the_stage_of_a_layer(layer, stage):
    assert stage_of(layer) == stage


@pytest.fixture(scope="module", params=["keras_cv/resnet10", "resnet18"])
def network(request) -> keras.Model:
    return backbones.build(request.param)


def thaw(network: keras.Model) -> None:
    """Layer by layer: on TensorFlow a network that is trainable itself ignores being set so."""
    for layer in network.layers:
        layer.trainable = True


def kernels(network: keras.Model) -> list[list[str]]:
    """Trainable kernels of each stage, by the order of the network alone: the stem, then as the stride doubles."""
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    stages = [[] for _ in range(STAGES)]
    for place, layer in enumerate(convolutions):
        # He et al. 2015, table 1: the stem and the first stage both have 64 channels, later ones double them.
        stage = int(np.log2(layer.filters / 64)) + 1 if place else 0
        stages[stage] += [layer.name] if layer.trainable_weights else []
    return stages


def test_as_many_stages_as_said(network):
    everything = kernels(network)
    assert all(everything)
    for count in range(STAGES + 1):
        thaw(network)
        freeze_stages(network, "x", count)
        assert kernels(network) == [[]] * count + everything[count:]
    assert network.trainable_weights == []


def test_frozen_stages_keep_their_statistics(network):
    thaw(network)
    freeze_stages(network, "x", 2)
    network.non_trainable_weights  # noqa: B018 - as a step asks for them
    before = {v.path: np.array(v.numpy()) for v in network.weights if "moving" in v.path}
    network(np.random.default_rng(0).normal(3, 2, (2, 64, 64, 3)).astype(np.float32), training=True)
    kept = {path for path, array in before.items() if np.array_equal(array, weight(network, path))}
    assert kept == {path for path in before if stage_of(path.split("/")[0]) in (1, 2)}
    assert 0 < len(kept) < len(before)


def weight(network: keras.Model, path: str) -> np.ndarray:
    return next(v.numpy() for v in network.weights if v.path == path)


def test_networks_without_known_stages_are_refused():
    image = keras.Input((32, 32, 3))
    other = keras.Model(image, keras.layers.Conv2D(4, 3, name="stem_conv")(image))
    with pytest.raises(
        RetinaError, match=r"model.freeze: expected a residual network.* got net \(layer 'stem_conv' is"
    ):
        freeze_stages(other, "net", 1)
    freeze_stages(other, "net", 0)
    assert other.trainable_weights


@pytest.mark.parametrize("override", [{"freeze": 1}, {"batch_norm": "frozen"}])
def test_random_weights_are_not_frozen(override):
    with pytest.raises(ValueError, match="random weights|pretrained weights"):
        config.Model(**override)
    assert config.Model(**override, init_from="run")


@pytest.mark.parametrize("stages", [-1, 6])
def test_there_are_five_stages(stages):
    with pytest.raises(ValueError, match="freeze"):
        config.Model(freeze=stages, init_from="run")
