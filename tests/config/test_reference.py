"""Every setting is described, and the terminal and the guide show what stands under the fields."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from retina import cli, config
from retina.config import Config, Section, reference
from retina.config.differences import flat
from retina.config.reference import explain, explained
from retina.errors import RetinaError

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "retina" / "guide" / "settings.md"
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def sections_of(annotation) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in get_args(annotation) for section in sections_of(argument)]


def reachable(section: type[Section]) -> dict[str, type[Section]]:
    """Every section below one, by the name of its class; found by the types alone, not by the schema."""
    sections = {section.__name__: section}
    for field in section.model_fields.values():
        for child in sections_of(field.annotation):
            sections |= reachable(child)
    return sections


FIELDS = [
    pytest.param(field, id=f"{name}.{key}")
    for name, section in reachable(Config).items()
    for key, field in section.model_fields.items()
]


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["retina", "config", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code or 0, *capsys.readouterr()


# ------------------------------------------------------------------------------------------------------ descriptions


def test_the_walk_reaches_every_section():
    every = set(config.__all__) & {name for name in dir(config) if isinstance(getattr(config, name), type)}
    sections = {name for name in every if issubclass(getattr(config, name), Section)} - {"Section"}
    assert len(sections) > 40
    assert sections == set(reachable(Config))


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_has_a_description(field):
    text = field.description
    assert text, "put its description under the field, as a docstring"
    assert text[0].isupper() and text.endswith(".") and len(text) > 15
    assert not re.match(r"(What|Which|How|Why|Where|When)\b", text), "begin with a noun phrase"


@pytest.mark.parametrize("section", reachable(Config).values(), ids=lambda section: section.__name__)
def test_every_section_has_a_description(section):
    assert section.__doc__ and section.__doc__ != Section.__doc__


def described(key: str) -> str:
    return " ".join(setting.description for setting in explain(key)[0])


@pytest.mark.parametrize(
    ("keys", "unit"),
    [
        ("data.resize.short data.resize.train_short data.resize.long data.resize.multiple data.train.size", "pixels"),
        ("data.max_pixels anchors.sizes evaluation.area_ranges data.train.height", "pixels"),
        ("anchors.size", "strides"),
        ("schedule.steps schedule.warmup_steps schedule.milestones", "Steps"),
        ("run.evaluate_every run.checkpoint_every run.log_every", "Steps"),
        ("run.checkpoint_minutes", "Minutes"),
        ("run.batch_size inference.batch_size run.pictures export.certify", "mages"),
        ("optimizer.base_batch_size data.train.images data.train.select.every data.train.select.first", "images"),
        ("run.early_stopping.patience", "Evaluations"),
        ("run.early_stopping.min_delta", "fraction"),
        ("model.pixel_mean", "0 to 255"),
        ("data.augment.colour.hue", "full circles"),
        ("loss.box.delta loss.box.beta", "units of the encoding"),
        ("loss.normalizer.initial", "anchors"),
        ("assignment.positive_iou assignment.negative_iou inference.nms_iou", "IoU"),
    ],
)
def test_numbers_have_units(keys, unit):
    assert {key: unit in described(key) for key in keys.split()} == dict.fromkeys(keys.split(), True)


def test_a_number_from_0_to_1_says_of_what():
    words = re.compile(r"\b(Share|share|Chance|IoU|Probability|[Ff]actor|Score|Weight|Largest change|overlap|units)\b")
    settings = [setting for part in reference.reference() for setting in part.settings if "from 0 to 1" in setting.type]
    assert len(settings) > 20
    assert [setting.key for setting in settings if not words.search(setting.description)] == []


# ------------------------------------------------------------------------------------------------------- one setting


@pytest.mark.parametrize(
    ("key", "kinds", "type", "default", "start"),
    [
        ("run.seed", "", "integer of at least 0 and below 4294967296", "0", "Seed of everything"),
        ("loss.box.beta", "kind: smooth_l1", "number above 0", "0.111111", "Error β"),
        ("optimizer.momentum", "kind: sgd", "number of at least 0 and below 1", "0.9", "Share m"),
        ("optimizer.clip_norm", "", "number above 0, or null", "null", "Bound on the norm"),
        ("optimizer.no_decay", "", "list of text", "['*bias', '*gamma', '*beta']", "Patterns"),
        ("data.train.splits", "format: voc", "list of text, at least one", None, "Files of"),
        ("data.train.annotations", "format: coco", "path", None, "The JSON file"),
        ("data.test.select.share", "", "list of 2 numbers from 0 to 1, or null", "null", "A part"),
        ("run.xla", "", "auto, on or off", "auto", "Whether XLA"),
        ("run.devices", "", "integer or all", "1", "Devices"),
        ("assignment.force_match", "", "false, true or ties", "false", "Whether each"),
        ("anchors.sizes", "", "list of lists of numbers above 0, or null", "null", "Sides in pixels"),
        ("data.augment.crop.area", "", "list of 2 numbers above 0 and at most 1", "[0.3, 1]", "Range"),
        ("model.init_classes", "", "mapping of names to text", "{}", "Names of classes"),
        ("data.root", "", "path", ".", "Folder"),
        ("schedule.kind", "kind: cosine", "cosine", None, "A half cosine"),
        ("loss.box.kind", "kind: huber", "huber", "huber", "Huber loss"),
    ],
)
def test_a_setting(key, kinds, type, default, start):
    settings, parts = explain(key)
    assert parts == []
    setting = next(setting for setting in settings if setting.kinds == kinds)
    assert (setting.key, setting.type, setting.default) == (key, type, default)
    assert setting.description.startswith(start)


def test_kinds_that_differ_stand_one_by_one():
    settings, _ = explain("optimizer.learning_rate")
    assert [setting.kinds for setting in settings] == ["kind: sgd", "kind: adamw"]
    assert [setting.default for setting in settings] == ["0.01", "0.001"]
    settings, _ = explain("loss.box.weight")
    assert [setting.kinds for setting in settings] == [
        "kind: huber", "kind: smooth_l1", "kind: l1", "kind: giou", "kind: diou, ciou",
    ]  # fmt: skip
    settings, _ = explain("data.train.select")
    assert [setting.kinds for setting in settings] == [""]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_key_of_a_configuration_is_explained(path):
    open_ended = ("model.init_classes.", "optimizer.rates.", "evaluation.area_ranges.", "data.relabel.rename.")
    keys = {key for key in flat(config.load(path)) if not key.startswith(open_ended)}
    assert len(keys) > 100
    assert keys <= set(reference.keys())


def test_every_key_stands_once():
    keys = reference.keys()
    assert len(keys) == len(set(keys)) > 240
    assert keys[:3] == ["data", "model", "anchors"] and "data.test.select.shots" in keys


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("optimizer.momentun", "did you mean optimizer.momentum"),
        ("loss.box.bete", "did you mean loss.box.beta"),
        ("momentum", "did you mean optimizer.momentum or loss.normalizer.momentum?"),
        ("nms_iou", "did you mean inference.nms_iou?"),
        ("box.beta", "did you mean loss.box.beta?"),
        ("xyzzy", "sections: data, model, anchors, assignment, loss, optimizer, schedule, run, inference"),
        ("", "sections: data, model"),
        ("run..seed", "did you mean run.seed"),
        ("run.seed.x", "did you mean run.seed"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, hint):
    with pytest.raises(RetinaError) as error:
        explain(key)
    assert str(error.value).startswith(f"--explain: unknown key '{key}'; {hint}")
    assert "\n" not in str(error.value)


# --------------------------------------------------------------------------------------------------------- sections


def test_a_section_without_kinds():
    settings, parts = explain("run.ema")
    assert [setting.type for setting in settings] == ["section, or null"]
    assert [setting.key for setting in parts[0].settings] == ["run.ema.decay", "run.ema.warmup"]
    assert settings[0].description.startswith("Moving average of the weights; null keeps none.")
    assert "moving statistics of batch normalisation" in settings[0].description


def test_a_section_with_kinds():
    settings, parts = explain("schedule")
    assert settings[0].type == "section, kind: step, cosine or constant"
    assert settings[0].default_words == "must be given"
    assert [part.kind for part in parts] == ["kind: step", "kind: cosine", "kind: constant"]
    assert [setting.name for setting in parts[1].settings] == [
        "steps", "epochs", "warmup_steps", "warmup_factor", "kind", "final_factor",
    ]  # fmt: skip
    assert explain("optimizer")[0][0].type == "section, kind: sgd (default) or adamw"
    assert explain("data.test")[0][0].type == "section, format: coco, voc, yolo, csv, labelme, tfds or digits, or null"


def test_the_whole_reference_has_every_section_once():
    parts = reference.reference()
    places = [(part.key, part.kind) for part in parts]
    assert len(places) == len(set(places)) == len(reachable(Config))
    assert places[:2] == [("", ""), ("data", "")]
    settings = {setting.key: setting for part in parts for setting in part.settings}
    assert settings["data.test"].description.endswith("Its settings are those of `data.train`.")
    assert not any(key.startswith("data.validation.") for key in settings)


@pytest.mark.parametrize("width", [40, 80, 100])
@pytest.mark.parametrize("keys", [(), ("data",), ("loss.box.beta", "run")])
def test_lines_fit_the_terminal(keys, width):
    longest = max(len(line) for _, text in explained(keys, width) for line in text.splitlines())
    assert 0.8 * width < longest <= width


# ------------------------------------------------------------------------------------------------------ command, page


def test_the_command(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(monkeypatch, capsys, "--explain", "inference.nms_iou") == (
        0,
        "inference.nms_iou\n"
        "  number from 0 to 1; default 0.5\n"
        "  IoU above which the lower-scored of two boxes of one class is suppressed,\n"
        "  greedily; 0.5 is the paper's.\n\n",
        "",
    )
    code, out, _ = run(monkeypatch, capsys, "--explain", "run.seed", "loss.box.beta")
    assert code == 0 and "\nloss.box.beta  (kind: smooth_l1)\n" in out and "kind: huber" not in out
    code, out, _ = run(monkeypatch, capsys, "--explain")
    assert code == 0 and "\ndata.train  (format: coco)\n" in out and "\x1b" not in out
    code, out, error = run(monkeypatch, capsys, "--explain", "run.sed")
    assert (code, out) == (2, "") and error.startswith(
        "retina: --explain: unknown key 'run.sed'; did you mean run.seed"
    )


def test_the_command_needs_no_tensorflow():
    code = (
        "import sys; sys.argv = ['retina', 'config', '--explain', 'run']\n"
        "from retina.cli import main\n"
        "try:\n    main()\nfinally:\n    print({'tensorflow', 'keras', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n" and "\nrun.seed\n" in done.stdout


def test_the_guides_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == reference.page(), f"make it anew: {reference.COMMAND}"


def test_the_page_names_the_command_that_makes_it():
    assert reference.COMMAND in PAGE.read_text(encoding="utf-8").splitlines()[1]
    command = [sys.executable, *reference.COMMAND.partition(" > ")[0].split()[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert done.stdout.decode() == PAGE.read_text(encoding="utf-8") and done.stderr == b""
