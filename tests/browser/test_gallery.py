"""The gallery in a real browser: what is drawn is what the data says, for every threshold, class and choice."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retina.drawing import furniture
from retina.pages import gallery
from retina.pages.gallery import Detection, Shown, Truth

PAGE = """{% extends "base.html.jinja" %}
{% from "gallery.html.jinja" import gallery, gallery_style %}
{% block style %}{{ gallery_style() }}{% endblock %}
{% block body %}<h1>Gallery</h1>{{ gallery(data) }}{% endblock %}"""
EVIL = "</script><img src=x onerror=alert(1)>"
CLASSES = ("cat", EVIL, "bird")
THRESHOLD = 0.4


def jpeg(seed: int, width: int, height: int) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((width, height)).save(out, "JPEG")
    return out.getvalue()


def shown() -> list[Shown]:
    """Twelve images; scores on a grid of 0.01, so that the slider meets them exactly."""
    random = np.random.default_rng(9)
    out = []
    for row in range(12):
        width, height = (160, 120) if row % 3 else (90, 150)
        truths, found = [], []
        for _ in range(int(random.integers(0, 6))):
            box = [*random.uniform(0, 40, 2), *random.uniform(50, 90, 2)]
            score = int(random.integers(5, 99)) / 100 if random.random() < 0.8 else None
            label = int(random.integers(0, 3))
            truths.append(Truth(box, label, "", score))
            if score is not None:
                found.append(Detection(box, label, score, "right"))
        if row == 4:
            truths.append(Truth([0, 0, 20, 20], 0, "crowd"))
        for kind in ("Cls", "Loc", "Bkg", "Dupe", "")[: int(random.integers(0, 6))]:
            box = [*random.uniform(0, 40, 2), *random.uniform(50, 90, 2)]
            found.append(Detection(box, int(random.integers(0, 3)), int(random.integers(5, 99)) / 100, kind))
        picture = b"no picture" if row == 7 else jpeg(row, width, height)
        name = EVIL if row == 2 else f"image {row}.jpg"
        out.append(Shown(row, name, width, height, picture, tuple(truths), tuple(found), ("cut short",) * (row == 7)))
    return out


def expected(threshold: float, classes: set[int], only_mistakes: bool = False) -> dict[str, int]:
    """What is right, wrong, missed and drawn, counted from the data alone."""
    right = wrong = missed = neither = counted = special = 0
    for image in shown():
        for truth in image.truths:
            if truth.label in classes:
                special += truth.kind != ""
                counted += truth.kind == ""
                missed += truth.kind == "" and (truth.score is None or truth.score < threshold)
        for one in image.detections:
            if one.label in classes and one.score >= threshold:
                right += one.kind == "right"
                neither += one.kind == ""
                wrong += one.kind not in ("right", "")
    everything = counted + special + right + wrong + neither
    return {"right": right, "wrong": wrong, "missed": missed, "drawn": wrong + missed if only_mistakes else everything}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gallery"), gallery.gallery_data(shown(), CLASSES, threshold=THRESHOLD))


def write(folder: Path, data: dict) -> Path:
    # A template is looked for beside the page's own: the gallery's lies in the package.
    for name in ("gallery.html.jinja", "gallery.css"):
        (folder / name).write_text(gallery.SCRIPT.with_name(name).read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "page.html.jinja").write_text(PAGE)
    text = furniture.render(folder / "page.html.jinja", title="Gallery", scripts=[gallery.SCRIPT], data=data)
    (folder / "page.html").write_text(text, encoding="utf-8")
    return folder / "page.html"


def counted(browser) -> dict[str, int]:
    """What the page says, and the shapes that are really there."""
    said = json.loads(browser.run("return JSON.stringify(document.querySelector('.counts').dataset)"))
    drawn = {
        "right": browser.count(".grid g.detection.right"),
        "wrong": browser.count(".grid g.detection.wrong"),
        "missed": browser.count(".grid g.truth.missed"),
        "drawn": browser.count(".grid g"),
    }
    assert {key: int(said[key]) for key in drawn} == drawn
    return drawn


def names(browser) -> list[str]:
    script = "return [...document.querySelectorAll('.grid .card:not([hidden]) .caption b')].map((at) => at.textContent)"
    return browser.run(script)


def test_no_image_at_all(browser, tmp_path):
    browser.open(write(tmp_path, gallery.gallery_data([], CLASSES)))
    assert counted(browser) == {"right": 0, "wrong": 0, "missed": 0, "drawn": 0}
    assert browser.run("return document.querySelector('.nothing').hidden") is False
    assert browser.console() == []


def test_the_slider_shows_what_the_data_says(browser, page):
    browser.open(page)
    everything = {0, 1, 2}
    assert counted(browser) == expected(THRESHOLD, everything)
    for threshold in (0.0, 0.15, 0.63, 1.0):
        browser.set(".slider", threshold)
        assert counted(browser) == expected(threshold, everything), threshold
    browser.click(".reset")
    assert counted(browser) == expected(THRESHOLD, everything)
    assert browser.console() == []
    assert browser.requests() == []


def test_the_slider_moves_by_keys(browser, page):
    browser.open(page)
    browser.run("document.querySelector('.slider').focus()")
    browser.press("ArrowRight", "ArrowRight", "ArrowRight")
    assert browser.text(".value") == "0.43"
    assert counted(browser) == expected(0.43, {0, 1, 2})


def test_classes_and_mistakes_are_filtered(browser, page):
    browser.open(page)
    browser.click(".classes input[value='1']")
    assert counted(browser) == expected(THRESHOLD, {0, 2})
    assert browser.text(".chosen") == "(2 of 3)"
    browser.click(".only-mistakes")
    drawn = expected(THRESHOLD, {0, 2}, only_mistakes=True)["drawn"]
    assert browser.count(".grid g") == browser.count(".grid g.wrong, .grid g.missed") == drawn > 0
    browser.click(".classes .none")
    assert counted(browser)["drawn"] == 0
    assert names(browser) == []
    browser.click(".only-mistakes")
    browser.click(".classes .all")
    browser.click(".show-truth")
    assert browser.count(".grid g.truth") == 0 < browser.count(".grid g.detection")
    browser.click(".show-truth")
    assert counted(browser) == expected(THRESHOLD, {0, 1, 2})


def test_images_are_sorted(browser, page):
    def mistakes(image: Shown) -> tuple[int, int, int, float]:
        kept = [one for one in image.detections if one.score >= THRESHOLD]
        wrong = [one.score for one in kept if one.kind not in ("right", "")]
        missed = sum(one.kind == "" and (one.score is None or one.score < THRESHOLD) for one in image.truths)
        return sum(one.kind == "right" for one in kept), len(wrong), missed, max(wrong, default=-1.0)

    def f1(image: Shown) -> float:
        right, wrong, missed, _ = mistakes(image)
        return 2 * right / (2 * right + wrong + missed) if right + wrong + missed else 2.0

    keys = {"f1": f1, "confident": lambda image: -mistakes(image)[3], "missed": lambda image: -mistakes(image)[2]}
    browser.open(page)
    for name, key in {"data": lambda image: image.row, **keys}.items():
        browser.set(".sort", name)
        assert names(browser) == [image.name for image in sorted(shown(), key=key)], name


def test_images_are_found_by_name_and_by_defect(browser, page):
    browser.open(page)
    browser.set(".search", "IMAGE 1")
    assert names(browser) == ["image 1.jpg", "image 10.jpg", "image 11.jpg"]
    browser.set(".search", "")
    browser.click(".only-defects")
    assert names(browser) == ["image 7.jpg"]
    assert browser.count(".card:not([hidden]) img") == 0
    assert "expected an image, it is none or damaged" in browser.text(".card:not([hidden]) .placeholder")


def test_the_large_view_is_worked_by_keys(browser, page):
    browser.open(page)
    browser.run("document.querySelector('.card').focus()")
    browser.press("Enter")
    assert browser.run("return document.querySelector('dialog').open")
    assert browser.text("dialog .title") == "image 0.jpg"
    assert browser.count("dialog g") == browser.count(".card[data-row='0'] g") == browser.count("dialog tbody tr")
    browser.press("ArrowRight", "ArrowRight")
    assert browser.text("dialog .title") == EVIL
    browser.press("ArrowLeft", "ArrowLeft", "ArrowLeft")
    assert browser.text("dialog .title") == "image 0.jpg"
    browser.press("Escape")
    assert not browser.run("return document.querySelector('dialog').open")
    assert browser.run("return document.activeElement.dataset.row") == "0"
    assert browser.console() == []


CHIPS = "return [...document.querySelectorAll('dialog .chip')].map((at) => at.getBoundingClientRect().toJSON())"


def chips(browser) -> list[str]:
    script = "return [...document.querySelectorAll('dialog .chip-text')].map((at) => at.textContent)"
    return [text.replace("\u2068", "").replace("\u2069", "") for text in browser.run(script)]


def test_the_large_view_names_predictions_and_missed_truth(browser, tmp_path):
    far = [[4, 20, 40, 50], [60, 20, 100, 50], [110, 70, 150, 110]]
    image = Shown(
        0, "one", 160, 120, jpeg(0, 160, 120),
        (Truth(far[0], 0, "", 0.9), Truth(far[1], 2)),
        (Detection(far[0], 0, 0.9, "right"), Detection(far[2], 1, 0.6, "Bkg"), Detection(far[2], 0, 0.2, "Bkg")),
    )  # fmt: skip
    browser.open(write(tmp_path, gallery.gallery_data([image], CLASSES, threshold=0.5)))
    assert browser.count(".chip-text") == 0  # cards are too small for words
    browser.click(".card")
    # The box that was found is named by its prediction.
    assert sorted(chips(browser)) == sorted(["bird", "cat 0.90", f"{EVIL[:27]}… 0.60"])
    for chip in browser.run(CHIPS):
        assert 12 < chip["height"] < 20 and chip["width"] > 20
    # A row that is pointed at leaves its own box and name clear.
    browser.point("dialog tbody tr:last-child")
    drawn = "dialog .frame svg > *"
    clear = browser.run(
        "return [...document.querySelectorAll(arguments[0])].map((at) => at.tagName)", f"{drawn}:not(.faint)"
    )
    assert clear == ["g", "rect", "text"] and browser.count(drawn) == 4 + 2 * 3
    assert browser.console() == []


def test_names_hide_little_of_a_small_picture(browser, tmp_path):
    grid = [[20 + 60 * x, 25 + 40 * y, 50 + 60 * x, 45 + 40 * y] for x in range(10) for y in range(11)]
    image = Shown(0, "one", 640, 480, jpeg(0, 640, 480), (), tuple(Detection(box, 0, 0.9, "Bkg") for box in grid))
    page = write(tmp_path, gallery.gallery_data([image], CLASSES, threshold=0.5))
    counts = []
    for width in (1100, 375):
        browser.open(page, width=width)
        browser.run("document.querySelector('.card').click()")
        browser.settle()
        counts.append(len(chips(browser)))
    area = browser.run(
        "const at = document.querySelector('dialog .frame').getBoundingClientRect(); return at.width * at.height"
    )
    hidden = sum(chip["width"] * chip["height"] for chip in browser.run(CHIPS))
    assert 0 < counts[1] < counts[0] and hidden < 0.15 * area


def test_where_names_have_no_place_they_are_left_out(browser, tmp_path):
    crowd = tuple(Detection([40, 40, 60, 60], 0, 0.9 - 0.01 * n, "Bkg") for n in range(40))
    image = Shown(0, "one", 160, 120, jpeg(0, 160, 120), (), crowd)
    browser.open(write(tmp_path, gallery.gallery_data([image], CLASSES, threshold=0.5)))
    browser.click(".card")
    shown = chips(browser)
    assert "cat 0.90" in shown and 1 < len(shown) < 10
    assert browser.count("dialog tbody tr") == 40


def test_tall_images_do_not_stretch_the_grid(browser, tmp_path):
    sides = [(160, 120)] * 4 + [(40, 400)]
    images = [Shown(n, str(n), w, h, jpeg(n, w, h)) for n, (w, h) in enumerate(sides)]
    browser.open(write(tmp_path, gallery.gallery_data(images, CLASSES)))
    heights = browser.run("return [...document.querySelectorAll('.card')].map((at) => at.offsetHeight)")
    assert max(heights) <= 1.1 * min(heights)


def test_dotted_boxes_are_explained_where_there_are_any(browser, page, tmp_path):
    hidden = "return document.querySelector('.not-counted').hidden"
    browser.open(page)
    special = sum(one.kind != "" for image in shown() for one in image.truths)
    assert browser.run(hidden) is (special == 0)
    plain = Shown(0, "one", 160, 120, jpeg(0, 160, 120), (Truth([1, 1, 9, 9], 0),))
    browser.open(write(tmp_path, gallery.gallery_data([plain], CLASSES)))
    assert browser.run(hidden) is True


def test_names_stay_text(browser, page):
    browser.open(page)
    assert EVIL in names(browser)
    assert EVIL in browser.text(".classes")
    assert browser.count("img[onerror]") == 0
    assert browser.count("img:not([src^='data:'])") == 0


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_telephone(browser, page, dark):
    browser.open(page, width=375, dark=dark)
    assert browser.overflow(375) == 0
    browser.run("document.querySelector('.card').click()")
    browser.settle()
    assert browser.overflow(375) == 0
    wide = "const at = document.querySelector('dialog'); return at.scrollWidth - at.clientWidth"
    assert browser.run(wide) == 0
    assert browser.console() == []


def test_two_runs_stand_side_by_side(browser, tmp_path):
    box = [10, 10, 60, 60]
    image = Shown(
        0, "one", 160, 120, jpeg(0, 160, 120),
        (Truth(box, 0, "", (0.9, None)),),
        (Detection(box, 0, 0.9, "right", 0), Detection([80, 10, 120, 60], 0, 0.7, "Bkg", 1)),
    )  # fmt: skip
    browser.open(write(tmp_path, gallery.gallery_data([image], CLASSES, runs=("first", EVIL))))
    assert browser.count(".grid svg") == 2
    assert counted(browser) == {"right": 1, "wrong": 1, "missed": 1, "drawn": 4}
    assert f"first: 1 right, 0 wrong, 0 missed · {EVIL}: 0 right, 1 wrong, 1 missed" in browser.text(".counts")
    browser.set(".run", "0")
    assert counted(browser) == {"right": 1, "wrong": 0, "missed": 0, "drawn": 2}
    assert browser.console() == []
