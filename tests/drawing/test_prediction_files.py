"""The folder of a prediction: pictures and lines as they come, resumed after a kill, and nothing stale."""

import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from retina.drawing.prediction_files import PredictionFolder
from retina.errors import RetinaError
from retina.inference import Detections
from tests.drawing.test_evaluation_files import png

NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), ())
BOX = Detections(np.array([[10, 10, 30, 30]], np.float32), np.array([0.3], np.float32), np.array([0], np.int32), ("a",))

SETTINGS = {"detector": "run", "weights": "digest", "score": 0.4}
LINE = b'{"image": "x.jpg", "picture": "cat.png"}\n'


@pytest.fixture
def images(tmp_path) -> list[Path]:
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    files = [folder / "cat.png", folder / "b" / "cat.png", folder / "cat_2.png"]
    for number, file in enumerate(files):
        file.write_bytes(png(50 * number))
    return files


def predict(out: Path, files: list[Path], detections=NOTHING, stop: int | None = None, settings=None, **options):
    """The lines of a prediction; with `stop` the process ends after so many."""
    folder = PredictionFolder(out, files, {**SETTINGS, **(settings or {})}, ("a",), **options)
    done, lines = folder.done, []

    def detect(file: Path):
        if file.name == "bad.png":
            raise RetinaError("bad.png: it is not an image")
        return np.asarray(Image.open(file).convert("RGB")), detections

    for line in folder.run(detect):
        lines.append(line)
        if len(lines) == stop:
            break
    return done, lines


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_no_images_give_an_empty_list(tmp_path):
    assert predict(tmp_path / "out", []) == (0, [])
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == []


def test_pictures_of_equal_stems_are_all_kept(tmp_path, images):
    _, lines = predict(tmp_path / "out", images)
    pictures = [tmp_path / "out" / line["picture"] for line in lines]
    assert [p.name for p in pictures] == ["cat.png", "cat_2.png", "cat_2_2.png"]
    for number, picture in enumerate(pictures):
        # Small images are shown enlarged.
        np.testing.assert_array_equal(np.unique(np.asarray(Image.open(picture))), [50 * number])


def test_boxes_are_drawn_and_listed(tmp_path, images):
    _, (line,) = predict(tmp_path / "out", images[:1], BOX)
    assert (np.asarray(Image.open(tmp_path / "out" / line["picture"])) != 0).any()
    score = float(np.float32(0.3))
    assert json.loads((tmp_path / "out" / "detections.json").read_text()) == [
        {"image": str(images[0]), "detections": [{"name": "a", "label": 0, "score": score, "box": [10, 10, 30, 30]}]}
    ]
    back = Detections.from_list(line["detections"])
    for name in ("boxes", "scores", "labels"):
        assert getattr(back, name).dtype == getattr(BOX, name).dtype
        np.testing.assert_array_equal(getattr(back, name), getattr(BOX, name))
    assert len(Detections.from_list([])) == 0


def test_an_input_image_is_never_overwritten(tmp_path, images):
    before = [file.read_bytes() for file in images]
    with pytest.raises(
        RetinaError, match="cat.png: the picture would overwrite this input image; choose another --out"
    ):
        predict(images[0].parent, images[:1])
    with pytest.raises(RetinaError, match="overwrite"):
        predict(images[0].parent / "b" / "..", images)
    assert [file.read_bytes() for file in images] == before
    predict(images[0].parent, images[:1], pictures=False)
    assert [file.read_bytes() for file in images] == before


@pytest.mark.parametrize(
    "foreign",
    [
        {"detections.jsonl": LINE},
        {"detections.jsonl": LINE, "settings.json": b'{"editor": "dark"}'},
        {"detections.jsonl": LINE, "settings.json": b'{"detector": "run"}'},
        {"detections.jsonl": LINE, "settings.json": b"[]"},
        {"detections.json": b"[]"},
        {"settings.json": b"half"},
    ],
)
@pytest.mark.parametrize("pictures", [False, True])
def test_what_no_prediction_wrote_is_neither_removed_nor_replaced(tmp_path, images, foreign, pictures):
    out = tmp_path / "out"
    out.mkdir()
    for name, text in {"cat.png": b"a photograph", **foreign}.items():
        (out / name).write_bytes(text)
    before = content(out)
    with pytest.raises(RetinaError, match="no prediction of retina wrote this file; choose another --out"):
        predict(out, images, pictures=pictures)
    assert content(out) == before


def test_a_photograph_in_the_folder_is_not_replaced_by_a_picture(tmp_path, images):
    out = tmp_path / "out"
    out.mkdir()
    (out / "cat_2.png").write_bytes(b"a photograph")
    for done in (0, 3):  # into the folder as it is, and with a prediction in it that drew no pictures
        with pytest.raises(RetinaError, match="cat_2.png: no prediction of retina wrote this file; choose another"):
            predict(out, images)
        assert predict(out, images, pictures=False)[0] == done
        assert (out / "cat_2.png").read_bytes() == b"a photograph"


