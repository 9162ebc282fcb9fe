"""Group normalisation against float64, on maps as large as a detector's finest."""

import keras
import numpy as np
import pytest

from retina.models.group_norm import GroupNormalization


def reference(x, groups, epsilon, gamma, beta):
    """arXiv:1803.08494, equation 1."""
    y = x.astype(np.float64).reshape(*x.shape[:3], groups, -1)
    mean, variance = (f(y, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
    return ((y - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * gamma + beta


def random(shape, channels, seed=0):
    """Rectified noise about a mean, as a head's convolutions give, and a layer's two parameters."""
    draw = np.random.default_rng(seed)
    x = np.maximum(draw.normal(0.4, 0.7, (*shape, channels)), 0.0).astype(np.float32) + np.float32(0.3)
    return x, draw.uniform(0.5, 1.5, channels).astype(np.float32), draw.normal(size=channels).astype(np.float32)


def layer(x, groups, gamma, beta, epsilon=1e-5, **options):
    made = GroupNormalization(groups, epsilon=epsilon, **options)
    made.build(x.shape)
    made.gamma.assign(gamma)
    made.beta.assign(beta)
    return made


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 3, 5), (1, 100, 136)])
def test_values(shape):
    """With Keras' own layer the largest map is off by 1e-3 on TensorFlow."""
    x, gamma, beta = random(shape, 64)
    found = keras.ops.convert_to_numpy(layer(x, 8, gamma, beta)(x))
    np.testing.assert_allclose(found, reference(x, 8, 1e-5, gamma, beta), rtol=0, atol=5e-6)


def test_a_constant_map_is_its_shift():
    x, gamma, beta = random((1, 4, 4), 32)
    found = keras.ops.convert_to_numpy(layer(x, 32, gamma, beta, epsilon=1e-3)(np.full_like(x, 7.0)))
    np.testing.assert_allclose(found, np.broadcast_to(beta, x.shape), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "step"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_half_precision_is_computed_in_float32(kind, step):
    x, gamma, beta = random((1, 40, 40), 64)
    x = keras.ops.cast(x, kind)
    found = layer(x, 32, gamma, beta, dtype=f"mixed_{kind}")(x)
    assert keras.backend.standardize_dtype(found.dtype) == kind
    wide = keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))
    wanted = reference(wide, 32, 1e-5, gamma, beta)
    # Half a step of the result's precision beside the value.
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(keras.ops.cast(found, "float32")), wanted, rtol=step, atol=1e-5
    )


def test_maps_of_unknown_size_and_kerass_variables():
    image = keras.Input((None, None, 32))
    made = GroupNormalization(32, name="norm")
    model = keras.Model(image, made(image))
    x, gamma, beta = random((2, 5, 3), 32)
    made.gamma.assign(gamma)
    made.beta.assign(beta)
    found = keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(found, reference(x, 32, 1e-3, gamma, beta), rtol=0, atol=5e-6)
    assert [variable.path for variable in model.variables] == ["norm/gamma", "norm/beta"]
