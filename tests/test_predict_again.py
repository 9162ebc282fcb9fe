"""`retina.predict` into a folder that holds a prediction: what it goes on with, does again and refuses.

The detector is a stand-in, which detects the same in every image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import retina
from retina.data.convert import preannotations
from retina.errors import RetinaError
from retina.inference import Detections
from tests.test_inference import SETTINGS

FILES = 3


class Detector:
    """What `retina.load` gives; counts the images it has detected in."""

    notes = ()

    def __init__(self):
        self.config, self.class_names, self.count = SETTINGS, ("ring", "cross"), 0

    def digest(self) -> str:
        return "the same weights"

    def predict(self, image: np.ndarray, **options) -> list[Detections]:
        self.count += 1
        boxes = np.array([[1, 2, 20, 30], [5, 5, 9, 9]], np.float32)
        return [Detections(boxes, np.array([0.9, 0.5], np.float32), np.array([0, 1]), self.class_names)]


@pytest.fixture
def detector(monkeypatch) -> Detector:
    stand_in = Detector()
    monkeypatch.setattr("retina.export.loading.load", lambda *_: stand_in)
    return stand_in


@pytest.fixture
def photographs(tmp_path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(FILES):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(folder / f"{number}.png")
    return folder


def tree_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def precision(detector: Detector) -> None:
    run = detector.config.run.model_copy(update={"precision": "mixed_bfloat16"})
    detector.config = detector.config.model_copy(update={"run": run})


def max_pixels(detector: Detector) -> None:
    data = detector.config.data.model_copy(update={"max_pixels": 10_000})
    detector.config = detector.config.model_copy(update={"data": data})


@pytest.mark.parametrize(
    "change",
    [
        lambda detector, patch: None,
        lambda detector, patch: patch.setattr("retina.api.__version__", "9.9.9"),
        lambda detector, patch: patch.setattr("keras.backend.backend", lambda: "another"),
        lambda detector, patch: setattr(detector, "class_names", ("ring", "circle")),
        lambda detector, patch: precision(detector),
        lambda detector, patch: max_pixels(detector),
    ],
    ids=["nothing", "version", "backend", "classes", "precision", "max_pixels"],
)
def test_all_is_done_again_when_what_decides_on_it_changes(
    tmp_path, photographs, detector, monkeypatch, change, request
):
    retina.predict("run", photographs, tmp_path / "out", pictures=False)
    change(detector, monkeypatch)
    again = retina.predict("run", photographs, tmp_path / "out", pictures=False)
    same = request.node.callspec.id == "nothing"
    assert detector.count == (FILES if same else 2 * FILES)
    assert again[0].detections is not None and again[0].detections.names == tuple(detector.class_names)


@pytest.fixture
def cut_off(monkeypatch):
    """Returns a function that predicts with datasets and is killed as it comes to the last, which it may have begun."""

    def call(photographs: Path, out: Path, formats: tuple[str, ...], *, begun: bool = False) -> None:
        def write(table, scores, home, format, *, link):
            if format != formats[-1]:
                return original(table, scores, home, format, link=link)
            with pytest.raises(RetinaError, match="another prediction into this folder is running"):
                retina.predict("run", photographs, out, to=formats)
            if begun:
                original(table, scores, home, format, link=link)
                (out / format / "conversion.json").rename(out / format / ".retina_convert.json")
            raise KeyboardInterrupt

        original = preannotations.write
        with monkeypatch.context() as patch:
            patch.setattr(preannotations, "write", write)
            with pytest.raises(KeyboardInterrupt):
                retina.predict("run", photographs, out, to=formats)

    return call


@pytest.mark.parametrize("begun", [False, True])
def test_a_call_that_was_cut_off_between_two_datasets_goes_on(tmp_path, photographs, detector, cut_off, begun):
    formats, out, notes = ("voc", "coco"), tmp_path / "out", []
    retina.predict("run", photographs, tmp_path / "whole", to=formats)
    cut_off(photographs, out, formats, begun=begun)
    corrected = out / "voc" / "Annotations" / "0.xml"
    corrected.write_text("corrected by hand")
    before = tree_of(out / "voc")
    retina.predict("run", photographs, out, to=formats, say=notes.append)
    assert detector.count == 2 * FILES and tree_of(out / "voc") == before
    assert f"{out / 'voc'}: it was written before, and stays as it is" in notes
    assert tree_of(out / "coco") == tree_of(tmp_path / "whole" / "coco")
    with pytest.raises(RetinaError, match="it holds a dataset already"):
        retina.predict("run", photographs, out, to=formats)


@pytest.mark.parametrize("formats", [("voc", "coco"), ("coco",)], ids=["finished and missing", "half"])
def test_a_dataset_of_another_prediction_is_refused_before_anything_is_done(
    tmp_path, photographs, detector, cut_off, formats
):
    out = tmp_path / "out"
    cut_off(photographs, out, formats, begun=formats == ("coco",))
    before = tree_of(out)
    with pytest.raises(
        RetinaError, match=f"{formats[0]}: expected the dataset of this prediction, it is that of other"
    ):
        retina.predict("run", photographs, out, to=formats, score=0.7)
    assert detector.count == FILES and tree_of(out) == before
    with pytest.raises(RetinaError, match="has another source or other settings"):  # all is predicted: at its writing
        retina.predict("run", photographs, out, to=formats, link=True)
    assert tree_of(out / formats[0]) == {
        name.split("/", 1)[1]: text for name, text in before.items() if name.startswith(formats[0])
    }
