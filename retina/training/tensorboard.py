"""TensorBoard event files, through TensorFlow's own writer."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np


class TensorBoard:
    """Context manager that writes scalars and pictures under `folder`; None writes nothing."""

    def __init__(self, folder: Path | None):
        import tensorflow as tf

        self.writer = tf.summary.create_noop_writer() if folder is None else tf.summary.create_file_writer(str(folder))

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.writer.close()

    def scalars(self, group: str, line: dict[str, Any]) -> None:
        """The figures of a line of `metrics.jsonl`, each as `group/name`; -1, which means undefined, is left out."""
        import tensorflow as tf

        with self.writer.as_default(step=line["step"]):
            for name, value in line.items():
                if name != "step" and value != -1:
                    tf.summary.scalar(f"{group}/{name}", value)
        self.writer.flush()

    def picture(self, name: str, step: int, file: Path) -> None:
        """A PNG file; nothing where it does not exist."""
        import tensorflow as tf
        from PIL import Image

        if file.is_file():
            with self.writer.as_default(step=step), Image.open(file) as picture:
                tf.summary.image(name, np.asarray(picture.convert("RGB"))[None])
