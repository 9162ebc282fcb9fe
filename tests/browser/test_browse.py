"""The dataset browser's page in a real browser, and the command that writes it."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from retina import cli
from retina.errors import RetinaError
from retina.pages.browse import browse
from tests.doctor.made import picture, write_coco

DIGITS = Path(__file__).resolve().parents[2] / "configs" / "digits.yaml"
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images: the first two the same, the third damaged, the fourth with a box of no width."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "train").mkdir()
    for number in range(6):
        out = io.BytesIO()
        Image.fromarray(picture(max(number, 1))).save(out, "JPEG")
        name = f"{number} {'<b>' if number == 5 else ''}.jpg"
        (folder / "train" / name).write_bytes(b"broken" if number == 2 else out.getvalue())
    names = sorted(path.name for path in (folder / "train").iterdir())
    images = [{"id": n, "file_name": name, "height": 64, "width": 96} for n, name in enumerate(names)]
    boxes = [(n, 1 + n % 2, [5 + n, 6, 30, 20]) for n in range(6)] + [(3, 1, [4, 4, 0, 9]), (5, 2, [40, 10, 8, 8])]
    annotations = [{"image_id": image, "category_id": k, "bbox": box, "area": 9} for image, k, box in boxes]
    write_coco(folder, "train", images, annotations, [{"id": 1, "name": "cell"}, {"id": 2, "name": EVIL}])
    return folder


@pytest.fixture(scope="module")
def page(data, tmp_path_factory) -> Path:
    return browse(data, out=tmp_path_factory.mktemp("page") / "page.html")


def names(browser) -> list[str]:
    script = "return [...document.querySelectorAll('.grid .card:not([hidden]) .caption b')].map((at) => at.textContent)"
    return browser.run(script)


def test_images_and_their_defects(browser, page):
    browser.open(page)
    assert names(browser) == ["0 .jpg", "1 .jpg", "2 .jpg", "3 .jpg", "4 .jpg", "5 <b>.jpg"]
    # Of eight boxes one has no width, and is named instead.
    assert browser.count(".grid g") == 7
    assert browser.text(".counts") == "6 images · 7 boxes drawn · 4 with defects"
    browser.click(".only-defects")
    assert names(browser) == ["0 .jpg", "1 .jpg", "2 .jpg", "3 .jpg"]
    told = browser.run(
        "return [...document.querySelectorAll('.card:not([hidden]) .defect')].map((at) => at.textContent)"
    )
    assert told[:2] == ["the same bytes as 1 .jpg", "the same bytes as 0 .jpg"]
    assert told[2].startswith("can't be used: expected a JPEG") and "zero width" in told[3]
    assert browser.count(".card:not([hidden]) .placeholder") == 1
    assert browser.console() == []
    assert browser.requests() == []


def test_classes_are_counted_and_stay_text(browser, page):
    browser.open(page)
    cells = browser.run("return [...document.querySelectorAll('.classes-table tbody td')].map((at) => at.textContent)")
    assert cells == ["cell", "3", "3", EVIL, "4", "3"]
    browser.click(".classes input[value='0']")
    assert names(browser) == ["1 .jpg", "3 .jpg", "5 <b>.jpg"] and browser.count(".grid g") == 4
    browser.set(".sort", "boxes")
    assert names(browser)[0] == "5 <b>.jpg"
    browser.click(".classes .all")
    browser.set(".sort", "defects")
    assert names(browser) == ["0 .jpg", "1 .jpg", "2 .jpg", "3 .jpg", "4 .jpg", "5 <b>.jpg"]
    assert browser.count(".card.defective") == 4


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_telephone(browser, page, dark):
    browser.open(page, width=375, dark=dark)
    assert browser.overflow(375) == 0
    assert browser.console() == []


def test_of_many_images_those_with_defects_come_first(browser, data, tmp_path):
    browser.open(browse(data, out=tmp_path / "few.html", limit=5, quick=True))
    assert {"0 .jpg", "1 .jpg", "2 .jpg", "3 .jpg"} < set(names(browser)) and len(names(browser)) == 5
    assert "5 of 6 images are shown" in browser.text(".gallery .notes")


def test_the_command(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["retina", "browse", str(data), "--quick"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    (written,) = tmp_path.iterdir()
    assert written.name == f"{data.name}-train.html"
    assert f"The page is {written.name}." in capsys.readouterr().out


def test_what_is_not_there_is_named(data, tmp_path):
    with pytest.raises(RetinaError, match="no split 'val'; it has train"):
        browse(data, split="val")
    with pytest.raises(RetinaError, match="limit: expected at least 1 image, got 0"):
        browse(data, limit=0)
    with pytest.raises(RetinaError, match="no such folder"):
        browse(data, out=tmp_path / "no" / "page.html")


def test_a_configuration_tells_of_anchors(tmp_path):
    settings = ["data.train.images=12", "data.validation.images=4", "anchors.scales=[0.2]"]
    text = browse(DIGITS, overrides=settings, out=tmp_path / "page.html").read_text(encoding="utf-8")
    assert "without a positive anchor" in text
