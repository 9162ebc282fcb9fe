"""The JSON schema takes what `retina` takes, and refuses what an editor can see to be wrong."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from retina import cli, config
from retina.config.reading import DEFAULT_KINDS, read_yaml
from retina.config.schema import json_schema

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SMALL = {
    "data": {"train": {"format": "digits"}, "validation": {"format": "digits"}},
    "schedule": {"kind": "step", "steps": 10},
}


@pytest.fixture(scope="module")
def validator():
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def problems(validator, tree) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(tree)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_is_valid(validator, path):
    assert problems(validator, read_yaml(path, str(path))) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_resolved_config_is_valid(validator, path):
    assert problems(validator, config.load(path).model_dump(mode="json")) == []


@pytest.mark.parametrize(
    "sections",
    [
        {"optimizer": {"learning_rate": 0.1}},
        {"optimizer": {"weight_decay": 0}},
        {"optimizer": {}},
        {"optimizer": {"kind": "adamw", "learning_rate": 0.1}},
        {"loss": {"classification": {"alpha": None}}},
        {"loss": {"classification": {"kind": "cross_entropy", "alpha": 0.5}}},
        {"loss": {"box": {"weight": 1}}},
        {"loss": {"box": {"kind": "giou", "weight": 1}}},
        {"loss": {"normalizer": {"kind": "ema"}}},
        {"loss": {"class_weights": {"kind": "effective"}}},
        {"run": {"ema": {}, "devices": "all", "checkpoint_minutes": None}},
        {"assignment": {"force_match": "ties"}},
    ],
    ids=str,
)
def test_what_may_be_left_out_may_be_left_out(validator, sections):
    config.parse({**SMALL, **sections})
    assert problems(validator, {**SMALL, **sections}) == []


@pytest.mark.parametrize(
    "sections",
    [
        {"data": None},
        {"schedule": {"steps": 10}},
        {"schedule": {"kind": "linear", "steps": 10}},
        {"schedule": {"kind": "step"}},
        {"loss": {"normalizer": {"momentum": 0.5}}},
        {"loss": {"normalizer": {}}},
        {"loss": {"class_weights": {"kind": "given", "weights": {"cat": 0}}}},
        {"loss": {"class_weights": {"kind": "effective", "beta": 1}}},
        {"loss": {"box": {"kind": "giou", "beta": 1}}},
        {"loss": {"box": {"beta": 1}}},
        {"loss": {"classification": {"gamma": -1}}},
        {"optimizer": {"momentum": 1.0}},
        {"optimizer": {"kind": "adamw", "momentum": 0.9}},
        {"run": {"sed": 1}},
        {"run": {"batch_size": 2.5}},
        {"inference": {"nms_iou": 1.5}},
        {"evaluation": {"max_detections": []}},
        {"ran": {}},
    ],
    ids=str,
)
def test_mistakes_are_marked(validator, sections):
    with pytest.raises(Exception, match=r"config: "):
        config.parse({**SMALL, **sections})
    assert problems(validator, {**SMALL, **sections}) != []


def test_a_missing_section_is_marked(validator):
    assert problems(validator, {}) == [
        "$: 'data' is a required property", "$: 'schedule' is a required property",
    ]  # fmt: skip


def test_default_kinds_are_no_other_sections_kinds():
    """They are told by their names alone where the schema requires the kind."""
    constants = [
        section["properties"][tag]["const"]
        for section in json_schema()["$defs"].values()
        for tag in ("kind", "format")
        if tag in section["properties"]
    ]
    assert [constants.count(kind) for kind in DEFAULT_KINDS.values()] == [1, 1, 1]


def test_an_editor_gets_the_descriptions():
    schema = json_schema()
    beta = schema["$defs"]["SmoothL1Box"]["properties"]["beta"]
    assert beta["description"] == config.SmoothL1Box.model_fields["beta"].description
    assert (beta["exclusiveMinimum"], beta["default"], beta["type"]) == (0, 1 / 9, "number")
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["retina", "config", "--schema"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, error = capsys.readouterr()
    assert not stopped.value.code and error == "" and json.loads(out) == json_schema()


@pytest.mark.parametrize("beside", [["run.seed=1"], ["--explain"], ["--explain", "run"]])
def test_the_schema_takes_nothing_beside_it(monkeypatch, capsys, beside):
    monkeypatch.setattr("sys.argv", ["retina", "config", "--schema", *beside])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, error = capsys.readouterr()
    assert stopped.value.code == 2 and out == "" and error.startswith("retina: --schema: expected nothing beside it")
