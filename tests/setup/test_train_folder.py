"""`retina train FOLDER`, as a newcomer types it."""

import sys

import pytest

from retina import config
from retina.cli import main
from tests.setup.made import voc_folder


@pytest.fixture
def typed(monkeypatch, capsys, tmp_path):
    """`typed(line)` runs a command in this process, in `tmp_path`: exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(line):
        monkeypatch.setattr(sys, "argv", line.split())
        with pytest.raises(SystemExit) as stopped:
            main()
        return stopped.value.code or 0, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "retina train desk --resume",
            "--resume: expected a configuration or a run, got data (desk); give --run-dir RUN",
        ),
        ("retina train desk --launcher env", "--launcher: expected a configuration or a run, got data (desk)"),
        ("retina train --minutes 3", "--minutes: it has an effect on a folder of images only"),
        ("retina train empty", "empty: expected a configuration or run, a folder"),
        ("retina train desk data.resize.shrt=3", "init: unknown key 'data.resize.shrt'"),
        ("retina init runs", "runs: expected a configuration or run, a folder"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_written(typed, tmp_path, line, text):
    voc_folder(tmp_path / "desk", [1, 2, 3])
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs").mkdir()
    code, _, error = typed(line)
    assert (code, list((tmp_path / "runs").iterdir())) == (2, []) and text in error


@pytest.mark.slow
def test_a_folder_becomes_a_run_with_its_report(typed, tmp_path):
    voc_folder(tmp_path / "desk", list(range(20)))
    (tmp_path / "runs" / "desk").mkdir(parents=True)
    small = "model.backbone=keras_cv/resnet10 model.head.layers=0 model.head.norm=none model.fpn.min_level=4"
    code, output, error = typed(f"retina train desk --minutes 0.1 run.pictures=0 {small}")
    assert code == 0, error
    run = tmp_path / "runs" / "desk-2"
    settings = config.load(run / "config.yaml")
    assert settings.schedule.steps == 20 and settings.run.pictures == 0
    kept = config.load(run / "setup" / "desk.yaml")
    assert kept.schedule == settings.schedule and kept.data.classes == ("cup", "pen")
    assert (run / "report" / "index.html").is_file() and (run / "eval" / "step_20" / "metrics.json").is_file()
    written = output.index("desk.yaml: written; training it takes about")
    assert written < output.index("retina predict runs/desk-2 IMAGE…") and "step 20/20" in error
