import keras
import numpy as np
import pytest
from keras import ops

from retina.errors import RetinaError
from retina.losses import Centers, batch_hard_triplet, center_loss, triplet, updated_centers
from tests import reference
from tests.gradient import value_and_gradient

CENTERS = np.array([[0, 0], [1, -1], [5, 5]], np.float32)


def tensor(values):
    return ops.convert_to_tensor(np.asarray(values, np.float32))


# -------------------------------------------------------------------------------------------------------------- centre


def test_center_loss_of_no_samples():
    none = np.zeros((0, 2), np.float32)
    assert center_loss(tensor(none), np.zeros(0, np.int32), tensor(CENTERS)).shape == (0,)
    np.testing.assert_array_equal(updated_centers(tensor(none), np.zeros(0, np.int32), tensor(CENTERS), 0.5), CENTERS)


def test_center_loss_by_hand():
    features = np.array([[1, 2], [1, -1], [4, 5]], np.float32)
    value, gradient = value_and_gradient(lambda x: center_loss(x, [0, 1, 2], tensor(CENTERS)), features)
    np.testing.assert_array_equal(value, [2.5, 0, 0.5])
    np.testing.assert_array_equal(gradient, [[1, 2], [0, 0], [-1, 0]])


def test_centers_get_no_gradient():
    _, gradient = value_and_gradient(lambda c: center_loss(tensor([[1, 2]]), [0], c) + 0.0 * c[0, 0], CENTERS)
    assert (gradient == 0).all()


def test_update_counts_repeated_labels_as_the_paper_does():
    """Class 0 has the samples (2, 0), (4, 2): Δ = (-6, -2) / 3. Class 1 has (1, 1): Δ = (0, -2) / 2. No class 2."""
    features, labels = tensor([[2, 0], [1, 1], [4, 2]]), [0, 1, 0]
    moved = updated_centers(features, labels, tensor(CENTERS), 0.5)
    np.testing.assert_allclose(moved, [[1, 1 / 3], [1, -0.5], [5, 5]], rtol=1e-6)
    np.testing.assert_array_equal(updated_centers(features, labels, tensor(CENTERS), 0.0), CENTERS)


@pytest.mark.parametrize("label", [-1, 3])
def test_center_loss_refuses_a_label_of_no_class(label):
    with pytest.raises(RetinaError, match=f"center_loss: expected labels 0 to 2, got {label}"):
        center_loss(tensor([[1, 2]]), [label], tensor(CENTERS))


def test_the_layer_moves_its_centers_in_training_only():
    layer = Centers(3, rate=0.5)
    features, labels = tensor([[2, 0], [1, 1], [4, 2]]), ops.convert_to_tensor([0, 1, 0])
    # The loss is of the centres before their update: ½·4, ½·2, ½·20.
    np.testing.assert_array_equal(layer(features, labels, training=True), [2, 1, 10])
    moved = [[1, 1 / 3], [0.25, 0.25], [0, 0]]
    np.testing.assert_allclose(layer.centers, moved, rtol=1e-6)
    assert layer.trainable_variables == [] and len(layer.non_trainable_variables) == 1 and layer.losses == []
    np.testing.assert_allclose(layer(features, labels, training=False)[1], 0.5 * 2 * 0.75**2, rtol=1e-6)
    np.testing.assert_allclose(layer.centers, moved, rtol=1e-6)


def test_the_layer_is_serialisable():
    layer = Centers(3, rate=0.25, weight=0.1, name="centers")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert (again.classes, again.rate, again.weight, again.name) == (3, 0.25, 0.1, "centers")


@pytest.mark.parametrize(
    "arguments", [{"classes": 0}, {"classes": 2.5}, {"classes": 2, "rate": 1.5}, {"classes": 2, "weight": 0.0}]
)
def test_the_layer_refuses(arguments):
    with pytest.raises(RetinaError, match="Centers: expected a whole number of classes >= 1, rate in"):
        Centers(**arguments)


