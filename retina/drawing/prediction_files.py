"""The folder of a prediction: a line and a picture an image, as they come, and at the end `detections.json`.

| file | content |
|---|---|
| `settings.json` | what decides on the detections, the digest of the weights among it; at the end also `left_out`, the images that can't be read and why |
| `detections.jsonl` | a line an image: `image`; `file`, its bytes and time of change (ns); `picture`; `size`, height and width; `detections`, or `error` |
| `detections.json` | at the end: a list of `image` and `detections`, in the order given |
| `<stem>.png` | the image with boxes (numbered where stems repeat) |

A prediction that was cut off goes on where it stopped, if settings, images and pictures are those of the lines that are
there. All else that an earlier prediction wrote is removed. What anything else wrote is neither removed nor replaced:
`settings.json` says whose a folder is. While a prediction runs it locks the folder.
"""  # noqa: E501

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from retina.drawing.pictures import draw
from retina.errors import RetinaError
from retina.files import locked, partial, write_text, written

LINES = "detections.jsonl"
_SETTINGS, _TREE = "settings.json", "detections.json"

Entry = dict[str, Any]
"""A line of `detections.jsonl`."""


class ImageDetections(Protocol):
    """The detections of one image, such as `retina.inference.Detections`."""

    @property
    def boxes(self) -> np.ndarray: ...
    @property
    def scores(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray: ...
    def to_list(self) -> list[dict[str, Any]]: ...


class PredictionFolder:
    """A folder of predictions that is being written; `done` images of `files` are in it already.

    Args:
        folder: made if it is not there.
        files: the images, in the order of the predictions.
        settings: plain values for `settings.json`, `detector` and `weights` among them; other ones than those in the
            folder begin anew.
        class_names: K names, for the pictures.
        pictures: whether pictures are drawn.
        datasets: folders with datasets of an earlier call, which were begun once its prediction was finished.

    Raises:
        RetinaError: the folder can't be written; another process predicts into it; or what no prediction wrote would
            be overwritten, such as one of `files`; or `datasets` are those of another prediction.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[Path],
        settings: Mapping[str, Any],
        class_names: Sequence[str],
        *,
        pictures: bool = True,
        datasets: Sequence[Path] = (),
    ):
        self.path, self._files, self._class_names = folder, files, class_names
        self._settings = json.loads(json.dumps({**settings, "pictures": pictures}))
        self._pictures = _distinct_names(files) if pictures else [None] * len(files)
        inputs = {file.resolve() for file in files}
        for picture in filter(None, self._pictures):
            if (folder / picture).resolve() in inputs:
                raise RetinaError(
                    f"{folder / picture}: the picture would overwrite this input image; choose another --out"
                )
        with self._writing(), ExitStack() as lock:
            folder.mkdir(parents=True, exist_ok=True)
            busy = "another prediction into this folder is running; wait for it, or choose another --out"
            lock.enter_context(locked(folder, busy))
            known = self._known_settings()
            self._refuse_foreign(known)
            self.done, end = self._usable() if known == self._settings else (0, 0)
            if datasets and self.done < len(files):
                raise RetinaError(
                    f"{datasets[0]}: expected the dataset of this prediction, it is that of other images or settings; "
                    "move it away, or choose another --out"
                )
            self._clear(end, inputs)
            write_text(folder / _SETTINGS, json.dumps(self._settings, indent=2) + "\n")
            self._lock = lock.pop_all()  # until the end of `run`

    def entries(self) -> Iterator[Entry]:
        """Yield the lines that are there."""
        if (self.path / LINES).is_file():
            with open(self.path / LINES, "rb") as file:
                yield from map(json.loads, file)

    def run(
        self,
        detections_in: Callable[[Path], tuple[np.ndarray, ImageDetections]],
        finish: Callable[[], None] = lambda: None,
    ) -> Iterator[Entry]:
        """Yield the lines that are there, then each further image's once it is written; at the end finish the folder.

        Args:
            detections_in: gives the pixels [H, W, 3] uint8 RGB of a file, and the detections in it. A `RetinaError`
                leaves it out.
            finish: called at the end, while the folder is still locked.

        Raises:
            RetinaError: the folder can't be written.
        """
        with self._lock:
            yield from self.entries()
            for file in self._files[self.done :]:
                try:
                    pixels, detections = detections_in(file)
                except RetinaError as error:
                    yield self._append(error=str(error))
                else:
                    yield self._write(pixels, detections)
            self._finish()
            finish()

    def _write(self, pixels: np.ndarray, detections: ImageDetections) -> Entry:
        picture = self._pictures[self.done]
        # The line first: a picture without one would be left behind, one that is missing is drawn when it goes on. An
        # earlier picture of this name would pass for it.
        if picture is not None:
            with self._writing():
                (self.path / picture).unlink(missing_ok=True)
        entry = self._append(picture=picture, size=list(pixels.shape[:2]), detections=detections.to_list())
        if picture is not None:
            self._draw(self.path / picture, pixels, detections)
        return entry

    def _finish(self) -> None:
        left_out = {entry["image"]: entry["error"] for entry in self.entries() if "error" in entry}
        with self._writing(), written(self.path / _TREE) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write("[")
            readable = (entry for entry in self.entries() if "error" not in entry)
            for number, entry in enumerate(readable):
                tree = {"image": entry["image"], "detections": entry["detections"]}
                file.write(("," if number else "") + "\n" + json.dumps(tree))
            file.write("\n]\n")
        with self._writing():
            write_text(self.path / _SETTINGS, json.dumps({**self._settings, "left_out": left_out}, indent=2) + "\n")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise RetinaError(f"{self.path}: cannot write the predictions: {reason}; choose another --out") from None

    def _append(self, **fields: Any) -> Entry:
        file = self._files[self.done]
        entry = {"image": str(file), "file": _state(file), **fields}
        with self._writing(), open(self.path / LINES, "ab") as lines:
            lines.write(json.dumps(entry).encode() + b"\n")
        self.done += 1
        return entry

    def _draw(self, picture: Path, pixels: np.ndarray, detections: ImageDetections) -> None:
        from PIL import Image

        drawn = draw(pixels, detections.boxes, detections.labels, self._class_names, scores=detections.scores)
        with self._writing(), written(picture) as temporary:
            Image.fromarray(drawn).save(temporary)

    def _known_settings(self) -> dict[str, Any] | None:
        """The settings of the prediction that is there, or None."""
        try:
            tree = json.loads((self.path / _SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        # Without lines, an earlier version's, which had no digest of the weights.
        needed = {"detector", "weights"} if os.path.lexists(self.path / LINES) else {"detector"}
        if not isinstance(tree, dict) or not needed <= tree.keys():
            return None
        return {key: value for key, value in tree.items() if key != "left_out"}

    def _refuse_foreign(self, known: Mapping[str, Any] | None) -> None:
        """Check that no file has a name that is to be written but those of the prediction with the settings `known`."""
        names = [] if known is not None else [_SETTINGS, LINES, _TREE]
        if known is None or not known.get("pictures", True):
            names += filter(None, self._pictures)
        for name in names:
            if os.path.lexists(self.path / name):
                raise RetinaError(f"{self.path / name}: no prediction of retina wrote this file; choose another --out")

    def _usable(self) -> tuple[int, int]:
        """The number of lines to go on after, and of their bytes."""
        done = end = 0
        if not (self.path / LINES).is_file():
            return 0, 0
        with open(self.path / LINES, "rb") as lines:
            for line, file, picture in zip(lines, self._files, self._pictures, strict=False):
                entry = _parsed(line)
                same = entry and entry.get("image") == str(file) and entry.get("file") == _state(file)
                if not same or ("error" not in entry and picture is not None and not (self.path / picture).is_file()):
                    break
                done, end = done + 1, end + len(line)
        return done, end

    def _clear(self, end: int, inputs: set[Path]) -> None:
        """Remove what an earlier prediction wrote, but for the first `end` bytes of its lines and their pictures."""
        (self.path / _TREE).unlink(missing_ok=True)
        if not (self.path / LINES).is_file():
            return
        with open(self.path / LINES, "rb") as lines:
            lines.seek(end)
            for name in filter(None, (_parsed(line).get("picture") for line in lines)):
                picture = self.path / Path(name).name
                if picture.resolve() not in inputs:
                    picture.unlink(missing_ok=True)
                    partial(picture).unlink(missing_ok=True)
        os.truncate(self.path / LINES, end)


def _parsed(line: bytes) -> Entry:
    """A line of `detections.jsonl`; empty if it was written by halves, or is none."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        entry = None
    return entry if isinstance(entry, dict) else {}


def _state(file: Path) -> list[int] | None:
    """The bytes of a file and the time of its last change, by which a changed one is recognised."""
    try:
        status = file.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _distinct_names(files: Sequence[Path]) -> list[str | None]:
    taken: set[str] = set()
    numbers: dict[str, Iterator[int]] = {}
    names: list[str | None] = []
    for file in files:
        name = file.stem
        while name.casefold() in taken:
            name = f"{file.stem}_{next(numbers.setdefault(file.stem, count(2)))}"
        taken.add(name.casefold())
        names.append(f"{name}.png")
    return names
