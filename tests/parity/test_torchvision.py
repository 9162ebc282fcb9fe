"""Imported detectors compute what torchvision computes: outputs, detections and losses on real photographs.

torchvision's own resizing is left out (it interpolates normalised floats, retina rounds to uint8): both see the same
canvas.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torchvision") is None:  # importing it is for torchvision_models to do
    pytest.skip("needs torchvision", allow_module_level=True)

from retina import cli, config  # noqa: E402
from retina.data.batches import plan  # noqa: E402
from retina.data.batches.evaluation import canvas_image  # noqa: E402
from retina.errors import RetinaError  # noqa: E402
from retina.models import backbones  # noqa: E402
from retina.runs.importing import import_run  # noqa: E402
from retina.runs.loading import load  # noqa: E402
from tests.parity import runner  # noqa: E402
from tests.parity import torchvision_models as theirs  # noqa: E402

# Height and width: one of whole cells, one that leaves padding on both sides, one whose P6 and P7 are rounded up.
SIZES = ((256, 320), (250, 301), (224, 160))
ROWS = 5


def photographs(shared_data, count=None):
    """The last `count` of them."""
    files = sorted((shared_data / "coco_mini").rglob("*.jpg"))[: len(SIZES)]
    images = [
        np.asarray(Image.open(file).convert("RGB").resize((width, height)))
        for file, (height, width) in zip(files, SIZES, strict=True)
    ]
    return images if count is None else images[-count:]


def cases_of(images):
    """Canvases padded to multiples of 32, and boxes a little beside an anchor of P4, P5 and P6, far from each other."""
    out = {}
    for number, image in enumerate(images):
        height, width = image.shape[:2]
        canvas = np.zeros((-(-height // 32) * 32, -(-width // 32) * 32, 3), np.uint8)
        canvas[:height, :width] = image
        boxes = [[18, 18, 78, 82], [width - 66, height - 70, width - 2, height - 1], [5, 90, 150, 220]]
        out |= {f"canvas_{number}": canvas, f"size_{number}": np.array([height, width])}
        out |= {f"boxes_{number}": np.array(boxes, np.float32), f"labels_{number}": np.array([1, 4, 2])}
    return out


# Boxes of which torchvision's matcher makes low-quality matches: no anchor has an IoU of 0.5 with them.
SMALL = {
    "several anchors hold it": [[30, 30, 36, 35], [100, 90, 108, 97]],
    "two want the same anchors": [[30, 30, 40, 40], [31, 31, 41, 41]],
    "its best anchors overlap another more": [[32, 32, 36, 36], [28, 28, 44, 44]],
    "flat": [[0, 60, 160, 66]],
    "half a pixel": [[50, 50, 50.5, 51]],
}


def with_boxes(cases, number, boxes):
    boxes = np.array(boxes, np.float32)
    return {**cases, f"boxes_{number}": boxes, f"labels_{number}": 1 + np.arange(len(boxes)) % (ROWS - 1)}


def expected(model, images, cases):
    """torchvision's side of `runner.results`."""
    out = {}
    for number, image in enumerate(images):
        theirs.native_size(model, *image.shape[:2])
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
        with torch.no_grad():
            listed, _ = model.transform([pixels])
            features = list(model.backbone(listed.tensors).values())
            outputs = model.head(features)
            anchors = model.anchor_generator(listed, features)
            targets = [
                {
                    "boxes": torch.from_numpy(cases[f"boxes_{number}"]),
                    "labels": torch.from_numpy(cases[f"labels_{number}"]).long(),
                }
            ]
            losses = model.compute_loss(targets, outputs, anchors)
            found = model([pixels])[0]
        assert listed.tensors.shape[-2:] == cases[f"canvas_{number}"].shape[:2]
        named = {
            "logits": outputs["cls_logits"],
            "deltas": outputs["bbox_regression"],
            "anchors": anchors[0],
            "loss_classification": losses["classification"],
            "loss_box": losses["bbox_regression"],
            **found,
        }
        out |= {f"{name}_{number}": value.numpy() for name, value in named.items()}
    return out


