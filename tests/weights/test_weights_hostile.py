"""Files of weights made to harm: small ones that fill the memory or never end. And what chance does to good ones."""

import argparse
import collections
import io
import json
import pickle
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from retina.errors import RetinaError
from retina.weights import pickle_program
from retina.weights.keras_file import read_keras
from retina.weights.mapping import Rule, convert
from retina.weights.tensor_file import TensorFile, read_tensors
from retina.weights.tensor_values import Damaged, Room, is_plain_key, named, shown
from tests.weights.test_weights_reading import code, legacy, safetensors, zipped

SMALL = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1.0, 2.0]), "n": np.array(7)}
MB = 1 << 20


def refused(path, text, reader=read_tensors):
    """As a RetinaError of one short printable line, without much memory."""
    tracemalloc.start()
    try:
        with pytest.raises(RetinaError, match=text) as caught:
            reader(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and said.isprintable() and len(said) < 600
    assert peak < 16 * path.stat().st_size + 8 * MB


# -------------------------------------------------------------------------------------------- the same bytes many times


def rebuilt_many(count, numbers):
    """`count` names of one storage, by hand."""
    storage = code("storage") + b"ctorch\nFloatStorage\n" + b"".join(map(code, ("0", "cpu", numbers)))
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQ" + code(0) + code((numbers,)) + code((1,)) + b"tR"
    )
    return b"\x80\x02}" + b"".join(code(f"t{one}") + tensor + b"s" for one in range(count)) + b"."


def test_views_of_one_storage(tmp_path):
    path, numbers = tmp_path / "x.pth", MB // 4
    stored = np.zeros(numbers, "<f4").tobytes()
    path.write_bytes(zipped(rebuilt_many(4, numbers), _0=stored))  # tied weights are legitimate
    assert len(read_tensors(path).tensors) == 4
    path.write_bytes(zipped(rebuilt_many(200, numbers), _0=stored))
    refused(path, "take more than 4 times the file's own")


def test_one_dictionary_in_many_places(tmp_path):
    inner = {f"k{one}": 0 for one in range(3000)}
    outer = {f"d{one}": inner for one in range(3000)}
    (tmp_path / "x.pth").write_bytes(zipped(pickle.dumps(outer, protocol=2)))
    refused(tmp_path / "x.pth", "take more than 4 times")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(outer, protocol=2))
    refused(tmp_path / "x.pkl", "take more than 4 times")


def test_one_content_in_many_arrays(tmp_path):
    def pickled(count):
        array = b"cnumpy.core.multiarray\n_reconstruct\n(tR(K\x01" + code((MB,)) + b"cnumpy\ndtype\n"
        array += code("u1") + b"\x85R\x89h\x01tb"
        return (
            b"\x80\x02"
            + code("\x00" * MB)
            + b"q\x01}"
            + b"".join(code(f"x{i}") + array + b"s" for i in range(count))
            + b"."
        )

    path = tmp_path / "x.pkl"
    path.write_bytes(pickled(3))
    assert len(read_tensors(path).tensors) == 3
    path.write_bytes(pickled(100))
    refused(path, "take more than 4 times the file's own")


def test_overlapping_tensors(tmp_path):
    path = tmp_path / "x.safetensors"
    values = {f"t{one}": np.zeros(4, np.float32) for one in range(3)}
    for changes, text in (
        ({"t1": {"data_offsets": [0, 16]}}, "tensor t1 begins at byte 0, where byte 16 is the next"),
        ({"t2": {"data_offsets": [16, 32]}}, "tensor t2 begins at byte 16, where byte 32 is the next"),
        ({"t2": {"shape": [0], "data_offsets": [32, 32]}}, "its tensors have 32 bytes, 48 are there"),
    ):
        path.write_bytes(safetensors(values, **changes))
        refused(path, text)


