import math

import numpy as np
import pytest
from keras import ops

from retina import config
from retina.models.fpn import FeaturePyramid
from retina.models.heads import box_subnet, classification_subnet


def features(shapes, channels=4, values=(1.0, 10.0, 100.0)):
    """C3, C4 and C5, each constant."""
    return {
        f"C{level}": np.full((1, *shape, channels), value, np.float32)
        for level, shape, value in zip((3, 4, 5), shapes, values, strict=True)
    }


def pyramid(maps, **settings):
    """A pyramid whose every convolution passes its input on (1 in the middle of the diagonal, no bias)."""
    layer = FeaturePyramid(config.Fpn(channels=4, **settings), name="fpn")
    layer.build({name: tuple(x.shape) for name, x in maps.items()})
    for convolution in [*layer.laterals.values(), *layer.smooth.values(), *layer.extra.values()]:
        kernel = np.zeros(convolution.kernel.shape, np.float32)
        kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = np.eye(4)
        convolution.kernel.assign(kernel)
    return layer


def shapes_and_values(maps):
    maps = [ops.convert_to_numpy(x) for x in maps]
    assert all((x == x.flat[0]).all() for x in maps)
    return [x.shape[1:3] for x in maps], [x.flat[0] for x in maps]


@pytest.mark.parametrize(
    ("shapes", "extra"),
    [
        ([(1, 1), (1, 1), (1, 1)], [(1, 1), (1, 1)]),
        ([(8, 8), (4, 4), (2, 2)], [(1, 1), (1, 1)]),
        ([(13, 17), (7, 9), (4, 5)], [(2, 3), (1, 2)]),  # odd: the upsampled map is cut
    ],
)
def test_top_down_sums_and_shapes(shapes, extra):
    maps = features(shapes)
    found = shapes_and_values(pyramid(maps)(maps))
    assert found == ([*shapes, *extra], [111, 110, 100, 100, 100])


def test_upsampling_repeats_each_pixel():
    maps = features([(4, 6), (2, 3), (1, 2)], values=(0.0, 0.0, 0.0))
    maps["C4"][0, :, :, 0] = [[1, 2, 3], [4, 5, 6]]
    p3 = ops.convert_to_numpy(pyramid(maps, max_level=3)(maps)[0])[0, :, :, 0]
    assert p3.tolist() == [[1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 3, 3], [4, 4, 5, 5, 6, 6], [4, 4, 5, 5, 6, 6]]


def test_p6_is_made_of_c5_or_p5_and_p7_of_the_rectified_p6():
    maps = features([(8, 8), (4, 4), (2, 2)], values=(1.0, 10.0, -100.0))
    for source, p6 in (("c5", -100), ("p5", -200)):
        layer = pyramid(maps, p6_from=source)
        layer.smooth[5].kernel.assign(2 * layer.smooth[5].kernel.value)
        assert shapes_and_values(layer(maps))[1] == [-89, -90, -200, p6, 0]


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_padding_of_the_extra_levels(padding):
    maps = features([(16, 16), (8, 8), (4, 4)], values=(0.0, 0.0, 0.0))
    maps["C5"][0, :, :, 0] = np.arange(1, 17).reshape(4, 4)
    layer = pyramid(maps, padding=padding)
    kernel = np.zeros((3, 3, 4, 4), np.float32)
    kernel[:, :, 0, 0] = 1
    for convolution in layer.extra.values():
        convolution.kernel.assign(kernel)
    found = [ops.convert_to_numpy(x)[0, :, :, 0].tolist() for x in layer(maps)[3:]]
    assert found == [window_sums(np.arange(1, 17).reshape(4, 4), padding), window_sums(np.array(found[0]), padding)]


def window_sums(x, padding):
    """3x3 windows at stride 2, of a map with one more row and column behind it, and before it if `symmetric`."""
    before = int(padding == "symmetric")
    padded = np.pad(x, ((before, 1), (before, 1)))
    rows = range(0, x.shape[0], 2)
    return [[float(padded[y : y + 3, z : z + 3].sum()) for z in rows] for y in rows]


@pytest.mark.parametrize(("low", "high"), [(3, 3), (3, 5), (4, 6), (5, 5), (5, 7)])
def test_levels(low, high):
    maps = features([(16, 16), (8, 8), (4, 4)])
    found = pyramid(maps, min_level=low, max_level=high)(maps)
    expected = {3: (16, 111), 4: (8, 110), 5: (4, 100), 6: (2, 100), 7: (1, 100)}
    sides, values = shapes_and_values(found)
    assert [(side, value) for (side, _), value in zip(sides, values, strict=True)] == [
        expected[level] for level in range(low, high + 1)
    ]


@pytest.mark.parametrize(("init", "factor"), [("xavier_uniform", "mean"), ("he_uniform", "in")])
def test_fpn_initialisation(init, factor):
    layer = FeaturePyramid(config.Fpn(channels=64, init=init), name="fpn")
    layer.build({f"C{level}": (None, None, None, 128) for level in (3, 4, 5)})
    for convolution in [*layer.laterals.values(), *layer.smooth.values(), *layer.extra.values()]:
        kernel = ops.convert_to_numpy(convolution.kernel)
        fan_in, fan_out = math.prod(kernel.shape[:3]), math.prod(kernel.shape[:2]) * kernel.shape[3]
        # Glorot & Bengio 2010: ±sqrt(6 / (in + out)); He et al. 2015: ±sqrt(6 / in).
        limit = math.sqrt(6 / (fan_in + fan_out if factor == "mean" else fan_in))
        assert 0.98 * limit < np.abs(kernel).max() <= limit
        np.testing.assert_allclose(kernel.std(), limit / math.sqrt(3), rtol=0.05)
        assert not ops.convert_to_numpy(convolution.bias).any()