def compare(found, wanted):
    for number in [int(name.removeprefix("anchors_")) for name in wanted if name.startswith("anchors_")]:
        of = lambda name, n=number: (found[f"{name}_{n}"], wanted[f"{name}_{n}"])  # noqa: E731
        np.testing.assert_array_equal(*of("anchors"))
        for name in ("logits", "deltas"):
            ours, other = of(name)
            assert other.std() > 0.1
            np.testing.assert_allclose(ours, other, rtol=0, atol=1e-4 * np.abs(other).max(), err_msg=name)
        for name in ("loss_classification", "loss_box"):
            ours, other = of(name)
            assert other > 0.01
            np.testing.assert_allclose(ours, other, rtol=1e-5, err_msg=name)
        if f"valid_{number}" not in found:
            continue
        same_detections(
            {name: found[f"{name}_{number}"][found[f"valid_{number}"]] for name in ("boxes", "scores", "labels")},
            {name: wanted[f"{name}_{number}"] for name in ("boxes", "scores", "labels")},
        )


def same_detections(ours, other):
    """The same set, one to one: equal labels, boxes within 0.01 px, scores within 1e-5."""
    assert len(ours["scores"]) == len(other["scores"]) > 20
    fits = ours["labels"][:, None] == other["labels"][None]
    fits &= np.abs(ours["scores"][:, None] - other["scores"][None]) <= 1e-5
    fits &= np.abs(ours["boxes"][:, None] - other["boxes"][None]).max(axis=-1) <= 0.01
    assert fits.any(axis=0).all() and fits.any(axis=1).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("torchvision")


@pytest.fixture(scope="module")
def imported(folder):
    """torchvision's model and the run imported from its file, by version and depth."""
    made = {}

    def imported(version, depth):
        if (version, depth) not in made:
            model = theirs.retinanet(version, ROWS, depth=depth)
            file = theirs.save(model, folder / f"{version}_{depth}.pth")
            import_run("torchvision", file, folder / f"{version}_{depth}")
            made[version, depth] = model, folder / f"{version}_{depth}"
        return made[version, depth]

    return imported


@pytest.mark.parametrize("version", theirs.VERSIONS)
def test_outputs_and_losses(version, imported, shared_data):
    """The quick part: small networks, one photograph, and detections (whose graph takes seconds) once."""
    model, run = imported(version, 18)
    images = photographs(shared_data, 1)
    cases = cases_of(images)
    compare(runner.results(run, cases, detect=version == "v2"), expected(model, images, cases))


def test_sizes_and_pixels_of_resized_images(imported):
    """torchvision's own transform on many sizes, some of which float64 puts a pixel lower; and a photograph's pixels,
    which it does not round to whole levels."""
    _, run = imported("v1", 18)
    resize = config.load(run / "config.yaml").data.resize.model_copy(update={"short": 40, "long": 66})
    assert resize.rounding == "floor"
    draw = np.random.default_rng(0)
    sizes = np.concatenate([draw.integers(1, 200, (60, 2)), [(49, 147), (480, 640), (1, 1)]])
    sizes = sizes[sizes.min(1) * 66 > sizes.max(1)]  # torchvision fails where a side becomes 0
    found = plan.fit(sizes, resize).resized
    for size, ours in zip(sizes.tolist(), found.tolist(), strict=True):
        pixels = draw.integers(0, 256, (*size, 3)).astype(np.uint8)
        shown, _ = theirs.detection.transform._resize_image_and_masks(
            torch.from_numpy(pixels).permute(2, 0, 1).float(), 40, 66
        )
        assert list(shown.shape[1:]) == ours, size
    canvas = canvas_image(pixels, resize)[0][: ours[0], : ours[1]]
    np.testing.assert_allclose(canvas, shown.permute(1, 2, 0), rtol=0, atol=0.51)
    assert (found != plan.fit(sizes, resize.model_copy(update={"rounding": "nearest"})).resized).any()


