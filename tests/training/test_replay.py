"""A failed step put through the network again: which tensor, on which images, with which weights."""

import keras
import numpy as np
import pytest

from retina import config as configuration
from retina.data.formats.digits import read_digits
from retina.errors import RetinaError
from retina.models.objective import Sums
from retina.runs.checkpoint import Checkpoint, gather, save
from retina.runs.directory import RunDirectory
from retina.training import replay as replaying
from retina.training.progress import Fault
from retina.training.replay import image_names, record
from tests.training.small_step import FROZEN, four_images, small_detector

CONFIG = configuration.load(None, ["model.fpn={channels: 16, max_level: 5}", "model.head={channels: 16, layers: 1}"])
SCALARS = {"loss": float("nan"), "loss_classification": 1.0, "loss_box": float("nan"), "gradient_norm": 1.0}
FAULT = Fault(7, "loss", float("nan"), SCALARS)


def build(config=None, names=("0", "1"), load_weights=True):
    keras.utils.set_random_seed(0)
    return small_detector(names, model=CONFIG.model)


def replay(run, step, checkpoint=None):
    return replaying.replay(run, step, checkpoint, build_detector=build)


def build_frozen():
    keras.utils.set_random_seed(0)
    return small_detector(("0", "1"), model=FROZEN)


def batch_of(data) -> dict[str, np.ndarray]:
    return {**four_images(), "index": np.array([2, 0, -1, 1]), "sample": np.arange(24, 28)}


@pytest.fixture(scope="module")
def data():
    return read_digits("train", 3, 64)


@pytest.fixture(scope="module")
def detector():
    return build()


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "it's a run", configuration.to_yaml(CONFIG), {})


def test_no_images_have_no_names(data):
    assert image_names(data, np.zeros(0, np.int64)) == () == image_names(data, np.array([-1, -1]))


def test_a_batch_that_is_well_is_saved_with_what_the_step_told(run, detector, data):
    text = record(run, detector, "before the step", batch_of(data), data, FAULT)
    assert text.startswith(
        "step 7: the loss is nan; lower optimizer.learning_rate, lengthen schedule.warmup_steps, or set "
        "optimizer.clip_norm. With the weights before the step, all is finite; in the step these were not: loss, "
        f"loss_box. Images: {data.name}: image {data.image_ids[2]}, {data.name}: image {data.image_ids[0]}, "
        f"{data.name}: image {data.image_ids[1]}; the batch is in {run.path / 'replay' / 'step_7.npz'}; "
        "look at it again with: "
    )
    again = replay(run.path, 7)
    assert again.first_bad is None and again.weights == "before the step" and len(again.images) == 3
    # The losses are those of a step over the same batch.
    tensors = {name: keras.ops.convert_to_tensor(value) for name, value in four_images().items()}
    sums = detector.loss_sums(detector(tensors, training=True), tensors)
    found = {finding.name: finding.high for finding in again.findings}
    divisor = max(float(sums.positives), 1.0)
    assert found["loss_classification"] == pytest.approx(float(sums.classification) / divisor, rel=1e-4)
    assert found["loss_box"] == pytest.approx(float(sums.box) / divisor, rel=1e-4)
    assert found["images"] == four_images()["images"].max()


def test_the_first_tensor_that_is_not_finite_is_named(run, data):
    """An infinite weight of the box head: logits are well, deltas and the box loss are not."""
    broken = build()
    broken.box.bias.assign(np.full(broken.box.bias.shape, np.inf, np.float32))
    text = record(run, broken, "of step 4", batch_of(data), data, FAULT)
    count = int(np.prod(broken.box.bias.shape))
    assert f"With the weights of step 4, first not finite: weight {broken.box.bias.path} ({count} of {count}" in text
    again = replay(run.path, 7)
    bad = [finding.name for finding in again.findings if finding.bad]
    assert bad[0] == f"weight {broken.box.bias.path}" and {"deltas", "loss_box", "loss"} <= set(bad)
    assert "logits" not in bad and "loss_classification" not in bad
    assert str(again).splitlines()[0] == "step 7, with the weights of step 4"
    assert f"{count} of {count} not finite" in str(again)


def test_a_box_that_is_not_finite_is_found_before_the_losses(run, detector, data):
    batch = batch_of(data)
    batch["boxes"][0, 0, 2] = np.nan
    assert "first not finite: boxes (1 of 48 values)" in record(run, detector, "before the step", batch, data, FAULT)


def test_other_weights_may_be_looked_at(run, detector, data):
    record(run, detector, "before the step", batch_of(data), data, FAULT)
    other = build()
    other.box.bias.assign(np.full(other.box.bias.shape, 3.0, np.float32))
    saved = Checkpoint(4, CONFIG.model_dump(mode="json"), ("0", "1"), (0, 1), None, gather(other))
    save(run.checkpoint_path("step_4"), saved)
    again = replay(run.path, 7, "step_4")
    assert again.weights == "of step 4"
    deltas = {finding.name: finding for finding in again.findings}["deltas"]
    assert deltas.low > 2 and {f.name: f for f in replay(run.path, 7).findings}["deltas"].high < 2


