"""TensorBoard event files: scalars, pictures, precision–recall curves and the run's settings.

The files are written here, record by record, without TensorFlow: an error of the disk is then an `OSError`, and a
resumed run can say where it goes on (TensorFlow's writer can't), so that repeated steps show once.
"""

from __future__ import annotations

import io
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from retina.config import Config
from retina.config.differences import flat
from retina.evaluation.curves import threshold_index
from retina.evaluation.matching import Matches

# A point at each hundredth of the score.
THRESHOLDS = 101
# Curves of more classes would be larger than all else; the classes with most boxes are shown.
_MOST_CLASSES = 100
_LONGEST_SIDE = 720
_QUALITY = 90


class TensorBoard:
    """Writer of an event file under `folder`, a context manager; with None it writes nothing.

    Args:
        first_step: the step after which the run goes on; TensorBoard forgets later steps of earlier files.
    """

    def __init__(self, folder: Path | None, first_step: int = 0):
        self.folder, self.first_step = folder, first_step
        self._file: IO[bytes] | None = None

    def __enter__(self) -> TensorBoard:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads a folder's files in the order of their names.
            number = sum(1 for _ in self.folder.glob("events.out.tfevents.*"))
            name = f"events.out.tfevents.{int(time.time()):010d}.{number:04d}.{platform.node()}.{os.getpid()}"
            self._file = open(self.folder / name, "xb")
            self._record(file_version="brain.Event:2")
            # The first in a folder is the start, each later one a restart: TensorBoard drops the steps after it.
            self._record(step=self.first_step + 1, session_log={"status": "START"})
            self._file.flush()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            if kind is None:
                self._finished()
            self._file.close()
            self._file = None

    def scalars(self, group: str, line: dict[str, Any]) -> None:
        """Write the figures of a line of `metrics.jsonl`, each as `group/name`; -1, undefined, is left out."""
        figures = {name: value for name, value in line.items() if name != "step" and value != -1}
        for name, value in figures.items():
            self._tensor(f"{group}/{name}", line["step"], np.float32(value), "scalars")
        self._flush()

    def settings(self, config: Config) -> None:
        """Write all settings, for the tab that compares runs (HPARAMS); a resumed run has written them already."""
        if self._file is not None and not self.first_step:
            from tensorboard.plugins.hparams.summary_v2 import hparams_pb

            plain = {key: _plain(value) for key, value in flat(config).items()}
            self._record(step=0, summary=hparams_pb(plain))
            self._flush()

    def picture(self, tag: str, step: int, picture: np.ndarray, description: str = "") -> None:
        """Write an image [H, W, 3] uint8 as a JPEG whose longer side has at most 720 pixels."""
        if self._file is None:
            return
        from PIL import Image

        image = Image.fromarray(picture)
        image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        encoded = io.BytesIO()
        image.save(encoded, format="JPEG", quality=_QUALITY)
        values = [str(image.width).encode(), str(image.height).encode(), encoded.getvalue()]
        self._tensor(tag, step, np.array(values, object), "images", description)
        self._flush()

    def precision_recall(self, step: int, matches: Matches, class_names: Sequence[str]) -> None:
        """Write precision and recall at each hundredth of the score, of all classes together and of each with boxes."""
        if self._file is None:
            return
        positives = matches.positives
        if positives.any():
            self._tensor("precision_recall/all classes", step, threshold_counts(matches), "pr_curves")
        for label in sorted(np.argsort(-positives, kind="stable")[:_MOST_CLASSES].tolist()):
            if positives[label]:
                curve = threshold_counts(matches, label)
                self._tensor(f"precision_recall/{class_names[label]}", step, curve, "pr_curves")
        self._flush()

    def _finished(self) -> None:
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2

        end = plugin_data_pb2.SessionEndInfo(status="STATUS_SUCCESS", end_time_secs=time.time())
        content = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(session_end_info=end))
        value = {"tag": metadata.SESSION_END_INFO_TAG, "metadata": content, "tensor": metadata.NULL_TENSOR}
        self._record(step=0, summary={"value": [value]})

    def _tensor(self, tag: str, step: int, values: Any, plugin: str, description: str = "") -> None:
        if self._file is None:
            return
        from tensorboard.util.tensor_util import make_tensor_proto

        value = {"tag": tag, "metadata": _metadata(plugin, description), "tensor": make_tensor_proto(values)}
        self._record(step=step, summary={"value": [value]})

    def _record(self, **fields: Any) -> None:
        if self._file is not None:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.summary.writer.record_writer import RecordWriter

            RecordWriter(self._file).write(Event(wall_time=time.time(), **fields).SerializeToString())

    def _flush(self) -> None:
        """Flush the file, so that a reader sees the step, and a kill loses nothing of it."""
        if self._file is not None:
            self._file.flush()


def threshold_counts(matches: Matches, label: int | None = None, iou: float = 0.5) -> np.ndarray:
    """Return [6, T] float32 for TensorBoard's plugin of such curves, at the `THRESHOLDS` scores 0, 0.01, … 1.

    Rows: true and false positives, true negatives (0: detection has none), false negatives, precision (0 without any
    detection) and recall; of the class `label`, or of all together (None). Detections with at least the score count.
    """
    t = threshold_index(matches, iou)
    places = slice(None) if label is None else slice(matches.offsets[label], matches.offsets[label + 1])
    right, wrong = (np.sort(matches.scores[places][flags[t, places]]) for flags in (matches.right, matches.wrong))
    thresholds = np.linspace(0.0, 1.0, THRESHOLDS)
    hits = len(right) - np.searchsorted(right, thresholds)
    misses = len(wrong) - np.searchsorted(wrong, thresholds)
    positives = int(matches.positives.sum() if label is None else matches.positives[label])
    precision = hits / np.maximum(hits + misses, 1)
    rows = [hits, misses, np.zeros_like(hits), positives - hits, precision, hits / max(positives, 1)]
    return np.stack(rows).astype(np.float32)


def _metadata(plugin: str, description: str) -> Any:
    if plugin == "scalars":
        from tensorboard.plugins.scalar import metadata

        return metadata.create_summary_metadata(display_name=None, description=description)
    if plugin == "images":
        from tensorboard.plugins.image import metadata

        return metadata.create_summary_metadata(display_name=None, description=description, converted_to_tensor=True)
    from tensorboard.plugins.pr_curve import metadata

    return metadata.create_summary_metadata(display_name=None, description=description, num_thresholds=THRESHOLDS)


def _plain(value: Any) -> bool | int | float | str:
    """Return a value that the tab can show: a number, a truth value or text."""
    if isinstance(value, bool | int | float | str):
        return value
    return "none" if value is None else json.dumps(value)
