"""Checkpoints: round trip, strictness, damaged files, and that a failed write loses nothing."""

import json
import re
import zipfile
from dataclasses import replace

import keras
import numpy as np
import pytest

from retina.errors import RetinaError
from retina.runs import checkpoint as checkpoints
from retina.runs.checkpoint import Checkpoint, DamagedCheckpoint, extra_of, gather, read, restore, save

CONFIG = {"run": {"seed": 3}, "data": {"root": "/données"}}


def build(units: int = 3, layers=("first", "second")) -> keras.Model:
    inputs = keras.Input((2,))
    x = inputs
    for name in layers:
        x = keras.layers.Dense(units, name=name)(x)
    return keras.Model(inputs, keras.layers.BatchNormalization(name="norm")(x), name="net")


class Counting(keras.Model):
    """A model whose metric is among its variables, as the detector's are."""

    def __init__(self):
        super().__init__(name="counting")
        self.seen = keras.metrics.Mean(name="seen")


def optimizer_of(model: keras.Model) -> keras.optimizers.Optimizer:
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, name="sgd")
    optimizer.build(model.trainable_variables)
    return optimizer


def checkpoint(arrays: dict[str, np.ndarray], step: int = 7) -> Checkpoint:
    return Checkpoint(step, CONFIG, ("α", "b"), (1, 18), 0.25, arrays)


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
        assert first[name].dtype == second[name].dtype


def test_a_checkpoint_without_arrays_comes_back(tmp_path):
    save(tmp_path / "step_0.npz", Checkpoint(0, {}, (), (), None, {}))
    assert read(tmp_path / "step_0.npz") == Checkpoint(0, {}, (), (), None, {})


def test_everything_comes_back(tmp_path):
    model = build()
    optimizer = optimizer_of(model)
    for variable in (*model.variables, *optimizer.variables):
        variable.assign(np.random.default_rng(0).integers(0, 9, variable.shape))
    before = gather(model, optimizer)
    save(tmp_path / "step_7.npz", checkpoint(before))
    saved = read(tmp_path / "step_7.npz")
    assert (saved.step, saved.config, saved.class_names, saved.category_ids, saved.best) == (
        7,
        CONFIG,
        ("α", "b"),
        (1, 18),
        0.25,
    )
    assert_same(saved.arrays, before)
    other = build()
    other_optimizer = optimizer_of(other)
    restore(saved.arrays, other, other_optimizer)
    assert_same(gather(other, other_optimizer), before)


def test_holds_random_states_and_moving_averages_but_no_metrics():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5, name="drop")], name="net")
    (random_state,) = gather(model)  # Keras counts its generators
    assert re.fullmatch(r"weights/seed_generator(_\d+)?/seed_generator_state", random_state)
    counting = Counting()
    assert len(counting.metrics_variables) == 2 and gather(counting) == {}
    assert {name.rsplit("/", 1)[-1] for name in gather(build())} >= {"moving_mean", "moving_variance"}


def test_what_the_step_and_the_loop_keep_comes_back_beside_the_variables(tmp_path):
    model = build()
    extra = {"loss_scale": np.float32(1024), "ema/first/kernel": np.arange(6.0).reshape(2, 3)}
    progress = {"best_step": 3, "pending": {"loss": [0.1, float(np.float32(1) / 3)]}}
    written = replace(checkpoint(gather(model, optimizer_of(model), extra)), progress=progress)
    save(tmp_path / "step_7.npz", written)
    saved = read(tmp_path / "step_7.npz")
    assert saved.progress == progress
    assert_same(extra_of(saved.arrays), {name: np.asarray(value) for name, value in extra.items()})
    restore(saved.arrays, model, optimizer_of(model))


def test_what_is_gathered_is_a_copy():
    model = build()
    before = gather(model)
    expected = {name: array.copy() for name, array in before.items()}
    for variable in model.variables:
        variable.assign(variable + 1)
    assert_same(before, expected)


def test_the_weights_alone_can_be_restored():
    model = build()
    arrays = gather(model, optimizer_of(model))
    other = build()
    restore(arrays, other)
    assert_same(gather(other), gather(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("weights/first/kernel"), "lacks weights/first/kernel"),
        (lambda a: a.update({"weights/third/kernel": np.zeros(1)}), "has unused weights/third/kernel"),
        (lambda a: a.update({"optimizer/sgd/extra": np.zeros(1)}), "has unused optimizer/sgd/extra"),
        (
            lambda a: a.update({"weights/first/kernel": np.zeros((2, 4), np.float32)}),
            r"has other shapes for weights/first/kernel \(model \(2, 3\), checkpoint \(2, 4\)\)",
        ),
        (lambda a: a.clear(), r"lacks optimizer/.* and \d+ more"),
    ],
)
def test_anything_that_does_not_fit_is_named_and_nothing_is_assigned(change, message):
    model = build()
    optimizer = optimizer_of(model)
    arrays = {name: array + 1 for name, array in gather(model, optimizer).items()}
    before = gather(model, optimizer)
    change(arrays)
    with pytest.raises(RetinaError, match=message):
        restore(arrays, model, optimizer)
    assert_same(gather(model, optimizer), before)


