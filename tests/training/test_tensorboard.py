"""What TensorBoard reads back from a run's event files is what was written, once a step, also after a resume."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.util.tensor_util import make_ndarray

from retina import config as configuration
from retina.config.differences import flat
from retina.evaluation.curves import confidence_curve
from retina.evaluation.matching import match
from retina.training.tensorboard import THRESHOLDS, TensorBoard, threshold_counts
from tests.evaluation.made import drawn, found, truth

SETTINGS = [
    "data.train={format: digits, split: train}",
    "data.validation={format: digits, split: validation}",
    "schedule={kind: cosine, steps: 6, warmup_steps: 1}",
]


def read(folder: Path) -> EventAccumulator:
    """As TensorBoard's own server reads a folder."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


def tensors(events: EventAccumulator, tag: str) -> list[tuple[int, np.ndarray]]:
    return [(event.step, make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]


def plugin(events: EventAccumulator, tag: str) -> str:
    return events.SummaryMetadata(tag).plugin_data.plugin_name


# --------------------------------------------------------------------------------------------------------- nothing


def test_no_folder_writes_nothing(tmp_path):
    with TensorBoard(None) as board:
        board.scalars("train", {"step": 1, "loss": 1.0})
        board.settings(configuration.load(None, SETTINGS))
        board.picture("a", 1, np.zeros((4, 4, 3), np.uint8))
        board.precision_recall(1, match(truth([]), found([])), ("a",))
    assert list(tmp_path.iterdir()) == []


def test_no_boxes_have_no_curve(tmp_path):
    with TensorBoard(tmp_path) as board:
        board.precision_recall(1, match(truth([]), found([])), ("a",))
    assert not any(tag.startswith("precision_recall") for tag in read(tmp_path).Tags()["tensors"])


def test_nothing_found_is_a_curve_of_zeros():
    counts = threshold_counts(match(truth([(0, 0, (0, 0, 9, 9))]), found([])))
    assert counts.shape == (6, THRESHOLDS) and (counts[3] == 1).all() and not counts[[0, 1, 2, 4, 5]].any()


# --------------------------------------------------------------------------------------------------------- values


def test_scalars(tmp_path):
    with TensorBoard(tmp_path) as board:
        board.scalars("validation", {"step": 3, "AP": 0.25, "APl": -1})
        board.scalars("validation", {"step": 6, "AP": 0.5})
    events = read(tmp_path)
    assert tensors(events, "validation/AP") == [(3, np.float32(0.25)), (6, np.float32(0.5))]
    assert plugin(events, "validation/AP") == "scalars" and "validation/APl" not in events.Tags()["tensors"]


def test_pictures_are_readable_and_small(tmp_path):
    with TensorBoard(tmp_path) as board:
        board.picture("predictions/0", 3, np.full((40, 60, 3), (200, 30, 30), np.uint8), "0001.jpg")
        board.picture("predictions/1", 3, np.zeros((500, 1440, 3), np.uint8))
    events = read(tmp_path)
    ((step, values),) = tensors(events, "predictions/0")
    assert (step, values[0], values[1]) == (3, b"60", b"40")  # width, height
    with Image.open(io.BytesIO(values[2])) as picture:
        assert picture.size == (60, 40)
        np.testing.assert_allclose(np.asarray(picture), np.broadcast_to((200, 30, 30), (40, 60, 3)), atol=4)
    ((_, values),) = tensors(events, "predictions/1")
    assert (values[0], values[1]) == (b"720", b"250")
    assert events.SummaryMetadata("predictions/0").summary_description == "0001.jpg"


@pytest.mark.parametrize("label", [None, 0, 2])
def test_the_curve_is_that_of_the_evaluation(label):
    matches = match(*drawn(5, images=8), iou_thresholds=[0.5])
    counts, curve = threshold_counts(matches, label), confidence_curve(matches, label)
    thresholds = np.linspace(0, 1, THRESHOLDS)
    compared = 0
    for place, threshold in enumerate(thresholds):
        kept = np.flatnonzero(curve.thresholds >= threshold)
        if len(kept):
            compared += 1
            expected = curve.precision[kept[-1]], curve.recall[kept[-1]]
            assert counts[4:, place] == pytest.approx(expected, rel=1e-6)
        else:
            assert not counts[[0, 1, 4, 5], place].any()
    assert compared > 50
    positives = matches.positives.sum() if label is None else matches.positives[label]
    assert (counts[0] + counts[3] == positives).all() and not counts[2].any()


def test_curves_by_hand(tmp_path):
    # Two boxes of a, one of b; a is found at 0.75 and missed once, with a mistake at 0.5.
    boxes = truth([(0, 0, (0, 0, 8, 8)), (0, 0, (40, 40, 8, 8)), (0, 1, (80, 0, 8, 8))], classes=3)
    matches = match(boxes, found([(0, 0, (0, 0, 8, 8), 0.75), (0, 0, (20, 0, 8, 8), 0.5)]), iou_thresholds=[0.5])
    with TensorBoard(tmp_path) as board:
        board.precision_recall(3, matches, ("a", "b", "c"))
    events = read(tmp_path)
    tags = {tag for tag in events.Tags()["tensors"] if tag.startswith("precision_recall/")}
    assert tags == {f"precision_recall/{name}" for name in ("all classes", "a", "b")}  # no box of c
    ((step, counts),) = tensors(events, "precision_recall/a")
    # Thresholds 0.50, 0.51, 0.75 and 0.76: true, false, -, missed, precision, recall.
    np.testing.assert_array_equal(
        counts[:, [50, 51, 75, 76]].T,
        [[1, 1, 0, 1, 0.5, 0.5], [1, 0, 0, 1, 1, 0.5], [1, 0, 0, 1, 1, 0.5], [0, 0, 0, 2, 0, 0]],
    )
    ((_, everything),) = tensors(events, "precision_recall/all classes")
    np.testing.assert_allclose(everything[:, 60], [1, 0, 0, 2, 1, 1 / 3], rtol=1e-6)
    assert step == 3 and plugin(events, "precision_recall/a") == "pr_curves"


def test_settings_are_those_of_the_configuration(tmp_path):
    config = configuration.load(None, SETTINGS)
    with TensorBoard(tmp_path) as board:
        board.settings(config)
    events = read(tmp_path)
    contents = events.PluginTagToContent("hparams")
    start = hparams_metadata.parse_session_start_info_plugin_data(contents["_hparams_/session_start_info"])
    told = dict(start.hparams)
    assert set(told) == set(flat(config))
    assert told["schedule.steps"].number_value == 6 and told["schedule.kind"].string_value == "cosine"
    assert told["loss.classification.gamma"].number_value == 2.0 and told["run.deterministic"].bool_value is False
    assert told["anchors.ratios"].string_value == "[1.0, 1.5, 2.2]"
    end = hparams_metadata.parse_session_end_info_plugin_data(contents["_hparams_/session_end_info"])
    assert end.status == 1  # STATUS_SUCCESS


def test_trials_are_compared_by_what_differs(tmp_path):
    """The tab's own code finds the setting that differs, and AP as its figure."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams.backend_context import Context

    for gamma in (0.0, 2.0):
        with TensorBoard(tmp_path / f"gamma{gamma:g}_0" / "tensorboard") as board:
            board.settings(configuration.load(None, [*SETTINGS, f"loss.classification.gamma={gamma}"]))
            board.scalars("validation", {"step": 6, "AP": gamma / 4})
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(multiplexer, str(tmp_path))))
    request = RequestContext()
    runs = context.hparams_metadata(request, "")
    found = context.experiment_from_metadata(request, "", True, runs, [])
    differing = [info.name for info in found.hparam_infos if info.differs]
    assert differing == ["loss.classification.gamma"] and len(found.hparam_infos) > 50
    assert ("", "validation/AP") in {(info.name.group, info.name.tag) for info in found.metric_infos}


# --------------------------------------------------------------------------------------------------------- resume


def test_a_resumed_run_goes_on_where_it_was_taken_up(tmp_path):
    config = configuration.load(None, SETTINGS)

    def killed() -> None:
        with TensorBoard(tmp_path) as board:
            board.settings(config)
            for step in (1, 2, 3, 4):
                board.scalars("train", {"step": step, "loss": float(step)})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert "_hparams_/session_end_info" not in read(tmp_path).Tags()["tensors"]
    with TensorBoard(tmp_path, first_step=2) as board:
        board.settings(config)
        for step in (3, 4, 5):
            board.scalars("train", {"step": step, "loss": 10.0 * step})
    events = read(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert tensors(events, "train/loss") == [(1, 1), (2, 2), (3, 30), (4, 40), (5, 50)]
    assert len(tensors(events, "_hparams_/session_start_info")) == 1


def test_a_full_disk_is_an_error_of_the_disk(tmp_path):
    with open("/dev/full", "wb", buffering=0) as full, TensorBoard(tmp_path) as board:
        board._file.close()
        board._file = full
        with pytest.raises(OSError, match="No space left"):
            board.scalars("train", {"step": 1, "loss": 1.0})
        board._file = None