def test_an_archive_that_promises_more_than_it_has(tmp_path):
    path = tmp_path / "x.pth"
    whole = bytearray(zipped(rebuilt_many(1, 0x3FFFFFFC), _0=b"1234"))
    place = whole.index(b"PK\x01\x02", whole.index(b"PK\x01\x02") + 1)  # the second entry of the directory
    whole[place + 20 : place + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(whole)
    refused(path, "damaged file of weights")


@pytest.mark.parametrize("name", ["archive/data.pkl", "archive/data/0"])
def test_compressed_entries_are_not_unfolded(tmp_path, name):
    content = {"archive/data.pkl": rebuilt_many(1, 4), "archive/data/0": b"\x00" * 16}
    content[name] += b"\x00" * (32 * MB)
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for one, stored in content.items():
            archive.writestr(one, stored, zipfile.ZIP_DEFLATED if one == name else zipfile.ZIP_STORED)
    refused(path, "not a file of torch.save|damaged file of weights")


# ------------------------------------------------------------------------------------------------------ hostile pickles

NESTED = b"".join(
    [code("a"), b"\x85", *(b"q%ch%c\x86" % (one, one) for one in range(40))]
)  # 2^40 texts, if it is unfolded


@pytest.mark.parametrize(
    ("pickled", "text"),
    [
        (b"}r" + struct.pack("<I", 1 << 27), "stores its 1. object as number 134217728"),
        (b"}p999999999\n", "stores its 1. object as number"),
        (b"}" + NESTED + b"K\x01s", "a key that is neither a text nor a number"),
        (b"}(" + NESTED + b"K\x01u", "a key that is neither"),
        (b"(" + NESTED + b"K\x01d", "a key that is neither"),
        (b"}" + code(3 << 61) + b"K\x01s", "a key that is neither"),  # many such numbers have one hash
        (b"ccollections\nOrderedDict\n](" + NESTED + b"K\x01tae\x85R", "damaged"),
        (b"ccollections\nOrderedDict\n]" + NESTED + b"K\x01\x86a\x85R", "a dictionary of what are no pairs"),
        (b"}22", "the instruction DUP"),
        (b"\x8f(" + NESTED + b"\x90", "the instruction EMPTY_SET"),
        (b"}0", "the instruction POP"),
        (b"}s", "takes more objects than it has made"),
        (b"}(s", "takes more objects"),
        (b"}h\x05", "damaged file of weights"),
        (b"}" + b"(" * 3, "damaged|expected a state dict"),
        (NESTED, "found a value of type tuple|damaged"),
    ],
)
def test_pickles_that_ask_for_much(tmp_path, pickled, text):
    for name, wrap in (("x.pth", zipped), ("y.pth", legacy), ("x.pkl", lambda given: given)):
        (tmp_path / name).write_bytes(wrap(b"\x80\x02" + pickled + b"."))
        refused(tmp_path / name, text)


def test_pickles_of_many_instructions(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_program, "_MOST", 1000)
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02" + b"]" * 1000 + b".")
    refused(tmp_path / "x.pkl", "more than 1000 instructions")


def test_what_a_message_shows_of_a_file(tmp_path):
    path = tmp_path / "x.pth"
    identity = b"(" + NESTED + code("1") + code("2") + code("3") + code("4") + b"t"
    path.write_bytes(zipped(b"\x80\x02" + identity + b"Q."))
    refused(path, "a storage that is none")
    path.write_bytes(
        zipped(b"\x80\x02" + b"(" + code("storage") + b"ctorch\nFloatStorage\n" + NESTED + b"K\x01K\x01tQ.")
    )
    refused(path, "storage a value of type tuple of 1 numbers")
    path.write_bytes(zipped(b"\x80\x02c" + b"x" * 10_000 + b"\n\x1b[2J\n."))
    refused(path, "it holds more than tensors: 'xxxx")
    for name in ("a" * 10_000, "a\nb", "\x1b[31mred"):
        path.write_bytes(safetensors({name: SMALL["a.weight"]}))
        refused(path, "a tensor's name is no plain text of at most 300 characters")
    assert shown("a\n'b") == r"'a\n'b'"
    assert (
        shown((3, 4)) == "[3, 4]" and shown(1 << 70) == "a value of type int" and shown([[]]) == "a value of type list"
    )
    assert named("x" * 100) == "x" * 80 + "…" and shown(None) == "None"


