#!/usr/bin/env python
"""The guide's reference of Python, made from the docstrings of every public name:

scripts/api_reference.py > retina/guide/reference.md
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "scripts/api_reference.py > retina/guide/reference.md"
WIDTH = 78  # of code, in columns of a terminal
HEADS = ("Args", "Returns", "Raises", "Example")
# Classes that verbs return, with methods that users call.
RETURNED = {"Dataset": "retina.drawing.notebook", "Detections": "retina.inference", "Predictor": "retina.inference"}
# Methods that Keras and retina's own training call, not a user.
HOOKS = (
    "build", "call", "compile_from_config", "compute_loss", "compute_output_shape", "feature_maps", "from_config",
    "get_compile_config", "get_config", "level_anchors", "loss_sums", "objective", "predict_step", "predictions",
    "test_step", "train_step", "training_sums",
)  # fmt: skip
INTRODUCTION = """\
Every public name of Python: what it takes, gives and raises, with an example.

Letters of shapes: **B** batch, **H W** image, **K** classes (no background), **G** padded ground-truth boxes,
**A** anchors, **D** detections. Boxes are `xyxy` in pixels, labels count from 0, scores and figures are fractions.
The examples begin with `import retina` and `import numpy as np`, and the tests run them, on TensorFlow.
[Python](python.md) says what belongs together.
"""


class Public(NamedTuple):
    """A public callable or property by its dotted name, and the class whose method it is (None of others)."""

    name: str
    value: Any
    owner: Public | None = None

    @property
    def function(self) -> Any:
        """What has the docstring: of a property its getter, of the package that is a verb as well its function."""
        if inspect.ismodule(self.value):
            return importlib.import_module("retina.export.exporting").export
        return self.value.fget if isinstance(self.value, property) else self.value

    @property
    def sections(self) -> dict[str, str]:
        """The parts of the docstring: "" for what stands before the first heading, and those of `HEADS`."""
        text = inspect.cleandoc(self.function.__doc__ or "")  # none that it inherits
        first, *rest = re.split(rf"^({'|'.join(HEADS)}):", text, flags=re.MULTILINE)
        bodies = (textwrap.dedent(body.rstrip()).strip("\n") for body in rest[1::2])
        return {"": first.strip(), **dict(zip(rest[::2], bodies, strict=True))}

    @property
    def parameters(self) -> list[inspect.Parameter]:
        """The parameters that a caller gives."""
        error = inspect.isclass(self.value) and issubclass(self.value, Exception)
        if isinstance(self.value, property) or error:
            return []
        given = inspect.signature(self.function).parameters.values()
        return [each for each in given if each.name != "self"]


def public() -> list[Public]:
    """Return what `retina.__all__` offers, the classes that verbs return, the losses, and all their methods."""
    import retina

    names = sorted(set(retina.__all__) - {"__version__", "losses"}, key=str.lower)
    values = [Public(f"retina.{name}", getattr(retina, name)) for name in names]
    values += [Public(name, getattr(importlib.import_module(home), name)) for name, home in RETURNED.items()]
    values += [Public(f"retina.losses.{name}", getattr(retina.losses, name)) for name in retina.losses.__all__]
    return [each for value in values for each in (value, *methods(value))]


def methods(entry: Public) -> list[Public]:
    """Return the public methods and properties that a class defines itself; a configuration's fields are settings."""
    if not inspect.isclass(entry.value) or hasattr(entry.value, "model_fields"):
        return []
    members = {name: value for name, value in vars(entry.value).items() if not name.startswith("_")}
    return [
        Public(name, value if isinstance(value, property) else getattr(entry.value, name), entry)
        for name, value in members.items()
        if name not in HOOKS and (isinstance(value, property | classmethod) or inspect.isfunction(value))
    ]


def described(part: str) -> list[tuple[list[str], str]]:
    """Return the names and the text of each entry of `Args` or `Raises`; no names where it is text alone."""
    entries = []
    for block in re.split(r"\n(?=\S)", textwrap.dedent(part)):
        names, colon, text = block.partition(":")
        listed = bool(colon) and re.fullmatch(r"[\w., ]+", names) and not names.startswith("Nothing")
        entries.append((names.split(", "), " ".join(text.split())) if listed else ([], " ".join(block.split())))
    return entries


# ------------------------------------------------------------------------------------------------------- as a page


def page() -> str:
    """Return the page, in Markdown."""
    lines = ["# Reference", f"<!-- Made from docstrings: {COMMAND} -->", "", INTRODUCTION]
    heading = ""
    for entry in public():
        module = (entry.owner or entry).name.rpartition(".")[0]
        title = {"retina": "Verbs and classes", "retina.losses": "Losses"}.get(module, "What verbs return")
        if title != heading:
            heading = title
            lines += [f"## {title}", ""]
        lines += section(entry)
    return "\n".join(lines).strip() + "\n"


def section(entry: Public) -> list[str]:
    """Return the lines of a name's section."""
    parts, short = entry.sections, entry.name.rpartition(".")[2]
    lines = [f"#### `{entry.owner.name.rpartition('.')[2]}.{short}`" if entry.owner else f"### `{entry.name}`", ""]
    if entry.parameters and not hasattr(entry.value, "model_fields"):
        lines += ["```text", signature(short, entry.parameters), "```", ""]
    lines += [paragraphs(parts[""]), ""]
    if hasattr(entry.value, "model_fields"):
        lines += ["Its sections and fields are described in [settings](settings.md).", ""]
    if "Args" in parts:
        lines += [*map(item, described(parts["Args"])), ""]
    if "Returns" in parts:
        lines += [f"Returns: {' '.join(parts['Returns'].split())}", ""]
    if "Raises" in parts:
        lines += [*(f"Raises {item(each)[2:]}" for each in described(parts["Raises"])), ""]
    words, prompt, code = parts.get("Example", "").partition(">>> ")
    if words.strip():
        lines += [f"Example: {' '.join(words.split())}", ""]
    if code:
        lines += ["```pycon", prompt + code, "```", ""]
    return lines


def item(entry: tuple[list[str], str]) -> str:
    names, text = entry
    return f"- {', '.join(f'`{name}`' for name in names)}: {text}" if names else f"- {text[0].lower()}{text[1:]}"


def paragraphs(text: str) -> str:
    """Return paragraphs on one line each; indented ones are code."""
    return "\n\n".join(
        f"```python\n{textwrap.dedent(block)}\n```" if block.startswith("    ") else " ".join(block.split())
        for block in text.split("\n\n")
    )


def signature(name: str, parameters: list[inspect.Parameter]) -> str:
    """Return a call without annotations, on several lines where it is long."""
    given: list[str] = []
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and not any(word.startswith("*") for word in given):
            given.append("*")
        stars = "*" if each.kind is each.VAR_POSITIONAL else "**" if each.kind is each.VAR_KEYWORD else ""
        given.append(f"{stars}{each.name}" + ("" if each.default is each.empty else f"={default(each.default)}"))
    line = f"{name}({', '.join(given)})"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n{textwrap.fill(', '.join(given), WIDTH, initial_indent='    ', subsequent_indent='    ')}\n)"


def default(value: Any) -> str:
    """Return a default as it is typed: three dots for a function or a section of the configuration."""
    return "..." if callable(value) or hasattr(type(value), "model_fields") else repr(value)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.path.insert(0, str(ROOT))
    print(page(), end="")
