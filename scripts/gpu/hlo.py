"""What an optimised GPU program does, read from XLA's text of it: kernels, bytes, convolutions, fused ReLUs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

WIDTH = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "s64": 8, "u64": 8, "f64": 8}
ARRAY = re.compile(rf"\b({'|'.join(WIDTH)})\[([\d,]*)\]")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
# Instructions that start no kernel.
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "iota", "broadcast", "call"}
SLICES = {"slice", "dynamic-slice", "gather"}
MOVES = FREE | SLICES | {"copy", "transpose", "convert", "reshape"}
ELEMENTWISE = {"convert", "add", "multiply", "subtract", "bitcast", "reshape", "copy", "select", "slice", "pad"}

# Of a model of the time: FLOP/s in bfloat16, the part of it that convolutions reach, the part of the memory's rate that
# kernels reach, and the least time of a kernel (s).
PEAK, REACHED, MEMORY, LEAST = 989e12, 0.6, 0.85, 2.5e-6


def arrays(text: str) -> list[tuple[str, list[int]]]:
    """Return dtype and shape of each array that the text names."""
    return [(dtype, [int(n) for n in shape.split(",") if n]) for dtype, shape in ARRAY.findall(text)]


def size(text: str) -> int:
    """Return the bytes of the arrays that the text names."""
    return sum(WIDTH[dtype] * math.prod(shape) for dtype, shape in arrays(text))


@dataclass
class Instruction:
    name: str
    is_root: bool
    type: str
    opcode: str
    rest: str
    operands: list[str] = field(init=False)

    def __post_init__(self) -> None:
        # Operands end at the first closing parenthesis: they hold names only.
        arguments = self.rest.partition(")")[0]
        self.operands = re.findall(r"%([\w.\-]+)", arguments)

    def attribute(self, pattern: str) -> str:
        match = re.search(pattern, self.rest)
        return match[1] if match else ""

    @property
    def called(self) -> str:
        return self.attribute(r"calls=%?([\w.\-]+)")

    @property
    def target(self) -> str:
        return self.attribute(r'custom_call_target="([^"]+)"')

    @property
    def is_convolution(self) -> bool:
        return self.target.startswith("__cudnn$conv")


Computation = dict[str, Instruction]


@dataclass
class Program:
    """The computations of a module by name, and its `entry`."""

    computations: dict[str, Computation]
    entry: Computation

    @classmethod
    def read(cls, text: str) -> Program:
        computations: dict[str, Computation] = {}
        current: Computation = {}
        entry: Computation = {}
        for line in text.splitlines():
            if (start := COMPUTATION.match(line)) is not None:
                current = computations[start[2]] = {}
                entry = current if start[1] else entry
            elif (match := INSTRUCTION.match(line)) is not None:
                current[match[2]] = Instruction(match[2], bool(match[1]), *match.groups()[2:])
        return cls(computations, entry)

    def kernels(self) -> list[Instruction]:
        return [i for i in self.entry.values() if i.opcode not in FREE]

    def everything(self) -> Iterator[Instruction]:
        for computation in self.computations.values():
            yield from computation.values()

    def bytes(self, kernel: Instruction) -> int:
        """Return the bytes that a kernel of the entry reads and writes."""
        written = size(kernel.type)
        if kernel.opcode in ("slice", "dynamic-slice"):
            return 2 * written
        read = 0
        for place, name in enumerate(kernel.operands):
            if name in self.entry and name not in kernel.operands[:place]:
                read += self._read(kernel, place, self.entry[name])
        if kernel.called:
            inner = self.computations[kernel.called]
            root = next(i for i in inner.values() if i.is_root)
            if root.opcode == "dynamic-update-slice":
                written = size(inner[root.operands[1]].type)
        return read + written

    def _read(self, kernel: Instruction, place: int, operand: Instruction) -> int:
        """Return the bytes of an operand that a kernel reads: of a fusion's, those of slices where it takes no more."""
        whole = size(operand.type)
        if kernel.opcode != "fusion":
            return whole
        inner = self.computations[kernel.called]
        parameter = next(
            (i for i in inner.values() if i.opcode == "parameter" and i.rest.startswith(f"{place})")), None
        )
        users = [i for i in inner.values() if parameter is not None and parameter.name in i.operands]
        if users and all(u.opcode in SLICES and u.operands[0] == users[0].operands[0] for u in users):
            whole = min(whole, sum(size(u.type) for u in users))
        if "kind=kLoop" in kernel.rest and not any(i.opcode.startswith("reduce") for i in inner.values()):
            # A thread of a loop reads each operand once for an element that it writes.
            elements = max(math.prod(shape) for _, shape in arrays(kernel.type))
            whole = min(whole, WIDTH[arrays(operand.type)[0][0]] * elements)
        return whole

    def flop(self, kernel: Instruction) -> int:
        """Return 2 per multiply-add of a convolution, 0 of anything else."""
        if not kernel.is_convolution:
            return 0
        first, second = (arrays(self.entry[name].type)[0][1] for name in kernel.operands[:2])
        out = arrays(kernel.type)[0][1]
        if kernel.target.endswith("BackwardFilter"):
            result, weights = second, out
        else:
            result, weights = (first if kernel.target.endswith("BackwardInput") else out), second
        channel = kernel.attribute(r"dim_labels=\w+_(\w+)->").index("o")
        return 2 * math.prod(result) * math.prod(weights) // weights[channel]

    def images_per_second(self, batch: int, bandwidth: float) -> float:
        """Return a model's speed: each kernel takes the longer of its arithmetic and its bytes (B/s)."""
        seconds = sum(
            max(self.flop(k) / (PEAK * REACHED), self.bytes(k) / (bandwidth * MEMORY), LEAST) for k in self.kernels()
        )
        return batch / seconds

    def rectified(self) -> tuple[int, int]:
        """Return the numbers of forward convolutions that a ReLU follows, and of those that carry it themselves.

        Another kernel holds the ReLU if it takes the convolution's output, elementwise, to a maximum with a constant.
        """
        fused = followed = 0
        for kernel in self.entry.values():
            if not re.search(r"__cudnn\$conv(BiasActivation)?Forward$", kernel.target) or "transpose(" in kernel.rest:
                continue
            if '"activation_mode":"kRelu"' in kernel.rest:
                fused += 1
            elif self._meets_relu(kernel.name):
                followed += 1
        return fused + followed, fused

    def _meets_relu(self, name: str) -> bool:
        aliases = {name}
        for i in self.entry.values():
            if i.opcode in ("get-tuple-element", "bitcast") and aliases & set(i.operands):
                aliases.add(i.name)
        return any(
            i.opcode == "fusion" and _reaches_maximum(self.computations[i.called], i.operands.index(operand))
            for i in self.entry.values()
            for operand in aliases & set(i.operands)
        )

    def figures(self) -> dict[str, Any]:
        kernels = self.kernels()
        opcodes = Counter(i.opcode for i in self.everything())
        convolutions = [k for k in kernels if k.is_convolution]
        followed, fused = self.rectified()
        fusions = [k for k in kernels if k.opcode == "fusion"]
        moving = [k for k in fusions if {i.opcode for i in self.computations[k.called].values()} <= MOVES]
        return {
            "gigabytes": round(sum(self.bytes(k) for k in kernels) * 1e-9, 2),
            "kernels": len(kernels),
            "convolutions": dict(Counter(arrays(self.entry[k.operands[0]].type)[0][0] for k in convolutions)),
            "relus": followed,
            "relus_fused": fused,
            "transposes_and_casts": len(moving),
            "copies": sum(k.opcode == "copy" for k in kernels),
            "whiles": opcodes["while"],
            "sorts": opcodes["sort"],
            "scatters": opcodes["scatter"],
            "callbacks": sum("callback" in i.target for i in self.everything()),
        }


def _reaches_maximum(inner: Computation, place: int) -> bool:
    """Tell whether a fusion's parameter reaches a ReLU: `maximum` with a constant, in an operation named so."""
    reached = {i.name for i in inner.values() if i.opcode == "parameter" and i.rest.startswith(f"{place})")}
    for i in inner.values():
        if reached & set(i.operands):
            if i.opcode == "maximum" and "relu" in i.rest:
                return True
            if i.opcode in ELEMENTWISE:
                reached.add(i.name)
    return False
