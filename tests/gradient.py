"""Gradients on whichever Keras backend runs."""

import keras
import numpy as np


def value_and_gradient(function, x):
    """Value of `function(x)` and gradient of its sum with respect to the float array `x`, both as NumPy arrays."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
            total = tf.reduce_sum(value)
        return value.numpy(), tape.gradient(total, x).numpy()
    if backend == "jax":
        import jax

        def both(x):
            value, pullback = jax.vjp(function, x)
            return value, pullback(jax.numpy.ones_like(value))[0]

        # One compilation, not one of every operation.
        value, gradient = jax.jit(both)(jax.numpy.asarray(x))
        return np.asarray(value), np.asarray(gradient)
    import torch

    x = torch.tensor(x, requires_grad=True)
    value = function(x)
    value.sum().backward()
    return value.detach().numpy(), x.grad.numpy()
