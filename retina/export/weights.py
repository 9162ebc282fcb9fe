"""A run's weights as another ecosystem's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retina import config as configuration
from retina.errors import RetinaError
from retina.runs.checkpoint import read
from retina.runs.directory import RunDirectory
from retina.runs.ema import averaged_weights
from retina.runs.importing import LEFTOVERS, REPORT
from retina.weights import export_torchvision
from retina.weights.export_torchvision import ExportReport
from retina.weights.tensor_file import sha256_of_file
from retina.weights.tensor_writing import check_writable, write_tensors

_HEAD = "head.classification_head.cls_logits.bias"


def export_weights(
    kind: Literal["torchvision"], run: str | Path, file: str | Path, *, checkpoint: str = "best"
) -> ExportReport:
    """Write a run's weights as a state dict that a torchvision RetinaNet loads strictly.

    What `import_run` brought in from torchvision goes back bit for bit, unused rows of the head and the batch
    normalisations' counters included. The averaged weights are written where the run keeps them (`run.ema`).

    Args:
        kind: `torchvision`.
        run: a run directory.
        file: a new .safetensors, .pth or .pt (these two need PyTorch).
        checkpoint: `best`, `latest` or `step_N`.

    Returns:
        `labels`: the class of each of torchvision's labels; `code`: Python that builds the model and loads the file.

    Raises:
        RetinaError: torchvision's RetinaNet can't compute what this run computes, the run or the checkpoint can't be
            read, or the file can't be written.

    Example:

    >>> report = retina.export_weights(
    ...     "torchvision", "runs/resnet18", "back.safetensors"
    ... )
    >>> report.labels
    (None, 'cat', 'dog')
    """
    assert kind == "torchvision", kind
    file, run = Path(file), Path(run)
    check_writable(file)
    saved = read(RunDirectory.open(run).checkpoint_path(checkpoint))
    config = configuration.parse(saved.config, str(run))
    rows, leftovers = _of_the_import(run)
    prefix = "weights/"
    arrays = averaged_weights(saved.arrays)
    state = export_torchvision.state_dict(
        {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)},
        config,
        saved.class_names,
        saved.category_ids,
        leftovers=leftovers,
        imported_rows=rows,
        step=saved.step,
        where=str(run),
    )
    write_tensors(file, state.tensors)
    code = export_torchvision.building_code(config, state.kind, str(file))
    return state.report(file.name, sha256_of_file(file), code)


def _of_the_import(run: Path) -> tuple[int | None, dict[str, np.ndarray]]:
    """Rows of the head that a torchvision file brought into this run, and what had no place in it; None and nothing
    where the run is no such import."""
    path = run / REPORT
    try:
        if not path.is_file():
            return None, {}
        report: dict[str, Any] = json.loads(path.read_text())
        outputs = [tensor["source_shape"][0] for tensor in report["carried"] if tensor["source"] == _HEAD]
        boxes = [
            tensor["source_shape"][0] for tensor in report["carried"] if tensor["source"].endswith("bbox_reg.bias")
        ]
        if not outputs:
            return None, {}
        with np.load(run / LEFTOVERS, allow_pickle=False) as stored:
            return outputs[0] // (boxes[0] // 4), {name: stored[name] for name in stored.files}
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RetinaError(
            f"{run}: its {REPORT} or {LEFTOVERS} is damaged or missing ({reason}); import the weights again"
        ) from None
