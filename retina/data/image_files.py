"""Image files: how annotations name them, what their headers say, EXIF rotations undone, and copies written whole."""

from __future__ import annotations

import glob
import io
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from retina.data.detections import is_name, short
from retina.data.folders import LOOKED_AT, files_below, subfolders
from retina.data.headers import QUARTER_TURNS, orientation, tiff_size
from retina.data.stored import TableImage, encoded
from retina.errors import RetinaError
from retina.files import IMAGE_SUFFIXES, exists, partial, refuse_scheme, refuse_special
from retina.output import count

# What Label Studio puts before the names of uploads, and its address of a file of the server.
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?P<name>.+)")
_LOCAL_FILE = re.compile(r"/local-files/?\?(?:.*&)?d=(?P<path>[^&]+)")
_QUALITY = 95  # of JPEGs that have to be encoded again
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif"}
# Of images, whether they can be read here or not: files beside them are called without.
_ENDINGS = {*IMAGE_SUFFIXES, ".jpe", ".jfif", ".jp2", ".ppm", ".pgm", ".heic", ".avif", ".dng"}

NO_SIZE_FRACTIONS, NO_SIZE_PIXELS = (1, 1), (2**24, 2**24)
"""Stand-ins for the (height, width) of an image without readable header, where such images are left out afterwards:
boxes in fractions are judged against the first, boxes in pixels against the second, which has room for any."""


def stem(file: str) -> str:
    """Return an image file's name without folder and extension, whichever system wrote it.

    Only an image's extension is one: "frame.0001" is a whole name.
    """
    return without_ending(re.split(r"[/\\]", file)[-1])


def without_ending(name: str) -> str:
    """Return the name of an image file without its extension."""
    plain, ending = os.path.splitext(name)
    return plain if ending.lower() in _ENDINGS else name


def leaves_folder(file: str) -> bool:
    """Return whether an annotation's path is empty, absolute or climbs, on whichever system it was written."""
    # Without a separator after it, a drive is one on Windows alone; elsewhere "c:d.png" is a plain name.
    if not file or file[0] in "/\\" or (file[1:2] == ":" and (file[2:3] in ("/", "\\") or os.name == "nt")):
        return True
    return ".." in file and (".." in PurePosixPath(file).parts or ".." in PureWindowsPath(file).parts)


def refuse_no_name(where: str, file: str) -> None:
    """Raise an error that begins with `where` if no file can be called so: it holds half a character or a null."""
    if "\0" in file or not is_name(file):
        raise RetinaError(f"{where} {short(file)}: no file can be called so; correct the name")


def within(folder: Path, files: Sequence[str]) -> list[str]:
    """[N] the paths with those that lead into the folder absolutely made relative to it; the others as they are."""
    top = os.path.abspath(folder).rstrip(os.sep) + os.sep
    return [file.removeprefix(top) for file in files]


class Located(NamedTuple):
    """The [N] `paths` of images that a file names, and `notes` on names that were not taken as they stand there."""

    paths: list[str]
    notes: tuple[str, ...]


