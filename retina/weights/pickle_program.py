"""The instructions of a pickle, checked before any of them is carried out.

A pickle of few bytes can ask for much: a table of a billion places, a key whose hash takes years. The instructions are
walked through with a model of the stack that knows of each object only whether it may be a dictionary's key.
"""

from __future__ import annotations

import pickle
import pickletools
import warnings
from typing import Any, BinaryIO

from retina.weights.tensor_values import Damaged, is_plain_key

# What picklers of all protocols write for containers, numbers, texts, arrays and calls. No sets, and nothing that
# copies the top of the stack or takes it off.
_TEXTS = {
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"}
_OTHERS = {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "FLOAT", "BINFLOAT", "LONG4", "BYTEARRAY8",
    "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE", "EMPTY_LIST", "LIST", "APPEND", "APPENDS",
    "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID",
}  # fmt: skip
_STORE, _FETCH = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
_KNOWN = _TEXTS | _NUMBERS | _OTHERS | _STORE | _FETCH

# A detector's state dict with its optimizer takes some 60,000. Each makes an object of at most a few hundred bytes.
_MOST = 1_000_000


def check_program(file: BinaryIO) -> None:
    """Walk through one pickle and go back to its start.

    Raises:
        Damaged: an instruction that no pickler of arrays writes, too many of them, a place in the table of objects
            beyond how many there are, or a key that is neither a text nor a number.
    """
    start = file.tell()
    walk = _Walk()
    for number, (instruction, argument, _) in enumerate(pickletools.genops(file)):
        if instruction.name not in _KNOWN:
            raise Damaged(f"a pickle with the instruction {instruction.name}")
        if number >= _MOST:
            raise Damaged(f"a pickle of more than {_MOST} instructions")
        walk.step(instruction, argument)
    file.seek(start)


def load(unpickler: type[pickle.Unpickler], file: BinaryIO, *arguments: Any, **options: Any) -> Any:
    """The next object in a file, by this unpickler, if its instructions pass `check_program`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an odd escape in a text: the message is ours
        check_program(file)
        return unpickler(file, *arguments, **options).load()


class _Walk:
    """A model of the stack and of the table of objects, which knows of each only whether it may be a key."""

    def __init__(self) -> None:
        self.stack: list[bool] = []
        self.marks: list[int] = []
        self.table: dict[int, bool] = {}

    def step(self, instruction: Any, argument: Any) -> None:
        name = instruction.name
        if name == "MARK":
            self.marks.append(len(self.stack))
        elif name in _STORE:
            place = len(self.table) if name == "MEMOIZE" else argument
            # Picklers number what they store from 0 or 1; the reader's table is as long as its highest number.
            if not 0 <= place <= len(self.table) + 1:
                raise Damaged(f"a pickle that stores its {len(self.table) + 1}. object as number {place}")
            self.table[place] = self.stack[-1]
        elif name in _FETCH:
            self.stack.append(self.table[argument])
        else:
            taken = self._take(instruction.stack_before)
            if name in ("SETITEM", "DICT", "SETITEMS") and not all(taken[1 if name == "SETITEM" else 0 :: 2]):
                raise Damaged("a dictionary with a key that is neither a text nor a number")
            self.stack += [name in _TEXTS or (name in _NUMBERS and is_plain_key(argument))] * len(
                instruction.stack_after
            )

    def _take(self, before: list[Any]) -> list[bool]:
        """Take an instruction's operands off the stack: those after the mark, if it has a mark, else all."""
        if pickletools.markobject in before:
            place = self.marks.pop()
            count = before.index(pickletools.markobject)
        else:
            place = len(self.stack) - len(before)
            count = 0
        if place - count < 0 or place > len(self.stack) or (self.marks and place - count < self.marks[-1]):
            raise Damaged("a pickle that takes more objects than it has made")
        taken = self.stack[place:]
        del self.stack[place - count :]
        return taken
