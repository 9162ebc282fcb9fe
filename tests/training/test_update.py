"""What else a step does: XLA, its scalars, and that nothing is paid for what is off."""

import numpy as np
import pytest

from retina import config
from retina.errors import RetinaError
from retina.training.step import uses_xla
from tests.training.small_step import four_images, make, numbers


@pytest.mark.parametrize(
    ("mode", "backend", "expected"),
    [("auto", "jax", True), ("on", "jax", True), ("auto", "torch", False), ("off", "torch", False),
     ("on", "tensorflow", True), ("off", "tensorflow", False)],
)  # fmt: skip
def test_where_xla_compiles(mode, backend, expected):
    assert uses_xla(mode, backend) is expected


@pytest.mark.parametrize(("mode", "backend"), [("on", "torch"), ("off", "jax")])
def test_xla_without_effect_is_an_error(mode, backend):
    with pytest.raises(RetinaError, match=f"run.xla: {mode} has no effect with"):
        uses_xla(mode, backend)


def test_auto_is_off_on_tensorflows_cpu(monkeypatch):
    tf = pytest.importorskip("tensorflow")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert uses_xla("auto", "tensorflow") is False
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["one"] * (kind == "GPU"))
    assert uses_xla("auto", "tensorflow") is True


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
def test_xla_gives_the_same_step(parts):
    lines = []
    for xla in ("off", "on"):
        _, _, step = make(config.Run(xla=xla, accumulate=parts, ema=config.Ema()))
        lines.append([numbers(step(four_images(seed))) for seed in range(2)])
    for ours, theirs in zip(*lines, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def test_the_scalars_of_a_plain_step():
    _, _, step = make()
    scalars = numbers(step(four_images()))
    assert set(scalars) == {
        "loss", "loss_classification", "loss_box", "positives", "positives_p3", "positives_p4", "positives_p5",
        "foreground_share", "background_share", "background_probability", "gradient_norm",
    }  # fmt: skip
    assert scalars["positives"] == sum(scalars[f"positives_p{level}"] for level in (3, 4, 5)) > 0
    assert scalars["foreground_share"] + scalars["background_share"] == pytest.approx(1, abs=1e-6)
    # The heads' first logits are the prior's, up to a head drawn with std 0.01.
    assert scalars["background_probability"] == pytest.approx(0.01, rel=0.02)
    assert step.state() == {}


def test_a_batch_size_that_has_no_equal_parts_is_refused():
    with pytest.raises(ValueError, match=r"batch_size \(8\) must be a multiple of accumulate \(3\)"):
        config.Run(batch_size=8, accumulate=3)
    assert np.array(config.Run(batch_size=9, accumulate=3).accumulate) == 3
