"""One part in its own process: its description as JSON is the argument, records go to standard output as they come."""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measure import out_of_memory, peak, peak_bytes, rates, seconds, torch_flop
from plan import Part

Answer = Callable[[dict[str, Any]], None]


def main() -> int:
    part = Part.from_dict(json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print where they like; the answers' pipe is ours alone
    sys.path.append(str(Path(__file__).resolve().parents[2]))

    def answer(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    missing = lacking(part)
    if missing:
        answer({"skipped": f"needs {missing}, which is not installed here"})
    elif part.kind == "peak":
        answer(peak(part.who, part.tiny, part.repeats, part.block_seconds))
    elif part.kind == "check":
        from gradient_check import check

        answer(check(part))
    elif part.kind in ("fed", "accuracy"):
        from real_data import run

        run(part, answer)
    elif part.kind == "profile":
        if part.backend == "jax":
            _sweep(part, answer, _profile)
        else:
            answer({"skipped": "the profile is written for JAX"})
    elif part.who == "torchvision":
        _sweep(part, answer, _theirs)
    else:
        _sweep(part, answer, *_ours(part))
    return 0


def lacking(part: Part) -> str | None:
    """The first module that a part can't do without and that is absent."""
    wanted = [part.who if part.kind == "peak" else part.backend]
    wanted += ["torchvision"] if part.who == "torchvision" else ["keras", "pydantic"] if part.who == "retina" else []
    if part.backbone.startswith("keras_cv/"):
        wanted += ["keras_cv", "tensorflow"]
    if part.data is not None:
        wanted += ["cv2", "simplejpeg", "hotcoco", "tensorboard"]
    return next((name for name in wanted if importlib.util.find_spec(name) is None), None)


def _sweep(
    part: Part,
    answer: Answer,
    measure: Callable[[Part, int], dict[str, Any]],
    trace: Callable[[], list[dict[str, Any]]] | None = None,
) -> None:
    """Batch after batch until one does not fit; then one between the last two. Each is timed, then traced."""
    largest, tried = 0, list(part.batches)
    while tried:
        size = tried.pop(0)
        try:
            start = time.perf_counter()
            row = measure(part, size)
            answer(
                {
                    "batch": size,
                    "peak_bytes": peak_bytes(part.backend),
                    "wall_seconds": time.perf_counter() - start,
                    **row,
                }
            )
            largest = size
            if part.traced and trace is not None:
                _answer_trace(answer, size, trace)
        except Exception as error:
            if not out_of_memory(error):
                raise
            answer({"batch": size, "out_of_memory": True})
            middle = (largest + size) // 2 // 8 * 8
            tried = [middle] if largest < middle < size and middle not in part.batches and len(part.batches) > 1 else []
        _forget(part)
        if part.kind == "profile":
            break


def _answer_trace(answer: Answer, size: int, trace: Callable[[], list[dict[str, Any]]]) -> None:
    """Answer with the busiest kernels; where there is no trace of them, the next batch is timed all the same."""
    try:
        answer({"batch": size, "operations": trace()})
    except Exception as error:
        if out_of_memory(error):
            raise
        answer({"batch": size, "error": f"no trace: {type(error).__name__}: {str(error)[:200]}"})


def _forget(part: Part) -> None:
    """Free the memory of the last batch."""
    if part.backend == "jax":
        import jax

        jax.clear_caches()
    gc.collect()
    if part.backend == "torch":
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def _ours(
    part: Part,
) -> tuple[Callable[[Part, int], dict[str, Any]], Callable[[], list[dict[str, Any]]] | None]:
    """The measure of a batch, with one detector for all of them, and the trace of the batch measured last (JAX)."""
    from inputs import batch
    from retina_work import Inference, Training, operations

    work: Any = (Inference if part.kind == "infer" else Training)(part)
    fed: dict[str, Any] = {}

    def measure(part: Part, size: int) -> dict[str, Any]:
        fed.update(work.feed(batch(size, part.canvas)))
        start = time.perf_counter()
        work.run(fed)
        loss = work.wait()
        first = time.perf_counter() - start
        if loss is not None and not math.isfinite(loss):
            raise ValueError(f"the loss is {loss}")
        times = seconds(lambda: work.run(fed), work.wait, part.repeats, part.block_seconds)
        tflop = work.flop(fed) * 1e-12
        return {**rates(times, size, tflop), "first_step_seconds": first, "loss": loss}

    return measure, (lambda: operations(work, fed)) if part.backend == "jax" else None


def _theirs(part: Part, size: int) -> dict[str, Any]:
    from inputs import batch
    from torchvision_work import wait, work

    made = batch(size, part.canvas)
    call, loss = work(part, made)
    start = time.perf_counter()
    call()
    wait()
    first = time.perf_counter() - start
    call()  # cuDNN's choice is made, the allocator's blocks are there
    wait()
    value = loss()
    if value is not None and not math.isfinite(value):
        raise ValueError(f"the loss is {value}")
    times = seconds(call, wait, part.repeats, part.block_seconds)
    tflop = None if part.compiled else torch_flop(call) * 1e-12
    return {**rates(times, size, tflop), "first_step_seconds": first, "loss": value}


def _profile(part: Part, size: int) -> dict[str, Any]:
    from inputs import batch
    from retina_work import profile

    return profile(part, size, batch(size, part.canvas))


if __name__ == "__main__":
    sys.exit(main())
