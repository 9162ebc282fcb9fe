"""`retina doctor` as a user runs it, on data with planted defects; and `retina train` refuses hopeless set-ups."""

import json

import pytest
from PIL import Image

from retina import cli, config
from retina.doctor.examine import examine
from retina.doctor.targets import open_target
from retina.errors import RetinaError
from tests.data.formats import folders
from tests.doctor.made import picture, table, write_coco

CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 3, "name": "<b>dog</b>"}]


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["retina", "doctor", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    return stopped.value.code or 0, out, err


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A COCO folder: 24 training images (one a copy, one truncated, one without boxes) and 4 to validate on, two of
    them training images; a zero-width box, a crowd, a box given twice, 24 large boxes of cats and 4 tiny of dogs."""
    folder = tmp_path_factory.mktemp("planted")
    tables = {"train": range(24), "val": range(22, 26)}
    for name, seeds in tables.items():
        (folder / name).mkdir()
        for seed in seeds:
            Image.fromarray(picture(seed)).save(folder / name / f"{seed}.jpg", quality=95)
        images = [{"id": n, "file_name": f"{n}.jpg", "height": 64, "width": 96} for n in seeds]
        boxes = [{"image_id": n, "category_id": 1, "bbox": [4, 4, 32, 32]} for n in list(seeds)[:-1]]
        boxes += [{"image_id": n, "category_id": 3, "bbox": [60, 4, 3, 3]} for n in list(seeds)[:4]]
        if name == "train":
            boxes += [
                {"image_id": 0, "category_id": 1, "bbox": [4, 4, 32, 32]},
                {"image_id": 1, "category_id": 1, "bbox": [5, 5, 0, 9]},
                {"image_id": 2, "category_id": 1, "bbox": [50, 30, 20, 20], "iscrowd": 1},
            ]
        write_coco(folder, name, images, boxes, CATEGORIES)
    (folder / "train" / "5.jpg").write_bytes((folder / "train" / "4.jpg").read_bytes())
    cut = (folder / "train" / "6.jpg").read_bytes()
    (folder / "train" / "6.jpg").write_bytes(cut[: len(cut) // 2])
    (folder / "settings.yaml").write_text(
        f"""
data:
  root: {folder}
  train: {{annotations: annotations/instances_train.json, images: train, format: coco}}
  validation: {{annotations: annotations/instances_val.json, images: val, format: coco}}
  invalid_boxes: drop
  resize: {{short: 64, long: 96, multiple: 32}}
model:
  backbone: keras_cv/resnet10
  fpn: {{channels: 16, max_level: 4}}
  head: {{channels: 16, layers: 1}}
schedule: {{kind: cosine, steps: 12}}
run: {{batch_size: 4}}
"""
    )
    return folder


def test_every_planted_defect_is_found_by_name(planted, monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, planted, "--json")
    tree = json.loads(out)
    assert code == 1 and err == "" and tree["ok"] is False and tree["anchors"] == {} and tree["cost"] is None
    found = {(finding["code"], finding["split"], finding["grade"]) for finding in tree["findings"]}
    assert found == {
        ("invalid-boxes", "train", "error"),
        ("unreadable-images", "train", "error"),
        ("duplicate-images-across-splits", "", "error"),
        ("duplicate-images", "train", "warning"),
        ("copies-with-different-boxes", "", "warning"),
        ("few-images", "train", "warning"),
        ("few-images", "val", "warning"),
        ("repeated-boxes", "train", "warning"),
        ("rare-classes", "train", "warning"),
        ("images-without-boxes", "train", "note"),
        ("id-gaps", "train", "note"),
        ("id-gaps", "val", "note"),
        ("crowd-boxes", "train", "note"),
    }
    (invalid,) = [finding for finding in tree["findings"] if finding["code"] == "invalid-boxes"]
    assert "annotation 29" in invalid["examples"][0] and "zero width" in invalid["examples"][0]
    assert tree["splits"]["train"]["boxes"] == 28 and tree["splits"]["train"]["classes"] == {
        "cat": 24,
        CATEGORIES[1]["name"]: 4,
    }


def test_a_configuration_is_seen_through_its_anchors(planted, monkeypatch, capsys, tmp_path):
    page = tmp_path / "page.html"
    code, out, _ = run(monkeypatch, capsys, planted / "settings.yaml", "--json", "--html", page, "anchors.scales=[1.0]")
    tree = json.loads(out)
    codes = {finding["code"]: finding["grade"] for finding in tree["findings"]}
    assert code == 1 and codes["invalid-boxes"] == "warning" and codes["rare-class-without-anchors"] == "warning"
    train = tree["anchors"]["train"]
    # Of the box given twice one copy gets no anchor: 23 of 24 cats, which is the recall at 96 of COCO's 101 points.
    assert train["total"]["covered"] == 23 and train["total"]["boxes"] == 28 and train["outbid"] == 1
    assert train["ceilings"]["assigned"]["AP"] == pytest.approx(96 / 101 / 2)
    assert tree["cost"]["canvas"] == [64, 96] and tree["cost"]["steps"] == 12 and tree["cost"]["epochs"] == 2.0
    # Cells of P3 and P4, three ratios each.
    assert tree["cost"]["anchors"] == (8 * 12 + 4 * 6) * 3
    assert tree["cost"]["total"] == sum(tree["cost"]["memory"].values())
    assert tree["cost"]["memory"]["weights"] == 4 * tree["cost"]["parameters"] > 16e6
    assert (
        tree["cost"]["hours_at_1_tflops"] == pytest.approx(tree["cost"]["run_flops"] / 3.6e15) and train["short"] == 64
    )
    text = page.read_text()
    assert "on a device that achieves 1 TFLOP/s" in text and "short side of 64 pixels" in text
    assert "&lt;b&gt;dog&lt;/b&gt;" in text and "<b>dog" not in text
    assert "prefers-color-scheme: dark" in text and "<svg" in text and "http://" not in text and len(text) < 2e6


def test_anchors_and_canvases_are_those_of_the_tiles_that_training_sees(planted, monkeypatch, capsys):
    quick = planted / "settings.yaml", "--quick", "--json"
    _, out, _ = run(monkeypatch, capsys, *quick)
    whole = json.loads(out)
    code, out, _ = run(monkeypatch, capsys, *quick, "data.tiles.size=48")
    tiles = json.loads(out)
    sought = [finding for finding in tiles["findings"] if finding["code"] == "evaluated-without-tiles"]
    assert [(finding["grade"], finding["split"]) for finding in sought] == [("warning", "validation")]
    assert sought[0]["remedy"].endswith("set evaluation.tiles.size=48 evaluation.tiles.overlap=0.2")
    assert code == 1 and tiles["splits"] == whole["splits"]  # faults of files stay those of files
    shared = [finding["code"] for finding in tiles["findings"] if finding["code"].endswith("across-splits")]
    assert shared == [finding["code"] for finding in whole["findings"] if finding["code"].endswith("across-splits")]
    (before, after) = (tree["anchors"]["train"] for tree in (whole, tiles))
    assert after["all_images"] == 6 * before["all_images"] and after["images"] == 6 * before["images"]
    assert tiles["anchors"]["validation"] == whole["anchors"]["validation"]
    same = ["data.tiles.size=48", "evaluation.tiles.size=48"]
    _, out, _ = run(monkeypatch, capsys, *quick, *same)
    assert "evaluated-without-tiles" not in {finding["code"] for finding in json.loads(out)["findings"]}
    code, out, _ = run(monkeypatch, capsys, *quick, "data.tiles.size=96")
    (nothing,) = [finding for finding in json.loads(out)["findings"] if finding["code"] == "tiles-without-effect"]
    assert nothing["grade"] == "error" and "which cuts none; leave data.tiles out" in nothing["message"]


def test_quick_reads_headers_only(planted, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, planted / "settings.yaml", "--quick")
    assert code == 1 and "duplicate-images-across-splits" in out and "unreadable-images" not in out
    assert "AP ceiling" in out and "TFLOP" not in out and "million parameters" not in out
    assert "background anchors for each positive, each scored for" in out and "`retina guide gamma`" in out


def test_what_cannot_be_trained_on_is_not_timed(planted, monkeypatch, capsys):
    code, out, err = run(monkeypatch, capsys, planted / "settings.yaml", "--quick", "--time", "3")
    assert code == 1 and "duplicate-images-across-splits" in out and "images/s" not in out
    assert err == "--time: left out, because of the errors below; fix those first\n"


def test_sound_data_exits_with_0(planted, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, planted / "annotations" / "instances_val.json", "--json")
    tree = json.loads(out)
    assert code == 0 and tree["ok"] is True and list(tree["splits"]) == ["data"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no such file or folder"),
        (["."], "got none of them"),
        (["a=1"], "expected data or a configuration first"),
        (["DATA", "run.seed=1"], "overrides need a configuration"),
        (["DATA", "--time", "3"], "--time: training steps need a configuration"),
        (["CONFIG", "--images", "."], "--images has no effect"),
        (["CONFIG", "--html", "nowhere/page.html"], "no such folder"),
        (["CONFIG", "--time", "2"], "--time"),
        (["CONFIG", "anchors.sise=1"], "did you mean 'size'"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(planted, monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    places = {"DATA": planted / "annotations" / "instances_val.json", "CONFIG": planted / "settings.yaml"}
    code, out, err = run(monkeypatch, capsys, *(places.get(word, word) for word in arguments))
    assert code == 2 and out == "" and err.count("\n") == 1 and message in err


def test_a_file_that_cannot_be_read_is_a_finding(tmp_path, monkeypatch, capsys):
    (tmp_path / "broken.json").write_text("{")
    code, out, _ = run(monkeypatch, capsys, tmp_path / "broken.json", "--json")
    (finding,) = json.loads(out)["findings"]
    assert code == 1 and finding["code"] == "unreadable-split" and "not valid JSON" in finding["message"]


def test_voc_splits_leave_out_trainval(tmp_path):
    for split in ("train", "val", "trainval", "test", "cat_train"):
        file = tmp_path / "VOC2007" / "ImageSets" / "Main" / f"{split}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1\n")
    assert tuple(open_target(tmp_path, []).splits) == ("2007/test", "2007/train", "2007/val")


@pytest.mark.parametrize(
    ("writer", "unnamed"),
    [
        (folders.coco_beside, ["x.png"]),
        (folders.coco_per_split, ["test2017/x.png"]),
        (folders.keras_retinanet, ["images/x.png"]),
        (folders.roboflow_csv, [f"train/{folders.roboflow('c.png')}", "test/x.png"]),
    ],
)
def test_images_that_no_split_names(tmp_path, writer, unnamed):
    """A file of annotations may leave images out: no fault, a note, once for all splits."""
    writer(tmp_path)
    notes = [finding.code for finding in examine(open_target(tmp_path, []), quick=True).findings]
    assert ("images-that-no-split-names" in notes) == (len(unnamed) > 1)
    Image.new("RGB", (40, 40)).save(tmp_path / unnamed[-1])
    examined = examine(open_target(tmp_path, []), quick=True)
    (finding,) = (entry for entry in examined.findings if entry.code == "images-that-no-split-names")
    assert finding.grade == "note" and sorted(finding.examples) == sorted(str(tmp_path / name) for name in unnamed)


def test_images_that_cannot_be_read_are_not_called_unnamed(tmp_path):
    """They are left out of the tables, where nothing else tells their sizes."""
    folders.keras_retinanet(tmp_path)
    (tmp_path / "images/b.png").write_bytes(b"no image")
    codes = {finding.code for finding in examine(open_target(tmp_path, []), quick=True).findings}
    assert "unreadable-images" in codes and "images-that-no-split-names" not in codes


def test_images_that_a_selection_leaves_out_are_not_called_unnamed(planted):
    settings = ["data.train.select={every: 2}"]
    examined = examine(open_target(planted / "settings.yaml", settings), quick=True)
    assert "images-that-no-split-names" not in {finding.code for finding in examined.findings}


def test_a_yolo_yaml_is_data_and_no_configuration(tmp_path):
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a]\n")
    target = open_target(tmp_path / "data.yaml", [])
    assert target.config is None and tuple(target.splits) == ("train", "val")


def test_training_refuses_a_hopeless_set_up_before_it_writes_anything(tmp_path):
    from retina.training.train import train

    hopeless = config.load(
        None,
        [
            "data.train={format: digits, images: 8, size: 64}",
            "data.validation={format: digits, split: validation, images: 4, size: 64}",
            "data.resize={short: 64, long: 64, multiple: 32}",
            "anchors.size=40.0",
        ],
    )
    with pytest.raises(RetinaError, match=r"preflight: train: 0 of \d+ boxes.*run\.preflight=warn"):
        train(hopeless, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tables_handed_to_training_are_looked_at_as_well(tmp_path):
    from retina.training.train import train

    empty = table([(64, 64)], [[]], names=tuple("0123456789"))
    with pytest.raises(RetinaError, match="has a box that counts"):
        train(config.load(), tmp_path / "run", train_data=empty, validation_data=empty)
