"""Functions whose derivative is written out."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import keras
from keras import ops

Tensor = Any


def with_slope(value_and_slope: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], Tensor]:
    """Return the elementwise function whose value and derivative `value_and_slope` computes at once.

    Of all that it computes, the slope alone waits for the backward pass. Second and higher derivatives are those of the
    slope, by the backend's rules; they cost nothing where nobody asks for them. Forward mode works as well.
    """
    backend = keras.backend.backend()
    if backend == "torch":
        return lambda x: _torch_function().apply(value_and_slope, x)[0]
    if backend == "jax":
        return _of_jax(value_and_slope)

    @ops.custom_gradient
    def function(x: Tensor) -> tuple[Tensor, Any]:
        value, slope = value_and_slope(x)
        return value, lambda upstream: upstream * slope

    return function


def with_tangent(
    function: Callable[..., Tensor], tangent: Callable[[Tensor, tuple, tuple], Tensor]
) -> Callable[..., Tensor]:
    """Return, on JAX, a function of tensors whose derivative is `tangent`, in forward and in reverse mode.

    Args:
        function: of one tensor or several.
        tangent: of the function's result, its arguments and their tangents: the tangent of the result, linear in those
            of the arguments. What JAX makes of it, transposed, is the gradient.
    """
    import jax

    differentiated = jax.custom_jvp(function)

    @differentiated.defjvp
    def _(arguments: tuple, tangents: tuple) -> tuple[Tensor, Tensor]:
        result = differentiated(*arguments)
        return result, tangent(result, arguments, tangents)

    return differentiated


def _of_jax(value_and_slope: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], Tensor]:
    import jax

    function = jax.custom_jvp(lambda x: value_and_slope(x)[0])

    @function.defjvp
    def _(primals: tuple[Tensor], tangents: tuple[Tensor]) -> tuple[Tensor, Tensor]:
        value, slope = value_and_slope(*primals)
        return value, slope * tangents[0]

    return function


@lru_cache(maxsize=1)
def _torch_function() -> Any:
    """`ops.custom_gradient` would do, but that its backward pass can't be differentiated."""
    import torch

    class WithSlope(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(value_and_slope: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            return value_and_slope(x)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, Tensor], output: tuple[Tensor, Tensor]) -> None:
            ctx.value_and_slope, x = inputs
            ctx.mark_non_differentiable(output[1])
            ctx.save_for_backward(x, output[1])
            ctx.save_for_forward(x, output[1])

        @staticmethod
        def slope(ctx: Any) -> Tensor:
            x, slope = ctx.saved_tensors
            return ctx.value_and_slope(x)[1] if torch.is_grad_enabled() else slope

        @staticmethod
        def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[None, Tensor]:
            return None, upstream * WithSlope.slope(ctx)

        @staticmethod
        def jvp(ctx: Any, _: None, tangent: Tensor) -> tuple[Tensor, None]:
            return tangent * WithSlope.slope(ctx), None

    return WithSlope