def locate_images(
    name: str,
    folder: Path,
    files: Sequence[str],
    where: Callable[[int], str],
    key: str,
    *,
    looked: Sequence[Path] = (),
    keep_missing: bool = False,
) -> Located:
    """Return the paths of images that a file names by paths relative to a folder.

    A name that leads to no file is read otherwise, as `readings` says, never to a file outside the folder. A link in
    the folder is fine, wherever it leads: the owner of the disk has placed it, not the file that names it.

    Args:
        name: the file that names them.
        where: the place in it that names image `index`.
        key: what the name is called there.
        looked: the folders into which was looked, where the folder is a guess.
        keep_missing: an image that is missing gets its path all the same, to be left out by who decodes it.

    Raises:
        RetinaError: the folder is missing, a path leaves it or can be no file's, an image is missing and `keep_missing`
            is false, or two names come to mean one file.
    """
    if not folder.is_dir():
        raise RetinaError(f"{folder}: no such image folder (for {name}); check data.root and images")
    # One listing instead of a look-up an image; it tells files from folders and pipes without asking again.
    existing = {entry.name for entry in os.scandir(folder) if entry.is_file()}
    home = Path(name).parent
    inside = [
        file if file in existing or _leads_inside(file, folder) else _read_name(file, folder, home) for file in files
    ]
    for index, (file, read) in enumerate(zip(files, inside, strict=True)):
        if read is None:
            refuse_no_name(f"{name}: {where(index)}: {key}", file)
        if read is None and leaves_folder(file):
            raise RetinaError(
                f"{name}: {where(index)}: {key} {short(file)} leaves the image folder; expected a path relative to "
                f"{folder}"
            )
    missing = [index for index, read in enumerate(inside) if read is None]
    if missing and not keep_missing:
        index, path = missing[0], folder / files[missing[0]]
        if os.path.lexists(path):
            raise RetinaError(
                f"{path}: expected an image file, it is a folder, a pipe or a broken link ({where(index)} of {name})"
                f"{_more_missing(len(missing), len(files))}; remove it, or set data.invalid_images: skip"
            )
        also = f"; looked into {', '.join(map(str, looked))}" if len(looked) > 1 else ""
        raise missing_images(path, f"{where(index)} of {name}{also}", len(missing), len(files))
    paths = [file if read is None else read for file, read in zip(files, inside, strict=True)]
    return Located([f"{folder}/{path}" for path in paths], _other_readings(name, files, paths, where))


def _other_readings(
    name: str, files: Sequence[str], paths: Sequence[str], where: Callable[[int], str]
) -> tuple[str, ...]:
    """Notes on the names that were not taken as they stand there.

    Raises:
        RetinaError: such a name came to mean the file of another name.
    """
    others = [index for index, (file, path) in enumerate(zip(files, paths, strict=True)) if file != path]
    if not others:
        return ()
    file_of: dict[str, str] = {}
    for index, (file, path) in enumerate(zip(files, paths, strict=True)):
        if file_of.setdefault(path, file) != file:
            raise RetinaError(
                f"{name}: {where(index)}: {short(file)} and {short(file_of[path])} both lead to {path}; name the files "
                "as they are called in the image folder"
            )
    first = others[0]
    return (f"{name}: {count(len(others), 'image name')} read otherwise, such as {files[first]} as {paths[first]}",)


def _leads_inside(file: str, folder: Path) -> bool:
    return not leaves_folder(file) and os.path.isfile(f"{folder}/{file}")


def _read_name(file: str, folder: Path, home: Path) -> str | None:
    """The path in the folder that a name leads to, or None."""
    return next((path for path in readings(file, folder, home) if os.path.isfile(folder / path)), None)


def readings(file: str, folder: Path, home: Path) -> Iterator[str]:
    """Yield the paths in a folder that a name may mean, the most literal first: as it stands, with slashes for
    backslashes, without the escapes of a URL, relative to the file that names it, after the folder's own name, without
    the folders of another machine, and without Label Studio's prefix.

    Args:
        file: a name from an annotation file.
        home: the folder of that file.
    """
    paths = dict.fromkeys(path for form in _forms(file) for path in _inside(form, folder, home))
    yield from paths
    for path in paths:
        parent, name = os.path.split(path)
        uploaded = _UPLOADED.fullmatch(name)
        if uploaded is not None:
            yield os.path.join(parent, uploaded["name"])


def plain_names(name: str) -> set[str]:
    """Return the other names that the file of an upload may have had before Label Studio wrote its name: without the
    escapes of a URL, and without its prefix."""
    plain = unquote(name)
    uploaded = _UPLOADED.fullmatch(plain)
    return {plain, *([uploaded["name"]] if uploaded else [])} - {name}


