import copy
from pathlib import Path

import pytest

from retina import config
from retina.config import AdamW, CosineSchedule, DigitsSource, GiouBox, HuberBox, Sgd, StepSchedule, VocSource
from retina.config.differences import changed_keys
from retina.errors import RetinaError

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))

SMALL = {
    "data": {"train": {"format": "digits"}, "validation": {"format": "digits", "split": "validation"}},
    "schedule": {"kind": "step", "steps": 10},
}
SMALL_YAML = """
data:
  train: {format: digits}
  validation: {format: digits, split: validation}
schedule: {kind: step, steps: 10}
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def changed(*overrides):
    return config.override(config.parse(SMALL), overrides)


def message(call, *arguments):
    with pytest.raises(RetinaError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize("overrides", [[], ["run.seed=1"]])
@pytest.mark.parametrize(
    ("text", "kind"),
    [("", "NoneType"), ("# nothing\n", "NoneType"), ("- 1\n- 2\n", "list"), ("hello", "str"), ("3", "int")],
)
def test_a_file_that_is_no_mapping(write, text, kind, overrides):
    path = write(text)
    expected = f"{path}: expected a mapping of sections (data, model, …), got {kind}"
    assert message(config.load, path, overrides) == expected


def test_a_missing_file(tmp_path):
    assert message(config.load, tmp_path / "no.yaml") == (
        f"{tmp_path}/no.yaml: cannot read this config file: No such file or directory"
    )
    assert "Is a directory" in message(config.load, tmp_path)


def test_a_file_that_is_not_utf8(write):
    path = write(b"data: \xff\xfe")
    assert message(config.load, path) == f"{path}: cannot read this config file: it is not UTF-8 text"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("data: [\n", "line 2: not valid YAML"),
        ("a: b: c", "line 1: not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("? [a]\n: 1\n", "line 1: not valid YAML: found unhashable key"),
        ("a: !!python/object/apply:os.getcwd []", "line 1: not valid YAML"),
        ("run:\n  seed: 1\n  seed: 2\n", "line 3: key 'seed' is given twice; remove one"),
        ("run: {seed: 1}\nrun: {seed: 2}\n", "line 2: key 'run' is given twice; remove one"),
    ],
)
def test_bad_yaml(write, text, problem):
    path = write(text)
    assert message(config.load, path).startswith(f"{path}: {problem}")


def test_missing_sections(write):
    path = write("{}")
    assert message(config.load, path) == f"{path}: missing key 'data'; missing key 'schedule'"
    assert "'1': keys should be strings" in message(config.load, write(SMALL_YAML + "1: 2"))


# ------------------------------------------------------------------------------------------------------- bad values


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        # data
        ("data=null", "'data': input should be a valid dictionary"),
        (
            "data.train.format=xml",
            "'data.train.format': expected one of 'coco', 'voc', 'yolo', 'csv', 'labelme', 'tfds', 'digits'",
        ),
        ("data.test={split: test}", "missing key 'data.test.format'"),
        ("data.train={format: coco}", "missing key 'data.train.annotations'; missing key 'data.train.images'"),
        ("data.train={format: voc}", "missing key 'data.train.splits'"),
        ("data.train={format: voc, splits: []}", "'data.train.splits': tuple should have at least 1 item"),
        ("data.train.size=63", "'data.train.size': input should be greater than or equal to 64, got 63"),
        ("data.train.split=all", "'data.train.split': input should be 'train', 'validation' or 'test', got 'all'"),
        ("data.classes=[]", "'data.classes': classes must be a non-empty list of distinct names"),
        ("data.classes=[cat, dog, cat]", "'data.classes': classes must be a non-empty list of distinct names"),
        ("data.classes=[true, cat]", "'data.classes.0': input should be a valid string, got True"),
        ("data.invalid_boxes=fix", "'data.invalid_boxes': input should be 'error', 'clip' or 'drop', got 'fix'"),
        ("data.difficult=no", "'data.difficult': input should be 'ignore', 'use' or 'drop', got 'no'"),
        ("data.resize.short=2000", "'data.resize': long (1333) must be at least short (2000)"),
        ("data.resize.train_short=[800, 640]", "'data.resize': train_short must increase, got [800, 640]"),
        ("data.resize.train_short=[640, 1400]", "long (1333) must be at least the largest train_short (1400)"),
        ("data.resize.train_short=[800]", "'data.resize': train_short [800] has no effect beside the same short"),
        ("data.resize.multiple=48", "data.resize.multiple (48) must be a multiple of 32"),
        ("anchors.sizes=[[32], [64]]", "a list for each level from P3 on: model.fpn has P3 to P7, there are 2 lists"),
        ("anchors.sizes=[[32], [64, 80]]", "'anchors': sizes must be lists of the same length, at least 1"),
        ("anchors={sizes: [[32]], size: 2.0}", "'anchors': size has no effect where sizes are given"),
        ("anchors={sizes: [[32]], scales: [2.0]}", "'anchors': scales has no effect where sizes are given"),
        ("model.head.conv_bias=false", "'model.head': conv_bias: false needs norm: group"),
        ("data.augment.scale=[2, 1]", "'data.augment': scale must be (low, high) with low <= high"),
        ("data.augment.scale=[0, 1]", "'data.augment.scale.0': input should be greater than 0, got 0"),
        ("data.augment.horizontal_flip=1.5", "'data.augment.horizontal_flip': input should be less than or equal to 1"),
        # model
        ("model.fpn=null", "'model.fpn': input should be a valid dictionary"),
        ("model.fpn.min_level=2", "'model.fpn.min_level': input should be greater than or equal to 3, got 2"),
        ("model.fpn.max_level=8", "'model.fpn.max_level': input should be less than or equal to 7, got 8"),
        ("model.fpn={min_level: 5, max_level: 4}", "'model.fpn': max_level (4) must be at least min_level (5)"),
        ("model.fpn.p6_from=c4", "'model.fpn.p6_from': input should be 'c5' or 'p5', got 'c4'"),
        (
            "model.head={norm: group, channels: 48}",
            "'model.head': norm: group needs channels in multiples of 32, got 48",
        ),
        ("model.head.prior=0", "'model.head.prior': input should be greater than 0, got 0"),
        ("model.head.prior=1.0", "'model.head.prior': input should be less than 1, got 1.0"),
        ("model.head.layers=-1", "'model.head.layers': input should be greater than or equal to 0, got -1"),
        ("model.batch_norm=none", "'model.batch_norm': input should be 'train', 'frozen' or 'sync', got 'none'"),
        ("model.pixel_std=[0, 1, 1]", "'model.pixel_std.0': input should be greater than 0, got 0"),
        ("model.pixel_mean=[1, 2]", "missing key 'model.pixel_mean.2'"),
        ("model.pixel_mean=[.nan, 0, 0]", "'model.pixel_mean.0': input should be a finite number, got nan"),
        # anchors and assignment
        ("anchors.scales=[]", "'anchors.scales': tuple should have at least 1 item"),
        ("anchors.ratios=[1, -1]", "'anchors.ratios.1': input should be greater than 0, got -1"),
        ("anchors.offset=2", "'anchors.offset': input should be less than or equal to 1, got 2"),
        ("anchors.box_weights=[1, 1, 1]", "missing key 'anchors.box_weights.3'"),
        ("anchors.max_size_ratio=1", "'anchors.max_size_ratio': input should be greater than 1, got 1"),
        ("assignment.positive_iou=0.3", "'assignment': negative_iou (0.4) must not exceed positive_iou (0.3)"),
        ("assignment.positive_iou=.nan", "'assignment.positive_iou': input should be a finite number, got nan"),
        ("assignment.crowd_overlap=0", "'assignment.crowd_overlap': input should be greater than 0, got 0"),
        # loss
        (
            "loss.classification.alpha=1.1",
            "'loss.classification.alpha': input should be less than or equal to 1, got 1.1",
        ),
        ("loss.classification.gamma=-1", "'loss.classification.gamma': input should be greater than or equal to 0"),
        ("loss.classification.gamma=.inf", "'loss.classification.gamma': input should be a finite number, got inf"),
        ("loss.classification.gamma=true", "'loss.classification.gamma': input should be a valid number, got True"),
        ("loss.box.delta=0", "'loss.box.delta': input should be greater than 0, got 0"),
        (
            "loss.box={kind: l2}",
            "'loss.box.kind': expected one of 'huber', 'smooth_l1', 'l1', 'giou', 'diou', 'ciou', got 'l2'",
        ),
        (
            "loss.classification.kind=softmax",
            "'loss.classification.kind': expected one of 'focal', 'cross_entropy', 'ohem', 'quality_focal', "
            "'varifocal', got 'softmax'",
        ),
        ("loss.classification={kind: ohem, hardest: 3}", "hardest (3) must be at least 1 + ratio (4)"),
        ("loss.classification={kind: ohem, ratio: 0}", "'loss.classification.ratio': input should be greater than 0"),
        (
            "loss.classification={kind: ohem, ratio: 1.5}",
            "'loss.classification.ratio': input should be a valid integer",
        ),
        (
            "loss.classification={kind: cross_entropy, gamma: 1}",
            "unknown key 'loss.classification.gamma'; valid keys: kind, alpha",
        ),
        ("loss.classification={kind: varifocal, beta: 1}", "unknown key 'loss.classification.beta'"),
        ("loss.classification={kind: quality_focal, beta: -1}", "'loss.classification.beta': input should be greater"),
        ("loss.box={kind: giou, beta: 1}", "unknown key 'loss.box.beta'; valid keys: kind, weight"),
        # optimizer and schedule
        ("optimizer.kind=rmsprop", "'optimizer.kind': expected one of 'sgd', 'adamw', got 'rmsprop'"),
        ("optimizer.momentum=1.0", "'optimizer.momentum': input should be less than 1, got 1.0"),
        ("optimizer.learning_rate=0", "'optimizer.learning_rate': input should be greater than 0, got 0"),
        ("optimizer.clip_norm=0", "'optimizer.clip_norm': input should be greater than 0, got 0"),
        ("optimizer=sgd", "'optimizer': input should be a valid dictionary"),
        ("schedule={steps: 5}", "missing key 'schedule.kind'"),
        ("schedule.steps=0", "'schedule.steps': input should be greater than 0, got 0"),
        ("schedule.warmup_steps=11", "'schedule': warmup_steps (11) must not exceed steps (10)"),
        ("schedule.warmup_factor=0.5", "'schedule': warmup_factor has no effect with warmup_steps: 0; remove it"),
        ("schedule={kind: step, steps: 10, factor: 0.5}", "'schedule': factor has no effect without milestones"),
        ("schedule={kind: step}", "'schedule': give either steps or epochs, got neither"),
        ("schedule={kind: step, steps: 10, epochs: 3}", "'schedule': give either steps or epochs, got both"),
        ("schedule.epochs=0", "'schedule.epochs': input should be greater than 0, got 0"),
        ("schedule.milestones=[5, 3]", "'schedule': milestones must increase, got [5, 3]"),
        # run, inference, evaluation
        ("run.batch_size=0", "'run.batch_size': input should be greater than 0, got 0"),
        ("run.batch_size=true", "'run.batch_size': input should be a valid integer, got True"),
        ("run.batch_size='8'", "'run.batch_size': input should be a valid integer, got '8'"),
        ("run.seed=1e-3", "'run.seed': input should be a valid integer"),
        ("run.seed=-1", "'run.seed': input should be greater than or equal to 0, got -1"),
        (
            "evaluation.max_detections=[1, 10, 1000001]",
            "'evaluation': max_detections must be 1000000 at most, got 1000001",
        ),
        (
            "run.precision=float16",
            "'run.precision': input should be 'float32', 'mixed_bfloat16' or 'mixed_float16', got 'float16'",
        ),
        ("inference.nms_iou=1.5", "'inference.nms_iou': input should be less than or equal to 1, got 1.5"),
        ("inference.candidates=0", "'inference.candidates': input should be greater than 0, got 0"),
        ("evaluation.metric=mAP", "'evaluation.metric': input should be 'AP', 'AP50' or 'AP75', got 'mAP'"),
    ],
)
def test_a_bad_value(override, problem):
    assert problem in message(changed, override)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("optimzer.kind=sgd", "unknown key 'optimzer'; did you mean 'optimizer'?"),
        ("data.train.splt=train", "unknown key 'data.train.splt'; did you mean 'split'?"),
        ("data.resize.shrt=3", "unknown key 'data.resize.shrt'; did you mean 'short'?"),
        ("loss.box.delt=1", "unknown key 'loss.box.delt'; did you mean 'delta'?"),
        ("schedule.milestone=[3]", "unknown key 'schedule.milestone'; did you mean 'milestones'?"),
        ("data.test={format: voc, splits: [a], foldr: x}", "unknown key 'data.test.foldr'; did you mean 'folder'?"),
        ("evaluation.xyzzy=3", "unknown key 'evaluation.xyzzy'; valid keys: metric"),
        ("a..b=1", "unknown key 'a'; valid keys: data, model"),
    ],
)
def test_an_unknown_key_names_its_path_and_the_nearest(override, problem):
    assert problem in message(changed, override)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("run", "override 'run': expected key.path=value, for instance run.seed=1"),
        ("=3", "override '=3': expected key.path=value, for instance run.seed=1"),
        ("run.seed=[", "override 'run.seed=[': the value is not valid YAML; put it in quotes"),
        ("run.seed.x=3", "override 'run.seed.x=3': 'seed' is a value, not a section"),
    ],
)
def test_a_bad_override(override, problem):
    assert message(changed, override) == problem


def test_every_problem_is_named_at_once():
    text = message(changed, "run.seed=-1", "run.batch_size=0", "inference.foo=1")
    assert "run.seed" in text and "run.batch_size" in text and "inference.foo" in text


# ------------------------------------------------------------------------------------------------------ good values


def test_defaults_are_the_papers():
    default = config.parse(SMALL)
    assert (default.loss.classification.alpha, default.loss.classification.gamma) == (0.25, 2.0)
    assert default.loss.box == HuberBox(delta=1 / 9, weight=9.0)
    assert default.model.head.prior == 0.01 and default.model.head.init_std == 0.01
    assert (default.model.fpn.min_level, default.model.fpn.max_level, default.model.fpn.p6_from) == (3, 7, "c5")
    assert default.anchors.scales == (1.0, 2 ** (1 / 3), 2 ** (2 / 3)) and default.anchors.ratios == (0.5, 1.0, 2.0)
    assert (default.assignment.positive_iou, default.assignment.negative_iou) == (0.5, 0.4)
    assert default.inference.model_dump() | {"batch_size": 8} == {
        "score_threshold": 0.05, "candidates": 1000, "nms_iou": 0.5, "max_detections": 100, "batch_size": 8,
        "class_agnostic": False, "candidates_per": "level", "clip": "before", "suppression": "hard", "soft_sigma": 0.5,
    }  # fmt: skip
    assert default.optimizer == Sgd(learning_rate=0.01, momentum=0.9, weight_decay=1e-4)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["inference.soft_sigma=0.3"], "soft_sigma has no effect with suppression: hard; leave it at 0.5"),
        (
            ["inference.soft_sigma=0.3", "inference.suppression=linear"],
            "soft_sigma has no effect with suppression: linear",
        ),
        (
            ["inference.nms_iou=0.3", "inference.suppression=gaussian"],
            "nms_iou has no effect with suppression: gaussia",
        ),
    ],
)
def test_settings_of_suppression_without_effect(overrides, text):
    with pytest.raises(RetinaError, match=text):
        changed(*overrides)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "1.0e-3", "+1e-3", "0.001", ".001", "10e-4"])
def test_exponents_are_floats(write, text):
    loaded = config.load(write(SMALL_YAML + f"optimizer: {{learning_rate: {text}}}"))
    assert loaded.optimizer.learning_rate == 0.001
    assert changed(f"optimizer.learning_rate={text}").optimizer.learning_rate == 0.001


@pytest.mark.parametrize("name", ["e1", "1e", "x1e-3", "1e-3x"])
def test_words_that_look_like_exponents_stay_text(name):
    assert changed(f"data.classes=[{name}, b]").data.classes == (name, "b")


def test_only_true_and_false_are_booleans(write):
    switched = "run: {xla: off, preflight: off, report: no}"
    read = config.load(write(SMALL_YAML + switched), ["data.classes=[on, Yes, n, No]"])
    assert (read.run.xla, read.run.preflight, read.run.report) == ("off", "off", False)
    assert read.data.classes == ("on", "Yes", "n", "No")
    assert config.load(write(SMALL_YAML + "run: {deterministic: True}")).run.deterministic is True


def test_kinds_choose_the_section():
    chosen = config.parse(
        {
            "data": {"train": {"format": "voc", "splits": ["2007/train"]}, "validation": {"format": "digits"}},
            "schedule": {"kind": "cosine", "steps": 5, "final_factor": 0.1},
            "optimizer": {"kind": "adamw", "beta_1": 0.8},
            "loss": {"box": {"kind": "giou"}},
        }
    )
    assert chosen.data.train == VocSource(splits=("2007/train",)) and chosen.data.validation == DigitsSource()
    assert chosen.data.test is None
    assert chosen.schedule == CosineSchedule(steps=5, final_factor=0.1)
    assert chosen.optimizer == AdamW(beta_1=0.8)
    assert chosen.loss.box == GiouBox(weight=2.0)


def test_another_kind_drops_what_belonged_to_the_one_before():
    adamw = changed("optimizer.kind=adamw", "optimizer.learning_rate=0.002")
    assert adamw.optimizer == AdamW(learning_rate=0.002)
    assert changed("optimizer.momentum=0.5", "optimizer.kind=sgd").optimizer == Sgd(momentum=0.5), "the same kind stays"
    assert changed("data.train.images=7", "data.train.format=digits").data.train.images == 7
    assert "missing key 'data.train.annotations'" in message(changed, "data.train.format=coco")


def test_frozen_statistics_need_the_weights_they_come_with():
    assert "batch_norm: frozen needs pretrained weights" in message(changed, "model.batch_norm=frozen")


def test_a_preset_needs_the_pixels_it_was_trained_on():
    assert "expect pixels in [0, 1]" in message(changed, "model.weights=resnet50_imagenet")
    pixels = ("model.pixel_mean=[0.0, 0.0, 0.0]", "model.pixel_std=[255.0, 255.0, 255.0]")
    assert changed("model.weights=resnet50_imagenet", *pixels).model.weights == "resnet50_imagenet"


def test_a_milestone_without_effect_is_refused():
    text = message(changed, "schedule={kind: step, steps: 10, milestones: [5, 10]}")
    assert "milestone 10 has no effect: it must be below steps (10)" in text


def test_the_default_kind_need_not_be_named():
    partly = config.parse({**SMALL, "optimizer": {"momentum": 0.5}, "loss": {"box": {"delta": 1.0}}})
    assert partly.optimizer == Sgd(momentum=0.5)
    assert partly.loss.box == HuberBox(delta=1.0)
    assert partly.schedule == StepSchedule(steps=10)
    focal = config.parse({**SMALL, "loss": {"classification": {"gamma": 1.0}}})
    assert focal.loss.classification == config.Focal(alpha=0.25, gamma=1.0)


def test_an_override_of_epochs_takes_the_place_of_steps_and_back():
    schedule = config.load(None, ["schedule.epochs=2.5"]).schedule
    assert (schedule.steps, schedule.epochs) == (None, 2.5)
    with pytest.raises(RetinaError, match=r"schedule.epochs: expected a number of steps here, got 2.5 epochs"):
        schedule.length  # noqa: B018
    back = config.override(config.load(None, ["schedule.epochs=2"]), ["schedule.steps=300"]).schedule
    assert (back.length, back.epochs) == (300, None)
    assert config.load(None, ["schedule.epochs=null"]).schedule.steps == config.load().schedule.steps


def test_another_kind_replaces_a_default_that_was_not_named(write):
    path = write(SMALL_YAML + "loss: {classification: {alpha: 0.5, gamma: 1.0}}")
    assert config.load(path, ["loss.classification.gamma=3"]).loss.classification == config.Focal(alpha=0.5, gamma=3.0)
    changed = config.load(path, ["loss.classification.kind=cross_entropy"])
    assert changed.loss.classification == config.CrossEntropy(alpha=0.75)


@pytest.mark.parametrize(
    ("kind", "section"),
    [
        ("focal", config.Focal(alpha=0.25, gamma=2.0)),
        ("cross_entropy", config.CrossEntropy(alpha=0.75)),
        ("ohem", config.Ohem(ratio=3, hardest=128)),
        ("quality_focal", config.QualityFocal(beta=2.0)),
        ("varifocal", config.Varifocal(alpha=0.75, gamma=2.0)),
    ],
)
def test_kinds_of_classification_loss(kind, section):
    assert changed(f"loss.classification.kind={kind}").loss.classification == section


@pytest.mark.parametrize(
    ("kind", "section"), [("diou", config.DiouBox(weight=2.0)), ("ciou", config.CiouBox(weight=2.0))]
)
def test_kinds_of_box_loss(kind, section):
    assert changed(f"loss.box.kind={kind}").loss.box == section


def test_overrides(write):
    overrides = ["run.seed=3", "data.root=/data/x", "model.head.norm=group", "optimizer.clip_norm=null", "run.seed=4"]
    loaded = config.load(write(SMALL_YAML), overrides)
    assert loaded.run.seed == 4  # the last one counts
    assert loaded.data.root == Path("/data/x")
    assert loaded.model.head.norm == "group"
    assert loaded.optimizer.clip_norm is None
    assert config.override(config.parse(SMALL), overrides) == loaded
    assert config.load(write(SMALL_YAML), ["loss.classification.alpha=null"]).loss.classification.alpha is None
    assert config.load(write(SMALL_YAML), ["data.classes=[a=b, c]"]).data.classes == ("a=b", "c")


def test_nothing_is_mutated():
    tree = copy.deepcopy(SMALL)
    first = config.parse(tree)
    assert tree == SMALL
    assert config.override(first, ["run.seed=9"]).run.seed == 9 and first.run.seed == 0
    with pytest.raises(Exception, match="frozen"):
        first.run.seed = 1


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.classes=[é, 'yes', '1e-3', 'null']", "optimizer.learning_rate=1e-5", "loss.classification.alpha=null"],
        ["data.train={format: voc, folder: a/b, splits: [x]}", "schedule={kind: cosine, steps: 7}"],
        ["data.test={format: coco, annotations: a.json, images: i}", "loss.box={kind: smooth_l1}"],
        ["loss.classification={kind: ohem, ratio: null}", "loss.box={kind: ciou}"],
    ],
)
def test_round_trip(write, overrides):
    first = changed(*overrides)
    text = config.to_yaml(first)
    assert config.load(write(text)) == first
    assert config.to_yaml(config.load(write(text))) == text


# ---------------------------------------------------------------------------------------------------------- configs


def test_no_path_means_the_digits_demo():
    assert config.load() == config.load(config.default_path())
    assert config.load().data.train.format == "digits"
    assert message(config.load, None, ["run.sed=1"]) == "digits demo: unknown key 'run.sed'; did you mean 'seed'?"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads(path):
    loaded = config.load(path)
    assert config.parse(loaded.model_dump(mode="json")) == loaded


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_builds(path):
    from retina.models.detector import Detector

    loaded = config.load(path)
    names = loaded.data.classes or [str(k) for k in range(10)]
    detector = Detector(
        names,
        model=loaded.model.model_copy(update={"weights": None}),  # presets need the network
        anchors=loaded.anchors,
        assignment=loaded.assignment,
        loss=loaded.loss,
        inference=loaded.inference,
        precision=loaded.run.precision,
    )
    per_cell = len(loaded.anchors.scales) * len(loaded.anchors.ratios)
    assert detector.classification.bias.shape == (per_cell * len(names),)
    assert detector.box.bias.shape == (per_cell * 4,)
    assert len(detector.level_anchors((256, 256))) == loaded.model.fpn.max_level - loaded.model.fpn.min_level + 1


def test_there_are_configs():
    names = {"digits", "ablation_digits", "bccd", "voc07", "voc0712", "coco_r50_fpn_1x", "coco_r101_fpn_1x"}
    assert names | {"bccd_finetune", "voc_finetune"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ({}, {}, {}),
        ({"a": {"b": 1}}, {"a": {"b": 1}}, {}),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, {"a.b": "a.b (1 → 2)"}),
        ({"a": {"b": 1}}, {"a": {"c": 1}}, {"a.b": "a.b (1 → None)", "a.c": "a.c (None → 1)"}),
        ({"a": 1}, {"a": {"b": 1}}, {"a": "a (1 → {'b': 1})"}),
    ],
)
def test_changed_keys_are_named_by_their_dotted_path(before, after, changed):
    assert changed_keys(before, after) == changed