def test_arguments_beside_the_weights_are_one_class(tmp_path):
    """Each mention of a class by a pickle used to make a new one, of some kB."""
    names = b"".join(b"cargparse\nNamespace\na" for _ in range(5000))
    path = tmp_path / "x.pth"
    path.write_bytes(zipped(b"\x80\x02]" + names + b"."))
    refused(path, "found a value of type list")
    good = {"args": argparse.Namespace(lr=0.1), "model": collections.OrderedDict(), "counts": collections.Counter([3])}
    path.write_bytes(zipped(pickle.dumps(good, protocol=2)))
    refused(path, "found a value of type dict")


def test_shapes_of_many_sides(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors({"a": SMALL["a.weight"]}, a={"shape": [2, 3] + [1] * 40}))
    refused(path, "tensor a has shape a value of type list")
    path.write_bytes(safetensors({"a": SMALL["a.weight"]}, a={"shape": [10**4000, 10**4000]}))
    refused(path, "tensor a has shape")
    text = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    refused(path, "damaged file of weights")
    path.write_bytes(struct.pack("<Q", 11_000_000) + b"{" + b" " * 11_000_000)
    refused(path, "a header of 11000000 bytes")


def test_keys_and_room():
    assert all(map(is_plain_key, ("a", b"a", 0, -5, True, 1 << 59)))
    assert not any(map(is_plain_key, (1 << 61, 1.5, (), None)))
    room = Room(MB)
    room.take(5 * MB)
    with pytest.raises(Damaged, match="4 times the file's own 1048576 bytes"):
        room.take(1)


def test_real_pickles_pass(tmp_path):
    for protocol in range(2, 6):
        given = io.BytesIO(
            pickle.dumps([{"a": (1, 2.5, None, True), 3: [b"x", "y" * 300]}, "b"] * 2, protocol=protocol)
        )
        pickle_program.check_program(given)
        assert given.tell() == 0 and pickle.load(given)


# --------------------------------------------------------------------------------------------------------------- values


def only(tensor, target):
    given = TensorFile(Path("x.pth"), "0" * 64, {"bn1.running_var": np.asarray(tensor, np.float32)})
    return convert(given, [Rule("bn1.running_var", target)], {target: (2,)}, what="x", expected_unused={})


def test_a_variance_is_not_negative():
    text = r"x\.pth: tensor bn1\.running_var is a variance, expected values from 0, got -0\.5"
    with pytest.raises(RetinaError, match=text):
        only([1.0, -0.5], "bn1/moving_variance")
    assert only([1.0, 0.0], "bn1/moving_variance").arrays["bn1/moving_variance"].tolist() == [1, 0]
    assert only([1.0, -0.5], "bn1/beta").arrays["bn1/beta"].tolist() == [1, -0.5]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_float32_cannot_hold(tmp_path, value):
    for target in ("bn1/moving_variance", "conv1/bias"):
        with np.errstate(over="ignore"), pytest.raises(RetinaError, match=r"bn1\.running_var has values .* not finite"):
            only([1.0, value], target)
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors({"bn1.running_var": np.array([1.0, value])}))
    refused(path, r"tensor bn1\.running_var has values that are not finite")


# ------------------------------------------------------------------------------------------------------------ by chance


def hdf5(values, **attributes):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, value in values.items():
            group = file.create_group(f"layers/{name}/vars")
            group.attrs.update({"name": name, **attributes})
            group["0"] = value
    return content.getvalue()