def _forms(file: str) -> Iterator[str]:
    slashes = file.replace("\\", "/")
    yield from (file, slashes)
    query = _LOCAL_FILE.search(slashes)
    if query is not None:
        yield unquote(query["path"])
    if "://" in slashes:
        slashes = "/" + slashes.partition("://")[2].partition("?")[0]
    yield unquote(slashes)


def _inside(form: str, folder: Path, home: Path) -> Iterator[str]:
    """The paths in the folder that a path may mean."""
    if not leaves_folder(form):
        yield form
    top = os.path.abspath(folder)
    whole = os.path.normpath(os.path.join(os.path.abspath(home), form))
    if whole.startswith(top.rstrip(os.sep) + os.sep):
        yield os.path.relpath(whole, top)
    parts = [part for part in form.split("/") if part not in ("", ".")]
    if ".." in parts:
        return
    absolute = leaves_folder(form)
    for place in range(1, len(parts)):
        if absolute or list(Path(top).parts[-place:]) == parts[:place]:
            yield "/".join(parts[place:])


def guess_folder(file: Path, files: Sequence[str]) -> tuple[Path, tuple[Path, ...]]:
    """Return the folder of the images that a file names, and those that were looked into: the one where most of the
    names lead to a file.

    The file's own folder and that above its `annotations`, in both of these `images`, what is called like the file, and
    the latter in `images`; where no name leads to a file there, the other folders beside it. Of equals the first; where
    no name leads to a file, the file's own folder.
    """
    home = file.parent.parent if file.parent.name == "annotations" else file.parent
    split = file.stem.removeprefix("instances_").removesuffix("_labels")
    places = dict.fromkeys(
        (file.parent, home / split, home / "images" / split, home / "images", file.parent / "images", home)
    )
    looked = tuple(place for place in places if place.is_dir())
    for among in (looked, tuple(place for place in subfolders(home) if place not in looked)):
        counts = [
            sum(_read_name(name, place, file.parent) is not None for name in files[:LOOKED_AT]) for place in among
        ]
        if any(counts):
            return among[counts.index(max(counts))], looked
    return file.parent, looked


def missing_images(first: str | Path, where: str, missing: int, of: int) -> RetinaError:
    """The error of a source that lacks images: the first one's path, who names it, and how many there are in all."""
    return RetinaError(
        f"{first}: no such image ({where}){_more_missing(missing, of)}; is {Path(first).parent} the right image "
        "folder? data.invalid_images: skip goes on without"
    )


def _more_missing(missing: int, of: int) -> str:
    return f", {missing} of {of} images {'is' if missing == 1 else 'are'} missing"


