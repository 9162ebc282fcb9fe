"""Files of weights: every format gives the same arrays, and no file runs code or ends in anything but a clear error."""

import collections
import hashlib
import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retina.errors import RetinaError
from retina.weights import torch_file
from retina.weights.tensor_file import read_tensors, sha256_of_arrays

VALUES = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
    "a.bias": np.array([-1.5, 0.0, 2.0], np.float32),
    "scalar": np.float32(3.25).reshape(()),
    "empty": np.zeros((0, 4), np.float32),
    "count": np.array(7, np.int64),
}


def refused(path, text):
    with pytest.raises(RetinaError, match=text) as caught:
        read_tensors(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def check(found, values=VALUES):
    assert list(found) == list(values)
    for name, wanted in values.items():
        assert found[name].dtype == wanted.dtype and found[name].shape == wanted.shape
        np.testing.assert_array_equal(found[name], wanted)


# -------------------------------------------------------------------------------------------------------- safetensors


def safetensors(values, **changes):
    """The format by its specification: length, JSON header, values one behind the other."""
    header, body = {"__metadata__": {"format": "pt"}}, b""
    names = {"float32": "F32", "float64": "F64", "float16": "F16", "int64": "I64"}
    for name, value in values.items():
        stored = value.tobytes()
        places = [len(body), len(body) + len(stored)]
        header[name] = {"dtype": names[str(value.dtype)], "shape": list(value.shape), "data_offsets": places}
        body += stored
    for name, change in changes.items():
        header[name] |= change
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors(VALUES))
    file = read_tensors(path)
    check(file.tensors)
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_other_floats_become_float32(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(safetensors({"half": np.array([0.1], np.float16), "double": np.array([1 / 3])}))
    found = read_tensors(path).tensors
    assert found["half"].dtype == found["double"].dtype == np.float32
    assert found["half"][0] == np.float32(np.float16(0.1)) and found["double"][0] == np.float32(1 / 3)
    # bfloat16 is the upper half of a float32: 0x3F80 is 1, 0xC040 is -3.
    path.write_bytes(safetensors({"x": np.array([0x3F80, 0xC040], "<u2").view(np.float16)}, x={"dtype": "BF16"}))
    assert read_tensors(path).tensors["x"].tolist() == [1.0, -3.0]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"data_offsets": [0, 100]}, "tensor a.bias of shape"),
        ({"data_offsets": [10**9, 10**9 + 12]}, "tensor a.bias of shape"),
        ({"shape": [4]}, "tensor a.bias of shape"),
        ({"shape": [-3]}, "tensor a.bias has shape"),
        ({"shape": "abc"}, "tensor a.bias has shape"),
        ({"dtype": "F8_E5M2"}, "type F8_E5M2, expected one of"),
        ({"data_offsets": 3}, "damaged file of weights"),
    ],
)
def test_safetensors_that_contradict_themselves(tmp_path, change, text):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors({"a.bias": VALUES["a.bias"]}, **{"a.bias": change}))
    refused(path, text)


def test_other_files(tmp_path):
    path = tmp_path / "x.pth"
    refused(path, "no such file of weights")
    refused(tmp_path, "cannot read this file of weights: Is a directory")
    for content, text in (
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "expected a file of torch.save .* or of safetensors, this is neither"),
        (b"\x93NUMPY\x01\x00", "this is neither"),
        (struct.pack("<Q", 2**62) + b"{", "damaged"),
        (struct.pack("<Q", 40) + b'{"a": ', "damaged"),
        (b"PK\x03\x04 and nothing else", "damaged"),
    ):
        path.write_bytes(content)
        refused(path, text)


