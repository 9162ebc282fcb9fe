import keras
import numpy as np
import pytest

from retina.errors import RetinaError
from retina.models import backbones, backbones_keras_cv
from retina.models.freezing import STAGES, freeze_stages

# One of each family, and what is quick to build.
SMALL = {
    "resnet18",
    "keras_hub/resnet_18_imagenet",
    "keras_cv/resnet10",
    "keras_cv/resnet18",
    "keras_cv/resnet18_v2",
    "keras_cv/mobilenet_v3_small",
    "keras_cv/mobilenet_v3_large",
    "keras_cv/efficientnetv2_b0",
    "keras_cv/csp_darknet_tiny",
}
EVERY = [pytest.param(name, marks=() if name in SMALL else pytest.mark.slow) for name in backbones.names()]

# Channels of C3, C4, C5 by the papers' tables.
CHANNELS = {
    "resnet10": (128, 256, 512),
    "resnet18": (128, 256, 512),
    "resnet34": (128, 256, 512),
    "resnet50": (512, 1024, 2048),
    "resnet50_v1": (512, 1024, 2048),
    "resnet152": (512, 1024, 2048),
    "keras_cv/resnet10": (128, 256, 512),
    "keras_cv/resnet18_v2": (128, 256, 512),
    "keras_cv/resnet50": (512, 1024, 2048),
    "keras_cv/resnet101": (512, 1024, 2048),
    "keras_cv/mobilenet_v3_small": (24, 48, 96),
    "keras_cv/mobilenet_v3_large": (40, 112, 160),
    "keras_cv/csp_darknet_s": (128, 256, 512),
}
# torchvision documents 25,557,032 for its resnet50, of which 2048 · 1000 + 1000 are the classifier's.
RESNET50_TRAINABLE = 25_557_032 - 2_049_000


def test_known_names():
    assert set(SMALL) <= set(backbones.names())
    assert {"keras_cv/resnet50", "keras_cv/resnet101", "keras_cv/resnet50_v2"} <= set(backbones.names())
    assert len(set(backbones.names())) == len(backbones.names())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("keras_cv/resnet5O", "did you mean 'keras_cv/resnet50"),
        ("resnet5O", "did you mean 'resnet50"),
        ("resnet18_v1", "did you mean '"),  # no bottlenecks, so no second place for the stride
        ("", "known: resnet10, resnet18"),
        ("vgg", "known: resnet10, resnet18"),
    ],
)
def test_an_unknown_name(name, hint):
    with pytest.raises(RetinaError, match=f"model.backbone: unknown backbone '{name}'; {hint}"):
        backbones.build(name)


