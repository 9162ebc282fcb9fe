"""The configuration as a JSON schema: for editors, and what the reference of settings is made from."""

from __future__ import annotations

from typing import Any

from retina.config.reading import DEFAULT_KINDS, TAGS
from retina.config.sections import Config

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file: pydantic's, and which kinds must be named.

    pydantic takes `kind` and `format` as optional in every section, so that `{steps: 100}` would be a schedule of three
    kinds at once. Here they are required, but in the kinds that a file may leave out.
    """
    schema = Config.model_json_schema()
    for section in schema["$defs"].values():
        for tag in TAGS:
            kind = section["properties"].get(tag, {}).get("const")
            if kind is not None and kind not in DEFAULT_KINDS.values():
                section["required"] = [tag, *section.get("required", ())]
        if {"steps", "epochs"} <= set(section["properties"]):
            section["anyOf"] = [{"required": ["steps"]}, {"required": ["epochs"]}]
    return {"$schema": DIALECT, **schema}
