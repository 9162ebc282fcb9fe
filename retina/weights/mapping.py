"""Rules that carry tensors of a file to variables, and the account of every one of them.

A rule is plain data, so that it can also be read backwards by an export.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from retina.errors import RetinaError
from retina.weights.tensor_file import TensorFile, sha256_of_arrays

# A convolution's kernel: PyTorch's [out, in, height, width] to Keras' [height, width, in, out].
KERNEL = (2, 3, 1, 0)


@dataclass(frozen=True)
class Rule:
    """Tensor `source` becomes variable `target`: entries `keep` of its first axis, which has `of` of them, in the
    order of `keep`, then `axes` transposed. Without `keep` and `of` all entries are kept."""

    source: str
    target: str
    axes: tuple[int, ...] | None = None
    keep: tuple[int, ...] | None = None
    of: int | None = None

    def apply(self, tensor: np.ndarray) -> np.ndarray:
        """The variable's value."""
        entries = tensor if self.keep is None else tensor[list(self.keep)]
        return entries if self.axes is None else np.transpose(entries, self.axes)

    def shape(self, source: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what `apply` makes of a tensor of the shape `source`."""
        entries = source if self.keep is None else (len(self.keep), *source[1:])
        if self.axes is None or len(self.axes) != len(entries):
            return entries
        return tuple(entries[axis] for axis in self.axes)

    def dropped(self, tensor: np.ndarray) -> np.ndarray | None:
        """The entries of the first axis that `keep` leaves out, in their order; None if there are none."""
        if self.keep is None:
            return None
        left = np.setdiff1d(np.arange(len(tensor)), self.keep)
        return tensor[left] if len(left) else None


@dataclass(frozen=True)
class Unused:
    """A tensor, or `part` of one, that the network here has no place for, and why that was expected."""

    source: str
    shape: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Carried:
    source: str
    target: str
    source_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    axes: tuple[int, ...] | None


@dataclass(frozen=True)
class Setting:
    """A setting that stood beside the weights, and what became of it; `value` is plain."""

    name: str
    value: Any
    became: str


@dataclass(frozen=True)
class Report:
    """The account of each tensor of `file`; `sha256` is the file's, `arrays_sha256` that of the variables' values.

    `settings` accounts for the configuration in the file, where it has one.
    """

    file: str
    sha256: str
    arrays_sha256: str
    carried: tuple[Carried, ...]
    unused: tuple[Unused, ...]
    notes: tuple[str, ...] = field(default=())
    settings: tuple[Setting, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Converted:
    """`arrays` by variable path; `leftovers`, what no variable took, by the tensor's name."""

    arrays: dict[str, np.ndarray]
    leftovers: dict[str, np.ndarray]
    report: Report


def convert(
    file: TensorFile,
    rules: Iterable[Rule],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    what: str,
    expected_unused: Mapping[str, str],
    notes: tuple[str, ...] = (),
    settings: tuple[Setting, ...] = (),
) -> Converted:
    """Carry a file's tensors over to variables.

    Args:
        file: what was read.
        rules: one for each variable.
        shapes: of the variables, by path.
        what: the network in words, for messages.
        expected_unused: regular expressions of names that need no place, with the reason.
        notes, settings: for the report.

    Raises:
        RetinaError: a tensor is missing or has another shape, one is left over and not expected to be, a value is not
            finite, or a variance is negative.
    """
    rules = list(rules)
    assert {rule.target for rule in rules} == set(shapes), "each variable has a rule, each rule a variable"
    _refuse_missing(file, rules, what)
    unused = tuple(_unused(file, rules, expected_unused, what))
    arrays, carried, leftovers = {}, [], {}
    for rule in rules:
        tensor = file.tensors[rule.source]
        _check_shape(file, rule, tensor, shapes[rule.target], what)
        value = np.ascontiguousarray(rule.apply(tensor), np.float32)
        _check_values(file, rule, value)
        arrays[rule.target] = value
        carried.append(Carried(rule.source, rule.target, tensor.shape, value.shape, rule.axes))
        if (rest := rule.dropped(tensor)) is not None:
            leftovers[rule.source] = rest
            unused += (Unused(rule.source, rest.shape, "entries of classes that the detector here does not have"),)
    leftovers |= {rest.source: file.tensors[rest.source] for rest in unused if rest.source not in leftovers}
    report = Report(file.path.name, file.sha256, sha256_of_arrays(arrays), tuple(carried), unused, notes, settings)
    return Converted(arrays, leftovers, report)


def _refuse_missing(file: TensorFile, rules: list[Rule], what: str) -> None:
    missing = [rule.source for rule in rules if rule.source not in file.tensors]
    if missing:
        raise RetinaError(
            f"{file.path}: expected the weights of {what}; it lacks {_some(missing)}. Is it another network's file?"
        )


def _unused(file: TensorFile, rules: list[Rule], expected: Mapping[str, str], what: str) -> Iterable[Unused]:
    taken, left = {rule.source for rule in rules}, []
    for name, tensor in file.tensors.items():
        reason = next((why for pattern, why in expected.items() if re.fullmatch(pattern, name)), None)
        if name in taken:
            continue
        if reason is None:
            left.append(name)
        else:
            yield Unused(name, tensor.shape, reason)
    if left:
        raise RetinaError(
            f"{file.path}: expected the weights of {what}; it also holds {_some(left)}. Is it another network's file?"
        )


def _check_shape(file: TensorFile, rule: Rule, tensor: np.ndarray, shape: tuple[int, ...], what: str) -> None:
    if rule.axes is not None:
        expected = tuple(shape[rule.axes.index(axis)] for axis in range(len(rule.axes)))
    else:
        expected = tuple(shape)
    if rule.of is not None:
        expected = (rule.of, *expected[1:])
    if tensor.shape != expected or tensor.dtype.kind != "f":
        raise RetinaError(
            f"{file.path}: tensor {rule.source} has shape {list(tensor.shape)} of {tensor.dtype}, {what} expects "
            f"{list(expected)} of floats. Is it another network's file?"
        )


def _check_values(file: TensorFile, rule: Rule, value: np.ndarray) -> None:
    """Refuse values that would make every output NaN, and only once the network runs."""
    if not np.isfinite(value).all():
        raise RetinaError(f"{file.path}: tensor {rule.source} has values that are not finite; fetch the file again")
    if rule.target.endswith("/moving_variance") and (value < 0).any():
        raise RetinaError(
            f"{file.path}: tensor {rule.source} is a variance, expected values from 0, got {value.min():g}; fetch the "
            "file again"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