@pytest.mark.parametrize("name", EVERY)
def test_conformance(name):
    if name.startswith("keras_hub/"):
        pytest.importorskip("keras_hub")
    first = backbones.build(name)
    keras.layers.Dense(1)  # something else is named in between
    second = backbones.build(name)
    paths = [variable.path for variable in first.variables]
    assert len(set(paths)) == len(paths)
    assert [variable.path for variable in second.variables] == paths
    assert not np.array_equal(first.trainable_variables[0], second.trainable_variables[0])  # drawn, not constant

    for canvas in ((64, 64), (96, 160)):  # C5 of the second is 3 x 5
        image = np.random.default_rng(0).normal(size=(1, *canvas, 3)).astype(np.float32)
        maps = {level: keras.ops.convert_to_numpy(x) for level, x in first(image).items()}
        assert list(maps) == ["C3", "C4", "C5"]
        for stride, x in zip((8, 16, 32), maps.values(), strict=True):
            assert x.shape[1:3] == (canvas[0] // stride, canvas[1] // stride)
            assert np.isfinite(x).all() and x.std() > 0
    if name in CHANNELS:
        assert tuple(x.shape[-1] for x in maps.values()) == CHANNELS[name]
    check_statistics(first)
    check_freezing(second, name)


def check_statistics(network):
    """In training all batch normalisations move theirs; frozen, none."""
    layers = network._flatten_layers()
    # keras-cv's EfficientNets hold some that they never call.
    norms = [one for one in layers if isinstance(one, keras.layers.BatchNormalization) and one.variables]
    assert norms
    image = np.random.default_rng(1).normal(3, 2, size=(2, 64, 64, 3)).astype(np.float32)
    for trainable in (True, False):
        for layer in norms:
            layer.trainable = trainable
        before = [keras.ops.convert_to_numpy(layer.moving_variance) for layer in norms]
        network(image, training=True)
        after = [keras.ops.convert_to_numpy(layer.moving_variance) for layer in norms]
        moved = [not np.array_equal(old, new) for old, new in zip(before, after, strict=True)]
        assert all(moved) if trainable else not any(moved)


def check_freezing(network, name):
    """Stage by stage where layer names tell the stages, all of it at last; others say that theirs are not known."""
    if "resnet" not in name and not name.startswith("efficientnet_lite"):
        with pytest.raises(RetinaError, match=f"expected a residual network, whose stages are known, got {name}"):
            freeze_stages(network, name, 1)
        return
    left = [len(network.trainable_weights)]
    for stages in range(1, STAGES + 1):
        freeze_stages(network, name, stages)
        left.append(sum(len(layer.trainable_weights) for layer in network.layers))
    assert left == sorted(set(left), reverse=True) and left[-1] == 0


@pytest.mark.parametrize("name", ["keras_cv/resnet50", "resnet50"])
def test_resnet50_has_the_papers_parameters(name):
    trainable = sum(int(np.prod(v.shape)) for v in backbones.build(name).trainable_variables)
    assert trainable == RESNET50_TRAINABLE


@pytest.mark.parametrize("name", ["keras_cv/resnet10", "resnet18"])
@pytest.mark.parametrize("canvas", [(33, 65), (75, 131)])
def test_residual_networks_round_sizes_up(name, canvas):
    maps = backbones.build(name)(np.zeros((1, *canvas, 3), np.float32))
    assert [tuple(x.shape[1:3]) for x in maps.values()] == [
        (-(-canvas[0] // stride), -(-canvas[1] // stride)) for stride in (8, 16, 32)
    ]


def test_building_leaves_keras_own_names_alone():
    before = keras.layers.Dense(1).name
    backbones.build("keras_cv/resnet10")
    after = keras.layers.Dense(1).name
    number = int(before.split("_")[1]) if "_" in before else 0
    assert after == f"dense_{number + 1}"


# ----------------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize(
    ("name", "weights", "text"),
    [
        ("keras_cv/resnet50", "imagenet", "preset 'imagenet' is not one of keras_cv/resnet50"),
        ("keras_cv/resnet50", "mobilenet_v3_large_imagenet", "is not one of keras_cv/resnet50"),
        ("keras_cv/resnet50", "resnet50_coco", "no preset 'resnet50_coco'.*resnet50_imagenet"),
        ("keras_cv/resnet50", "resnet50_v2_imagenet", "no preset 'resnet50_v2_imagenet'"),
        ("keras_cv/resnet10", "resnet10_imagenet", "for keras_cv/resnet10 it has: none"),
    ],
)
def test_a_preset_that_does_not_exist(name, weights, text):
    with pytest.raises(RetinaError, match=f"model.weights: .*{text}"):
        backbones.build(name, weights)


@pytest.mark.parametrize(
    ("error", "text"),
    [(ConnectionError("no route\nto host"), "ConnectionError: no route to host"), (OSError(), "OSError: ")],
)
def test_a_preset_without_a_network(monkeypatch, error, text):
    import keras_cv

    def fail(preset, **arguments):
        assert preset == "resnet50_imagenet" and arguments["load_weights"]
        raise error

    monkeypatch.setattr(keras_cv.models.ResNetBackbone, "from_preset", fail)
    with pytest.raises(RetinaError, match=f"cannot fetch keras-cv preset 'resnet50_imagenet' .{text}") as caught:
        backbones.build("keras_cv/resnet50", "resnet50_imagenet")
    assert "model.weights=null" in str(caught.value) and "\n" not in str(caught.value)


def test_a_preset_is_built_by_its_own_class(monkeypatch):
    import keras_cv

    drawn = backbones_keras_cv.BUILDERS["keras_cv/resnet18_v2"]()
    monkeypatch.setattr(
        keras_cv.models.ResNetV2Backbone,
        "presets_with_weights",
        {"resnet18_v2_imagenet": {}},
    )
    monkeypatch.setattr(keras_cv.models.ResNetV2Backbone, "from_preset", lambda preset, **arguments: drawn)
    built = backbones.build("keras_cv/resnet18_v2", "resnet18_v2_imagenet")
    image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    level = drawn.get_layer(drawn.pyramid_level_inputs["P5"]).output
    expected = keras.Model(drawn.inputs[0], level)(image)
    np.testing.assert_array_equal(built(image)["C5"], expected)
