"""Updates against values worked out by hand: momentum, coupled and decoupled decay, clipping."""

import keras
import numpy as np
import pytest

from retina import config
from retina.errors import RetinaError
from retina.models.detector import Detector
from retina.training.optimizer import (
    AdamW,
    build_optimizer,
    decays,
    global_norm,
    part_path,
    peak_rate,
    prepare_gradients,
)

CONSTANT = config.StepSchedule(steps=10)


def variables(kernel=((1.0, -2.0),), bias=(0.5,)) -> list[keras.Variable]:
    return [
        keras.Variable(np.array(kernel, np.float32), name="kernel"),
        keras.Variable(np.array(bias, np.float32), name="bias"),
    ]


def arrays(tensors) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(t) for t in tensors]


def gradients(*values) -> list:
    return [keras.ops.convert_to_tensor(np.array(value, np.float32)) for value in values]


def prepare(values, weights, settings) -> tuple[list, float]:
    norm = global_norm(values)
    return prepare_gradients(values, weights, settings, norm), float(norm)


def update(optimizer, settings, weights, *values) -> None:
    optimizer.apply(prepare(gradients(*values), weights, settings)[0], weights)


def test_zero_gradients_stay_zero_under_clipping():
    settings = config.Sgd(clip_norm=1.0, weight_decay=0.0)
    prepared, norm = prepare(gradients([[0.0, 0.0]], [0.0]), variables(), settings)
    assert float(norm) == 0.0
    for gradient in arrays(prepared):
        np.testing.assert_array_equal(gradient, 0.0)


def test_sgd_adds_the_decay_to_the_gradient_and_remembers_it():
    settings = config.Sgd(learning_rate=0.1, momentum=0.9, weight_decay=0.5)
    weights = variables()
    optimizer = build_optimizer(settings, CONSTANT)
    optimizer.build(weights)
    update(optimizer, settings, weights, [[1.0, 1.0]], [1.0])
    # v = g + wd · w = [1.5, 0] and, for the bias, 1; w - 0.1 · v
    np.testing.assert_allclose(arrays(weights)[0], [[0.85, -2.0]], rtol=1e-6)
    np.testing.assert_allclose(arrays(weights)[1], [0.4], rtol=1e-6)
    update(optimizer, settings, weights, [[0.0, 2.0]], [0.0])
    # v = 0.9 · [1.5, 0] + [0, 2] + 0.5 · [0.85, -2] = [1.775, 1]; bias 0.9
    np.testing.assert_allclose(arrays(weights)[0], [[0.85 - 0.1775, -2.1]], rtol=1e-6)
    np.testing.assert_allclose(arrays(weights)[1], [0.31], rtol=1e-6)


def test_old_gradients_go_on_at_the_new_rate_after_a_milestone():
    settings = config.Sgd(learning_rate=1.0, momentum=0.5, weight_decay=0.0)
    weights = variables()
    optimizer = build_optimizer(settings, config.StepSchedule(steps=10, milestones=(1,), factor=0.1))
    optimizer.build(weights)
    update(optimizer, settings, weights, [[1.0, 0.0]], [0.0])  # v = 1, w = 1 - 1
    update(optimizer, settings, weights, [[0.0, 0.0]], [0.0])  # v = 0.5 at rate 0.1; Keras' own would step by 0.5
    np.testing.assert_allclose(arrays(weights)[0], [[-0.05, -2.0]], rtol=1e-6)


def test_clipping_is_global_and_comes_before_the_decay():
    settings = config.Sgd(weight_decay=0.5, clip_norm=1.0)
    prepared, norm = prepare(gradients([[3.0, 0.0]], [4.0]), variables(), settings)
    assert float(norm) == pytest.approx(5.0)
    # g / 5, then the kernel's decay of 0.5 · [1, -2], which is not clipped
    np.testing.assert_allclose(arrays(prepared)[0], [[0.6 + 0.5, -1.0]], rtol=1e-6)
    np.testing.assert_allclose(arrays(prepared)[1], [0.8], rtol=1e-6)


def test_a_short_gradient_is_not_lengthened():
    settings = config.Sgd(weight_decay=0.0, clip_norm=10.0)
    prepared, norm = prepare(gradients([[3.0, 0.0]], [4.0]), variables(), settings)
    assert float(norm) == pytest.approx(5.0)
    np.testing.assert_array_equal(arrays(prepared)[0], [[3.0, 0.0]])
    np.testing.assert_array_equal(arrays(prepared)[1], [4.0])


