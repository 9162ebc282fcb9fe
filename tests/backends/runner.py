"""Computes everything that must not depend on the Keras backend, and writes it to an .npz file.

    KERAS_BACKEND=jax python runner.py OUT.npz WEIGHTS.npz

The detector's weights are written where the file does not exist, otherwise read. Results are named `functions/…` or
`detector/…`, and `…/index/…` where they must be equal.
"""

import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script: `tests` and `retina` lie there

import keras
import numpy as np
from keras import ops

from retina import config, losses
from retina.models.decode import decode
from retina.models.objective import Objective
from retina.ops import assignment
from retina.ops import boxes as box_ops
from retina.ops.anchors import level_anchors
from retina.ops.assignment import match
from retina.ops.nms import nms, stable_top_k
from retina.ops.pooling import max_pool
from retina.ops.rectifier import relu
from retina.training.fused_layers import shorten_gradients
from tests.gradient import forward_derivative, second_derivative, value_and_gradient

CANVAS = (64, 96)
ANCHORS = config.Anchors(size=2.0, scales=(1.0, 1.5), ratios=(0.25, 1.0, 4.0))


def tensor(values):
    return ops.convert_to_tensor(values)


def compiled(function):
    """One compilation on JAX, which otherwise compiles every operation for every shape by itself."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    return jax.jit(function)


def random_boxes(random, shape, limit=64):
    """Whole-pixel boxes, a tenth of them without area."""
    corner = random.integers(0, limit // 2, (*shape, 2))
    sides = random.integers(2, limit // 2, (*shape, 2)) * (random.random((*shape, 1)) > 0.1)
    return np.concatenate([corner, corner + sides], axis=-1).astype(np.float32)


def batch_of(random, images=2):
    boxes = random_boxes(random, (images, 12))
    boxes[:, :4, 2:] += 12  # some as large as anchors
    return {
        "boxes": boxes,
        "labels": random.integers(0, 3, (images, 12)).astype(np.int32),
        "valid": random.random((images, 12)) < 0.8,
        "crowd": random.random((images, 12)) < 0.2,
        "size": np.array([CANVAS, (48, 80)], np.int32)[:images],
        "scale": np.array([[1.0, 1.0], [0.5, 0.8]], np.float32)[:images],
    }


def functions():
    random = np.random.default_rng(7)
    out = {}

    def keep(name, function, x):
        out[name], out[f"{name}/gradient"] = value_and_gradient(function, x)

    first, second = random_boxes(random, (200,)), random_boxes(random, (200,))
    solid = first.copy()
    solid[:, 2:] = np.maximum(solid[:, 2:], solid[:, :2] + 1)
    keep("iou", lambda x: box_ops.iou(x[:, None], tensor(second)[None]), first + 0.25)
    out["iou/exact"] = ops.convert_to_numpy(box_ops.iou(tensor(first)[:, None], tensor(second)[None]))
    keep("encode", lambda x: box_ops.encode(tensor(solid), x, (10.0, 10.0, 5.0, 5.0)), second)
    keep("decode", lambda x: box_ops.decode(tensor(solid), x), random.normal(0, 2, (200, 4)).astype(np.float32))
    for overlap in (losses.giou_loss, losses.diou_loss, losses.ciou_loss):
        keep(overlap.__name__, lambda x, overlap=overlap: overlap(x, tensor(second)), solid + 0.25)

    logits = np.concatenate([np.linspace(-200, 200, 41), random.normal(0, 4, 200)]).astype(np.float32)
    targets = np.where(np.arange(241) % 3 == 2, 0.3, np.arange(241) % 3).astype(np.float32)
    for gamma in (0.0, 0.5, 1.0, 2.0, 5.0):
        for alpha in (None, 0.25):
            focal = lambda x, a=alpha, g=gamma: losses.sigmoid_focal(x, targets=tensor(targets), alpha=a, gamma=g)  # noqa: E731
            keep(f"focal/{alpha}/{gamma}", focal, logits)
    three = lambda x: ops.stack([x, -0.5 * x, 0 * x], axis=-1)  # noqa: E731
    again = {
        "focal/2": (lambda x: losses.sigmoid_focal(x, targets=tensor(targets), alpha=0.25, gamma=2.0), logits),
        "softmax_focal": (lambda x: losses.softmax_focal(three(x), targets=np.arange(241) % 3, gamma=0.5), logits),
    }
    for name, (function, x) in again.items():
        out[f"{name}/second"], out[f"{name}/forward"] = second_derivative(function, x), forward_derivative(function, x)
    errors = np.linspace(-3, 3, 62).astype(np.float32)
    keep("huber", lambda x: losses.huber(x, tensor(np.zeros_like(errors)), delta=1 / 9), errors)
    keep("smooth_l1", lambda x: losses.smooth_l1(x, tensor(np.zeros_like(errors)), beta=1 / 9), errors)

    for name, (function, x) in layers(np.random.default_rng(10)).items():
        keep(name, function, x)
        out[f"{name}/forward"] = forward_derivative(function, x)

    classic_losses(np.random.default_rng(9), keep, out)

    # Grids make ties; both zeros count as equal.
    values = np.round(random.normal(0, 2, (3, 500)) * 2).astype(np.float32) / 2
    out["top_k"], out["index/top_k"] = (ops.convert_to_numpy(x) for x in stable_top_k(tensor(values), 60))
    boxes, labels = random_boxes(random, (3, 60)), random.integers(0, 3, (3, 60)).astype(np.int32)
    for name, scores in (("ties", values[:, :60]), ("equal", np.ones((3, 60), np.float32))):
        suppress = compiled(lambda *arrays: nms(*arrays, iou_threshold=0.5, max_detections=30))
        rows = suppress(*(tensor(x) for x in (boxes, scores, labels)))
        out[f"index/nms/{name}"] = ops.convert_to_numpy(rows)

    levels = level_anchors(ANCHORS, CANVAS, (3, 4, 5))
    anchors = np.concatenate(levels)
    batch = batch_of(random)
    fields = {name: tensor(field) for name, field in batch.items()}
    for force in (False, True, "ties"):
        settings = config.Assignment(force_match=force)
        matched = compiled(lambda *arrays, s=settings: match(tensor(anchors), *arrays, s))
        found = matched(fields["boxes"], fields["valid"], fields["crowd"])
        index, positive, ignored = (ops.convert_to_numpy(x) for x in found)
        out[f"index/match/{force}"] = np.stack([np.where(positive, index, -1), ignored])
        with mock.patch.multiple(assignment, PIECE=5, MOST_PAIRS=0):
            pieces = compiled(lambda *arrays, s=settings: match(tensor(anchors), *arrays, s))
            pieces = pieces(fields["boxes"], fields["valid"], fields["crowd"])
        for whole, part in zip(found, pieces, strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(whole), ops.convert_to_numpy(part))

    logits = np.round(random.normal(-2, 2, (2, len(anchors), 3)) * 4).astype(np.float32) / 4
    deltas = random.normal(0, 0.3, (2, len(anchors), 4)).astype(np.float32)
    focal, huber = config.Focal(), config.HuberBox()
    objectives = {
        **{box.kind: (focal, box) for box in (huber, config.SmoothL1Box(), config.GiouBox(), config.CiouBox())},
        **{f"ohem/{ratio}": (config.Ohem(ratio=ratio, hardest=32), huber) for ratio in (None, 3)},
        "quality_focal": (config.QualityFocal(), huber),
        "varifocal": (config.Varifocal(), huber),
        "of_images": (focal, huber, config.ImageNormalizer()),
        "class_weights": (focal, huber),
    }
    for name, kinds in objectives.items():
        chosen = config.Loss(**dict(zip(("classification", "box", "normalizer"), kinds, strict=False)))

        weights = np.array([0.5, 1.0, 4.0]) if name == "class_weights" else None

        def loss(chosen=chosen, logits=logits, deltas=deltas, part="loss", weights=weights):
            objective = Objective(levels, config.Assignment(), chosen, class_weights=weights)
            return objective.sums({"logits": tensor(logits), "deltas": tensor(deltas)}, fields).losses()[part]

        keep(f"loss/{name}/logits", lambda x, loss=loss: loss(logits=x), logits)
        keep(f"loss/{name}/deltas", lambda x, loss=loss: loss(deltas=x, part="loss_box"), deltas)

    for name, further in {
        "": {},
        "/linear": {"suppression": "linear", "candidates_per": "image"},
        "/gaussian": {"suppression": "gaussian", "clip": "after"},
    }.items():
        inference = config.Inference(candidates=50, max_detections=40, **further)
        decoded = compiled(lambda outputs, *sizes, i=inference: decode(outputs, levels, *sizes, inference=i))
        found = decoded({"logits": tensor(logits), "deltas": tensor(deltas)}, fields["size"], fields["scale"])
        found = {key: ops.convert_to_numpy(field) for key, field in found.items()}
        out |= {f"detections{name}/boxes": found["boxes"], f"detections{name}/scores": found["scores"]}
        out |= {f"index/detections{name}/labels": found["labels"], f"index/detections{name}/valid": found["valid"]}
    return out


def layers(random):
    """ReLU and max pooling, whose values are whole numbers: zeros, many ties, no rounding. Factors before and after
    tell whose gradient or tangent it is."""
    values = random.integers(-3, 4, (2, 13, 16, 3)).astype(np.float32)
    before, after = (random.integers(1, 4, values.shape).astype(np.float32) for _ in range(2))
    functions = {"relu": lambda x: relu(x * tensor(before)) * tensor(after)}
    for size, stride in ((3, 2), (2, 2), (3, 1)):

        def pooled(x, size=size, stride=stride):
            y = max_pool(x * tensor(before), size, stride)
            return y * tensor(after[:, : y.shape[1], : y.shape[2]])

        functions[f"max_pool/{size}/{stride}"] = pooled
    return {name: (function, values) for name, function in functions.items()}


def classic_losses(random, keep, out):
    """All losses but sigmoid focal and the box losses; what they choose by a rank or a largest has no ties here."""
    logits = np.concatenate([np.linspace(-200, 200, 41), random.normal(0, 4, 200)]).astype(np.float32)
    targets = np.where(np.arange(241) % 3 == 2, 0.3, np.arange(241) % 3).astype(np.float32)
    keep("logistic", lambda x: losses.logistic(x, targets=tensor(targets)), logits)
    for power in (0.5, 1.0, 2.0):
        keep(
            f"quality_focal/{power}",
            lambda x, b=power: losses.quality_focal(x, targets=tensor(targets), beta=b),
            logits,
        )
        keep(
            f"varifocal/{power}",
            lambda x, g=power: losses.varifocal(x, targets=tensor(targets), alpha=0.75, gamma=g),
            logits,
        )
    signs = np.where(targets > 0, 1, -1).astype(np.int32)
    keep("hinge", lambda x: losses.hinge(x, tensor(signs)), logits)
    if keras.backend.backend() == "jax":  # which cannot raise for a label of 0
        assert np.isnan(compiled(losses.hinge)(tensor(logits), tensor(0 * signs))).all()

    rows = np.concatenate([random.normal(0, 4, (40, 5)), 200 * np.eye(5), -200 * np.eye(5)]).astype(np.float32)
    labels = random.integers(0, 5, 50).astype(np.int32)
    keep("softmax_cross_entropy", lambda x: losses.softmax_cross_entropy(x, targets=tensor(labels)), rows)
    keep("multiclass_hinge", lambda x: losses.multiclass_hinge(x, tensor(labels)), rows)
    for gamma in (0.5, 2.0):
        keep(
            f"softmax_focal/{gamma}", lambda x, g=gamma: losses.softmax_focal(x, targets=tensor(labels), gamma=g), rows
        )

    centers, small = random.normal(0, 1, (5, 5)).astype(np.float32), rows[:40]
    keep("center", lambda x: losses.center_loss(x, tensor(labels[:40]), tensor(centers)), small)
    keep("triplet", lambda x: losses.triplet(x, tensor(small[::-1].copy()), tensor(small + 1), margin=3.0), small)
    keep("batch_hard", lambda x: losses.batch_hard_triplet(x, tensor(labels[:40]), margin=3.0), small)
    layer = losses.Centers(5)
    layer(tensor(small), tensor(labels[:40]), training=True)
    out["centers"] = ops.convert_to_numpy(layer.centers)


def detector(weights):
    from retina.models.detector import Detector
    from retina.runs.checkpoint import gather, restore

    keras.utils.set_random_seed(5)
    random = np.random.default_rng(8)
    model = Detector(
        ("a", "b", "c"),
        model=config.Model(
            backbone="keras_cv/resnet10",
            fpn=config.Fpn(channels=64, max_level=6),
            head=config.Head(channels=64, layers=2, init_std=0.05),
        ),
        anchors=ANCHORS,
        inference=config.Inference(candidates=100, max_detections=20, score_threshold=0.01),
    )
    if weights.exists():
        with np.load(weights) as file:
            restore(dict(file), model)
    else:
        np.savez(weights, **gather(model))

    batch = {"images": random.integers(0, 256, (2, *CANVAS, 3)).astype(np.uint8), **batch_of(random)}
    fields = {name: tensor(field) for name, field in batch.items()}
    outputs = compiled(model)(fields)
    found = compiled(model.decode)(outputs, fields)
    found = {name: ops.convert_to_numpy(field) for name, field in found.items()}
    out = {f"outputs/{name}": ops.convert_to_numpy(x) for name, x in outputs.items()}
    out |= {"detections/boxes": found["boxes"], "detections/scores": found["scores"]}
    out |= {"index/detections/labels": found["labels"], "index/detections/valid": found["valid"]}

    values, gradients = losses_and_gradients(model, fields)
    out |= {f"training/{name}": value for name, value in values.items()}
    out |= {f"gradient/{v.path}": g for v, g in zip(model.trainable_variables, gradients, strict=True)}
    return out


def losses_and_gradients(model, batch):
    """In training mode: batch normalisation by the batch's own moments."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            values = model.loss_sums(model(batch, training=True), batch).losses()
        gradients = tape.gradient(values["loss"], [v.value for v in model.trainable_variables])
    elif backend == "jax":
        import jax

        def loss(trainable, frozen):
            outputs, _ = model.stateless_call(trainable, frozen, batch, training=True)
            values = model.loss_sums(outputs, batch).losses()
            return values["loss"], values

        state = [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]
        (_, values), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(*state)
        check_forward_mode(model, batch, gradients)
    else:
        import torch

        values = model.loss_sums(model(batch, training=True), batch).losses()
        gradients = torch.autograd.grad(values["loss"], [v.value for v in model.trainable_variables])
        check_forward_mode(model, batch, gradients)
    numpy = ops.convert_to_numpy
    return {name: numpy(value) for name, value in values.items()}, [numpy(g) for g in gradients]


