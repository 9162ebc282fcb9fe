"""The reference of settings, made from the descriptions of the fields: for the terminal, and as the guide's page:

python -m retina.config.reference > retina/guide/settings.md
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from retina.config.reading import TAGS
from retina.config.schema import json_schema
from retina.errors import RetinaError

Schema = dict[str, Any]

COMMAND = "python -m retina.config.reference > retina/guide/settings.md"
_INTRODUCTION = """\
Every setting of a configuration: what it takes, its default, and the reason for that.

A configuration is one YAML file, and `key.path=value` on the command line replaces what it says: `run.seed=3`,
`loss.box.delta=0.2`, `"data.classes=[cat, dog]"`. Only `data` and `schedule` must be given. A key that does not exist,
a value out of range and a setting without effect are errors. `retina config FILE` prints a configuration with every
default spelled out; `retina config --explain KEY` prints what stands here of a key or a section.

Some sections come in kinds, which `kind` (of data, `format`) names; of `optimizer`, `loss.classification` and
`loss.box` the default kind need not be named. An override that names another kind drops the settings of the one before.

## In an editor

An editor that knows JSON schema completes keys, shows these descriptions and marks mistakes. Write the schema once,
with `retina config --schema > config.schema.json`, and begin the YAML file with its path, relative to the file:

```yaml
# yaml-language-server: $schema=config.schema.json
run:
  seed: 3
```

