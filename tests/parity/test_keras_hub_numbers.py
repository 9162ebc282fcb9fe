"""What an imported keras-hub RetinaNet detects and loses on real photographs, beside keras-hub's own code.

Definitions of the losses differ in two places, which the references here even out: it averages the focal loss over
classes (times K here) and it averages Huber over the four numbers (weight 1/4 in the configuration). It normalises
padding, so images fill their canvas; and it has no bound on candidates.
"""

import keras
import numpy as np
import pytest
from PIL import Image

keras_hub = pytest.importorskip("keras_hub")
pytest.importorskip("h5py")

from retina.runs.importing import import_run  # noqa: E402
from tests.parity import runner  # noqa: E402
from tests.parity.test_keras_hub import MEAN, STD, retinanet  # noqa: E402

SIZES = ((96, 160), (128, 128))
CLASSES, THRESHOLD, MOST = 3, 0.8, 40
YXYX = [1, 0, 3, 2]
# Two boxes near anchors of P3 and P5, and one that no anchor overlaps by half.
BOXES = np.array([[20, 18, 52, 51], [10, 5, 95, 90], [70, 60, 78, 66]], np.float32)
LABELS = np.array([0, 2, 1])
OVERRIDES = [
    "loss.classification.alpha=null",
    "loss.box={kind: huber, delta: 1.0, weight: 0.25}",
    f"inference.max_detections={MOST}",
    "inference.candidates=5000",
]


def cases_of(shared_data):
    out = {}
    files = sorted((shared_data / "coco_mini").rglob("*.jpg"))
    for number, (file, (height, width)) in enumerate(zip(files, SIZES, strict=False)):
        image = np.asarray(Image.open(file).convert("RGB").resize((width, height)))
        out |= {f"canvas_{number}": image, f"size_{number}": np.array([height, width])}
        out |= {f"boxes_{number}": BOXES, f"labels_{number}": LABELS}
    return out


def expected(model, cases):
    """keras-hub's side of `runner.results`."""
    out = {}
    for number in range(len(SIZES)):
        image = cases[f"canvas_{number}"][None]
        pixels = ((image - np.array(MEAN)) / np.array(STD)).astype(np.float32)
        outputs = model(pixels, training=False)
        height, width = image.shape[1:3]
        boxes = keras.utils.bounding_boxes.decode_deltas_to_boxes(
            anchors=keras.ops.concatenate(list(model.anchor_generator(pixels).values()), axis=0),
            boxes_delta=outputs["bbox_regression"],
            encoded_format="center_xywh",
            anchor_format="yxyx",
            box_format="yxyx",
            image_shape=(height, width, 3),
        )
        decoded = model.prediction_decoder(boxes, outputs["cls_logits"])
        count = int(decoded["num_detections"][0])
        corners, scores, labels = (np.asarray(decoded[name])[0, :count] for name in ("boxes", "confidence", "labels"))
        detections = list(zip(scores.reshape(-1), labels, corners[:, YXYX], strict=True))
        targets = {"boxes": BOXES[None][..., YXYX], "labels": LABELS[None].astype(np.float32)}
        out |= {
            f"logits_{number}": np.asarray(outputs["cls_logits"]),
            f"deltas_{number}": np.asarray(outputs["bbox_regression"]),
            f"found_{number}": detections,
            f"loss_classification_{number}": CLASSES * loss(model, pixels, targets, outputs, "cls_logits"),
            f"loss_box_{number}": loss(model, pixels, targets, outputs, "bbox_regression"),
        }
    return out


def loss(model, pixels, targets, outputs, name):
    """One of keras-hub's two losses, as it compiles them by default."""
    model.compile(loss_weights={one: float(one == name) for one in ("bbox_regression", "cls_logits")})
    return float(model.compute_loss(x=pixels, y=targets, y_pred=outputs, sample_weight=None))


def compare(found, wanted):
    for number in range(len(SIZES)):
        for name in ("logits", "deltas"):
            theirs = wanted[f"{name}_{number}"]
            np.testing.assert_allclose(found[f"{name}_{number}"], theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
        for name in ("loss_classification", "loss_box"):
            assert wanted[f"{name}_{number}"] > 0.01
            np.testing.assert_allclose(found[f"{name}_{number}"], wanted[f"{name}_{number}"], rtol=2e-5, err_msg=name)
        valid = found[f"valid_{number}"]
        boxes, scores, labels = (found[f"{name}_{number}"][valid] for name in ("boxes", "scores", "labels"))
        theirs = wanted[f"found_{number}"]
        assert len(theirs) == valid.sum() > 10 and len({label for _, label, _ in theirs}) > 1
        fits = labels[:, None] == np.array([label for _, label, _ in theirs])
        fits &= np.abs(scores[:, None] - np.array([score for score, _, _ in theirs])) <= 1e-5
        fits &= np.abs(boxes[:, None] - np.stack([corners for _, _, corners in theirs])).max(axis=-1) <= 0.01
        assert fits.any(axis=0).all() and fits.any(axis=1).all()


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """keras-hub's model and the run made of it; logits spread as a trained detector's, deltas not too far."""
    folder = tmp_path_factory.mktemp("keras_hub_numbers")
    model = retinanet(CLASSES, norm=True, use_p5=True)
    outputs = model(np.random.default_rng(0).normal(size=(1, *SIZES[0], 3)).astype(np.float32), training=False)
    for head, name, wanted in (
        (model.classification_head, "cls_logits", 2.0),
        (model.box_head, "bbox_regression", 0.3),
    ):
        kernel = head.prediction_layer.kernel
        kernel.assign(kernel * (wanted / np.asarray(outputs[name]).std()))
    model.prediction_decoder.confidence_threshold = THRESHOLD
    model.prediction_decoder.max_detections = MOST
    model.save_to_preset(str(folder / "preset"))
    import_run("keras-hub", folder / "preset", folder / "run", overrides=OVERRIDES)
    return model, folder / "run"


@pytest.fixture(scope="module")
def references():
    """`expected`, computed once for all backends."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_every_backend(backend, imported, references, shared_data, tmp_path):
    pytest.importorskip(backend)
    model, run = imported
    cases = cases_of(shared_data)
    if not references:
        references.update(expected(model, cases))
    compare(runner.on_backend(backend, tmp_path, cases, [run])[0], references)