def test_losses_of_a_batch_are_the_mean_of_its_images(imported):
    """Images of several positives, of few and of none, on random outputs: torchvision's own losses."""
    model, run = imported("v1", 18)
    detector, canvas = load(run).detector, (96, 128)
    anchors, draw = np.concatenate(detector.level_anchors(canvas)), np.random.default_rng(0)
    logits, deltas = (draw.normal(0, 1, (3, len(anchors), width)).astype(np.float32) for width in (ROWS, 4))
    boxes = np.array(
        [[[4, 6, 60, 66], [70, 20, 110, 90]], [[50, 30, 90, 62], [0, 0, 0, 0]], np.zeros((2, 4))], np.float32
    )
    labels, valid = np.array([[1, 4], [2, 0], [0, 0]]), np.array([[True, True], [True, False], [False, False]])
    targets = [
        {"boxes": torch.from_numpy(boxes[row][valid[row]]), "labels": torch.from_numpy(labels[row][valid[row]])}
        for row in range(3)
    ]
    outputs = {"cls_logits": torch.from_numpy(logits), "bbox_regression": torch.from_numpy(deltas)}
    expected = model.compute_loss(targets, outputs, [torch.from_numpy(anchors)] * 3)
    batch = {"boxes": boxes, "labels": labels.astype(np.int32), "valid": valid, "crowd": np.zeros_like(valid)}
    sums = detector.objective(canvas).sums({"logits": logits, "deltas": deltas}, batch)
    assert float(sums.positives) > 5
    for ours, name in (("loss_classification", "classification"), ("loss_box", "bbox_regression")):
        np.testing.assert_allclose(float(sums.losses()[ours]), float(expected[name]), rtol=1e-5)


def test_losses_of_low_quality_matches(imported, shared_data):
    """Every anchor that ties at a box's highest IoU is positive and learns its own best box."""
    model, run = imported("v1", 18)
    image = photographs(shared_data, 1)[0][:128]
    cases = cases_of([image] * len(SMALL))
    for number, boxes in enumerate(SMALL.values()):
        cases = with_boxes(cases, number, boxes)
    compare(runner.results(run, cases, detect=False), expected(model, [image] * len(SMALL), cases))


@pytest.fixture(scope="module")
def references(imported):
    """`expected` of ResNet-50's two versions, computed once for all backends."""
    made = {}

    def references(version, images, cases):
        if version not in made:
            made[version] = expected(imported(version, 50)[0], images, cases)
        return made[version]

    return references


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_every_backend(backend, imported, references, shared_data, folder):
    pytest.importorskip(backend)
    runs = [imported(version, 50)[1] for version in theirs.VERSIONS]
    images = photographs(shared_data)
    images += [images[-1]] * 2
    cases = with_boxes(cases_of(images), len(images) - 2, SMALL["its best anchors overlap another more"])
    cases = with_boxes(cases, len(images) - 1, SMALL["several anchors hold it"])
    for version, found in zip(theirs.VERSIONS, runner.on_backend(backend, folder, cases, runs), strict=True):
        compare(found, references(version, images, cases))


@pytest.mark.slow
def test_published_epsilon(folder, shared_data):
    """Frozen statistics with epsilon 0, which torchvision gives the published first model, matter, and can be set."""
    model = theirs.retinanet("v1", ROWS, depth=18, frozen=True)
    for module in model.modules():
        if isinstance(module, theirs.misc.FrozenBatchNorm2d):
            module.eps = 0.0
            module.running_var.mul_(1e-3)
            module.weight.mul_(0.03)
    file = theirs.save(model, folder / "frozen.pth")
    report = import_run("torchvision", file, folder / "without", overrides=["model.batch_norm_epsilon=0.0"])
    assert "epsilon 1e-5" in report.notes[0]
    import_run("torchvision", file, folder / "with")
    images = photographs(shared_data, 1)
    cases = cases_of(images)
    wanted = expected(model, images, cases)
    compare(runner.results(folder / "without", cases, detect=False), wanted)
    difference = np.abs(runner.results(folder / "with", cases, detect=False)["logits_0"] - wanted["logits_0"]).max()
    assert difference > 1e-3 * np.abs(wanted["logits_0"]).max()


SLOW = [pytest.param(f"resnet{depth}", marks=pytest.mark.slow) for depth in (34, 50, 101, 152)]


@pytest.mark.parametrize("name", ["resnet18", *SLOW])
def test_backbone_files(name, tmp_path):
    """Feature maps of an ImageNet classifier; sides that are odd somewhere on the way included."""
    torch.manual_seed(0)
    model = getattr(theirs.resnet, name)(weights=None)
    theirs.randomise_norms(model, torch.Generator().manual_seed(0))
    theirs.save(model.eval(), tmp_path / "classifier.pth")
    network = backbones.build(name, str(tmp_path / "classifier.pth"))
    for canvas in ((64, 96), (75, 131)):
        same_maps(network, model, canvas)