VS Code reads that line with the extension YAML (Red Hat), other editors with yaml-language-server. What spans several
settings (`schedule.warmup_steps` at most `schedule.steps`, say) only `retina` itself checks.
"""


# Text that YAML takes as it is.
_PLAIN = re.compile(r"[\w./~][\w./~ -]*")


class Setting(NamedTuple):
    """A key of the configuration.

    `kinds` are those of its section that have it ("kind: sgd"), empty where all have. `type` says what it takes,
    `default` what it is if left out, as YAML: None where it must be given, empty where it is a section with defaults of
    its own. `sections` are the names, in the schema, of the sections that it can be; none where it is a value.
    """

    key: str
    kinds: str
    type: str
    default: str | None
    description: str
    sections: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    @property
    def default_words(self) -> str:
        return "must be given" if self.default is None else f"default {self.default}" if self.default else ""


class Part(NamedTuple):
    """A section, or one of its kinds ("kind: sgd"; empty where it has none): its description and its settings."""

    key: str
    kind: str
    description: str
    settings: tuple[Setting, ...]


# ------------------------------------------------------------------------------------------------ from schema to parts


def reference() -> list[Part]:
    """Every section, from the top down; one that occurs at several keys stands at the first of them."""
    schema = json_schema()
    first_keys: dict[tuple[str, ...], str] = {}

    def visit(parts: list[Part]) -> Iterator[Part]:
        below = []
        for part in parts:
            settings = []
            for setting in part.settings:
                if setting.sections and setting.sections in first_keys:
                    see = f" Its settings are those of `{first_keys[setting.sections]}`."
                    setting = setting._replace(description=setting.description + see)
                elif setting.sections:
                    first_keys[setting.sections] = setting.key
                    below.append(setting)
                settings.append(setting)
            yield part._replace(settings=tuple(settings))
        for setting in below:
            yield from visit(_parts(schema, setting.key, setting.sections))

    return list(visit([_part(schema, "", "", schema)]))


def explain(key: str) -> tuple[list[Setting], list[Part]]:
    """The settings that a dotted key means, one for the kinds that share it; and the sections, where it is one.

    A section without kinds has its description at the setting.

    Raises:
        RetinaError: there is no such key; the message names the nearest.
    """
    schema = json_schema()
    settings = _settings(schema, key)
    if not settings:
        every = keys()
        near = [name for name in every if name.endswith(f".{key}")] or difflib.get_close_matches(key, every, n=3)
        hint = f"did you mean {_either(near[:3])}?" if near else f"sections: {', '.join(schema['properties'])}"
        raise RetinaError(f"--explain: unknown key '{key}'; {hint}")
    parts = _parts(schema, key, settings[0].sections)
    if len(parts) == 1:  # one text under one heading
        short, whole = settings[0].description, parts[0].description
        text = whole if whole.startswith(short.rstrip(".")) else f"{short}\n\n{whole}"
        settings, parts = [settings[0]._replace(description=text)], [parts[0]._replace(description="")]
    return settings, parts


def keys() -> list[str]:
    """Every key of the configuration, once, from the top down."""
    schema = json_schema()
    waiting = [_part(schema, "", "", schema)]
    names: dict[str, None] = {}
    while waiting:
        for setting in waiting.pop(0).settings:
            names[setting.key] = None
            waiting += _parts(schema, setting.key, setting.sections)
    return list(names)


def _parts(schema: Schema, key: str, names: tuple[str, ...]) -> list[Part]:
    """The sections of these names at a key."""
    sections = [schema["$defs"][name] for name in names]
    return [_part(schema, key, _kind(section) if len(names) > 1 else "", section) for section in sections]


def _part(schema: Schema, key: str, kind: str, section: Schema) -> Part:
    settings = [_setting(schema, f"{key}.{name}".lstrip("."), kind, section, name) for name in section["properties"]]
    return Part(key, kind, section["description"], tuple(settings))


def _settings(schema: Schema, key: str) -> list[Setting]:
    """The settings at a key: as many as kinds of its section differ in it; none for an unknown key."""
    parts = [_part(schema, "", "", schema)]
    *above, last = key.split(".")
    for name in above:
        settings = [setting for part in parts for setting in part.settings if setting.name == name]
        parts = [part for setting in settings for part in _parts(schema, setting.key, setting.sections)]
    kinds: dict[Setting, list[str]] = {}
    for part in parts:
        for setting in part.settings:
            if setting.name == last:
                kinds.setdefault(setting._replace(kinds=""), []).append(part.kind)
    return [
        setting._replace(kinds="" if len(sharing) == len(parts) else _joined(sharing))
        for setting, sharing in kinds.items()
    ]


def _setting(schema: Schema, key: str, kind: str, section: Schema, name: str) -> Setting:
    field = section["properties"][name]
    required = name in section.get("required", ())
    sections = tuple(target.rpartition("/")[2] for target in _references(field))
    if sections:
        default = None if required else "null" if field.get("default", {}) is None else ""
        described = _section_type(field)
    else:
        default = None if required else _yaml(field["default"]) if "default" in field else "{}"
        described = _type(field)
    # pydantic leaves out a description that the section itself has.
    description = field.get("description") or schema["$defs"][sections[0]]["description"]
    return Setting(key, kind, described, default, _flowing(description), sections)


def _references(field: Schema) -> list[str]:
    """The sections of a field: its own `$ref`, or those of the members of a union."""
    members = [*field.get("oneOf", ()), *field.get("anyOf", ())]
    return [field["$ref"]] if "$ref" in field else [target for member in members for target in _references(member)]


def _kind(section: Schema) -> str:
    return next(f"{tag}: {section['properties'][tag]['const']}" for tag in TAGS if tag in section["properties"])


def _joined(kinds: list[str]) -> str:
    """Several kinds as one text: "kind: sgd" and "kind: adamw" are "kind: sgd, adamw"."""
    tag = kinds[0].partition(": ")[0]
    return f"{tag}: {', '.join(kind.partition(': ')[2] for kind in kinds)}"


# ------------------------------------------------------------------------------------------------------------- in words


def _section_type(field: Schema) -> str:
    if "anyOf" in field:
        types = [_section_type(member) if _references(member) else _type(member) for member in field["anyOf"]]
        return ", or ".join(types)
    if "discriminator" not in field:
        return "section"
    tag = field["discriminator"]["propertyName"]
    default = (field.get("default") or {}).get(tag)
    kind_of = {target: kind for kind, target in field["discriminator"]["mapping"].items()}
    kinds = [kind_of[target] + " (default)" * (kind_of[target] == default) for target in _references(field)]
    return f"section, {tag}: {_either(kinds)}"


def _type(field: Schema) -> str:
    """Words for what a value may be: "number, at least 0, below 1", "list of paths", "integer above 0, or null"."""
    if "const" in field:
        return str(field["const"])
    if "enum" in field:
        return _either([value if isinstance(value, str) else _yaml(value) for value in field["enum"]])
    if "anyOf" in field:
        types = [_type(member) for member in field["anyOf"]]
        return ", or ".join(types) if any("," in text or " " in text for text in types) else _either(types)
    kind = field.get("type")
    if kind in ("integer", "number"):
        return kind + _range(field)
    if kind == "array" and "prefixItems" in field:
        return f"list of {len(field['prefixItems'])} {_plural(_type(field['prefixItems'][0]))}"
    if kind == "array":
        return f"list of {_plural(_type(field['items']))}" + ", at least one" * bool(field.get("minItems"))
    if kind == "object":
        return f"mapping of names to {_plural(_type(field['additionalProperties']))}"
    if kind in ("boolean", "null"):
        return {"boolean": "true or false", "null": "null"}[kind]
    return "path" if field.get("format") == "path" else "text"


def _range(field: Schema) -> str:
    """Bounds of a number: " from 0 to 1", " above 0", " of at least 64"."""
    least, most = field.get("minimum"), field.get("maximum")
    if least is not None and most is not None:
        return f" from {_yaml(least)} to {_yaml(most)}"
    above, below = field.get("exclusiveMinimum"), field.get("exclusiveMaximum")
    bounds = (("above", above), ("at least", least), ("below", below), ("at most", most))
    words = [f"{word} {_yaml(bound)}" for word, bound in bounds if bound is not None]
    if not words:
        return ""
    return (" of " if words[0].startswith("at") else " ") + " and ".join(words)


def _plural(described: str) -> str:
    noun, space, rest = described.partition(" ")
    return f"{noun}{'' if noun == 'text' else 's'}{space}{rest}"


def _either(names: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _yaml(value: Any) -> str:
    """A value as it is written in YAML, numbers to 6 digits."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float | int):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    return value if _PLAIN.fullmatch(value) else f"'{value}'"