def test_a_functional_model_would_leave_the_losses_out():
    features, labels = keras.Input((2,)), keras.Input((), dtype="int32")
    with pytest.raises(RetinaError, match="Centers: in a functional model expected weight=, got None"):
        Centers(2)(features, labels)


def test_the_layer_adds_nothing_for_no_samples():
    layer = Centers(2, weight=0.5)
    layer(tensor(np.zeros((0, 3))), ops.convert_to_tensor(np.zeros(0, np.int32)), training=True)
    assert [float(loss) for loss in layer.losses] == [0.0]
    np.testing.assert_array_equal(layer.centers, np.zeros((2, 3)))
    layer(tensor([[2, 0, 0], [0, 4, 0]]), ops.convert_to_tensor([0, 1]))
    assert float(layer.losses[-1]) == 0.5 * (2 + 8) / 2


@pytest.mark.parametrize("labels", [[0], [0, 1, 1], [[0], [1]]])
def test_labels_do_not_broadcast(labels):
    with pytest.raises(RetinaError, match=r"center_loss: expected one label for each sample, shape \(2,\), got shape"):
        center_loss(tensor([[1, 2], [3, 4]]), labels, tensor(CENTERS))
    with pytest.raises(
        RetinaError, match=r"batch_hard_triplet: expected one label for each of the embeddings \(2, 2\)"
    ):
        batch_hard_triplet(tensor([[1, 2], [3, 4]]), labels, margin=1.0)


def test_the_layer_in_a_model():
    """With features that stay, the centres go to their class's means, and the loss of the model is the layer's."""
    features, labels = keras.Input((2,)), keras.Input((), dtype="int32")
    still = keras.layers.Dense(2, use_bias=False, kernel_initializer="identity")(features)  # at a learning rate of 0
    model = keras.Model([features, labels], Centers(2, rate=1.0, weight=2.0, name="centers")(still, labels))
    model.compile(optimizer=keras.optimizers.SGD(0.0), loss=None, jit_compile=False)
    x, y = np.array([[0, 2], [0, 4], [6, 0], [8, 0]], np.float32), np.array([0, 0, 1, 1], np.int32)
    first = model.evaluate([x, y], verbose=0)
    # ½(4 + 16 + 36 + 64) / 4, twice.
    assert first == pytest.approx(30.0)
    model.fit([x, y], batch_size=4, epochs=20, verbose=0)
    np.testing.assert_allclose(model.get_layer("centers").centers, [[0, 3], [7, 0]], rtol=1e-4)
    assert model.evaluate([x, y], verbose=0) == pytest.approx(1.0, rel=1e-4)  # ½ · 1 each, twice
    np.testing.assert_array_equal(model.predict([x, y], verbose=0), x)  # what comes after it has the features


# ------------------------------------------------------------------------------------------------------------- triplet


def test_triplet_of_no_samples():
    none = tensor(np.zeros((0, 2)))
    assert triplet(none, none, none, margin=1.0).shape == (0,)
    assert batch_hard_triplet(none, np.zeros(0, np.int32), margin=1.0).shape == (0,)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="no other backend leaves a shape open")
def test_batch_hard_of_a_batch_that_turns_out_empty():
    import tensorflow as tf

    shapes = [tf.TensorSpec((None, 1)), tf.TensorSpec((None,), tf.int32)]
    traced = tf.function(lambda x, y: batch_hard_triplet(x, y, margin=4.0), input_signature=shapes)
    assert traced(tf.zeros((0, 1)), tf.zeros((0,), tf.int32)).shape == (0,)
    np.testing.assert_array_equal(traced(tf.constant([[0.0], [1.0], [3.0]]), tf.constant([0, 0, 1])), [0, 1, 0])


def test_triplet_by_hand():
    anchor, positive, negative = tensor([[0, 0]] * 2), tensor([[1, 0]] * 2), tensor([[0, 2], [0, 1]])
    np.testing.assert_array_equal(triplet(anchor, positive, negative, margin=1.0), [0, 1])
    np.testing.assert_array_equal(triplet(anchor, positive, negative, margin=4.0), [1, 4])