def good_files():
    found = {f"pickle{protocol}": pickle.dumps({"model": SMALL}, protocol=protocol) for protocol in (2, 4, 5)}
    found["safetensors"] = safetensors(SMALL)
    stored = {f"_{key}": value.astype("<f4").tobytes() for key, value in enumerate(SMALL.values())}
    found["torch"] = zipped(rebuilt_many(1, 6), **stored)
    counted = struct.pack("<q", 6) + stored["_0"]
    found["legacy"] = legacy(rebuilt_many(1, 6), pickle.dumps(["0"], protocol=2), counted)
    return found


def what_becomes_of(path):
    try:
        found = read_tensors(path).tensors
    except RetinaError as error:
        said = str(error)
    else:
        assert all(key.isprintable() and isinstance(value, np.ndarray) for key, value in found.items())
        return "read"
    assert said.startswith(f"{path}: ") and said.isprintable() and len(said) < 600
    return "refused"


@pytest.mark.parametrize("name", good_files())
def test_by_chance(tmp_path, name):
    """Whatever is cut off or changes: arrays of plain names, or one clear line."""
    content, path, draw = good_files()[name], tmp_path / "x", random.Random(name)
    path.write_bytes(content)
    assert len(read_tensors(path).tensors) in (1, 3)
    ends = []
    for number in range(200):
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 1, 3))):
            changed[draw.randrange(len(changed))] = draw.choice((0, 255, draw.randrange(256), draw.choice(content)))
        path.write_bytes(changed[: draw.randrange(len(changed))] if number % 4 == 0 else changed)
        ends.append(what_becomes_of(path))
    assert min(ends.count("read"), ends.count("refused")) > 10


def test_keras_files_that_are_cut_off_or_name_much(tmp_path):
    path = tmp_path / "x.weights.h5"
    content = hdf5(SMALL)
    path.write_bytes(content)
    found = read_keras(path)
    assert [(one.name, one.variables[0].shape) for one in found.groups] == [
        ("a.weight", (2, 3)),
        ("b", (2,)),
        ("n", ()),
    ]
    for share in (0.05, 0.5, 0.98):
        path.write_bytes(content[: int(share * len(content))])
        refused(path, "damaged file of weights", read_keras)
    with h5py.File(path, "w") as file:  # one array under many names
        group = file.create_group("layers/a/vars")
        group["0"] = np.zeros(MB // 4, np.float32)
        for number in range(1, 40):
            group[str(number)] = group["0"]
    refused(path, "take more than 4 times the file's own", read_keras)
    path.write_bytes(hdf5(SMALL, name=["x" * 100] * 3))  # a name that is a list
    assert {one.name for one in read_keras(path).groups} == {None}


@pytest.mark.slow
def test_hdf5_that_never_ends(tmp_path):
    """Room of 0 bytes behind the texts in HDF5's heap sends its library round in circles."""
    content = bytearray(hdf5(SMALL))
    place = content.index(b"GCOL") + 16
    while number := struct.unpack_from("<H", content, place)[0]:  # the texts, each a header of 16 bytes and its own
        assert number < 10
        place += 16 + -(-struct.unpack_from("<Q", content, place + 8)[0] // 8) * 8
    content[place + 8 : place + 16] = bytes(8)
    path = tmp_path / "x.weights.h5"
    path.write_bytes(content)
    with pytest.raises(RetinaError, match="damaged file of weights .its HDF5 never ends"):
        read_keras(path)


def test_an_archive_of_keras_that_promises_more_than_it_has(tmp_path):
    path = tmp_path / "x.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps({}))
        archive.writestr("model.weights.h5", hdf5(SMALL))
    assert len(read_keras(path).groups) == 3
    whole = bytearray(path.read_bytes())
    place = whole.rindex(b"PK\x01\x02")
    whole[place + 20 : place + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    path.write_bytes(whole)
    refused(path, "its entries have more bytes than the file", read_keras)
