"""The code that an export to torchvision prints builds a model with all of the run's settings."""

import importlib.util

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("torchvision") is None:  # importing it is for torchvision_models to do
    pytest.skip("needs torchvision", allow_module_level=True)

from retina import config  # noqa: E402
from retina.weights import torchvision  # noqa: E402
from retina.weights.export_torchvision import building_code  # noqa: E402
from tests.parity import torchvision_models as theirs  # noqa: E402

THEIRS = [
    "model.fpn.padding=symmetric", "model.fpn.max_level=7", "anchors.offset=0.0", "anchors.rounding=true",
    "anchors.spacing=canvas", "assignment.force_match=ties", "loss.box={kind: l1, weight: 1.0}",
]  # fmt: skip
OTHERS = [
    "data.resize.short=320", "data.resize.long=500", "data.resize.multiple=64", "model.pixel_mean=[100.0,110.0,120.0]",
    "model.pixel_std=[50.0,60.0,70.0]", "anchors.size=3.0", "anchors.scales=[1.0,1.5]", "anchors.ratios=[0.5,2.0]",
    "assignment.positive_iou=0.6", "assignment.negative_iou=0.3", "inference.score_threshold=0.2",
    "inference.nms_iou=0.4", "inference.max_detections=70", "inference.candidates=500",
]  # fmt: skip

ANCHORS = (
    "anchors={sizes: [[32,40,50],[64,80,101],[128,161,203],[256,322,406],[512,645,812]], offset: 0.0, rounding: true, "
    "spacing: canvas}"
)


def built(overrides, depth=18, **kind):
    """The model of the printed code, less the file's loading, and the code."""
    settings = [f"model.backbone=resnet{depth}", *THEIRS, "loss.normalizer={kind: image}", *overrides]
    given = config.load(None, settings)
    found = torchvision.Retinanet(depth, 5, 256, 4, False, "p5", True, False, False, 9)._replace(**kind)
    code = building_code(given, found, "x.pth")
    space = {}
    exec("\n".join(line for line in code.splitlines() if "load_state_dict" not in line), space)
    return space["model"], code


@pytest.mark.parametrize("depth", [18, pytest.param(50, marks=pytest.mark.slow)])
def test_every_setting_of_a_run_arrives(depth):
    more = ["model.batch_norm_epsilon=0.003", "model.batch_norm_momentum=0.97", "loss.box={kind: diou, weight: 1.0}"]
    model, code = built([*OTHERS, *more, "assignment.force_match=false"], depth, per_cell=4)
    transform, matcher = model.transform, model.proposal_matcher
    assert (transform.min_size, transform.max_size, transform.size_divisible) == ((320,), 500, 64)
    np.testing.assert_allclose(np.multiply(transform.image_mean, 255), [100, 110, 120])
    np.testing.assert_allclose(np.multiply(transform.image_std, 255), [50, 60, 70])
    assert (matcher.high_threshold, matcher.low_threshold) == (0.6, 0.3)
    assert matcher.allow_low_quality_matches is False
    assert (model.score_thresh, model.nms_thresh, model.detections_per_img, model.topk_candidates) == (
        0.2,
        0.4,
        70,
        500,
    )
    generator = model.anchor_generator
    assert generator.sizes == ((24, 36), (48, 72), (96, 144), (192, 288), (384, 576))
    assert generator.aspect_ratios == ((0.5, 2.0),) * 5
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {(module.eps, round(module.momentum, 6)) for module in norms} == {(0.003, 0.03)}
    assert len(norms) == (20 if depth == 18 else 53)
    assert model.head.regression_head._loss_type == "diou"
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not [line for line in code.splitlines() if line.startswith("#")]
    model.train()
    target = {"boxes": torch.tensor([[10.0, 20.0, 90.0, 80.0]]), "labels": torch.tensor([2])}
    assert all(torch.isfinite(loss) for loss in model([torch.rand(3, 96, 128)], [target]).values())


def test_a_run_with_their_settings_needs_none():
    resize = ["data.resize.short=800", "data.resize.long=1333", "data.resize.multiple=32"]
    given = [*resize, ANCHORS, "inference.max_detections=300"]
    model, code = built(given)
    plain = theirs.RetinaNet(model.backbone, 5)
    assert "model = RetinaNet(backbone, 5, anchor_generator=anchors, head=head)\n" in code and "#" not in code
    for name in ("score_thresh", "nms_thresh", "detections_per_img", "topk_candidates"):
        assert getattr(model, name) == getattr(plain, name)
    assert vars(model.proposal_matcher) == vars(plain.proposal_matcher)
    assert model.anchor_generator.sizes == plain.anchor_generator.sizes
    for name in ("min_size", "max_size", "image_mean", "image_std", "size_divisible"):
        assert getattr(model.transform, name) == getattr(plain.transform, name)


@pytest.mark.parametrize(("depth", "p6_from", "width"), [(18, "c5", 512), (50, "p5", 64)])
def test_other_widths_than_theirs(depth, p6_from, width):
    """With the anchors of the builders by name, which have 256 channels."""
    model, code = built([ANCHORS], depth, channels=64, p6_from=p6_from)
    assert model.backbone.out_channels == 64 and "retinanet_resnet50_fpn(" not in code
    coarse = model.backbone.fpn.extra_blocks
    assert coarse.p6.weight.shape[:2] == (64, width) and coarse.use_P5 == (p6_from == "p5")
    outputs = model.head(list(model.backbone(torch.rand(1, 3, 64, 64)).values()))
    assert outputs["cls_logits"].shape == (1, (64 + 16 + 4 + 1 + 1) * 9, 5)


@pytest.mark.parametrize(
    ("loss", "group_norm", "wanted"),
    [("l1", False, "l1"), ("giou", False, "giou"), ("giou", True, "giou"), ("l1", True, "l1"), ("ciou", True, "ciou")],
)
def test_the_box_loss(loss, group_norm, wanted):
    """On a ResNet-18 a second version is built by parts, which would train by L1."""
    head = ["model.head.norm=group", "model.head.conv_bias=false"] if group_norm else []
    given = [f"loss.box={{kind: {loss}, weight: 1.0}}", *head]
    model, _ = built(given, group_norm=group_norm, p6_from="c5" if group_norm else "p5")
    assert model.head.regression_head._loss_type == wanted


@pytest.mark.parametrize("loss", ["l1", "giou"])
@pytest.mark.slow
def test_the_box_loss_of_a_builder(loss):
    head = ["model.head.norm=group", "model.head.conv_bias=false", f"loss.box={{kind: {loss}, weight: 1.0}}", ANCHORS]
    model, code = built(head, 50, group_norm=True, p6_from="c5")
    assert "retinanet_resnet50_fpn_v2(" in code and model.head.regression_head._loss_type == loss


def test_what_torchvision_cannot_train_with_is_said():
    normalizer = "loss.normalizer={kind: ema}"
    _, code = built(["loss.box={kind: giou, weight: 2.0}", "loss.classification={kind: focal, gamma: 1.0}", normalizer])
    said = [line for line in code.splitlines() if line.startswith("#")]
    assert said == [
        "# torchvision can't train as this run did: loss.box {'kind': 'giou', 'weight': 2.0} (the model here: l1 with "
        "weight 1)",
        "# torchvision can't train as this run did: loss.classification {'kind': 'focal', 'alpha': 0.25, 'gamma': 1.0} "
        "(the model here: focal)",
        "# torchvision can't train as this run did: loss.normalizer ema (the model here: image)",
    ]
    _, code = built(["assignment.force_match=true"])
    assert "# torchvision can't train as this run did: assignment.force_match true (the model here: ties)" in code