def test_values_that_are_not_finite(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(safetensors({"a.bias": np.array([1.0, np.nan], np.float32)}))
    refused(path, "tensor a.bias has values that are not finite")


def test_digest_of_arrays():
    first = {"a": np.array([1.0, 2.0], np.float32), "b": np.zeros((0, 2), np.float32)}
    same = {"b": first["b"].copy(), "a": np.array([1.0, 0.0, 2.0], np.float32)[::2]}
    assert sha256_of_arrays(first) == sha256_of_arrays(same)
    others = [
        {**first, "a": np.array([1.0, 2.5], np.float32)},
        {**first, "a": first["a"].reshape(1, 2)},
        {"c": first["a"], "b": first["b"]},
    ]
    assert len({sha256_of_arrays(one) for one in [first, *others]}) == 4


# ---------------------------------------------------------------------------------------------------------- torch.save


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def tensors(torch):
    return collections.OrderedDict((name, torch.tensor(value)) for name, value in VALUES.items())


@pytest.mark.parametrize("new", [True, False])
def test_both_formats(torch, tmp_path, new):
    state = tensors(torch)
    state["a.weight"] = state["a.weight"].permute(0, 2, 1).contiguous().permute(0, 2, 1)  # strides out of order
    state["view"] = torch.arange(10, dtype=torch.float32)[3:9:2]
    state["parameter"] = torch.nn.Parameter(torch.ones(2))
    state["half"] = torch.tensor([1.5], dtype=torch.bfloat16)
    state["shared"] = state["a.bias"][1:]
    state._metadata = collections.OrderedDict(version=1)
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=new)
    check(
        read_tensors(tmp_path / "x.pth").tensors,
        {
            **VALUES,
            "view": np.array([3, 5, 7], np.float32),
            "parameter": np.ones(2, np.float32),
            "half": np.array([1.5], np.float32),
            "shared": VALUES["a.bias"][1:],
        },
    )


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict"])
def test_a_training_script_s_checkpoint(torch, tmp_path, key):
    """With an optimizer, a schedule and arguments, all of which are left alone; and the prefix of parallel training."""
    import argparse

    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    torch.save(
        {
            "optimizer": optimizer.state_dict(),
            key: {f"module.{name}": tensor for name, tensor in tensors(torch).items()},
            "lr_scheduler": schedule.state_dict(),
            "args": argparse.Namespace(lr=0.1, epochs=26, device=torch.device("cpu")),
            "epoch": 25,
            "best": np.float64(0.5),
        },
        tmp_path / "x.pth",
    )
    check(read_tensors(tmp_path / "x.pth").tensors)


@pytest.mark.parametrize(
    ("before", "more"),
    [
        ("_orig_mod.", {}),  # torch.compile
        ("module._orig_mod.", {}),
        ("model.", {}),  # Lightning
        ("module.", {"n_averaged": np.array(3)}),  # torch.optim.swa_utils.AveragedModel
    ],
)
def test_names_of_wrapped_networks(tmp_path, before, more):
    path = tmp_path / "x.safetensors"
    wrapped = {f"{before}{name}": value for name, value in VALUES.items()}
    path.write_bytes(safetensors({**more, **wrapped}))
    check(read_tensors(path).tensors)
    path.write_bytes(safetensors({**wrapped, "other": VALUES["count"]}))
    check(read_tensors(path).tensors, {**wrapped, "other": VALUES["count"]})


def test_a_tensor_alone(torch, tmp_path):
    torch.save(torch.ones(3), tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "expected a state dict .* found a value of type ndarray; save model.state_dict")


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ({}, "expected a state dict .* found an empty dict"),
        ([1, 2], "found a value of type list"),
        ({"a": 3}, "found a value of type int under 'a'"),
        ({"model": {"a": None}}, "found a value of type NoneType under 'a'"),
    ],
)
def test_what_is_no_state_dict(torch, tmp_path, what, text):
    torch.save(what, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", text)


def test_a_whole_pickled_model(torch, tmp_path):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "x.pth")
    refused(tmp_path / "x.pth", r"more than tensors: 'torch\.nn\.modules\.linear\.Linear'.*nothing was run.*state_dict")


# ----------------------------------------------------------------------------------------------------- hostile pickles


class Payload:
    """What its pickle does when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def zipped(pickled, **entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in entries.items():
            archive.writestr(f"archive/data/{name.removeprefix('_')}", content)
    return buffer.getvalue()


def legacy(*pickled):
    """The old format's beginning, then whatever is given."""
    heads = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
    return b"".join(pickle.dumps(head, protocol=2) for head in heads) + b"".join(pickled)


@pytest.mark.parametrize("wrap", [zipped, legacy])
@pytest.mark.parametrize("function", [os.mkdir, exec, eval, getattr, print, __import__], ids=lambda f: f.__name__)
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, wrap, function):
    trace = tmp_path / "it_ran"
    arguments = {exec: (f"import os; os.mkdir({str(trace)!r})",), eval: (f"__import__('os').mkdir({str(trace)!r})",)}
    payload = Payload(function, *arguments.get(function, (str(trace),)))
    path = tmp_path / "x.pth"
    for tree in (payload, {"model": {"a.weight": payload}}, collections.OrderedDict(a=payload)):
        path.write_bytes(wrap(pickle.dumps(tree, protocol=2)))
        refused(path, f"it holds more than tensors: '.*{function.__name__}', which would run code.*nothing was run")
    assert not trace.exists()
    # The same pickle, loaded as pickles usually are, does it.
    pickle.loads(pickle.dumps(Payload(os.mkdir, str(trace)), protocol=2))
    assert trace.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch._utils", "_rebuild_tensor_v2"),
        ("collections", "Counter"),
        ("collections", "OrderedDict"),
        ("argparse", "Namespace"),
        ("torch", "FloatStorage"),
    ],
)
def test_a_pickle_cannot_change_what_it_names(tmp_path, module, name):
    """The instruction BUILD sets attributes of any object, here `evil = 1` and `__doc__ = 1`."""
    pairs = b"}(X\x04\x00\x00\x00evilK\x01X\x07\x00\x00\x00__doc__K\x01u"
    path = tmp_path / "x.pth"
    for state in (pairs, b"N" + pairs + b"\x86"):  # of the object's __dict__, and by setattr
        path.write_bytes(zipped(b"\x80\x02c" + f"{module}\n{name}\n".encode() + state + b"b."))
        refused(path, "damaged file of weights|expected a state dict")
    for known in (collections.Counter, collections.OrderedDict, torch_file._Ignored, torch_file._tensor):
        assert not hasattr(known, "evil") and known.__doc__ != 1