def test_a_full_disk_does_not_take_the_message_away(run, detector, data, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fail)
    text = record(run, detector, "before the step", batch_of(data), data, FAULT)
    assert "step 7: the loss is nan" in text and text.endswith("the batch could not be saved: No space left on device")


def out_of_memory(*_):
    raise RuntimeError("OOM when allocating tensor\nwith a trace")


def test_a_search_that_fails_is_told_and_the_batch_is_kept(run, detector, data):
    text = record(run, detector, "before the step", batch_of(data), data, FAULT, gradients=out_of_memory)
    assert "step 7: the loss is nan" in text and f"the batch is in {run.path / 'replay' / 'step_7.npz'}" in text
    assert "before the step, the search for the tensor failed: RuntimeError: OOM when allocating tensor. Images" in text
    assert replay(run.path, 7).first_bad is None


def test_a_batch_without_weights_waits_for_a_checkpoint(run, detector, data):
    text = record(run, None, "going back failed: no room", batch_of(data), data, FAULT)
    assert "Which tensor was first is not known: going back failed: no room. Images: " in text
    assert text.endswith(f"the batch is in {run.path / 'replay' / 'step_7.npz'}")
    with pytest.raises(RetinaError, match=r"expected weights beside the batch, got none; name a checkpoint"):
        replay(run.path, 7)
    saved = Checkpoint(4, CONFIG.model_dump(mode="json"), ("0", "1"), (0, 1), None, gather(detector))
    save(run.checkpoint_path("step_4"), saved)
    with np.load(run.path / "replay" / "step_7.npz") as file:
        np.testing.assert_array_equal(file["batch/images"], four_images()["images"])


def test_a_batch_that_could_not_be_had_leaves_the_message(run, detector, data):
    text = record(run, detector, "before the step", None, data, FAULT)
    assert text.startswith("step 7: the loss is nan; ") and text.endswith("Its batch could not be read again")


def test_the_parts_of_a_batch_are_looked_at_one_by_one_and_told_together(detector):
    """Live normalisation would differ between the parts: its statistics are those of a part."""
    still = build_frozen()
    sizes = []

    def counted(*arguments):
        differentiate = replaying.gradients_of(*arguments)
        return lambda batch: sizes.append(len(batch["images"])) or differentiate(batch)

    batch = four_images()
    once, twice = (replaying._diagnose(still, batch, parts, counted) for parts in (1, 2))
    assert sizes == [4, 2, 2]
    assert [finding[:3] for finding in once] == [finding[:3] for finding in twice]
    for one, other in zip(once, twice, strict=True):
        assert other[3:] == pytest.approx(one[3:], rel=1e-3, abs=1e-6), one.name


def test_a_tensor_that_is_bad_in_a_part_counts_in_the_whole(detector):
    """Of four parts the third has an infinity; the sums of losses and gradients are divided by all 4 positives."""
    tensor, count = keras.ops.convert_to_tensor, iter(range(4))

    def differentiate(part):
        place = next(count)
        logits = tensor(np.array([[place, np.inf if place == 2 else -place]], np.float32))
        values = {"classification": 2, "box": 6, "positives": 4 * (place == 3)}
        sums = Sums.zeros(3)._replace(**{name: tensor(np.float32(value)) for name, value in values.items()})
        return {"logits": logits}, sums, [tensor(np.float32(place)) for _ in detector.trainable_variables]

    found = {
        finding.name: finding for finding in replaying._diagnose(detector, four_images(), 4, lambda *_: differentiate)
    }
    assert found["logits"] == ("logits", 1, 8, -3.0, 3.0)
    assert [found[name].high for name in ("loss_classification", "loss_box", "loss")] == [2.0, 6.0, 8.0]
    assert found[f"gradient of {detector.trainable_variables[0].path}"].high == 6 / 4


def test_the_command_of_the_message_runs_in_a_shell(run, detector, data):
    """Words as a shell would split them: the code is one of them, and it is Python."""
    import shlex

    text = record(run, detector, "before the step", batch_of(data), data, FAULT)
    words = shlex.split(text.partition("look at it again with: ")[2])
    assert words[:2] == ["python", "-c"] and len(words) == 3
    compile(words[2], "command", "exec")
    assert repr(str(run.path)) in words[2]


def test_what_was_not_saved_cannot_be_looked_at(run, tmp_path):
    with pytest.raises(RetinaError, match=r"step_3.npz: no such batch; batches are saved when"):
        replay(run.path, 3)
    with pytest.raises(RetinaError, match="not a run directory"):
        replay(tmp_path / "nowhere", 3)
