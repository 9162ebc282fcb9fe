"""torchvision, also where its compiled operators don't fit the installed torch.

Nothing of retina is imported here: torchvision's side of scripts/benchmark_gpu.py imports it, too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def load_torchvision(*, suppression: bool = False) -> None:
    """Import torchvision; if its compiled operators are missing, with declarations in their place, so that what needs
    none of them works.

    Args:
        suppression: put onnxruntime's non-maximum suppression in the place of torchvision's then, on a CPU.
    """
    import torch

    try:
        import torchvision.ops

        return
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    if suppression:
        library.impl("nms", _nms_of_onnxruntime(), "CPU")
    # The registration lives as long as the library object.
    setattr(torch.library, "_retina_benchmark", library)  # noqa: B010 - the module does not declare it
    import torchvision.extension

    torchvision.extension._has_ops = lambda: True


def _nms_of_onnxruntime() -> Callable[..., Any]:
    """Suppression that is compiled, greedy, and like torchvision's quick to skip what is suppressed already."""
    import numpy as np
    import onnxruntime
    import torch
    from onnx import parser

    text = """<ir_version: 8, opset_import: ["" : 18]>
    nms (float[1, n, 4] boxes, float[1, 1, n] scores, int64[1] most, float[1] overlap) => (int64[k, 3] rows) {
        rows = NonMaxSuppression(boxes, scores, most, overlap)
    }"""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # its threads would wait in a loop for the next call, in torch's way
    session = onnxruntime.InferenceSession(parser.parse_model(text).SerializeToString(), options)

    def nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
        inputs = {
            "boxes": boxes.numpy()[None],
            "scores": scores.numpy()[None, None],
            "most": np.array([len(boxes)]),
            "overlap": np.array([iou_threshold], np.float32),
        }
        return torch.from_numpy(session.run(None, inputs)[0][:, 2])

    return nms