def check_forward_mode(model, batch, gradients):
    """The loss along a direction is the gradient's product with it; on JAX that of a training step, whose gradients are
    written out."""
    random = np.random.default_rng(11)
    gradients = [ops.convert_to_numpy(g) for g in gradients]
    # No terms of opposite signs: nothing cancels.
    directions = [tensor(g * random.uniform(0.5, 1.5, g.shape).astype(np.float32)) for g in gradients]
    expected = sum(np.vdot(g.astype(np.float64), np.asarray(d)) for g, d in zip(gradients, directions, strict=True))
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    frozen = [v.value for v in model.non_trainable_variables]

    def loss(*trainable):
        with keras.StatelessScope(list(zip(variables, [*trainable, *frozen], strict=True))):
            return model.training_sums(batch).losses()["loss"]

    if keras.backend.backend() == "jax":
        import jax

        shorten_gradients(model.backbone)
        along = jax.jit(lambda values, directions: jax.jvp(loss, values, directions)[1])
        slope = along(tuple(v.value for v in model.trainable_variables), tuple(directions))
    else:
        import torch

        slope = torch.func.jvp(loss, tuple(v.value.detach() for v in model.trainable_variables), tuple(directions))[1]
    assert expected > 0.1
    np.testing.assert_allclose(ops.convert_to_numpy(slope), expected, rtol=1e-5)


if __name__ == "__main__":
    results = {"functions": functions(), "detector": detector(Path(sys.argv[2]))}
    np.savez(sys.argv[1], **{f"{part}/{name}": x for part, result in results.items() for name, x in result.items()})