def _flowing(text: str) -> str:
    """Paragraphs of one line each."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


# ------------------------------------------------------------------------------------------ in the terminal, on a page


def explained(keys: Sequence[str], width: int = 80) -> Iterator[tuple[str, str]]:
    """Headings and texts, in lines of at most `width`, of what the keys mean; without any, of every section.

    Raises:
        RetinaError: there is no such key.
    """
    for settings, parts in [explain(key) for key in keys]:
        for setting in settings:
            yield _heading(setting.key, setting.kinds), _setting_text(setting, width)
        yield from _parts_text(parts, width)
    if not keys:
        yield from _parts_text(reference(), width)


def _parts_text(parts: Sequence[Part], width: int) -> Iterator[tuple[str, str]]:
    for part in parts:
        if part.key and part.description:
            yield _heading(part.key, part.kind), _filled(part.description, width)
        for setting in part.settings:
            if setting.name not in TAGS:
                yield _heading(setting.key, setting.kinds), _setting_text(setting, width)


def _heading(key: str, kind: str) -> str:
    return f"{key}  ({kind})" if kind else key


def _setting_text(setting: Setting, width: int) -> str:
    facts = "; ".join(filter(None, [setting.type, setting.default_words]))
    return _filled(f"{facts}\n\n{setting.description}", width)


def _filled(text: str, width: int) -> str:
    """Paragraphs in indented lines."""
    return "\n".join(
        textwrap.fill(paragraph, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
        for paragraph in _flowing(text).split("\n\n")
    )


def page() -> str:
    """The guide's page of settings, in Markdown."""
    lines = ["# Settings", f"<!-- Made from the descriptions in retina/config: {COMMAND} -->", "", _INTRODUCTION]
    for part in reference():
        if part.key:
            kind = f", `{part.kind}`" if part.kind else ""
            lines += [f"{'##' if '.' not in part.key else '###'} `{part.key}`{kind}", ""]
        else:
            lines += ["## Sections", ""]
        lines += [_flowing(part.description), ""]
        entries = [setting for setting in part.settings if setting.name not in TAGS]
        lines += [_entry(setting) for setting in entries] + [""] * bool(entries)
    return "\n".join(lines).strip() + "\n"


def _entry(setting: Setting) -> str:
    default = f"default `{setting.default}`" if setting.default else setting.default_words
    return f"- `{setting.name}` ({'; '.join(filter(None, [setting.type, default]))}): {setting.description}"


if __name__ == "__main__":
    print(page(), end="")