# ------------------------------------------------------------------------------------------------------------- heads


def weights(layer, kind):
    return [ops.convert_to_numpy(v) for v in layer.trainable_variables if v.path.endswith(kind)]


@pytest.mark.parametrize("prior", [0.01, 0.2])
def test_initial_state(prior):
    head = config.Head(channels=64, layers=2, prior=prior, init_std=0.02)
    classes, boxes = classification_subnet(head, 9, 5), box_subnet(head, 9)
    for layer in (classes, boxes):
        layer.build([(None, None, None, 64)])
        kernels = weights(layer, "kernel")
        assert [kernel.shape[-1] for kernel in kernels] == [64, 64, 45 if layer is classes else 36]
        for kernel in kernels:
            np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.05)
        assert all(not bias.any() for bias in weights(layer, "/bias"))
    np.testing.assert_allclose(classes.bias, -math.log((1 - prior) / prior), rtol=1e-6)
    assert classes.bias.shape == (45,)
    assert boxes.bias.shape == (36,) and not ops.convert_to_numpy(boxes.bias).any()


def test_outputs_run_by_level_row_column_anchor_and_class():
    """Without hidden layers and with a kernel that passes channel 0 on, an output is its cell's value plus its bias."""
    layer = classification_subnet(config.Head(channels=4, layers=0), 3, 2)
    layer.build([(None, None, None, 4)])
    kernel = np.zeros((3, 3, 4, 6), np.float32)
    kernel[1, 1, 0] = 1
    layer.prediction.kernel.assign(kernel)
    layer.bias.assign(np.arange(6) / 10)
    maps = [np.zeros((2, 2, 3, 4), np.float32), np.zeros((2, 1, 2, 4), np.float32)]
    maps[0][1, :, :, 0] = [[10, 20, 30], [40, 50, 60]]
    maps[1][1, :, :, 0] = [[70, 80]]
    found = ops.convert_to_numpy(layer(maps))
    assert found.shape == (2, 24, 2) and found.dtype == np.float32
    anchor_and_class = np.arange(6, dtype=np.float32).reshape(3, 2) / 10
    np.testing.assert_allclose(found[0].reshape(8, 3, 2), np.tile(anchor_and_class, (8, 1, 1)))
    cells = np.arange(10, 90, 10)[:, None, None]
    np.testing.assert_allclose(found[1].reshape(8, 3, 2), cells + anchor_and_class, rtol=1e-6)


def test_levels_share_the_weights():
    layer = box_subnet(config.Head(channels=8, layers=1), 2)
    layer.build([(None, None, None, 8)])
    x = np.random.default_rng(0).normal(size=(1, 3, 3, 8)).astype(np.float32)
    found = ops.convert_to_numpy(layer([x, x]))
    np.testing.assert_array_equal(found[:, :18], found[:, 18:])
    assert np.abs(found).max() > 0
    assert len(layer.trainable_variables) == 4  # kernel and bias, kernel, prediction bias


def test_group_norm():
    layer = box_subnet(config.Head(channels=64, layers=2, norm="group"), 1)
    layer.build([(None, None, None, 64)])
    x = np.random.default_rng(0).normal(size=(1, 4, 4, 64)).astype(np.float32)
    layer.convolutions[0].kernel.assign(layer.convolutions[0].kernel.value * 1000)
    normalised = ops.convert_to_numpy(layer.norms[0](layer.convolutions[0](x))).reshape(16, 32, 2)
    np.testing.assert_allclose(normalised.mean(axis=(0, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(normalised.std(axis=(0, 2)), 1, rtol=1e-3)
    assert len(layer.norms) == 2 and np.isfinite(layer([x])).all()


def test_convolutions_without_bias():
    layer = box_subnet(config.Head(channels=32, layers=2, norm="group", conv_bias=False), 1)
    layer.build([(None, None, None, 32)])
    names = [v.path.split("/", 1)[1] for v in layer.trainable_variables]
    assert not [name for name in names if name.endswith("/bias")]
    assert sorted(names) == sorted(
        ["prediction_bias", "prediction/kernel"]
        + [
            f"{part}_{i}/{name}"
            for i in (0, 1)
            for part, name in (("conv", "kernel"), ("norm", "gamma"), ("norm", "beta"))
        ]
    )


def test_bfloat16_keeps_the_bias_exact():
    head = config.Head(channels=32, layers=1)
    layer = classification_subnet(head, 3, 2, dtype="mixed_bfloat16")
    layer.build([(None, None, None, 32)])
    for convolution in [*layer.convolutions, layer.prediction]:
        convolution.kernel.assign(np.zeros(convolution.kernel.shape))
    found = layer([ops.ones((1, 2, 2, 32), dtype="bfloat16")])
    assert "float32" in str(found.dtype)
    np.testing.assert_array_equal(found, np.float32(-math.log(99)))
