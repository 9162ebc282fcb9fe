"""Reading: a YAML file and `key.path=value` overrides become a `Config`, or an error that names key and remedy."""

from __future__ import annotations

import copy
import difflib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from retina.config.sections import Config
from retina.config.values import Section
from retina.errors import RetinaError

_SHOWN = 5
_PACKAGE = Path(__file__).parents[1]
TAGS = ("kind", "format")
"""Keys that choose among the kinds of a section."""

DEFAULT_KINDS = {("optimizer",): "sgd", ("loss", "classification"): "focal", ("loss", "box"): "huber"}
"""Kinds that need not be named, by the path of their section."""

# Of two such keys a section has one: an override that gives it takes the other away.
_ALTERNATIVES = {("schedule", "steps"): "epochs", ("schedule", "epochs"): "steps"}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-3` as a string, `off`, `no` and `on` as booleans (`run.xla: off`, a class called `no`), and
    silently keeps the last of two equal keys: none of them here. As in YAML 1.2, only `true` and `false` are booleans.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own, shared by all of the class
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # PyYAML refuses it
            if key.value in keys:
                raise RetinaError(f"line {key.start_mark.line + 1}: key '{key.value}' is given twice; remove one")
            keys.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writer that puts text into quotes that `_Loader` would read as a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )


def load(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a YAML file with `key.path=value` overrides (values are YAML) applied.

    Args:
        path: the file; None means the packaged digits demo.
        overrides: for instance `["run.seed=3", "data.root=/data/coco"]`.

    Returns:
        The configuration, every default filled in.

    Raises:
        RetinaError: the file is missing or not YAML, a key is unknown, a value has the wrong type or range.

    Example:

    >>> config = retina.load_config(overrides=["run.seed=3"])
    >>> config.run.seed
    3
    """
    where = "digits demo" if path is None else str(path)
    tree = read_yaml(default_path() if path is None else Path(path), where)
    for override in overrides if isinstance(tree, dict) else ():
        _apply(tree, override)
    return parse(tree, where)


def parse(tree: Any, where: str = "config") -> Config:
    """The configuration of a tree of plain values (as read from YAML); `where` starts each error message."""
    if not isinstance(tree, dict):
        raise RetinaError(f"{where}: expected a mapping of sections (data, model, …), got {type(tree).__name__}")
    if tree and not is_ours(tree):
        raise RetinaError(_foreign(tree, where))
    try:
        return Config.model_validate(_with_default_kinds(tree))
    except ValidationError as error:
        raise RetinaError(f"{where}: " + "; ".join(_explain(e) for e in error.errors())) from None


def _foreign(tree: dict[Any, Any], where: str) -> str:
    """The error of a file that is no configuration of ours."""
    keys = ", ".join(str(key) for key in list(tree)[:_SHOWN]) + (", …" if len(tree) > _SHOWN else "")
    expected = (
        f"{where}: expected a configuration of retina, with sections such as data and schedule, got the keys {keys}"
    )
    if {"names", "nc", "train", "val"} & set(tree):
        return f"{expected}: that is a data.yaml of images; `retina guide data` shows how a configuration reads it"
    return f"{expected}: it belongs to another tool; see `retina guide data` and `retina config`"


def is_ours(tree: Any) -> bool:
    """Return whether a tree of plain values has a section of a configuration, right or wrong inside.

    A `data.yaml` of images, or a configuration of another tool, has none: it is never read as one of ours.
    """
    return isinstance(tree, dict) and any(isinstance(tree.get(name), dict) for name in Config.model_fields)


def override(config: Config, overrides: Sequence[str]) -> Config:
    """The configuration with `key.path=value` overrides applied."""
    return parse(overridden(config.model_dump(mode="json"), overrides), "overrides") if overrides else config


def overridden(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a tree of plain values with `key.path=value` overrides applied; the one handed in stays as it is."""
    changed = copy.deepcopy(tree)
    for text in overrides:
        _apply(changed, text)
    return changed


def with_absolute_root(config: Config) -> Config:
    """The configuration with `data.root` absolute, so that a run can be evaluated from any folder."""
    data = config.data.model_copy(update={"root": config.data.root.absolute()})
    return config.model_copy(update={"data": data})


def to_yaml(config: Config) -> str:
    """The resolved configuration, every default spelled out; `load` of it gives an equal configuration."""
    return write_yaml(config.model_dump(mode="json"))


def write_yaml(tree: Any) -> str:
    """Plain values as YAML in the order given; `read_yaml` of it gives equal values."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def in_a_line(value: Any) -> str:
    """Return plain values as YAML on one line."""
    width = float("inf")
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=width)
    return text.removesuffix("...\n").strip()


def override_line(key: str, value: Any) -> str:
    """Return the `key.path=value` that sets a value, quoted for a shell, to be copied from a message."""
    return shlex.quote(f"{key}={in_a_line(value)}")


def default_path() -> Path:
    """The digits demo: in the wheel beside the package, in a checkout in `configs/`."""
    packaged = _PACKAGE / "configs" / "digits.yaml"
    return packaged if packaged.exists() else _PACKAGE.parent / "configs" / "digits.yaml"


def read_yaml(path: Path, where: str) -> Any:
    """The plain values of a YAML file, read as configurations are: `1e-3` is a number, a key given twice an error.

    Raises:
        RetinaError: the file can't be read or is not YAML; `where` starts the message.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RetinaError(f"{where}: cannot read this config file: {reason}") from None
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - _Loader is a SafeLoader
    except RetinaError as error:
        raise RetinaError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        raise RetinaError(f"{where}: {line}not valid YAML: {problem}") from None


def parse_value(text: str, where: str) -> Any:
    """Return the value of a text as a configuration reads it: `1e-3` is a number, `none` is text.

    Raises:
        RetinaError: it is not YAML; `where` starts the message.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506
    except yaml.YAMLError:
        raise RetinaError(f"{where}: the value is not valid YAML; put it in quotes") from None


def _apply(tree: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RetinaError(f"override '{override}': expected key.path=value, for instance run.seed=1")
    value = parse_value(text, f"override '{override}'")
    *parents, last = key.split(".")
    node = tree
    for name in parents:
        if node.get(name) is None:
            node[name] = {}  # a section that may be left out
        child = node[name]
        if not isinstance(child, dict):
            raise RetinaError(f"override '{override}': '{name}' is a value, not a section")
        node = child
    if last in TAGS and node.get(last, DEFAULT_KINDS.get(tuple(parents), value)) != value:
        node.clear()  # what belonged to the other kind means nothing to this one
    if value is not None and len(parents) == 1:
        node.pop(_ALTERNATIVES.get((parents[0], last), ""), None)
    node[last] = value


def _with_default_kinds(tree: dict) -> dict:
    """`optimizer.learning_rate=0.1` alone means the default optimizer's, so the default kind is filled in."""

    def filled(node: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(node, dict):
            return node
        below = {key: filled(child, (*path, key)) for key, child in node.items()}
        return {"kind": DEFAULT_KINDS[path], **below} if path in DEFAULT_KINDS else below

    return filled(tree, ())


def _explain(error: Any) -> str:
    # A discriminated union puts the chosen tag into the location: the user never wrote it there.
    location, _ = _followed(error["loc"])
    dotted = ".".join(map(str, location)) or "config"
    if error["type"] == "extra_forbidden":
        valid = _keys_at(error["loc"][:-1])
        near = difflib.get_close_matches(str(location[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(valid)}"
        return f"unknown key '{dotted}'; {hint}"
    if error["type"] == "missing":
        return f"missing key '{dotted}'"
    if error["type"] == "union_tag_invalid":
        tag = error["ctx"]["discriminator"].strip("'")
        return f"'{dotted}.{tag}': expected one of {error['ctx']['expected_tags']}, got '{error['ctx']['tag']}'"
    if error["type"] == "union_tag_not_found":
        return f"missing key '{dotted}.{error['ctx']['discriminator'].strip(chr(39))}'"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"'{dotted}': {message}"
    return f"'{dotted}': {message[0].lower()}{message[1:]}, got {error['input']!r}"


def _followed(location: tuple) -> tuple[list, Any]:
    """A location without the tags that pydantic puts into it, and the annotation that stands there."""
    path: list = []
    annotation: Any = Config
    for part in location:
        members = _members(annotation)
        if len(members) > 1 and part in members:
            annotation = members[part]
        else:
            path.append(part)
            annotation = _child(next(iter(members.values()), None), part)
    return path, annotation


def _keys_at(location: tuple) -> list[str]:
    section = next(iter(_members(_followed(location)[1]).values()), None)
    return list(section.model_fields) if section else []


def _members(annotation: Any) -> dict[Any, Any]:
    """The sections that an annotation can hold, by their tag (`format` or `kind`)."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return {annotation.__name__: annotation}
    sections = {}
    for argument in get_args(annotation):
        for tag, section in _members(argument).items():
            field = section.model_fields.get("format") or section.model_fields.get("kind")
            sections[field.default if field is not None else tag] = section
    return sections


def _child(section: Any, name: Any) -> Any:
    fields = section.model_fields if section is not None else {}
    return fields[name].rebuild_annotation() if name in fields else None