def test_adamw_gradients_are_left_without_decay():
    prepared, _ = prepare(gradients([[3.0, 0.0]], [4.0]), variables(), config.AdamW(weight_decay=0.5))
    np.testing.assert_array_equal(arrays(prepared)[0], [[3.0, 0.0]])


def test_adamw_decays_the_kernel_only():
    settings = config.AdamW(learning_rate=0.1, weight_decay=0.5)
    weights = [
        *variables(),
        *(keras.Variable(np.ones(1, np.float32), name=name) for name in ("gamma", "beta", "prediction_bias")),
    ]
    optimizer = build_optimizer(settings, CONSTANT)
    optimizer.build(weights)
    update(optimizer, settings, weights, [[0.0, 0.0]], [0.0], [0.0], [0.0], [0.0])
    # Without a gradient Adam moves nothing: what is left is w · (1 - 0.1 · 0.5).
    np.testing.assert_allclose(arrays(weights)[0], [[0.95, -1.9]], rtol=1e-6)
    np.testing.assert_array_equal(arrays(weights)[1], [0.5])
    for array in arrays(weights[2:]):
        np.testing.assert_array_equal(array, [1.0])


def test_adamw_first_step_is_the_learning_rate():
    settings = config.AdamW(learning_rate=0.1, weight_decay=0.0)
    weights = variables()
    optimizer = build_optimizer(settings, CONSTANT)
    optimizer.build(weights)
    update(optimizer, settings, weights, [[3.0, -0.01]], [4.0])
    np.testing.assert_allclose(arrays(weights)[0], [[0.9, -1.9]], rtol=1e-4)
    np.testing.assert_allclose(arrays(weights)[1], [0.4], rtol=1e-4)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adamw_moves_as_keras_adam_after_its_decay(amsgrad):
    """Gradients that shrink, so that `amsgrad` differs. Keras takes 1 - β exactly in one place and of a rounded β in
    another: its moves differ from TensorFlow's kernel's by up to 2e-5 of themselves."""
    ours, kerass = variables(), variables()
    optimizer = AdamW(0.1, decay=0.5, amsgrad=amsgrad)
    reference = keras.optimizers.Adam(0.1, amsgrad=amsgrad)
    for size in (4.0, 1.0, -0.5, 0.01):
        values = gradients([[size, 0.3]], [-size])
        optimizer.apply(values, ours)
        kerass[0].assign(kerass[0] * (1.0 - 0.1 * 0.5))
        reference.apply(values, kerass)
    for mine, theirs in zip(arrays(ours), arrays(kerass), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a graph of TensorFlow's")
@pytest.mark.parametrize(("kind", "passes"), [("sgd", ["ResourceApplyMomentum"]), ("adamw", ["ResourceApplyAdam"])])
def test_an_update_is_a_single_pass(kind, passes):
    import tensorflow as tf

    weights = variables(kernel=np.zeros((5, 7)))
    settings = (config.Sgd if kind == "sgd" else config.AdamW)(weight_decay=0.0)
    optimizer = build_optimizer(settings, CONSTANT)
    optimizer.build(weights)
    apply = tf.function(lambda gradient: optimizer.apply([gradient], weights[:1]), autograph=False)
    operations = apply.get_concrete_function(tf.TensorSpec((5, 7))).graph.get_operations()
    takers = [op.type for op in operations if any(x.shape == (5, 7) for x in op.inputs)]
    assert [name for name in takers if not name.startswith("Identity")] == passes


def test_the_schedule_counts_updates():
    settings = config.Sgd(learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    weights = variables(kernel=((0.0, 0.0),))
    optimizer = build_optimizer(settings, config.StepSchedule(steps=5, milestones=(1,), factor=0.1))
    optimizer.build(weights)
    for expected in (-1.0, -1.1):
        update(optimizer, settings, weights, [[1.0, 1.0]], [0.0])
        np.testing.assert_allclose(arrays(weights)[0], [[expected, expected]], rtol=1e-6)


def test_both_optimizers_decay_the_same_variables_of_a_detector():
    detector = Detector(
        ("a", "b"),
        model=config.Model(
            backbone="keras_cv/resnet10",
            fpn=config.Fpn(channels=32, max_level=5),
            head=config.Head(channels=32, layers=1, norm="group"),
        ),
    )
    adamw = build_optimizer(config.AdamW(), CONSTANT)
    adamw.build(detector.trainable_variables)
    decayed = {v.path for v in detector.trainable_variables if decays(v)}
    before = {v.path: np.array(v.numpy()) for v in detector.trainable_variables}
    adamw.apply([keras.ops.zeros_like(v) for v in detector.trainable_variables])
    # A bias of zero would stay zero under decay as well: `decayed` says below that there is none in it.
    assert {v.path for v in detector.trainable_variables if not np.array_equal(before[v.path], v.numpy())} == decayed
    assert decayed == {v.path for v in detector.trainable_variables if v.path.endswith("/kernel")}
    assert 0 < len(decayed) < len(detector.trainable_variables)


# ------------------------------------------------------------------------------------- patterns, and the linear rule


def part_variables() -> list[keras.Variable]:
    """Two ones of the backbone, one of the detector; a variable's path is its name here."""
    made = []
    for path in ("conv1/kernel", "bn1/gamma", "detector/box/kernel"):
        made.append(keras.Variable(np.ones(1, np.float32), name=path.rsplit("/", 1)[1]))
        made[-1]._path = path
    return made


def moved(settings: config.Optimizer, gradient: float) -> list[float]:
    """What one update at a learning rate of 0.1 makes of ones, all with the same gradient."""
    weights = part_variables()
    optimizer = build_optimizer(settings, CONSTANT)
    optimizer.build(weights)
    update(optimizer, settings, weights, *[[gradient]] * 3)
    return [float(array[0]) for array in arrays(weights)]


def test_paths_as_patterns_see_them():
    assert [part_path(v.path) for v in part_variables()] == [
        "backbone/conv1/kernel",
        "backbone/bn1/gamma",
        "box/kernel",
    ]


@pytest.mark.parametrize("kind", [config.Sgd, config.AdamW])
@pytest.mark.parametrize(
    ("no_decay", "expected"),
    [
        (None, [0.95, 1, 0.95]),
        ((), [0.95, 0.95, 0.95]),
        (("backbone/*",), [1, 1, 0.95]),
        (("*/kernel", "*gamma"), [1, 1, 1]),
    ],
)
def test_weights_that_are_named_do_not_decay(kind, no_decay, expected):
    settings = kind(learning_rate=0.1, weight_decay=0.5, **({} if no_decay is None else {"no_decay": no_decay}))
    assert moved(settings, 0.0) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", [config.Sgd, config.AdamW])
def test_rates_multiply_the_learning_rate_and_the_first_match_counts(kind):
    settings = kind(learning_rate=0.1, weight_decay=0.0, rates={"*/gamma": 0.0, "backbone/*": 0.5})
    # Adam's first step is the learning rate, and so is SGD's with a gradient of 1.
    assert moved(settings, 1.0) == pytest.approx([0.95, 1.0, 0.9], rel=1e-5)


def test_the_decay_of_adamw_is_multiplied_as_well():
    settings = config.AdamW(learning_rate=0.1, weight_decay=0.5, rates={"backbone/*": 0.5}, no_decay=())
    assert moved(settings, 0.0) == pytest.approx([0.975, 0.975, 0.95], rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            config.Sgd(rates={"bakbone/*": 0.1}),
            r"optimizer.rates: 'bakbone/\*' matches no trainable variable; .*'backbone",
        ),
        (config.AdamW(no_decay=("head/*",)), r"optimizer.no_decay: 'head/\*' matches no trainable variable"),
    ],
)
def test_patterns_that_match_nothing_are_errors(settings, message):
    with pytest.raises(RetinaError, match=message):
        build_optimizer(settings, CONSTANT).build(part_variables())


def test_the_rate_grows_with_the_batch():
    assert peak_rate(config.Sgd(learning_rate=0.01), None) == 0.01
    scaled = config.Sgd(learning_rate=0.01, base_batch_size=16)
    assert peak_rate(scaled, 64) == pytest.approx(0.04) and peak_rate(scaled, 4) == pytest.approx(0.0025)
    rate = build_optimizer(scaled, config.StepSchedule(steps=2), 64).learning_rate
    assert float(rate) == pytest.approx(0.04)
    with pytest.raises(RetinaError, match="base_batch_size: expected a batch size beside it"):
        build_optimizer(scaled, CONSTANT)
