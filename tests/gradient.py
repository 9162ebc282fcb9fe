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


def second_derivative(function, x):
    """Gradient of the sum of the gradient of `function(x)`'s sum: of an elementwise function its second derivative."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                total = tf.reduce_sum(function(x))
            slope = inner.gradient(total, x)
        return outer.gradient(slope, x).numpy()
    if backend == "jax":
        import jax

        slope = jax.grad(lambda x: function(x).sum())
        return np.asarray(jax.jit(jax.grad(lambda x: slope(x).sum()))(jax.numpy.asarray(x)))
    import torch

    x = torch.tensor(x, requires_grad=True)
    (slope,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    return torch.autograd.grad(slope.sum(), x)[0].numpy()


def forward_derivative(function, x):
    """Derivative of `function` along ones, in forward mode: of an elementwise function its derivative."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
            value = function(x)
        return accumulator.jvp(value).numpy()
    if backend == "jax":
        import jax

        x = jax.numpy.asarray(x)
        return np.asarray(jax.jit(lambda x: jax.jvp(function, (x,), (jax.numpy.ones_like(x),))[1])(x))
    import torch

    x = torch.tensor(x)
    return torch.func.jvp(function, (x,), (torch.ones_like(x),))[1].numpy()