def image_files(folder: Path) -> dict[str, Path]:
    """The images of a folder by their stems, sorted.

    Raises:
        RetinaError: the folder can't be read or holds no image, or two images share a stem.
    """
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise RetinaError(f"{folder}: cannot read this folder of images: {error.strerror}; check --images") from None
    if not files:
        raise RetinaError(f"{folder}: no image in this folder; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    by_stem: dict[str, Path] = {}
    for file in files:
        if file.stem in by_stem:
            raise RetinaError(
                f"{folder}: {by_stem[file.stem].name} and {file.name} share a name; text files can't tell them apart"
            )
        by_stem[file.stem] = file
    return by_stem


def named_images(words: Sequence[str | Path], leaving_out: Path | None = None) -> list[Path]:
    """Return the images that a user names, each once, in the order given.

    Args:
        words: image files; folders, whose images and those of their subfolders come in the order of their paths;
            patterns such as `photographs/**/*.jpg`, where no file is called so; and `.txt` lists, a file, folder or
            pattern a line, relative to the folder of the list.
        leaving_out: a folder that is passed over where it lies below one that is named: that of the results.

    Raises:
        RetinaError: there is no such image, a folder or pattern has none, a list can't be read, or a URL.
    """
    for word in words:
        refuse_scheme(word)
    return list(dict.fromkeys(file for word in words for file in _named(Path(word), leaving_out)))


def _named(path: Path, leaving_out: Path | None) -> list[Path]:
    if not exists(path):
        matches = sorted(map(Path, glob.glob(str(path), recursive=True))) if glob.has_magic(str(path)) else []
        images = [file for file in matches if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
        if not images:
            raise RetinaError(f"{path}: no such image")
        plain = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
        return _outside(images, Path(*plain), leaving_out)
    if path.is_dir():
        images = sorted(map(Path, files_below(str(path))))
        images = _outside([file for file in images if file.suffix.lower() in IMAGE_SUFFIXES], path, leaving_out)
        if not images:
            raise RetinaError(f"{path}: no image in this folder; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
        return images
    if not path.is_file():
        raise RetinaError(f"{path}: no such image; expected a file or a folder, got a device, a pipe or a socket")
    return _listed(path, leaving_out) if path.suffix.lower() == ".txt" else [path]


def _listed(file: Path, leaving_out: Path | None) -> list[Path]:
    """The images of a list."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RetinaError(f"{file}: expected a list of images, a name a line, cannot read it: {error}") from None
    images: list[Path] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        refuse_scheme(line.strip())
        path = file.parent / line.strip()
        if path.suffix.lower() == ".txt":
            raise RetinaError(f"{file}: line {number}: expected an image, a folder or a pattern, got the list {path}")
        try:
            images += _named(path, leaving_out)
        except RetinaError as error:
            raise RetinaError(f"{file}: line {number}: {error}") from None
    if not images:
        raise RetinaError(f"{file}: expected a list of images, a name a line, it is empty")
    return images


def _outside(files: list[Path], named: Path, folder: Path | None) -> list[Path]:
    """The files that don't lie in the folder, if that is below `named`."""
    top = None if folder is None else folder.resolve()
    if top is None or named.resolve() not in top.parents:
        return files
    return [file for file in files if top not in file.resolve().parents]


def image_sizes(
    name: str, files: Sequence[str], unreadable: tuple[int, int] | None = None, upright: bool = False
) -> list[tuple[int, int]]:
    """[N] (height, width) from the files' headers.

    Args:
        name: of the source, for messages.
        unreadable, upright: see `image_size`.

    Raises:
        RetinaError: a file can't be read and `unreadable` is None; of missing ones the message gives the number.
    """
    try:
        return [image_size(Path(file), unreadable, upright) for file in files]
    except RetinaError:
        missing = [file for file in files if not os.path.lexists(file)]
        if missing:
            raise missing_images(missing[0], name, len(missing), len(files)) from None
        raise


def image_size(file: Path, unreadable: tuple[int, int] | None = None, upright: bool = False) -> tuple[int, int]:
    """(height, width) from the file's header.

    Args:
        upright: of the picture after its EXIF rotation; otherwise as stored.
        unreadable: stands for the size of a file that can't be read, where such images are left out afterwards.

    Raises:
        RetinaError: the file can't be read, and `unreadable` is None.
    """
    try:
        size = _header_size(file)
        return size[::-1] if upright and orientation(str(file)) in QUARTER_TURNS else size
    except RetinaError:
        if unreadable is None:
            raise
        return unreadable


def _header_size(file: Path) -> tuple[int, int]:
    try:
        refuse_special(file)
        tiff = tiff_size(str(file))
        if tiff is not None:
            return tiff
        with Image.open(file) as image:
            return image.height, image.width
    except RetinaError:
        raise
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise RetinaError(f"{file}: cannot read the size of this image: {error}; fix or replace it") from None


# ------------------------------------------------------------------------------------ headers and pixels


class Header(NamedTuple):
    """(height, width) as stored, the EXIF orientation (1 to 8, 1: upright) and the extension that the content asks."""

    size: tuple[int, int]
    orientation: int
    suffix: str

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) after the rotation; orientations of 5 and more swap the sides."""
        return self.size[::-1] if self.orientation in QUARTER_TURNS else self.size


def read_header(image: TableImage, name: str) -> Header:
    """Read an image's header; the pixels are not decoded.

    Raises:
        RetinaError: it can't be read or is no image; the message says `name`.
    """
    try:
        if isinstance(image, str):
            refuse_special(image)
        tiff = tiff_size(image)
        if tiff is not None:
            return Header(tiff, orientation(image), ".tif")
        with Image.open(image if isinstance(image, str) else io.BytesIO(encoded(image))) as opened:
            suffix = _SUFFIXES.get(opened.format or "")
            if suffix is None:
                raise RetinaError(f"{name}: expected a JPEG, PNG, WebP, BMP, GIF or TIFF image, got {opened.format}")
            return Header((opened.height, opened.width), orientation(image), suffix)
    except RetinaError:
        raise
    except UnidentifiedImageError:
        raise RetinaError(f"{name}: expected an image, it is none or damaged; restore or remove it") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RetinaError(f"{name}: cannot read this image: {error}; fix or replace it") from None


def upright_boxes(boxes: np.ndarray, orientation: int, size: tuple[int, int]) -> np.ndarray:
    """Boxes [n,4] xyxy of the stored pixels in those of the upright picture.

    Args:
        orientation: EXIF 2.3, tag 0x0112: 1 to 8.
        size: (height, width) as stored.
    """
    height, width = size
    x1, y1, x2, y2 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    turned = {
        1: (x1, y1, x2, y2),
        2: (width - x2, y1, width - x1, y2),
        3: (width - x2, height - y2, width - x1, height - y1),
        4: (x1, height - y2, x2, height - y1),
        5: (y1, x1, y2, x2),
        6: (height - y2, x1, height - y1, x2),
        7: (height - y2, width - x2, height - y1, width - x1),
        8: (y1, width - x2, y2, width - x1),
    }[orientation]
    return np.stack(turned, axis=1)


def upright_bytes(image: TableImage, name: str) -> bytes:
    """The image with its EXIF rotation carried out, in its own format: lossless, but for JPEG (quality 95).

    Raises:
        RetinaError: it is damaged.
    """
    out = io.BytesIO()
    try:
        with Image.open(io.BytesIO(encoded(image))) as opened:
            turned = ImageOps.exif_transpose(opened)
            exif = {"exif": turned.getexif()} if turned.getexif() else {}
            profile = {"icc_profile": opened.info["icc_profile"]} if opened.info.get("icc_profile") else {}
            if opened.format in ("JPEG", "MPO"):
                turned.save(out, format="JPEG", quality=_QUALITY, subsampling=0, **exif, **profile)
            elif opened.format == "WEBP":
                turned.save(out, format="WEBP", lossless=True, exact=True, **exif, **profile)
            else:
                turned.save(out, format=opened.format, **exif, **profile)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RetinaError(f"{name}: cannot turn this image upright: {error}; fix or replace it") from None
    return out.getvalue()


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """Give a temporary name in the same folder, which becomes `path` on success.

    The name is the same each time, so that a conversion that goes on after a kill leaves no stray file. Unlike
    `retina.files.written` it does not wait for the disk: with 100,000 images that would take longer than the rest.
    """
    temporary = partial(path)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def place_image(image: TableImage, name: str, path: Path, *, rotated: bool, link: bool) -> None:
    """Write an image to `path`, unless it is there: what has this name is whole.

    Args:
        link: makes a hard link in the place of a copy.

    Raises:
        RetinaError: it can't be read, turned, linked or written.
    """
    if path.exists():
        return
    try:
        with placed(path) as temporary:
            if rotated:
                temporary.write_bytes(upright_bytes(image, name))
            elif link and isinstance(image, str):
                temporary.unlink(missing_ok=True)
                os.link(os.path.realpath(image), temporary)
            else:
                temporary.write_bytes(encoded(image))
    except OSError as error:
        hint = "; leave --link out to copy" if link and not rotated else ""
        raise RetinaError(f"{path}: cannot write this image: {error.strerror}{hint}") from None
