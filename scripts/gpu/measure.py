"""Clocks, floating-point operations and memory, for each framework.

Operations are 2 per multiply-add of convolutions and matrix products, and nothing else. They are those of the work that
is really done: a gradient that a frozen layer saves is not counted.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any


def seconds(call: Callable[[], Any], wait: Callable[[], Any], repeats: int, block: float) -> list[float]:
    """Seconds of one call, in each of `repeats` blocks of about `block` seconds.

    Calls follow each other without waiting, as in training; only a block's end waits for the device. `call` was made
    before: what it compiles is not timed.
    """
    start = time.perf_counter()
    call()
    wait()
    count = min(200, max(2, math.ceil(block / max(time.perf_counter() - start, 1e-6))))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(count):
            call()
        wait()
        times.append((time.perf_counter() - start) / count)
    return times


def rates(times: list[float], batch: int, tflop: float | None) -> dict[str, Any]:
    middle = statistics.median(times)
    return {
        "seconds": times,
        "images_per_second": batch / middle,
        "tflop": tflop,
        "tflops": None if tflop is None else tflop / middle,
    }


def out_of_memory(error: BaseException) -> bool:
    text = f"{type(error).__name__} {error}".lower()
    return any(
        word in text
        for word in ("resource_exhausted", "out of memory", "outofmemory", "oom when", "failed to allocate")
    )


# ------------------------------------------------------------------------------------------------------ operations


def jax_flop(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations of a function (jitted or not) for these arguments."""
    import jax

    return sum(map(_equation_flop, _equations(jax.make_jaxpr(function)(*arguments).jaxpr)))


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        inner = (getattr(value, "jaxpr", value) for value in equation.params.values())
        for value in inner:
            if hasattr(value, "eqns"):
                yield from _equations(value)


def _equation_flop(equation: Any) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name != "conv_general_dilated":
        return 0
    left, right = (tuple(v.aval.shape) for v in equation.invars)
    lhs, rhs, _ = (tuple(axes) for axes in equation.params["dimension_numbers"])
    if any(d > 1 for d in equation.params["lhs_dilation"]):
        # The gradient of a strided convolution: each input meets the whole kernel once, the zeros between them don't
        # count. (The outermost kernel places reach into the padding; they count, as they do in the forward pass.)
        groups = equation.params["feature_group_count"]
        return 2 * left[lhs[0]] * math.prod(left[axis] for axis in lhs[2:]) * math.prod(right) // groups
    out = math.prod(equation.outvars[0].aval.shape)
    return 2 * out * math.prod(right[axis] for axis in rhs[2:]) * right[rhs[1]]


def tensorflow_flop(graph: Any) -> int:
    """Operations of a graph whose shapes are static."""
    total = 0
    for node in graph.get_operations():
        if node.type == "Conv2D":
            total += 2 * math.prod(node.inputs[1].shape) * math.prod(node.outputs[0].shape[:3])
        elif node.type == "Conv2DBackpropInput":
            total += 2 * math.prod(node.inputs[1].shape) * math.prod(node.inputs[2].shape[:3])
        elif node.type == "Conv2DBackpropFilter":
            total += 2 * math.prod(node.outputs[0].shape) * math.prod(node.inputs[2].shape[:3])
    return total