def rebuilt(storage, *arguments):
    """A pickle by hand: `{"x": torch._utils._rebuild_tensor_v2(storage, *arguments)}`."""
    kind, *rest = storage
    identity = code(kind) + (f"ctorch\n{rest[0]}\n".encode() + b"".join(map(code, rest[1:])) if rest else b"")
    call = b"ctorch._utils\n_rebuild_tensor_v2\n((" + identity + b"tQ" + b"".join(map(code, arguments)) + b"tR"
    return b"\x80\x02}" + code("x") + call + b"s."


def code(value):
    """The instructions that push a plain value."""
    return pickle.dumps(value, protocol=2)[2:-1]


STORAGE = ("storage", "FloatStorage", "0", "cpu", 4)


def test_a_tensor_by_hand(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(zipped(rebuilt(STORAGE, 1, (3,), (1,), False, {}), _0=np.arange(4, dtype="<f4").tobytes()))
    assert read_tensors(path).tensors["x"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("storage", "arguments"),
    [
        (STORAGE, (0, (5,), (1,))),  # beyond the end
        (STORAGE, (2, (3,), (1,))),
        (STORAGE, (0, (2, 2), (3, 1))),
        (STORAGE, (-1, (2,), (1,))),  # before the beginning
        (STORAGE, (0, (2,), (-1,))),
        (STORAGE, (0, (10**12,), (0,))),  # one number, a trillion times
        (STORAGE, (0, (2,), (1, 1))),
        (STORAGE, (0, "ab", (1, 1))),
        (STORAGE, (0, None, None)),
        (("storage", "FloatStorage", "0", "cpu", 5), (0, (2,), (1,))),  # the file's entry has 4
        (("storage", "FloatStorage", "1", "cpu", 4), (0, (2,), (1,))),  # there is no such entry
        (("storage", "FloatStorage", "../../x", "cpu", 4), (0, (2,), (1,))),
        (("storage", "FloatStorage", 7, "cpu", 4), (0, (2,), (1,))),
        (("storage", "FloatStorage", "0", "cpu", -4), (0, (2,), (1,))),
        (("storage", "FloatStorage", "0", "cpu", 4, (1, 2, 3)), (0, (2,), (1,))),
        (("storage", "QInt8Storage", "0", "cpu", 4), (0, (2,), (1,))),
        (("x",), (0, (2,), (1,))),
    ],
)
def test_tensors_that_reach_beyond_their_storage(tmp_path, storage, arguments):
    path = tmp_path / "x.pth"
    path.write_bytes(zipped(rebuilt(storage, *arguments, False, {}), _0=np.arange(4, dtype="<f4").tobytes()))
    refused(path, "damaged file of weights|more than tensors")


def test_archives_of_something_else(tmp_path):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(path, "not a file of torch.save")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # a compressed storage could grow without bound
        archive.writestr("archive/data.pkl", rebuilt(STORAGE, 0, (4,), (1,), False, {}), zipfile.ZIP_STORED)
        archive.writestr("archive/data/0", np.zeros(4, "<f4").tobytes())
    refused(path, "damaged file of weights")


# ------------------------------------------------------------------------------------------------------ damaged copies


@pytest.fixture(scope="module")
def whole(torch, tmp_path_factory):
    """The bytes of one file in each format."""
    folder = tmp_path_factory.mktemp("whole")
    for new in (True, False):
        torch.save(tensors(torch), folder / f"{new}", _use_new_zipfile_serialization=new)
    return [(folder / "True").read_bytes(), (folder / "False").read_bytes(), safetensors(VALUES)]


@pytest.mark.parametrize("format", range(3))
def test_truncated(whole, tmp_path, format):
    content, path = whole[format], tmp_path / "x.pth"
    for share in (0.02, 0.3, 0.6, 0.9, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        refused(path, "damaged file of weights|is neither|is empty")
    path.write_bytes(content[:-1])
    refused(path, "damaged file of weights")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_altered(whole, tmp_path, data):
    """Whatever bytes change: arrays of the names and shapes that the file then tells of, or a RetinaError."""
    content = bytearray(whole[data.draw(st.integers(0, 2))])
    for place, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
    ):
        content[place] = value
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    try:
        found = read_tensors(path).tensors
    except RetinaError:
        return
    assert all(isinstance(value, np.ndarray) for value in found.values())