def test_a_folder_of_an_earlier_version_is_predicted_into(tmp_path, images):
    out = tmp_path / "out"
    out.mkdir()
    for name, text in {"settings.json": b'{"detector": "a"}', "detections.json": b"[]", "cat.png": b"stale"}.items():
        (out / name).write_bytes(text)
    assert predict(out, images, stop=1)[0] == 0 and not (out / "detections.json").exists()
    assert predict(out, images)[0] == 1 and Image.open(out / "cat.png").size


def test_a_second_prediction_into_the_folder_is_refused_while_the_first_runs(tmp_path, images):
    out = tmp_path / "out"
    first = PredictionFolder(out, images, SETTINGS, ("a",))
    rows = first.run(lambda file: (np.asarray(Image.open(file).convert("RGB")), NOTHING))
    for _ in range(2):  # before the first image and after it
        before = content(out)
        with pytest.raises(RetinaError, match="out: another prediction into this folder is running; wait for it, or"):
            predict(out, images[1:])
        assert content(out) == before
        next(rows)
    assert len(list(rows)) == 1
    assert predict(out, images)[0] == 3  # though the first is still there


def test_a_stale_picture_does_not_pass_for_the_new_one_after_a_kill(tmp_path, images, monkeypatch):
    predict(tmp_path / "whole", images, BOX)
    out = tmp_path / "out"
    predict(out, images, BOX, stop=1)
    (out / "cat_2.png").write_bytes(b"stale")
    with monkeypatch.context() as patch:
        patch.setattr(PredictionFolder, "_draw", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            predict(out, images, BOX)
    assert predict(out, images, BOX)[0] == 1 and content(out) == content(tmp_path / "whole")


def test_a_predictions_folder_that_cannot_be_written(tmp_path, images):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RetinaError, match="file: cannot write the predictions: .*; choose another --out"):
        predict(tmp_path / "file", images[:1])


def test_images_that_cannot_be_read_are_left_out(tmp_path, images):
    bad = tmp_path / "bad.png"
    _, lines = predict(tmp_path / "out", [bad, *images])
    assert lines[0] == {"image": str(bad), "file": None, "error": "bad.png: it is not an image"}
    assert len(json.loads((tmp_path / "out" / "detections.json").read_text())) == 3
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["left_out"] == {str(bad): lines[0]["error"]}


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("half", [b"", b'{"image": "x', b"\0\0\0\n", b"[]\n"])
def test_a_prediction_that_was_cut_off_goes_on_to_the_same_files(tmp_path, images, stop, half):
    predict(tmp_path / "whole", images, BOX)
    out = tmp_path / "out"
    predict(out, images, BOX, stop=stop)
    with open(out / "detections.jsonl", "ab") as lines:
        lines.write(half)
    (out / ".partial.cat.png").write_bytes(b"half a picture")
    done, lines = predict(out, images, BOX)
    assert (done, len(lines)) == (stop, 3)
    (out / ".partial.cat.png").unlink(missing_ok=True)  # of no line: only a picture that is drawn again replaces it
    assert content(out) == content(tmp_path / "whole")
    assert predict(out, images, BOX)[0] == 3 and content(out) == content(tmp_path / "whole")


def test_a_line_whose_picture_is_missing_is_done_again(tmp_path, images):
    predict(tmp_path / "out", images, BOX)
    whole = content(tmp_path / "out")
    (tmp_path / "out" / "cat_2.png").unlink()
    assert predict(tmp_path / "out", images, BOX)[0] == 1 and content(tmp_path / "out") == whole


def test_what_changed_is_done_again_and_nothing_stale_stays(tmp_path, images):
    out = tmp_path / "out"
    predict(out, images, BOX)
    (out / "notes.txt").write_text("mine")
    images[1].write_bytes(png(200))
    assert predict(out, images, BOX)[0] == 1  # a changed image
    assert predict(out, images, BOX, settings={"score": 0.5})[0] == 0  # other settings
    assert predict(out, images[:2], BOX, settings={"score": 0.5})[0] == 2  # fewer images
    assert {path.name for path in out.iterdir()} == {
        *("notes.txt", "settings.json", "detections.jsonl", "detections.json", "cat.png", "cat_2.png")
    }
    assert predict(out, images[2:], BOX, settings={"score": 0.5}, pictures=False)[0] == 0
    assert sorted(path.suffix for path in out.iterdir()) == [".json", ".json", ".jsonl", ".txt"]
    # A picture of an earlier call that is an image now is not removed, nor a file elsewhere that a line names.
    shutil.copy(images[0], out / "cat_2.png")
    with open(out / "detections.jsonl", "a") as lines:
        for name in ("cat_2.png", "../images/cat.png"):
            lines.write(json.dumps({"image": "x", "picture": name}) + "\n")
    predict(out, [out / "cat_2.png"], BOX, pictures=False)
    assert (out / "cat_2.png").is_file() and images[0].is_file()