def torch_flop(call: Callable[[], Any]) -> int:
    """Operations of one call, by PyTorch's own counter; it does not see into compiled functions."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter:
        call()
    return int(counter.get_total_flops())


# ---------------------------------------------------------------------------------------------------------- memory


def peak_bytes(backend: str) -> int | None:
    """The most memory that the device has held; of JAX since the process began. None on a CPU."""
    if backend == "jax":
        import jax

        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if backend == "torch":
        import torch

        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"] if tf.config.list_physical_devices("GPU") else None


# ----------------------------------------------------------------------------------------------------------- peaks


def peak(framework: str, tiny: bool, repeats: int, block: float) -> dict[str, Any]:
    """The device's rates: of a bfloat16 product of two random square matrices and of a 3x3 convolution over 256
    channels (TFLOP/s), and of a copy (GB/s, bytes read and written together)."""
    side, cells, copied = (256, 16, 2**20) if tiny else (8192, 100, 2**30)
    make = {"jax": _jax_peaks, "torch": _torch_peaks, "tensorflow": _tensorflow_peaks}[framework]
    device, calls, wait = make(side, cells, copied)
    work = {
        "matrix_tflops": 2e-12 * side**3,
        "convolution_tflops": 2e-12 * 16 * cells**2 * 9 * 256**2,
        "copy_gb_per_second": 2e-9 * 4 * copied,
    }
    peaks: dict[str, Any] = {"device": device}
    for name, amount in work.items():
        for _ in range(3):
            calls[name]()
        wait()
        peaks[name] = amount / statistics.median(seconds(calls[name], wait, repeats, block))
    return peaks


def _jax_peaks(side: int, cells: int, copied: int) -> tuple[str, dict[str, Callable[[], Any]], Callable[[], Any]]:
    import jax
    from jax import lax
    from jax import numpy as jnp

    keys = jax.random.split(jax.random.key(0), 5)
    a, b = (jax.random.normal(k, (side, side), jnp.bfloat16) for k in keys[:2])
    x = jax.random.normal(keys[2], (16, cells, cells, 256), jnp.bfloat16)
    kernel = jax.random.normal(keys[3], (3, 3, 256, 256), jnp.bfloat16)
    source = jax.random.normal(keys[4], (copied,), jnp.float32)
    product, copy = jax.jit(jnp.matmul), jax.jit(lambda v: v + 1.0)
    convolution = jax.jit(
        lambda v, k: lax.conv_general_dilated(v, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )
    last: list[Any] = [None]

    def keep(value: Any) -> None:
        last[0] = value

    calls = {
        "matrix_tflops": lambda: keep(product(a, b)),
        "convolution_tflops": lambda: keep(convolution(x, kernel)),
        "copy_gb_per_second": lambda: keep(copy(source)),
    }
    return jax.local_devices()[0].device_kind, calls, lambda: jax.block_until_ready(last[0])


def _torch_peaks(side: int, cells: int, copied: int) -> tuple[str, dict[str, Callable[[], Any]], Callable[[], Any]]:
    import torch

    gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    options: dict[str, Any] = {"device": "cuda" if gpu else "cpu", "dtype": torch.bfloat16}
    a, b = torch.randn(side, side, **options), torch.randn(side, side, **options)
    product = torch.empty_like(a)
    x = torch.randn(16, 256, cells, cells, **options).to(memory_format=torch.channels_last)
    kernel = torch.randn(256, 256, 3, 3, **options).to(memory_format=torch.channels_last)
    source = torch.randn(copied, device=options["device"])
    target = torch.empty_like(source)
    calls = {
        "matrix_tflops": lambda: torch.matmul(a, b, out=product),
        "convolution_tflops": lambda: torch.nn.functional.conv2d(x, kernel, padding=1),
        "copy_gb_per_second": lambda: target.copy_(source),
    }
    wait = torch.cuda.synchronize if gpu else (lambda: None)
    return torch.cuda.get_device_name() if gpu else "cpu", calls, wait


def _tensorflow_peaks(
    side: int, cells: int, copied: int
) -> tuple[str, dict[str, Callable[[], Any]], Callable[[], Any]]:
    import tensorflow as tf

    draw = tf.random.Generator.from_seed(0)
    a, b = (tf.cast(draw.normal((side, side)), tf.bfloat16) for _ in range(2))
    x = tf.cast(draw.normal((16, cells, cells, 256)), tf.bfloat16)
    kernel = tf.cast(draw.normal((3, 3, 256, 256)), tf.bfloat16)
    source = draw.normal((copied,))
    # Eager operators queue up on the device; a scalar of the last result waits for them.
    last: list[Any] = [None]

    def keep(value: Any) -> None:
        last[0] = value

    calls = {
        "matrix_tflops": lambda: keep(tf.linalg.matmul(a, b)),
        "convolution_tflops": lambda: keep(tf.nn.conv2d(x, kernel, 1, "SAME")),
        "copy_gb_per_second": lambda: keep(tf.identity(source) + 1.0),
    }
    gpus = tf.config.list_physical_devices("GPU")
    kind = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else "cpu"
    return kind, calls, lambda: float(tf.reshape(last[0], [-1])[0])