def test_weights_of_a_deeper_model_do_not_fit_even_without_optimizer():
    with pytest.raises(RetinaError, match="has unused weights/third"):
        restore(gather(build(layers=("first", "second", "third"))), build())


# ----------------------------------------------------------------------------------------------------- bad files


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "step_7.npz"
    save(path, checkpoint(gather(build())))
    return path


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RetinaError, match="step_9.npz: no such checkpoint"):
        read(tmp_path / "step_9.npz")


def test_an_empty_file(file):
    file.write_bytes(b"")
    with pytest.raises(RetinaError, match="step_7.npz: damaged or not a checkpoint"):
        read(file)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(file, share):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(RetinaError, match="damaged"):
        read(file)


def test_flipped_bytes_never_pass_unnoticed_as_other_numbers(file):
    whole, before = file.read_bytes(), read(file)
    for position in np.random.default_rng(0).integers(0, len(whole), 60):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0x5A]) + whole[position + 1 :])
        try:
            after = read(file)
        except RetinaError:
            continue
        # Some bytes of a zip (times, attributes) mean nothing here; a member may only lose its name.
        assert (after.step, after.config, after.class_names) == (before.step, before.config, before.class_names)
        for name in after.arrays.keys() & before.arrays.keys():
            np.testing.assert_array_equal(after.arrays[name], before.arrays[name])


def rewritten(file, change) -> None:
    """The file as a sound archive of other arrays: no checksum of a zip tells."""
    with np.load(file) as old:
        arrays = {name: old[name] for name in old.files}
    change(arrays)
    np.savez(file, **arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["weights/first/kernel"].__setitem__((0, 0), 7.0), "weights/first/kernel is not what was written"),
        (lambda a: a.update({"weights/first/bias": a["weights/first/bias"].astype(np.float64)}), "first/bias is not"),
        (lambda a: a.update({"weights/first/bias": a["weights/first/bias"][None]}), "first/bias is not what was"),
        (lambda a: a.pop("weights/second/bias"), "arrays are missing or added: weights/second/bias"),
        (lambda a: a.update(more=np.zeros(1)), "arrays are missing or added: more"),
        (lambda a: a.update(__meta__=np.array(str(a["__meta__"]).replace("18", "19"))), "description is not what"),
        (lambda a: a.pop("__sha256__"), "__sha256__"),
    ],
)
def test_checksums_tell_what_was_changed(file, change, message):
    rewritten(file, change)
    with pytest.raises(DamagedCheckpoint, match=message):
        read(file)


def test_checkpoints_of_the_first_format_are_read(file):
    def older(arrays):
        meta = json.loads(str(arrays["__meta__"]))
        for name in ("sha256", "progress"):
            del meta[name]
        arrays["__meta__"] = np.array(json.dumps(meta | {"format": 1}))
        del arrays["__sha256__"]

    before = read(file)
    rewritten(file, older)
    assert_same(read(file).arrays, before.arrays)
    assert read(file).step == 7 and read(file).progress == {}


def test_a_zip_that_is_no_checkpoint(tmp_path):
    path = tmp_path / "step_1.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(RetinaError, match="not a checkpoint of retina"):
        read(path)


@pytest.mark.parametrize("meta", ["[]", "{}", "3", "{", json.dumps({"step": 1})])
def test_an_archive_of_arrays_with_another_description(tmp_path, meta):
    path = tmp_path / "step_1.npz"
    np.savez(path, __meta__=np.array(meta), x=np.zeros(2))
    with pytest.raises(RetinaError, match="not a checkpoint of retina"):
        read(path)


def test_a_single_array(tmp_path):
    path = tmp_path / "step_1.npz"
    with open(path, "wb") as out:
        np.save(out, np.zeros(3))
    with pytest.raises(RetinaError, match="not a checkpoint of retina"):
        read(path)


class _Harmful:
    def __reduce__(self):
        return exec, ("import tests_ran_this",)


def test_pickled_objects_are_refused_not_run(tmp_path):
    path = tmp_path / "step_1.npz"
    np.savez(path, __meta__=np.array("{}"), x=np.array([_Harmful()], dtype=object))
    with pytest.raises(RetinaError, match="not a checkpoint of retina"):
        read(path)


def test_a_folder(tmp_path):
    (tmp_path / "step_1.npz").mkdir()
    with pytest.raises(RetinaError, match="step_1.npz"):
        read(tmp_path / "step_1.npz")


# ------------------------------------------------------------------------------------------------- failed writes


def test_a_write_that_fails_midway_leaves_the_previous_checkpoint(file, monkeypatch):
    before = file.read_bytes()

    def full_disk(out, **arrays):
        out.write_bytes(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.np, "savez", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save(file, checkpoint({}))
    with pytest.raises(OSError, match="No space left"):
        save(file.with_name("step_8.npz"), checkpoint({}))
    assert [path.name for path in file.parent.iterdir()] == ["step_7.npz"]
    assert file.read_bytes() == before


def test_a_leftover_of_a_killed_write_is_in_nobodys_way(file):
    file.with_name(".partial.step_7.npz").write_bytes(b"half")
    save(file, checkpoint({}, step=7))
    assert read(file).step == 7
    assert [path.name for path in file.parent.iterdir()] == ["step_7.npz"]
