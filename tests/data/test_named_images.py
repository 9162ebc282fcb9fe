"""Images as a user names them for `retina predict`: files, folders, patterns and lists."""

import os
from pathlib import Path

import pytest

from retina.data.image_files import named_images
from retina.errors import RetinaError


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    for name in ("b.jpg", "a.PNG", "notes.md", ".hidden.png", "sub/c.webp", "sub/deep/d.tif", "out/a.png", "x[1].jpg"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "photos" / "circle").symlink_to(tmp_path / "photos")
    (tmp_path / "list.txt").write_text("photos/b.jpg\n\n photos/sub \nphotos/s*/deep/*\nphotos/b.jpg\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["photos"], ["a.PNG", "b.jpg", "sub/c.webp", "sub/deep/d.tif", "x[1].jpg"]),
        (["photos/b.jpg", "photos", "photos/b.jpg"], ["b.jpg", "a.PNG", "sub/c.webp", "sub/deep/d.tif", "x[1].jpg"]),
        (["photos/*"], ["a.PNG", "b.jpg", "x[1].jpg"]),
        (["photos/sub/**/*.tif"], ["sub/deep/d.tif"]),
        (["photos/x[1].jpg"], ["x[1].jpg"]),  # a file of this name comes before the pattern
        (["list.txt"], ["b.jpg", "sub/c.webp", "sub/deep/d.tif"]),
        (["photos/notes.md"], ["notes.md"]),  # named itself: its fault is told when it is read
        (["photos/out"], ["out/a.png"]),  # named itself, although results go there
    ],
)
def test_images_in_their_order_each_once(home, words, expected):
    assert named_images(words, Path("photos/out")) == [Path("photos") / name for name in expected]


def test_a_pattern_passes_over_the_results(home):
    assert Path("photos/out/a.png") not in named_images(["photos/**/*.png", "photos/*.jpg"], Path("photos/out"))
    assert Path("photos/out/a.png") in named_images(["photos/**/*.png"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("https://x.org/a.jpg", "https://x.org/a.jpg: expected a path of this machine, got one with a scheme"),
        ("photos/*.gif", r"photos/\*.gif: no such image"),
        ("nothing.jpg", "nothing.jpg: no such image"),
        ("empty", "empty: no image in this folder; expected files ending in .jpg"),
        ("missing.txt", "missing.txt: no such image"),
        ("none.txt", "none.txt: expected a list of images, a name a line, it is empty"),
        ("bad.txt", "bad.txt: line 2: photos/z.jpg: no such image"),
        ("nested.txt", "nested.txt: line 1: expected an image, a folder or a pattern, got the list list.txt"),
        ("web.txt", "s3://bucket/a.jpg: expected a path of this machine, got one with a scheme"),
        ("binary.txt", "binary.txt: expected a list of images, a name a line, cannot read it"),
        ("pipe.jpg", "pipe.jpg: no such image; expected a file or a folder, got a device, a pipe or a socket"),
    ],
)
def test_what_is_no_image_is_refused(home, word, message):
    (home / "empty").mkdir()
    os.mkfifo(home / "pipe.jpg")
    for name, text in {
        "none": "\n", "bad": "photos/b.jpg\nphotos/z.jpg\n", "nested": "list.txt\n", "web": "s3://bucket/a.jpg\n",
    }.items():  # fmt: skip
        (home / f"{name}.txt").write_text(text)
    (home / "binary.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(RetinaError, match=message):
        named_images([word])