def test_triplet_is_of_each_sample_alone():
    """Distances summed over the batch, a common mistake, would let the easy first sample hide the hard second one."""
    anchor, positive = tensor([[0, 0], [0, 0]]), tensor([[0, 0], [3, 0]])
    negative = tensor([[10, 0], [1, 0]])
    value = triplet(anchor, positive, negative, margin=1.0)
    np.testing.assert_array_equal(value, [0, 9])  # over the batch: max(0, 9 - 101 + 1) = 0
    for i in range(2):
        alone = triplet(anchor[i : i + 1], positive[i : i + 1], negative[i : i + 1], margin=1.0)
        np.testing.assert_array_equal(alone, value[i : i + 1])


def test_equal_embeddings_have_a_gradient_of_0():
    same = np.ones((3, 4), np.float32)
    value, gradient = value_and_gradient(lambda x: triplet(x, tensor(same), tensor(same), margin=0.5), same)
    assert (value == 0.5).all() and (gradient == 0).all()
    value, gradient = value_and_gradient(lambda x: batch_hard_triplet(x, [0, 0, 1], margin=0.5), same)
    np.testing.assert_array_equal(value, [0.5, 0.5, 0])
    assert (gradient == 0).all()


def test_triplet_equals_reference():
    random = np.random.default_rng(0)
    anchor, positive, negative = random.normal(0, 1, (3, 8, 5)).astype(np.float32)

    def one(a, p, n):
        a, p, n = (np.asarray(x, np.float64) for x in (a, p, n))
        return max(0.0, ((a - p) ** 2).sum() - ((a - n) ** 2).sum() + 2.0)

    for place in range(3):
        rows = [anchor, positive, negative]

        def loss(x, place=place, rows=rows):
            return triplet(*[x if i == place else tensor(row) for i, row in enumerate(rows)], margin=2.0)

        value, gradient = value_and_gradient(loss, rows[place])
        # atol: a difference of two distances of up to 30.
        np.testing.assert_allclose(value, [one(*row) for row in zip(*rows, strict=True)], rtol=1e-6, atol=1e-5)
        for i in range(8):
            slope = reference.central_difference(
                lambda x, i=i, place=place: one(*[x if k == place else row[i] for k, row in enumerate(rows)]),  # noqa: B023
                rows[place][i],
            )
            np.testing.assert_allclose(gradient[i], slope, rtol=1e-6, atol=1e-6)
    assert 0 < np.count_nonzero(value) < 8


def test_batch_hard_by_hand():
    value, gradient = value_and_gradient(
        lambda x: batch_hard_triplet(x, [0, 0, 1], margin=4.0), np.array([[0], [1], [3]], np.float32)
    )
    np.testing.assert_array_equal(value, [0, 1, 0])
    # (1 - 0)² - (1 - 3)²: 2·1 + 2·2 for the anchor, -2 for the positive, -4 for the negative.
    np.testing.assert_array_equal(gradient, [[-2], [6], [-4]])


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
def test_a_batch_without_triplets(labels):
    value, gradient = value_and_gradient(
        lambda x: batch_hard_triplet(x, labels, margin=9.0), np.array([[0], [1], [3]], np.float32)
    )
    assert (value == 0).all() and (gradient == 0).all()


def test_batch_hard_equals_reference():
    random = np.random.default_rng(1)
    x, labels = random.normal(0, 1, (12, 4)).astype(np.float32), random.integers(0, 3, 12)
    x += 5  # far from the origin
    value, _ = value_and_gradient(lambda x: batch_hard_triplet(x, labels, margin=1.0), x)
    distance = ((x.astype(np.float64)[:, None] - x.astype(np.float64)[None]) ** 2).sum(-1)
    for i in range(12):
        near = [distance[i, j] for j in range(12) if labels[j] != labels[i]]
        far = [distance[i, j] for j in range(12) if labels[j] == labels[i] and j != i]
        np.testing.assert_allclose(value[i], max(0.0, max(far) - min(near) + 1.0), rtol=1e-5, atol=1e-5)
    assert (value > 0).any()