def same_maps(network, model, canvas):
    image = np.random.default_rng(0).normal(size=(1, *canvas, 3)).astype(np.float32)
    found = network(image)
    with torch.no_grad():
        x = torch.from_numpy(image).permute(0, 3, 1, 2)
        x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        x = model.layer1(x)
        for level in (2, 3, 4):
            x = getattr(model, f"layer{level}")(x)
            wanted = x.permute(0, 2, 3, 1).numpy()
            ours = np.asarray(found[f"C{level + 1}"])
            np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (
            ["model.head.layers=3", "model.head.norm=group"],
            "model.head.layers 3 (it has 4) and model.head.norm group (it has none); leave them out",
        ),
        (["model.backbone=resnet34"], "model.backbone resnet34 (it has resnet18); leave it out"),
        (["anchors.ratios=[1.0]", "anchors.offset=0.5"], "anchors.ratios [1.0] (it has [0.5, 1.0, 2.0]); leave it out"),
    ],
)
def test_overrides_of_the_network(overrides, named, imported, folder, monkeypatch, capsys):
    imported("v1", 18)
    file, out = folder / "v1_18.pth", folder / "another"
    monkeypatch.setattr(
        sys, "argv", ["retina", "import-weights", "torchvision", str(file), "--out", str(out), *overrides]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    wanted = f"retina: {file}: expected overrides that fit the network in this file, got {named}\n"
    assert (ended.value.code, said) == (2, wanted) and not out.exists()


def test_notes_on_resizing(imported, folder):
    imported("v1", 18)
    notes = json.loads((folder / "v1_18" / "import.json").read_text())["notes"]
    assert any("normalised floats" in note for note in notes)
    assert any("data.resize.max_canvases (4)" in note for note in notes)
    written = config.load(folder / "v1_18" / "config.yaml")
    assert written.assignment.force_match == "ties" and written.data.resize.max_canvases == 4
    assert (written.data.resize.rounding, written.loss.normalizer.kind) == ("floor", "image")


def test_another_depth_is_told(tmp_path):
    file = theirs.save(theirs.resnet.resnet34(weights=None), tmp_path / "r34.pth")
    with pytest.raises(RetinaError, match=r"expected the weights of resnet18; it also holds layer1\.2\.conv1"):
        backbones.build("resnet18", str(file))
    with pytest.raises(RetinaError, match=r"expected the weights of resnet50; it lacks layer1\.0\.conv3"):
        backbones.build("resnet50", str(file))


@pytest.mark.parametrize("canvas", [(256, 320), (800, 1344), (32, 32), (224, 160)])
def test_anchor_generator(canvas):
    from retina.config import Anchors
    from retina.ops.anchors import pyramid_anchors
    from retina.weights.tensor_file import TensorFile
    from retina.weights.torchvision import conventions, recognise

    model = theirs.retinanet("v1", 2, depth=18)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    file = TensorFile(Path("x.pth"), "", state)
    section = Anchors.model_validate(conventions(recognise(file), file)[0]["anchors"])
    maps = [torch.zeros(1, 1, -(-canvas[0] // 2**level), -(-canvas[1] // 2**level)) for level in range(3, 8)]
    listed = theirs.detection.image_list.ImageList(torch.zeros(1, 3, *canvas), [canvas])
    wanted = model.anchor_generator(listed, maps)[0].numpy()
    np.testing.assert_array_equal(pyramid_anchors(section, canvas, (3, 4, 5, 6, 7)), wanted)


@pytest.mark.parametrize("fine", [(1, 1), (2, 2), (7, 12), (13, 21), (100, 167)])
def test_upsampling(fine):
    from retina.models.fpn import _upsample_to

    coarse = np.random.default_rng(0).normal(size=(1, -(-fine[0] // 2), -(-fine[1] // 2), 2)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(coarse).permute(0, 3, 1, 2), size=fine, mode="nearest")
    found = _upsample_to(coarse, np.zeros((1, *fine, 2), np.float32))
    np.testing.assert_array_equal(found, wanted.permute(0, 2, 3, 1).numpy())
